"""How many requests a model gets, against the same hour of the week in the weeks before.

A *slot* is a window from an hour to a day (``slot_of``). All versions count together, so a canary or a switch of version is no anomaly. The last ``WEEKS``
weeks of slots are remembered, each with what was expected of it::

    weeks ago        4       3       2       1      now
                  ( y4 )  ( y3 )  ( y2 )  ( y1 )    y        expected: the median of yk * growth ** k
                  and of each the slots before and after it

*Expected.* A median over weeks leaves one odd week out of account. Of a week over the one before, the median of seven days' ratios counts; ``growth`` is the
least of three such ratios if they agree in their direction, and else none: an odd week is a fall and a rise.

*Usual.* Counts scatter more than Poisson's law says. The law is a negative binomial with mean ``m`` and variance ``max(a * m, LEAST_SPREAD * m + b * m**2)``,
where ``a`` and ``b`` come from how far off past expectations were, each made before its slot was known: from the quantile of the squares at ``MIDDLE``, which
a third of odd slots cannot spoil. A busy day is busy in every hour, so the limits have Student's tails, with one degree of freedom a day. They lie around all
that this slot and those beside it had in the weeks, but for the least and the most odd week: a batch may start ten minutes later, and people's
clocks go forward. Less than ``LEAST_CHANGE`` off is never an anomaly.

*Learnt.* A collapse is not usual a week later, and from an anomaly nothing is learnt of how counts scatter. A change for good is told of for two weeks,
until half of the past has it too.

Counts are those of windows as they closed. What came late is in none of them, neither now nor in the weeks before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace
from scipy import special

from monitor.binning import Floats, Ints
from monitor.budget import volume_level
from monitor.errors import IncompatibleError
from monitor.panes import ClosedWindow
from monitor.rules import Place, apply
from monitor.spec import ModelSpec
from monitor.wire import Verdict, Verdicts

VOLUME: Final = "volume"
COLLAPSE: Final = 0.1  # of what is expected: with less, next to nobody is served
WEEKS: Final = 4
LEAST_DAYS: Final = 7  # of past expectations, which need two weeks: so three weeks in all
LEAST_CHANGE: Final = (
    1.5  # times as many or as few: below it, as on a holiday, it is nobody's night
)
MOST_GROWTH: Final = 1.1  # a week: faster is news
FEW: Final = 5.0  # requests: that many instead of none are no surge, and errors of smaller expectations tell nothing
LEAST_SPREAD: Final = 1.3  # variance over mean of Poisson counts around the median of four of them
MIDDLE: Final = 2 / 3
_SQUARE: Final = float(special.chdtri(1, 1 - MIDDLE))  # the same quantile of a squared normal value
HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * HOUR_MS
_WEEK_MS: Final = 7 * _DAY_MS
_LEAST_TAIL: Final = 1e-300  # below it floats lose their meaning


def slot_of(sizes_ms: Iterable[int]) -> int:
    """The window size whose volume is judged: the smallest from an hour to a day that divides a day; 0 without one."""
    return min((s for s in sizes_ms if s >= HOUR_MS and _DAY_MS % s == 0), default=0)


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A verdict on a slot, and the version that had most of its requests, or of those before it if there were none."""

    start_ms: int
    version: str
    verdict: Verdict


class _State(msgspec.Struct, array_like=True):
    slot_ms: int
    next_ms: int
    last_ms: int
    version: str
    bins_id: str
    counts: bytes
    expected: bytes


class Volume:
    """The past weeks of one model. Mutable: it remembers a count and an expectation for each slot of them.

    Args:
        spec: the model's.

    Attributes:
        slot_ms: size of a slot; 0 if the model has no such windows, and then nothing is ever said.
        bins_id: binning of the last window that was taken.
    """

    def __init__(self, spec: ModelSpec) -> None:
        slot_ms = slot_of(spec.windows.sizes)
        self.spec, self.slot_ms, self.bins_id = spec, slot_ms, ""
        self._level = volume_level(spec.alarm_budget, slot_ms)
        self._day, self._week = (t // slot_ms if slot_ms else 0 for t in (_DAY_MS, _WEEK_MS))
        # By slot modulo the length; NaN where it is not known. One more than the weeks: the slot before the oldest is asked for.
        self._counts = np.full(WEEKS * self._week + 1, np.nan)
        self._expected = np.full_like(self._counts, np.nan)
        # The slot that is judged next, 0 for none; the last one that had requests, and its busiest version.
        self._next_ms, self._last_ms, self._version = 0, 0, ""
        self._asked: dict[int, Counter[str]] = {}

    def snapshot(self) -> bytes:
        """Everything that is remembered between two calls of ``close``, for ``restore``."""
        counts, expected = self._counts.astype("<f8"), self._expected.astype("<f8")
        head = self.slot_ms, self._next_ms, self._last_ms, self._version, self.bins_id
        return msgspec.msgpack.encode(_State(*head, counts.tobytes(), expected.tobytes()))

    def restore(self, state: bytes) -> None:
        """Go on from a ``snapshot``; one of other windows says nothing.

        Raises:
            IncompatibleError: it is none.
        """
        try:
            saved = msgspec.msgpack.decode(state, type=_State)
        except msgspec.MsgspecError as err:
            raise IncompatibleError(f"not the volume of a model: {err}") from err
        if saved.slot_ms == self.slot_ms and len(saved.counts) == self._counts.nbytes:
            self._next_ms, self._last_ms = saved.next_ms, saved.last_ms
            self._version, self.bins_id = saved.version, saved.bins_id
            self._counts = np.frombuffer(saved.counts, dtype="<f8").copy()
            self._expected = np.frombuffer(saved.expected, dtype="<f8").copy()

    def take(self, window: ClosedWindow) -> None:
        """Count a window that has closed, if it is a slot of the model as a whole."""
        if window.size_ms == self.slot_ms and not window.key.segment:
            asked = self._asked.setdefault(window.start_ms, Counter())
            asked[window.key.version] += window.profile.n
            self.bins_id = window.key.bins_id

    def drop(self) -> None:
        """Forget the windows that were taken since the last call of ``close``: they were judged before."""
        self._asked = {}

    def is_due(self, through_ms: int) -> bool:
        """Whether ``close`` would change anything."""
        return bool(self._asked) or 0 < self._next_ms <= through_ms - self.slot_ms

    def close(self, through_ms: int) -> list[Told]:
        """Judge the slots that have ended by ``through_ms`` since the last call: all their windows were taken. Silent where too little is known.

        A slot without requests is judged like any other. The very first one is not, as the model began inside it; nor is any after silence for as long
        as is remembered.
        """
        asked, self._asked = self._asked, {}
        told = []
        if not self._next_ms:
            self._begin(asked)
        while 0 < self._next_ms <= through_ms - self.slot_ms:
            start_ms = self._next_ms
            versions = asked.get(start_ms)
            if versions is not None:
                self._last_ms = start_ms
                self._version = max(versions, key=lambda v: (versions[v], v))
            elif start_ms - self._last_ms > WEEKS * _WEEK_MS:
                self._begin(start for start in asked if start > start_ms)
                continue
            requests = 0 if versions is None else versions.total()
            verdict = self._judge(start_ms // self.slot_ms, requests)
            if verdict is not None:
                place = Place(self._version, "", self.slot_ms)
                (verdict,) = apply(self.spec.rules, place, [verdict])
                told.append(Told(start_ms, self._version, verdict))
            self._next_ms += self.slot_ms
        return told

    def _begin(self, starts: Iterable[int]) -> None:
        """Know nothing, and go on after the first of these slots, in which the model began; wait for one if there is none."""
        self._counts[:] = self._expected[:] = np.nan
        self._last_ms = min(starts, default=0)
        self._next_ms = self._last_ms + self.slot_ms if self._last_ms else 0

    def messages(
        self, found: Iterable[Verdicts], told: Iterable[Told], *, empty: bool = True
    ) -> list[Verdicts]:
        """The verdicts of closed windows, by end, with those on their slots in them.

        A slot without a window gets a message of its own, if wanted, before all others of its end.
        """
        slots = {(t.version, t.start_ms): t for t in told}
        with_slots = []
        for message in found:
            it = None
            if (message.source, message.segment, message.size_ms) == ("window", "", self.slot_ms):
                it = slots.pop((message.version, message.start_ms), None)
            with_slots.append(
                message
                if it is None
                else replace(message, verdicts=[*message.verdicts, it.verdict])
            )
        for it in slots.values() if empty else ():
            silent = self._silent(it)
            with_slots.insert(bisect_left(with_slots, silent.end_ms, key=_end), silent)
        return with_slots

    def _silent(self, it: Told) -> Verdicts:
        return Verdicts(
            source="window",
            model=self.spec.model,
            version=it.version,
            segment="",
            size_ms=self.slot_ms,
            start_ms=it.start_ms,
            end_ms=it.start_ms + self.slot_ms,
            n=0,
            revision=0,
            verdicts=[it.verdict],
        )

    def _judge(self, slot: int, count: int) -> Verdict | None:
        weeks = np.arange(1, WEEKS + 1)[:, None]
        around = self._counts[self._at(slot - weeks * self._week + np.arange(-1, 2))]
        around = around * self._growth(slot) ** weeks
        known = around[~np.isnan(around[:, 1])]
        expected = median(known[:, 1].tolist()) if len(known) >= 2 else np.nan
        law = None if np.isnan(expected) else self._law(slot)
        verdict = None if law is None else _judged(count, expected, law, known, self._level)
        odd = verdict is not None and verdict.status == "breach"
        at = self._at(slot)
        self._counts[at] = np.nan if verdict is not None and is_collapse(verdict) else count
        self._expected[at] = np.nan if odd else expected
        return verdict

    def _at(self, slot: int | Ints) -> int | Ints:
        return slot % len(self._counts)

    def _growth(self, slot: int) -> float:
        """Times as many requests each week as in the week before; 1 until all weeks are known."""
        back = np.arange(-WEEKS * self._week, 0).reshape(WEEKS, 7, self._day)
        days = self._counts[self._at(slot + back)]
        both = ~np.isnan(days[:-1]) & ~np.isnan(days[1:])
        before = np.where(both, days[:-1], 0.0).sum(axis=2)
        after = np.where(both, days[1:], 0.0).sum(axis=2)
        usable = (before > 0) & (after > 0)
        if (usable.sum(axis=1) < 4).any():
            return 1.0
        weekly: list[float] = [
            median((a[use] / b[use]).tolist())
            for a, b, use in zip(after, before, usable, strict=True)
        ]
        return min(max(min(weekly), 1.0), MOST_GROWTH) * max(min(max(weekly), 1.0), 1 / MOST_GROWTH)

    def _law(self, slot: int) -> _Law | None:
        """How counts scatter around what is expected; ``None`` with fewer than ``LEAST_DAYS`` to tell."""
        slots = slot - 1 - np.arange(len(self._counts) - 1)
        counts, expected = self._counts[self._at(slots)], self._expected[self._at(slots)]
        told = ~np.isnan(counts) & (expected >= FEW)
        if not told[LEAST_DAYS * self._day - 1 :].any():
            return None
        days = int(told.reshape(-1, self._day).any(axis=1).sum())
        if days < LEAST_DAYS:
            return None
        e, square = expected[told], (counts[told] - expected[told]) ** 2 / _SQUARE
        at = int(len(e) * MIDDLE)
        a = float(np.partition(square / e, at)[at])
        b = float(np.partition((square - LEAST_SPREAD * e) / e**2, at)[at])
        return _Law(a, max(b, 0.0), days)


def _end(message: Verdicts) -> int:
    return message.end_ms


@dataclass(frozen=True, slots=True)
class _Law:
    """A negative binomial of which the variance was learnt in some days."""

    a: float
    b: float
    days: int

    def _parts(self, mean: float) -> tuple[float, float]:
        """Size and probability of the law with this mean."""
        variance = max(self.a * mean, LEAST_SPREAD * mean + self.b * mean**2)
        size = mean**2 / (variance - mean)
        return size, size / (size + mean)

    def at_most(self, k: float, mean: float) -> float:
        """P(count <= k)."""
        size, p = self._parts(mean)
        return 0.0 if k < 0 else float(special.betainc(size, k + 1, p))

    def at_least(self, k: float, mean: float) -> float:
        """P(count >= k)."""
        size, p = self._parts(mean)
        return 1.0 if k <= 0 else float(special.betaincc(size, k, p))

    def tail(self, level: float) -> float:
        """The probability of one tail that stands for ``level`` of both, since the variance is learnt."""
        return max(float(special.ndtr(special.stdtrit(self.days, level / 2))), _LEAST_TAIL)

    def p_value(self, tail: float) -> float:
        """The reverse of ``tail``."""
        p = 2 * float(special.stdtr(self.days, special.ndtri(max(tail, _LEAST_TAIL))))
        return min(max(p, _LEAST_TAIL), 1.0)


def is_collapse(verdict: Verdict) -> bool:
    """Whether a verdict on volume says that next to nothing is left: an outage. Fewer requests than usual are a matter of the callers as well."""
    return verdict.status == "breach" and verdict.value is not None and verdict.value < COLLAPSE


def _first(holds: Callable[[int], bool], near: float) -> int:
    """The least whole number from which on ``holds`` does, in O(log) calls."""
    past = int(near) + 1
    while not holds(past):
        past *= 2
    return bisect_left(range(past), True, key=holds)


def _judged(count: int, expected: float, law: _Law, around: Floats, level: float) -> Verdict:
    tail, usual = law.tail(level), max(expected, 1.0)
    # Of each week the least and the most of three slots; the second of the weeks, so that one odd week allows nothing.
    known = np.where(np.isnan(around), around[:, 1:2], around)
    few = max(min(expected, float(np.sort(known.min(axis=1))[1])), 1.0)
    many = max(expected, float(np.sort(known.max(axis=1))[-2]), FEW)
    least = _first(lambda k: law.at_most(k, few) > tail, few)
    most = _first(lambda k: law.at_least(k + 1, many) <= tail, many)
    low, high = min(least, expected / LEAST_CHANGE), max(most, many * LEAST_CHANGE)
    chance = law.at_most(count, few) if count < expected else law.at_least(count, many)
    return Verdict(
        kind="service",
        feature="",
        statistic=VOLUME,
        status="breach" if count < low or count > high else "ok",
        value=count / usual,
        limit=(low if count < expected else high) / usual,
        p_value=law.p_value(min(chance, 0.5)),
        n=count,
        evidence={"expected": expected, "low": low, "high": high},
    )
