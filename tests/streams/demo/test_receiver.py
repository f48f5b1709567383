from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from streams.demo.receiver import Answer, Receiver, judge

# The secret, id, timestamp, body and signature of the Standard Webhooks specification's own test.
SPEC_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SPEC_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW_S = 1_700_000_000
JSON = {"content-type": "application/json"}


def slack(**changes: Any) -> dict[str, Any]:
    return {
        "text": "flight-delay: wind_speed is wrong",
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": "Pipeline fault"}},
            {"type": "section", "text": {"type": "mrkdwn", "text": "*wind_speed* at EWR"}},
            {"type": "section", "fields": [{"type": "mrkdwn", "text": "since 13 May"}]},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "incident 1"}]},
            {"type": "divider"},
        ],
        **changes,
    }


def pagerduty(**changes: Any) -> dict[str, Any]:
    return {
        "routing_key": "r" * 32,
        "event_action": "trigger",
        "dedup_key": "inc-1",
        "payload": {"summary": "Bad release", "source": "driftline", "severity": "critical"},
        **changes,
    }


def cloud_event(**changes: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "inc-1",
        "source": "/driftline",
        "type": "driftline.retrain",
        "subject": "flight-delay",
        "time": "2013-05-13T13:00:00Z",
        "datacontenttype": "application/json",
        "data": {"model": "flight-delay"},
        **changes,
    }


def section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def signed(body: bytes, *, webhook_id: str = "act-1", at_s: int = NOW_S) -> dict[str, str]:
    content = f"{webhook_id}.{at_s}.".encode() + body
    digest = hmac.new(KEY, content, hashlib.sha256).digest()
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def decide(path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
    raw = json.dumps(body).encode()
    if headers is None:
        headers = signed(raw) if path in ("/retrain", "/rollback") else JSON
    return judge(path, headers, raw, secret=SECRET, now_s=NOW_S)


@pytest.mark.parametrize(
    ("path", "body", "status", "key", "summary"),
    [
        ("/pagerduty", pagerduty(), 202, "inc-1/trigger", "Bad release"),
        (
            "/pagerduty",
            {"routing_key": "r" * 32, "event_action": "resolve", "dedup_key": "inc-1"},
            202,
            "inc-1/resolve",
            "resolve",
        ),
        ("/retrain", cloud_event(), 202, "act-1", "driftline.retrain flight-delay"),
        ("/rollback", cloud_event(), 202, "act-1", "driftline.retrain flight-delay"),
    ],
)
def test_a_right_request_is_accepted_with_its_key_and_summary(
    path: str, body: object, status: int, key: str, summary: str
) -> None:
    answer = decide(path, body)

    assert (answer.status, answer.problem) == (status, None)
    assert (answer.key, answer.summary) == (key, summary)


def test_slack_answers_ok_as_text() -> None:
    answer = decide("/slack", slack())

    assert (answer.status, answer.content_type, answer.body) == (200, "text/plain", b"ok")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"blocks": []}, "missing required field `text`"),
        (slack(text=""), r"length >= 1 - at `\$.text`"),
        (slack(blocks=[{"type": "divider"}] * 51), "length <= 50"),
        (slack(blocks=[section("x" * 3001)]), "length <= 3000"),
        (slack(blocks=[{"type": "section"}]), "text or fields"),
        (slack(blocks=[{"type": "image"}]), "Invalid value 'image'"),
        (slack(blocks=[section("x" * 3000)] * 5), "msg_blocks_too_long"),
        (slack(blocks=[section("drift in <!channel>")]), "broadcast"),
        (slack(text="drift in <!here>"), "broadcast"),
        (slack(colour="red"), "unknown field `colour`"),
        (
            slack(blocks=[{"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}]),
            "length <= 150",
        ),
        (
            slack(blocks=[{"type": "header", "text": {"type": "mrkdwn", "text": "x"}}]),
            "Invalid enum value 'mrkdwn'",
        ),
        (
            slack(blocks=[{"type": "section", "fields": [{"type": "mrkdwn", "text": "x" * 2001}]}]),
            "length <= 2000",
        ),
    ],
)
def test_slack_refuses(body: object, problem: str) -> None:
    answer = decide("/slack", body)

    assert answer.status == 400
    assert answer.body.startswith(b"invalid_payload")
    assert re.search(problem, answer.problem or "")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (pagerduty(routing_key="r" * 31), "routing_key"),
        (pagerduty(event_action="open"), "event_action"),
        (pagerduty(dedup_key="d" * 256), "length <= 255"),
        (pagerduty(payload=None), "a trigger needs a payload"),
        ({"routing_key": "r" * 32, "event_action": "resolve"}, "resolve needs a dedup_key"),
        (pagerduty(payload={"summary": "s", "severity": "info"}), "`source`"),
        (pagerduty(payload={"summary": "s", "source": "d", "severity": "page"}), "severity"),
        (
            pagerduty(payload={"summary": "s" * 1025, "source": "d", "severity": "info"}),
            "length <= 1024",
        ),
        (
            pagerduty(
                payload={
                    "summary": "s",
                    "source": "d",
                    "severity": "info",
                    "timestamp": "2013-05-13T13:00:00",
                }
            ),
            "timezone",
        ),
    ],
)
def test_pagerduty_refuses(body: object, problem: str) -> None:
    answer = decide("/pagerduty", body)

    assert answer.status == 400
    assert problem in (answer.problem or "")


def test_a_refusal_does_not_quote_the_routing_key() -> None:
    answer = decide("/pagerduty", pagerduty(routing_key="SECRET-" + "r" * 32))

    assert answer.problem
    assert b"SECRET" not in answer.body
    assert "SECRET" not in answer.problem


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (cloud_event(specversion="0.3"), "specversion"),
        (cloud_event(source=""), "source"),
        (cloud_event(data=None), "data"),
        (cloud_event(time="2013-05-13T13:00:00"), "timezone"),
        (cloud_event(modelName="x"), "lower-case"),
        ({"model": "flight-delay"}, "specversion"),
    ],
)
def test_an_action_must_be_a_cloud_event(body: object, problem: str) -> None:
    answer = decide("/retrain", body)

    assert answer.status == 400
    assert problem in (answer.problem or "")


@pytest.mark.parametrize("path", ["/slack", "/pagerduty", "/retrain"])
def test_the_content_type_counts(path: str) -> None:
    bodies = {"/slack": slack(), "/pagerduty": pagerduty(), "/retrain": cloud_event()}
    raw = json.dumps(bodies[path]).encode()

    answer = decide(path, bodies[path], {**signed(raw), "content-type": "text/plain"})

    assert answer.status == 400
    assert "content-type" in (answer.problem or "")


def test_the_specifications_own_signature_is_accepted_as_a_signature() -> None:
    raw = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": SPEC_SIGNATURE,
        "content-type": "application/cloudevents+json",
    }

    right = judge("/retrain", headers, raw, secret=SPEC_SECRET, now_s=1_614_265_330)
    wrong = judge("/retrain", headers, raw + b" ", secret=SPEC_SECRET, now_s=1_614_265_330)

    assert (right.status, wrong.status) == (400, 401)  # signed well, but not a CloudEvent
    assert "specversion" in (right.problem or "")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 202),
        ({"webhook-signature": ""}, 401),
        ({"webhook-signature": "v1,AAAA"}, 401),
        ({"webhook-id": "act-2"}, 401),
        ({"webhook-timestamp": str(NOW_S + 1)}, 401),
        ({"webhook-timestamp": "soon"}, 400),
        ({"webhook-timestamp": ""}, 400),
        ({"webhook-id": ""}, 400),
        ({"webhook-id": "act.1"}, 400),
    ],
)
def test_any_change_breaks_the_signature(changes: dict[str, str], status: int) -> None:
    headers = signed(json.dumps(cloud_event()).encode())

    assert decide("/rollback", cloud_event(), {**headers, **changes}).status == status


def test_one_good_signature_in_the_list_is_enough() -> None:
    headers = signed(json.dumps(cloud_event()).encode())
    rotated = f"v1,b2xkIGtleQ== v1a,c29tZQ== {headers['webhook-signature']}"

    assert (
        decide("/retrain", cloud_event(), {**headers, "webhook-signature": rotated}).status == 202
    )


@pytest.mark.parametrize(
    ("offset_s", "status"), [(-301, 401), (-300, 202), (0, 202), (300, 202), (301, 401)]
)
def test_a_timestamp_may_be_five_minutes_off(offset_s: int, status: int) -> None:
    headers = signed(json.dumps(cloud_event()).encode(), at_s=NOW_S + offset_s)

    assert decide("/retrain", cloud_event(), headers).status == status


def test_an_action_of_twenty_kilobytes_is_too_large() -> None:
    assert decide("/retrain", cloud_event(data={"x": "y" * 20_000})).status == 413


def test_other_paths_and_other_bytes_are_refused() -> None:
    assert decide("/teams", slack()).status == 404
    assert judge("/slack", JSON, b"\xff{", secret=SECRET, now_s=NOW_S).status == 400
    assert judge("/slack", JSON, b"", secret=SECRET, now_s=NOW_S).status == 400


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", base64.b64encode(KEY).decode()])
def test_a_secret_that_is_none_is_refused_at_once_and_not_quoted(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64 bytes") as raised:
        Receiver(secret, clock=lambda: NOW_S)
    assert "c2hvcnQ" not in str(raised.value)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(SECRET, clock=lambda: NOW_S) as running:
        yield running


def test_it_answers_over_http_and_remembers(receiver: Receiver) -> None:
    with httpx.Client(base_url=receiver.url) as client:
        good = client.post("/slack", json=slack())
        bad = client.post("/pagerduty", json=pagerduty(event_action="open"))

    assert (good.status_code, good.text) == (200, "ok")
    assert (bad.status_code, bad.json()["status"]) == (400, "invalid event")
    first, second = receiver.received()
    assert (first.path, first.problem, first.repeats) == ("/slack", None, 0)
    assert first.summary == "flight-delay: wind_speed is wrong"
    assert (second.path, second.key) == ("/pagerduty", None)
    assert "event_action" in (second.problem or "")


def test_it_counts_repeats_of_a_key_and_only_of_accepted_requests(receiver: Receiver) -> None:
    raw = json.dumps(cloud_event()).encode()
    sent = [
        ("/retrain", signed(raw)),
        ("/retrain", {**signed(raw), "webhook-signature": "v1,AAAA"}),
        ("/retrain", signed(raw, at_s=NOW_S + 5)),  # a retry: another timestamp, the same id
        ("/rollback", signed(raw)),  # another endpoint
        ("/retrain", signed(raw)),
    ]
    with httpx.Client(base_url=receiver.url) as client:
        for path, headers in sent:
            client.post(path, content=raw, headers=headers)

    assert [(r.path, r.problem is None, r.repeats) for r in receiver.received()] == [
        ("/retrain", True, 0),
        ("/retrain", False, 0),
        ("/retrain", True, 1),
        ("/rollback", True, 0),
        ("/retrain", True, 2),
    ]


def test_an_action_id_that_comes_with_another_body_is_refused(receiver: Receiver) -> None:
    first, other = (
        json.dumps(cloud_event(data={"model": m})).encode() for m in ("flight-delay", "fraud")
    )
    statuses = [
        httpx.post(receiver.url + "/retrain", content=raw, headers=signed(raw)).status_code
        for raw in (first, other, first)
    ]

    assert statuses == [202, 422, 202]
    assert "another body" in (receiver.received()[1].problem or "")


def test_a_body_without_a_length_or_over_the_limit_is_not_read(receiver: Receiver) -> None:
    address = urlsplit(receiver.url).netloc
    for length in ("", "many", str(10**9)):
        connection = http.client.HTTPConnection(address, timeout=5)
        connection.putrequest("POST", "/slack")
        connection.putheader("content-length", length)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()

    assert [r.problem is None for r in receiver.received()] == [False] * 3


def test_it_remembers_every_one_of_many_at_once(receiver: Receiver) -> None:
    def post(n: int) -> int:
        return httpx.post(
            receiver.url + "/pagerduty", json=pagerduty(dedup_key=f"inc-{n % 5}")
        ).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(post, range(40))) == {202}

    repeats = sorted(r.repeats for r in receiver.received())
    assert repeats == sorted(list(range(8)) * 5)


def test_an_alert_that_is_triggered_again_may_be_resolved_again(receiver: Receiver) -> None:
    def tell(action: str, notification: str = "") -> None:
        event = pagerduty(dedup_key="inc-1", event_action=action)
        if notification:
            event["payload"]["custom_details"] = {"notification": notification}
        else:
            del event["payload"]
        assert httpx.post(receiver.url + "/pagerduty", json=event).status_code == 202

    tell("trigger", "a")
    tell("resolve")
    tell("resolve")
    tell("trigger", "b")
    tell("resolve")
    tell("trigger", "b")
    assert [r.repeats for r in receiver.received()] == [0, 0, 1, 0, 0, 1]


def test_its_port_is_free_again_afterwards() -> None:
    with Receiver(SECRET, clock=lambda: NOW_S) as first:
        port = urlsplit(first.url).port
    assert port

    with Receiver(SECRET, clock=lambda: NOW_S, port=port) as second:
        assert httpx.post(second.url + "/slack", json=slack()).status_code == 200
