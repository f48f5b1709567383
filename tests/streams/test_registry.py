"""The registry on both brokers: it starts with every model there is, and follows what is published later."""

from __future__ import annotations

import logging
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from monitor import reference as references
from monitor.errors import ConfigError, TransientError
from monitor.reference import Reference
from monitor.spec import ModelSpec
from streams.clients import KafkaSettings
from streams.models import Model, publish
from streams.registry import Registry, read
from streams.topics import Topics
from tests.monitor.builders import MODEL, reference, spec
from tests.streams.waiting import wait_until

LOGGER = logging.getLogger(__name__)


class Bench:
    """A broker with a models topic of one's own."""

    def __init__(self, address: str) -> None:
        self.kafka = KafkaSettings(address)
        self.topics = Topics(f"registry-{uuid.uuid4().hex[:8]}.")
        admin = AdminClient({"bootstrap.servers": address})
        admin.create_topics([NewTopic(self.topics.models, 1, 1)])[self.topics.models].result()

    def publish(self, model: Model) -> None:
        publish(self.kafka, self.topics, model, LOGGER)

    def produce(self, key: str, value: bytes | None) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap})
        producer.produce(self.topics.models, key=key, value=value)
        assert producer.flush(10) == 0


Started = Callable[..., Registry]


@pytest.fixture
def started() -> Iterator[Started]:
    with ExitStack() as running:

        def start(bench: Bench, patience_s: float = 10.0) -> Registry:
            registry = Registry(bench.kafka, bench.topics, patience_s=patience_s)
            registry.start()
            running.callback(registry.stop)
            return registry

        yield start


@pytest.fixture
def bench(broker_address: str) -> Bench:
    return Bench(broker_address)


def model(name: str = MODEL, seed: int = 7) -> Model:
    chosen = spec(name)
    return Model(chosen, reference(chosen, seed=seed, n=200))


def test_every_model_is_there_from_the_start_and_later_ones_follow(
    bench: Bench, started: Started
) -> None:
    assert read(bench.kafka, bench.topics) == {}
    names = [f"model-{i}" for i in range(2)]
    for name in names:
        bench.publish(model(name))
    registry = started(bench)
    assert sorted(registry.all()) == names
    assert sorted(read(bench.kafka, bench.topics)) == names
    bench.publish(Model(spec("fresh"), None))
    wait_until(lambda: registry.newest("fresh") is not None)
    assert registry.specs()["fresh"] == spec("fresh")
    bench.produce("model-0", None)
    wait_until(lambda: registry.newest("model-0") is None)


def test_an_older_reference_is_still_found_by_its_bins(bench: Bench, started: Started) -> None:
    old, new = model(seed=1), model(seed=2)
    registry = started(bench)
    for one in (old, new):
        bench.publish(one)
        assert one.reference is not None
        bins_id = one.reference.layout.bins_id
        found = registry.model(MODEL, bins_id)  # waits for it
        assert found.reference is not None
        assert found.reference.layout.bins_id == bins_id
    assert old.reference is not None
    assert registry.model(MODEL, old.reference.layout.bins_id).spec == old.spec
    newest = registry.newest(MODEL)
    assert newest is not None
    assert newest.reference is not None
    assert new.reference is not None
    assert newest.reference.reference_id == new.reference.reference_id


def test_bins_that_nobody_published_are_waited_for_and_then_named(
    embedded_broker: str, started: Started
) -> None:
    registry = started(Bench(embedded_broker), patience_s=0.2)
    with pytest.raises(TransientError, match="flight-delay: no reference with bins 123"):
        registry.model(MODEL, "123")


def test_a_record_that_cannot_be_read_is_left_out_with_a_word(
    embedded_broker: str, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(embedded_broker)
    bench.produce("damaged", b"\x00")
    bench.publish(model())
    assert list(started(bench).all()) == [MODEL]
    assert "model damaged left out: damaged model record" in caplog.text


def test_a_reference_of_another_release_leaves_the_spec_and_says_what_to_do(
    embedded_broker: str, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    bench, chosen = Bench(embedded_broker), spec(alarm_budget={"false_alarms": 7, "per": "1d"})
    form = msgspec.json.decode(zlib.decompress(references.dump(reference(chosen), chosen)))
    form["reference"]["format"] = 1
    bench.produce(MODEL, zlib.compress(msgspec.json.encode(form)))
    assert started(bench).newest(MODEL) == Model(chosen, None)
    assert "driftline apply makes it anew" in caplog.text


def test_a_record_over_what_a_broker_takes_is_refused_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.models.MAX_RECORD", 500)
    nowhere = KafkaSettings("127.0.0.1:1")
    with pytest.raises(ConfigError, match="over 500: name fewer features or segments"):
        publish(nowhere, Topics(), Model(spec(), reference()), LOGGER)


def test_a_record_that_breaks_its_reader_does_not_end_the_thread(
    embedded_broker: str,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load = references.load

    def fragile(value: bytes) -> tuple[ModelSpec, Reference | None]:
        if value == b"evil":
            raise ZeroDivisionError("hunter2")
        return load(value)

    monkeypatch.setattr("streams.registry.references.load", fragile)
    bench = Bench(embedded_broker)
    bench.produce("evil", b"evil")
    bench.publish(model())
    assert list(started(bench).all()) == [MODEL]
    assert "model evil left out: ZeroDivisionError" in caplog.text
    assert "hunter2" not in caplog.text


def threads() -> int:
    return sum(thread.name == "registry" for thread in threading.enumerate())


def test_a_topic_that_is_not_there_is_waited_for_and_then_named(broker_address: str) -> None:
    before = threads()
    registry = Registry(KafkaSettings(broker_address), Topics(f"none-{uuid.uuid4().hex}."))
    says = r"topic none-\w+\.models is not there: run `driftline topics create`"
    with pytest.raises(TransientError, match=says):
        registry.start(timeout_s=2)
    assert threads() == before


def test_a_start_that_is_called_off_ends_at_once_and_leaves_no_thread() -> None:
    stop, before, began = threading.Event(), threads(), time.monotonic()
    stop.set()
    with pytest.raises(TransientError, match=r"could not be read"):
        Registry(KafkaSettings("127.0.0.1:1"), Topics()).start(stop)
    assert threads() == before
    assert time.monotonic() - began < 4


def test_whether_bins_are_known_is_told_without_waiting(bench: Bench, started: Started) -> None:
    registry, one = started(bench), model()
    assert one.reference is not None
    assert not registry.known(MODEL, one.reference.layout.bins_id)
    bench.publish(one)
    wait_until(lambda: registry.newest(MODEL) is not None)
    assert registry.known(MODEL, one.reference.layout.bins_id)
