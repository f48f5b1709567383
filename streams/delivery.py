"""What the runner has to know about messages that are on their way: which were left out, and what a batch has to write.

Pure bookkeeping without a client, so that the rules on which exactness rests can be tested by themselves.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from streams.stage import Output, Step

Target: TypeAlias = tuple[str, int]
"""Topic and partition."""

Record: TypeAlias = tuple[bytes | None, bytes | None]
"""Key and value of a message."""

Change: TypeAlias = tuple[bytes, bytes | None]
"""A key of a table and its new value; ``None`` deletes the key."""

# A record batch (what a broker appends as one) may have 1 MiB; the rest is left for its header.
BATCH_BYTES = 900_000
_SPARE_BYTES = 1_024  # a batch's own header, which counts into what the producer measures
_RECORD_BYTES = 32  # upper bound of a record's own header: lengths, timestamp, offset


class Delivery(Enum):
    """What a delivered message is, seen from the one before it."""

    NEXT = "next"
    REPEATED = "repeated"
    SKIPPED = "skipped"


class FetchLog:
    """Compares what is delivered with what was fetched, for each source partition.

    Faust leaves messages out now and then, most of all around starts and rebalances. Counting offsets does not show
    that: behind a transactional producer each message is followed by a marker, which takes an offset. What the
    fetcher handed over does, since the fetcher never skips. Offsets are noted in the fetcher's thread and read in
    the event loop: ``deque.append`` and ``popleft`` are atomic, and there is one thread on either side.

    Args:
        topics: whose messages are delivered. Of others (changelogs) nothing is noted, as nobody would ever clear it.
    """

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = frozenset(topics)
        self._fetched: defaultdict[Target, deque[int]] = defaultdict(deque)
        self._delivered: dict[Target, int] = {}

    def fetched(self, target: Target, offsets: Iterable[int]) -> None:
        """Note the offsets that the fetcher hands over, in its order. After a seek they may start again lower."""
        if target[0] in self._topics:
            self._fetched[target].extend(offsets)

    def delivered(self, target: Target, offset: int) -> Delivery:
        """Note a delivery and tell how it follows the one before it. A ``SKIPPED`` one is not noted."""
        last = self._delivered.get(target, -1)
        if offset <= last:
            return Delivery.REPEATED
        fetched = self._fetched[target]
        while fetched and fetched[0] <= offset:
            if last < fetched.popleft() < offset:
                return Delivery.SKIPPED
        self._delivered[target] = offset
        return Delivery.NEXT

    def forget(self, topics: Iterable[str]) -> None:
        """Start anew: the partitions were assigned again and will be read from their committed offsets."""
        names = set(topics)
        for known in (self._fetched, self._delivered):
            for target in [target for target in known if target[0] in names]:
                del known[target]


@dataclass(slots=True)
class Pending:
    """Effects of the steps of some consecutive messages, to be carried out together: first outputs, then writes."""

    outputs: dict[Target, list[Record]] = field(default_factory=dict)
    writes: dict[int, list[Change]] = field(default_factory=dict)
    size: int = 0
    messages: int = 0

    def add(self, partition: int, step: Step) -> None:
        """Append the step of a message from ``partition``.

        Raises:
            ValueError: a value is empty, which Faust's store takes for a deletion when it recovers.
        """
        for output in step.outputs:
            self.outputs.setdefault((output.topic, output.partition), []).append(_record(output))
            self.size += _size(output.key, output.value)
        for key, value in step.writes:
            if value == b"":
                raise ValueError(f"the value of key {key!r} is empty")
            self.writes.setdefault(partition, []).append((table_key(partition, key), value))
            self.size += _size(key, value)

    def changelog(self, partition: int) -> list[Change]:
        """Records that bring a table from its last batch to this one.

        Within one record batch only a key's last value counts, as the batch is appended as a whole or not at all.
        Deletions go first, so that the last record of the log is never a tombstone: compaction would remove it, and
        Faust's recovery would wait for its offset for ever. Writes that need more than one record batch stay as they
        are, in order, since each prefix of them has to be a state that the stage accepts.
        """
        writes = self.writes[partition]
        last = dict(writes)
        if sum(_size(key, value) for key, value in last.items()) > BATCH_BYTES - _SPARE_BYTES:
            return list(writes)
        return sorted(last.items(), key=lambda write: write[1] is not None)


def table_key(partition: int, key: bytes) -> bytes:
    """Faust keeps the keys of all partitions in one dictionary, so the partition is part of the key."""
    return b"%d/%s" % (partition, key)


def partition_rows(
    table: Mapping[bytes, bytes], partitions: Iterable[int]
) -> dict[int, list[tuple[bytes, bytes]]]:
    """Split a table's rows by partition and take the partition off the keys. Rows of other partitions are left out."""
    rows: dict[int, list[tuple[bytes, bytes]]] = {partition: [] for partition in partitions}
    for key, value in table.items():
        number, _, rest = key.partition(b"/")
        if (mine := rows.get(int(number))) is not None:
            mine.append((rest, value))
    return rows


def foreign_keys(table: Mapping[bytes, bytes], partitions: Set[int]) -> Iterator[bytes]:
    """Keys of the table that belong to other partitions."""
    return (key for key in table if int(key.partition(b"/")[0]) not in partitions)


def _record(output: Output) -> Record:
    return output.key, output.value


def _size(key: bytes | None, value: bytes | None) -> int:
    return len(key or b"") + len(value or b"") + _RECORD_BYTES
