"""Produces the workload's file: at a pace or as fast as it goes, in order, each message once, whatever the broker does."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaError, Message, Producer

from load.chaos import tape

_CHUNK: Final = 200  # messages between two looks at the clock
_FLUSH_S: Final = 120.0


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
        self._total = sum(1 for _ in tape.messages(path))
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
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
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._failed: list[str] = []
        self._produced = 0
        self._ended_s: float | None = None
        self.sent = Counter[int]()

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
        while chunk := list(islice(stream, _CHUNK)):
            due = began + self._seconds * self._produced / max(self._total, 1)
            self._producer.poll(0)
            time.sleep(max(0.0, due - time.monotonic()))
            for message in chunk:
                self._put(message)
            self._produced += len(chunk)
        left = self._producer.flush(_FLUSH_S)
        if left or self.sent.total() != self._total:
            self._failed.append(f"{self._total - self.sent.total()} messages were not acknowledged")
        self._ended_s = time.monotonic()

    def _put(self, message: tape.Message) -> None:
        headers: list[tuple[str, str | bytes | None]] = [*message.headers.items()]
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=message.value,
                    headers=headers,
                    partition=message.partition,
                    on_delivery=self._delivered,
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error.str())
            return
        self.sent[message.partition() or 0] += 1
