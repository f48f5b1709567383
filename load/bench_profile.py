"""How fast columns become a profile, beside ``np.searchsorted`` and ``np.bincount``: ``python -m load.bench_profile [--short] [--readme]``.

Ours is the whole way from raw columns (pyarrow, as they come from a batch): bins, special values, range and grid flags, exact moments. The
baseline is a histogram of a float64 vector and nothing else: ``np.bincount(np.searchsorted(edges, values, side="right"))``. Both count the same columns
in turns, and the histograms must be equal. The time is CPU time of one thread, for each batch the least of the repeats.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from load.markdown import README, table, write_block
from monitor.binning import Codes, Floats, NumericBins, Raw, cut_numeric
from monitor.columns import Columns
from monitor.counting import Grouping
from monitor.profile import Layout, Profile

BAR: Final = 4.0
FEATURES: Final = 20
REFERENCE: Final = 50_000
BATCH: Final = 10_000  # what the profiler consumes at once

Draw = Callable[[np.random.Generator, int], Floats]
Clock = Callable[[], int]

KINDS: Final[dict[str, Draw]] = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "lognormal": lambda rng, n: rng.lognormal(6, 1.5, n),
    "uniform": lambda rng, n: rng.random(n),
    "discrete (24 whole numbers)": lambda rng, n: rng.integers(0, 24, n).astype(float),
    "money (lognormal, in cents)": lambda rng, n: np.round(rng.lognormal(3, 1, n), 2),
}
MIXED: Final = ["normal"] * 6 + ["lognormal"] * 5 + ["uniform"] * 5 + ["discrete (24 whole numbers)"] * 4  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: ``features`` by kind, and how the columns arrive."""

    name: str
    features: Sequence[str]
    rows: int = BATCH
    missing: float = 0.0
    lists: bool = False


@dataclass(frozen=True, slots=True)
class Speed:
    """Nanoseconds of CPU time a value."""

    baseline_ns: float
    ours_ns: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.baseline_ns / self.ours_ns


CASES: Final = [
    Case("**20 features, mixed**", MIXED),
    *(Case(f"20 {kind}", [kind] * FEATURES) for kind in KINDS),
    Case("mixed, 5 % missing", MIXED, missing=0.05),
    Case("mixed, batches of 65,536", MIXED, rows=65_536),
    Case("mixed, batches of 1,000", MIXED, rows=1_000),
    Case("mixed, Python lists (from JSON)", MIXED, lists=True),
]


def measure(case: Case, rng: np.random.Generator, clock: Clock, repeats: int) -> Speed:
    """The speed of both ways on the same batches.

    Raises:
        AssertionError: the histograms differ.
    """
    bins = {f"f{i:02}": cut_numeric(KINDS[k](rng, REFERENCE)) for i, k in enumerate(case.features)}
    layout = Layout(bins)
    one = Grouping(np.zeros(case.rows, dtype=np.intp), 1)
    # Several batches: a branch predictor learns one of them by heart, and the binary search with it.
    batches = [_batch(case, rng) for _ in range(max(3, 30_000 // case.rows))]
    spent_ns = np.empty((repeats, len(batches), 2))
    for repeat in range(repeats):
        for i, (values, columns) in enumerate(batches):
            start = clock()
            histograms = _histograms(bins, values)
            middle = clock()
            ((profile,),) = columns.profiles(layout, [one])
            spent_ns[repeat, i] = middle - start, clock() - middle
            _assert_equal(profile, histograms, values)
    least_ns = spent_ns.min(axis=0).mean(axis=0) / (case.rows * len(case.features))
    return Speed(*least_ns.tolist())


def _batch(case: Case, rng: np.random.Generator) -> tuple[Mapping[str, Floats], Columns]:
    values, raw = {}, {}
    for i, kind in enumerate(case.features):
        name, drawn = f"f{i:02}", KINDS[kind](rng, case.rows)
        gaps = rng.random(case.rows) < case.missing
        values[name] = np.where(gaps, np.nan, drawn)
        column = pa.array(drawn, mask=gaps)
        raw[name] = column.to_pylist() if case.lists else column
    return values, _columns(raw, case.rows)


def _columns(features: Mapping[str, Raw], n: int) -> Columns:
    none = np.zeros(n, dtype=np.int64)
    return Columns(none, features, {}, none.astype(bool), [None] * n)


def _histograms(
    bins: Mapping[str, NumericBins], values: Mapping[str, Floats]
) -> list[tuple[str, Codes]]:
    return [
        (name, np.bincount(np.searchsorted(b.edges, values[name], side="right"), minlength=b.bins))
        for name, b in bins.items()
    ]


def _assert_equal(
    profile: Profile, histograms: list[tuple[str, Codes]], values: Mapping[str, Floats]
) -> None:
    for name, counts in histograms:
        missing = np.count_nonzero(np.isnan(values[name]))  # a search puts them at the end
        counts[-1] -= missing
        assert profile.counts(name).tolist() == counts.tolist(), name
        assert profile.special(name, "missing") == missing, name


def report(cases: Sequence[Case], speeds: Sequence[Speed], heading: str) -> str:
    """The table as Markdown."""
    rows = [
        [
            case.name,
            f"{case.rows:,}",
            f"{speed.baseline_ns:.1f}",
            f"{speed.ours_ns:.1f}",
            f"{1e3 / speed.baseline_ns:.0f}",
            f"{1e3 / speed.ours_ns:.0f}",
            f"{speed.ratio:.1f}",
        ]
        for case, speed in zip(cases, speeds, strict=True)
    ]
    header = ["columns", "rows a batch", "search + count, ns a value", "profile, ns a value", "search + count, million values/s", "profile, million values/s", "ratio"]  # fmt: skip
    return f"{heading}\n\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if the first row misses the bar."""
    options = parser().parse_args(arguments)
    cases, repeats = (CASES[:1], 5) if options.short else (CASES, options.repeats)
    rng = np.random.default_rng(options.seed)
    speeds = [measure(case, rng, time.thread_time_ns, repeats) for case in cases]
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `python -m load.bench_profile{' --short' if options.short else ''} "
        f"--seed {options.seed}`, numpy {np.__version__}: the least CPU time of {repeats} repeats, both ways in turns, histograms equal. "
        f"The bar is {BAR:g} times in the first row."
    )
    text = report(cases, speeds, heading)
    print(text)
    if options.readme:
        write_block(README, "profile", text)
    return int(speeds[0].ratio < BAR)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench_profile", description=__doc__)
    found.add_argument("--short", action="store_true", help="the first row only, for CI")
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026)
    found.add_argument("--repeats", type=int, default=25)
    return found


if __name__ == "__main__":
    sys.exit(main())
