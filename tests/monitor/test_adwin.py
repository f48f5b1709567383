"""ADWIN on panes: river's alarms with unit weights, one pane for many values, exact snapshots, many features at once."""

from __future__ import annotations

import doctest
import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from river import drift
from river.drift import datasets

from monitor import adwin as module
from monitor.adwin import Adwin, AdwinConfig, Changes
from monitor.binning import Floats
from monitor.errors import IncompatibleError
from tests.monitor.builders import BAD_PANES, unreadable


def river_alarms(stream: Iterable[float], **settings: float) -> list[int]:
    detector = drift.ADWIN(**settings)  # type: ignore[no-untyped-call]  # river has no types
    alarms = []
    for i, value in enumerate(stream):
        detector.update(float(value))  # type: ignore[no-untyped-call]  # the same
        if detector.drift_detected:
            alarms.append(i)
    return alarms


def our_alarms(streams: Floats, config: AdwinConfig | None = None) -> list[list[int]]:
    """Alarms of each column of ``(values, k)``, fed one row at a time."""
    values, k = streams.shape
    adwin, ones, zeros = Adwin(k, config), np.ones(k), np.zeros(k)
    fired = np.array([adwin.update(i, ones, streams[i], zeros).fired for i in range(values)])
    return [np.flatnonzero(column).tolist() for column in fired.T]


def few_and_many(stream: Floats) -> list[list[int]]:
    """The alarms on one stream, alone and as the last of eight that restart at other times."""
    among = np.column_stack([np.roll(stream, i) for i in range(1, 8)] + [stream])
    return [our_alarms(stream[:, None])[0], our_alarms(among)[-1]]


def river_test_streams() -> dict[str, Floats]:
    """The streams of river's own tests of its detectors, and those that ADWIN's have besides."""
    rng, rates, places = (np.random.RandomState(12345) for _ in range(3))
    draw = random.Random(42)
    turns = [draw.choices(of, k=1000) for of in ([0, 1], range(4, 8), [0, 1], range(4, 8))]
    return {
        "levels": np.concatenate((rng.randint(2, size=1000), rng.randint(8, size=1000))),
        "errors": np.array([rates.binomial(1, p) for p in (0.2, 0.8) for _ in range(1000)]),
        "switches": np.concatenate([places.normal(m, 0.1, 500) > 0 for m in (0, 0.25, 0, 0.25)]),
        "turns": np.concatenate(turns),
        "constant": np.ones(5_000),
        "jump": np.repeat([0.0, 100.0], [200, 200]),
        "huge": np.full(100, 1e15),
        "alternating": np.arange(2000) % 2,
    }


def river_series() -> dict[str, Floats]:
    """Every numeric column of the real series that river ships for drift detection."""
    sources = (
        datasets.AirlinePassengers,
        datasets.Apple,
        datasets.Bitcoin,
        datasets.BrentSpotPrice,
        datasets.Occupancy,
        datasets.RunLog,
        datasets.UKCoalEmploy,
    )
    found = {}
    for source in sources:
        values = [y if isinstance(y, dict) else {"": y} for _, y in source()]
        for column in values[0]:
            found[f"{source.__name__} {column}"] = np.array([row[column] for row in values])
    return found


def steps(rng: np.random.Generator, values: int, length: int) -> Floats:
    """Levels that jump every ``length`` values."""
    levels: Floats = rng.normal(0, 1, values // length + 1).repeat(length)[:values]
    return levels


def test_on_rivers_test_streams_the_alarms_are_rivers() -> None:
    expected = {"levels": [1023], "turns": [1023, 2015, 3007], "constant": [], "alternating": []}
    for name, stream in river_test_streams().items():
        theirs = river_alarms(stream)
        assert few_and_many(stream.astype(np.float64)) == [theirs, theirs], name
        assert theirs == expected.get(name, theirs), name


def test_on_rivers_real_series_the_alarms_are_rivers_in_any_unit() -> None:
    """Passengers by the million and prices by the dollar, as they are and standardised: no scale may change who is right."""
    fired = 0
    for name, series in river_series().items():
        theirs = river_alarms(series)
        assert our_alarms(series[:, None]) == [theirs], name
        standard = (series - series.mean()) / series.std()
        also = river_alarms(standard)
        assert few_and_many(standard) == [also, also], name
        fired += len(theirs) + len(also)
    assert fired > 100


def test_single_values_fire_where_river_fires_in_every_feature() -> None:
    """60 streams in lockstep, of which each restarts its window at times of its own."""
    rng = np.random.default_rng(11)
    n, columns = 3_000, []
    for i in range(12):
        level = steps(rng, n, 100 + 120 * i)
        columns += [
            level + rng.normal(0, 1, n),
            (rng.random(n) < 1 / (1 + np.exp(-2 * level))).astype(np.float64),
            np.round(level + rng.exponential(1, n)),
            level + np.where(rng.random(n) < 0.01, 50.0, 0.0),
            np.cumsum(rng.normal(0, 0.05, n)),
        ]
    expected = [river_alarms(column) for column in columns]
    assert our_alarms(np.column_stack(columns)) == expected
    assert sum(map(len, expected)) > 200  # it would say nothing about streams that never fire


@settings(max_examples=20)  # of 50 streams each: 1,000
@given(st.integers(0, 2**32 - 1), st.integers(30, 400))
def test_single_values_fire_where_river_fires_on_a_thousand_streams(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.choice([0.0, 0.1, 1.0, 30.0], 50) * rng.normal(0, 1, (n, 50))
    streams = np.column_stack([steps(rng, n, int(rng.integers(5, n))) for _ in range(50)]) + noise
    theirs = [river_alarms(column) for column in streams.T]
    assert our_alarms(streams) == theirs
    alone = [our_alarms(column[:, None])[0] for column in streams.T]
    assert alone == theirs


@given(
    arrays(np.float64, st.integers(1, 300), elements=st.sampled_from([0.0, 1.0, 1.5, -3.0, 1e6])),
    st.sampled_from([1e-9, 0.002, 0.3, 0.99]),
    st.integers(1, 40),
    st.integers(2, 8),  # river panics with one bucket a level
    st.integers(1, 20),
    st.integers(1, 30),
)
def test_every_setting_means_what_it_means_in_river(
    stream: Floats, delta: float, clock: int, buckets: int, least: int, grace: int
) -> None:
    grace = max(grace, 2)  # river takes ln(ln 1) at one value, and never fires there
    config = AdwinConfig(delta, clock, buckets, least, grace)
    theirs = river_alarms(
        stream,
        delta=delta,
        clock=clock,
        max_buckets=buckets,
        min_window_length=least,
        grace_period=grace,
    )
    assert our_alarms(stream[:, None], config) == [theirs]
    assert our_alarms(np.repeat(stream[:, None], 8, axis=1), config) == [theirs] * 8


def panes(values: Floats, size: int) -> list[tuple[int, float, float]]:
    """``(n, mean, M2)`` of consecutive runs of ``size`` values."""
    cut = [values[i : i + size] for i in range(0, len(values), size)]
    return [(len(v), float(v.mean()), float(((v - v.mean()) ** 2).sum())) for v in cut]


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_a_pane_counts_as_its_values_in_width_mean_and_spread(size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(3, 2, 200)
    quiet = AdwinConfig(delta=1e-12)
    one, many = Adwin(1, quiet), Adwin(1, quiet)
    for i, value in enumerate(values):
        one.update(i, [1], [value], [0.0])
    for i, (n, mean, m2) in enumerate(panes(values, size)):
        many.update(i, [n], [mean], [m2])
    assert many.width == one.width == 200
    np.testing.assert_allclose(many.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose([many.variance, one.variance], values.var(), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
@pytest.mark.parametrize("shift", [0.25, 0.5, 1.0])
def test_a_shift_is_found_within_a_pane_of_where_single_values_find_it(
    size: int, shift: float
) -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate((rng.normal(0, 1, 4_000), rng.normal(shift, 1, 3_000)))
    single = river_alarms(values)[0]
    adwin = Adwin(1)
    for i, (n, mean, m2) in enumerate(panes(values, size)):
        changes = adwin.update(i * size, [n], [mean], [m2])
        if changes.fired[0]:
            assert 4_000 < single < 5_000
            assert abs(i * size - single) <= 32 + size
            assert abs(changes.onset[0] - 4_000) <= max(300, 2 * size)
            assert changes.before[0] == pytest.approx(0, abs=0.05)
            assert changes.after[0] == pytest.approx(shift, abs=0.35)
            assert changes.n_after[0] == i * size + n - changes.onset[0]
            return
    pytest.fail("not found")


def test_the_onset_is_the_start_of_the_first_pane_after_the_change() -> None:
    adwin, changes = Adwin(3), Changes.none(3)
    hour_ms, start_ms = 3_600_000, 1_356_998_400_000
    for hour in range(100):
        mean = [0.0, 1.0 if hour >= 64 else 0.0, 0.0]
        changes = adwin.update(start_ms + hour * hour_ms, [60] * 3, mean, [60.0] * 3)
        if changes.fired.any():
            break
    assert changes.fired.tolist() == [False, True, False]
    assert changes.onset.tolist() == [0, start_ms + 64 * hour_ms, 0]
    assert (changes.before[1], changes.after[1]) == (0.0, 1.0)


def test_after_an_alarm_the_window_starts_anew_and_the_new_level_is_normal() -> None:
    adwin = Adwin(2)
    alarms = [
        hour
        for hour in range(200)
        if adwin.update(hour, [100, 100], [float(hour >= 50), 0.0], [100.0, 100.0]).fired[0]
    ]
    assert alarms == [50]
    assert adwin.width.tolist() == [149 * 100, 200 * 100]
    assert adwin.mean.tolist() == [1.0, 0.0]


def timeline(direction: str, levels: str) -> str:
    """One pane of 200 values a letter, its mean the digit in tenths; ``F`` where it fires."""
    adwin = Adwin(1, AdwinConfig(direction=direction))  # type: ignore[arg-type]  # from a table of texts
    fired = (adwin.update(i, [200], [int(c) / 10], [50.0]).fired[0] for i, c in enumerate(levels))
    return "".join("F" if f else "-" for f in fired)


@pytest.mark.parametrize(
    ("levels", "both", "rise"),
    [
        ("1111111111", "----------", "----------"),
        ("1111115555", "------F---", "------F---"),
        ("5555551111", "------F---", "----------"),
        ("55555511115555", "------F---F---", "----------F---"),
        ("11115555111155", "----F---F---F-", "----F-------F-"),
    ],
)
def test_one_sided_reports_rises_only_and_measures_them_from_the_last_fall(
    levels: str, both: str, rise: str
) -> None:
    assert timeline("both", levels) == both
    assert timeline("rise", levels) == rise


def clean_panes(rng: np.random.Generator, panes: int, k: int, phi: float, n: int) -> Floats:
    """Means of panes of ``n`` values of unit variance, where the means are AR(1): nothing ever changes."""
    means = np.zeros((panes, k))
    for i in range(1, panes):
        means[i] = phi * means[i - 1] + rng.normal(0, np.sqrt(1 - phi**2), k)
    means /= np.sqrt(n)
    return means


def test_a_design_effect_keeps_autocorrelated_panes_quiet_and_still_finds_a_shift() -> None:
    """AR(1) with phi 0.9: (1 + phi) / (1 - phi) = 19. Without it most of 40 features fire, with it none of them."""
    rng = np.random.default_rng(8)
    k, n = 40, 50
    means = clean_panes(rng, 600, k, 0.9, n)
    naive, aware = Adwin(k), Adwin(k, design_effect=19.0)
    fired = np.zeros((2, k), dtype=bool)
    for i, mean in enumerate(means):
        for row, adwin in zip(fired, (naive, aware), strict=True):
            row |= adwin.update(i, [n] * k, mean, [n] * k).fired
    assert fired[0].sum() > 20
    assert fired[1].sum() == 0
    found = [aware.update(i, [n] * k, mean + 1, [n] * k).fired for i, mean in enumerate(means[:40])]
    assert np.any(found, axis=0).all()


def test_a_change_below_the_tolerance_never_fires_however_many_events() -> None:
    adwin = Adwin(2, tolerance=[0.0, 0.1])
    n = 10_000_000
    fired = [adwin.update(i, [n, n], [0.05 * (i >= 50)] * 2, [n, n]).fired for i in range(100)]
    assert np.any(fired, axis=0).tolist() == [True, False]


def test_a_feature_without_values_in_a_pane_is_left_as_it_was() -> None:
    rng = np.random.default_rng(2)
    together, alone = Adwin(2), Adwin(1)
    for i in range(300):
        mean = rng.normal(i >= 150, 0.2)
        dense = together.update(
            i,
            [20, 20 * (i % 3 == 0)],
            [mean, mean if i % 3 == 0 else np.nan],
            [1.0, np.nan if i % 3 else 1.0],
        )
        if i % 3 == 0:
            sparse = alone.update(i, [20], [mean], [1.0])
            assert dense.fired[1] == sparse.fired[0]
            assert dense.onset[1] == sparse.onset[0]
    assert together.width[1] == alone.width[0]


def test_many_features_in_one_call_equal_one_detector_each_to_the_last_bit() -> None:
    rng = np.random.default_rng(4)
    k = 7
    together, single = Adwin(k), [Adwin(1) for _ in range(k)]
    for i in range(400):
        n = rng.integers(0, 30, k)
        mean, m2 = rng.normal(i // 100 * np.arange(k) / 3, 1), rng.exponential(20, k)
        changes = together.update(i, n, mean, m2)
        for j, adwin in enumerate(single):
            alone = adwin.update(i, n[j : j + 1], mean[j : j + 1], m2[j : j + 1])
            assert (alone.fired[0], alone.onset[0]) == (changes.fired[j], changes.onset[j])
            assert (alone.before[0], alone.after[0]) == (changes.before[j], changes.after[j])
    assert together.mean.tolist() == [float(adwin.mean[0]) for adwin in single]


@settings(max_examples=15)
@given(st.integers(0, 300), st.integers(0, 1000))
def test_a_restored_detector_goes_on_to_the_same_bit(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(np.repeat([0, 2, 1], 110)[:, None] * [0, 0.5, 1], 1, (330, 3))
    config = AdwinConfig(clock=7, max_buckets=3, direction="rise")
    effects = [1.0, 2.5, 1.0]
    whole = Adwin(3, config, design_effect=effects, tolerance=0.01)
    for i in range(cut):
        whole.update(i, [3, 0, 5], means[i], [1.0, 1.0, 2.0])
    resumed = Adwin.restore(whole.snapshot())
    assert resumed.config == config
    assert resumed.snapshot() == whole.snapshot()
    for i in range(cut, 330):
        a, b = (d.update(i, [3, 2, 5], means[i], [1.0, 1.0, 2.0]) for d in (whole, resumed))
        assert (a.fired.tolist(), a.onset.tolist()) == (b.fired.tolist(), b.onset.tolist())
    assert resumed.snapshot() == whole.snapshot()


def test_memory_grows_with_the_logarithm_of_the_panes() -> None:
    adwin = Adwin(1)
    sizes = {}
    for i in range(1, 4_097):
        adwin.update(i, [1000], [0.0], [1000.0])
        sizes[i] = len(adwin.snapshot())
    assert sizes[4_096] - sizes[2_048] <= 6 * 24
    assert sizes[4_096] < 2_000


@pytest.mark.parametrize(
    "body",
    unreadable(Adwin(2).snapshot()),
)
def test_a_snapshot_that_cannot_be_read_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(IncompatibleError, match="snapshot"):
        Adwin.restore(body)


def test_a_detector_of_no_features_is_a_detector() -> None:
    adwin = Adwin.restore(Adwin(0).snapshot())
    assert adwin.update(1, [], [], []).fired.tolist() == []


@pytest.mark.parametrize(
    ("n", "mean", "m2", "message"), [*BAD_PANES, ([1, 1], [0.0, 1e200], [0.0, 0.0], "finite")]
)
@pytest.mark.parametrize("times", [1, 10])  # few features and many
def test_a_pane_that_makes_no_sense_is_refused_and_changes_nothing(
    n: list[float], mean: list[float], m2: list[float], message: str, times: int
) -> None:
    adwin = Adwin(2 * times)
    adwin.update(0, [5, 5] * times, [0.0, 0.0] * times, [1.0, 1.0] * times)
    before = adwin.snapshot()
    with pytest.raises(ValueError, match=message):
        adwin.update(1, n * times, mean * times, m2 * times)
    assert adwin.snapshot() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"clock": 0}, "at least 1"),
        ({"max_buckets": 1}, "at least 2"),
        ({"min_window_length": 0}, "at least 1"),
        ({"direction": "fall"}, "direction"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdwinConfig(**settings)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("effect", [0.5, np.nan, np.inf])
def test_a_design_effect_below_one_or_unknown_is_refused(effect: float) -> None:
    with pytest.raises(ValueError, match="design_effect"):
        Adwin(2, design_effect=[1.0, effect])


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
