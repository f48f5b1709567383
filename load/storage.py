"""How much disk a model takes, by window size and bins: ``python -m load.storage [--rate 10] [--readme]``.

Windows of a model of 50 features whose counts are drawn from its reference, as the tables have them in the end: rows made and judged by the product's own code, stored
by its migrations in an embedded ClickHouse, merged, and weighed as they lie compressed. Sliced by the number of bins, so that each slice can be weighed alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from load.clean import DAY_MS, HOUR_MS, MINUTE_MS, START_MS, Clean, Plan, learn, spec
from load.markdown import README, table, write_block
from monitor import store
from monitor.binning import SPECIALS, Ints, NumericBins
from monitor.clickhouse import ClickHouse
from monitor.history import sums_of_quanta
from monitor.judge import Judge
from monitor.panes import SeriesKey
from monitor.profile import Field, Profile
from monitor.reference import Reference
from monitor.settings import ClickHouseSettings
from monitor.spec import ModelSpec, format_duration
from monitor.store import Store
from monitor.tables import SCHEMAS, Row, TableName, to_table, verdict_rows, window_rows
from monitor.wire import Window
from streams.embedded import clickhouse
from streams.supervisor import LOOPBACK, Supervisor, free_port

SIZES_MS: Final = (MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, DAY_MS)
WINDOWS: Final = 240  # of a size: with 10 features of a slice thousands of rows
REFERENCE_DAYS: Final = 2
FEW: Final = 32  # bins: more is "up to 128" for a number, and up to 257 for a category
SLICES: Final = ("at most 32 bins", "more bins")
CODECS: Final = ("LZ4", "ZSTD(1)", "Delta, ZSTD(1)", "T64, ZSTD(1)")
_FEATURE, _COUNTS = (SCHEMAS["windows"].names.index(name) for name in ("feature", "counts"))
_ALL_BYTES: Final = """
SELECT sum(data_compressed_bytes) AS n FROM system.parts
WHERE database = currentDatabase() AND table = 'weighed' AND active"""
_COUNTS_BYTES: Final = """
SELECT sum(column_data_compressed_bytes) AS n FROM system.parts_columns
WHERE database = currentDatabase() AND table = 'weighed' AND active AND column = 'counts'"""


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes of one window size.

    Attributes:
        slices: of one feature in one window, by ``SLICES``.
        verdicts: of what is said of one feature in one window.
        own: of the row that a window has of its own.
        codecs: of the counts of a feature with many bins, by ``CODECS``.
    """

    size_ms: int
    slices: tuple[float, ...]
    verdicts: float
    own: float
    codecs: tuple[float, ...]


def vectors(reference: Reference, windows: int, events: int, rng: np.random.Generator) -> Ints:
    """``(windows, layout.size)``: windows of so many events, drawn from the reference."""
    layout, whole = reference.layout, reference.profiles[""]
    into = np.zeros((windows, layout.size), dtype=np.int64)
    into[:, 0] = events
    for each in layout.fields:
        missing = whole.special(each.name, "missing") / whole.n
        absent = rng.binomial(events, missing, windows)
        into[:, each.specials.start + SPECIALS.index("missing")] = absent
        counts = whole.counts(each.name)
        present = events - absent
        if counts.sum():
            into[:, each.counts] = rng.multinomial(present, counts / counts.sum())
            into[:, each.moments] = _moments(whole, each, present, rng)
    return layout.normalise(into)


def _moments(whole: Profile, each: Field, present: Ints, rng: np.random.Generator) -> Ints:
    if not isinstance(each.bins, NumericBins):
        return np.zeros((len(present), 3), dtype=np.int64)
    n, mean, m2 = whole.moments(each.name)
    variance = m2 / n
    noise = rng.standard_normal((2, len(present))) / np.sqrt(np.maximum(present, 1))
    means, variances = mean + noise[0] * np.sqrt(variance), variance * np.exp(noise[1])
    rows = zip(present.tolist(), means.tolist(), variances.tolist(), strict=True)
    return np.array([sums_of_quanta(each.bins, *row) for row in rows])


def rows_of(
    model: ModelSpec, reference: Reference, size_ms: int, drawn: Ints
) -> tuple[list[Row], list[Row]]:
    """Rows of ``windows`` and of ``verdicts``."""
    key = SeriesKey(model.model, "1", "", reference.layout.bins_id)
    judge, windows, verdicts = Judge(key, model, reference), list[Row](), list[Row]()
    for i, vector in enumerate(drawn):
        profile, start = Profile(reference.layout, vector), START_MS + i * size_ms
        made = Window(
            key.model,
            key.version,
            key.segment,
            size_ms,
            start,
            "",
            start + size_ms,
            key.bins_id,
            profile.n,
            profile.to_bytes(),
        )
        windows += window_rows(made, reference.layout)
        said = judge.window(start, size_ms, profile)
        if said is not None:
            verdicts += verdict_rows(said)
    return windows, verdicts


def weigh(target: Store, size_ms: int, windows: list[Row], verdicts: list[Row]) -> Weight:
    """Store the rows and weigh them."""
    link = target.link
    named = {row[_FEATURE] for row in windows} - {""}
    bins = {row[_FEATURE]: len(row[_COUNTS]) for row in windows}
    slices = (
        {name for name in named if bins[name] <= FEW},
        {name for name in named if bins[name] > FEW},
    )
    heavy = [row for row in windows if row[_FEATURE] in slices[1]]
    return Weight(
        size_ms,
        tuple(
            _bytes(link, "windows", [row for row in windows if row[_FEATURE] in names])
            for names in slices
        ),
        _bytes(link, "verdicts", verdicts) * len(verdicts) / (len(windows) - _own(windows)),
        _bytes(link, "windows", [row for row in windows if not row[_FEATURE]]),
        tuple(_bytes(link, "windows", heavy, codec=codec) for codec in CODECS),
    )


def _own(windows: Sequence[Row]) -> int:
    return sum(not row[_FEATURE] for row in windows)


def _bytes(link: ClickHouse, like: TableName, rows: Sequence[Row], codec: str = "") -> float:
    """Bytes a row; with ``codec`` those of the counts alone, under that codec."""
    link.execute("DROP TABLE IF EXISTS weighed")
    link.execute(f"CREATE TABLE weighed AS {like}")
    # As the parts of a month are: smaller ones keep all columns in one file.
    link.execute("ALTER TABLE weighed MODIFY SETTING min_bytes_for_wide_part = 0")
    if codec:
        link.execute(f"ALTER TABLE weighed MODIFY COLUMN counts Array(UInt64) CODEC({codec})")
    link.insert("weighed", to_table(like, rows), token="")
    link.execute("OPTIMIZE TABLE weighed FINAL")
    found = link.rows(_COUNTS_BYTES if codec else _ALL_BYTES)
    return float(found[0]["n"]) / len(rows)


def report(weights: Sequence[Weight], heading: str) -> str:
    """Tables of bytes a day, and of the codecs."""
    days = [
        [
            format_duration(w.size_ms),
            *(f"{each * DAY_MS / w.size_ms:,.0f}" for each in (*w.slices, w.verdicts, w.own)),
        ]
        for w in weights
    ]
    codecs = [[format_duration(w.size_ms), *(f"{each:.0f}" for each in w.codecs)] for w in weights]
    daily = table(
        ["windows of", *SLICES, "its verdicts", "the window itself"],
        days,
    )
    return (
        f"{heading} Bytes of one feature and day (the last column: of a day, whatever the features), one segment of one version:\n\n{daily}\n\n"
        f"Bytes of the counts of a feature with more bins, in one window, by codec; the last is the one in use:\n\n{table(['windows of', *CODECS], codecs)}"
    )


@contextmanager
def database() -> Iterator[Store]:
    """An embedded ClickHouse with our tables, as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder, Supervisor(Path(folder) / "logs") as supervisor:
        port = free_port()
        supervisor.start(clickhouse.child(port, Path(folder) / "data"))
        supervisor.wait_ready(30)
        settings = ClickHouseSettings(url=f"http://{LOOPBACK}:{port}")
        store.migrate(settings)
        with closing(store.connect(settings)) as target:
            yield target


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = " ".join(["python -m load.storage", *(a for a in arguments if a != "--readme")])
    plan, rng = Plan("iid", options.seed, pane_ms=MINUTE_MS), np.random.default_rng(options.seed)
    model = spec(plan, tuple(format_duration(size) for size in SIZES_MS))
    reference = learn(model, Clean(plan).days(REFERENCE_DAYS), plan)
    weights = []
    with database() as target:
        for size_ms in SIZES_MS:
            drawn = vectors(reference, options.windows, round(options.rate * size_ms / 1_000), rng)
            weights.append(weigh(target, size_ms, *rows_of(model, reference, size_ms, drawn)))
    heading = f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`: {options.rate:g} events a second."
    text = report(weights, heading)
    print(text)
    if options.readme:
        write_block(README, "storage", text)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.storage", description=__doc__)
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026, help="of all that is drawn")
    found.add_argument("--rate", type=float, default=10.0, help="events a second")
    found.add_argument("--windows", type=int, default=WINDOWS, help="of each size")
    return found


if __name__ == "__main__":
    sys.exit(main())
