"""Sums of random features are exact: neither batches, order, groups nor the shape of a matrix product change a bit."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitor import fourier
from monitor.binning import Floats
from monitor.errors import IncompatibleError
from monitor.fourier import MAX_DIMENSIONS, MAX_FREQUENCIES, FourierMap, FourierSum, embed

RNG = np.random.default_rng(20_130_201)
PAST = RNG.normal(size=(500, 3)) * [1.0, 1e6, 1e-6] + [0.0, 5e7, 1.0]
MAP = FourierMap.fit(PAST, seed=7, frequencies=16)

numbers = st.floats() | st.sampled_from([0.0, 5e7, 1.0, -1e308, np.nan, np.inf, 5e-324])
vectors_of = st.lists(st.tuples(numbers, numbers, numbers), max_size=40).map(
    lambda rows: np.array(rows, dtype=np.float64).reshape(-1, 3)
)


def summed(vectors: Floats, known: FourierMap = MAP) -> FourierSum:
    group = np.zeros(len(vectors), dtype=np.intp)
    return FourierSum(len(vectors), known.sums(vectors, group, 1)[0])


def same(a: FourierSum, b: FourierSum) -> bool:
    return a.n == b.n and a.total.tolist() == b.total.tolist()


@given(vectors_of, st.lists(st.integers(0, 40), max_size=6), st.integers(0, 99))
def test_neither_the_cut_into_batches_nor_the_order_changes_a_bit(
    vectors: Floats, cuts: list[int], seed: int
) -> None:
    ends = sorted({min(cut, len(vectors)) for cut in cuts} | {0, len(vectors)})
    batches = [vectors[i:j][::-1] for i, j in pairwise(ends)]
    np.random.default_rng(seed).shuffle(batches)
    zero = FourierSum(0, np.zeros(32, dtype=np.int64))
    assert same(reduce(add, map(summed, batches), zero), summed(vectors))


@given(vectors_of, st.data())
def test_sums_by_group_are_the_sums_of_each_groups_vectors(
    vectors: Floats, data: st.DataObject
) -> None:
    group = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(vectors), max_size=len(vectors))),
        dtype=np.intp,
    )
    sums = MAP.sums(vectors, group, 4)
    for i in range(4):
        assert sums[i].tolist() == summed(vectors[group == i]).total.tolist()


def test_a_long_batch_of_long_vectors_is_the_sum_of_single_ones() -> None:
    vectors = RNG.normal(size=(1_500, 300))
    known = FourierMap.fit(vectors, seed=1)
    one_by_one = reduce(add, (summed(row[None], known) for row in vectors))
    assert same(summed(np.asfortranarray(vectors), known), one_by_one)


def test_sums_are_those_of_arithmetic_without_rounding() -> None:
    """The same steps in fractions of whole numbers, and cosines by another library."""
    vectors = np.concatenate((PAST[:40] * 3, [[0.0, np.nan, 1e200]]))
    expected = [0] * 32
    for row in vectors:
        quanta = []
        for x, center, scale in zip(row, MAP.center, MAP.scale, strict=True):
            q = (x - center) * (2**14 / scale) if math.isfinite(x) else 0.0
            quanta.append(round(max(-(32 * 2**14), min(32 * 2**14, q))))
        for j in range(16):
            turns = sum(Fraction(q) * int(w) for q, w in zip(quanta, MAP.directions[:, j], strict=True))  # fmt: skip
            angle = round(turns / 2**24) % 4_096 * (2 * math.pi / 4_096)
            expected[j] += round(2**15 * math.cos(angle))
            expected[16 + j] += round(2**15 * math.sin(angle))
    assert summed(vectors).total.tolist() == expected


def test_the_table_and_the_directions_are_those_of_any_machine() -> None:
    """No entry is near a half, so a cosine or a logarithm that is off by some last digits gives the same whole numbers."""
    angles = np.arange(4_096) * (2 * np.pi / 4_096)
    exact = 2**15 * np.cos(angles)
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-6
    known = FourierMap(7, 64, 1.5, np.zeros(20), np.ones(20))
    found = hashlib.blake2b(known.directions.astype("<i8").tobytes() + fourier._TABLE.tobytes(), digest_size=8)  # fmt: skip
    assert found.hexdigest() == "26c2882afa530239"


def test_directions_are_normal_deviates_over_the_bandwidth() -> None:
    known = FourierMap(11, 512, 1.5, np.zeros(40), np.ones(40))
    deviates = known.directions.ravel() * 2 * np.pi * 1.5 / 2**22
    assert stats.kstest(deviates, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(known.directions) - np.eye(40)).max() < 5.5 / np.sqrt(512)


def test_inner_products_of_embeddings_are_the_kernel() -> None:
    vectors = RNG.normal(size=(60, 4))
    known = FourierMap(3, MAX_FREQUENCIES, 1.5, np.zeros(4), np.ones(4))
    z = known.embed(vectors)
    apart = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    # The standard error of a mean of 512 cosines is at most 0.032; the largest of 1,770 pairs stays below 5.
    assert np.abs(z @ z.T - np.exp(-apart / 2 / 1.5**2)).max() < 0.16
    assert np.abs(np.sum(z * z, axis=1) - 1).max() < 1e-4


def test_a_gap_counts_as_the_centre_and_an_outlier_as_far_away() -> None:
    center = MAP.center
    gaps = np.array([[np.nan, np.inf, -np.inf]])
    assert same(summed(gaps), summed(center[None]))
    far, farther = center + 33 * MAP.scale, center + 1e9 * MAP.scale
    assert same(summed(far[None]), summed(farther[None]))


def test_the_unit_of_the_data_changes_nothing() -> None:
    now = PAST[:100] * 1.01
    scaled = FourierMap.fit(PAST * 1024.0, seed=7, frequencies=16)
    assert same(summed(now * 1024.0, scaled), summed(now))
    moved = FourierMap.fit(PAST * 9 / 5 + 32, seed=7, frequencies=16)
    apart = embed(np.array(100), summed(now * 9 / 5 + 32, moved).total - summed(now).total)
    assert np.abs(apart).max() < 1e-3  # quanta fall differently


def test_components_of_an_embedding_keep_their_proportions() -> None:
    vectors = RNG.normal(size=(2_000, 2)) * [1.0, 0.01]
    shared = FourierMap.fit(vectors, seed=1, common_scale=True)
    assert shared.scale[0] == shared.scale[1] == pytest.approx(np.sqrt((1 + 1e-4) / 2), rel=0.05)
    own = FourierMap.fit(vectors, seed=1)
    assert own.scale.tolist() == pytest.approx([1.0, 0.01], rel=0.05)


@pytest.mark.parametrize(
    "sample",
    [
        np.empty((0, 2)),
        np.full((10, 2), np.nan),
        np.full((10, 2), 3.0),
        np.array([[1.0, 2.0]]),
        np.array([[0.0, -1e308], [5e-324, 1e308], [0.0, 1e308]]),
        np.array([[0.0, 0.0]] * 50 + [[1e9, np.inf]]),
    ],
    ids=["no row", "gaps only", "constant", "one row", "all magnitudes", "an outlier"],
)
def test_whatever_the_reference_the_map_is_defined_and_sums_are_bounded(sample: Floats) -> None:
    for common_scale in (False, True):
        known = FourierMap.fit(sample, seed=1, frequencies=8, common_scale=common_scale)
        vectors = np.array([[0.0, 1.0], [1e308, -1e308], [np.nan, 3.0]])
        assert np.abs(summed(vectors, known).total).max() <= 3 << 15


def test_a_map_round_trips_and_one_that_comes_out_different_is_refused() -> None:
    form = MAP.to_dict()
    again = FourierMap.from_dict(form)
    assert again.map_id == MAP.map_id
    assert same(summed(PAST, again), summed(PAST))
    for change in ({"seed": 8}, {"bandwidth": MAP.bandwidth * 2}, {"map_id": "0" * 16}):
        with pytest.raises(IncompatibleError):
            FourierMap.from_dict({**form, **change})


@pytest.mark.parametrize(
    ("frequencies", "bandwidth", "center", "scale"),
    [
        (0, 1.0, [0.0], [1.0]),
        (MAX_FREQUENCIES + 1, 1.0, [0.0], [1.0]),
        (1, 0.01, [0.0], [1.0]),
        (1, np.nan, [0.0], [1.0]),
        (1, 1.0, [], []),
        (1, 1.0, [0.0] * (MAX_DIMENSIONS + 1), [1.0] * (MAX_DIMENSIONS + 1)),
        (1, 1.0, [np.nan], [1.0]),
        (1, 1.0, [0.0], [0.0]),
        (1, 1.0, [0.0, 0.0], [1.0]),
        (1, 1 / 16, [0.0] * MAX_DIMENSIONS, [1.0] * MAX_DIMENSIONS),
    ],
)
def test_a_map_that_could_not_be_exact_is_refused(
    frequencies: int, bandwidth: float, center: list[float], scale: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"give|must|cannot"):
        FourierMap(1, frequencies, bandwidth, np.array(center), np.array(scale))


def test_sums_of_different_maps_never_merge() -> None:
    other = FourierMap.fit(PAST, seed=7, frequencies=8)
    with pytest.raises(IncompatibleError):
        summed(PAST) + summed(PAST, other)
