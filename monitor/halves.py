"""CloudEvents of loggers that write a request and its response as two events, and how the two become one prediction.

The two come in any order, by the same address, and from loggers that do not try again. So the first is held here until the other
comes, within bounds of number, bytes and time::

    request ──► held ──► its response comes: one prediction, with features and answer
                     └─► it does not, or there is no more room: one prediction without an answer (a request that failed has none)
    response ─► held ──► its request comes: as above
                     └─► it does not: dropped, and counted

A prediction is counted by its request, so never twice, whatever comes twice or too late. What is held lives in memory. The API loses it if it is
killed: the requests that were being answered then, and each response that comes for one of them is counted as one without a request. Who reads
the halves from a log builds it anew (``streams.bridging``): what is held at a time depends on the halves and that time alone, as long as the bounds
are not reached and no id is used again within ``Bounds.horizon_ms``, and not on the order in which they came. Of two halves, ``again_ms`` says whether they are of one prediction. A request is due
``hold_ms`` after it came. A response is ``again_ms`` later, for by then each request that is of its prediction is due, too.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias, get_args
from urllib.parse import unquote

import msgspec

from monitor.errors import InvalidEventError
from monitor.events import ENVELOPE, SIDES, Limits, Side, refuse_deep, where
from monitor.inference import MAX_ID, About

HalfFate = Literal[
    "joined",  # with its other half: one prediction
    "request_alone",  # its response did not come: a prediction without an answer
    "response_alone",  # its request did not come: dropped
    "repeated",  # it was here before: dropped
    "lost",  # a request that waited when the API ended, and the broker did not take it
]
HALF_FATES: Final[tuple[HalfFate, ...]] = get_args(HalfFate)
Key: TypeAlias = tuple[str, str, str]
_AZURE_PARTS: Final = {"onlineEndpoints": "model", "deployments": "version"}
_FEEDBACK: Final = "io.seldon.serving.feedback"


class Envelope(NamedTuple):
    """A CloudEvent: its attributes, names in lower case, and its data."""

    attributes: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class Half:
    """A request or a response, as a logger sent it.

    Attributes:
        part: of a service that logs in several places: KServe's component, Seldon's node.
        body: not parsed, so that it takes as much memory as it has bytes.
        joint: what the other half has, too, where that is not the id of the prediction.
        origin: the message that it came in, for whoever has to give that back.
    """

    side: Side
    about: About
    part: str
    body: bytes
    joint: str = ""
    origin: object = None

    @property
    def key(self) -> Key:
        """What the other half has, too."""
        return self.about.model, self.part, self.joint or self.about.id


def binary(headers: Mapping[str, str], body: bytes) -> Envelope:
    """A CloudEvent in HTTP's binary mode: its attributes are headers ``ce-NAME``, names in lower case."""
    attributes = {
        name[3:]: unquote(text) for name, text in headers.items() if name.startswith("ce-")
    }
    return Envelope(attributes, body)


def structured(value: bytes, limits: Limits) -> Envelope:
    """A CloudEvent that is all in one JSON object.

    Raises:
        InvalidEventError: it is none.
    """
    refuse_deep(value, limits)
    try:
        fields = ENVELOPE.decode(value)
        raws = {name: bytes(raw) for name, raw in fields.items()}
        texts = {name: raw for name, raw in raws.items() if raw[:1] == b'"'}
        attributes = {
            name: msgspec.json.decode(raw, type=str)
            for name, raw in texts.items()
            if name not in ("data", "data_base64")
        }
        if "data_base64" in texts:
            packed = msgspec.json.decode(texts["data_base64"], type=str)
            return Envelope(attributes, base64.b64decode(packed, validate=True))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as err:
        raise InvalidEventError("not_json", f"CloudEvent: {where(err)}") from None
    except (binascii.Error, ValueError):
        raise InvalidEventError("not_json", "CloudEvent: data_base64 is none") from None
    return Envelope(attributes, raws.get("data", b""))


def half_of(
    envelope: Envelope, *, arrival_ms: int, model: str = "", version: str = ""
) -> Half | None:
    """The half in a CloudEvent; ``None``: its type is not one of ``events.SIDES``, so it has to be an event of ours.

    Args:
        envelope: the CloudEvent.
        arrival_ms: stands for a time that is not there.
        model: stands for what it says itself.
        version: likewise.

    Raises:
        InvalidEventError: it does not say of which model it is, or has no id.
    """
    said = envelope.attributes
    kind = said.get("type", "")
    side = SIDES.get(kind)
    if side is None:
        if kind == _FEEDBACK:
            raise InvalidEventError("wrong_type", "feedback is a label: send it to /api/v1/labels")
        return None
    if not envelope.data:
        raise InvalidEventError("missing_field", f"a {side} without a body")
    # Seldon's and Azure's id is of the event; both halves have these.
    ids = (said.get(name) for name in ("correlationid", "requestid", "id"))
    id_ = next(filter(None, ids), "")
    if not 0 < len(id_) <= MAX_ID:
        raise InvalidEventError("missing_field", f"an id of 1 to {MAX_ID} characters, which request and response share")  # fmt: skip
    azure = _azure(said.get("source", "")) if kind.startswith("azureml.") else {}
    named = model or said.get("inferenceservicename") or azure.get("model", "")
    if not named:
        raise InvalidEventError("missing_field", "it does not say of which model it is: add ?model=NAME to the address")  # fmt: skip
    about = About(
        model=named,
        id=id_,
        ts=said.get("time") or arrival_ms,
        version=version,
        endpoint=said.get("endpoint") or azure.get("version", ""),
        tags={n: said[n] for n in ("namespace", "component", "endpoint") if said.get(n)},
    )
    part = said.get("component") or said.get("modelid") or ""
    return Half(side, about, part, envelope.data)


def _azure(source: str) -> dict[str, str]:
    """Of ``/subscriptions/.../onlineEndpoints/ENDPOINT/deployments/DEPLOYMENT``."""
    parts = source.split("/")
    return {_AZURE_PARTS[kind]: name for kind, name in pairwise(parts) if kind in _AZURE_PARTS}


class Pair(NamedTuple):
    """Both halves of one prediction."""

    request: Half
    response: Half


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is held, and for how long.

    Attributes:
        hold_ms: KServe gives a model a minute to answer.
        again_ms: an id that comes again later than this is of another prediction; ``None``: it never is.
        finished: keys of predictions that are through, 400 B each: what comes again is known by them.
    """

    halves: int = 50_000
    bytes: int = 64 << 20
    hold_ms: int = 60_000
    finished: int = 100_000
    again_ms: int | None = None

    @property
    def horizon_ms(self) -> int:
        """What came this long before the time that all is due of has no part in what is held, nor in what may still come for it."""
        return self.hold_ms + 2 * (self.again_ms or 0)


class _Held(NamedTuple):
    half: Half
    at_ms: int
    number: int  # of its deadline: one of another number is of what was held before


class _Through(NamedTuple):
    at_ms: int
    answered: bool


@dataclass(slots=True)
class Halves:
    """Halves that wait for each other. Mutable: it holds them, and knows no lock.

    Attributes:
        clock_ms: the latest time that was asked for, or that something was due at which went beyond the bounds.
    """

    bounds: Bounds = Bounds()
    clock_ms: int = 0
    _held: dict[Key, _Held] = field(default_factory=dict)
    _finished: OrderedDict[Key, _Through] = field(default_factory=OrderedDict)
    _deadlines: list[tuple[int, int, Key]] = field(default_factory=list)  # a heap
    _overtaken: list[Half] = field(default_factory=list)
    _bytes: int = 0
    _count: int = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def fullness(self) -> float:
        """Share of the bounds that is used; beyond 1, what is due next is held no longer."""
        return max(len(self._held) / self.bounds.halves, self._bytes / self.bounds.bytes)

    def meet(self, half: Half, at_ms: int) -> Pair | Literal["held", "repeated", "response_alone"]:
        """Take a half: it has its other one now, is held until that comes, or is of no use. A pair of which nothing comes is given ``back``.

        Args:
            half: the half.
            at_ms: when it came.
        """
        done = self._finished.get(half.key)
        if done is not None and self._together(done.at_ms, at_ms):
            return "repeated" if done.answered or half.side == "request" else "response_alone"
        found = self._held.get(half.key)
        if found is None:
            self._hold(half, at_ms)
            return "held"
        if not self._together(found.at_ms, at_ms):
            return self._displace(found, half, at_ms)
        if found.half.side == half.side:
            return "repeated"
        self._drop(half.key)
        request, response = (half, found.half) if half.side == "request" else (found.half, half)
        self._finish(half.key, at_ms if half is request else found.at_ms, answered=True)
        return Pair(request, response)

    def due(self, now_ms: int, *, bounded: bool = True) -> list[Half]:
        """Halves that are held no longer: for too long, or beyond the bounds, the oldest first. A request of which nothing comes is given ``back``."""
        overtaken, self._overtaken = self._overtaken, []
        return overtaken + list(self._due(now_ms, bounded))

    def _due(self, now_ms: int, bounded: bool) -> Iterator[Half]:
        self.clock_ms = max(self.clock_ms, now_ms)
        while self._held:
            deadline_ms, number, key = self._deadlines[0]
            found = self._held.get(key)
            if found is None or found.number != number:
                heappop(self._deadlines)
                continue
            if deadline_ms > now_ms and not (bounded and self.fullness > 1):
                break
            heappop(self._deadlines)
            self.clock_ms = max(self.clock_ms, deadline_ms)
            self._drop(key)
            if found.half.side == "request":  # of a response alone, the request may still come
                self._finish(key, found.at_ms, answered=False)
            yield found.half

    def back(self, half: Half, at_ms: int) -> None:
        """Nothing has come of it after all: hold it again."""
        self._finished.pop(half.key, None)
        if half.key not in self._held:
            self._hold(half, at_ms)

    def _together(self, one_ms: int, other_ms: int) -> bool:
        again_ms = self.bounds.again_ms
        return again_ms is None or abs(one_ms - other_ms) <= again_ms

    def _displace(self, found: _Held, half: Half, at_ms: int) -> Literal["held", "response_alone"]:
        """Two of one id that are of two predictions: a request stays before a response, and else the later one."""
        rank = [(each.side == "request", time_ms) for each, time_ms in ((half, at_ms), found[:2])]
        if rank[0] < rank[1]:
            if half.side == "request":
                self._overtaken.append(half)
                return "held"
            return "response_alone"
        self._drop(half.key)
        self._overtaken.append(found.half)
        self._hold(half, at_ms)
        return "held"

    def _hold(self, half: Half, at_ms: int) -> None:
        b = self.bounds
        deadline_ms = at_ms + b.hold_ms
        if half.side == "response":
            deadline_ms += b.again_ms or 0
        self._count += 1
        self._held[half.key] = _Held(half, at_ms, self._count)
        self._bytes += _size(half)
        heappush(self._deadlines, (deadline_ms, self._count, half.key))
        if len(self._deadlines) > 2 * len(self._held) + _SPARE:
            self._deadlines = [
                each
                for each in self._deadlines
                if (held := self._held.get(each[2])) is not None and held.number == each[1]
            ]
            heapify(self._deadlines)

    def _drop(self, key: Key) -> None:
        self._bytes -= _size(self._held.pop(key).half)

    def _finish(self, key: Key, at_ms: int, *, answered: bool) -> None:
        self._finished[key] = _Through(at_ms, answered)
        self._finished.move_to_end(key)
        while len(self._finished) > self.bounds.finished:
            self._finished.popitem(last=False)


def _size(half: Half) -> int:
    return len(half.body) + _OBJECTS


_OBJECTS: Final = 2_048  # attributes, keys and the objects around a body
_SPARE: Final = 10_000  # deadlines of halves that are held no longer
