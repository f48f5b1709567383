"""The partitions of ``predictions`` that a worker holds: takes them up, reads them, and knows what may be said of them.

::

    assigned ─► take up at the committed offsets ─► count in ─► read ─► offsets for a batch ─► moved
                                                                 ▲  ▲                       └► rewound: back to the committed offsets
                                                                 │  └── position not in the log: jump to its start
                                                                 └───── not all of a batch was sent: go on from the marks
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from monitor.panes import SourceMark
from streams import clients
from streams.clients import KafkaSettings
from streams.positions import Committed, Positions

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0
_REWIND_S: Final = 5.0  # a client that cannot say may have lost its coordinator with a broker, for ever: a new one may not have
_END_S: Final = 1.0  # for the ends of the partitions: without an answer nothing is idle
_PAUSE_S: Final = 0.2
_PARTITION, _ERROR = methodcaller("partition"), methodcaller("error")
_OF_A_PARTITION: Final = {KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET}


@dataclass(frozen=True, slots=True)
class Claim:
    """Partitions of which the broker said, no earlier than ``asked_s``, that nothing is left to read."""

    idle: Set[int]
    asked_s: float


class Source:
    """A consumer and its positions. Mutable: rebalances, batches and the broker move them. ``close`` it."""

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        topic: str,
        *,
        taken_up: Callable[[], None],
        monotonic: Callable[[], float],
        idle_after_s: float,
    ) -> None:
        """Does not read before ``subscribe``; ``taken_up`` is called when partitions were assigned, inside ``read``."""
        self._topic, self._taken_up = topic, taken_up
        self._monotonic, self._idle_after_s = monotonic, idle_after_s
        self.positions = Positions()
        # What leaves a callback of the client's, nobody can catch: it is raised as a KafkaError, which is no exception.
        self._failure: KafkaException | None = None
        self._ticket: object = None
        config = (
            clients.consumer_config(kafka, group, logger)
            | {
                "enable.partition.eof": True,
                "auto.offset.reset": "error",  # each position is given: one that is gone is a jump, and announced
            }
        )
        self._consumer = Consumer(config)
        self._new_admin = partial(clients.admin, kafka, logger)
        self._admin = self._new_admin()

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def close(self) -> None:
        """Leave it."""
        self._consumer.close()

    def _assigned(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._take_up(partitions)
        except KafkaException as err:
            self._failure = err

    def _take_up(self, partitions: list[TopicPartition]) -> None:
        self._ticket = self._consumer.consumer_group_metadata()
        for found in self._consumer.committed(partitions, timeout=_ANSWER_S):
            self.positions.take_up(_committed(found), self._low(found.partition))
        for partition, why in self.positions.jumps.items():
            logger.warning("partition %d does not go on where it was: %s", partition, why)
        self._count_in()  # 1. of the protocol in streams.profiler
        self.go_on()
        logger.info("assigned partitions %s", sorted(p.partition for p in partitions))
        self._taken_up()

    def _low(self, partition: int) -> int:
        """Where a partition's log begins. A topic that was just created may still be looking for its leader."""
        place, patient_until = TopicPartition(self._topic, partition), self._monotonic() + _ANSWER_S
        while True:
            try:
                low, _ = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)
            except KafkaException:
                if self._monotonic() > patient_until:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return int(low)

    def _count_in(self) -> None:
        """Commit the offsets as they are, with this worker's try in their metadata."""
        offsets = [self._offset(committed) for committed in self.positions.beginnings()]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as err:  # another rebalance has begun, or the broker is busy
            logger.warning("this try is not counted: %s", err.args[0].str())

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self.positions.drop(partition.partition)

    def read(self, most: int, timeout_s: float) -> list[Message]:
        """Up to ``most`` messages, or what there is after ``timeout_s``, each behind the one before it of its partition.

        Raises:
            KafkaException: the broker refuses, or does not say where a partition begins.
        """
        self._reset()  # only now: what was read before belongs to the old position, and is sent
        batch = self._consumer.consume(most, timeout=timeout_s)
        partitions = set(map(_PARTITION, batch))
        # Most batches are nothing but messages: a loop in Python would take longer than the client did.
        if partitions <= self.positions.marks.keys() and not any(map(_ERROR, batch)):
            for partition in partitions:
                self.positions.came(partition)
        else:
            batch = [message for message in batch if self._is_message(message)]
        if self._failure is not None:
            raise self._failure
        return batch

    def _is_message(self, message: Message) -> bool:
        """Whether it is one of a partition that is ours; if not, what it says is noted."""
        error, partition = message.error(), message.partition() or 0
        known = error is None or error.code() in _OF_A_PARTITION
        if known and partition not in self.positions.marks:
            return False  # revoked while it was on its way
        if error is None:
            self.positions.came(partition)
        elif error.code() == KafkaError._PARTITION_EOF:
            self.positions.ended(partition, message.offset() or 0, self._monotonic())
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            self.positions.unreadable.add(partition)
        else:
            raise KafkaException(error)
        return error is None

    def _reset(self) -> None:
        """Give each partition that cannot be read at its position a new one.

        That it cannot is the broker's word in a fetch. The embedded broker's ListOffsets understates a partition's
        end, so that the one cannot be compared with the other.
        """
        if not self.positions.unreadable:
            return
        for partition in self.positions.unreadable:
            low = self._low(partition)
            why = self.positions.jump(partition, low)
            logger.warning("partition %d goes on at %d: %s", partition, low, why)
        self.go_on()

    def go_on(self) -> None:
        """Read on from the marks. A seek would not do: librdkafka ignores it for a partition that it stopped to read."""
        self.positions.unreadable.clear()  # the broker will say it again
        self._consumer.assign(
            [
                TopicPartition(self._topic, partition, mark.position)
                for partition, mark in self.positions.marks.items()
            ]
        )

    def claim(self, busy: Set[int]) -> Claim:
        """The silent partitions, but for ``busy`` ones, whose end is still the end by the broker's word; without its word none.

        A client that was stopped, or waits for a transaction, cannot know what has come since. Messages of open transactions count:
        they are there, and may be committed.
        """
        asked_s = self._monotonic()
        silent = {p: end for p, end in self._silent().items() if p not in busy}
        # The embedded broker understates the end, so "not beyond" is the test and not "equal".
        ends = self._ends(silent) if silent else {}
        return Claim({p for p, end in ends.items() if end <= silent[p]}, asked_s)

    def changed(self) -> bool:
        """Whether a partition is idle that was not, or the other way round. The broker is asked where it matters."""
        idle = self.positions.idle
        return self._silent().keys() != idle and self.claim(set()).idle != idle

    def _silent(self) -> Mapping[int, int]:
        return self.positions.silent(self._monotonic(), self._idle_after_s)

    def _ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        """The end of each partition's log now, as far as the broker answers in time."""
        places = [TopicPartition(self._topic, partition) for partition in partitions]
        answers = clients.log_ends(self._admin, places, committed=False, timeout_s=_END_S)
        found = dict[int, int]()
        for place, answer in answers.items():
            with suppress(KafkaException, TimeoutError):
                found[place.partition] = answer.result(2 * _END_S).offset
        if len(found) < len(places):
            self._admin = self._new_admin()
        return found

    def offsets(self, after: Mapping[int, SourceMark]) -> list[TopicPartition]:
        """What to commit for a batch that leads to ``after``."""
        return [self._offset(committed) for committed in self.positions.commits(after)]

    @property
    def ticket(self) -> object:
        """Proof of membership for a transaction: it fences a worker that lost its partitions.

        It is of the assignment, and not of now: a client that was told that its session is over, and has not told us yet, has
        a ticket without a name, which the broker does not check.
        """
        return self._ticket

    def rewind(self) -> None:
        """Go back to the committed offsets: the broker knows whether a batch went through.

        Raises:
            KafkaException: the broker does not say.
        """
        held = [TopicPartition(self._topic, p) for p in self.positions.marks]
        for found in self._consumer.committed(held, timeout=_REWIND_S):
            self.positions.rewind(_committed(found))
        if held:
            self.go_on()

    def _offset(self, committed: Committed) -> TopicPartition:
        return TopicPartition(self._topic, *committed)


def _committed(found: TopicPartition) -> Committed:
    return Committed(found.partition, found.offset, found.metadata)
