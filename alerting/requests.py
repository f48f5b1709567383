"""One attempt's message: an HTTP request or a mail, and how an outbox item becomes a signed CloudEvent. Without any I/O.

Sources: Standard Webhooks 1.0.0, CloudEvents 1.0.2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from monitor.targets import WebhookTarget
from monitor.wire import OutboxItem

Resolve: TypeAlias = Callable[[str], str]
"""Gives the text of an ``env:`` or ``file:`` reference, and a plain address as it is."""

MAX_WEBHOOK_BYTES: Final = 20_000  # Standard Webhooks: receivers may refuse more


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. The address, a header or the body may hold a secret, so none of them is in the ``repr``.

    Attributes:
        url: absolute.
        headers: names in lower case.
        body: bytes.
        method: of HTTP.
        done: statuses beside 2xx that say that an earlier attempt was taken.
        repeatable: whether the receiver tells a repeat from a second request. Where it does not, a request that may have been
            taken is not sent again.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    done: frozenset[int] = frozenset()
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail; the sender's own address and the server are settings.

    Attributes:
        id: of this mail, the same over retries.
        thread: of the incident: what mail programs show together.
        to: addresses.
        subject: one line.
        text: the body.
    """

    id: str
    thread: str
    to: tuple[str, ...] = field(repr=False)
    subject: str
    text: str = field(repr=False)


def cloud_event(item: OutboxItem, link: str = "", page: str = "") -> bytes:
    """A structured-mode CloudEvent below ``MAX_WEBHOOK_BYTES``: evidence and timeline are shortened until it fits.

    ``link`` is where a person approves what the incident advises, if somebody has to; ``page`` is where people see the incident.
    """
    incident = item.incident
    acts = item.action != "notify"
    kind = f"action.{item.action}.requested" if acts else f"incident.{item.transition}"
    places = {"page_url": page, "approve_url": link}
    places = {name: url for name, url in places.items() if url}
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
                "time": rfc3339(incident.updated_ms),
                "datacontenttype": "application/json",
                "data": {"action": item.action, "incident": msgspec.to_builtins(shown), **places},
            }
        )
        if len(body) < MAX_WEBHOOK_BYTES or kept == 0:
            return body
        kept //= 2


def signed_webhook(
    item: OutboxItem,
    target: WebhookTarget,
    resolve: Resolve,
    at_s: int,
    link: str = "",
    page: str = "",
) -> Request:
    """The item as a signed CloudEvent.

    Raises:
        ValueError: the secret claims to be base64 (``whsec_``) and is not. It is not quoted.
    """
    body = cloud_event(item, link, page)
    headers = {
        "content-type": "application/cloudevents+json",
        "webhook-id": item.id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": sign(resolve(target.secret), item.id, at_s, body),
    }
    return Request(resolve(target.url), headers, body)


def json_request(url: str, body: Mapping[str, Any], webhook_id: str) -> Request:
    """A POST of JSON."""
    headers = {"content-type": "application/json", "webhook-id": webhook_id}
    return Request(url, headers, msgspec.json.encode(body))


def bearer(token: str | None, resolve: Resolve) -> dict[str, str]:
    """The header of a token behind a reference; none without one.

    Raises:
        ValueError: as of ``headed``.
    """
    return {} if token is None else headed({"authorization": f"Bearer {resolve(token)}"})


def headed(headers: dict[str, str]) -> dict[str, str]:
    """Headers as they are.

    Raises:
        ValueError: one of them cannot be sent: it is not one line of ASCII. It is not quoted.
    """
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the {name} header is not one line of ASCII")
    return headers


def sign(secret: str, webhook_id: str, at_s: int, body: bytes) -> str:
    """The ``webhook-signature`` of Standard Webhooks: ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``.

    Several secrets separated by spaces, for a rotation, give several signatures.

    Raises:
        ValueError: a ``whsec_`` secret is not base64.
    """
    content = f"{webhook_id}.{at_s}.".encode() + body
    digests = (hmac.digest(_key(part), content, hashlib.sha256) for part in secret.split())
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ValueError("the webhook secret starts with whsec_ but is not base64") from None


def rfc3339(at_ms: int) -> str:
    """Milliseconds since the epoch as ``2026-03-01T00:00:00.000Z``."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
