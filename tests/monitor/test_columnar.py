"""What is read of an Arrow message as columns means what ``monitor.events`` says of its rows; and what everybody writes, is read so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitor import columnar
from monitor.events import ARROW_TYPE, Limits
from monitor.kernel import Found
from tests.monitor.alike import FORMS, LIMITS, NOW, check

LARGE: Final = Limits(max_age_ms=LIMITS.max_age_ms, features=12)
HEADERS: Final = {"content-type": ARROW_TYPE.encode()}
AGO: Final = NOW - 1_000
COLOURS: Final = pa.dictionary(pa.int8(), pa.string())
GOOD: Final[Mapping[str, Any]] = {
    "id": pa.array(["a1", "a2", "a3"]),
    "ts": pa.array([AGO, AGO + 1, AGO + 2]),
    "model": pa.array(["classes"] * 3),
    "version": pa.array(["7", "8", "7"]),
    "features": pa.array([{"amount": 1.5, "colour": "red", "wide": 12}, {"amount": None, "colour": "blue", "wide": 90}, {"amount": 2.0, "colour": None, "wide": -1}]),
    "prediction": pa.array(["yes", "no", "red"]),
    "score": pa.array([0.25, None, 1.0]),
    "latency_ms": pa.array([12.5, 0.0, 3.0]),
    "tags": pa.array([{"region": "eu"}, {"region": None}, {"region": "12"}]),
}  # fmt: skip


def stream(columns: Mapping[str, Any], *, batches: int = 1, **options: Any) -> bytes:
    table = pa.table(dict(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=-(-len(table) // batches))
    return bytes(sink.getvalue())


def same(values: Sequence[bytes]) -> Found:
    found = columnar.read(values, FORMS.get, LARGE, now_ms=NOW)
    check(found, [(value, HEADERS) for value in values], LARGE)
    return found


def changed(**columns: Any) -> bytes:
    return stream({n: c for n, c in {**GOOD, **columns}.items() if c is not None})


def features(**columns: Any) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(c) if isinstance(c, list) else c for c in columns.values()], [*columns])  # fmt: skip


# What everybody writes: or nobody would notice that it is read row by row again.
USUAL: Final = {
    "as it is": stream(GOOD),
    "two batches": stream(GOOD, batches=2),
    "compressed": stream(GOOD, compression="zstd"),
    "whole numbers": changed(id=pa.array([1, 2, 3]), version=pa.array([7, 8, 9]), score=pa.array([0, 1, None])),
    "numbers of 32 bits": changed(features=features(amount=pa.array([0.1, 2.5, None], pa.float32()), wide=pa.array([1, 2, 300], pa.uint16()))),
    "large whole numbers": changed(features=features(amount=pa.array([2**53 + 1, -(2**63), None]), wide=pa.array([2**64 - 1, 1, 2], pa.uint64()))),
    "no numbers": changed(features=features(amount=[np.nan, np.inf, -np.inf], colour=[np.nan, 7.0, -0.0]), score=pa.array([np.nan, np.inf, 0.5])),
    "codes": changed(model=GOOD["model"].dictionary_encode(), version=GOOD["version"].dictionary_encode(), prediction=GOOD["prediction"].cast(COLOURS), features=features(colour=pa.array(["red", None, "blue"]).cast(COLOURS))),
    "codes of more texts than rows": changed(features=features(colour=pa.DictionaryArray.from_arrays([0, 5, None], ["red", "a", "b", "c", "d", "7"]))),
    "a code for nothing": changed(error=pa.DictionaryArray.from_arrays([0, 1, None], ["timeout", None]), prediction=pa.DictionaryArray.from_arrays([0, 1, 2], ["yes", None, "no"])),
    "a text twice among the codes": changed(features=features(colour=pa.DictionaryArray.from_arrays([0, 1, 2], ["red", "red", None]))),
    "large texts": changed(id=GOOD["id"].cast(pa.large_string()), features=features(colour=pa.array(["red", None, "größe"], pa.large_string()))),
    "booleans": changed(prediction=pa.array([True, None, False]), features=features(colour=[True, False, None], amount=[True, False, None])),
    "a text where numbers are expected": changed(features=features(amount=["1.5", "2", None])),
    "a number where texts are": changed(features=features(colour=[7, 8, None]), prediction=pa.array([1.0, 7.5, None])),
    "times": changed(ts=pa.array([AGO * 10**6 + 999_999, AGO * 10**6, AGO * 10**6 + 1], pa.timestamp("ns", "Europe/Berlin"))),
    "times in seconds": changed(ts=pa.array([AGO // 1_000] * 3, pa.timestamp("s"))),
    "times in microseconds": changed(ts=pa.array([AGO * 1_000 + 999] * 3, pa.timestamp("us", "UTC"))),
    "features that are not there": changed(features=pa.StructArray.from_arrays([pa.array([1.0, 2.0, 3.0])], ["amount"], mask=pa.array([True, False, False]))),
    "no features, no outputs": changed(features=None, score=None, latency_ms=None, tags=None, version=None),
    "nulls": changed(score=pa.nulls(3), tags=pa.nulls(3), version=pa.nulls(3), error=pa.nulls(3)),
    "errors": changed(prediction=None, features=None, error=pa.array(["timeout", "timeout", "timeout"])),
    "some errors": changed(error=pa.array([None, "timeout", None])),
    "without ids": changed(id=pa.array(["a", None, "c"])),
    "other columns": changed(label=pa.array([1, 2, 3]), price=pa.array([1.0, 2.0, None])),
    "two models": changed(model=pa.array(["classes", "numbers", "classes"])),
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_what_everybody_writes_is_read(name: str) -> None:
    assert same([USUAL[name]]).rows_of.tolist() == [3]


def test_many_at_once_are_read_each_for_itself() -> None:
    found = same([b"", *USUAL.values(), b"", stream(GOOD)] * 2)
    assert found.rows_of.tolist() == [0, *[3] * len(USUAL), 0, 3] * 2


def test_codes_that_are_too_narrow_for_the_texts_of_all_messages_are_read_message_by_message() -> (
    None
):
    def coded(first: int) -> bytes:
        texts = pa.array([f"t{i}" for i in range(first, first + 100)])
        return stream({"ts": pa.array([AGO] * 100), "model": pa.array(["classes"] * 100), "prediction": texts.cast(COLOURS)})  # fmt: skip

    assert same([coded(0), coded(100), coded(50)]).rows_of.tolist() == [100] * 3


def test_of_more_schemas_than_are_read_at_once_the_rest_is_left() -> None:
    values = [changed(**{f"x{i}": pa.array([1, 2, 3])}) for i in range(70)]
    assert same([*values, values[0]]).rows_of.tolist() == [*[3] * 64, *[0] * 6, 3]


# What it leaves: unusual, or wrong in a way that events.py finds words for.
LEFT: Final = {
    "no rows": stream({n: c[:0] for n, c in GOOD.items()}),
    "damaged": stream(GOOD)[:-40],
    "JSON": b'{"model":"classes"}',
    "another model": changed(model=pa.array(["classes", "classes", "unknown"])),
    "no name": changed(model=pa.array(["classes", None, "classes"])),
    "no model": changed(model=None),
    "no time": changed(ts=None),
    "a time is missing": changed(ts=pa.array([AGO, None, AGO])),
    "seconds": changed(ts=pa.array([AGO // 1_000] * 3)),
    "numbers that are no times": changed(ts=pa.array([float(AGO)] * 3)),
    "the future": changed(ts=pa.array([AGO, AGO, NOW + 10**9])),
    "long ago": changed(ts=pa.array([AGO, AGO, AGO - LARGE.max_age_ms] if LARGE.max_age_ms else [])),
    "beyond the calendar": changed(ts=pa.array([2**62, AGO, AGO], pa.timestamp("s"))),
    "a long id": changed(id=pa.array(["a", "b", "c" * 257])),
    "an id that is true": changed(id=pa.array([True, False, True])),
    "an id by another name": changed(id=pa.array(["a", None, "c"]), prediction_id=pa.array(["x", "y", "z"])),
    "an id by the name of a model": stream({"ts": GOOD["ts"], "model": pa.array(["silent"] * 3), "prediction": GOOD["prediction"], "order": pa.array([1, 2, 3])}),
    "a score in words": changed(score=pa.array(["1", "2", "3"])),
    "a score that is true": changed(score=pa.array([True, False, True])),
    "nothing in a row": changed(prediction=pa.array(["a", None, "b"]), features=None),
    "nothing in a row, by its code": changed(prediction=pa.DictionaryArray.from_arrays([0, 1, 0], ["yes", None]), features=None),
    "too many features": changed(features=features(**{f"f{i}": [1, 2, 3] for i in range(13)})),
    "a feature twice": changed(features=pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, ["amount"] * 2)),
    "features as maps": changed(features=pa.array([[("amount", 1.0)]] * 3, pa.map_(pa.string(), pa.float64()))),
    "a list for a feature": changed(features=features(amount=[[1.0], [2.0], None])),
    "a decimal": changed(features=features(amount=pa.array([1, 2, 3], pa.decimal128(9, 2)))),
    "a day": changed(day=pa.array([1, 2, 3], pa.date32())),
    "bytes": changed(prediction=pa.array([b"a", b"b", b"c"])),
    "our own name": changed(**{"$ts_ms": pa.array([1, 2, 3])}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_unusual_or_wrong_is_left_and_its_neighbours_are_read(name: str) -> None:
    assert same([stream(GOOD), LEFT[name], stream(GOOD)]).rows_of.tolist() == [3, 0, 3]


TEXTS: Final = st.none() | st.sampled_from(["red", "7", "true", "größe", "", "1.0", "x" * 300]) | st.text(max_size=5)  # fmt: skip
KINDS: Final = [
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (COLOURS, TEXTS),
    (pa.float64(), st.none() | st.floats() | st.sampled_from([0.0, -0.0, 1.0, 2.5, 7.0])),
    (pa.float32(), st.none() | st.floats(width=32)),
    (pa.int64(), st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 9)),
    (pa.uint8(), st.none() | st.integers(0, 255)),
    (pa.bool_(), st.none() | st.booleans()),
    (pa.null(), st.none()),
    (pa.binary(), st.none() | st.binary(max_size=2)),
    (pa.list_(pa.int8()), st.none() | st.lists(st.integers(0, 3), max_size=2)),
]
TIMES: Final = [
    (pa.int64(), st.integers(NOW - 10**10, NOW + 10**6)),
    (pa.timestamp("ms"), st.integers(NOW - 10**10, NOW)),
    (pa.timestamp("ns", "UTC"), st.integers((NOW - 10**10) * 10**6, NOW * 10**6)),
    (pa.timestamp("s"), st.integers(-(2**63), 2**63 - 1)),
]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    n = draw(st.integers(1, 4))

    def column(kinds: Sequence[tuple[pa.DataType, st.SearchStrategy[Any]]]) -> pa.Array:
        kind, values = draw(st.sampled_from(kinds))
        return pa.array(draw(st.lists(values, min_size=n, max_size=n)), kind)

    def struct(names: Sequence[str]) -> pa.Array:
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
        mask = pa.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        columns = [column(KINDS) for _ in chosen]
        return pa.StructArray.from_arrays(columns, chosen, mask=mask if draw(st.booleans()) else None)  # fmt: skip

    names = st.sampled_from(["classes", "numbers", "silent"])
    columns = {
        "ts": column(TIMES),
        "model": pa.array(draw(st.lists(names, min_size=n, max_size=n))),
        "prediction": column(KINDS),
    }
    for name in draw(st.sets(st.sampled_from(["id", "version", "score", "latency_ms", "error", "order", "x"]))):  # fmt: skip
        columns[name] = column(KINDS)
    if draw(st.booleans()):
        columns["features"] = struct(["amount", "wide", "colour", "größe", 'a"b', "more"])
    if draw(st.booleans()):
        columns["tags"] = struct(["region", "x"])
    value = stream(columns, batches=draw(st.sampled_from([1, 2])))
    if draw(st.booleans()) and draw(st.booleans()):  # damage
        at = draw(st.integers(0, len(value) - 1))
        value = value[:at] + draw(st.binary(max_size=2)) + value[at + 1 :]
    return value


@given(st.lists(messages(), min_size=1, max_size=3))
@example([USUAL["codes"], USUAL["codes of more texts than rows"]])
def test_whatever_is_read_is_what_it_is(values: list[bytes]) -> None:
    same(values)
