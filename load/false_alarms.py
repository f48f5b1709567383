"""How often each calibrated limit is passed when nothing is wrong: the realised rate beside the level, for every kind of clean stream.

``python -m load.false_alarms`` prints the table; ``--short`` takes half a minute; ``--readme`` writes it into the README. Each number is over many references, since
the luck of one is shared by all of its windows; its error is taken over references for the same reason.

Streams: independent continuous values, binned at their own quantiles; independent categories, equal and unequal (1/rank); an AR(1)
of values with phi = 0.9; hours of a day whose mean goes up and down; rates of a defect. Exit 1, naming the rows, if a bar is missed: realised over level
within [0.5, 1.5] on independent data and [0.3, 2] on the others, wherever at least ``ENOUGH`` alarms were to be expected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import signal, special, stats

from load.markdown import README, table, write_block
from monitor.binning import CategoricalBins, NumericBins
from monitor.calibration import RATES, Null, calibrate
from monitor.distances import group_equal_mass, ks, psi
from monitor.profile import Layout
from monitor.spec import WindowSpec

SEED: Final = 20_260_301
LEVELS: Final = (0.05, 0.01, 0.001)
ENOUGH: Final = 100  # expected alarms from which a ratio means something: 10 % error
INDEPENDENT_BAR: Final = (0.5, 1.5)
DEPENDENT_BAR: Final = (0.3, 2.0)
PHI: Final = 0.9
SEASON: Final = 0.5  # amplitude of the daily mean, in standard deviations of the noise
_HOUR: Final = 3_600_000
_WINDOWS: Final = WindowSpec(pane=_HOUR, sizes=(_HOUR,))

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Size:
    """References of one row, and windows of each."""

    references: int
    windows: int


@dataclass(frozen=True, slots=True)
class Row:
    """Realised rates of one statistic on one stream.

    Attributes:
        rates: per level; ``errors`` their standard errors over references.
        attainable: per level, what a limit that never exceeds the level could realise: the level itself where values are fine enough.
        next_rates: per level, the rate had the limit been one step of the statistic lower: what the lattice leaves to choose from.
    """

    statistic: str
    stream: str
    groups: int
    n: int
    m: int
    trials: int
    rates: tuple[float, ...]
    errors: tuple[float, ...]
    next_rates: tuple[float, ...]
    attainable: tuple[float, ...] = LEVELS

    @property
    def bar(self) -> tuple[float, float]:
        """Least and largest ratio."""
        return DEPENDENT_BAR if self.stream in ("AR(1) 0.9", "daily season") else INDEPENDENT_BAR

    def misses(self) -> list[float]:
        """Levels at which the bar is missed: too many alarms, or too few although a step of the lattice would be allowed."""
        low, high = self.bar
        found = []
        for level, rate, lower, attainable in zip(
            LEVELS, self.rates, self.next_rates, self.attainable, strict=True
        ):
            many = rate > high * level
            few = rate < low * attainable and lower <= high * level
            if attainable * self.trials >= ENOUGH and (many or few):
                found.append(level)
        return found


def layout_of(kind: str, bins: int, references: int) -> Layout:
    """A field per reference: what is calibrated together need not be together."""
    names = [f"r{i:04}" for i in range(references)]
    if kind == "categories":
        return Layout(
            {name: CategoricalBins(tuple(f"c{i:02}" for i in range(bins))) for name in names}
        )
    edges = np.arange(1.0, bins)
    return Layout({name: NumericBins(edges, 0.0, float(bins), 0.0, 1.0) for name in names})


def null_of(layout: Layout, counts: Ints, missing: Ints | None, groups: int) -> Null:
    """The null learnt from ``(references, blocks, bins)`` counts, and ``(references, blocks)`` missing values."""
    blocks = np.zeros((counts.shape[1], layout.size), dtype=np.int64)
    for i, f in enumerate(layout.fields):
        blocks[:, f.counts.start : f.counts.start + counts.shape[2]] = counts[i]
        if missing is not None:
            blocks[:, f.specials.start] = missing[i]
    blocks[:, 0] = counts[0].sum(axis=1) + (0 if missing is None else missing[0])
    return calibrate(layout, blocks, _HOUR, _WINDOWS, groups=groups)[_HOUR]


def judge(
    null: Null, reference: Ints, windows: Ints, groups: int, stream: str, *, with_ks: bool = True
) -> Iterator[Row]:
    """Rows of PSI and KS from ``(references, bins)`` and ``(references, windows, bins)`` counts."""
    n, m = int(windows[0, 0].sum()), int(reference[0].sum())
    starts = [group_equal_mass(r, groups) for r in reference]
    by_psi = [psi(r, w, starts=s) for r, w, s in zip(reference, windows, starts, strict=True)]
    values = {"PSI": (np.array(by_psi), null.psi_limit)}
    if with_ks:
        values["KS"] = (ks(reference[:, None], windows).low, null.ks_limit)
    for name, (found, limit) in values.items():
        rates, errors, lower = [], [], []
        for level in LEVELS:
            at = limit(float(n), level)[:, None]
            passed = (found > at).mean(axis=1)
            step = np.where(found <= at, found, -np.inf).max(axis=1, keepdims=True)
            # A value that several windows share is a step of the lattice; one that is alone is not.
            at_step = (np.abs(found - step) < 1e-12).mean(axis=1)
            on_step = np.where(at_step * found.shape[1] > 2.5, at_step, 0.0)
            rates.append(float(passed.mean()))
            errors.append(float(passed.std(ddof=1) / np.sqrt(len(passed))))
            lower.append(float((passed + on_step).mean()))
        yield Row(name, stream, groups, n, m, found.size, tuple(rates), tuple(errors), tuple(lower))


def independent(
    rng: np.random.Generator, bins: int, n: int, m: int, size: Size, groups: int
) -> Iterator[Row]:
    """Continuous values: the bins are cut at the reference's quantiles, so that its counts are equal and the true shares spacings."""
    counts = np.diff(np.arange(bins + 1) * m // bins)
    weights = counts.astype(np.float64)
    weights[0] += 1
    shares = rng.dirichlet(weights, size.references)
    reference = np.tile(counts, (size.references, 1))
    blocks = _in_blocks(rng, reference, n)
    null = null_of(layout_of("numbers", bins, size.references), blocks, None, groups)
    windows = rng.multinomial(n, shares[:, None], (size.references, size.windows))
    yield from judge(null, reference, windows, groups, "continuous")


def categories(
    rng: np.random.Generator, count: int, n: int, m: int, size: Size, *, equal: bool
) -> Row:
    """Categories, most frequent first; the reference is a draw as well."""
    shares = np.ones(count) if equal else 1.0 / np.arange(1, count + 1)
    shares /= shares.sum()
    reference = rng.multinomial(m, shares, size.references)
    reference = reference[(reference > 0).all(axis=1)]  # else a category would join its neighbour
    null = null_of(
        layout_of("categories", count, len(reference)), _in_blocks(rng, reference, n), None, count
    )
    windows = rng.multinomial(n, shares, (len(reference), size.windows))
    stream = "equal categories" if equal else "categories 1/rank"
    return next(judge(null, reference, windows, count, stream, with_ks=False))


def autoregressive(
    rng: np.random.Generator, bins: int, n: int, tiles: int, size: Size, groups: int
) -> Iterator[Row]:
    """Values of an AR(1), one long series for each reference and its windows."""
    references, windows = [], []
    for _ in range(size.references):
        noise = rng.standard_normal((tiles + size.windows) * n) * np.sqrt(1 - PHI**2)
        noise[0] /= np.sqrt(1 - PHI**2)
        values = signal.lfilter([1.0], [1.0, -PHI], noise)
        past = np.sort(values[: tiles * n])
        edges = past[np.arange(1, bins) * len(past) // bins]
        series = np.arange(len(values)) // n * bins + np.searchsorted(edges, values, side="right")
        counted = np.bincount(series, minlength=(tiles + size.windows) * bins).reshape(-1, bins)
        references.append(counted[:tiles])
        windows.append(counted[tiles:])
    blocks = np.array(references)
    null = null_of(layout_of("numbers", bins, size.references), blocks, None, groups)
    yield from judge(null, blocks.sum(axis=1), np.array(windows), groups, "AR(1) 0.9")


def seasonal(
    rng: np.random.Generator, bins: int, n: int, tiles: int, size: Size, groups: int
) -> Iterator[Row]:
    """Hours of a day: the mean is a sine of the hour, the noise normal. Bins are cut at the quantiles of a whole day."""
    means = SEASON * np.sin(2 * np.pi * np.arange(24) / 24)
    grid = np.linspace(-6, 6, 4_001)
    whole = special.ndtr(grid[:, None] - means).mean(axis=1)
    edges = np.interp(np.arange(1, bins) / bins, whole, grid)
    below = special.ndtr(edges - means[:, None])
    shares = np.diff(np.concatenate((np.zeros((24, 1)), below, np.ones((24, 1))), axis=1), axis=1)
    hours = shares[np.arange(tiles + size.windows) % 24]
    counted = rng.multinomial(n, hours, (size.references, len(hours)))
    blocks = counted[:, :tiles]
    null = null_of(layout_of("numbers", bins, size.references), blocks, None, groups)
    yield from judge(null, blocks.sum(axis=1), counted[:, tiles:], groups, "daily season")


def rates(rng: np.random.Generator, share: float, n: int, m: int, size: Size) -> Row:
    """A defect that befalls each event by itself."""
    events = np.diff(np.arange(_blocks(n, m) + 1) * m // _blocks(n, m))
    missing = rng.binomial(events, share, (size.references, len(events)))
    present = np.stack((events - missing, np.zeros_like(missing)), axis=2)
    null = null_of(layout_of("numbers", 2, size.references), present, missing, 2)
    windows = rng.binomial(n, share, (size.references, size.windows))
    found, errors, attainable = [], [], []
    for level in LEVELS:
        limit = null.rate_limit(n, level)[:, RATES.index("missing")]
        passed = (windows / n > limit[:, None]).mean(axis=1)
        reached = np.zeros((size.references, len(RATES)), dtype=np.int64)
        reached[:, 0] = np.round(limit * n).astype(np.int64) + 1
        known = float(stats.binom.sf(stats.binom.isf(level, n, share), n, share))
        attainable.append(min(known, float(null.rate_p_values(n, reached)[:, 0].mean())))
        found.append(float(passed.mean()))
        errors.append(float(passed.std(ddof=1) / np.sqrt(len(passed))))
    return Row(
        f"rate {share:g}",
        "independent",
        1,
        n,
        m,
        windows.size,
        tuple(found),
        tuple(errors),
        tuple(found),
        tuple(attainable),
    )


def rows(*, short: bool, seed: int = SEED) -> Iterator[Row]:
    """All rows; each has a generator of its own, so that a row does not depend on the others."""
    generators = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(1_000))
    many = Size(100, 200) if short else Size(400, 500)
    yield from _independent_rows(generators, many, short=short)
    yield from _dependent_rows(generators, short=short)


def _independent_rows(
    generators: Iterator[np.random.Generator], many: Size, *, short: bool
) -> Iterator[Row]:
    sizes = (50, 1_000, 100_000) if short else (50, 200, 1_000, 10_000, 100_000)
    for bins, n in product((10,) if short else (5, 10, 20), sizes):
        yield from independent(next(generators), bins, n, 10 * n, many, bins)
    yield from independent(next(generators), 128, 1_000, 20_000, many, 10)
    for n, m in () if short else ((50, 50), (1_000, 1_000), (100_000, 10_000)):
        # Windows share the luck of a reference that is no larger than they: more references, fewer windows.
        yield from independent(next(generators), 10, n, m, Size(2_000, 100), 10)
    for count, n, equal in product(
        (5, 20), (200,) if short else (50, 1_000, 100_000), (True, False)
    ):
        yield categories(next(generators), count, n, 10 * n, many, equal=equal)
    shares = (0.01, 0.3) if short else (0.001, 0.01, 0.1, 0.3)
    for share, n in product(shares, (1_000,) if short else (50, 1_000, 100_000)):
        yield rates(next(generators), share, n, 10 * n, Size(many.references, 1_000))


def _dependent_rows(generators: Iterator[np.random.Generator], *, short: bool) -> Iterator[Row]:
    for bins, n in product((10,) if short else (5, 10, 20), (50,) if short else (50, 1_000)):
        size = Size(60, 300) if short else Size(250 if n < 1_000 else 120, 800)
        yield from autoregressive(next(generators), bins, n, 200, size, bins)
    for bins, n in product(
        (10,) if short else (5, 10, 20), (1_000,) if short else (50, 1_000, 10_000, 100_000)
    ):
        size = Size(60, 480) if short else Size(220, 480)
        yield from seasonal(next(generators), bins, n, 28 * 24, size, bins)


def markdown(found: list[Row]) -> str:
    """The table: realised rate over level, with its standard error over references."""
    header = [
        "statistic",
        "stream",
        "bins",
        "n",
        "reference",
        "windows",
        *(f"{level:g}" for level in LEVELS),
    ]
    lines = []
    for row in found:
        missed = row.misses()
        cells = []
        for level, rate, error in zip(LEVELS, row.rates, row.errors, strict=True):
            shown = f"{rate / level:.2f} ± {error / level:.2f}"
            cells.append(f"**{shown}**" if level in missed else shown)
        lines.append(
            [
                row.statistic,
                row.stream,
                str(row.groups),
                f"{row.n:,}",
                f"{row.m:,}",
                f"{row.trials:,}",
                *cells,
            ]
        )
    return table(header, lines)


def main() -> int:
    """Print the table, and say which bars are missed."""
    parser = argparse.ArgumentParser(
        prog="python -m load.false_alarms", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--short", action="store_true", help="fewer rows and trials: about half a minute"
    )
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    found = list(rows(short=options.short))
    date = datetime.now(UTC).date().isoformat()
    command = f"python -m load.false_alarms{' --short' if options.short else ''}"
    body = (
        f"{markdown(found)}\n\nRealised rate of false alarms over the level, ± its standard error over references; 1 is exact. "
        f"{date}, `{command}`, seed {SEED}. Bars: {INDEPENDENT_BAR[0]:g} to {INDEPENDENT_BAR[1]:g} on independent data, "
        f"{DEPENDENT_BAR[0]:g} to {DEPENDENT_BAR[1]:g} on the others, where {ENOUGH} alarms or more were to be expected and counts, which are whole, allow the level."
    )
    print(body)
    if options.readme:
        write_block(README, "false-alarms", body)
    missed = [(row, row.misses()) for row in found if row.misses()]
    for row, levels in missed:
        print(
            f"missed: {row.statistic}, {row.stream}, {row.groups} bins, n = {row.n}, at {levels}",
            file=sys.stderr,
        )
    return 1 if missed else 0


def _blocks(n: int, m: int) -> int:
    """Windows of ``n`` events in a reference of ``m``; at least eight blocks."""
    return max(8, m // n)


def _in_blocks(rng: np.random.Generator, reference: Ints, n: int) -> Ints:
    """``(references, blocks, bins)`` the reference's counts, each event at a time of its own."""
    blocks = _blocks(n, int(reference[0].sum()))
    return rng.multinomial(reference, np.full(blocks, 1 / blocks)).swapaxes(1, 2)


if __name__ == "__main__":
    sys.exit(main())
