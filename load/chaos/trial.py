"""One seed: the same file through an undisturbed deployment and through a disturbed one, and the invariants of the two.

::

    the file ──► undisturbed: 1 profiler, 1 detector ──► verdicts, incidents, actions ─┐
        │                                                                            equal?
        ├──────► disturbed: 2 profilers, 2 detectors ──► verdicts, incidents, actions ─┘
        │        kill -9, SIGTERM, SIGSTOP, broker, ClickHouse, webhooks ──► bins of every window ─┐
        │                                                                                       equal?
        └──────► the oracle: a count by other code ────► bins of every window ─────────────────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from load.chaos import checks, faults, oracle
from load.chaos.bins import plain
from load.chaos.cluster import Cluster, Plan, Runner
from load.chaos.mutants import SCRATCH, Mutant
from load.chaos.receiver import Receiver
from load.chaos.run import Effects, Failed, Marks, execute
from load.chaos.shapes import CHURN, ETA, SHAPES
from load.chaos.workload import Workload
from streams.models import Model

CALM: Final = "calm"
STORM: Final = "storm"
IDLE_AFTER_S: Final = 20.0  # longer than a broker's restart: nothing may look idle in the middle
_MUTANT_IDLE_S: Final = 6.0  # the feed does not pause
_MUTANT_STUCK_S: Final = 60.0  # some mutants break the state so that nothing can go on
_CALM_SESSION_S: Final = 45.0  # the default
_CALM_IDLE_S: Final = (
    10.0  # everything was sent before; a claim to be idle has to outlast a slow transaction
)

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is, how long it is fed, how long ClickHouse stays away, what runs the detectors, and which hop is broken."""

    events: int
    faults: int
    seconds: float
    database_s: float
    session_s: float = 6.0  # the broker's least: a killed profiler is missed for so long
    runner: Runner = "transactional"
    mutant: Mutant | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to. ``failed`` says why it could not be finished."""

    seed: int
    shape: Shape
    rows: Sequence[checks.Row]
    marks: Marks | None
    took_s: float
    failed: str = ""

    @property
    def holds(self) -> bool:
        """Whether every invariant does."""
        return not self.failed and all(row.holds for row in self.rows)

    def line(self) -> str:
        """The summary."""
        marks, shape = self.marks, self.shape
        parts = [f"chaos seed={self.seed} events={shape.events} faults={shape.faults}"]
        if shape.runner != "transactional":
            parts.append(f"runner={shape.runner}")
        if shape.mutant:
            parts.append(f"mutant={shape.mutant.name}")
        if marks is not None:
            parts.append(f"catch-up={marks.catch_up_s:.0f}s gap={marks.gap_s():.1f}s")
        parts.append(f"took={self.took_s:.0f}s")
        broken = ",".join(row.name for row in self.rows if not row.holds)
        parts.append("PASS" if self.holds else f"FAIL ({broken or 'not finished'})")
        return " ".join(parts)


def run(seed: int, shape: Shape, directory: Path, say: Say) -> Verdict:
    """Run one seed; its files stay in ``directory``, which has to be empty."""
    began = time.monotonic()
    with arena(seed, shape.events, directory, say, few=shape.mutant is not None) as place:
        verdict = place.run(shape, say)
    return replace(verdict, took_s=time.monotonic() - began)


@contextmanager
def arena(
    seed: int, events: int, directory: Path, say: Say, *, few: bool = False
) -> Iterator[Arena]:
    """Servers, a receiver, and a file of events with what is expected of it.

    Args:
        seed: of the events, the faults and the receiver.
        events: how many.
        directory: empty; everything is made there.
        say: told what is under way.
        few: fewer models, whose references are made in a third of the time: what mutants need.
    """
    load = Workload(seed, events, (ETA, CHURN) if few else SHAPES)
    path = directory / "predictions"
    load.write(path)
    references = load.references()
    say(f"seed {seed}: {events:,} events in {path.stat().st_size >> 20} MiB")

    def models(url: str) -> list[Model]:
        return [Model(spec, references[spec.model]) for spec in load.specs(url)]

    with (
        _counting(path, models("http://127.0.0.1")) as expected,
        Receiver(np.random.default_rng([seed, 1])) as receiver,
        Cluster(directory) as cluster,
    ):
        yield Arena(seed, path, models, expected, receiver, cluster)


@dataclass(frozen=True, slots=True)
class Arena:
    """Where runs take place, one after the other and each in topics and tables of its own."""

    seed: int
    path: Path
    models: Callable[[str], list[Model]]
    expected: Future[oracle.Expected]
    receiver: Receiver
    cluster: Cluster

    def run(self, shape: Shape, say: Say) -> Verdict:
        """A run, and the undisturbed one that it is compared with; a mutant's is compared with the oracle alone."""
        began = time.monotonic()
        marks: Marks | None = None
        rows: list[checks.Row] = []
        failed = ""
        try:
            calm = None if shape.mutant else self._calm(say)
            marks, found = self._storm(shape, say)
            rows = _rows(marks, found, calm, self.expected.result())
        except Failed as err:
            failed = str(err)
        return Verdict(self.seed, shape, rows, marks, time.monotonic() - began, failed)

    def strikes(self, mutant: Mutant) -> Path:
        """Where the processes of a mutant's run leave a file for each strike."""
        return self.cluster.directory / f"{mutant.name}-strikes"

    def _calm(self, say: Say) -> Effects:
        plan = Plan(
            CALM, profilers=1, detectors=1, idle_after_s=_CALM_IDLE_S, session_s=_CALM_SESSION_S
        )
        _, found = self._execute(plan, 0, [], say)
        return found

    def _storm(self, shape: Shape, say: Say) -> tuple[Marks, Effects]:
        plan = self._plan(shape)
        struck = faults.plan(
            np.random.default_rng([self.seed, 2]),
            shape.faults,
            plan.processes(),
            session_s=shape.session_s,
            database_s=shape.database_s,
        )
        return self._execute(plan, shape.seconds, struck, say)

    def _execute(
        self, plan: Plan, seconds: float, struck: Sequence[faults.Fault], say: Say
    ) -> tuple[Marks, Effects]:
        return execute(
            self.cluster,
            plan,
            self.path,
            self.models(self.receiver.url(plan.name)),
            seconds=seconds,
            faults=struck,
            receiver=self.receiver,
            say=say,
        )

    def _plan(self, shape: Shape) -> Plan:
        if shape.mutant is None:
            return Plan(
                STORM,
                profilers=2,
                detectors=2,
                idle_after_s=IDLE_AFTER_S,
                session_s=shape.session_s,
                runner=shape.runner,
            )
        scratch = self.strikes(shape.mutant)
        scratch.mkdir()
        return Plan(
            shape.mutant.name,
            profilers=1,
            detectors=1,
            idle_after_s=_MUTANT_IDLE_S,
            session_s=shape.session_s,
            runner=shape.runner,
            states=1,  # each break of a chain costs three restarts in each
            stuck_s=_MUTANT_STUCK_S,
            module=("load.chaos.mutants", shape.mutant.name),
            variables={SCRATCH: str(scratch)},
        )


def _rows(
    marks: Marks, found: Effects, calm: Effects | None, expected: oracle.Expected
) -> list[checks.Row]:
    rows = [checks.ledger(found, expected), checks.clickhouse(found, expected)]
    if calm is not None:
        rows += [checks.determinism(found, calm), checks.actions(found, calm)]
        rows += [checks.memory(marks), checks.progress(marks)]
    return rows


@contextmanager
def _counting(path: Path, followed: Sequence[Model]) -> Iterator[Future[oracle.Expected]]:
    """The oracle at work beside the undisturbed run, in a process of its own: it must share nothing with us."""
    bins = [plain(model.spec, model.reference) for model in followed if model.reference]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool.submit(oracle.expected, path, bins, now_ms=round(time.time() * 1_000))
