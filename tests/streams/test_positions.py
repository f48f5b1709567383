"""Where the profiler goes on, how it counts tries, and what it may say of a partition: all without a broker."""

from __future__ import annotations

import pytest

from monitor.panes import SourceMark
from streams.positions import NOWHERE, Committed, Positions


def at(position: int, watermark_ms: int | None = None) -> SourceMark:
    return SourceMark(position, watermark_ms, idle=False)


def held(*committed: Committed, low: int = 0) -> Positions:
    positions = Positions()
    for each in committed:
        positions.take_up(each, low)
    return positions


@pytest.mark.parametrize(
    ("metadata", "watermark_ms", "failed"),
    [
        pytest.param("[1700,2]", 1_700, 2, id="ours"),
        pytest.param("[1700]", 1_700, 0, id="of an older release"),
        pytest.param("[1700,2,9,{}]", 1_700, 2, id="of a newer release"),
        pytest.param("[null,1]", None, 1, id="nothing read yet"),
        pytest.param("", None, 0, id="a broker that keeps none"),
        pytest.param(None, None, 0, id="none"),
        pytest.param("by hand", None, 0, id="an operator's"),
        pytest.param('["x"]', None, 0, id="of another type"),
    ],
)
def test_metadata_gives_what_it_holds(
    metadata: str | None, watermark_ms: int | None, failed: int
) -> None:
    positions = held(Committed(0, 5, metadata))
    assert positions.marks == {0: at(5, watermark_ms)}
    assert positions.failed == failed


@pytest.mark.parametrize(
    ("committed", "position", "jump"),
    [
        (NOWHERE, 20, None),
        (20, 20, None),
        (70, 70, None),
        (10, 20, "retention removed 10 to 20"),
    ],
)
def test_a_partition_begins_where_it_was_or_jumps_and_says_so(
    committed: int, position: int, jump: str | None
) -> None:
    positions = held(Committed(0, committed, "[5]"), low=20)
    assert positions.marks[0].position == position
    assert positions.jumps == ({} if jump is None else {0: jump})


def tried(story: str) -> list[int]:
    """Failures that each worker of a story finds.

    ``+`` takes up, ``h`` heartbeat, ``b`` batch, ``r`` its rollback, ``e`` the end is read to. What is committed stays for the next one.
    """
    committed, found, positions = Committed(0, 5, None), list[int](), Positions()
    for step in story:
        if step == "+":
            positions = held(committed)
            found.append(positions.failed)
            (committed,) = positions.beginnings()
        elif step == "e":
            positions.ended(0, positions.marks[0].position, 0.0)
        elif step == "r":
            positions.came(0)
            positions.rewind(committed)
        else:
            position = positions.marks[0].position + (step == "b")
            positions.came(0) if step == "b" else None
            (committed,) = positions.commits({0: at(position)})
            positions.committed({0: at(position)})
    return found


@pytest.mark.parametrize(
    ("story", "failed"),
    [
        pytest.param("++++", [0, 1, 2, 3], id="each dies at once"),
        pytest.param("+h+hh+h+", [0, 1, 2, 3], id="a heartbeat is no success"),
        pytest.param("+r+rr+", [0, 1, 2], id="nor is a rollback"),
        pytest.param("++b+", [0, 1, 0], id="a batch is"),
        pytest.param("++bh+", [0, 1, 0], id="and stays one"),
        pytest.param("++b+bb+", [0, 1, 0, 0], id="every time"),
        pytest.param("++eh+", [0, 1, 0], id="where nothing is left, nothing is to be feared"),
    ],
)
def test_a_try_counts_until_a_batch_of_the_partition_went_through(
    story: str, failed: list[int]
) -> None:
    assert tried(story) == failed


def test_each_partition_counts_for_itself_and_the_worst_one_decides() -> None:
    positions = held(Committed(0, 5, "[null,3]"), Committed(1, 5, "[null,1]"))
    assert positions.failed == 3
    after = {0: at(9), 1: at(5)}
    assert [c.metadata for c in positions.commits(after)] == ["[null,0]", "[null,2]"]
    positions.committed(after)
    assert positions.failed == 1
    positions.drop(1)
    assert positions.failed == 0


def test_counting_in_leaves_the_committed_position_where_it_is_even_before_a_jump() -> None:
    positions = held(Committed(0, 10, "[7]"), low=20)
    assert list(positions.beginnings()) == [Committed(0, 10, "[7,1]")]
    assert list(positions.commits({0: at(20, 7)})) == [Committed(0, 20, "[7,1]")]


def test_what_a_rollback_leaves_is_what_the_broker_has() -> None:
    positions = held(Committed(0, 10, "[7]"), Committed(1, 30, "[8]"), low=20)
    positions.rewind(Committed(0, 10, "[7,1]"))
    assert (positions.marks[0], list(positions.jumps)) == (at(20, 7), [0])  # still to be announced
    positions.rewind(Committed(0, 25, "[9,0]"))
    assert (positions.marks[0], list(positions.jumps)) == (at(25, 9), [])  # it went through
    positions.rewind(Committed(1, NOWHERE, None))
    assert positions.marks[1] == at(30, 8)


def test_a_partition_is_silent_from_its_end_on_until_a_message_comes() -> None:
    positions = held(Committed(0, 5, None), Committed(1, 5, None))
    positions.ended(0, 5, 100.0)
    positions.ended(1, 5, 103.0)
    assert positions.silent(104.9, 5.0) == {}
    assert positions.silent(105.0, 5.0) == {0: 5}
    positions.ended(0, 6, 106.0)  # a transaction's marker
    assert positions.silent(108.0, 5.0) == {0: 6, 1: 5}
    positions.came(1)
    positions.rewind(Committed(0, 5, None))
    assert positions.silent(200.0, 5.0) == {}


def test_an_end_behind_the_last_message_is_reached_until_a_message_comes() -> None:
    positions = held(Committed(0, 5, None), Committed(1, 7, None))
    positions.ended(0, 6, now_s=1.0)  # a transaction's marker lies at 5
    assert positions.reached == {0: 6, 1: 7}
    positions.came(0)
    assert positions.reached == {0: 5, 1: 7}
