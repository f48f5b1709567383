"""The recorder of a serving app: what it counts, what it never does, and that everything arrives."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.cimpl import NewTopic  # where the type stubs declare it
from prometheus_client import CollectorRegistry

from monitor.errors import ConfigError
from monitor.events import MAX_BODY, Event, Limits, decode_message
from streams import client
from streams.client import DROP_REASONS, EXIT_S, DropReason, Recorder
from streams.clients import KafkaSettings, admin
from streams.deadletter import header_list
from tests.streams.taker import Broker, Mood

ROOT: Final = Path(__file__).parents[2]
NOW_MS: Final = 1_700_000_000_000
FEATURES: Final = {"age": 44, "country": "DE", "income": 1_234.5, "gap": None}
NOWHERE: Final = "127.0.0.1:9"


def recorder(broker: Broker, **more: Any) -> Recorder:
    clock: Callable[[], int] = lambda: NOW_MS * 1_000_000  # noqa: E731
    return Recorder("churn", "1", bootstrap=NOWHERE, connect=broker.connect, clock_ns=clock, **more)


def dropped(of: Recorder) -> dict[DropReason, int]:
    return {reason: n for reason, n in of.stats().dropped.items() if n}


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can: what only luck keeps apart meets."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def from_threads(n: int, body: Callable[[int], None]) -> None:
    start = threading.Barrier(n)

    def run(number: int) -> None:
        start.wait()
        body(number)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_record_is_the_event_that_the_profiler_reads() -> None:
    broker = Broker()
    with recorder(broker) as app:
        assert app.record("a1", FEATURES, 1, 0.83, latency_ms=12.4, tags={"region": "eu"})
        assert app.record(7, None, "no", model="other", version=3, ts="2013-02-01T05:17:00Z")
        assert app.record(None, {"x": np.float32(0.5), "v": np.arange(3)}, error="KeyError")
        assert app.record("t", {}, 2.5, ts=datetime(2013, 2, 1, tzinfo=UTC))
    first, second, third, fourth = broker.events(NOW_MS)
    assert (first.id, first.ts_ms, first.model, first.version) == ("a1", NOW_MS, "churn", "1")
    assert (first.features, first.prediction, first.score) == (FEATURES, 1, 0.83)
    assert (first.latency_ms, first.tags, first.error) == (12.4, {"region": "eu"}, None)
    assert (second.id, second.model, second.version) == ("7", "other", "3")
    assert (second.ts_ms, second.prediction) == (1_359_695_820_000, "no")
    assert (third.features, third.error) == ({"x": 0.5, "v": [0, 1, 2]}, "KeyError")
    assert fourth.ts_ms == 1_359_676_800_000
    assert (app.stats().sent, dropped(app), app.stats().waiting) == (4, {}, 0)


def test_one_record_goes_under_its_id_and_many_as_an_array() -> None:
    broker = Broker()
    app = recorder(broker)
    app.record("a", FEATURES)
    assert app.flush(5)
    assert broker.keys == ["a"]
    for i in range(100):
        app.record(f"b{i}", FEATURES)
    app.close()
    assert len(broker.events(NOW_MS)) == 101
    assert len(broker.messages) < 20
    assert {key for key in broker.keys if key not in ("a", "b0")} <= {None, "b99"}


def test_what_the_app_changes_afterwards_is_not_recorded() -> None:
    broker = Broker()
    features, tags = {"age": 1}, {"region": "eu"}
    with recorder(broker) as app:
        app.record("a", features, tags=tags)
        features["age"], tags["region"] = 2, "us"
    (event,) = broker.events(NOW_MS)
    assert (event.features, event.tags) == ({"age": 1}, {"region": "eu"})


def test_below_the_bound_nothing_is_lost_by_eight_threads() -> None:
    broker = Broker()
    app = recorder(broker, max_records=8_000)

    def body(number: int) -> None:
        assert all(app.record(f"{number}-{i}", FEATURES, i) for i in range(1_000))

    with frequent_switches():
        from_threads(8, body)
    app.close()
    assert {event.id for event in broker.events(NOW_MS)} == {
        f"{number}-{i}" for number in range(8) for i in range(1_000)
    }
    assert (app.stats().sent, dropped(app), app.stats().waiting) == (8_000, {}, 0)


def test_above_the_bound_eight_threads_are_counted_exactly() -> None:
    broker = Broker("keeps")
    app = recorder(broker, max_records=1_000)
    taken = [0] * 8

    def body(number: int) -> None:
        taken[number] = sum(app.record(f"{number}-{i}", FEATURES) for i in range(1_000))

    with frequent_switches():
        from_threads(8, body)
    assert sum(taken) == 1_000
    assert (dropped(app), app.stats().waiting) == ({"queue_full": 7_000}, 1_000)
    broker.mood = "takes"
    app.close()
    assert (len(broker.events(NOW_MS)), app.stats().sent) == (1_000, 1_000)
    assert (dropped(app), app.stats().waiting) == ({"queue_full": 7_000}, 0)


def test_places_come_back() -> None:
    broker = Broker("keeps")
    app = recorder(broker, max_records=10)
    moods: list[Mood] = ["keeps", "keeps", "refuses", "keeps"]
    for mood in moods:
        broker.mood = mood
        assert sum(app.record(i, FEATURES) for i in range(15)) == 10
        broker.mood = "refuses" if mood == "refuses" else "takes"
        assert app.flush(5)
    app.close()
    assert app.stats().sent == 30
    assert dropped(app) == {"queue_full": 20, "broker": 10}


def test_bytes_are_bounded_by_what_waits_for_the_broker() -> None:
    broker = Broker("keeps")
    app = recorder(broker, max_bytes=10_000)
    for i in range(100):
        app.record(i, {"text": "x" * 900})
    deadline = time.monotonic() + 5
    while not dropped(app) and time.monotonic() < deadline:
        time.sleep(0.01)
    broker.mood = "takes"
    assert app.flush(5)
    assert 9_000 < sum(len(value) for value, _ in broker.messages) <= 10_000
    assert len(broker.events(NOW_MS)) == 10
    assert all(app.record(i, {"text": "x" * 900}) for i in range(10))  # there is room again
    app.close()
    assert (app.stats().sent, dropped(app)) == (20, {"bytes_full": 90})


class Hostile:
    def tolist(self) -> Any:
        raise RuntimeError("no")

    def keys(self) -> Any:
        raise OSError("no")


class Endless:
    def tolist(self) -> Any:
        return self


CYCLE: Final[dict[str, Any]] = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"features": CYCLE}, "invalid"),
        ({"features": {"x": object()}}, "invalid"),
        ({"features": {"x": Hostile()}}, "invalid"),
        ({"features": {"x": Endless()}}, "invalid"),
        ({"features": Hostile()}, "invalid"),
        ({"features": 7}, "invalid"),
        ({"features": {"x": "\ud800"}}, "invalid"),
        ({"features": {("a", "b"): 1}}, "invalid"),
        ({"features": {"x": 1}, "score": "high"}, "invalid"),
        ({"features": {"x": 1}, "ts": 1_700_000_000}, "invalid"),
        ({"features": {"x": 1}, "ts": datetime(2025, 1, 1)}, "invalid"),  # noqa: DTZ001  # the case
        ({"features": {"x": 1}, "ts": NOW_MS + 3_600_000}, "invalid"),
        ({"features": {"x": 1}, "model": "no name"}, "invalid"),
        ({}, "invalid"),
        (
            {"features": {"x": [[[[[[1]]]]]]}},
            "too_large",
        ),  # not nested too deeply, but in an array it would be
        ({"features": {f"f{i}": i for i in range(2_001)}}, "too_large"),
        ({"features": {"x": "y" * MAX_BODY}}, "too_large"),
    ],
)
def test_what_is_no_prediction_is_counted_and_takes_no_other_with_it(
    said: dict[str, Any], reason: str
) -> None:
    broker = Broker()
    with recorder(broker) as app:
        app.record("before", FEATURES)
        app.record("bad", **said)
        app.record("after", FEATURES)
    assert [event.id for event in broker.events(NOW_MS)] == ["before", "after"]
    assert (app.stats().sent, dropped(app)) == (2, {reason: 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_write_is_a_missing_value(value: float) -> None:
    broker = Broker()
    with recorder(broker) as app:
        app.record("a", {"x": value, "y": 1}, value)
    (event,) = broker.events(NOW_MS)
    assert (event.features, event.prediction) == ({"x": None, "y": 1}, None)


@pytest.mark.parametrize("mood", ["refuses", "is full"])
def test_what_the_broker_does_not_take_is_counted(mood: Mood) -> None:
    app = recorder(Broker(mood))
    for i in range(5):
        app.record(i, FEATURES)
    assert app.flush(5)
    assert (dropped(app), app.stats().sent) == ({"broker": 5}, 0)
    app.close()


def test_a_producer_that_is_of_no_more_use_is_replaced() -> None:
    broker = Broker("is broken")
    app = recorder(broker)
    app.record("lost", FEATURES)
    assert app.flush(5)
    app.record("next", FEATURES)
    app.close()
    assert [event.id for event in broker.events(NOW_MS)] == ["next"]
    assert (dropped(app), broker.connected) == ({"broker": 1}, 3)


def test_what_waits_too_long_at_the_end_is_given_up_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = recorder(Broker("keeps"))
    for i in range(5):
        app.record(i, FEATURES)
    start = time.monotonic()
    app.close(0.5)
    assert time.monotonic() - start < 1.0
    assert not app.record("late", FEATURES)
    assert (dropped(app), app.stats().waiting) == ({"closed": 6}, 0)
    assert "closed 5" in caplog.text


def test_records_while_it_closes_are_sent_or_counted() -> None:
    broker = Broker()
    app = recorder(broker)
    taken = [0] * 4

    def body(number: int) -> None:
        if number == 0:
            time.sleep(0.01)
            app.close()
        else:
            taken[number] = sum(app.record(f"{number}-{i}", FEATURES) for i in range(3_000))

    with frequent_switches():
        from_threads(4, body)
    stats = app.stats()
    assert stats.sent == len(broker.events(NOW_MS)) <= sum(taken) + 4
    assert stats.sent + sum(stats.dropped.values()) == 9_000
    assert stats.waiting == 0


def test_a_recorder_that_recorded_nothing_closes_at_once() -> None:
    app = recorder(Broker())
    app.close()
    app.close()
    assert app.stats().waiting == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "no name"}, ValueError),
        ({"bootstrap": "nowhere"}, ValueError),
        ({"max_records": 0}, ValueError),
        ({"security": {"group.id": "x"}}, ValueError),
        ({"security": {"security.protocol": "none"}}, ConfigError),
    ],
)
def test_what_is_wrong_with_its_options_is_said_at_once(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    said: dict[str, Any] = {"model": "churn", "bootstrap": NOWHERE} | arguments
    with pytest.raises(error):
        Recorder(**said)


def test_nobody_waits_while_the_broker_is_away() -> None:
    app = Recorder("churn", bootstrap=NOWHERE, max_records=1_000)
    app.record("first", FEATURES)  # it starts the thread
    start = time.monotonic()
    for i in range(5_000):
        app.record(i, FEATURES)
    assert time.monotonic() - start < 1.0
    assert (dropped(app), app.stats().waiting) == ({"queue_full": 4_001}, 1_000)
    start = time.monotonic()
    app.close()
    assert time.monotonic() - start < EXIT_S + 0.5
    assert (dropped(app), app.stats().sent) == ({"queue_full": 4_001, "closed": 1_000}, 0)


def test_counters_are_there_for_prometheus_from_the_beginning() -> None:
    registry, app = CollectorRegistry(), recorder(Broker())
    app.expose(registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"driftline_recorder_{name}", labels)

    for reason in DROP_REASONS:
        assert value("dropped_total", reason=reason) == 0
    app.record("a", FEATURES)
    app.record("b", {"x": object()})
    app.close()
    app.record("c", FEATURES)
    assert (value("sent_total"), value("waiting")) == (1, 0)
    assert value("dropped_total", reason="invalid") == 1
    assert value("dropped_total", reason="closed") == 1


def test_a_serving_app_loads_neither_arrow_nor_a_web_framework() -> None:
    heavy = "pyarrow numpy fastapi faust structlog pydantic prometheus_client clickhouse_connect"
    code = f"import sys, streams.client; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


@pytest.fixture
def topic(embedded_broker: str, request: pytest.FixtureRequest) -> tuple[str, str]:
    name = f"recorder-{request.node.callspec.params['way']}"
    asked = admin(KafkaSettings(embedded_broker), client.logger)  # kept until it is answered
    for future in asked.create_topics([NewTopic(name, 1, 1)]).values():
        future.result(20)
    return embedded_broker, name


def arrived(address: str, name: str, wanted: int) -> list[Event]:
    """As many events as are wanted, and what comes within a second after them."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": name})
    consumer.assign([TopicPartition(name, 0, OFFSET_BEGINNING)])  # no group to wait for
    found: list[Event] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None or message.error():
            continue
        headers = {key: value for key, value in header_list(message) if isinstance(value, bytes)}
        outcomes = decode_message(
            message.value(), headers, Limits(), now_ms=time.time_ns() // 1_000_000
        )
        found += [outcome for outcome in outcomes if isinstance(outcome, Event)]
        if len(found) >= wanted:
            deadline = min(deadline, time.monotonic() + 1)
    consumer.close()
    return found


APP: Final = """
import json, multiprocessing, os, sys
from streams.client import Recorder

address, topic, way = sys.argv[1:]
app = Recorder("churn", "1", bootstrap=address, topic=topic)

def serve(name):
    taken = sum(app.record(f"{name}-{i}", {"x": i}, i) for i in range(500))
    assert taken == 500, taken

if way == "alone":
    serve("alone")
elif way == "multiprocessing":
    serve("parent")
    child = multiprocessing.get_context("fork").Process(target=serve, args=("child",))
    child.start()
    child.join()
    assert child.exitcode == 0
else:
    serve("parent")
    child = os.fork()
    if child == 0:
        before = app.stats()
        assert (before.sent, before.waiting) == (0, 0), before
        serve("child")
        sys.exit(0)
    serve("after")
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("alone", ["alone"]),
        ("multiprocessing", ["parent", "child"]),
        ("fork", ["parent", "child", "after"]),
    ],
)
def test_each_record_of_a_process_that_ends_arrives_once(
    topic: tuple[str, str], way: str, names: list[str]
) -> None:
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", APP, *topic, way], cwd=ROOT, check=True, timeout=60)
    took_s = time.monotonic() - start
    found = arrived(*topic, wanted=500 * len(names))
    assert sorted(str(event.id) for event in found) == sorted(
        f"{name}-{i}" for name in names for i in range(500)
    )
    assert {event.model for event in found} == {"churn"}
    assert took_s < 20


def test_a_process_ends_within_two_seconds_while_the_broker_is_away() -> None:
    code = (
        "import time\nfrom streams.client import Recorder\n"
        f"app = Recorder('churn', bootstrap='{NOWHERE}')\n"
        "assert app.record('a', {'x': 1})\n"
        "print(time.monotonic())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    took_s = time.monotonic() - float(done.stdout)
    assert took_s < EXIT_S + 1.0
    assert b"closed 1" in done.stderr
