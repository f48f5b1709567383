"""Which detector finds a drift in a stream of errors? ``python -m load.detection`` prints ours beside river's.

Streams with 30 drifts each (``load.error_streams``), one seed six of them. Every detector runs with its defaults, one setting for
all streams, and restarts itself after an alarm as its authors have it. Ours was set on the streams of ``TUNED_ON``, which are
never shown.

The rules. A drift is *found* if an alarm falls between its start and 1,000 values after its end; more alarms in the same
episode count neither way; any other alarm is *false*. With 30 drifts of which ``found`` were found::

    precision = found / (found + false)    recall = found / 30    F1 = 2 found / (found + false + 30)

The delay is that of the first alarm from the drift's start, over the drifts found. The first run makes the streams and takes some
ten minutes; what it made is kept in ``.driftline/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from river import drift
from river.drift import binary
from scipy import stats

from load.error_streams import CACHE, KINDS, SOURCES, Errors, Kind, Plan, Source, error_stream_of
from load.markdown import README, table, write_block
from monitor.detectors import ErrorStream, ErrorStreamConfig, error_stream

Alarms = npt.NDArray[np.int64]

REACH: Final = 1_000  # values after a drift's end in which an alarm still finds it
SEEDS: Final = (1, 2)
TUNED_ON: Final = (101, 102, 103)
LEAD: Final = 0.05  # of our F1 over the best other, for abrupt and for gradual drifts
MOST_FALSE: Final = 4.0  # false alarms of ours a stream of abrupt drifts
_TIMED: Final = 20_000  # values that a cost is measured on
VARIED: Final[Mapping[str, Sequence[Any]]] = {
    "run_length": (10_000, 30_000, 300_000, 1_000_000),
    "recent": (96, 128, 192, 256),
    "baseline": (16, 32, 64),
    "settle": (128, 160, 224, 256),
    "memory": (384, 512, 2_048),
    "forget": (3.5, 4, 5, 6),
    "block": (8, 32),
}
COMMAND: Final = "python -m load.detection"


class Detector(Protocol):
    """Takes in one value after the other; true for an alarm."""

    def update(self, value: float) -> bool: ...


class River:
    """A detector of river's; with ``rises_only`` an alarm counts only if the window's mean rose by it."""

    def __init__(self, make: Callable[[], Any], *, rises_only: bool = False) -> None:
        self._detector, self._rises_only = make(), rises_only

    def update(self, value: float) -> bool:
        before = self._detector.estimation if self._rises_only else 0.0
        self._detector.update(value)
        fired = bool(self._detector.drift_detected)
        return fired and (not self._rises_only or self._detector.estimation > before)


class _Always:
    def update(self, value: float) -> bool:
        return True


class _Never:
    def update(self, value: float) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Row:
    """A detector in the tables; ``ours`` is never kept, for it may change."""

    name: str
    make: Callable[[], Detector]
    ours: bool = False
    timed: int = _TIMED


OURS: Final = Row("Driftline", error_stream, ours=True)
TWO_SIDED: Final = Row("ADWIN", partial(River, drift.ADWIN))
KSWIN: Final = Row("KSWIN", partial(River, partial(drift.KSWIN, seed=1)), timed=2_000)
ROWS: Final = (
    OURS,
    TWO_SIDED,
    Row("ADWIN, rises only", partial(River, drift.ADWIN, rises_only=True)),
    Row("DDM", partial(River, binary.DDM)),
    Row("HDDM_A", partial(River, binary.HDDMA)),
    Row("HDDM_W", partial(River, binary.HDDMW)),
    Row("Page-Hinkley", partial(River, drift.PageHinkley)),
    KSWIN,
    Row("always fires", _Always),
    Row("never fires", _Never),
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a detector's alarms on one stream were worth."""

    drifts: int
    found: int
    false: int
    delay: float
    """Mean over the drifts found, in values; NaN if there are none."""

    @property
    def recall(self) -> float:
        return self.found / self.drifts

    @property
    def f1(self) -> float:
        return 2 * self.found / (self.found + self.false + self.drifts)


def score(alarms: npt.ArrayLike, episodes: Sequence[tuple[int, int]]) -> Score:
    """The worth of ``alarms``, numbers of values in order, where the drifts run from start to end as ``episodes`` say."""
    at = np.asarray(alarms, dtype=np.int64)
    delays, inside = [], np.zeros(len(at), dtype=np.bool_)
    for start, end in episodes:
        hits = (at >= start) & (at <= end + REACH)
        inside |= hits
        if hits.any():
            delays.append(int(at[hits][0]) - start)
    delay = float(np.mean(delays)) if delays else float("nan")
    return Score(len(episodes), len(delays), int(np.sum(~inside)), delay)


def alarms_of(row: Row, plan: Plan, errors: Errors, kept: Path = CACHE) -> Alarms:
    """The numbers of the values at which a detector fires; what river's do is kept with the stream."""
    path = kept / f"alarms-{row.name.replace(' ', '-')}-{plan.name}.npy"
    if path.exists() and not row.ours:
        return np.asarray(np.load(path), dtype=np.int64)
    with _by_counts() if row is KSWIN else nullcontext():
        alarms = run(row.make(), errors)
    if not row.ours:
        np.save(path, alarms)
    return alarms


def run(detector: Detector, errors: Errors) -> Alarms:
    """Feed a stream value by value, and note where the detector fires."""
    return np.array(
        [i for i, wrong in enumerate(errors.tolist()) if detector.update(wrong)], dtype=np.int64
    )


def _by_counts() -> AbstractContextManager[object]:
    """For KSWIN on 0 and 1: each pair of samples is tested once, for the test sees no more than how many ones they hold.

    Without it a stream takes KSWIN some minutes. The alarms are the same.
    """

    @cache
    def tested(n: int, ones: int, m: int, other_ones: int) -> tuple[float, float]:
        x, y = [1] * ones + [0] * (n - ones), [1] * other_ones + [0] * (m - other_ones)
        statistic, p_value = stats.ks_2samp(x, y, method="auto")
        return float(statistic), float(p_value)

    def ks_2samp(x: list[int], y: list[int], method: str) -> tuple[float, float]:
        return tested(len(x), sum(x), len(y), sum(y))

    return patch("river.drift.kswin.stats", SimpleNamespace(ks_2samp=ks_2samp))


def cost_us(row: Row, errors: Errors, clock: Callable[[], float]) -> float:
    """Microseconds a value, on the first values of a stream; ``clock`` gives seconds of work."""
    values, detector = errors[: row.timed].tolist(), row.make()
    started = clock()
    for wrong in values:
        detector.update(wrong)
    return (clock() - started) / len(values) * 1e6


Scores = dict[tuple[str, Plan], Score]


def scored(rows: Sequence[Row], plans: Sequence[Plan], kept: Path = CACHE) -> Scores:
    """Each detector on each stream."""
    scores = {}
    for plan in plans:
        errors = error_stream_of(plan, kept)
        for row in rows:
            scores[row.name, plan] = score(alarms_of(row, plan, errors, kept), plan.episodes)
    return scores


def _picked(scores: Scores, row: str, kind: Kind, source: Source | None = None) -> list[Score]:
    return [
        found
        for (name, plan), found in scores.items()
        if (name, plan.kind) == (row, kind) and source in (None, plan.source)
    ]


def mean_f1(scores: Scores, row: str, kind: Kind) -> float:
    """Over the streams of a kind."""
    return float(np.mean([s.f1 for s in _picked(scores, row, kind)]))


def misses(scores: Scores, rows: Sequence[Row] = ROWS) -> list[str]:
    """What the scores do not hold of what we promise, in words."""
    said = []
    for kind in KINDS:
        ours = mean_f1(scores, OURS.name, kind)
        best = max(mean_f1(scores, row.name, kind) for row in rows if not row.ours)
        if ours < best + LEAD:
            said.append(f"{kind}: F1 {ours:.3f}, and the best other has {best:.3f}")
    false = np.mean([s.false for s in _picked(scores, OURS.name, "abrupt")])
    if false > MOST_FALSE:
        said.append(f"abrupt: {false:.1f} false alarms a stream")
    return said


def summary(scores: Scores, rows: Sequence[Row], costs: Mapping[str, float]) -> str:
    """The table of detectors: means over the streams of a kind, F1 with its standard error."""
    header = ["detector", "us a value"]
    for kind in KINDS:
        header += [f"{kind}: found", "false alarms", "F1", "delay"]
    lines = []
    for row in rows:
        line = [row.name, f"{costs[row.name]:.1f}" if row.name in costs else ""]
        for kind in KINDS:
            line += _cells(_picked(scores, row.name, kind))
        lines.append(line)
    return table(header, lines)


def _cells(of_kind: Sequence[Score]) -> list[str]:
    f1 = np.array([s.f1 for s in of_kind])
    error = f" ± {f1.std(ddof=1) / np.sqrt(len(f1)):.2f}" if len(f1) > 1 else ""
    delays = [s.delay for s in of_kind if s.found]
    return [
        f"{np.mean([s.recall for s in of_kind]):.0%}",
        f"{np.mean([s.false for s in of_kind]):,.1f}",
        f"{f1.mean():.2f}{error}",
        f"{np.mean(delays):.0f}" if delays else "",
    ]


def by_stream(scores: Scores, rows: Sequence[Row]) -> str:
    """The table of streams: F1 and false alarms of each detector, mean over the seeds."""
    streams = dict.fromkeys((plan.source, plan.kind) for _, plan in scores)
    lines = []
    for source, kind in streams:
        line = [f"{source}, {kind}"]
        for row in rows:
            found = _picked(scores, row.name, kind, source)
            f1, false = np.mean([s.f1 for s in found]), np.mean([s.false for s in found])
            line.append(f"{f1:.2f} / {false:,.0f}")
        lines.append(line)
    return table(["F1 / false alarms", *(row.name for row in rows)], lines)


def caption(on: date, command: str, seeds: Sequence[int], plans: Sequence[Plan]) -> str:
    """What a table must say of itself."""
    of_kind = [plan for plan in plans if plan.kind == KINDS[0]]
    drifts = sum(plan.drifts for plan in of_kind)
    return (
        f"`{command}`, {on}, river {version('river')}, seeds {', '.join(map(str, seeds))}: {len(of_kind)} abrupt and as many "
        f"gradual streams with {of_kind[0].drifts} drifts each. Found: of {drifts} drifts, so ± {np.sqrt(0.25 / drifts):.1%} at "
        f"most (one standard error). False alarms: a stream of {of_kind[0].length:,} values. F1: ± the standard error over streams. "
        f"Delay: in values."
    )


def sensitivity(plans: Sequence[Plan], kept: Path = CACHE) -> str:
    """How F1 hangs on the settings: ours with one of them changed at a time."""
    rows = [replace(OURS, name="defaults")]
    for name, values in VARIED.items():
        for value in values:
            config = replace(ErrorStreamConfig(), **{name: value})
            rows.append(Row(f"{name} {value:,}", partial(ErrorStream, config), ours=True))
    return summary(scored(rows, plans, kept), rows, {})


def _short() -> tuple[list[Plan], tuple[Row, ...]]:
    """Some seconds of it: the quickest source, and the detectors that are quick."""
    plans = [Plan("STAGGER", kind, SEEDS[0], drifts=8, spacing=5_000) for kind in KINDS]
    return plans, tuple(row for row in ROWS if row is not KSWIN)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Detectors on streams of errors.")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(SEEDS), help="six streams each"
    )
    parser.add_argument("--short", action="store_true", help="two short streams; promises nothing")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="ours with other settings, on the streams it was set on",
    )
    parser.add_argument("--readme", action="store_true", help="put the first table into the README")
    asked = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    command = " ".join([COMMAND, *(word for word in given if word != "--readme")])
    today, clock = datetime.now(tz=UTC).date(), time.process_time
    if asked.sensitivity:
        plans = _plans(TUNED_ON)
        print(sensitivity(plans), caption(today, command, TUNED_ON, plans), sep="\n\n")
        return 0
    plans, rows = _short() if asked.short else (_plans(asked.seeds), ROWS)
    seeds = SEEDS[:1] if asked.short else asked.seeds
    if set(seeds) & set(TUNED_ON):
        parser.error(f"ours was set on the seeds {TUNED_ON}: choose others")
    scores = scored(rows, plans)
    errors = error_stream_of(plans[0])
    costs = {row.name: cost_us(row, errors, clock) for row in rows[:-2]}
    body = f"{summary(scores, rows, costs)}\n\n{caption(today, command, seeds, plans)}"
    print(body, by_stream(scores, rows), sep="\n\n")
    if asked.readme:
        write_block(README, "detection", body)
    missed = [] if asked.short else misses(scores, rows)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def _plans(seeds: Sequence[int]) -> list[Plan]:
    return [Plan(source, kind, seed) for seed in seeds for kind in KINDS for source in SOURCES]


if __name__ == "__main__":
    sys.exit(main())
