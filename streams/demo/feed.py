"""The serving app of the demo: writes predictions and labels to Kafka, in the order of time, from a thread of its own."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from threading import Event, Thread
from typing import Final

from confluent_kafka import Producer

from streams.clients import KafkaSettings, enqueue, producer_config
from streams.demo.replay import Batch, Message
from streams.topics import Topics

_FLUSH_S: Final = 30.0
_LOOK_S: Final = 0.1

logger = logging.getLogger(__name__)


class Feed:
    """Replays batches. Mutable: it counts. Counters are written by its thread alone and may be read by any.

    Time is compressed a hundred thousand times, but causes must not come after their effects: labels tell what a drift meant while it lasts. So the
    feed goes at most ``lead`` batches further than the labels have been judged.

    Args:
        speed: event-time seconds per second of the clock; 0 is as fast as it goes.
        lead: batches.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Topics,
        batches: Iterable[Batch],
        *,
        speed: float,
        lead: int,
    ) -> None:
        self.events = self.labels = 0
        self.at_ms: int | None = None
        self.judged_ms: int | None = (
            None  # end of the last window whose labels were due; set by the owner
        )
        self.failure: BaseException | None = None
        self._topics, self._batches = topics, batches
        self._speed, self._lead = speed, lead
        self._ahead: deque[int] = deque()  # ends of the batches that were sent and are not judged
        self._producer = Producer(
            producer_config(kafka, logger) | {"queue.buffering.max.kbytes": 65_536}
        )
        self._stop = Event()
        self._thread = Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End early."""
        self._stop.set()
        self._thread.join(timeout=_FLUSH_S)

    @property
    def done(self) -> bool:
        """Whether everything was written."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            began, first_ms = time.monotonic(), None
            for batch in self._batches:
                first_ms = batch.until_ms if first_ms is None else first_ms
                if self._speed:
                    due_s = began + (batch.until_ms - first_ms) / 1_000 / self._speed
                    self._stop.wait(max(0.0, due_s - time.monotonic()))
                while self._is_too_far() and not self._stop.wait(_LOOK_S):
                    pass
                if self._stop.is_set():
                    break
                self._send(batch)
                self._ahead.append(batch.until_ms)
            if self._producer.flush(_FLUSH_S):
                self.failure = TimeoutError("the broker did not take all events")
        except Exception as failure:  # noqa: BLE001 - a thread has nobody to raise to; the owner looks
            self.failure = failure

    def _is_too_far(self) -> bool:
        judged_ms = self.judged_ms
        while judged_ms is not None and self._ahead and self._ahead[0] <= judged_ms:
            self._ahead.popleft()
        return len(self._ahead) >= self._lead

    def _send(self, batch: Batch) -> None:
        for message in batch.events:
            self._put(self._topics.predictions, message)
        for message in batch.labels:
            self._put(self._topics.labels, message)
        self.events += len(batch.events)
        self.labels += len(batch.labels)
        self.at_ms = batch.until_ms

    def _put(self, topic: str, message: Message) -> None:
        enqueue(self._producer, {"topic": topic, "key": message.key, "value": message.value})
        self._producer.poll(0)
