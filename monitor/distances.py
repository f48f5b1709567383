"""Distances between two histograms over the same frozen bins: pure functions of two count vectors.

Every function takes ``(..., bins)`` counts, reference first, and returns one number per leading index (a single
``np.float64`` for two vectors). Leading axes broadcast, so one reference meets many windows in one call. O(bins) each.

The answer is always a finite number. Two histograms without a difference to show are at distance 0: equal shares, a
single bin, and an *empty side*. So 0 for an empty window means "nothing seen", not "fine": judge ``n`` first.

What no function here can see: anything inside one bin, how far values lie beyond the reference's range, and whatever stands
beside the bins (missing, NaN, infinite and wrongly typed values have rates of their own).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr

JEFFREYS: Final = (
    0.5  # the additive prior per group of Jeffreys (1946): a compromise that needs no n
)

Counts = npt.NDArray[np.integer] | npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Starts = npt.NDArray[np.intp]


class Interval(NamedTuple):
    """Where a statistic of the raw values lies, given only their bins: ``low <= value <= high``."""

    low: Floats
    high: Floats


def group_equal_mass(reference: Counts, groups: int = 10) -> Starts:
    """First bins of at most ``groups`` runs of adjacent bins with about the same reference mass.

    Each boundary lies where the reference's cumulated count is nearest to ``j / groups``. A bin is never split, so heavy ties
    give fewer groups, and every group holds reference mass. An empty reference gives one group.

    Args:
        reference: ``(bins,)`` counts.
        groups: wanted number of groups, at least 1.

    Returns:
        Strictly increasing indices that start with 0, for ``np.add.reduceat``.
    """
    if groups < 1:
        raise ValueError(f"groups must be at least 1, not {groups}")
    if np.ndim(reference) != 1:
        raise ValueError("groups are cut from one reference: a vector of counts")
    before = np.concatenate(([0], np.cumsum(reference)))  # mass before each bin, then all of it
    wanted = np.arange(1, groups) / groups * before[-1]
    right = np.clip(np.searchsorted(before, wanted), 1, len(before) - 1)
    nearest = np.where(wanted - before[right - 1] <= before[right] - wanted, right - 1, right)
    # Boundaries with equal mass before them would enclose an empty group, and those at either end as well.
    masses, first = np.unique(before[nearest], return_index=True)
    inner = nearest[first][(masses > 0) & (masses < before[-1])]
    return np.concatenate(([0], inner)).astype(np.intp)


def psi(
    reference: Counts,
    current: Counts,
    *,
    starts: Starts | None = None,
    smoothing: float = JEFFREYS,
) -> Floats:
    """Population stability index ``sum((q - p) ln(q / p))`` over groups of bins, in nats.

    Range ``[0, inf)``, symmetric: the sum of both Kullback-Leibler divergences. Source: Lewis, "An introduction to
    credit scoring" (1992). Without drift, on independent events, it is about ``(1/n + 1/m) chi2(groups - 1)`` (Yurdakul,
    "Statistical properties of population stability index", 2018): it shrinks with n, so no fixed limit is right.

    Blind to the order of the groups. An empty group would make it infinite, so each group gets ``smoothing`` extra
    counts on both sides, ``p_i = (count_i + smoothing) / (n + groups * smoothing)``. That is a constant in events, whose
    weight vanishes as n grows; a constant share (the usual 1e-4) would alone decide what a new category scores.

    Args:
        reference: ``(..., bins)`` counts.
        current: ``(..., bins)`` counts.
        starts: first bin of each group, from ``group_equal_mass``; ``None`` makes each bin a group.
        smoothing: counts added to each group, > 0.
    """
    return _sum(psi_parts(reference, current, starts=starts, smoothing=smoothing))


def psi_parts(
    reference: Counts,
    current: Counts,
    *,
    starts: Starts | None = None,
    smoothing: float = JEFFREYS,
) -> Floats:
    """``(..., groups)`` what each group adds to ``psi`` of the same arguments; no part is negative."""
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, not {smoothing}: ln(0) is no number")
    p, q = _pair(reference, current)
    seen = (_sum(p) > 0) & (_sum(q) > 0)
    if starts is not None:
        p, q = (np.add.reduceat(counts, starts, axis=-1) for counts in (p, q))
    p, q = (_shares(counts + smoothing) for counts in (p, q))
    parts: Floats = (q - p) * np.log(q / p) * seen[..., np.newaxis]
    return parts


def ks(reference: Counts, current: Counts, *, points: bool = False) -> Interval:
    """Kolmogorov-Smirnov ``D = sup |F - G|`` of the raw values: the exact interval that the bins leave.

    At the edges of half-open bins both distribution functions are known, so ``low`` is the largest gap there. Inside a
    bin each rises from its value at one edge to its value at the next in any way it likes, so ``high`` is the largest of
    ``F_i - G_(i-1)`` and ``G_i - F_(i-1)``. Some values attain each bound: no narrower interval is right. A single bin
    leaves ``[0, 1]``; quantile bins leave about the share of one bin.

    Range ``[0, 1]``. Source: Smirnov (1939); ``scipy.stats.ks_2samp`` on the values. Least sensitive in the tails, and
    meaningless for categories, whose order is arbitrary.

    Args:
        reference: ``(..., bins)`` counts, bins in order of value.
        current: ``(..., bins)`` counts.
        points: all values of a bin are equal (a discrete feature with nothing off its grid): then ``low = D = high``.
    """
    p, q = _both_seen(*_pair(reference, current))
    f, g = (_shares(np.cumsum(counts, axis=-1), counts) for counts in (p, q))
    low = np.max(np.abs(f - g), axis=-1)
    if points:
        return Interval(low, low)
    f_before, g_before = (
        np.concatenate((np.zeros_like(c[..., :1]), c[..., :-1]), axis=-1) for c in (f, g)
    )
    return Interval(low, np.max(np.maximum(f - g_before, g - f_before), axis=-1))


def jensen_shannon(reference: Counts, current: Counts) -> Floats:
    """Jensen-Shannon distance ``sqrt((KL(p | m) + KL(q | m)) / 2)``, ``m = (p + q) / 2``, in base 2.

    Range ``[0, 1]``; a metric; 1 means disjoint. Sources: Lin (1991), Endres and Schindelin (2003);
    ``scipy.spatial.distance.jensenshannon(p, q, 2)``. Defined with empty bins, so it needs no smoothing. Blind to the
    order of the bins. Without drift it is about ``sqrt(chi2(bins - 1) (1/n + 1/m) / (8 ln 2))``: small samples look far.
    """
    p, q = _share_pair(reference, current)
    middle = (p + q) / 2
    bits: Floats = _sum(rel_entr(p, middle) + rel_entr(q, middle)) / (2 * np.log(2))
    return np.sqrt(
        np.clip(bits, 0.0, 1.0)
    )  # rounding leaves -1e-17 for shares that are nearly equal


def hellinger(reference: Counts, current: Counts) -> Floats:
    """Hellinger distance ``sqrt(sum((sqrt(p) - sqrt(q))^2) / 2)``.

    Range ``[0, 1]``; a metric; 1 means disjoint. Source: Hellinger (1909). Weighs rare bins more than total variation does.
    Blind to the order of the bins.
    """
    p, q = _share_pair(reference, current)
    return np.sqrt(np.minimum(_sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2, 1.0))


def total_variation(reference: Counts, current: Counts) -> Floats:
    """Total variation ``sum(|p - q|) / 2``: the share of events that would have to change their bin.

    Range ``[0, 1]``; a metric; 1 means disjoint. Blind to the order of the bins, and slow to see a small new bin.
    """
    p, q = _share_pair(reference, current)
    return np.minimum(_sum(np.abs(p - q)) / 2, 1.0)


def chi_square(reference: Counts, current: Counts) -> Floats:
    """Pearson's chi-square of two samples, ``sum((sqrt(n/m) a_i - sqrt(m/n) b_i)^2 / (a_i + b_i))``.

    ``a_i`` are the reference's counts, ``m`` in all, and ``b_i`` the current ones, ``n`` in all. Range
    ``[0, m + n]``; unlike the distances it grows with n. Without drift about chi2 with ``degrees_of_freedom``, from five
    expected events a bin. Source: Pearson (1911); ``scipy.stats.chi2_contingency(..., correction=False)`` without the
    bins that are empty on both sides. Blind to the order of the bins.
    """
    a, b = _both_seen(*_pair(reference, current))
    m, n = _sum(a), _sum(b)
    # The formula times sqrt(m n): equal shares then cancel without a trace.
    gap, pooled = a * n[..., None] - b * m[..., None], a + b
    return _sum(gap**2 / np.where(pooled > 0, pooled, 1)) / np.maximum(m * n, 1)


def degrees_of_freedom(reference: Counts, current: Counts) -> Floats:
    """Bins that are not empty on both sides, less one; 0 where ``chi_square`` has nothing to compare."""
    a, b = _both_seen(*_pair(reference, current))
    return np.maximum(_sum((a + b > 0).astype(np.float64)) - 1.0, 0.0)


def bin_positions(edges: Floats, low: float, high: float, *, points: bool = False) -> Floats:
    """Where ``wasserstein`` puts the mass of each numeric bin, ``(bins,)`` ascending.

    The middle of a bin; the outermost bins end at the reference's ``low`` and ``high``. With ``points`` (a discrete
    feature, cut at its values) the values themselves.
    """
    if points:
        return np.concatenate(([low], edges))
    ends = np.concatenate(([low], edges, [high]))
    return ends[:-1] / 2 + ends[1:] / 2  # halved first: a sum may overflow


def wasserstein(reference: Counts, current: Counts, positions: Floats, *, scale: float) -> Floats:
    """Wasserstein-1 distance ``integral |F - G| dx / scale``: how far the mass moved, in units of the reference's scale.

    Range ``[0, (positions[-1] - positions[0]) / scale]``; a metric. Source: Kantorovich (1942), Vallender (1974);
    ``scipy.stats.wasserstein_distance`` of point masses at ``positions``. The only one here that knows *how far*, inside the
    reference's range; mass beyond it counts as at its end, so see the moments and the out-of-range rates for the rest.
    Off the raw values' distance by at most the mean half width of a bin on either side. Meaningless for categories.

    Args:
        reference: ``(..., bins)`` counts.
        current: ``(..., bins)`` counts.
        positions: ``(bins,)`` from ``bin_positions``.
        scale: unit of the answer, finite and > 0.
    """
    p, q = _both_seen(*_pair(reference, current))
    if positions.shape != p.shape[-1:]:
        raise ValueError(f"{p.shape[-1]} bins need as many positions, not {positions.shape}")
    f, g = (_shares(np.cumsum(counts, axis=-1), counts)[..., :-1] for counts in (p, q))
    with np.errstate(over="ignore"):
        steps = np.minimum(np.diff(positions / scale), _LARGEST)
        return np.minimum(_sum(np.abs(f - g) * steps), _LARGEST)


_LARGEST: Final = float(np.finfo(np.float64).max)


def _pair(reference: Counts, current: Counts) -> tuple[Floats, Floats]:
    """Both as float64, exact below 2**53 events, and checked."""
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if p.ndim == 0 or q.ndim == 0 or p.shape[-1] != q.shape[-1] or p.shape[-1] == 0:
        raise ValueError(
            f"counts of the same bins are needed, not of shapes {p.shape} and {q.shape}"
        )
    if not (np.all(p >= 0) and np.all(q >= 0)):
        raise ValueError("counts must not be negative")
    p, q = np.broadcast_arrays(p, q)
    return p, q


def _both_seen(p: Floats, q: Floats) -> tuple[Floats, Floats]:
    """Both, emptied where either is empty: then every distance is 0."""
    seen = (p.sum(axis=-1, keepdims=True) > 0) & (q.sum(axis=-1, keepdims=True) > 0)
    return p * seen, q * seen


def _shares(parts: Floats, counts: Floats | None = None) -> Floats:
    """``parts`` over the total of ``counts`` (default: their own); 0 where that is 0."""
    total = np.sum(parts if counts is None else counts, axis=-1, keepdims=True)
    return parts / np.where(total > 0, total, 1.0)


def _sum(terms: Floats) -> Floats:
    total: Floats = terms.sum(axis=-1)
    return total


def _share_pair(reference: Counts, current: Counts) -> tuple[Floats, Floats]:
    p, q = _both_seen(*_pair(reference, current))
    return _shares(p), _shares(q)
