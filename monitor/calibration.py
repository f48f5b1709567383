"""How statistics scatter when nothing is wrong, learnt from the reference in the order of time; and the limits that follow.

Each statistic has an independence law that is exact or nearly so at every window size, reference size and number of bins
(``monitor.laws``). Real traffic is not always independent: a windy day is windy in every event. So the reference is cut into windows of its own, of
all lengths; where they scatter as independence says, its law is the null; where they scatter more, the null is what they did
(``monitor.scatter``). Between the two lies a test of 2.5 standard errors, the largest over all lengths: dependence that it misses widens a
statistic's mean by less than about ``3 / sqrt(groups * windows)``.

Limits and p-values are two sides of one law. Both are predictive: the reference's own luck is in them, so levels hold on average over references,
and nothing is added for safety.

Blind spot: a season longer than the reference is not in it, so it will be called drift. That is what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special

from monitor import laws
from monitor.binning import FLAGS, SPECIALS, WORD_BITS, CategoricalBins, Floats, Ints, NumericBins
from monitor.distances import JEFFREYS, group_equal_mass, ks, psi
from monitor.laws import KS_QUANTILES, NODES
from monitor.profile import Field, Layout
from monitor.rates import (
    LARGEST_CORRELATION,
    intra_window_correlation,
    largest_likely,
    tail_probabilities,
)
from monitor.scatter import FEW, INDEPENDENT, Scatter, learn
from monitor.spec import WindowSpec

Bools = npt.NDArray[np.bool_]

RATES: Final = ("missing", "wrong_type", "non_finite", "off_grid", "unseen", "out_of_range")
QUALITY_RATES: Final = RATES[
    :5
]  # out of range is what nature does; the others are what pipelines do
PSI_GROUPS: Final = 10
_LEAST: Final = 20  # events of a tile: fewer say little about a distribution
_SCALES_FROM: Final = (
    256  # tiles of the finest scale of the test for dependence: more cost time and find little
)
_SURPRISING: Final = 2.5  # standard errors
_KOLMOGOROV_CV: Final = 0.63  # of K^2
_MOST_PRIOR: Final = 100.0  # times the reference: shares that look equal are taken as known
_DIGITS: Final = 4  # of a stored table: a ten-thousandth in a limit is a thousandth in probability
_SMALLEST: Final = 1e-300  # a level of 0 is this one: limits stay finite


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """Scatter of every field's statistics for one window size of one segment.

    Attributes:
        m: events of the reference.
        values: ``(fields,)`` values of the reference that are in bins: what distributions are compared with.
        dof: ``(fields,)`` groups - 1, at least 1.
        psi_moments: ``(fields, nodes, 3)`` see ``laws.psi_moments``.
        ks_quantiles: ``(fields, nodes, levels)`` see ``laws.ks_quantiles``; ``ks_squares`` ``(fields, nodes)`` their mean squares.
        psi_scatter, ks_scatter: dependence of PSI, and of the squared KS statistic.
        mean_deff: ``(fields,)`` design effect of the mean, by two standard errors on the safe side.
        rate_counts: ``(fields, rates)`` events of the reference with that defect, as expected in a new window.
        rate_correlation: ``(fields, rates)`` how alike the events of one window are in it; 0 where they are independent.
        errors: ``(2,)`` the same two numbers of the requests with an error; empty in a reference of a release that did not ask.
    """

    m: int
    values: Floats
    dof: Floats
    psi_moments: Floats
    ks_quantiles: Floats
    ks_squares: Floats
    psi_scatter: Scatter
    ks_scatter: Scatter
    mean_deff: Floats
    rate_counts: Floats
    rate_correlation: Floats
    errors: Floats = field(default_factory=lambda: np.empty(0))

    def to_dict(self) -> dict[str, Any]:
        """A JSON form that round-trips exactly."""
        form: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            value = value.rows() if isinstance(value, Scatter) else value
            form[name] = value if name == "m" else value.tolist()
        if not len(self.errors):
            del form["errors"]  # its hash stays what it was
        return form

    @staticmethod
    def from_dict(form: dict[str, Any]) -> Null:
        """The null whose ``to_dict`` is ``form``."""
        arrays: dict[str, Any] = {
            name: np.array(value, dtype=np.float64) for name, value in form.items() if name != "m"
        }
        for name in ("psi_scatter", "ks_scatter"):
            arrays[name] = Scatter.of(arrays[name])
        return Null(m=form["m"], **arrays)

    def gap(self, n: float | Floats) -> Floats:
        """``(fields,)`` 1/n + 1/values, for a window of ``n`` values that are in bins: one number, or one per field."""
        return np.asarray(1.0 / np.maximum(n, 1.0) + 1.0 / np.maximum(self.values, 1.0))

    def psi_limit(self, n: float | Floats, alpha: float | Floats) -> Floats:
        """``(fields,)`` PSI that a window of ``n`` values passes with probability ``alpha``.

        Under independence a gamma with three exact moments; for large windows that is chi-square(groups - 1) * gap (Yurdakul 2018).
        """
        shape, scale, place, mean, cv = self._psi_law(n)
        independent = place + scale * special.gammainccinv(shape, np.maximum(alpha, _SMALLEST))
        limits = np.maximum(independent, 0.0) * self.gap(n)
        return np.asarray(np.maximum(limits, self.psi_scatter.limits(alpha, mean, cv)))

    def psi_p_values(self, n: float | Floats, values: Floats) -> Floats:
        """``(fields,)`` probability of a PSI of at least ``values``; see ``psi_limit``."""
        shape, scale, place, mean, cv = self._psi_law(n)
        found = np.maximum((values / self.gap(n) - place) / scale, 0.0)
        p = special.gammaincc(shape, found)
        return np.asarray(np.maximum(p, self.psi_scatter.p_values(values, mean, cv)))

    def ks_limit(self, n: float | Floats, alpha: float | Floats) -> Floats:
        """``(fields,)`` KS distance passed with probability ``alpha``. At 1 and above it cannot be passed.

        Under independence Kolmogorov's law at bins; see ``laws.ks_quantiles``.
        """
        quantiles = self._ks_law(n)
        at = np.broadcast_to(special.kolmogi(np.maximum(alpha, _SMALLEST)), self.values.shape)
        independent = _interpolate(at, np.broadcast_to(KS_QUANTILES, quantiles.shape), quantiles)
        mean = _at(self.ks_squares, n) * self.gap(n)
        return np.maximum(
            independent * np.sqrt(self.gap(n)),
            np.sqrt(self.ks_scatter.limits(alpha, mean, _KOLMOGOROV_CV)),
        )

    def ks_p_values(self, n: float | Floats, values: Floats) -> Floats:
        """``(fields,)`` probability of a KS distance of at least ``values``; see ``ks_limit``."""
        quantiles = self._ks_law(n)
        found = np.asarray(values / np.sqrt(self.gap(n)))
        kolmogorov = _interpolate(found, quantiles, np.broadcast_to(KS_QUANTILES, quantiles.shape))
        mean = _at(self.ks_squares, n) * self.gap(n)
        p = special.kolmogorov(kolmogorov)
        return np.asarray(np.maximum(p, self.ks_scatter.p_values(values**2, mean, _KOLMOGOROV_CV)))

    def rate_limit(self, n: int, alpha: float, where: Bools | None = None) -> Floats:
        """``(fields, rates)`` share of ``n`` events passed with probability ``alpha``; see ``monitor.rates``.

        Counts are whole: the level that is attained is the largest that a count has, at most ``alpha``. Only ``where`` it is asked for; elsewhere 0.
        """
        limits = np.zeros(self.rate_counts.shape)
        wanted = np.ones(limits.shape, dtype=bool) if where is None else where
        if n > 0 and wanted.any():
            kinds, which = np.unique(
                np.stack((self.rate_counts[wanted], self.rate_correlation[wanted]), axis=1),
                axis=0,
                return_inverse=True,
            )
            found = largest_likely(n, kinds[:, 0], self.m, kinds[:, 1], alpha)
            limits[wanted] = found[which.ravel()] / n
        return limits

    def rate_p_values(self, n: int, counts: Ints) -> Floats:
        """``(fields, rates)`` probability of at least ``counts`` of ``n`` events; 1 where there are none."""
        p = np.ones(self.rate_counts.shape)
        some = np.asarray(counts) > 0
        if some.any():
            x, correlation = self.rate_counts[some], self.rate_correlation[some]
            found = np.asarray(counts)[some].astype(np.float64)
            p[some] = tail_probabilities(n, found, x, self.m, correlation)
        return p

    def error_limit(self, n: int, alpha: float) -> float:
        """Share of ``n`` requests with an error that is passed with probability ``alpha``; see ``rate_limit``."""
        count, correlation = self.errors[:1], self.errors[1:]
        return float(largest_likely(n, count, self.m, correlation, alpha)[0]) / n

    def error_p_value(self, n: int, errors: int) -> float:
        """Probability of at least ``errors`` of ``n`` requests; NaN where the reference does not know."""
        if not len(self.errors):
            return np.nan
        found, count, correlation = np.array([float(errors)]), self.errors[:1], self.errors[1:]
        return float(tail_probabilities(n, found, count, self.m, correlation)[0])

    def _psi_law(self, n: float | Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Shape, scale and place of PSI / gap as a gamma (Pearson III); mean and coefficient of variation of PSI."""
        mean, variance, third = np.moveaxis(_at(self.psi_moments, n), 1, 0) * np.stack(
            (self.dof, 2 * self.dof, 8 * self.dof)
        )
        shape, scale = 4 * variance**3 / third**2, third / (2 * variance)
        cv = np.asarray(np.sqrt(variance) / mean)
        return shape, scale, mean - shape * scale, np.asarray(mean * self.gap(n)), cv

    def _ks_law(self, n: float | Floats) -> Floats:
        """``(fields, levels)`` quantiles of KS / sqrt(gap)."""
        return np.asarray(_at(self.ks_quantiles, n) * KS_QUANTILES)


def rate_counts(layout: Layout, vectors: Ints) -> Ints:
    """``(..., fields, rates)`` events with each defect of RATES, from profile vectors ``(..., size)``."""
    counts = np.zeros((*vectors.shape[:-1], len(layout.fields), len(RATES)), dtype=np.int64)
    at = layout.starts

    def of(*names: str) -> Ints:
        return np.asarray(sum(vectors[..., at + _BESIDE.index(name)] for name in names))

    counts[..., 0], counts[..., 1] = of("missing"), of("wrong_type")
    counts[..., 2], counts[..., 3] = of("nan", "pos_inf", "neg_inf"), of("off_grid")
    categorical = ~layout.numeric
    counts[..., categorical, 4] = vectors[..., at[categorical] - 1]  # the last bin is "other"
    counts[..., 5] = of("below", "above")
    return counts


_BESIDE: Final = (*SPECIALS, *FLAGS)


def calibrate(
    layout: Layout, blocks: Ints, block_ms: int, windows: WindowSpec, *, groups: int = PSI_GROUPS
) -> dict[int, Null]:
    """The null for the pane and for each window size, from the reference's blocks of time ``(blocks, layout.size)`` in order.

    A size of which the reference holds fewer than four windows borrows the scatter of the longest size that it can judge.
    Cost: about 5 ms a field, and 1 ms for each field and size with 1,000 blocks.
    """
    past = _Past(layout, blocks, groups)
    longest = max(1, len(blocks) // FEW)
    return {
        size: past.null(min(max(1, size // block_ms), longest))
        for size in sorted({windows.pane, *windows.sizes})
    }


def rate_design_effect(blocks: Ints, length: int) -> float:
    """Design effect of a share over windows of ``length`` blocks, from ``(blocks, 2)`` counts of all and of those that count."""
    tiles = _tile(blocks, min(max(1, length), max(1, len(blocks) // FEW)))
    return _rate_deff(tiles[:, 1], tiles[:, 0].astype(np.float64))


def _tile(blocks: Ints, length: int) -> Ints:
    """Sums of ``length`` consecutive blocks, side by side; windows without events say nothing."""
    whole = len(blocks) // length * length
    tiled = blocks[:whole].reshape(-1, length, blocks.shape[1]).sum(axis=1)
    return np.asarray(tiled[tiled[:, 0] > 0])


class _Past:
    """The reference while it calibrates. Holds what the sizes share."""

    def __init__(self, layout: Layout, blocks: Ints, groups: int) -> None:
        self._layout, self._blocks = layout, blocks
        self._total = blocks.sum(axis=0)
        self._fields = [_FieldPast(f, self._total, groups) for f in layout.fields]
        self._tiles: dict[int, Ints] = {}

    def null(self, length: int) -> Null:
        """The null of windows of ``length`` blocks."""
        tiles = self._at(length)
        n = tiles[:, 0].astype(np.float64)
        seen = rate_counts(self._layout, tiles)
        counts = seen.copy()
        for i, f in enumerate(self._layout.fields):
            _expect_new_values(counts, i, f, tiles)
        # The rest after the last whole tile counts too: without it every rate would look low.
        new = (counts - seen).sum(axis=0) * (float(self._total[0]) / max(float(n.sum()), 1.0))
        expected = rate_counts(self._layout, self._total) + new
        alike = np.array(
            [_correlation(column, n) for column in counts.reshape(len(counts), expected.size).T]
        )
        correlation = alike.reshape(expected.shape)
        mean_deff = np.array([_mean_deff(f, self._total, tiles) for f in self._layout.fields])
        for i, f in enumerate(self._layout.fields):
            if isinstance(f.bins, NumericBins):
                _expect_records(
                    expected[i],
                    correlation[i],
                    f.bins,
                    mean_deff[i],
                    float(n.mean()) if len(n) else 1.0,
                )
        scatter = [self._scatter(f, length) for f in self._fields]
        fields = len(self._fields)
        return Null(
            m=int(self._total[0]),
            values=np.array([f.m for f in self._fields], dtype=np.float64),
            dof=np.array([f.dof for f in self._fields], dtype=np.float64),
            psi_moments=_table([f.psi_moments for f in self._fields], fields, 3),
            ks_quantiles=_table([f.ks_quantiles for f in self._fields], fields, len(KS_QUANTILES)),
            ks_squares=_table([f.ks_squares for f in self._fields], fields, 1)[..., 0],
            psi_scatter=Scatter.of(np.array([s[0] for s in scatter])),
            ks_scatter=Scatter.of(np.array([s[1] for s in scatter])),
            mean_deff=mean_deff,
            rate_counts=expected,
            rate_correlation=correlation,
            errors=np.array([float(self._total[1]), _correlation(tiles[:, 1], n)]),
        )

    def _at(self, length: int) -> Ints:
        if length not in self._tiles:
            self._tiles[length] = _tile(self._blocks, length)
        return self._tiles[length]

    def _scatter(self, f: _FieldPast, length: int) -> tuple[Floats, Floats]:
        """Parameters of PSI and KS; independent ones unless tiles of some length say otherwise."""
        own = f.seen(self._at(length), length)
        if own.k < FEW:
            return INDEPENDENT, INDEPENDENT
        finest = max(1, -(-len(self._blocks) // _SCALES_FROM))
        scales = [finest << i for i in range(12) if (finest << i) * FEW <= len(self._blocks)]
        seen = [f.seen(self._at(scale), scale) for scale in scales]
        if max((s.surprise for s in (own, *seen)), default=0.0) < _SURPRISING:
            return INDEPENDENT, INDEPENDENT
        return (
            learn(own.psi, own.psi_mean, own.psi_cv),
            learn(own.ks2, own.ks2_mean, _KOLMOGOROV_CV),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Statistics of tiles of one length, and what independence says of them."""

    psi: Floats
    psi_mean: Floats
    psi_cv: float
    ks2: Floats
    ks2_mean: Floats

    @property
    def k(self) -> int:
        return len(self.psi)

    @property
    def surprise(self) -> float:
        """Standard errors by which the larger of both means exceeds independence."""
        if self.k < FEW:
            return 0.0
        by_psi = float(np.mean(self.psi / self.psi_mean)) - 1
        by_ks = float(np.mean(self.ks2 / self.ks2_mean)) - 1
        return float(np.sqrt(self.k)) * max(by_psi / self.psi_cv, by_ks / _KOLMOGOROV_CV)


class _FieldPast:
    """One field's independence laws, and its tiles by length."""

    def __init__(self, f: Field, total: Ints, groups: int) -> None:
        self._field, self._counts = f, total[f.counts]
        self._starts = group_equal_mass(self._counts, groups)
        self.m = int(self._counts.sum())
        self.dof = max(1, len(self._starts) - 1)
        self.psi_moments = np.ones((len(NODES), 3))
        self.ks_quantiles = np.ones((len(NODES), len(KS_QUANTILES)))
        self.ks_squares = laws.ks_mean_square(self.ks_quantiles)
        self._seen: dict[int, _Seen] = {}
        if self.m == 0:
            return
        continuous = isinstance(f.bins, NumericBins) and f.bins.step is None and f.bins.grid is None
        counts = self._counts.astype(np.float64)
        weights = _weights(counts, continuous=continuous)
        grouped, grouped_weights = np.add.reduceat((counts, weights), self._starts, axis=1)
        self.psi_moments = laws.psi_moments(grouped, grouped_weights)
        if isinstance(f.bins, NumericBins):
            counts[0] += continuous
            self.ks_quantiles = laws.ks_quantiles(counts)
            self.ks_squares = laws.ks_mean_square(self.ks_quantiles)

    def seen(self, tiles: Ints, length: int) -> _Seen:
        """Statistics of the tiles that have enough values, but not all."""
        if length not in self._seen:
            self._seen[length] = self._see(tiles[:, self._field.counts])
        return self._seen[length]

    def _see(self, counts: Ints) -> _Seen:
        n = counts.sum(axis=1)
        use = (n >= _LEAST) & (n < self.m)
        counts, n = counts[use], n[use].astype(np.float64)
        # A tile is a part of the reference: its scatter around it is smaller by 2/m than a new window's.
        gap = 1.0 / n - 1.0 / max(self.m, 1)
        moments, squares = _along(self.psi_moments, n), _along(self.ks_squares[:, None], n)[:, 0]
        cv = np.sqrt(2 * moments[:, 1] / self.dof) / moments[:, 0]
        return _Seen(
            psi=np.asarray(psi(self._counts, counts, starts=self._starts)),
            psi_mean=gap * self.dof * moments[:, 0],
            psi_cv=float(cv.mean()) if len(n) else 1.0,
            ks2=np.asarray(ks(self._counts, counts).low ** 2),
            ks2_mean=gap * squares,
        )


def _table(rows: list[Floats], fields: int, width: int) -> Floats:
    """``(fields, nodes, width)``, rounded: a reference with its nulls has to fit into a message."""
    table = np.array(rows, dtype=np.float64).reshape(fields, len(NODES), width)
    unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(table), _SMALLEST))) - _DIGITS)
    return np.asarray(np.round(table / unit) * unit, dtype=np.float64)


def _weights(counts: Floats, *, continuous: bool) -> Floats:
    """``(bins,)`` Dirichlet weights of the bins' true shares.

    Bins cut at quantiles: spacings of a sample, so one more than there are events between the first two edges. Any others: the counts and
    a prior drawn to equal shares as strongly as the counts let us believe in them (the moment estimate of a Dirichlet-multinomial; Good 1965, with its
    distance from chance taken two standard errors larger: few categories that look equal need not be), at least Jeffreys'.
    """
    weights = counts.copy()
    if continuous:
        weights[0] += 1.0
        return weights
    seen = counts > 0
    kinds, m = int(np.count_nonzero(seen)), float(counts.sum())
    if kinds < 2:
        return weights
    ratio = float(np.sum((counts[seen] - m / kinds) ** 2)) / (m / kinds) / (kinds - 1)
    ratio += 2 * float(np.sqrt(2 / (kinds - 1)))
    prior = _MOST_PRIOR * m if ratio <= 1 else min(m / (ratio - 1), _MOST_PRIOR * m)
    weights[seen] += max(prior / kinds, JEFFREYS)
    return weights


def _at(table: Floats, n: float | Floats) -> Floats:
    """``(fields, ...)`` values of ``(fields, nodes, ...)`` at ``n``, linear in log n; constant outside of ``NODES``."""
    place = np.broadcast_to(_place(n), table.shape[:1])
    low = np.minimum(place.astype(np.intp), len(NODES) - 2)
    rows = np.arange(len(table))
    weight = (place - low).reshape(-1, *[1] * (table.ndim - 2))
    return np.asarray((1 - weight) * table[rows, low] + weight * table[rows, low + 1])


def _along(table: Floats, n: Floats) -> Floats:
    """``(len(n), ...)`` values of one field's ``(nodes, ...)``; see ``_at``."""
    place = _place(n)
    low = np.minimum(place.astype(np.intp), len(NODES) - 2)
    weight = (place - low)[:, None]
    return np.asarray((1 - weight) * table[low] + weight * table[low + 1])


def _place(n: float | Floats) -> Floats:
    return np.asarray(np.interp(np.log(np.maximum(n, 1.0)), np.log(NODES), np.arange(len(NODES))))


def _interpolate(x: Floats, knots: Floats, values: Floats) -> Floats:
    """``(fields,)`` piecewise linear through 0 and each field's ``(fields, knots)``; beyond the last by ratio."""
    found = x * values[:, 0] / knots[:, 0]
    for i in range(1, knots.shape[1]):
        slope = (values[:, i] - values[:, i - 1]) / (knots[:, i] - knots[:, i - 1])
        found = np.where(
            x > knots[:, i - 1], values[:, i - 1] + slope * (x - knots[:, i - 1]), found
        )
    return np.where(x > knots[:, -1], x * values[:, -1] / knots[:, -1], found)


def _mean_deff(f: Field, total: Ints, tiles: Ints) -> float:
    """Variance of the tiles' means over what independence allows; sums of q alone are enough, the unit cancels."""
    counts = tiles[:, f.counts].sum(axis=1)
    whole = float(total[f.counts].sum())
    use = (counts > 0) & (counts < whole)
    if not isinstance(f.bins, NumericBins) or np.count_nonzero(use) < FEW:
        return 1.0
    s1, s2 = (
        float(total[f.moments][0]),
        float(total[f.moments][1]) * 2.0**WORD_BITS + float(total[f.moments][2]),
    )
    variance = s2 / whole - (s1 / whole) ** 2
    if variance <= 0:
        return 1.0
    gap = 1.0 / counts[use] - 1.0 / whole
    means = tiles[use, f.moments.start] / counts[use] - s1 / whole
    error = 1.0 + 2.0 * float(np.sqrt(2.0 / len(means)))
    return max(1.0, float(np.mean(means**2 / gap)) / variance * error)


def _expect_new_values(counts: Ints, i: int, f: Field, tiles: Ints) -> None:
    """Fill in how often a window shows values that no *other* window of the reference has (leave one out).

    The bins were cut from these very values, so the counters themselves say zero, which no new window would keep.
    """
    bins = tiles[:, f.counts]
    alone = np.where(bins == bins.sum(axis=0), bins, 0)
    if isinstance(f.bins, CategoricalBins):
        counts[:, i, 4] += alone[:, :-1].sum(axis=1)
        return
    if f.bins.grid is not None:
        counts[:, i, 3] += alone.sum(axis=1)
    present = np.flatnonzero(bins.sum(axis=0))
    for end in present[:1], present[-1:]:
        for tile in np.flatnonzero(alone[:, end].sum(axis=1)):
            others = np.flatnonzero(bins.sum(axis=0) - bins[tile])
            if len(others):
                counts[tile, i, 5] += (
                    bins[tile, : others[0]].sum() + bins[tile, others[-1] + 1 :].sum()
                )


def _expect_records(
    expected: Floats, correlation: Floats, bins: NumericBins, mean_deff: float, n: float
) -> None:
    """Values beyond the range of all others: one at either end of a continuous feature, as long a run of them as its memory.

    The bins hide how far out the outermost values lie, and a reference has but two runs of records to learn from. So the records of a feature
    are taken to be as alike within a window as its values are.
    """
    kind = RATES.index("out_of_range")
    if bins.step is None and bins.grid is None:
        expected[kind] = max(expected[kind], 2.0)
    memory = (mean_deff - 1) / max(n - 1, 1.0)
    correlation[kind] = min(max(correlation[kind], memory), LARGEST_CORRELATION)


def _rate_deff(counts: Ints, n: Floats) -> float:
    """Design effect of a defect counted per tile: 1 unless its scatter is surprising."""
    rate = float(counts.sum()) / max(float(n.sum()), 1.0)
    if rate <= 0 or rate >= 1.0 or len(n) < FEW:
        return 1.0
    expected = n * rate * (1 - rate)
    excess = (counts - n * rate) ** 2 / expected
    error = np.sqrt(2 * len(n) + np.sum(1 / expected)) / len(n)
    k = len(n)
    deff = float(excess.sum()) / (k - 1)
    return min(deff, max(1.0, float(n.mean()))) if deff > 1 + _SURPRISING * error else 1.0


def _correlation(counts: Ints, n: Floats) -> float:
    """Intra-window correlation of a defect: 0 unless its scatter is surprising."""
    return intra_window_correlation(counts, n) if _rate_deff(counts, n) > 1 else 0.0
