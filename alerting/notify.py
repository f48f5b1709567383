"""What leaves the house: which change of an incident is told to whom, and which action may be asked for.

Each question is one pure decision that answers with a reason, so that people can see why something was *not* sent.
``plan`` asks them all and writes down what was asked for, in the same book as the incident: a repeat of the message
that led here finds it written and asks for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from msgspec.structs import replace

from alerting.book import DAY_MS, Acted, Book, Case
from alerting.cases import noted
from alerting.incidents import Change
from monitor.spec import ActionSpec, ModelSpec, format_duration
from monitor.targets import ACTIONS, ActionName
from monitor.wire import Incident, OutboxItem, Transition

_MEMORY_MS: Final = 90 * DAY_MS  # longer than any cooldown in use; bounds the list as well
_MEMORY: Final = 256


class NotifyReason(Enum):
    """Why a change of an incident is told, or is not. The first five are told."""

    FIRST_FIRING = "first_firing"
    CAUSE_CHANGED = "cause_changed"
    RESOLVED = "resolved"
    ACKNOWLEDGED = "acknowledged"  # to who keeps waking people until somebody has
    ESCALATED = "escalated"  # what was done did not help
    NO_TRANSITION = "no_transition"  # more evidence: nobody is woken for it
    NOT_FIRING = "not_firing"
    ALREADY_TOLD = "already_told"
    NEVER_TOLD = "never_told"  # the end of what nobody heard of: it was silenced from the start
    SILENCED = "silenced"

    @property
    def tells(self) -> bool:
        """Whether a notification goes out."""
        return self in _TELLING


_TELLING: Final = frozenset(
    {
        NotifyReason.FIRST_FIRING,
        NotifyReason.CAUSE_CHANGED,
        NotifyReason.RESOLVED,
        NotifyReason.ACKNOWLEDGED,
        NotifyReason.ESCALATED,
    }
)
_TOLD_OF_PEOPLE: Final = frozenset(
    {"pagerduty", "webhook"}
)  # the others show it to people who know


class ActionDecision(Enum):
    """Why an action is asked for, or is not. The first two go to the outbox."""

    SEND = "send"
    DRY_RUN = "dry_run"  # recorded as if it had been sent
    NOT_ALLOWED = "not_allowed"  # the model's spec does not name it
    NOT_ADVISED = "not_advised"
    NOT_FIRING = "not_firing"
    NO_TARGET = "no_target"  # a rollback without a version to go back to
    ALREADY_ASKED = "already_asked"
    REJECTED = "rejected"
    SILENCED = "silenced"  # by the spec: nothing runs by itself in a maintenance window
    BLOCKED_BY_QUALITY = "blocked_by_quality"  # a model must not learn from broken data
    TOO_FEW_WINDOWS = "too_few_windows"  # broke, so far
    NEEDS_APPROVAL = "needs_approval"
    SINGLE_FLIGHT = (
        "single_flight"  # the same action was asked for by an incident that is still open
    )
    COOLING_DOWN = "cooling_down"
    DAILY_CAP = "daily_cap"

    @property
    def asks(self) -> bool:
        """Whether the action goes to the outbox."""
        return self in (ActionDecision.SEND, ActionDecision.DRY_RUN)


@dataclass(frozen=True, slots=True)
class ActionHistory:
    """What an action decision looks back on.

    ``acted`` are the earlier requests for the same action of the model, ``open_ids`` the incidents that are open,
    ``windows`` how many ends of windows found the incident broken, and ``now_ms`` is event time.
    """

    now_ms: int
    acted: Sequence[Acted]
    open_ids: Iterable[str]
    quality_open: bool
    approved: bool = False
    rejected: bool = False
    windows: int = 1
    silenced: bool = False


def decide_notification(change: Change, told: Sequence[str], *, silenced: bool) -> NotifyReason:
    """Whether a change is told. ``told`` are the keys (``told_key``) of what was told about the incident before."""
    incident, transition = change.incident, change.transition
    if transition is None or transition == "action":
        return NotifyReason.NO_TRANSITION
    if told_key(transition, incident) in told:
        return NotifyReason.ALREADY_TOLD
    reason = _news(transition, incident, told)
    # An end wakes nobody, and without it the receiver would show the incident for ever.
    if silenced and reason.tells and reason is not NotifyReason.RESOLVED:
        return NotifyReason.SILENCED
    return reason


def _news(transition: Transition, incident: Incident, told: Sequence[str]) -> NotifyReason:
    if transition in ("resolved", "acknowledged") and not told:
        return NotifyReason.NEVER_TOLD
    if transition == "resolved":
        return NotifyReason.RESOLVED
    if incident.state != "firing":
        return NotifyReason.NOT_FIRING
    if transition == "acknowledged":
        return NotifyReason.ACKNOWLEDGED
    if transition == "escalated":
        return NotifyReason.ESCALATED
    return NotifyReason.CAUSE_CHANGED if told else NotifyReason.FIRST_FIRING


def told_key(transition: Transition, incident: Incident) -> str:
    """What is told once: the cause while it fires, what people and actions did, that it is over. Going back to an old cause is no news."""
    return f"cause:{incident.cause}" if transition in ("fired", "changed") else transition


def decide_action(
    name: ActionName, spec: ActionSpec | None, incident: Incident, history: ActionHistory
) -> ActionDecision:
    """Whether an action may be asked for now, checked in the order of ``ActionDecision``: refusals before limits."""
    if spec is None:
        return ActionDecision.NOT_ALLOWED
    refusal = _refusal(name, spec, incident, history)
    if refusal is not None:
        return refusal
    if spec.approval == "manual" and not history.approved and not spec.dry_run:
        return ActionDecision.NEEDS_APPROVAL
    limit = _limit(spec, incident, history)
    if limit is not None:
        return limit
    return ActionDecision.DRY_RUN if spec.dry_run else ActionDecision.SEND


def _refusal(
    name: ActionName, spec: ActionSpec, incident: Incident, history: ActionHistory
) -> ActionDecision | None:
    since_ms = incident.reopened_ms or 0
    reasons = (
        (incident.advice != name, ActionDecision.NOT_ADVISED),
        (incident.state != "firing", ActionDecision.NOT_FIRING),
        (
            name == "rollback" and not (spec.to or incident.rollback_to),
            ActionDecision.NO_TARGET,
        ),
        (
            any(
                past.incident_id == incident.id and past.at_ms >= since_ms for past in history.acted
            ),
            ActionDecision.ALREADY_ASKED,
        ),
        (history.rejected, ActionDecision.REJECTED),
        (history.silenced and not history.approved, ActionDecision.SILENCED),
        (name == "retrain" and history.quality_open, ActionDecision.BLOCKED_BY_QUALITY),
        (history.windows < spec.min_windows, ActionDecision.TOO_FEW_WINDOWS),
    )
    return next((reason for holds, reason in reasons if holds), None)


def _limit(spec: ActionSpec, incident: Incident, history: ActionHistory) -> ActionDecision | None:
    open_ids = set(history.open_ids) - {incident.id}
    times = [past.at_ms for past in history.acted]
    today = [at_ms for at_ms in times if at_ms > history.now_ms - DAY_MS]
    reasons = (
        (any(past.incident_id in open_ids for past in history.acted), ActionDecision.SINGLE_FLIGHT),
        (len(today) >= spec.per_day, ActionDecision.DAILY_CAP),
        (
            max(times, default=-spec.cooldown) + spec.cooldown > history.now_ms,
            ActionDecision.COOLING_DOWN,
        ),
    )
    return next((reason for holds, reason in reasons if holds), None)


def outbox_id(incident: Incident, transition: Transition, target: str, action: str) -> str:
    """Idempotency key at the receiver: the same over repeats, retries and replays. It has no dot, as webhooks need."""
    cause = incident.cause if transition == "changed" else ""
    parts = [incident.id, transition, target, action, cause]
    if incident.reopened_ms is not None:
        parts.append(str(incident.reopened_ms))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def plan(
    book: Book, changes: Sequence[Change], spec: ModelSpec | None
) -> tuple[Book, tuple[Change, ...], tuple[OutboxItem, ...]]:
    """Ask for what the changes call for: the book that knows it, the incidents to publish, and the outbox items.

    Open incidents whose action is still owed are asked again: a retrain that was blocked goes out once the data are
    clean, and an approval takes effect when it is given. Without a spec nothing leaves.
    """
    if spec is None:
        return book, tuple(changes), ()
    planned = book.copy()
    items: list[OutboxItem] = []
    told: dict[str, tuple[str, ...]] = {}
    escalated = [*_escalated(planned, spec)]
    for change in [*changes, *_owed(planned)]:
        items += _notifications(change, told, spec, book.now_ms)
    for name in told.keys() & planned.open.keys():
        planned.open[name] = replace(planned.open[name], told=told[name])
    published = [*changes, *escalated]
    for entry in list(planned.open.values()):
        for name in ACTIONS:
            asked = _ask(planned, planned.open[entry.incident.id], name, spec)
            if asked is not None:
                items.append(asked)
                published.append(Change(None, planned.open[entry.incident.id]))
    if not items and not told and not escalated:
        return book, tuple(changes), ()
    return planned, tuple(published), tuple(items)


def _owed(book: Book) -> Iterator[Change]:
    """What is open and was not told, since there was a silence, or no spec: that it fires, what it is, that an action did not help."""
    for entry in book.open.values():
        if told_key("fired", entry.incident) not in entry.told:
            yield Change("changed" if entry.told else "fired", entry)
        if entry.escalated:
            yield Change("escalated", entry)


def is_silenced(entry: Case, spec: ModelSpec, now_ms: int) -> bool:
    """Whether a person wants quiet: about this incident, or, by the spec, about each piece of its evidence."""
    return (entry.silenced_until_ms or 0) > now_ms or _in_silence(entry, spec, now_ms)


def _in_silence(entry: Case, spec: ModelSpec, now_ms: int) -> bool:
    now = [silence for silence in spec.silences if silence.holds(now_ms)]
    evidence = (member.evidence for member in entry.members.values())
    return bool(now) and all(
        any(silence.fits(e, version=e.version, segment=e.segment) for silence in now)
        for e in evidence
    )


def _escalated(book: Book, spec: ModelSpec) -> Iterator[Change]:
    """Incidents that an action did not help, once each time that they are open; updates them in the book.

    It did not help if something breaks in a window that began after the action was asked for and ends later than it should have helped.
    """
    for entry in list(book.open.values()):
        unhelped = None if entry.escalated else _unhelped(entry, spec)
        if unhelped is None:
            continue
        name, within_ms = unhelped
        what = f"{name} did not help within {format_duration(within_ms)}"
        incident = replace(entry.incident, severity="critical")
        told = noted(replace(entry, incident=incident, escalated=True), book.now_ms, what)
        book.open[incident.id] = told
        yield Change(None, told)


def _unhelped(entry: Case, spec: ModelSpec) -> tuple[ActionName, int] | None:
    for name in ACTIONS:
        rule, sent_ms = spec.actions.of(name), entry.sent.get(name)
        if rule is None or sent_ms is None:
            continue
        if any(
            member.evidence.start_ms >= sent_ms
            and member.evidence.end_ms > sent_ms + rule.helps_within
            for member in entry.members.values()
        ):
            return name, rule.helps_within
    return None


def _notifications(
    change: Change, told: dict[str, tuple[str, ...]], spec: ModelSpec, now_ms: int
) -> list[OutboxItem]:
    """One item per target. ``told`` is what was told by incident, where this plan added to it."""
    incident = change.incident
    before = told.get(incident.id, change.case.told)
    if change.transition is None:
        return []
    silenced = is_silenced(change.case, spec, now_ms)
    if not decide_notification(change, before, silenced=silenced).tells:
        return []
    told[incident.id] = (*before, told_key(change.transition, incident))
    return [
        OutboxItem(
            id=outbox_id(incident, change.transition, target.target, "notify"),
            target=target.target,
            action="notify",
            transition=change.transition,
            incident=incident,
        )
        for target in spec.notify
        if change.transition != "acknowledged" or target.kind in _TOLD_OF_PEOPLE
    ]


def _ask(book: Book, entry: Case, name: ActionName, spec: ModelSpec) -> OutboxItem | None:
    rule = spec.actions.of(name)
    history = ActionHistory(
        now_ms=book.now_ms,
        acted=[past for past in book.acted if past.action == name],
        open_ids=book.open,
        quality_open=bool(book.cases("quality") or book.cases("outage")),
        approved=name in entry.approved,
        rejected=name in entry.rejected,
        windows=entry.windows,
        silenced=_in_silence(entry, spec, book.now_ms),
    )
    decision = decide_action(name, rule, entry.incident, history)
    if not decision.asks:
        return None
    dry = decision is ActionDecision.DRY_RUN
    what = f"{name} asked for" + (" (dry run)" if dry else "")
    if rule is not None and rule.to:
        entry = replace(entry, incident=replace(entry.incident, rollback_to=rule.to))
    if not dry:
        entry = replace(entry, sent={**entry.sent, name: book.now_ms})
    book.open[entry.incident.id] = entry = noted(entry, book.now_ms, what)
    incident = entry.incident
    recent = [past for past in book.acted if past.at_ms > book.now_ms - _MEMORY_MS]
    book.acted[:] = [*recent, Acted(name, incident.id, book.now_ms)][-_MEMORY:]
    return OutboxItem(
        id=outbox_id(incident, "action", name, name),
        target=name,
        action=name,
        transition="action",
        incident=incident,
        dry_run=dry,
    )
