"""How statistics scatter when nothing is wrong, learnt from the reference in the order of time; and the limits that follow.

Textbook limits assume independent values. Real traffic is not: a windy day is windy in every event. So each statistic's null is its analytic form times
a *design effect*: how much wider it scatters between windows of the reference than independence says (Kish 1965; for chi-square forms Rao & Scott 1984).
A reference of a few windows knows its design effect badly: it is then taken as larger, by two standard errors.

Blind spot: a season longer than the reference is not in it, so it will be called drift. That is what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import special

from monitor.binning import FLAGS, SPECIALS, CategoricalBins, Floats, Ints, NumericBins
from monitor.distances import group_equal_mass, ks, psi
from monitor.profile import Field, Layout
from monitor.spec import WindowSpec

RATES: Final = ("missing", "wrong_type", "non_finite", "off_grid", "unseen", "out_of_range")
QUALITY_RATES: Final = RATES[
    :5
]  # out of range is what nature does; the others are what pipelines do
PSI_GROUPS: Final = 10
_FEW: Final = 4  # fewer windows than this say nothing about scatter
_KOLMOGOROV_SECOND_MOMENT: Final = np.pi**2 / 12  # E[K^2] of the Kolmogorov distribution
_KOLMOGOROV_CV: Final = float(
    np.sqrt(7 * np.pi**4 / 720 / _KOLMOGOROV_SECOND_MOMENT**2 - 1)
)  # of K^2: 0.63


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """Scatter of every field's statistics for one window size of one segment.

    Attributes:
        m: events of the reference.
        values: ``(fields,)`` values of the reference that are in bins: what distributions are compared with.
        psi_dof: ``(fields,)`` mean of PSI / gap: groups - 1 under independence.
        psi_cv: ``(fields,)`` coefficient of variation of PSI: sqrt(2 / (groups - 1)) under independence.
        ks_deff: ``(fields,)`` design effect of the squared KS statistic.
        ks_cv: ``(fields,)`` its coefficient of variation: 0.63 under independence.
        mean_deff: ``(fields,)`` design effect of the mean.
        rate_counts: ``(fields, rates)`` events of the reference with that defect, as expected in a new window.
        rate_deff: ``(fields, rates)`` design effect of that count.
    """

    m: int
    values: Floats
    psi_dof: Floats
    psi_cv: Floats
    ks_deff: Floats
    ks_cv: Floats
    mean_deff: Floats
    rate_counts: Floats
    rate_deff: Floats

    def to_dict(self) -> dict[str, Any]:
        """A JSON form that round-trips exactly."""
        return {
            name: getattr(self, name) if name == "m" else getattr(self, name).tolist()
            for name in self.__slots__
        }

    @staticmethod
    def from_dict(form: dict[str, Any]) -> Null:
        """The null whose ``to_dict`` is ``form``."""
        arrays: dict[str, Any] = {
            k: np.array(v, dtype=np.float64) for k, v in form.items() if k != "m"
        }
        return Null(m=form["m"], **arrays)

    def gap(self, n: float | Floats) -> Floats:
        """``(fields,)`` 1/n + 1/values, for a window of ``n`` values that are in bins: one number, or one per field."""
        return np.asarray(1.0 / np.maximum(n, 1.0) + 1.0 / np.maximum(self.values, 1.0))

    def psi_limit(self, n: float | Floats, alpha: float) -> Floats:
        """``(fields,)`` PSI that a window of ``n`` values passes with probability ``alpha``: a gamma with the null's two moments.

        Under independence that is chi-square(groups - 1) * gap (Yurdakul 2018).
        """
        shape = 1.0 / self.psi_cv**2
        mean = self.psi_dof * self.gap(n)
        return np.asarray(special.gammainccinv(shape, alpha) * mean / shape)

    def ks_limit(self, n: float | Floats, alpha: float) -> Floats:
        """``(fields,)`` KS distance passed with probability ``alpha``. At 1 and above it cannot be passed.

        Kolmogorov's law, widened by the design effect; and where the reference shows a heavier tail than that law has (a rain gauge
        is at zero until it pours), a gamma for the square with the scatter that it showed. The larger limit counts.
        """
        unit = self.ks_deff * self.gap(n)
        shape = 1.0 / self.ks_cv**2
        heavy = special.gammainccinv(shape, alpha) / shape * _KOLMOGOROV_SECOND_MOMENT
        return np.asarray(np.sqrt(unit * np.maximum(special.kolmogi(alpha) ** 2, heavy)))

    def ks_p_value(self, field: int, n: int, value: float) -> float:
        """Probability of a KS distance of at least ``value``: the larger of the two forms of ``ks_limit``."""
        square = value**2 / (self.ks_deff[field] * self.gap(n)[field])
        shape = 1.0 / self.ks_cv[field] ** 2
        heavy = special.gammaincc(shape, square / _KOLMOGOROV_SECOND_MOMENT * shape)
        return float(max(special.kolmogorov(np.sqrt(square)), heavy))

    def psi_p_value(self, field: int, n: int, value: float) -> float:
        """Probability of a PSI of at least ``value``; see ``psi_limit``."""
        shape = 1.0 / self.psi_cv[field] ** 2
        mean = self.psi_dof[field] * self.gap(n)[field]
        return float(special.gammaincc(shape, value * shape / mean))

    def psi_p_values(self, n: Floats, values: Floats) -> Floats:
        """``(fields,)`` of ``psi_p_value``."""
        pairs = enumerate(zip(n, values, strict=True))
        return np.array([self.psi_p_value(i, int(k), v) for i, (k, v) in pairs])

    def ks_p_values(self, n: Floats, values: Floats) -> Floats:
        """``(fields,)`` of ``ks_p_value``."""
        pairs = enumerate(zip(n, values, strict=True))
        return np.array([self.ks_p_value(i, int(k), v) for i, (k, v) in pairs])

    def rate_limit(self, n: int, alpha: float) -> Floats:
        """``(fields, rates)`` share of ``n`` events passed with probability ``alpha``.

        A negative binomial: Poisson counts whose rate is known from the reference only (Jeffreys' prior), in clusters of the design effect.
        """
        shape = (self.rate_counts + 0.5) / self.rate_deff
        stay = self.m / (self.m + n)
        with np.errstate(invalid="ignore"):
            # Counts are whole: at a fraction, the next one up would be likelier than alpha.
            count = np.ceil(special.nbdtrik(1.0 - alpha, shape, stay))
        # Where even one cluster is rarer than alpha, nothing at all is expected.
        count = np.where(stay**shape >= 1.0 - alpha, 0.0, count)
        return np.asarray(count * self.rate_deff / n)


def rate_counts(layout: Layout, vectors: Ints) -> Ints:
    """``(..., fields, rates)`` events with each defect of RATES, from profile vectors ``(..., size)``."""
    counts = np.zeros((*vectors.shape[:-1], len(layout.fields), len(RATES)), dtype=np.int64)
    for i, f in enumerate(layout.fields):
        special_, flag = vectors[..., f.specials], vectors[..., f.flags]
        counts[..., i, 0] = special_[..., SPECIALS.index("missing")]
        counts[..., i, 1] = special_[..., SPECIALS.index("wrong_type")]
        counts[..., i, 2] = special_[..., 1:4].sum(axis=-1)  # nan, pos_inf, neg_inf
        counts[..., i, 3] = flag[..., FLAGS.index("off_grid")]
        if isinstance(f.bins, CategoricalBins):
            counts[..., i, 4] = vectors[..., f.counts.stop - 1]
        counts[..., i, 5] = flag[..., FLAGS.index("below")] + flag[..., FLAGS.index("above")]
    return counts


def calibrate(layout: Layout, blocks: Ints, block_ms: int, windows: WindowSpec) -> dict[int, Null]:
    """The null for the pane and for each window size, from the reference's blocks of time ``(blocks, layout.size)`` in order.

    A size of which the reference holds fewer than four windows borrows the scatter of the longest size that it can judge.
    """
    total = blocks.sum(axis=0)
    nulls: dict[int, Null] = {}
    longest = max(1, len(blocks) // _FEW)
    for size in sorted({windows.pane, *windows.sizes}):
        length = min(max(1, size // block_ms), longest)
        nulls[size] = _null(layout, total, _tile(blocks, length))
    return nulls


def rate_design_effect(blocks: Ints, length: int) -> float:
    """Design effect of a share over windows of ``length`` blocks, from ``(blocks, 2)`` counts of all and of those that count."""
    tiles = _tile(blocks, min(max(1, length), max(1, len(blocks) // _FEW)))
    if len(tiles) < _FEW:
        return 1.0
    _, deff = _rate_null(tiles[:, 1], tiles[:, 0].astype(np.float64), int(tiles[:, 0].sum()))
    return deff


def _tile(blocks: Ints, length: int) -> Ints:
    """Sums of ``length`` consecutive blocks, side by side; windows without events say nothing."""
    whole = len(blocks) // length * length
    tiled = blocks[:whole].reshape(-1, length, blocks.shape[1]).sum(axis=1)
    return np.asarray(tiled[tiled[:, 0] > 0])


def _null(layout: Layout, total: Ints, tiles: Ints) -> Null:
    m = int(total[0])
    n = tiles[:, 0].astype(np.float64)
    fields = [_field_null(f, total, tiles) for f in layout.fields]
    values = np.array([total[f.counts].sum() for f in layout.fields], dtype=np.float64)
    counts = rate_counts(layout, tiles)
    for i, f in enumerate(layout.fields):
        _expect_new_values(counts, i, f, tiles)
    rates = [
        [_rate_null(counts[:, i, j], n, m) for j in range(len(RATES))]
        for i in range(len(layout.fields))
    ]
    table = np.array(rates, dtype=np.float64).reshape(len(layout.fields), len(RATES), 2)
    columns = np.array(fields, dtype=np.float64).reshape(len(layout.fields), 5).T
    psi_dof, psi_cv, ks_deff, ks_cv, mean_deff = columns
    rate, rate_deff = table[..., 0], table[..., 1]
    return Null(m, values, psi_dof, psi_cv, ks_deff, ks_cv, mean_deff, rate, rate_deff)


def _field_null(f: Field, total: Ints, tiles: Ints) -> tuple[float, float, float, float, float]:
    """``(psi_dof, psi_cv, ks_deff, ks_cv, mean_deff)``; the independent values where the reference is too short to say."""
    starts = group_equal_mass(total[f.counts], PSI_GROUPS)
    dof = max(1.0, len(starts) - 1.0)
    cv = np.sqrt(2.0 / dof)
    n, m = tiles[:, f.counts].sum(axis=1), int(total[f.counts].sum())
    use = (n > 0) & (n < m)
    k = int(np.count_nonzero(use))
    if k < _FEW:
        return dof, float(cv), 1.0, _KOLMOGOROV_CV, 1.0
    current = tiles[use][:, f.counts]
    # A tile is a part of the reference: its scatter around it is smaller by 2/m than a new window's.
    gap = 1.0 / n[use] - 1.0 / m
    ratio = psi(total[f.counts], current, starts=starts) / gap
    scatter = max(float(cv), float(ratio.std() / ratio.mean()) if ratio.mean() > 0 else 0.0)
    error = 1.0 + 2.0 * scatter / np.sqrt(k)
    squares = ks(total[f.counts], current).low ** 2 / gap
    return (
        max(dof, float(ratio.mean()) * error),
        scatter,
        max(1.0, float(squares.mean()) / _KOLMOGOROV_SECOND_MOMENT * error),
        max(_KOLMOGOROV_CV, float(squares.std() / squares.mean()) if squares.any() else 0.0),
        _mean_deff(f, total, tiles[use], gap),
    )


def _mean_deff(f: Field, total: Ints, tiles: Ints, gap: Floats) -> float:
    """Variance of the tiles' means over what independence allows; sums of q alone are enough, the unit cancels."""
    if not isinstance(f.bins, NumericBins):
        return 1.0
    counts = tiles[:, f.counts].sum(axis=1)
    whole = float(total[f.counts].sum())
    s1, s2 = (
        float(total[f.moments][0]),
        float(total[f.moments][1]) * 2.0**32 + float(total[f.moments][2]),
    )
    variance = s2 / whole - (s1 / whole) ** 2
    if variance <= 0:
        return 1.0
    means = tiles[:, f.moments.start] / counts - s1 / whole
    error = 1.0 + 2.0 * float(np.sqrt(2.0 / len(tiles)))
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


def _rate_null(counts: Ints, n: Floats, m: int) -> tuple[float, float]:
    """``(expected count in the reference, design effect)`` of a defect counted per tile."""
    x = float(counts.sum())
    rate = x / max(float(n.sum()), 1.0)
    if x == 0 or rate >= 1.0 or len(n) < _FEW:
        return x, 1.0
    excess = (counts / n - rate) ** 2 / (rate * (1 - rate) / n)
    error = 1.0 + 2.0 * float(np.sqrt(2.0 / len(n)))
    return x, float(np.clip(excess.mean() * error, 1.0, max(1.0, float(n.mean()))))
