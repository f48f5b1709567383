"""Control charts on panes: river's Page-Hinkley with unit weights, the textbook's CUSUM, run lengths, exact snapshots."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from monitor import charts as module
from monitor.charts import (
    Cusum,
    CusumConfig,
    Direction,
    PageHinkley,
    PageHinkleyConfig,
    cusum_run_length,
    cusum_threshold,
)
from monitor.errors import IncompatibleError
from monitor.moments import Floats
from tests.monitor.builders import BAD_PANES, unreadable

MODES: dict[Direction, str] = {"both": "both", "rise": "up", "fall": "down"}
Chart = PageHinkley | Cusum


def river_alarms(stream: Floats, config: PageHinkleyConfig) -> list[int]:
    detector = drift.PageHinkley(
        min_instances=config.min_instances,
        delta=config.delta,
        threshold=config.threshold,
        alpha=config.alpha,
        mode=MODES[config.direction],
    )
    alarms = []
    for i, value in enumerate(stream):
        detector.update(float(value))  # type: ignore[no-untyped-call]  # the same
        if detector.drift_detected:
            alarms.append(i)
    return alarms


def our_alarms(chart: Chart, streams: Floats) -> list[list[int]]:
    """Alarms of each column of ``(values, k)``, fed one row at a time."""
    ones, zeros = np.ones(chart.features), np.zeros(chart.features)
    fired = [chart.update(i, ones, row, zeros).fired for i, row in enumerate(streams)]
    return [np.flatnonzero(column).tolist() for column in np.array(fired).T]


def river_test_stream() -> Floats:
    """The stream of river's own detector tests."""
    rng = np.random.RandomState(12345)
    return np.concatenate((rng.randint(2, size=1000), rng.randint(8, size=1000))).astype(np.float64)


def levels(rng: np.random.Generator, values: int, k: int) -> Floats:
    """``(values, k)`` noise of many sizes around levels that jump."""
    lengths = rng.integers(50, values, k)
    jumps = [rng.normal(0, 1, values // n + 1).repeat(n)[:values] for n in lengths]
    return np.asarray(
        np.column_stack(jumps) + rng.normal(0, rng.choice([0.1, 1, 5], k), (values, k))
    )


def test_on_rivers_test_stream_page_hinkley_fires_where_river_does() -> None:
    stream = river_test_stream()
    ours = our_alarms(PageHinkley(1), stream[:, None])
    assert ours == [river_alarms(stream, PageHinkleyConfig())] == [[1020, 1397, 1548, 1988]]


@settings(max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([5.0, 50.0]),
    st.sampled_from([0.0, 0.005, 0.3]),
    st.sampled_from([0.9, 0.9999, 1.0]),
    st.integers(1, 60),
    st.sampled_from(["both", "rise", "fall"]),
)
def test_single_values_fire_where_river_fires(  # one argument per setting
    seed: int, threshold: float, delta: float, alpha: float, least: int, direction: Direction
) -> None:
    config = PageHinkleyConfig(threshold, delta, alpha, least, direction)
    streams = levels(np.random.default_rng(seed), 600, 10)
    expected = [river_alarms(column, config) for column in streams.T]
    assert our_alarms(PageHinkley(10, config), streams) == expected


def test_with_other_defaults_than_rivers_there_would_be_nothing_to_compare() -> None:
    """The streams above fire: a comparison of silences says nothing."""
    streams = levels(np.random.default_rng(0), 600, 10)
    assert sum(map(len, our_alarms(PageHinkley(10), streams))) > 10


def repeated(chart: Chart, panes: list[tuple[int, float]], *, split: bool) -> list[bool]:
    """Whether each pane of ``(n, mean)`` fired, given whole or value by value."""
    fired = []
    for at, (n, mean) in enumerate(panes):
        steps = [1] * n if split else [n]
        alarms = [chart.update(at, [s], [mean], [0.0]).fired[0] for s in steps]
        fired.append(any(alarms))
    return fired


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(-2, 2)), min_size=1, max_size=15),
    st.booleans(),
)
def test_a_pane_counts_as_its_values_one_by_one_at_their_mean(
    panes: list[tuple[int, float]], cusum: bool
) -> None:
    """Up to the first alarm: what a pane has left after one is not fed to the new chart."""
    charts: list[Chart] = (
        [Cusum(1, CusumConfig(25.0)) for _ in range(2)]
        if cusum
        else [PageHinkley(1, PageHinkleyConfig(1e9, alpha=1.0)) for _ in range(2)]
    )
    whole, single = (repeated(chart, panes, split=i == 1) for i, chart in enumerate(charts))
    if any(single):
        first = single.index(True)
        assert whole[: first + 1] == single[: first + 1]
    else:
        assert not any(whole)
        np.testing.assert_allclose(charts[0].height, charts[1].height, rtol=1e-9, atol=1e-9)


def test_forgetting_over_a_pane_is_nearly_that_over_its_values() -> None:
    config = PageHinkleyConfig(1e9)
    whole, single = PageHinkley(1, config), PageHinkley(1, config)
    panes = [(100, 0.0)] * 10 + [(100, 0.4)] * 5
    repeated(whole, panes, split=False)
    repeated(single, panes, split=True)
    np.testing.assert_allclose(whole.height, single.height, rtol=0.01)


def test_cusum_is_the_textbooks() -> None:
    """Montgomery, table 9.2: mean 10, standard deviation 1, slack 0.5, threshold 5: the upper sum passes 5 at observation 29."""
    observations = [9.45, 7.99, 9.29, 11.66, 12.16, 10.18, 8.04, 11.46, 9.20, 10.34]
    observations += [9.03, 11.47, 10.51, 9.40, 10.08, 9.37, 10.62, 10.31, 8.52, 10.84]
    observations += [10.90, 9.33, 12.29, 11.50, 10.60, 11.08, 10.38, 11.62, 11.31, 10.52]
    chart = Cusum(1, CusumConfig(5.0, slack=0.5))
    for i, x in enumerate(observations, start=1):
        changes = chart.update(i, [1], [x - 10], [0.0])
        if changes.fired[0]:
            assert i == 29
            assert changes.onset[0] == 23
            assert changes.n_after[0] == 7
            assert changes.after[0] == pytest.approx(np.mean(observations[22:29]) - 10)
            return
    pytest.fail("not found")


@pytest.mark.parametrize("chart", [PageHinkley(3), Cusum(3, CusumConfig(50.0, slack=0.1))])
def test_a_shift_is_found_with_its_onset_and_the_means_on_both_sides(chart: Chart) -> None:
    rng = np.random.default_rng(5)
    for t in range(100):
        level = np.where(t < 60, 0.0, [0.0, 0.5, -0.5])
        changes = chart.update(t, [100] * 3, rng.normal(level, 0.02), [100.0] * 3)
        if t < 60:
            assert not changes.fired.any()
        if changes.fired[1]:
            assert 55 <= changes.onset[1] <= 60
            assert changes.before[1] == pytest.approx(0.0, abs=0.06)
            assert 0.1 < changes.after[1] < 0.6
            assert changes.n_after[1] == (t + 1 - changes.onset[1]) * 100
            assert changes.fired.tolist() == [False, True, changes.fired[2]]
            return
    pytest.fail("not found")


@pytest.mark.parametrize(
    ("direction", "up", "down"), [("rise", True, False), ("fall", False, True)]
)
@pytest.mark.parametrize("cusum", [True, False])
def test_a_one_sided_chart_fires_on_its_side_only(
    direction: Direction, up: bool, down: bool, cusum: bool
) -> None:
    chart: Chart = (
        Cusum(2, CusumConfig(50.0, direction=direction))
        if cusum
        else PageHinkley(2, PageHinkleyConfig(direction=direction))
    )
    fired = np.zeros(2, dtype=bool)
    for t in range(40):
        level = 0.6 * (t >= 20)
        fired |= chart.update(t, [50, 50], [level, -level], [50.0, 50.0]).fired
    assert fired.tolist() == [up, down]


@pytest.mark.parametrize(
    ("slack", "values", "sides"),
    [(0.5, 1.0, 1), (0.25, 1.0, 2), (0.0, 1.0, 2), (0.05, 100.0, 2), (0.25, 10.0, 1)],
)
def test_the_threshold_gives_the_run_length_that_was_asked_for(
    slack: float, values: float, sides: int
) -> None:
    """1,500 charts of about 60 panes: a standard error of 2 % and Siegmund's own error, against a bound of 12 %."""
    rng = np.random.default_rng(int(100 * slack + values))
    runs, limit = 1_500, 400
    direction: Direction = "both" if sides == 2 else "rise"
    threshold = cusum_threshold(60, slack, values=values, sides=sides)
    chart = Cusum(runs, CusumConfig(threshold, slack, direction), design_effect=2.0)
    first = np.full(runs, limit)
    n, zeros = np.full(runs, 2 * values), np.zeros(runs)
    for t in range(1, limit + 1):
        fired = chart.update(t, n, rng.normal(0, 1 / math.sqrt(values), runs), zeros).fired
        first[(first == limit) & fired] = t
    assert first.sum() / np.count_nonzero(first < limit) == pytest.approx(60, rel=0.12)


def test_siegmunds_approximation_is_near_the_exact_run_lengths_of_the_literature() -> None:
    """Slack 0.5, threshold 4: 168 panes on both sides when nothing is wrong, 8.38 after a shift of 1 (Montgomery, table 9.3)."""
    assert cusum_run_length(4, 0.5) == pytest.approx(168, rel=0.02)
    assert cusum_run_length(4, 0.5, shift=1.0) == pytest.approx(8.38, rel=0.02)
    assert cusum_run_length(4, 0.5, shift=0.5, sides=1) == pytest.approx(26.6, rel=0.02)


@given(st.floats(10, 1e9), st.floats(0, 0.5), st.floats(0.5, 4), st.sampled_from([1, 2]))
def test_threshold_and_run_length_undo_each_other(
    run_length: float, slack: float, values: float, sides: int
) -> None:
    threshold = cusum_threshold(run_length, slack, values=values, sides=sides)
    assert cusum_run_length(threshold, slack, values=values, sides=sides) == pytest.approx(
        run_length, rel=1e-5
    )


def test_a_run_length_that_no_threshold_has_is_refused() -> None:
    with pytest.raises(ValueError, match="whatever the threshold"):
        cusum_threshold(100, 0.5, values=1000)
    with pytest.raises(ValueError, match="at least 1"):
        cusum_threshold(0.5, 0.5)


def test_autocorrelated_values_fire_far_more_without_the_design_effect() -> None:
    """AR(1) with phi = 0.9 in panes of 50: the design effect is (1 + phi) / (1 - phi) = 19."""
    rng = np.random.default_rng(8)
    k, n, alarms = 200, 50, np.zeros(2)
    charts = [Cusum(k, CusumConfig(12.0, 0.1), design_effect=d) for d in (1.0, 19.0)]
    value = rng.normal(0, 1, k)
    for t in range(60):
        total = np.zeros(k)
        for _ in range(n):
            value = 0.9 * value + rng.normal(0, math.sqrt(0.19), k)
            total += value
        for i, chart in enumerate(charts):
            alarms[i] += chart.update(t, np.full(k, n), total / n, np.zeros(k)).fired.sum()
    expected = 200 * 60 / cusum_run_length(12.0, 0.1, values=50 / 19)
    assert alarms[0] > 5 * expected
    assert alarms[1] < 1.3 * expected


def test_a_feature_without_values_in_a_pane_is_left_as_it_was() -> None:
    rng = np.random.default_rng(2)
    for make in (PageHinkley, lambda k: Cusum(k, CusumConfig(20.0))):
        together, alone = make(2), make(1)
        for t in range(200):
            mean = rng.normal(t >= 100, 0.2)
            present = t % 3 == 0
            dense = together.update(
                t, [20, 20 * present], [0.0, mean if present else np.nan], [1.0, -1.0 + 2 * present]
            )
            if present:
                sparse = alone.update(t, [20], [mean], [1.0])
                assert (dense.fired[1], dense.onset[1]) == (sparse.fired[0], sparse.onset[0])
                assert dense.after[1] == sparse.after[0]


@settings(max_examples=15)
@given(st.integers(0, 100), st.integers(0, 1000), st.booleans())
def test_a_restored_chart_goes_on_to_the_same_bit(cut: int, seed: int, cusum: bool) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(np.repeat([0, 2, 1], 40)[:, None] * [0, 0.5, 1], 1, (120, 3))
    whole: Chart = (
        Cusum(3, CusumConfig(9.0, 0.1, "rise"), design_effect=[1.0, 1.5, 2.0])
        if cusum
        else PageHinkley(3, PageHinkleyConfig(9.0, 0.01, 0.99, 5))
    )
    for t in range(cut):
        whole.update(t, [3, 0, 5], means[t], [1.0, 1.0, 2.0])
    resumed = type(whole).restore(whole.snapshot())
    assert resumed.config == whole.config
    assert resumed.snapshot() == whole.snapshot()
    for t in range(cut, 120):
        a, b = (c.update(t, [3, 2, 5], means[t], [1.0, 1.0, 2.0]) for c in (whole, resumed))
        assert (a.fired.tolist(), a.onset.tolist()) == (b.fired.tolist(), b.onset.tolist())
    assert resumed.snapshot() == whole.snapshot()


@pytest.mark.parametrize(
    "body",
    [
        *unreadable(PageHinkley(2).snapshot()),
        pytest.param(Cusum(2, CusumConfig(5.0)).snapshot(), id="another chart"),
    ],
)
def test_a_snapshot_that_cannot_be_read_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(IncompatibleError, match="snapshot"):
        PageHinkley.restore(body)


@pytest.mark.parametrize(("n", "mean", "m2", "message"), BAD_PANES)
@pytest.mark.parametrize("chart", [PageHinkley(2), Cusum(2, CusumConfig(5.0))])
def test_a_pane_that_makes_no_sense_is_refused_and_changes_nothing(
    chart: Chart, n: list[float], mean: list[float], m2: list[float], message: str
) -> None:
    before = chart.snapshot()
    with pytest.raises(ValueError, match=message):
        chart.update(1, n, mean, m2)
    assert chart.snapshot() == before


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"threshold": 0.0}, {"delta": -1.0}, {"alpha": 0.0}, {"min_instances": 0}):
        with pytest.raises(ValueError, match=r"threshold|alpha|min_instances"):
            PageHinkleyConfig(**wrong)
    for threshold, slack in ((0.0, 0.5), (5.0, -0.1), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="threshold"):
            CusumConfig(threshold, slack)
    with pytest.raises(ValueError, match="direction"):
        CusumConfig(5.0, direction="up")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="design_effect"):
        Cusum(2, CusumConfig(5.0), design_effect=[1.0, 0.5])


@pytest.mark.parametrize("chart", [PageHinkley(2), Cusum(2, CusumConfig(5.0))])
def test_numbers_at_the_ends_of_the_range_leave_the_sums_finite(chart: Chart) -> None:
    for t in range(20):
        changes = chart.update(t, [1, 2**53], [1e308, -1e308 * (t > 10)], [0.0, 1e308])
        assert np.isfinite(chart.height).all()
        assert np.isfinite(changes.after).all()


def test_a_chart_of_no_features_is_a_chart() -> None:
    chart = PageHinkley.restore(PageHinkley(0).snapshot())
    assert chart.update(1, [], [], []).fired.tolist() == []


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
