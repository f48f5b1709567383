"""Groups of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from monitor.rows import distinct


@given(st.lists(st.integers(-5, 5) | st.integers(-(10**15), 10**15), max_size=30))
@example([])
@example([10**15, 10**15 + 2, 10**15])
def test_distinct_values_and_their_places_are_those_of_numpy(values: list[int]) -> None:
    given_ = np.array(values, dtype=np.int64)
    kept = given_.copy()
    found, place = distinct(given_)
    expected, inverse = np.unique(given_, return_inverse=True)
    assert np.array_equal(found, expected)
    assert np.array_equal(place, inverse)
    assert np.array_equal(given_, kept)
