"""Many windows of panes in one step (``monitor.buckets`` has the structure, the contract and the bound)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from monitor.buckets import (
    AT,
    LARGEST,
    N0,
    OLDER,
    TOTAL,
    Floats,
    Indices,
    Rule,
    confidence,
    least_deviation,
    with_ends,
)


class Arrays:
    """Many windows as arrays: a step costs tens of microseconds, and hardly more for 100 windows than for 10."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        windows = len(rule.design_effect)
        self._sums = np.zeros((3, windows))
        # Windows stand last, so that every operation runs along them. Unused slots are zero: no cut, as the bound has it.
        self._filled = np.zeros((1, windows), dtype=np.intp)  # by level, the newest first
        self._buckets = np.zeros((4, rule.max_buckets, 1, windows))  # by slot, the oldest first
        self._rows = np.arange(windows)
        self._alike = (
            True  # every window has had the same panes, so that one structure does for all
        )

    @staticmethod
    def sound(pane: Floats) -> bool:
        """Whether all is in range and no feature empty: a sum of squares shows NaN, infinity and size in one call."""
        n, _, m2 = pane
        return bool(
            np.vdot(pane, pane) <= LARGEST * LARGEST
            and np.count_nonzero(m2 >= 0) == len(n)
            and np.count_nonzero((np.floor(n) == n) & (n > 0)) == len(n)
        )

    def add(self, at: int, pane: Floats) -> Sequence[int]:
        """Take in a pane."""
        n, mean, m2 = pane
        width, total, spread = self._sums
        # As in _Window.add. A count of 0 comes with mean and M2 0, and changes nothing.
        every = np.count_nonzero(n) == len(n)
        gap = mean - total / np.maximum(width, 1.0)
        now = width + n
        spread += m2 + width * n * gap * gap / (now if every else np.maximum(now, 1.0))
        newest = np.empty((4, len(n)))
        newest[AT], newest[N0] = at, now
        total += np.multiply(n, mean, out=newest[TOTAL])
        newest[OLDER] = total
        clock = self._rule.clock
        due = now > self._rule.grace_period
        if np.minimum.reduce(n) < clock:
            due &= now // clock > width // clock
        width[:] = now
        if every and self._alike:
            self._insert_alike(newest)
        elif every:
            self._insert(self._rows, newest)
        else:
            self._alike, rows = False, np.flatnonzero(n)
            self._insert(rows, newest[:, rows])
        return self._suspects(due) if np.count_nonzero(due) else ()

    def _insert_alike(self, newest: Floats) -> None:
        """Append a bucket to level 0 of all windows, which merge together."""
        most = self._rule.max_buckets
        for level, used in enumerate(self._filled[:, 0].tolist()):
            slots = self._buckets[:, :, level]
            if used < most:
                slots[:, used] = newest
                self._filled[level] += 1
                return
            merged = slots[:, 1].copy()
            merged[TOTAL] += slots[TOTAL, 0]
            merged[AT] = slots[AT, 0]
            slots[:, :-2] = slots[:, 2:]
            slots[:, -2], slots[:, -1] = newest, 0.0
            self._filled[level] = most - 1
            newest = merged
        self._grow()
        self._buckets[:, 0, -1] = newest
        self._filled[-1] = 1

    def _grow(self) -> None:
        self._filled = np.pad(self._filled, ((0, 1), (0, 0)))
        self._buckets = np.pad(self._buckets, ((0, 0), (0, 0), (0, 1), (0, 0)))

    def _insert(self, rows: Indices, newest: Floats) -> None:
        """The same for some windows, or where each has a structure of its own.

        A level that is full passes the sum of its two oldest on, to a level that may be full as well. Of the two, neither has
        just come (a level has room for two or more), so all levels of all windows merge in one step.
        """
        windows, into = len(self._rows), rows
        fill = self._filled if rows is self._rows else self._filled.take(rows, axis=1)
        full = fill == self._rule.max_buckets
        if np.count_nonzero(full[0]):
            overflows = np.logical_and.accumulate(full, axis=0)
            if np.count_nonzero(overflows[-1]):
                self._grow()
                self._insert(rows, newest)
                return
            level, which = overflows.nonzero()
            merging = level * windows + rows.take(which)
            into = np.concatenate((rows, merging + windows))
            newest = np.concatenate((newest, self._pass_on(merging)), axis=1)
        filled = self._filled.reshape(-1)
        used = filled.take(into)
        self._buckets.reshape(4, -1)[:, used * len(filled) + into] = newest
        filled[into] = used + 1

    def _pass_on(self, merging: Indices) -> Floats:
        """Take the two oldest buckets out of some levels: their sum, ``(4, levels)``."""
        most = self._rule.max_buckets
        levels = self._buckets.reshape(4, most, -1)  # of all windows
        old = levels.take(merging, axis=2)
        merged = old[:, 1].copy()
        merged[TOTAL] += old[TOTAL, 0]
        merged[AT] = old[AT, 0]
        old[:, :-2] = old[:, 2:]
        old[:, -2:] = 0.0
        levels[:, :, merging] = old
        self._filled.reshape(-1)[merging] = most - 2
        return merged

    def _suspects(self, due: npt.NDArray[np.bool_]) -> Sequence[int]:
        width, total, m2 = self._sums
        width = np.maximum(width, 2.0)  # only a window that is not due is smaller
        # One d, margin and rounding for all windows, of the shortest, the smallest effect and all sizes together: the bound stays one.
        d = confidence(float(np.minimum.reduce(width)), self._rule.delta)
        size = math.sqrt(np.vdot(width, m2)) + math.sqrt(np.vdot(total, total))
        panes = self._rule.max_buckets << len(self._filled)  # at most
        least = least_deviation(d, panes, size)
        if not least > 0:
            return np.flatnonzero(due).tolist()
        n0, older = self._buckets[N0:]
        deviation = n0 * (total / width)
        deviation -= older
        deviation *= deviation
        bound = width - n0
        bound *= n0
        bound *= m2 / (width * width) * (self._rule.design_effect * (2 * d))
        bound += least * least
        found = deviation > bound
        if not np.count_nonzero(found):
            return ()
        return np.flatnonzero(found.any(axis=(0, 1)) & due).tolist()

    def sums(self) -> Floats:
        """``(3, k)`` events, sum, M2."""
        return self._sums.copy()

    def buckets(self, row: int) -> Floats:
        """``(3, buckets)``."""
        slots = self._buckets[:, :, ::-1, row].swapaxes(1, 2)
        used = slots[:, self._used(row)]
        return np.array((np.diff(used[N0], prepend=0.0), used[TOTAL], used[AT]))

    def all_buckets(self) -> Floats:
        """``(3, buckets of all windows)``: a state is saved at every pane, and a call per window would cost more than the pane."""
        filled = self.filled()
        slots = self._buckets[:, :, ::-1].transpose(0, 3, 2, 1)
        used = slots[:, np.arange(self._rule.max_buckets) < filled[..., None]]
        n = np.diff(used[N0], prepend=0.0)
        counts = filled.sum(axis=1)
        first = (np.cumsum(counts) - counts)[counts > 0]
        n[first] = used[N0, first]
        return np.array((n, used[TOTAL], used[AT]))

    def filled(self) -> Indices:
        """``(k, levels)``."""
        return self._filled[::-1].T

    def restart(self, row: int) -> None:
        """Forget one window."""
        self._alike = False
        self._sums[:, row] = 0.0
        self._filled[:, row] = 0
        self._buckets[..., row] = 0.0

    def load(self, sums: Floats, filled: Indices, buckets: Sequence[Floats]) -> None:
        """Become what was saved."""
        self._sums, self._filled = sums.copy(), filled.T[::-1].copy()
        self._alike = bool(np.all(self._filled == self._filled[:, :1]))
        self._buckets = np.zeros((4, self._rule.max_buckets, *self._filled.shape))
        for row, own in enumerate(buckets):
            slots = self._buckets[:, :, ::-1, row].swapaxes(1, 2)
            slots[:, self._used(row)] = with_ends(own)

    def _used(self, row: int) -> npt.NDArray[np.bool_]:
        """``(levels, slots)``, the oldest level first."""
        return np.arange(self._rule.max_buckets) < self._filled[::-1, row, None]
