"""Event time: panes open, fill and close; windows are whole panes; what is closed leaves in the order of time.

::

    event time  ──────────────────────────────────────────────►
    panes        [ closed ][ closed ][  open  ][  open  ]
                                   ▲ watermark: min over the source partitions that are not idle

A pane ``[start, start + size)`` closes when the watermark, less the model's lateness, has reached its end: end exclusive, so an event at the end belongs to
the next pane. Closing is a function of the panes and the watermark alone: one jump of an hour gives what 3,600 steps of a second give, in the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from monitor.profile import Profile


class LinkFate(Enum):
    """What a chain link is, seen from the position that was applied last."""

    APPLY = "it follows"
    SKIP = "it is known"
    BREAK = "something before it is missing"


class SeriesKey(NamedTuple):
    """One line of panes: a segment (``""`` is the whole) of a version of a model, in one binning."""

    model: str
    version: str
    segment: str
    bins_id: str


@dataclass(frozen=True, slots=True)
class SourceMark:
    """How far one source partition was read: position, largest event time, and whether nothing was left to read."""

    position: int
    watermark_ms: int | None
    idle: bool


@dataclass(frozen=True, slots=True)
class ClosedPane:
    """A pane that will not change."""

    key: SeriesKey
    start_ms: int
    profile: Profile


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that will not change, except by late contributions beside it."""

    key: SeriesKey
    start_ms: int
    size_ms: int
    profile: Profile
    whole: bool  # false for the first window of a series that began inside it


Closed = ClosedPane | ClosedWindow


def combined_watermark(marks: Iterable[SourceMark], sources: int = 0) -> int | None:
    """The event time that every source partition has passed; ``None`` while one that has data, or of ``sources`` in all, says nothing.

    An idle partition does not hold the others back. If all are idle, nothing more is coming that could be waited for, so the
    furthest counts. A partition that never had an event has no say.
    """
    marks = list(marks)
    if len(marks) < sources:
        return None
    known = [mark for mark in marks if mark.watermark_ms is not None or not mark.idle]
    busy = [mark.watermark_ms for mark in known if not mark.idle]
    if busy:
        return None if None in busy else min(w for w in busy if w is not None)
    return max((mark.watermark_ms for mark in known if mark.watermark_ms is not None), default=None)


@dataclass(slots=True)
class Windows:
    """The open windows of one series. Mutable: it accumulates.

    ``first_ms`` is the start of the first pane taken in, ``through_ms`` the end of the last.
    """

    sizes: tuple[int, ...]
    first_ms: int | None = None
    through_ms: int | None = None
    open: dict[int, tuple[int, Profile]] = field(default_factory=dict)

    def take(self, pane: ClosedPane, pane_ms: int) -> None:
        """Add a pane to the window of each size that it lies in. Windows that ended before it must have been closed."""
        for size in self.sizes:
            start = pane.start_ms // size * size
            held = self.open.get(size)
            if held is not None and held[0] != start:
                raise ValueError(
                    f"pane {pane.start_ms} taken while window {held[0]} of {size} ms is still open"
                )
            self.open[size] = (start, pane.profile if held is None else held[1] + pane.profile)
        self.first_ms = pane.start_ms if self.first_ms is None else self.first_ms
        self.through_ms = pane.start_ms + pane_ms


class Panes:
    """The open panes and windows of one model. Mutable: it is the state that Kafka's partition owns.

    Args:
        pane_ms: size of a pane.
        sizes_ms: sizes of the windows, whole panes each.
        lateness_ms: how much longer a pane stays open.
    """

    def __init__(self, pane_ms: int, sizes_ms: tuple[int, ...], lateness_ms: int) -> None:
        self.pane_ms, self.sizes_ms, self.lateness_ms = pane_ms, sizes_ms, lateness_ms
        self.open: dict[tuple[SeriesKey, int], Profile] = {}
        self.windows: dict[SeriesKey, Windows] = {}

    def is_passed(self, start_ms: int, watermark_ms: int | None) -> bool:
        """Whether a watermark has closed the pane, so that what still comes for it is a late contribution."""
        return (
            watermark_ms is not None and start_ms + self.pane_ms <= watermark_ms - self.lateness_ms
        )

    def is_taken(self, key: SeriesKey, start_ms: int) -> bool:
        """Whether the pane is in its series' windows already."""
        windows = self.windows.get(key)
        return (
            windows is not None and windows.through_ms is not None and start_ms < windows.through_ms
        )

    def add(self, key: SeriesKey, start_ms: int, profile: Profile) -> Profile:
        """Merge a delta into an open pane and return what the pane holds now."""
        held = self.open.get((key, start_ms))
        self.open[key, start_ms] = merged = profile if held is None else held + profile
        return merged

    def held(self) -> int:
        """Events of the whole model in open panes and in the open windows of the smallest size."""
        smallest = min(self.sizes_ms)
        panes = sum(profile.n for (key, _), profile in self.open.items() if not key.segment)
        windows = (w.open.get(smallest) for key, w in self.windows.items() if not key.segment)
        return panes + sum(held[1].n for held in windows if held is not None)

    def advance(self, watermark_ms: int) -> Iterator[Closed]:
        """Close what the watermark has passed, in order of end, windows before the panes that start at their end, then by key and size.

        Cost: O(closed * log(windows)).
        """
        passed = watermark_ms - self.lateness_ms
        due = sorted((start, key) for key, start in self.open if start + self.pane_ms <= passed)
        ends = [
            (start + size, key, size)
            for key, w in self.windows.items()
            for size, (start, _) in w.open.items()
        ]
        heapq.heapify(ends)
        for start, key in due:
            yield from self._close_windows(ends, start)
            pane = ClosedPane(key, start, self.open.pop((key, start)))
            windows = self.windows.setdefault(key, Windows(self.sizes_ms))
            fresh = [size for size in self.sizes_ms if size not in windows.open]
            windows.take(pane, self.pane_ms)
            for size in fresh:
                heapq.heappush(ends, (windows.open[size][0] + size, key, size))
            yield pane
        yield from self._close_windows(ends, passed)

    def _close_windows(
        self, ends: list[tuple[int, SeriesKey, int]], passed_ms: int
    ) -> Iterator[ClosedWindow]:
        while ends and ends[0][0] <= passed_ms:
            _, key, size = heapq.heappop(ends)
            windows = self.windows[key]
            start, profile = windows.open.pop(size)
            whole = windows.first_ms is None or windows.first_ms <= start
            yield ClosedWindow(key, start, size, profile, whole)


def late_contributions(
    key: SeriesKey, start_ms: int, profile: Profile, sizes_ms: Iterable[int]
) -> Iterator[ClosedWindow]:
    """What a late delta adds to each window that holds its pane."""
    for size in sizes_ms:
        yield ClosedWindow(key, start_ms // size * size, size, profile, whole=True)


def check_link(mark: SourceMark | None, start: int, end: int, *, announced: bool) -> LinkFate:
    """How a link ``[start, end)`` of a source partition follows its mark. An announced jump, and the very first link, follow anything."""
    if mark is None or announced or start == mark.position:
        return LinkFate.APPLY
    return LinkFate.SKIP if end <= mark.position else LinkFate.BREAK
