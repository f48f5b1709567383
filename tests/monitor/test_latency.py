"""Latency: percentiles of any sum of profiles within 2 % of the values' own, on bins that are the same for every model."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import Floats, NumericBins, cut_numeric
from monitor.calibration import PSI_GROUPS
from monitor.counting import profile_groups
from monitor.distances import group_equal_mass
from monitor.latency import EDGES_MS, RELATIVE_ERROR, Percentiles, cut_latency, percentiles
from monitor.profile import LATENCY, Layout, Profile
from monitor.reference import Reference, build
from tests.monitor.builders import columns, past, profile_of, spec

Draw = Callable[[np.random.Generator, int], Floats]

SHAPES: dict[str, Draw] = {
    "gamma": lambda rng, n: rng.gamma(4, 3, n),
    "bimodal, cache and database": lambda rng, n: np.where(
        rng.random(n) < 0.945, rng.normal(0.2, 0.01, n), rng.normal(900, 50, n)
    ),
    "heavy tail": lambda rng, n: np.minimum(5 * rng.pareto(0.8, n) + 1, 600_000),
    "constant": lambda rng, n: np.full(n, 12.0),
    "whole milliseconds": lambda rng, n: np.round(rng.gamma(2, 2, n)) + 1,
    "all that can be told": lambda rng, n: 10.0 ** rng.uniform(-2, 5.79, n),
    "on the edges": lambda rng, n: rng.choice(EDGES_MS, n),
}
LAYOUT = Layout({LATENCY: cut_latency(np.array([3.0, 20.0]))})


def counted(values: Floats, layout: Layout = LAYOUT) -> Profile:
    encoded = {LATENCY: layout.bins[LATENCY].encode(values.tolist())}
    group = np.zeros(len(values), dtype=np.intp)
    return profile_groups(layout, encoded, np.zeros(len(values), dtype=bool), group, 1)[0]


def exact(values: Floats) -> Floats:
    return np.quantile(values, (0.5, 0.95, 0.99), method="inverted_cdf")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 7, 100, 20_000])
def test_percentiles_are_within_two_percent_of_those_of_the_values(shape: str, n: int) -> None:
    values = SHAPES[shape](np.random.default_rng(n), n)
    found = percentiles(counted(values))
    assert found is not None
    np.testing.assert_allclose(found, exact(values), rtol=RELATIVE_ERROR)


@given(
    st.lists(
        st.lists(st.floats(0.01, 600_000), max_size=40).map(np.array), min_size=1, max_size=6
    ).filter(lambda parts: sum(map(len, parts)) > 0)
)
def test_percentiles_of_a_sum_are_those_of_all_values_however_these_were_cut(
    parts: list[Floats],
) -> None:
    found = percentiles(reduce(add, [counted(part) for part in parts]))
    whole = np.concatenate(parts)
    assert found is not None
    assert found == percentiles(counted(whole))
    np.testing.assert_allclose(found, exact(whole), rtol=RELATIVE_ERROR)


def test_what_lies_beyond_either_end_counts_as_at_that_end() -> None:
    nothing = np.array([0.0, -3.0, 0.001] * 30 + [np.nan, np.inf])
    assert percentiles(counted(nothing)) == Percentiles(0.01, 0.01, 0.01)
    hours = percentiles(counted(np.array([7.2e6] * 3 + [1.0] * 7)))
    assert hours is not None
    assert hours.p50 == pytest.approx(1.0, rel=RELATIVE_ERROR)
    assert hours.p95 == hours.p99 == EDGES_MS[-1] > 600_000


def test_nothing_is_said_without_values_or_where_the_bins_promise_nothing() -> None:
    assert percentiles(counted(np.array([]))) is None
    assert percentiles(Profile.zero(Layout({}))) is None
    values = np.random.default_rng(1).gamma(4, 3, 5_000)
    quantile_bins = Layout({LATENCY: cut_numeric(values)})
    assert percentiles(counted(values, quantile_bins)) is None
    none_sent = Layout({LATENCY: cut_latency(np.array([]))})
    assert none_sent.bins[LATENCY].bins == 1
    assert percentiles(counted(values, none_sent)) is None


def with_latency(values: Floats) -> Reference:
    rows = past(np.random.default_rng(7), len(values))
    return build(spec(), lambda: [columns(rows.append_column("latency_ms", pa.array(values)))])


def test_references_of_different_data_have_the_same_bins_and_their_own_range_and_unit() -> None:
    rng = np.random.default_rng(3)
    fast, slow = with_latency(rng.gamma(4, 3, 2_000)), with_latency(rng.lognormal(6, 1.5, 2_000))
    a, b = (known.layout.bins[LATENCY] for known in (fast, slow))
    assert isinstance(a, NumericBins)
    assert isinstance(b, NumericBins)
    np.testing.assert_array_equal(a.edges, b.edges)
    assert (a.high, a.center, a.scale) < (b.high, b.center, b.scale)
    assert Reference.from_dict(fast.to_dict()).layout.bins_id == fast.layout.bins_id


def test_the_index_of_stability_has_groups_of_about_equal_mass_on_these_bins() -> None:
    known = with_latency(np.random.default_rng(4).gamma(4, 3, 20_000))
    counts = known.profiles[""].counts(LATENCY)
    groups = np.add.reduceat(counts, group_equal_mass(counts, PSI_GROUPS)) / counts.sum()
    assert len(groups) == PSI_GROUPS
    np.testing.assert_allclose(groups, 1 / PSI_GROUPS, atol=0.035)


def test_a_profile_of_a_window_has_the_percentiles_of_its_requests() -> None:
    rng = np.random.default_rng(5)
    known = with_latency(rng.gamma(4, 3, 2_000))
    slower = rng.gamma(4, 6, 3_000)
    rows = columns(past(rng, 3_000).append_column("latency_ms", pa.array(slower)))
    found = percentiles(profile_of(known, rows))
    assert found is not None
    np.testing.assert_allclose(found, exact(slower), rtol=RELATIVE_ERROR)
