"""Orders of people: which can be given, where they go, and how it is known that they were taken."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, TopicPartition
from msgspec.structs import replace

from monitor import wire
from monitor.errors import ConfigError
from monitor.settings import KafkaSettings, Settings
from monitor.store import Store
from monitor.wire import Command, Incident, TimelineEntry
from streams import clients, orders, topics, wiring
from streams.orders import Kind, find, order, send, taken
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


def test_an_order_says_who_when_and_why() -> None:
    given = order("silence", INCIDENT, author="ada", at_ms=5, until_ms=9, comment="deploy")
    assert given == Command("silence", MODEL, INCIDENT.id, "ada", 5, 9, "deploy")


@pytest.mark.parametrize(
    ("kind", "changes", "given", "problem"),
    [
        ("approve", {"state": "resolved"}, {}, "it is|is resolved: there is nothing to approve"),
        ("approve", {"advice": "fix_data"}, {}, "advises to fix data: there is nothing to approve"),
        ("reject", {"advice": "watch"}, {}, "nothing to reject"),
        ("acknowledge", {"acknowledged_by": "bob"}, {}, "bob has acknowledged it already"),
        ("acknowledge", {}, {"author": "a\nb"}, "author is one line"),
        ("acknowledge", {}, {"author": ""}, "author is one line"),
        ("acknowledge", {}, {"comment": "x" * 501}, "comment is one line"),
        ("acknowledge", {}, {"comment": "a\x1b[2Jb"}, "comment is one line"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_or_is_no_line_is_refused(
    kind: Kind, changes: dict[str, Any], given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        order(kind, replace(INCIDENT, **changes), **{"author": "ada", "at_ms": 1, **given})


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


def test_an_order_goes_to_the_partition_of_its_model(broker_address: str) -> None:
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap=broker_address,
            topic_prefix=f"orders-{uuid.uuid4().hex[:8]}.",
            detector_partitions=3,
        )
    )
    names = wiring.topics(settings)
    admin = clients.admin(wiring.kafka(settings), orders.logger)
    topics.create(admin, names, wiring.widths(settings))
    given = order("approve", INCIDENT, author="ada", at_ms=1)
    send(settings, given)
    consumer = Consumer({"bootstrap.servers": broker_address, "group.id": "look"})
    place = TopicPartition(names.commands, topics.partition_of(MODEL, 3), 0)
    consumer.assign([place])
    message = consumer.poll(10)
    consumer.close()
    assert message is not None
    assert wire.decode(message.value() or b"") == given
