"""Is the alarm budget kept? Clean streams through the real panes, judge and incidents: ``python -m load.budget``.

A model of 50 features learns a reference from a stream's first days and then watches it for years of event time. Nothing is ever wrong,
so each incident is false, and there should be as many as its owner allowed. A reference's luck is shared by all windows judged
against it: hence many references, and an error of the rate that is taken from the spread between them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final, get_args

import numpy as np
from msgspec.structs import replace
from scipy.special import gammaincinv

from alerting.book import Book
from alerting.incidents import Change, step
from load.clean import DAY_MS, HOUR_MS, Clean, Counter, Kind, Plan, learn, spec
from load.markdown import README, table, write_block
from monitor.binning import Ints
from monitor.calibration import RATES
from monitor.judge import Judge
from monitor.panes import ClosedPane, Panes, SeriesKey
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec
from monitor.volume import Volume
from monitor.wire import Verdicts

BAR: Final = (0.3, 1.5)  # realised false incidents over the budget
REFERENCE_DAYS: Final = 28  # a daily season shows its tail in weeks, not in days
CHUNK_DAYS: Final = 5
NAMES: Final[dict[Kind, str]] = {
    "iid": "independent",
    "ar1": "AR(1), phi 0.9",
    "season": "daily season",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One reference and the windows judged against it."""

    plan: Plan
    windows: int
    budget: float  # false alarms in 30 days
    sizes: tuple[str, ...] = ("1h",)


@dataclass(slots=True)
class Tally:
    """What came of a trial. Mutable: it counts.

    Attributes:
        allowed: incidents that the budget allows in that time.
        fired: incidents that opened.
        breaches: source -> messages with a breach of it.
        founders: source -> incidents that it helped to open.
    """

    allowed: float
    fired: int = 0
    breaches: Counts[str] = field(default_factory=Counts)
    founders: Counts[str] = field(default_factory=Counts)


class Watch:
    """The detector and incident stages of one model without Kafka between them. Mutable: it is their state."""

    def __init__(self, model: ModelSpec, reference: Reference) -> None:
        self._key = SeriesKey(model.model, "1", "", reference.layout.bins_id)
        self._layout = reference.layout
        self._panes = Panes(model.windows.pane, model.windows.sizes, lateness_ms=0)
        self._judge = Judge(self._key, model, reference)
        self._volume = Volume(model)
        self._book = Book(model.model)

    def take(self, start_ms: int, vector: Ints) -> Iterator[tuple[Verdicts, tuple[Change, ...]]]:
        """What a pane's end makes the judge say, and what that does to the incidents."""
        self._panes.add(self._key, start_ms, Profile(self._layout, vector))
        said, through_ms = list[Verdicts](), start_ms + self._panes.pane_ms
        for closed in self._panes.advance(through_ms):
            if isinstance(closed, ClosedPane):
                verdicts = self._judge.pane(closed.start_ms, self._panes.pane_ms, closed.profile)
            else:
                self._volume.take(closed)
                verdicts = self._judge.window(
                    closed.start_ms, closed.size_ms, closed.profile, whole=closed.whole
                )
            if verdicts is not None:
                said.append(verdicts)
        said = self._volume.messages(said, self._volume.close(through_ms))
        for verdicts in said:
            last = verdicts is said[-1]
            self._book, changes = step(self._book, replace(verdicts, closes=last))
            yield verdicts, changes


def run(trial: Trial) -> Tally:
    """Learn, watch, count."""
    plan = trial.plan
    clean, model = Clean(plan), spec(plan, trial.sizes, trial.budget)
    reference = learn(model, clean.days(REFERENCE_DAYS), plan)
    watch, count = Watch(model, reference), Counter(reference.layout)
    tally = Tally(trial.budget * trial.windows * HOUR_MS / model.alarm_budget.per)
    ends_ms = clean.now_ms + trial.windows * HOUR_MS
    while clean.now_ms < ends_ms:
        start_ms = clean.now_ms
        span_ms = min(CHUNK_DAYS * DAY_MS, ends_ms - start_ms)
        for i, vector in enumerate(count.vectors(clean.draw(span_ms // plan.pane_ms))):
            for verdicts, changes in watch.take(start_ms + i * plan.pane_ms, vector):
                note(tally, verdicts, changes)
    return tally


def note(tally: Tally, verdicts: Verdicts, changes: Iterable[Change]) -> None:
    """Count the breaches of a message by source, and the incidents that it opened."""
    tally.breaches.update(
        {source_of(verdicts, v.statistic) for v in verdicts.verdicts if v.status == "breach"}
    )
    for change in changes:
        if change.transition == "fired":
            tally.fired += 1
            members = change.case.members.values()
            tally.founders.update({source_of(verdicts, m.evidence.statistic) for m in members})


def source_of(verdicts: Verdicts, statistic: str) -> str:
    """Which share of the budget a breach comes from."""
    if verdicts.source == "pane":
        return "panes"
    return "rates" if statistic in RATES else statistic


@dataclass(frozen=True, slots=True)
class Rate:
    """Realised over allowed, for one kind of stream.

    Attributes:
        error: standard error, the larger of Poisson's and of the spread between references.
    """

    windows: int
    references: int
    allowed: float
    fired: int
    error: float

    @property
    def ratio(self) -> float:
        """Realised false incidents over the budget."""
        return self.fired / self.allowed

    def contradicts(self, low: float, high: float, chance: float = 1e-3) -> bool:
        """Whether every true ratio in ``[low, high]`` would give so many, or so few, in less than ``chance`` of all runs (Poisson)."""
        at_least = float(gammaincinv(self.fired, chance)) if self.fired else 0.0
        at_most = float(gammaincinv(self.fired + 1, 1 - chance))
        return at_least > high * self.allowed or at_most < low * self.allowed


def rate(trials: Sequence[Trial], tallies: Sequence[Tally]) -> Rate:
    """The rate over the trials of one kind."""
    allowed, fired = sum(t.allowed for t in tallies), sum(t.fired for t in tallies)
    spread = np.std([t.fired / t.allowed for t in tallies]) / np.sqrt(max(1, len(tallies) - 1))
    error = max(float(spread), np.sqrt(max(fired, 1)) / allowed)
    return Rate(sum(t.windows for t in trials), len(trials), allowed, fired, error)


def trials(*, references: int, windows: int, budget: float, seed: int) -> list[Trial]:
    """Of each kind as many references, each with its own seed."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return [
        Trial(Plan(kind, seed + i), windows, budget) for i in range(references) for kind in kinds
    ]


def short_trials(seed: int) -> list[Trial]:
    """A month of each kind; at twenty false alarms a month there is something to count."""
    return trials(references=1, windows=720, budget=20.0, seed=seed)


def report(todo: Sequence[Trial], tallies: Sequence[Tally], heading: str) -> tuple[str, list[Rate]]:
    """The table, and the rates in it."""
    rows, rates = [], []
    for kind, name in NAMES.items():
        mine = [(t, y) for t, y in zip(todo, tallies, strict=True) if t.plan.kind == kind]
        found = rate([t for t, _ in mine], [y for _, y in mine])
        rates.append(found)
        rows.append(
            [
                name,
                f"{found.windows:,}",
                f"{found.references}",
                f"{found.allowed:.0f}",
                f"{found.fired}",
                f"{found.ratio:.2f} ± {2 * found.error:.2f}",
            ]
        )
    header = ["clean stream", "windows", "references", "allowed", "fired", "fired / allowed"]
    return f"{heading}\n\n{table(header, rows)}", rates


def by_source(todo: Sequence[Trial], tallies: Sequence[Tally]) -> str:
    """Which share of the budget the incidents and the breaches behind them came from."""
    sources = sorted({source for tally in tallies for source in tally.breaches})
    rows = []
    for kind, name in NAMES.items():
        mine = [y for t, y in zip(todo, tallies, strict=True) if t.plan.kind == kind]
        opened, broke = (
            sum(counts, Counts[str]())
            for counts in zip(*((y.founders, y.breaches) for y in mine), strict=True)
        )
        rows.append([name, *(f"{opened[source]} / {broke[source]}" for source in sources)])
    return table(["incidents opened / messages with a breach", *sources], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if it contradicts the bar."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = " ".join(["python -m load.budget", *(a for a in arguments if a != "--readme")])
    todo = (
        short_trials(options.seed)
        if options.short
        else trials(
            references=options.references,
            windows=options.windows,
            budget=1.0,
            seed=options.seed,
        )
    )
    started_s = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        tallies = []
        for trial, tally in zip(todo, pool.map(run, todo), strict=True):
            tallies.append(tally)
            what = f"{trial.plan.kind} {trial.plan.seed}: {tally.fired} of {tally.allowed:.1f} {dict(tally.founders)}"
            print(what, file=sys.stderr, flush=True)
    first = todo[0]
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`, seeds from {options.seed}, "
        f"{(time.monotonic() - started_s) / 60:.0f} minutes: 50 features, about {first.plan.per_hour} events an "
        f"hour, panes of {first.plan.pane_ms // 60_000} minutes, windows of {' and '.join(first.sizes)}, {REFERENCE_DAYS} days of "
        f"reference, a budget of {first.budget:g} false alarms in 30 days. ± is two standard errors."
    )
    text, rates = report(todo, tallies, heading)
    print(text, by_source(todo, tallies), sep="\n\n")
    if options.readme:
        write_block(README, "budget", text)
    return int(any(r.contradicts(*BAR) for r in rates))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.budget", description=__doc__)
    found.add_argument("--short", action="store_true", help="a month of each, for CI")
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026, help="of the first reference")
    found.add_argument("--references", type=int, default=20, help="of each kind of stream")
    found.add_argument("--windows", type=int, default=5_040, help="hours watched with each")
    found.add_argument("--processes", type=int, default=2)
    return found


if __name__ == "__main__":
    sys.exit(main())
