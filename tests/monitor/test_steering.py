"""Actions and silences, as they are read off timelines, deliveries and specs."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from msgspec.structs import replace

from monitor.spec import ActionsSpec, SilenceSpec
from monitor.steering import actions_of, silence_of_incident, silences_of_spec
from monitor.wire import Delivery, Incident, TimelineEntry
from tests.alerting.builders import DAY, HOUR
from tests.alerting.test_payloads import item

INCIDENT = replace(item().incident, id="a" * 32, advice="retrain", state="firing", timeline=[])
HOOK = {"webhook": {"url": "https://ci.example/retrain", "secret": "env:WH"}}
DONE = Delivery("d", INCIDENT.id, "retrain", "retrain", "delivered", 2, 7 * DAY)


def spec(**retrain: Any) -> ActionsSpec:
    return ActionsSpec.model_validate({"retrain": {**HOOK, **retrain}})


def told(*lines: str, **changes: Any) -> Incident:
    timeline = [TimelineEntry(at, line) for at, line in enumerate(lines)]
    return replace(INCIDENT, timeline=timeline, **changes)


@pytest.mark.parametrize(
    ("incident", "allowed", "deliveries", "state"),
    [
        (told("fired"), ActionsSpec(), [], "not_allowed"),
        (told("fired"), spec(), [], "waiting_for_approval"),
        (told("fired"), spec(approval="auto"), [], "held"),
        (told("fired"), spec(dry_run=True), [], "held"),
        (told("fired", "approve by ada"), spec(), [], "held"),
        (told("fired", "reject by ada: no"), spec(), [], "rejected"),
        (told("approve by ada", "retrain asked for"), spec(), [], "asked"),
        (told("retrain asked for (dry run)"), spec(), [], "asked"),
        (told("retrain asked for"), spec(), [DONE], "done"),
        (told("fired", state="resolved"), spec(), [], "over"),
    ],
)
def test_how_far_an_action_is(
    incident: Incident, allowed: ActionsSpec, deliveries: list[Delivery], state: str
) -> None:
    (row,) = actions_of([incident], allowed, deliveries)
    assert (row.incident_id, row.action, row.state) == (INCIDENT.id, "retrain", state)
    assert [entry.what for entry in row.said] == [
        entry.what for entry in incident.timeline if entry.what != "fired"
    ]
    assert (row.outcome, row.attempts, row.at_ms) == (
        ("delivered", 2, 7 * DAY) if deliveries else (None, 0, None)
    )


def test_an_action_that_is_advised_no_more_is_shown_while_it_left_a_trace() -> None:
    changed = told("approve by ada", "retrain asked for", advice="rollback")
    rows = list(actions_of([changed, told(advice="watch")], spec(), []))
    assert [(row.action, row.state) for row in rows] == [
        ("retrain", "asked"),
        ("rollback", "not_allowed"),
    ]
    assert [entry.what for entry in rows[0].said] == ["retrain asked for"]


def test_the_newest_of_two_deliveries_counts() -> None:
    older = replace(DONE, outcome="expired", at_ms=6 * DAY)
    (row,) = actions_of([told("retrain asked for")], spec(), [DONE, older])
    assert row.outcome == "delivered"


def test_a_silence_of_the_spec_holds_in_its_times() -> None:
    silence = SilenceSpec.model_validate(
        {
            "feature": "wind_*",
            "starts": "1970-01-02T00:00:00Z",
            "ends": "1970-01-02T02:00:00Z",
            "every": "1w",
            "author": "ada",
        }
    )
    times = (DAY - 1, DAY, DAY + 2 * HOUR, 8 * DAY + HOUR)
    (row, *others) = [*chain(*(silences_of_spec("m", [silence], at) for at in times))]
    assert [row.active, *(other.active for other in others)] == [False, True, False, True]
    assert (row.starts_ms, row.ends_ms, row.every_ms) == (DAY, DAY + 2 * HOUR, 7 * DAY)
    assert (row.source, row.matcher, row.author) == ("spec", {"feature": "wind_*"}, "ada")


def test_a_silence_by_order_says_who_ordered_it_last() -> None:
    lines = ("fired", "silence by bob", "silence by ada (by ops): known: noon")
    ordered = told(*lines, silenced_until_ms=DAY)
    row = silence_of_incident(ordered, DAY - 1)
    assert row is not None
    assert (row.active, row.author, row.comment) == (True, "ada (by ops)", "known: noon")
    assert (row.starts_ms, row.ends_ms, row.incident_id) == (2, DAY, INCIDENT.id)
    later = silence_of_incident(ordered, DAY)
    assert later is not None
    assert not later.active
    assert silence_of_incident(told(*lines), 0) is None
    assert silence_of_incident(replace(ordered, state="resolved"), 0) is None
