"""What the page's two large pictures are made of, small enough for a phone: all models with their state, and one model's drift as a grid.

Answers of the other routes are rows; 200 features over 400 windows would be 80,000 of them. Here the database puts neighbouring windows
into one column, in which the worst of them shows, and what comes back is one list of numbers for each feature.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import pyarrow.compute as pc

from monitor.store import Store

MAX_COLUMNS: Final = 200
_RATIO_DIGITS: Final = 3  # significant: a ratio is shown as one of five colours
# Of all windows only their names are read, and revisions are compared of the last ones alone: a tenth of the time at 4 million windows.
_FLEET: Final = """
SELECT model, bins_id, features, versions, if(versions = 0, NULL, last_ms) AS last_ms, serving, rate, firing, severity, title, incident_id
FROM (SELECT model, bins_id, JSONLength(spec, 'features') AS features FROM models FINAL) AS m
LEFT JOIN (
  SELECT model, max(end_ms) AS last_ms, argMax(seen, (end_ms, -toInt64(size_ms))) AS serving, argMax(1000 * n / size_ms, (end_ms, -toInt64(size_ms))) AS rate
  FROM (
    SELECT model, size_ms, toUnixTimestamp64Milli(start) + size_ms AS end_ms, sum(n) AS n, arraySort(groupUniqArray(version)) AS seen
    FROM windows FINAL WHERE feature = '' AND segment = ''
      AND (model, size_ms, start) IN (SELECT model, size_ms, max(start) FROM windows WHERE feature = '' AND segment = '' GROUP BY model, size_ms)
    GROUP BY model, size_ms, end_ms
  ) GROUP BY model
) AS w USING (model)
LEFT JOIN (
  SELECT model, uniqExact(version) AS versions FROM windows WHERE feature = '' AND segment = '' GROUP BY model
) AS v USING (model)
LEFT JOIN (
  SELECT model, count() AS firing, argMin(severity, place) AS severity, argMin(title, place) AS title, argMin(id, place) AS incident_id
  FROM (
    SELECT model, severity, title, id,
      (indexOf(['critical', 'error', 'warning', 'info'], severity), -toUnixTimestamp64Milli(opened), id) AS place
    FROM incidents FINAL WHERE state = 'firing'
  ) GROUP BY model
) AS i USING (model)
ORDER BY firing = 0, indexOf(['critical', 'error', 'warning', 'info'], severity), model LIMIT {limit:UInt32}"""
# How far beyond its limit a statistic was, of the kinds in which more is worse. A breach with a limit on its other side is at least at its limit.
_JUDGED: Final = """
SELECT feature, statistic, toUnixTimestamp64Milli(start) AS start_ms,
  if(status = 'no_data' OR value IS NULL OR `limit` IS NULL OR `limit` <= 0, -1,
    greatest(assumeNotNull(value) / assumeNotNull(`limit`), if(status = 'breach', 1, 0))) AS ratio
FROM verdicts FINAL
WHERE model = {model:String} AND version = {version:String} AND segment = {segment:String} AND size_ms = {size_ms:UInt64}
  AND feature != '' AND kind IN ('data_quality', 'data_drift', 'prediction_drift', 'no_data') AND NOT startsWith(statistic, 'estimated_')
  AND start >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC') AND start < fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')"""
_HEAT: Final = f"""
SELECT feature, intDiv(start_ms - {{from_ms:Int64}}, {{column_ms:Int64}}) AS place, groupUniqArray(statistic) AS seen,
  countIf(asked) AS cells, maxIf(ratio, asked) AS worst, argMaxIf(statistic, (ratio, start_ms), asked) AS which
FROM (SELECT *, {{statistic:Nullable(String)}} IS NULL OR statistic = {{statistic:Nullable(String)}} AS asked FROM ({_JUDGED}))
GROUP BY feature, place"""  # noqa: S608 - constants

# Rows are only ever added, so their numbers are another wherever something was stored. Those of the ledger are left out: it grows all the time.
_MARK: Final = """
SELECT concat(toString((SELECT count() FROM windows)), '.', toString((SELECT count() FROM verdicts)), '.', toString((SELECT count() FROM performance)), '.',
  toString((SELECT (count(), sum(revision)) FROM incidents)), '.', toString((SELECT count() FROM deliveries)), '.', toString((SELECT (count(), max(revision)) FROM models))) AS mark"""


class FleetRow(msgspec.Struct, frozen=True):
    """A model in the list of all. Without ``bins_id`` it is calibrating itself.

    Attributes:
        versions: how many there ever were; ``serving``: those in the last window.
        last_ms: when the last window ended; ``None`` without windows.
        rate: requests a second in it.
        firing: open incidents; ``severity``, ``title`` and ``incident_id`` are those of the worst, empty without one.
    """

    model: str
    bins_id: str
    features: int
    versions: int
    serving: list[str]
    last_ms: int | None
    rate: float
    firing: int
    severity: str
    title: str
    incident_id: str


class HeatRow(msgspec.Struct, frozen=True):
    """One feature: by column its worst value as a multiple of its limit, ``None`` where nothing could be said, and which statistic that was.

    ``which`` is an index into ``Heat.statistics``, -1 where nothing was judged. ``worst`` is the largest ratio of all columns.
    """

    feature: str
    worst: float | None
    ratios: list[float | None]
    which: list[int]


class Heat(msgspec.Struct, frozen=True):
    """Drift of one version by feature and time. Column ``i`` holds the windows that start in ``[from_ms + i * column_ms, from_ms + (i + 1) * column_ms)``.

    ``statistics`` are all that were judged; ``features`` come worst first.
    """

    from_ms: int
    column_ms: int
    columns: int
    statistics: list[str]
    features: list[HeatRow]


def mark(store: Store) -> str:
    """What is another whenever something was stored that a view shows; it may be another although nothing was."""
    return str(store.link.rows(_MARK)[0]["mark"])


def fleet(store: Store, *, limit: int) -> list[FleetRow]:
    """All models, those with the worst open incident first."""
    found = store.link.rows(_FLEET, {"limit": limit})
    return msgspec.convert(found, list[FleetRow])


def heat(
    store: Store,
    model: str,
    *,
    version: str,
    segment: str,
    size_ms: int,
    from_ms: int,
    to_ms: int,
    columns: int,
    statistic: str | None,
) -> Heat:
    """The grid of the windows that start in ``[from_ms, to_ms)``, in at most ``columns`` columns of whole windows."""
    first_ms = from_ms // size_ms * size_ms
    windows = max(1, -(-(to_ms - first_ms) // size_ms))
    column_ms = size_ms * -(-windows // columns)
    count = -(-windows * size_ms // column_ms)
    scope = {"model": model, "version": version, "segment": segment, "size_ms": size_ms}
    scope |= {"from_ms": first_ms, "to_ms": to_ms, "column_ms": column_ms, "statistic": statistic}
    found = store.link.arrow(_HEAT, scope)
    statistics = sorted(pc.unique(pc.list_flatten(found.column("seen"))).to_pylist())
    cells = found.filter(pc.greater(found.column("cells"), 0))
    names, row = np.unique(
        cells.column("feature").to_numpy(zero_copy_only=False), return_inverse=True
    )
    column = cells.column("place").to_numpy()
    ratio = np.full((len(names), count), -1.0)
    ratio[row, column] = cells.column("worst").to_numpy()
    which = np.full((len(names), count), -1)
    which[row, column] = np.searchsorted(statistics, cells.column("which").to_pylist())
    which[ratio < 0] = -1
    worst = ratio.max(axis=1, initial=-1)
    features = [
        HeatRow(
            feature=str(names[i]),
            worst=_short(worst[i]),
            ratios=[_short(value) for value in ratio[i]],
            which=which[i].tolist(),
        )
        for i in np.lexsort((names, -worst))
    ]
    return Heat(first_ms, column_ms, count, statistics, features)


def _short(ratio: float) -> float | None:
    """A ratio with the digits that are shown; ``None`` for -1, which stands for "nothing could be said"."""
    return None if ratio < 0 else float(f"{ratio:.{_RATIO_DIGITS}g}")
