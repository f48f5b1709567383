"""What a runner of stages is given, and what it tells: the part that ``streams.topology`` and ``streams.transactional`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from streams.clients import KafkaSettings
from streams.liveness import end_process
from streams.stage import Stage


@dataclass(frozen=True, slots=True)
class Binding:
    """A stage, its input topics, and the topic that takes the changes of its table.

    All these topics have the same number of partitions: partition ``p`` of the changelog holds the state of
    partition ``p`` of the inputs, and both are always assigned to the same worker.
    """

    name: str
    topics: tuple[str, ...]
    changelog: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How to work. ``instance`` is a lasting name of this worker: its restart is then no rebalance."""

    kafka: KafkaSettings
    group: str
    instance: str | None = None
    commit_s: float = 1.0  # of the Faust runner; the other commits each batch
    stall_s: float = 60.0
    stop_s: float = 8.0  # of the Faust runner
    batch_messages: int = 128  # applied together, for one wait for acknowledgements


class Observer:
    """What a worker tells about itself. Override what is of interest; called in the worker's loop, so do not block."""

    def restored(self, stage: str, partition: int, keys: int) -> None:
        """A partition's state was rebuilt from ``keys`` rows."""

    def applied(self, stage: str, messages: int, outputs: int, writes: int) -> None:
        """A batch is durable: messages applied, outputs sent, records written to the changelog."""

    def batch(self, seconds: float) -> None:
        """Applying a batch and making it durable took so long. The Faust runner does not say: it has a batch for each stage and partition at once."""

    def repeated(self, stage: str, partition: int) -> None:
        """A message came again although its effects are durable."""

    def committed(self, topic: str, partition: int, offset: int) -> None:
        """The group's next offset moved."""

    def rewound(self, reason: str) -> None:
        """What was not committed is dropped: the state is rebuilt, and the inputs are read again."""

    def exiting(self, reason: str) -> None:
        """The process is about to end with ``EXIT_RESTART``. May be called in any thread."""


def end_worker(reason: str, observer: Observer) -> NoReturn:
    """End the process, and let the observer know."""
    end_process(reason, observer.exiting)
