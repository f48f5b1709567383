"""Dead letters: the original bytes and headers, and beside them why and from where; and how many of them a flood may cause.

Headers of a letter, beside the message's own: ``driftline.error.`` and ``reason``, ``detail``, ``stage``, ``topic``, ``partition``, ``offset``,
``timestamp``, ``attempt``; ``truncated`` where the topic would not take the whole; ``refused`` where other events of the message were counted.
A message that ``driftline dlq replay`` sent again says in ``driftline.replay.attempt`` which attempt it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final

from confluent_kafka import Message

from monitor import metrics
from monitor.errors import InvalidEventError
from monitor.events import Outcome
from monitor.metrics import Process

PREFIX: Final = "driftline.error."
REPLAY: Final = "driftline.replay."
MAX_DETAIL: Final = 1_024
MAX_REFUSED: Final = 4_000  # bytes of indices: a thousand events
MAX_RECORD: Final = 1_000_000  # brokers take 1 MiB; the rest is for framing
_OVERHEAD: Final = 64  # bytes of framing for each header
_MINUTE_S: Final = 60.0
_RESERVED: Final = 8_192  # for our own headers, whose longest are the detail and the indices


def dead_letter(
    message: Message, *, reason: str, detail: str, stage: str, refused: str | None = None
) -> dict[str, Any]:
    """``key``, ``value`` and ``headers`` to produce on the ``dlq`` topic. Headers of an earlier death are replaced, and its attempt is counted on.

    A record too large for the topic is cut, and says how large it was: key and headers go if they alone take half of it, then the end of the
    value. The whole of it stays at ``topic``, ``partition`` and ``offset``.

    Args:
        message: what died.
        reason: why, in a word.
        detail: for people; may quote field names and sizes, never values.
        stage: who refused it.
        refused: which of its events were refused, where the others were counted: see ``refused_events``. ``None``: all were.
    """
    key, value = message.key(), message.value() or b""
    kept = [
        (name, text) for name, text in header_list(message) if not name.startswith((PREFIX, REPLAY))
    ]
    beside = _size(key, kept) + _RESERVED
    why = {
        "reason": reason,
        "detail": detail[:MAX_DETAIL],
        "stage": stage,
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        "attempt": attempt_of(message),
    }
    if refused is not None:
        why["refused"] = refused
    if beside + len(value) > MAX_RECORD:
        why["truncated"] = beside + len(value)
        if beside > MAX_RECORD // 2:
            key, kept, beside = None, [], _RESERVED
    headers = kept + [(PREFIX + name, str(text).encode()) for name, text in why.items()]
    cut = None if message.value() is None else value[: MAX_RECORD - beside]
    return {"key": key, "value": cut, "headers": headers}


def attempt_of(message: Message) -> int:
    """Which attempt a message is: 1, unless a replay sent it. What is no number counts as 1."""
    said = dict(header_list(message)).get(f"{REPLAY}attempt")
    text = said.decode("ascii", "replace") if isinstance(said, bytes) else ""
    return max(1, int(text)) if text.isdecimal() and len(text) < 4 else 1


def refused_events(
    outcomes: Sequence[Outcome], dead: int, newest: Callable[[str], object | None]
) -> str | None:
    """Which events of a message were refused, as ``"0,7"``: the others were counted, and must not be sent again.

    Args:
        outcomes: the message, decoded as it was when ``dead`` of its events were refused.
        dead: how many that were.
        newest: the model of a name, or ``None``.

    Returns:
        ``None`` if all were, ``"?"`` if there are too many to say, or nobody can tell any more.
    """
    if dead >= len(outcomes):
        return None
    places = [i for i, event in enumerate(outcomes) if isinstance(event, InvalidEventError)]
    if len(places) < dead:  # the others are of models that are not followed
        places = [
            i
            for i, event in enumerate(outcomes)
            if isinstance(event, InvalidEventError) or newest(event.model) is None
        ]
    text = ",".join(map(str, places))
    return text if len(places) == dead and len(text) <= MAX_REFUSED else "?"


def _size(key: str | bytes | None, headers: list[tuple[str, str | bytes | None]]) -> int:
    texts = [key or b""] + [text or b"" for header in headers for text in header]
    return sum(
        len(text.encode() if isinstance(text, str) else text) for text in texts
    ) + _OVERHEAD * len(headers)


def header_list(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The headers as pairs: names may repeat."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


def header_map(message: Message) -> dict[str, bytes]:
    """The headers by name in lower case; of a name that repeats, the last."""
    return {name.lower(): value for name, value in header_list(message) if isinstance(value, bytes)}


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many letters may be sent: ``per_minute`` on the average and at once, and beside them one of each reason a minute.

    So a flood of one reason does not hide another. What is not sent is counted, as dead and as dropped.
    """

    per_minute: int
    tokens: float = field(default=-1.0)  # negative: all of them, at the start
    at_s: float = 0.0
    last_s: Mapping[str, float] = field(default_factory=dict)  # reason -> when one was sent

    def sift(self, reasons: Sequence[str], now_s: float) -> tuple[list[bool], Allowance]:
        """Whether to send each of the letters that died for ``reasons``, and what may be sent after them.

        Nothing is spent until the caller keeps the second value: a batch that is rolled back is sifted again.
        """
        full = float(self.per_minute)
        refilled = self.tokens + (now_s - self.at_s) * full / _MINUTE_S
        tokens = full if self.tokens < 0 else min(full, refilled)
        last_s, sent = dict(self.last_s), []
        for reason in reasons:
            first = reason not in last_s or now_s - last_s[reason] >= _MINUTE_S
            sent.append(first or tokens >= 1)
            if sent[-1]:
                last_s[reason] = now_s if first else last_s[reason]
                tokens = max(0.0, tokens - 1)
        return sent, Allowance(self.per_minute, tokens, now_s, last_s)


class Cap:
    """The allowance of a process: counts what is sent and what is not, and says the latter once a minute. Mutable.

    Args:
        process: whose letters.
        per_minute: see ``Allowance``.
        logger: of the process.
    """

    def __init__(self, process: Process, per_minute: int, logger: logging.Logger) -> None:
        self._process, self._logger = process, logger
        self._allowance = self._next = Allowance(per_minute)
        self._sent: Counter[str] = Counter()
        self._kept_back = self._unsaid = 0
        self._said_s = -_MINUTE_S

    def sift(self, reasons: Sequence[str], now_s: float) -> list[bool]:
        """Whether to send each of the letters that died for ``reasons``. Until ``spent``, nothing is."""
        sent, self._next = self._allowance.sift(reasons, now_s)
        self._sent = Counter(compress(reasons, sent))
        self._kept_back = len(sent) - self._sent.total()
        return sent

    def spent(self, now_s: float) -> None:
        """What was sifted last is durable."""
        self._allowance = self._next
        for reason, n in self._sent.items():
            metrics.DEAD_LETTERS.labels(self._process, reason).inc(n)
        metrics.DEAD_LETTERS_DROPPED.labels(self._process).inc(self._kept_back)
        self._unsaid += self._kept_back
        self._sent, self._kept_back = Counter(), 0
        if self._unsaid and now_s - self._said_s >= _MINUTE_S:
            self._logger.warning(
                "%d dead letters were counted but not sent: more than limits.dead_letters_per_minute",
                self._unsaid,
            )
            self._unsaid, self._said_s = 0, now_s
