"""Where the profiler stands in the source partitions that it holds, and what it may say of them. No I/O, no clock.

::

    committed offset ──► mark: position, watermark        jump: the position is not in the log: which one was left, and why
      its metadata   ──► watermark, tries                 end: where the log ended when it was read to its end, and since when

*Tries* are the workers that took a partition up at its committed position, so far without getting past it: a worker counts itself in
when it begins and writes 0 with its first batch. So what ends every worker that reads it is found out, by whoever comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from monitor.panes import SourceMark

NOWHERE: Final = -1001  # Kafka's word for "no offset is committed"; each negative one means it


class Committed(NamedTuple):
    """A committed offset as the broker keeps it. Negative: none is."""

    partition: int
    offset: int
    metadata: str | None


class _Metadata(msgspec.Struct, array_like=True):
    """What rides with a committed offset. Kafka allows 4 KiB. Only ever longer: a release reads what it knows."""

    watermark_ms: int | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class _Jump:
    """Why a source partition goes on elsewhere, and the position that it left: the committed one until the jump is."""

    why: str
    left: int


@dataclass(frozen=True, slots=True)
class _End:
    """Where a partition's log ended, and since when nothing has followed."""

    offset: int
    since_s: float


class Positions:
    """Marks of the partitions that one worker holds. Mutable: the consumer's callbacks and the commits move them."""

    def __init__(self) -> None:
        self.marks: dict[int, SourceMark] = {}
        self.unreadable: set[int] = set()  # whose position the broker does not have
        self._jumps: dict[int, _Jump] = {}
        self._ends: dict[int, _End] = {}
        self._tries: dict[int, int] = {}

    def take_up(self, committed: Committed, low: int) -> None:
        """Start a partition where its committed offset says, or at ``low``, the start of its log."""
        known, partition = _read(committed.metadata), committed.partition
        at = low if committed.offset < 0 else committed.offset
        self.marks[partition] = SourceMark(at, known.watermark_ms, idle=False)
        self._tries[partition] = known.tries + 1
        self._ends.pop(partition, None)
        if 0 <= committed.offset < low:
            self.jump(partition, low)

    def drop(self, partition: int) -> None:
        """Forget a partition: another worker has it."""
        self.marks.pop(partition, None)
        for known in (self._jumps, self._ends, self._tries):
            known.pop(partition, None)
        self.unreadable.discard(partition)

    def jump(self, partition: int, low: int) -> str:
        """Go on at the log's start, and say why. The hole is announced and booked, not papered over."""
        mark, earlier = self.marks[partition], self._jumps.get(partition)
        left = mark.position if earlier is None else earlier.left
        if left < low:
            why = f"retention removed {left} to {low}"
        else:
            why = f"the topic was created anew: it ends before {left}"
        self._jumps[partition] = _Jump(why, left)
        self.marks[partition] = SourceMark(low, mark.watermark_ms, idle=False)
        return why

    @property
    def jumps(self) -> Mapping[int, str]:
        """Why a partition does not start where the last commit ended."""
        return {partition: jump.why for partition, jump in self._jumps.items()}

    def rewind(self, committed: Committed) -> None:
        """Go back to where the broker says that a partition is: a batch went through, or it did not."""
        partition, mark = committed.partition, self.marks[committed.partition]
        self._ends.pop(partition, None)
        jump = self._jumps.get(partition)
        # Behind a jump that is not committed stands the position that it left, which is gone.
        known = mark.position if jump is None else jump.left
        if committed.offset < 0 or committed.offset == known:
            return
        watermark = _read(committed.metadata).watermark_ms
        self.marks[partition] = SourceMark(
            committed.offset, mark.watermark_ms if watermark is None else watermark, idle=False
        )
        self._jumps.pop(partition, None)

    def commits(self, after: Mapping[int, SourceMark]) -> Iterable[Committed]:
        """What to commit for a batch that leads to ``after``."""
        for partition, mark in after.items():
            metadata = _Metadata(mark.watermark_ms, self._tries_after(partition, mark))
            yield Committed(partition, mark.position, _written(metadata))

    def beginnings(self) -> Iterable[Committed]:
        """The committed offsets as they are, with this worker counted in."""
        for partition, mark in self.marks.items():
            jump = self._jumps.get(partition)
            at = mark.position if jump is None else jump.left
            metadata = _Metadata(mark.watermark_ms, self._tries[partition])
            yield Committed(partition, at, _written(metadata))

    def committed(self, after: Mapping[int, SourceMark]) -> None:
        """Move on: a batch that leads to ``after`` is committed."""
        self._tries |= {p: self._tries_after(p, mark) for p, mark in after.items()}
        self.marks |= after
        self._jumps.clear()

    def _tries_after(self, partition: int, mark: SourceMark) -> int:
        """0 once a batch of the partition went through, or where there is nothing left that could end a worker."""
        passed = mark.position > self.marks[partition].position or partition in self._ends
        return 0 if passed else self._tries.get(partition, 0)

    @property
    def failed(self) -> int:
        """How many workers in a row ended before they got past a position that is held now; of several, the most."""
        return max((tries - 1 for tries in self._tries.values() if tries), default=0)

    def came(self, partition: int) -> None:
        """Note that messages of a partition are there to be sent."""
        self._ends.pop(partition, None)

    def ended(self, partition: int, offset: int, now_s: float) -> None:
        """Note that a partition was read to ``offset``, where its log ends. A transaction's marker moves the end, and breaks no silence."""
        earlier = self._ends.get(partition)
        self._ends[partition] = _End(offset, now_s if earlier is None else earlier.since_s)

    def silent(self, now_s: float, for_s: float) -> Mapping[int, int]:
        """Partitions that had ended ``for_s`` ago, and nothing has come since: the end of each. Whether it still is the end, the broker knows."""
        return {p: end.offset for p, end in self._ends.items() if now_s - end.since_s >= for_s}

    @property
    def reached(self) -> Mapping[int, int]:
        """Up to where each partition is committed, or was seen to end: behind the last message may be a transaction's marker."""
        return {
            p: max(mark.position, self._ends[p].offset if p in self._ends else 0)
            for p, mark in self.marks.items()
        }

    @property
    def idle(self) -> set[int]:
        """Partitions that were called idle last."""
        return {partition for partition, mark in self.marks.items() if mark.idle}


def _written(metadata: _Metadata) -> str:
    return msgspec.json.encode(metadata).decode()


def _read(metadata: str | None) -> _Metadata:
    """Nothing is known where the broker keeps no metadata, or someone else wrote it."""
    try:
        return msgspec.json.decode(metadata or "[]", type=_Metadata)
    except msgspec.MsgspecError:
        return _Metadata()
