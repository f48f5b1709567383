"""The feed: each message once and in order, also when its producer never sends again."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from load.chaos import feed as feeds
from load.chaos import tape
from load.chaos.feed import Feed
from load.chaos.records import by_partition, read
from monitor.settings import KafkaSettings, Settings

COUNT, WIDTH = 5_000, 2


class Deaf:
    """A producer that sends the first messages, acknowledges half of them, and then does nothing for ever."""

    def __init__(self, real: Producer, sends: int) -> None:
        self._real, self._sends, self._hears = real, sends, sends // 2

    def produce(self, topic: str, on_delivery: Any, **fields: Any) -> None:
        self._sends -= 1
        if self._sends >= 0:
            heard = self._sends >= self._hears
            self._real.produce(topic, on_delivery=on_delivery if heard else None, **fields)

    def poll(self, seconds: float) -> int:
        return self._real.poll(seconds)

    def purge(self) -> None:
        self._real.flush(20)  # what was sent is in the log, whatever was heard of it


def test_a_producer_that_never_sends_again_is_replaced_and_each_message_is_there_once(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_STUCK_S", 2.0)
    monkeypatch.setattr(feeds, "_LANDED_S", 0.5)
    topic = f"feed-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, WIDTH, 1)])[topic].result(20)
    with (tmp_path / "tape").open("wb") as file:
        for i in range(COUNT):
            tape.append(file, tape.Message(i % WIDTH, b"%d" % i, {}))
    feed = Feed(tmp_path / "tape", kafka, topic, 0.0)
    feed._producer = Deaf(feed._producer, COUNT // 2)  # type: ignore[assignment]  # a stand-in
    feed.start()
    feed.join()
    assert feed.replaced == 1
    assert feed.sent == dict.fromkeys(range(WIDTH), COUNT // WIDTH)
    found = by_partition(read(Settings(kafka=KafkaSettings(bootstrap=kafka)), topic))
    for partition in range(WIDTH):
        values = [message.value() for message in found[partition]]
        assert values == [b"%d" % i for i in range(partition, COUNT, WIDTH)]
