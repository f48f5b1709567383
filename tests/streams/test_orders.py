"""Orders of people: where they go, and how it is known that they were taken."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from msgspec.structs import replace

from monitor import wire
from monitor.errors import ConfigError, TransientError
from monitor.events import Record
from monitor.labels import Label
from monitor.orders import order
from monitor.settings import KafkaSettings, Settings
from monitor.store import Store
from monitor.wire import Incident, TimelineEntry
from streams import clients, orders, topics, wiring
from streams.orders import Messenger, find, taken
from streams.supervisor import free_port
from streams.topics import Topics
from tests.alerting.builders import MODEL, START
from tests.alerting.test_payloads import item

INCIDENT = replace(item().incident, id="abcdef" + "0" * 26, advice="retrain")


@dataclass
class Stored:
    """A store that holds some incidents."""

    incidents: list[Incident] = field(default_factory=lambda: [INCIDENT])
    asked: int = 0

    def incidents_like(self, prefix: str, *, limit: int = 2) -> list[Incident]:
        return [x for x in self.incidents if x.id.startswith(prefix)][:limit]

    def incident(self, incident_id: str) -> Incident | None:
        self.asked += 1
        return next((x for x in self.incidents if x.id == incident_id), None)


def store(*incidents: Incident) -> Store:
    return cast("Store", Stored(list(incidents)))


def test_an_incident_is_named_by_the_beginning_of_its_id() -> None:
    other = replace(INCIDENT, id="abcdff" + "0" * 26)
    assert find(store(INCIDENT, other), "abcde") == INCIDENT
    for prefix, problem in (("abc", "at least 4"), ("abcd", "more than one"), ("ffff", "no such")):
        with pytest.raises(ConfigError, match=problem):
            find(store(INCIDENT, other), prefix)


def test_an_order_is_taken_when_it_stands_in_the_timeline() -> None:
    given = order("approve", INCIDENT, author="ada", at_ms=START + 5)
    stored = Stored()
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] >= 2:
            lines = [
                TimelineEntry(START + 4, "approve by ada"),
                TimelineEntry(START + 5, "approve by bob"),
                TimelineEntry(START + 5, "approve by ada: go"),
            ]
            kept = lines if clock[0] >= 4 else lines[:2]
            stored.incidents = [replace(INCIDENT, timeline=kept)]

    found = taken(
        cast("Store", stored), given, within_s=10, monotonic=lambda: clock[0], sleep=sleep
    )
    assert found is not None
    assert clock[0] == 4.0
    clock[0], stored.incidents = 0.0, []
    assert taken(cast("Store", stored), given, within_s=1, monotonic=lambda: clock[0], sleep=lambda s: sleep(s / 100)) is None  # fmt: skip


def created(broker_address: str, **partitions: int) -> tuple[Settings, Topics]:
    """Topics of their own on a broker."""
    prefix = f"orders-{uuid.uuid4().hex[:8]}."
    kafka = KafkaSettings.model_validate(
        {"bootstrap": broker_address, "topic_prefix": prefix, **partitions}
    )
    settings = Settings(kafka=kafka)
    names = wiring.topics(settings)
    admin = clients.admin(wiring.kafka(settings), orders.logger)
    topics.create(admin, names, wiring.widths(settings))
    return settings, names


def test_an_order_goes_to_the_partition_of_its_model(broker_address: str) -> None:
    settings, names = created(broker_address, detector_partitions=3)
    given = [order("approve", INCIDENT, author=f"ada {i}", at_ms=i) for i in range(8)]
    messenger = Messenger(settings)
    messenger.give(given[0])
    first = messenger._producer
    with ThreadPoolExecutor(7) as threads:
        list(threads.map(messenger.give, given[1:]))
    assert messenger._producer is first, "one producer gives every order"
    consumer = Consumer({"bootstrap.servers": broker_address, "group.id": "look"})
    place = TopicPartition(names.commands, topics.partition_of(MODEL, 3), 0)
    consumer.assign([place])
    found = [message.value() for message in consumer.consume(len(given), 10)]
    consumer.close()
    assert {*found} == {wire.encode(each) for each in given}


def test_labels_are_on_their_topic_by_the_id_of_their_prediction(broker_address: str) -> None:
    settings, names = created(broker_address, predictions_partitions=2)
    labels = [Label("m", START + i, f"p{i % 50}", "1") for i in range(400)]
    messenger = Messenger(settings)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(messenger.take, [labels[i::4] for i in range(4)]))
    consumer = Consumer({"bootstrap.servers": broker_address, "group.id": "look"})
    consumer.assign([TopicPartition(names.labels, part, 0) for part in range(2)])
    found: list[Message] = []
    while len(found) < len(labels) and (batch := consumer.consume(len(labels), 10)):
        found += batch
    consumer.close()
    assert {m.value() for m in found} == {label.to_json() for label in labels}
    places = {(m.key(), m.partition()) for m in found}
    assert len(places) == 50, "labels of one prediction stay in order"


def test_predictions_are_on_their_topic_as_they_were_handed_in(broker_address: str) -> None:
    settings, names = created(broker_address, predictions_partitions=1)
    records = [
        Record("a", b'{"id":"a"}', {"content-type": b"application/json"}),
        Record(None, b"[]", {"content-type": b"application/json", "ce_id": b"q"}),
    ]
    Messenger(settings).post(records)
    consumer = Consumer({"bootstrap.servers": broker_address, "group.id": "look"})
    consumer.assign([TopicPartition(names.predictions, 0, 0)])
    found = consumer.consume(len(records), 10)
    consumer.close()
    assert [(m.key(), m.value(), m.headers()) for m in found] == [
        (None if r.key is None else r.key.encode(), r.value, [*r.headers.items()]) for r in records
    ]


def test_a_queue_that_is_full_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}"))
    monkeypatch.setattr(wiring, "require_broker", wiring.kafka)
    monkeypatch.setattr(orders, "_TAKEN_MS", 300)  # what does not get away leaves the queue
    small = clients.producer_config(wiring.kafka(settings), orders.logger)
    monkeypatch.setattr(
        clients, "producer_config", lambda *_: small | {"queue.buffering.max.messages": 10}
    )
    labels = [Label("m", START, f"p{i}", "1") for i in range(25)]
    with pytest.raises(TransientError, match="did not take the labels"):
        Messenger(settings).take(labels)


def test_an_order_that_the_broker_does_not_take_is_not_given_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}"))
    messenger = Messenger(settings)
    with pytest.raises(TransientError, match="no Kafka broker answers"):
        messenger.give(order("approve", INCIDENT, author="ada", at_ms=1))
    monkeypatch.setattr(wiring, "require_broker", wiring.kafka)  # as if it went away afterwards
    monkeypatch.setattr(orders, "_TAKEN_MS", 500)
    with pytest.raises(TransientError, match="did not take the order"):
        messenger.give(order("approve", INCIDENT, author="ada", at_ms=1))
    assert messenger._producer is None, "the next order begins with a new one"
