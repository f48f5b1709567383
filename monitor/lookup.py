"""A table in front of the edges: the bin of a value in a few memory reads, exactly as ``np.searchsorted`` would say.

The cell of a value is made of the leading bits of the floating-point number ``value - anchor``: its exponent and a few bits of its mantissa. Rounded
subtraction never changes the order of two values, and positive numbers are ordered as their bits are, so **the cell never falls when
the value rises**: an edge in a lower cell is below the value, one in a higher cell above, and only edges in the same cell are compared::

    value - anchor ->  | sign, exponent, first bits of the mantissa |  rest  |
                                          cell ──► edges below it, then at most ``rounds`` comparisons

That argument needs no tolerance and holds for every float64. It depends on the edges only how many comparisons remain: one for most shapes, and a whole
binary search, without branches, for edges that no table can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from monitor.raw import Codes, Floats

MAX_CELLS: Final = 4_096  # 32 KiB: stays in the first-level cache beside the values
MAX_MANTISSA_BITS: Final = 12
_MANTISSA: Final = 52
_MAX_NARROW: Final = 255


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What ``np.searchsorted(edges, values, side="right")`` answers, about ten times as fast on unsorted values.

    Attributes:
        anchor: the first edge.
        shift: bits that do not take part; ``first``: what is left of them, in cell 0.
        start: ``(cells,)`` edges in lower cells.
        probes: the edges, then NaN, which no value has reached.
        rounds: comparisons per value.
        narrow: ``start`` of up to 255 edges, at most one a cell; ``inside``: ``(cells,)`` this one, or the next above. ``None`` for other edges.
    """

    anchor: float
    shift: int
    first: int
    start: Codes
    probes: Floats
    rounds: int
    narrow: npt.NDArray[np.uint8] | None = None
    inside: Floats | None = None

    @classmethod
    def of(cls, edges: Floats) -> Lookup:
        """The table of strictly increasing, finite ``edges``: with the fewest comparisons, then the fewest cells."""
        if len(edges) == 0:
            return cls(0.0, _MANTISSA, 0, np.zeros(1, dtype=np.intp), np.empty(0), 0)
        with np.errstate(over="ignore"):
            bits = (edges - edges[0]).view(np.int64)
        tables = []
        for mantissa in range(MAX_MANTISSA_BITS + 1):
            keys = bits >> (_MANTISSA - mantissa)
            # Cell 0 is of the first edge alone, unless the range has too many cells.
            first = int(max(keys[:2].max() - 1, keys[-1] + 1 - MAX_CELLS))
            inside = np.bincount(np.maximum(keys - first, 0))
            tables.append((int(inside.max()).bit_length(), len(inside), mantissa, first, inside))
        rounds, _, mantissa, first, inside = min(tables, key=lambda table: table[:3])
        start = np.concatenate(([0], np.cumsum(inside)[:-1])).astype(np.intp)
        probes = np.concatenate((edges, np.full(1 << rounds, np.nan)))
        table = (float(edges[0]), _MANTISSA - mantissa, first, start, probes, rounds)
        if rounds > 1 or len(edges) > _MAX_NARROW:
            return cls(*table)
        return cls(*table, start.astype(np.uint8), probes[start])

    def cells(self, values: Floats) -> Codes:
        """``(n,)`` the cell of each value; outside ``start`` where it is outside the table.

        A difference may overflow, to an infinity of the right sign: the caller ignores the warning.
        """
        key = (values - self.anchor).view(np.int64)
        key >>= self.shift
        key -= self.first
        return key

    def codes(self, values: Floats) -> Codes:
        """``(n,)`` how many edges are at or below each value; of NaN any such number."""
        key = self.cells(values)
        if self.narrow is not None and self.inside is not None:
            # Bytes add without a cast, which takes longer than the comparison.
            bytes_ = self.narrow.take(key, mode="clip")
            bytes_ += (values >= self.inside.take(key, mode="clip")).view(np.uint8)
            return bytes_.astype(np.intp)
        probe = key.view(np.float64)  # the same memory: keys are read before probes are written
        # Outside the table is the nearest cell; what lies below the anchor has its sign bit set, and so a negative key.
        codes = self.start.take(key, mode="clip")
        reached = np.empty(len(values), dtype=bool)
        for i in reversed(range(self.rounds)):
            step = 1 << i
            at = codes if step == 1 else np.add(codes, step - 1, out=key)
            self.probes.take(at, out=probe, mode="clip")
            np.greater_equal(values, probe, out=reached)
            codes += reached if step == 1 else np.multiply(reached, step, out=key)
        return codes


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Where a value stands among few that a feature has.

    Attributes:
        values: ``(n,)`` these values, ascending.
        lookup: a table in front of them, of one value a cell.
        last: ``(cells,)`` the last of them in a cell or below it; the first where there is none.
    """

    values: Floats
    lookup: Lookup
    last: Codes

    @classmethod
    def of(cls, values: Floats) -> Points | None:
        """The table of strictly increasing, finite ``values``; ``None`` if they are too close together for one a cell."""
        lookup = Lookup.of(values)
        if lookup.rounds > 1:
            return None
        # -0.0 equals the first point 0.0 and lies in a cell below it, which holds none.
        last = np.maximum(np.append(lookup.start[1:], len(values)) - 1, 0)
        return cls(values, lookup, last.astype(np.intp))

    def codes(self, values: Floats) -> Codes | None:
        """``(n,)`` index of each value; ``None`` if one of them is no point. The table only guesses: what it says is compared."""
        codes = self.last.take(self.lookup.cells(values), mode="clip")
        return codes if (self.values.take(codes) == values).all() else None
