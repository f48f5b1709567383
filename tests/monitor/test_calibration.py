"""Limits keep their level: on independent data, on data with windy days, and they are defined where there is little to learn from.

Rates are measured over fixed seeds. Each bound is the level plus a margin of which the binomial law says how likely a
correct implementation would miss it: below 1e-6 each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from monitor.binning import Floats, cut_categorical, cut_numeric
from monitor.calibration import (
    RATES,
    Null,
    calibrate,
    rate_counts,
    rate_design_effect,
)
from monitor.counting import profile_groups
from monitor.distances import group_equal_mass, ks, psi
from monitor.profile import Layout
from monitor.scatter import INDEPENDENT, Scatter
from monitor.spec import WindowSpec
from tests.monitor.builders import DAY, HOUR

ALPHA = 0.05
WINDOWS = WindowSpec(pane=HOUR, sizes=(DAY,))


@dataclass(frozen=True)
class Null1:
    """The null of one numeric field, and what it was learnt from."""

    layout: Layout
    total: np.ndarray
    null: Null


def vectors(layout: Layout, values: Floats) -> np.ndarray:
    """``(windows, size)`` profile vectors of ``(windows, n)`` values of the field x; NaN is missing."""
    windows, n = values.shape
    group = np.repeat(np.arange(windows), n)
    flat = [None if np.isnan(v) else v for v in values.ravel()] if np.isnan(values).any() else values.ravel().tolist()  # fmt: skip
    encoded = {"x": layout.bins["x"].encode(flat)}
    errors = np.zeros(len(group), dtype=bool)
    return np.array([p.vector for p in profile_groups(layout, encoded, errors, group, windows)])


def learn(values: Floats) -> Null1:
    """From a reference of ``(days, n)`` values, a day each."""
    layout = Layout({"x": cut_numeric(values[np.isfinite(values)])})
    blocks = vectors(layout, values)
    return Null1(layout, blocks.sum(axis=0), calibrate(layout, blocks, DAY, WINDOWS)[DAY])


def passed(known: Null1, values: Floats, alpha: float = ALPHA) -> tuple[float, float, float]:
    """Shares of the windows ``(windows, n)`` that pass the PSI, the KS and the missing-rate limit."""
    field = known.layout.fields[0]
    reference = known.total[field.counts]
    current = vectors(known.layout, values)
    n, place = np.unique(current[:, field.counts].sum(axis=1), return_inverse=True)
    limits = np.array([known.null.psi_limit(float(x), alpha)[0] for x in n])[place]
    ks_limits = np.array([known.null.ks_limit(float(x), alpha)[0] for x in n])[place]
    found = psi(reference, current[:, field.counts], starts=group_equal_mass(reference, 10))
    distance = ks(reference, current[:, field.counts]).low
    rates = rate_counts(known.layout, current)[:, 0, 0] / values.shape[1]
    rate_limit = known.null.rate_limit(values.shape[1], alpha)[0, 0]
    return (
        float(np.mean(found > limits)),
        float(np.mean(distance > ks_limits)),
        float(np.mean(rates > rate_limit)),
    )


def most(alpha: float, trials: int) -> float:
    """The share that a test of level ``alpha`` exceeds in ``trials`` with probability 1e-6."""
    return float(stats.binom.isf(1e-6, trials, alpha)) / trials


def drawn(rng: np.random.Generator, shape: str, *size: int) -> Floats:
    if shape == "lognormal":
        return rng.lognormal(0, 1, size)
    values = rng.normal(0, 2, size)
    return np.round(values) if shape == "coarse" else values


@pytest.mark.parametrize("n", [200, 1_000])
@pytest.mark.parametrize("shape", ["normal", "lognormal", "coarse"])
def test_on_independent_data_limits_are_passed_about_as_often_as_they_may_be(
    n: int, shape: str
) -> None:
    rng = np.random.default_rng(20_130_201)
    known = learn(drawn(rng, shape, 400, 200))
    by_psi, by_ks, _ = passed(known, drawn(rng, shape, 3_000, n))
    # One reference's luck, which all of its windows share, moves both by up to a third.
    assert 0.5 * ALPHA < by_psi < most(1.35 * ALPHA, 3_000)
    assert 0.5 * ALPHA < by_ks < most(1.35 * ALPHA, 3_000)


@cache
def _any_null() -> Null:
    return learn(np.arange(40.0)[:, None]).null


def rate_null(m: int, count: float) -> Null:
    """A reference of ``m`` events of which ``count`` had the defect, independently."""
    return replace(
        _any_null(), m=m, rate_counts=np.array([[count]]), rate_correlation=np.zeros((1, 1))
    )


@pytest.mark.parametrize("n", [200, 1_000])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_limit_of_a_rate_is_passed_no_more_often_than_it_may_be(
    n: int, rate: float, alpha: float
) -> None:
    """Counts are whole, so the true rate of breaches lies below alpha, never above. Over references as well: each is a draw."""
    rng = np.random.default_rng(7)
    references, windows, m = 500, 60, 5_000
    breaches = 0
    for x in rng.binomial(m, rate, references):
        null = rate_null(m, float(x))  # fmt: skip
        limit = null.rate_limit(n, alpha)[0, 0]
        breaches += int(np.count_nonzero(rng.binomial(n, rate, windows) / n > limit))
    # Windows of one reference share its luck: 500 references count as at least 500 trials.
    assert breaches / (references * windows) < most(alpha, references)


@pytest.mark.parametrize("x", [0.0, 1.0, 7.0, 5_000.0])
@pytest.mark.parametrize("alpha", [0.05, 1e-4, 1e-8])
def test_the_limit_of_a_rate_is_the_smallest_count_that_keeps_the_level(
    x: float, alpha: float
) -> None:
    m, n = 5_000, 300
    null = rate_null(m, x)
    count = round(null.rate_limit(n, alpha)[0, 0] * n)
    law = stats.betabinom(n, x + 0.5, m - x + 0.5)
    assert count == n or law.sf(count) <= alpha
    assert count == 0 or law.sf(count - 1) > alpha
    for k in {1, 2, max(count, 1), min(count + 1, n)}:
        p = null.rate_p_values(n, np.array([[k]]))[0, 0]
        # Summed from the far end: scipy's survival function is 1 - cdf, and wrong by 1e-11.
        assert p == pytest.approx(law.pmf(np.arange(n, k - 1, -1)).sum(), rel=0.01)


def test_a_rate_without_a_defect_is_no_surprise_and_costs_nothing() -> None:
    null = rate_null(5_000, 3.0)
    assert null.rate_p_values(100, np.array([[0]]))[0, 0] == 1.0


def windy(rng: np.random.Generator, days: int, n: int) -> Floats:
    """Days with a common mean, an AR(1) from day to day: what is windy is windy in every event."""
    mean = np.empty(days)
    level = rng.normal(0, 0.5)
    for day in range(days):
        level = 0.5 * level + rng.normal(0, 0.5 * np.sqrt(0.75))
        mean[day] = level
    return np.asarray(mean[:, None] + rng.normal(0, 1, (days, n)))


def test_windy_days_widen_the_limits_and_clean_data_of_the_same_process_keeps_them() -> None:
    rng = np.random.default_rng(11)
    found, naive = [], []
    for _ in range(60):
        known = learn(windy(rng, 60, 300))
        assert known.null.psi_scatter.dependent[0]
        assert known.null.ks_scatter.dependent[0]
        assert known.null.mean_deff[0] > 10
        fresh = windy(rng, 50, 300)
        found.append(passed(known, fresh))
        textbook = replace(known.null, psi_scatter=Scatter.of(INDEPENDENT), ks_scatter=Scatter.of(INDEPENDENT))  # fmt: skip
        naive.append(passed(Null1(known.layout, known.total, textbook), fresh))
    by_psi, by_ks, _ = np.mean(found, axis=0)
    # 3,000 windows in 60 independent worlds: the mean of 60 shares has a standard error of about 0.007.
    assert 0.3 * ALPHA < by_psi < 2 * ALPHA
    assert 0.3 * ALPHA < by_ks < 2 * ALPHA
    assert np.mean(naive, axis=0)[0] > 0.6  # what the textbook limit would have cried


def test_values_that_are_missing_do_not_make_the_others_look_like_drift() -> None:
    """The smaller a field's own sample, the wider its limit, whatever the size of the window."""
    rng = np.random.default_rng(3)
    known = learn(rng.normal(0, 1, (400, 200)))
    fresh = rng.normal(0, 1, (1_000, 1_000))
    fresh[:, 250:] = np.nan
    by_psi, by_ks, by_rate = passed(known, fresh)
    assert by_psi < most(1.15 * ALPHA, 1_000)
    assert by_ks < most(ALPHA, 1_000)
    assert by_rate == 1.0


def test_outages_that_come_in_clusters_widen_the_limit_of_their_rate() -> None:
    rng = np.random.default_rng(5)
    steady = rng.random((300, 200))
    steady[rng.random((300, 200)) < 0.05] = np.nan
    bursty = rng.random((300, 200))
    bursty[rng.random(300) < 0.1, :100] = np.nan
    calm, wild = learn(steady).null, learn(bursty).null
    assert calm.rate_correlation[0, 0] == 0
    assert wild.rate_correlation[0, 0] > 0.3
    assert wild.rate_limit(200, ALPHA)[0, 0] > 2 * calm.rate_limit(200, ALPHA)[0, 0]


DEGENERATE = {
    "constant": np.full((30, 40), 5.0),
    "one row": np.array([[1.0]]),
    "ten rows, one block": np.arange(10.0)[None, :],
    "ten rows, ten blocks": np.arange(10.0)[:, None],
    "two values": np.tile([0.0, 1.0], (30, 20)),
    "one block": np.random.default_rng(1).normal(0, 1, (1, 500)),
    "three blocks": np.random.default_rng(1).normal(0, 1, (3, 100)),
    "all missing": np.full((30, 40), np.nan),
    "missing but for a day": np.vstack((np.full((29, 40), np.nan), np.ones((1, 40)))),
    "huge values": np.random.default_rng(1).normal(0, 1e300, (30, 40)),
    "a trend": np.arange(1_200.0).reshape(30, 40),
}


@pytest.mark.parametrize("values", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("n", [1, 50, 10**6])
@pytest.mark.parametrize("alpha", [0.05, 1e-9])
def test_little_to_learn_from_still_gives_limits(values: Floats, n: int, alpha: float) -> None:
    null = learn(values).null
    for limit in (null.psi_limit(n, alpha), null.ks_limit(n, alpha)):
        assert limit.shape == (1,)
        assert np.isfinite(limit).all()
        assert (limit > 0).all()
    rates = null.rate_limit(n, alpha)
    assert rates.shape == (1, len(RATES))
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    for p in (null.psi_p_values(n, np.full(1, 0.3)), null.ks_p_values(n, np.full(1, 0.3))):
        assert p.shape == (1,)
        assert 0 <= p[0] <= 1
    again = Null.from_dict(null.to_dict())
    assert again.to_dict() == null.to_dict()


@pytest.mark.parametrize("n", [35.0, 700.0, 1e6])
@pytest.mark.parametrize("days", ["windy", "independent"])
def test_limits_and_p_values_are_two_sides_of_one_law(n: float, days: str) -> None:
    rng = np.random.default_rng(1)
    values = windy(rng, 60, 100) if days == "windy" else rng.normal(0, 1, (60, 100))
    null = learn(values).null
    assert null.psi_scatter.dependent[0] == (days == "windy")
    for alpha in (0.2, 0.01, 1e-3, 1e-7):
        by_psi = null.psi_p_values(n, null.psi_limit(n, alpha))
        by_ks = null.ks_p_values(n, null.ks_limit(n, alpha))
        assert by_psi[0] == pytest.approx(alpha, rel=1e-6)
        assert by_ks[0] == pytest.approx(alpha, rel=1e-6)


def test_p_values_fall_as_the_statistic_grows_down_to_a_millionth_and_below() -> None:
    for values in (
        windy(np.random.default_rng(1), 60, 100),
        np.random.default_rng(2).normal(0, 1, (60, 100)),
    ):
        null = learn(values).null
        for found, largest in ((null.psi_p_values, 30.0), (null.ks_p_values, 1.0)):
            grid = np.linspace(0.001, largest, 300)
            p = np.array([found(300.0, np.full(1, x))[0] for x in grid])
            assert (np.diff(p) <= 0).all()
            assert p[0] > 0.9
            assert p[-1] < 1e-3


def test_fields_have_limits_of_their_own_for_samples_and_levels_of_their_own() -> None:
    rng = np.random.default_rng(4)
    layout = Layout({name: cut_numeric(rng.normal(0, 1, 500)) for name in ("x", "y")})
    values = rng.normal(0, 1, 4_000)
    encoded = {name: layout.bins[name].encode(values.tolist()) for name in ("x", "y")}
    group = np.repeat(np.arange(40), 100)
    profiles = profile_groups(layout, encoded, np.zeros(4_000, dtype=bool), group, 40)
    null = calibrate(layout, np.array([p.vector for p in profiles]), DAY, WINDOWS)[DAY]
    together = null.psi_limit(np.array([50.0, 5_000.0]), np.array([0.05, 1e-4]))
    assert together[0] == null.psi_limit(50.0, 0.05)[0]
    assert together[1] == null.psi_limit(5_000.0, 1e-4)[1]
    together = null.ks_limit(np.array([50.0, 5_000.0]), np.array([0.05, 1e-4]))
    assert together[0] == null.ks_limit(50.0, 0.05)[0]
    assert together[1] == null.ks_limit(5_000.0, 1e-4)[1]


def test_a_size_that_the_reference_hardly_covers_borrows_from_the_longest_that_it_does() -> None:
    layout = Layout({"x": cut_numeric(np.arange(100.0))})
    blocks = vectors(layout, np.random.default_rng(1).uniform(0, 100, (24, 50)))
    nulls = calibrate(layout, blocks, HOUR, WindowSpec(pane=HOUR, sizes=(6 * HOUR, 30 * DAY)))
    assert set(nulls) == {HOUR, 6 * HOUR, 30 * DAY}
    assert nulls[30 * DAY].to_dict() == nulls[6 * HOUR].to_dict()


def test_a_new_value_is_expected_as_often_as_the_reference_itself_brought_one() -> None:
    """Each block brings one category that no other has: the bins know them all, a new window will bring another."""
    texts = [["a"] * 49 + [f"new-{i}"] for i in range(40)]
    flat = [t for block in texts for t in block]
    layout = Layout({"x": cut_categorical({t: flat.count(t) for t in set(flat)})})
    group = np.repeat(np.arange(40), 50)
    encoded = {"x": layout.bins["x"].encode(flat)}
    errors = np.zeros(len(flat), dtype=bool)
    blocks = np.array([p.vector for p in profile_groups(layout, encoded, errors, group, 40)])
    null = calibrate(layout, blocks, DAY, WINDOWS)[DAY]
    assert null.rate_counts[0, RATES.index("unseen")] == 40
    assert null.rate_limit(50, 0.01)[0, RATES.index("unseen")] >= 3 / 50


@pytest.mark.parametrize(
    ("blocks", "low", "high"),
    [
        pytest.param([], 1, 1, id="nothing"),
        pytest.param([(10, 5)], 1, 1, id="one block"),
        pytest.param([(100, 0)] * 50, 1, 1, id="never"),
        pytest.param([(100, 100)] * 50, 1, 1, id="always"),
        pytest.param([(0, 0)] * 50, 1, 1, id="no labels"),
        pytest.param([(100, 50)] * 50, 1, 1, id="steadier than chance"),
        pytest.param([(100, 90), (100, 10)] * 25, 40, 101, id="good and bad days"),
    ],
)
def test_the_design_effect_of_a_share(
    blocks: list[tuple[int, int]], low: float, high: float
) -> None:
    counts = np.array(blocks, dtype=np.int64).reshape(-1, 2)
    assert low <= rate_design_effect(counts, 1) <= high


@pytest.mark.parametrize("n", [200, 2_000, 12_500, 10**6])
def test_two_equal_categories_of_a_short_reference_keep_a_law_at_every_window_size(n: int) -> None:
    flat = ["a", "b"] * 50
    layout = Layout({"x": cut_categorical({"a": 50, "b": 50})})
    group = np.repeat(np.arange(10), 10)
    blocks = np.array([p.vector for p in profile_groups(layout, {"x": layout.bins["x"].encode(flat)}, np.zeros(100, dtype=bool), group, 10)])  # fmt: skip
    null = calibrate(layout, blocks, DAY, WINDOWS)[DAY]
    limits = [null.psi_limit(float(n), alpha)[0] for alpha in (0.05, 1e-3, 1e-6)]
    assert np.all(np.isfinite(limits))
    assert np.all(np.diff(limits) > 0)
    assert 0 < null.psi_p_values(float(n), np.array([0.5]))[0] < 0.05


@pytest.mark.parametrize("bursty", [False, True])
def test_errors_of_requests_pass_their_limit_as_often_as_the_level_says(bursty: bool) -> None:
    """600 windows at 1 %: of a right limit more than 20 pass it with a chance of 1e-6. Errors that come in bursts are known to."""
    rng, n, alpha, passed = np.random.default_rng(11), 500, 0.01, 0
    layout = Layout({"x": cut_numeric(np.zeros(1))})

    def days(count: int) -> np.ndarray:
        share = rng.beta(0.5, 24.5, count) if bursty else np.full(count, 0.02)
        found = np.zeros((count, layout.size), dtype=np.int64)
        found[:, 0], found[:, 1] = n, rng.binomial(n, share)
        return found

    for _ in range(6):
        null = calibrate(layout, days(200), DAY, WINDOWS)[DAY]
        limit = null.error_limit(n, alpha)
        passed += int(np.count_nonzero(days(100)[:, 1] / n > limit))
        at_limit, beyond = (null.error_p_value(n, round(limit * n) + more) for more in (0, 1))
        assert at_limit > alpha >= beyond
        assert null.error_p_value(n, 0) == 1.0
        assert (limit > 0.1) == bursty
    assert passed <= 20
