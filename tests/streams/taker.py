"""A producer without a broker: it takes, keeps or refuses what it is given, as the test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, Message

from monitor.events import Event, Limits, Outcome, decode_message
from streams.clients import Config

Mood = Literal["takes", "keeps", "refuses", "is full", "is broken"]
REFUSED = KafkaError(KafkaError._MSG_TIMED_OUT, "planned")
PURGED = KafkaError(KafkaError._PURGE_QUEUE, "planned")
FATAL = KafkaException(KafkaError(KafkaError._FATAL, "planned", True, False, False))


class Broker:
    """What producers are connected to; ``mood`` may change at any time."""

    def __init__(self, mood: Mood = "takes") -> None:
        self.mood = mood
        self.messages: list[tuple[bytes, dict[str, bytes]]] = []
        self.keys: list[str | None] = []
        self.connected = 0

    def connect(self, _: Config) -> Any:
        """In place of ``Producer``."""
        self.connected += 1
        return Taker(self)

    def events(self, now_ms: int) -> list[Event]:
        """As the profiler reads them."""
        outcomes: list[Outcome] = []
        for value, headers in self.messages:
            outcomes += decode_message(value, headers, Limits(), now_ms=now_ms)
        assert all(isinstance(outcome, Event) for outcome in outcomes), outcomes
        return [outcome for outcome in outcomes if isinstance(outcome, Event)]


class Taker:
    """One connection. As with librdkafka, what became of a message is told by ``poll`` and ``flush``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: list[tuple[str | None, bytes, Mapping[str, bytes], Callable[..., None]]] = []

    def produce(
        self,
        _topic: str,
        value: bytes,
        key: str | None,
        *,
        headers: Mapping[str, bytes],
        on_delivery: Callable[[KafkaError | None, Message | None], None],
    ) -> None:
        if self._broker.mood == "is full":
            raise BufferError("planned")
        if self._broker.mood == "is broken":
            self._broker.mood = "takes"
            raise FATAL
        self._waiting.append((key, value, headers, on_delivery))

    def poll(self, _timeout_s: float = 0) -> int:
        if self._broker.mood not in ("takes", "refuses"):
            return 0
        waiting, self._waiting = self._waiting, []
        for key, value, headers, told in waiting:
            if self._broker.mood == "refuses":
                told(REFUSED, None)
                continue
            self._broker.keys.append(key)
            self._broker.messages.append((value, dict(headers)))
            told(None, None)
        return len(waiting)

    def flush(self, _timeout_s: float) -> int:
        self.poll()
        return len(self._waiting)

    def purge(self) -> None:
        waiting, self._waiting = self._waiting, []
        for *_, told in waiting:
            told(PURGED, None)

    def __len__(self) -> int:
        return len(self._waiting)
