"""Carries out the steps of a stage, message by message, so that a crash at any moment loses and repeats nothing.

Knows no Kafka client: sending, committing and the table come from ``streams.topology``::

    take() ──► inbox ──► stage.advance ──► outputs sent ──► changelog written ──► table ──► committed
               (a batch of messages at a time, under the lock)

Invariant: an offset is committed only when the outputs and the table writes of all messages before it are
acknowledged. Whatever would break that ends the process with ``EXIT_RESTART``, and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence, Set
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from streams.delivery import (
    BATCH_BYTES,
    Delivery,
    FetchLog,
    Pending,
    Record,
    Target,
    foreign_keys,
    partition_rows,
)
from streams.liveness import Lease
from streams.stage import ChainBreakError
from streams.worker import Binding, Observer

Append: TypeAlias = Callable[[Target, Sequence[Record]], Awaitable[None]]
"""Appends records to a partition in their order, in record batches; returns when all are acknowledged."""

Commit: TypeAlias = Callable[[Mapping[Target, int]], Awaitable[bool]]
"""Commits the next offsets to read; false where the group has moved on meanwhile."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it was read, with the number of the assignment that it was read under."""

    topic: str
    partition: int
    offset: int
    value: bytes
    assignment: int


@dataclass(frozen=True, slots=True)
class Effects:
    """The outside, as a stage's runner sees it.

    ``rows`` is the table; its keys carry their partition in front. ``end`` ends the process: it never returns.
    """

    rows: MutableMapping[bytes, bytes]
    append: Append
    commit: Commit
    fetch_log: FetchLog
    lease: Lease
    observer: Observer
    end: Callable[[str], NoReturn]


class StageRunner:
    """One stage at work. Mutable: it owns the lock, the inbox, and which offsets are durable."""

    def __init__(self, binding: Binding, effects: Effects, *, batch_messages: int) -> None:
        self.binding = binding
        self.assignment = 0  # counts restores: what was read before the last one is stale
        self.committed: dict[Target, int] = {}
        self._effects = effects
        self._limit = batch_messages
        self._lock = asyncio.Lock()
        self._inbox: asyncio.Queue[Incoming] = asyncio.Queue(2 * batch_messages)
        self._ready: frozenset[int] = frozenset()
        self._durable: dict[Target, int] = {}

    @property
    def busy(self) -> bool:
        """Whether messages were read that are not durable yet."""
        return self._lock.locked() or not self._inbox.empty()

    @property
    def waiting(self) -> bool:
        """Whether messages were read whose offsets are not committed yet."""
        return self.busy or self._durable != self.committed

    async def take(self, incoming: Incoming) -> None:
        """Accept a message that was read; blocks while enough of them wait."""
        await self._inbox.put(incoming)

    async def work(self) -> None:
        """Take what was read, as much as there is up to the limit, and carry it out; for ever."""
        while True:
            batch = [await self._inbox.get()]
            while len(batch) < self._limit and not self._inbox.empty():
                batch.append(self._inbox.get_nowait())
            async with self._lock:
                await self._carry_out(batch)

    async def restore(self, partitions: Set[int]) -> None:
        """Rebuild the state of all partitions of this worker: the table is complete, and no input is read yet."""
        async with self._lock:
            self.assignment += 1
            self._effects.fetch_log.forget(self.binding.topics)
            self._durable.clear()
            self.committed.clear()
            rows = partition_rows(self._effects.rows, sorted(partitions))
            for partition, own in rows.items():
                self.binding.stage.restore(partition, own)
                self._effects.observer.restored(self.binding.name, partition, len(own))
            self._ready = frozenset(partitions)

    async def release(self) -> None:
        """Finish the batch in flight, commit, and let go of all partitions: a rebalance gives some of them back."""
        async with self._lock:
            await self.commit()
            for partition in sorted(self._ready):
                self.binding.stage.forget(partition)
            self._ready = frozenset()

    def keep_only(self, partitions: Set[int]) -> None:
        """Drop the rows of partitions that another worker has now.

        Faust drops only those that came from its own recovery. One that was written here, and later deleted by the
        other worker, would be back when the partition comes back.
        """
        for key in list(foreign_keys(self._effects.rows, partitions)):
            del self._effects.rows[key]

    async def commit(self) -> None:
        """Commit what became durable since the last time."""
        moved = {
            target: offset
            for target, offset in self._durable.items()
            if self.committed.get(target) != offset
        }
        if moved and await self._effects.commit(moved):
            self.committed |= moved
            for (topic, partition), offset in moved.items():
                self._effects.observer.committed(topic, partition, offset)

    def fail(self, failure: BaseException) -> NoReturn:
        """Log what happened and end the process."""
        logger.critical("stage %s cannot go on", self.binding.name, exc_info=failure)
        self._effects.end(f"stage {self.binding.name}: {failure!r}")

    async def _carry_out(self, batch: Sequence[Incoming]) -> None:
        """Make the effects of consecutive messages durable.

        1. A message of an earlier assignment is left: it will come again. So is one that came twice. One that was
           left out on its way ends the process before anything after it is applied.
        2. The stage advances in memory and yields steps.
        3. All outputs are sent and acknowledged.
        4. All writes go to the changelog and are acknowledged. A crash leaves all of them or none (or, where they
           exceed a record batch, a prefix), and never one whose outputs were not acknowledged before.
        5. The table follows, and then the offsets that may be committed.

        Much of it makes 3 to 5 run more than once, between two steps. Any exception ends the process, cancellation
        too: the stage's memory is then ahead of its table and must not be used again. Before a chain break ends it,
        the steps yielded until then are made durable: among them is the count of the break.
        """
        reached = dict[Target, int]()
        try:
            await self._advance(batch, reached)
        except BaseException as failure:  # noqa: BLE001  see above
            self.fail(failure)
        self._durable |= reached

    async def _advance(self, batch: Sequence[Incoming], reached: dict[Target, int]) -> None:
        pending = Pending()
        try:
            for incoming in batch:
                if not self._admit(incoming):  # 1.
                    continue
                steps = self.binding.stage.advance(  # 2.
                    incoming.topic, incoming.partition, incoming.offset, incoming.value
                )
                for step in steps:
                    pending.add(incoming.partition, step)
                    if pending.size > BATCH_BYTES // 2:
                        await self._flush(pending)
                        pending = Pending()
                pending.messages += 1
                reached[incoming.topic, incoming.partition] = incoming.offset + 1
                await asyncio.sleep(0)  # the turn of other stages, commits and heartbeats
        except ChainBreakError:
            await self._flush(pending)  # the stage counts its breaks there
            raise
        await self._flush(pending)

    def _admit(self, incoming: Incoming) -> bool:
        if incoming.assignment != self.assignment or incoming.partition not in self._ready:
            return False
        source = incoming.topic, incoming.partition
        match self._effects.fetch_log.delivered(source, incoming.offset):
            case Delivery.NEXT:
                return True
            case Delivery.REPEATED:
                self._effects.observer.repeated(self.binding.name, incoming.partition)
                return False
            case Delivery.SKIPPED:
                raise ChainBreakError(
                    f"a message of {incoming.topic}/{incoming.partition} before offset"
                    f" {incoming.offset} was fetched but never delivered"
                )

    async def _flush(self, pending: Pending) -> None:
        """Steps 3 to 5."""
        await self._append_all(pending.outputs)  # 3.
        changes = {
            (self.binding.changelog, partition): pending.changelog(partition)
            for partition in pending.writes
        }
        await self._append_all(changes)  # 4.
        for records in changes.values():  # 5.
            for key, value in records:
                if value is None:
                    self._effects.rows.pop(key, None)
                else:
                    self._effects.rows[key] = value
        self._effects.observer.applied(
            self.binding.name,
            pending.messages,
            sum(map(len, pending.outputs.values())),
            sum(map(len, changes.values())),
        )

    async def _append_all(self, targets: Mapping[Target, Sequence[Record]]) -> None:
        self._effects.lease.check()
        await asyncio.gather(
            *(self._effects.append(target, records) for target, records in targets.items())
        )
