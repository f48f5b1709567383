"""A transactional producer, and what to do when one of its calls fails.

librdkafka sorts the errors into three kinds, and so do we::

    retriable ────────► the same call again
    requires abort ───► abort: nothing of the transaction is ever seen
    anything else ────► nobody knows what became of it (a commit timed out, a successor fenced us): the producer is
                        destroyed. A new one with the same transactional id ends whatever was open, one way or the other

Invariant: when ``commit`` returns, all of it is durable and visible; when it raises, no transaction of ours is open, and
the committed offsets say whether this one took place. Memory cannot: go back to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streams.clients import KafkaSettings, bounded, enqueue, producer_config

TIMEOUT_S: Final = 10.0
_ATTEMPTS: Final = 5
_OFFSETS_S: Final = 5.0  # they take milliseconds

Produced: TypeAlias = Mapping[str, Any]
"""A message, as the arguments of ``Producer.produce``."""


_SUPERSEDED: Final = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
}


class RolledBackError(Exception):
    """The transaction did not take place, or nobody knows: the committed offsets do."""


class SupersededError(RolledBackError):
    """Another process of the same transactional id has begun: this one has no more to say."""


class Transactions:
    """Transactions under one transactional id, one after the other. Mutable: it replaces its producer.

    Args:
        make: a new producer, past ``init_transactions``: that fences every other of the same id, and ends its transaction.
        exclusive: whether who was fenced stays so, and does not fence its successor in turn. Without a consumer group, that is what keeps two from
            the same work.
    """

    def __init__(self, make: Callable[[], Producer], *, exclusive: bool = False) -> None:
        self._make, self._exclusive = make, exclusive
        self._producer = make()

    def commit(
        self, records: Iterable[Produced], offsets: Sequence[TopicPartition], ticket: object
    ) -> None:
        """Append the records and commit the offsets: all of it or nothing.

        Args:
            records: in the order of their partitions.
            offsets: the next ones to read.
            ticket: the consumer's group metadata. Where it is not the group's present one, the broker refuses.

        Raises:
            RolledBackError: nothing of it took place, or nobody knows.
            SupersededError: nothing of it took place.
            KafkaException: nor was there a new producer to be had: the broker is away.
        """
        try:
            self._producer.begin_transaction()
            for record in records:
                enqueue(self._producer, record)
            self._send_offsets(offsets, ticket)
            retried(lambda: self._producer.commit_transaction(TIMEOUT_S))
        except KafkaException as failure:
            error = failure.args[0]
            if self._exclusive and error.code() in _SUPERSEDED:
                raise SupersededError(error.str()) from failure
            self._roll_back(error)
            raise RolledBackError(error.str()) from failure

    def _send_offsets(self, offsets: Sequence[TopicPartition], ticket: object) -> None:
        """Add the offsets. The call may wait for ever for a broker that was away and came back (librdkafka issues 5456 and 5511)."""
        producer = self._producer
        bounded(
            lambda: retried(
                lambda: producer.send_offsets_to_transaction(list(offsets), ticket, _OFFSETS_S)
            ),
            _OFFSETS_S,
        )

    def _roll_back(self, error: KafkaError) -> None:
        if error.txn_requires_abort():
            try:
                retried(lambda: self._producer.abort_transaction(TIMEOUT_S))
            except KafkaException:
                pass  # then nobody knows
            else:
                return
        self._producer.purge()  # what waits in it must not be sent, nor waited for
        self._producer = self._make()


def new_producer(kafka: KafkaSettings, logger: logging.Logger, transactional_id: str) -> Producer:
    """A producer that has fenced every other of its id, and ended what that had begun.

    Raises:
        KafkaException: the broker did not answer.
    """
    producer = Producer(producer_config(kafka, logger, transactional_id=transactional_id))
    retried(lambda: producer.init_transactions(TIMEOUT_S))
    return producer


def retried(call: Callable[[], object], attempts: int = _ATTEMPTS) -> None:
    """Repeat a transactional call while the client says that it may be repeated."""
    for attempt in range(attempts):
        try:
            call()
        except KafkaException as failure:
            if not failure.args[0].retriable() or attempt == attempts - 1:
                raise
        else:
            return
