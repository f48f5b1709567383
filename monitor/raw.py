"""Raw columns: which values are numbers, which are texts, and what stands beside both.

A column is a list of whatever JSON holds, or a pyarrow array of a file or a batch. Both give the same answer, value for value: ``None`` is
missing, a boolean is the number 0 or 1 and the text ``true`` or ``false``, and a text is never read as a number.

Numbers are float64. Whole numbers beyond 2**53 are rounded to it, in the reference as in every event, so that two of them which fall together have one bin,
one quantum and one place on the grid: no flag misfires, and what differs by less than that rounding is not seen. Beyond 1e308 they count as infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import isfinite, isnan
from types import NoneType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SPECIALS: Final = ("missing", "nan", "pos_inf", "neg_inf", "wrong_type")
MAX_CATEGORY_BYTES: Final = 256
MAX_DOT_ROWS: Final = 10_000

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.intp]
Raw: TypeAlias = Sequence[Any] | Any  # a list, or a pyarrow array (which has no types)


class Mark(Enum):
    """Stands for a value that has no text: its name is one of SPECIALS."""

    nan = 0
    pos_inf = 1
    neg_inf = 2
    wrong_type = 3


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column as float64.

    Attributes:
        values: ``(n,)``, NaN where there is no number. May be the memory of the column, read-only.
        missing: ``(n,)`` where there is no value; ``None`` if nowhere. ``wrong``: the same for what is no number.
    """

    values: Floats
    missing: npt.NDArray[np.bool_] | None = None
    wrong: npt.NDArray[np.bool_] | None = None

    def special(self, rows: Codes) -> Codes:
        """Index in SPECIALS of each of ``rows``, whose values are not finite."""
        values = self.values[rows]
        special = np.full(len(rows), SPECIALS.index("nan"))
        special[values == np.inf] = SPECIALS.index("pos_inf")
        special[values == -np.inf] = SPECIALS.index("neg_inf")
        for name, where in (("missing", self.missing), ("wrong_type", self.wrong)):
            if where is not None:
                special[where[rows]] = SPECIALS.index(name)
        return special


@dataclass(frozen=True, slots=True)
class Encoded:
    """A column, encoded.

    Attributes:
        codes: ``(n,)`` primary class: a bin, or ``bins + index in SPECIALS``.
        flags: ``(n,)`` 0, or 1 + the index in ``binning.FLAGS``; ``None`` if no value has one.
        values: ``(n,)`` float64, NaN where the value is in no bin; ``None`` for categoricals. May share the memory of the column.
        measured: ``(n,)`` whole numbers that the moments sum, 0 where the value is in no bin; ``None`` for categoricals, and if ``known`` has them.
        known: ``(classes, 3)`` int64, if all values of a bin are the same: its quanta, and their square in two words. The counts are moments then.
        unseen: text of the values coded ``other``, by row; empty for numerics.
    """

    codes: Codes
    flags: Codes | None = None
    values: Floats | None = None
    measured: Floats | None = None
    known: Ints | None = None
    unseen: Sequence[str] = ()

    @property
    def quanta(self) -> Floats | None:
        """``(n,)`` what the moments sum; ``None`` for categoricals."""
        if self.known is None:
            return self.measured
        quanta: Floats = self.known[self.codes, 0].astype(np.float64)
        return quanta


def numbers(raw: Raw) -> Numbers:
    """The numbers of a column. O(n); of a column of 64-bit floats without gaps, O(1)."""
    if isinstance(raw, pa.Array):
        return _numbers_from_arrow(raw)
    if set(map(type, raw)) <= {float, int, bool, NoneType}:
        try:
            values = np.array(raw, dtype=np.float64)
        except OverflowError:  # an integer beyond 1e308
            return _numbers_one_by_one(raw)
        return Numbers(values, _is_none(raw) if np.isnan(values).any() else None)
    return _numbers_one_by_one(raw)


def square_sum(x: Floats) -> float:
    """Sum of squares, without the squares in memory."""
    # BLAS is twice as fast as einsum; above these rows OpenBLAS wakes other threads, which costs more than it gives.
    return float(x.dot(x) if len(x) <= MAX_DOT_ROWS else np.einsum("i,i->", x, x))


def finite_values(raw: Raw) -> Floats:
    """The finite numbers of a column, in order."""
    values = numbers(raw).values
    return values[np.isfinite(values)]


def by_value(raw: pa.Array) -> tuple[list[Any], Codes] | None:
    """The values of a column of scalars, and the place of each row's among them; missing is ``None``, the last of them. ``None``: it is of other values."""
    if not any(is_kind(raw.type) for is_kind in _SCALARS):
        return None
    found = raw.dictionary_encode()
    values = [*found.dictionary.to_pylist(), None]
    codes = found.indices.fill_null(len(values) - 1).to_numpy()
    return values, codes.astype(np.intp)


def category_text(value: object) -> str | None:
    """Text under which a value counts as a category; ``None`` if it is missing, no scalar, or over ``MAX_CATEGORY_BYTES``."""
    text = text_of(value)
    return text if isinstance(text, str) and len(text.encode()) <= MAX_CATEGORY_BYTES else None


def text_of(value: object) -> object:
    """Text of a string, number or boolean; ``None`` stays, and what has no text is a ``Mark``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _decimal(value)
    return Mark.wrong_type


def _decimal(value: float) -> str | Mark:
    if isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isnan(value):
        return Mark.nan
    return Mark.pos_inf if value > 0 else Mark.neg_inf


def _numbers_from_arrow(raw: pa.Array) -> Numbers:
    if raw.type != _FLOAT64:  # a cast costs microseconds even where it has nothing to do
        if pa.types.is_boolean(raw.type):
            raw = pc.cast(raw, pa.uint8())
        if not (pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type)):
            return _numbers_one_by_one(raw.to_pylist())
        raw = pc.cast(raw, _FLOAT64, safe=False)
    missing = raw.is_null().to_numpy(zero_copy_only=False) if raw.null_count else None
    return Numbers(raw.to_numpy(zero_copy_only=False), missing)


def _numbers_one_by_one(raw: Sequence[Any]) -> Numbers:
    values = np.full(len(raw), np.nan)
    wrong = np.zeros(len(raw), dtype=bool)
    for i, value in enumerate(raw):
        if isinstance(value, (int, float)):
            try:
                values[i] = value
            except OverflowError:
                values[i] = np.inf if value > 0 else -np.inf
        else:
            wrong[i] = value is not None
    return Numbers(values, _is_none(raw), wrong)


def _is_none(raw: Sequence[Any]) -> npt.NDArray[np.bool_]:
    return np.fromiter((value is None for value in raw), dtype=bool, count=len(raw))


_FLOAT64: Final = pa.float64()
_SCALARS: Final = (
    pa.types.is_string,
    pa.types.is_dictionary,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
)
