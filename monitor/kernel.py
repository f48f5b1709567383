"""Plain JSON events to columns by ``kernel.c``, which ``make install`` compiles where there is a C compiler. Where there is none, all is read by ``events``.

::

    messages ──► kernel.c ──► rows of cells ──► columns of Arrow, by model
                    └──► messages that it leaves to ``events``: Arrow, CloudEvents, unknown models, anything unusual, anything wrong

What it reads means the same as there, bit by bit; it never refuses an event. So nothing depends on whether it is there, but the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor.binning import Codes, Floats, Ints, NumericBins, Raw
from monitor.events import TAG, Limits, is_name, least_ms
from monitor.profile import LATENCY, PREDICTION, SCORE, Layout

LIBRARY: Final = Path(__file__).with_name("_kernel.so")
# Kinds of fields: a category; a number, also true and false; a number alone, as in a segment true is no 1.
_TEXTS, _NUMBERS, _FLOATS = 2, 3, 4
_ID, _VERSION, _PREDICTION, _SCORE, _LATENCY, _FIRST = range(6)  # cells of every row
_TEXT_BYTES: Final = 256  # texts above it are cut, or have no bin: not here
_LEAST_EVENT: Final = 24  # bytes of what the kernel takes for one
_MAX_CELLS: Final = 16 << 20
_MAX_BYTES: Final = 1 << 30  # of all messages: places in them are 32 bits wide
_PADDING: Final = 64
_TEXT: Final = pa.string()
_NUMBER: Final = pa.float64()
_SPECIAL: Final = frozenset('"\\') | {chr(i) for i in range(32)}  # JSON writes it with an escape

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Form:
    """What an event of a model looks like.

    Attributes:
        layout: which features are read, and as what.
        dimensions: the segments that are declared.
        aliased: whether the id may have another name.
    """

    layout: Layout
    dimensions: Sequence[str] = ()
    aliased: bool = False

    def fields(self) -> list[tuple[bool, str, int]] | None:
        """Of each field whether it is a tag, its name and its kind; ``None`` where the kernel cannot read one."""
        members = {name for v in self.layout.vectors for name in v.bins.columns.members}
        found = []
        for name in self.layout.features:
            bins = self.layout.bins.get(name)
            if not isinstance(bins, NumericBins) and (bins is None or name in members):
                return None  # a list of numbers; or one that is a category besides
            number = _FLOATS if name in self.dimensions else _NUMBERS
            found.append((False, name, number if isinstance(bins, NumericBins) else _TEXTS))
        found += [(True, d.removeprefix(TAG), _TEXTS) for d in self.dimensions if d.startswith(TAG)]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Events of one model.

    Attributes:
        row: ``(n,)`` their places among all events that were read.
        ts_ms: ``(n,)`` their times.
        errors: ``(n,)`` whether each carries an error.
        ids: ``n`` texts, null where there is none; ``versions``: likewise.
        features: name -> ``n`` values; ``outputs``: the same for prediction, score and latency (``$`` names); ``tags``: for those that segments are made of.
    """

    row: Codes
    ts_ms: Ints
    errors: npt.NDArray[np.bool_]
    ids: pa.Array
    versions: pa.Array
    features: Mapping[str, Raw]
    outputs: Mapping[str, Raw]
    tags: Mapping[str, Raw]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was read of some messages.

    Attributes:
        rows_of: ``(messages,)`` events of each message; 0: it is left to ``decode_messages``.
        message: ``(n,)`` the place of the message of each event.
        ts_ms: ``(n,)`` the time of each event.
        of_model: the events by model, in one part or several.
    """

    rows_of: Codes
    message: Codes
    ts_ms: Ints
    of_model: Mapping[str, Sequence[Read]]

    def __add__(self, other: Found) -> Found:
        """What was read of the same messages in two ways: of each by one of them, or by none."""
        behind = len(self.message)
        theirs = {
            name: [replace(read, row=behind + read.row) for read in reads]
            for name, reads in other.of_model.items()
        }
        names = {**self.of_model, **theirs}
        return Found(
            self.rows_of + other.rows_of,
            np.concatenate((self.message, other.message)),
            np.concatenate((self.ts_ms, other.ts_ms)),
            {name: (*self.of_model.get(name, ()), *theirs.get(name, ())) for name in names},
        )


class _Plans(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32 if name == "mask" else ctypes.c_void_p)
        for name in ("text", "at", "size", "owner", "table", "mask", "kind", "cell", "cells", "prediction", "aliased", "follows")
    ]  # fmt: skip


class _Bounds(ctypes.Structure):
    _fields_ = [
        ("least_ms", ctypes.c_int64),
        ("most_ms", ctypes.c_int64),
        ("depth", ctypes.c_int32),
        ("features", ctypes.c_int32),
        ("text", ctypes.c_int32),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("message", "model", "ts_ms", "first", "error", "cells", "tags")),
        ("max_rows", ctypes.c_int64),
        ("max_cells", ctypes.c_int64),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; ``None`` where there is none, or one of another release: ``make install`` compiles it anew."""
    try:
        return _declared(ctypes.CDLL(str(LIBRARY)))
    except (OSError, AttributeError):
        return None


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.driftline_index.argtypes = [pointer, pointer, ctypes.c_int32]
    found.driftline_index.restype = None
    found.driftline_read.argtypes = [pointer, pointer, pointer, ctypes.c_int32, *[pointer] * 5]
    found.driftline_numbers.argtypes = [*[pointer] * 3, number, pointer, number, number, *[pointer] * 3]  # fmt: skip
    found.driftline_ends.argtypes = found.driftline_numbers.argtypes
    found.driftline_texts.argtypes = [*[pointer] * 4, number, pointer, number, pointer]
    found.driftline_index_texts.argtypes = [pointer, pointer]
    found.driftline_index_texts.restype = None
    found.driftline_count_numbers.argtypes = [pointer, pointer, number, number, pointer, number, number]  # fmt: skip
    found.driftline_count_numbers.restype = None
    found.driftline_count_texts.argtypes = [*[pointer] * 4, number, number, pointer, number, number, pointer]  # fmt: skip
    for name in ("driftline_numbers", "driftline_ends", "driftline_texts"):
        getattr(found, name).restype = None
    for name in ("driftline_read", "driftline_count_texts"):
        getattr(found, name).restype = number
    return found


class Kernel:
    """Reads plain events of the models that it was told of. Nothing of it changes but guesses of the order of names."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._library = library()
        self._names: list[str] = []
        read_forms: list[Form] = []
        self._fields: list[list[tuple[bool, str, int]]] = []
        names: list[tuple[bytes, int, int, int]] = []  # text, owner, kind, cell
        fields: list[tuple[bytes, int, int, int]] = []
        for name, form in forms.items():
            read = form.fields()
            if read is None or not is_name(name):
                continue
            model = len(self._names)
            for cell, (is_tag, field, kind) in enumerate(read, start=_FIRST):
                if _SPECIAL.isdisjoint(field):
                    fields.append((field.encode("utf-8", "surrogatepass"), 2 * model + is_tag, kind, cell))  # fmt: skip
            self._names.append(name)
            read_forms.append(form)
            self._fields.append(read)
            names.append((name.encode(), -1, 0, 0))
        names += fields
        self._longest = max((len(text) for text, *_ in names), default=0)
        sizes = np.array([len(text) for text, *_ in names], dtype=np.uint32)
        slots = 1 << (2 * len(names) + 1).bit_length()
        bins = [form.layout.bins.get(PREDICTION) for form in read_forms]
        self._arrays: dict[str, npt.NDArray[Any]] = {
            "text": np.frombuffer(b"".join(text for text, *_ in names) + bytes(_PADDING), np.uint8),
            "at": (np.cumsum(sizes) - sizes).astype(np.uint32),
            "size": sizes,
            "owner": np.array([owner for _, owner, *_ in names], dtype=np.int32),
            "table": np.full(slots, -1, dtype=np.int32),
            "kind": np.array([kind for *_, kind, _ in names], dtype=np.uint8),
            "cell": np.array([cell for *_, cell in names], dtype=np.int32),
            "cells": np.array([_FIRST + len(f) for f in self._fields], dtype=np.int32),
            "prediction": np.array(
                [_NUMBERS if isinstance(b, NumericBins) else _TEXTS for b in bins], dtype=np.uint8
            ),
            "aliased": np.array([form.aliased for form in read_forms], dtype=np.uint8),
            "follows": np.full(len(names), -1, dtype=np.int32),
        }
        kinds = [
            [_TEXTS, _TEXTS, int(prediction), _NUMBERS, _NUMBERS, *(kind for *_, kind in of)]
            for prediction, of in zip(self._arrays["prediction"], self._fields, strict=True)
        ]
        # Of each model, the cells that are texts, and those that are numbers.
        self._cells_of = [
            (np.flatnonzero(np.equal(of, _TEXTS)), np.flatnonzero(np.not_equal(of, _TEXTS)))
            for of in kinds
        ]
        self._plans = _Plans(
            mask=slots - 1, **{name: array.ctypes.data for name, array in self._arrays.items()}
        )
        if self._library is not None:
            table = self._arrays["table"].ctypes.data
            self._library.driftline_index(ctypes.byref(self._plans), table, len(names))

    def read(self, values: Sequence[bytes], limits: Limits, *, now_ms: int) -> Found:
        """The events of the messages that can be read; of those values that say by themselves what they are."""
        if self._library is None or not self._names or not values:
            return nothing(len(values))
        text = b"\0".join((*values, bytes(_PADDING + self._longest)))
        if len(text) > _MAX_BYTES:
            return nothing(len(values))
        size = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        begin = np.cumsum(size + 1) - size - 1
        end = begin + np.where(size > limits.message_bytes, 0, size)
        start = np.frombuffer(text, np.uint8)
        max_rows = len(text) // _LEAST_EVENT + 1
        max_cells = min(_MAX_CELLS, max_rows * int(self._arrays["cells"].max()))
        columns: dict[str, npt.NDArray[Any]] = {
            "message": np.empty(max_rows, dtype=np.int32),
            "model": np.empty(max_rows, dtype=np.int32),
            "ts_ms": np.empty(max_rows, dtype=np.int64),
            "first": np.empty(max_rows, dtype=np.int64),
            "error": np.empty(max_rows, dtype=np.uint8),
            "cells": np.empty(max_cells, dtype=np.float64),
            "tags": np.empty(max_cells, dtype=np.uint8),
        }
        rows_of = np.empty(len(values), dtype=np.int32)
        bounds = _Bounds(least_ms(limits, now_ms), now_ms + limits.max_future_ms, limits.json_depth, limits.features, _TEXT_BYTES)  # fmt: skip
        rows = _Rows(max_rows=max_rows, max_cells=max_cells, **{name: array.ctypes.data for name, array in columns.items()})  # fmt: skip
        n = self._library.driftline_read(
            start.ctypes.data,
            begin.ctypes.data,
            end.ctypes.data,
            len(values),
            _powers().ctypes.data,
            *map(ctypes.byref, (self._plans, bounds, rows)),
            rows_of.ctypes.data,
        )
        cells = _Cells(self._library, start, columns["cells"], columns["tags"])
        model = columns["model"][:n]
        found = {}
        for i, name in enumerate(self._names):
            at = np.flatnonzero(model == i)
            if len(at):
                found[name] = (self._of_model(i, at, columns, cells),)
        message = columns["message"][:n].astype(np.intp)
        return Found(rows_of.astype(np.intp), message, columns["ts_ms"][:n], found)

    def _of_model(
        self,
        model: int,
        at: Codes,
        columns: Mapping[str, npt.NDArray[Any]],
        cells: _Cells,
    ) -> Read:
        arrays = cells.columns(columns["first"][at], *self._cells_of[model])
        features: dict[str, Raw] = {}
        tags: dict[str, Raw] = {}
        for (is_tag, name, _), array in zip(self._fields[model], arrays[_FIRST:], strict=True):
            (tags if is_tag else features)[name] = array
        return Read(
            at,
            columns["ts_ms"][at],
            columns["error"][at].view(np.bool_),
            ids=arrays[_ID],
            versions=arrays[_VERSION],
            features=features,
            outputs={
                PREDICTION: arrays[_PREDICTION],
                SCORE: arrays[_SCORE],
                LATENCY: arrays[_LATENCY],
            },
            tags=tags,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """What the kernel read, row by row."""

    library: ctypes.CDLL
    start: Bytes
    cells: Floats
    tags: Bytes

    def columns(self, first: Ints, texts: Codes, numbers: Codes) -> list[pa.Array]:
        """Of rows whose first cells these are, each cell as a column of Arrow: some of texts, the others of numbers."""
        arrays = self._texts(first, texts) + self._numbers(first, numbers)
        columns = dict(zip([*texts.tolist(), *numbers.tolist()], arrays, strict=True))
        return [columns[cell] for cell in range(len(columns))]

    def _numbers(self, first: Ints, fields: Codes) -> list[pa.Array]:
        n = len(first)
        values = np.empty((len(fields), n))
        present, missing = self._gathered(self.library.driftline_numbers, first, fields, values)
        whole = pa.py_buffer(values)
        return [
            pa.Array.from_buffers(
                _NUMBER, n, [present(i) if none else None, whole.slice(8 * n * i, 8 * n)], none
            )
            for i, none in enumerate(missing)
        ]

    def _texts(self, first: Ints, fields: Codes) -> list[pa.Array]:
        n = len(first)
        ends = np.empty((len(fields), n + 1), dtype=np.int32)
        present, missing = self._gathered(self.library.driftline_ends, first, fields, ends)
        sizes = ends[:, -1].tolist()
        text = np.empty(sum(sizes) + 1, dtype=np.uint8)  # an empty array has no address
        self.library.driftline_texts(
            self.start.ctypes.data,
            self.cells.ctypes.data,
            self.tags.ctypes.data,
            first.ctypes.data,
            n,
            fields.ctypes.data,
            len(fields),
            text.ctypes.data,
        )
        arrays, whole, of_ends, at = [], pa.py_buffer(text), pa.py_buffer(ends), 0
        for i, (none, size) in enumerate(zip(missing, sizes, strict=True)):
            mine = of_ends.slice(4 * (n + 1) * i, 4 * (n + 1)), whole.slice(at, size)
            bits = present(i) if none else None
            arrays.append(pa.Array.from_buffers(_TEXT, n, [bits, *mine], none))
            at += size
        return arrays

    def _gathered(
        self, gather: Callable[..., None], first: Ints, fields: Codes, into: npt.NDArray[Any]
    ) -> tuple[Callable[[int], pa.Buffer], list[int]]:
        """Fill values or ends; where each column has a value, as Arrow's bits, and how many of each are missing."""
        stride = (len(first) + 63) // 64 * 8
        bits = np.empty(max(1, len(fields) * stride), dtype=np.uint8)
        missing = np.empty(len(fields), dtype=np.int64)
        gather(
            self.cells.ctypes.data,
            self.tags.ctypes.data,
            first.ctypes.data,
            len(first),
            fields.ctypes.data,
            len(fields),
            stride,
            into.ctypes.data,
            bits.ctypes.data,
            missing.ctypes.data,
        )
        whole = pa.py_buffer(bits)
        return lambda i: whole.slice(stride * i, stride), missing.tolist()


def nothing(messages: int) -> Found:
    """Of so many messages, none was read."""
    none = np.zeros(0, dtype=np.int64)
    return Found(np.zeros(messages, dtype=np.intp), none.astype(np.intp), none, {})


@cache
def _powers() -> npt.NDArray[np.uint64]:
    """``(651, 2)`` the leading 128 bits of 5**q for q from -342 to 308, rounded as Lemire's algorithm wants them: up below 0, else down."""
    found = []
    for q in range(-342, 309):
        if q < 0:
            five = 5**-q
            bits = (five - 1).bit_length()
            value = (1 << (bits + 127 if q >= -27 else 2 * bits + 128)) // five + 1
        else:
            value = 5**q << 128
        value >>= value.bit_length() - 128
        found.append((value >> 64, value & (1 << 64) - 1))
    return np.array(found, dtype=np.uint64)
