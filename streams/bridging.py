"""Requests and responses that a server writes to Kafka itself, to predictions: the pure part of the bridge. No I/O, no clock.

::

    message ──► half: model, side and id, by topic, key and headers ──► Halves ──► events and dead letters
                its timestamp ──► Tide: the time that all partitions have passed ─┘

What is held between two batches is not stored: it is what the input still tells. With the offsets that are committed, the bridge keeps one time,
the one that everything was due by. From the messages before these offsets it holds again exactly what it held (``Join.recall``), since what is
held depends on their timestamps and that time alone (``monitor.halves``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from monitor import oip
from monitor.captures import body_of
from monitor.errors import InvalidEventError
from monitor.events import (
    CLOUDEVENT_TYPE,
    Event,
    Limits,
    Side,
    decode_message,
    parsed,
    refuse_large,
)
from monitor.halves import Bounds, Envelope, Half, HalfFate, Halves, Pair, structured
from monitor.halves import half_of as cloudevent_half
from monitor.inference import MAX_ID, About, Reading, event_rows
from streams.delivery import Target

_SIDES: Final[Mapping[str, Side]] = {
    **dict.fromkeys(("inputs", "input", "requests", "request"), "request"),
    **dict.fromkeys(("outputs", "output", "responses", "response"), "response"),
}
_MODEL: Final = "mlserver-model"
_VERSION: Final = "mlserver-version"
_REQUEST_ID: Final = "x-request-id"
_PIPELINE: Final = "pipeline"


@dataclass(frozen=True, slots=True)
class Place:
    """What the name of a topic says. ``part`` is the name without its side, so that halves of two namespaces do not meet; ``side``: ``None`` where messages say it."""

    side: Side | None
    model: str
    part: str
    tags: Mapping[str, str]


class Incoming(NamedTuple):
    """A message of another server, of a topic that is read; header names are in lower case."""

    topic: str
    partition: int
    offset: int
    place: Place
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    ts_ms: int
    origin: object = None


@dataclass(frozen=True, slots=True)
class Naming:
    """Which topics there are to read, and what their names say.

    Attributes:
        pattern: of the whole name. Group ``side`` is one of ``inputs``, ``outputs`` and their like; without it, messages are CloudEvents. Group ``model``
            names the model; any other is a tag.
        ours: how topics of Driftline begin: they are none of these.
    """

    pattern: re.Pattern[str]
    ours: str

    def place(self, topic: str) -> Place | None:
        """What a topic's name says; ``None`` if it is not to be read."""
        found = None if topic.startswith(self.ours) else self.pattern.fullmatch(topic)
        if found is None:
            return None
        said = {name: text for name, text in found.groupdict().items() if text}
        if "side" not in self.pattern.groupindex:
            return Place(None, said.pop("model", ""), topic, said)
        side = _SIDES.get(said.pop("side", ""))
        if side is None:
            return None
        start, end = found.span("side")
        return Place(side, said.pop("model", ""), topic[:start] + topic[end:], said)


class Letter(NamedTuple):
    """A message of which nothing comes, or not all of its rows."""

    origin: object
    error: InvalidEventError


@dataclass(slots=True)
class Outcome:
    """What messages cause. Mutable: it is filled message by message. ``events``: key and JSON of each."""

    events: list[tuple[str | None, bytes]] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    fates: list[HalfFate] = field(default_factory=list)


class Join:
    """Halves to predictions. Mutable: it owns the halves that wait.

    Args:
        bounds: of what is held, with ``again_ms``.
        limits: of an event.
        reading: how the bodies of a model are read.
    """

    def __init__(self, bounds: Bounds, limits: Limits, reading: Callable[[str], Reading]) -> None:
        self._limits, self._reading = limits, reading
        self.halves = Halves(bounds)

    def take(self, message: Incoming, now_ms: int, into: Outcome) -> None:
        """Take a message: it completes a prediction, is held, or nothing comes of it.

        Args:
            message: of one of the topics.
            now_ms: Unix milliseconds; what is further ahead than clocks differ is refused.
            into: what comes of it.
        """
        half = self._half(message, now_ms, into)
        if half is None:
            return
        mode = self._mode(half)
        if mode != "all":
            if mode == half.side:
                self._alone(into, now_ms, half)
            return
        met = self.halves.meet(half, message.ts_ms)
        if isinstance(met, Pair):
            self._pair(into, now_ms, met)
        elif met != "held":
            into.fates.append(met)

    def recall(self, messages: Iterable[Incoming], clock_ms: int, now_ms: int) -> None:
        """Hold again what was held of messages before the committed offsets: of the others has come what was to come.

        Args:
            messages: of any partitions, those of each in their order.
            clock_ms: the time that is committed with the offsets.
            now_ms: as above.
        """
        for message in messages:
            half = self._half(message, now_ms, Outcome())
            if half is not None and self._mode(half) == "all":
                self.halves.meet(half, message.ts_ms)
        self.halves.due(clock_ms, bounded=False)

    def due(self, clock_ms: int, now_ms: int, into: Outcome) -> None:
        """What is due by a time goes on alone, and so does what there is no room for: then ``halves.clock_ms`` is ahead of that time."""
        while due := self.halves.due(max(clock_ms, self.halves.clock_ms)):
            for half in due:
                if half.side == "response":
                    into.fates.append("response_alone")
                elif self._alone(into, now_ms, half):
                    into.fates.append("request_alone")

    def _mode(self, half: Half) -> str:
        return self._reading(half.about.model).ingest.mode

    def _half(self, message: Incoming, now_ms: int, into: Outcome) -> Half | None:
        """The half in a message, unless it is refused."""
        try:
            return half_of(message, self._limits, now_ms=now_ms)
        except InvalidEventError as err:
            into.letters.append(Letter(message.origin, err))
            return None

    def _alone(self, into: Outcome, now_ms: int, half: Half) -> bool:
        """Events of a half; whether there are any."""
        try:
            rows = self._rows(half)
        except InvalidEventError as err:
            into.letters.append(Letter(half.origin, err))
            return False
        self._add(into, now_ms, rows, half)
        return True

    def _pair(self, into: Outcome, now_ms: int, pair: Pair) -> None:
        """Events of both. If a body is bad, the other half goes on alone; if they only do not fit together, neither does."""
        request, response = pair
        try:
            rows = self._rows(_timed(request, response), response)
        except InvalidEventError as err:
            bad = [half for half in pair if not self._readable(half, into)]
            if not bad:
                into.letters += [Letter(half.origin, err) for half in pair]
            elif bad == [response] and self._alone(into, now_ms, request):
                into.fates.append("request_alone")
            elif bad == [request]:
                into.fates.append("response_alone")
        else:
            self._add(into, now_ms, rows, *pair)
            into.fates.append("joined")

    def _add(self, into: Outcome, now_ms: int, rows: Sequence[bytes], *halves: Half) -> None:
        """Rows that are events; of the others, the first is told with the messages that they are of."""
        refused = None
        for i, row in enumerate(rows):
            (outcome,) = decode_message(row, {}, self._limits, now_ms=now_ms)
            if isinstance(outcome, Event):
                into.events.append((None if outcome.id is None else str(outcome.id), row))
            elif refused is None:
                refused = InvalidEventError(outcome.reason, f"row {i} of {len(rows)}: {outcome.detail}")  # fmt: skip
        if refused is not None:
            into.letters += [Letter(half.origin, refused) for half in halves]

    def _rows(self, *halves: Half) -> list[bytes]:
        """Events as JSON; the version is the response's, or else the request's."""
        about, bodies = halves[0].about, {h.side: _parsed(h.side, h.body, self._limits) for h in halves}  # fmt: skip
        request, response = bodies.get("request"), bodies.get("response")
        about = replace(about, endpoint=_said(request, "model_version"))
        return event_rows(about, self._reading(about.model), request, response)

    def _readable(self, half: Half, into: Outcome) -> bool:
        try:
            self._rows(half)
        except InvalidEventError as err:
            into.letters.append(Letter(half.origin, err))
            return False
        return True


def _timed(request: Half, response: Half) -> Half:
    """The request, with the time until its response. A CloudEvent's time is text, and of the logger: of such there is none."""
    asked, answered = request.about.ts, response.about.ts
    if isinstance(asked, str) or isinstance(answered, str) or answered < asked:
        return request
    return replace(request, about=replace(request.about, latency_ms=answered - asked))


def half_of(message: Incoming, limits: Limits, *, now_ms: int) -> Half:
    """The half in a message.

    The model is that of the topic's name, or else of header ``mlserver-model``, or else the one that the body names. What request and response share
    is the message's key, or else header ``x-request-id``, or else the body's id; the prediction's id is that header where there is one, since it is
    what the caller knows, too.

    Raises:
        InvalidEventError: it has no body, or no model, id or time of its own.
    """
    value, side = message.value, message.place.side
    if not value:
        raise InvalidEventError("missing_field", f"a {side or 'message'} without a body")
    refuse_large(value, limits)
    _refuse_time(message.ts_ms, now_ms, limits)
    if side is None:
        return _cloudevent(message, value, limits)
    return _half(message, value, side, limits)


def _cloudevent(message: Incoming, value: bytes, limits: Limits) -> Half:
    """The half in a CloudEvent: its attributes are headers, with ``ce_`` or, as Seldon Core v1 writes them, without; or all is in its body."""
    place, said = message.place, {name: _text(value) for name, value in message.headers.items()}
    if said.get("content-type", "").startswith(CLOUDEVENT_TYPE):
        envelope = structured(value, limits)
    else:
        envelope = Envelope({name.removeprefix("ce_"): text for name, text in said.items()}, value)
    half = cloudevent_half(envelope, arrival_ms=message.ts_ms, model=place.model)
    if half is None:
        raise InvalidEventError("wrong_type", "a CloudEvent whose type is neither that of a request nor that of a response")  # fmt: skip
    tags = {**place.tags, **half.about.tags}
    return replace(
        half,
        about=replace(half.about, tags=tags),
        part=f"{place.part}/{half.part}",
        body=half.body.strip(),
        origin=message.origin,
    )


def _half(message: Incoming, value: bytes, side: Side, limits: Limits) -> Half:
    place, headers = message.place, message.headers
    model, key = place.model or _text(headers.get(_MODEL)), _text(message.key)
    request_id = _text(headers.get(_REQUEST_ID))
    if not model or not (key or request_id):
        said = _parsed(side, value, limits)
        model = model or _said(said, "model_name")
        key = key or request_id or _said(said, "id")
    joint = key or request_id
    if not model:
        raise InvalidEventError("missing_field", "neither its topic nor a header nor its body names the model")  # fmt: skip
    if not 0 < len(joint) <= MAX_ID or len(request_id) > MAX_ID:
        raise InvalidEventError("missing_field", f"a key of 1 to {MAX_ID} characters, which request and response share")  # fmt: skip
    tags = dict(place.tags)
    if pipeline := _text(headers.get(_PIPELINE)):
        tags[_PIPELINE] = pipeline
    about = About(
        model=model,
        id=request_id or joint,
        ts=message.ts_ms,
        version=_text(headers.get(_VERSION)),
        tags=tags,
    )
    return Half(side, about, place.part, value, joint, message.origin)


def _refuse_time(ts_ms: int, now_ms: int, limits: Limits) -> None:
    if ts_ms < 0:
        raise InvalidEventError("bad_timestamp", "the message has no timestamp")
    if ts_ms - now_ms > limits.max_future_ms:
        raise InvalidEventError("future_timestamp", f"{(ts_ms - now_ms) / 1_000:.0f} s ahead")


def _parsed(side: Side, value: bytes, limits: Limits) -> object:
    """A body: JSON if it begins as an object or an array, which protobuf cannot, for there it would be a group."""
    if value[:1] in (b"{", b"["):
        return body_of(parsed(value, limits), limits)
    read = oip.request_body if side == "request" else oip.response_body
    return read(value, limits)


def _said(body: object, name: str) -> str:
    found: Any = body.get(name) if isinstance(body, dict) else None
    return found if isinstance(found, str) else ""


def _text(value: bytes | None) -> str:
    """Text; of what is none, nothing."""
    try:
        return value.decode() if value else ""
    except UnicodeDecodeError:
        return ""


@dataclass(slots=True)
class _Shore:
    """How far a partition was read. ``newest_ms``: its latest timestamp; ``None``: nothing was read yet."""

    newest_ms: int | None = None
    ended: bool = False


class Tide:
    """The time that every partition has passed. Mutable: it rises with what is read of each.

    A partition that is read to its end has passed the present; any other, its latest timestamp. So after an outage, requests do not count as unanswered
    only because the responses come from a partition that is behind.
    """

    def __init__(self, clock_ms: int = 0) -> None:
        self.clock_ms = clock_ms
        self._shores: dict[Target, _Shore] = {}

    def hold(self, targets: Iterable[Target]) -> None:
        """These partitions are read now, beside the others."""
        for target in targets:
            self._shores.setdefault(target, _Shore())

    def drop(self, target: Target) -> None:
        """This one is read no more."""
        self._shores.pop(target, None)

    def came(self, target: Target, ts_ms: int) -> None:
        """A message was read."""
        shore = self._shores.setdefault(target, _Shore())
        shore.ended = False
        if shore.newest_ms is None or ts_ms > shore.newest_ms:
            shore.newest_ms = ts_ms

    def ended(self, target: Target) -> None:
        """There is nothing left to read."""
        self._shores[target].ended = True

    def rise(self, now_ms: int) -> int:
        """The time that all have passed by now; it never goes back, nor beyond the present."""
        passed = [
            now_ms if shore.ended else min(now_ms, shore.newest_ms or 0)
            for shore in self._shores.values()
        ]
        self.clock_ms = max(self.clock_ms, min(passed, default=self.clock_ms))
        return self.clock_ms

    def ahead(self, by_ms: int) -> set[Target]:
        """The partitions that are further ahead than this of the one that is furthest behind: what they bring has to be held until that one is there."""
        behind = [s.newest_ms for s in self._shores.values() if not s.ended and s.newest_ms]
        if not behind:
            return set()
        limit_ms = min(behind) + by_ms
        return {t for t, s in self._shores.items() if s.newest_ms and s.newest_ms > limit_ms}

    def pause(self, targets: Iterable[Target]) -> None:
        """Nothing more is read of these for now: of their ends nobody knows."""
        for target in targets:
            if target in self._shores:
                self._shores[target].ended = False
