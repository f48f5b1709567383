"""Profiles add up exactly: whatever the batches, the merge order and the wire, not a bit differs."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import (
    CLIP,
    FLAGS,
    MAX_CATEGORIES,
    QUANTUM_BITS,
    SPECIALS,
    CategoricalBins,
    NumericBins,
    cut_categorical,
    cut_numeric,
)
from monitor.counting import profile_groups
from monitor.errors import IncompatibleError
from monitor.profile import PREDICTION, SCORE, UNSEEN_KEPT, Layout, Profile

Row = dict[str, Any]

DISTANCES = cut_numeric(np.random.default_rng(1).lognormal(6, 1, 2_000))
HOURS = cut_numeric(np.repeat(np.arange(24.0), 50))
CARRIERS = CategoricalBins(("UA", "AA", "DL"))
LAYOUT = Layout({"distance": DISTANCES, "hour": HOURS, "carrier": CARRIERS, PREDICTION: CategoricalBins(("0", "1"))})  # fmt: skip


def profiles_of(
    rows: Sequence[Row], group: Sequence[int] | None = None, groups: int = 1
) -> list[Profile]:
    """One profile per group of rows; a row may lack any field."""
    columns = {f.name: f.bins.encode([row.get(f.name) for row in rows]) for f in LAYOUT.fields}
    errors = np.array([row.get("error", False) for row in rows], dtype=bool)
    which = np.zeros(len(rows), np.intp) if group is None else np.array(group, dtype=np.intp)
    return profile_groups(LAYOUT, columns, errors, which, groups)


def profile_of(rows: Sequence[Row]) -> Profile:
    (profile,) = profiles_of(rows)
    return profile


def same(a: Profile, b: Profile) -> bool:
    return (
        a.to_bytes() == b.to_bytes()
        and a.vector.tolist() == b.vector.tolist()
        and a.unseen == b.unseen
    )


anything = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.booleans(),
    st.sampled_from(["UA", "AA", "DL", "text", ""]),
    st.just([1]),
)
carriers = st.one_of(
    st.sampled_from(["UA", "AA", "DL"]), st.integers(0, 99).map("X{}".format), st.none()
)
rows_of = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "distance": st.one_of(st.floats(0, 5_000), anything),
            "hour": st.integers(-2, 25) | st.floats(0, 24),
            "carrier": carriers,
            PREDICTION: st.sampled_from([0, 1, "1", None]),
            "error": st.booleans(),
        },
    ),
    max_size=60,
)


@given(rows_of, rows_of, rows_of)
def test_merging_is_associative_and_commutative_and_has_a_zero(
    a: list[Row], b: list[Row], c: list[Row]
) -> None:
    p, q, r = profile_of(a), profile_of(b), profile_of(c)
    assert same((p + q) + r, p + (q + r))
    assert same(p + q, q + p)
    assert same(p + Profile.zero(LAYOUT), p)


@given(rows_of, rows_of)
def test_the_profile_of_a_concatenation_is_the_sum_of_the_profiles(
    a: list[Row], b: list[Row]
) -> None:
    assert same(profile_of(a + b), profile_of(a) + profile_of(b))


@given(rows_of, st.lists(st.integers(0, 60), max_size=8), st.randoms(use_true_random=False))
def test_neither_the_cut_into_batches_nor_the_merge_order_changes_a_bit(
    rows: list[Row], cuts: list[int], chance: Any
) -> None:
    ends = sorted({min(cut, len(rows)) for cut in cuts} | {0, len(rows)})
    batches = [rows[i:j] for i, j in pairwise(ends)]
    for batch in batches:
        chance.shuffle(batch)  # the order of the rows matters as little
    chance.shuffle(batches)
    whole = reduce(add, map(profile_of, batches), Profile.zero(LAYOUT))
    assert same(whole, profile_of(rows))


@given(rows_of, st.data())
def test_profiles_by_group_are_the_profiles_of_each_groups_rows(
    rows: list[Row], data: st.DataObject
) -> None:
    group = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    for i, profile in enumerate(profiles_of(rows, group, 5)):
        assert same(
            profile, profile_of([row for row, g in zip(rows, group, strict=True) if g == i])
        )


@given(rows_of)
def test_the_wire_form_round_trips_to_the_last_bit(rows: list[Row]) -> None:
    profile = profile_of(rows)
    assert same(Profile.from_bytes(LAYOUT, profile.to_bytes()), profile)


@given(rows_of)
def test_every_event_is_counted_once_in_every_field(rows: list[Row]) -> None:
    profile = profile_of(rows)
    assert profile.n == len(rows)
    assert profile.errors == sum(row.get("error", False) for row in rows)
    for f in LAYOUT.fields:
        assert profile.vector[f.counts].sum() + profile.vector[f.specials].sum() == len(rows)


@given(rows_of)
def test_moments_are_exact_sums_of_quanta(rows: list[Row]) -> None:
    profile = profile_of(rows)
    for name, bins in (("distance", DISTANCES), ("hour", HOURS)):
        values = bins.encode([row.get(name) for row in rows]).values
        assert values is not None
        quanta = list(map(int, bins.quantise(values[~np.isnan(values)])))
        s1, high, low = profile.vector[LAYOUT.by_name[name].moments].tolist()
        assert s1 == sum(quanta)
        assert (high << 32) + low == sum(q * q for q in quanta)
        assert 0 <= low < 2**32  # canonical: equal sums are equal bytes
        n, mean, m2 = profile.moments(name)
        assert n == len(quanta)
        if n:
            unit = Fraction(bins.scale) / (1 << QUANTUM_BITS)
            exact = Fraction(sum(quanta), n)
            assert mean == pytest.approx(
                float(Fraction(bins.center) + exact * unit), rel=1e-14, abs=1e-9
            )
            spread = sum((q - exact) ** 2 for q in quanta) * unit**2
            assert m2 == pytest.approx(float(spread), rel=1e-12)


FEW = {
    "hours": HOURS,
    "knots in mph": cut_numeric(np.repeat(np.arange(1, 31) * 1.15, 40)),
    "no lattice": cut_numeric(np.repeat([-0.0, 0.1, np.pi, 1e9], 400)),
    "a constant": cut_numeric(np.full(50, 3.25)),
    "one cell for all": cut_numeric(np.repeat([-1e9, 1.0, 1.0000000000000002, 1.0000000000000004], 99)),
}  # fmt: skip


@pytest.mark.parametrize("bins", FEW.values(), ids=FEW)
@given(st.data())
def test_a_bin_of_one_value_is_counted_as_each_of_its_values_is(
    bins: NumericBins, data: st.DataObject
) -> None:
    """Of few known values the moments come from the counts; one value between them, and each is looked at."""
    points = [bins.low, *bins.edges.tolist()]
    gaps = st.sampled_from([None, float("nan"), float("inf"), "text"])
    others = st.floats(-1e10, 1e10) | st.sampled_from(
        [float(np.nextafter(x, to)) for x in points for to in (-np.inf, np.inf)]
    )
    rows = data.draw(st.lists(st.sampled_from(points) | data.draw(st.sampled_from([gaps, others]))))
    group = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    layout = Layout({"x": bins})
    profiles = profile_groups(
        layout, {"x": bins.encode(rows)}, np.zeros(len(rows), bool), np.array(group, np.intp), 3
    )
    for i, profile in enumerate(profiles):
        mine = [x for x, g in zip(rows, group, strict=True) if g == i]
        values = np.array([x for x in mine if isinstance(x, float) and np.isfinite(x)])
        s1, high, low = profile.vector[layout.by_name["x"].moments].tolist()
        quanta = list(map(int, bins.quantise(values)))
        assert (s1, (high << 32) + low) == (sum(quanta), sum(q * q for q in quanta))
        codes = np.searchsorted(bins.edges, values, side="right")
        assert profile.counts("x").tolist() == np.bincount(codes, minlength=bins.bins).tolist()
        assert profile.special("x", "missing") == mine.count(None)
        flagged = sum(profile.special("x", flag) for flag in FLAGS)
        assert np.count_nonzero((values < bins.low) | (values > bins.high)) <= flagged
        assert flagged <= np.count_nonzero(~np.isin(values, points))


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e12])
def test_moments_equal_numpys_within_the_quantum_even_far_from_zero(offset: float) -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(offset, 3, 20_000)
    bins = cut_numeric(values)
    layout = Layout({"x": bins})
    (profile,) = profile_groups(
        layout, {"x": bins.encode(values.tolist())}, np.zeros(len(values), bool), np.zeros(len(values), np.intp), 1
    )  # fmt: skip
    n, mean, m2 = profile.moments("x")
    quantum = bins.scale / 2**QUANTUM_BITS
    assert n == len(values)
    assert mean == pytest.approx(values.mean(), abs=quantum / 2 + abs(offset) * 1e-15)
    assert m2 / n == pytest.approx(values.var(), rel=1e-4)


def test_values_beyond_a_thousand_scales_count_as_that_far() -> None:
    profile = profile_of([{"distance": 1e300}, {"distance": -1e300}])
    s1, high, low = profile.vector[LAYOUT.by_name["distance"].moments].tolist()
    assert (s1, (high << 32) + low) == (0, 2 * CLIP**2)
    assert profile.special("distance", "above") == profile.special("distance", "below") == 1


def test_sums_of_squares_carry_beyond_64_bits() -> None:
    """10,000 profiles of 10,000 clipped values: 4.5e23 quanta squared, and the mean is still exact."""
    part = profile_of([{"distance": 1e300}] * 10_000)
    whole = part
    for _ in range(13):  # doubled 13 times: 8,192 profiles
        whole = whole + whole
    n, mean, m2 = whole.moments("distance")
    assert n == 10_000 * 8_192
    assert mean == DISTANCES.center + 1024 * DISTANCES.scale
    assert m2 == 0
    assert same(Profile.from_bytes(LAYOUT, whole.to_bytes()), whole)


def test_specials_and_flags_are_counted_by_name() -> None:
    nan, inf = float("nan"), float("inf")
    values: list[object] = [None, nan, inf, inf, -inf, "x", [1], {}, 10**400, 3, 3.5, 24, -1, True]
    profile = profile_of([{"hour": value} for value in values])
    named = {name: profile.special("hour", name) for name in (*SPECIALS, *FLAGS)}
    assert named == {
        "missing": 1,
        "nan": 1,
        "pos_inf": 3,
        "neg_inf": 1,
        "wrong_type": 3,
        "below": 1,
        "above": 1,
        "off_grid": 1,
    }
    assert profile.counts("hour").sum() == 5
    assert profile.moments("hour")[0] == 5
    assert profile.special("carrier", "missing") == len(values)


def test_an_empty_batch_and_absent_values_have_moments_of_nothing() -> None:
    assert same(profile_of([]), Profile.zero(LAYOUT))
    nothing = profile_of([{}, {}])
    assert nothing.n == 2
    assert nothing.moments("distance") == nothing.moments("carrier") == (0, 0.0, 0.0)


def expected_hints(texts: Sequence[str]) -> dict[str, int]:
    kept = sorted(set(texts), key=lambda t: (zlib.crc32(t.encode()), t))[:UNSEEN_KEPT]
    return {text: Counter(texts)[text] for text in kept}


@given(
    st.lists(st.lists(st.integers(0, 60).map("new-{}".format), max_size=40), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_hints_of_unseen_categories_are_exact_counts_of_the_same_texts_in_any_order(
    batches: list[list[str]], chance: Any
) -> None:
    parts = [profile_of([{"carrier": text} for text in batch]) for batch in batches]
    chance.shuffle(parts)
    whole = reduce(add, parts)
    texts = [text for batch in batches for text in batch]
    assert dict(whole.unseen.get("carrier", {})) == expected_hints(texts)
    assert whole.counts("carrier")[-1] == len(
        texts
    )  # the rate is exact: it is not made of the hints


def test_ten_thousand_new_categories_cost_one_counter_and_sixteen_hints() -> None:
    profile = profile_of([{"carrier": f"spam-{i}"} for i in range(10_000)])
    assert profile.counts("carrier").tolist() == [0, 0, 0, 10_000]
    assert len(profile.unseen["carrier"]) == UNSEEN_KEPT
    assert len(profile.to_bytes()) < 2_000


def test_a_reference_of_ten_thousand_categories_keeps_the_most_frequent() -> None:
    bins = cut_categorical({f"c{i:05}": 1 + 9 * (i < 256) for i in range(10_000)})
    layout = Layout({"c": bins})
    raw = [f"c{i:05}" for i in range(10_000)]
    zero = np.zeros(10_000, dtype=np.intp)
    (profile,) = profile_groups(layout, {"c": bins.encode(raw)}, zero.astype(bool), zero, 1)
    assert profile.counts("c").tolist() == [1] * MAX_CATEGORIES + [10_000 - MAX_CATEGORIES]


def test_a_layout_orders_its_fields_by_name_with_the_outputs_last() -> None:
    bins = CategoricalBins(())
    layout = Layout({SCORE: bins, "b": bins, PREDICTION: bins, "a": bins, "Z": bins})
    assert [f.name for f in layout.fields] == ["Z", "a", "b", PREDICTION, SCORE]
    stops = [f.moments.stop for f in layout.fields]
    assert [f.start for f in layout.fields] == [2, *stops[:-1]]
    assert layout.size == stops[-1]
    assert Layout({}).size == 2


def test_layouts_of_equal_bins_share_an_id_and_any_change_gives_another() -> None:
    def layout(**change: Any) -> Layout:
        numeric = {"low": 0.0, "high": 2.0, "center": 1.0, "scale": 1.0, **change}
        return Layout({"x": NumericBins(np.array([0.5, 1.0]), **numeric)})

    base = layout()
    assert layout().bins_id == base.bins_id
    others = [layout(**{name: 1.0000000000000002}) for name in ("low", "high", "center", "scale")]
    others += [
        layout(step=0.5),
        layout(grid=np.array([0.0, 0.5, 1.0])),
        Layout({"y": base.bins["x"]}),
    ]
    assert len({base.bins_id, *(other.bins_id for other in others)}) == 8


def test_profiles_of_different_bins_never_merge() -> None:
    other = Layout({**LAYOUT.bins, "carrier": CategoricalBins(("UA", "AA"))})
    with pytest.raises(IncompatibleError, match="never merge"):
        Profile.zero(LAYOUT) + Profile.zero(other)
    with pytest.raises(IncompatibleError, match="expected"):
        Profile.from_bytes(other, profile_of([]).to_bytes())
    again = Layout(dict(LAYOUT.bins))  # another object of the same bins
    assert (Profile.zero(LAYOUT) + Profile.zero(again)).n == 0


WIRE = profile_of([{"distance": 700, "carrier": "XX"}] * 300).to_bytes()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(WIRE[: len(WIRE) // 2], id="cut short"),
        pytest.param(b"\x93" + WIRE, id="not ours"),
        pytest.param(WIRE.replace(b"<i2", b"<i4"), id="other width"),
        pytest.param(WIRE.replace(b"<i2", b"obj"), id="no number type"),
    ],
)
def test_damaged_profiles_are_refused_by_name(body: bytes) -> None:
    with pytest.raises(IncompatibleError, match="damaged"):
        Profile.from_bytes(LAYOUT, body)


CARRIER, DISTANCE = LAYOUT.by_name["carrier"], LAYOUT.by_name["distance"]


@pytest.mark.parametrize(
    ("at", "added"),
    [
        pytest.param(CARRIER.counts.start, -1, id="fewer than no event in a bin"),
        pytest.param(CARRIER.counts.start, 1, id="more events in a field than there are"),
        pytest.param(1, 301, id="more errors than events"),
        pytest.param(DISTANCE.flags.start, 301, id="more flags than events"),
        pytest.param(DISTANCE.moments.start, 1 << 40, id="a sum without its squares"),
        pytest.param(DISTANCE.moments.stop - 2, 1 << 60, id="squares beyond any value"),
        pytest.param(DISTANCE.moments.stop - 1, 1 << 40, id="a word that was not carried"),
    ],
)
def test_a_profile_of_no_possible_events_is_damaged(at: int, added: int) -> None:
    whole = profile_of([{"distance": 700, "carrier": "UA"}] * 300)
    vector = whole.vector.copy()
    vector[at] += added
    with pytest.raises(IncompatibleError, match="damaged"):
        Profile.from_bytes(LAYOUT, Profile(LAYOUT, vector).to_bytes())
    assert same(Profile.from_bytes(LAYOUT, whole.to_bytes()), whole)


def test_more_events_than_sums_can_hold_are_damaged() -> None:
    vector = profile_of([{}]).vector << 37
    with pytest.raises(IncompatibleError, match="damaged"):
        Profile.from_bytes(LAYOUT, Profile(LAYOUT, vector).to_bytes())


@pytest.mark.parametrize(("events", "width"), [(255, 1), (256, 2), (32_768, 4)])
def test_counts_travel_in_the_narrowest_integers_that_hold_them(events: int, width: int) -> None:
    body = profile_of([{"carrier": "UA"}] * events).to_bytes()
    counts = int((~LAYOUT.moment_mask).sum())
    assert counts * width <= len(body) <= counts * width + 100
    assert Profile.from_bytes(LAYOUT, body).counts("carrier")[0] == events


@given(rows_of)
def test_the_moments_of_all_fields_at_once_are_those_of_one_at_a_time(rows: list[Row]) -> None:
    made = profile_of(rows)
    expected = [made.scaled_moments(f.name) for f in made.layout.fields]
    assert made.all_scaled_moments().T.tolist() == [list(map(float, row)) for row in expected]
