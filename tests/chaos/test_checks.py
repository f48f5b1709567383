"""Each invariant of the harness is broken by hand once, and its row says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from load.chaos import checks
from load.chaos.receiver import Call
from load.chaos.run import Effects, Marks
from monitor import wire
from monitor.ledger import Account, Ledger, Total

EVENTS = 10
KEY = ("fraud", "1", "", "pane", 10_000, 20_000)
INCIDENT = wire.Incident(
    id="i1",
    model="fraud",
    version="1",
    cause="drift",
    advice="retrain",
    severity="error",
    state="firing",
    title="t",
    reason="r",
    onset_ms=1,
    opened_ms=2,
    updated_ms=2,
    resolved_ms=None,
    revision=1,
)
ITEM = wire.OutboxItem(
    id="o1", target="webhook", action="notify", transition="fired", incident=INCIDENT
)


class Expected:
    """Of the oracle, what the ledger is compared with."""

    events_by_partition = {0: EVENTS}  # noqa: RUF012
    dead_by_partition = {0: 1}  # noqa: RUF012


def account(**changes: Any) -> Account:
    whole = {"partition": 0, "start": 0, "end": 8, "events": EVENTS, "on_time": 8, "late": 1}
    fates = {"dead": 1, "calibrating": 0, "pending": 0, "unaccounted": 0}
    return Account(**(whole | fates | changes))


def ledger(**changes: Any) -> Ledger:
    total = dict.fromkeys(Total.__struct_fields__, 0)
    return Ledger([account(**changes)], [], Total(**total))


def call(answer: str = "ok", body: bytes = b"{}", key: str = "o1") -> Call:
    return Call("/storm/notify", key, answer, body, {})


def delivery(outcome: Any = "delivered") -> wire.Delivery:
    return wire.Delivery("o1", "i1", "webhook", "notify", outcome, attempts=1, at_ms=3)


def effects(**changes: Any) -> Effects:
    found: dict[str, Any] = {
        "sent": {0: 8},
        "verdicts": {KEY: {b"v"}},
        "verdict_messages": 2,
        "incidents": {"i1": [INCIDENT]},
        "outbox": {"o1": {wire.encode(ITEM)}},
        "deliveries": {"o1": [delivery()]},
        "ledger": ledger(),
        "windows": [],
        "calls": [call("error"), call("lost"), call()],
    }
    return Effects(**(found | changes))


def test_a_good_run_holds_and_says_how_often_things_came_twice() -> None:
    good = effects()
    ledger_row = checks.ledger(good, Expected)  # type: ignore[arg-type]  # two fields of it
    rows = [ledger_row, checks.determinism(good, good), checks.actions(good, good)]
    assert [row.problems for row in rows] == [(), (), ()]
    assert "(1 repeats" in rows[1].checked
    assert "3 calls of which 2 failed; 1 arrived more than once, 2 times at most" in rows[2].checked


@pytest.mark.parametrize(
    "wrong",
    [
        {"unaccounted": 1},
        {"pending": 3},
        {"events": EVENTS - 1},
        {"dead": 2},
        {"end": 7},
        {"start": 1},
    ],
    ids=str,
)
def test_a_ledger_that_is_off_by_anything_is_found(wrong: dict[str, int]) -> None:
    found = effects(ledger=ledger(**wrong))
    assert not checks.ledger(found, Expected).holds  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdicts": {}},
        {"verdicts": {KEY: {b"w"}}},
        {"verdicts": {KEY: {b"v", b"w"}}},
        {"verdicts": {KEY: {b"v"}, (*KEY[:-1], 30_000): {b"v"}}},
        {"incidents": {}},
        {"incidents": {"i1": [INCIDENT, INCIDENT]}},
        {"ledger": ledger(on_time=9, late=0)},
    ],
    ids=["missing", "other", "two", "more", "no incident", "other states", "another lateness"],
)
def test_whatever_differs_from_the_undisturbed_run_is_found(wrong: dict[str, Any]) -> None:
    assert not checks.determinism(effects(**wrong), effects()).holds


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"calls": []}, "o1 never arrived"),
        ({"calls": [call("reset"), call("error")]}, "o1 never arrived"),
        ({"calls": [call(), call(key="o2")]}, "o2 is invented"),
        ({"calls": [call(), call(body=b"[]")]}, "o1 arrived with 2 bodies"),
        ({"deliveries": {}}, "o1 was never recorded"),
        ({"deliveries": {"o1": [delivery("expired")]}}, "o1 was expired: "),
    ],
)
def test_actions_that_are_lost_invented_or_changed_are_found(
    wrong: dict[str, Any], said: str
) -> None:
    assert said in checks.actions(effects(**wrong), effects()).problems


def test_a_run_without_actions_proves_nothing() -> None:
    nothing = effects(outbox={}, deliveries={}, calls=[])
    assert not checks.actions(nothing, nothing).holds


MARKS = Marks(
    took_s=90,
    sent_s=60,
    samples=[],
    struck=[],
    recoveries=[],
    peaks={"sink": 100 << 20},
    starts={},
    own_ends=[("detector-0", 70)],
)


@pytest.mark.parametrize(
    ("row", "bad"),
    [
        (checks.memory, replace(MARKS, peaks={"sink": 4 << 30})),
        (checks.progress, replace(MARKS, took_s=3_600)),
    ],
    ids=["memory", "time"],
)
def test_memory_and_time_have_a_bound(row: Callable[[Marks], checks.Row], bad: Marks) -> None:
    assert row(MARKS).holds
    assert not row(bad).holds
