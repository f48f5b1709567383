"""A producer that fails as the test plans it, and the kinds of failure that librdkafka knows."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

ABORTABLE = KafkaError(KafkaError._TIMED_OUT, "planned", False, False, True)
RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "planned", False, True, False)
FENCED = KafkaError(KafkaError._FENCED, "planned", True, False, False)
UNKNOWN = KafkaError(KafkaError._TIMED_OUT, "planned", False, False, False)


class Flaky:
    """A producer one of whose calls fails once, before or after it had its effect."""

    def __init__(self, real: Producer, plan: list[tuple[str, str, KafkaError]]) -> None:
        self._real, self._plan = real, plan

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not self._plan or self._plan[0][0] != name:
            return real

        def fails(*args: Any) -> Any:
            _, when, error = self._plan.pop(0)
            if when == "after":
                real(*args)
            raise KafkaException(error)

        return fails
