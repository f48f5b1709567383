"""Bytes of the ``predictions`` topic to events: JSON, a JSON array, an Arrow IPC stream, or a CloudEvent around either.

One message may hold many events, and each is accepted or rejected on its own: a bad event never takes a good one with it.
What does not parse at all counts as one rejected event. Which form it is, the ``content-type`` header says, else the first byte.

The id of an event is what its label is joined by: ``id``; where there is none, its join key (``join_key``); where there is none either, the
id of the CloudEvent that it came in alone. An event without any is counted, and never joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from monitor.errors import InvalidEventError

ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
ARROW_START: Final = b"\xff\xff\xff\xff"  # continuation marker of an encapsulated IPC message
CLOUDEVENT_TYPE: Final = "application/cloudevents+json"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
# 1e11 ms is 1973-03-03. A smaller number is seconds; ours are milliseconds.
_SMALLEST_MS: Final = 100_000_000_000
MAX_TEXT: Final = 256
TAG: Final = "tags."
_CLOUDEVENT_ID: Final = ("ce-id", "ce_id")  # as HTTP and as Kafka spell it
_ATTRIBUTES: Final = (("id", "ce_id", "ce-id"), ("time", "ce_time", "ce-time"))
_PLAIN: Final = b"application/json"
_TELLING: Final = frozenset(
    {"type", "ce_type", "ce-type", *(name for pair in _ATTRIBUTES for name in pair[1:])}
)
_AT_ONCE: Final = 256  # messages: one that is no plain event sends as many the long way
MAX_BODY: Final = 1_000_000  # with its headers it is a message that a broker takes, 1 MiB
_CHUNK: Final = 512 << 10  # of events that go in one message
_LEAST_BYTES: Final = 32  # of an event with all that is required; a list of "{}" would cost seconds
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*+")
_MAX_NAME: Final = 128
_FIELD: Final = re.compile(r"`\$\.?([^`]*)`")
# An unterminated string is one token too, and nothing backtracks: linear for any bytes.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a producer may send.

    Attributes:
        max_future_ms: how far ahead of the clock ``ts`` may be.
        max_age_ms: how far behind; ``None`` accepts any history (replays are normal).
    """

    message_bytes: int = 1 << 20
    features: int = 2_000
    json_depth: int = 8
    max_future_ms: int = 300_000
    max_age_ms: int | None = None


class Event(msgspec.Struct):
    """A prediction as a serving app wrote it; unknown fields are ignored. ``ts`` is RFC 3339 or epoch milliseconds."""

    model: str
    ts: datetime | int | float
    id: str | int | None = None
    version: str | int | None = None
    features: dict[str, Any] | None = None
    prediction: Any = None
    score: float | None = None
    latency_ms: float | None = None
    error: Any = None
    tags: dict[str, Any] | None = None
    # ``ts`` in epoch milliseconds, set when the event is checked. The name keeps a producer's own ``ts_ms`` out.
    ts_ms: int = msgspec.field(default=0, name="$ts_ms")
    prediction_id: Any = None


Outcome = Event | InvalidEventError
Side: TypeAlias = Literal["request", "response"]
# Types of CloudEvents that are one side of a prediction: of KServe, Seldon Core and Azure ML.
SIDES: Final[Mapping[str, Side]] = {
    "org.kubeflow.serving.inference.request": "request",
    "org.kubeflow.serving.inference.response": "response",
    "io.seldon.serving.inference.request": "request",
    "io.seldon.serving.inference.response": "response",
    "azureml.inference.model_inputs": "request",
    "azureml.inference.model_outputs": "response",
    "azureml.inference.inputs": "request",
    "azureml.inference.outputs": "response",
    "azureml.inference.request": "request",
    "azureml.inference.response": "response",
}
JSON_TYPE: Final = "application/json"
JSON_HEADERS: Final = {"content-type": JSON_TYPE.encode()}


class Record(NamedTuple):
    """A message for the topic; ``headers`` say what its value is."""

    key: str | None
    value: bytes
    headers: Mapping[str, bytes]


Post: TypeAlias = Callable[[Sequence[Record]], None]
"""Takes messages to the topic, and returns when the broker has all; a ``DriftlineError`` says that it may have some."""
Aliases: TypeAlias = Callable[[str], Sequence[str]]
"""Names of the join key in what is about a model, beside ``id`` and ``prediction_id``, in the order in which they are tried."""
_EVENT: Final = msgspec.json.Decoder(Event)
RAW_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
ENVELOPE: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def no_aliases(_model: str) -> Sequence[str]:
    """Of no model."""
    return ()


def join_key(
    row: Mapping[str, Any], names: Sequence[str], ce_id: str | None = None
) -> str | int | None:
    """What joins an event and its label where there is no ``id``: the first of ``prediction_id`` and ``names`` that is a text or an integer.

    Args:
        row: the fields.
        names: a field; ``tags.NAME``, a tag; ``ce-id`` or ``ce_id``, the field of this name or else the CloudEvent's id.
        ce_id: the id of the CloudEvent that the row came in alone.
    """
    for name in ("prediction_id", *names):
        found = row.get(name)
        if found is None and name.startswith(TAG):
            tags = row.get("tags")
            found = tags.get(name[len(TAG) :]) if isinstance(tags, Mapping) else None
        elif found is None and name in _CLOUDEVENT_ID:
            found = ce_id
        if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
            return found
    return None


def decode_message(
    value: bytes | None,
    headers: Mapping[str, bytes],
    limits: Limits,
    *,
    now_ms: int,
    aliases: Aliases = no_aliases,
) -> list[Outcome]:
    """Each event of a message, accepted or rejected, in order. Never raises for any bytes.

    Args:
        value: the message's value; ``None`` (a tombstone) is one rejected event.
        headers: its headers, names in lower case.
        limits: bounds.
        now_ms: the clock, for ``max_future_ms`` and ``max_age_ms``.
        aliases: asked for the model of an event without ``id``.
    """
    if not value:
        return [InvalidEventError("not_json", "empty message")]
    try:
        refuse_large(value, limits)
        return [_checked(e, limits, now_ms) for e in _parse(value, headers, limits, aliases)]
    except InvalidEventError as err:
        return [err]


def decode_messages(
    messages: Sequence[tuple[bytes | None, Mapping[str, bytes]]],
    limits: Limits,
    *,
    now_ms: int,
    aliases: Aliases = no_aliases,
) -> Iterator[list[Outcome]]:
    """For each message, given by value and headers, what ``decode_message`` says of it. Many plain JSON events in a row cost two thirds."""
    for at in range(0, len(messages), _AT_ONCE):
        chunk = messages[at : at + _AT_ONCE]
        events = _events_of(chunk, limits)
        if events is None:
            for value, headers in chunk:
                yield decode_message(value, headers, limits, now_ms=now_ms, aliases=aliases)
            continue
        for event, (value, headers) in zip(events, chunk, strict=True):
            if event.id is None and value is not None:
                try:
                    event.id = _other_id(event, value, aliases(event.model), None)
                except UnicodeDecodeError:  # in a name that the event does not have
                    yield decode_message(value, headers, limits, now_ms=now_ms, aliases=aliases)
                    continue
            yield [_checked(event, limits, now_ms)]


def _events_of(
    chunk: Sequence[tuple[bytes | None, Mapping[str, bytes]]], limits: Limits
) -> list[Event] | None:
    """The events of messages that are one JSON object each; ``None`` if a message is anything else, or not an event.

    One call parses them all, as lines. A line break in a message would be one between two, so there is none; then a value may reach over several
    lines (two broken messages), but no line holds more than one, and as many values as messages are one of each.
    """
    lines = []
    for value, headers in chunk:
        if (
            value is None
            or value[:1] != b"{"
            or len(value) > limits.message_bytes
            or b"\n" in value
            or value.count(b"{") + value.count(b"[") > limits.json_depth
            or (headers and not is_plain(headers))
        ):
            return None
        lines.append(value)
    try:
        events = _EVENT.decode_lines(b"\n".join(lines))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return events if len(events) == len(lines) else None


def is_plain(headers: Mapping[str, bytes]) -> bool:
    """Whether no header says that the value is anything but an event in JSON."""
    return headers.get("content-type", _PLAIN) == _PLAIN and _TELLING.isdisjoint(headers)


def is_arrow(value: bytes, headers: Mapping[str, bytes]) -> bool:
    """Whether a message says that it is an Arrow stream."""
    # Most messages have no header, and this is asked of each that is read one by one.
    return value[:4] == ARROW_START or (bool(headers) and _content_type(headers) == ARROW_TYPE)


def _content_type(headers: Mapping[str, bytes]) -> str:
    said = headers.get("content-type", b"").decode("ascii", "replace")
    return said.split(";")[0].strip().lower()


def timestamp_ms(ts: datetime | float) -> int:
    """Epoch milliseconds of an event's ``ts``.

    Raises:
        InvalidEventError: no time, or a number that is not in milliseconds.
    """
    if isinstance(ts, datetime):
        if ts.tzinfo is None:
            raise InvalidEventError("bad_timestamp", "ts has no offset: end it with Z or +hh:mm")
        return (ts - _EPOCH) // _MILLISECOND
    if not abs(ts) < 2**62:  # NaN and infinity as well
        raise InvalidEventError("bad_timestamp", "ts is out of range")
    if abs(ts) < _SMALLEST_MS:
        raise InvalidEventError(
            "bad_timestamp", "ts is a number, but not epoch milliseconds: seconds?"
        )
    return round(ts)


def least_ms(limits: Limits, now_ms: int) -> int:
    """The earliest number that is a time within the limits."""
    return max(_SMALLEST_MS, now_ms - (now_ms if limits.max_age_ms is None else limits.max_age_ms))


def _parse(
    value: bytes, headers: Mapping[str, bytes], limits: Limits, aliases: Aliases
) -> Iterator[Outcome]:
    content_type = _content_type(headers)
    if is_arrow(value, headers):
        return _from_arrow(value, limits, aliases)
    start = value.lstrip(b" \t\r\n")[:1]
    if start not in (b"{", b"["):
        raise InvalidEventError(
            "not_json", "starts neither with { nor with [ nor as an Arrow stream"
        )
    refuse_deep(value, limits)
    if content_type == CLOUDEVENT_TYPE:
        return _from_cloudevent(value, limits, aliases)
    said = headers.get("ce_type") or headers.get("ce-type") or headers.get("type")
    if said is not None:  # "type": Seldon's own Kafka logger
        _refuse_side(said.decode("utf-8", "replace"))
    attributes = cloudevent_attributes(headers)
    if start == b"[":
        try:
            items = RAW_LIST.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
            raise InvalidEventError("not_json", where(err)) from None
        refuse_many(items, limits)
        attributes.pop("id", None)  # it names the message, not each of its events
        return (_from_json(bytes(item), attributes, aliases) for item in items)
    return iter((_from_json(value, attributes, aliases),))


def cloudevent_attributes(headers: Mapping[str, bytes]) -> dict[str, str]:
    """``id`` and ``time`` of a CloudEvent whose attributes are headers, as ``ce_id`` or, where a bridge took HTTP's over, ``ce-id``."""
    if not headers:
        return {}
    found = {name: headers.get(kafka, headers.get(http)) for name, kafka, http in _ATTRIBUTES}
    return {name: text.decode("utf-8", "replace") for name, text in found.items() if text}


def parsed(value: bytes, limits: Limits) -> Any:
    """The JSON in a body that is no event of ours.

    Raises:
        InvalidEventError: it is none, or above a bound.
    """
    refuse_large(value, limits)
    refuse_deep(value, limits)
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        raise InvalidEventError("not_json", where(err)) from None


def _from_json(raw: bytes, attributes: Mapping[str, str], aliases: Aliases) -> Outcome:
    try:
        return _completed(raw, attributes, aliases)
    except msgspec.ValidationError as err:
        return validation_error(err)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        return InvalidEventError("not_json", where(err))


def _completed(raw: bytes, attributes: Mapping[str, str], aliases: Aliases) -> Event:
    """The event, completed from the attributes of its CloudEvent: ``ts`` from ``time``, ``id`` from ``id``."""
    if "time" in attributes:
        body = ENVELOPE.decode(raw)
        if "ts" not in body:
            body["ts"] = msgspec.Raw(msgspec.json.encode(attributes["time"]))
            raw = msgspec.json.encode(body)
    event = _EVENT.decode(raw)
    if event.id is None:
        event.id = _other_id(event, raw, aliases(event.model), attributes.get("id"))
    return event


def _other_id(
    event: Event, raw: bytes, names: Sequence[str], ce_id: str | None
) -> str | int | None:
    row = {"prediction_id": event.prediction_id, "tags": event.tags}
    if names:
        fields = ENVELOPE.decode(raw)
        row |= {name: msgspec.json.decode(fields[name]) for name in names if name in fields}
    found = join_key(row, names, ce_id)
    return ce_id if found is None else found


def _from_cloudevent(value: bytes, limits: Limits, aliases: Aliases) -> Iterator[Outcome]:
    try:
        envelope = ENVELOPE.decode(value)
        attributes: dict[str, str] = {
            name: msgspec.json.decode(envelope[name], type=str)
            for name in ("id", "time")
            if name in envelope
        }
        if "type" in envelope:
            _refuse_side(msgspec.json.decode(envelope["type"], type=str))
        body = bytes(envelope["data"]) if "data" in envelope else b""
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as err:
        raise InvalidEventError("not_json", f"CloudEvent: {where(err)}") from None
    if not body:
        raise InvalidEventError("missing_field", "CloudEvent without data")
    if body[:1] != b"[":
        return iter((_from_json(body, attributes, aliases),))
    items = RAW_LIST.decode(body)
    refuse_many(items, limits)
    attributes.pop("id", None)
    return (_from_json(bytes(item), attributes, aliases) for item in items)


def _refuse_side(of_type: str) -> None:
    """One side of a prediction, on the topic: nothing here remembers it until the other comes."""
    if of_type in SIDES:
        raise InvalidEventError(
            "missing_field",
            f"a {SIDES[of_type]} alone: its logger has to post to /api/v1/cloudevents, which joins it with the other side, or to a topic that `driftline run bridge` reads",
        )


def refuse_large(value: bytes, limits: Limits) -> None:
    """Raise ``InvalidEventError`` where a message is larger than its bound."""
    if len(value) > limits.message_bytes:
        detail = f"{len(value)} bytes; the bound is {limits.message_bytes}"
        raise InvalidEventError("too_large", detail)


def refuse_deep(value: bytes, limits: Limits) -> None:
    """Raise ``InvalidEventError`` where JSON is nested deeper than its bound."""
    if _depth_over(value, limits.json_depth):
        raise InvalidEventError("too_large", f"nested deeper than {limits.json_depth}")


def refuse_many(items: Sequence[object], limits: Limits) -> None:
    """Raise ``InvalidEventError`` where there are more than can be events in a message."""
    most = limits.message_bytes // _LEAST_BYTES
    if len(items) > most:
        raise InvalidEventError("too_large", f"{len(items)} events; the bound is {most}")


def _from_arrow(value: bytes, limits: Limits, aliases: Aliases) -> Iterator[Outcome]:
    """Rows of an IPC stream: columns as the JSON fields, ``features`` and ``tags`` as structs or maps."""
    # Serving apps check their events by this module, and need not load Arrow for it (0.2 s, 1 GiB of addresses).
    from monitor.arrow import read_rows

    rows = read_rows(value, max_bytes=limits.message_bytes, max_columns=limits.features)
    return (_from_row(row, aliases) for row in rows)


def _from_row(row: dict[str, Any], aliases: Aliases) -> Outcome:
    for name in ("features", "tags"):
        if isinstance(row.get(name), list):  # a map column arrives as pairs
            try:
                row[name] = dict(row[name])
            except (TypeError, ValueError):
                return InvalidEventError("wrong_type", f"{name} is neither a struct nor a map")
    try:
        event = msgspec.convert({k: v for k, v in row.items() if v is not None}, Event)
    except msgspec.ValidationError as err:
        return validation_error(err)
    if event.id is None:
        event.id = join_key(row, aliases(event.model))
    return event


def _checked(event: Outcome, limits: Limits, now_ms: int) -> Outcome:
    if isinstance(event, InvalidEventError):
        return event
    try:
        event.ts_ms = timestamp_ms(event.ts)
    except InvalidEventError as err:
        return err
    if event.ts_ms < 0:
        return InvalidEventError("bad_timestamp", "ts is before 1970")
    if event.ts_ms > now_ms + limits.max_future_ms:
        return InvalidEventError(
            "future_timestamp", f"{(event.ts_ms - now_ms) // 1000} s ahead of the clock"
        )
    if limits.max_age_ms is not None and event.ts_ms < now_ms - limits.max_age_ms:
        return InvalidEventError("too_old", f"{(now_ms - event.ts_ms) // 1000} s behind the clock")
    return _checked_content(event, limits)


def _checked_content(event: Event, limits: Limits) -> Outcome:
    if not is_name(event.model):
        return InvalidEventError(
            "wrong_type", "model is not a name of 1 to 128 letters, digits and ._/-"
        )
    if not event.features and event.prediction is None and event.error is None:
        return InvalidEventError("missing_field", "neither features nor prediction")
    if event.features is not None and len(event.features) > limits.features:
        return InvalidEventError(
            "too_large", f"{len(event.features)} features; the bound is {limits.features}"
        )
    event.version = "" if event.version is None else str(event.version)[:MAX_TEXT]
    event.id = None if event.id is None else str(event.id)[:MAX_TEXT]
    return event


def is_name(model: str) -> bool:
    """Whether a model may be called this."""
    return len(model) <= _MAX_NAME and _is_name(model)  # long texts are not remembered


@lru_cache(maxsize=1_024)
def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def validation_error(err: msgspec.ValidationError) -> InvalidEventError:
    """Why a field is unusable, without its value."""
    text = str(err)
    if "missing required field" in text:
        return InvalidEventError("missing_field", text)
    path = _FIELD.search(text)
    if path is not None and path[1] == "ts":
        return InvalidEventError("bad_timestamp", "ts is neither RFC 3339 nor a number")
    # The path and the types, never the value.
    return InvalidEventError("wrong_type", text if path is None else text[: path.end()])


def where(err: Exception) -> str:
    """What a parser says, without the input that it quotes."""
    position = re.search(r"\(byte \d+\)", str(err))
    return f"malformed {position[0]}" if position else "malformed"


def _depth_over(value: bytes, limit: int) -> bool:
    """Whether the JSON text is nested deeper than ``limit``. The count of brackets settles it for nearly every message."""
    if value.count(b"{") + value.count(b"[") <= limit:
        return False
    depth = 0
    for token in _TOKEN.finditer(value):
        mark = token[0][:1]
        depth += (mark in b"{[") - (mark in b"}]")
        if depth > limit:
            return True
    return False


def parts(
    events: Iterable[tuple[str | None, bytes]],
) -> Iterator[list[tuple[str | None, bytes]]]:
    """Events, by key and JSON, in as few messages as they fit into."""
    part: list[tuple[str | None, bytes]] = []
    size = 0
    for event in events:
        if part and size + len(event[1]) > _CHUNK:
            yield part
            part, size = [], 0
        part.append(event)
        size += len(event[1]) + 1
    if part:
        yield part


def record_of(part: Sequence[tuple[str | None, bytes]]) -> Record:
    """The message of a part: an event under its key, or an array."""
    if len(part) == 1:
        key, value = part[0]
        return Record(key, value, JSON_HEADERS)
    return Record(None, b"[" + b",".join(value for _, value in part) + b"]", JSON_HEADERS)
