"""A bounded sample of a stream of rows: every ``stride``-th, and the stride doubles when there would be too many. Deterministic."""

from __future__ import annotations

import numpy as np

from monitor.raw import Floats


class StridedSample:
    """At most ``most`` rows of any number, evenly spread over all of them. Mutable: it streams.

    Args:
        most: at least 1.
        empty: ``(0, ...)``, of the rows' shape: the sample of no rows.
    """

    def __init__(self, most: int, empty: Floats) -> None:
        self._most, self._parts = most, [empty]
        self._kept, self._seen, self.stride = 0, 0, 1

    def add(self, rows: Floats) -> None:
        """Take up ``(n, ...)`` rows."""
        # Copied: a view would hold on to all the rows that were not chosen.
        self._parts.append(rows[-self._seen % self.stride :: self.stride].copy())
        self._seen += len(rows)
        self._kept += len(self._parts[-1])
        while self._kept > self._most:
            self._parts = [self.rows[::2].copy()]
            self.stride, self._kept = self.stride * 2, len(self._parts[0])

    @property
    def rows(self) -> Floats:
        """``(k, ...)`` in the order of the stream."""
        return np.concatenate(self._parts)
