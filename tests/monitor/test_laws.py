"""The independence laws against simulations of what they describe. Seeds are fixed; bounds are four standard errors or more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from monitor import laws
from monitor.binning import Floats
from monitor.distances import psi

TRIALS = 20_000


def windows(rng: np.random.Generator, weights: Floats, n: int) -> np.ndarray:
    """``(TRIALS, bins)`` Dirichlet-multinomial counts."""
    return rng.multinomial(n, rng.dirichlet(weights, TRIALS))


@pytest.mark.parametrize(
    ("bins", "n", "percent"),
    [
        (5, 50, 66.7),
        (5, 100, 30.9),
        (5, 200, 4.5),
        (5, 500, 0.0),
        (10, 50, 98.6),
        (10, 100, 85.3),
        (10, 200, 36.3),
        (10, 500, 0.2),
        (20, 50, 100.0),
        (20, 200, 96.2),
        (20, 500, 17.7),
    ],
)
def test_the_usual_rule_of_a_tenth_cries_on_clean_data_as_often_as_published(
    bins: int, n: int, percent: float
) -> None:
    """PSI > 0.1 with n = m and no smoothing: a constant limit is no limit. An empty group makes PSI infinite, here merely large."""
    rng = np.random.default_rng(3)
    counts = np.diff(np.arange(bins + 1) * n // bins).astype(np.float64)
    weights = counts + (np.arange(bins) == 0)
    found = psi(counts, windows(rng, weights, n), smoothing=1e-12)
    share = percent / 100
    error = np.sqrt(max(share * (1 - share), 0.001) / TRIALS)
    assert np.mean(found > 0.1) == pytest.approx(share, abs=4 * error + 0.005)


@pytest.mark.parametrize("counts", [[50.0] * 10, [25.0] * 20, [400.0, 60.0, 30.0, 8.0, 2.0]])
@pytest.mark.parametrize("node", [1, 3])
def test_the_moments_of_psi_are_those_of_a_simulation(counts: list[float], node: int) -> None:
    reference = np.array(counts)
    n, m, dof = int(laws.NODES[node]), float(reference.sum()), len(counts) - 1
    weights = reference + 0.5
    found = psi(reference, windows(np.random.default_rng(5), weights, n)) / (1 / n + 1 / m)
    mean, variance, _ = laws.psi_moments(reference, weights)[node]
    assert found.mean() == pytest.approx(mean * dof, abs=5 * found.std() / np.sqrt(TRIALS))
    assert found.var() == pytest.approx(variance * 2 * dof, rel=0.1)


def test_with_plenty_of_events_psi_is_chi_square() -> None:
    table = laws.psi_moments(np.full(10, 1e5), np.full(10, 1e5))
    assert table[-1] == pytest.approx(np.ones(3), abs=1e-3)
    assert table[0][0] < 0.9  # with two expected events a group it is not


@pytest.mark.parametrize("bins", [2, 5, 20, 128])
def test_on_bins_the_largest_distance_is_the_bridges_at_the_edges(bins: int) -> None:
    rng = np.random.default_rng(6)
    steps = rng.standard_normal((TRIALS, bins)) / np.sqrt(bins)
    walk = np.cumsum(steps, axis=1)
    t = np.arange(1, bins + 1) / bins
    largest = np.abs(walk - t * walk[:, -1:]).max(axis=1)
    quantiles = laws.ks_quantiles(np.full(bins, 1e6))[-1] * laws.KS_QUANTILES
    for level, quantile in zip(laws.KS_LEVELS[:3], quantiles, strict=False):
        error = np.sqrt(level * (1 - level) / TRIALS)
        assert np.mean(largest > quantile) == pytest.approx(level, abs=4.5 * error)
    assert (quantiles < laws.KS_QUANTILES).all()


def test_where_nearly_all_values_are_equal_small_windows_have_the_tail_of_rare_events() -> None:
    """95 dry hours in 100: the normal law allows too little by a factor of ten at 0.001."""
    rng = np.random.default_rng(7)
    weights = np.array([950.0, 20.0, 20.0, 10.0])
    n, m = 50, weights.sum()
    share = np.cumsum(windows(rng, weights, n), axis=1) / n
    found = np.abs(share - np.cumsum(weights) / m).max(axis=1) / np.sqrt(1 / n + 1 / m)
    quantile = laws.ks_quantiles(weights)[1] * laws.KS_QUANTILES
    assert 0.3 * 0.005 < np.mean(found > quantile[2]) < 1.7 * 0.005
    widest = np.sqrt(0.05 * 0.95)
    assert quantile[3] > 1.3 * widest * special.ndtri(1 - 0.5e-4)


@pytest.mark.parametrize("weights", [[5.0], [5.0, 0.0], [0.0, 0.0, 7.0]])
def test_a_field_with_one_value_has_no_distance_and_an_ordinary_law(weights: list[float]) -> None:
    assert (laws.ks_quantiles(np.array(weights)) == 1).all()
    assert (laws.psi_moments(np.array([5.0]), np.array([5.5])) == 1).all()
