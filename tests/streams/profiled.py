"""A broker with topics of a test's own for the profiler: what was sent there, and what came out."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from confluent_kafka import (
    Message,
    Producer,
)
from confluent_kafka.admin import AdminClient

from monitor import wire
from monitor.settings import KafkaSettings, LimitSettings, ProfilerSettings, Settings
from streams import topics, wiring
from streams.profiler import Profiler
from streams.registry import Registry
from tests.kafka.reading import committed
from tests.monitor.builders import MODEL, NOW, SECOND, START, body, event
from tests.streams.builders import Known, model
from tests.streams.threads import in_thread

KNOWN = Known(model(MODEL), model("fraud", segments=[]))
SOURCES, STATES = 2, 2


class Bench:
    """A broker with topics of one's own, what was sent there, and what came out."""

    def __init__(self, address: str, *, letters: int = 1_000, **changes: Any) -> None:
        prefix = f"profiler-{uuid.uuid4().hex[:8]}."
        fast = {"batch_events": 100, "batch_wait_s": 0.2, "idle_after_s": 0.5, "heartbeat_s": 30.0}
        self.settings = Settings(
            kafka=KafkaSettings(
                bootstrap=address,
                topic_prefix=prefix,
                session_timeout_s=6,
                predictions_partitions=SOURCES,
                detector_partitions=STATES,
            ),
            profiler=ProfilerSettings(instance="test", **{**fast, **changes}),
            limits=LimitSettings(models=3, dead_letters_per_minute=letters),
        )
        self.topics = wiring.topics(self.settings)
        self.address = address
        admin = AdminClient({"bootstrap.servers": address})
        topics.create(admin, self.topics, wiring.widths(self.settings))
        self.producer = Producer({"bootstrap.servers": address, "log_level": 0})
        self.sent = [0] * SOURCES

    def send(self, partition: int, *values: Any, **record: Any) -> None:
        """Messages to one source partition: bytes as they are, anything else as JSON."""
        for value in values:
            raw = value if isinstance(value, bytes) else body(value)
            self.producer.produce(self.topics.predictions, raw, partition=partition, **record)
            self.sent[partition] += 1
        assert self.producer.flush(20) == 0

    def read(self, topic: str) -> list[Message]:
        """Everything committed on a topic."""
        return committed(self.address, topic)

    def letters(self, count: int) -> list[Message]:
        """The dead letters, when there are ``count``.

        A commit is acknowledged before its markers are in all partitions: that profiles can be read does not say that letters can.
        """
        deadline = time.monotonic() + 30
        while True:
            found = [m for m in self.read(self.topics.dlq) if m.value() is not None]  # no receipts
            if len(found) >= count:
                break
            assert time.monotonic() < deadline, f"{len(found)} letters"
            time.sleep(0.1)
        assert len(found) == count
        return found

    def profiles(self) -> list[list[wire.Profiles]]:
        """The messages of each profiles partition, in order."""
        found: list[list[wire.Profiles]] = [[] for _ in range(STATES)]
        for message in self.read(self.topics.profiles):
            decoded = wire.decode(message.value() or b"")
            assert isinstance(decoded, wire.Profiles)
            found[cast("int", message.partition())].append(decoded)
        return found

    def account(self) -> Counter[str]:
        """Events by fate; fails if a chain has a gap or an overlap, or the partitions disagree."""
        total: Counter[str] = Counter()
        for target, messages in enumerate(self.profiles()):
            at: dict[int, int] = {}
            for x in (link for profiles in messages for link in profiles.links):
                assert x.start == at.get(x.partition, 0), f"{target}: {x} does not follow {at}"
                at[x.partition] = x.end
                for fate in ("on_time", "late", "calibrating"):
                    total[fate] += getattr(x, fate)
                if target == 0:
                    total["events"] += x.events
                    total["dead"] += x.dead
            assert at == {p: n for p, n in enumerate(self.sent) if p in at}
        return total

    def is_drained(self) -> bool:
        """Whether the last links cover everything that was sent."""
        ends = [
            {x.partition: x.end for profiles in messages for x in profiles.links}
            for messages in self.profiles()
        ]
        return all(end == dict(enumerate(self.sent)) for end in ends)


Make = Callable[..., Profiler]


@contextmanager
def running(bench: Bench, make: Make = Profiler) -> Iterator[None]:
    """A profiler in a thread; what ended it is raised here."""
    with in_thread(partial(profile, bench, make)):
        yield


def profile(bench: Bench, make: Make, stop: threading.Event) -> None:
    """Run a profiler."""
    registry, clock = cast("Registry", Live()), lambda: NOW / 1_000
    make(bench.settings, registry, clock=clock, monotonic=time.monotonic).run(stop)


class Live(Known):
    """Known models, with the one more question that the loop asks."""

    def __init__(self) -> None:
        super().__init__(*KNOWN.models.values())

    def all(self) -> Any:
        return self.models


def drain(bench: Bench, make: Make = Profiler, timeout_s: float = 45) -> None:
    """Run a profiler until everything sent is accounted for, then stop it."""
    with running(bench, make):
        deadline = time.monotonic() + timeout_s
        while not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.2)


def some(n: int, at: int = 0, **fields: Any) -> list[dict[str, Any]]:
    return [event(START + (at + i) * SECOND, id=f"e{at + i}", **fields) for i in range(n)]
