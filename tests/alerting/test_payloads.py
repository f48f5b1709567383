"""Payloads against the documented limits of their receivers: the demo's receiver is the oracle, written apart."""

from __future__ import annotations

import base64
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from alerting.payloads import (
    alert,
    approval_link,
    escaped,
    notification,
    pagerduty_event,
    slack_message,
    teams_message,
)
from alerting.requests import (
    MAX_WEBHOOK_BYTES,
    Mail,
    Request,
    cloud_event,
    sign,
    signed_webhook,
)
from monitor.approvals import Links
from monitor.targets import ActionName, NotifyTarget, WebhookTarget
from monitor.wire import (
    Advice,
    Evidence,
    Incident,
    IncidentState,
    OutboxItem,
    TimelineEntry,
    Transition,
)
from streams.demo.receiver import judge
from tests.alerting.builders import DAY, HOUR, MODEL, START, spec

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
KEYS = {
    "env:SLACK": "https://hooks.slack.com/services/T/B/X",
    "env:PD": "a" * 32,
    "env:HOOK": SECRET,
    "env:TEAMS": "https://prod-1.westeurope.logic.azure.com/workflows/x",
    "env:AM": "am-token",
}
NOW = 1_700_000_000
SLACK = NotifyTarget.model_validate({"slack": {"url": "env:SLACK"}})
PAGERDUTY = NotifyTarget.model_validate({"pagerduty": {"routing_key": "env:PD"}})
TEAMS = NotifyTarget.model_validate({"teams": {"url": "env:TEAMS"}})
ALERTMANAGER = NotifyTarget.model_validate(
    {"alertmanager": {"url": "https://am.example/prefix/", "token": "env:AM"}}
)
EMAIL = NotifyTarget.model_validate({"email": {"to": ["a@example.com", "b@example.com"]}})
HOOK = WebhookTarget(url="https://ci.example/retrain", secret="env:HOOK")


def resolve(reference: str) -> str:
    return KEYS.get(reference, reference)


def item(
    transition: Transition = "fired",
    *,
    action: str = "notify",
    title: str = "wind_speed of flight-delay 7: 97 % of values are missing",
    feature: str = "wind_speed",
    evidence: int = 3,
    timeline: int = 1,
    state: IncidentState = "firing",
    advice: Advice = "fix_data",
    rollback_to: str | None = None,
) -> OutboxItem:
    incident = Incident(
        id="f" * 32, model=MODEL, version="7", cause="pipeline_fault", advice=advice, severity="error", state=state,
        title=title, reason="The values themselves are broken.", onset_ms=START + 9 * HOUR, opened_ms=START + DAY,
        updated_ms=START + DAY, resolved_ms=START + 3 * DAY if state == "resolved" else None, revision=2,
        rollback_to=rollback_to, retrain_blocked=True,
        evidence=[
            Evidence("data_quality", "7", "origin=EWR", feature, "missing", 0.97, 0.01, START, START + DAY)
            for _ in range(evidence)
        ],
        timeline=[TimelineEntry(START, "x" * 200) for _ in range(timeline)],
    )  # fmt: skip
    return OutboxItem("a" * 32, "target", action, transition, incident)


def sent(of: OutboxItem, target: NotifyTarget | WebhookTarget, at_s: int = NOW) -> Request:
    if isinstance(target, WebhookTarget):
        return signed_webhook(of, target, resolve, at_s)
    request = notification(of, target, resolve, at_s=at_s)
    assert isinstance(request, Request)
    return request


def accepted(path: str, of: OutboxItem, target: NotifyTarget | WebhookTarget) -> str:
    request = sent(of, target)
    answer = judge(path, request.headers, request.body, secret=SECRET, now_s=NOW)
    assert answer.problem is None
    return answer.summary


@pytest.mark.parametrize(
    "transition", ["fired", "changed", "acknowledged", "escalated", "resolved"]
)
def test_each_receiver_takes_each_transition(transition: Transition) -> None:
    of = item(transition, state="resolved" if transition == "resolved" else "firing")
    assert "wind_speed" in accepted("/slack", of, SLACK)
    assert accepted("/pagerduty", of, PAGERDUTY)
    assert (
        accepted("/retrain", of, HOOK) == f"dev.driftline.incident.{transition}.v1 flight-delay/7"
    )


def test_an_action_is_a_signed_cloud_event_that_names_the_version_to_go_back_to() -> None:
    of = item("action", action="rollback", advice="rollback", rollback_to="6")
    assert (
        accepted("/rollback", of, HOOK)
        == "dev.driftline.action.rollback.requested.v1 flight-delay/7"
    )
    data = msgspec.json.decode(cloud_event(of))["data"]
    assert (data["action"], data["incident"]["rollback_to"]) == ("rollback", "6")


def test_names_from_outside_cannot_call_a_channel_or_forge_a_link() -> None:
    nasty = "<!channel> & <https://evil.example|click>"
    of = item(title=nasty, feature=nasty)
    accepted("/slack", of, SLACK)
    text = msgspec.json.encode(slack_message(of)).decode()
    assert "<!channel>" not in text
    assert "<https" not in text
    assert "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt;" in text


def test_long_texts_are_cut_to_every_receivers_limits() -> None:
    of = item(title="&" * 5_000, feature="<" * 500, evidence=20, timeline=50)
    accepted("/slack", of, SLACK)
    accepted("/pagerduty", of, PAGERDUTY)
    accepted("/retrain", of, HOOK)
    assert len(cloud_event(of)) < MAX_WEBHOOK_BYTES


def test_pagerduty_gets_one_key_for_the_whole_incident() -> None:
    fired, over = item(), item("resolved", state="resolved")
    assert pagerduty_event(fired, "k")["dedup_key"] == pagerduty_event(over, "k")["dedup_key"]
    assert pagerduty_event(fired, "k")["event_action"] == "trigger"
    assert pagerduty_event(over, "k")["event_action"] == "resolve"


def test_a_retry_sends_the_same_bytes_under_the_same_id_with_the_time_of_the_attempt() -> None:
    first, second = (sent(item(), HOOK, NOW + i) for i in (0, 60))
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "a" * 32
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


def test_the_signature_is_the_specifications_example() -> None:
    # Standard Webhooks, reference library's own test vector.
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_sign_twice_during_a_rotation_and_a_broken_one_is_not_quoted() -> None:
    both = sign(f"{SECRET} other", "id", NOW, b"x").split()
    assert both == [sign(SECRET, "id", NOW, b"x"), sign("other", "id", NOW, b"x")]
    with pytest.raises(ValueError, match="not base64") as caught:
        sign("whsec_planted!", "id", NOW, b"x")
    assert "planted" not in str(caught.value)


def test_a_request_shows_neither_address_nor_key() -> None:
    shown = repr(sent(item(), SLACK)) + repr(sent(item(), PAGERDUTY))
    assert "hooks.slack.com" not in shown
    assert "aaaa" not in shown


def texts(value: object) -> list[str]:
    """Every text of a card, with the kind of element that shows it."""
    if isinstance(value, dict):
        return [
            *([f"{value['type']}:{value['text']}"] if "text" in value else []),
            *(text for inner in value.values() for text in texts(inner)),
        ]
    return [text for inner in value for text in texts(inner)] if isinstance(value, list) else []


def test_a_card_of_teams_has_everything_in_text_runs_where_nothing_is_markup() -> None:
    nasty = "[click](https://evil.example) **bold** <at>everyone</at>"
    of = item(title=nasty, feature=nasty)
    message = msgspec.json.decode(sent(of, TEAMS).body)
    assert (message["type"], set(message)) == ("message", {"type", "attachments"})
    (attachment,) = message["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    card = attachment["content"]
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    said = texts(card["body"])
    assert {text.partition(":")[0] for text in said} == {"TextRun"}
    assert any(nasty in text for text in said)
    assert any("fix data (retrain blocked)" in text for text in said)


def test_a_card_stays_below_what_teams_takes() -> None:
    of = item(title="ß" * 20_000, feature="<" * 5_000, evidence=20)
    assert len(msgspec.json.encode(teams_message(of))) < 28_000


def test_an_alert_is_known_by_what_does_not_change_and_lasts_until_it_is_sent_again() -> None:
    request = sent(item(), ALERTMANAGER)
    assert request.url == "https://am.example/prefix/api/v2/alerts"
    assert request.headers["authorization"] == "Bearer am-token"
    (found,) = msgspec.json.decode(request.body)
    assert found["labels"] == {
        "alertname": "DriftlineIncident",
        "incident": "f" * 32,
        "model": MODEL,
        "version": "7",
        "severity": "error",
    }
    assert found["annotations"]["cause"] == "pipeline_fault"
    assert found["annotations"]["advice"] == "fix data (retrain blocked)"
    assert found["endsAt"] == "2023-11-14T22:18:20.000Z"  # five minutes after NOW
    over = alert(item("resolved", state="resolved").incident, NOW)
    assert over["labels"] == found["labels"]
    assert over["endsAt"] == "2023-11-14T22:13:20.000Z"
    assert over["startsAt"] <= over["endsAt"]


def test_an_incident_whose_time_is_ahead_of_this_clock_starts_now() -> None:
    made = alert(item().incident, START // 1_000 - 86_400)
    assert made["startsAt"] < made["endsAt"]


def test_a_mail_is_plain_text_and_a_title_cannot_begin_a_header() -> None:
    mail = notification(item(title="late\r\nBcc: all@example.com"), EMAIL, resolve, at_s=NOW)
    assert isinstance(mail, Mail)
    assert (mail.id, mail.thread) == ("a" * 32, "f" * 32)
    assert mail.to == ("a@example.com", "b@example.com")
    assert mail.subject == "🟠 Firing: late Bcc: all@example.com"
    assert "Cause:    pipeline fault\n" in mail.text
    assert "Advice:   fix data (retrain blocked)\n" in mail.text
    assert "• wind_speed (7 at origin=EWR): 97 % of values are missing (limit 1 %)\n" in mail.text
    over = notification(item("resolved", state="resolved"), EMAIL, resolve, at_s=NOW)
    assert isinstance(over, Mail)
    assert "Evidence" not in over.text
    assert over.subject.startswith("✅ Resolved: ")


MANUAL = {"webhook": {"url": "https://ci.example/x", "secret": "env:S"}}
LINKS = Links("https://ml.example", "s" * 32, 60)
LINK = LINKS.to("f" * 32, "retrain", NOW)


@pytest.mark.parametrize(
    ("changes", "actions", "action"),
    [
        ({"advice": "retrain"}, {"retrain": MANUAL}, "retrain"),
        ({"advice": "retrain", "transition": "changed"}, {"retrain": MANUAL}, "retrain"),
        ({"advice": "rollback", "rollback_to": "6"}, {"rollback": MANUAL}, "rollback"),
        ({"advice": "rollback"}, {"rollback": {**MANUAL, "to": "6"}}, "rollback"),
        ({"advice": "retrain"}, {"retrain": {**MANUAL, "min_windows": 3}}, "retrain"),
        ({"advice": "retrain", "transition": "escalated"}, {"retrain": MANUAL}, None),  # it was
        ({"advice": "retrain"}, {"retrain": {**MANUAL, "approval": "auto"}}, None),
        ({"advice": "retrain"}, {"retrain": {**MANUAL, "dry_run": True}}, None),
        ({"advice": "retrain"}, {"rollback": MANUAL}, None),  # not allowed
        ({"advice": "retrain"}, {}, None),
        ({"advice": "rollback"}, {"rollback": MANUAL}, None),  # to which version?
        ({"advice": "fix_data"}, {"retrain": MANUAL, "rollback": MANUAL}, None),
        (
            {"advice": "retrain", "state": "resolved", "transition": "resolved"},
            {"retrain": MANUAL},
            None,
        ),
        ({"advice": "retrain", "action": "retrain"}, {"retrain": MANUAL}, None),  # to a pipeline
    ],
)
def test_a_link_is_there_when_an_action_waits_for_a_person_and_not_otherwise(
    changes: dict[str, Any], actions: dict[str, Any], action: ActionName | None
) -> None:
    of, model = item(**changes), spec(actions=actions)
    expected = LINKS.to("f" * 32, action, NOW) if action else ""
    assert approval_link(of, model, LINKS, NOW) == expected
    assert approval_link(of, model, None, NOW) == ""


def test_every_receiver_that_people_read_gets_the_link_in_its_own_form() -> None:
    of = item(advice="retrain", title="&" * 5_000, feature="<" * 500, evidence=20, timeline=50)

    def body(target: NotifyTarget, path: str = "") -> dict[str, Any]:
        request = notification(of, target, resolve, at_s=NOW, link=LINK)
        assert isinstance(request, Request)
        if path:
            answer = judge(path, request.headers, request.body, secret=SECRET, now_s=NOW)
            assert answer.problem is None
        found: dict[str, Any] = msgspec.json.decode(request.body)
        return found

    texts_of = [
        block["text"]["text"] for block in body(SLACK, "/slack")["blocks"] if "text" in block
    ]
    assert f"<{LINK}|Approve or reject>" in texts_of
    (attachment,) = body(TEAMS)["attachments"]
    (button,) = attachment["content"]["actions"]
    assert (button["type"], button["url"]) == ("Action.OpenUrl", LINK)
    assert body(PAGERDUTY, "/pagerduty")["links"] == [{"href": LINK, "text": "Approve or reject"}]
    hook = NotifyTarget.model_validate({"webhook": HOOK.model_dump()})
    assert body(hook, "/retrain")["data"]["approve_url"] == LINK
    mail = notification(of, EMAIL, resolve, at_s=NOW, link=LINK)
    assert isinstance(mail, Mail)
    assert f"\nApprove or reject: {LINK}\n" in mail.text


def test_every_receiver_leads_to_the_incident_on_the_page() -> None:
    page = f"https://ml.example/driftline/#/incidents/{'f' * 32}"

    def told(target: NotifyTarget, path: str = "", link: str = "") -> Any:
        request = notification(
            item(), target, resolve, at_s=NOW, link=link, public_url="https://ml.example/driftline"
        )
        assert isinstance(request, Request)
        if path:
            answer = judge(path, request.headers, request.body, secret=SECRET, now_s=NOW)
            assert answer.problem is None
        return msgspec.json.decode(request.body)

    (line,) = told(SLACK, "/slack")["blocks"][-1]["elements"]
    assert line["text"] == f"<{page}|Open in Driftline> · incident {'f' * 32}"
    (attachment,) = told(TEAMS, link=LINK)["attachments"]
    look, decide = attachment["content"]["actions"]
    assert (look["title"], look["url"]) == ("Open in Driftline", page)
    assert decide["url"] == LINK
    assert told(PAGERDUTY, "/pagerduty")["client_url"] == page
    hook = NotifyTarget.model_validate({"webhook": HOOK.model_dump()})
    assert told(hook)["data"]["page_url"] == page
    manager = NotifyTarget.model_validate({"alertmanager": {"url": "http://alertmanager:9093"}})
    assert told(manager)[0]["generatorURL"] == page
    letter = notification(
        item(), EMAIL, resolve, at_s=NOW, public_url="https://ml.example/driftline"
    )
    assert isinstance(letter, Mail)
    assert f"\nOpen in Driftline: {page}\n" in letter.text


@pytest.mark.parametrize("target", [SLACK, TEAMS, PAGERDUTY, EMAIL])
def test_without_a_link_nothing_speaks_of_one(target: NotifyTarget) -> None:
    found = notification(item(advice="retrain"), target, resolve, at_s=NOW)
    text = found.text if isinstance(found, Mail) else found.body.decode()
    assert "Approve" not in text
    assert "Open in Driftline" not in text
    assert "client_url" not in text


@given(st.text(), st.integers(min_value=1, max_value=60))
def test_an_escaped_text_fits_and_holds_no_bare_mark(text: str, limit: int) -> None:
    found = escaped(text, limit)
    assert len(found) <= limit
    assert not {"<", ">"} & set(found)
    whole = found.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
    assert "&" not in whole
