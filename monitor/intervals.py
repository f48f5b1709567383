"""Confidence intervals of performance metrics, at 95 %, in closed form.

They hold for rows that are independent; where errors come in clusters the truth lies outside more often. A window whose labels are still
coming in has, besides, an error that no interval shows: the labels that came first may be of another kind.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np
from scipy import special

from monitor.binning import Floats

Interval: TypeAlias = tuple[float, float]

LEVEL: Final = 0.95
Z: Final = float(special.ndtri((1 + LEVEL) / 2))  # standard errors to either side


def proportion(successes: int, n: int) -> Interval:
    """Of a share of ``n`` independent rows: Wilson's score interval (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1)."""
    p, z2 = successes / n, Z * Z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for the last digit.
    return 0.0 if successes == 0 else center - half, 1.0 if successes == n else center + half


def f1(true_positives: int, wrong: int) -> Interval:
    """Of F1 = 2J / (1 + J), from Wilson's interval of the Jaccard index J = TP / (TP + FP + FN)."""
    low, high = proportion(true_positives, true_positives + wrong)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def difference(a: Interval, b: Interval, at: tuple[float, float]) -> Interval:
    """Of ``at[0] - at[1]``, independent estimates with these intervals (Newcombe 1998, method 10; MOVER of Zou and Donner 2008)."""
    gap = at[0] - at[1]
    below = math.hypot(at[0] - a[0], b[1] - at[1])
    above = math.hypot(a[1] - at[0], at[1] - b[0])
    return gap - below, gap + above


def mean_of_two(a: Interval, b: Interval, at: tuple[float, float]) -> Interval:
    """Of ``(at[0] + at[1]) / 2``, by the same method."""
    low, high = difference(a, (-b[1], -b[0]), (at[0], -at[1]))
    return low / 2, high / 2


def mean(values: Floats) -> Interval | None:
    """Of the mean of independent values, by Student's t; ``None`` below two values, or if it overflows."""
    n = values.size
    if n < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        center, spread = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * spread
    return (center - half, center + half) if math.isfinite(half) else None


def roc_auc(auc: float, of_positives: Floats, of_negatives: Floats) -> Interval | None:
    """Of an AUC from its placement values (DeLong, DeLong and Clarke-Pearson 1988), on the logit scale so that it stays inside [0, 1].

    Args:
        auc: the area.
        of_positives: ``(positives,)`` for each, the share of negatives that score below it.
        of_negatives: ``(negatives,)`` for each, the share of positives that score above it.

    Returns:
        ``None`` where the variance cannot be known: below two rows of a class, or an AUC of 0 or 1.
    """
    if min(of_positives.size, of_negatives.size) < 2 or not 0 < auc < 1:
        return None
    variance = float(
        of_positives.var(ddof=1) / of_positives.size + of_negatives.var(ddof=1) / of_negatives.size
    )
    half = Z * math.sqrt(variance) / (auc * (1 - auc))
    at = float(special.logit(auc))
    return float(special.expit(at - half)), float(special.expit(at + half))
