"""Has the mean of a feature left the reference? A detector that may look after every pane, for months, and keeps its promise.

A test with p < 0.05 that is repeated after each pane fires in the end, whatever the level. An e-detector (Shin, Ramdas and
Rinaldo 2023) does not: it bets against "nothing has changed", and its wealth grows without limit only if something has. Per
feature and bet ``j``, with weights ``w_j`` that add up to 1, after each pane::

    M_j <- (M_j + w_j) L_j        R = sum_j M_j        (Shiryaev-Roberts: a new bet is opened at every pane)
    L_j  = exp( n_e (b y  -  b^2/6 (v + y^2)  -  ln(1 + b^2/3)) )        (``bet_gain``)

``y`` is by how much the pane's mean, in standard deviations of the reference, is beyond the tolerance to the side of the bet; ``v``
its variance over the reference's; ``n_e = n / design effect``.

**Promise.** While nothing has changed, the expected number of alarms in the first ``t`` panes is at most ``t / A``, ``A`` being the
``average_run_length``; so the first alarm comes after ``A`` panes or more on average, and within ``t`` panes with a probability of
at most ``t / A``. For any distribution that has a variance, and whatever the dependence *between features*.
Assumed: given the past, a value has at most the reference's variance and a mean within the tolerance of the reference's.

**Proof.** 1. ``exp(x - x^2/6) <= 1 + x + x^2/3`` for every real x (Delyon 2009); hence for X with variance at most 1 and mean at most 0
``E exp(b X - b^2 X^2/6) <= 1 + b^2/3``. (A mean m in [-3/b, 0): ``f(z + m) <= 1 + bm + (bm)^2/3 + (1 + 2bm/3) bz + (bz)^2/3``, and ``bm + (bm)^2/3 <= 0``.
Further down the same parabola as at -3 holds.) So ``E[L_j | past] <= 1``: skew and heavy tails are covered, and no value is assumed to be bounded. A design effect over 1 only
lowers it (Jensen).
2. So ``R_t - t`` is a supermartingale, and the mean of R over k features less t too, whatever their dependence.
3. The e-BH rule (Wang and Ramdas 2022) fires the i features with the largest R for the largest i with ``R_(i) >= k A / i``; they restart at 0. So each alarm takes at least A out of the
mean of R, and into it flows at most 1 a pane. Hence at most t / A alarms in t panes.

**Values that depend on the past** break the assumption: then the mean given the past is not the reference's. If at every length the variance of
a sum is at most ``design_effect`` times that under independence (``monitor.calibration`` learns it) and the sum is nearly Gaussian, ``E[R_t] <= t`` still holds
at each *fixed* t, but not at the moment of an alarm. Measured run lengths: ``python -m load.run_length``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import special

from monitor.moments import Bools, Floats, Ints, checked_moments, per_feature
from monitor.snapshots import seal, unseal

Rows = npt.NDArray[np.intp]

SNAPSHOT_VERSION: Final = 1
# Planes of the state, each (bets, k): log of M; log of the CUSUM max(1, C) L of the same bet, and since its last restart the first
# pane's start, the values and their sum in standard deviations from the reference's mean.
_M, _CUSUM, _AT, _N, _TOTAL = range(5)
_FARTHEST: Final = (
    1e6  # standard deviations: further away is the same news, and its square overflows
)


@dataclass(frozen=True, slots=True)
class EDetectorConfig:
    """Settings of an e-detector.

    Attributes:
        average_run_length: A, in panes, at least 1: what the whole family of features runs for on average, at least, before it cries wolf.
            Infinite: it never fires, and only weighs the evidence.
        bets: sizes ``b`` of the bets, each to both sides, over 0 and at most ``sqrt(3)``. A bet gains ``b s - b^2 (3 + s^2) / 6`` per value on a shift by
            s standard deviations: most at ``s = b``, and something for s between about ``b / 2`` and ``6 / b``.
        weights: one per bet, over 0; scaled to add up to 1. Empty: all the same, which is log-uniform over the default bets.
    """

    average_run_length: float
    bets: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.average_run_length >= 1:
            raise ValueError(
                f"average_run_length is a number of panes, at least 1, not {self.average_run_length}"
            )
        if not self.bets or not all(0 < bet <= math.sqrt(3) for bet in self.bets):
            raise ValueError("bets are over 0 and at most sqrt(3), and there is at least one")
        if self.weights and len(self.weights) != len(self.bets):
            raise ValueError("weights: one per bet, or none")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError("weights are over 0 and finite")


@dataclass(frozen=True, slots=True, eq=False)
class Shifts:
    """What is known after a pane, per feature; all ``(k,)``.

    Attributes:
        fired: an alarm.
        log_e: evidence of a shift: the natural logarithm of R, or 0 where R is below 1. Of use also where nothing fired.
        onset: start of the first pane after the estimated change. Means something where ``fired``; else 0.
        before: the reference's mean, ``after``: the mean from the onset on, of ``n_after`` values. 0 unless ``fired``.
    """

    fired: Bools
    log_e: Floats
    onset: Ints
    before: Floats
    after: Floats
    n_after: Ints


class EDetector:
    """Watches the means of k features against the reference; the promise is in the module's docstring.

    Blind to changes of spread and shape that leave the mean, to a shift within the tolerance, and to one that comes with so much
    more spread that the mean could be chance, and to one of more than 6 / the smallest bet (6,000) standard deviations: profiles clip at 1,024 scales. A lone wild value costs its feature evidence and raises no alarm. A shift that stays fires again and
    again, since the feature restarts after each alarm: who reads them has to know that it is one change.

    Mutable because it is a stream's state: one owner, one step per pane, in order of event time.

    >>> detector = EDetector(2, EDetectorConfig(average_run_length=100_000), design_effect=[1.0, 3.0])
    >>> for hour in range(48):
    ...     level = 0.0 if hour < 36 else 0.25
    ...     shifts = detector.update(hour, n=[200, 200], mean=[level, 0.0], m2=[200.0, 200.0])
    ...     if shifts.fired.any():
    ...         print(hour, shifts.fired.tolist(), shifts.onset.tolist(), shifts.after.tolist())
    38 [True, False] [36, 0] [0.25, 0.0]
    41 [True, False] [39, 0] [0.25, 0.0]
    44 [True, False] [42, 0] [0.25, 0.0]
    47 [True, False] [45, 0] [0.25, 0.0]

    Args:
        features: k.
        config: settings, for all features.
        center: per feature or for all: mean of the reference, in the unit of the panes' means.
        variance: the same: its variance, in that unit squared. A feature with 0, a constant, is not watched: whatever is new there shows in other statistics.
        design_effect: the same, at least 1: by how much the variance of a sum of values exceeds that under independence, at the worst length.
        tolerance: the same, at least 0, in standard deviations of the reference: a mean that is off by less never matters. The reference's mean is
            itself uncertain (``mean_tolerance``): with a tolerance of 0 that error will be called a shift in the end. Measured with references of 20,000
            values, 50 features, panes of 1,000 and A = 36,000, alarms in 12,000 panes: 602 with 0, 10 with two standard errors, none with ``mean_tolerance``.
    """

    def __init__(
        self,
        features: int,
        config: EDetectorConfig,
        *,
        center: npt.ArrayLike = 0.0,
        variance: npt.ArrayLike = 1.0,
        design_effect: npt.ArrayLike = 1.0,
        tolerance: npt.ArrayLike = 0.0,
    ) -> None:
        if features < 0:
            raise ValueError(f"features is a number of features, not {features}")
        self.config = config
        self.center = per_feature(center, features, "center")
        self.variance = per_feature(variance, features, "variance", least=0.0)
        self.design_effect = per_feature(design_effect, features, "design_effect", least=1.0)
        self.tolerance = per_feature(tolerance, features, "tolerance", least=0.0)
        self._watched = self.variance > 0
        bets = np.array(config.bets)
        weights = np.array(config.weights or np.ones(len(bets)))
        # Rows: every bet upwards, then every bet downwards.
        self._side = np.repeat([1.0, -1.0], len(bets))[:, None]
        self._bets = np.tile(bets, 2)[:, None]
        self._log_weights = np.log(np.tile(weights / weights.sum() / 2, 2))[:, None]
        self._state = np.zeros((5, len(self._bets), features))
        self._state[_M] = -np.inf

    @property
    def features(self) -> int:
        """How many features it watches."""
        return len(self.center)

    @property
    def limit(self) -> float:
        """The ``log_e`` at which a feature fires even if it is alone: ``ln(k A)``. With i features at once ``ln(k A / i)`` is enough."""
        watched = int(np.count_nonzero(self._watched))
        return math.log(max(1, watched) * self.config.average_run_length)

    def update(self, at: int, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike) -> Shifts:
        """Take in one pane.

        Args:
            at: when the pane starts, in any unit that fits 53 bits; only the onset is made of it.
            n: ``(k,)`` values of each feature; a feature with 0 has no pane, and its ``mean`` and ``m2`` are not read.
            mean: ``(k,)`` their means, in the unit of ``center``.
            m2: ``(k,)`` their sums of squared deviations from the mean, in the unit of ``variance``.

        Raises:
            ValueError: wrong shape, a negative or fractional count, a mean or M2 that is not finite, a negative M2; the state is as before.
        """
        count, level, spread = checked_moments(self.features, n, mean, m2)
        present = (count > 0) & self._watched
        # A view where every feature has its pane: half of the time would go into copies.
        rows = slice(None) if present.all() else np.flatnonzero(present)
        self._bet(rows, at, count[rows], level[rows], spread[rows])
        return self._decide(_log_sum(self._state[_M]))

    def _bet(self, rows: Rows | slice, at: int, n: Floats, mean: Floats, m2: Floats) -> None:
        variance = self.variance[rows]
        with np.errstate(over="ignore"):  # by a tiny variance; clipped at once
            away = np.clip((mean - self.center[rows]) / np.sqrt(variance), -_FARTHEST, _FARTHEST)
            spread = np.minimum(m2 / n / variance, _FARTHEST**2)
        beyond = away * self._side - self.tolerance[rows]
        gain = bet_gain(self._bets, beyond, spread) * (n / self.design_effect[rows])
        m, cusum, start, values, total = self._state[:, :, rows]
        restarted = cusum <= 0
        self._state[_M][:, rows] = np.logaddexp(m, self._log_weights) + gain
        self._state[_AT][:, rows] = np.where(restarted, at, start)
        self._state[_N][:, rows] = np.where(restarted, 0.0, values) + n
        self._state[_TOTAL][:, rows] = np.where(restarted, 0.0, total) + n * away
        self._state[_CUSUM][:, rows] = np.maximum(cusum, 0.0) + gain

    def _decide(self, log_r: Floats) -> Shifts:
        """The e-BH rule; what fires starts anew."""
        times, means = np.zeros((2, self.features), dtype=np.int64), np.zeros((2, self.features))
        fired = np.zeros(self.features, dtype=np.bool_)
        order = np.argsort(-log_r, kind="stable")
        enough = log_r[order] >= self.limit - np.log(np.arange(1, self.features + 1))
        if enough.any():
            rows = order[: int(np.flatnonzero(enough)[-1]) + 1]
            # The bet whose CUSUM stands highest places the change best: the likelihood ratio, had it begun there.
            best = np.argmax(self._state[_CUSUM][:, rows], axis=0)
            _, _, start, n, total = self._state[:, best, rows]
            fired[rows], times[0, rows], times[1, rows] = True, start, n
            means[0, rows] = self.center[rows]
            means[1, rows] = self.center[rows] + total / n * np.sqrt(self.variance[rows])
            self._state[:, :, rows] = 0.0
            self._state[_M][:, rows] = -np.inf
        return Shifts(fired, np.maximum(log_r, 0.0), times[0], means[0], means[1], times[1])

    def snapshot(self) -> bytes:
        """Everything, settings included: ``restore`` continues to the same bit. About 0.6 KiB a feature; not compressed."""
        floats = (self.center, self.variance, self.design_effect, self.tolerance)
        saved = _Snapshot(
            self.config,
            self.features,
            np.stack(floats).astype("<f8").tobytes(),
            self._state.astype("<f8").tobytes(),
        )
        return seal(SNAPSHOT_VERSION, saved)

    @classmethod
    def restore(cls, body: bytes) -> EDetector:
        """The detector whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, or of another version.
        """
        return unseal("detector", SNAPSHOT_VERSION, body, cls._revive)

    @classmethod
    def _revive(cls, state: memoryview) -> EDetector:
        saved = _SNAPSHOT.decode(state)
        floats = np.frombuffer(saved.floats, "<f8").reshape(4, saved.features)
        center, variance, effect, tolerance = floats
        detector = cls(
            saved.features,
            saved.config,
            center=center,
            variance=variance,
            design_effect=effect,
            tolerance=tolerance,
        )
        planes = np.frombuffer(saved.state, "<f8").reshape(detector._state.shape)
        detector._state = planes.astype(np.float64)
        return detector


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    config: EDetectorConfig
    features: int
    floats: bytes  # (4, k): center, variance, design effect, tolerance
    state: bytes  # (5, bets, k)


_SNAPSHOT: Final = msgspec.msgpack.Decoder(_Snapshot)


def bet_gain(bet: float | Floats, away: float | Floats, spread: float | Floats) -> Floats:
    """What a bet gains per value of a pane, in nats: ``b y - b^2/6 (v + y^2) - ln(1 + b^2/3)``; shapes broadcast.

    ``exp`` of it, summed over the values, has an expectation of at most 1 for values of a mean of at most 0 and a variance of at most 1,
    whatever else their distribution is: see the module's proof.

    Args:
        bet: b, over 0.
        away: y, mean of the values.
        spread: v, their variance around that mean.
    """
    return np.asarray(bet * (away - bet / 6 * (spread + away * away)) - np.log1p(bet * bet / 3))


def mean_tolerance(
    values: npt.ArrayLike, design_effect: npt.ArrayLike, *, confidence: float = 0.99
) -> Floats:
    """``(k,)`` how far the means of k features may be off because the reference was finite, in its standard deviations.

    With probability ``confidence`` every one of the k true means is within: Bonferroni over the features, Gaussian means.
    For 50 features 3.7 standard errors.

    Args:
        values: ``(k,)`` values of the reference in each feature; with 0, the tolerance is that of 1.
        design_effect: ``(k,)`` or one for all, of the mean of the whole reference.
        confidence: in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a probability between 0 and 1, not {confidence}")
    count = np.maximum(np.asarray(values, dtype=np.float64), 1.0)
    errors = -special.ndtri((1 - confidence) / 2 / max(1, count.size))
    return np.asarray(errors * np.sqrt(np.asarray(design_effect, dtype=np.float64) / count))


def _log_sum(logs: Floats) -> Floats:
    """``(k,)`` log of the sum over the first axis of ``exp(logs)``; minus infinity where there is nothing."""
    peak = np.max(logs, axis=0)
    nothing = peak == -np.inf
    sums: Floats = np.exp(logs - np.where(nothing, 0.0, peak)).sum(axis=0)
    return np.log(sums, where=~nothing, out=np.full_like(sums, -np.inf)) + np.where(
        nothing, 0.0, peak
    )
