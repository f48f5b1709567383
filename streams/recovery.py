"""Tables read back from their changelogs: the rows of each, and whether its end was reached.

The end is the partition's high watermark. A reader of committed records is told of an end at the last stable offset already, and between the two may
lie a transaction whose fate is sealed but not yet marked in this partition: its input offsets are committed, and its rows must not be missed::

    records ... │ last transaction, unmarked │
                ▲ last stable offset         ▲ high watermark
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.clients import KafkaSettings, consumer_config
from streams.delivery import Target, partition_rows

_FIRST_LOOK: Final = (
    100  # records before the end; ten times as many each time that none of them can be read
)
_ANSWER_S: Final = 10.0

logger = logging.getLogger(__name__)


class Recovery:
    """Tables that are being read. Mutable: it grows record by record, and is gone once the stages are restored.

    Args:
        changelogs: the partitions that are read, from their starts.
        offsets: where the inputs go on when all are whole; negative where nothing was ever committed.
    """

    def __init__(self, changelogs: Iterable[Target], offsets: Mapping[Target, int]) -> None:
        self.offsets = offsets
        self.records = 0
        self._tables: dict[Target, dict[bytes, bytes]] = {target: {} for target in changelogs}
        self._unread = dict.fromkeys(self._tables, "not read yet")

    @property
    def whole(self) -> bool:
        """Whether every changelog was read to its end."""
        return not self._unread

    @property
    def left(self) -> str:
        """What keeps it from being whole, by partition; empty if it is."""
        return ", ".join(f"{topic}/{p} {why}" for (topic, p), why in sorted(self._unread.items()))

    def add(self, target: Target, key: bytes | None, value: bytes | None) -> None:
        """Take a record, in the order of its partition. What belongs to no table of this recovery is left."""
        rows = self._tables.get(target)
        if rows is None or key is None:
            return
        self.records += 1
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value

    def reached(self, target: Target, offset: int, high_watermark: int) -> None:
        """Note that nothing more is readable at ``offset``. A high watermark that is negative is not known yet."""
        if 0 <= high_watermark <= offset:
            self._unread.pop(target, None)
        elif target in self._unread and high_watermark > offset:
            self._unread[target] = (
                f"is readable to {offset} of {high_watermark}: a transaction is open "
                "(if it stays so, kafka-transactions.sh find-hanging names it)"
            )

    def rows(self, target: Target) -> list[tuple[bytes, bytes]]:
        """The rows of a partition, once: they are given away."""
        partition = target[1]
        return partition_rows(self._tables.pop(target), [partition])[partition]


def readable_ends(kafka: KafkaSettings, ends: Mapping[Target, int]) -> dict[Target, int]:
    """The offset behind the last record that a reader of committed ones sees, before each of ``ends``; 0 without one.

    Behind the last record there may be the marker of its transaction, or a whole one that was aborted. Whoever reads until
    an offset arrives would wait for these for ever.

    Raises:
        KafkaException: the broker does not answer.
    """
    # It names a group, as every client must, but never joins it.
    config = consumer_config(kafka, f"{kafka.prefix}ends", logger)
    consumer = Consumer(config | {"enable.partition.eof": True, "fetch.wait.max.ms": 100})
    found = dict.fromkeys(ends, 0)
    try:
        look, unknown = _FIRST_LOOK, {target for target, end in ends.items() if end > 0}
        while unknown:
            starts = {target: max(0, ends[target] - look) for target in unknown}
            seen = _last_offsets(consumer, starts)
            found |= {target: offset + 1 for target, offset in seen.items()}
            unknown = {target for target in unknown - seen.keys() if starts[target] > 0}
            look *= 10
    finally:
        consumer.close()
    return found


def _last_offsets(consumer: Consumer, starts: Mapping[Target, int]) -> dict[Target, int]:
    consumer.assign([TopicPartition(*target, start) for target, start in starts.items()])
    last, unread = dict[Target, int](), set(starts)
    while unread:
        messages = consumer.consume(1, _ANSWER_S)
        if not messages:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        for message in messages:
            target, error = (message.topic() or "", message.partition() or 0), message.error()
            if error is None:
                last[target] = message.offset() or 0
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(target)
            else:
                raise KafkaException(error)
    return last
