"""The law of a count is scipy's beta-binomial, and windows that are wholly missing are as likely as the reference says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitor.rates import (
    LARGEST_CORRELATION,
    intra_window_correlation,
    largest_likely,
    tail_probabilities,
)


def tail(n: int, count: int, x: float, m: float, rho: float = 0.0) -> float:
    one = np.ones(1)
    return float(tail_probabilities(n, count * one, x * one, m, rho * one)[0])


def limit(n: int, x: float, m: float, alpha: float, rho: float = 0.0) -> int:
    one = np.ones(1)
    return int(largest_likely(n, x * one, m, rho * one, alpha)[0])


def law(n: int, x: float, m: float, rho: float) -> Any:
    """The two sources of scatter joined as the module's docstring says."""
    known = 1 + (n - 1) * rho
    a, b = x / known + 0.5, (m - x) / known + 0.5
    share = (1 + rho * (a + b)) / (a + b + 1)
    precision = 1 / share - 1
    return stats.betabinom(n, a / (a + b) * precision, b / (a + b) * precision)


SIZES = st.integers(1, 3_000)
SHARES = st.floats(0, 1)
RHO = st.one_of(st.just(0.0), st.floats(1e-5, LARGEST_CORRELATION))


@given(SIZES, st.integers(10, 10**6), SHARES, SHARES, RHO)
def test_tails_are_sums_of_the_beta_binomial(
    n: int, m: int, share: float, at: float, rho: float
) -> None:
    x, count = float(int(m * share)), max(1, int(n * at))
    exact = float(np.exp(law(n, x, m, rho).logpmf(np.arange(count, n + 1))).sum())
    found = tail(n, count, x, m, rho)
    if exact > 1e-250:
        assert found == pytest.approx(exact, rel=0.02)
    else:
        assert found < 1e-240


@given(SIZES, st.integers(10, 10**6), SHARES, st.floats(1e-12, 0.5), RHO)
def test_the_limit_is_the_largest_count_that_is_likelier_than_alpha(
    n: int, m: int, share: float, alpha: float, rho: float
) -> None:
    x = float(int(m * share))
    count = limit(n, x, m, alpha, rho)
    assert count == 0 or tail(n, count, x, m, rho) > alpha * 0.97
    assert count == n or tail(n, count + 1, x, m, rho) <= alpha * 1.03


def test_independent_counts_without_a_doubt_about_the_rate_are_binomial() -> None:
    assert tail(200, 30, 0.1 * 10**9, 10**9) == pytest.approx(
        stats.binom.sf(29, 200, 0.1), rel=1e-3
    )


@pytest.mark.parametrize("n", [5, 20, 27, 400])
def test_a_sensor_that_is_away_for_whole_windows_is_no_news_however_many_events_it_misses(
    n: int,
) -> None:
    """One hour in ten is wholly missing in the reference: so it may be again."""
    assert tail(n, n, 100.0 * n, 1_000.0 * n, LARGEST_CORRELATION) > 0.07
    assert limit(n, 100.0 * n, 1_000.0 * n, 1e-3, LARGEST_CORRELATION) == n
    assert tail(n, n, 100.0 * n, 1_000.0 * n) < 1e-3


def test_what_a_reference_always_misses_a_window_may_miss() -> None:
    assert limit(10_000, 200.0, 200.0, 1e-9) == 10_000


def test_runs_of_defects_have_an_exponential_tail_with_the_length_of_the_runs() -> None:
    """Rate 1e-4, runs of about n rho = 10 events: each 23 more are a tenth as likely."""
    ratio = tail(1_000, 46, 100.0, 10**6, 0.01) / tail(1_000, 23, 100.0, 10**6, 0.01)
    assert 0.05 < ratio < 0.15


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.5, 0.9])
def test_the_correlation_of_simulated_windows_is_found(rho: float) -> None:
    rng = np.random.default_rng(5)
    n = rng.integers(20, 200, 4_000)
    rates = np.full(len(n), 0.2)
    if rho > 0:
        precision = 1 / rho - 1
        rates = rng.beta(0.2 * precision, 0.8 * precision, len(n))
    found = intra_window_correlation(rng.binomial(n, rates), n.astype(np.float64))
    assert found == pytest.approx(min(rho, LARGEST_CORRELATION), rel=0.15, abs=2e-3)


def test_what_two_windows_have_shown_is_taken_larger() -> None:
    n, counts = np.full(100, 500.0), np.zeros(100, dtype=np.int64)
    counts[[3, 70]] = 10
    few = intra_window_correlation(counts, n)
    many = intra_window_correlation(np.tile(counts, 100), np.tile(n, 100))
    assert few > 1.8 * many


@pytest.mark.parametrize(
    ("counts", "n"),
    [([], []), ([0, 0], [5, 5]), ([5, 5], [5, 5]), ([1, 0], [1, 1]), ([3], [9])],
    ids=["nothing", "never", "always", "windows of one event", "one window"],
)
def test_windows_that_cannot_tell_are_independent(counts: list[int], n: list[int]) -> None:
    assert intra_window_correlation(np.array(counts, dtype=np.int64), np.array(n, dtype=float)) == 0
