"""Payloads against the documented limits of their receivers: the demo's receiver is the oracle, written apart."""

from __future__ import annotations

import base64

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from alerting.payloads import (
    MAX_WEBHOOK_BYTES,
    build,
    cloud_event,
    escaped,
    pagerduty_event,
    sign,
    slack_message,
)
from monitor.spec import NotifyTarget, WebhookTarget
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
from tests.alerting.builders import DAY, HOUR, MODEL, START

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
KEYS = {
    "env:SLACK": "https://hooks.slack.com/services/T/B/X",
    "env:PD": "a" * 32,
    "env:HOOK": SECRET,
}
NOW = 1_700_000_000
SLACK = NotifyTarget.model_validate({"slack": {"url": "env:SLACK"}})
PAGERDUTY = NotifyTarget.model_validate({"pagerduty": {"routing_key": "env:PD"}})
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


def accepted(path: str, of: OutboxItem, target: NotifyTarget | WebhookTarget) -> str:
    request = build(of, target, resolve, at_s=NOW)
    answer = judge(path, request.headers, request.body, secret=SECRET, now_s=NOW)
    assert answer.problem is None
    return answer.summary


@pytest.mark.parametrize("transition", ["fired", "changed", "resolved"])
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
    first, second = (build(item(), HOOK, resolve, at_s=NOW + i) for i in (0, 60))
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
    shown = repr(build(item(), SLACK, resolve, at_s=NOW)) + repr(
        build(item(), PAGERDUTY, resolve, at_s=NOW)
    )
    assert "hooks.slack.com" not in shown
    assert "aaaa" not in shown


@given(st.text(), st.integers(min_value=1, max_value=60))
def test_an_escaped_text_fits_and_holds_no_bare_mark(text: str, limit: int) -> None:
    found = escaped(text, limit)
    assert len(found) <= limit
    assert not {"<", ">"} & set(found)
    whole = found.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
    assert "&" not in whole
