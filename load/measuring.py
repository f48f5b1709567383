"""What the measurements on Apache Kafka share: traffic of a shape, topics of its own for each, and Driftline's processes, watched from outside.

::

    Traffic ── send ──► predictions ──► profilers ──► profiles ── counted ──► each event once, a histogram as numpy's
                                           │
                                           └── committed, CPU and memory of ``/proc``

Each event is counted by what was committed, never by what was sent.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs forget these
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from load.bench_batch import FEATURES, MODEL, START_MS, messages, model
from load.proc import cpu_s
from monitor import wire
from monitor.binning import Ints, NumericBins
from monitor.environment import environment, load
from monitor.profile import Profile
from monitor.settings import Settings
from streams import models, topics, wiring
from streams.clients import KafkaSettings, admin, consumer_config, enqueue, producer_config
from streams.models import Model
from streams.supervisor import Child, OnEnd, Supervisor
from streams.topics import Topics

BATCH: Final = 10_000  # events of one transaction of a profiler that lags
PER_S: Final = 1_000  # events in a second of event time, as in ``load.sizing``
_DRAWN: Final = 4_000  # events that differ by more than name and time
_CHECKED: Final = "amount_01"
_PATIENCE_S: Final = 300.0
_TURN_S: Final = 0.02
# A second profiler is let in at the first one's heartbeat, a third of this; who stands still for longer is put out.
_SESSION_S: Final = 20.0
# What a broker says of a group while its first topic for groups is being made.
_NOT_YET: Final = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}

logger = logging.getLogger(__name__)


class Traffic:
    """Predictions of some models that differ by their names only: event ``i`` is a function of ``i``, and all models take turns on each partition.

    Args:
        features: of each event; every fifth is a category.
        pane: of the models, as a duration.
        segments: features by whose values they are watched.
    """

    def __init__(
        self,
        features: int = FEATURES,
        models: int = 1,
        pane: str = "1m",
        *,
        window: str = "1h",
        segments: tuple[str, ...] = (),
    ) -> None:
        known = _model(features, pane, window, segments)
        assert known.reference is not None
        self.layout = known.reference.layout
        self.names = [MODEL] if models == 1 else [f"{MODEL}-{i:03}" for i in range(models)]
        self.models = [
            Model(known.spec.model_copy(update={"model": name}), known.reference)
            for name in self.names
        ]
        self.segments = segments
        drawn = messages(np.random.default_rng(2026), 0, _DRAWN, features)
        values = [message.value or b"" for message in drawn]
        self._tails = [value[value.index(b',"version"') :] for value in values]
        bins = self.layout.bins[_CHECKED]
        assert isinstance(bins, NumericBins)
        numbers = [msgspec.json.decode(value)["features"][_CHECKED] for value in values]
        self._bin_of = np.searchsorted(bins.edges, numbers, side="right")
        self._bins = bins.bins

    def name(self, i: int, partitions: int) -> str:
        """The model of event ``i``."""
        return self.names[i // partitions % len(self.names)]

    def value(self, i: int, at_ms: int, partitions: int) -> bytes:
        """Event ``i``, as JSON."""
        name = self.name(i, partitions).encode()
        head = b'{"id":"%032x","ts":%d,"model":"%s"' % (i, at_ms, name)
        return head + self._tails[i % _DRAWN]

    def histogram(self, events: int) -> Ints:
        """Counts by bin of one feature of the first events, by numpy."""
        times = np.bincount(np.arange(events) % _DRAWN, minlength=_DRAWN)
        return np.bincount(np.repeat(self._bin_of, times), minlength=self._bins)


@cache
def _model(features: int, pane: str, window: str, segments: tuple[str, ...]) -> Model:
    """Its reference takes two seconds, and of 500 features eleven."""
    rng = np.random.default_rng(2026)
    return model(rng, segments, features=features, pane=pane, window=window)


@dataclass(frozen=True, slots=True)
class Spent:
    """By all profilers together, for so many events."""

    events: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_us(self) -> float:
        """CPU time of an event, in microseconds."""
        return 1e6 * self.cpu_s / self.events


class Site:
    """Topics under a prefix, with models in them, and processes on them. Mutable: it owns the processes and counts what it sent. Use it as a context manager."""

    def __init__(self, folder: Path, bootstrap: str, name: str, traffic: Traffic) -> None:
        self.traffic, self.sent = traffic, 0
        self.settings, self.kafka, self.topics = place(bootstrap, name, traffic.models)
        self.processes = Supervisor(folder / name)
        self._partitions = self.settings.kafka.predictions_partitions
        self._producer = Producer(producer_config(self.kafka, logger))
        self.group = f"{self.topics.prefix}profiler"
        self._asker = Consumer(consumer_config(self.kafka, self.group, logger))
        self._profilers: list[str] = []

    def __enter__(self) -> Self:
        self.processes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.__exit__()
        self._asker.close()

    def child(self, role: str, instance: str = "") -> Child:
        """A process of a role; one that ends on its own is an error."""
        name = instance or role
        variables = {f"DRIFTLINE_{role.upper()}__INSTANCE": name, "DRIFTLINE_CONFIG": ""}
        argv = (sys.executable, "-m", "streams", "run", role)
        environ = environment(self.settings) | variables
        return Child(name, argv, environ, on_end=OnEnd.FAIL)

    def start_profilers(self, count: int) -> None:
        """Start so many, and wait until each has partitions."""
        for i in range(count):
            child = self.child("profiler", f"profiler-{i}")
            self.processes.start(child)
            self._profilers.append(child.name)
        client = admin(self.kafka, logger)

        def shared() -> bool:
            try:
                found = client.describe_consumer_groups([self.group])[self.group].result()
            except KafkaException as err:
                if err.args[0].code() not in _NOT_YET:
                    raise
                return False
            at = [member.assignment.topic_partitions for member in found.members]
            return found.state == ConsumerGroupState.STABLE and len(at) == count and all(at)

        self.wait(shared, f"{count} profilers share the partitions")

    def bound(self, limit_bytes: int) -> None:
        """Let the broker drop the oldest of what is large and read already: so many bytes of each partition are kept."""
        bounds = {"retention.bytes": limit_bytes, "segment.bytes": limit_bytes // 4}
        entries = [
            ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
            for name, value in bounds.items()
        ]
        resources = [
            ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
            for topic in (self.topics.predictions, self.topics.scored)
        ]
        client = admin(self.kafka, logger)
        for future in client.incremental_alter_configs(resources).values():
            future.result()

    @property
    def pids(self) -> list[int]:
        """Process ids of the profilers."""
        return [self.processes.pid(name) for name in self._profilers]

    def send(self, events: int, at_ms: Callable[[int], int] | None = None) -> None:
        """The next events, in turns on all partitions, each at its own time; by default ``PER_S`` to a second."""
        for i in range(self.sent, self.sent + events):
            when = START_MS + i * 1_000 // PER_S if at_ms is None else at_ms(i)
            value = self.traffic.value(i, when, self._partitions)
            where = i % self._partitions
            enqueue(self._producer, {"topic": self.topics.predictions, "partition": where, "value": value})  # fmt: skip
            if i % 1_000 == 0:
                self._producer.poll(0)
        if self._producer.flush(60):
            raise TimeoutError("the broker did not take all events")
        self.sent += events

    def committed(self) -> int:
        """Events that the profilers have committed."""
        places = [TopicPartition(self.topics.predictions, p) for p in range(self._partitions)]
        return sum(max(0, place.offset) for place in self._asker.committed(places, timeout=10))

    def wait(self, until: Callable[[], bool], what: str, patience_s: float = _PATIENCE_S) -> None:
        """Wait for something.

        Raises:
            TimeoutError: it did not come.
            ChildFailedError: a process ended.
        """
        deadline = time.monotonic() + patience_s
        while not until():
            self.processes.poll()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {patience_s:g} s: {what}")
            time.sleep(_TURN_S)

    def settle(self) -> None:
        """Wait until all that was sent is committed."""
        self.wait(lambda: self.committed() >= self.sent, f"{self.sent:,} events are committed")

    def backlog(self, events: int) -> Spent:
        """What the profilers need for events that wait for them: they stand still until the topic is filled, so every batch but the last is full."""
        pids = self.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            self.send(events)
            before, since_s = sum(map(cpu_s, pids)), time.monotonic()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        self.settle()
        return Spent(events, sum(map(cpu_s, pids)) - before, time.monotonic() - since_s)

    def assert_right(self) -> None:
        """Each event that was sent is counted once, on time, under its model, and a histogram is numpy's.

        Raises:
            AssertionError: it is not so.
        """
        counted, histogram = Counter[str](), np.zeros(1, np.int64)
        for sent in profiles(self.kafka, self.topics.profiles):
            assert not any(link.late or link.dead or link.calibrating for link in sent.links)
            for delta in sent.deltas:
                if delta.segment == "":
                    part = Profile.from_bytes(self.traffic.layout, delta.profile)
                    counted[delta.model] += part.n
                    histogram = histogram + part.counts(_CHECKED)
        place = np.arange(self.sent) // self._partitions % len(self.traffic.names)
        wanted = np.bincount(place, minlength=len(self.traffic.names))
        assert counted == dict(zip(self.traffic.names, wanted.tolist(), strict=True))
        assert np.array_equal(histogram, self.traffic.histogram(self.sent))


def place(
    bootstrap: str, name: str, known: Iterable[Model]
) -> tuple[Settings, KafkaSettings, Topics]:
    """Topics under a prefix of their own, with models in them."""
    base = load()
    at = base.kafka.model_copy(
        update={
            "bootstrap": bootstrap,
            "topic_prefix": f"{name}.",
            "session_timeout_s": _SESSION_S,
        }
    )
    settings = base.model_copy(update={"kafka": at})
    kafka, names = wiring.kafka(settings), wiring.topics(settings)
    topics.create(admin(kafka, logger), names, wiring.widths(settings))
    for one in known:
        models.publish(kafka, names, one, logger)
    return settings, kafka, names


def fill(kafka: KafkaSettings, topic: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Messages, in turns on all partitions."""
    producer = Producer(producer_config(kafka, logger))
    partitions = len(producer.list_topics(topic, timeout=10).topics[topic].partitions)
    for i, record in enumerate(records):
        enqueue(producer, {"topic": topic, "partition": i % partitions, **record})
    assert producer.flush(60) == 0


def profiles(kafka: KafkaSettings, topic: str) -> Iterator[wire.Profiles]:
    """All that the profilers sent, decoded."""
    for message in records(kafka, topic):
        sent = wire.decode(message.value() or b"")
        assert isinstance(sent, wire.Profiles)
        yield sent


def records(kafka: KafkaSettings, topic: str) -> Iterator[Message]:
    """The messages of a topic, from its start to its present end."""
    with consumer(kafka, topic) as reader:
        left = len(reader.assignment())
        while left:
            message = reader.poll(10)
            assert message is not None
            if message.error() is None:
                yield message
            else:
                left -= 1


@contextmanager
def consumer(kafka: KafkaSettings, topic: str) -> Iterator[Consumer]:
    """One that belongs to no group, reads a topic from its start, and says where each partition ends."""
    config = consumer_config(kafka, "bench-check", logger) | {"enable.partition.eof": True}
    reader = Consumer(config)
    try:
        partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
        reader.assign([TopicPartition(topic, p, 0) for p in partitions])
        yield reader
    finally:
        reader.close()
