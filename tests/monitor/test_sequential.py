"""The e-detector: its inequality, its promise on clean streams of several kinds, what it finds, and exact state."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import sequential as module
from monitor.errors import IncompatibleError
from monitor.moments import Floats
from monitor.sequential import EDetector, EDetectorConfig, Shifts, bet_gain, mean_tolerance
from tests.monitor.builders import BAD_PANES, unreadable

CONFIG = EDetectorConfig(average_run_length=10_000)


def standard_values(rng: np.random.Generator, shape: str, size: tuple[int, ...]) -> Floats:
    """Independent values of mean 0 and variance 1."""
    match shape:
        case "normal":
            values = rng.normal(0, 1, size)
        case "lognormal":
            values = rng.lognormal(0, 1, size) - math.exp(0.5)
            values /= math.sqrt((math.e - 1) * math.e)
        case "bernoulli":
            values = np.where(rng.random(size) < 0.01, 0.99, -0.01) / math.sqrt(0.01 * 0.99)
        case _:
            values = rng.uniform(-math.sqrt(3), math.sqrt(3), size)
    return values


def feed(detector: EDetector, at: int, values: Floats) -> Shifts:
    """A pane of ``(n, k)`` values."""
    n, mean = np.full(values.shape[1], len(values)), values.mean(axis=0)
    return detector.update(at, n, mean, ((values - mean) ** 2).sum(axis=0))


def first_passage(
    rng: np.random.Generator, shape: str, n: int, runs: int, panes: int, log_limit: float
) -> Floats:
    """``(runs,)`` panes until the evidence of one feature alone is at the limit, or ``panes``: each column is a run of its own."""
    detector = EDetector(runs, EDetectorConfig(math.inf))
    first = np.full(runs, panes, dtype=np.float64)
    for t in range(1, panes + 1):
        log_e = feed(detector, t, standard_values(rng, shape, (n, runs))).log_e
        first = np.where((first == panes) & (log_e >= log_limit), t, first)
    return first


@given(
    st.floats(1e-3, math.sqrt(3)),
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0.001, 1)), min_size=2, max_size=6),
    st.floats(0.01, 1),
    st.floats(0, 8),
)
def test_a_bet_on_one_value_gains_nothing_on_average_whatever_the_distribution(
    bet: float, points: list[tuple[float, float]], deviation: float, below: float
) -> None:
    """The inequality that everything rests on, for distributions of up to six points with a variance of at most 1."""
    values, weights = (np.array(column) for column in zip(*points, strict=True))
    weights = weights / weights.sum()
    values = values - weights @ values
    spread = math.sqrt(float(weights @ values**2))
    # Equal values have a mean that is off by a last digit: what is left of them is no distribution around 0.
    if spread > 1e-9:
        values = values / spread * deviation
    assert weights @ np.exp(bet_gain(bet, values - below, 0.0)) <= 1 + 1e-12


def test_the_gain_of_a_pane_is_the_sum_of_the_gains_of_its_values() -> None:
    values = np.random.default_rng(1).normal(0.3, 2, 40)
    single = bet_gain(0.7, values, 0.0).sum()
    assert 40 * bet_gain(0.7, values.mean(), values.var()) == pytest.approx(single, rel=1e-12)


@pytest.mark.parametrize("shape", ["normal", "lognormal", "bernoulli", "uniform"])
@pytest.mark.parametrize("n", [1, 5, 100])
def test_the_average_run_length_is_kept_whatever_the_distribution(shape: str, n: int) -> None:
    """Measured 1.2 to 3 times A: 200 runs that average below A would be 3 standard errors off at the least."""
    runs = first_passage(np.random.default_rng(n), shape, n, 200, 400, math.log(100))
    assert runs.mean() >= 100
    assert np.mean(runs <= 25) <= 0.25 + 3 * math.sqrt(0.25 * 0.75 / 200)


@pytest.mark.parametrize("copies", [1, 20])
def test_a_family_keeps_its_promise_through_restarts_whether_features_are_independent_or_the_same(
    copies: int,
) -> None:
    rng = np.random.default_rng(5)
    families, k, panes = 10, 20, 400
    detectors = [EDetector(k, EDetectorConfig(40)) for _ in range(families)]
    alarms = np.zeros(families)
    for t in range(panes):
        for i, detector in enumerate(detectors):
            values = np.repeat(rng.normal(0, 1, (10, k // copies)), copies, axis=1)
            alarms[i] += feed(detector, t, values).fired.any()
    assert 0 < alarms.mean() <= panes / 40


def autoregressive(rng: np.random.Generator, n: int, k: int, phi: float, before: Floats) -> Floats:
    """``(n, k)`` next values of AR(1) streams of variance 1."""
    values, value = np.empty((n, k)), before
    noise = rng.normal(0, math.sqrt(1 - phi * phi), (n, k))
    for i in range(n):
        value = phi * value + noise[i]
        values[i] = value
    return values


def test_with_the_design_effect_the_run_length_holds_on_autocorrelated_values_too() -> None:
    """AR(1) with phi = 0.9: (1 + phi) / (1 - phi) = 19. Without it every run fires at once."""
    rng = np.random.default_rng(9)
    n, k, panes = 50, 100, 400
    detectors = [EDetector(k, EDetectorConfig(math.inf), design_effect=d) for d in (1.0, 19.0)]
    first = np.full((2, k), panes)
    last = rng.normal(0, 1, k)
    for t in range(1, panes + 1):
        values = autoregressive(rng, n, k, 0.9, last)
        last = values[-1]
        for row, detector in zip(first, detectors, strict=True):
            row[(row == panes) & (feed(detector, t, values).log_e >= math.log(100))] = t
    naive, aware = first.mean(axis=1)
    assert naive < 30
    assert aware >= 100


@pytest.mark.parametrize(
    ("shift", "n", "at_most"),
    [(0.1, 1000, 8), (-0.1, 1000, 8), (0.25, 200, 8), (0.5, 200, 3), (1.0, 5, 20), (-3.0, 5, 6)],
)
def test_a_shift_is_found_soon_with_its_onset_and_its_size(
    shift: float, n: int, at_most: int
) -> None:
    rng = np.random.default_rng(4)
    detector = EDetector(50, CONFIG, center=7.0, variance=4.0)
    for t in range(200):
        assert not feed(detector, t, 7 + 2 * rng.normal(0, 1, (n, 50))).fired.any()
    for t in range(200, 200 + at_most):
        levels = np.where(np.arange(50) == 3, shift, 0.0)
        shifts = feed(detector, t, 7 + 2 * rng.normal(levels, 1, (n, 50)))
        if shifts.fired.any():
            assert np.flatnonzero(shifts.fired).tolist() == [3]
            assert abs(shifts.onset[3] - 200) <= 2
            assert shifts.before[3] == 7.0
            assert shifts.after[3] == pytest.approx(7 + 2 * shift, abs=1.0)
            assert shifts.n_after[3] == (t + 1 - shifts.onset[3]) * n
            assert shifts.log_e[3] >= detector.limit
            return
    pytest.fail("not found")


def test_when_every_feature_moves_every_feature_is_named_at_a_lower_limit_than_alone() -> None:
    detector, alone = EDetector(50, CONFIG), EDetector(50, CONFIG)
    for t in range(100):
        together = detector.update(t, [100] * 50, [0.1] * 50, [100.0] * 50)
        only = alone.update(t, [100] * 50, [0.1] + [0.0] * 49, [100.0] * 50)
        assert not only.fired.any()
        if together.fired.any():
            assert together.fired.all()
            assert together.log_e.max() < detector.limit
            return
    pytest.fail("not found")


def test_what_fired_starts_anew_and_the_others_keep_their_evidence() -> None:
    detector, other = EDetector(2, CONFIG), EDetector(2, CONFIG)
    for t in range(60):
        shifts = detector.update(t, [50, 50], [0.5, 0.05], [50.0, 50.0])
        quiet = other.update(t, [50, 50], [0.0, 0.05], [50.0, 50.0])
        assert shifts.log_e[1] == quiet.log_e[1]
        if shifts.fired[0]:
            again = detector.update(t + 1, [50, 50], [0.5, 0.05], [50.0, 50.0])
            assert again.log_e[0] < shifts.log_e[0] / 2
            return
    pytest.fail("not found")


def test_a_shift_within_the_tolerance_never_fires_however_many_values() -> None:
    n = 10_000_000
    detector = EDetector(4, CONFIG, tolerance=[0.0, 0.1, 0.1, 0.1])
    fired = np.zeros(4, dtype=bool)
    for t in range(300):
        fired |= detector.update(t, [n] * 4, [0.05, 0.099, -0.099, 0.12], [n] * 4).fired
    assert fired.tolist() == [True, False, False, True]


def test_a_few_wild_values_raise_no_alarm_and_a_change_of_unit_does() -> None:
    rng = np.random.default_rng(6)
    detector = EDetector(2, CONFIG)
    for t in range(100):
        values = rng.normal(0, 1, (100, 2))
        values[0, 0] = 1e6 if t % 10 == 0 else 0.0
        assert not feed(detector, t, values).fired.any()
    fired = [feed(detector, t, rng.normal([0, 500], [1, 500], (100, 2))).fired for t in range(3)]
    assert np.any(fired, axis=0).tolist() == [False, True]


def test_a_scale_and_a_centre_change_no_evidence_and_a_mirror_swaps_the_sides() -> None:
    rng = np.random.default_rng(2)
    plain = EDetector(3, CONFIG, tolerance=0.01)
    scaled = EDetector(3, CONFIG, center=-2.0, variance=64.0, tolerance=0.01)
    mirrored = EDetector(3, CONFIG, tolerance=0.01)
    for t in range(50):
        mean, m2 = rng.normal(0, 0.125, 3), rng.chisquare(63, 3)
        shifts = plain.update(t, [64] * 3, mean, m2)
        rescaled = scaled.update(t, [64] * 3, 8 * mean - 2, 64 * m2)
        np.testing.assert_allclose(rescaled.log_e, shifts.log_e, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            mirrored.update(t, [64] * 3, -mean, m2).log_e, shifts.log_e, rtol=1e-9, atol=1e-9
        )


def test_many_features_in_one_call_equal_one_detector_each() -> None:
    rng = np.random.default_rng(4)
    k = 7
    config = EDetectorConfig(math.inf)
    together, single = EDetector(k, config), [EDetector(1, config) for _ in range(k)]
    for t in range(300):
        n = rng.integers(0, 30, k)
        mean, m2 = rng.normal(t // 100 * np.arange(k) / 3, 1), rng.exponential(20, k)
        shifts = together.update(t, n, mean, m2)
        for j, detector in enumerate(single):
            alone = detector.update(t, n[j : j + 1], mean[j : j + 1], m2[j : j + 1])
            assert alone.log_e[0] == pytest.approx(shifts.log_e[j], rel=1e-9)


def test_a_feature_without_values_in_a_pane_is_left_as_it_was() -> None:
    rng = np.random.default_rng(2)
    together, alone = EDetector(2, CONFIG), EDetector(1, EDetectorConfig(20_000))
    for t in range(300):
        mean = rng.normal(t >= 150, 0.2)
        present = t % 3 == 0
        dense = together.update(
            t, [20, 20 * present], [0.0, mean if present else np.nan], [20, 20 if present else -1]
        )
        if present:
            sparse = alone.update(t, [20], [mean], [20.0])
            assert dense.fired[1] == sparse.fired[0]
            assert dense.log_e[1] == pytest.approx(sparse.log_e[0], rel=1e-9)
            assert dense.onset[1] == sparse.onset[0]


def test_a_constant_feature_is_not_watched_and_takes_no_share_of_the_budget() -> None:
    detector = EDetector(3, CONFIG, variance=[1.0, 0.0, 1.0])
    assert detector.limit == EDetector(2, CONFIG).limit
    shifts = detector.update(0, [10**6] * 3, [0.0, 5.0, 1.0], [10.0**6, 0.0, 10.0**6])
    assert shifts.fired.tolist() == [False, False, True]
    assert shifts.log_e[1] == 0.0


@settings(max_examples=15)
@given(st.integers(0, 70), st.integers(0, 1000))
def test_a_restored_detector_goes_on_to_the_same_bit(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(np.repeat([0, 2, 1], 30)[:, None] * [0, 0.5, 1], 1, (90, 3))
    config = EDetectorConfig(50.0, bets=(0.1, 0.5), weights=(3.0, 1.0))
    whole = EDetector(3, config, center=[0, 1, 2], variance=2.0, design_effect=1.5, tolerance=0.01)
    for t in range(cut):
        whole.update(t, [3, 0, 5], means[t], [1.0, 1.0, 2.0])
    resumed = EDetector.restore(whole.snapshot())
    assert resumed.config == config
    assert resumed.snapshot() == whole.snapshot()
    for t in range(cut, 90):
        a, b = (d.update(t, [3, 2, 5], means[t], [1.0, 1.0, 2.0]) for d in (whole, resumed))
        assert (a.fired.tolist(), a.onset.tolist()) == (b.fired.tolist(), b.onset.tolist())
        assert (a.log_e.tolist(), a.after.tolist()) == (b.log_e.tolist(), b.after.tolist())
    assert resumed.snapshot() == whole.snapshot()


@pytest.mark.parametrize(
    "body",
    unreadable(EDetector(2, CONFIG).snapshot()),
)
def test_a_snapshot_that_cannot_be_read_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(IncompatibleError, match="snapshot"):
        EDetector.restore(body)


def test_numbers_at_the_ends_of_the_range_leave_the_evidence_finite() -> None:
    detector = EDetector(4, CONFIG, variance=[1.0, 1e-300, 1e300, 1.0])
    for t in range(20):
        shifts = detector.update(
            t, [1, 10**9, 10**9, 2**53], [1e308, -1e308, 1e-308, 3.0], [0.0, 1e308, 1e308, 0.0]
        )
        assert np.isfinite(shifts.log_e).all()
        assert np.isfinite(shifts.after).all()


def test_a_detector_of_no_features_is_a_detector() -> None:
    detector = EDetector.restore(EDetector(0, CONFIG).snapshot())
    assert detector.update(1, [], [], []).fired.tolist() == []


@pytest.mark.parametrize(("n", "mean", "m2", "message"), BAD_PANES)
def test_a_pane_that_makes_no_sense_is_refused_and_changes_nothing(
    n: list[float], mean: list[float], m2: list[float], message: str
) -> None:
    detector = EDetector(2, CONFIG)
    detector.update(0, [5, 5], [0.0, 0.0], [1.0, 1.0])
    before = detector.snapshot()
    with pytest.raises(ValueError, match=message):
        detector.update(1, n, mean, m2)
    assert detector.snapshot() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"average_run_length": 0.5}, "average_run_length"),
        ({"average_run_length": math.nan}, "average_run_length"),
        ({"bets": ()}, "bets"),
        ({"bets": (0.0,)}, "bets"),
        ({"bets": (2.0,)}, "bets"),
        ({"weights": (1.0,)}, "one per bet"),
        ({"bets": (0.1,), "weights": (0.0,)}, "weights"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    wrong: dict[str, float | tuple[float, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EDetectorConfig(**{"average_run_length": 100.0, **wrong})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("name", "value"),
    [("center", np.nan), ("variance", -1.0), ("design_effect", 0.5), ("tolerance", -0.1)],
)
def test_a_reference_that_makes_no_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        EDetector(2, CONFIG, **{name: [1.0, value]})


def test_the_tolerance_covers_every_mean_of_the_family_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    m, k, references = 400, 50, 2_000
    errors = rng.normal(0, math.sqrt(3 / m), (references, k))  # a design effect of 3
    covered = np.all(np.abs(errors) <= mean_tolerance([m] * k, 3.0, confidence=0.9), axis=1)
    assert covered.mean() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / references))
    assert np.isfinite(mean_tolerance([0, 10], 1.0)).all()
    with pytest.raises(ValueError, match="confidence"):
        mean_tolerance([1], 1.0, confidence=1.0)


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
