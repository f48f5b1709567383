"""Distances against scipy on the same bins, their algebra, and a defined answer for every degenerate window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial import distance

from monitor.binning import Floats, cut_numeric
from monitor.distances import (
    Counts,
    bin_positions,
    chi_square,
    degrees_of_freedom,
    group_equal_mass,
    hellinger,
    jensen_shannon,
    ks,
    psi,
    total_variation,
    wasserstein,
)

Distance = Callable[[Counts, Counts], Floats]


def on_unit_line(reference: Counts, current: Counts) -> Floats:
    return wasserstein(
        reference, current, np.arange(reference.shape[-1], dtype=np.float64), scale=2.0
    )


SYMMETRIC: list[Distance] = [
    psi, jensen_shannon, hellinger, total_variation, chi_square, on_unit_line,
]  # fmt: skip
BOUNDED: list[Distance] = [jensen_shannon, hellinger, total_variation]
counts = arrays(np.int64, 12, elements=st.integers(0, 10_000)).filter(lambda c: c.sum() > 0)


@given(counts, counts)
def test_distances_equal_scipy_on_the_same_bins(a: Counts, b: Counts) -> None:
    p, q = a / a.sum(), b / b.sum()
    x = np.cumsum(np.arange(12.0) + 0.5)
    used = a + b > 0
    smooth_p, smooth_q = ((c + 0.5) / (c.sum() + 6) for c in (a, b))
    both_ways = stats.entropy(smooth_p, smooth_q) + stats.entropy(smooth_q, smooth_p)
    euclidean = distance.euclidean(np.sqrt(p), np.sqrt(q))
    table = np.array((a, b))[:, used]
    assert psi(a, b) == pytest.approx(both_ways, abs=1e-12)
    # Squared, because scipy's own square root turns rounding of 1e-17 into 3e-9 where shares are equal.
    assert jensen_shannon(a, b) ** 2 == pytest.approx(
        np.nan_to_num(distance.jensenshannon(p, q, 2)) ** 2, abs=1e-12
    )
    assert hellinger(a, b) == pytest.approx(euclidean / np.sqrt(2), abs=1e-12)
    assert total_variation(a, b) == pytest.approx(distance.cityblock(p, q) / 2, abs=1e-12)
    assert wasserstein(a, b, x, scale=7.0) == pytest.approx(
        stats.wasserstein_distance(x, x, a, b) / 7, abs=1e-12
    )
    pearson = stats.chi2_contingency(table.astype(np.float64), correction=False)
    assert chi_square(a, b) == pytest.approx(pearson.statistic, rel=1e-12, abs=1e-12)
    assert degrees_of_freedom(a, b) == pearson.dof


SHAPES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "shifted": lambda rng, n: rng.normal(0.5, 1, n),
    "wide": lambda rng, n: rng.normal(0, 3, n),
    "narrow": lambda rng, n: rng.normal(0, 0.1, n),
    "uniform": lambda rng, n: rng.random(n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    "heavy lognormal": lambda rng, n: rng.lognormal(0, 4, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "two modes": lambda rng, n: rng.normal(0, 1, n) + 8 * rng.integers(0, 2, n),
    "beta": lambda rng, n: rng.beta(0.5, 0.5, n),
    "negative": lambda rng, n: -rng.gamma(2, 1, n),
    "rounded": lambda rng, n: np.round(rng.normal(0, 1, n), 1),
    "whole": lambda rng, n: np.round(rng.normal(0, 2, n)),
    "coin": lambda rng, n: rng.integers(0, 2, n).astype(np.float64),
    "poisson": lambda rng, n: rng.poisson(3, n).astype(np.float64),
    "many counts": lambda rng, n: rng.poisson(3_000, n).astype(np.float64),
    "half zero": lambda rng, n: np.maximum(rng.normal(0, 1, n), 0),
    "constant": lambda _rng, n: np.full(n, 2.5),
    "one outlier": lambda rng, n: np.append(rng.normal(0, 1, n - 1), 1e6),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ks_interval_contains_the_exact_statistic_of_the_raw_values(shape: str) -> None:
    rng = np.random.default_rng(list(shape.encode()))
    for _ in range(50):  # 20 shapes: 1,000 pairs
        m, n = rng.integers(1, 600, 2)
        other = SHAPES[str(rng.choice(list(SHAPES)))]
        reference, current = SHAPES[shape](rng, m), other(rng, n)
        bins = cut_numeric(reference, max_bins=int(rng.integers(2, 129)))
        p, q = (
            np.bincount(bins.encode(list(x)).codes, minlength=bins.bins)
            for x in (reference, current)
        )
        low, high = ks(p, q)
        exact = stats.ks_2samp(reference, current, method="asymp").statistic
        assert low - 1e-12 <= exact <= high + 1e-12


def test_both_bounds_of_the_ks_interval_are_attained() -> None:
    # Bins [0, 10) and [10, 20) with counts (2, 2) and (2, 2): the same values, then the widest gap inside bins.
    even = np.array([2, 2])
    low, high = ks(even, even)
    assert stats.ks_2samp([1, 2, 11, 12], [1, 2, 11, 12]).statistic == low == 0
    assert stats.ks_2samp([1, 2, 11, 12], [3, 4, 11, 12]).statistic == high == 0.5


def test_ks_of_a_discrete_feature_is_exact() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.poisson(3, 500), rng.poisson(3.3, 700)
    p, q = np.bincount(a, minlength=20), np.bincount(b, minlength=20)
    low, high = ks(p, q, points=True)
    assert low == high == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-12)


@given(counts, counts, st.sampled_from(SYMMETRIC))
def test_distances_are_symmetric_finite_and_not_negative(a: Counts, b: Counts, d: Distance) -> None:
    assert d(a, b) == pytest.approx(d(b, a), rel=1e-9, abs=1e-12)
    assert 0 <= d(a, b) < np.inf


@given(counts, counts, counts, st.sampled_from([*BOUNDED, on_unit_line]))
def test_metrics_obey_the_triangle_inequality(a: Counts, b: Counts, c: Counts, d: Distance) -> None:
    assert d(a, c) <= d(a, b) + d(b, c) + 1e-9


@given(counts, st.integers(1, 1_000_000), st.sampled_from([*BOUNDED, chi_square, on_unit_line]))
def test_equal_shares_are_at_distance_zero_however_different_the_sizes(
    a: Counts, times: int, d: Distance
) -> None:
    assert d(a, a * times) == pytest.approx(0, abs=1e-7)
    assert psi(a, a) == 0


@pytest.mark.parametrize("d", BOUNDED)
def test_disjoint_histograms_are_at_distance_one(d: Distance) -> None:
    assert d(np.array([3, 4, 0, 0]), np.array([0, 0, 1, 9])) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("d", SYMMETRIC)
@pytest.mark.parametrize(
    ("reference", "current"),
    [
        pytest.param([0, 0, 0], [1, 2, 3], id="empty reference"),
        pytest.param([1, 2, 3], [0, 0, 0], id="empty window, or all values missing"),
        pytest.param([0, 0, 0], [0, 0, 0], id="both empty"),
        pytest.param([7], [3], id="one bin"),
        pytest.param([7], [0], id="one bin, empty window"),
        pytest.param([0, 9, 0], [0, 4, 0], id="constant column"),
    ],
)
def test_where_there_is_nothing_to_tell_apart_the_distance_is_zero(
    d: Distance, reference: list[int], current: list[int]
) -> None:
    # PSI's prior counts leave a trifle where other groups are empty.
    least = 0.1 if d is psi else 0.0
    assert 0 <= d(np.array(reference), np.array(current)) <= least
    assert ks(np.array(reference), np.array(current)).low == 0


def test_one_bin_leaves_ks_unknown_unless_it_holds_a_single_value() -> None:
    seven, three, none = np.array([7]), np.array([3]), np.array([0])
    intervals = [ks(seven, three), ks(seven, three, points=True), ks(seven, none)]
    assert [(float(i.low), float(i.high)) for i in intervals] == [(0, 1), (0, 0), (0, 0)]


@pytest.mark.parametrize("d", [*SYMMETRIC, degrees_of_freedom])
def test_leading_axes_broadcast_to_the_same_bits_as_single_calls(d: Distance) -> None:
    rng = np.random.default_rng(1)
    reference, windows = rng.integers(0, 50, 8), rng.integers(0, 50, (3, 4, 8))
    windows[1, 2] = 0
    together = d(reference, windows)
    single = [[d(reference, window) for window in row] for row in windows]
    assert together.tolist() == single
    bounds = ks(reference, windows)
    assert bounds.high[0, 1] == ks(reference, windows[0, 1]).high
    assert bounds.low.shape == together.shape == (3, 4)


def test_a_window_a_million_times_larger_than_the_reference_stays_finite_and_right() -> None:
    reference, window = np.array([5, 3, 2]), np.array([5, 3, 2]) * 10**12
    assert total_variation(reference, window) == 0
    assert chi_square(reference, window) == pytest.approx(0, abs=1e-9)
    assert psi(reference, window) < 0.02


def test_wasserstein_sees_how_far_and_clamps_what_overflows() -> None:
    bins = cut_numeric(np.array([-1.7e308, 0.0, 1.7e308] * 2))
    x = bin_positions(bins.edges, bins.low, bins.high, points=True)
    start, end = np.array([1, 0, 0]), np.array([0, 0, 1])
    assert 0 < wasserstein(start, end, x, scale=bins.scale) <= np.finfo(np.float64).max
    unit = np.array([0.0, 1, 10])
    near, far = (float(wasserstein(start, q, unit, scale=5.0)) for q in (np.array([0, 1, 0]), end))
    assert near == 0.2
    assert far == 2.0


def test_bins_stand_at_their_middle_or_at_their_value() -> None:
    edges = np.array([1.0, 3.0])
    assert bin_positions(edges, 0.0, 10.0).tolist() == [0.5, 2.0, 6.5]
    assert bin_positions(edges, 0.0, 3.0, points=True).tolist() == [0.0, 1.0, 3.0]
    assert bin_positions(np.empty(0), 4.0, 4.0).tolist() == [4.0]


@given(
    arrays(np.int64, st.integers(1, 150), elements=st.integers(0, 300)), st.integers(1, 20)
)  # fmt: skip
def test_groups_are_runs_of_bins_that_all_hold_reference_mass(
    reference: Counts, groups: int
) -> None:
    starts = group_equal_mass(reference, groups)
    mass = np.add.reduceat(reference, starts)
    assert starts[0] == 0
    assert np.all(np.diff(starts) > 0)
    assert len(starts) <= groups
    assert mass.sum() == reference.sum()
    assert np.all(mass > 0) or len(starts) == 1
    # A boundary misses its target by at most half of a bin, so a group misses its mass by at most one.
    if len(starts) == groups:
        assert np.all(np.abs(mass - reference.sum() / groups) <= reference.max())


@pytest.mark.parametrize(
    ("reference", "starts"),
    [
        ([1] * 20, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ([0, 0, 90, 0, 5, 5, 0], [0, 3]),
        ([0, 0, 0], [0]),
        ([100], [0]),
        ([0, 7, 0], [0]),
        ([50, 50], [0, 1]),
    ],
)
def test_ten_groups_of_some_references(reference: list[int], starts: list[int]) -> None:
    assert group_equal_mass(np.array(reference), 10).tolist() == starts


def test_psi_of_groups_is_psi_of_their_sums() -> None:
    p, q = np.arange(1, 13), np.arange(12, 0, -1)
    starts = np.array([0, 4, 9])
    grouped = psi(np.add.reduceat(p, starts), np.add.reduceat(q, starts))
    assert psi(p, q, starts=starts) == grouped > 0


def test_psi_without_drift_follows_its_null_distribution() -> None:
    """(1/n + 1/m) chi2(9): over 4,000 windows the mean is within 3.5 standard errors (fails 1 time in 2,000 seeds)."""
    rng = np.random.default_rng(7)
    n = m = 2_000
    reference, current = rng.multinomial(n, [0.1] * 10, (2, 4_000))
    statistic = psi(reference, current) / (1 / n + 1 / m)
    assert statistic.mean() == pytest.approx(9, abs=3.5 * np.sqrt(18 / 4_000))
    above = np.mean(statistic > stats.chi2.isf(0.05, 9))
    assert above == pytest.approx(0.05, abs=3.5 * np.sqrt(0.05 * 0.95 / 4_000))


def test_smoothing_decides_less_the_more_events_there_are() -> None:
    """A new category of 1 %: a prior in events, unlike a floor on shares, fades with n."""
    reference, window = np.array([5_000, 5_000, 0]), np.array([4_950, 4_950, 100])
    gaps = [
        float(
            psi(reference * k, window * k, smoothing=0.5)
            / psi(reference * k, window * k, smoothing=1.0)
        )
        for k in (1, 1_000_000)
    ]
    assert 1 < gaps[1] < gaps[0] < 1.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psi(np.array([1, 2]), np.array([1, 2, 3])), "same bins"),
        (lambda: ks(np.array([]), np.array([])), "same bins"),
        (lambda: hellinger(np.array(3), np.array(3)), "same bins"),
        (lambda: total_variation(np.array([1, -2]), np.array([1, 2])), "negative"),
        (lambda: psi(np.array([1.0, np.nan]), np.array([1, 2])), "negative"),
        (lambda: psi(np.array([1, 2]), np.array([1, 2]), smoothing=0.0), "smoothing"),
        (lambda: group_equal_mass(np.array([1, 2]), 0), "groups"),
        (lambda: group_equal_mass(np.ones((2, 2))), "one reference"),
        (lambda: wasserstein(np.ones(3), np.ones(3), np.ones(2), scale=1.0), "positions"),
    ],
)
def test_what_is_no_pair_of_histograms_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
