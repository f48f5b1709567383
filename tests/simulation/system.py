"""The system under its scheduler: processes, and everything that may happen to them.

An action stands for itself: it means something whatever came before it, so that a failing schedule can be shrunk by leaving actions out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from monitor import wire
from streams.delivery import Record, Target
from tests.simulation.broker import Broker, CrashError
from tests.simulation.outcome import MismatchError, Outcome, outcome_of
from tests.simulation.processes import (
    DETECTORS,
    FATES,
    PARTITIONS,
    PROFILERS,
    TOPICS,
    Detector,
    Fuse,
    Profiler,
)
from tests.simulation.sink import Sink
from tests.simulation.world import World

Kind = Literal[
    "produce",
    "profile",
    "detect",
    "commit",
    "fuse",
    "kill",
    "stall",
    "zombie",
    "move profilers",
    "move detectors",
    "sink",
]
_WORKERS: Final = 3
_MOST_SKIPS: Final = 2  # of one message: a break that outlives three restarts is taken for a loss
_FAULTS: Final = ("", "message left out", "message not fetched", "message repeated")
_NOT_FETCHED: Final = 2
_FAULT_OF: Final = (0,) * 10 + (1, 2, 2, 2, 2, 3)
_SHARES: Final = (0.0, 0.3, 0.6, 1.0)
_ALL: Final = 1 << 30


class Action(NamedTuple):
    """What happens next. The numbers mean what the kind makes of them."""

    kind: Kind
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Schedule:
    """Everything that is drawn but the world.

    Attributes:
        actions: in their order; then everything is drained.
        honest: no partition is called idle before its last event was read. Else one may sleep, and wake up behind the others.
        atomic: what a step writes is one record batch; else a crash may fall between two writes.
    """

    actions: tuple[Action, ...]
    honest: bool = True
    atomic: bool = True


@dataclass
class Twist:
    """What a mutation changes outside of the product."""

    read_committed: bool = True
    fencing: bool = True
    sink_commits_first: bool = False
    idle_wrongly: bool = False


class System:
    """One schedule over one world. Mutable: it is the whole system."""

    def __init__(self, world: World, schedule: Schedule, twist: Twist) -> None:
        self.world, self.schedule, self.twist = world, schedule, twist
        self.faults = Counter[str]()
        self.broker = Broker(twist.read_committed, twist.fencing)
        self.profilers = [Profiler(self.broker, member) for member in range(_WORKERS)]
        self.detectors = [self._detector(member) for member in range(_WORKERS)]
        self.sink = Sink(self.broker, twist.sink_commits_first)
        self._skipped = Counter[tuple[Any, ...]]()
        self._handlers: dict[Kind, Callable[[int, int, int], Awaitable[None]]] = {
            "produce": self._produce,
            "profile": self._profile,
            "detect": self._detect,
            "commit": self._commit,
            "fuse": self._set_fuse,
            "kill": self._kill,
            "stall": self._stall,
            "zombie": self._zombie,
            "move profilers": self._move_profilers,
            "move detectors": self._move_detectors,
            "sink": self._sink,
        }

    async def run(self) -> None:
        """All actions, then whatever is left to be done."""
        await self._move_profilers(0)
        await self._move_detectors(0)
        for kind, a, b, c in self.schedule.actions:
            await self._handlers[kind](a, b, c)
        await self._drain()

    async def _produce(self, a: int, b: int, _c: int) -> None:
        self._append(a % self.world.sources, 1 + b % 8)

    def _append(self, partition: int, most: int) -> None:
        target = (TOPICS.predictions, partition)
        at = len(self.broker.logs[target])
        new = self.world.logs[partition][at : at + most]
        self.broker.append(target, [(None, value) for value in new])

    async def _commit(self, a: int, _b: int, _c: int) -> None:
        await self._guarded(self.detectors[a % _WORKERS], Detector.commit)

    async def _set_fuse(self, a: int, b: int, c: int) -> None:
        holding = [d for d in self.detectors if d.partitions]
        holding[a % len(holding)].fuse = Fuse(1 + b % 4, _SHARES[c % 4], tables=c & 4 != 0)

    async def _kill(self, a: int, _b: int, _c: int) -> None:
        await self._restart(self.detectors[a % _WORKERS], "detector killed")

    async def _sink(self, a: int, b: int, c: int) -> None:
        most = 1 + b % 8
        dies = a % 3 == 0
        self.sink.batch(most, c % (2 * most) if dies else -1)
        self.faults["sink died within a batch"] += dies

    async def _profile(self, a: int, b: int, c: int) -> None:
        fate = FATES[max(0, c % 16 - 10)]  # mostly a commit
        silent = b % 4 == 0
        self.profilers[a % _WORKERS].batch(
            b % 12, b >> 4, idle=self._idle(), fate=fate, silent=silent
        )
        if fate != "commit":
            self.faults[f"transaction: {fate}"] += 1

    def _idle(self) -> list[int]:
        """Partitions that may be called idle."""
        found = []
        for partition, log in enumerate(self.world.logs):
            end = len(self.broker.logs[TOPICS.predictions, partition])
            held = [p.marks[partition].position for p in self.profilers if partition in p.marks]
            done = end == len(log) or not self.schedule.honest
            if self.twist.idle_wrongly or (done and max(held, default=-1) == end):
                found.append(partition)
        return found

    async def _zombie(self, a: int, b: int, _c: int) -> None:
        """A profiler goes on with partitions that it lost, and notices when its transaction is refused."""
        zombie = self.profilers[a % _WORKERS]
        marks = dict(zombie.marks)
        await self._move_profilers(b)
        now = sorted(zombie.marks)
        zombie.marks = marks
        zombie.batch(1 + b % 5, 0, idle=(), fate="commit")
        zombie.assign(now)
        self.faults["zombie profiler"] += 1

    async def _move_profilers(self, a: int, _b: int = 0, _c: int = 0) -> None:
        split = self._split(a, self.world.sources)
        self.broker.owners[PROFILERS] = {p: m for m, own in enumerate(split) for p in own}
        for profiler, own in zip(self.profilers, split, strict=True):
            profiler.assign(own)
        self.faults["profilers rebalanced"] += 1

    @staticmethod
    def _split(a: int, partitions: int) -> list[frozenset[int]]:
        """Partitions of each worker; at 0 the first has all of them."""
        owner = [a // _WORKERS**p % _WORKERS for p in range(partitions)]
        return [
            frozenset(p for p, o in enumerate(owner) if o == member) for member in range(_WORKERS)
        ]

    def _detector(self, member: int) -> Detector:
        return Detector(self.broker, member, self.world, atomic=self.schedule.atomic)

    async def _move_detectors(
        self, a: int, _b: int = 0, _c: int = 0, *, without: int | None = None
    ) -> None:
        """All finish and let go, then each takes up what it has now; ``without`` one that does not answer."""
        workers = [d for d in self.detectors if d.member != without]
        for worker in workers:
            await self._guarded(worker, Detector.release, restart=False)
        split = self._split(a, PARTITIONS)
        if without is not None:
            other = (without + 1) % _WORKERS
            split[other] |= split[without]
            split[without] = frozenset()
        self.broker.owners[DETECTORS] = {p: m for m, own in enumerate(split) for p in own}
        for member in {d.member for d in workers}:
            await self.detectors[member].assign(split[member])
        self.faults["detectors rebalanced"] += 1

    async def _guarded(
        self, worker: Detector, do: Callable[[Detector], Any], *, restart: bool = True
    ) -> None:
        """Let a worker do something that it may not survive."""
        try:
            await do(worker)
        except CrashError:
            await self._restart(worker, "detector died", assign=restart)

    async def _restart(self, worker: Detector, why: str, *, assign: bool = True) -> None:
        await worker.kill()
        successor = self.detectors[worker.member] = self._detector(worker.member)
        if assign:
            await successor.assign(worker.partitions)
        self.faults[why] += 1

    async def _detect(self, a: int, b: int, c: int) -> None:
        reading = [d for d in self.detectors if any(map(d.has_next, d.positions))]
        if not reading:
            return
        worker = reading[a % len(reading)]
        ready = [t for t in sorted(worker.positions) if worker.has_next(t)]
        fault, most = _FAULT_OF[c % 16], 1 + (b >> 3) % 6
        if fault == _NOT_FETCHED:
            most += 1
            ready = [t for t in ready if self._may_skip(worker, t)] or ready
        target = ready[b % len(ready)]
        if fault == _NOT_FETCHED and not self._may_skip(worker, target, count=1):
            fault = 0
        await self._guarded(worker, lambda w: self._deliver(w, target, most, fault))
        if fault:
            self.faults[_FAULTS[fault]] += 1

    def _may_skip(self, worker: Detector, target: Target, *, count: int = 0) -> bool:
        """Whether what comes next may get lost before it is fetched: the chain has to show it, and not too often."""
        found = self.broker.read(target, worker.positions[target], 2)
        if target[0] != TOPICS.profiles or len(found) < 2 or not self._shows(target, *found):
            return False
        place = (*target, found[1][0])
        self._skipped[place] += count
        return self._skipped[place] <= _MOST_SKIPS

    def _shows(
        self, target: Target, missing: tuple[int, Record], following: tuple[int, Record]
    ) -> bool:
        """Whether the chain shows at the ``following`` message, and not later, that one is ``missing``.

        ``verdicts`` have no chain, one has to have begun, and where another profiler's message is applied first the missing one
        is not taken any more when it comes again: tests/simulation/test_limits.py.
        """
        heard = set[int]()
        for at, record in self.broker.read(target, 0, _ALL):
            if at < missing[0]:
                heard |= _links(record)
        return len(heard) == self.world.sources and _links(missing[1]) <= _links(following[1])

    @staticmethod
    async def _deliver(worker: Detector, target: Target, most: int, fault: int) -> None:
        await worker.deliver(target, most, fault)
        await worker.settle()

    async def _stall(self, a: int, b: int, _c: int) -> None:
        """A worker stands still with messages in its hands, loses its partitions, and wakes up: it may not write any more."""
        member = a % _WORKERS
        worker = self.detectors[member]
        for target in sorted(worker.positions):
            await worker.deliver(target, 1 + b % 2)
        worker.now_s += 60.0
        await self._move_detectors(b >> 2, without=member)
        before = {target: len(log) for target, log in self.broker.logs.items()}
        try:
            await worker.settle()
            await worker.commit()
        except CrashError:
            pass
        if before != {target: len(log) for target, log in self.broker.logs.items()}:
            raise MismatchError("a worker wrote after its session was over")
        worker.partitions = frozenset()
        await self._restart(worker, "detector stalled")

    async def _drain(self) -> None:
        """No more faults: everything is read and applied."""
        for partition, log in enumerate(self.world.logs):
            self._append(partition, len(log))
        for profiler in self.profilers:
            for _ in range(2):  # the second one says that nothing is left
                profiler.batch(_ALL, 0, idle=self._idle(), fate="commit")
        for detector in self.detectors:
            detector.fuse = Fuse()
        for _ in range(10 * PARTITIONS):
            if not await self._round():
                break
        else:
            raise MismatchError("detectors do not come to an end")
        self.sink.batch(_ALL)

    def outcome(self) -> Outcome:
        """What it leaves behind."""
        return outcome_of(self.broker, self.sink.tables, self.world.sources, self.faults)

    async def _round(self) -> bool:
        """Every detector reads what there is; whether anything was left to do."""
        moved = False
        for member in range(_WORKERS):
            for target in sorted(self.detectors[member].positions):
                worker = self.detectors[member]
                if worker.has_next(target):
                    moved = True
                    await self._guarded(worker, lambda w, t=target: self._deliver(w, t, _ALL, 0))  # type: ignore[misc]  # mypy cannot infer it
            await self._guarded(self.detectors[member], Detector.commit)
        return moved


def _links(record: Record) -> set[int]:
    """The source partitions that a message speaks of."""
    message = wire.decode(record[1] or b"")
    assert isinstance(message, wire.Profiles)
    return {link.partition for link in message.links}
