"""All fields in one call equal one field at a time, to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import CategoricalBins, NumericBins
from monitor.comparison import Comparison
from monitor.distances import group_equal_mass, ks, psi
from monitor.profile import Layout

LAYOUT = Layout(
    {
        "constant": NumericBins(np.empty(0), 0.0, 0.0, 0.0, 1.0),
        "few": NumericBins(np.array([1.0, 2.0]), 0.0, 2.0, 1.0, 1.0),
        "many": NumericBins(np.arange(1.0, 128.0), 0.0, 128.0, 64.0, 32.0),
        "carrier": CategoricalBins(tuple("abcdefghijkl")),
        "$prediction": CategoricalBins(("0", "1")),
    }
)


def vector(seed: int, n: int) -> np.ndarray:
    """Counts of ``n`` values a field, or none in every third field where the seed is even; anything beside the bins."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 1_000, LAYOUT.size)
    for i, f in enumerate(LAYOUT.fields):
        values = 0 if seed % 2 == 0 and i % 3 == 0 else n
        made[f.counts] = rng.multinomial(values, rng.dirichlet(np.full(f.bins.bins, 0.3)))
    return made


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.integers(0, 5_000), st.integers(2, 20))
def test_all_fields_in_one_call_equal_one_at_a_time(
    seed: int, other: int, n: int, groups: int
) -> None:
    expected, window = vector(seed, 3_000), vector(other, n)
    found = Comparison(LAYOUT, expected, groups)(window)
    for i, f in enumerate(LAYOUT.fields):
        p, q = expected[f.counts], window[f.counts]
        assert found.n[i] == q.sum()
        alone = psi(p, q, starts=group_equal_mass(p, groups))
        assert found.psi[i] == pytest.approx(alone, rel=1e-12, abs=1e-14)
        assert found.ks[i] == pytest.approx(ks(p, q).low, abs=1e-15)


def test_an_empty_window_is_at_distance_nothing() -> None:
    found = Comparison(LAYOUT, vector(1, 100), 10)(np.zeros(LAYOUT.size, dtype=np.int64))
    assert not found.n.any()
    assert not found.psi.any()
    assert not found.ks.any()
