"""Windows of panes in logarithmic memory, and which of them might hold a change.

A window is an exponential histogram (Datar et al. 2002): up to ``max_buckets`` buckets a level, each twice as many panes as
one of the level below, the oldest first; where a level overflows, its two oldest buckets become one of the next::

    level 3     level 2         level 1     level 0
    [8][8]      [4][4][4]       [2]         [1][1][1][1]        <- panes per bucket, newest pane last

Two forms of one contract, whose windows are equal to the last bit: ``Loops`` is Python on floats, the faster one for a few windows;
``monitor.bucket_arrays`` steps many of them at once, of which each merges and restarts at times of its own.

``add`` also says which windows might hold a cut that fires, by a bound that costs a tenth of the exact rule and never misses one.
With D the deviation of the older part's total from its share of the window's, and q = 1/n0 + 1/n1, the means
differ by |D| q, and a cut's limit is at least sqrt(2 q e v d) + 2/3 q e d (``monitor.adwin``: its m is at least q). So a cut fires only if::

    D^2 > 2 e v d n0 n1 / (n0 + n1) + (2/3 e d)^2

On clean panes that is a 4 sigma event (d is about 9), so the exact rule hardly ever runs. So that the bound needs no sums, a
bucket keeps what the window held when its last pane had come: that never changes, and goes on to the bucket that it becomes part of.
Rounding moves D by no more than _ROUNDING x panes x the sum of the values' sizes; where that is not small next to 2/3 e d, the
window is always a suspect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Planes of the buckets: sum of the values, start of the first pane; events and sum of the window up to the bucket's end.
TOTAL, AT, N0, OLDER = range(4)
# D and the exact rule's difference err together by at most 2 (panes + 3 buckets + 10) of 2**-53 (|total| + sum |x|): the
# longest sums that they are made of. This is twice that and more, for what the window's own total and M2 have lost.
_ROUNDING: Final = 2.0**-49
LARGEST: Final = 1e100  # of a mean or M2: nothing that is computed of them overflows
_MARGIN: Final = 1 - 2.0**-30  # for the few roundings of the bound itself


@dataclass(frozen=True, slots=True)
class Rule:
    """When a window is looked at, and how far the parts of a cut may lie apart. Fields as in ``monitor.adwin``.

    ``design_effect`` is of ``(k,)``.
    """

    delta: float
    clock: int
    grace_period: int
    max_buckets: int
    design_effect: Floats


class Windows(Protocol):
    """``k`` windows. Mutable: the state of a stream, with one owner."""

    @staticmethod
    def sound(pane: Floats) -> bool:
        """Whether a pane of ``(3, k)`` can be taken in as it is; fast, and may say no to one with an empty feature."""

    def add(self, at: int, pane: Floats) -> Sequence[int]:
        """Take in a pane of ``(3, k)`` counts, means and M2; a window whose count is 0 stays as it is.

        Returns:
            The windows that are due a look and in which a cut might fire, ascending.
        """

    def sums(self) -> Floats:
        """``(3, k)``: events in each window, sum of the values, sum of their squared deviations from the mean."""

    def buckets(self, row: int) -> Floats:
        """``(3, buckets)``: events, sum and start of one window's buckets, the oldest first."""

    def all_buckets(self) -> Floats:
        """``(3, buckets of all windows)``: the same, one window behind the other."""

    def filled(self) -> Indices:
        """``(k, levels)``: used buckets of each level, the oldest level first."""

    def restart(self, row: int) -> None:
        """Forget one window."""

    def load(self, sums: Floats, filled: Indices, buckets: Sequence[Floats]) -> None:
        """Become what ``sums``, ``filled`` and the ``buckets`` of each row have told."""


def confidence(width: float, delta: float) -> float:
    """``d`` of a window of so many events, a hair less: the hair is for the roundings of the bound."""
    return math.log(2 * math.log(width) / delta) * _MARGIN


def least_deviation(e_d: float, panes: int, size: float) -> float:
    """What any cut that fires must deviate by, at least, given rounding; not positive if that drowns it.

    ``panes`` in the window, or more; ``size``: |sum of the values| + sqrt(events x M2), or more, which bounds the sum of their sizes.
    """
    return 2 / 3 * e_d - _ROUNDING * (panes + 4) * size


def with_ends(buckets: Floats) -> Floats:
    """``(4, buckets)``: all planes of what ``Windows.buckets`` tells of a window."""
    return np.concatenate((buckets[1:], np.cumsum(buckets[:2], axis=1)))


class Loops:
    """A few windows as Python lists: a step costs about 10 us a window."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._windows = [_Window(rule, float(effect)) for effect in rule.design_effect]

    @staticmethod
    def sound(pane: Floats) -> bool:
        """Whether all is in range."""
        for n, mean, m2 in pane.T.tolist():
            if not (n.is_integer() and n >= 0 and -LARGEST <= mean <= LARGEST >= m2 >= 0):
                return False
        return True

    def add(self, at: int, pane: Floats) -> Sequence[int]:
        """Take in a pane."""
        start, suspects = float(at), []
        for row, (n, mean, m2) in enumerate(pane.T.tolist()):
            if n and self._windows[row].add(start, n, mean, m2):
                suspects.append(row)
        return suspects

    def sums(self) -> Floats:
        """``(3, k)`` events, sum, M2."""
        return np.array([(w.width, w.total, w.m2) for w in self._windows]).reshape(-1, 3).T

    def buckets(self, row: int) -> Floats:
        """``(3, buckets)``."""
        window = self._windows[row]
        return np.array((np.diff(window.n0, prepend=0.0), window.totals, window.starts))

    def all_buckets(self) -> Floats:
        """``(3, buckets of all windows)``."""
        rows = map(self.buckets, range(len(self._windows)))
        return np.concatenate((np.empty((3, 0)), *rows), axis=1)

    def filled(self) -> Indices:
        """``(k, levels)``."""
        levels = max((len(w.filled) for w in self._windows), default=1)
        return np.array(
            [[0] * (levels - len(w.filled)) + w.filled[::-1] for w in self._windows], dtype=np.intp
        ).reshape(-1, levels)

    def restart(self, row: int) -> None:
        """Forget one window."""
        self._windows[row].clear()

    def load(self, sums: Floats, filled: Indices, buckets: Sequence[Floats]) -> None:
        """Become what was saved."""
        for window, held, used, own in zip(self._windows, sums.T, filled, buckets, strict=True):
            window.width, window.total, window.m2 = held.tolist()
            window.filled = np.trim_zeros(used[::-1], "b").tolist() or [0]
            window.totals, window.starts, window.n0, window.older = with_ends(own).tolist()


class _Window:
    """One window: its buckets in four lists, the oldest first, and how many each level has, level 0 first."""

    __slots__ = (
        "effect",
        "filled",
        "m2",
        "n0",
        "older",
        "rule",
        "starts",
        "total",
        "totals",
        "width",
    )

    def __init__(self, rule: Rule, effect: float) -> None:
        self.rule, self.effect = rule, effect
        self.clear()

    def clear(self) -> None:
        self.width = self.total = self.m2 = 0.0
        self.totals: list[float] = []
        self.starts: list[float] = []
        self.n0: list[float] = []
        self.older: list[float] = []
        self.filled = [0]

    def add(self, at: float, n: float, mean: float, m2: float) -> bool:
        # The order of these operations is river's: with n = 1 and m2 = 0 every bit is the same.
        before, sum_of_pane = self.width, n * mean
        now = before + n
        gap = mean - self.total / (before or 1.0)
        self.m2 += m2 + before * n * gap * gap / now
        self.total += sum_of_pane
        self.width = now
        self.totals.append(sum_of_pane)
        self.starts.append(at)
        self.n0.append(now)
        self.older.append(self.total)
        self.filled[0] += 1
        if self.filled[0] > self.rule.max_buckets:
            self._merge()
        clock = self.rule.clock
        return now // clock > before // clock and now > self.rule.grace_period and self._suspect()

    def _merge(self) -> None:
        oldest, level, most = len(self.totals), 0, self.rule.max_buckets
        while self.filled[level] > most:
            oldest -= self.filled[level]
            # Two neighbours become one, and so the last bucket of the level above: nothing else moves.
            self.totals[oldest] += self.totals.pop(oldest + 1)
            del self.starts[oldest + 1], self.n0[oldest], self.older[oldest]
            self.filled[level] -= 2
            oldest += 1
            level += 1
            if level == len(self.filled):
                self.filled.append(0)
            self.filled[level] += 1

    def _suspect(self) -> bool:
        width, total = self.width, self.total
        e_d = self.effect * confidence(width, self.rule.delta)
        panes = self.rule.max_buckets << len(self.filled)  # at most
        least = least_deviation(e_d, panes, math.sqrt(width * self.m2) + abs(total))
        if not least > 0:
            return True
        least *= least
        slope, mean = 2 * e_d * (self.m2 / width) / width, total / width
        for n0, older in zip(self.n0, self.older):  # noqa: B905 - the hottest loop, of equal lists
            deviation = older - mean * n0
            if deviation * deviation > slope * n0 * (width - n0) + least:
                return True
        return False
