from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from typing_extensions import override

from monitor import observed
from monitor.errors import TransientError
from monitor.ledger import Booked, Hole, Ledger, Stored, balance
from monitor.observed import Observed
from monitor.store import Releases, Store


class Database:
    """A store that counts how often it is asked, and can be away."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.took_s = 0.0
        self.now_s = 0.0
        self.released = Releases(4, 1, 2, 3)

    def ledger(self, *, drained: bool = False) -> Ledger:
        self.asked += 1
        self.now_s += self.took_s
        if self.away:
            raise TransientError("ClickHouse does not answer")
        hole = Hole(0, 10, 30, "retention")
        booked = Booked(0, 0, 40, 20, 20, 0, 0, 0, 4, 3, jumps=1, passed=20, holes=[hole])
        return balance([booked], Stored(20, 0), held=0, drained=drained)

    def incidents(self, **_: Any) -> list[Any]:
        return []

    def spending(self) -> list[Any]:
        return []

    def releases(self) -> Releases:
        return self.released


@pytest.fixture
def database() -> Database:
    for gauge in observed.KNOWN_HERE:
        gauge.forget()
    return Database()


def observer(database: Database) -> Observed:
    return Observed(cast("Store", database), lambda: database.now_s)


def value(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"driftline_{name}")


def test_what_nobody_looked_up_is_absent_and_not_zero(database: Database) -> None:
    assert value("unaccounted_events") is None
    observer(database).look()
    assert (value("unaccounted_events"), value("hole_offsets")) == (3.0, 20.0)


def test_what_cannot_be_looked_up_any_more_is_absent_again(database: Database) -> None:
    seen = observer(database)
    seen.look()
    database.now_s += 2 * observed.FRESH_S
    database.away = True
    seen.look()
    assert (value("unaccounted_events"), value("hole_offsets")) == (None, None)
    database.away = False
    seen.look()
    assert value("unaccounted_events") == 3.0


RELEASED = ("deployments", "deployments_failed", "change_failure_rate", "rollbacks", "retrains")


def test_how_releases_fared_is_absent_while_it_is_not_known(database: Database) -> None:
    assert [value(name) for name in RELEASED] == [None] * 5
    seen = observer(database)
    seen.look()
    assert [value(name) for name in RELEASED] == [4, 1, 0.25, 2, 3]
    database.released = Releases(0, 0, 0, 0)
    seen.look()
    assert [value(name) for name in RELEASED] == [0, 0, None, 0, 0], "of nothing there is no rate"
    database.now_s += 2 * observed.FRESH_S
    database.away = True
    seen.look()
    assert [value(name) for name in RELEASED] == [None] * 5


def test_many_who_ask_within_seconds_cost_one_question(database: Database) -> None:
    seen = observer(database)
    for _ in range(10):
        assert seen.ledger().total.unaccounted == 3
        database.now_s += observed.FRESH_S / 10
    assert database.asked == 1
    assert seen.ledger(drained=True).total.unaccounted == 7, "another question"
    database.now_s += observed.FRESH_S
    seen.ledger()
    assert database.asked == 3


def test_a_slow_database_is_asked_more_rarely(database: Database) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        @override
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            database.now_s += timeout or 0.0
            return len(waits) == 2

    database.took_s = 10.0
    observer(database).follow(Stop())
    assert waits == [200.0, 200.0]
    database.took_s, waits[:] = 0.1, []
    observer(database).follow(Stop())
    assert waits == [observed.EVERY_S] * 2
