from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_

from monitor.ledger import Stored, reconcile
from monitor.wire import LedgerEntry


def entry(**changed: Any) -> LedgerEntry:
    whole: dict[str, Any] = {
        "profiles_partition": 0,
        "offset": 0,
        "open": 0,
        "partition": 0,
        "start": 0,
        "end": 10,
        "events": 10,
        "dead": 0,
        "on_time": 10,
        "late": 0,
        "calibrating": 0,
        "jump": None,
    }
    return LedgerEntry(**{**whole, **changed})


TWO = [entry(on_time=6), entry(profiles_partition=1, on_time=4)]
ALL = Stored(closed=10, corrections=0)


@dataclass(frozen=True)
class Case:
    name: str
    entries: Sequence[LedgerEntry]
    stored: Stored
    running: int
    drained: int


CASES = [
    Case("nothing yet", [], Stored(0, 0), 0, 0),
    Case("all closed", [entry()], ALL, 0, 0),
    Case("two partitions of the detector", TWO, ALL, 0, 0),
    Case("some are in open windows", [entry(open=3)], Stored(7, 0), 0, 0),
    Case("a stored window is lost", [entry(open=3)], Stored(5, 0), 2, 2),
    Case("stored ahead of the booking", [entry(open=3)], ALL, 0, 3),
    Case("late ones are corrections", [entry(on_time=8, late=2)], Stored(8, 2), 0, 0),
    Case("a correction is lost", [entry(on_time=8, late=2)], Stored(8, 1), 1, 1),
    Case("dead letters and calibration", [entry(on_time=1, dead=4, calibrating=5)], Stored(1, 0), 0, 0),
    Case("an event vanished in the profiler", [entry(on_time=9)], Stored(9, 0), 1, 1),
    Case("an event was counted twice", [entry(on_time=11)], Stored(11, 0), 1, 1),
    Case("one partition has not booked yet", [*TWO, *(with_(e, start=10, end=20, offset=1) for e in TWO[:1])], Stored(16, 0), 0, 4),
    Case("ranges that touch", [entry(), entry(start=10, end=20, offset=1)], Stored(20, 0), 0, 0),
    Case("a batch is missing", [entry(), entry(start=15, end=25, offset=1)], Stored(20, 0), 5, 5),
    Case("ranges overlap", [entry(), entry(start=8, end=18, offset=1)], Stored(20, 0), 2, 2),
    Case("an announced hole", [entry(), entry(start=50, end=60, offset=1, jump="retention")], Stored(20, 0), 0, 0),
    Case("an operator went back", [entry(end=10), entry(end=11, offset=1, jump="reset")], Stored(20, 0), 0, 0),
    Case("a heartbeat says what is open now", [entry(open=10), entry(start=10, events=0, on_time=0, offset=1)], ALL, 0, 0),
    Case("partitions were told different things", [TWO[0], with_(TWO[1], events=9)], ALL, 10, 10),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("drained", [False, True])
def test_every_broken_identity_is_unaccounted(case: Case, drained: bool) -> None:
    ledger = reconcile(case.entries, case.stored, drained=drained)
    assert ledger.total.unaccounted == (case.drained if drained else case.running)


def test_a_hole_is_listed_with_its_reason() -> None:
    jumped = entry(start=50, end=60, offset=1, jump="retention")
    (hole,) = reconcile([jumped, entry()], Stored(20, 0)).holes
    assert (hole.start, hole.end, hole.reason) == (10, 50, "retention")


def test_accounts_are_by_source_partition_and_add_up() -> None:
    entries = [entry(partition=p, events=10 + p, on_time=10 + p, offset=p) for p in range(3)]
    ledger = reconcile(entries, Stored(33, 0), drained=True)
    assert [row.events for row in ledger.rows] == [10, 11, 12]
    assert (ledger.total.events, ledger.total.accounted, ledger.total.unaccounted) == (33, 33, 0)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 5)), max_size=8),
    st.integers(0, 2**32),
)
def test_a_run_without_a_fault_has_nothing_unaccounted_in_any_order_and_a_lost_row_shows(
    batches: list[tuple[int, int, int]], seed: int
) -> None:
    entries: list[LedgerEntry] = []
    at = booked = 0
    for i, (first, second, dead) in enumerate(batches):
        n = first + second + dead
        both = [(0, first), (1, second)]
        entries += [
            entry(profiles_partition=p, offset=i, start=at, end=at + n + 1, events=n, dead=dead, on_time=m)
            for p, m in both
        ]  # fmt: skip
        at, booked = at + n + 1, booked + first + second
    order = np.random.default_rng(seed).permutation(len(entries))
    shuffled = [entries[i] for i in order]
    assert reconcile(shuffled, Stored(booked, 0), drained=True).total.unaccounted == 0
    if shuffled and shuffled[0].on_time:
        lossy = reconcile(shuffled[1:], Stored(booked, 0), drained=True)
        assert lossy.total.unaccounted > 0 or lossy.total.events < booked
