r"""Classic control charts over panes: Page-Hinkley and CUSUM, for many features in one call.

Both add up by how much values are above (and below) a level, and fire when the sum has climbed too far from its lowest point::

    sum   \                        ___/   <- alarm: the climb is over the threshold
           \___    __           __/
               \__/  \____    __/
                           \__/
                              ^ onset: the start of the first pane after the lowest point

CUSUM measures from the reference and never forgets it; Page-Hinkley from the mean that it has seen so far. Their thresholds are fixed numbers, so each has a
run length that depends on the distribution and on the dependence of the values: ``cusum_threshold`` for independent Gaussian ones. For one that
holds for all kinds of data see ``monitor.sequential``.

Values are expected in the scale of the reference: mean 0, variance 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import optimize, special
from typing_extensions import override

from monitor.adwin import Changes
from monitor.errors import IncompatibleError
from monitor.moments import Bools, Floats, checked_moments, per_feature
from monitor.snapshots import seal, unseal

Direction = Literal["both", "rise", "fall"]
Rows = npt.NDArray[np.intp]

SNAPSHOT_VERSION: Final = 1
_SNAPSHOT: Final = msgspec.msgpack.Decoder(tuple[str, dict[str, Any], int, bytes])
_SIDES: Final[dict[Direction, tuple[bool, bool]]] = {
    "both": (True, True),
    "rise": (True, False),
    "fall": (False, True),
}
_SIGN: Final = np.array([[1.0], [-1.0]])
# Planes of the state, each (2 sides, k): the sum, its lowest point; and since that point the first pane's start, values and their sum.
_SUM, _LOWEST, _AT, _N, _TOTAL = range(5)
_FARTHEST: Final = 1e9  # standard deviations: further away is the same news, and its sums overflow
_OVERSHOOT: Final = (
    1.166  # Siegmund: 2 * 0.583, what a Gaussian walk goes beyond a barrier on average
)


@dataclass(frozen=True, slots=True)
class PageHinkleyConfig:
    """Settings of Page-Hinkley; the defaults are river's.

    Attributes:
        threshold: height of the climb that fires, over 0, in standard deviations times values.
        delta: a deviation by less never adds up, at least 0.
        alpha: what is left of the sum after one more value, in (0, 1]; 1 forgets nothing.
        min_instances: values before the first alarm, at least 1.
        direction: which changes of the mean fire.
    """

    threshold: float = 50.0
    delta: float = 0.005
    alpha: float = 0.9999
    min_instances: int = 30
    direction: Direction = "both"

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and self.delta >= 0):
            raise ValueError("threshold is over 0, and delta at least 0")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is over 0 and at most 1, not {self.alpha}")
        if self.min_instances < 1:
            raise ValueError("min_instances is at least 1")
        _check_direction(self.direction)


@dataclass(frozen=True, slots=True)
class CusumConfig:
    """Settings of CUSUM.

    Attributes:
        threshold: h, height of the sum that fires, over 0: ``cusum_threshold`` gives it from a run length.
        slack: the allowance that is taken off each value, at least 0, in standard deviations: half the smallest shift that matters.
        direction: which changes of the mean fire.
    """

    threshold: float
    slack: float = 0.25
    direction: Direction = "both"

    def __post_init__(self) -> None:
        if not (self.threshold > 0 and self.slack >= 0):
            raise ValueError("threshold is over 0, and slack at least 0")
        _check_direction(self.direction)


_Config = TypeVar("_Config", PageHinkleyConfig, CusumConfig)


class _Chart(ABC, Generic[_Config]):
    """What both charts share: panes in, sums per side, alarms, exact snapshots."""

    _config_type: ClassVar[type[Any]]
    _start: ClassVar[float]  # lowest point of a chart without values

    def __init__(self, features: int, config: _Config) -> None:
        if features < 0:
            raise ValueError(f"features is a number of features, not {features}")
        self.config: _Config = config
        self._sides = np.array(_SIDES[config.direction])[:, None]
        # What the constructor was told besides, and a snapshot keeps.
        self._settings = np.zeros((1, features))
        self._count = np.zeros(features)
        self._mean = np.zeros(features)
        self._state = np.zeros((5, 2, features))
        self._state[_LOWEST] = self._start

    @property
    def features(self) -> int:
        """How many features it watches."""
        return len(self._count)

    @property
    def height(self) -> Floats:
        """``(2, k)`` how far each sum, up and down, is above its lowest point: at the threshold it fires."""
        return np.asarray(np.maximum(self._state[_SUM] - self._state[_LOWEST], 0.0))

    @abstractmethod
    def _advance(self, rows: Rows, n: Floats, mean: Floats) -> Floats:
        """Add a pane to the sums and the lowest points; ``(2, rows)`` how far the sums have climbed."""

    @abstractmethod
    def _before(self, rows: Rows, n: Floats, total: Floats) -> Floats:
        """Mean up to the onset, from the values and the total since."""

    def update(self, at: int, n: npt.ArrayLike, mean: npt.ArrayLike, m2: npt.ArrayLike) -> Changes:
        """Take in one pane. A feature that fires starts anew.

        Args:
            at: when the pane starts, in any unit that fits 53 bits; only the onset is made of it.
            n: ``(k,)`` values of each feature; a feature with 0 has no pane, and its ``mean`` and ``m2`` are not read.
            mean: ``(k,)`` their means, scaled.
            m2: ``(k,)`` their sums of squared deviations, which these charts do not use: taken so that detectors can be exchanged.

        Raises:
            ValueError: wrong shape, a negative or fractional count, a mean or M2 that is not finite, a negative M2; the state is as before.
        """
        count, level, _ = checked_moments(self.features, n, mean, m2)
        rows = np.flatnonzero(count)
        values, level = count[rows], np.clip(level[rows], -_FARTHEST, _FARTHEST)
        lowest = self._state[_SUM][:, rows] <= self._state[_LOWEST][:, rows]
        for plane, now in ((_AT, at), (_N, values), (_TOTAL, values * level)):
            past = self._state[plane][:, rows]
            since = past if plane == _AT else past + now
            self._state[plane][:, rows] = np.where(lowest, now, since)
        climbed = np.where(self._sides, self._advance(rows, values, level), -np.inf)
        return self._alarms(rows, climbed)

    def _alarms(self, rows: Rows, climbed: Floats) -> Changes:
        changes = Changes.none(self.features)
        side = np.argmax(climbed, axis=0)
        over = self._ready(rows) & (np.max(climbed, axis=0) > self.config.threshold)
        if not over.any():
            return changes
        rows, side = rows[over], side[over]
        _, _, start, n, total = self._state[:, side, rows]
        changes.fired[rows] = True
        changes.onset[rows], changes.n_after[rows] = start, n
        changes.before[rows], changes.after[rows] = self._before(rows, n, total), total / n
        self._count[rows] = self._mean[rows] = 0.0
        self._state[:, :, rows] = 0.0
        self._state[_LOWEST][:, rows] = self._start
        return changes

    def _ready(self, rows: Rows) -> Bools:
        """Which features may fire."""
        return np.ones(len(rows), dtype=np.bool_)

    def snapshot(self) -> bytes:
        """Everything, settings included: ``restore`` continues to the same bit."""
        floats = np.concatenate(
            (self._settings, [self._count, self._mean], self._state.reshape(10, self.features))
        )
        form = (type(self).__name__, self.config, self.features, floats.astype("<f8").tobytes())
        return seal(SNAPSHOT_VERSION, form)

    @classmethod
    def restore(cls, body: bytes) -> Self:
        """The chart whose ``snapshot`` is ``body``.

        Raises:
            IncompatibleError: damaged, of another chart, or of another version.
        """
        return unseal("chart", SNAPSHOT_VERSION, body, cls._revive)

    @classmethod
    def _revive(cls, state: memoryview) -> Self:
        name, config, features, raw = _SNAPSHOT.decode(state)
        if name != cls.__name__:
            raise IncompatibleError(f"chart snapshot of {name}, not of {cls.__name__}")
        chart = cls(features, msgspec.convert(config, cls._config_type))
        floats = np.frombuffer(raw, "<f8").reshape(13, features).astype(np.float64)
        chart._settings, (chart._count, chart._mean) = floats[:1], floats[1:3]
        chart._state = floats[3:].reshape(5, 2, features)
        return chart


class PageHinkley(_Chart[PageHinkleyConfig]):
    """Page-Hinkley over k features: have the values gone above, or below, the mean of all that came before?

    ``sum <- alpha sum + (x - mean) - delta``; fires when it is more than ``threshold`` above its lowest point. With panes of one value the alarms are
    river's, alarm for alarm. A pane of n values counts as n values at its mean, which is exact for ``alpha = 1``, and otherwise off by a share of at most
    ``(1 - alpha) n`` of what the pane adds; an alarm is looked for at its end only.

    Blind to changes of spread and shape, and to a drift slower than its memory. The threshold is not calibrated: on
    10,000 stationary N(0, 1) values the defaults fire about 6 times, on lognormal ones 27, on AR(1) with phi = 0.9 158 times. Sources: Page (1954), Hinkley (1971); river 0.26.

    Mutable because it is a stream's state: one owner, one step per pane, in order of event time.

    >>> chart = PageHinkley(1)
    >>> for hour in range(48):
    ...     changes = chart.update(hour, n=[100], mean=[0.0 if hour < 36 else 0.5], m2=[100.0])
    ...     if changes.fired[0]:
    ...         print(hour, changes.onset.tolist())
    37 [36]

    Args:
        features: k.
        config: settings, for all features.
    """

    _config_type = PageHinkleyConfig
    _start = np.inf

    def __init__(self, features: int, config: PageHinkleyConfig | None = None) -> None:
        super().__init__(features, config or PageHinkleyConfig())

    @override
    def _advance(self, rows: Rows, n: Floats, mean: Floats) -> Floats:
        before = self._count[rows]
        gap = mean - self._mean[rows]
        self._count[rows] += n
        self._mean[rows] += n / self._count[rows] * gap
        # The mean follows the values of the pane one by one: the sum of before / (before + i) over i = 1..n.
        lag = before * (special.digamma(before + n + 1) - special.digamma(before + 1)) / n
        deviation = np.where(n == 1, mean - self._mean[rows], gap * lag)  # river's order of steps
        alpha, left = self.config.alpha, self.config.alpha**n
        weight = n if alpha == 1 else (1 - left) / (1 - alpha)
        step = np.where(n == 1, 1.0, weight) * (_SIGN * deviation - self.config.delta)
        total = left * self._state[_SUM][:, rows] + step
        lowest = np.minimum(self._state[_LOWEST][:, rows], total)
        self._state[_SUM][:, rows], self._state[_LOWEST][:, rows] = total, lowest
        return np.asarray(total - lowest)

    @override
    def _before(self, rows: Rows, n: Floats, total: Floats) -> Floats:
        earlier = self._count[rows] - n
        whole = self._count[rows] * self._mean[rows] - total
        return np.where(earlier > 0, whole / np.maximum(earlier, 1), 0.0)

    @override
    def _ready(self, rows: Rows) -> Bools:
        return np.asarray(self._count[rows] >= self.config.min_instances)


class Cusum(_Chart[CusumConfig]):
    """Tabular CUSUM over k features: has the mean left the reference's, which is 0?

    ``sum <- max(0, sum + n (x - slack) / design effect)`` upwards, and the same of ``-x`` downwards; fires above ``threshold``. A pane of n values is exactly n values at its
    mean. Best of all charts against a shift of twice the slack (Moustakides 1986), slow against smaller ones; a shift below the slack is hardly ever found.

    Blind to changes of spread and shape. Run length: ``cusum_run_length``, for independent Gaussian values; skewed ones fire more often. The design effect
    corrects the variance of long sums, so values that depend on the past keep about that run length. Sources: Page (1954); Montgomery, Introduction to Statistical Quality Control, ch. 9.

    Mutable because it is a stream's state: one owner, one step per pane, in order of event time.

    >>> chart = Cusum(1, CusumConfig(threshold=cusum_threshold(100_000, 0.25, values=100)))
    >>> for hour in range(38):
    ...     changes = chart.update(hour, n=[100], mean=[0.0 if hour < 36 else 0.5], m2=[100.0])
    ...     if changes.fired[0]:
    ...         print(hour, changes.onset.tolist(), changes.after.tolist())
    36 [36] [0.5]
    37 [37] [0.5]

    Args:
        features: k.
        config: settings, for all features.
        design_effect: per feature or for all, at least 1: by how much the variance of a sum of values exceeds that under independence.
    """

    _config_type = CusumConfig
    _start = 0.0

    def __init__(
        self, features: int, config: CusumConfig, *, design_effect: npt.ArrayLike = 1.0
    ) -> None:
        super().__init__(features, config)
        self._settings[0] = per_feature(design_effect, features, "design_effect", least=1.0)

    @property
    def design_effect(self) -> Floats:
        """``(k,)`` as given."""
        effect: Floats = self._settings[0]
        return effect

    @override
    def _advance(self, rows: Rows, n: Floats, mean: Floats) -> Floats:
        step = n / self.design_effect[rows] * (_SIGN * mean - self.config.slack)
        total = np.maximum(0.0, self._state[_SUM][:, rows] + step)
        self._state[_SUM][:, rows] = total
        return np.asarray(total)

    @override
    def _before(self, rows: Rows, n: Floats, total: Floats) -> Floats:
        return np.zeros(len(rows))


def cusum_run_length(
    threshold: float, slack: float, *, values: float = 1.0, sides: int = 2, shift: float = 0.0
) -> float:
    """Panes until a CUSUM fires on average, on independent Gaussian values: Siegmund's approximation (1985).

    ``(exp(-2 d b) + 2 d b - 1) / (2 d^2)`` per side, with ``d = shift - slack`` and ``b = threshold + 1.166`` in the units of a pane's sum. Within 10 % of simulation for
    ``slack * sqrt(values)`` up to 1; not above: measured 0.77 of it at 1.6, and 1.9 times it at 2.5.

    Args:
        threshold: h.
        slack: the allowance per value.
        values: effective values of a pane, n / design effect.
        sides: 1 or 2; the rates of both sides add up.
        shift: the mean, in standard deviations.
    """
    root = float(np.sqrt(values))
    barrier = threshold / root + _OVERSHOOT
    rates = [1 / _siegmund((side * shift - slack) * root, barrier) for side in (1.0, -1.0)[:sides]]
    return 1 / sum(rates)


def cusum_threshold(
    run_length: float, slack: float, *, values: float = 1.0, sides: int = 2
) -> float:
    """The threshold whose ``cusum_run_length`` is ``run_length`` panes, for one feature: of k features, ask for k times as much.

    Raises:
        ValueError: not positive, or so short that it would fire at once.
    """
    if not (run_length >= 1 and values > 0 and slack >= 0 and sides in (1, 2)):
        raise ValueError("run_length is at least 1, values over 0, slack at least 0, sides 1 or 2")

    def short_by(threshold: float) -> float:
        length = cusum_run_length(threshold, slack, values=values, sides=sides)
        return float(np.log(length) - np.log(run_length))

    if short_by(0.0) >= 0:
        raise ValueError(
            f"with a slack of {slack:g} it runs longer than {run_length:g} panes, whatever the threshold"
        )
    # One side runs at least as long as a walk without slack: barrier squared.
    highest = (np.sqrt(run_length * sides) + 1) * np.sqrt(values)
    return float(optimize.brentq(short_by, 0.0, highest, xtol=1e-9))


def _siegmund(drift: float, barrier: float) -> float:
    exponent = -2 * drift * barrier
    if abs(exponent) < 1e-4:  # the series: the difference below would cancel
        return barrier**2 * (1 + exponent / 3)
    exponent = min(exponent, 600.0)  # longer than any number of panes
    return float((np.expm1(exponent) - exponent) / (2 * drift**2))


def _check_direction(direction: str) -> None:
    if direction not in _SIDES:
        raise ValueError(f'direction is "both", "rise" or "fall", not {direction!r}')
