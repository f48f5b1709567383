"""ADWIN over panes, for many features in one call: has the mean of a feature changed since its window began?

A pane reaches a detector as ``(n, mean, M2)``. That is enough to treat its values as if they had come one by one, so a
pane of 1,000 events costs one step, not a thousand; with panes of one value the alarms are river's, alarm for alarm.

The window of a feature is an exponential histogram (Datar et al. 2002): up to ``max_buckets`` buckets a level, each twice
as many panes as one of the level below, the oldest first::

    level 3     level 2         level 1     level 0
    [8][8]      [4][4][4]       [2]         [1][1][1][1]        <- panes per bucket, newest pane last
          ^ onset: the start of the first pane after the cut that speaks loudest

So a window of N panes takes O(log N) memory and a step O(log N) time. Detectors read no clock: a pane brings its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.errors import IncompatibleError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

SNAPSHOT_VERSION: Final = 1
_N, _TOTAL, _AT = range(
    3
)  # planes of the buckets: events, sum of the values, start of the first pane


@dataclass(frozen=True, slots=True)
class AdwinConfig:
    """Settings of ADWIN; the defaults are river's and MOA's.

    Attributes:
        delta: confidence of one check, in (0, 1). Smaller is quieter and slower.
        clock: look for a cut each time the window has grown by so many events.
        max_buckets: buckets a level, at least 1: more place the cut finer, at more cost.
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
        if min(self.clock, self.max_buckets, self.min_window_length, self.grace_period) < 1:
            raise ValueError(
                "clock, max_buckets, min_window_length and grace_period are at least 1"
            )
        if self.direction not in ("both", "rise"):
            raise ValueError(f'direction is "both" or "rise", not {self.direction!r}')


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What one pane brought to light, per feature; all ``(k,)``.

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
        self.design_effect = _per_feature(design_effect, features, "design_effect", least=1.0)
        self.tolerance = _per_feature(tolerance, features, "tolerance", least=0.0)
        self._width = np.zeros(
            features
        )  # events in the window; float64, as everything that they are divided by
        self._total = np.zeros(features)
        self._m2 = np.zeros(features)
        # Level 0 stands last, so that read in order a feature's buckets go from old to new. One slot more than
        # max_buckets: a level overflows before it merges. Unused slots are zero, and so add nothing to a sum.
        self._filled = np.zeros((features, 1), dtype=np.intp)
        self._buckets = np.zeros((3, features, 1, self.config.max_buckets + 1))

    @property
    def features(self) -> int:
        """How many features it watches."""
        return len(self._width)

    @property
    def width(self) -> Ints:
        """Events in each feature's window, ``(k,)``."""
        return self._width.astype(np.int64)

    @property
    def mean(self) -> Floats:
        """Mean of each feature's window, ``(k,)``; 0 for an empty one."""
        return self._total / np.maximum(self._width, 1)

    @property
    def variance(self) -> Floats:
        """Variance of the values in each feature's window, ``(k,)``; 0 for an empty one."""
        return self._m2 / np.maximum(self._width, 1)

    def update(self, at: int, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike) -> Changes:
        """Take in one pane.

        Args:
            at: when the pane starts, in any unit that fits 53 bits; only the onset is made of it.
            n: ``(k,)`` values of each feature; a feature with 0 has no pane, and its ``mean`` and ``m2`` are not read.
            mean: ``(k,)`` their means, scaled.
            m2: ``(k,)`` their sums of squared deviations from the mean, scaled (by scale squared).

        Raises:
            ValueError: wrong shape, a negative or fractional count, a mean or M2 that is not finite, a negative M2; the state is as before.
        """
        count, level, spread = self._checked(n, mean, m2)
        rows = np.flatnonzero(count)
        before = self._width[rows]
        self._insert(rows, at, count[rows], level[rows], spread[rows])
        now = self._width[rows]
        clock = self.config.clock
        due = rows[(now // clock > before // clock) & (now > self.config.grace_period)]
        return self._check(due)

    def _checked(
        self, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike
    ) -> tuple[Floats, Floats, Floats]:
        pane = np.array((n, mean, m2), dtype=np.float64)
        if pane.shape != (3, self.features):
            raise ValueError(f"n, mean and m2 must have shape ({self.features},)")
        count = pane[0]
        if not (np.all(count >= 0) and np.all(count == np.floor(count))):
            raise ValueError("n counts events: whole and not negative")
        pane[:, count == 0] = 0.0
        if not (np.all(np.isfinite(pane)) and np.all(pane[2] >= 0)):
            raise ValueError("mean and m2 must be finite, and m2 not negative, where n > 0")
        return count, pane[1], pane[2]

    def _insert(self, rows: Rows, at: int, n: Floats, mean: Floats, m2: Floats) -> None:
        # The order of these operations is river's: with n = 1 and m2 = 0 every bit is the same.
        width = self._width[rows]
        gap = mean - self._total[rows] / np.maximum(width, 1)
        self._m2[rows] += m2 + width * n * gap * gap / (width + n)
        self._total[rows] += n * mean
        self._width[rows] += n
        newest = np.array((n, n * mean, np.full(rows.size, at)))  # _N, _TOTAL, _AT
        self._buckets[:, rows, -1, self._filled[rows, -1]] = newest
        self._filled[rows, -1] += 1
        self._merge(rows)

    def _merge(self, rows: Rows) -> None:
        """Where a level overflows, its two oldest buckets become one of the next."""
        level, limit = -1, self.config.max_buckets
        rows = rows[self._filled[rows, level] > limit]
        while rows.size:
            if -level == self._filled.shape[1]:
                self._filled = np.pad(self._filled, ((0, 0), (1, 0)))
                self._buckets = np.pad(self._buckets, ((0, 0), (0, 0), (1, 0), (0, 0)))
            buckets = self._buckets[:, rows, level]
            merged = buckets[..., 0] + buckets[..., 1]
            merged[_AT] = buckets[_AT, :, 0]
            self._buckets[:, rows, level - 1, self._filled[rows, level - 1]] = merged
            self._buckets[:, rows, level, :-2] = buckets[..., 2:]
            self._buckets[:, rows, level, -2:] = 0.0
            self._filled[rows, level] -= 2
            level -= 1
            self._filled[rows, level] += 1
            rows = rows[self._filled[rows, level] > limit]

    def _check(self, due: Rows) -> Changes:
        changes = Changes.none(self.features)
        if due.size == 0:
            return changes
        cuts = self._cuts(due)
        for i in np.flatnonzero(np.any(cuts.strength > 1, axis=1)):
            row, cut = int(due[i]), int(np.argmax(cuts.strength[i]))
            if self.config.direction == "both" or cuts.after[i, cut] > cuts.before[i, cut]:
                changes.fired[row] = True
                changes.onset[row] = self._start_after(row, cut)
                changes.before[row] = cuts.before[i, cut]
                changes.after[row] = cuts.after[i, cut]
                changes.n_after[row] = cuts.n_after[i, cut]
            self._restart(row)
        return changes

    def _cuts(self, due: Rows) -> _Cuts:
        least, slots = self.config.min_window_length, self.config.max_buckets
        n, total = self._buckets[:2, due, :, :slots].reshape(2, due.size, -1)
        width, whole = self._width[due, None], self._total[due, None]
        n0 = np.cumsum(n, axis=1)
        n1 = width - n0
        before = np.cumsum(total, axis=1) / np.maximum(n0, 1)
        # Subtracted one by one, as river does: whole - cumsum would round otherwise.
        rest = np.subtract.accumulate(np.concatenate((whole, total), axis=1), axis=1)[:, 1:]
        after = rest / np.maximum(n1, 1)
        confidence = np.log(2 * np.log(width) / self.config.delta)
        spread = 1 / np.maximum(n0 - least + 1, 1) + 1 / np.maximum(n1 - least + 1, 1)
        spread *= self.design_effect[due, None]
        limit = np.sqrt(2 * spread * (self._m2[due, None] / width) * confidence)
        limit += 2 / 3 * confidence * spread + self.tolerance[due, None]
        allowed = (n0 >= least) & (n1 >= least)
        return _Cuts(n1, before, after, np.where(allowed, np.abs(before - after) / limit, 0.0))

    def _start_after(self, row: int, cut: int) -> int:
        """Start of the first pane in the first used slot after a cut. There is one: the newer part is not empty."""
        slots = self.config.max_buckets
        starts = self._buckets[_AT, row, :, :slots].reshape(-1)[cut + 1 :]
        used = self._buckets[_N, row, :, :slots].reshape(-1)[cut + 1 :] > 0
        return int(starts[np.argmax(used)])

    def _restart(self, row: int) -> None:
        self._width[row] = self._total[row] = self._m2[row] = 0.0
        self._filled[row] = 0
        self._buckets[:, row] = 0.0

    def snapshot(self) -> bytes:
        """Everything, settings included: ``restore`` continues to the same bit. About 1 KiB a feature; not compressed."""
        floats = (self.design_effect, self.tolerance, self._width, self._total, self._m2)
        return bytes([SNAPSHOT_VERSION]) + msgspec.msgpack.encode(
            _Snapshot(
                self.config,
                *self._filled.shape,
                np.stack(floats).astype("<f8").tobytes(),
                self._filled.astype("<i4").tobytes(),
                self._buckets[:, self._used()].astype("<f8").tobytes(),
            )
        )

    @classmethod
    def restore(cls, body: bytes) -> Adwin:
        """The detector whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version.
        """
        if body[:1] != bytes([SNAPSHOT_VERSION]):
            raise IncompatibleError(
                f"detector snapshot of version {body[:1].hex() or 'none'}; this release reads {SNAPSHOT_VERSION:02x}"
            )
        try:
            saved = _SNAPSHOT.decode(memoryview(body)[1:])
            floats = np.frombuffer(saved.floats, "<f8").reshape(5, saved.features)
            effect, tolerance, *sums = floats
            detector = cls(saved.features, saved.config, design_effect=effect, tolerance=tolerance)
            detector._load(saved, sums)
        except (msgspec.MsgspecError, ValueError, IndexError) as err:
            raise IncompatibleError("damaged detector snapshot") from err
        return detector

    def _load(self, saved: _Snapshot, sums: list[Floats]) -> None:
        self._width, self._total, self._m2 = (column.astype(np.float64) for column in sums)
        shape = (self.features, saved.levels)
        self._filled = np.frombuffer(saved.filled, "<i4").reshape(shape).astype(np.intp)
        self._buckets = np.zeros((3, *shape, self.config.max_buckets + 1))
        self._buckets[:, self._used()] = np.frombuffer(saved.buckets, "<f8").reshape(
            3, int(self._filled.sum())
        )

    def _used(self) -> Bools:
        return np.arange(self._buckets.shape[3]) < self._filled[..., None]


@dataclass(frozen=True, slots=True, eq=False)
class _Cuts:
    """All cuts of some windows, ``(windows, slots)``; ``strength`` over 1 is a change, and 0 no cut."""

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


_SNAPSHOT: Final = msgspec.msgpack.Decoder(_Snapshot)


def _per_feature(values: npt.ArrayLike, features: int, name: str, *, least: float) -> Floats:
    array = np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (features,)))
    if not (np.all(np.isfinite(array)) and np.all(array >= least)):
        raise ValueError(f"{name} must be finite and at least {least:g}")
    return array
