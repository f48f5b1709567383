"""Predictions meet their labels: the join, done by ClickHouse, and the questions that the evaluator asks about it.

A prediction and its label are stored in any order, by different partitions, minutes or months apart. ``arrivals`` notes
what was stored at which Kafka position; whichever of the two comes second finds the other by id, and the pair goes into
``outcomes``, one row per prediction. Joining a range of positions again replaces rows by equal or newer ones.

What becomes of a label; the last column is the series that counts it, ``fate`` of ``driftline_labels_total`` if no other:

    ============= ============================================================ ==============
    refused       it is none, or is of the future (``labels.checked``)         ``driftline_labels_refused_total``
    joined        its prediction is stored, and has no other label             ``joined``
    corrected     its prediction has a label of another ``ts``: the newest     ``corrected``
                  counts, in whatever order they come, and the revision grows
    duplicate     its prediction has a label of the same ``ts``: they are one;   ``duplicate``
                  should they differ, the one later in the log counts
    early         its prediction is not stored yet: it waits, and is joined    ``unmatched``, then
                  when the prediction comes                                    ``found_later``
    unknown       no prediction has its id: kept as long as any label          ``unmatched``
    too late      more than ``HORIZON_MS`` after its prediction, which is      ``unmatched``
                  past the retention: never joined
    too early     more than ``SKEW_MS`` before its prediction: never joined    ``unmatched``
    ============= ============================================================ ==============

The series say what was found when a label came. A step that is repeated after a restart finds duplicates; the rows are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitor.clickhouse import ClickHouse
from monitor.scoring import Outcomes, Place
from monitor.versions import OTHER_VERSION

Topic = Literal["labels", "scored"]

_DAY_MS: Final = 86_400_000
# A label's ts may be before its prediction's: clocks differ, and some labels carry a date only.
SKEW_MS: Final = _DAY_MS
HORIZON_MS: Final = (
    180 * _DAY_MS
)  # the retention of predictions: a later label finds nothing anyway
MANY_IDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Range:
    """Positions ``[start, stop)`` of one partition of a topic."""

    topic: Topic
    partition: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """Rows of one model and partition in some ranges: how many, and their event times."""

    model: str
    topic: Topic
    partition: int
    n: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join of some ranges did.

    Attributes:
        starts: of the units of time with labelled predictions of these ranges, or of their labels, ascending.
        first: predictions that got their first label.
        more: labels that these or other predictions got beyond the first.
        matched: labels in the ranges whose id a labelled prediction has now.

    The numbers are of a moment: a part that expires, or a row that is stored twice, may bring one below 0.
    """

    starts: Sequence[int]
    first: int
    more: int
    matched: int


class Truth:
    """The join and what it knows, on one database.

    Args:
        link: to the database.
        versions: of a window that are told apart, those with the most predictions; the others are one, ``OTHER_VERSION``. A producer chooses its versions.
    """

    def __init__(self, link: ClickHouse, *, versions: int) -> None:
        self._link, self._versions = link, versions

    def bounded(self, wanted: Range, rows: int) -> Range:
        """The longest prefix of a range that holds about ``rows`` rows: a message is never cut."""
        query = (
            "SELECT max(position) AS last, count() AS n FROM (SELECT position FROM arrivals WHERE topic = {topic:String}"
            " AND partition = {p0:UInt32} AND position >= {a0:UInt64} AND position < {b0:UInt64}"
            " ORDER BY position LIMIT {rows:UInt32})"
        )
        parameters = {"topic": wanted.topic, "rows": rows, **_bounds([wanted])}
        found = self._link.rows(query, parameters)[0]
        if found["n"] < rows:
            return wanted
        return Range(wanted.topic, wanted.partition, wanted.start, int(found["last"]) + 1)

    def arrived(self, ranges: Sequence[Range]) -> list[Arrived]:
        """What was stored in ranges of one topic."""
        if not ranges:
            return []
        topic = ranges[0].topic
        query = _ARRIVED.replace("{inside}", _inside(ranges))
        rows = self._link.rows(query, {"topic": topic, **_bounds(ranges)})
        return [Arrived(topic=topic, **row) for row in rows]

    def join(self, ranges: Sequence[Range], arrived: Sequence[Arrived], *, unit_ms: int) -> Joined:
        """Join what arrived of one model in ranges of one topic.

        Args:
            ranges: of one topic.
            arrived: what ``arrived(ranges)`` says about one model; not empty.
            unit_ms: resolution of ``Joined.starts``.
        """
        first, last = min(a.first_ms for a in arrived), max(a.last_ms for a in arrived)
        labels = arrived[0].topic == "labels"
        parameters = {
            "topic": arrived[0].topic,
            "model": arrived[0].model,
            "unit": unit_ms,
            "from_ms": max(0, first - (HORIZON_MS if labels else 0)),
            "to_ms": last + (SKEW_MS if labels else 0),
            "labels_from_ms": max(0, first - (HORIZON_MS if labels else SKEW_MS)),
            **_bounds(ranges),
        }
        n = sum(a.n for a in arrived)
        join, touched, matched = (_asked(q, ranges, n) for q in (_JOIN, _TOUCHED, _MATCHED))
        before = self._link.rows(touched, parameters)
        self._link.execute(join, parameters)
        after = self._link.rows(touched, parameters)
        first, told = (
            sum(r[c] for r in after) - sum(r[c] for r in before) for c in ("n", "labels")
        )
        return Joined(
            starts=[row["start"] for row in after],
            first=first,
            more=told - first,
            matched=self._link.rows(matched, parameters)[0]["n"] if labels else 0,
        )

    def outcomes(self, model: str, from_ms: int, to_ms: int) -> Outcomes:
        """Labelled predictions with event times in ``[from_ms, to_ms)``."""
        scope = {"model": model, "from_ms": from_ms, "to_ms": to_ms}
        columns = self._link.arrow(_OUTCOMES, scope)
        # Sums depend on the order, in their last bits. The database takes four times as long to sort, for the sake of the segments.
        ts_ms, id_hash = columns["ts_ms"].to_numpy(), columns["id_hash"].to_numpy()
        columns = columns.take(pa.array(np.lexsort((id_hash, ts_ms))))
        plain = {name: _array(columns.column(name)) for name in columns.column_names}
        return Outcomes(
            ts_ms=plain["ts_ms"].to_numpy(),
            label_ms=plain["label_ms"].to_numpy(),
            labels=pc.cast(plain["labels"], pa.int64()).to_numpy(),
            version=plain["version"],
            segments=plain["segments"],
            prediction=plain["prediction"],
            score=plain["score"].to_numpy(zero_copy_only=False),
            label=plain["label"],
        )

    def predictions(self, model: str, size_ms: int, from_ms: int, to_ms: int) -> dict[Place, int]:
        """Predictions by place, with event times in ``[from_ms, to_ms)``; windows at the ends are whole only if the bounds are theirs."""
        scope = {"model": model, "size": size_ms, "from_ms": from_ms, "to_ms": to_ms}
        rows = self._link.rows(_PREDICTIONS, {**scope, "versions": self._versions})
        return {(row["followed"], row["segment"], row["start"]): row["total"] for row in rows}

    def first_prediction_ms(self, model: str) -> int | None:
        """Event time of the oldest prediction."""
        query = (
            "SELECT min(ts) AS first, count() AS n FROM predictions WHERE model = {model:String}"
        )
        query = f"SELECT toUnixTimestamp64Milli(first) AS first_ms, n FROM ({query})"  # noqa: S608 - constants
        row = self._link.rows(query, {"model": model})[0]
        return int(row["first_ms"]) if row["n"] else None

    def closed_until_ms(self) -> dict[str, int]:
        """By model, the latest end of a window that the detector closed."""
        rows = self._link.rows(_CLOSED)
        return {row["model"]: row["until_ms"] for row in rows}

    def specs(self) -> Mapping[str, str]:
        """By model, its spec as JSON."""
        rows = self._link.rows("SELECT model, spec FROM models FINAL")
        return {row["model"]: row["spec"] for row in rows}

    def state(self) -> tuple[int, str | None]:
        """Revision and text of the evaluator's saved state."""
        rows = self._link.rows("SELECT revision, state FROM evaluator_state FINAL")
        return (rows[0]["revision"], rows[0]["state"]) if rows else (0, None)

    def save(self, revision: int, state: str) -> None:
        """Save the evaluator's state as a whole."""
        self._link.execute(
            "INSERT INTO evaluator_state VALUES ('', {revision:UInt64}, {state:String})",
            {"revision": revision, "state": state},
        )


def _asked(query: str, ranges: Sequence[Range], rows: int) -> str:
    """A query about the ids of ``rows`` rows in ranges: of few of them the index tells where they may be, of many it is faster to look everywhere."""
    known = _BY_HASH if rows >= MANY_IDS else f"{_BY_HASH} AND {_BY_ID}"
    return query.replace("{known}", known).replace("{inside}", _inside(ranges))


def _inside(ranges: Sequence[Range]) -> str:
    """Condition on partition and position; its values are the parameters of ``_bounds``."""
    return " OR ".join(
        f"(partition = {{p{i}:UInt32}} AND position >= {{a{i}:UInt64}} AND position < {{b{i}:UInt64}})"
        for i in range(len(ranges))
    )


def _bounds(ranges: Sequence[Range]) -> dict[str, int]:
    bounds: dict[str, int] = {}
    for i, r in enumerate(ranges):
        bounds |= {f"p{i}": r.partition, f"a{i}": r.start, f"b{i}": r.stop}
    return bounds


def _array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


_ARRIVED: Final = """
SELECT model, partition, count() AS n, toUnixTimestamp64Milli(min(ts)) AS first_ms, toUnixTimestamp64Milli(max(ts)) AS last_ms
FROM arrivals WHERE topic = {topic:String} AND ({inside}) GROUP BY model, partition ORDER BY model, partition"""
_ARRIVALS: Final = (
    "FROM arrivals WHERE topic = {topic:String} AND model = {model:String} AND ({inside})"
)
# Another id of the same hash is joined with its own labels once more, which changes nothing.
_BY_HASH: Final = f"id_hash IN (SELECT cityHash64(id) {_ARRIVALS})"
_BY_ID: Final = f"id IN (SELECT id {_ARRIVALS})"
_AT: Final = "fromUnixTimestamp64Milli({%s:Int64}, 'UTC')"
_FROM, _TO, _LABELS_FROM = _AT % "from_ms", _AT % "to_ms", _AT % "labels_from_ms"
_SCOPE: Final = f"model = {{model:String}} AND ts >= {_FROM} AND ts < {_TO}"
# Which labels are a prediction's is a matter of the two alone, and not of what else is joined now.
# `labels` counts distinct times: a label that was stored twice is one label.
_JOIN: Final = f"""
INSERT INTO outcomes (model, ts, id, version, segments, prediction, score, label, label_ts, labels)
SELECT p.model, p.ts, p.id, any(p.version), any(p.segments), any(p.prediction), any(p.score),
  argMax(l.label, (l.ts, l.position)), max(l.ts), toUInt32(uniqExact(l.ts))
FROM (
  SELECT model, ts, id, version, segments, prediction, score FROM predictions
  WHERE model = {{model:String}} AND ts >= {_FROM} AND ts <= {_TO} AND {{known}}
) AS p
INNER JOIN (
  SELECT id, ts, position, label FROM labels WHERE model = {{model:String}} AND ts >= {_LABELS_FROM} AND {{known}}
) AS l ON p.id = l.id
WHERE l.ts >= p.ts - INTERVAL {SKEW_MS // _DAY_MS} DAY AND l.ts <= p.ts + INTERVAL {HORIZON_MS // _DAY_MS} DAY
GROUP BY p.model, p.ts, p.id"""  # noqa: S608 - constants
_LABELLED: Final = (
    f"FROM outcomes WHERE model = {{model:String}} AND ts >= {_FROM} AND ts <= {_TO} AND {{known}}"
)
_TOUCHED: Final = f"""
SELECT intDiv(toUnixTimestamp64Milli(ts), {{unit:Int64}}) * {{unit:Int64}} AS start, count() AS n, sum(most) AS labels
FROM (SELECT ts, id_hash, max(labels) AS most {_LABELLED} GROUP BY ts, id_hash)
GROUP BY start ORDER BY start"""  # noqa: S608 - constants
_MATCHED: Final = (
    f"SELECT count() AS n {_ARRIVALS} AND cityHash64(id) IN (SELECT id_hash {_LABELLED})"
)
_OUTCOMES: Final = f"""
SELECT toUnixTimestamp64Milli(ts) AS ts_ms, toUnixTimestamp64Milli(label_ts) AS label_ms, labels, version, segments, id_hash,
  prediction, ifNull(score, nan) AS score, label
FROM outcomes FINAL WHERE {_SCOPE}"""  # noqa: S608 - constants
_COUNTED: Final = f"""
SELECT version, arrayJoin(arrayPushFront(segments, '')) AS segment,
  intDiv(toUnixTimestamp64Milli(ts), {{size:Int64}}) * {{size:Int64}} AS start, count() AS n
FROM predictions FINAL WHERE {_SCOPE} GROUP BY version, segment, start"""  # noqa: S608 - constants
_PREDICTIONS: Final = f"""
SELECT if(place <= {{versions:UInt32}}, version, '{OTHER_VERSION}') AS followed, segment, start, sum(n) AS total
FROM (
  SELECT version, segment, start, n, dense_rank() OVER (PARTITION BY start ORDER BY whole DESC, version) AS place
  FROM (SELECT *, sumIf(n, segment = '') OVER (PARTITION BY start, version) AS whole FROM ({_COUNTED}))
)
GROUP BY followed, segment, start"""  # noqa: S608 - constants
_CLOSED: Final = """
SELECT model, max(toUnixTimestamp64Milli(start) + size_ms) AS until_ms FROM windows
WHERE feature = '' AND segment = '' GROUP BY model"""
