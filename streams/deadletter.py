"""Dead letters: the original bytes and headers, and beside them why and from where."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import Message

PREFIX: Final = "driftline.error."
MAX_DETAIL: Final = 1_024
MAX_RECORD: Final = 1_000_000  # brokers take 1 MiB; the rest is for framing
_OVERHEAD: Final = 64  # bytes of framing for each header
_RESERVED: Final = 8_192  # for our own headers, whose longest is the detail


def dead_letter(
    message: Message, *, reason: str, detail: str, stage: str, attempt: int = 1
) -> dict[str, Any]:
    """``key``, ``value`` and ``headers`` to produce on the ``dlq`` topic. Headers of an earlier death are replaced.

    A record too large for the topic is cut, and says how large it was: key and headers go if they alone take half of it, then the end of the
    value. The whole of it stays at ``topic``, ``partition`` and ``offset``.
    """
    key, value = message.key(), message.value() or b""
    kept = [(name, text) for name, text in header_list(message) if not name.startswith(PREFIX)]
    beside = _size(key, kept) + _RESERVED
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
    if beside + len(value) > MAX_RECORD:
        why["truncated"] = beside + len(value)
        if beside > MAX_RECORD // 2:
            key, kept, beside = None, [], _RESERVED
    headers = kept + [(PREFIX + name, str(text).encode()) for name, text in why.items()]
    cut = None if message.value() is None else value[: MAX_RECORD - beside]
    return {"key": key, "value": cut, "headers": headers}


def _size(key: str | bytes | None, headers: list[tuple[str, str | bytes | None]]) -> int:
    texts = [key or b""] + [text or b"" for header in headers for text in header]
    return sum(
        len(text.encode() if isinstance(text, str) else text) for text in texts
    ) + _OVERHEAD * len(headers)


def header_list(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The headers as pairs: names may repeat."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)
