from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from monitor.store import Distribution
from streams.histogram import Bin, bins_of, draw


def numeric(edges: list[float], reference: list[int], counts: list[int]) -> Distribution:
    return Distribution("x", "b", "numeric", edges, [], reference, counts, sum(counts), {})


def categorical(labels: list[str], reference: list[int], counts: list[int]) -> Distribution:
    return Distribution("x", "b", "categorical", [], labels, reference, counts, sum(counts), {})


def test_bins_are_named_by_their_ends_and_open_where_they_are_open() -> None:
    found = bins_of(numeric([1.0, 2.5, 10_000_000.0], [1, 2, 1, 0], [0, 0, 3, 1]))
    assert found == [
        Bin("< 1", 0.25, 0.0),
        Bin("1 to 2.5", 0.5, 0.0),
        Bin("2.5 to 1e+07", 0.25, 0.75),
        Bin(">= 1e+07", 0.0, 0.25),
    ]


def test_ends_that_look_alike_get_more_digits() -> None:
    names = [each.name for each in bins_of(numeric([1_359_676_800.0, 1_359_676_801.0], [1, 1, 1], [1, 1, 1]))]  # fmt: skip
    assert names == ["< 1359676800", "1359676800 to 1359676801", ">= 1359676801"]


def test_what_is_empty_at_both_ends_is_left_out() -> None:
    found = bins_of(numeric([1, 2, 3, 4], [0, 1, 0, 1, 0], [0, 0, 0, 2, 0]))
    assert [each.name for each in found] == ["1 to 2", "2 to 3", "3 to 4"]


def test_the_largest_categories_are_shown_and_the_rest_is_one_line() -> None:
    found = bins_of(categorical(["a", "b", "c", "d"], [5, 1, 3, 1, 0], [0, 9, 0, 0, 1]), 3)
    assert [each.name for each in found] == ["b", "a", "other (2 more)"]
    assert [each.window for each in found] == [0.9, 0.0, 0.1]
    found = bins_of(categorical(["a", "b"], [1, 1, 0], [1, 1, 2]))
    assert found[-1] == Bin("other", 0.0, 0.5)
    assert [each.name for each in bins_of(categorical(["a"], [1, 0], [1, 0]))] == ["a"]


counts = st.lists(st.integers(0, 1_000), min_size=1, max_size=140)


@given(counts, st.data(), st.integers(2, 30), st.booleans())
def test_every_value_is_in_one_line(
    reference: list[int], data: st.DataObject, rows: int, numbers: bool
) -> None:
    n = len(reference)
    window = data.draw(st.lists(st.integers(0, 1_000), min_size=n, max_size=n))
    names = [str(i) for i in range(n - 1)]
    found = (
        numeric([float(i) for i in range(n - 1)], reference, window)
        if numbers
        else categorical(names, reference, window)
    )
    bins = bins_of(found, rows)
    assert len(bins) <= rows
    assert len({each.name for each in bins}) == len(bins)
    assert sum(each.reference for each in bins) == pytest.approx(float(sum(reference) > 0))
    assert sum(each.window for each in bins) == pytest.approx(float(sum(window) > 0))


@given(
    st.lists(
        st.builds(Bin, st.text(max_size=60) | st.just("東京"), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9
    ),
    st.integers(40, 200),
    st.booleans(),
)  # fmt: skip
def test_lines_fit_the_width_and_bars_grow_with_their_share(
    bins: list[Bin], width: int, blocks: bool
) -> None:
    drawn = draw(bins, width, blocks=blocks)
    (columns,) = {cell_len("".join(line)) for line in drawn}
    assert columns <= width
    assert blocks or all(line[i].isascii() for line in drawn for i in (1, 2))

    def length(side: str) -> float:
        bar = side[8:].rstrip()
        return len(bar) if not blocks else sum(" ▏▎▍▌▋▊▉█".index(c) for c in bar)

    sides = [(b.reference, length(s)) for b, (_, s, _) in zip(bins, drawn, strict=True)]
    sides += [(b.window, length(s)) for b, (_, _, s) in zip(bins, drawn, strict=True)]
    lengths = [drawn_length for _, drawn_length in sorted(sides)]
    assert lengths == sorted(lengths)


def test_a_share_has_its_bar() -> None:
    (line,) = draw([Bin("a", 0.5, 1.0)], 43, blocks=True)
    assert line == ("a  ", " 50.0 % " + "█████▌".ljust(12), "100.0 % " + "███████████ ")
    (line,) = draw([Bin("a", 0.5, 1.0)], 43, blocks=False)
    assert line[2] == "100.0 % ########### "
