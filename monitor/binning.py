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
from functools import cached_property
from itertools import repeat
from math import isfinite, sqrt
from types import NoneType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor.lookup import Lookup, Points
from monitor.raw import MAX_CATEGORY_BYTES, Mark, by_value, numbers, square_sum, text_of
from monitor.raw import SPECIALS as SPECIALS
from monitor.raw import Codes as Codes
from monitor.raw import Encoded as Encoded
from monitor.raw import Floats as Floats
from monitor.raw import Ints as Ints
from monitor.raw import Raw as Raw
from monitor.raw import category_text as category_text

MAX_NUMERIC_BINS: Final = 128
MAX_CATEGORIES: Final = 256
FLAGS: Final = ("below", "above", "off_grid")
# A set of values is a grid only if it has shown nearly all of them: the chance that the next value is new is about
# (values seen once) / n (Good 1953), and above 1 % "off the grid" would be daily life.
MAX_NEW_VALUE_RATE: Final = 0.01
# By chance k values share a factor of 2 that the feature does not have with probability 2**(1 - k): 0.05 % for 12.
MIN_LATTICE_VALUES: Final = 12
MAX_DECIMALS: Final = 6
BEYOND_CHANCE: Final = 3.0  # standard deviations of a Poisson count
ON_LATTICE: Final = 1e-3  # of a step: far above rounding, far below any other unit
# Moments are sums of q = round((x - center) / scale * 2**16), clipped to 2**26: 1,024 scales wide, rounding error 4e-6 scales.
QUANTUM_BITS: Final = 16
CLIP: Final = 1 << 26
WORD_BITS: Final = 32  # of the low word of a sum of squares


@dataclass(frozen=True, eq=False)
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
        if not (isfinite(self.low) and isfinite(self.high)):
            raise ValueError("low and high must be finite")
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
        """Codes of a column; ``None`` is missing, booleans are 0 and 1, anything but a number has the wrong type. O(n)."""
        column = numbers(raw)
        values = column.values
        if len(values) == 0:
            return Encoded(np.empty(0, dtype=np.intp), None, values, values)
        with np.errstate(over="ignore", invalid="ignore"):
            if column.missing is None and (encoded := self._encode(values)) is not None:
                return encoded
            outside = np.flatnonzero(~np.isfinite(values))
            values = values.copy()
            values[outside] = self.low  # has no flag
            encoded = self._encode(values)
        assert encoded is not None
        values[outside] = np.nan
        if encoded.measured is not None:
            encoded.measured[outside] = 0.0
        encoded.codes[outside] = self.bins + column.special(outside)
        return encoded

    def quantise(self, values: Floats) -> Floats:
        """Whole numbers of the moments: ``values`` in scales around the centre, in quanta; 0 for NaN."""
        outside = np.isnan(values)
        with np.errstate(over="ignore"):
            quanta = self._quanta(np.where(outside, self.center, values), clip=True)
        quanta[outside] = 0.0
        return quanta

    def _encode(self, values: Floats) -> Encoded | None:
        """Finite values: what their extremes rule out is not computed. ``None`` if one is not finite."""
        if self._points is not None and (codes := self._points.codes(values)) is not None:
            return Encoded(codes, None, values, known=self._known)
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        if not (isfinite(low) and isfinite(high)):
            return None
        codes = self.lookup.codes(values)
        flags = self._flags(values, codes, low < self.low, high > self.high)
        # Quanta rise with the values: what the extremes do not pass, none does.
        within = self._quantum(low) >= -CLIP and self._quantum(high) <= CLIP
        return Encoded(codes, flags, values, self._quanta(values, clip=not within))

    @cached_property
    def lookup(self) -> Lookup:
        """A table in front of the edges."""
        return Lookup.of(self.edges)

    @cached_property
    def _points(self) -> Points | None:
        """The values of a feature with a bin for each, none of which has a flag."""
        points = np.concatenate(([self.low], self.edges))
        if points[-1] != self.high or np.any(np.diff(points) <= 0):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            off_grid = self._off_grid(points, np.arange(self.bins))
            return Points.of(points) if off_grid is None else None

    @cached_property
    def _known(self) -> Ints:
        """``(classes, 3)`` the moments of an event of each class, if it is one of the points."""
        known = np.zeros((self.bins + len(SPECIALS), 3), dtype=np.int64)
        quanta = self.quantise(np.concatenate(([self.low], self.edges))).astype(np.int64)
        squares = quanta * quanta  # at most 2**52
        known[: self.bins] = np.stack(
            (quanta, squares >> WORD_BITS, squares & ((1 << WORD_BITS) - 1)), axis=1
        )
        return known

    @cached_property
    def unit(self) -> float | None:
        """The value of a quantum; ``None`` if that is not exact. Where it is, to divide by it rounds as to divide by the scale does."""
        unit = self.scale / (1 << QUANTUM_BITS)
        return unit if unit * (1 << QUANTUM_BITS) == self.scale else None

    def _quantum(self, value: float) -> float:
        return (value - self.center) / self.scale * (1 << QUANTUM_BITS)

    def _quanta(self, values: Floats, *, clip: bool) -> Floats:
        quanta = values - self.center
        if self.unit is not None:
            quanta /= self.unit
        else:
            quanta /= self.scale
            quanta *= 1 << QUANTUM_BITS
        np.rint(quanta, out=quanta)
        return np.clip(quanta, -CLIP, CLIP, out=quanta) if clip else quanta

    def _flags(self, values: Floats, codes: Codes, below: bool, above: bool) -> Codes | None:
        off_grid = self._off_grid(values, codes)
        if not (below or above or off_grid is not None):
            return None
        flags = np.zeros(len(values), dtype=np.intp)
        if below:
            flags[values < self.low] = 1
        if above:
            flags[values > self.high] = 2
        if off_grid is not None:
            flags[off_grid] = 3
        return flags

    def _off_grid(self, values: Floats, codes: Codes) -> npt.NDArray[np.bool_] | None:
        """Where a value is off the lattice, or off the grid and within the range; ``None`` if nowhere."""
        if self.step is not None:
            steps = values - self.low
            steps /= self.step
            steps -= np.rint(steps)
            # No term passes the sum of squares; what is on the lattice is off by rounding alone, far below a half.
            if square_sum(steps) <= ON_LATTICE**2 / 2:
                return None
            np.abs(steps, out=steps)
            off = steps > ON_LATTICE
        elif self.grid is not None:
            # Bins of a discrete feature are cut at its values: the candidate is the left end of the bin.
            off = np.take(self.grid, codes) != values
            off &= (values >= self.low) & (values <= self.high)
        else:
            return None
        return off if off.any() else None


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
        other = len(self.categories)
        table: dict[Any, int] = {c: i for i, c in enumerate(self.categories)}
        table[None] = self.bins + SPECIALS.index("missing")
        table |= {mark: self.bins + SPECIALS.index(mark.name) for mark in Mark}
        if isinstance(raw, pa.Array):
            if (found := by_value(raw)) is not None:  # each distinct one is looked up once
                values, place = found
                texts = [text_of(value) for value in values]
                codes = np.array([table.get(t, other) for t in texts], dtype=np.intp)[place]
                unseen = [texts[i] for i in place[codes == other].tolist()]
                return Encoded(codes, unseen=unseen)
            raw = raw.to_pylist()
        rows: Sequence[Any] = raw
        if not set(map(type, rows)) <= {str, NoneType}:
            rows = [text_of(value) for value in rows]
        codes = np.fromiter(map(table.get, rows, repeat(other)), dtype=np.intp, count=len(rows))
        return Encoded(codes, unseen=[rows[i] for i in np.flatnonzero(codes == other).tolist()])


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
    """Bins from the category counts of a reference column: most frequent first, ties by name.

    Of more than ``max_categories`` those are kept that are more frequent than the next one by more than chance, which may be none: of ten thousand equally
    rare ones the luckiest would be kept, and be rarer in every later window (the winner's curse), which is a drift that nobody made.
    """
    ranked = [c for c in counts.items() if len(c[0].encode()) <= MAX_CATEGORY_BYTES]
    ranked.sort(key=lambda item: (-item[1], item[0]))
    least = 0.0
    if len(ranked) > max_categories:
        next_count = ranked[max_categories][1]
        least = next_count + BEYOND_CHANCE * sqrt(next_count)
    return CategoricalBins(tuple(c for c, n in ranked[:max_categories] if n > least))


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


def digest(text: str) -> str:
    """Content hash used for ids: 64 bits of BLAKE2b, 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
        # A range below the tolerance is at 0 as a whole, which is no lattice.
        if whole[-1] > 0 and np.all(np.abs(scaled - whole) <= ON_LATTICE / 10):
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
