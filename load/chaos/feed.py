"""Produces the workload's file: at a pace or as fast as it goes, in order, each message once, whatever the broker does."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from load.chaos import tape

_CHUNK: Final = 200  # messages between two looks at the clock
_FLUSH_S: Final = 120.0
_STUCK_S: Final = 45.0  # without an acknowledgement: longer than a broker is away
_LANDED_S: Final = 3.0  # what is on its way to the log is there by then


class Feed:
    """A producer in a thread of its own. Mutable: it counts what the broker has acknowledged.

    Args:
        path: the workload's file.
        bootstrap: the broker.
        topic: where to.
        seconds: how long it is to take; 0 is as fast as it goes.
    """

    def __init__(self, path: Path, bootstrap: str, topic: str, seconds: float) -> None:
        self._path, self._topic, self._seconds = path, topic, seconds
        self._bootstrap = bootstrap
        self._total = sum(1 for _ in tape.messages(path))
        self._producer = self._new_producer()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._failed: list[str] = []
        self._produced = 0
        self._ended_s: float | None = None
        self._heard_s = 0.0
        self._unheard: defaultdict[int, deque[tape.Message]] = defaultdict(deque)
        self.replaced = 0
        self.sent = Counter[int]()

    def _new_producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 600_000,  # longer than any outage of the run
                "queue.buffering.max.kbytes": 131_072,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
                "broker.address.family": "v4",
                "error_cb": lambda _: None,  # an unreachable broker is what it is for
            }
        )

    @property
    def place(self) -> float:
        """How much was handed to the producer, from 0 to 1."""
        return self._produced / max(self._total, 1)

    @property
    def ended_s(self) -> float | None:
        """When the last message was acknowledged, on the monotonic clock."""
        return self._ended_s

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: a message was not taken; a run without it proves nothing.
        """
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Complain about what was not taken so far.

        Raises:
            RuntimeError: as ``join``.
        """
        if self._failed:
            raise RuntimeError(f"the broker did not take {len(self._failed)}: {self._failed[0]}")

    def _run(self) -> None:
        began, stream = time.monotonic(), tape.messages(self._path)
        self._heard_s = began
        while chunk := list(islice(stream, _CHUNK)):
            due = began + self._seconds * self._produced / max(self._total, 1)
            self._poll(0.0)
            time.sleep(max(0.0, due - time.monotonic()))
            for message in chunk:
                self._unheard[message.partition].append(message)
                self._produce(message)
            self._produced += len(chunk)
        until_s = time.monotonic() + _FLUSH_S
        while any(self._unheard.values()) and time.monotonic() < until_s:
            self._poll(0.1)
        if self.sent.total() != self._total:
            self._failed.append(f"{self._total - self.sent.total()} messages were not acknowledged")
        self._ended_s = time.monotonic()

    def _produce(self, message: tape.Message) -> None:
        headers: list[tuple[str, str | bytes | None]] = [*message.headers.items()]
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=message.value,
                    headers=headers,
                    partition=message.partition,
                    on_delivery=partial(self._delivered, self.replaced),
                )
            except BufferError:
                if self._poll(0.1):
                    return  # it was sent with all the others
            else:
                return

    def _poll(self, seconds: float) -> bool:
        """Hear what was acknowledged; whether the producer had to be replaced."""
        self._producer.poll(seconds)
        now = time.monotonic()
        if not any(self._unheard.values()):
            self._heard_s = now
        if now - self._heard_s < _STUCK_S:
            return False
        self._replace()
        return True

    def _replace(self) -> None:
        """Go on with another producer: one of librdkafka may never send again after its broker was away.

        Nobody else writes here, and a partition keeps its order: as many as its log holds were taken, the others are sent again.
        """
        self.replaced += 1
        self._producer.purge()
        time.sleep(_LANDED_S)
        for partition, unheard in self._unheard.items():
            while self.sent[partition] < self._end(partition):
                unheard.popleft()
                self.sent[partition] += 1
        self._producer = self._new_producer()
        self._heard_s = time.monotonic()
        for unheard in self._unheard.values():
            for message in list(unheard):
                self._produce(message)

    def _end(self, partition: int) -> int:
        """Where the log of a partition ends, once the broker answers."""
        place = TopicPartition(self._topic, partition)
        consumer = Consumer(
            {"bootstrap.servers": self._bootstrap, "group.id": "feed", "log_level": 0}
        )
        try:
            while True:
                try:
                    _, high = consumer.get_watermark_offsets(place, timeout=5)
                except KafkaException:
                    time.sleep(0.5)
                else:
                    return int(high)
        finally:
            consumer.close()

    def _delivered(self, producer: int, error: KafkaError | None, message: Message) -> None:
        if producer != self.replaced:
            return  # of one that was given up: its messages were looked for in the log
        if error is not None:
            self._failed.append(error.str())
            return
        partition = message.partition() or 0
        self._unheard[partition].popleft()
        self._heard_s = time.monotonic()
        self.sent[partition] += 1
