"""Event time: panes open, fill and close; windows are whole panes; what is closed leaves in the order of time.

::

    event time  ──────────────────────────────────────────────►
    panes        [ closed ][ closed ][  open  ][  open  ]
                                   ▲ watermark: min over the source partitions that are not idle

A pane ``[start, start + size)`` closes when the watermark, less the model's lateness, has reached its end: end exclusive, so an event at the end belongs to
the next pane. Closing is a function of the panes and the watermark alone: one jump of an hour gives what 3,600 steps of a second give, in the same order.

Panes of versions that have no place (``monitor.versions``) close as one pane of ``__other__``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from itertools import groupby
from operator import add, itemgetter
from typing import Final, NamedTuple

from monitor.profile import Profile
from monitor.versions import Live, Places, Roster

MAX_VERSIONS: Final = 16  # of a model, followed one by one
_PANE_BYTES: Final = 1_024  # of an open pane beside its vector: keys and objects


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
    """A pane that will not change.

    Attributes:
        parts: the series that its events came in: its own, or those that ``__other__`` stands for.
        fresh: nothing that was known of the series before counts any more.
        began_ms: start of the first pane of the series.
    """

    key: SeriesKey
    start_ms: int
    profile: Profile
    parts: tuple[SeriesKey, ...] = ()
    fresh: bool = False
    began_ms: int = 0


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
        versions: how many versions are followed, in each binning.

    Attributes:
        rosters: the versions that have a place, by ``bins_id``.
        open_bytes: memory that the open panes take, about.
    """

    def __init__(
        self,
        pane_ms: int,
        sizes_ms: tuple[int, ...],
        lateness_ms: int,
        *,
        versions: int = MAX_VERSIONS,
    ) -> None:
        self.pane_ms, self.sizes_ms, self.lateness_ms = pane_ms, sizes_ms, lateness_ms
        self.open: dict[tuple[SeriesKey, int], Profile] = {}
        self.windows: dict[SeriesKey, Windows] = {}
        self.rosters: dict[str, Roster] = {}
        self.open_bytes = 0
        self._places = Places.of(versions, sizes_ms)

    def roster(self, bins_id: str) -> Roster:
        """Who has a place in a binning."""
        if bins_id not in self.rosters:
            self.rosters[bins_id] = Roster(self._places)
        return self.rosters[bins_id]

    def owner(self, key: SeriesKey, start_ms: int) -> SeriesKey:
        """The series that a pane is counted in when it closes."""
        return key._replace(version=self.roster(key.bins_id).owner(key.version, start_ms))

    def owner_of_late(self, key: SeriesKey) -> SeriesKey:
        """The series that a late contribution is counted in."""
        return key._replace(version=self.roster(key.bins_id).owner_of_late(key.version))

    def is_passed(self, start_ms: int, watermark_ms: int | None) -> bool:
        """Whether a watermark has closed the pane, so that what still comes for it is a late contribution."""
        return (
            watermark_ms is not None and start_ms + self.pane_ms <= watermark_ms - self.lateness_ms
        )

    def is_taken(self, key: SeriesKey, start_ms: int) -> bool:
        """Whether the pane is in the windows of its owner already."""
        windows = self.windows.get(self.owner(key, start_ms))
        return (
            windows is not None and windows.through_ms is not None and start_ms < windows.through_ms
        )

    def add(self, key: SeriesKey, start_ms: int, profile: Profile) -> Profile:
        """Merge a delta into an open pane and return what the pane holds now."""
        held = self.open.get((key, start_ms))
        if held is None:
            self.open_bytes += _weight(profile)
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
        for start, together in groupby(due, key=itemgetter(0)):
            yield from self._close_windows(ends, start)
            for pane in self._owned(start, [key for _, key in together]):
                if pane.fresh:
                    self.windows[pane.key] = Windows(self.sizes_ms)
                windows = self.windows[pane.key]
                added = [size for size in self.sizes_ms if size not in windows.open]
                windows.take(pane, self.pane_ms)
                self.roster(pane.key.bins_id).note(pane.key.version, start + self.pane_ms)
                for size in added:
                    heapq.heappush(ends, (windows.open[size][0] + size, pane.key, size))
                yield pane
        yield from self._close_windows(ends, passed)
        for roster in self.rosters.values():
            roster.forget(passed - self.pane_ms)

    def adopt(self) -> None:
        """Go on from restored windows. Those of a release that knew no places keep theirs."""
        old: dict[str, dict[str, int]] = {}
        for key, w in self.windows.items():
            if key.bins_id not in self.rosters and w.first_ms is not None:
                live = old.setdefault(key.bins_id, {})
                live[key.version] = min(w.first_ms, live.get(key.version, w.first_ms))
        self.rosters |= {bins_id: Roster(self._places, live) for bins_id, live in old.items()}
        for key, w in self.windows.items():
            if w.through_ms is not None:
                self.roster(key.bins_id).note(key.version, w.through_ms)

    def settle(self) -> tuple[list[SeriesKey], list[str]]:
        """What was decided until now is final: drop the series of versions that lost their place, and binnings without any.

        A roster that is ``recorded`` is left as it is: the message that decided it is yet to be applied.
        """
        changed = {
            b for b, roster in self.rosters.items() if roster.changed and not roster.recorded
        }
        for bins_id in changed:
            self.rosters[bins_id].settle()
        gone = [
            key
            for key in (self.windows if changed else ())
            if key.bins_id in changed and self._is_stale(key, self.rosters[key.bins_id].live)
        ]
        for key in gone:
            del self.windows[key]
        empty = [b for b in changed if not (self.rosters[b].live or self.rosters[b].guests)]
        for bins_id in empty:
            del self.rosters[bins_id]
        return gone, sorted(empty)

    def _is_stale(self, key: SeriesKey, live: Live) -> bool:
        """Whether the windows of a series are from before its version got the place that it has, if any."""
        first_ms = self.windows[key].first_ms
        return key.version not in live or (first_ms is not None and first_ms < live[key.version])

    def _owned(self, start_ms: int, keys: list[SeriesKey]) -> Iterator[ClosedPane]:
        """Take the open panes that start then, by the series that they are counted in."""
        events: dict[str, dict[str, int]] = {}
        for key in keys:
            counts = events.setdefault(key.bins_id, {})
            n = 0 if key.segment else self.open[key, start_ms].n
            counts[key.version] = counts.get(key.version, 0) + n
        for bins_id, counts in events.items():
            self.roster(bins_id).decide(start_ms, counts)
        owned: dict[SeriesKey, list[SeriesKey]] = {}
        for key in keys:
            owned.setdefault(self.owner(key, start_ms), []).append(key)
        for owner, parts in sorted(owned.items()):
            profiles = [self.open.pop((key, start_ms)) for key in parts]
            self.open_bytes -= sum(map(_weight, profiles))
            live = self.roster(owner.bins_id).at(start_ms)
            fresh = owner not in self.windows or self._is_stale(owner, live)
            began_ms = None if fresh else self.windows[owner].first_ms
            yield ClosedPane(
                owner,
                start_ms,
                total(profiles),
                tuple(parts),
                fresh,
                start_ms if began_ms is None else began_ms,
            )

    def _close_windows(
        self, ends: list[tuple[int, SeriesKey, int]], passed_ms: int
    ) -> Iterator[ClosedWindow]:
        while ends and ends[0][0] <= passed_ms:
            _, key, size = heapq.heappop(ends)
            windows = self.windows[key]
            start, profile = windows.open.pop(size)
            whole = windows.first_ms is None or windows.first_ms <= start
            yield ClosedWindow(key, start, size, profile, whole)


def total(profiles: Iterable[Profile]) -> Profile:
    """All together; of one at least."""
    return reduce(add, profiles)


def _weight(profile: Profile) -> int:
    return _PANE_BYTES + profile.vector.nbytes


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
