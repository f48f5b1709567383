"""What the library counts is what numpy counts, bit by bit; and what everybody sends, it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import counting
from monitor.binning import CategoricalBins, NumericBins, Raw
from monitor.counter import Counter, Group, counter_of
from monitor.counting import Grouping, profile_groupings
from monitor.kernel import library
from monitor.profile import Layout, Profile
from tests.monitor.test_binning import ARROW, any_bins
from tests.monitor.test_kernel import compiler

WORDS = ["", "a", "UA", "ä", "größe", "x" * 300, "B6", "\0"]
LAYOUT = Layout({"n": NumericBins(np.array([1.0, 2.0]), 0.0, 3.0, 1.0, 1.0), "c": CategoricalBins(("UA", ""))})  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compiler()
    assert library() is not None, "monitor/counting.c is not compiled: make install"


def both(
    layout: Layout, columns: Mapping[str, Raw], groupings: Sequence[Grouping]
) -> list[list[Profile]]:
    """What the library counts, and that numpy counts the same."""
    errors = np.arange(len(groupings[0].group)) % 3 == 0
    ours = profile_groupings(layout, columns.__getitem__, errors, groupings)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(counting, "counter_of", lambda _: None)
        theirs = profile_groupings(layout, columns.__getitem__, errors, groupings)
    for some, others in zip(ours, theirs, strict=True):
        for profile, other in zip(some, others, strict=True):
            np.testing.assert_array_equal(profile.vector, other.vector)
            assert profile.unseen == other.unseen
    return ours


def near(edges: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """The edges, and the numbers beside them."""
    some = edges[:20]
    with np.errstate(over="ignore", under="ignore"):
        below, above = np.nextafter(some, -np.inf), np.nextafter(some, np.inf)
    return [*some.tolist(), *below.tolist(), *above.tolist()]


@given(
    any_bins(),
    st.lists(st.floats() | st.none() | st.integers(-30, 30), max_size=60),
    st.lists(st.sampled_from(WORDS), unique=True),
    st.lists(st.sampled_from(WORDS) | st.none() | st.text(max_size=3), min_size=1, max_size=10),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_any_column_is_counted_as_by_numpy(
    bins: NumericBins,
    numbers: list[Any],
    categories: list[str],
    texts: list[str | None],
    groups: int,
    offset: int,
) -> None:
    numbers = [*numbers, *near(bins.edges), bins.low, bins.high, -0.0, bins.center + bins.scale * 1e4]  # fmt: skip
    n = len(numbers)
    words = (texts * n)[:n]
    layout = Layout({"number": bins, "list": bins, "text": CategoricalBins(tuple(categories))})
    padded = [None] * offset  # an array with an offset: bits do not begin at a byte
    columns = {
        "number": pa.array(padded + numbers, pa.float64())[offset:],
        "list": [value if i % 7 else "no number" for i, value in enumerate(numbers)],
        "text": pa.array(padded + words, pa.string())[offset:],
    }
    which = np.arange(n) * 7 % groups
    (whole,), parts = both(
        layout, columns, [Grouping(np.zeros(n, dtype=np.intp), 1), Grouping(which, groups)]
    )
    assert sum(part.n for part in parts) == whole.n == n


@pytest.mark.parametrize(("kind", "rows"), ARROW, ids=[str(kind) for kind, _ in ARROW])
def test_every_type_of_arrow_is_counted_as_by_numpy(kind: pa.DataType, rows: list[Any]) -> None:
    for array in (pa.array(rows, kind), pa.array([*rows, *rows], kind)[len(rows) :]):
        group = np.zeros(len(array), dtype=np.intp)
        both(LAYOUT, {"n": array, "c": array}, [Grouping(group, 1)])


def test_long_columns_fill_many_blocks_and_large_values_carry() -> None:
    """Squares of what lies 1,024 scales away pass the low word, in one group and in many."""
    n = 200_000
    rng = np.random.default_rng(7)
    columns = {
        "n": pa.array(rng.choice([1e9, -1e9, 0.5, np.nan], n)),
        "c": pa.array(rng.choice(["UA", "B6", ""], n)),
    }
    many = Grouping(rng.integers(0, 40, n), 40)
    (whole,), _ = both(LAYOUT, columns, [Grouping(np.zeros(n, dtype=np.intp), 1), many])
    assert whole.special("n", "above") > n / 5
    assert whole.unseen["c"] == {"B6": int(np.sum(np.array(columns["c"]) == "B6"))}


def test_what_everybody_sends_is_left_to_nobody() -> None:
    """Or nobody would notice that it is counted slowly."""
    counter = counter_of(LAYOUT)
    assert counter is not None
    assert counter_of(LAYOUT) is counter
    group = Group(np.zeros(2, dtype=np.intp), np.zeros((1, LAYOUT.size), dtype=np.int64))
    texts = pa.array(["UA", "B6"])
    columns: dict[str, Raw] = {"n": pa.array([1.0, None]), "c": texts}
    left, others = counter.count(columns.__getitem__, [group])
    assert not left
    assert [(o.field.name, o.rows.tolist(), o.texts) for o in others] == [("c", [1], ["B6"])]
    columns["c"] = texts.dictionary_encode()
    left, _ = counter.count(columns.__getitem__, [group])
    assert list(left) == ["c"]


@pytest.mark.parametrize("group", [[0, 2], [0, -1], [0]])
def test_nothing_is_written_outside_the_profiles(group: list[int]) -> None:
    counter = counter_of(LAYOUT)
    assert isinstance(counter, Counter)
    columns: dict[str, Raw] = {"n": pa.array([1.0, 2.0]), "c": pa.array(["UA", "UA"])}
    profiles = np.zeros((2, LAYOUT.size), dtype=np.int64)
    whole = Group(np.zeros(2, dtype=np.intp), profiles[:1])
    with pytest.raises(ValueError, match="every row needs a group"):
        counter.count(columns.__getitem__, [whole, Group(np.array(group), profiles)])
    assert not profiles.any()
    columns["n"] = pa.array([1.0])
    with pytest.raises(ValueError, match="n: 1 rows of 2"):
        counter.count(columns.__getitem__, [whole])


def test_a_column_may_stand_anywhere_in_memory() -> None:
    """An Arrow message may put its buffers at any address; C wants numbers at multiples of their size."""

    def moved(array: pa.Array) -> pa.Array:
        buffers = [
            None if each is None else pa.py_buffer(b"\0" + each.to_pybytes())[1:]
            for each in array.buffers()
        ]
        return pa.Array.from_buffers(array.type, len(array), buffers, array.null_count)

    columns: dict[str, pa.Array] = {
        "n": moved(pa.array([0.5, None, 1.5, 9.0, float("nan")])),
        "c": moved(pa.array(["UA", None, "B6", "", "B6"])),
    }
    assert columns["n"].buffers()[1].address % 8 > 0 < columns["c"].buffers()[1].address % 4
    (whole,), _ = both(LAYOUT, columns, [Grouping(np.zeros(5, dtype=np.intp), 1), Grouping(np.arange(5) % 2, 2)])  # fmt: skip
    assert whole.special("n", "missing") == whole.special("c", "missing") == 1
    assert whole.unseen["c"] == {"B6": 2}
