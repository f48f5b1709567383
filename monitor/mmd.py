"""Maximum mean discrepancy (MMD): whether vectors of many numbers come from the same distribution as the reference's.

It sees what no histogram of one feature sees: a correlation that breaks, a cluster that is new. Two sums of ``monitor.fourier`` are
compared, so the cost does not depend on how many vectors they hold, and windows merge.

The null: without drift ``MMD^2 / (1/n + 1/m)`` is a sum of independent chi-squares, weighted by the spectrum of the embedding's covariance (Gretton et al.
2012, theorem 12; here the space has ``2 * D`` dimensions). Its tail is a saddlepoint approximation, which keeps its relative accuracy far out, where an
alarm budget lives. Dependence widens and bends the spectrum: both are learnt from windows of the reference, in the order of time.

Blind spots: a change far smaller than the scatter, in few of many components, which statistics per feature find earlier; and a season longer than
the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import optimize, special

from monitor.binning import Floats, Ints
from monitor.fourier import FourierSum, embed
from monitor.profile import Layout, Profile
from monitor.wire import Verdict

MIN_VECTORS: Final = 50  # below it the embedding's mean is not yet normal
_FEW: Final = 4  # fewer windows than this say nothing about scatter
_MANY: Final = 64  # so many know the mean of a chi-square of 10 to 6 %
_SURE: Final = 2.5  # standard errors: of clean references 1 in 100 is widened for nothing
_DOUBT: Final = 1.0  # the same for a longer window's answer, once dependence is known
_MARGIN: Final = (
    1.0  # standard errors that a dependent spectrum is widened by: few windows know it badly
)
_SMALLEST_P: Final = 1e-300
_OWN: Final = 16  # weights kept one by one; the smaller ones in as many groups
_HARD: Final = 50.0  # no spectrum bends further: one direction is all that is left


def mmd2_biased(a: FourierSum, b: FourierSum) -> float:
    """Squared MMD of the two samples: never negative, and above 0 between any two (Gretton et al. 2012, eq. 5). NaN if one is empty."""
    if min(a.n, b.n) == 0:
        return float("nan")
    return float(np.sum((a.mean - b.mean) ** 2))


def mmd2(a: FourierSum, b: FourierSum) -> float:
    """Squared MMD of the two distributions, unbiased: 0 on average if they are the same, so it may be negative.

    Equals the sum over pairs of different vectors (Gretton et al. 2012, eq. 3), as a vector's kernel with itself is 1. At most 2, whatever
    the unit and the number of components. NaN with fewer than two vectors in one.
    """
    if min(a.n, b.n) < 2:
        return float("nan")
    return mmd2_biased(a, b) - scatter(a) / a.n - scatter(b) / b.n


def scatter(s: FourierSum) -> float:
    """Trace of the covariance of single embeddings, unbiased: between 0 (all vectors equal) and 1. Needs two vectors."""
    return max(0.0, 1.0 - float(np.sum(s.mean**2))) * s.n / (s.n - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The law of a sum of independent chi-squares: ``(k,)`` weights, the largest first, and how many degrees of freedom each has."""

    weights: Floats
    dof: Floats

    @classmethod
    def of(cls, embeddings: Floats) -> Spectrum:
        """Eigenvalues of the covariance of ``(n, 2 * D)`` embeddings: the largest one by one, the others in groups with their mean.

        Eigenvalues of a sample lie too far apart, by ``trace^2 / n`` in the sum of their squares; they are drawn together by as much.
        """
        n = len(embeddings)
        if n < 2:
            return cls(np.zeros(1), np.ones(1))
        values = np.linalg.eigvalsh(np.cov(embeddings.T))[::-1].clip(min=0.0)
        mean, excess = values.mean(), float(np.sum((values - values.mean()) ** 2))
        if excess > 0:
            values = mean + (values - mean) * np.sqrt(max(0.0, 1 - values.sum() ** 2 / n / excess))
        own, rest = values[:_OWN], np.array_split(values[_OWN:], _OWN)
        groups = [group for group in rest if group.sum() > 0]
        weights = np.concatenate((own, [group.mean() for group in groups]))
        return cls(weights, np.array([1.0] * len(own) + [float(len(group)) for group in groups]))

    @property
    def trace(self) -> float:
        """Mean."""
        return float(self.weights @ self.dof)

    @property
    def degrees(self) -> float:
        """Of the one chi-square with the same mean and variance: how many directions share the scatter."""
        squares = float(self.weights**2 @ self.dof)
        return self.trace**2 / squares if squares > 0 else 1.0

    def bent(self, trace: float, degrees: float) -> Spectrum:
        """A spectrum of that trace and at most so many degrees: the weights to a common power of at least 1."""
        if self.trace == 0.0:
            return self
        shares = self.weights / self.weights[0]

        def excess(power: float) -> float:
            return Spectrum(shares**power, self.dof).degrees - degrees

        power = 1.0
        if excess(1.0) > 0:
            power = optimize.brentq(excess, 1.0, _HARD) if excess(_HARD) < 0 else _HARD
        weights = shares**power
        return Spectrum(weights * (trace / float(weights @ self.dof)), self.dof)

    def tail(self, value: float) -> float:
        """Probability of a sum above ``value``: Lugannani and Rice's formula (Kuonen 1999). Relative error a few percent, anywhere."""
        if value <= 0 or self.trace == 0:
            return float(value <= 0)
        # The largest weight alone bounds the tilt on both sides.
        top, dof = float(self.weights.max()), float(self.dof.sum())
        low, high = -2.0 - np.log1p(dof * top / value), 1.0 + np.log1p(value / top)
        tilt = optimize.brentq(lambda s: self._mean_at(s) - value, low, high)
        return float(np.exp(self._log_tail_at(tilt)))

    def quantile(self, alpha: float) -> float:
        """The value that is passed with probability ``alpha``, to one part in 1e9; of a smaller one than 1e-300 with that."""
        if self.trace == 0:
            return 0.0
        log_alpha = float(np.log(max(alpha, _SMALLEST_P)))

        def excess(s: float) -> float:
            return self._log_tail_at(s) - log_alpha

        low, high = -12.0, 1.0
        if excess(low) < 0:
            return 0.0
        while excess(high) > 0:  # ends: the tail is about exp(-exp(high) / 2)
            high += 1.0
        return self._mean_at(float(optimize.brentq(excess, low, high, xtol=1e-9)))

    def _tilt(self, s: float) -> float:
        """Tilts from minus infinity to the largest possible, as ``s`` runs over all numbers; 0 is none."""
        return float(-np.expm1(-s) / (2 * self.weights.max()))

    def _mean_at(self, s: float) -> float:
        """Mean under a tilt: derivative of the cumulant generating function."""
        return float((self.weights / (1 - 2 * self.weights * self._tilt(s))) @ self.dof)

    def _log_tail_at(self, s: float) -> float:
        """Logarithm of the probability of a sum above the mean under a tilt."""
        t = self._tilt(s)
        left = 1 - 2 * self.weights * t
        curvature = 2 * float((self.weights / left) ** 2 @ self.dof)
        v = t * np.sqrt(curvature)
        if abs(v) < 1e-4:  # the formula is 0/0 at the mean; this is its limit
            skew = 8 * float((self.weights / left) ** 3 @ self.dof) / curvature**1.5
            return float(np.log(0.5 - skew / (6 * np.sqrt(2 * np.pi))))
        cumulant = -0.5 * float(np.log(left) @ self.dof)
        w = np.sign(t) * np.sqrt(2 * (t * self._mean_at(s) - cumulant))
        return float(special.log_ndtr(-(w + np.log(v / w) / w)))


@dataclass(frozen=True, slots=True, eq=False)
class MmdNull:
    """How the unbiased squared MMD between a window and the reference scatters when nothing is wrong.

    Attributes:
        m: vectors of the reference.
        trace: of the covariance of single embeddings: what ``mmd2`` subtracts.
        spectrum: of the covariance of means, times their number: with dependence its trace is larger.
    """

    m: int
    trace: float
    spectrum: Spectrum

    @classmethod
    def learn(cls, counts: Ints, totals: Ints, spectrum: Spectrum, length: int) -> MmdNull:
        """From the reference's blocks of time, in order.

        Windows of ``length`` blocks side by side show a design effect: the scatter of their means over what independence allows, and over how many
        directions it is spread. A quarter of the reference is the longest window that can be judged so; longer ones borrow from it.

        Args:
            counts: ``(blocks,)`` vectors.
            totals: ``(blocks, 2 * D)`` their sums.
            spectrum: of single vectors, from a sample of the reference.
            length: blocks of a window.
        """
        whole = FourierSum(int(counts.sum()), totals.sum(axis=0))
        if whole.n < 2:
            return cls(whole.n, 0.0, Spectrum(np.zeros(1), np.ones(1)))
        # Of equal vectors too, one in m may be another: as many have not been seen.
        trace = max(scatter(whole), 1.0 / whole.n)
        single = spectrum.bent(trace, spectrum.degrees)
        if single.trace == 0:
            single = Spectrum(np.array([trace]), np.ones(1))
        return cls(whole.n, trace, _dependent(single, counts, totals, length))

    def p_value(self, n: int, value: float) -> float:
        """Probability that ``mmd2`` of a window of ``n`` vectors is above ``value``."""
        return self.spectrum.tail(value / self._gap(n) + self.trace)

    def limit(self, n: int, alpha: float) -> float:
        """The ``mmd2`` that a window of ``n`` vectors passes with probability ``alpha``."""
        return (self.spectrum.quantile(alpha) - self.trace) * self._gap(n)

    def to_dict(self) -> dict[str, Any]:
        """A JSON form that round-trips exactly."""
        weights, dof = self.spectrum.weights.tolist(), self.spectrum.dof.tolist()
        return {"m": self.m, "trace": self.trace, "weights": weights, "dof": dof}

    @staticmethod
    def from_dict(form: dict[str, Any]) -> MmdNull:
        """The null whose ``to_dict`` is ``form``."""
        weights, dof = (np.array(form[key], dtype=np.float64) for key in ("weights", "dof"))
        return MmdNull(form["m"], form["trace"], Spectrum(weights, dof))

    def _gap(self, n: int) -> float:
        return 1.0 / max(n, 1) + 1.0 / max(self.m, 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """A vector of a window against the reference's. ``p_value`` is NaN, and so is ``value``, where there are too few of either to say."""

    name: str
    n: int
    value: float
    p_value: float
    null: MmdNull

    def verdict(self, alpha: float) -> Verdict:
        """What the window is told at level ``alpha`` of this single test."""
        if np.isnan(self.p_value):
            return Verdict("data_drift", self.name, "mmd", "no_data", None, None, None, self.n)
        return Verdict(
            kind="data_drift",
            feature=self.name,
            statistic="mmd",
            status="breach" if self.p_value <= alpha else "ok",
            value=self.value,
            limit=self.null.limit(self.n, alpha),
            p_value=max(self.p_value, _SMALLEST_P),
            n=self.n,
        )


def find(nulls: Mapping[str, MmdNull], expected: Profile, profile: Profile) -> list[Finding]:
    """Every vector of a window's profile that has a null, against the reference's; ``nulls`` by name, of the window's size. O(vectors * D)."""
    findings = []
    for f in profile.layout.vectors:
        if f.name not in nulls:
            continue
        null, now = nulls[f.name], f.state(profile.vector)
        if now.n < MIN_VECTORS or null.m < MIN_VECTORS:
            findings.append(Finding(f.name, now.n, float("nan"), float("nan"), null))
            continue
        value = mmd2(now, f.state(expected.vector))
        findings.append(Finding(f.name, now.n, value, null.p_value(now.n, value), null))
    return findings


def calibrate_vectors(
    layout: Layout, blocks: Ints, spectra: Mapping[str, Spectrum], length: int
) -> dict[str, MmdNull]:
    """The null of every vector for windows of ``length`` blocks, from the reference's ``(blocks, layout.size)`` in the order of time."""
    return {
        f.name: MmdNull.learn(blocks[:, f.start], blocks[:, f.sums], spectra[f.name], length)
        for f in layout.vectors
    }


def _dependent(single: Spectrum, counts: Ints, totals: Ints, length: int) -> Spectrum:
    """The spectrum of windows of that length, from windows of at most that length.

    Short windows are many, and know their scatter well; long ones are few, and know all of it. A longer window's answer replaces a shorter's where it is
    larger by more than chance, and independence stands until one is larger by ``_SURE`` standard errors.
    """
    longest = min(length, max(1, len(counts) // _FEW))
    lengths = [longest]
    while lengths[-1] > 1 and len(counts) // lengths[-1] < _MANY:
        lengths.append(lengths[-1] // 2)
    found, margin, doubt = single, 1.0, _SURE
    for size in reversed(lengths):
        windows, trace, degrees = _window_scatter(counts, totals, size)
        if windows < _FEW:
            continue
        wider = single.bent(trace, degrees)
        error = float(np.sqrt(2.0 / (wider.degrees * windows)))
        if trace > found.trace * (1.0 + doubt * error):
            found, margin, doubt = wider, 1.0 + _MARGIN * error, _DOUBT
    return Spectrum(found.weights * margin, found.dof)


def _window_scatter(counts: Ints, totals: Ints, length: int) -> tuple[int, float, float]:
    """How many windows, and trace and degrees of freedom of the covariance of their means, times their number.

    Both from products of pairs of different windows, which few windows do not bias.
    """
    whole = len(counts) // length * length
    n = counts[:whole].reshape(-1, length).sum(axis=1)
    sums = totals[:whole].reshape(len(n), length, -1).sum(axis=1)
    m = int(counts.sum())
    use = (n > 0) & (n < m)
    n, sums = n[use], sums[use]
    k = len(n)
    if k < _FEW:
        return k, 0.0, 1.0
    # A window is a part of the reference: its scatter around it is smaller by 2/m than a new window's.
    gap = 1.0 / n - 1.0 / m
    apart = (embed(n, sums) - embed(counts.sum(), totals.sum(axis=0))) / np.sqrt(gap)[:, None]
    products = apart @ apart.T
    trace = float(np.trace(products)) / k
    squares = (float(np.sum(products**2)) - float(np.sum(np.diag(products) ** 2))) / (k * (k - 1))
    # What the common centre adds to every product of two.
    squares -= (trace / (k - 1)) ** 2
    return k, trace, max(1.0, trace**2 / squares) if squares > 0 else np.inf
