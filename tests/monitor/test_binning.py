"""Frozen bins: half-open, cut at values of the reference, the same for rows and Arrow, and an answer for any value."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import binning
from monitor.binning import (
    CLIP,
    FLAGS,
    MAX_CATEGORIES,
    ON_LATTICE,
    QUANTUM_BITS,
    SPECIALS,
    Bins,
    CategoricalBins,
    Codes,
    Floats,
    Ints,
    NumericBins,
    Raw,
    cut_categorical,
    cut_numeric,
    from_dict,
    to_dict,
)

INF, NAN = float("inf"), float("nan")
TENS = NumericBins(np.array([10.0, 20.0]), low=5.0, high=30.0, center=15.0, scale=5.0)
AIRLINES = CategoricalBins(("UA", "AA", "1", "true"))


def named(bins: Bins, raw: Raw) -> list[str | int]:
    """Codes as a reader would say them: a bin's number, or the name of a special."""
    return [
        c if c < bins.bins else SPECIALS[c - bins.bins] for c in bins.encode(raw).codes.tolist()
    ]


def flagged(bins: NumericBins, raw: Raw) -> list[str]:
    flags = bins.encode(raw).flags
    return [""] * len(raw) if flags is None else ["" if f == 0 else FLAGS[f - 1] for f in flags]


@pytest.mark.parametrize(
    ("value", "code", "flag"),
    [
        (9.999999999999998, 0, ""),
        (10.0, 1, ""),
        (10, 1, ""),
        (19.999999999999996, 1, ""),
        (20.0, 2, ""),
        (5.0, 0, ""),
        (4.999999999999999, 0, "below"),
        (-1e308, 0, "below"),
        (30.0, 2, ""),
        (30.000000000000004, 2, "above"),
        (2**53 + 1, 2, "above"),
        (10**300, 2, "above"),
        (True, 0, "below"),
        (-0.0, 0, "below"),
        (None, "missing", ""),
        (NAN, "nan", ""),
        (INF, "pos_inf", ""),
        (10**400, "pos_inf", ""),
        (-INF, "neg_inf", ""),
        (-(10**400), "neg_inf", ""),
        ("12", "wrong_type", ""),
        ("", "wrong_type", ""),
        ([12.0], "wrong_type", ""),
        ({"v": 12.0}, "wrong_type", ""),
        (b"12", "wrong_type", ""),
    ],
    ids=lambda v: str(v)[:12],
)
def test_every_value_has_one_bin_or_stands_beside_them(
    value: object, code: int | str, flag: str
) -> None:
    assert named(TENS, [value]) == [code]
    assert flagged(TENS, [value]) == [flag]
    mixed = [12.0, value, None, "text", 25]  # the same among others, where another path encodes
    assert named(TENS, mixed) == [1, code, "missing", "wrong_type", 2]
    assert flagged(TENS, mixed)[1] == flag
    kept = TENS.encode([value]).values
    assert kept is not None
    assert np.isnan(kept[0]) == isinstance(code, str)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("UA", 0),
        ("ua", 4),
        ("", 4),
        (1, 2),
        (1.0, 2),
        (1.5, 4),
        (True, 3),
        (10**300, 4),
        (None, "missing"),
        (NAN, "nan"),
        (INF, "pos_inf"),
        (-INF, "neg_inf"),
        (["UA"], "wrong_type"),
        ({"UA": 1}, "wrong_type"),
        (b"UA", "wrong_type"),
    ],
    ids=lambda v: str(v)[:12],
)
def test_every_category_has_one_bin_or_stands_beside_them(value: object, code: int | str) -> None:
    assert named(AIRLINES, [value]) == [code]
    assert named(AIRLINES, ["AA", value, None]) == [1, code, "missing"]


def test_unseen_categories_are_named_in_the_order_of_their_rows() -> None:
    encoded = AIRLINES.encode(["UA", "XX", None, "AA", 7, "XX", 2.5, False])
    assert list(encoded.unseen) == ["XX", "7", "XX", "2.5", "false"]
    assert encoded.values is None


ARROW: list[tuple[pa.DataType, list[Any]]] = [
    *((t, [1, None, 12, 25, 100]) for t in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint32())),
    (pa.int64(), [2**53 + 1, -(2**63), 2**63 - 1, None]),
    (pa.uint64(), [0, 2**64 - 1, None]),
    (pa.float32(), [0.5, 12.25, INF, -INF, NAN, None]),
    (pa.float64(), [1e308, 12.1, INF, -INF, NAN, None, 10.0, -0.0]),
    (pa.bool_(), [True, False, None]),
    (pa.string(), ["UA", "12", "", None, "éü"]),
    (pa.large_string(), ["UA", None]),
    (pa.dictionary(pa.int8(), pa.string()), ["UA", "XX", None, "UA"]),
    (pa.binary(), [b"UA", None]),
    (pa.date32(), [date(2013, 1, 1), None]),
    (pa.list_(pa.int8()), [[1], None]),
    (pa.struct([("a", pa.int8())]), [{"a": 1}, None]),
    (pa.null(), [None, None]),
    (pa.float64(), []),
    (pa.string(), []),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rows"), ARROW, ids=[str(t) for t, _ in ARROW])
@pytest.mark.parametrize("bins", [TENS, AIRLINES], ids=["numeric", "categorical"])
def test_arrow_columns_encode_as_lists_do(bins: Bins, kind: pa.DataType, rows: list[Any]) -> None:
    array = pa.array(rows, type=kind)
    for column, raw in ((array, rows), (array[1:], rows[1:])):  # whole, and with an offset
        ours, theirs = bins.encode(column), bins.encode(raw)
        assert ours.codes.tolist() == theirs.codes.tolist()
        assert list(ours.unseen) == list(theirs.unseen)
        np.testing.assert_array_equal(_or_none(ours.flags), _or_none(theirs.flags))
        np.testing.assert_array_equal(_or_none(ours.values), _or_none(theirs.values))


def _or_none(column: Any) -> Any:
    return [None] if column is None else column


def test_an_empty_column_encodes_to_nothing() -> None:
    for bins in (TENS, AIRLINES):
        assert bins.encode([]).codes.tolist() == []


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(finite, min_size=1, max_size=300), st.integers(2, 128), st.lists(finite, max_size=20)
)
def test_bins_of_any_reference_are_half_open_and_hold_all_of_it(
    reference: list[float], max_bins: int, others: list[float]
) -> None:
    bins = cut_numeric(np.array(reference), max_bins=max_bins)
    assert bins.bins <= max_bins
    assert set(bins.edges.tolist()) <= set(reference)  # so ties never straddle an edge
    for value in (*reference, *others, *bins.edges.tolist()):
        (code,) = bins.encode([value]).codes.tolist()
        assert code == sum(edge <= value for edge in bins.edges)
    assert bins.encode(reference).flags is None  # the reference is within its own range and grid
    assert np.all(np.bincount(bins.encode(reference).codes, minlength=bins.bins) > 0)


@st.composite
def any_bins(draw: st.DrawFn) -> NumericBins:
    """Bins of a reference, or bins that no reference would give."""
    values = np.array(draw(st.lists(finite, min_size=1, max_size=300)))
    shape = draw(st.sampled_from(["as drawn", "whole numbers", "few values", "made up"]))
    if shape == "made up":
        center, scale, step = draw(st.tuples(finite, finite, finite))
        low, high = sorted(draw(st.tuples(finite, finite)))
        return NumericBins(
            np.unique(values), low, high, center, abs(scale) or 1.0, abs(step) or None
        )
    if shape == "whole numbers":
        values = np.rint(np.clip(values, -1e6, 1e6))
    return cut_numeric(np.repeat(values[:12], 120) if shape == "few values" else values)


@given(any_bins(), st.lists(st.floats() | st.none() | st.integers(-30, 30), max_size=100))
def test_what_is_left_out_for_speed_changes_no_answer(bins: NumericBins, raw: list[Any]) -> None:
    raw = [*raw, *bins.edges[:20].tolist()]
    arrow = pa.array(raw, type=pa.float64())
    plain = [value for value in raw if value is not None and np.isfinite(value)]
    shared, written = pa.array(plain, type=pa.float64()), repr(arrow.to_pylist())
    for column, values in ((raw, raw), (arrow, raw), (plain, plain), (shared, plain)):
        encoded, codes, flags, quanta = bins.encode(column), *encoded_slowly(bins, values)
        assert encoded.codes.tolist() == codes.tolist()
        assert encoded.flags is None or encoded.flags.any()
        assert (
            encoded.flags if encoded.flags is not None else 0 * codes
        ).tolist() == flags.tolist()
        assert encoded.quanta is not None
        assert encoded.values is not None
        assert encoded.quanta.tolist() == quanta.tolist()
        assert np.isnan(encoded.values).tolist() == (codes >= bins.bins).tolist()
    assert repr(arrow.to_pylist()) == written  # its memory was not


def encoded_slowly(bins: NumericBins, raw: list[Any]) -> tuple[Codes, Codes, Ints]:
    """Codes, flags and quanta, each computed for each value."""
    values = np.array(raw, dtype=np.float64)
    codes = np.searchsorted(bins.edges, values, side="right")
    flags = np.zeros(len(values), dtype=np.intp)
    flags[values < bins.low] = 1
    flags[values > bins.high] = 2
    with np.errstate(invalid="ignore", over="ignore"):
        if bins.step is not None:
            steps = (values - bins.low) / bins.step
            flags[np.abs(steps - np.rint(steps)) > ON_LATTICE] = 3
        elif bins.grid is not None:
            flags[(flags == 0) & (bins.grid[codes] != values)] = 3
        scaled = (values - bins.center) / bins.scale * (1 << QUANTUM_BITS)
    quanta = np.rint(np.clip(np.nan_to_num(scaled, posinf=CLIP, neginf=-CLIP), -CLIP, CLIP))
    for name, where in (
        ("nan", np.isnan(values)),
        ("pos_inf", values == np.inf),
        ("neg_inf", values == -np.inf),
        ("missing", np.array([value is None for value in raw], dtype=bool)),
    ):
        codes[where] = bins.bins + SPECIALS.index(name)
        flags[where], quanta[where] = 0, 0
    return codes, flags, quanta.astype(np.int64)


@given(st.lists(finite, max_size=200), st.integers(2, 128))
def test_frozen_bins_survive_json_to_the_last_bit(reference: list[float], max_bins: int) -> None:
    bins = cut_numeric(np.array(reference), max_bins=max_bins)
    again = from_dict(json.loads(json.dumps(to_dict(bins))))
    assert isinstance(again, NumericBins)
    assert to_dict(again) == to_dict(bins)
    np.testing.assert_array_equal(_or_none(again.grid), _or_none(bins.grid))


@given(st.lists(st.text(max_size=8), unique=True, max_size=30))
def test_frozen_categories_survive_json(categories: list[str]) -> None:
    form = to_dict(CategoricalBins(tuple(categories)))
    assert to_dict(from_dict(json.loads(json.dumps(form)))) == form


def test_frozen_edges_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        cut_numeric(np.arange(300.0)).edges[0] = 1.0


def test_continuous_features_get_bins_of_equal_mass() -> None:
    values = np.random.default_rng(1).lognormal(0, 2, 12_800)
    bins = cut_numeric(values)
    counts = np.bincount(bins.encode(values.tolist()).codes, minlength=bins.bins)
    assert bins.bins == 128
    assert counts.min() >= 99
    assert counts.max() <= 101


def test_heavy_ties_stay_in_one_bin_and_cost_bins_elsewhere() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate((np.zeros(9_000), rng.random(1_000)))
    bins = cut_numeric(values)
    codes = bins.encode(values.tolist()).codes
    assert len(set(codes[:9_000].tolist())) == 1
    assert 10 <= bins.bins <= 14
    assert np.bincount(codes, minlength=bins.bins).min() > 0  # and none is empty below the ties


SIZES = np.repeat([1.0, 2.0, 5.0], 100)  # few values: a grid of the values themselves
WHOLE = np.repeat(np.arange(40.0), 5)  # a lattice of step 1
KNOTS = np.round(
    np.repeat(np.arange(3, 40), 20) * 1.15078, 5
)  # whole knots in mph: a lattice whose step is odd


@pytest.mark.parametrize(
    ("reference", "value", "flag"),
    [
        (SIZES, 2.0, ""),
        (SIZES, 2, ""),
        (SIZES, 3.0, "off_grid"),
        (SIZES, 4.999999, "off_grid"),
        (SIZES, 6.0, "above"),
        (SIZES, 0.0, "below"),
        (WHOLE, 17.0, ""),
        (WHOLE, 17.5, "off_grid"),
        (WHOLE, 17.25, "off_grid"),
        (WHOLE, 60.0, "above"),
        (WHOLE, -1.0, "below"),
        (WHOLE, 60.5, "off_grid"),
        (WHOLE, None, ""),
        (WHOLE, NAN, ""),
        (KNOTS, 11.5078, ""),
        (KNOTS, 11.5078 * 1.609344, "off_grid"),
        (np.random.default_rng(3).random(500), 0.123456789, ""),
    ],
)
def test_a_changed_unit_leaves_the_grid_and_nature_leaves_the_range(
    reference: Floats, value: float | None, flag: str
) -> None:
    assert flagged(cut_numeric(reference), [value]) == [flag]


def test_few_values_are_a_grid_only_once_new_ones_are_rare() -> None:
    once = np.array(
        [0.31, 0.77, 1.93, 4.1414213, 5.5]
    )  # each seen once: the next value is likely a new one
    assert flagged(cut_numeric(once), [1.0]) == [""]
    assert flagged(cut_numeric(np.repeat(once, 50)), [1.0]) == ["off_grid"]


@pytest.mark.parametrize("constant", [0.0, 7.5, -3.0, 1e300, 5e-324])
def test_a_constant_column_has_one_bin_and_any_other_value_is_out_of_range(constant: float) -> None:
    bins = cut_numeric(np.full(50, constant))
    assert bins.bins == 1
    assert (bins.low, bins.high, bins.center) == (constant, constant, constant)
    assert flagged(bins, [constant, np.nextafter(constant, INF), -INF]) == ["", "above", ""]


def test_a_column_without_values_has_one_bin() -> None:
    bins = cut_numeric(np.empty(0))
    assert (bins.bins, bins.center, bins.scale) == (1, 0.0, 1.0)
    assert named(bins, [None, 3.0]) == ["missing", 0]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([-1.7e308, 0.0, 1.7e308], id="range overflows"),
        pytest.param([1.7e308, 1.7e308], id="sum overflows"),
        pytest.param([5e-324, 1e-323], id="denormals"),
        pytest.param([i * 5e-324 for i in range(300)], id="many denormals"),
        pytest.param([i * 1e-9 for i in range(300)], id="narrower than the grid resolves"),
        pytest.param([1e300 + i * 1e290 for i in range(300)], id="far from zero"),
        pytest.param([i * 5e305 for i in range(-150, 150)], id="many and wide"),
        pytest.param([float(2**60 + i * 256) for i in range(300)], id="beyond 2**53"),
    ],
)
def test_extreme_references_have_finite_units_and_bounded_quanta(values: list[float]) -> None:
    bins = cut_numeric(np.array(values))
    assert np.isfinite([bins.center, bins.scale]).all()
    assert bins.scale > 0
    quanta = bins.quantise(np.array([*values, NAN]))
    assert np.abs(quanta).max() <= CLIP
    assert quanta[-1] == 0
    assert bins.encode(values).flags is None


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(-1e9, 1e9))
def test_quanta_are_values_in_scales_rounded_and_clipped(
    center: float, scale: float, x: float
) -> None:
    bins = NumericBins(np.empty(0), 0.0, 0.0, center, scale)
    (q,) = bins.quantise(np.array([x])).tolist()
    exact = (x - center) / scale * 2**QUANTUM_BITS
    assert q == max(-CLIP, min(CLIP, round(exact)))


def test_of_ten_thousand_categories_the_most_frequent_are_bins_and_the_rest_is_other() -> None:
    counts = {f"c{i:05}": 10_000_000 // (i + 1) for i in range(10_000)}
    bins = cut_categorical(counts)
    assert MAX_CATEGORIES - 5 < len(bins.categories) < MAX_CATEGORIES
    assert bins.categories == tuple(f"c{i:05}" for i in range(len(bins.categories)))
    codes = bins.encode(list(counts)).codes
    assert np.bincount(codes)[-1] == 10_000 - len(bins.categories)


def test_of_equally_rare_categories_the_luckiest_are_not_kept() -> None:
    drawn = np.bincount(np.random.default_rng(8).integers(0, 10_000, 200_000))
    assert cut_categorical({f"c{i}": int(n) for i, n in enumerate(drawn)}).bins <= 2
    assert cut_categorical({f"c{i}": 20 for i in range(MAX_CATEGORIES + 1)}).bins == 1
    assert cut_categorical({f"c{i}": 20 for i in range(MAX_CATEGORIES)}).bins == MAX_CATEGORIES + 1


def test_ties_between_categories_are_broken_by_name_and_overlong_ones_are_other() -> None:
    long = "x" * 257
    assert cut_categorical({"b": 2, "a": 2, long: 9, "c": 5}).categories == ("c", "a", "b")
    assert cut_categorical({"b": 9, "a": 9, "c": 1}, max_categories=2).categories == ("a", "b")
    assert cut_categorical({}).bins == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NumericBins(np.array([1.0, 1.0]), 0, 2, 1, 1), "increase"),
        (lambda: NumericBins(np.array([2.0, 1.0]), 0, 2, 1, 1), "increase"),
        (lambda: NumericBins(np.array([1.0, NAN]), 0, 2, 1, 1), "finite"),
        (lambda: NumericBins(np.ones((1, 1)), 0, 2, 1, 1), "vector"),
        (lambda: NumericBins(np.empty(0), 0, INF, 1, 1), "low and high"),
        (lambda: NumericBins(np.empty(0), 0, 2, NAN, 1), "center"),
        (lambda: NumericBins(np.empty(0), 0, 2, 1, 0), "scale"),
        (lambda: CategoricalBins(("a", "a")), "twice"),
        (lambda: CategoricalBins(tuple(map(str, range(257)))), "257"),
    ],
)
def test_bins_that_could_not_be_counted_in_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_other_types_are_of_the_wrong_type() -> None:
    assert named(TENS, [Decimal("12.5"), 1 + 2j, date(2013, 1, 1)]) == ["wrong_type"] * 3


def test_the_digest_of_a_text_is_part_of_the_wire_format() -> None:
    assert binning.digest("driftline") == "278abef5c62626b2"  # 64 bits of BLAKE2b
    assert binning.digest("") == "e4a6a0577479b2b4"
