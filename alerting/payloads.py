"""What each receiver is sent: an outbox item and its target become one HTTP request, without any I/O.

Bodies are a function of the item alone, so a retry carries the same bytes; only the signature's timestamp is of the
attempt. Names of features, segments and versions come from outside: they are escaped and cut to the receiver's limits.

Sources: Slack Block Kit reference, PagerDuty Events API v2, Standard Webhooks 1.0.0, CloudEvents 1.0.2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, assert_never

import msgspec

from alerting.diagnosis import describe
from monitor.spec import NotifyTarget, WebhookTarget
from monitor.wire import Evidence, Incident, OutboxItem

Resolve: TypeAlias = Callable[[str], str]
"""Gives the text of an ``env:`` or ``file:`` reference, and a plain address as it is."""

MAX_WEBHOOK_BYTES: Final = 20_000  # Standard Webhooks: receivers may refuse more
_SLACK_HEADER: Final = 150
_SLACK_SECTION: Final = 3_000
_SLACK_LINES: Final = 5  # of evidence: a message is read on a phone
_PD_SUMMARY: Final = 1_024
_PD_LINES: Final = 20
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS: Final = {"critical": "🔴", "error": "🟠", "warning": "🟡", "info": "🔵"}


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. The address, a header or the body may hold a secret, so none of them is in the ``repr``."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def build(
    item: OutboxItem, target: NotifyTarget | WebhookTarget, resolve: Resolve, *, at_s: int
) -> Request:
    """The request that delivers ``item`` to ``target``; ``at_s`` is the Unix time of this attempt.

    Raises:
        ValueError: a webhook secret that claims to be base64 (``whsec_``) is not. The secret is not quoted.
    """
    if isinstance(target, WebhookTarget):
        return _webhook(item, target, resolve, at_s)
    if target.slack is not None:
        return _json_request(resolve(target.slack.url), slack_message(item), item.id)
    if target.pagerduty is not None:
        event = pagerduty_event(item, resolve(target.pagerduty.routing_key))
        return _json_request(resolve(target.pagerduty.url), event, item.id)
    if target.webhook is not None:
        return _webhook(item, target.webhook, resolve, at_s)
    raise AssertionError("a notify target has exactly one kind")


def slack_message(item: OutboxItem) -> dict[str, Any]:
    """Body for a Slack incoming webhook: what happened, what to do, the evidence, in that order."""
    incident = item.incident
    head = f"{_state_word(item)}: {incident.title}"
    facts = {
        "Cause": incident.cause.replace("_", " "),
        "Advice": _advice(incident),
        "Since": _clock(incident.onset_ms),
        "Found": _clock(incident.opened_ms),
    }
    if incident.resolved_ms is not None:
        facts["Resolved"] = _clock(incident.resolved_ms)
    lines = [f"• {_place(e)} {describe(e)}" for e in incident.evidence[:_SLACK_LINES]]
    more = len(incident.evidence) - _SLACK_LINES
    lines += [f"… and {more} more"] if more > 0 else []
    fields = [
        {"type": "mrkdwn", "text": f"*{name}*\n{escaped(value, 1_900)}"}
        for name, value in facts.items()
    ]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": escaped(head, _SLACK_HEADER)}},
        {"type": "section", "text": _mrkdwn(f"{incident.title}\n{incident.reason}")},
        {"type": "section", "fields": fields},
    ]
    if lines and item.transition != "resolved":
        blocks.append({"type": "section", "text": _mrkdwn("\n".join(lines))})
    blocks.append({"type": "context", "elements": [_mrkdwn(f"incident {incident.id}")]})
    return {"text": escaped(head, _SLACK_SECTION), "blocks": blocks}


def pagerduty_event(item: OutboxItem, routing_key: str) -> dict[str, Any]:
    """Body for Events API v2. The incident is the ``dedup_key``: a changed cause updates the alert, the end resolves it."""
    incident = item.incident
    event: dict[str, Any] = {"routing_key": routing_key, "dedup_key": incident.id}
    if item.transition == "resolved":
        return {**event, "event_action": "resolve"}
    return {
        **event,
        "event_action": "trigger",
        "client": "Driftline",
        "payload": {
            "summary": _cut(incident.title, _PD_SUMMARY),
            "source": incident.model,
            "severity": incident.severity,
            "timestamp": _rfc3339(incident.onset_ms),
            "component": incident.version,
            "group": incident.model,
            "class": incident.cause,
            "custom_details": {
                "reason": incident.reason,
                "advice": _advice(incident),
                "evidence": [f"{_place(e)} {describe(e)}" for e in incident.evidence[:_PD_LINES]],
                "notification": item.id,
            },
        },
    }


def cloud_event(item: OutboxItem) -> bytes:
    """A structured-mode CloudEvent below ``MAX_WEBHOOK_BYTES``: evidence and timeline are shortened until it fits."""
    incident = item.incident
    acts = item.action != "notify"
    kind = f"action.{item.action}.requested" if acts else f"incident.{item.transition}"
    kept = max(len(incident.evidence), len(incident.timeline))
    while True:
        shown = msgspec.structs.replace(
            incident,
            evidence=incident.evidence[:kept],
            timeline=incident.timeline[-kept:] if kept else [],
        )
        body = msgspec.json.encode(
            {
                "specversion": "1.0",
                "id": item.id,
                "type": f"dev.driftline.{kind}.v1",
                "source": f"/driftline/models/{incident.model}",
                "subject": f"{incident.model}/{incident.version}",
                "time": _rfc3339(incident.updated_ms),
                "datacontenttype": "application/json",
                "data": {"action": item.action, "incident": msgspec.to_builtins(shown)},
            }
        )
        if len(body) < MAX_WEBHOOK_BYTES or kept == 0:
            return body
        kept //= 2


def sign(secret: str, webhook_id: str, at_s: int, body: bytes) -> str:
    """The ``webhook-signature`` of Standard Webhooks: ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``.

    Several secrets separated by spaces, for a rotation, give several signatures.

    Raises:
        ValueError: a ``whsec_`` secret is not base64.
    """
    content = f"{webhook_id}.{at_s}.".encode() + body
    digests = (hmac.digest(_key(part), content, hashlib.sha256) for part in secret.split())
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


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


def _webhook(item: OutboxItem, target: WebhookTarget, resolve: Resolve, at_s: int) -> Request:
    body = cloud_event(item)
    headers = {
        "content-type": "application/cloudevents+json",
        "webhook-id": item.id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": sign(resolve(target.secret), item.id, at_s, body),
    }
    return Request(resolve(target.url), headers, body)


def _json_request(url: str, body: Mapping[str, Any], webhook_id: str) -> Request:
    headers = {"content-type": "application/json", "webhook-id": webhook_id}
    return Request(url, headers, msgspec.json.encode(body))


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ValueError("the webhook secret starts with whsec_ but is not base64") from None


def _state_word(item: OutboxItem) -> str:
    match item.transition:
        case "fired" | "action":
            return f"{_MARKS[item.incident.severity]} Firing"
        case "changed":
            return f"{_MARKS[item.incident.severity]} Now known"
        case "resolved":
            return "✅ Resolved"
        case _:
            assert_never(item.transition)


def _advice(incident: Incident) -> str:
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


def _rfc3339(at_ms: int) -> str:
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
