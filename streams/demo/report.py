"""What the demo found, against what was staged: a value that becomes JSON, a closing table, and the test's oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from monitor.ledger import Ledger
from monitor.wire import Cause, Delivery, Incident
from streams.demo.receiver import Received
from streams.demo.replay import BAD_RELEASE, WIND_FAULT, Accident

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
_MONTH: Final = len("2013-05")
# What makes an incident the answer to an accident: its cause, and the feature that must stand in its evidence.
_ANSWERS: Final[dict[Accident, tuple[Cause, str]]] = {
    WIND_FAULT: ("pipeline_fault", "wind_speed"),
    BAD_RELEASE: ("bad_release", "hour"),
}
STAGED: Final = tuple(_ANSWERS)


class Found(msgspec.Struct, frozen=True):
    """A staged accident and the incident that answers it; the times are event time."""

    what: str
    onset: str
    incident: str | None
    estimated_onset: str | None
    opened: str | None
    delay_h: float | None
    advice: str | None

    @property
    def in_time(self) -> bool:
        """Found within one event-day of its onset."""
        return self.delay_h is not None and 0 <= self.delay_h <= 24


class Hook(msgspec.Struct, frozen=True):
    """What one receiver got. ``repeats`` counts requests under an idempotency key that it had seen."""

    receiver: str
    accepted: int
    refused: int
    repeats: int


class Report(msgspec.Struct, frozen=True):
    """The outcome of a demo run. ``problems`` is empty when all is as it should be."""

    events_in: int
    events_accounted: int
    unaccounted: int
    late: int
    dead: int
    labels_expected: int
    labels_joined: int
    windows: int
    accidents: list[Found]
    incidents: list[dict[str, Any]]
    webhooks: list[Hook]
    deliveries: dict[str, int]
    seconds: float
    problems: list[str]


def build(
    *,
    expected: int,
    sent: int,
    labels_sent: int,
    labels_joined: int,
    windows: int,
    ledger: Ledger,
    incidents: Sequence[Incident],
    received: Sequence[Received],
    deliveries: Sequence[Delivery],
    staged: Sequence[Accident],
    seconds: float,
) -> Report:
    """Compare what came out with what went in."""
    total = ledger.total
    accidents = [_found(accident, incidents) for accident in staged]
    hooks = _hooks(received)
    outcomes = Counter[str](delivery.outcome for delivery in deliveries)
    accepted = {hook.receiver for hook in hooks if hook.accepted}
    problems = [
        *_unless(sent == expected, f"{expected - sent} events were not sent"),
        *_unless(total.events == sent, f"{sent - total.events} events are not in the ledger"),
        *_unless(total.unaccounted == 0, f"{total.unaccounted} events are unaccounted for"),
        *_unless(
            labels_joined == labels_sent, f"{labels_sent - labels_joined} labels are not joined"
        ),
        *_unless(windows > 0, "no window was closed"),
        *(f"{f.what}: not found within an event-day" for f in accidents if not f.in_time),
        *_seasons(accidents, incidents),
        *(f"{n} deliveries ended as {o}" for o, n in outcomes.items() if o != "delivered"),
        *(
            f"{target} got nothing, though there were incidents"
            for target in ("slack", "pagerduty")
            if incidents and target not in accepted
        ),
        *(f"{h.receiver} refused {h.refused} requests" for h in hooks if h.refused),
        *(f"{h.receiver} got {h.repeats} requests again" for h in hooks if h.repeats),
    ]
    return Report(
        events_in=sent,
        events_accounted=total.accounted,
        unaccounted=total.unaccounted,
        late=total.late,
        dead=total.dead,
        labels_expected=labels_sent,
        labels_joined=labels_joined,
        windows=windows,
        accidents=accidents,
        incidents=[_row(incident) for incident in sorted(incidents, key=lambda i: i.opened_ms)],
        webhooks=hooks,
        deliveries=dict(outcomes),
        seconds=round(seconds, 1),
        problems=problems,
    )


def utc(at_ms: int | None) -> str | None:
    """Event time to the minute, for people."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")


def answer_to(accident: Accident, incidents: Iterable[Incident]) -> Incident | None:
    """The first incident of the right cause, with the right feature, that opened after the accident began and before it was history."""
    cause, feature = _ANSWERS[accident]
    matching = [
        incident
        for incident in incidents
        if incident.cause == cause
        and accident.from_ms <= incident.opened_ms <= accident.to_ms + DAY_MS
        and any(line.feature == feature for line in incident.evidence)
    ]
    return min(matching, key=lambda incident: incident.opened_ms, default=None)


def _found(accident: Accident, incidents: Iterable[Incident]) -> Found:
    incident = answer_to(accident, incidents)
    onset = utc(accident.from_ms) or ""
    if incident is None:
        return Found(accident.cause, onset, None, None, None, None, None)
    return Found(
        what=accident.cause,
        onset=onset,
        incident=incident.id,
        estimated_onset=utc(incident.onset_ms),
        opened=utc(incident.opened_ms),
        delay_h=round((incident.opened_ms - accident.from_ms) / HOUR_MS, 2),
        advice=incident.advice,
    )


def _seasons(accidents: Iterable[Found], incidents: Sequence[Incident]) -> list[str]:
    """What the seasons must not do, and every incident is theirs that answers no accident: come twice a month, or end unexplained.

    A drift is over when its labels have come, so then they have said whether it hurt. How the model is served is no question for labels.
    """
    answers = {found.incident for found in accidents}
    others = [incident for incident in incidents if incident.id not in answers]
    months = Counter((utc(incident.opened_ms) or "")[:_MONTH] for incident in others)
    unexplained = [
        incident
        for incident in others
        if incident.cause == "unknown"
        and incident.state == "resolved"
        and any(line.kind != "service" for line in incident.evidence)
    ]
    return [
        *(
            f"{n} incidents opened in {m} beside the staged ones"
            for m, n in months.items()
            if n > 1
        ),
        *(f"ended with its cause unknown: {incident.title}" for incident in unexplained),
    ]


def _row(incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.id,
        "version": incident.version,
        "cause": incident.cause,
        "advice": incident.advice,
        "rollback_to": incident.rollback_to,
        "retrain_blocked": incident.retrain_blocked,
        "state": incident.state,
        "title": incident.title,
        "onset": utc(incident.onset_ms),
        "opened": utc(incident.opened_ms),
        "resolved": utc(incident.resolved_ms),
    }


def _hooks(received: Sequence[Received]) -> list[Hook]:
    paths = sorted({request.path for request in received})
    return [
        Hook(
            receiver=path.strip("/"),
            accepted=sum(r.path == path and r.problem is None for r in received),
            refused=sum(r.path == path and r.problem is not None for r in received),
            repeats=sum(r.repeats for r in received if r.path == path),
        )
        for path in paths
    ]


def _unless(holds: bool, problem: str) -> list[str]:
    return [] if holds else [problem]
