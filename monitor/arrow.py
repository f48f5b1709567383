"""Arrow IPC streams that others wrote, read within bounds: a kilobyte of one may stand for gigabytes of rows.

Buffers are compressed, a value may be shared by many rows (dictionaries, run ends, views), and a column of nulls has any
length in no bytes. So sizes are looked up before anything is unpacked, and what the rows take as Python objects is
estimated before they become any. Whatever is wrong is an ``InvalidEventError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from monitor.errors import InvalidEventError

_SMALLEST_ROW: Final = 8  # bytes of a row: its time
_POINTER: Final = 8  # bytes of a value in a list, whatever it is
_NOT_PACKED: Final = 2**64 - 1
_UNPACKED: Final = 16  # times the message: texts compress to a tenth and better


def read_rows(value: bytes, *, max_bytes: int, max_columns: int) -> list[dict[str, Any]]:
    """Rows as dictionaries; a timestamp ``ts`` is in UTC and cut to microseconds.

    Args:
        value: an IPC stream.
        max_bytes: of a message. Rows may take 16 times as much, and there may be one for 8 bytes.
        max_columns: of the schema.

    Raises:
        InvalidEventError: ``not_json``: no stream, or a damaged one; ``too_large``: above a bound.
    """
    batches = read_batches(value, max_bytes=max_bytes, max_columns=max_columns)
    try:
        return [row for batch in batches for row in in_utc(batch).to_pylist()]
    except _DAMAGE as err:
        raise _damaged(err) from None


def read_table(value: bytes, *, max_bytes: int, max_columns: int) -> pa.Table:
    """The same as columns, as they came."""
    batches = read_batches(value, max_bytes=max_bytes, max_columns=max_columns)
    if batches:
        return pa.Table.from_batches(batches)
    with pa.ipc.open_stream(value) as stream:
        return stream.schema.empty_table()


def read_batches(value: bytes, *, max_bytes: int, max_columns: int) -> list[pa.RecordBatch]:
    """The same, batch by batch."""
    try:
        return _batches(value, max_bytes, max_columns)
    except _DAMAGE as err:
        raise _damaged(err) from None


# An unknown time zone is a LookupError, and a time that Python cannot write down an OverflowError or a ValueError.
_DAMAGE: Final = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError)


def _damaged(err: Exception) -> InvalidEventError:
    return InvalidEventError("not_json", f"Arrow stream: {type(err).__name__}")


def _batches(value: bytes, max_bytes: int, max_columns: int) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = []
    rows = weighed = weight = 0
    most = _UNPACKED * max_bytes
    size = sum(map(_unpacked, pa.ipc.MessageReader.open_stream(value)))
    if size > most:
        raise InvalidEventError("too_large", f"{size} bytes when it is unpacked")
    with pa.ipc.open_stream(value) as stream:
        if len(stream.schema) > max_columns:
            raise InvalidEventError("too_large", f"{len(stream.schema)} columns")
        width = _flat_width(stream.schema)
        for batch in stream:
            rows += batch.num_rows
            if rows > max_bytes // _SMALLEST_ROW:
                raise InvalidEventError("too_large", f"{rows} rows")
            batch.validate(full=True)  # damaged offsets would be followed out of the buffer
            found.append(batch)
            if width is not None and rows * width * _POINTER + size <= most:
                continue  # where no value stands in two rows, they weigh no more than this
            weight += sum(_weight(column) for each in found[weighed:] for column in each.columns)
            weighed = len(found)
            if weight > most:
                raise InvalidEventError(
                    "too_large", f"{weight} bytes of values, counted with repeats"
                )
    return found


def _unpacked(message: pa.ipc.Message) -> int:
    """Bytes of a message's buffers once they are unpacked, by their own word: Arrow allocates them on it.

    No API of Arrow tells. Layout: Message.fbs (a Message's header is its field 2, a DictionaryBatch's batch field 1, a
    RecordBatch's buffers field 2 and compression field 3); a compressed buffer begins with its unpacked size, -1: not packed.
    """
    if message.type not in {"record batch", "dictionary"}:
        return 0
    meta, body = message.metadata.to_pybytes(), memoryview(message.body)
    batch = _follow(meta, _field(meta, _follow(meta, 0), 2))
    if message.type == "dictionary":
        batch = _follow(meta, _field(meta, batch, 1))
    if not _field(meta, batch, 3):
        return len(body)
    at = _follow(meta, _field(meta, batch, 2))
    places = np.frombuffer(meta, "<i8", 2 * _number(meta, at, 4), at + 4).reshape(-1, 2)
    sizes = (_number(body, offset, 8) if n else 0 for offset, n in places.tolist())
    return sum(
        n if size == _NOT_PACKED else size
        for size, n in zip(sizes, places[:, 1].tolist(), strict=True)
    )


def _field(meta: bytes, table: int, slot: int) -> int:
    """Place of a field of a FlatBuffers table; 0: it is not there."""
    vtable = table - int.from_bytes(meta[table : table + 4], "little", signed=True)
    entry = 4 + 2 * slot
    place = _number(meta, vtable + entry, 2) if entry < _number(meta, vtable, 2) else 0
    return table + place if place else 0


def _follow(meta: bytes, at: int) -> int:
    return at + _number(meta, at, 4)


def _number(of: bytes | memoryview, at: int, width: int) -> int:
    return int.from_bytes(of[at : at + width], "little")


def in_utc(batch: pa.RecordBatch, name: str = "ts") -> pa.RecordBatch:
    """A column of times, if it is one, in UTC and microseconds: naive timestamps are UTC by Arrow's definition, and a zone's name may be unknown here."""
    index = batch.schema.get_field_index(name)
    if index < 0 or not types.is_timestamp(batch.schema.field(index).type):
        return batch
    column = batch.column(index)
    exact = column.type.unit != "ns"  # of nanoseconds the rest is cut off; no other unit has one
    return batch.set_column(index, name, pc.cast(column, pa.timestamp("us", "UTC"), safe=exact))


def _flat_width(schema: pa.Schema) -> int | None:
    """Values of a row; ``None`` where a value may stand in several rows, or a row have any number of them."""
    kinds, width = [field.type for field in schema], 0
    while kinds:
        kind = kinds.pop()
        width += 1
        if types.is_struct(kind):
            kinds += [kind.field(i).type for i in range(kind.num_fields)]
        elif not (types.is_primitive(kind) or types.is_string(kind)):
            return None
    return width


def _weight(array: pa.Array) -> int:
    """Bytes that the array's values take as Python objects, at the least. A shared value counts wherever it may stand."""
    array = getattr(array, "storage", array)  # of an extension type
    own = sum(map(_weight, _own(array))) + int(_lengths(array).sum())
    return len(array) * (_POINTER + _shared(array)) + own


def _longest(array: pa.Array) -> int:
    """Bytes of the largest value; of nested ones, of all together."""
    if types.is_nested(array.type):
        return _weight(array)
    return _POINTER + int(_lengths(array).max(initial=0))


def _shared(array: pa.Array) -> int:
    """Bytes of what any row may show of the children, as they are not divided among the rows."""
    kind = array.type
    if types.is_dictionary(kind):
        return _longest(array.dictionary)
    if types.is_run_end_encoded(kind):
        return _longest(array.values)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return _weight(array.values)
    if types.is_union(kind):
        return sum(_longest(array.field(i)) for i in range(kind.num_fields))
    return 0


def _own(array: pa.Array) -> Sequence[pa.Array]:
    """Children each value of which stands in one row."""
    kind = array.type
    if types.is_struct(kind):
        return [array.field(i) for i in range(kind.num_fields)]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return (array.values,)
    return (array.keys, array.items) if types.is_map(kind) else ()


def _lengths(array: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of each text; none of what is no text."""
    kind = array.type
    if types.is_fixed_size_binary(kind):
        return np.full(len(array), kind.byte_width, dtype=np.int64)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        # There is no kernel for it. A view has 16 bytes, and the first four are the length.
        views = np.frombuffer(array.buffers()[1], dtype="<i4")[::4]
        return views[array.offset : array.offset + len(array)].astype(np.int64)
    if any(is_text(kind) for is_text in _TEXTS):
        lengths = pc.fill_null(pc.binary_length(array), 0)
        return np.asarray(lengths, dtype=np.int64)
    return np.zeros(0, dtype=np.int64)


_TEXTS: Final = (
    types.is_string,
    types.is_large_string,
    types.is_binary,
    types.is_large_binary,
)
