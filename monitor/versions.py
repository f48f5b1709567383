"""Which versions of a model are followed one by one: a place for each of the first few, and ``__other__`` for all further ones together.

A producer chooses its versions, and may choose a new one for every event. Each version that is followed costs windows and detectors, so there is a number of
places. Who has one is decided as panes close, in the order of event time, from the panes alone::

    pane start   0         10        20                  a day later
    places       {7}       {7, 8}    {7, 8} is full      {9, 8}
    panes of     7         7, 8      7, 8, 9             8, 9            9 was counted in __other__, until 7 had been silent for a day

So it depends neither on how the stream was cut into batches nor on who reads them. A version that lost its place and comes back starts anew.

One message may close panes of years, and a crash may leave half of what it caused. The decisions of a message are therefore written down before all else
(``steps``), and are taken from there when it is applied again.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, TypeAlias

OTHER_VERSION: Final = "__other__"  # a producer that sends this name is counted there as well
DAY_MS: Final = 86_400_000
_EVER: Final = -(2**62)
_NUMBERS: Final = re.compile(r"(\d+)")

Live: TypeAlias = Mapping[str, int]
"""Version -> start of the pane that it got its place with."""


def natural(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of versions that began together: 9 before 10."""
    parts = (part for part in _NUMBERS.split(version) if part)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def silence_ms(sizes_ms: Iterable[int]) -> int:
    """How long a version says nothing before it counts as withdrawn: a day, or the largest window. A shorter silence may be a night's."""
    return max((DAY_MS, *sizes_ms))


def baseline(
    version: str, began_ms: Mapping[str, int], kept: str, *, withdrawn: bool
) -> str | None:
    """The older version that one is compared with in a window; ``None``: with nobody there.

    It is the oldest at first, and the same one for as long as it serves: to begin with another throws away what is known. A window that it misses is none
    to compare; only when it is ``withdrawn`` is another chosen.

    Args:
        version: the one to compare.
        began_ms: start of the first window of each version that is in this window, its own as well.
        kept: whom it was compared with, or ``""``.
        withdrawn: that one has been silent for ``silence_ms``.
    """
    ages = {name: (ms, natural(name), name) for name, ms in began_ms.items()}
    older = [name for name, age in ages.items() if age < ages[version]]
    if kept in older:
        return kept
    return min(older, key=ages.__getitem__, default=None) if withdrawn or not kept else None


@dataclass(frozen=True, slots=True)
class Places:
    """How many versions are followed, and for how long one that is silent.

    Attributes:
        limit: places. ``__other__`` needs none.
        yield_ms: silence after which a version gives its place to a new one that finds none free.
        forget_ms: silence after which it loses it anyway. Both are at least the largest window, so that none is open then.
    """

    limit: int
    yield_ms: int
    forget_ms: int

    @classmethod
    def of(cls, limit: int, sizes_ms: Iterable[int]) -> Places:
        """A day and a week, or one and seven of the largest windows."""
        silence = silence_ms(sizes_ms)
        return cls(limit, silence, 7 * silence)


class Roster:
    """The versions of one model, in one binning, that have a place. Mutable: it moves with event time.

    Attributes:
        steps: who has a place from when on, in order of time; the first holds before the message that is being applied.
        guests: versions without a place that late events were counted under, while there was room for their name.
        recorded: steps and guests were decided when this message was applied for the first time: nothing is decided anew.
    """

    def __init__(self, places: Places, live: Live | None = None) -> None:
        self._places = places
        self.steps: list[tuple[int, Live]] = [(_EVER, live or {})]
        self.guests: list[str] = []
        self.recorded = False
        self._invited = False
        self._through: dict[str, int] = {}

    @property
    def changed(self) -> bool:
        """Whether the message that is being applied decided anything."""
        return len(self.steps) > 1 or self._invited

    @property
    def live(self) -> Live:
        """Who has a place now."""
        return self.steps[-1][1]

    def note(self, version: str, through_ms: int) -> None:
        """A pane of the version that ends then was counted."""
        self._through[version] = max(through_ms, self._through.get(version, through_ms))

    def at(self, start_ms: int) -> Live:
        """Who has a place when the pane that starts then closes."""
        return self.steps[bisect_right(self.steps, start_ms, key=itemgetter(0)) - 1][1]

    def owner(self, version: str, start_ms: int) -> str:
        """The version under which a pane is counted."""
        return version if version in self.at(start_ms) else OTHER_VERSION

    def owner_of_late(self, version: str) -> str:
        """The same for what changes no pane: by who had a place before this message, as a repeat must say the same."""
        names = {*self.steps[0][1], *self.guests, OTHER_VERSION}
        if version in names:
            return version
        if self.recorded or len(names) > self._places.limit:
            return OTHER_VERSION
        self.guests.append(version)
        self._invited = True
        return version

    def decide(self, start_ms: int, due: Mapping[str, int]) -> None:
        """Give places to the versions that have a pane which starts then: most events first, then by name.

        Args:
            start_ms: start of the panes; never less than in the last call.
            due: version -> events.
        """
        if self.recorded:
            return
        live = self._remembered(start_ms)
        homeless = sorted(due.keys() - live.keys() - {OTHER_VERSION}, key=lambda v: (-due[v], v))
        for version in homeless:
            if self._make_place(live, start_ms, due):
                live[version] = start_ms
        if due.keys() - live.keys():
            live.setdefault(OTHER_VERSION, start_ms)
        self._step(start_ms, live)

    def forget(self, at_ms: int) -> None:
        """Take the place of who was silent for too long. No pane that starts before ``at_ms`` is still to close."""
        if not self.recorded:
            self._step(at_ms, self._remembered(at_ms))

    def settle(self) -> None:
        """The message is applied for good: only the outcome counts."""
        self.steps, self._invited = [(_EVER, self.live)], False
        self._through = {v: at for v, at in self._through.items() if v in self.live}

    def _remembered(self, at_ms: int) -> dict[str, int]:
        silent = self._places.forget_ms
        return {v: at for v, at in self.live.items() if self._last(v) + silent > at_ms}

    def _last(self, version: str) -> int:
        return self._through.get(version, self.live[version])

    def _make_place(self, live: dict[str, int], start_ms: int, due: Mapping[str, int]) -> bool:
        """Whether there is a free place, if need be that of the version which was silent for longest."""
        holders = live.keys() - {OTHER_VERSION}
        if len(holders) < self._places.limit:
            return True
        silent = [
            v for v in holders - due.keys() if self._last(v) + self._places.yield_ms <= start_ms
        ]
        if not silent:
            return False
        del live[min(silent, key=lambda v: (self._last(v), v))]
        return len(holders) <= self._places.limit

    def _step(self, from_ms: int, live: Live) -> None:
        if live != self.live:
            self.steps.append((from_ms, live))
