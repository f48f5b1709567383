from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_

from monitor import queries, store
from monitor.ledger import Hole, Stored
from monitor.store import Store
from monitor.tables import ledger_row, to_table
from monitor.wire import LedgerEntry
from tests.monitor.bookings import reconcile
from tests.monitor.stored import endpoint


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


@pytest.fixture
def link(database: Store) -> Store:
    """A store where nothing is settled."""
    database.link.execute("TRUNCATE TABLE ledger_settled")
    return database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with endpoint(tmp_path_factory.mktemp("ledger")) as settings:
        store.migrate(settings)
        opened = store.connect(settings)
        yield opened
        opened.close()


def put(link: Store, entries: Sequence[LedgerEntry]) -> None:
    """These rows and no others. Every other one is stored a second time, as after a crash."""
    link.link.execute("TRUNCATE TABLE ledger")
    for name, some in (("all", entries), ("again", entries[::2])):
        token = f"{name}{np.random.default_rng().integers(2**60)}"
        link.append("ledger", to_table("ledger", [*map(ledger_row, some)]), token=token)


def test_clickhouse_adds_up_as_the_plain_sums_do(link: Store) -> None:
    cases = [case.entries for case in CASES]
    cases += [disturbed(np.random.default_rng(seed)) for seed in range(4)]
    for entries in cases:
        put(link, entries)
        for drained in (False, True):
            found = link.ledger(drained=drained)
            assert found == reconcile(entries, Stored(0, 0), drained=drained), entries


def disturbed(rng: np.random.Generator) -> list[LedgerEntry]:
    """Batches of two source partitions, booked by three partitions; some rows are lost or wrong, some batches jump."""
    entries: list[LedgerEntry] = []
    at = [0, 0]
    for offset in range(20):
        p = int(rng.integers(2))
        jump = "retention" if rng.random() < 0.1 else None
        start = max(0, at[p] + int(rng.integers(-3, 10)) * (jump is not None or rng.random() < 0.1))
        given = rng.integers(0, 5, 3)
        dead = int(rng.integers(3))
        events = int(given.sum()) + dead
        at[p] = start + events
        entries += [
            entry(
                profiles_partition=i,
                offset=offset,
                open=int(rng.integers(9)),
                partition=p,
                start=start,
                end=at[p],
                events=events + (rng.random() < 0.05),
                dead=dead,
                on_time=int(given[i]),
                jump=jump,
            )
            for i in range(3)
            if rng.random() < 0.95
        ]
    return [*{(e.partition, e.start, e.end, e.profiles_partition): e for e in entries}.values()]


def test_of_many_holes_the_last_ones_are_listed_and_all_are_counted(link: Store) -> None:
    holes = queries.MAX_HOLES + 5
    put(link, [entry(start=20 * i, end=20 * i + 10, offset=i, jump=f"{i}") for i in range(holes)])
    found = link.ledger()
    assert (found.total.holes, found.total.passed) == (holes, 10 * (holes - 1))
    assert len(found.holes) == queries.MAX_HOLES
    assert found.holes[-1] == Hole(0, 20 * holes - 30, 20 * holes - 20, f"{holes - 1}")


def test_what_is_settled_is_never_read_again_and_nothing_looks_different(link: Store) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        entries = disturbed(rng) if seed % 2 else clean(60)
        link.link.execute("TRUNCATE TABLE ledger_settled")
        for part in (len(entries) // 2, len(entries)):
            put(link, entries[:part])
            for settle in (False, True, True):
                if settle:
                    link.bookings.settle()
                found = link.ledger()
                assert found == reconcile(entries[:part], Stored(0, 0)), (seed, part)


def clean(batches: int) -> list[LedgerEntry]:
    """Batches of one source partition, booked by two; one of them jumps."""
    starts = [10 * i + 5 * (i > 9) for i in range(batches)]
    return [
        entry(
            profiles_partition=p,
            offset=i,
            open=i,
            start=start,
            end=start + 10,
            on_time=5,
            jump="retention" if i == 10 else None,
        )
        for i, start in enumerate(starts)
        for p in range(2)
    ]


def test_after_settling_only_the_last_ranges_are_left_to_add_up(link: Store) -> None:
    entries = [with_(e, partition=p) for p in range(3) for e in clean(30)]
    put(link, entries)
    assert link.bookings.settle() == 3
    assert link.bookings.settle() == 0, "there is nothing new"
    rows = link.link.rows("SELECT until_offset, jumps FROM ledger_settled FINAL")
    assert [(row["until_offset"], row["jumps"]) for row in rows] == [(295, 1)] * 3
    last = [e for e in entries if e.start >= 295]
    put(link, [*[e for e in entries if e.jump], *last])  # the others are not looked at
    assert link.ledger() == reconcile(entries, Stored(0, 0))


def test_a_jump_back_below_what_is_settled_is_seen(link: Store) -> None:
    entries = clean(30)
    put(link, entries)
    link.bookings.settle()
    for more in (0, 2):
        back = [
            entry(
                profiles_partition=p,
                offset=40 + i,
                start=33 + 20 * i,
                end=53 + 20 * i,
                events=20,
                on_time=10,
                jump="reset" if i == 0 else None,
            )
            for i in range(more + 1)
            for p in range(2)
        ]
        put(link, [*entries, *back])
        link.bookings.settle()
        assert link.ledger() == reconcile([*entries, *back], Stored(0, 0))
