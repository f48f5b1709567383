"""What is committed on a topic, for tests."""

from __future__ import annotations

from typing import cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition


def committed(address: str, topic: str) -> list[Message]:
    """Everything committed on a topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "look",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            "isolation.level": "read_committed",
        }
    )
    width = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(width)])
    messages, open_ = [], set(range(width))
    while open_:
        message = consumer.poll(10)
        assert message is not None, f"{topic} has no end"
        error = message.error()
        if error is None:
            messages.append(message)
        else:
            assert error.code() == KafkaError._PARTITION_EOF
            open_.discard(cast("int", message.partition()))
    consumer.close()
    return messages
