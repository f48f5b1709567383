"""Frozen bins: a value's bin is a function of the reference alone, in every worker and release.

Numeric bins are half-open ``[a, b)`` and open at both ends; a feature with few distinct values gets a bin per value, cut at
the values themselves. Categorical bins are the most frequent categories of the reference, then ``other``. Beside the bins, never in them,
a value is missing, NaN, +Inf, -Inf or of the wrong type. Three flags lie across the bins: below and above the reference's range, and *off the grid*.

The grid is the resolution at which a feature is recorded: whole numbers, cents, or wind in whole knots written in mph. It is the lattice ``low + k * step`` with the
largest step that all reference values share; where too few values are known for that, the values themselves. Nature leaves the range and stays on the lattice; a
changed unit, a broken parser or a silent interpolation leaves the lattice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import repeat
from math import isfinite, isnan
from types import NoneType
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAX_NUMERIC_BINS: Final = 128
MAX_CATEGORIES: Final = 256
MAX_CATEGORY_BYTES: Final = 256
SPECIALS: Final = ("missing", "nan", "pos_inf", "neg_inf", "wrong_type")
FLAGS: Final = ("below", "above", "off_grid")
# A set of values is a grid only if it has shown nearly all of them: the chance that the next value is new is about
# (values seen once) / n (Good 1953), and above 1 % "off the grid" would be daily life.
MAX_NEW_VALUE_RATE: Final = 0.01
# By chance k values share a factor of 2 that the feature does not have with probability 2**(1 - k): 0.05 % for 12.
MIN_LATTICE_VALUES: Final = 12
MAX_DECIMALS: Final = 6
ON_LATTICE: Final = 1e-3  # of a step: far above rounding, far below any other unit
# Moments are sums of q = round((x - center) / scale * 2**16), clipped to 2**26: 1,024 scales wide, rounding error 4e-6 scales.
QUANTUM_BITS: Final = 16
CLIP: Final = 1 << 26

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.intp]
Raw: TypeAlias = Sequence[Any] | Any  # a list, or a pyarrow array (which has no types)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A column, encoded.

    Attributes:
        codes: ``(n,)`` primary class: a bin, or ``bins + index in SPECIALS``.
        flags: ``(n,)`` 0, or 1 + the index in FLAGS; ``None`` if no value has one.
        values: ``(n,)`` float64, NaN where the value is in no bin; ``None`` for categoricals.
        unseen: text of the values coded ``other``, by row; empty for numerics.
    """

    codes: Codes
    flags: Codes | None = None
    values: Floats | None = None
    unseen: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class NumericBins:
    """Bins of a numeric feature.

    Attributes:
        edges: ``(bins - 1,)`` strictly increasing; bin ``i`` is ``[edges[i-1], edges[i])``.
        low: smallest value of the reference; ``high``: the largest.
        center: value at which the moments are centred; ``scale``: their unit. Both finite, scale > 0.
        step: the lattice's step; ``None`` if the values share none.
        grid: every value of a discrete feature without a step, ascending; ``None`` for any other.
    """

    edges: Floats
    low: float
    high: float
    center: float
    scale: float
    step: float | None = None
    grid: Floats | None = None

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or not np.all(np.isfinite(self.edges)):
            raise ValueError("edges must be a vector of finite numbers")
        if np.any(np.diff(self.edges) <= 0):
            raise ValueError("edges must increase: a repeated edge would make an empty bin")
        if not (np.isfinite(self.center) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError("center and scale must be finite, and scale positive")
        if self.step is not None and not self.step > 0:
            raise ValueError("the lattice's step must be positive")
        self.edges.setflags(write=False)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def encode(self, raw: Raw) -> Encoded:
        """Codes of a column; ``None`` is missing, booleans are 0 and 1, anything but a number has the wrong type. O(n log bins)."""
        values, special = _numbers(raw)
        codes = np.searchsorted(self.edges, values, side="right")
        flags = self._flags(values, codes)
        if special is not None:
            outside = special >= 0
            codes[outside] = self.bins + special[outside]
            flags[outside] = 0
            values = np.where(outside, np.nan, values)
        return Encoded(codes, flags if flags.any() else None, values)

    def quantise(self, values: Floats) -> Ints:
        """Integers that the moments sum, 0 for NaN."""
        with np.errstate(over="ignore"):
            scaled = (values - self.center) / self.scale * (1 << QUANTUM_BITS)
        return np.rint(
            np.clip(np.nan_to_num(scaled, posinf=CLIP, neginf=-CLIP), -CLIP, CLIP)
        ).astype(np.int64)

    def _flags(self, values: Floats, codes: Codes) -> Codes:
        flags = np.zeros(len(values), dtype=np.intp)
        flags[values < self.low] = 1
        flags[values > self.high] = 2
        if self.step is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                steps = (values - self.low) / self.step
                flags[np.abs(steps - np.rint(steps)) > ON_LATTICE] = 3
        elif self.grid is not None:
            # Bins of a discrete feature are cut at its values: the candidate is the left end of the bin.
            flags[(flags == 0) & (self.grid[codes] != values)] = 3
        return flags


@dataclass(frozen=True, slots=True, eq=False)
class CategoricalBins:
    """Bins of a categorical feature: ``categories`` in order, then ``other``."""

    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.categories) > MAX_CATEGORIES:
            raise ValueError(f"{len(self.categories)} categories; the bound is {MAX_CATEGORIES}")
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category stands twice")

    @property
    def bins(self) -> int:
        """Number of bins, ``other`` included."""
        return len(self.categories) + 1

    def encode(self, raw: Raw) -> Encoded:
        """Codes of a column. Numbers and booleans count as their text; lists and objects have the wrong type. O(n)."""
        rows: Sequence[Any] = raw.to_pylist() if isinstance(raw, pa.Array) else raw
        other = len(self.categories)
        table: dict[Any, int] = {c: i for i, c in enumerate(self.categories)}
        table[None] = self.bins + SPECIALS.index("missing")
        if not set(map(type, rows)) <= {str, NoneType}:
            rows = [_text(value) for value in rows]
            table |= {mark: self.bins + SPECIALS.index(mark.name) for mark in _Mark}
        codes = np.fromiter(map(table.get, rows, repeat(other)), dtype=np.intp, count=len(rows))
        unseen = [rows[i] for i in np.flatnonzero(codes == other).tolist()]
        return Encoded(codes, unseen=unseen)


Bins = NumericBins | CategoricalBins


def cut_numeric(values: Floats, *, max_bins: int = MAX_NUMERIC_BINS) -> NumericBins:
    """Bins from the finite values of a reference column.

    A bin per value if there are at most ``max_bins`` of them and new values are rare; else equal-mass bins, cut at
    quantiles that are values of the reference (so ties never straddle an edge). No values at all: one bin around 0. O(n log n).
    """
    if values.size == 0:
        return NumericBins(np.empty(0), 0.0, 0.0, 0.0, 1.0)
    distinct, counts = np.unique(values, return_counts=True)
    center, scale = _center_scale(values)
    low, high = float(distinct[0]), float(distinct[-1])
    step = _step(distinct)
    if len(distinct) <= max_bins:
        new_value_rate = np.count_nonzero(counts == 1) / values.size
        grid = distinct if step is None and new_value_rate <= MAX_NEW_VALUE_RATE else None
        return NumericBins(distinct[1:].copy(), low, high, center, scale, step, grid)
    ranks = np.quantile(values, np.arange(1, max_bins) / max_bins, method="inverted_cdf")
    edges = np.unique(ranks)
    return NumericBins(edges[edges > low], low, high, center, scale, step)


def cut_categorical(
    counts: dict[str, int], *, max_categories: int = MAX_CATEGORIES
) -> CategoricalBins:
    """Bins from the category counts of a reference column: most frequent first, ties by name."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [c for c, _ in ranked if len(c.encode()) <= MAX_CATEGORY_BYTES]
    return CategoricalBins(tuple(kept[:max_categories]))


def to_dict(bins: Bins) -> dict[str, Any]:
    """A JSON form; floats round-trip exactly."""
    if isinstance(bins, CategoricalBins):
        return {"kind": "categorical", "categories": list(bins.categories)}
    return {
        "kind": "numeric",
        "edges": bins.edges.tolist(),
        "low": bins.low,
        "high": bins.high,
        "center": bins.center,
        "scale": bins.scale,
        "step": bins.step,
        "discrete": bins.grid is not None,
    }


def from_dict(form: dict[str, Any]) -> Bins:
    """The bins whose ``to_dict`` is ``form``.

    Raises:
        KeyError, ValueError: not such a form.
    """
    kind: Literal["numeric", "categorical"] = form["kind"]
    if kind == "categorical":
        return CategoricalBins(tuple(form["categories"]))
    edges = np.asarray(form["edges"], dtype=np.float64)
    low = float(form["low"])
    grid = np.concatenate(([low], edges)) if form["discrete"] else None
    return NumericBins(
        edges,
        low,
        float(form["high"]),
        float(form["center"]),
        float(form["scale"]),
        form["step"],
        grid,
    )


def category_text(value: object) -> str | None:
    """Text under which a value counts as a category; ``None`` if it is missing, no scalar, or over ``MAX_CATEGORY_BYTES``."""
    text = _text(value)
    return text if isinstance(text, str) and len(text.encode()) <= MAX_CATEGORY_BYTES else None


def digest(text: str) -> str:
    """Content hash used for ids: 64 bits of BLAKE2b, 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Mark(Enum):
    """Stands for a value that has no text: its name is one of SPECIALS."""

    nan = 0
    pos_inf = 1
    neg_inf = 2
    wrong_type = 3


def _text(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _decimal(value)
    return _Mark.wrong_type


def _decimal(value: float) -> str | _Mark:
    if isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isnan(value):
        return _Mark.nan
    return _Mark.pos_inf if value > 0 else _Mark.neg_inf


def _numbers(raw: Raw) -> tuple[Floats, Codes | None]:
    """Values as float64, and for each the index in SPECIALS or -1; ``None`` if all values are finite."""
    if isinstance(raw, pa.Array):
        return _numbers_from_arrow(raw)
    if set(map(type, raw)) <= {float, int, bool, NoneType}:
        try:
            values = np.array(raw, dtype=np.float64)
        except OverflowError:  # an integer beyond 1e308
            return _numbers_one_by_one(raw)
        missing = None if not np.isnan(values).any() else [value is None for value in raw]
        return values, _special(values, missing, None)
    return _numbers_one_by_one(raw)


def _numbers_from_arrow(raw: pa.Array) -> tuple[Floats, Codes | None]:
    if pa.types.is_boolean(raw.type):
        raw = pc.cast(raw, pa.uint8())
    if not (pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type)):
        return _numbers_one_by_one(raw.to_pylist())
    missing = raw.is_null().to_numpy(zero_copy_only=False) if raw.null_count else None
    values = np.array(pc.cast(raw, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    return values, _special(values, missing, None)


def _numbers_one_by_one(raw: Sequence[Any]) -> tuple[Floats, Codes | None]:
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
    return values, _special(values, [value is None for value in raw], wrong)


def _special(values: Floats, missing: Any, wrong: Any) -> Codes | None:
    if np.isfinite(values).all():
        return None
    special = np.full(len(values), -1, dtype=np.intp)
    special[np.isnan(values)] = SPECIALS.index("nan")
    special[values == np.inf] = SPECIALS.index("pos_inf")
    special[values == -np.inf] = SPECIALS.index("neg_inf")
    if missing is not None:
        special[np.asarray(missing, dtype=bool)] = SPECIALS.index("missing")
    if wrong is not None:
        special[wrong] = SPECIALS.index("wrong_type")
    return special


def _step(distinct: Floats) -> float | None:
    """The largest step of which all distances between the values are multiples, if they are decimal numbers."""
    if len(distinct) < MIN_LATTICE_VALUES:
        return None
    with np.errstate(over="ignore"):
        above = distinct - distinct[0]
    for decimals in range(MAX_DECIMALS + 1):
        scaled = above * 10.0**decimals
        if scaled[-1] >= 2**43:  # beyond it a float no longer resolves ON_LATTICE
            return None
        whole = np.rint(scaled)
        if np.all(np.abs(scaled - whole) <= ON_LATTICE / 10):
            return float(np.gcd.reduce(whole.astype(np.int64))) / 10.0**decimals
    return None


def _center_scale(values: Floats) -> tuple[float, float]:
    center = float(np.quantile(values, 0.5, method="inverted_cdf"))  # the mean of two may overflow
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float(np.std(values - center))
    if not np.isfinite(scale) or scale == 0.0:
        # A constant column, or one so wide that its variance overflows: its own magnitude is the only unit left.
        scale = max(abs(center), 1.0)
    return center, scale
