"""What a committed reader sees: whole topics, or their ends, and what groups have committed."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from monitor.settings import Settings
from streams.clients import Config, log_ends

ANSWER_S: Final = 3.0

Place: TypeAlias = tuple[str, int]
"""Topic without its prefix, and partition."""


def admin(settings: Settings) -> AdminClient:
    """An administrative client that is silent about a broker that is away."""
    return AdminClient(_silent(settings))


def ends(client: AdminClient, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """Where committed readers find nothing more.

    Raises:
        KafkaException: the broker does not answer.
    """
    found = log_ends(client, places, committed=True, timeout_s=ANSWER_S)
    return {place: answer.result(ANSWER_S).offset for place, answer in found.items()}


def place_of(found: TopicPartition, prefix: str) -> Place:
    """The place of a partition."""
    return found.topic.removeprefix(prefix), found.partition


class Group:
    """Committed offsets of a consumer group, seen by one who never joins it.

    Not by the AdminClient: where a coordinator moves, as at a broker's restart, librdkafka 2.16's ListConsumerGroupOffsets
    hands the error to a group that an admin client does not have, and the process ends with SIGSEGV.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        options: Config = {**_silent(settings), "group.id": name, "enable.auto.commit": False}
        self._consumer = Consumer(options)

    def committed(self, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        """What the group has committed of some partitions.

        Raises:
            KafkaException: the broker does not answer.
        """
        found = self._consumer.committed(list(places), timeout=ANSWER_S)
        return [place for place in found if place.offset >= 0 and place.error is None]


def read(settings: Settings, topic: str, *, tail: int | None = None) -> Iterator[Message]:
    """Committed messages of all partitions up to their present ends; with ``tail``, of about that many offsets each.

    Raises:
        KafkaException: the broker does not answer.
    """
    options: Config = {
        **_silent(settings),
        "group.id": f"look-{uuid.uuid4().hex[:8]}",  # nothing is committed under it
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 50,
    }
    consumer = Consumer(options)
    try:
        known = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
        open_ = set(known.partitions)
        consumer.assign([_start(consumer, topic, p, tail) for p in open_])
        while open_:
            # It waits for all 1,000, or for its time.
            for message in consumer.consume(1_000, timeout=0.1):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_.discard(message.partition() or 0)
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()


def _start(consumer: Consumer, topic: str, partition: int, tail: int | None) -> TopicPartition:
    place = TopicPartition(topic, partition)
    low, high = consumer.get_watermark_offsets(place, timeout=ANSWER_S)
    place.offset = low if tail is None else max(low, high - tail)
    return place


def by_partition(messages: Iterator[Message]) -> dict[int, list[Message]]:
    """The messages of each partition, in order."""
    found = defaultdict[int, list[Message]](list)
    for message in messages:
        found[message.partition() or 0].append(message)
    return dict(found)


def _silent(settings: Settings) -> Config:
    return {
        "bootstrap.servers": settings.kafka.bootstrap,
        "reconnect.backoff.max.ms": 500,
        "broker.address.family": "v4",
        "log_level": 0,
        "error_cb": lambda _: None,
    }
