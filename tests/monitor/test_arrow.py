"""Bounds on Arrow streams: what a few bytes may become, in every way that Arrow has to share or to pack values."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from monitor.arrow import read_rows, read_table
from monitor.errors import InvalidEventError

MIB = 1 << 20
N = 60_000
INDEX = pa.array(np.zeros(N, dtype=np.int8))
LONG = "x" * 400_000


def stream(*columns: Any, compression: str | None = None, batches: int = 1) -> bytes:
    batch = pa.record_batch(list(columns), names=[f"c{i}" for i in range(len(columns))])
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(out, batch.schema, options=options) as writer:
        for rows_of in np.array_split(np.arange(len(batch)), batches):
            writer.write_batch(batch.slice(int(rows_of[0]), len(rows_of)))
    return out.getvalue()


def rows(value: bytes) -> list[dict[str, Any]]:
    return read_rows(value, max_bytes=MIB, max_columns=100)


def views(text: str, n: int) -> pa.Array:
    """Rows that all show the same text."""
    one = pa.array([text], pa.string_view())
    return pa.Array.from_buffers(
        one.type, n, [None, pa.py_buffer(one.buffers()[1].to_pybytes() * n), one.buffers()[2]]
    )


def list_views(n: int) -> pa.Array:
    """Rows that all show the same 1,000 values."""
    values = pa.array(np.arange(1_000, dtype=np.int8))
    starts, sizes = pa.array([0] * n, pa.int32()), pa.array([1_000] * n, pa.int32())
    return pa.ListViewArray.from_arrays(starts, sizes, values)


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.DictionaryArray.from_arrays(INDEX, pa.array([LONG])), id="dictionary"),
        pytest.param(
            pa.DictionaryArray.from_arrays(INDEX, pa.array([[LONG]])), id="dictionary of lists"
        ),
        pytest.param(
            pa.DictionaryArray.from_arrays(INDEX, pa.array([b"x" * 4_000], pa.binary(4_000))),
            id="dictionary of fixed width",
        ),
        pytest.param(
            pa.StructArray.from_arrays(
                [pa.DictionaryArray.from_arrays(INDEX, pa.array([LONG]))], names=["a"]
            ),
            id="dictionary in a struct",
        ),
        pytest.param(
            pa.RunEndEncodedArray.from_arrays(pa.array([N], pa.int32()), pa.array([LONG])),
            id="run ends",
        ),
        pytest.param(views(LONG, 10_000), id="views of one text"),
        pytest.param(list_views(20_000), id="views of one list"),
        pytest.param(pa.nulls(50_000_000), id="nulls"),
        pytest.param(pa.nulls(5, pa.list_(pa.null(), 10_000_000)), id="nulls in lists"),
        pytest.param(pa.array(np.zeros(9_000_000, dtype=bool)), id="bits"),
    ],
)
def test_a_small_message_cannot_become_a_large_one(column: pa.Array) -> None:
    message = stream(column, compression="zstd")
    assert len(message) < MIB
    with pytest.raises(InvalidEventError) as caught:
        rows(message)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("packed_as", ["column", "dictionary"])
def test_what_unpacks_to_more_is_refused_before_it_is_unpacked(
    compression: str, packed_as: str
) -> None:
    texts = pa.array(["0" * 20_000_000])
    if packed_as == "dictionary":
        texts = texts.dictionary_encode()
    message = stream(texts, compression=compression)
    del texts
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    assert len(message) < MIB // 4
    with pytest.raises(InvalidEventError, match="when it is unpacked"):
        rows(message)
    assert pa.total_allocated_bytes() - before < MIB
    assert pool.bytes_allocated() - before < MIB


def test_many_columns_of_nulls_count_by_their_cells() -> None:
    with pytest.raises(InvalidEventError, match="of values"):
        rows(stream(*[pa.nulls(100_000)] * 90))


@pytest.mark.parametrize("batches", [1, 10])
def test_all_batches_of_a_message_weigh_together(batches: int) -> None:
    numbers = [pa.array(np.zeros(2 * N, dtype=np.int8))] * 20
    assert len(rows(stream(*numbers[:10], compression="zstd", batches=batches))) == 2 * N
    with pytest.raises(InvalidEventError, match="counted with repeats"):
        rows(stream(*numbers, compression="zstd", batches=batches))


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_what_serving_apps_write_is_read(compression: str | None) -> None:
    n = 3_000
    columns = [
        pa.array(np.arange(n)),
        pa.array([f"category {i % 90}" for i in range(n)]).dictionary_encode(),
        pa.array([f"an id of more than twelve characters {i}" for i in range(n)], pa.string_view()),
        pa.array([{"wind": 1.5, "tags": [("a", None)]}] * n),
        pa.array([[("a", 1.5)]] * n, pa.map_(pa.string(), pa.float64())),
        pa.array([[1.5, None], None, []] * (n // 3)),
        pa.array([None, True, False] * (n // 3)),
        pa.array([b"x", None, b""] * (n // 3)),
    ]
    message = stream(*columns, compression=compression)
    assert rows(message) == pa.record_batch(columns, names=[f"c{i}" for i in range(8)]).to_pylist()
    assert read_table(message, max_bytes=MIB, max_columns=8).num_rows == n
    with pytest.raises(InvalidEventError, match="8 columns"):
        read_table(message, max_bytes=MIB, max_columns=7)


def test_a_stream_without_rows_is_a_table_without_rows() -> None:
    out = io.BytesIO()
    schema = pa.schema([("id", pa.string())])
    with pa.ipc.new_stream(out, schema):
        pass
    table = read_table(out.getvalue(), max_bytes=MIB, max_columns=1)
    assert (table.schema, table.num_rows) == (schema, 0)
    assert rows(out.getvalue()) == []


def test_no_damage_of_a_packed_stream_raises_anything_else() -> None:
    rng = np.random.default_rng(8)
    texts = pa.array(["model"] * 40)
    message = stream(texts, texts.dictionary_encode(), compression="zstd")
    for _ in range(1_500):
        damaged = bytearray(message)
        for at in rng.integers(0, len(message), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        with suppress(InvalidEventError):
            assert len(rows(bytes(damaged))) <= MIB // 8
