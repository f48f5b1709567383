"""Whatever bytes come: an event, or a reason why not, in bounded time and memory. The same for records of our own."""

from __future__ import annotations

import gzip
import io
import resource
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitor import reference as references
from monitor import wire
from monitor.errors import REJECT_REASONS, IncompatibleError, InvalidEventError
from monitor.events import (
    ARROW_TYPE,
    CLOUDEVENT_TYPE,
    Event,
    Limits,
    Outcome,
    decode_message,
    decode_messages,
)
from monitor.reference import Reference
from monitor.spec import ModelSpec
from tests.monitor.builders import NOW, START, body, columns, event, past, spec
from tests.simulation.mutants import in_time, mutants

LIMITS = Limits()
MEGABYTE = 1 << 20
MOST_BYTES = (
    256 * MEGABYTE
)  # for a message of 1 MiB: its rows may take 16 times as much, and a parser a few copies
SPEC = spec(features={"wind": {"type": "numeric"}}, segments=[])
RECORD = references.dump(
    references.build(SPEC, lambda: [columns(past(np.random.default_rng(3), 200))]), SPEC
)
CLOUD = {"specversion": "1.0", "id": "1", "source": "/x", "type": "p", "time": "2013-02-01T00:00:00Z", "data": event(START)}  # fmt: skip


def stream(columns: Mapping[str, Any], compression: str | None = None) -> bytes:
    """An Arrow IPC stream."""
    table, sink = pa.table(dict(columns)), io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


ROWS = {
    "ts": pa.array([START, START + 1], pa.timestamp("ms", "UTC")),
    "model": ["m", "m"],
    "version": pa.array(["7", "8"]).dictionary_encode(),
    "features": [{"wind": 1.5, "carrier": "UA"}, {"wind": None, "carrier": "B6"}],
    "tags": pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
    "prediction": [1, 0],
}
HEADERS: tuple[dict[str, bytes], ...] = (
    {},
    {"content-type": ARROW_TYPE.encode()},
    {"content-type": CLOUDEVENT_TYPE.encode()},
    {"content-type": b"\xff\xfe", "ce_id": b"\xff", "ce_time": b"2013"},
    {"ce_id": b"7", "ce_time": b"2013-02-01T00:00:00Z"},
)
EVENTS = (
    body(event(START)),
    body([event(START), event(START + 1, features={"wind": None, "x": [1, {"y": 2}]})]),
    body(CLOUD),
    body(CLOUD | {"data": [event(START)]}),
    stream(ROWS),
    stream(ROWS, "zstd"),
    stream(ROWS, "lz4"),
)


def decoded(value: bytes, headers: Mapping[str, bytes]) -> None:
    """The property."""
    for outcome in in_time(lambda: decode_message(value, headers, LIMITS, now_ms=NOW)):
        if isinstance(outcome, InvalidEventError):
            assert outcome.reason in REJECT_REASONS
            assert len(outcome.detail) < 1_000
        else:
            assert isinstance(outcome, Event)
            assert abs(outcome.ts_ms) < 2**62
            assert outcome.ts_ms <= NOW + LIMITS.max_future_ms
            assert outcome.features is None or len(outcome.features) <= LIMITS.features


@given(st.binary(max_size=200), st.sampled_from(HEADERS))
@example(b'{"ts":1,"model":"\xff","prediction":1}', {})
@example(b'[{"ts":1,"model":"m","features":{"\xff":1}}]', {"ce_id": b"\xff"})
@example(b'{"data":{"id":"\xff"},"id":"\xff"}', {"content-type": CLOUDEVENT_TYPE.encode()})
@example(b'{"data":[{"id":"\xff"}]}', {"content-type": CLOUDEVENT_TYPE.encode()})
@example(b'{"a":"' + b"[" * 900_000, {})
def test_any_bytes_are_an_event_or_a_reason(value: bytes, headers: Mapping[str, bytes]) -> None:
    decoded(value, headers)


@given(mutants(EVENTS), st.sampled_from(HEADERS))
def test_an_event_that_is_damaged_is_an_event_or_a_reason(
    value: bytes, headers: Mapping[str, bytes]
) -> None:
    decoded(value, headers)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=20))  # fmt: skip
def test_any_json_in_any_field_is_an_event_or_a_reason(value: Any) -> None:
    for name in ("ts", "model", "version", "id", "features", "prediction", "score", "tags"):
        decoded(body({**event(START), name: value}), {})


@given(mutants([RECORD, zlib.decompress(RECORD)]))
def test_a_record_of_a_model_is_one_or_incompatible(value: bytes) -> None:
    for packed in (value, zlib.compress(value)):
        try:
            model, reference = in_time(lambda packed=packed: references.load(packed))  # type: ignore[misc]  # bound at once
        except IncompatibleError:
            assert isinstance(references.spec_of(packed), ModelSpec | None)
        else:
            assert isinstance(model, ModelSpec)
            assert reference is None or isinstance(reference, Reference)


MESSAGES = (
    wire.encode(wire.Profiles([wire.Link(0, 0, 5, 5, 0, 5, 0, 0, START, idle=False)], [wire.Delta("m", "7", "", START, "b", late=False, profile=b"x")])),
    wire.encode(wire.Command("silence", "m", "i", "me", START)),
    wire.encode(wire.Window("m", "7", "", 60_000, START, "", 1, "b", 3, b"profile")),
)  # fmt: skip


@given(mutants([*MESSAGES, *map(wire.unpack, MESSAGES)]))
def test_a_message_of_an_internal_topic_is_one_or_incompatible(value: bytes) -> None:
    for packed in (value, wire.pack(value)):
        try:
            message = in_time(lambda packed=packed: wire.decode(packed))  # type: ignore[misc]  # bound at once
        except (IncompatibleError, RecursionError):  # streams.stage.read expects both
            continue
        assert isinstance(message, msgspec.Struct)


def nulls(n: int) -> bytes:
    return stream({"ts": pa.nulls(n, pa.int64()), "model": pa.nulls(n, pa.string())}, "zstd")


def zeros(compression: str) -> Callable[[], bytes]:
    return lambda: stream({"ts": np.zeros(30_000_000, dtype=np.int64)}, compression)


def declared() -> bytes:
    """Buffers that say that they have an exabyte."""
    value = stream(ROWS)
    for size in (8, 16, 24, 64):
        value = value.replace(size.to_bytes(8, "little"), (2**60).to_bytes(8, "little"), 3)
    return value


def deep(n: int) -> bytes:
    return b'{"ts":1,"model":"m","prediction":' + b"[" * n + b"]" * n + b"}"


def wide_text() -> bytes:
    """One text of a megabyte, shown in a million rows."""
    index = pa.array(np.zeros(100_000, dtype=np.int32))
    text = pa.DictionaryArray.from_arrays(index, pa.array(["x" * 900_000]))
    return stream({"model": text}, "zstd")


BOMBS: Mapping[str, Callable[[], bytes]] = {
    "zstd": zeros("zstd"),
    "lz4": zeros("lz4"),
    "nulls": lambda: nulls(50_000_000),
    "a text in each row": wide_text,
    "declared sizes": declared,
    "deep": lambda: deep(500_000),
    "strings without an end": lambda: b'{"a":"' + b'\\"' * 500_000,
    "many members": lambda: b'{"features":{' + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}}",
    "one member, often": lambda: b'{"features":{' + b'"a":1,' * 170_000 + b'"b":1}}',
    "many events": lambda: b"[" + b"{}," * 340_000 + b"{}]",
    "a number of a megabyte": lambda: b'{"ts":' + b"9" * 1_000_000 + b"}",
    "gzip, which nobody said that we read": lambda: gzip.compress(bytes(50_000_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_message_takes_more_memory_or_time_than_its_size_allows(name: str) -> None:
    value = BOMBS[name]()
    before = grown()
    for headers in HEADERS[:2]:
        decoded(value, headers)
    assert grown() - before < MOST_BYTES


@pytest.mark.parametrize("unpack", [references.load, wire.decode])
def test_what_is_packed_small_is_not_unpacked_beyond_a_bound(
    unpack: Callable[[bytes], Any],
) -> None:
    giant = bytes(300 * MEGABYTE)
    bombs = [zlib.compress(giant), zstd_record(giant, len(giant)), zstd_record(giant, 1_000)]
    del giant
    before = grown()
    for bomb in bombs:
        with pytest.raises(IncompatibleError):
            in_time(lambda bomb=bomb: unpack(bomb))  # type: ignore[misc]  # bound at once
    assert grown() - before < MOST_BYTES


def zstd_record(raw: bytes, said: int) -> bytes:
    """An envelope of ours that says how large its body is."""
    packed: bytes = pa.Codec("zstd").compress(raw, asbytes=True)
    return b"DL" + bytes([wire.SCHEMA_VERSION]) + said.to_bytes(4, "big") + packed


def grown() -> int:
    """The most memory that this process ever had, in bytes: native memory too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024


@pytest.mark.parametrize("ts", [-(10**15), -(10**12), "1850-01-01T00:00:00Z"])
def test_a_time_that_no_window_can_be_stored_under_is_refused(ts: Any) -> None:
    (outcome,) = decode_message(body(event(START) | {"ts": ts}), {}, LIMITS, now_ms=NOW)
    assert isinstance(outcome, InvalidEventError)


def _texts(outcomes: list[Outcome]) -> list[object]:
    """Outcomes that can be compared."""
    return [
        (o.reason, o.detail) if isinstance(o, InvalidEventError) else msgspec.structs.astuple(o)
        for o in outcomes
    ]


GOOD = body(event(START, id=None, tags={"order": 7}))
LINE = b'{"ts":%d,"model":"m","prediction":1' % START
# Halves that are whole together, wholes that are two, and what a line break or an envelope would make of them.
PIECES = (
    GOOD,
    GOOD,
    LINE + b"}",
    LINE + b"} ",
    b" " + LINE + b"}",
    LINE + b'\n,"id":"x"}',
    LINE + b"}\n",
    LINE + b"}" + LINE + b"}",
    LINE + b"}\n" + LINE + b"}",
    LINE + b"}," + LINE + b"}",
    LINE + b',"tags":{"a":[1',
    b",2]}}",
    b"{}",
    b"}",
    b"",
    b" ",
    b"{",
    b"\xff",
    b'{"ts":1,"model":"m","prediction":1}',
    b'{"ts":"2013-02-01T00:00:00Z","model":"%s","prediction":1}' % (b"m" * 129),
    LINE + b',"tags":' + b'{"a":' * 8 + b"1" + b"}" * 8 + b"}",
    LINE + b',"error":"%s"}' % (b"x" * LIMITS.message_bytes),
    *EVENTS,
)


@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from(PIECES) | st.binary(max_size=20),
            st.sampled_from((*HEADERS, {"content-type": b"application/json"}, {"trace": b"1"})),
        ),
        max_size=6,
    ),
    st.integers(0, 300),
)
@example([(LINE + b',"tags":{"a":[1', {}), (b",2]}}", {}), (LINE + b"}" + LINE + b"}", {})], 0)
@example([(LINE + b',"\x80order":"5"}', {})], 0)  # no UTF-8 where only a join key is looked for
@example([(LINE + b',"tags":{"a":{"b":1', {}), (b'{"c":2}}}', {}), (LINE + b"}{}", {})], 250)
def test_messages_that_are_read_together_are_read_as_each_alone(
    messages: list[tuple[bytes | None, dict[str, bytes]]], before: int
) -> None:
    messages = [(GOOD, {})] * before + messages
    names = {"m": ["tags.order"]}

    def aliases(model: str) -> list[str]:
        return names.get(model, [])

    alone = [
        _texts(decode_message(*message, LIMITS, now_ms=NOW, aliases=aliases))
        for message in messages
    ]
    together = decode_messages(messages, LIMITS, now_ms=NOW, aliases=aliases)
    assert [_texts(found) for found in together] == alone


def test_plain_events_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("one by one")

    monkeypatch.setattr("monitor.events.decode_message", never)
    messages = [(GOOD, {}), (LINE + b"} ", {"content-type": b"application/json"})] * 300
    found = list(decode_messages(messages, LIMITS, now_ms=NOW))
    assert all(isinstance(outcome, Event) for outcomes in found for outcome in outcomes)
    assert len(found) == 600
