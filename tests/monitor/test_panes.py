"""Panes close in event time: timelines, and the proof that one jump is worth any number of steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.binning import NumericBins
from monitor.panes import (
    Closed,
    ClosedPane,
    LinkFate,
    Panes,
    SeriesKey,
    SourceMark,
    Windows,
    check_link,
    combined_watermark,
    late_contributions,
)
from monitor.profile import Layout, Profile

LAYOUT = Layout({"x": NumericBins(np.empty(0), 0.0, 0.0, 0.0, 1.0)})
A, B = (SeriesKey("m", "7", segment, "b") for segment in ("", "c=UA"))
PANE, SIZES, LATENESS = 10, (20, 60), 5


def events(n: int) -> Profile:
    vector = np.zeros(LAYOUT.size, dtype=np.int64)
    vector[0] = n
    return Profile(LAYOUT, vector)


def told(closed: Closed) -> tuple[str, str, int, int, int]:
    """Kind, segment, start, size and events."""
    if isinstance(closed, ClosedPane):
        return "pane", closed.key.segment, closed.start_ms, PANE, closed.profile.n
    return "window", closed.key.segment, closed.start_ms, closed.size_ms, closed.profile.n


def filled(*panes: tuple[SeriesKey, int, int]) -> Panes:
    """Panes with ``(series, start, events)`` added."""
    held = Panes(PANE, SIZES, LATENESS)
    for key, start, n in panes:
        held.add(key, start, events(n))
    return held


def test_a_pane_closes_when_the_watermark_less_the_lateness_reaches_its_end() -> None:
    panes = filled((A, 0, 3), (A, 10, 4))
    assert list(panes.advance(14)) == []
    assert [told(c) for c in panes.advance(15)] == [("pane", "", 0, 10, 3)]
    assert not panes.is_passed(10, 24)
    assert panes.is_passed(10, 25)
    assert [told(c) for c in panes.advance(25)] == [
        ("pane", "", 10, 10, 4),
        ("window", "", 0, 20, 7),
    ]


def test_closed_panes_and_windows_leave_in_the_order_of_time() -> None:
    panes = filled((B, 0, 1), (A, 0, 2), (A, 20, 4), (B, 50, 8), (A, 60, 16))
    assert [told(c) for c in panes.advance(85)] == [
        ("pane", "", 0, 10, 2),
        ("pane", "c=UA", 0, 10, 1),
        ("window", "", 0, 20, 2),
        ("window", "c=UA", 0, 20, 1),
        ("pane", "", 20, 10, 4),
        ("window", "", 20, 20, 4),
        ("pane", "c=UA", 50, 10, 8),
        ("window", "", 0, 60, 6),
        ("window", "c=UA", 40, 20, 8),
        ("window", "c=UA", 0, 60, 9),
        ("pane", "", 60, 10, 16),
        ("window", "", 60, 20, 16),
    ]
    assert panes.held() == 0
    assert list(panes.windows[A].open) == [60]


def test_a_window_without_panes_does_not_exist() -> None:
    panes = filled((A, 0, 1), (A, 600, 1))
    starts = [c.start_ms for c in panes.advance(10_000) if not isinstance(c, ClosedPane)]
    assert starts == [0, 0, 600, 600]


def test_only_the_first_window_of_a_series_can_be_a_part() -> None:
    panes = filled((A, 10, 1), (A, 20, 1), (A, 60, 1))
    whole = {
        (c.start_ms, c.size_ms): c.whole
        for c in panes.advance(1_000)
        if not isinstance(c, ClosedPane)
    }
    assert whole == {(0, 20): False, (20, 20): True, (0, 60): False, (60, 20): True, (60, 60): True}


PLACED = st.lists(
    st.tuples(st.sampled_from([A, B]), st.integers(0, 30).map(lambda i: i * PANE), st.integers(1, 5)),
    max_size=15,
)  # fmt: skip


@given(PLACED, st.lists(st.integers(0, 400), max_size=12))
def test_one_jump_gives_what_any_number_of_steps_give_in_the_same_order(
    placed: list[tuple[SeriesKey, int, int]], steps: list[int]
) -> None:
    at_once = list(map(told, filled(*placed).advance(400)))
    panes = filled(*placed)
    stepwise = [told(c) for watermark in (*sorted(steps), 400) for c in panes.advance(watermark)]
    assert stepwise == at_once
    ends = [start + size for _, _, start, size, _ in at_once]
    assert ends == sorted(ends)


@given(PLACED, st.integers(0, 400))
def test_no_event_is_lost_or_counted_twice_by_closing(
    placed: list[tuple[SeriesKey, int, int]], watermark: int
) -> None:
    panes = filled(*placed)
    closed = [told(c) for c in panes.advance(watermark)]
    for size in SIZES:
        for key in (A, B):
            out = sum(n for kind, segment, _, s, n in closed if (kind, segment, s) == ("window", key.segment, size))  # fmt: skip
            held = sum(p.n for (k, _), p in panes.open.items() if k == key)
            windows = panes.windows.get(key)
            if windows is not None and size in windows.open:
                held += windows.open[size][1].n
            assert out + held == sum(n for k, _, n in placed if k == key)
    whole = sum(n for key, _, n in placed if key == A)
    assert panes.held() == whole - sum(n for kind, segment, _, s, n in closed if (kind, segment, s) == ("window", "", 20))  # fmt: skip


def test_a_pane_is_taken_once_its_series_has_gone_beyond_it() -> None:
    panes = filled((A, 20, 1))
    list(panes.advance(35))
    panes.settle()
    assert [panes.is_taken(A, start) for start in (0, 20, 30)] == [True, True, False]
    assert not panes.is_taken(B, 0)


def test_a_window_never_takes_a_pane_of_its_successor() -> None:
    windows = Windows((20,))
    windows.take(ClosedPane(A, 0, events(1)), PANE)
    with pytest.raises(ValueError, match="window 0 of 20 ms is still open"):
        windows.take(ClosedPane(A, 20, events(1)), PANE)


def test_a_late_delta_belongs_to_each_window_that_holds_its_pane() -> None:
    found = [told(c) for c in late_contributions(A, 70, events(2), SIZES)]
    assert found == [("window", "", 60, 20, 2), ("window", "", 60, 60, 2)]


def mark(text: str) -> SourceMark:
    """``"7"`` is at 7 and busy, ``"7z"`` idle, ``"-"`` busy without an event, ``"-z"`` idle without one."""
    watermark = text.removesuffix("z")
    return SourceMark(0, None if watermark == "-" else int(watermark), text.endswith("z"))


@pytest.mark.parametrize(
    ("marks", "watermark"),
    [
        pytest.param([], None, id="no partitions"),
        pytest.param(["5"], 5, id="one"),
        pytest.param(["9", "5", "7"], 5, id="the slowest counts"),
        pytest.param(["9", "5z", "7"], 7, id="an idle one does not hold back"),
        pytest.param(["9", "-"], None, id="one that has data says nothing yet"),
        pytest.param(["9", "-z"], 9, id="one that never had an event has no say"),
        pytest.param(["9z", "5z"], 9, id="all idle: the furthest counts"),
        pytest.param(["9z", "-z"], 9, id="all idle, one empty"),
        pytest.param(["-z", "-z"], None, id="nothing anywhere"),
        pytest.param(["9z", "-"], None, id="idle and silent"),
        pytest.param(["9z", "3"], 3, id="a busy one behind an idle one"),
    ],
)
def test_the_combined_watermark(marks: Iterable[str], watermark: int | None) -> None:
    assert combined_watermark(map(mark, marks)) == watermark


def test_source_partitions_not_heard_of_hold_the_watermark_back() -> None:
    assert combined_watermark(map(mark, ["9", "-z"]), sources=3) is None
    assert combined_watermark(map(mark, ["9", "-z", "7z"]), sources=3) == 9


@pytest.mark.parametrize(
    ("position", "start", "end", "announced", "fate"),
    [
        pytest.param(None, 40, 50, False, LinkFate.APPLY, id="the first link"),
        pytest.param(40, 40, 50, False, LinkFate.APPLY, id="it follows"),
        pytest.param(40, 40, 40, False, LinkFate.APPLY, id="a heartbeat"),
        pytest.param(40, 30, 40, False, LinkFate.SKIP, id="a repeat"),
        pytest.param(40, 30, 30, False, LinkFate.SKIP, id="an old heartbeat"),
        pytest.param(40, 41, 50, False, LinkFate.BREAK, id="a gap"),
        pytest.param(40, 50, 50, False, LinkFate.BREAK, id="a heartbeat behind a gap"),
        pytest.param(40, 30, 41, False, LinkFate.BREAK, id="an overlap"),
        pytest.param(40, 90, 95, True, LinkFate.APPLY, id="an announced jump"),
        pytest.param(40, 0, 5, True, LinkFate.APPLY, id="an announced jump back"),
    ],
)
def test_the_fate_of_a_link(
    position: int | None, start: int, end: int, announced: bool, fate: LinkFate
) -> None:
    known = None if position is None else SourceMark(position, 1, idle=False)
    assert check_link(known, start, end, announced=announced) is fate
