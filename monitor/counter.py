"""Columns to profiles by ``counting.c``, which ``make install`` compiles where there is a C compiler: what ``counting`` does with numpy, in one pass.

Numbers are counted from 64-bit floats, texts from Arrow's strings; a column of other texts is left to numpy. Both ways count the same, bit by bit, as all that
a profile holds is whole numbers: nothing depends on whether the library is there, but the time. It counts most for small groups, where a call of numpy
costs more than what it does: a hundred models share a batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor.binning import CategoricalBins, Codes, Ints, NumericBins, Raw
from monitor.kernel import library
from monitor.profile import Field, Layout
from monitor.raw import numbers


class Group(NamedTuple):
    """Where rows are counted: row ``i`` in the profile ``profiles[group[i]]``."""

    group: Codes
    profiles: Ints


class Others(NamedTuple):
    """Rows of a categorical field that are in none of its categories."""

    field: Field
    rows: Codes
    texts: Sequence[str]


class _NumericField(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("left", "start")),
        *((name, ctypes.c_double) for name in ("anchor", "low", "high", "center", "scale", "unit", "step")),
        *((name, ctypes.c_int64) for name in ("shift", "first", "cells", "bins", "grid", "at")),
    ]  # fmt: skip


class _TextField(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("text", "ends", "table")),
        *((name, ctypes.c_int64) for name in ("mask", "categories", "at")),
    ]


class Counter:
    """The fields of one layout, as the library wants them. Nothing of it changes."""

    def __init__(self, layout: Layout, found: ctypes.CDLL) -> None:
        self._library, self._size, self._fields = found, layout.size, layout.fields
        self._kept: list[npt.NDArray[Any]] = []  # what the structures point to
        self._numeric: dict[str, int] = {}
        self._texts: dict[str, _TextField] = {}
        plans: list[_NumericField] = []
        for f in layout.fields:
            if isinstance(f.bins, NumericBins):
                self._numeric[f.name] = len(plans)
                plans.append(self._number(f, f.bins))
            else:
                self._texts[f.name] = self._text(f, f.bins)
        self._plans = (_NumericField * len(plans))(*plans)

    def count(
        self, column: Callable[[str], Raw], groups: Sequence[Group]
    ) -> tuple[Mapping[str, Raw], Sequence[Others]]:
        """Add the columns of all fields to the profiles of each of the groups; low words are not carried.

        Args:
            column: the raw column of a field, of as many rows as each group; asked once per field.
            groups: at least one; their profiles are ``(groups, layout.size)`` and contiguous.

        Returns:
            The columns that are left, and what of the others is in no category.

        Raises:
            ValueError: columns and groups have not the same number of rows, or a row is in no group.
        """
        n = len(groups[0].group)
        if n == 0:
            return {}, ()
        of = [_checked(g, n) for g in groups]
        table = np.array([_addresses(g) for g in of], dtype=np.int64)
        left: dict[str, Raw] = {}
        others: list[Others] = []
        numeric: list[tuple[int, ...]] = []
        kept: list[Any] = []  # what the columns point to
        for f in self._fields:
            raw = column(f.name)
            if len(raw) != n:
                raise ValueError(f"{f.name}: {len(raw)} rows of {n}")
            if f.name in self._numeric:
                numeric.append((self._numeric[f.name], *_number_column(raw, kept)))
            elif (of_others := self._count_texts(f, raw, table)) is None:
                left[f.name] = raw
            else:
                others.append(of_others)
        columns = np.array(numeric, dtype=np.int64)
        self._library.driftline_count_numbers(
            self._plans, columns.ctypes.data, len(columns), n, table.ctypes.data, len(table), self._size
        )  # fmt: skip
        return left, others

    def _count_texts(self, f: Field, raw: Raw, table: Ints) -> Others | None:
        """The rows whose text is no category; ``None``: the column is left."""
        if not isinstance(raw, pa.StringArray):
            return None
        valid, ends, text = raw.buffers()
        if ends.address % 4:  # a producer may put it anywhere
            return None
        unseen = np.empty(len(raw), dtype=np.intp)
        found: int = self._library.driftline_count_texts(
            ctypes.byref(self._texts[f.name]),
            ends.address if text is None else text.address,
            ends.address,
            valid.address if valid is not None and raw.null_count else 0,
            raw.offset,
            len(raw),
            table.ctypes.data,
            len(table),
            self._size,
            unseen.ctypes.data,
        )
        rows = unseen[:found]
        return Others(f, rows, _texts(raw.take(pa.array(rows))) if found else ())

    def _number(self, f: Field, bins: NumericBins) -> _NumericField:
        lookup = bins.lookup
        left = np.concatenate(([bins.low], bins.edges, [np.nan]))
        start = np.append(lookup.start, len(bins.edges)).astype(np.int64)
        self._kept += (left, start)
        return _NumericField(
            left=left.ctypes.data,
            start=start.ctypes.data,
            anchor=lookup.anchor,
            low=bins.low,
            high=bins.high,
            center=bins.center,
            scale=bins.scale,
            unit=bins.unit or 0.0,
            step=bins.step or 0.0,
            shift=lookup.shift,
            first=lookup.first,
            cells=len(lookup.start),
            bins=bins.bins,
            grid=bins.grid is not None,
            at=f.start,
        )

    def _text(self, f: Field, bins: CategoricalBins) -> _TextField:
        encoded = [category.encode("utf-8", "surrogatepass") for category in bins.categories]
        text = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
        ends = np.concatenate(([0], np.cumsum([len(each) for each in encoded], dtype=np.int64)))
        ends = ends.astype(np.int64)
        slots = 1 << (2 * len(encoded) + 1).bit_length()
        table = np.full(slots, -1, dtype=np.int32)
        self._kept += (text, ends, table)
        plan = _TextField(
            text=text.ctypes.data,
            ends=ends.ctypes.data,
            table=table.ctypes.data,
            mask=slots - 1,
            categories=len(encoded),
            at=f.start,
        )
        self._library.driftline_index_texts(ctypes.byref(plan), table.ctypes.data)
        return plan


def counter_of(layout: Layout) -> Counter | None:
    """The layout's counter; ``None`` where there is no library."""
    found = library()
    if found is None:
        return None
    counter = _COUNTERS.get(layout)
    if counter is None:
        counter = _COUNTERS[layout] = Counter(layout, found)
    return counter


def _checked(of: Group, n: int) -> Group:
    """The group as the library takes it, which would write wherever a row says."""
    group = np.ascontiguousarray(of.group, dtype=np.int64)
    # A negative one is a large one.
    if len(group) != n or group.view(np.uint64).max() >= len(of.profiles):
        raise ValueError("every row needs a group")
    return Group(group, of.profiles)


def _addresses(of: Group) -> tuple[int, int, int]:
    return of.group.ctypes.data, of.profiles.ctypes.data, len(of.profiles)


def _texts(raw: pa.StringArray) -> list[str]:
    """The texts, each distinct one made once."""
    found = raw.dictionary_encode()
    names = found.dictionary.to_pylist()
    return [names[i] for i in found.indices.to_pylist()]


def _number_column(raw: Raw, kept: list[Any]) -> tuple[int, ...]:
    """Addresses of values and of the bits that say where there is one, their offset, and addresses of bytes where there is none, or no number."""
    if isinstance(raw, pa.DoubleArray):
        valid, buffer = raw.buffers()
        if buffer.address % 8 == 0:
            kept.append(raw)
            bits = valid.address if valid is not None and raw.null_count else 0
            return buffer.address + 8 * raw.offset, bits, raw.offset, 0, 0
    found = numbers(raw)
    values = np.require(found.values, requirements=["C", "A"])  # a producer may put it anywhere
    masks = [found.missing, found.wrong]
    kept.append((values, masks))
    return values.ctypes.data, 0, 0, *(0 if mask is None else mask.ctypes.data for mask in masks)


_COUNTERS: Final = WeakKeyDictionary[Layout, Counter]()
