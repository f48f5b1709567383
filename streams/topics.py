"""The topics: one frozen list, full names under a prefix, and their creation on a broker.

Topics are created here and never by a client that happens to write to one: the number of partitions is part of the
contract. Two numbers exist. ``source`` is the width of the raw traffic. ``state`` is the width of the detector: its
input topics and the changelogs of its tables have one and the same number, since partition ``p`` of a changelog holds
the state of partition ``p`` of the inputs. Changing either one is a migration, not a setting.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeAlias

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic  # where the type stubs declare it

from monitor.errors import ConfigError

Width: TypeAlias = Literal["source", "state", "one"]
Cleanup: TypeAlias = Literal["delete", "compact", "compact,delete"]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# A table's changelog is read in full when a worker starts. Small segments and an eager cleaner keep it near the
# size of the state; with the broker's defaults (1 GiB, 7 days) it would hold every update of a week.
_CHANGELOG: Mapping[str, str] = {
    "segment.bytes": str(32 * 1024 * 1024),
    "segment.ms": str(_HOUR_MS),
    "min.cleanable.dirty.ratio": "0.1",
}


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic. ``retention_ms`` is ``None`` where only compaction removes records."""

    suffix: str
    key: str
    value: str
    width: Width
    cleanup: Cleanup = "delete"
    retention_ms: int | None = 7 * _DAY_MS
    extra: Mapping[str, str] | None = None

    def config(self) -> dict[str, str]:
        """The topic's own settings, for the broker."""
        config = {"cleanup.policy": self.cleanup, **(self.extra or {})}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        return config


def _changelog(stage: str) -> TopicSpec:
    return TopicSpec(
        f"{stage}.changelog", "partition/key", "state", "state", "compact", None, _CHANGELOG
    )


SPECS: tuple[TopicSpec, ...] = (
    TopicSpec("predictions", "any", "event: JSON, Arrow or CloudEvent", "source"),
    TopicSpec("labels", "prediction id", "label: JSON or Arrow", "source"),
    TopicSpec("scored", "model", "Arrow IPC", "source", retention_ms=2 * _DAY_MS),
    TopicSpec("models", "model", "spec and reference", "one", "compact", None),
    TopicSpec("profiles", "none", "msgpack and zstd", "state"),
    TopicSpec("windows", "model", "msgpack", "state"),
    TopicSpec("performance", "model", "msgpack", "state"),
    TopicSpec("verdicts", "model", "msgpack", "state"),
    TopicSpec("incidents", "incident", "msgpack", "state", "compact,delete", 90 * _DAY_MS),
    TopicSpec("commands", "model", "msgpack", "state", retention_ms=30 * _DAY_MS),
    TopicSpec("outbox", "outbox item", "msgpack", "state", "compact,delete", 30 * _DAY_MS),
    TopicSpec("deliveries", "outbox item", "msgpack", "state", "compact,delete", 90 * _DAY_MS),
    TopicSpec("dlq", "original", "original bytes", "source", retention_ms=30 * _DAY_MS),
    _changelog("merge"),
    _changelog("performance"),
    _changelog("incidents"),
)


class TopicMismatchError(ConfigError):
    """A topic exists with another number of partitions, or cannot be created: an operator has to decide."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Full topic names under one prefix."""

    prefix: str = "driftline."

    def name(self, suffix: str) -> str:
        """Full name of a topic of ``SPECS``.

        Raises:
            KeyError: there is no such topic.
        """
        if all(spec.suffix != suffix for spec in SPECS):
            raise KeyError(f"no topic is called {suffix!r}")
        return self.prefix + suffix

    def changelog(self, stage: str) -> str:
        """Changelog topic of a stage's table: ``merge``, ``performance`` or ``incidents``."""
        return self.name(f"{stage}.changelog")

    @property
    def predictions(self) -> str:
        """Raw prediction events."""
        return self.name("predictions")

    @property
    def labels(self) -> str:
        """Ground truth."""
        return self.name("labels")

    @property
    def scored(self) -> str:
        """Scored predictions, as columns."""
        return self.name("scored")

    @property
    def models(self) -> str:
        """Model specs and references."""
        return self.name("models")

    @property
    def profiles(self) -> str:
        """Profile deltas and the chain."""
        return self.name("profiles")

    @property
    def windows(self) -> str:
        """Closed windows."""
        return self.name("windows")

    @property
    def performance(self) -> str:
        """Performance windows from the evaluator."""
        return self.name("performance")

    @property
    def verdicts(self) -> str:
        """Verdicts on closed windows."""
        return self.name("verdicts")

    @property
    def incidents(self) -> str:
        """States of incidents."""
        return self.name("incidents")

    @property
    def commands(self) -> str:
        """What people asked for: acknowledge, silence, approve."""
        return self.name("commands")

    @property
    def outbox(self) -> str:
        """What the dispatcher is to send."""
        return self.name("outbox")

    @property
    def deliveries(self) -> str:
        """What the dispatcher has sent."""
        return self.name("deliveries")

    @property
    def dlq(self) -> str:
        """Dead letters."""
        return self.name("dlq")


@dataclass(frozen=True, slots=True)
class Widths:
    """Partitions of the raw topics and of the detector's topics, and copies of each."""

    source: int
    state: int
    replication: int = 1

    def __post_init__(self) -> None:
        for name in ("source", "state", "replication"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")

    def of(self, spec: TopicSpec) -> int:
        """Number of partitions of one topic."""
        match spec.width:
            case "source":
                return self.source
            case "state":
                return self.state
            case "one":
                return 1


def partition_of(model: str, partitions: int) -> int:
    """The partition which holds a model's state: CRC-32 of its UTF-8 name, the same in every process and language."""
    return zlib.crc32(model.encode()) % partitions


def check(
    admin: AdminClient, topics: Topics, widths: Widths, *, timeout_s: float = 20.0
) -> list[str]:
    """Compare the broker's topics with ``SPECS`` and return the full names of those that are missing.

    Raises:
        TopicMismatchError: a topic has another number of partitions than ``widths`` says.
        confluent_kafka.KafkaException: the broker did not answer within ``timeout_s``.
    """
    existing = admin.list_topics(timeout=timeout_s).topics
    missing, wrong = [], []
    for spec in SPECS:
        name, wanted = topics.name(spec.suffix), widths.of(spec)
        found = existing.get(name)
        if found is None or found.error is not None:
            missing.append(name)
        elif len(found.partitions) != wanted:
            wrong.append(f"{name} has {len(found.partitions)} partitions, wanted {wanted}")
    if wrong:
        raise TopicMismatchError(
            "; ".join(wrong) + ": set the partitions as they are, or use another topic prefix"
        )
    return missing


def create(
    admin: AdminClient, topics: Topics, widths: Widths, *, timeout_s: float = 20.0
) -> list[str]:
    """Create the topics that are missing, wait until all of them are visible, and return the new names.

    Several processes may do this at once, and it may be repeated.

    Raises:
        TopicMismatchError: as ``check``, or the broker refuses to create a topic.
        TimeoutError: a new topic was not visible within ``timeout_s``.
        confluent_kafka.KafkaException: the broker did not answer within ``timeout_s``.
    """
    missing = set(check(admin, topics, widths, timeout_s=timeout_s))
    if not missing:
        return []
    new = [
        NewTopic(
            topics.name(spec.suffix),
            num_partitions=widths.of(spec),
            replication_factor=widths.replication,
            config=spec.config(),
        )
        for spec in SPECS
        if topics.name(spec.suffix) in missing
    ]
    created = _created(admin.create_topics(new, operation_timeout=timeout_s))
    _wait_visible(admin, topics, widths, timeout_s)
    return created


def _created(futures: Mapping[str, Future[None]]) -> list[str]:
    created = []
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was quicker
                raise TopicMismatchError(f"cannot create topic {name}: {error.str()}") from exc
        else:
            created.append(name)
    return created


def _wait_visible(admin: AdminClient, topics: Topics, widths: Widths, timeout_s: float) -> None:
    """A broker answers "created" before its metadata shows the topic, and a subscription to it would fail."""
    deadline = time.monotonic() + timeout_s
    missing: Iterable[str]
    while missing := check(admin, topics, widths, timeout_s=timeout_s):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not visible after {timeout_s:g} s: {', '.join(missing)}")
        time.sleep(0.05)
