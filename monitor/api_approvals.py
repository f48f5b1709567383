"""The page behind a signed link: what would be done, and two buttons.

A GET changes nothing: mail scanners and chat previews follow every link. Only the page's own form gives an order, and the token travels
in its body. The page has no script, and its answers are pages, too: who opens it is a person in a hurry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Annotated, Final, assert_never
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Response

from monitor import approvals
from monitor.api_orders import Desk, body_of, given, in_http, same_site_check
from monitor.approvals import Approval, Refusal
from monitor.errors import TransientError
from monitor.orders import Kind, order
from monitor.spec import ActionsSpec
from monitor.store import Store
from monitor.wire import Incident

REMARK: Final = " (by signed link)"
Form = Annotated[bytes, Depends(body_of("application/x-www-form-urlencoded"))]
_MAX_NAME: Final = 100
_KINDS: Final[Mapping[str, Kind]] = {"approve": "approve", "reject": "reject"}
_TITLES: Final = {
    403: "This link is not valid",
    404: "Not there yet",
    409: "There is nothing to decide",
    410: "This link has expired",
    422: "Something is missing",
    503: "Try again in a moment",
}


def approval_routes(store: Store, desk: Desk, public_url: str) -> APIRouter:
    """The page and its form. They need no key: the token is one, for one action of one incident."""
    router = APIRouter(include_in_schema=False)
    # Our Referrer-Policy makes the form's origin "null" where there is no Sec-Fetch-Site; the token is what counts.
    same_site = Depends(same_site_check(public_url, or_null=True))

    @router.get(approvals.PATH)
    def look(token: str = "") -> Response:
        return _told(lambda: _asking(store, desk, token))

    @router.post(approvals.PATH, dependencies=[same_site])
    def decide(body: Form) -> Response:
        return _told(lambda: _decided(store, desk, _fields(body)))

    return router


def _asking(store: Store, desk: Desk, token: str) -> Response:
    """The question, where it can still be decided."""
    now_ms = desk.clock_ms()
    incident = _incident_of(store, desk, token, now_ms)
    with in_http():  # for its refusals: it is not given
        order("approve", incident, author=REMARK, at_ms=now_ms)
    if incident.advice != "rollback":
        return _page(200, "Retrain?", _form(incident, token))
    return _page(200, "Roll back?", _form(incident, token, _back_to(store, incident)))


def _back_to(store: Store, incident: Incident) -> str | None:
    """The version that a rollback goes to: the one that the spec names, or else the incident's."""
    specs = [row.spec for row in store.models(incident.model)]
    rules = [ActionsSpec.model_validate(spec.get("actions", {})).rollback for spec in specs]
    return next((rule.to for rule in rules if rule is not None and rule.to), incident.rollback_to)


def _decided(store: Store, desk: Desk, fields: Mapping[str, str]) -> Response:
    now_ms = desk.clock_ms()
    incident = _incident_of(store, desk, fields.get("token", ""), now_ms)
    kind, name = _KINDS.get(fields.get("decision", "")), fields.get("name", "").strip()
    if kind is None or not name or len(name) > _MAX_NAME:
        raise HTTPException(422, "Go back, say who you are, and choose a button.")
    with in_http():
        command = order(kind, incident, author=name + REMARK, at_ms=now_ms)
    given(desk, command)
    more = " Cooldown, daily cap and clean data are still required." if kind == "approve" else ""
    said = f"<p>The detector decides.{more} The incident's timeline tells what came of it.</p>"
    return _page(202, f"Asked for: {kind}", said)


def _incident_of(store: Store, desk: Desk, token: str, now_ms: int) -> Incident:
    """The incident of a token that is good for what its advice is now.

    Raises:
        HTTPException: 403, 404, 409 or 410.
    """
    found = approvals.read(token, desk.secret, now_s=now_ms / 1_000)
    match found:
        case Refusal.FORGED:
            raise HTTPException(403, "It was cut or changed on its way, or is not ours.")
        case Refusal.EXPIRED:
            raise HTTPException(410, "`driftline incident approve` still works.")
        case Approval(incident_id, action, _):
            incident = store.incident(incident_id)
        case _:
            assert_never(found)
    if incident is None:
        raise HTTPException(404, "The incident is not stored yet: try again in a minute.")
    if incident.state == "firing" and incident.advice != action:
        advice = incident.advice.replace("_", " ")
        raise HTTPException(409, f"This link is to {action}, and by now the advice is: {advice}.")
    return incident


def _told(answer: Callable[[], Response]) -> Response:
    """The answer, or a page that says why there is none."""
    try:
        return answer()
    except HTTPException as err:
        status, detail = err.status_code, str(err.detail)
    except TransientError:
        status, detail = 503, "The database does not answer. Nothing was asked for."
    return _page(status, _TITLES[status], f"<p>{escape(detail)}</p>")


def _fields(body: bytes) -> dict[str, str]:
    try:
        parsed = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        return {}
    return {name: values[0] for name, values in parsed.items()}


def _form(incident: Incident, token: str, back_to: str | None = None) -> str:
    facts = {
        "Action": incident.advice,
        "Model": incident.model,
        "Version": incident.version,
        "Back to version": back_to,
        "Incident": incident.title,
        "Because": incident.reason,
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="text">{escape(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    held = incident.advice == "retrain" and incident.retrain_blocked
    hint = "<p>The data are broken: it goes out once they are clean.</p>" if held else ""
    # The first button is the one that Enter in the field presses: it is none, so that nobody approves by that.
    return (
        f'<table>{rows}</table>{hint}<form method="post" action="{approvals.PATH.lstrip("/")}">'
        '<button type="submit" disabled hidden></button>'
        f'<input type="hidden" name="token" value="{escape(token)}">'
        f'<p><label>Your name <input name="name" maxlength="{_MAX_NAME}" required autocomplete="name"></label></p>'
        '<p><button name="decision" value="approve">Approve</button> '
        '<button name="decision" value="reject">Reject</button></p></form>'
    )


def _page(status: int, title: str, content: str) -> Response:
    """A page; addresses are relative, since a proxy may have put a path before ours."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Driftline</title>'
        '<link rel="icon" href="icon.svg" type="image/svg+xml"><link rel="stylesheet" href="style.css">'
    )
    body = (
        "<header><h1>Driftline</h1></header>"
        f"<main><section><h2>{escape(title)}</h2>{content}</section></main>"
    )
    html = f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'
    return Response(html, status, media_type="text/html")
