"""What people and specs have said about a model's incidents, as the API shows it: actions and how far they are, and silences.

Both are read off what is stored: an incident's timeline, the deliveries of its actions, and the spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

from monitor.spec import ActionsSpec, Matcher, SilenceSpec
from monitor.targets import ACTIONS, ActionName
from monitor.wire import Delivery, DeliveryOutcome, Incident, TimelineEntry

ActionState: TypeAlias = Literal[
    "not_allowed",  # the spec does not name it
    "waiting_for_approval",
    "held",  # allowed, or approved: by cooldown, daily cap, clean data or a maintenance window
    "rejected",
    "asked",  # and nothing is known yet of what became of it
    "done",  # ``outcome`` says how it ended
    "over",  # the incident ended before it was asked for
]


class ActionRow(msgspec.Struct, frozen=True):
    """An action that an incident advises or had asked for. ``said`` are the lines of the timeline about it."""

    incident_id: str
    model: str
    version: str
    action: ActionName
    state: ActionState
    opened_ms: int
    said: list[TimelineEntry]
    outcome: DeliveryOutcome | None = None
    attempts: int = 0
    at_ms: int | None = None  # of the delivery


class SilenceRow(msgspec.Struct, frozen=True):
    """A time in which nobody is told: of a spec, by matcher, or of one incident, by order. ``matcher`` without members fits everything.

    ``active`` is as of the end of the model's last window, since silences are in event time.
    """

    model: str
    source: Literal["spec", "order"]
    active: bool
    starts_ms: int
    ends_ms: int
    every_ms: int | None = None
    matcher: dict[str, str] = {}
    incident_id: str | None = None
    author: str = ""
    comment: str = ""


def actions_of(
    incidents: Iterable[Incident], allowed: ActionsSpec, deliveries: Iterable[Delivery]
) -> Iterator[ActionRow]:
    """The actions of a model's incidents, in the order of these. ``deliveries`` come newest first."""
    ended: dict[tuple[str, str], Delivery] = {}
    for delivery in deliveries:
        ended.setdefault((delivery.incident_id, delivery.action), delivery)
    for incident in incidents:
        for name in ACTIONS:
            row = _action(incident, name, allowed, ended.get((incident.id, name)))
            if row is not None:
                yield row


def _action(
    incident: Incident, name: ActionName, allowed: ActionsSpec, ended: Delivery | None
) -> ActionRow | None:
    said = [entry for entry in incident.timeline if entry.what.startswith(f"{name} ")]
    if incident.advice == name:
        orders = ("approve by ", "reject by ")
        said = [x for x in incident.timeline if x in said or x.what.startswith(orders)]
    elif not said and ended is None:
        return None
    row = ActionRow(
        incident.id,
        incident.model,
        incident.version,
        name,
        "done" if ended else _state(incident, name, allowed, [entry.what for entry in said]),
        incident.opened_ms,
        said,
    )
    if ended is None:
        return row
    told = {"outcome": ended.outcome, "attempts": ended.attempts, "at_ms": ended.at_ms}
    return msgspec.structs.replace(row, **told)


def _state(
    incident: Incident, name: ActionName, allowed: ActionsSpec, said: list[str]
) -> ActionState:
    rule = allowed.of(name)
    if any(line.startswith(f"{name} asked for") for line in said):
        return "asked"
    if any(line.startswith("reject by ") for line in said):
        return "rejected"
    if incident.state != "firing":
        return "over"
    if rule is None:
        return "not_allowed"
    approved = any(line.startswith("approve by ") for line in said)
    waits = rule.approval == "manual" and not rule.dry_run and not approved
    return "waiting_for_approval" if waits else "held"


def silences_of_spec(
    model: str, silences: Iterable[SilenceSpec], now_ms: int
) -> Iterator[SilenceRow]:
    """The silences of a model's spec; ``now_ms`` is event time."""
    for silence in silences:
        matcher = silence.model_dump(include=set(Matcher.model_fields), exclude_none=True)
        yield SilenceRow(
            model,
            "spec",
            silence.holds(now_ms),
            round(silence.starts.timestamp() * 1_000),
            round(silence.ends.timestamp() * 1_000),
            silence.every,
            matcher,
            author=silence.author,
            comment=silence.comment,
        )


def silence_of_incident(incident: Incident, now_ms: int) -> SilenceRow | None:
    """The silence that somebody has ordered of an incident that is open; ``now_ms`` is event time."""
    until_ms = incident.silenced_until_ms
    if until_ms is None or incident.state != "firing":
        return None
    orders = [entry for entry in incident.timeline if entry.what.startswith("silence by ")]
    at_ms, what = (orders[-1].at_ms, orders[-1].what) if orders else (incident.opened_ms, "")
    author, _, comment = what.removeprefix("silence by ").partition(": ")
    return SilenceRow(
        incident.model,
        "order",
        now_ms < until_ms,
        at_ms,
        until_ms,
        incident_id=incident.id,
        author=author,
        comment=comment,
    )
