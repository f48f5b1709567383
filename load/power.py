"""How soon is drift found, and at what price in false pages? ``python -m load.power``.

One clean, independent stream per trial; the same hours are then judged once as they are and once with each fault in one of the
50 features, by Driftline as it ships and by what other tools ship. *Found* is the first hour with an alarm that names the faulty feature.
A *page* of the others is an hour with at least one alarm; as few as an incident machine would send, if alarms less than a day apart are one::

    alarms    ..##.#......................#....
    pages     ..12.3......................4....      grouped: 2
    open      ..###########...............#####         (a mark: 3 hours)
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from river.drift import ADWIN
from scipy.special import chdtrc, kolmogorov

from alerting.incidents import Change
from load.budget import Watch
from load.clean import FEATURES, HOUR_MS, Clean, Counter, Draw, Fault, Plan, faulty, learn, spec
from load.markdown import README, table, write_block
from monitor import distances
from monitor.binning import Floats, Ints
from monitor.reference import Reference
from monitor.spec import ModelSpec

PER_HOUR: Final = 1_000
REFERENCE_DAYS: Final = 4  # 96,000 events
LEAD_HOURS: Final = 48  # clean, before a fault
WATCH_HOURS: Final = 240  # what is not found by then is missed
MONTH_HOURS: Final = 720
TRIALS: Final = 20
HOLD_HOURS: Final = 24  # as incidents have it
LEVEL: Final = 0.05
PSI_LIMIT: Final = 0.1
ZERO_CELL: Final = 1e-4  # share of an empty cell, as Evidently has it
GROUPS: Final = 10
MOST_CELLS: Final = (
    12  # categories that have a cell of their own: with hundreds PSI > 0.1 fires always
)

FAULTS: Final[dict[str, Fault]] = {
    "0.1 sigma": Fault("f03", shift=0.1),
    "0.25 sigma": Fault("f03", shift=0.25),
    "0.5 sigma": Fault("f03", shift=0.5),
    "1 sigma": Fault("f03", shift=1.0),
    "new category 1 %": Fault("f09", new_category=0.01),
    "missing 2 → 4 %": Fault("f00", missing=0.02),
}
OURS: Final = "Driftline, 1 in 30 days"
PSI: Final = "PSI > 0.1"
KS: Final = "KS, χ²: p < 0.05"
BONFERRONI: Final = "the same, Bonferroni"
RIVER: Final = "river ADWIN 0.002"
PEERS: Final = (PSI, KS, BONFERRONI, RIVER)
WATCHERS: Final = (OURS, *PEERS)
_SIDES: Final[tuple[Literal["left", "right"], ...]] = ("left", "right")

Alarms = npt.NDArray[np.bool_]  # (hours,)


@dataclass(frozen=True, slots=True)
class Trial:
    """A stream, ``lead`` clean hours before the faults, and the ``hours`` that are watched."""

    seed: int
    hours: int = WATCH_HOURS
    lead: int = LEAD_HOURS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one watcher did in one trial.

    Attributes:
        pages: hours with an alarm while all was well; ``grouped``: alarms less than a day apart are one.
        open_hours: hours in which a grouped page was open: alarms that never pause are one page, and it never ends.
        delays: fault -> hours from its start to the end of the hour that named its feature; ``None`` is missed.
    """

    pages: int
    grouped: int
    open_hours: int
    delays: dict[str, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Events of one trial: of the reference, of the hours before the faults, and of the hours watched."""

    past: list[Draw]
    lead: Draw
    watched: Draw
    panes: int  # of an hour
    seed: int

    def struck(self, fault: Fault) -> Draw:
        """The hours watched, with a fault."""
        return faulty(self.watched, fault, np.random.default_rng(self.seed))

    def hourly(self, draw: Draw, feature: int) -> list[Floats]:
        """Values of a feature hour by hour: NaN is missing, a category is its number."""
        n = draw.n.reshape(-1, self.panes).sum(axis=1)
        return np.split(values_of(draw, feature), np.cumsum(n)[:-1])


def values_of(draw: Draw, feature: int) -> Floats:
    """Every value of a feature: NaN where it is missing, and one number more for a category that is new."""
    it = FEATURES[feature]
    values = it.values()[draw.atoms[feature]]
    if feature in draw.unseen:
        values[draw.unseen[feature]] = it.categories
    if feature in draw.missing:
        values[draw.missing[feature]] = np.nan
    return values


def run(trial: Trial) -> dict[str, Outcome]:
    """One trial, all watchers."""
    plan = Plan("iid", trial.seed, PER_HOUR)
    clean, model, panes = Clean(plan), spec(plan), HOUR_MS // plan.pane_ms
    past = clean.days(REFERENCE_DAYS)
    start_ms = clean.now_ms
    lead, watched = clean.draw(trial.lead * panes), clean.draw(trial.hours * panes)
    stream = Stream(past, lead, watched, panes, trial.seed)
    return {OURS: _ours(stream, Hours(model, learn(model, past, plan), start_ms))} | _peers(stream)


class Hours:
    """A watch that is asked by the hour. Mutable: it owns the watch."""

    def __init__(self, model: ModelSpec, reference: Reference, start_ms: int) -> None:
        self._watch, self._count = Watch(model, reference), Counter(reference.layout)
        self._pane_ms, self._now_ms = model.windows.pane, start_ms

    def fork(self) -> Hours:
        """A copy that goes on alone."""
        other = copy.copy(self)
        other._watch = copy.deepcopy(self._watch)
        return other

    def changes(self, draw: Draw) -> Iterator[tuple[int, Change]]:
        """What happens to incidents, with the number of the hour."""
        start_ms = self._now_ms
        for vector in self._count.vectors(draw):
            hour = (self._now_ms - start_ms) // HOUR_MS
            for _, changes in self._watch.take(self._now_ms, vector):
                yield from ((hour, change) for change in changes)
            self._now_ms += self._pane_ms


def _ours(stream: Stream, hours: Hours) -> Outcome:
    for _ in hours.changes(stream.lead):
        pass
    delays = {}
    for name, fault in FAULTS.items():
        named = (
            hour + 1
            for hour, change in hours.fork().changes(stream.struck(fault))
            if change.transition != "resolved" and _names(change, fault.feature)
        )
        delays[name] = next(named, None)
    fired, is_open = 0, np.zeros(len(stream.watched.n) // stream.panes, dtype=bool)
    for hour, change in hours.changes(stream.watched):
        fired += change.transition == "fired"
        is_open[hour:] = change.transition != "resolved"
    return Outcome(fired, fired, int(is_open.sum()), delays)


def _names(change: Change, feature: str) -> bool:
    return any(m.evidence.feature == feature for m in change.case.members.values())


def _peers(stream: Stream) -> dict[str, Outcome]:
    """Of each peer the alarms in all features while all is well, and in the faulty one while it is not."""
    peers = [Peers(stream, feature) for feature in range(len(FEATURES))]
    calm = [peer(stream.watched) for peer in peers]
    struck = {}
    for name, fault in FAULTS.items():
        feature = next(i for i, f in enumerate(FEATURES) if f.name == fault.feature)
        struck[name] = peers[feature](stream.struck(fault))
    outcomes = {}
    for it in PEERS:
        hours = np.any([alarms[it] for alarms in calm], axis=0)
        delays = {name: _first(alarms[it]) for name, alarms in struck.items()}
        outcomes[it] = Outcome(int(hours.sum()), *grouped(hours), delays)
    return outcomes


def _first(alarms: Alarms) -> int | None:
    return int(np.argmax(alarms)) + 1 if alarms.any() else None


def grouped(alarms: Alarms) -> tuple[int, int]:
    """Pages if alarms less than a day after the one before are no new one, and the hours in which one is open."""
    at = np.flatnonzero(alarms)
    if not len(at):
        return 0, 0
    gaps = np.diff(np.append(at, len(alarms)))
    return 1 + int(np.count_nonzero(gaps[:-1] > HOLD_HOURS)), int(
        np.minimum(gaps, HOLD_HOURS).sum()
    )


class Peers:
    """All peers on one feature, as their makers ship them.

    KS exact on the values, its p-value Kolmogorov's limit; categories by chi-square; PSI over the reference's deciles, empty cells at
    ``ZERO_CELL``, and rare categories in one cell. ADWIN sees value after value, scaled by the reference. None is told of missing values.
    """

    def __init__(self, stream: Stream, feature: int) -> None:
        self._stream, self._feature = stream, feature
        values = np.concatenate([values_of(draw, feature) for draw in stream.past])
        self._past = np.sort(values[~np.isnan(values)])
        self._categories = min(FEATURES[feature].categories, MOST_CELLS)
        self._edges = (
            np.arange(1, self._categories + 1) - 0.5
            if self._categories
            else np.unique(np.quantile(self._past, np.arange(1, GROUPS) / GROUPS))
        )
        self._expected = self._counts(self._past)

    def __call__(self, draw: Draw) -> dict[str, Alarms]:
        """By peer, the hours with an alarm."""
        hours = [h[~np.isnan(h)] for h in self._stream.hourly(draw, self._feature)]
        counts = np.array([self._counts(h) for h in hours])
        p = self.chi_square(counts) if self._categories else np.array([self.ks(h) for h in hours])
        return {
            PSI: self._psi(counts) > PSI_LIMIT,
            KS: p < LEVEL,
            BONFERRONI: p < LEVEL / len(FEATURES),
            RIVER: self._adwin(hours),
        }

    def _counts(self, values: Floats) -> Ints:
        cells = np.searchsorted(self._edges, values, side="right")
        return np.bincount(cells, minlength=len(self._edges) + 1)

    def _psi(self, counts: Ints) -> Floats:
        p = self._expected / self._expected.sum()
        q = counts / counts.sum(axis=1, keepdims=True)
        p, q = np.where(p > 0, p, ZERO_CELL), np.where(q > 0, q, ZERO_CELL)
        return np.asarray(((q - p) * np.log(q / p)).sum(axis=1))

    def chi_square(self, counts: Ints) -> Floats:
        """P-value of the counts of each hour."""
        expected = np.broadcast_to(self._expected, counts.shape)
        freedom = distances.degrees_of_freedom(expected, counts)
        return np.asarray(chdtrc(freedom, distances.chi_square(expected, counts)))

    def ks(self, values: Floats) -> float:
        """P-value of the values of an hour."""
        x, m, n = np.sort(values), len(self._past), len(values)
        gap = 0.0
        for side in _SIDES:  # at each value and just below it: in between nothing is larger
            f = np.searchsorted(self._past, x, side=side) / m
            gap = max(gap, float(np.abs(f - np.searchsorted(x, x, side=side) / n).max()))
        return float(kolmogorov(gap * np.sqrt(n * m / (n + m))))

    def _adwin(self, hours: list[Floats]) -> Alarms:
        center, scale = float(self._past.mean()), float(self._past.std())
        detector = ADWIN()  # type: ignore[no-untyped-call]  # river is not typed
        before = values_of(self._stream.lead, self._feature)
        _feed(detector, (before[~np.isnan(before)] - center) / scale)
        return np.array([_feed(detector, (h - center) / scale) for h in hours])


def _feed(detector: ADWIN, values: Floats) -> bool:
    fired = False
    for value in values.tolist():
        detector.update(value)  # type: ignore[no-untyped-call]  # as above
        fired |= detector.drift_detected
    return fired


def report(outcomes: Sequence[dict[str, Outcome]], hours: int, heading: str) -> str:
    """The table: a row per watcher."""
    months = len(outcomes) * hours / MONTH_HOURS
    rows = []
    for watcher in WATCHERS:
        mine = [outcome[watcher] for outcome in outcomes]
        pages, few = sum(o.pages for o in mine), sum(o.grouped for o in mine)
        cells = [cell([o.delays[name] for o in mine]) for name in FAULTS]
        is_open = sum(o.open_hours for o in mine) / (len(mine) * hours)
        rows.append(
            [watcher, f"{pages / months:.1f}", f"{few / months:.1f}", f"{is_open:.0%}", *cells]
        )
    header = ["", "false pages a month", "grouped", "time open", *FAULTS]
    return f"{heading}\n\n{table(header, rows)}"


def cell(delays: Sequence[int | None]) -> str:
    """Median delay in hours, and how many trials missed; ``missed`` where that is the median."""
    found = sorted(d for d in delays if d is not None)
    missed = len(delays) - len(found)
    if missed * 2 >= len(delays):
        return f"missed {missed} of {len(delays)}"
    median = found[(len(delays) - 1) // 2]
    return f"{median} h" + (f", {missed} missed" if missed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a shift of 1 sigma, or half of it, was missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = " ".join(["python -m load.power", *(a for a in arguments if a != "--readme")])
    trials, hours = (1, 24) if options.short else (options.trials, WATCH_HOURS)
    todo = [Trial(options.seed + i, hours) for i in range(trials)]
    started_s = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        outcomes = []
        for trial, outcome in zip(todo, pool.map(run, todo), strict=True):
            outcomes.append(outcome)
            print(f"seed {trial.seed}: {outcome[OURS]}", file=sys.stderr, flush=True)
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`, seeds from {options.seed}, "
        f"{(time.monotonic() - started_s) / 60:.0f} minutes: {trials} streams of 50 features, about {PER_HOUR:,} "
        f"events an hour, {REFERENCE_DAYS} days of reference; a fault in one feature, watched for {hours} hours. Delays are medians until an "
        f"alarm names that feature. False pages are counted in {trials * hours:,} clean hours; grouped: alarms less than a day apart are one page, which is open until they pause for a day."
    )
    text = report(outcomes, hours, heading)
    print(text)
    if options.readme:
        write_block(README, "power", text)
    found = [outcome[OURS].delays for outcome in outcomes]
    return int(any(delays[name] is None for delays in found for name in ("0.5 sigma", "1 sigma")))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.power", description=__doc__)
    found.add_argument("--short", action="store_true", help="one stream and one day, for CI")
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--seed", type=int, default=2026, help="of the first stream")
    found.add_argument("--trials", type=int, default=TRIALS, help="streams")
    found.add_argument("--processes", type=int, default=2)
    return found


if __name__ == "__main__":
    sys.exit(main())
