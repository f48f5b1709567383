"""How a statistic scatters between windows of the reference, where that is more than independence allows.

A windy day is windy in every event, and a day has its hours. Such a statistic has a part that does not shrink with the window::

    T(n) = independent part at n events + between

``between`` is what the reference's own windows ("tiles") show. It is kept as a constant, not as a factor (Kish's design effect): windows of one
length differ in events because traffic does, and the weather is no calmer where traffic is high.

The law is *predictive*: k tiles have shown a mean, a spread and their largest values, each with an error, and a new window is judged by
what k + 1 exchangeable windows would do. So no safety factor is needed, and the level is kept on average over references:

1. the body: a gamma with the three moments of both parts (Pearson III), over the mean of k like it (an F law);
2. the tail, beyond the largest quarter of the tiles or the largest ``_MOST``: logarithms of the body's probabilities exceed their threshold as a Weibull
   variable (peaks over threshold; Pickands 1975), with a power from their L-moments (Hosking 1990) and a scale that is known from K excesses, so
   that the chance is (1 + t^power / sum)^-K. A season is bimodal, no gamma: there this step rules.

Blind spots: a season longer than the reference; few tiles know their tail badly, and then it is wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]

FEW: Final = 4  # fewer tiles than this say nothing about scatter
PARAMETERS: Final = 8
_MOST: Final = 50  # tiles of the tail
_PRIOR_TILES: Final = (
    4.0  # weight of what is believed before any tile: one slow cause, a chi-square of one degree
)
_FEW_EXCESSES: Final = 5.0  # up to about so many, the body's own tail counts as one more excess
_PRIOR_POWER: Final = 5.0  # weight, in excesses, of a power of 1
_POWER_COST: Final = 1.5  # the power is estimated too: each excess is worth one over this
_POWERS: Final = (0.6, 4.0)
_SMALLEST: Final = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """Laws of one statistic of many fields, ``(fields,)`` each. ``excesses`` 0 means that independence holds.

    Attributes:
        between: what a new window's mean has beyond the independent one.
        spread: coefficient of variation of that part.
        tiles: how many independent tiles the mean is worth.
        start, share: score at which the tail starts, and the chance to be beyond it.
        excesses, total, power: how many scores the tail was learnt from, the sum of their powers, and the power.
    """

    between: Floats
    spread: Floats
    tiles: Floats
    start: Floats
    share: Floats
    excesses: Floats
    total: Floats
    power: Floats

    @staticmethod
    def of(rows: Floats) -> Scatter:
        """From ``(fields, PARAMETERS)`` rows of ``learn``."""
        return Scatter(*np.asarray(rows, dtype=np.float64).reshape(-1, PARAMETERS).T)

    def rows(self) -> Floats:
        """The inverse of ``of``."""
        return np.stack([getattr(self, name) for name in self.__slots__], axis=1)

    @property
    def dependent(self) -> npt.NDArray[np.bool_]:
        """``(fields,)`` where there is more scatter than independence allows."""
        return self.excesses > 0

    def p_values(self, values: Floats, mean: Floats, cv: float | Floats) -> Floats:
        """``(fields,)`` probability of at least ``values``; 0 where independence holds.

        Args:
            values: ``(fields,)`` the statistic.
            mean: ``(fields,)`` its mean under independence.
            cv: ``(fields,)`` its coefficient of variation under independence.
        """
        shape, scale, place = _body(mean, cv, self.between, self.spread)
        found = (values - place) / np.maximum(shape * scale, _SMALLEST)
        score = -np.log(_f_sf(found, shape, self.tiles))
        beyond = np.maximum(score - self.start, 0.0) ** self.power
        tail = np.log(self.share) - self.excesses * np.log1p(beyond / self.total)
        body = np.log(self.share) * score / self.start
        p = np.exp(np.where(score > self.start, tail, body))
        return np.where(self.dependent, p, 0.0)

    def limits(self, alpha: float | Floats, mean: Floats, cv: float | Floats) -> Floats:
        """``(fields,)`` the value of ``p_values`` ``alpha``; 0 where independence holds."""
        shape, scale, place = _body(mean, cv, self.between, self.spread)
        alpha = np.maximum(alpha, _SMALLEST)
        wide = np.maximum(np.log(self.share / alpha), 0.0) / np.maximum(self.excesses, 1.0)
        tail = self.start + (self.total * np.expm1(wide)) ** (1 / self.power)
        body = self.start * np.log(alpha) / np.log(self.share)
        score = np.minimum(np.where(alpha < self.share, tail, body), _LAST_SCORE)
        limits = np.zeros(self.between.shape)
        on = self.dependent  # an inverse costs 20 us a field
        found = _f_isf(np.exp(-score[on]), shape[on], self.tiles[on])
        limits[on] = np.maximum(place[on] + (shape * scale)[on] * found, 0.0)
        return limits


INDEPENDENT: Final = np.array([0.0, 1.0, 1.0, 1.0, 0.5, 0.0, 1.0, 1.0])
_LAST_SCORE: Final = 690.0


def learn(values: Floats, means: Floats, cv: float) -> Floats:
    """``(PARAMETERS,)`` from tiles in the order of time.

    Args:
        values: ``(tiles,)`` statistics of at least ``FEW`` tiles against the reference that they are part of.
        means: ``(tiles,)`` their means under independence, all positive.
        cv: their coefficient of variation under independence.
    """
    k = len(values)
    # A tile pulls the reference towards itself; a new window does not.
    pull = 1 - 1 / k
    between = max(0.0, float(np.mean(values - means))) / pull
    deviation = values - means - between * pull
    more = float(np.sum(deviation**2) / (k - 1) - np.mean((cv * means) ** 2))
    spread2 = min(max(more, 0.0) / (between * pull) ** 2, 8.0) if between > 0 else 0.0
    spread = float(np.sqrt((k * spread2 + 2 * _PRIOR_TILES) / (k + _PRIOR_TILES)))
    squares = max(float(np.sum(deviation**2)), _SMALLEST)
    memory = min(max(float(np.sum(deviation[1:] * deviation[:-1])) / squares, 0.0), 0.95)
    tiles = max(2.0, k * (1 - memory) / (1 + memory))
    shape, scale, place = _body(means, cv, between * pull, spread)
    scores = -np.log(_f_sf((values - place) / np.maximum(shape * scale, _SMALLEST), shape, tiles))
    scores = np.sort(scores)[::-1]
    most = min(max(1, k // 4), _MOST)
    start = max(float(scores[most]), 1e-3)
    excesses = np.maximum(scores[:most] - start, 0.0)
    power = _power(excesses)
    prior = 1 / (1 + (most / _FEW_EXCESSES) ** 2)
    return np.array(
        [
            between * (1 + 1 / k),
            spread,
            tiles,
            start,
            (most + 1) / (k + 1),
            (most + prior) / _POWER_COST,
            (float(np.sum(excesses**power)) + prior) / _POWER_COST,
            power,
        ]
    )


def _power(excesses: Floats) -> float:
    """Weibull power of descending excesses from the ratio of the first two L-moments, drawn towards 1."""
    k = len(excesses)
    if k < 2 or not excesses.any():
        return 1.0
    first = float(excesses.mean())
    second = float(np.mean(excesses * (k - 1 - 2 * np.arange(k)))) / (k - 1)
    power = -np.log(2.0) / np.log1p(-min(max(second / first, 0.05), 0.9))
    return float(np.clip(power ** (k / (k + _PRIOR_POWER)), *_POWERS))


def _body(
    mean: Floats, cv: float | Floats, between: float | Floats, spread: float | Floats
) -> tuple[Floats, Floats, Floats]:
    """Shape, scale and place of a gamma with the three moments of the sum of two gammas."""
    variance = (cv * mean) ** 2 + (spread * between) ** 2
    third = 2 * np.asarray(cv) ** 4 * mean**3 + 2 * np.asarray(spread) ** 4 * between**3
    shape = np.asarray(4 * variance**3 / third**2)
    scale = np.asarray(third / (2 * variance))
    return shape, scale, np.asarray(mean + between - shape * scale)


def _f_sf(x: Floats, shape: Floats, tiles: float | Floats) -> Floats:
    """Survival of gamma(shape) / shape over an independent gamma(shape * tiles) / (shape * tiles)."""
    p = special.betainc(shape * tiles, shape, tiles / (tiles + np.maximum(x, 0.0)))
    return np.asarray(np.maximum(p, _SMALLEST))


def _f_isf(p: Floats, shape: Floats, tiles: Floats) -> Floats:
    y = special.betaincinv(shape * tiles, shape, np.maximum(p, _SMALLEST))
    return np.asarray(tiles * (1 - y) / np.maximum(y, _SMALLEST))
