"""A window against the reference in all fields at once: what ``monitor.distances`` says field by field, in a few calls.

The bins of all fields stand side by side in a profile's vector, so one sum over runs of cells serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitor.binning import Floats, Ints
from monitor.distances import JEFFREYS, group_equal_mass
from monitor.profile import Layout

Positions = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Distances of one window, ``(fields,)`` each; 0 where either side has no values, and ``n`` tells that.

    Attributes:
        n: values of the window that are in bins.
        psi: population stability index over equal-mass groups.
        ks: smallest Kolmogorov-Smirnov distance that the bins allow. Means nothing for categories.
    """

    n: Floats
    psi: Floats
    ks: Floats


class Comparison:
    """The reference's side of the distances, worked out once per segment.

    Args:
        layout: where the fields stand.
        expected: ``(layout.size,)`` the reference's profile.
        groups: groups of about equal mass for PSI.
    """

    def __init__(self, layout: Layout, expected: Ints, groups: int) -> None:
        fields = layout.fields
        runs = [np.arange(f.counts.start, f.counts.stop) for f in fields]
        self._cells: Positions = np.concatenate(runs)
        self._bins = np.array([len(run) for run in runs])
        self._first: Positions = np.cumsum(self._bins) - self._bins
        starts = [group_equal_mass(expected[f.counts], groups) for f in fields]
        self._groups = np.array([len(s) for s in starts])
        self._group_first: Positions = np.cumsum(self._groups) - self._groups
        self._starts: Positions = np.concatenate(
            [first + s for first, s in zip(self._first, starts, strict=True)]
        )
        counts = expected[self._cells].astype(np.float64)
        self._m = np.add.reduceat(counts, self._first)
        self._shares, self._below = (
            self._smoothed(counts, self._m),
            self._cumulated(counts, self._m),
        )

    def __call__(self, vector: Ints) -> Compared:
        """Compare the profile vector ``(layout.size,)`` of a window. O(bins of all fields)."""
        counts = vector[self._cells].astype(np.float64)
        n = np.add.reduceat(counts, self._first)
        seen = (n > 0) & (self._m > 0)
        p, q = self._shares, self._smoothed(counts, n)
        psi = np.add.reduceat((q - p) * np.log(q / p), self._group_first)
        gaps = np.abs(self._below - self._cumulated(counts, n))
        return Compared(n, psi * seen, np.maximum.reduceat(gaps, self._first) * seen)

    def _smoothed(self, counts: Floats, n: Floats) -> Floats:
        total = n + self._groups * JEFFREYS
        grouped = np.add.reduceat(counts, self._starts) + JEFFREYS
        return np.asarray(grouped / np.repeat(total, self._groups))

    def _cumulated(self, counts: Floats, n: Floats) -> Floats:
        before = np.cumsum(n) - n  # of the fields that stand before; whole numbers, so exact
        cumulated = np.cumsum(counts) - np.repeat(before, self._bins)
        return np.asarray(cumulated / np.repeat(np.maximum(n, 1.0), self._bins))
