"""Vectors in a profile: what counts as one, and that lists and Arrow columns say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.fourier import FourierMap
from monitor.raw import Floats
from monitor.vectors import (
    BROKEN,
    MISSING,
    WHOLE,
    VectorBins,
    VectorColumns,
    VectorField,
    VectorSample,
)

EMBEDDING = VectorColumns("text", (), 3)
PAIR = VectorColumns("pair", ("x", "y"), 2)


def read(columns: VectorColumns, **raw: Any) -> tuple[Floats, list[int]]:
    n = len(next(iter(raw.values())))
    values, fate = columns.read(raw.__getitem__, slice(0, n))
    return values, fate.tolist()


@pytest.mark.parametrize(
    ("value", "fate"),
    [
        ([1.0, 2, -3.5], WHOLE),
        ([True, False, True], WHOLE),
        (None, MISSING),
        ([], BROKEN),
        ([1.0, 2.0], BROKEN),
        ([1.0, 2.0, 3.0, 4.0], BROKEN),
        ([1.0, None, 3.0], BROKEN),
        ([1.0, np.nan, 3.0], BROKEN),
        ([1.0, -np.inf, 3.0], BROKEN),
        ([1.0, "2.0", 3.0], BROKEN),
        (["1", "2", "3"], BROKEN),
        ([1.0, [2.0], 3.0], BROKEN),
        ([[1.0], [2.0], [3.0]], BROKEN),
        ([1, 2, 10**400], BROKEN),
        ("abc", BROKEN),
        (7, BROKEN),
        ({"0": 1.0}, BROKEN),
    ],
)
def test_an_embedding_is_a_list_of_finite_numbers_and_nothing_else(value: Any, fate: int) -> None:
    """Whatever else stands in the batch."""
    values, fates = read(EMBEDDING, text=[[0.5, 0.5, 0.5], value, [1, 2, 3]])
    assert fates == [WHOLE, fate, WHOLE]
    assert values[0].tolist() == [0.5, 0.5, 0.5]
    assert values[2].tolist() == [1.0, 2.0, 3.0]
    assert read(EMBEDDING, text=[value])[1] == [fate]


@given(
    st.lists(
        st.none()
        | st.lists(st.none() | st.floats(width=32), min_size=3, max_size=3)
        | st.lists(st.floats(width=32), max_size=4),
        max_size=8,
    )
)
def test_arrow_lists_of_any_kind_are_read_as_json_lists(rows: list[Any]) -> None:
    expected, fates = read(EMBEDDING, text=rows)
    kinds = [pa.list_(pa.float32()), pa.large_list(pa.float64())]
    if all(row is None or len(row) == 3 for row in rows):
        kinds.append(pa.list_(pa.float32(), 3))
    for kind in kinds:
        array = pa.array([[9.0, 9.0, 9.0], *rows, None], kind)[1:-1]  # a slice has an offset
        values, found = read(EMBEDDING, text=array)
        assert found == fates
        whole = np.array(fates, dtype=np.intp) == WHOLE
        assert values[whole].tolist() == expected[whole].tolist()


def test_an_arrow_column_of_something_else_holds_no_embedding() -> None:
    assert read(EMBEDDING, text=pa.array(["a", None]))[1] == [BROKEN, MISSING]
    assert read(EMBEDDING, text=pa.array([["a", "b", "c"]]))[1] == [BROKEN]


def test_features_side_by_side_need_half_of_their_numbers() -> None:
    _, fates = read(PAIR, x=[1.0, None, None, np.nan, "a"], y=[2, 3.0, None, np.inf, True])
    assert fates == [WHOLE, WHOLE, MISSING, MISSING, WHOLE]
    four = VectorColumns("four", ("a", "b", "c", "d"), 4)
    _, fates = read(four, a=[1.0, 1.0], b=[None, 1.0], c=[None, None], d=[None, None])
    assert fates == [BROKEN, WHOLE]


def bins(columns: VectorColumns = EMBEDDING) -> VectorBins:
    past = np.random.default_rng(1).normal(size=(200, columns.dimensions))
    return VectorBins(columns, FourierMap.fit(past, seed=1, frequencies=4))


def test_every_event_is_counted_once_and_only_whole_vectors_are_summed() -> None:
    known, rows = bins(), [[1.0, 2.0, 3.0], None, [0.0], [4.0, 5.0, 6.0], None]
    groupings = [(np.zeros(5, dtype=np.intp), 1), (np.array([0, 1, 1, 2, 2]), 4)]
    whole, parts = known.count({"text": rows}.__getitem__, groupings)
    field = VectorField("text", known, 0)
    assert field.state(whole[0]).n == 2
    assert field.left_out(whole[0]) == (2, 1)
    assert [int(part[:3].sum()) for part in parts] == [1, 2, 2, 0]
    assert parts.sum(axis=0).tolist() == whole[0].tolist()
    expected = known.fourier.sums(np.array([rows[0], rows[3]]), np.zeros(2, dtype=np.intp), 1)
    assert field.state(whole[0]).total.tolist() == expected[0].tolist()


def test_bins_round_trip_and_must_fit_their_map() -> None:
    again = VectorBins.from_dict("text", bins().to_dict())
    assert again.columns == EMBEDDING
    assert again.fourier.map_id == bins().fourier.map_id
    assert VectorBins.from_dict("pair", bins(PAIR).to_dict()).columns == PAIR
    with pytest.raises(ValueError, match="another length"):
        VectorBins(PAIR, bins().fourier)


def test_a_sample_is_bounded_even_and_the_same_however_it_was_cut() -> None:
    stream = np.arange(3_000.0).reshape(1_000, 3)
    samples = []
    for step in (1_000, 7):
        sample = VectorSample(EMBEDDING, 100)
        for at in range(0, 1_000, step):
            rows = stream[at : at + step].tolist()
            sample.add({"text": [None, *rows]}.__getitem__, len(rows) + 1)
        samples.append(sample.rows)
    assert samples[0].tolist() == samples[1].tolist()
    assert 50 <= len(samples[0]) <= 100
    assert np.unique(np.diff(samples[0][:, 0])).tolist() == [48.0]


def test_long_vectors_are_read_in_parts() -> None:
    long = VectorColumns("text", (), 4_096)
    parts = long.parts(1_000)
    assert [part.start for part in parts] == [0, 256, 512, 768]
    assert parts[-1].stop == 1_000
