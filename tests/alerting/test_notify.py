"""What is told and what is asked for: a table per decision, and the plan over a book."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from alerting.book import Acted, Book
from alerting.incidents import Change, command, step
from alerting.notify import (
    ActionDecision,
    ActionHistory,
    NotifyReason,
    decide_action,
    decide_notification,
    outbox_id,
    plan,
)
from monitor.spec import ActionSpec, ModelSpec
from monitor.wire import (
    Advice,
    Cause,
    Command,
    Incident,
    IncidentState,
    OutboxItem,
    Transition,
    Verdicts,
)
from tests.alerting.builders import (
    DAY,
    MODEL,
    START,
    fault,
    judged,
    labels,
    last,
    run,
    spec,
    verdict,
)

NOW = START + 100 * DAY


def incident(
    advice: Advice = "retrain",
    *,
    cause: Cause = "drift",
    state: IncidentState = "firing",
    rollback_to: str | None = None,
    name: str = "i1",
) -> Incident:
    return Incident(
        name, MODEL, "7", cause, advice, "error", state, "title", "reason",
        START, START, NOW, None, 1, rollback_to=rollback_to,
    )  # fmt: skip


def change(transition: Transition | None, of: Incident) -> Change:
    _, changes = run([judged(verdict(), closes=True)])
    case = changes[0].case
    return Change(transition, type(case)(case.family, of, case.members, 0, 0))


@pytest.mark.parametrize(
    ("why", "transition", "state", "told", "silenced", "reason"),
    [
        ("the first page", "fired", "firing", (), False, NotifyReason.FIRST_FIRING),
        ("the message was repeated", "fired", "firing", ("cause:drift",), False, NotifyReason.ALREADY_TOLD),
        ("labels came", "changed", "firing", ("cause:unknown",), False, NotifyReason.CAUSE_CHANGED),
        ("back to an old cause", "changed", "firing", ("cause:drift", "cause:x"), False, NotifyReason.ALREADY_TOLD),
        ("the fired one was silenced", "changed", "firing", (), False, NotifyReason.FIRST_FIRING),
        ("it is over", "resolved", "resolved", ("cause:drift",), False, NotifyReason.RESOLVED),
        ("over, and said so", "resolved", "resolved", ("cause:drift", "resolved"), False, NotifyReason.ALREADY_TOLD),
        ("nobody heard of it", "resolved", "resolved", (), False, NotifyReason.NEVER_TOLD),
        ("more evidence", None, "firing", ("cause:drift",), False, NotifyReason.NO_TRANSITION),
        ("an action is no page", "action", "firing", (), False, NotifyReason.NO_TRANSITION),
        ("still pending", "fired", "pending", (), False, NotifyReason.NOT_FIRING),
        ("a person wants quiet", "fired", "firing", (), True, NotifyReason.SILENCED),
        ("an end wakes nobody", "resolved", "resolved", ("cause:drift",), True, NotifyReason.RESOLVED),
        ("somebody has it", "acknowledged", "firing", ("cause:drift",), False, NotifyReason.ACKNOWLEDGED),
        ("somebody has it already", "acknowledged", "firing", ("cause:drift", "acknowledged"), False, NotifyReason.ALREADY_TOLD),
        ("nobody knows of it", "acknowledged", "firing", (), False, NotifyReason.NEVER_TOLD),
        ("it is over by now", "acknowledged", "resolved", ("cause:drift",), False, NotifyReason.NOT_FIRING),
        ("a retrain did not help", "escalated", "firing", ("cause:drift",), False, NotifyReason.ESCALATED),
        ("that was said", "escalated", "firing", ("cause:drift", "escalated"), False, NotifyReason.ALREADY_TOLD),
        ("it did not help in silence", "escalated", "firing", ("cause:drift",), True, NotifyReason.SILENCED),
        ("the quiet is over", "fired", "firing", (), False, NotifyReason.FIRST_FIRING),
    ],
)  # fmt: skip
def test_a_change_is_told_for_a_reason(
    why: str,
    transition: Transition | None,
    state: IncidentState,
    told: tuple[str, ...],
    reason: NotifyReason,
    *,
    silenced: bool,
) -> None:
    found = decide_notification(change(transition, incident(state=state)), told, silenced=silenced)
    assert found is reason, why
    assert found.tells == (
        reason.value in {"first_firing", "cause_changed", "acknowledged", "escalated", "resolved"}
    )


def rule(**changes: object) -> ActionSpec:
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    return ActionSpec.model_validate({"webhook": hook, "approval": "auto", **changes})


def history(*acted: Acted, quality: bool = False, approved: bool = False, rejected: bool = False,
            open_ids: tuple[str, ...] = ("i1",)) -> ActionHistory:  # fmt: skip
    return ActionHistory(NOW, acted, open_ids, quality, approved, rejected)


def replace_history(windows: int) -> ActionHistory:
    return dataclasses.replace(history(), windows=windows)


DECIDE = ActionDecision


@pytest.mark.parametrize(
    ("why", "asked", "allowed", "of", "past", "expected"),
    [
        ("all is well", "retrain", rule(), incident(), history(), DECIDE.SEND),
        ("off by default", "retrain", None, incident(), history(), DECIDE.NOT_ALLOWED),
        ("the owner tries it out", "retrain", rule(dry_run=True), incident(), history(), DECIDE.DRY_RUN),
        ("not what helps", "retrain", rule(), incident("rollback"), history(), DECIDE.NOT_ADVISED),
        ("it is over", "retrain", rule(), incident(state="resolved"), history(), DECIDE.NOT_FIRING),
        ("a person decides", "retrain", rule(approval="manual"), incident(), history(), DECIDE.NEEDS_APPROVAL),
        ("a person agreed", "retrain", rule(approval="manual"), incident(), history(approved=True), DECIDE.SEND),
        ("a person refused", "retrain", rule(), incident(), history(rejected=True), DECIDE.REJECTED),
        ("the data are broken", "retrain", rule(), incident(), history(quality=True), DECIDE.BLOCKED_BY_QUALITY),
        ("approved, but broken", "retrain", rule(approval="manual"), incident(),
         history(quality=True, approved=True), DECIDE.BLOCKED_BY_QUALITY),
        ("once an incident", "retrain", rule(), incident(), history(Acted("retrain", "i1", 0)), DECIDE.ALREADY_ASKED),
        ("it came back since", "retrain", rule(cooldown="1d"), replace(incident(), reopened_ms=NOW - DAY),
         history(Acted("retrain", "i1", NOW - 2 * DAY)), DECIDE.SEND),
        ("another is under way", "retrain", rule(), incident(),
         history(Acted("retrain", "i0", 0), open_ids=("i0", "i1")), DECIDE.SINGLE_FLIGHT),
        ("one a day", "retrain", rule(), incident(), history(Acted("retrain", "i0", NOW - DAY + 1)), DECIDE.DAILY_CAP),
        ("too soon", "retrain", rule(cooldown="7d"), incident(),
         history(Acted("retrain", "i0", NOW - 2 * DAY)), DECIDE.COOLING_DOWN),
        ("late enough", "retrain", rule(cooldown="2d"), incident(),
         history(Acted("retrain", "i0", NOW - 2 * DAY)), DECIDE.SEND),
        ("a gust", "retrain", rule(min_windows=3), incident(), replace_history(windows=2), DECIDE.TOO_FEW_WINDOWS),
        ("no gust any more", "retrain", rule(min_windows=3), incident(), replace_history(windows=3), DECIDE.SEND),
        ("the owner names the version", "rollback", rule(to="5"), incident("rollback"), history(), DECIDE.SEND),
        ("nowhere to go", "rollback", rule(), incident("rollback"), history(), DECIDE.NO_TARGET),
        ("back to 6", "rollback", rule(), incident("rollback", rollback_to="6"), history(quality=True), DECIDE.SEND),
    ],
)  # fmt: skip
def test_an_action_is_asked_for_only_when_nothing_speaks_against_it(
    why: str, asked: str, allowed: ActionSpec | None, of: Incident, past: ActionHistory, expected: DECIDE
) -> None:  # fmt: skip
    found = decide_action("retrain" if asked == "retrain" else "rollback", allowed, of, past)
    assert found is expected, why
    assert found.asks == (found in (DECIDE.SEND, DECIDE.DRY_RUN))


def deliver(
    messages: list[Verdicts], model: ModelSpec, book: Book | None = None
) -> tuple[Book, list[OutboxItem]]:
    book = book or Book(MODEL)
    items: list[OutboxItem] = []
    for message in messages:
        book, changes = step(book, message)
        book, _, more = plan(book, changes, model)
        items += more
    return book, items


def said(items: list[OutboxItem]) -> list[tuple[str, str]]:
    return [(item.target, item.transition) for item in items]


FALLING = [
    judged(verdict(), closes=True),
    judged(labels(), source="performance", closes=True),
]


def test_an_incident_is_told_to_every_target_once_per_cause_and_once_when_it_is_over() -> None:
    clean = [judged(verdict(status="ok"), day=i, closes=True) for i in (1, 2)]
    _, items = deliver([FALLING[0], clean[0]], spec(actions={}))
    assert said(items) == [
        ("slack", "fired"),
        ("pagerduty", "fired"),
        ("slack", "resolved"),
        ("pagerduty", "resolved"),
    ]
    assert len({item.id for item in items}) == 4


def test_what_comes_back_is_told_again_under_keys_of_its_own() -> None:
    days = [
        judged(verdict(status="breach" if i in (0, 2) else "ok"), day=i, closes=True)
        for i in range(5)
    ]
    _, items = deliver(days, spec(actions={}, notify=[{"pagerduty": {"routing_key": "env:P"}}]))
    assert [item.transition for item in items] == ["fired", "resolved", "fired", "resolved"]
    assert len({item.id for item in items}) == 4
    assert len({item.incident.id for item in items}) == 1


def test_a_retrain_is_asked_for_once_when_labels_show_that_a_drift_hurts() -> None:
    more = [judged(labels(), day=i, source="performance", closes=True) for i in (1, 2)]
    book, items = deliver([*FALLING, judged(verdict(), day=3, closes=True), *more], spec(notify=[]))
    assert said(items) == [("retrain", "action")]
    case = next(iter(book.open.values()))
    assert [x.what for x in case.incident.timeline].count("retrain asked for") == 1


BROKEN = [judged(verdict(), day=day, closes=True) for day in range(1, 6)]


def test_what_still_breaks_after_an_action_escalates_once() -> None:
    book, items = deliver([*FALLING, *BROKEN], spec())
    (asked,) = (item for item in items if item.action == "retrain")
    late = [item for item in items if item.transition == "escalated"]
    assert said(late) == [("slack", "escalated"), ("pagerduty", "escalated")]
    now = late[0].incident
    assert (asked.incident.severity, now.severity) == ("error", "critical")
    assert now.timeline[-1].what == "retrain did not help within 3d"
    (entry,) = book.open.values()
    assert entry.incident.severity == "critical", "and stays so, whatever the next window says"


def test_what_an_action_mended_or_would_have_mended_does_not_escalate() -> None:
    clean = [
        judged(verdict(status="ok"), labels("ok"), day=day, closes=True) for day in range(1, 6)
    ]
    assert not any(i.transition == "escalated" for i in deliver([*FALLING, *clean], spec())[1])
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    dry = spec(actions={"retrain": {"webhook": hook, "dry_run": True}})
    assert not any(i.transition == "escalated" for i in deliver([*FALLING, *BROKEN], dry)[1])
    patient = spec(actions={"retrain": {"webhook": hook, "approval": "auto", "helps_within": "5d"}})
    assert not any(i.transition == "escalated" for i in deliver([*FALLING, *BROKEN], patient)[1])


def test_an_action_waits_for_the_windows_that_its_owner_wants_to_see() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    slow = spec(
        notify=[], actions={"retrain": {"webhook": hook, "approval": "auto", "min_windows": 3}}
    )
    book, items = deliver([*FALLING, *BROKEN[:1]], slow)
    assert items == []
    _, items = deliver(BROKEN[1:2], slow, book)
    assert said(items) == [("retrain", "action")]


def test_a_rollback_goes_to_the_version_that_its_owner_names() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    named = spec(notify=[], actions={"rollback": {"webhook": hook, "approval": "auto", "to": "5"}})
    both = [judged(verdict(status="ok")), judged(verdict(), version="8", closes=True)]
    _, items = deliver([judged(verdict(status="ok"), day=-1, closes=True), *both], named)
    assert [(item.action, item.incident.rollback_to) for item in items] == [("rollback", "5")]


def test_a_blocked_retrain_goes_out_once_the_data_are_clean() -> None:
    broken = judged(fault(feature="visib"), segment="carrier=HA", n=5)
    book, items = deliver([broken, *FALLING], spec(notify=[]))
    assert said(items) == []
    assert len(book.open) == 2
    assert all(case.incident.retrain_blocked for case in book.open.values())
    fixed = judged(fault("ok", feature="visib"), day=1, segment="carrier=HA", n=5, closes=True)
    book, items = deliver([fixed], spec(notify=[]), book)
    assert said(items) == [("retrain", "action")]
    assert not items[0].incident.retrain_blocked


def test_a_manual_action_waits_for_its_approval_and_a_repeated_approval_asks_once() -> None:
    manual = spec(
        notify=[],
        actions={"retrain": {"webhook": {"url": "https://ci.example/x", "secret": "env:S"}}},
    )
    book, items = deliver(FALLING, manual)
    assert items == []
    order = Command("approve", MODEL, next(iter(book.open)), "ada", NOW)
    for expected in ([("retrain", "action")], []):
        book, changes = command(book, order)
        book, _, asked = plan(book, changes, manual)
        assert said(list(asked)) == expected


def test_an_approval_of_what_is_not_advised_any_more_is_void() -> None:
    book, _ = deliver(FALLING, spec(notify=[]))
    assert next(iter(book.open.values())).incident.advice == "retrain"
    for kind in ("approve", "reject"):
        order = Command(kind, MODEL, next(iter(book.open)), "ada", NOW, action="rollback")
        assert command(book, order) == (book, ())


def test_a_dry_run_is_marked_as_one() -> None:
    hook = {"url": "https://ci.example/x", "secret": "env:S"}
    dry = spec(notify=[], actions={"retrain": {"webhook": hook, "dry_run": True}})
    _, items = deliver(FALLING, dry)
    assert [item.dry_run for item in items] == [True]


def test_what_fires_in_silence_is_told_when_the_silence_is_over() -> None:
    quiet = spec(actions={})
    book, changes = run([judged(verdict(), closes=True)])
    order = Command("silence", MODEL, last(changes).id, "ada", START, until_ms=START + 3 * DAY)
    book, silenced = command(book, order)
    book, _, items = plan(book, [Change("fired", silenced[0].case)], quiet)
    assert items == ()
    book, later = deliver([judged(verdict(), day=1, closes=True)], quiet, book)
    assert later == []
    _, after = deliver([judged(verdict(), day=2, closes=True)], quiet, book)
    assert said(after) == [("slack", "fired"), ("pagerduty", "fired")]


def at(day: float) -> str:
    return datetime.fromtimestamp((START + day * DAY) / 1_000, UTC).isoformat()


WINDOW = {"starts": at(0), "ends": at(3), "comment": "the sensor is replaced"}
DRIFT = [judged(verdict(), day=day, closes=True) for day in range(5)]


@pytest.mark.parametrize(
    ("why", "silence", "told_on_day"),
    [
        ("a maintenance window", WINDOW, 2),  # a day is judged at its end
        ("not of this feature", {**WINDOW, "feature": "temp"}, 0),
        ("of this and others", {**WINDOW, "feature": "wind_*", "segment": ""}, 2),
        (
            "every month, and not now",
            {**WINDOW, "starts": at(-30), "ends": at(-27), "every": "4w"},
            0,
        ),
        ("every month, and now", {**WINDOW, "starts": at(-28), "ends": at(-25), "every": "4w"}, 2),
        ("it was last month", {**WINDOW, "starts": at(-28), "ends": at(-25)}, 0),
    ],
)
def test_what_a_silence_of_the_spec_covers_is_told_when_it_is_over(
    why: str, silence: dict[str, object], told_on_day: int
) -> None:
    quiet = spec(actions={}, silences=[silence])
    book, days = Book(MODEL), []
    for day, message in enumerate(DRIFT):
        book, items = deliver([message], quiet, book)
        days += [day] * bool(items)
        assert said(items) in ([], [("slack", "fired"), ("pagerduty", "fired")])
    assert days == [told_on_day], why


def test_an_incident_is_told_once_it_has_evidence_that_no_silence_covers() -> None:
    quiet = spec(actions={}, silences=[{**WINDOW, "feature": "wind_speed"}])
    book, items = deliver(DRIFT[:1], quiet)
    assert items == []
    more = judged(verdict(), verdict(feature="temp"), day=1, closes=True)
    _, items = deliver([more], quiet, book)
    assert said(items) == [("slack", "fired"), ("pagerduty", "fired")]


def test_nothing_runs_by_itself_in_a_maintenance_window_unless_a_person_approves() -> None:
    quiet = spec(notify=[], silences=[{**WINDOW, "ends": at(9)}])
    book, items = deliver(FALLING, quiet)
    assert items == []
    book, changes = command(book, Command("approve", MODEL, next(iter(book.open)), "ada", NOW))
    _, _, asked = plan(book, changes, quiet)
    assert said(list(asked)) == [("retrain", "action")]


def test_an_action_that_does_not_help_in_silence_is_told_when_it_is_over() -> None:
    quiet = spec(silences=[{**WINDOW, "starts": at(1.5), "ends": at(6.5)}])
    book, items = deliver([*FALLING, *BROKEN], quiet)
    assert "escalated" not in {item.transition for item in items}
    assert next(iter(book.open.values())).escalated
    _, items = deliver([judged(verdict(), day=6, closes=True)], quiet, book)
    assert said(items) == [("slack", "escalated"), ("pagerduty", "escalated")]


def test_what_fired_before_its_spec_was_known_is_told_when_it_is() -> None:
    book, changes = run([judged(verdict(), closes=True)])
    book, _, nothing = plan(book, changes, None)
    assert nothing == ()
    _, items = deliver([judged(verdict(), day=1, closes=True)], spec(actions={}), book)
    assert said(items) == [("slack", "fired"), ("pagerduty", "fired")]


def test_an_acknowledgement_is_told_to_who_keeps_waking_people_and_once() -> None:
    hook = {"url": "https://hooks.example/x", "secret": "env:S"}
    targets = [
        {"slack": {"url": "env:X"}},
        {"pagerduty": {"routing_key": "env:P"}},
        {"webhook": hook},
        {"alertmanager": {"url": "https://am.example"}},
        {"email": {"to": ["a@example.com"]}},
        {"teams": {"url": "env:T"}},
    ]
    told = spec(notify=targets, actions={})
    book, items = deliver([judged(verdict(), closes=True)], told)
    assert len(items) == 6
    order = Command("acknowledge", MODEL, next(iter(book.open)), "ada", NOW)
    for expected in ([("pagerduty", "acknowledged"), ("webhook", "acknowledged")], []):
        book, changes = command(book, order)
        book, _, asked = plan(book, changes, told)
        assert said(list(asked)) == expected


def test_what_was_told_and_ends_in_silence_is_told_to_be_over() -> None:
    quiet = spec(actions={})
    book, items = deliver([judged(verdict(), closes=True)], quiet)
    assert len(items) == 2
    order = Command(
        "silence", MODEL, next(iter(book.open)), "ada", START, until_ms=START + 90 * DAY
    )
    book, _ = command(book, order)
    _, after = deliver([judged(day=day, closes=True) for day in range(1, 5)], quiet, book)
    assert said(after) == [("slack", "resolved"), ("pagerduty", "resolved")]


def test_what_turns_out_to_be_something_else_in_silence_is_told_when_it_is_over() -> None:
    quiet = spec(actions={})
    book, items = deliver(FALLING[:1], quiet)
    assert {item.transition for item in items} == {"fired"}
    order = Command("silence", MODEL, next(iter(book.open)), "ada", START, until_ms=START + 8 * DAY)
    book, _ = command(book, order)
    book, during = deliver(FALLING[1:], quiet, book)
    assert during == []
    (entry,) = book.open.values()
    assert entry.incident.cause != items[0].incident.cause
    _, after = deliver(
        [judged(verdict(), day=day, closes=True) for day in range(7, 11)], quiet, book
    )
    assert said(after) == [("slack", "changed"), ("pagerduty", "changed")]


def test_without_a_spec_nothing_leaves() -> None:
    book, changes = run([judged(verdict(), closes=True)])
    assert plan(book, changes, None) == (book, tuple(changes), ())


def test_outbox_ids_are_stable_and_differ_by_target_action_and_cause() -> None:
    one = incident()
    other_severity = incident("watch")
    assert outbox_id(one, "fired", "slack", "notify") == outbox_id(
        other_severity, "fired", "slack", "notify"
    )
    ids = {
        outbox_id(one, "fired", "slack", "notify"),
        outbox_id(one, "fired", "pagerduty", "notify"),
        outbox_id(one, "resolved", "slack", "notify"),
        outbox_id(one, "changed", "slack", "notify"),
        outbox_id(incident(cause="benign_shift"), "changed", "slack", "notify"),
        outbox_id(one, "action", "retrain", "retrain"),
    }
    assert len(ids) == 6
    assert all(len(name) == 32 and "." not in name for name in ids)
