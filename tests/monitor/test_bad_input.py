"""Data as bad as it comes: each has one documented answer, from the raw columns to the verdicts, and none is NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import reference as references
from monitor.binning import Floats, NumericBins
from monitor.budget import Levels
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.verdicts import judge_window
from monitor.wire import Verdict
from tests.monitor.builders import DAY, START, columns, profile_of, spec

INF, NAN = float("inf"), float("nan")
SPEC = spec(
    features={"x": {"type": "numeric"}}, segments=[], windows={"pane": "1h", "sizes": ["1d"]}
)
WORDS = spec(
    features={"x": {"type": "categorical"}}, segments=[], windows={"pane": "1h", "sizes": ["1d"]}
)
N = 20_000


def rows(x: Any) -> pa.RecordBatch:
    """A column over 40 days; the model's prediction is always the same."""
    at = START + np.arange(len(x)) * (40 * DAY // max(len(x), 1))
    return pa.record_batch({"ts": at, "x": x, "prediction": np.ones(len(x)), "score": np.ones(len(x)), "latency_ms": np.ones(len(x))})  # fmt: skip


def known(x: Any, model: Any = SPEC) -> Reference:
    """The reference of a column."""
    return references.build(model, lambda: [columns(rows(x))])


def judged(reference: Reference, profile: Profile) -> list[Verdict]:
    """The verdicts on the column, whose numbers are all finite."""
    levels = Levels.of(SPEC, reference.profiles, "")
    verdicts = judge_window(reference, "", profile, size_ms=DAY, levels=levels)
    numbers = [v for verdict in verdicts for v in (verdict.value, verdict.limit, verdict.p_value)]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    return [v for v in verdicts if v.feature in ("x", "")]


def statuses(reference: Reference, x: Any) -> dict[str, str]:
    """Statistic -> status, of a window."""
    found = judged(reference, profile_of(reference, columns(rows(x))))
    return {v.statistic: v.status for v in found}


def normal(n: int = 1_000, seed: int = 2) -> list[float]:
    return list(np.random.default_rng(seed).normal(0, 1, n))


NORMAL = known(normal(N, seed=1))


@pytest.mark.parametrize(
    ("bad", "rate"),
    [
        (None, "missing"),
        (NAN, "non_finite"),
        (INF, "non_finite"),
        (-INF, "non_finite"),
    ],
    ids=str,
)
def test_what_is_no_number_is_a_rate_and_leaves_the_distribution_of_the_rest(
    bad: float | None, rate: str
) -> None:
    some = [bad] * 300 + normal(700)
    assert statuses(NORMAL, some) == {"psi": "ok", "ks": "ok", rate: "breach"}
    every = pa.array([bad] * 1_000, pa.float64())
    assert statuses(NORMAL, every) == {"psi": "no_data", "ks": "no_data", rate: "breach"}


@pytest.mark.parametrize("bad", ["12", "", b"12", [1.0], {"v": 1.0}], ids=str)
def test_values_of_the_wrong_type_are_counted_and_never_parsed(bad: object) -> None:
    assert statuses(NORMAL, pa.array([bad] * 1_000)) == {
        "psi": "no_data", "ks": "no_data", "wrong_type": "breach",
    }  # fmt: skip


def test_a_reference_that_is_half_nan_is_of_its_numbers_alone() -> None:
    half = known([x if i % 2 else NAN for i, x in enumerate(normal(N, seed=1))])
    assert statuses(half, normal()) == {"psi": "ok", "ks": "ok"}
    assert statuses(half, [NAN] * 500 + normal(500)) == {
        "psi": "ok", "ks": "ok", "non_finite": "ok",
    }  # fmt: skip


def test_a_reference_without_values_says_that_there_are_some_now() -> None:
    """Its one bin is around 0, and nothing else is in its range."""
    nothing = known(pa.array([None] * N, pa.float64()))
    assert statuses(nothing, normal()) == {
        "psi": "no_data", "ks": "no_data", "out_of_range": "breach",
    }  # fmt: skip


@pytest.mark.parametrize("reference", [NORMAL, known(["a", "b"] * 50, WORDS)], ids=["x", "words"])
def test_an_empty_window_is_no_data_and_never_fine(reference: Reference) -> None:
    verdicts = judged(reference, Profile.zero(reference.layout))
    assert {v.status for v in verdicts} == {"no_data"}
    assert {v.n for v in verdicts} == {0}


def test_a_reference_of_ten_rows_has_wide_limits_and_still_sees_another_world() -> None:
    ten = known(normal(10, seed=1))
    clean, moved = statuses(ten, normal()), statuses(ten, [x + 100 for x in normal()])
    assert "breach" not in {clean["psi"], clean["ks"]}
    assert moved["psi"] == moved["ks"] == "breach"
    assert moved["out_of_range"] == "ok"  # of ten values two are records: a third may well be


def test_ten_thousand_rare_categories_are_one_bin_and_their_next_day_is_no_drift() -> None:
    """The luckiest of them would be rarer in every later window; what they have in common, being others, is exact."""
    rng = np.random.default_rng(3)
    rare = known([f"c{i}" for i in rng.integers(0, 10_000, N)], WORDS)
    assert statuses(rare, [f"c{i}" for i in rng.integers(0, 10_000, 1_000)]) == {
        "psi": "ok", "unseen": "ok",
    }  # fmt: skip
    assert len(rare.profiles[""].counts("x")) == 1


def test_of_ten_thousand_categories_the_frequent_ones_are_watched() -> None:
    rng = np.random.default_rng(3)
    zipf = known([f"c{min(i, 10_000)}" for i in rng.zipf(1.5, N)], WORDS)
    assert statuses(zipf, [f"c{min(i, 10_000)}" for i in rng.zipf(1.5, 1_000)]) == {
        "psi": "ok", "unseen": "ok",
    }  # fmt: skip
    assert statuses(zipf, [f"c{min(i, 10_000)}" for i in rng.zipf(2.5, 1_000)])["psi"] == "breach"
    assert statuses(zipf, ["new"] * 1_000)["unseen"] == "breach"


def test_a_constant_column_is_fine_while_it_stays_and_out_of_range_when_it_moves() -> None:
    constant = known(np.full(N, 7.5))
    assert statuses(constant, np.full(1_000, 7.5)) == {"psi": "ok", "ks": "ok"}
    assert statuses(constant, np.full(1_000, 7.6))["out_of_range"] == "breach"
    assert profile_of(constant, columns(rows(np.full(9, 7.5)))).moments("x") == (9, 7.5, 0.0)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()], ids=str)
def test_integers_above_2_53_fall_together_with_their_neighbours_and_raise_no_flag(
    kind: pa.DataType,
) -> None:
    """An id is rounded to float64 in the reference as in the window: odd ones are no other grid than even ones."""
    rng = np.random.default_rng(4)
    even, odd = 2**53 + 2 * rng.integers(0, 10**6, N), 2**53 + 1 + 2 * rng.integers(0, 10**6, 1_000)
    ids = known(pa.array(even, kind))
    assert statuses(ids, pa.array(odd, kind)) == {"psi": "ok", "ks": "ok"}
    bins = ids.layout.bins["x"]
    assert isinstance(bins, NumericBins)
    assert bins.step == 2.0
    one, other = bins.encode(pa.array([2**53, 2**53 + 1], kind)).codes.tolist()
    assert one == other == bins.encode([2**53 + 1]).codes[0]


def test_integers_beyond_every_float_are_infinite() -> None:
    encoded = NORMAL.layout.bins["x"].encode([10**400, -(10**400), 10**300])
    assert (encoded.codes - NORMAL.layout.bins["x"].bins).tolist() == [2, 3, -1]


def test_booleans_are_the_numbers_0_and_1_whatever_they_are_written_as() -> None:
    rng = np.random.default_rng(5)
    flags = known(rng.random(N) < 0.3)
    now = rng.random(1_000) < 0.3
    for written in (now.tolist(), now.astype(float), now.astype(int)):
        assert statuses(flags, written) == {"psi": "ok", "ks": "ok"}
        profile = profile_of(flags, columns(rows(written)))
        assert profile.counts("x").tolist() == [np.sum(~now), np.sum(now)]
    assert statuses(flags, [True] * 1_000)["psi"] == "breach"


def test_a_window_a_million_times_the_reference_is_judged_by_what_the_reference_can_say() -> None:
    small = known(normal(200, seed=1))
    day = profile_of(small, columns(rows(normal(200))))
    huge = Profile(small.layout, small.layout.normalise(day.vector * 1_000_000))
    assert huge.n == 1_000_000 * small.n
    found = {v.statistic: v.status for v in judged(small, huge)}
    assert found["psi"] == found["ks"] == "ok"
    assert huge.moments("x")[1:] == pytest.approx(
        (day.moments("x")[1], day.moments("x")[2] * 1_000_000), rel=1e-12
    )
    moved = profile_of(small, columns(rows([x + 1 for x in normal(200)])))
    huge = Profile(small.layout, small.layout.normalise(moved.vector * 1_000_000))
    assert {v.statistic for v in judged(small, huge) if v.status == "breach"} >= {"psi", "ks"}


# What a unit may change: nothing. Powers of two and whole steps are exact in floating point; any other unit rounds, which moves a
# verdict only if a value lies within that rounding of an edge. Off the grid is about decimals as they are written
# (at most six), so it is judged in the unit of the data, and continuous data has no grid in any.
HOURS = np.random.default_rng(6).integers(0, 500, 4_000).astype(float)
WAITS = np.random.default_rng(7).lognormal(3, 1, 4_000)
LATER: dict[str, list[Floats]] = {
    "hours": [HOURS[:1_000], HOURS[:1_000] + 40, HOURS[:1_000] * 1.5],
    "waits": [WAITS[:1_000], WAITS[:1_000] * 1.4, WAITS[:1_000] - 20],
}


def verdicts_of(
    reference: Floats, windows: Sequence[Floats], shift: float, scale: float
) -> list[list[tuple[Any, ...]]]:
    """Everything about the verdicts that has no unit, with data and reference in another one."""
    built = known(reference * scale + shift)
    found = [profile_of(built, columns(rows(w * scale + shift))) for w in windows]
    return [
        [(v.statistic, v.status, v.value, v.limit, v.p_value, v.n) for v in judged(built, profile)]
        for profile in found
    ]


SAME = {
    "hours": verdicts_of(HOURS, LATER["hours"], 0.0, 1.0),
    "waits": verdicts_of(WAITS, LATER["waits"], 0.0, 1.0),
}


def test_the_windows_in_other_units_are_a_clean_one_and_two_that_are_not() -> None:
    for clean, *moved in SAME.values():
        assert {status for _, status, *_ in clean} == {"ok"}
        assert all("breach" in {status for _, status, *_ in one} for one in moved)


@settings(max_examples=15, deadline=None)  # each builds a reference
@given(st.integers(-400, 400))
def test_a_scale_of_a_power_of_two_changes_no_bit_of_any_verdict(power: int) -> None:
    assert verdicts_of(WAITS, LATER["waits"], 0.0, 2.0**power) == SAME["waits"]


@settings(max_examples=15, deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(0, 20))
def test_whole_numbers_shifted_and_scaled_exactly_change_no_bit_of_any_verdict(
    shift: int, power: int
) -> None:
    windows = [w for w in LATER["hours"] if np.all(w == np.rint(w))]
    same = [SAME["hours"][i] for i, w in enumerate(LATER["hours"]) if np.all(w == np.rint(w))]
    assert verdicts_of(HOURS, windows, float(shift), 2.0**power) == same


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1e6), st.floats(-1e6, 1e6))
def test_any_other_unit_changes_no_alarm(scale: float, shift: float) -> None:
    there = verdicts_of(WAITS, LATER["waits"], shift, scale)
    assert [[v[:2] for v in one] for one in there] == [
        [v[:2] for v in one] for one in SAME["waits"]
    ]
