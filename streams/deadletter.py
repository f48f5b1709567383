"""Dead letters: the original bytes and headers, and beside them why and from where."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import Message

PREFIX: Final = "driftline.error."
MAX_DETAIL: Final = 1_024


def dead_letter(
    message: Message, *, reason: str, detail: str, stage: str, attempt: int = 1
) -> dict[str, Any]:
    """``key``, ``value`` and ``headers`` to produce on the ``dlq`` topic. Headers of an earlier death are replaced."""
    kept = [(name, value) for name, value in header_list(message) if not name.startswith(PREFIX)]
    why = {
        "reason": reason,
        "detail": detail[:MAX_DETAIL],
        "stage": stage,
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        "attempt": attempt,
    }
    headers = kept + [(PREFIX + name, str(value).encode()) for name, value in why.items()]
    return {"key": message.key(), "value": message.value(), "headers": headers}


def header_list(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The headers as pairs: names may repeat."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)
