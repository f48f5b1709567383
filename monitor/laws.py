"""What PSI and KS do on independent events when nothing is wrong, for windows of any size: exact moments, and a random walk between barriers.

The reference is at hand, so a window's law is the *predictive* one: the true shares are Dirichlet around the reference's counts,
and the window's counts Dirichlet-multinomial. For bins that were cut at the reference's own quantiles that is no assumption
but the law of spacings (Wilks 1962, section 8.7). It holds the uncertainty of the reference, whatever its size.

Both laws come as small tables over ``NODES``, made once per reference and interpolated in log n. Pure and deterministic: no simulation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from monitor.distances import JEFFREYS

Floats = npt.NDArray[np.float64]

NODES: Final = np.array([20, 50, 125, 320, 800, 2_000, 5_000, 12_500, 31_250, 78_125], dtype=float)
# Levels at which the KS law is tabled, and Kolmogorov's quantiles there.
KS_LEVELS: Final = np.array([0.5, 0.05, 0.005, 1e-4, 1e-6, 1e-9])
KS_QUANTILES: Final = np.array([special.kolmogi(p) for p in KS_LEVELS])

_PLENTY: Final = (
    100.0  # expected events a group: from here on chi-square is within 1 % of the moments
)
_LONGEST: Final = 1 << 13  # of a transform: windows of up to about 60,000 events
_REACH: Final = 9.0  # standard deviations of a count that are summed over
_COARSE: Final = 128  # places of the edges in the random walk
_FINE: Final = (
    1_024  # the same where there are few: 0.4 in place of 51/128 is a tenth in probability
)
_FEW_EDGES: Final = 24
_WIDE: Final = 0.09  # largest t (1 - t) of a field whose edges need not be exactly where they are
_QUADRATURE: Final = (
    64  # places between 0 and a barrier: 3 to the standard deviation of the shortest step
)
_BARRIERS: Final = np.arange(0.2, 3.0, 0.25)  # in units of Kolmogorov's statistic
_EDGES: Final = 8  # edges whose exact binomial tails are summed
_SMOOTH_FROM: Final = 2_000.0  # n t (1 - t) from which binomial tails are normal ones
_CAUTION: Final = 0.25  # of a count: where a level falls between two steps, rather the rarer one
_SMALLEST: Final = 1e-300


def psi_moments(counts: Floats, weights: Floats) -> Floats:
    """``(len(NODES), 3)`` mean, variance and third cumulant of PSI / gap over those of chi-square(groups - 1).

    Exact for Dirichlet-multinomial windows: the moments of a sum over independent negative binomials, given their total, are
    one coefficient of a product of power series, taken by FFT. A gamma with these three moments (Pearson III) has realised levels
    within 0.85 to 1.3 of 0.05, 0.01 and 0.001 from 2.5 expected events a group, where chi-square is off by any factor.
    At 1e-5 and fewer than 10 expected a group it is off by up to 7: the tail is then one event, a group that stays empty.

    Args:
        counts: ``(groups,)`` the reference's events, all positive.
        weights: ``(groups,)`` Dirichlet weights of the true shares: the counts, and what is known beforehand.
    """
    table = np.ones((len(NODES), 3))
    if len(counts) < 2:
        return table
    m, least = float(counts.sum()), float(counts.min())
    for i, n in enumerate(NODES):
        if i and n * least / m > _PLENTY and least > _PLENTY:
            table[i] = 1 + (table[i - 1] - 1) * (1 / n + 1 / m) / (1 / NODES[i - 1] + 1 / m)
            continue
        found = _conditional_moments(counts, weights, int(n))
        table[i] = table[i - 1] if found is None else found
    return table


def _conditional_moments(counts: Floats, weights: Floats, n: int) -> Floats | None:
    groups, m, total = len(counts), float(counts.sum()), float(weights.sum())
    spread = np.sqrt(n * (1 + n / total))
    length = 1 << int(np.ceil(np.log2(min(2 * _REACH * spread + 64, 2 * n + 2))))
    if length > _LONGEST:
        return None
    mean = weights * n / total
    half = _REACH * np.sqrt(mean * (1 + n / total)) + 30
    first = np.maximum(0, np.floor(mean - half)).astype(np.int64)
    width = min(length, int((mean + half - first).max()) + 1)
    k = first[:, None] + np.arange(width)
    a = weights[:, None]
    log_weight = (
        special.gammaln(k + a)
        - special.gammaln(k + 1.0)
        - special.gammaln(a)
        + a * np.log(total / (total + n))
        + k * np.log(n / (total + n))
    )
    weight = np.where(k <= n, np.exp(log_weight), 0.0)
    p = ((counts + JEFFREYS) / (m + groups * JEFFREYS))[:, None]
    q = (np.minimum(k, n) + JEFFREYS) / (n + groups * JEFFREYS)
    term = (q - p) * np.log(q / p) / (1 / n + 1 / m) - (groups - 1) / groups
    series = fft.rfft(weight * term ** np.arange(4)[:, None, None], length)
    while series.shape[1] > 1:
        odd = series[:, -1:] if series.shape[1] % 2 else series[:, :0]
        series = np.concatenate((_multiply(series[:, :-1:2], series[:, 1::2]), odd), axis=1)
    at = (n - int(first.sum())) % length
    whole, *raw = fft.irfft(series[:, 0], length)[:, at]
    e1, e2, e3 = (r / whole for r in raw)
    dof = groups - 1
    return np.array(
        [
            (e1 + dof) / dof,
            (e2 - e1**2) / (2 * dof),
            (e3 - 3 * e1 * e2 + 2 * e1**3) / (8 * dof),
        ]
    )


def _multiply(
    a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128]
) -> npt.NDArray[np.complex128]:
    """Products of moment series: the binomial theorem for sums of two independent variables."""
    return np.stack(
        (
            a[0] * b[0],
            a[1] * b[0] + a[0] * b[1],
            a[2] * b[0] + 2 * a[1] * b[1] + a[0] * b[2],
            a[3] * b[0] + 3 * (a[2] * b[1] + a[1] * b[2]) + a[0] * b[3],
        )
    )


def ks_quantiles(weights: Floats) -> Floats:
    """``(len(NODES), len(KS_LEVELS))`` quantiles of KS / sqrt(gap) over Kolmogorov's, at ``KS_LEVELS``.

    Kolmogorov's law is for values that are all different. On bins the distance is the largest of a few: that of a Brownian
    bridge seen at the reference's cumulated shares, a Markov chain between two barriers (Anderson 1960), summed by quadrature.
    Small windows are binomial, not normal, and skewed where one value has nearly all the mass (rain): the chance is
    multiplied by the ratio of the summed binomial tails at the edges to the normal ones (Aldous 1989: clumps of crossings stay as they are).

    Counts are whole, the law is not: its quantiles lie half a count inside the steps, so that levels are right on average
    over the phase of the steps. At n = 50 one step is up to a factor of 3 in probability, at 1,000 up to 1.3.

    Args:
        weights: ``(bins,)`` Dirichlet weights of the true shares: the reference's events.
    """
    shares = np.cumsum(weights)[:-1] / weights.sum()
    shares = np.unique(shares[(shares > 0) & (shares < 1)])
    if len(shares) == 0:
        return np.ones((len(NODES), len(KS_LEVELS)))
    lattice = _COARSE if len(shares) > _FEW_EDGES else _FINE
    cells, first = np.unique(
        np.clip(np.rint(shares * lattice), 1, lattice - 1).astype(np.int64), return_index=True
    )
    shares, log_m = shares[first], float(np.log(weights.sum()))
    if lattice == _COARSE and (shares * (1 - shares)).max() > _WIDE:
        # Many edges, and none that matters lies far out: fields of like shape share one table.
        shares, log_m = cells / lattice, round(8 * log_m) / 8
    return _ks_table(tuple(cells.tolist()), lattice, tuple(shares.tolist()), log_m)


def ks_mean_square(quantiles: Floats) -> Floats:
    """``(nodes,)`` mean of KS^2 / gap, from ``ks_quantiles``."""
    ratio = np.array([np.interp(_KOLMOGOROV, KS_QUANTILES, row) for row in quantiles])
    return np.asarray(np.mean((ratio * _KOLMOGOROV) ** 2, axis=1))


_KOLMOGOROV: Final = special.kolmogi((np.arange(256) + 0.5) / 256)  # evenly likely values


@lru_cache(maxsize=4_096)
def _ks_table(
    cells: tuple[int, ...], lattice: int, shares: tuple[float, ...], log_m: float
) -> Floats:
    t, m = np.array(shares), float(np.exp(log_m))
    deviation = np.sqrt(t * (1 - t))
    x = np.linspace(0.6, 16.0, 78) * deviation.max()  # of KS / sqrt(gap)
    log_p = _log_kolmogorov(_bridge(cells, lattice, x / deviation.max()))
    edges = t if len(t) <= _EDGES else t[np.unique(np.linspace(0, len(t) - 1, _EDGES).astype(int))]
    if deviation.max() ** 2 <= _WIDE:
        edges = t[np.argsort(-deviation, kind="stable")[:_EDGES]]
    small = NODES * deviation.max() ** 2 < _SMOOTH_FROM
    exact = np.tile(log_p, (len(NODES), 1))
    if small.any():
        exact[small] += _tail_ratio(edges, NODES[small], m, x)
    # Strictly falling, so that it has an inverse.
    exact = np.minimum.accumulate(np.minimum(exact, 0.0), axis=1) - 1e-9 * np.arange(len(x))
    wanted = -np.log(KS_LEVELS)
    table = np.array([np.interp(wanted, -row, x) / KS_QUANTILES for row in exact])
    table.setflags(write=False)
    return table


def _log_kolmogorov(x: Floats) -> Floats:
    """Log of Kolmogorov's survival function, without underflow."""
    series = np.log(2.0) - 2 * x**2
    return np.where(x > 2, series, np.log(special.kolmogorov(np.minimum(x, 2.0))))


def _tail_ratio(t: Floats, n: Floats, m: float, x: Floats) -> Floats:
    """``(windows, distances)`` log of the summed tails of ``b / n - t`` beyond ``x sqrt(gap)``, beta-binomial over normal."""
    t = np.concatenate((t, 1 - t))[:, None]
    a, b = t * m, (1 - t) * m
    size = n[:, None, None]
    k = size * (t + x * np.sqrt(1 / size + 1 / m)) - _CAUTION
    inside = np.minimum(k, size)
    log_pmf = (
        special.betaln(inside + a, size - inside + b)
        - special.betaln(inside + 1, size - inside + 1)
        - special.betaln(a, b)
        - np.log(size + 1)
    )
    pmf = np.where(k < size + 0.5, np.maximum(np.exp(log_pmf), _SMALLEST), _SMALLEST)
    # Between two distances the chance falls about exponentially: its integral is their logarithmic mean.
    fall = np.log(pmf[..., :-1] / pmf[..., 1:])
    mean = np.where(
        fall > 1e-6, (pmf[..., :-1] - pmf[..., 1:]) / np.maximum(fall, 1e-6), pmf[..., 1:]
    )
    parts = np.diff(k, axis=-1) * mean
    tails = np.cumsum(parts[..., ::-1], axis=-1)[..., ::-1].sum(axis=1)
    normal = special.ndtr(-x / np.sqrt(t * (1 - t))).sum(axis=0)
    ratio = np.log(np.maximum(tails, _SMALLEST)) - np.log(np.maximum(normal[:-1], _SMALLEST))
    return np.concatenate((ratio, ratio[:, -1:]), axis=1)


def _bridge(cells: tuple[int, ...], lattice: int, height: Floats) -> Floats:
    """Kolmogorov's quantile of the chance that a Brownian bridge seen at ``cells`` passes +-``height`` of its largest deviations.

    The bridge is a Brownian motion that is back at 0 at the end, so each step between the barriers depends on its length alone.
    """
    places = np.array(cells) / lattice
    widest = float(np.sqrt((places * (1 - places)).max()))
    octave = round(4 * np.log2(2 * widest)) / 4  # in quarters, so that kernels are shared
    barriers = _BARRIERS * 2.0**octave
    v, weight = _between(octave)
    steps = np.diff((0, *cells, lattice)) / lattice
    density = 2 * _normal(v, steps[0])
    for step in steps[1:-1]:
        density = (_kernel(float(step), octave) @ density[..., None])[..., 0]
    stays = np.sum(density * weight * _normal(v, steps[-1]), axis=1) * np.sqrt(2 * np.pi)
    quantiles = special.kolmogi(np.clip(1 - stays, 1e-15, 1.0))
    at = height * widest
    inside = np.interp(at, barriers, quantiles)
    beyond = np.where(at < barriers[0], quantiles[0] / barriers[0], quantiles[-1] / barriers[-1])
    return np.asarray(np.where((at < barriers[0]) | (at > barriers[-1]), at * beyond, inside))


@lru_cache(maxsize=16)
def _between(octave: float) -> tuple[Floats, Floats]:
    """``(barriers, nodes)`` places between 0 and each barrier, and their weights (Gauss-Legendre)."""
    u, weight = np.polynomial.legendre.leggauss(_QUADRATURE)
    barriers = (_BARRIERS * 2.0**octave)[:, None]
    return barriers * (u + 1) / 2, barriers * weight / 2


def _normal(distance: Floats, variance: float) -> Floats:
    return np.asarray(np.exp(-(distance**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance))


@lru_cache(maxsize=64)
def _kernel(step: float, octave: float) -> Floats:
    """``(barriers, nodes, nodes)`` weight with which the density at one place after a step comes from each before it; folded at 0."""
    v, weight = _between(octave)
    here, there = v[:, :, None], v[:, None, :]
    kernel = _normal(here - there, step) + _normal(here + there, step)
    return np.asarray(kernel * weight[:, None, :])
