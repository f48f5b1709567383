"""Where a distribution moved: the parts add up to the whole, and the words name what moved."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from monitor.binning import CategoricalBins, NumericBins, cut_numeric
from monitor.decomposition import MOST, moved
from monitor.distances import group_equal_mass, psi, psi_parts

COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=40)


@given(COUNTS, st.data())
def test_the_parts_are_not_negative_and_add_up_to_the_index(
    before: list[int], data: st.DataObject
) -> None:
    now = np.array(
        data.draw(st.lists(st.integers(0, 10_000), min_size=len(before), max_size=len(before)))
    )
    usual = np.array(before)
    usual[0] += 1
    now[-1] += 1
    starts = group_equal_mass(usual, 10)
    found = psi_parts(usual, now, starts=starts)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(float(psi(usual, now, starts=starts)), abs=1e-12)


def test_categories_that_gained_and_lost_are_named_with_their_shares() -> None:
    bins = CategoricalBins(("EWR", "JFK", "LGA"))
    said = moved(bins, np.array([350, 310, 340, 0]), np.array([351, 529, 120, 0]))
    assert said == "LGA 34 % → 12 %, JFK 31 % → 53 %"
    assert (
        moved(bins, np.array([500, 499, 1, 0]), np.array([400, 399, 1, 200])) == "other 0 % → 20 %"
    )


def test_numbers_are_named_by_their_range() -> None:
    values = np.arange(1_000.0)
    bins = cut_numeric(values, max_bins=20)
    before = np.bincount(bins.encode(values).codes, minlength=bins.bins)
    now = np.bincount(bins.encode(values[900:]).codes, minlength=bins.bins)
    assert moved(bins, before, now).startswith("≥ 899")
    assert moved(
        bins, before, np.bincount(bins.encode(values[:100]).codes, minlength=bins.bins)
    ).startswith("< ")
    middle = np.bincount(bins.encode(values[500:600]).codes, minlength=bins.bins)
    assert moved(bins, before, middle).startswith("499 to 599 10 % → 99 %")


def test_at_most_three_groups_are_named_and_a_long_name_is_cut() -> None:
    bins = CategoricalBins(tuple(f"{i}-{'x' * 100}" for i in range(10)))
    now = np.arange(1, 12)
    said = moved(bins, now[::-1].copy(), now)
    assert said.count("→") == MOST
    assert len(said) < 200


def test_nothing_is_said_about_what_was_not_seen_or_did_not_move() -> None:
    bins = NumericBins(np.array([1.0]), 0.0, 2.0, 0.0, 1.0)
    none, some = np.zeros(2, dtype=np.int64), np.array([5, 5])
    assert moved(bins, none, some) == moved(bins, some, none) == moved(bins, some, some) == ""
