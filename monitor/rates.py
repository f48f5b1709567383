"""How many of n events have a defect, when nothing is wrong: the predictive law of a count.

The rate is known from the reference only, and windows may have rates of their own: a sensor that is away is away for the hour. Both make a
beta-binomial. Its mean is the reference's rate; its precision S joins what the reference does not know (Jeffreys' prior; Brown,
Cai and DasGupta 2001) with how alike the events of one window are, the intra-window correlation rho (Williams 1982)::

    1 / (S + 1) = 1 / (A + 1) + rho A / (A + 1)        A = m / (1 + (n - 1) rho) + 1

With rho = 0 that is the exact predictive law of independent events; with rho near 1 a window has the defect in all of its events or in none, and a window
that is wholly missing is then as likely as the rate says, however many events it has.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]

LARGEST_CORRELATION: Final = 0.98  # of k windows that were all alike, the next may still differ
_UNIT: Final = 16  # counts that are summed one by one; then in runs that grow by _GROWTH
_GROWTH: Final = 1.06
_BODY: Final = 6.0  # standard deviations below the mean: a count that low is certain to be reached
_PASSES: Final = 6  # the steps grow away from the start: each pass comes closer to the count
_SMALLEST: Final = 1e-300


def tail_probabilities(n: int, counts: Floats, x: Floats, m: float, correlation: Floats) -> Floats:
    """``(kinds,)`` P(at least ``counts`` of ``n`` events), where the reference had ``x`` of ``m``; 1 for a count of 0.

    Relative error about 1 % down to 1e-300. O(log n) per kind.

    Args:
        n: events of the window, at least 1.
        counts: ``(kinds,)`` whole numbers from 0 to n.
        x: ``(kinds,)`` events of the reference with the defect.
        m: events of the reference.
        correlation: ``(kinds,)`` rho, from 0 to ``LARGEST_CORRELATION``.
    """
    rate, precision, spread = _law(n, x, m, correlation)
    start = np.maximum(counts, np.floor(n * rate - _BODY * spread))
    _, tails = _tails(n, rate, precision, np.clip(start, 0.0, n))
    return np.where(counts <= 0, 1.0, np.clip(tails[:, 0], 0.0, 1.0))


def largest_likely(n: int, x: Floats, m: float, correlation: Floats, alpha: float) -> Floats:
    """``(kinds,)`` the largest count that is reached with a probability over ``alpha``: one more is a breach. 0 if even one is rarer."""
    rate, precision, spread = _law(n, x, m, correlation)
    found = np.clip(np.floor(n * rate - _BODY * spread), 0.0, n)
    for _ in range(_PASSES):
        start = np.maximum(found - 2.0, 0.0)
        k, tails = _tails(n, rate, precision, start)
        last = np.maximum(np.count_nonzero(tails > max(alpha, _SMALLEST), axis=1) - 1, 0)
        found = k[np.arange(len(k)), last]
        if np.all(found - start < _UNIT):
            break
    return np.where(found > 0, found, 0.0)


def intra_window_correlation(counts: npt.NDArray[np.integer], n: Floats) -> float:
    """How alike the events of one window are, by the method of moments (Kleinman 1973), from ``(windows,)`` counts of ``n`` events.

    What few windows have shown is known badly: taken larger by two standard errors of the number of windows that had the defect at all.
    """
    total, k = float(n.sum()), len(n)
    rate = float(counts.sum()) / max(total, 1.0)
    pairs = float(np.sum(n * (n - 1)))
    if not 0 < rate < 1 or k < 2 or pairs <= 0:
        return 0.0
    squares = float(np.sum((counts - n * rate) ** 2)) / (rate * (1 - rate)) * k / (k - 1)
    affected = int(np.count_nonzero(counts))
    unaffected = int(np.count_nonzero(counts < n))
    safety = 1 + 2 / np.sqrt(max(1, min(affected, unaffected)))
    return float(np.clip((squares - total) / pairs * safety, 0.0, LARGEST_CORRELATION))


def _law(n: int, x: Floats, m: float, correlation: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean rate, precision S, and standard deviation of the count."""
    known = 1 + (n - 1) * correlation  # so many events of the reference tell as much as one
    a, b = x / known + 0.5, np.maximum(m - x, 0.0) / known + 0.5
    whole = a + b
    rate = a / whole
    share = (1 + correlation * whole) / (whole + 1)
    precision = 1 / share - 1
    return rate, precision, np.sqrt(n * rate * (1 - rate) * (1 + (n - 1) * share))


def _tails(n: int, rate: Floats, precision: Floats, start: Floats) -> tuple[Floats, Floats]:
    """``(kinds, nodes)`` counts from ``start`` to n, and the probability to reach each."""
    steps = _steps(n)
    up, down = start[:, None] + steps, n - steps[::-1]
    k = np.clip(
        np.sort(np.concatenate((up, np.broadcast_to(down, up.shape)), axis=1)), start[:, None], n
    )
    a, b = (rate * precision)[:, None], ((1 - rate) * precision)[:, None]
    log_pmf = (
        special.gammaln(n + 1.0)
        - special.gammaln(k + 1)
        - special.gammaln(n - k + 1)
        + special.betaln(k + a, n - k + b)
        - special.betaln(a, b)
    )
    # Between two nodes the probabilities are taken as a geometric series, which is exact for neighbours.
    length = np.diff(k, axis=1)
    ratio = np.diff(log_pmf, axis=1) / np.maximum(length, 1.0)
    flat = np.abs(ratio) < 1e-9
    series = np.where(flat, length, np.expm1(length * ratio) / np.where(flat, 1.0, np.expm1(ratio)))
    parts = np.concatenate((np.exp(log_pmf[:, :-1]) * series, np.exp(log_pmf[:, -1:])), axis=1)
    return k, np.cumsum(parts[:, ::-1], axis=1)[:, ::-1]


def _steps(n: int) -> Floats:
    """0, 1, ... up to ``_UNIT``, then whole numbers that grow by ``_GROWTH``, up to n."""
    more = int(np.ceil(np.log(max(n / _UNIT, 1.0)) / np.log(_GROWTH))) + 1
    grown = np.floor(_UNIT * _GROWTH ** np.arange(more))
    return np.unique(np.concatenate((np.arange(min(n, _UNIT) + 1.0), np.minimum(grown, n))))
