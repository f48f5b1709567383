"""Hours and days of models whose windows are shorter: exact sums, right under repeats, corrections, any order, and after the short windows are gone.

::

    windows         1 m 1 m 1 m ... 1 m    newest revision of each, late contributions beside them
                    └────── hour ─────┘    windows_rolled, whenever something of that hour was stored
                    └──────────── day ──── ...

A view that adds what is inserted would count a repeated row twice, and a corrected one with what it corrects. Here an hour in which something was stored is made
again as a whole, by reading what it consists of. Its revision is the sum of (revision + 1) over that: it grows with each new row and each correction, and whoever saw
more wins, however many make it at once and in whatever order their rows arrive. Nothing is made of a window whose features are kept no longer, or not all stored
yet: so a row stays as it was made when all was there, and what comes later than that for its window is counted in the window's number of events only.

A size that a model has in its own spec is not made. An hour or day in which a model's sizes were changed has one row for each size that it can be made of, and the
readers (``queries.rolled``) take the one with the most events: it may lack those before or after the change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from monitor import queries
from monitor.clickhouse import ClickHouse
from monitor.queries import DAY_MS, HOUR_MS

MARGIN_S: Final = 600  # an insert is visible at most so long after the time that its rows bear


@dataclass(frozen=True, slots=True)
class _Touched:
    """Event time of a model, within one day, in whose windows something was stored."""

    model: str
    from_ms: int
    to_ms: int
    sizes_ms: frozenset[int]


class Rollups:
    """Makes them. Mutable: it remembers what is left to do of what it found; all else is in the database."""

    def __init__(self, link: ClickHouse) -> None:
        self._link = link
        self._left: deque[_Touched] = deque()
        self._own: Mapping[str, frozenset[int]] = {}
        self._found_s: int | None = None

    def roll(self, *, enough: Callable[[], bool] = lambda: False, every_s: int = 0) -> bool:
        """Make what changed since the last time; may be done by several at once. The first time, that is all.

        Args:
            enough: asked after each day of a model; once true, the rest is left to the next call.
            every_s: do nothing if somebody has finished less than this ago.

        Returns:
            Whether nothing is left.

        Raises:
            TransientError: ClickHouse does not answer; call again.
        """
        if self._found_s is None and not self._find(every_s):
            return True
        while self._left:
            self._make(self._left[0])
            self._left.popleft()
            if self._left and enough():
                return False
        self._link.execute(queries.ROLLED_UNTIL, {"until": self._found_s})
        self._found_s = None
        return True

    def _find(self, every_s: int) -> bool:
        """Look for what is to be made; whether it is time for that."""
        (state,) = self._link.rows(queries.ROLL_STATE)
        if state["until_s"] and state["now_s"] < state["until_s"] + every_s:
            return False
        self._own = {
            row["model"]: frozenset(row["sizes"]) for row in self._link.rows(queries.OWN_SIZES)
        }
        since_s = max(0, state["until_s"] - MARGIN_S)
        for row in self._link.rows(queries.TOUCHED, {"since_s": since_s}):
            bounds = row["first_ms"] // HOUR_MS * HOUR_MS, (row["last_ms"] // HOUR_MS + 1) * HOUR_MS
            self._left.append(_Touched(row["model"], *bounds, frozenset(row["sizes"])))
        self._found_s = state["now_s"]
        return True

    def _make(self, touched: _Touched) -> None:
        own = self._own.get(touched.model, frozenset())
        to_hours = {size for size in touched.sizes_ms if _parts(size, HOUR_MS)}
        to_days = {size for size in touched.sizes_ms if _parts(size, DAY_MS)} - to_hours
        hours = {"model": touched.model, "size_ms": HOUR_MS}
        hours |= {"from_ms": touched.from_ms, "to_ms": touched.to_ms}
        start_ms = touched.from_ms // DAY_MS * DAY_MS
        day = {"model": touched.model, "size_ms": DAY_MS}
        day |= {"from_ms": start_ms, "to_ms": start_ms + DAY_MS}
        if to_hours and HOUR_MS not in own:
            self._link.execute(queries.ROLL_HOURS, hours)
            if DAY_MS not in own:
                self._link.execute(queries.ROLL_DAYS_OF_HOURS, day)
        if to_days and DAY_MS not in own:
            self._link.execute(queries.ROLL_DAYS, day)


def _parts(size_ms: int, whole_ms: int) -> bool:
    """Whether windows of this size make up the larger one."""
    return size_ms < whole_ms and whole_ms % size_ms == 0
