"""The chain fence: a table of what follows what, and timelines of breaks over restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from monitor import wire
from streams.chain import RESTARTS, Admitted, ChainFence
from streams.stage import ChainBreakError


def link(partition: int, start: int, end: int, jump: str | None = None) -> wire.Link:
    return wire.Link(partition, start, end, end - start, 0, 0, 0, 0, 100 + end, idle=False, jump=jump)  # fmt: skip


def at(*positions: int) -> ChainFence:
    """A fence that has applied partition 0 up to the first position, 1 up to the second..."""
    fence = ChainFence(sources=len(positions))
    first = fence.admit(0, [link(p, 0, end) for p, end in enumerate(positions)])
    assert first is not None
    fence.advance(0, first)
    return fence


class Life:
    """A fence with its table: the same message again after each restart."""

    def __init__(self, *positions: int) -> None:
        self.fence = at(*positions)
        self.rows = dict(self.written())

    def written(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in self.fence.rows() if value is not None)

    def read(self, offset: int, *links: wire.Link) -> Admitted | None:
        """Apply a message; a break is counted and the process starts anew."""
        try:
            admitted = self.fence.admit(offset, links)
        except ChainBreakError:
            self.rows |= [self.fence.break_row()]
            self.fence = ChainFence(sources=2)
            self.fence.restore(self.rows)
            raise
        if admitted is not None:
            self.fence.advance(offset, admitted)
            for key, value in self.fence.rows():
                if value is None:
                    del self.rows[key]
                else:
                    self.rows[key] = value
        return admitted

    def breaks(self, offset: int, *links: wire.Link, times: int = RESTARTS) -> None:
        for _ in range(times):
            with pytest.raises(ChainBreakError):
                self.read(offset, *links)


@pytest.mark.parametrize(
    ("links", "applied"),
    [
        pytest.param([], [], id="no links: no profiler holds a partition"),
        pytest.param([link(0, 20, 30), link(1, 5, 5)], [0, 1], id="it follows"),
        pytest.param([link(0, 20, 20), link(1, 5, 5)], [0, 1], id="a heartbeat"),
        pytest.param([link(0, 20, 20), link(1, 3, 3)], [0], id="a heartbeat, half of it old"),
        pytest.param([link(0, 9, 9), link(1, 3, 3)], None, id="an old heartbeat"),
        pytest.param([link(0, 0, 15), link(1, 5, 5)], None, id="known, beside an empty link"),
        pytest.param([link(0, 0, 15), link(1, 0, 5)], None, id="known"),
        pytest.param([link(0, 20, 30), link(1, 3, 3)], [0], id="it follows, beside an old one"),
        pytest.param([link(0, 90, 90, "reset"), link(1, 5, 5)], [0, 1], id="an empty jump"),
    ],
)
def test_links_that_move_decide(links: list[wire.Link], applied: list[int] | None) -> None:
    admitted = at(20, 5).admit(1, links)
    assert (admitted and [x.partition for x in admitted.links]) == (applied and applied)
    assert (admitted is None) == (applied is None)
    assert admitted is None or sorted(admitted.marks) == applied


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ([link(0, 25, 30)], "partition 0: applied to 20, next starts at 25"),
        ([link(0, 25, 25)], "partition 0: applied to 20, next starts at 25"),
        ([link(0, 15, 30)], "partition 0: applied to 20, next starts at 15"),
        ([link(0, 0, 20), link(1, 5, 9)], "partition 0: applied to 20, next starts at 0"),
    ],
    ids=["a gap", "a heartbeat behind a gap", "an overlap", "known and new in one"],
)
def test_what_does_not_follow_breaks_the_chain(links: list[wire.Link], says: str) -> None:
    with pytest.raises(ChainBreakError, match=says):
        at(20, 5).admit(1, links)


def test_a_break_that_outlives_the_restarts_is_passed_with_a_jump_and_forgotten() -> None:
    life, gap = Life(20, 5), (link(0, 25, 30), link(1, 5, 5))
    life.breaks(7, *gap)
    admitted = life.read(7, *gap)
    assert admitted is not None
    assert [x.jump for x in admitted.links] == ["lost 20 to 25", None]
    assert set(life.rows) == {b"chain"}
    assert life.read(8, link(0, 30, 31)) is not None
    life.breaks(9, link(0, 40, 41))  # another one starts from 0


def test_a_break_that_a_restart_mends_is_not_counted_any_more() -> None:
    life, gap = Life(20, 5), link(0, 25, 30)
    life.breaks(7, gap, times=RESTARTS - 1)
    mended = life.read(6, link(0, 20, 25))
    assert mended is not None
    assert [x.jump for x in mended.links] == [None]
    assert set(life.rows) == {b"chain"}
    followed = life.read(7, gap)
    assert followed is not None
    assert [x.jump for x in followed.links] == [None]


def test_breaks_at_different_offsets_do_not_add_up() -> None:
    life = Life(20, 5)
    for offset in (7, 8, 7, 8, 7, 8):
        life.breaks(offset, link(0, 25 + offset, 40), times=1)


@pytest.mark.parametrize(
    ("links", "jumps", "then"),
    [
        ([link(0, 15, 30)], ["repeated 15 to 20"], [link(0, 30, 31)]),
        ([link(0, 5, 9), link(1, 5, 9)], ["repeated 5 to 9", None], [link(0, 20, 21), link(1, 9, 10)]),
    ],
    ids=["an overlap", "known and new in one"],
)  # fmt: skip
def test_what_is_counted_twice_is_booked_and_no_mark_goes_back(
    links: list[wire.Link], jumps: list[str | None], then: list[wire.Link]
) -> None:
    life = Life(20, 5)
    life.breaks(7, *links)
    admitted = life.read(7, *links)
    assert admitted is not None
    assert [x.jump for x in admitted.links] == jumps
    followed = life.read(8, *then)
    assert followed is not None
    assert [x.jump for x in followed.links] == [None] * len(then)


def test_there_is_no_watermark_before_every_source_partition_was_heard_of() -> None:
    fence = ChainFence(sources=2)
    for offset, (partition, watermark) in enumerate([(0, None), (0, None), (1, 105)]):
        end = 10 * (offset + 1) if partition == 0 else 5
        admitted = fence.admit(offset, [link(partition, end - 10 if partition == 0 else 0, end)])
        assert admitted is not None
        fence.advance(offset, admitted)
        assert fence.watermark_ms == watermark


def test_the_watermark_never_goes_back() -> None:
    life = Life(20, 5)
    assert life.fence.watermark_ms == 105
    life.read(1, link(1, 5, 40))
    assert life.fence.watermark_ms == 120
    life.read(2, link(0, 0, 1, "reset"))
    assert life.fence.watermark_ms == 120
    with suppress(ChainBreakError):
        life.read(3, link(0, 9, 10))  # restarts
    assert life.fence.watermark_ms == 120
