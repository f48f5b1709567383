"""The fetch log, and what a batch writes to the changelog."""

from __future__ import annotations

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from streams.delivery import (
    BATCH_BYTES,
    Delivery,
    FetchLog,
    Pending,
    foreign_keys,
    partition_rows,
    table_key,
)
from streams.stage import Output, Step

SOURCE = ("in", 0)
OTHER = ("in", 1)
NEXT, REPEATED, SKIPPED = Delivery.NEXT, Delivery.REPEATED, Delivery.SKIPPED


@pytest.mark.parametrize(
    ("fetched", "delivered", "found"),
    [
        pytest.param([[5, 6, 7]], [5, 6, 7], [NEXT, NEXT, NEXT], id="in order"),
        pytest.param([[5, 7, 9]], [5, 7, 9], [NEXT, NEXT, NEXT], id="markers take offsets"),
        pytest.param([[5, 6, 7]], [5, 7], [NEXT, SKIPPED], id="one left out"),
        pytest.param([[5, 6, 7]], [6], [SKIPPED], id="the first left out"),
        pytest.param([[5, 6]], [5, 5, 6], [NEXT, REPEATED, NEXT], id="one twice"),
        pytest.param([[5, 6], [5, 6, 7]], [5, 6, 7], [NEXT] * 3, id="fetched again, unseen"),
        pytest.param(
            [[5, 6, 7], [5, 6, 7, 8]],
            [5, 6, 5, 6, 7, 8],
            [NEXT, NEXT, REPEATED, REPEATED, NEXT, NEXT],
            id="a seek back",
        ),
        pytest.param(
            [[5, 6, 7], [5, 6, 7, 8]],
            [5, 6, 5, 6, 8],
            [NEXT, NEXT, REPEATED, REPEATED, SKIPPED],
            id="left out after a seek back",
        ),
    ],
)
def test_a_delivery_is_compared_with_what_was_fetched(
    fetched: list[list[int]], delivered: list[int], found: list[Delivery]
) -> None:
    log = FetchLog(["in"])
    for offsets in fetched:
        log.fetched(SOURCE, offsets)
    assert [log.delivered(SOURCE, offset) for offset in delivered] == found


def test_partitions_do_not_see_each_other() -> None:
    log = FetchLog(["in"])
    log.fetched(SOURCE, [1, 2])
    log.fetched(OTHER, [1, 2])
    assert [log.delivered(SOURCE, 1), log.delivered(OTHER, 1)] == [NEXT, NEXT]
    assert log.delivered(SOURCE, 2) is NEXT


def test_after_a_new_assignment_lower_offsets_are_new_again() -> None:
    log = FetchLog(["in"])
    log.fetched(SOURCE, [5, 6, 7])
    log.delivered(SOURCE, 5)
    log.forget(["in"])
    log.fetched(SOURCE, [5])
    assert log.delivered(SOURCE, 5) is NEXT


def test_nothing_is_noted_of_a_changelog_which_nobody_delivers() -> None:
    log = FetchLog(["in"])
    log.fetched(("changelog", 0), [5, 6, 7])
    assert log.delivered(("changelog", 0), 7) is NEXT


@given(
    gaps=st.lists(st.integers(1, 3), min_size=2, max_size=30),
    left_out=st.integers(0, 28),
)
def test_no_message_is_ever_left_out_unnoticed(gaps: list[int], left_out: int) -> None:
    offsets = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    left_out = min(left_out, len(offsets) - 2)  # without a later one, it is merely not there yet
    log = FetchLog(["in"])
    log.fetched(SOURCE, offsets)
    found = [
        log.delivered(SOURCE, offset) for index, offset in enumerate(offsets) if index != left_out
    ]
    assert found[:left_out] == [NEXT] * left_out
    assert found[left_out] is SKIPPED


def test_a_batch_writes_the_last_value_of_each_key_and_deletions_first() -> None:
    pending = Pending()
    pending.add(3, Step(writes=((b"a", b"1"), (b"b", b"1"))))
    pending.add(3, Step(writes=((b"a", b"2"), (b"b", None))))
    assert pending.changelog(3) == [(b"3/b", None), (b"3/a", b"2")]


def test_writes_beyond_one_record_batch_keep_their_order() -> None:
    big = b"x" * (BATCH_BYTES // 2)
    writes = ((b"a", big), (b"b", big), (b"c", b"1"), (b"a", b"2"), (b"c", big))
    pending = Pending()
    pending.add(0, Step(writes=writes))
    assert pending.changelog(0) == [(table_key(0, key), value) for key, value in writes]


def test_what_is_reduced_to_the_last_values_fits_into_one_record_batch() -> None:
    for spare in range(0, 2_000, 8):
        value = b"x" * ((BATCH_BYTES - spare) // 2 - 40)
        pending = Pending()
        pending.add(0, Step(writes=((b"a", b"1"), (b"a", value), (b"b", value))))
        records = pending.changelog(0)
        if len(records) == 2:
            builder = BatchBuilder(BATCH_BYTES, 0)
            assert all(builder.append(timestamp=None, key=k, value=v) for k, v in records), spare


def test_outputs_keep_their_order_in_each_partition() -> None:
    pending = Pending()
    for number in (b"1", b"2", b"3"):
        pending.add(0, Step((Output("out", int(number) % 2, b"key", number),)))
    assert pending.outputs == {
        ("out", 1): [(b"key", b"1"), (b"key", b"3")],
        ("out", 0): [(b"key", b"2")],
    }


def test_an_empty_value_is_refused_since_recovery_would_delete_it() -> None:
    with pytest.raises(ValueError, match="empty"):
        Pending().add(0, Step(writes=((b"a", b""),)))


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 12), st.binary(max_size=6)), st.binary(min_size=1), max_size=20
    )
)
def test_a_table_splits_into_its_partitions(rows: dict[tuple[int, bytes], bytes]) -> None:
    table = {table_key(partition, key): value for (partition, key), value in rows.items()}
    mine = frozenset(range(0, 13, 2))
    split = partition_rows(table, mine)
    assert split == {
        partition: [(key, value) for (p, key), value in rows.items() if p == partition]
        for partition in mine
    }
    assert set(foreign_keys(table, mine)) == {
        table_key(partition, key) for partition, key in rows if partition not in mine
    }
