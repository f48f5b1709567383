"""Arrow messages to columns, without a Python object for each row. ``events`` says what a row means; this says the same of all rows at once.

::

    messages ──► by schema ──► one table each ──► checked, all rows at once ──► columns by model
                    └──► messages that it leaves to ``events``: damaged, of unknown models, with unusual types, with a row that is no event, of too many schemas

As the kernel for JSON does, it never refuses an event, and reads a message as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from monitor.arrow import read_batches
from monitor.binning import Codes, Ints, Raw
from monitor.errors import InvalidEventError
from monitor.events import MAX_TEXT, TAG, Limits, is_name, least_ms
from monitor.kernel import Form, Found, Read, nothing
from monitor.profile import LATENCY, PREDICTION, SCORE
from monitor.raw import by_value

Bools = npt.NDArray[np.bool_]
Forms: TypeAlias = Callable[[str], Form | None]

_SCHEMAS: Final = 64  # at once: each takes a millisecond, of however few rows
_AT_ONCE_BYTES: Final = 64 << 20  # texts of more than 2 GiB would no longer be one array
_NUMBERS: Final = (types.is_integer, types.is_float32, types.is_float64)
_TEXTS: Final = (types.is_string, types.is_large_string)
_NONE: Final = (types.is_null,)
_NAMES: Final = (*_TEXTS, types.is_integer, *_NONE)  # of an id, of a version
_SCALARS: Final = (*_TEXTS, *_NUMBERS, types.is_boolean, *_NONE)
_A_MS: Final = {"us": 1_000, "ns": 1_000_000}
_MOST_S: Final = 1 << 50  # seconds whose milliseconds are an int64


def read(values: Sequence[bytes], form_of: Forms, limits: Limits, *, now_ms: int) -> Found:
    """The events of the messages that can be read; of those values that are Arrow streams within their bound.

    Args:
        values: of the messages; empty: it is left.
        form_of: the form of a model's events, or ``None``: a message with one of those is left.
        limits: bounds.
        now_ms: the clock, for the limits on ``ts``.
    """
    found = nothing(len(values))
    for pairs in _alike(values, limits):
        for message, table in _joined(pairs):
            found += _found(table, message, len(values), form_of, limits, now_ms)
    return found


def _alike(values: Sequence[bytes], limits: Limits) -> Iterator[list[tuple[int, pa.RecordBatch]]]:
    """Batches of one usual schema, with the places of their messages, in order; not too many at once."""
    by_schema: dict[bytes, list[tuple[int, pa.RecordBatch]]] = {}
    usual: dict[bytes, bool] = {}
    size = 0
    for i, value in enumerate(values):
        batches = _batches_of(value, limits)
        if not batches:
            continue
        schema = batches[0].schema.serialize().to_pybytes()
        if schema not in usual:
            usual[schema] = _is_usual(batches[0].schema, limits)
        full = len(by_schema) == _SCHEMAS and schema not in by_schema
        if full or not usual[schema]:
            continue
        by_schema.setdefault(schema, []).extend((i, batch) for batch in batches)
        size += sum(batch.nbytes for batch in batches)
        if size > _AT_ONCE_BYTES:
            yield from by_schema.values()
            by_schema, size = {}, 0
    yield from by_schema.values()


def _joined(pairs: Sequence[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[Codes, pa.Table]]:
    """Batches as one table, and the place of each row's message; message by message where the codes are too narrow for the texts of all."""
    message = np.repeat([i for i, _ in pairs], [batch.num_rows for _, batch in pairs])
    try:
        yield message, pa.Table.from_batches([batch for _, batch in pairs]).combine_chunks()
    except pa.ArrowInvalid:
        parts = [[*part] for _, part in groupby(pairs, key=itemgetter(0))]
        if len(parts) > 1:
            for part in parts:
                yield from _joined(part)


def _batches_of(value: bytes, limits: Limits) -> list[pa.RecordBatch]:
    """Those with rows; none of a message that is damaged, or no stream."""
    if not value:
        return []
    try:
        batches = read_batches(value, max_bytes=limits.message_bytes, max_columns=limits.features)
    except InvalidEventError:
        return []
    return [batch for batch in batches if batch.num_rows]


def _found(
    table: pa.Table,
    message: Codes,
    messages: int,
    form_of: Forms,
    limits: Limits,
    now_ms: int,
) -> Found:
    rows = _Rows.of(table)
    forms = [form_of(name) if name is not None and is_name(name) else None for name in rows.names]
    known = np.array([form is not None for form in forms])
    aliased = any(form is not None and form.aliased for form in forms)
    good = rows.good(limits, now_ms) & known[rows.model]
    if rows.ids.null_count and ("prediction_id" in table.column_names or aliased):
        good &= rows.ids.is_valid().to_numpy(zero_copy_only=False)
    if not good.all():
        bad = np.unique(message[~good])
        kept = np.flatnonzero(~np.isin(message, bad))
        message = message[kept]
        rows = rows.take(kept)
    of_model = {}
    for code, (name, form) in enumerate(zip(rows.names, forms, strict=True)):
        at = np.flatnonzero(rows.model == code)
        if name is None or form is None or not len(at):
            continue
        mine = rows if len(at) == len(message) else rows.take(at)
        of_model[name] = (mine.read(form, at),)
    rows_of = np.bincount(message, minlength=messages)
    return Found(rows_of, message, rows.ts_ms, of_model)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of one schema, ``n`` of them.

    Attributes:
        names: the models that may occur; ``model``: ``(n,)`` the place of each row's among them.
        ts_ms: ``(n,)`` the times; 0: out of any range.
        fields: the columns beside them, by name; ``features`` and ``tags``: those of the structs.
        has_features: ``(n,)``.
    """

    names: Sequence[str | None]
    model: Codes
    ts_ms: Ints
    ids: pa.Array
    versions: pa.Array
    fields: Mapping[str, pa.Array]
    features: Mapping[str, pa.Array]
    has_features: Bools
    tags: Mapping[str, pa.Array]

    @classmethod
    def of(cls, table: pa.Table) -> _Rows:
        """Of a table of a usual schema, without chunks."""
        columns = {name: table.column(name).chunk(0) for name in table.column_names}
        n = table.num_rows
        named = by_value(_plain(columns["model"]))
        assert named is not None, "texts, in a usual schema"
        features, tags = columns.get("features"), columns.get("tags")
        return cls(
            *named,
            _times(columns["ts"]),
            _texts(columns.get("id"), n),
            _texts(columns.get("version"), n),
            {name: columns[name] for name in _FIELDS if name in columns},
            _children(features),
            _valid(features, n),
            _children(tags),
        )

    def good(self, limits: Limits, now_ms: int) -> Bools:
        """Which rows are events whose id and version stand as they are."""
        n = len(self.ts_ms)
        most_ms = now_ms + limits.max_future_ms
        good: Bools = (self.ts_ms >= least_ms(limits, now_ms)) & (self.ts_ms <= most_ms)
        if not self.has_features.all():
            good &= self.has_features | _valid(self.fields.get("prediction"), n) | self.errors
        for texts in (self.ids, self.versions):
            longest = pc.max(pc.binary_length(texts)).as_py()
            if longest is not None and longest > MAX_TEXT:
                short = pc.fill_null(pc.less_equal(pc.binary_length(texts), MAX_TEXT), True)
                good &= short.to_numpy(zero_copy_only=False)
        return good

    @property
    def errors(self) -> Bools:
        """``(n,)`` whether each row carries an error."""
        return _valid(self.fields.get("error"), len(self.ts_ms))

    def take(self, at: Codes) -> _Rows:
        """Some of the rows."""
        index = pa.array(at)

        def some(columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
            return {name: column.take(index) for name, column in columns.items()}

        return _Rows(
            self.names,
            self.model[at],
            self.ts_ms[at],
            self.ids.take(index),
            self.versions.take(index),
            some(self.fields),
            some(self.features),
            self.has_features[at],
            some(self.tags),
        )

    def read(self, form: Form, at: Codes) -> Read:
        """What is counted of them. They are all of one model, and ``at`` their places."""
        n = len(at)
        none = pa.nulls(n, pa.string())
        features: dict[str, Raw] = {
            name: self.features.get(name, none) for name in form.layout.features
        }
        dimensions = (d.removeprefix(TAG) for d in form.dimensions if d.startswith(TAG))
        return Read(
            at,
            self.ts_ms,
            self.errors,
            ids=self.ids,
            versions=self.versions,
            features=features,
            outputs={
                PREDICTION: _output(self.fields.get("prediction"), n),
                SCORE: _number(self.fields.get("score"), n),
                LATENCY: _number(self.fields.get("latency_ms"), n),
            },
            tags={name: self.tags.get(name, none) for name in dimensions},
        )


_FIELDS: Final = ("prediction", "score", "latency_ms", "error")
# What a field may be, so that all its values mean what they are; of any other name a scalar.
_USUAL: Final = {
    "model": _TEXTS,
    "ts": (types.is_signed_integer, types.is_timestamp),
    "id": _NAMES,
    "version": _NAMES,
    "score": (*_NUMBERS, *_NONE),
    "latency_ms": (*_NUMBERS, *_NONE),
}


def _is_usual(schema: pa.Schema, limits: Limits) -> bool:
    names = schema.names
    if len({*names}) < len(names) or not {"model", "ts"} <= {*names} or "$ts_ms" in names:
        return False
    return all(
        _is_struct(field.type, limits if field.name == "features" else None)
        if field.name in ("features", "tags")
        else _is_one_of(field.type, _USUAL.get(field.name, _SCALARS))
        for field in schema
    )


def _is_struct(kind: pa.DataType, limits: Limits | None) -> bool:
    if not types.is_struct(kind):
        return bool(types.is_null(kind))
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return (
        0 < len(fields) == len({field.name for field in fields})
        and (limits is None or len(fields) <= limits.features)
        and all(_is_one_of(field.type, _SCALARS) for field in fields)
    )


def _is_one_of(kind: pa.DataType, allowed: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    if types.is_dictionary(kind):
        return types.is_string in allowed and _is_one_of(kind.value_type, _TEXTS)
    return any(is_kind(kind) for is_kind in allowed)


def _children(struct: pa.Array | None) -> dict[str, pa.Array]:
    """Columns of a struct, null where it is."""
    if struct is None or types.is_null(struct.type):
        return {}
    names = [struct.type.field(i).name for i in range(struct.type.num_fields)]
    return {n: _plain(c) for n, c in zip(names, struct.flatten(), strict=True)}


def _plain(column: pa.Array) -> pa.Array:
    """A column as it is, but large texts as texts, and so codes, where these are of large texts or of more texts than there are rows."""
    kind = column.type
    if types.is_dictionary(kind):
        if types.is_string(kind.value_type) and len(column.dictionary) <= len(column):
            return column
        column = column.dictionary_decode()
    return column.cast(pa.string()) if types.is_large_string(column.type) else column


def _texts(column: pa.Array | None, n: int) -> pa.Array:
    """Texts, and whole numbers as such."""
    if column is None:
        return pa.nulls(n, pa.string())
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column if types.is_string(column.type) else column.cast(pa.string())


def _number(column: pa.Array | None, n: int) -> pa.Array:
    if column is None:
        return pa.nulls(n, pa.float64())
    return pc.cast(column, pa.float64(), safe=False)


def _output(column: pa.Array | None, n: int) -> pa.Array:
    if column is None or types.is_null(column.type):
        return pa.nulls(n, pa.string())
    return _plain(column)


def _valid(column: pa.Array | None, n: int) -> Bools:
    if column is None:
        return np.zeros(n, dtype=np.bool_)
    if types.is_dictionary(column.type):  # a code may stand for null, too
        column = column.dictionary_decode()
    if not column.null_count:
        return np.ones(n, dtype=np.bool_)
    valid: Bools = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _times(column: pa.Array) -> Ints:
    """Epoch milliseconds, rounded down; 0 where there is none, and where they are out of any range."""
    kind = column.type
    ticks: Ints = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    if not types.is_timestamp(kind) or kind.unit == "ms":
        return ticks
    if kind.unit == "s":
        return np.where(np.abs(ticks) < _MOST_S, ticks, 0) * 1_000
    return ticks // _A_MS[kind.unit]
