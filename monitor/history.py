"""History: closed windows as ClickHouse has them, rebuilt into profiles, to be judged again.

Counts come back exactly. Moments are stored as a mean and a variance, so their sums are rounded in the last digits of a double. Texts of unseen categories
are left out: they are hints. Late events are in: a window is as it is known now, where the detector judged what it knew when it closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from monitor import queries
from monitor.binning import FLAGS, QUANTUM_BITS, SPECIALS, WORD_BITS, Bins, Ints, NumericBins
from monitor.clickhouse import ClickHouse
from monitor.panes import ClosedWindow, SeriesKey
from monitor.profile import Layout, Profile

CHUNK_ROWS: Final = 20_000  # rows of a question; a row has some 60 counts: about 10 MB
_COUNTS: Final = (*SPECIALS, *FLAGS)


class Extent(msgspec.Struct, frozen=True):
    """What is stored of a model in some time: windows that can be judged, and those that cannot.

    ``left_out`` windows are of another binning, because the reference changed, or of a size that the spec does not have any more, or so old that their features are gone.
    """

    windows: int
    left_out: int


class History:
    """The windows of a model that lie in ``[from_ms, to_ms)`` as a whole, and have a binning and one of some sizes."""

    def __init__(
        self,
        link: ClickHouse,
        model: str,
        layout: Layout,
        sizes_ms: Sequence[int],
        *,
        from_ms: int,
        to_ms: int,
    ) -> None:
        self._link, self._model, self._layout = link, model, layout
        self._from_ms, self._to_ms = from_ms, to_ms
        self._longest_ms, self._shortest_ms = max(sizes_ms), min(sizes_ms)
        self._scope = {
            "model": model,
            "bins_id": layout.bins_id,
            "field": layout.fields[0].name if layout.fields else "",
            "sizes": list(sizes_ms),
            "from_ms": from_ms,
            "to_ms": to_ms,
        }
        (found,) = link.rows(queries.EXTENT, self._scope)
        self.extent = Extent(int(found["windows"]), int(found["left_out"]))
        self._first_ms, self._last_ms = found["first_ms"], found["last_ms"]

    def by_end(self) -> Iterator[list[ClosedWindow]]:
        """Windows that end together, as the detector closed them: ends rising, then by series and size. Bounded memory.

        Raises:
            TransientError: ClickHouse does not answer.
        """
        if not self.extent.windows:
            return
        partial = self._partial()
        rows = self.extent.windows * (len(self._layout.fields) + 1)
        span_ms = self._last_ms - self._first_ms
        chunk_ms = max(self._shortest_ms, span_ms * CHUNK_ROWS // rows)
        for after_ms in range(self._first_ms, self._last_ms, chunk_ms):
            windows = self._windows(after_ms, min(after_ms + chunk_ms, self._last_ms), partial)
            for _, together in groupby(windows, key=lambda w: w.start_ms + w.size_ms):
                yield list(together)

    def _partial(self) -> set[tuple[str, str, int, int]]:
        """Windows that the detector called not whole: at most the first of each series and size."""
        rows = self._link.rows(queries.PARTIAL, self._scope)
        return {(r["version"], r["segment"], r["size_ms"], r["start_ms"]) for r in rows}

    def _windows(
        self, after_ms: int, through_ms: int, partial: set[tuple[str, str, int, int]]
    ) -> Iterator[ClosedWindow]:
        """Windows with an end in ``(after_ms, through_ms]``."""
        scope = {"after_ms": after_ms, "through_ms": through_ms}
        earliest = {"earliest_ms": max(0, after_ms - self._longest_ms)}
        rows = _Rows(self._link, {**self._scope, **scope, **earliest})
        for place, members in groupby(range(rows.n), key=rows.place):
            version, segment, size_ms, start_ms = place
            parts = [list(part) for _, part in groupby(members, key=rows.contribution)]
            if rows.contribution(parts[0][0]):
                continue  # all of it was late: such a window never closed
            if self._layout.fields and len(parts[0]) == 1:
                continue  # kept no longer, but for its numbers
            profile = rows.profile(self._layout, parts[0])
            for part in parts[1:]:
                profile += rows.profile(self._layout, part)
            key = SeriesKey(self._model, version, segment, self._layout.bins_id)
            yield ClosedWindow(key, start_ms, size_ms, profile, whole=place not in partial)


class _Place(NamedTuple):
    version: str
    segment: str
    size_ms: int
    start_ms: int


class _Rows:
    """Rows of ``windows`` as columns: one per window, contribution and field, ``""`` being the window itself."""

    def __init__(self, link: ClickHouse, scope: dict[str, Any]) -> None:
        found = link.arrow(queries.HISTORY, scope)
        self.n = found.num_rows
        plain = {name: found.column(name).to_pylist() for name in _PLAIN}
        self._places = [
            _Place(*place) for place in zip(*(plain[n] for n in _Place._fields), strict=True)
        ]
        self._contributions: list[str] = plain["contribution"]
        self._features: list[str] = plain["feature"]
        self._moments = list(zip(plain["n"], plain["mean"], plain["variance"], strict=True))
        self._events = list(zip(plain["n"], plain["errors"], strict=True))
        self._special = np.array([plain[name] for name in _COUNTS], dtype=np.int64).T
        self._counts: list[Ints] = []
        for chunk in found.column("counts").chunks:
            ends = np.cumsum(chunk.value_lengths().to_numpy())
            self._counts += np.split(chunk.flatten().to_numpy().astype(np.int64), ends[:-1])

    def place(self, row: int) -> _Place:
        return self._places[row]

    def contribution(self, row: int) -> str:
        return self._contributions[row]

    def profile(self, layout: Layout, rows: Sequence[int]) -> Profile:
        """The profile of one contribution."""
        vector = np.zeros(layout.size, dtype=np.int64)
        for row in rows:
            f = layout.by_name.get(self._features[row])
            if f is None:
                vector[:2] = self._events[row]
                continue
            vector[f.counts] = self._counts[row]
            vector[f.specials.start : f.flags.stop] = self._special[row]
            vector[f.moments] = sums_of_quanta(f.bins, *self._moments[row])
        return Profile(layout, layout.normalise(vector))


_PLAIN: Final = (
    *_Place._fields,
    "contribution",
    "feature",
    "n",
    "errors",
    *_COUNTS,
    "mean",
    "variance",
)


def sums_of_quanta(
    bins: Bins, n: int, mean: float | None, variance: float | None
) -> tuple[int, int, int]:
    """What a profile holds of ``n`` values with this mean and population variance: the sum of quanta, and of their squares in two words."""
    if n == 0 or mean is None or variance is None or not isinstance(bins, NumericBins):
        return 0, 0, 0
    centred = (mean - bins.center) / bins.scale
    squares = variance / bins.scale / bins.scale + centred * centred
    s1 = round(n * centred * (1 << QUANTUM_BITS))
    s2 = round(n * squares * (1 << 2 * QUANTUM_BITS))
    s2 = max(s2, -(-s1 * s1 // n))  # rounding must not make a variance negative
    return s1, s2 >> WORD_BITS, s2 & (1 << WORD_BITS) - 1
