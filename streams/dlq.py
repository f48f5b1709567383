"""The dead letters, read for people: which messages died, where, why, and whether they were sent again.

A letter is what ``streams.deadletter`` wrote. The detector's letters have no headers: their key says ``stage:topic:partition:offset:reason``.
Beside the letters the topic holds *receipts*: a record without value for each letter that was replayed, whose header names the death.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from monitor.errors import TransientError
from streams.clients import KafkaSettings, admin, consumer_config, log_ends
from streams.console import plain
from streams.deadletter import PREFIX, REPLAY, header_list

logger = logging.getLogger(__name__)

RECEIPT: Final = f"{REPLAY}of"
ANSWER_S: Final = 10.0
_OPEN_S: Final = 30.0  # a transaction that was left open ends after 10 s
_BATCH: Final = 500
_TURN_S: Final = 0.1  # a batch that is not full is waited for so long
_FETCH_MS: Final = 20  # a broker with nothing to give waits so long: somebody looks at a terminal
_SHOWN: Final = 200  # bytes of a value
_GONE: Final = {
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
}


class Place(NamedTuple):
    """Where a message is."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter but for its value. ``died`` is the place of the message that it is of, ``timestamp_ms`` that message's time."""

    at_ms: int
    stage: str
    reason: str
    detail: str
    died: Place
    timestamp_ms: int | None
    attempt: int
    size: int
    cut: bool  # not the whole message
    refused: str | None  # events that died, where the others were counted; "?": nobody knows which
    place: Place
    beginning: bytes

    @property
    def identity(self) -> str:
        """Names the death: equal in each letter of it. Offsets start anew with a topic, so the time is part of it."""
        return "/".join(map(str, (*self.died, self.timestamp_ms)))

    def to_dict(self, *, replayed: bool, value: bool) -> dict[str, Any]:
        """Plain values, without what a terminal would obey."""
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(self.at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "stage": plain(self.stage),
            "reason": plain(self.reason),
            "detail": plain(self.detail),
            "topic": plain(self.died.topic),
            "partition": self.died.partition,
            "offset": self.died.offset,
            "attempt": self.attempt,
            "size": f"{self.size}+" if self.cut else self.size,
            "replayed": "yes" if replayed else "",
        }
        if value:
            text = self.beginning.decode("utf-8", "backslashreplace")
            row["value"] = text.encode("unicode_escape").decode("ascii")
        return row


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters: ``None`` is any. The newest ``limit`` of them; 0 is all."""

    since_ms: int | None = None
    reason: str | None = None
    stage: str | None = None
    limit: int = 20

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is one of them."""
        return (
            (self.since_ms is None or letter.at_ms >= self.since_ms)
            and self.reason in (None, letter.reason)
            and self.stage in (None, letter.stage)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """Letters, the newest last, and the identities of those that were replayed."""

    letters: Sequence[Letter]
    replayed: frozenset[str]


def letter_of(message: Message) -> Letter | None:
    """The letter in a record of the ``dlq`` topic; ``None`` for a receipt, and for what is no letter."""
    headers = {
        name.removeprefix(PREFIX): text.decode("utf-8", "replace")
        for name, text in header_list(message)
        if name.startswith(PREFIX) and isinstance(text, bytes)
    }
    value = message.value()
    key = _bytes(message.key()).decode("utf-8", "replace").split(":")
    if "reason" not in headers:
        if len(key) != 5 or value is None:
            return None
        names = ("stage", "topic", "partition", "offset", "reason")
        headers = dict(zip(names, key, strict=True))
    try:
        died = Place(headers["topic"], int(headers["partition"]), int(headers["offset"]))
        timestamp = int(headers["timestamp"]) if "timestamp" in headers else None
        attempt = int(headers.get("attempt", "1"))
    except (KeyError, ValueError):
        return None
    return Letter(
        at_ms=message.timestamp()[1],
        stage=headers.get("stage", ""),
        reason=headers["reason"],
        detail=headers.get("detail", ""),
        died=died,
        timestamp_ms=timestamp,
        attempt=attempt,
        size=len(value or b""),
        cut="truncated" in headers or value is None,
        refused=headers.get("refused"),
        place=Place(message.topic() or "", message.partition() or 0, message.offset() or 0),
        beginning=(value or b"")[:_SHOWN],
    )


class Reader:
    """Reads topics without a group. Mutable: it owns a client; use it as a context."""

    def __init__(self, kafka: KafkaSettings, prefix: str) -> None:
        self._admin = admin(kafka, logger)
        config = consumer_config(kafka, f"{prefix}dlq", logger) | {
            "enable.partition.eof": True,
            "fetch.wait.max.ms": _FETCH_MS,
            "auto.offset.reset": "error",  # what is asked for and is gone is to be an answer
        }
        self._consumer = Consumer(config)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def find(self, topic: str, chosen: Filter, *, monotonic: Callable[[], float]) -> Found:
        """The letters that are chosen, of the topic up to its end as of now. Memory: those letters, and a name for each replayed one.

        Raises:
            TransientError: the broker does not answer, or a transaction stays open in the topic.
        """
        newest: list[tuple[int, Place, Letter]] = []
        replayed = set[str]()
        for message in self._all(topic, chosen.since_ms, monotonic):
            receipt = dict(header_list(message)).get(RECEIPT)
            letter = letter_of(message)
            if receipt is not None:
                replayed.add(_bytes(receipt).decode("utf-8", "replace"))
            elif letter is not None and chosen.takes(letter):
                heapq.heappush(newest, (letter.at_ms, letter.place, letter))
                if 0 < chosen.limit < len(newest):
                    heapq.heappop(newest)
        return Found([letter for *_, letter in sorted(newest)], frozenset(replayed))

    def fetch(self, place: Place) -> Message | None:
        """One message; ``None`` if it is gone.

        Raises:
            TransientError: the broker does not answer.
        """
        self._consumer.assign([TopicPartition(*place)])
        message = self._consumer.poll(ANSWER_S)
        if message is None:
            raise TransientError(f"the broker does not answer for {place.topic}")
        error = message.error()
        if error is None:
            return message if message.offset() == place.offset else None  # compacted, or a marker
        if error.code() in _GONE or error.code() == KafkaError._PARTITION_EOF:
            return None
        raise TransientError(f"kafka: {error.str()}")

    def _all(
        self, topic: str, since_ms: int | None, monotonic: Callable[[], float]
    ) -> Iterator[Message]:
        """Every committed message up to the end as of now. What an open transaction hides is waited for: behind it there may be receipts."""
        ends, patient_until = self._ends(topic), monotonic() + _OPEN_S
        self._consumer.assign(self._starts(topic, list(ends), since_ms))
        while ends:
            for message in self._consumer.consume(_BATCH, timeout=_TURN_S):
                error, partition = message.error(), message.partition() or 0
                at = message.offset() or 0
                if error is None:
                    patient_until, at = monotonic() + _OPEN_S, at + 1
                    yield message
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise TransientError(f"kafka: {error.str()}")
                if at >= ends.get(partition, 0):  # the last offset may be a transaction's marker
                    ends.pop(partition, None)
            if monotonic() > patient_until:
                raise TransientError(
                    f"{topic} cannot be read to its end: a transaction is open in it"
                )

    def _ends(self, topic: str) -> dict[int, int]:
        """Where the log of each partition ends, open transactions and all."""
        try:
            found = self._admin.list_topics(topic, timeout=ANSWER_S).topics[topic]
            if found.error is not None:
                raise TransientError(f"topic {topic} is not there: run `driftline topics create`")
            places = [TopicPartition(topic, p) for p in found.partitions]
            answers = log_ends(self._admin, places, committed=False, timeout_s=ANSWER_S)
            return {place.partition: answer.result().offset for place, answer in answers.items()}
        except KafkaException as err:
            raise TransientError(f"kafka: {err.args[0].str()}") from err

    def _starts(
        self, topic: str, partitions: Sequence[int], since_ms: int | None
    ) -> list[TopicPartition]:
        if since_ms is None:
            return [TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions]
        asked = [TopicPartition(topic, p, since_ms) for p in partitions]
        try:
            return self._consumer.offsets_for_times(asked, timeout=ANSWER_S)
        except KafkaException as err:
            raise TransientError(f"kafka: {err.args[0].str()}") from err


def rows(found: Found, *, value: bool) -> list[Mapping[str, Any]]:
    """A row for each letter; with ``value``, what its message begins with."""
    return [
        letter.to_dict(replayed=letter.identity in found.replayed, value=value)
        for letter in found.letters
    ]


def _bytes(text: str | bytes | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""
