r"""Detectors of one stream of values: has the error rate changed?

``ErrorStream`` reads the errors of a model that may go on learning. Then "nothing changed" is no constant: the rate falls, fast
after a change of the world and ever slower later. So a rise speaks for itself, and a fall only if it ends a time of rest::

    rate |        __                              rise: an alarm; the window starts anew
         |       |  \__                           falls soon after: learning; the window starts
         |       |     \_____________             at the lower level, without a word
         |_______|                   |________    fall after ``settle`` steps of rest: an alarm
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from monitor.snapshots import seal, unseal

SNAPSHOT_VERSION: Final = 1
PLACES: Final = (
    8  # buckets a level at most: the cuts around an age stand about an eighth of it apart
)
_STEPS, _N, _WRONG, _AT = range(4)  # rows of the buckets

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ErrorStreamConfig:
    """Settings of an error stream. Lengths are in steps: a step is ``block`` values, or a pane with more.

    Attributes:
        direction: ``"both"``, or ``"rise"``: then no fall fires, and each starts the window at the lower level.
        run_length: steps from one false alarm to the next, on average, on independent values of a constant rate; the
            inverse of a level per step. At least 10.
        recent: a change is looked for among so many newest steps. What is older is no news.
        baseline: steps that a rise is measured against, at least.
        settle: steps of rest that a fall is measured against, at least. A fall sooner is taken for learning.
        memory: steps that are remembered.
        forget: log-likelihood ratio from which a fall that is no alarm starts the window anew.
        block: values of a step.
        design_effect: at least 1: by how much the variance of a mean of panes exceeds that of as many independent
            values. The evidence is divided by it.
    """

    direction: Literal["both", "rise"] = "both"
    run_length: float = 100_000
    recent: int = 160
    baseline: int = 8
    settle: int = 192
    memory: int = 1_024
    forget: float = 4.5
    block: int = 16
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        if self.direction not in ("both", "rise"):
            raise ValueError(f'direction is "both" or "rise", not {self.direction!r}')
        if min(self.recent, self.baseline, self.settle, self.block) < 1:
            raise ValueError("recent, baseline, settle and block are at least 1")
        if self.memory < self.recent + max(self.baseline, self.settle):
            raise ValueError("memory must hold what is recent and what it is measured against")
        if not (math.isfinite(self.run_length) and self.run_length >= 10):
            raise ValueError(f"run_length is a number of steps, at least 10: {self.run_length}")
        if not self.forget > 0:
            raise ValueError(f"forget is a log-likelihood ratio above 0, not {self.forget}")
        if not (math.isfinite(self.design_effect) and self.design_effect >= 1):
            raise ValueError(f"design_effect must be finite and at least 1: {self.design_effect}")
        for name in ("run_length", "forget", "design_effect"):  # 5 and 5.0 have one snapshot
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Change:
    """What an alarm is about.

    Attributes:
        onset: where it began: the ``at`` of the first pane after the cut, or the number of the value or pane, from 0.
        before: error rate up to the onset, ``after``: from there on.
    """

    onset: int
    before: float
    after: float

    @property
    def rose(self) -> bool:
        """A rise; else a fall."""
        return self.after > self.before


class ErrorStream:
    """Has the error rate changed? A scan of all cuts of a bounded window, for models that go on learning.

    Idea: after each step every cut of the window into an older and a newer part is judged by the log-likelihood ratio of two
    Bernoulli rates against one (Siegmund and Venkatraman 1995), over buckets that double in size with their age (Datar et al.
    2002; ADWIN has them too). Unlike a Hoeffding bound that is as sharp at a rate of 1 % as at 50 %. A cut ``m`` steps back
    needs ``ln(sides * run_length * ln(run_length) / m)`` nats: scale ``m`` is tested anew about every ``m`` steps, so each
    scale has an equal part of the false alarms, and a small long rise is not asked for the proof of a short one.

    A fall is learning until the rate has been at rest: no alarm within ``settle`` steps. It fires only where ``direction`` is
    ``"both"``: a fall that sudden means that the world changed, not that the model is worse. ``change.rose`` tells them apart.

    False alarms in 100,000 values, by the defaults, on independent errors of a rate of .05, .2, .5: .065, .05, .06. The mean number
    of steps between them was 1.0 to 1.4 times ``run_length`` for run lengths from 1,000 to 100,000, and more for shorter ones. While
    the rate falls from .4 to .05 over 100,000 values, by a line, an exponential or a power law: .12 to .24, most of them falls.
    Values that depend on their neighbours need a ``design_effect``.

    Blind to: a change within ``baseline`` steps after an alarm, and a fall within ``settle`` of it; a drift slower than
    ``recent``; a change that leaves the error rate as it is. Measured beside river's detectors by ``python -m load.detection``.

    Takes time and memory of O(places * log(memory)) a step. Mutable because it is a stream's state: one owner, values in order.

    >>> stream = error_stream()
    >>> errors = [i % 20 == 0 for i in range(5_000)] + [i % 4 == 0 for i in range(500)]
    >>> [i for i, wrong in enumerate(errors) if stream.update(wrong)]
    [5071]
    >>> stream.change
    Change(onset=4992, before=0.05008012820512821, after=0.225)
    """

    def __init__(self, config: ErrorStreamConfig | None = None) -> None:
        self.config = config or ErrorStreamConfig()
        self.change: Change | None = None
        """Of the last alarm."""
        sides = 2 if self.config.direction == "both" else 1
        self._bar = math.log(sides * self.config.run_length * math.log(self.config.run_length))
        self._seen = 0  # values and panes
        self._n, self._wrong, self._at = 0, 0.0, 0  # the step that is not full yet
        self._levels: list[int] = [0]  # buckets of 1, 2, 4, ... steps
        self._buckets = np.zeros((4, 16))  # the oldest first; only the first sum(_levels) count

    @property
    def onset(self) -> int | None:
        """Where the change of the last alarm began: ``Change.onset``."""
        return None if self.change is None else self.change.onset

    def update(self, value: float) -> bool:
        """Take in one value: 1 for wrong, 0 for right, or a loss between; true for an alarm.

        Raises:
            ValueError: not a number from 0 to 1; the state is as before.
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"an error is a number from 0 (right) to 1 (wrong), not {value!r}")
        return self._take(1, value, self._seen)

    def update_pane(self, n: int, mean: float, *, at: int | None = None) -> bool:
        """Take in a pane of ``n`` values, 0 or more; true for an alarm. Costs one step.

        Panes of fewer than ``block`` values share a step. ``at`` is the pane's start, for ``onset``, in any unit that fits
        53 bits; without it panes are numbered from 0.

        Raises:
            ValueError: a negative or fractional count, or a mean that is not from 0 to 1; the state is as before.
        """
        if n < 0 or n % 1:
            raise ValueError(f"n counts values: whole and not negative, not {n!r}")
        if n and not 0.0 <= mean <= 1.0:
            raise ValueError(f"a mean of errors is a number from 0 to 1, not {mean!r}")
        wrong = n * mean if n else 0.0
        whole = round(wrong)  # n * (k / n) is not always k; so a pane counts as its values would
        wrong = whole if abs(wrong - whole) < 1e-9 * n else wrong
        return self._take(n, wrong, self._seen if at is None else at)

    def snapshot(self) -> bytes:
        """Everything: ``restore`` continues to the same bit."""
        used = sum(self._levels)
        pending = (self._n, self._wrong, self._at)
        buckets = self._buckets[:, :used].astype("<f8").tobytes()
        body = _Snapshot(self.config, self.change, self._seen, pending, self._levels, buckets)
        return seal(SNAPSHOT_VERSION, body)

    @classmethod
    def restore(cls, body: bytes) -> ErrorStream:
        """The stream whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version.
        """
        return unseal("error stream", SNAPSHOT_VERSION, body, cls._revive)

    @classmethod
    def _revive(cls, state: memoryview) -> ErrorStream:
        saved = _SNAPSHOT.decode(state)
        stream = cls(saved.config)
        stream.change, stream._seen, stream._levels = saved.change, saved.seen, saved.levels
        stream._n, stream._wrong, stream._at = saved.pending
        buckets = np.frombuffer(saved.buckets, "<f8").reshape(4, sum(saved.levels))
        stream._buckets = np.pad(buckets.astype(np.float64), ((0, 0), (0, 1)))
        return stream

    def _take(self, n: int, wrong: float, at: int) -> bool:
        if self._n == 0:
            self._at = int(at)
        self._seen += 1
        self._n += int(n)
        self._wrong += float(wrong)
        if self._n < self.config.block:
            return False
        self._push(self._n, self._wrong, self._at)
        self._n, self._wrong = 0, 0.0
        return self._check()

    def _push(self, n: int, wrong: float, at: int) -> None:
        """A new step, and where a level overflows, its two oldest buckets become one of the next."""
        used = sum(self._levels)
        if used == self._buckets.shape[1]:
            self._buckets = np.pad(self._buckets, ((0, 0), (0, used)))
        buckets, levels = self._buckets, self._levels
        buckets[:, used] = 1, n, wrong, at
        levels[0] += 1
        level, first = 0, used + 1 - levels[0]
        while levels[level] > PLACES:
            buckets[:_AT, first + 1] += buckets[:_AT, first]
            buckets[_AT, first + 1] = buckets[_AT, first]
            buckets[:, first:used] = buckets[:, first + 1 : used + 1]
            used -= 1
            levels[level] -= 2
            level += 1
            if level == len(levels):
                levels.append(0)
            first -= levels[level]
            levels[level] += 1
        if buckets[_STEPS, : used + 1].sum() > self.config.memory:
            self._forget(1)

    def _forget(self, buckets: int) -> None:
        """Drop the oldest ``buckets``."""
        left = sum(self._levels) - buckets
        self._buckets[:, :left] = self._buckets[:, buckets : buckets + left].copy()
        kept, levels = 0, []
        for count in self._levels:
            levels.append(min(count, left - kept))
            kept += levels[-1]
        while len(levels) > 1 and levels[-1] == 0:
            levels.pop()
        self._levels = levels

    def _check(self) -> bool:
        """Compare both sides of each cut."""
        config, used = self.config, sum(self._levels)
        if used < 2:
            return False
        sums = np.cumsum(self._buckets[:_AT, :used], axis=1)
        old = sums[:, :-1]
        new = sums[:, -1:] - old
        evidence = _log_likelihood_ratio(old, new) / config.design_effect
        rise = new[_WRONG] * old[_N] > old[_WRONG] * new[_N]
        rest = np.where(rise, config.baseline, config.settle)
        news = (new[_STEPS] <= config.recent) & (old[_STEPS] >= rest)
        if config.direction == "rise":
            news &= rise
        margin = np.where(news, evidence - (self._bar - np.log(new[_STEPS])), -np.inf)
        cut = int(np.argmax(margin))
        if margin[cut] > 0:
            before, after = (side[_WRONG, cut] / side[_N, cut] for side in (old, new))
            self.change = Change(int(self._buckets[_AT, cut + 1]), float(before), float(after))
            # All of it: the newer part may be a drift half done, and the next baseline begins after it.
            self._forget(used)
            return True
        learnt = np.where(news | rise, 0.0, evidence)
        cut = int(np.argmax(learnt))
        if learnt[cut] > config.forget:
            self._forget(cut + 1)
        return False


def _log_likelihood_ratio(old: Floats, new: Floats) -> Floats:
    """Of two rates against one, at each cut, in nats: how much better two Bernoulli rates explain the window."""
    n0, k0, n1, k1 = old[_N], old[_WRONG], new[_N], new[_WRONG]
    n, k = n0 + n1, k0 + k1
    parts = np.array((k0, n0 - k0, k1, n1 - k1, n, n0, n1, k, n - k))
    np.maximum(parts, 0.0, out=parts)
    x: Floats = xlogy(parts, parts)
    ratio: Floats = x[:5].sum(axis=0) - x[5:].sum(axis=0)
    return ratio


def error_stream() -> ErrorStream:
    """The detector of error streams, with its defaults: rises, and falls after rest."""
    return ErrorStream()


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    config: ErrorStreamConfig
    change: Change | None
    seen: int
    pending: tuple[int, float, int]
    levels: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]
    buckets: bytes  # (4, used)


_SNAPSHOT: Final = msgspec.msgpack.Decoder(_Snapshot)
