"""How fast panes go through ADWIN, beside river's on the same events one by one: ``python -m load.bench_detectors [--short] [--readme]``.

River's ADWIN (compiled) takes each value of each feature with ``update`` and is asked for ``drift_detected``, as its documentation has it. Ours
takes ``(n, mean, M2)`` of a pane of 1,000 events, all features in one call; these moments are part of a profile that is there anyway, so
making them is not timed. Both see the same values in turns of a block of panes, and both must find the shift that is planted at three
quarters of the last feature; alarms on the clean rest are counted. The time is CPU time of one thread; the ratio is the median over the
blocks, as a machine that does other work disturbs some of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from river import drift

from load.markdown import README, table, write_block
from monitor.adwin import Adwin

PANE: Final = 1_000  # events
BLOCK: Final = 50  # panes; long enough that neither side is measured with cold caches
SHIFT: Final = 0.25  # standard deviations: both find it within a pane or two
NOT_LATER: Final = 3  # panes after the shift

Clock = Callable[[], int]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table, and the ratio that is asked of it.

    ``apart``: feature i starts i panes late, as after an alarm of its own, so that each window merges at times of its own.
    """

    features: int
    panes: int
    bar: float
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """In which pane from the shift on it was found, the first being 1, and how many alarms there were besides."""

    delay: int
    others: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What a case took, CPU time of each block, and what was found."""

    river_ns: Sequence[int]
    ours_ns: Sequence[int]
    river: Found
    ours: Found

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the median of the blocks."""
        return float(np.median(np.divide(self.river_ns, self.ours_ns)))


CASES: Final = [Case(1, 2_000, 20.0), Case(50, 400, 150.0), Case(50, 400, 0.0, apart=True)]


def measure(case: Case, rng: np.random.Generator, clock: Clock) -> Speed:
    """The speed of both on the same events.

    Raises:
        AssertionError: one of them does not find the shift within NOT_LATER panes.
    """
    shifted = case.panes * 3 // 4
    late = np.arange(case.features) * case.apart
    theirs = [drift.ADWIN() for _ in range(case.features)]  # type: ignore[no-untyped-call]  # river has no types
    ours = Adwin(case.features)
    spent: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    alarms: list[tuple[int, int]] = []
    for first in range(0, case.panes, BLOCK):
        values = rng.normal(0, 1, (BLOCK, PANE, case.features))
        values[max(0, shifted - first) :, :, -1] += SHIFT
        columns = values.reshape(-1, case.features).T.tolist()
        mean = values.mean(axis=1)
        m2 = ((values - mean[:, None]) ** 2).sum(axis=1)
        start = clock()
        found += _river(theirs, columns, first, late)
        middle = clock()
        alarms += _ours(ours, mean, m2, first, late)
        spent.append((middle - start, clock() - middle))
    river_ns, ours_ns = zip(*spent, strict=True)
    last = case.features - 1
    return Speed(river_ns, ours_ns, _found(found, last, shifted), _found(alarms, last, shifted))


def _river(
    detectors: Sequence[drift.ADWIN],
    columns: Sequence[Sequence[float]],
    first: int,
    late: npt.NDArray[np.int64],
) -> list[tuple[int, int]]:
    fired = []
    skipped = np.maximum(late - first, 0) * PANE
    for feature, (detector, column) in enumerate(zip(detectors, columns, strict=True)):
        start = int(skipped[feature])
        for i, value in enumerate(column[start:], start):
            detector.update(value)  # type: ignore[no-untyped-call]  # the same
            if detector.drift_detected:
                fired.append((first + i // PANE, feature))
    return fired


def _ours(
    detector: Adwin, mean: Floats, m2: Floats, first: int, late: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    n = np.where(np.arange(first, first + len(mean))[:, None] < late, 0.0, PANE)
    fired = []
    for i in range(len(mean)):
        changes = detector.update(first + i, n[i], mean[i], m2[i])
        if np.count_nonzero(changes.fired):
            fired += [(first + i, int(feature)) for feature in np.flatnonzero(changes.fired)]
    return fired


def _found(fired: Sequence[tuple[int, int]], feature: int, shifted: int) -> Found:
    delays = [pane - shifted + 1 for pane, where in fired if where == feature and pane >= shifted]
    assert delays, "the shift was not found"
    assert delays[0] <= NOT_LATER, f"the shift was found in pane {delays[0]}"
    return Found(delays[0], len(fired) - 1)


def report(cases: Sequence[Case], speeds: Sequence[Speed], heading: str) -> str:
    """The table as Markdown."""
    rows = []
    for case, speed in zip(cases, speeds, strict=True):
        values = BLOCK * PANE * case.features
        theirs, ours = np.median(speed.river_ns), np.median(speed.ours_ns)
        rows.append(
            [
                f"{case.features}{', each apart' if case.apart else ''}",
                f"{case.panes * PANE:,}",
                f"{theirs / values:.0f}",
                f"{ours / values:.2f}",
                f"{theirs / BLOCK / 1e3:,.0f}",
                f"{ours / BLOCK / 1e3:.0f}",
                f"{speed.river.delay} / {speed.ours.delay}",
                f"{speed.river.others} / {speed.ours.others}",
                f"{speed.ratio:.0f}",
                f"{case.bar:g}" if case.bar else "",
            ]
        )
    header = ["features", "events", "river, ns a value", "ours, ns a value", "river, µs a pane", "ours, µs a pane", "shift found in pane, river / ours", "other alarms", "ratio", "bar"]  # fmt: skip
    return f"{heading}\n\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row misses its bar."""
    options = parser().parse_args(arguments)
    cases = [replace(c, panes=c.panes // 4) for c in CASES[:2]] if options.short else CASES
    rng = np.random.default_rng(options.seed)
    speeds = [measure(case, rng, time.thread_time_ns) for case in cases]
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `python -m load.bench_detectors{' --short' if options.short else ''} "
        f"--seed {options.seed}`, numpy {np.__version__}: ADWIN on panes of {PANE:,} events beside river's on the same events, CPU time, medians "
        f"of blocks of {BLOCK} panes in turns. Both find a shift of {SHIFT:g} sigma in the last feature."
    )
    text = report(cases, speeds, heading)
    print(text)
    if options.readme:
        write_block(README, "detectors", text)
    return int(any(speed.ratio < case.bar for case, speed in zip(cases, speeds, strict=True)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench_detectors", description=__doc__)
    found.add_argument(
        "--short", action="store_true", help="a quarter of the panes, and no third row, for CI"
    )
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026)
    return found


if __name__ == "__main__":
    sys.exit(main())
