"""The budget adds up, and the family's threshold is Benjamini and Hochberg's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitor.budget import MAX_LEVEL, SHARES, Levels, benjamini_hochberg, volume_level
from tests.monitor.builders import DAY, HOUR, spec

SPEC = spec(
    windows={"pane": "1h", "sizes": ["1h", "1d"]}, alarm_budget={"false_alarms": 1, "per": "30d"}
)
SEGMENTS = ["", "carrier=UA", "carrier=B6", "carrier=__other__"]


def test_the_shares_are_the_whole_budget() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("segments", [SEGMENTS, [""]], ids=["with segments", "without"])
def test_expected_alarms_of_all_families_add_up_to_the_budget(segments: list[str]) -> None:
    expected = 720 * volume_level(SPEC.alarm_budget, HOUR)
    for segment in segments:
        levels = Levels.of(SPEC, segments, segment)
        for size, windows in ((HOUR, 720), (DAY, 30)):
            tests = levels.distributions[size] + levels.rates[size] + 2 * levels.performance[size]
            expected += windows * tests
        expected += 720 * (levels.pane + levels.change) + 720 / levels.run_length
    assert expected == pytest.approx(1.0)


def test_the_whole_model_keeps_half_of_the_budget_however_many_segments_there_are() -> None:
    many = ["", *(f"carrier={i}" for i in range(32))]
    alone = Levels.of(SPEC, [""], "").distributions[DAY]
    assert Levels.of(SPEC, many, "").distributions[DAY] == alone / 2
    assert Levels.of(SPEC, many, "carrier=3").distributions[DAY] == alone / 64


def test_no_budget_is_so_generous_that_a_level_passes_its_cap() -> None:
    generous = spec(alarm_budget={"false_alarms": 1e9, "per": "1d"})
    levels = Levels.of(generous, [""], "")
    assert set(levels.distributions.values()) == {MAX_LEVEL}
    assert (levels.pane, levels.change) == (MAX_LEVEL, MAX_LEVEL)
    assert levels.run_length == pytest.approx(1 / MAX_LEVEL)


P_VALUES = st.lists(st.floats(0, 1), max_size=30).map(np.array)


@given(P_VALUES, st.floats(1e-6, 0.5))
def test_the_threshold_rejects_what_scipys_adjustment_rejects(
    p_values: np.ndarray, level: float
) -> None:
    threshold = benjamini_hochberg(p_values, level)
    if len(p_values) == 0:
        assert threshold == 0
        return
    adjusted = stats.false_discovery_control(p_values)
    clear = np.abs(adjusted / level - 1) > 1e-9  # a tie may round either way
    assert ((p_values <= threshold) == (adjusted <= level))[clear].all()
    assert threshold >= level / len(p_values)


def test_a_test_that_was_not_made_does_not_count() -> None:
    nan = np.nan
    assert benjamini_hochberg(np.array([0.01, nan, 0.03]), 0.05) == 0.05
    assert benjamini_hochberg(np.array([nan, nan]), 0.05) == 0


def test_with_nothing_wrong_a_family_names_a_field_as_often_as_its_level_says() -> None:
    """20,000 families of 40 independent tests: 0.05 within four standard errors."""
    uniform = np.random.default_rng(3).uniform(size=(20_000, 40))
    named = [bool((p <= benjamini_hochberg(p, 0.05)).any()) for p in uniform]
    assert np.mean(named) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20_000))
