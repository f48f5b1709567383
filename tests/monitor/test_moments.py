"""What detectors refuse before they touch their state."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.moments import checked_moments, per_feature


def test_where_a_feature_has_no_values_its_other_numbers_are_not_read() -> None:
    pane = checked_moments(3, [2, 0, 0], [1.5, np.nan, np.inf], [0.5, -1.0, np.nan])
    assert pane.tolist() == [[2, 0, 0], [1.5, 0, 0], [0.5, 0, 0]]


def test_a_pane_is_a_copy_of_what_was_given() -> None:
    given = np.array([[1.0], [2.0], [3.0]])
    checked_moments(1, *given)[0, 0] = 9.0
    assert given.tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize(
    ("n", "mean", "m2", "message"),
    [
        ([1, 1], [0.0], [0.0], "inhomogeneous"),
        ([1], [0.0], [0.0], "shape"),
        ([0.5, 1], [0.0, 0.0], [0.0, 0.0], "whole"),
        ([-1, 1], [0.0, 0.0], [0.0, 0.0], "not negative"),
        ([1, 1], [np.inf, 0.0], [0.0, 0.0], "finite"),
        ([1, 1], [0.0, 0.0], [-1.0, 0.0], "not negative"),
    ],
)
def test_a_pane_that_makes_no_sense_is_refused(
    n: list[float], mean: list[float], m2: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checked_moments(2, n, mean, m2)


def test_a_setting_is_one_number_for_all_or_one_for_each() -> None:
    assert per_feature(2.0, 3, "effect").tolist() == [2.0, 2.0, 2.0]
    assert per_feature([1, 2], 2, "effect", least=1.0).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="effect must be finite and at least 1"):
        per_feature([1.0, 0.5], 2, "effect", least=1.0)
    with pytest.raises(ValueError, match=r"center must be finite$"):
        per_feature(np.nan, 2, "center")
