from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from load import sources, traffic
from load.sources import Checkout, Flights
from load.traffic import Pace, paced
from monitor.errors import ConfigError
from monitor.events import Event, Limits, decode_message
from streams.demo.replay import Batch, Message

ROOT: Final = Path(__file__).parents[2]
STARTED_MS: Final = 1_700_000_000_000


def checkout() -> Checkout:
    return Checkout(np.random.default_rng(1), STARTED_MS)


def events_at(second: int, n: int = 2_000) -> list[dict[str, Any]]:
    batch = checkout().take(n, STARTED_MS + second * 1_000)
    return [msgspec.json.decode(message.value) for message in batch.events]


def test_the_same_seed_makes_the_same_orders() -> None:
    assert checkout().take(50, STARTED_MS) == checkout().take(50, STARTED_MS)


def test_the_profiler_takes_every_order_as_it_is() -> None:
    for message in checkout().take(200, STARTED_MS).events:
        (event,) = decode_message(message.value, {}, Limits(), now_ms=STARTED_MS)
        assert isinstance(event, Event), event
        assert event.model == sources.MODEL
        assert set(event.features or {}) == set(checkout().spec.features)


def test_every_order_has_an_id_of_its_own() -> None:
    source = checkout()
    keys = [m.key for i in range(5) for m in source.take(100, STARTED_MS + i).events]
    assert len(set(keys)) == 500


def test_each_label_follows_its_order_when_it_is_due_and_once() -> None:
    source = checkout()
    keys = {message.key for message in source.take(300, STARTED_MS).events}
    first_s, last_s = sources.LABEL_AFTER_S
    assert source.take(0, STARTED_MS + int(first_s * 1_000)).labels == []
    labels = [
        label
        for second in range(int(first_s), int(last_s) + 2)
        for label in source.take(0, STARTED_MS + second * 1_000).labels
    ]
    assert sorted(label.key for label in labels) == sorted(keys)


@pytest.mark.parametrize(
    ("second", "in_cents", "versions"),
    [
        (0, False, {"1"}),
        (sources.CENTS_S[0] - 1, False, {"1"}),
        (sources.CENTS_S[0], True, {"1"}),
        (sources.CENTS_S[1], False, {"1"}),
        (sources.RELEASE_S[0], False, {"1", "2"}),
        (sources.RELEASE_S[1], False, {"1"}),
        (sources.CYCLE_S + sources.CENTS_S[0], True, {"1"}),
    ],
)
def test_the_accidents_come_when_they_are_announced(
    second: int, in_cents: bool, versions: set[str]
) -> None:
    events = events_at(second)
    median = float(np.median([event["features"]["amount"] for event in events]))
    assert (median > 1_000) is in_cents
    assert {event["version"] for event in events} == versions


def test_only_the_bad_release_scores_at_random() -> None:
    events = events_at(sources.RELEASE_S[0])
    risky: dict[str, list[float]] = {"1": [], "2": []}
    for event in events:
        if event["features"]["payment"] == "invoice":
            risky[event["version"]].append(event["score"])
    assert np.mean(risky["1"]) > np.mean(
        [event["score"] for event in events if event["version"] == "1"]
    )
    assert np.mean(risky["2"]) == pytest.approx(0.5, abs=0.12)  # 150 draws: five standard errors


@pytest.mark.parametrize("rate", [10.0, 777.0, 20_000.0])
def test_the_rate_is_kept(rate: float) -> None:
    clock = Clock()
    sent = sum(len(b.events) for b in clock.run(Counted(), Pace(rate, 0), for_s=20))
    assert sent == pytest.approx(20 * rate, rel=0.01)


def test_a_pause_is_made_up_for_in_pieces() -> None:
    clock = Clock()
    batches = clock.run(Counted(), Pace(5_000.0, 0), for_s=10, freeze_s=5)
    sizes = [len(batch.events) for batch in batches]
    assert max(sizes) <= traffic.MOST_AT_ONCE
    assert sum(sizes) == pytest.approx(50_000, rel=0.02)


@pytest.mark.parametrize("rate", [0.0, 1_000.0])
def test_exactly_as_many_events_as_asked_for(rate: float) -> None:
    batches = Clock().run(Counted(), Pace(rate, 12_345), for_s=100)
    assert sum(len(batch.events) for batch in batches) == 12_345


def test_the_end_of_a_source_is_the_end() -> None:
    batches = Clock().run(Counted(ends_after=700), Pace(1_000.0, 0), for_s=100)
    assert sum(len(batch.events) for batch in batches) == 700


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="--rate"):
        Pace(-1.0, 0)


def test_flights_come_whole_in_order_and_labels_after_their_flight() -> None:
    source = Flights(np.random.default_rng(2013))
    taken = [batch for batch in (source.take(7, 0) for _ in range(600)) if batch is not None]
    assert all(len(batch.events) <= 7 for batch in taken)
    messages = [*chain.from_iterable((*batch.events, *batch.labels) for batch in taken)]
    events = [m.key for batch in taken for m in batch.events]
    assert len(set(events)) == len(events) > 2_000
    seen: set[bytes] = set()
    labels = 0
    for message in messages:
        if message.key in seen:
            labels += 1  # the second message of a key is its label
        seen.add(message.key)
    assert labels == sum(len(batch.labels) for batch in taken) > 500


@pytest.mark.parametrize("option", [["--rate", "-1"], ["--events", "-5"]])
def test_a_wrong_option_is_one_line_and_exit_code_2(
    option: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert traffic.main(["--broker", "127.0.0.1:1", *option]) == 2
    assert "cannot be negative" in caplog.text


def test_traffic_reaches_the_broker_and_ends_at_a_signal(embedded_broker: str) -> None:
    prefix = f"traffic-{os.getpid()}."
    admin = AdminClient({"bootstrap.servers": embedded_broker})
    names = [prefix + name for name in ("predictions", "labels", "models")]
    for created in admin.create_topics([NewTopic(name, 1) for name in names]).values():
        created.result(10)
    command = [sys.executable, "-m", "load.traffic", "--broker", embedded_broker, "--rate", "500"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment | {"DRIFTLINE_KAFKA__TOPIC_PREFIX": prefix}
    )
    try:
        consumer = Consumer({"bootstrap.servers": embedded_broker, "group.id": prefix})
        consumer.assign([TopicPartition(prefix + "predictions", 0, OFFSET_BEGINNING)])
        messages = _consume(consumer, 400)
        consumer.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert len({message.key() for message in messages}) == len(messages) >= 400


class Counted:
    """A source that only counts."""

    def __init__(self, ends_after: int | None = None) -> None:
        self.left = ends_after

    def announce(self, settings: object) -> None: ...

    def take(self, n: int, now_ms: int) -> Batch | None:
        if self.left == 0:
            return None
        if self.left is not None:
            n = min(n, self.left)
            self.left -= n
        return Batch(now_ms, [Message(b"", b"")] * n, [])


class Clock:
    """Time that moves only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def run(self, source: Counted, pace: Pace, *, for_s: float, freeze_s: float = 0) -> list[Batch]:
        end_s = self.now_s + for_s

        def wait(seconds: float) -> bool:
            self.now_s += seconds
            if freeze_s and self.now_s < 100 + freeze_s:
                self.now_s = 100 + freeze_s
            return self.now_s >= end_s

        return list(paced(source, pace, monotonic=lambda: self.now_s, now_ms=lambda: 0, wait=wait))


def _consume(consumer: Consumer, wanted: int) -> list[Any]:
    messages: list[Any] = []
    deadline = time.monotonic() + 30
    while len(messages) < wanted and time.monotonic() < deadline:
        messages += consumer.consume(wanted, timeout=0.5)
    return messages
