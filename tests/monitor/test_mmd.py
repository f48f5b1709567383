"""The multivariate statistic: an unbiased estimate of the kernel's, a limit that keeps its level, and changes that no single feature shows.

Rates are measured over fixed seeds; each bound is one that a correct implementation misses with probability below 1e-6.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from load.multivariate import BLOCK, Pool, correlated, exact_p_value, level, power, shifted
from load.multivariate import Change as Changed
from monitor.binning import Floats
from monitor.fourier import FourierMap, FourierSum
from monitor.mmd import MmdNull, Spectrum, mmd2, mmd2_biased, scatter


def summed(known: FourierMap, vectors: Floats) -> FourierSum:
    group = np.zeros(len(vectors), dtype=np.intp)
    return FourierSum(len(vectors), known.sums(vectors, group, 1)[0])


def normals(seed: int, n: int, d: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, d))


def most(alpha: float, trials: int) -> float:
    """The share that a test of level ``alpha`` exceeds in ``trials`` with probability 1e-6."""
    return float(stats.binom.isf(1e-6, trials, alpha)) / trials


def least(alpha: float, trials: int) -> float:
    return float(stats.binom.ppf(1e-6, trials, alpha)) / trials


def test_from_sums_comes_what_all_pairs_of_different_vectors_give() -> None:
    x, y = normals(1, 60, 4), normals(2, 80, 4) * 1.5
    known = FourierMap.fit(x, seed=1)
    a, b = known.embed(x), known.embed(y)
    within = [(np.sum(z @ z.T) - len(z)) / len(z) / (len(z) - 1) for z in (a, b)]
    expected = within[0] + within[1] - 2 * np.mean(a @ b.T)
    # A vector's kernel with itself is 1 but for the rounding of its cosines.
    assert mmd2(summed(known, x), summed(known, y)) == pytest.approx(expected, abs=1e-6)
    biased = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    assert mmd2_biased(summed(known, x), summed(known, y)) == pytest.approx(biased, abs=1e-12)


def test_with_many_frequencies_it_is_the_mmd_of_the_gaussian_kernel() -> None:
    x, y = normals(3, 300, 5), normals(4, 400, 5) + 0.5
    estimates = []
    for seed in range(16):
        known = FourierMap(seed, 512, 1.5, np.zeros(5), np.ones(5))
        estimates.append(mmd2(summed(known, x), summed(known, y)))

    def kernel(a: Floats, b: Floats) -> Floats:
        apart = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        return np.asarray(np.exp(-apart / 2 / 1.5**2))

    within = [(kernel(z, z).sum() - len(z)) / len(z) / (len(z) - 1) for z in (x, y)]
    exact = within[0] + within[1] - 2 * kernel(x, y).mean()
    error = float(np.std(estimates)) / 4
    assert np.mean(estimates) == pytest.approx(exact, abs=6 * error)
    assert error < 0.02 * exact


def test_without_drift_the_unbiased_form_is_zero_on_average_and_the_biased_one_is_not() -> None:
    known = FourierMap.fit(normals(5, 500, 3), seed=1)
    rng = np.random.default_rng(6)
    pairs = [
        (summed(known, rng.normal(size=(20, 3))), summed(known, rng.normal(size=(30, 3))))
        for _ in range(1_000)
    ]
    unbiased = np.array([mmd2(a, b) for a, b in pairs])
    assert abs(unbiased.mean()) < 5 * unbiased.std() / np.sqrt(len(pairs))
    assert min(mmd2_biased(a, b) for a, b in pairs) > 0
    assert np.mean([mmd2_biased(a, b) for a, b in pairs]) > 20 * abs(unbiased.mean())


def test_of_too_few_vectors_there_is_no_mmd() -> None:
    known = FourierMap.fit(normals(5, 500, 3), seed=1, frequencies=8)
    none, one, many = (summed(known, normals(6, n, 3)) for n in (0, 1, 9))
    assert np.isnan(mmd2_biased(none, many))
    assert np.isnan(mmd2(one, many))
    assert scatter(summed(known, np.ones((9, 3)))) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("dof", [1, 2, 5, 30, 256])
def test_the_tail_of_equal_weights_is_the_chi_squares(dof: int) -> None:
    spectrum = Spectrum(np.array([0.3]), np.array([float(dof)]))
    for alpha in (0.9, 0.5, 0.05, 1e-3, 1e-6, 1e-12):
        value = 0.3 * float(stats.chi2.isf(alpha, dof))
        assert spectrum.tail(value) == pytest.approx(alpha, rel=0.1 if dof < 5 else 0.02)


def test_the_tail_of_unequal_weights_is_the_simulated_one() -> None:
    rng = np.random.default_rng(8)
    weights = np.sort(rng.gamma(0.5, 1.0, 12))[::-1]
    drawn = np.sort(rng.chisquare(1, size=(400_000, 12)) @ weights)
    spectrum = Spectrum(weights, np.ones(12))
    for alpha in (0.5, 0.05, 0.01, 0.001):
        value = float(drawn[-int(alpha * len(drawn))])
        noise = 5 / np.sqrt(alpha * len(drawn))
        assert spectrum.tail(value) == pytest.approx(alpha, rel=0.03 + noise)


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=20),
    st.floats(1e-250, 0.4),
)
def test_the_quantile_is_the_tails_inverse(weights: list[float], alpha: float) -> None:
    spectrum = Spectrum(np.array(sorted(weights, reverse=True)), np.ones(len(weights)))
    assert spectrum.tail(spectrum.quantile(alpha)) == pytest.approx(alpha, rel=1e-5)
    assert spectrum.tail(-1.0) == 1.0
    assert spectrum.quantile(0.4) <= spectrum.quantile(0.0) < np.inf


@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=20), st.floats(1, 30), st.floats(1, 20))
def test_a_bent_spectrum_has_the_trace_and_no_more_degrees(
    weights: list[float], trace: float, degrees: float
) -> None:
    spectrum = Spectrum(np.array(sorted(weights, reverse=True)), np.ones(len(weights)))
    bent = spectrum.bent(trace, degrees)
    assert bent.trace == pytest.approx(trace)
    assert bent.degrees <= spectrum.degrees * (1 + 1e-9)
    if spectrum.weights[1] < 0.8 * spectrum.weights[0]:  # nearly equal ones no power can part
        assert bent.degrees <= max(degrees, 1.0) * (1 + 1e-3)


@pytest.mark.parametrize(("dimensions", "n"), [(5, 50), (5, 10_000), (100, 1_000)])
def test_on_independent_data_the_limit_is_passed_as_often_as_it_may_be(
    dimensions: int, n: int
) -> None:
    rng = np.random.default_rng([20_130_201, dimensions, n])
    shares = level(Pool.of(dimensions, 1_000, rng), n, 2_000, rng)
    for alpha, share in zip((0.05, 0.01, 0.001), shares, strict=True):
        assert least(0.5 * alpha, 2_000) <= share <= most(1.5 * alpha, 2_000)
    assert shares[0] > 0.5 * 0.05


@pytest.mark.parametrize("n", [50, 1_000])
def test_on_autocorrelated_data_too(n: int) -> None:
    rng = np.random.default_rng([20_130_202, n])
    shares = level(Pool.of(5, 5_000, rng, phi=0.9), n, 2_000, rng)
    # Windows overlap, so their number counts for less than it is.
    assert 0.3 * 0.05 < shares[0] < 2 * 0.05
    assert shares[1] < 3 * 0.01


def test_a_broken_correlation_is_found_that_no_feature_shows_by_itself() -> None:
    change = Changed("", 20, correlated(20, 0.5))
    ours, per_feature, _ = power(change, 8_000, 16_000, 3, np.random.default_rng(1))
    assert ours == 1.0
    assert per_feature == 0.0


def test_what_the_exact_kernel_test_finds_is_found() -> None:
    change = Changed("", 100, shifted(100, 5, 0.5))
    ours, _, exact = power(change, 300, 300, 4, np.random.default_rng(2), exact=True)
    assert ours == exact == 1.0


def test_the_exact_test_keeps_its_level() -> None:
    rng = np.random.default_rng(3)
    found = [exact_p_value(rng.normal(size=(30, 3)), rng.normal(size=(30, 3)), 1.5, 99, i) for i in range(200)]  # fmt: skip
    assert least(0.05, 200) <= np.mean(np.array(found) <= 0.05) <= most(0.05, 200)


def learnt(vectors: Floats, blocks: int, length: int = 1) -> tuple[FourierMap, MmdNull]:
    known = FourierMap.fit(vectors, seed=1, frequencies=16)
    group = np.arange(len(vectors)) * blocks // max(1, len(vectors))
    sums = known.sums(vectors, group, blocks)
    counts = np.bincount(group, minlength=blocks)
    return known, MmdNull.learn(counts, sums, Spectrum.of(known.embed(vectors)), length)


def test_dependence_widens_the_limit_and_independence_does_not() -> None:
    days = np.repeat(normals(9, 100, 2), 20, axis=0)
    _, windy = learnt(days + 0.5 * normals(10, 2_000, 2), 100)
    _, calm = learnt(normals(11, 2_000, 2), 100)
    assert windy.limit(20, 0.01) > 5 * calm.limit(20, 0.01)
    assert calm.spectrum.trace == pytest.approx(calm.trace)


@pytest.mark.parametrize(
    "past",
    [np.empty((0, 3)), np.ones((1, 3)), np.ones((500, 3)), normals(12, 10, 3)],
    ids=["nothing", "one", "constant", "ten"],
)
def test_whatever_the_reference_limits_and_p_values_are_numbers(past: Floats) -> None:
    _, null = learnt(past, 8, 3)
    for n in (1, 50, 10**12):
        limit = null.limit(n, 1e-6)
        assert np.isfinite(limit)
        assert 0.0 <= null.p_value(n, 0.1) <= 1.0
        assert null.p_value(n, limit * 2 + 1e-9) <= null.p_value(n, limit / 2)


def test_one_odd_vector_among_many_is_no_drift_from_a_constant_reference() -> None:
    known, null = learnt(np.ones((500, 3)), 10)
    past = summed(known, np.ones((500, 3)))
    now = np.ones((500, 3))
    now[0] = 9.0
    assert null.p_value(500, mmd2(summed(known, now), past)) > 0.001
    now[:50] = 9.0
    assert null.p_value(500, mmd2(summed(known, now), past)) < 1e-6


def test_a_null_round_trips_and_its_p_value_is_alpha_at_its_limit() -> None:
    _, null = learnt(normals(13, 2_000, 3), 40, 4)
    again = MmdNull.from_dict(json.loads(json.dumps(null.to_dict())))
    for n in (50, 2_000):
        for alpha in (0.05, 1e-3, 1e-9):
            assert again.limit(n, alpha) == null.limit(n, alpha)
            assert null.p_value(n, null.limit(n, alpha)) == pytest.approx(alpha, rel=1e-4)


def test_the_pool_of_the_benchmark_is_what_it_says() -> None:
    pool = Pool.of(2, 100, np.random.default_rng(1))
    assert pool.draw(5 * BLOCK, np.random.default_rng(2), 3).shape == (3, 5, 256)
