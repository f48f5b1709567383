"""ADWIN over panes, for many features in one call: has the mean of a feature changed since its window began?

A pane reaches a detector as ``(n, mean, M2)``. That is enough to treat its values as if they had come one by one, so a
pane of 1,000 events costs one step, not a thousand; with panes of one value the alarms are river's, alarm for alarm.

The window of a feature is a row of buckets, each of one or more panes (``monitor.buckets``), and a cut may lie between any two::

    [8][8] [4][4][4] [2] [1][1][1][1]        <- panes per bucket, newest pane last
          ^ onset: the start of the first pane after the cut that speaks loudest

So a window of N panes takes O(log N) memory and a step O(log N) time. Detectors read no clock: a pane brings its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.bucket_arrays import Arrays
from monitor.buckets import LARGEST, Loops, Rule, Windows
from monitor.moments import Bools, Floats, Ints, per_feature
from monitor.snapshots import seal, unseal

SNAPSHOT_VERSION: Final = 1
_FEW: Final = 6  # up to so many features, Python on floats is faster than numpy


@dataclass(frozen=True, slots=True)
class AdwinConfig:
    """Settings of ADWIN; the defaults are river's and MOA's.

    Attributes:
        delta: confidence of one check, in (0, 1). Smaller is quieter and slower.
        clock: look for a cut each time the window has grown by so many events.
        max_buckets: buckets a level, at least 2: more place the cut finer, at more cost.
        min_window_length: events that either side of a cut must have, at least 1.
        grace_period: events before the first check, at least 1.
        direction: ``"both"``, or ``"rise"``: a fall then restarts the window without an alarm, so that the next rise is
            measured from the lower level.
    """

    delta: float = 0.002
    clock: int = 32
    max_buckets: int = 5
    min_window_length: int = 5
    grace_period: int = 10
    direction: Literal["both", "rise"] = "both"

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is a probability between 0 and 1, not {self.delta}")
        if min(self.clock, self.min_window_length, self.grace_period) < 1:
            raise ValueError("clock, min_window_length and grace_period are at least 1")
        if self.max_buckets < 2:
            raise ValueError("max_buckets is at least 2: a level passes on two buckets as one")
        if self.direction not in ("both", "rise"):
            raise ValueError(f'direction is "both" or "rise", not {self.direction!r}')


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What one pane brought to light, per feature; all ``(k,)``, not to be written to.

    Attributes:
        fired: an alarm.
        onset: start of the first pane after the estimated change. Means something where ``fired``; else 0.
        before: mean up to the onset, ``after``: from there on, ``n_after`` events. 0 unless ``fired``.
    """

    fired: Bools
    onset: Ints
    before: Floats
    after: Floats
    n_after: Ints

    @classmethod
    def none(cls, features: int) -> Changes:
        """No change in any feature."""
        times, means = np.zeros((2, features), dtype=np.int64), np.zeros((2, features))
        return cls(np.zeros(features, dtype=np.bool_), times[0], means[0], means[1], times[1])


class Adwin:
    """ADWIN2 over k features, fed with panes: has the mean of a feature changed since the window began?

    After each ``clock`` events every cut of the window into an older part ``n0`` and a newer part ``n1`` is compared: an
    alarm if their means differ by more than ``sqrt(2 m v d) + 2/3 m d``, with ``v`` the window's variance,
    ``d = ln(2 ln(n0 + n1) / delta)``, ``m = 1 / (n0 - min + 1) + 1 / (n1 - min + 1)``. After an alarm, or a fall that is
    not reported, the feature's window starts anew.

    Scaling is the caller's: the bound's second term assumes values on a scale of about 1, so subtract the reference's
    centre and divide by its scale (``monitor.profile`` moments come in the feature's own unit). Data at a thousandth
    of that scale hardly ever fire.

    Blind to changes of spread and shape that leave the mean, and to a drift slower than the window. False alarms are rare on
    independent values (0 to 0.4 in 10,000 at delta 0.002) and the rule on autocorrelated ones (85 in 10,000 for AR(1), phi 0.9):
    what ``design_effect`` is for. Sources: Bifet and Gavalda (2007); river 0.26.

    Mutable because it is a stream's state: one owner, one step per pane, in order of event time.

    >>> adwin = Adwin(2, design_effect=[1.0, 3.0])
    >>> for hour in range(48):
    ...     level = 0.0 if hour < 36 else 0.5
    ...     changes = adwin.update(hour, n=[200, 200], mean=[level, 0.0], m2=[200.0, 200.0])
    ...     if changes.fired.any():
    ...         print(hour, changes.fired.tolist(), changes.onset.tolist())
    36 [True, False] [36, 0]

    Args:
        features: k.
        config: settings, for all features.
        design_effect: per feature or for all, at least 1: by how much the variance of a mean of panes exceeds that of
            as many independent values (``n var(mean) / var(value)``). The cut treats so many events as one.
        tolerance: per feature or for all, at least 0: a change of the mean by less never matters. 0 means that with
            enough events any change will fire.
    """

    def __init__(
        self,
        features: int,
        config: AdwinConfig | None = None,
        *,
        design_effect: npt.ArrayLike = 1.0,
        tolerance: npt.ArrayLike = 0.0,
    ) -> None:
        if features < 0:
            raise ValueError(f"features is a number of features, not {features}")
        self.config = config or AdwinConfig()
        self.design_effect = per_feature(design_effect, features, "design_effect", least=1.0)
        self.tolerance = per_feature(tolerance, features, "tolerance", least=0.0)
        rule = Rule(
            self.config.delta,
            self.config.clock,
            self.config.grace_period,
            self.config.max_buckets,
            self.design_effect,
        )
        self._windows: Windows = Loops(rule) if features <= _FEW else Arrays(rule)
        self._none = Changes.none(features)  # what nearly every pane brings, made once
        for column in (self._none.fired, self._none.onset, self._none.n_after):
            column.flags.writeable = False

    @property
    def features(self) -> int:
        """How many features it watches."""
        return len(self.design_effect)

    @property
    def width(self) -> Ints:
        """Events in each feature's window, ``(k,)``."""
        width: Floats = self._windows.sums()[0]
        return width.astype(np.int64)

    @property
    def mean(self) -> Floats:
        """Mean of each feature's window, ``(k,)``; 0 for an empty one."""
        width, total, _ = self._windows.sums()
        mean: Floats = total / np.maximum(width, 1)
        return mean

    @property
    def variance(self) -> Floats:
        """Variance of the values in each feature's window, ``(k,)``; 0 for an empty one."""
        width, _, m2 = self._windows.sums()
        variance: Floats = m2 / np.maximum(width, 1)
        return variance

    def update(self, at: int, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike) -> Changes:
        """Take in one pane.

        Args:
            at: when the pane starts, in any unit that fits 53 bits; only the onset is made of it.
            n: ``(k,)`` values of each feature; a feature with 0 has no pane, and its ``mean`` and ``m2`` are not read.
            mean: ``(k,)`` their means, scaled; up to LARGEST.
            m2: ``(k,)`` their sums of squared deviations from the mean, scaled (by scale squared); up to LARGEST.

        Raises:
            ValueError: wrong shape, a negative or fractional count, a mean or M2 that is not finite, a negative M2; the state is as before.
        """
        pane = np.array((n, mean, m2), dtype=np.float64)
        if pane.shape != (3, self.features):
            raise ValueError(f"n, mean and m2 must have shape ({self.features},)")
        if not self._windows.sound(pane):
            _clear_empty(pane)
        suspects = self._windows.add(at, pane)
        return self._check(suspects) if suspects else self._none

    def _check(self, suspects: Sequence[int]) -> Changes:
        changes = Changes.none(self.features)
        sums = self._windows.sums()
        for row in suspects:
            n, total, starts = self._windows.buckets(row)
            cuts = self._cuts(row, n, total, sums[:, row])
            cut = int(np.argmax(cuts.strength))
            if not cuts.strength[cut] > 1:
                continue
            if self.config.direction == "both" or cuts.after[cut] > cuts.before[cut]:
                changes.fired[row] = True
                changes.onset[row] = starts[cut + 1]
                changes.before[row] = cuts.before[cut]
                changes.after[row] = cuts.after[cut]
                changes.n_after[row] = cuts.n_after[cut]
            self._windows.restart(row)
        return changes

    def _cuts(self, row: int, n: Floats, total: Floats, sums: Floats) -> _Cuts:
        least, (width, whole, m2) = self.config.min_window_length, sums[:, None]
        n0 = np.cumsum(n)
        n1 = width - n0
        before = np.cumsum(total) / np.maximum(n0, 1)
        # Subtracted one by one, as river does: whole - cumsum would round otherwise.
        rest = np.subtract.accumulate(np.concatenate((whole, total)))[1:]
        after = rest / np.maximum(n1, 1)
        confidence = np.log(2 * np.log(width) / self.config.delta)
        spread = 1 / np.maximum(n0 - least + 1, 1) + 1 / np.maximum(n1 - least + 1, 1)
        spread *= self.design_effect[row]
        limit = np.sqrt(2 * spread * (m2 / width) * confidence)
        limit += 2 / 3 * confidence * spread + self.tolerance[row]
        allowed = (n0 >= least) & (n1 >= least)
        return _Cuts(n1, before, after, np.where(allowed, np.abs(before - after) / limit, 0.0))

    def snapshot(self) -> bytes:
        """Everything, settings included: ``restore`` continues to the same bit. About 1 KiB a feature; not compressed."""
        floats = (self.design_effect, self.tolerance, *self._windows.sums())
        filled = self._windows.filled()
        saved = _Snapshot(
            self.config,
            self.features,
            filled.shape[1],
            np.stack(floats).astype("<f8").tobytes(),
            filled.astype("<i4").tobytes(),
            self._windows.all_buckets().astype("<f8").tobytes(),
        )
        return seal(SNAPSHOT_VERSION, saved)

    @classmethod
    def restore(cls, body: bytes) -> Adwin:
        """The detector whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version.
        """
        return unseal("detector", SNAPSHOT_VERSION, body, cls._revive)

    @classmethod
    def _revive(cls, state: memoryview) -> Adwin:
        saved = _SNAPSHOT.decode(state)
        floats = np.frombuffer(saved.floats, "<f8").reshape(5, saved.features)
        effect, tolerance = floats[:2]
        detector = cls(saved.features, saved.config, design_effect=effect, tolerance=tolerance)
        detector._windows.load(floats[2:], *saved.structure())
        return detector


@dataclass(frozen=True, slots=True, eq=False)
class _Cuts:
    """All cuts of a window, ``(buckets,)``, each behind a bucket; ``strength`` over 1 is a change, and 0 no cut."""

    n_after: Floats
    before: Floats
    after: Floats
    strength: Floats


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    config: AdwinConfig
    features: int
    levels: int
    floats: bytes  # (5, k): design effect, tolerance, width, total, M2
    filled: bytes  # (k, levels)
    buckets: bytes  # (3, used slots)

    def structure(self) -> tuple[npt.NDArray[np.intp], list[Floats]]:
        """How full each feature's levels are, and what its buckets hold."""
        filled = np.frombuffer(self.filled, "<i4").reshape(self.features, self.levels)
        if not np.all((filled >= 0) & (filled <= self.config.max_buckets)):
            raise ValueError("a level has no room for so many buckets")
        ends = np.cumsum(filled.sum(axis=1))
        buckets = np.frombuffer(self.buckets, "<f8").reshape(3, int(filled.sum()))
        return filled.astype(np.intp), np.split(buckets, ends, axis=1)[:-1]


_SNAPSHOT: Final = msgspec.msgpack.Decoder(_Snapshot)


def _clear_empty(pane: Floats) -> None:
    """Zero the mean and M2 of features without values, in place, or say what is wrong with the others."""
    count = pane[0]
    if not np.all(np.floor(np.abs(count)) == count):  # NaN equals nothing
        raise ValueError("n counts events: whole and not negative")
    pane[:, count == 0] = 0.0
    if not (np.all(np.abs(pane) <= LARGEST) and np.all(pane[2] >= 0)):
        raise ValueError(
            f"mean and m2 must be finite, at most {LARGEST:g}, and m2 not negative, where n > 0"
        )
