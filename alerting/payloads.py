"""How each receiver of notifications is told of an incident: an outbox item and its target become one message, without any I/O.

Bodies are a function of the item and of when it was asked for, so a retry carries the same bytes; only a signature's timestamp and the
end of an alert in Alertmanager are of the attempt. Names of features, segments and versions come from outside: they are escaped, or stand where nothing
is markup, and are cut to the receiver's limits.

Sources: Slack Block Kit reference, PagerDuty Events API v2, Alertmanager API v2 (``docs/alerts_api.md``), Adaptive Cards 1.4, RFC 5322.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, assert_never

import msgspec

from alerting.diagnosis import explain
from alerting.notify import ActionDecision, ActionHistory, decide_action
from alerting.requests import Mail, Request, Resolve, bearer, json_request, rfc3339, signed_webhook
from monitor.approvals import Links
from monitor.spec import MAX_MIN_WINDOWS, ModelSpec
from monitor.targets import (
    ACTIONS,
    AlertmanagerTarget,
    EmailTarget,
    NotifyTarget,
    PagerDutyTarget,
    SlackTarget,
    TeamsTarget,
    WebhookTarget,
)
from monitor.wire import Evidence, Incident, OutboxItem

ALERT_LASTS_S: Final = 300  # in Alertmanager, unless it is sent again: its own resolve_timeout
_TEAMS_TEXT: Final = 1_000  # of any one text: a message has at most 28 KB
_SLACK_HEADER: Final = 150
_SLACK_SECTION: Final = 3_000
_SLACK_LINES: Final = 5  # of evidence: a message is read on a phone
_PD_SUMMARY: Final = 1_024
_PD_LINES: Final = 20
_SUBJECT: Final = 200
_DECIDE: Final = "Approve or reject"
_LOOK: Final = "Open in Driftline"
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS: Final = {"critical": "🔴", "error": "🟠", "warning": "🟡", "info": "🔵"}


def notification(
    item: OutboxItem,
    target: NotifyTarget,
    resolve: Resolve,
    *,
    at_s: int,
    link: str = "",
    public_url: str = "",
) -> Request | Mail:
    """What tells ``target`` of ``item``; ``at_s`` is the Unix time of this attempt, ``link`` that of ``approval_link``, ``public_url`` as in ``page_of``.

    Raises:
        ValueError: a webhook secret that claims to be base64 (``whsec_``) is not, or a token cannot be sent. Neither is quoted.
    """
    page = page_of(item.incident, public_url)
    match target.chosen:
        case SlackTarget(url=url):
            return json_request(resolve(url), slack_message(item, link, page), item.id)
        case TeamsTarget(url=url):
            return json_request(resolve(url), teams_message(item, link, page), item.id)
        case PagerDutyTarget(url=url, routing_key=key):
            event = pagerduty_event(item, resolve(key), link, page)
            return json_request(resolve(url), event, item.id)
        case AlertmanagerTarget() as chosen:
            told = [item.incident]
            return alerts_request(told, chosen, resolve, at_s=at_s, public_url=public_url)
        case EmailTarget(to=to):
            return mail(item, to, link, page)
        case WebhookTarget() as chosen:
            return signed_webhook(item, chosen, resolve, at_s, link, page)
        case _:
            assert_never(target.chosen)


def approval_link(item: OutboxItem, spec: ModelSpec, links: Links | None, asked_s: float) -> str:
    """Where a reader lets the advised action go, or declines it; ``""`` where nothing waits for that.

    ``asked_s`` is when the item was asked for: it is the item's own, so that a retry carries the same link.
    """
    if links is None or item.action != "notify" or item.transition == "escalated":
        return ""  # what escalates was asked for, and did not help
    alone = ActionHistory(
        now_ms=0, acted=(), open_ids=(), quality_open=False, windows=MAX_MIN_WINDOWS
    )
    for name in ACTIONS:
        decision = decide_action(name, spec.actions.of(name), item.incident, alone)
        if decision is ActionDecision.NEEDS_APPROVAL:
            return links.to(item.incident.id, name, asked_s)
    return ""


def page_of(incident: Incident, public_url: str) -> str:
    """Where the page shows an incident, for good; ``""`` where nobody has said where people reach it."""
    return f"{public_url}/#/incidents/{incident.id}" if public_url else ""


def slack_message(item: OutboxItem, link: str = "", page: str = "") -> dict[str, Any]:
    """Body for a Slack incoming webhook: what happened, what to do, the evidence, in that order."""
    incident = item.incident
    head = f"{_state_word(item)}: {incident.title}"
    lines = _lines(item, _SLACK_LINES)
    fields = [
        {"type": "mrkdwn", "text": f"*{name}*\n{escaped(value, 1_900)}"}
        for name, value in _facts(incident).items()
    ]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": escaped(head, _SLACK_HEADER)}},
        {"type": "section", "text": _mrkdwn(f"{incident.title}\n{_reason(item)}")},
        {"type": "section", "fields": fields},
    ]
    if lines:
        blocks.append({"type": "section", "text": _mrkdwn("\n".join(lines))})
    if link:  # not a button: of those Slack expects that we listen to what is pressed
        text = {"type": "mrkdwn", "text": f"<{link}|{_DECIDE}>"}
        blocks.append({"type": "section", "text": text})
    name = _mrkdwn(f"incident {incident.id}")
    if page:
        name = {"type": "mrkdwn", "text": f"<{page}|{_LOOK}> · {name['text']}"}
    blocks.append({"type": "context", "elements": [name]})
    return {"text": escaped(head, _SLACK_SECTION), "blocks": blocks}


def pagerduty_event(
    item: OutboxItem, routing_key: str, link: str = "", page: str = ""
) -> dict[str, Any]:
    """Body for Events API v2. The incident is the ``dedup_key``: a changed cause updates the alert, the end resolves it."""
    incident = item.incident
    event: dict[str, Any] = {"routing_key": routing_key, "dedup_key": incident.id}
    if item.transition in ("resolved", "acknowledged"):
        action = "resolve" if item.transition == "resolved" else "acknowledge"
        return {**event, "event_action": action}
    return {
        **event,
        "event_action": "trigger",
        "client": "Driftline",
        **({"client_url": page} if page else {}),
        **({"links": [{"href": link, "text": _DECIDE}]} if link else {}),
        "payload": {
            "summary": _cut(incident.title, _PD_SUMMARY),
            "source": incident.model,
            "severity": incident.severity,
            "timestamp": rfc3339(incident.onset_ms),
            "component": incident.version,
            "group": incident.model,
            "class": incident.cause,
            "custom_details": {
                "reason": _reason(item),
                "advice": advice_of(incident),
                "evidence": [f"{_place(e)} {explain(e)}" for e in incident.evidence[:_PD_LINES]],
                "notification": item.id,
            },
        },
    }


def alerts_request(
    incidents: Sequence[Incident],
    target: AlertmanagerTarget,
    resolve: Resolve,
    *,
    at_s: int,
    public_url: str = "",
) -> Request:
    """Incidents as alerts of Alertmanager: what fires lasts ``ALERT_LASTS_S`` from now, what is resolved ends now."""
    url = f"{resolve(target.url).rstrip('/')}/api/v2/alerts"
    headers = {"content-type": "application/json", **bearer(target.token, resolve)}
    body = msgspec.json.encode(
        [alert(incident, at_s, page_of(incident, public_url)) for incident in incidents]
    )
    return Request(url, headers, body)


def alert(incident: Incident, at_s: int, page: str = "") -> dict[str, Any]:
    """One alert. Its labels are its identity there, so the cause, which may become known later, is an annotation.

    The severity is a label, since routes are chosen by it: where it changes, the old alert ends by itself.
    """
    ends_s = at_s if incident.state == "resolved" else at_s + ALERT_LASTS_S
    return {
        "labels": {
            "alertname": "DriftlineIncident",
            "incident": incident.id,
            "model": incident.model,
            "version": incident.version,
            "severity": incident.severity,
        },
        "annotations": {
            "summary": incident.title,
            "description": incident.reason,
            "cause": incident.cause,
            "advice": advice_of(incident),
            "evidence": "\n".join(f"{_place(e)} {explain(e)}" for e in incident.evidence),
        },
        **({"generatorURL": page} if page else {}),
        # Event time may be ahead of this clock, and an alert that ends before it starts is refused.
        "startsAt": rfc3339(min(incident.onset_ms, at_s * 1_000)),
        "endsAt": rfc3339(ends_s * 1_000),
    }


def teams_message(item: OutboxItem, link: str = "", page: str = "") -> dict[str, Any]:
    """Body for a Teams workflow: an adaptive card. Names from outside stand in text runs, where nothing is markup."""
    incident = item.incident
    body: list[dict[str, Any]] = [
        _run(f"{_state_word(item)}: {incident.title}", weight="Bolder", size="Medium"),
        _run(_reason(item)),
        {"type": "Container", "items": [_fact(*fact) for fact in _facts(incident).items()]},
        *(_run(line) for line in _lines(item, _SLACK_LINES)),
        _run(f"incident {incident.id}", size="Small", isSubtle=True),
    ]
    places = {_LOOK: page, _DECIDE: link}
    actions = [
        {"type": "Action.OpenUrl", "title": title, "url": url}
        for title, url in places.items()
        if url
    ]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
        **({"actions": actions} if actions else {}),
    }
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": card,
    }
    return {"type": "message", "attachments": [attachment]}


def mail(item: OutboxItem, to: tuple[str, ...], link: str = "", page: str = "") -> Mail:
    """A mail of plain text; the mails of one incident are one thread."""
    incident = item.incident
    head = f"{_state_word(item)}: {incident.title}"
    text = [_reason(item), ""]
    text += [f"{name + ':':<10}{value}" for name, value in _facts(incident).items()]
    text += ["", f"{_LOOK}: {page}"] if page else []
    text += ["", f"{_DECIDE}: {link}"] if link else []
    lines = _lines(item, _PD_LINES)
    text += ["", "Evidence", *lines] if lines else []
    timeline = [f"{_clock(entry.at_ms)}  {entry.what}" for entry in incident.timeline]
    text += ["", "Timeline", *timeline] if timeline else []
    text += ["", f"incident {incident.id}"]
    subject = " ".join(head.split())  # a title cannot begin a header of its own
    return Mail(item.id, incident.id, to, _cut(subject, _SUBJECT), "\n".join(text) + "\n")


def escaped(text: str, limit: int) -> str:
    """``text`` for Slack: ``&``, ``<`` and ``>`` as entities, cut so that the result has at most ``limit`` characters."""
    whole = "".join(_ESCAPES.get(letter, letter) for letter in text)
    if len(whole) <= limit:
        return whole
    kept, room = [], limit - 1
    for letter in text:
        piece = _ESCAPES.get(letter, letter)
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def _facts(incident: Incident) -> dict[str, str]:
    facts = {
        "Cause": incident.cause.replace("_", " "),
        "Advice": advice_of(incident),
        "Since": _clock(incident.onset_ms),
        "Found": _clock(incident.opened_ms),
    }
    if incident.reopened_ms is not None:
        facts["Again"] = _clock(incident.reopened_ms)
    if incident.resolved_ms is not None:
        facts["Resolved"] = _clock(incident.resolved_ms)
    return facts


def _reason(item: OutboxItem) -> str:
    timeline = item.incident.timeline
    if item.transition == "escalated" and timeline:
        return f"{timeline[-1].what[:1].upper()}{timeline[-1].what[1:]}. {item.incident.reason}"
    return item.incident.reason


def _lines(item: OutboxItem, most: int) -> list[str]:
    """The evidence while it is news."""
    if item.transition == "resolved":
        return []
    evidence = item.incident.evidence
    lines = [f"• {_place(e)} {explain(e)}" for e in evidence[:most]]
    return [*lines, f"… and {len(evidence) - most} more"] if len(evidence) > most else lines


def _run(text: str, **style: Any) -> dict[str, Any]:
    run = {"type": "TextRun", "text": _cut(text, _TEAMS_TEXT), **style}
    return {"type": "RichTextBlock", "inlines": [run]}


def _fact(name: str, value: str) -> dict[str, Any]:
    runs = [
        {"type": "TextRun", "text": f"{name}  ", "weight": "Bolder"},
        {"type": "TextRun", "text": _cut(value, _TEAMS_TEXT)},
    ]
    return {"type": "RichTextBlock", "inlines": runs, "spacing": "None"}


def _state_word(item: OutboxItem) -> str:
    match item.transition:
        case "fired" | "action":
            return f"{_MARKS[item.incident.severity]} Firing"
        case "changed":
            return f"{_MARKS[item.incident.severity]} Now known"
        case "acknowledged":
            return "👀 Acknowledged"
        case "escalated":
            return f"{_MARKS[item.incident.severity]} Still broken"
        case "resolved":
            return "✅ Resolved"
        case _:
            assert_never(item.transition)


def advice_of(incident: Incident) -> str:
    """What to do, for people."""
    advice = incident.advice.replace("_", " ")
    if incident.advice == "rollback" and incident.rollback_to is not None:
        return f"roll back to version {incident.rollback_to}"
    return f"{advice} (retrain blocked)" if incident.retrain_blocked else advice


def _place(evidence: Evidence) -> str:
    where = f" at {evidence.segment}" if evidence.segment else ""
    return f"{evidence.feature or evidence.kind} ({evidence.version}{where}):"


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": escaped(text, _SLACK_SECTION)}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
