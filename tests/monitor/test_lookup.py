"""The table in front of the edges answers what a binary search answers, for every edge and every number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import Floats, cut_numeric
from monitor.lookup import MAX_CELLS, Lookup, Points

RNG = np.random.default_rng(11)
N = 20_000
SHAPES = {
    "normal": RNG.normal(0, 1, N),
    "lognormal": RNG.lognormal(6, 2, N),
    "uniform": RNG.random(N),
    "skewed to the left": -RNG.lognormal(0, 1, N),
    "hours": RNG.integers(0, 24, N).astype(float),
    "cents": np.round(RNG.lognormal(3, 1, N), 2),
    "far from zero": RNG.normal(1e12, 1, N),
}
HARD = {
    "heavy tails": RNG.standard_cauchy(N),
    "two clusters": np.concatenate((RNG.normal(-1e9, 1e-3, N), RNG.normal(1e9, 1e-3, N))),
    "all exponents": np.geomspace(5e-324, 1.7e308, N) * np.resize([1, -1], N),
    "denormals": np.arange(N) * 5e-324,
    "neighbours": 1.0 + np.arange(N) * 2.3e-16,
}


def test_values_and_edges_of_every_shape_are_placed_as_a_search_places_them() -> None:
    for shape, reference in {**SHAPES, **HARD}.items():
        edges = cut_numeric(reference).edges
        values = np.concatenate((reference, around(edges)))
        assert placed(edges, values) == searched(edges, values), shape


@pytest.mark.parametrize("shape", SHAPES)
def test_usual_shapes_need_one_comparison(shape: str) -> None:
    lookup = Lookup.of(cut_numeric(SHAPES[shape]).edges)
    assert lookup.rounds == 1
    assert len(lookup.start) <= MAX_CELLS


def test_no_edges_are_too_close_for_a_search_of_all_of_them() -> None:
    for reference in HARD.values():
        lookup = Lookup.of(cut_numeric(reference).edges)
        assert lookup.rounds <= 7  # 127 edges
        assert len(lookup.start) <= MAX_CELLS


numbers = st.floats(allow_nan=False)


@given(
    st.sets(st.floats(allow_nan=False, allow_infinity=False), max_size=200),
    st.lists(numbers, max_size=50),
)
def test_any_value_between_any_edges_is_placed_as_a_search_places_it(
    edges: set[float], others: list[float]
) -> None:
    ascending = np.array(sorted(edges), dtype=np.float64)
    values = np.concatenate((around(ascending), others))
    assert placed(ascending, values) == searched(ascending, values)


@given(
    st.floats(-1e300, 1e300),
    st.lists(st.floats(0, 1e-3), min_size=1, max_size=300),
    st.sampled_from([1.0, 1e-300, 1e-12, 1e12]),
)
def test_edges_close_together_and_far_from_zero_are_told_apart(
    offset: float, steps: list[float], unit: float
) -> None:
    edges = np.unique(offset + np.cumsum(steps) * unit)
    values = around(edges)
    assert placed(edges, values) == searched(edges, values)


@pytest.mark.parametrize("points", [[0.0], [0.0, 1.0], [-1.0, 0.0, 1.0]])
def test_zero_is_the_same_point_with_either_sign(points: list[float]) -> None:
    found = Points.of(np.array(points))
    assert found is not None
    codes = found.codes(np.array([-0.0, 0.0]))
    assert codes is not None
    assert codes.tolist() == [points.index(0.0)] * 2


def test_what_is_no_number_is_placed_somewhere() -> None:
    for reference in (*SHAPES.values(), *HARD.values(), np.ones(3)):
        edges = cut_numeric(reference).edges
        (code,) = Lookup.of(edges).codes(np.array([np.nan])).tolist()
        assert 0 <= code <= len(edges)


def placed(edges: Floats, values: Floats) -> list[int]:
    with np.errstate(over="ignore"):
        return list(Lookup.of(edges).codes(values))


def searched(edges: Floats, values: Floats) -> list[int]:
    return list(np.searchsorted(edges, values, side="right"))


def around(edges: Floats) -> Floats:
    """The edges, their neighbours, and the ends of the number line."""
    with np.errstate(over="ignore"):
        near = [edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]
    return np.concatenate([*near, [0.0, -0.0, 5e-324, -5e-324, 1.7e308, -1.7e308, np.inf, -np.inf]])
