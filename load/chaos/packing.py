"""From events to messages: single JSON, JSON arrays, Arrow streams and CloudEvents, and those that nobody can read.

A packet is one message: rows of one partition that follow each other. It is sent when the last of its events has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from load.chaos.shapes import Bools, Column, Rng, Shape
from load.chaos.tape import Message
from monitor.binning import Ints

Form = Literal["json", "structured", "binary", "array", "arrow"]
FORMS: Final[tuple[Form, ...]] = ("json", "structured", "binary", "array", "arrow")
_SHARES: Final = (0.963, 0.015, 0.015, 0.0055, 0.0015)  # of the messages
_ARRAY: Final = (2, 21)  # events, end exclusive
_ARROW: Final = (20, 121)
_BAD: Final = 0.002  # of the events
_REPEATED: Final = 0.001
_ARROW_TYPE: Final = b"application/vnd.apache.arrow.stream"
_CLOUDEVENT_TYPE: Final = b"application/cloudevents+json; charset=utf-8"
_encode: Final = msgspec.json.Encoder().encode
Body = dict[str, Any]


class Packet(NamedTuple):
    """Rows that travel in one message."""

    last: int
    partition: int
    form: Form
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of each row beside being sent: ``(n,)`` whether it is malformed, and how; and whether the message before it is sent again in its place."""

    bad: Bools
    how: Ints
    repeated: Bools

    @classmethod
    def drawn(cls, rng: Rng, n: int, *, clean: bool) -> Fates:
        """Fates of ``n`` rows; of clean ones, none."""
        bad, repeated = rng.random(n) < _BAD, rng.random(n) < _REPEATED
        return cls(bad & (not clean), rng.integers(1 << 30, size=n), repeated & (not clean))


def packets(rng: Rng, partition: Ints, model: Ints) -> list[Packet]:
    """Divide rows into packets, in order of production. An Arrow packet has one model: the others' rows in it become its own, in ``model``."""
    found: list[Packet] = []
    for p in np.unique(partition).tolist():
        rows = np.flatnonzero(partition == p)
        form = rng.choice(len(FORMS), len(rows), p=_SHARES)
        size = np.ones(len(rows), dtype=np.int64)
        for name, (low, high) in (("array", _ARRAY), ("arrow", _ARROW)):
            chosen = form == FORMS.index(name)
            size[chosen] = rng.integers(low, high, np.count_nonzero(chosen))
        ends = np.cumsum(size)
        cut = np.concatenate(([0], ends[ends < len(rows)], [len(rows)])).tolist()
        for kind, start, end in zip(form.tolist(), cut, cut[1:], strict=False):
            mine = rows[start:end]
            if FORMS[kind] == "arrow":
                model[mine] = model[mine[0]]
            found.append(Packet(int(mine[-1]), p, FORMS[kind], mine.tolist()))
    return sorted(found)


def pack(
    packets: Sequence[Packet],
    shapes: Sequence[Shape],
    model: Ints,
    bodies: Sequence[Body],
    ts_ms: Ints,
    fates: Fates,
) -> Iterator[Message]:
    """The messages of packets. Each row is one event, or one that is rejected."""
    before: dict[int, Message] = {}
    for packet in packets:
        row, place = packet.rows[0], packet.partition
        if len(packet.rows) > 1 or packet.form in ("array", "arrow"):
            bad = [i for i in packet.rows if fates.bad[i]]
            how = int(fates.how[row])
            if packet.form == "arrow":
                yield _arrow(packet, shapes[int(model[row])], bodies, ts_ms, bad, how)
            else:
                yield Message(place, _array([bodies[i] for i in packet.rows], packet, bad, how))
            continue
        if fates.repeated[row] and place in before:
            yield before[place]
            continue
        if fates.bad[row]:
            value, headers = _unreadable(bodies[row], int(fates.how[row]))
        else:
            value, headers = _FORM[packet.form](bodies[row])
        before[place] = Message(place, value, headers)
        yield before[place]


def times(rng: Rng, ts_ms: Ints) -> list[int | float | str]:
    """Each time in one of the forms that ``ts`` may have; all of them mean this millisecond."""
    chosen = rng.choice(5, len(ts_ms), p=[0.7, 0.1, 0.1, 0.05, 0.05])
    drawn: list[int | float | str] = ts_ms.tolist()
    for i in np.flatnonzero(chosen).tolist():
        ts = int(ts_ms[i])
        utc = str(np.datetime64(ts, "ms"))
        match int(chosen[i]):
            case 1:
                drawn[i] = ts + (0.25 if ts % 2 else 0.5)  # a half goes to the even one
            case 2:
                drawn[i] = f"{utc}Z"
            case 3:
                drawn[i] = f"{utc}999+00:00"  # microseconds are cut off
            case _:
                drawn[i] = f"{np.datetime64(ts + 7_200_000, 'ms')}+02:00"
    return drawn


def _json(body: Body) -> tuple[bytes, Mapping[str, bytes]]:
    return _encode(body), {}


def _structured(body: Body) -> tuple[bytes, Mapping[str, bytes]]:
    """A CloudEvent whose envelope has the time."""
    envelope = {"specversion": "1.0", "type": "prediction", "source": "/chaos", "id": "ce"}
    inner = {name: value for name, value in body.items() if name != "ts"}
    time = body["ts"]
    if isinstance(time, str):
        return _encode({**envelope, "time": time, "data": inner}), {
            "content-type": _CLOUDEVENT_TYPE
        }
    return _encode({**envelope, "data": body}), {"content-type": _CLOUDEVENT_TYPE}


def _binary(body: Body) -> tuple[bytes, Mapping[str, bytes]]:
    """A CloudEvent whose headers have the time, if it is a text there."""
    headers = {"ce_specversion": b"1.0", "ce_id": b"ce", "content-type": b"application/json"}
    time = body["ts"]
    if isinstance(time, str):
        headers["ce_time"] = time.encode()
        body = {name: value for name, value in body.items() if name != "ts"}
    return _encode(body), headers


_FORM: Final[Mapping[Form, Callable[[Body], tuple[bytes, Mapping[str, bytes]]]]] = {
    "json": _json,
    "structured": _structured,
    "binary": _binary,
}
_DEEP: Final = {"a": [[[[[[[[1]]]]]]]]}
# What makes one event unreadable, also inside an array: changes of its body. ``...`` leaves a field out.
_CHANGES: Final[tuple[Mapping[str, Any], ...]] = (
    {"ts": ...},
    {"model": 7},
    {"features": [1, 2]},
    {"ts": 1_772_323_200},  # seconds
    {"ts": "2026-03-01T00:00:00"},  # no offset
    {"ts": "2126-03-01T00:00:00Z"},
    {"ts": None},
    {"model": "no such name!"},
    {"features": ..., "prediction": ..., "error": ...},
    {"score": "0.7"},
    {"version": 2.5},
    {"tags": "north"},
)
# What makes a whole message unreadable.
_BREAKS: Final[tuple[Callable[[bytes], tuple[bytes, Mapping[str, bytes]]], ...]] = (
    lambda _: (b"", {}),
    lambda text: (text[: len(text) // 2], {}),
    lambda _: (b"prediction=1;ts=now", {}),
    lambda text: (text + b"}", {}),
    lambda text: (text.replace(b'"features":{', b'"features":{"\xff":1,'), {}),
    lambda text: (text.replace(b'"prediction":', b'"prediction":NaN,"was":'), {}),
    lambda text: (text[:-1] + b',"tags":' + _encode(_DEEP) + b"}", {}),
    lambda _: (b"\xff\xff\xff\xff\x10\x00\x00\x00torn stream", {}),
    lambda text: (text, {"content-type": _ARROW_TYPE}),
    lambda _: (b'{"specversion":"1.0","id":"ce"}', {"content-type": _CLOUDEVENT_TYPE}),
    lambda text: (b'{"id":5,"data":' + text + b"}", {"content-type": _CLOUDEVENT_TYPE}),
)


def _changed(body: Body, how: int) -> Body:
    changed = {**body, **_CHANGES[how % len(_CHANGES)]}
    return {name: value for name, value in changed.items() if value is not ...}


def _unreadable(body: Body, how: int) -> tuple[bytes, Mapping[str, bytes]]:
    which = how % (len(_CHANGES) + len(_BREAKS))
    if which < len(_CHANGES):
        return _encode(_changed(body, which)), {}
    return _BREAKS[which - len(_CHANGES)](_encode(body))


def _array(bodies: Sequence[Body], packet: Packet, bad: Sequence[int], how: int) -> bytes:
    items: list[Any] = list(bodies)
    for i in bad:
        at = packet.rows.index(i)
        items[at] = _changed(bodies[at], how + i) if how % 5 else how
    return b" \n" + _encode(items) if how % 7 == 0 else _encode(items)


def _arrow(
    packet: Packet,
    shape: Shape,
    bodies: Sequence[Body],
    ts_ms: Ints,
    bad: Sequence[int],
    how: int,
) -> Message:
    """A stream of one or two batches. A malformed row has no time or no model."""
    rows = [bodies[i] for i in packet.rows]
    lost = set(bad)
    ts = [None if i in lost and i % 2 else int(ts_ms[i]) for i in packet.rows]
    names = [None if i in lost and not i % 2 else shape.model for i in packet.rows]
    features = pa.StructArray.from_arrays(
        [
            _typed(column, [row["features"].get(column.name) for row in rows])
            for column in shape.columns
        ],
        names=[column.name for column in shape.columns],
    )
    batch = pa.record_batch(
        {
            "id": pa.array([str(row.get("id", "")) for row in rows]),
            "ts": pa.array(ts, pa.timestamp("ms", "UTC") if how % 2 else pa.int64()),
            "model": pa.array(names, pa.string()),
            "version": pa.array([str(row["version"]) for row in rows]).dictionary_encode(),
            "features": features,
            "prediction": pa.array(_predictions(shape, rows)),
            "score": pa.array([row["score"] for row in rows], pa.float64()),
            "latency_ms": pa.array([row["latency_ms"] for row in rows], pa.float32()),
            "error": pa.array([row.get("error") for row in rows], pa.string()),
            "tags": pa.array([_region(row) for row in rows], _TAGS),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        half = len(rows) // 2 if how % 3 == 0 else 0
        for part in (batch.slice(0, half), batch.slice(half)):
            writer.write_batch(part)
    headers = {"content-type": _ARROW_TYPE} if how % 4 else {}  # else told by the first bytes
    return Message(packet.partition, sink.getvalue().to_pybytes(), headers)


def _typed(column: Column, values: Sequence[Any]) -> pa.Array:
    """A column of one type. What is of another becomes what only Arrow can say: NaN, and both infinities."""
    match column.kind:
        case "category":
            return pa.array([v if isinstance(v, str) else None for v in values], pa.string())
        case "code":
            return pa.array([v if type(v) is int else None for v in values], pa.int64())
        case "flag":
            return pa.array([v if type(v) is bool else None for v in values], pa.bool_())
        case _:
            return pa.array([_NOT_FINITE.get(type(v), v) for v in values], pa.float64())


_NOT_FINITE: Final[Mapping[type, float]] = {
    str: float("nan"),
    list: float("inf"),
    dict: float("-inf"),
    bool: 1.0,
}
_TAGS: Final = pa.map_(pa.string(), pa.string())


def _predictions(shape: Shape, rows: Sequence[Body]) -> list[Any]:
    values = (row["prediction"] for row in rows)
    return [None if isinstance(v, list) else v for v in values]


def _region(row: Body) -> list[tuple[str, Any]] | None:
    tags = row.get("tags")
    if tags is None:
        return None
    return [(name, v if isinstance(v, str) else None) for name, v in tags.items()]
