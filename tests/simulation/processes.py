"""The processes of the simulation: product code wherever there is a decision, plain lists wherever there was a client.

A process dies by ``CrashError``; what it held is gone, and a new one begins with what the broker has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from monitor import wire
from monitor.events import Limits
from monitor.panes import SourceMark
from streams.delivery import FetchLog, Record, Target
from streams.incidents import IncidentStage
from streams.liveness import Lease
from streams.merge import MergeStage
from streams.profiling import Policy, Reader, SourceMessage, profile_batch
from streams.runner import Effects, Incoming, StageRunner
from streams.topics import Topics
from streams.worker import Binding, Observer
from tests.monitor.builders import NOW
from tests.simulation.broker import Broker, CrashError
from tests.simulation.world import World, models

PARTITIONS: Final = 2  # of the detector's topics
TOPICS: Final = Topics()
PROFILERS, DETECTORS, SINK = "profiler", "detector", "sink"
_POLICY: Final = Policy(Limits(), PARTITIONS, max_models=10, auto_register=False)
_SESSION_S: Final = 10.0
_BATCH_MESSAGES: Final = 3

Fate = Literal["commit", "abort", "die before", "die after", "unknown", "unknown, aborted"]
FATES: Final[tuple[Fate, ...]] = (
    "commit",
    "abort",
    "die before",
    "die after",
    "unknown",
    "unknown, aborted",
)


class Profiler:
    """Batches of ``predictions`` in transactions. Mutable: it owns the marks of its partitions."""

    def __init__(self, broker: Broker, member: int) -> None:
        self.broker, self.member = broker, member
        self.marks: dict[int, SourceMark] = {}
        self.reader = Reader()

    def assign(self, partitions: Iterable[int]) -> None:
        """Take up partitions where their committed offsets say, as after a start, a rebalance or an unknown outcome."""
        committed = self.broker.committed[PROFILERS]
        self.marks = {
            p: SourceMark(*committed.get((TOPICS.predictions, p), (0, None)), idle=False)
            for p in partitions
        }

    def batch(
        self, most: int, start: int, *, idle: Iterable[int], fate: Fate, silent: bool = False
    ) -> None:
        """One batch of at most ``most`` messages, of its partitions from the ``start``-th on.

        Args:
            most: of messages.
            start: which partition comes first.
            idle: partitions that may be called idle, if nothing is left to read and nothing is in the batch.
            fate: what becomes of the transaction.
            silent: no partition is called idle, whatever it is.
        """
        if not self.marks:
            return
        held = sorted(self.marks)
        messages: list[SourceMessage] = []
        for partition in held[start % len(held) :] + held[: start % len(held)]:
            target = (TOPICS.predictions, partition)
            found = self.broker.read(
                target, self.marks[partition].position, most // 2 + 1 if most else 0
            )
            messages += [
                SourceMessage(partition, offset, value, {}) for offset, (_, value) in found
            ]
        messages = messages[:most]
        busy = {m.partition for m in messages}
        outcome = profile_batch(
            messages,
            self.marks,
            models().newest,
            _POLICY,
            now_ms=NOW,
            known_models=len(models().models),
            idle=() if silent else set(idle) - busy,
            reader=self.reader,
        )
        records: list[tuple[Target, Record]] = [
            ((TOPICS.profiles, p), (None, wire.encode(profiles)))
            for p, profiles in enumerate(outcome.profiles)
        ]
        records += [
            ((TOPICS.dlq, dead.message.partition), (None, dead.message.value))
            for dead in outcome.dead
        ]
        offsets = {
            (TOPICS.predictions, p): (mark.position, mark.watermark_ms)
            for p, mark in outcome.marks.items()
        }
        asked = fate in ("commit", "die after", "unknown")
        done = self.broker.transact(records, PROFILERS, self.member, offsets, commit=asked)
        if fate == "commit" and done:
            self.marks = outcome.marks
        elif fate.startswith(("die", "unknown")):
            self.assign(self.marks)


@dataclass
class Fuse:
    """When a detector dies: at the ``left``-th append or commit from now, after ``share`` of its records.

    ``tables``: only what goes to a changelog counts.
    """

    left: int = -1
    share: float = 0.0
    tables: bool = False


class Detector:
    """A worker with the stages ``merge`` and ``incidents``, each under the real runner. Mutable: it is a process."""

    def __init__(self, broker: Broker, member: int, world: World, *, atomic: bool) -> None:
        self.broker, self.member, self.partitions = broker, member, frozenset[int]()
        self.fuse, self.dead, self.now_s = Fuse(), False, 0.0
        self._atomic = atomic  # what is appended in one call is one record batch
        self.positions: dict[Target, int] = {}
        merge = MergeStage(TOPICS, PARTITIONS, models(), sources=world.sources, bounds=world.bounds)
        incidents = IncidentStage(TOPICS, models())
        bindings = [
            Binding("merge", (TOPICS.profiles,), TOPICS.changelog("merge"), merge),
            Binding("incidents", (TOPICS.verdicts,), TOPICS.changelog("incidents"), incidents),
        ]
        self.fetch_log = FetchLog([TOPICS.profiles, TOPICS.verdicts])
        lease = Lease(_SESSION_S, self._end, lambda: self.now_s)
        self.rows: list[dict[bytes, bytes]] = [{}, {}]
        self.runners = [
            StageRunner(
                binding,
                Effects(
                    rows,
                    self._append,
                    self._commit,
                    self.fetch_log,
                    lease,
                    Observer(),
                    self._end,
                ),
                batch_messages=_BATCH_MESSAGES,
            )
            for binding, rows in zip(bindings, self.rows, strict=True)
        ]
        self._tasks = [asyncio.ensure_future(runner.work()) for runner in self.runners]

    async def release(self) -> None:
        """Finish and commit: the group rebalances."""
        for runner in self.runners:
            await runner.release()

    async def assign(self, partitions: frozenset[int]) -> None:
        """Take up partitions, in Faust's order: foreign rows go, what is new comes from the changelogs, then all is restored."""
        gained = partitions - self.partitions
        self.partitions = partitions
        self.positions.clear()
        for runner, rows in zip(self.runners, self.rows, strict=True):
            runner.keep_only(partitions)
            for partition in gained:
                changelog = (runner.binding.changelog, partition)
                for _, (key, value) in self.broker.read(changelog, 0, 1 << 30):
                    assert key is not None
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
            await runner.restore(partitions)
            for topic in runner.binding.topics:
                for partition in partitions:
                    target = topic, partition
                    self.positions[target] = self.broker.position(DETECTORS, target)

    def has_next(self, target: Target) -> bool:
        """Whether there is something to read."""
        return bool(self.broker.read(target, self.positions[target], 1))

    async def deliver(self, target: Target, most: int, fault: int = 0) -> int:
        """Hand over what comes next, at most ``most`` messages; returns how many.

        Args:
            target: one of its inputs.
            most: of messages.
            fault: 1: the first is fetched and left out; 2: it is not even fetched; 3: it comes twice.
        """
        found = self.broker.read(target, self.positions[target], most)
        if not found:
            return 0
        self.positions[target] = found[-1][0] + 1
        self.fetch_log.fetched(target, [offset for offset, _ in found[fault == 2 :]])
        runner = self.runners[target[0] == TOPICS.verdicts]
        chosen = found[1:] if fault in (1, 2) else found[:1] * (fault == 3) + found
        for i, (offset, (_, value)) in enumerate(chosen):
            if i % _BATCH_MESSAGES == 0 and i:  # what is read is bounded
                await self.settle()
            message = Incoming(*target, offset, value or b"", runner.assignment)
            await runner.take(message)
        return len(found)

    async def settle(self) -> None:
        """Let it work until it has nothing left to do.

        Raises:
            CrashError: it died.
        """
        while any(runner.busy for runner in self.runners):
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0)
        for task in self._tasks:
            if task.done():
                task.result()

    async def commit(self) -> None:
        """What the worker does every second."""
        for runner in self.runners:
            await runner.commit()

    async def kill(self) -> None:
        """Nothing that it still has on its way takes effect."""
        self.dead = True
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(CrashError, asyncio.CancelledError):
                await task

    async def _append(self, target: Target, records: Sequence[Record]) -> None:
        table = target[0].endswith("changelog")
        whole = self._atomic and table
        if (share := self._burn(table=table)) is None:
            self.broker.append(target, records)
            return
        written = len(records) * round(share) if whole else round(len(records) * share)
        self.broker.append(target, records[:written])
        raise CrashError(f"{target} after {written} of {len(records)} records")

    async def _commit(self, offsets: Mapping[Target, int]) -> bool:
        share = self._burn(table=False)
        done = bool(share is None or share > 0.5) and self.broker.commit(
            DETECTORS, self.member, offsets
        )
        if share is not None:
            raise CrashError("commit")
        return done

    def _burn(self, *, table: bool) -> float | None:
        """The share that is still done, if it dies now."""
        if self.dead:
            return 0.0
        if self.fuse.tables and not table:
            return None
        self.fuse.left -= 1
        if self.fuse.left != 0:
            return None
        self.dead = True
        return self.fuse.share

    def _end(self, reason: str) -> NoReturn:
        self.dead = True
        raise CrashError(reason)
