"""Lanes of the dispatcher: one queue per model and target, so that a receiver that is down delays nobody else.

An offset is done when its item is recorded; a partition's position moves only past offsets that are done with all before
them. The numbers in the code are those of the protocol in ``streams.dispatcher``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

from monitor.wire import Delivery, OutboxItem

GRACE_S: Final = 5.0  # for requests under way when the process is told to stop

Lane: TypeAlias = tuple[str, str]
"""Model and target."""

Deliver: TypeAlias = Callable[[OutboxItem, float, Callable[[], bool]], Awaitable[Delivery]]
"""Of an item, the Unix time at which it was asked for, and whether later news of its incident waits."""


class Progress:
    """Which offsets of one partition are done. Mutable: ``position`` only grows."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._last = -1
        self.position: int | None = None

    def begin(self, offset: int) -> bool:
        """An item was read. ``False`` if it was read before: a rebalance goes back to what is committed."""
        if offset <= self._last:
            return False
        self._last = offset
        self._open.append(offset)
        return True

    def finish(self, offset: int) -> None:
        """An item is done; ``position`` moves past every item that is done with all before it."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            first = self._open.popleft()
            self._done.discard(first)
            self.position = first + 1


@dataclass(frozen=True, slots=True)
class Task:
    """One item with where it came from and when it was asked for (Unix time)."""

    item: OutboxItem
    partition: int
    offset: int
    asked_s: float


@dataclass(slots=True)
class _Partition:
    delivered: set[str]
    progress: Progress = field(default_factory=Progress)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class _GoneError(Exception):
    """The partition of an item belongs to somebody else now, who sends it."""


async def _at_once() -> None:
    """Nothing to wait for."""


class Lanes:
    """Queues of items, one per model and target, each worked off by a task of its own. Mutable: it owns the queues.

    Args:
        deliver: sends an item until it is done. Between two attempts it waits by ``rest``.
        record: makes the outcome durable.
        certain: returns once it is known which partitions are ours: at once, unless the process was stopped for long.
    """

    def __init__(
        self,
        deliver: Deliver,
        record: Callable[[int, Delivery], Awaitable[None]],
        certain: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self._deliver, self._record, self._certain = deliver, record, certain
        self._under_way: dict[asyncio.Task[None] | None, _Partition] = {}
        self._queues: dict[Lane, deque[tuple[_Partition, Task]]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._held: dict[int, _Partition] = {}
        self._failure: BaseException | None = None
        self.pending = 0

    def assign(self, partition: int, delivered: Iterable[str]) -> None:
        """Take over a partition whose ``delivered`` items are done."""
        self._held[partition] = _Partition(set(delivered))

    def revoke(self, partition: int) -> None:
        """Give a partition away: what waits is dropped. A request under way ends, and is recorded; none follows it."""
        held = self._held.pop(partition, None)
        if held is not None:
            held.gone.set()

    def revoke_all(self) -> None:
        """Give all partitions away."""
        for partition in list(self._held):
            self.revoke(partition)

    async def rest(self, seconds: float) -> None:
        """Wait between two attempts of ``deliver``. Does not return where the item is somebody else's by then."""
        held = self._under_way.get(asyncio.current_task())
        if held is None:  # asked for by no lane
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await held.gone.wait()
        await self._certain()
        if held.gone.is_set():
            raise _GoneError

    def put(self, task: Task) -> None:
        """Queue an item, unless it is done or its partition is not ours any more."""
        held = self._held.get(task.partition)
        if held is None or not held.progress.begin(task.offset):
            return
        if task.item.id in held.delivered:
            held.progress.finish(task.offset)
            return
        held.delivered.add(task.item.id)  # a repeat of it in the outbox is not sent again
        lane = (task.item.incident.model, task.item.target)
        self.pending += 1
        if lane in self._queues:
            self._queues[lane].append((held, task))
            return
        self._queues[lane] = deque([(held, task)])
        worker = asyncio.create_task(self._work(lane))
        self._workers.add(worker)
        worker.add_done_callback(self._ended)

    def skip(self, partition: int, offset: int) -> None:
        """An offset without an item: it is done."""
        held = self._held.get(partition)
        if held is not None and held.progress.begin(offset):
            held.progress.finish(offset)

    def positions(self) -> dict[int, int]:
        """By partition, where reading would go on.

        Raises:
            TransientError: an outcome could not be recorded.
        """
        if self._failure is not None:
            raise self._failure
        return {
            partition: held.progress.position
            for partition, held in self._held.items()
            if held.progress.position is not None
        }

    async def stop(self) -> None:
        """Let requests under way end, within ``GRACE_S``, and drop what waits."""
        self.revoke_all()
        workers = set(self._workers)
        if workers:
            _, late = await asyncio.wait(workers, timeout=GRACE_S)
            for worker in late:
                worker.cancel()

    async def _work(self, lane: Lane) -> None:
        queue = self._queues[lane]
        while queue:
            held, task = queue.popleft()
            await self._certain()
            # A partition that left and came back was read again: what waited from before would be sent twice.
            if self._held.get(task.partition) is held:
                with suppress(_GoneError):
                    await self._send(held, task)
            self.pending -= 1
        del self._queues[lane]

    async def _send(self, held: _Partition, task: Task) -> None:
        worker = asyncio.current_task()
        self._under_way[worker] = held
        try:
            newer = partial(self._has_news, task.item)
            outcome = await self._deliver(task.item, task.asked_s, newer)  # 3.
            await self._record(task.partition, outcome)  # 4.
        finally:
            del self._under_way[worker]
        held.progress.finish(task.offset)

    def _has_news(self, item: OutboxItem) -> bool:
        """Whether a later notification about the same incident waits in the item's lane."""
        waiting = self._queues.get((item.incident.model, item.target), ())
        return item.action == "notify" and any(
            task.item.incident.id == item.incident.id for _, task in waiting
        )

    def _ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not worker.cancelled() and worker.exception() is not None:
            self._failure = self._failure or worker.exception()
