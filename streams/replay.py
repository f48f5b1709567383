"""Sends dead messages again: the original bytes, key and headers, to the topic and partition that they came from.

The protocol; the numbers stand in the code:

1. *Read* the letters, and the receipts of what was replayed before, to the end of the topic. Decide, and ask.
2. *Fence*: whoever begins a replay ends the transaction of whoever had begun one.
3. *Read the receipts* once more: another replay may have committed meanwhile, and cannot any more.
4. *Send* messages and their receipts in one transaction: however often a replay is begun, broken off or repeated, a death is replayed once.

A message carries its attempt, so that the letter of its next death can say it; after three it stays dead. Of a message whose other events were counted only the
refused ones are sent. What Driftline writes itself is not replayed: it has an order, and a repeat would break it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec
import pyarrow as pa
from confluent_kafka import KafkaException, Producer

from monitor.arrow import read_table
from monitor.errors import InvalidEventError, TransientError
from monitor.events import ARROW_START, Limits
from monitor.settings import Settings
from streams import wiring
from streams.deadletter import PREFIX, REPLAY, header_list
from streams.dlq import RECEIPT, Filter, Found, Letter, Reader
from streams.topics import Topics
from streams.transactions import TIMEOUT_S, new_producer, retried

logger = logging.getLogger(__name__)

Headers: TypeAlias = dict[str, str | bytes | None]

MAX_ATTEMPTS: Final = 3
_TOGETHER: Final = 100  # messages of one transaction: at most 100 MB in the client's queue
_LARGEST: Final = 1_048_000  # what the client takes, less its framing
_RAW_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Fate(Enum):
    """What becomes of a letter in a replay."""

    SENT = "sent"
    DONE = "was replayed before"
    EXHAUSTED = f"died {MAX_ATTEMPTS} times"
    OURS = "is of a topic that Driftline writes itself"
    FOREIGN = "is of a topic that others read, too: its server would answer the request again"
    GONE = "is cut, and its original is gone"
    INDIVISIBLE = "has other events, which were counted, and cannot be divided"
    TOO_LARGE = "has no room for the headers of a replay"

    @property
    def is_trouble(self) -> bool:
        """Whether the letter stays dead although it was chosen."""
        return self not in (Fate.SENT, Fate.DONE)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A letter and its fate. In a dry run ``SENT`` means that it would be."""

    letter: Letter
    fate: Fate


def decide(letter: Letter, replayed: Collection[str], inputs: Sequence[str]) -> Fate:
    """What is to become of a letter, as far as it tells itself.

    Args:
        letter: the letter.
        replayed: identities of the deaths that were replayed.
        inputs: topics that others write.
    """
    if letter.identity in replayed:
        return Fate.DONE
    if letter.stage == "bridge":
        return Fate.FOREIGN
    if letter.died.topic not in inputs:
        return Fate.OURS
    if letter.attempt >= MAX_ATTEMPTS:
        return Fate.EXHAUSTED
    if letter.refused == "?":
        return Fate.INDIVISIBLE
    return Fate.SENT


def only(value: bytes, places: Sequence[int]) -> bytes | None:
    """The events of a message that are at these places, in the same form; ``None`` where it cannot be divided."""
    try:
        if value[:4] == ARROW_START:
            return _only_rows(value, places)
        raws = _RAW_LIST.decode(value)
        return b"[" + b",".join(bytes(raws[at]) for at in places) + b"]"
    except (InvalidEventError, msgspec.MsgspecError, pa.ArrowException, IndexError):
        return None


def _only_rows(value: bytes, places: Sequence[int]) -> bytes:
    bounds = Limits()
    table = read_table(value, max_bytes=bounds.message_bytes, max_columns=bounds.features)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.take(list(places)))
    return bytes(sink.getvalue().to_pybytes())


def replay(
    settings: Settings,
    chosen: Filter,
    *,
    monotonic: Callable[[], float],
    confirm: Callable[[int], bool],
    dry_run: bool = False,
) -> list[Replayed]:
    """Send the letters that are chosen, the oldest first.

    Args:
        settings: the broker and the topics.
        chosen: which letters.
        monotonic: a clock.
        confirm: asked with the number of messages before any is sent; false ends it, and none is.
        dry_run: only say what would be done.

    Returns:
        Each letter's fate; nothing where ``confirm`` said no.

    Raises:
        TransientError: the broker does not answer, or another replay has begun. What was sent has its receipt: begin again.
    """
    kafka, topics = wiring.require_broker(settings), wiring.topics(settings)
    with Reader(kafka, topics.prefix) as reader:
        found = reader.find(topics.dlq, chosen, monotonic=monotonic)  # 1.
        inputs = (topics.predictions, topics.labels)
        ready = sum(decide(x, found.replayed, inputs) is Fate.SENT for x in found.letters)
        if dry_run or not ready:
            return [draft.replayed for draft in _drafts(reader, topics, found)]
        if not confirm(ready):
            return []
        try:
            producer = new_producer(kafka, logger, f"{topics.prefix}dlq-replay")  # 2.
            again = reader.find(topics.dlq, replace(chosen, limit=1), monotonic=monotonic)  # 3.
            drafts = _drafts(reader, topics, replace(found, replayed=again.replayed))
            return list(_send(producer, topics, drafts))  # 4.
        except KafkaException as err:
            raise TransientError(f"the replay was broken off: {err.args[0].str()}") from err


@dataclass(frozen=True, slots=True)
class _Draft:
    """A letter's fate, and the message to send."""

    replayed: Replayed
    message: dict[str, Any] | None


def _drafts(reader: Reader, topics: Topics, found: Found) -> Iterator[_Draft]:
    inputs, done = (topics.predictions, topics.labels), set(found.replayed)
    for letter in found.letters:
        made = decide(letter, done, inputs)
        message = _message(reader, topics, letter) if made is Fate.SENT else made
        if isinstance(message, Fate):
            yield _Draft(Replayed(letter, message), None)
        else:
            done.add(
                letter.identity
            )  # a crash of the sink may have written two letters of one death
            yield _Draft(Replayed(letter, Fate.SENT), message)


def _message(reader: Reader, topics: Topics, letter: Letter) -> dict[str, Any] | Fate:
    """What to produce, or why that is not possible."""
    original = reader.fetch(letter.died if letter.cut else letter.place)
    if original is None or (letter.cut and original.timestamp()[1] != letter.timestamp_ms):
        return Fate.GONE
    value = original.value()
    if letter.refused is not None:
        value = only(value or b"", [int(place) for place in letter.refused.split(",")])
        if value is None:
            return Fate.INDIVISIBLE
    headers = [
        (name, text)
        for name, text in header_list(original)
        if not name.startswith((PREFIX, REPLAY))
    ]
    headers.append((f"{REPLAY}attempt", str(letter.attempt + 1).encode()))
    key, beside = original.key(), sum(len(name) + len(text or b"") for name, text in headers)
    if len(value or b"") + len(key or b"") + beside > _LARGEST:
        return Fate.TOO_LARGE
    message = {
        "topic": letter.died.topic,
        "partition": letter.died.partition,
        "key": key,
        "value": value,
        "headers": headers,
    }
    if letter.died.topic == topics.labels and letter.timestamp_ms:
        message["timestamp"] = letter.timestamp_ms  # the label's time, if it names none itself
    return message


def _send(producer: Producer, topics: Topics, drafts: Iterator[_Draft]) -> Iterator[Replayed]:
    while chunk := list(islice(drafts, _TOGETHER)):
        ready = [(d.replayed.letter, d.message) for d in chunk if d.message is not None]
        if ready:
            producer.begin_transaction()
            for letter, message in ready:
                producer.produce(**message)
                receipt: Headers = {RECEIPT: letter.identity}
                producer.produce(topics.dlq, partition=letter.place.partition, headers=receipt)
            retried(lambda: producer.commit_transaction(TIMEOUT_S))
        yield from (draft.replayed for draft in chunk)
