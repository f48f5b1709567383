"""The page behind a signed link: looking changes nothing, the form asks once, and what is refused says why."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import SecretStr

from monitor.approvals import Approval
from monitor.errors import TransientError
from monitor.wire import Command
from tests.alerting.builders import MODEL
from tests.monitor.test_api_orders import HERE, INCIDENT, NOW, PUBLIC, SECRET, Client, World

EXPIRES = NOW // 1_000 + 60
TOKEN = Approval(INCIDENT.id, "retrain", EXPIRES).token(SECRET)
FORM = {"token": TOKEN, "name": "ada", "decision": "approve"}


@pytest.fixture
def world() -> World:
    return World()


def shown(client: Client, token: str = TOKEN) -> str:
    answer = client.get("/approve", params={"token": token})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def test_looking_says_what_would_be_done_and_changes_nothing(world: World) -> None:
    world.incident = replace(INCIDENT, title="<b>wind</b> & more")
    client = world.client()
    page, *again = (shown(client) for _ in range(3))  # a mail scanner, a preview, a person
    assert again == [page, page]
    for said in ("Retrain?", MODEL, INCIDENT.version, "&lt;b&gt;wind&lt;/b&gt; &amp; more"):
        assert said in page
    assert client.request("HEAD", f"/approve?token={TOKEN}").status_code in (404, 405)
    assert world.asked == []


def test_a_rollback_names_the_version_that_it_goes_back_to(world: World) -> None:
    world.incident = replace(INCIDENT, advice="rollback", rollback_to="6-good")
    page = shown(world.client(), Approval(INCIDENT.id, "rollback", EXPIRES).token(SECRET))
    assert "Roll back?" in page
    assert "6-good" in page


def test_a_rollback_names_the_version_of_the_spec_where_that_names_one(world: World) -> None:
    hook = {"url": "https://deploy.example/x", "secret": "env:WH"}
    world.incident = replace(INCIDENT, advice="rollback", rollback_to="6-good")
    world.actions = {"rollback": {"webhook": hook, "to": "5-gold"}}
    page = shown(world.client(), Approval(INCIDENT.id, "rollback", EXPIRES).token(SECRET))
    assert "5-gold" in page
    assert "6-good" not in page


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_the_form_gives_the_order_in_the_name_that_was_given(world: World, decision: Any) -> None:
    client = world.client(key=SecretStr("k" * 32))  # who opens the link has none
    page = shown(client)
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]+)"', page))
    (action,) = re.findall(r'<form method="post" action="([^"]+)"', page)
    answer = client.post(f"/{action}", data={**fields, "name": " Åda ", "decision": decision})
    assert (answer.status_code, "Asked for" in answer.text) == (202, True)
    by = "Åda (by signed link)"
    assert world.asked == [
        Command(decision, MODEL, INCIDENT.id, by, NOW, action="retrain")  # not rollback
    ]


def test_the_page_keeps_to_its_policy_and_its_token_to_itself(world: World) -> None:
    client = world.client()
    answer = client.get("/approve", params={"token": TOKEN})
    assert "form-action 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script|<style|style=|\bon\w+=|https?://", answer.text)
    assert [x for x in re.findall(r'(?:href|action|src)="([^"]+)"', answer.text) if "token" in x] == []  # fmt: skip
    (first, *_) = re.findall(r"<button[^>]*>", answer.text)
    assert "disabled" in first, "Enter in the field approves nothing"


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [
        (TOKEN[:-1], 403, "cut or changed"),
        ("", 403, "cut or changed"),
        ('"><script>', 403, "cut or changed"),
        (Approval(INCIDENT.id, "retrain", EXPIRES).token("t" * 32), 403, "not ours"),
        (Approval(INCIDENT.id, "retrain", NOW // 1_000).token(SECRET), 410, "still works"),
        (Approval(INCIDENT.id, "rollback", EXPIRES).token(SECRET), 409, "by now the advice is"),
        (Approval("e" * 32, "retrain", EXPIRES).token(SECRET), 404, "not stored yet"),
    ],
)
def test_what_a_link_is_not_good_for_is_a_page_that_says_why_and_no_order(
    world: World, token: str, status: int, said: str
) -> None:
    client = world.client()
    for answer in (
        client.get("/approve", params={"token": token}),
        client.post("/approve", data={**FORM, "token": token}),
    ):
        assert (answer.status_code, said in answer.text) == (status, True)
        assert "<script" not in answer.text
    assert world.asked == []


@pytest.mark.parametrize(
    ("world", "form", "status"),
    [
        (World(), {"name": ""}, 422),
        (World(), {"name": "  "}, 422),
        (World(), {"name": "a\nb"}, 422),
        (World(), {"name": "x" * 101}, 422),
        (World(), {"decision": "acknowledge"}, 422),
        (World(), {"decision": ""}, 422),
        (World(replace(INCIDENT, state="resolved")), {}, 409),
        (World(replace(INCIDENT, advice="watch")), {}, 409),
        (World(failure=TransientError("no broker")), {}, 503),
        (World(away=True), {}, 503),
        (World(), {f"f{i}": "x" for i in range(9)}, 403),  # more fields than ours are not read
    ],
)
def test_a_form_that_cannot_be_followed_asks_for_nothing(
    world: World, form: dict[str, str], status: int
) -> None:
    answer = world.client().post("/approve", data={**FORM, **form})
    assert (answer.status_code, world.asked) == (status, [])
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 202),  # what a browser makes of ours
        ({"Origin": "null"}, 202),  # over plain HTTP, where browsers do not say from where
        ({"Origin": HERE}, 202),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "evil.example"}, 400),
    ],
)
def test_no_page_of_another_site_sends_the_form(
    world: World, headers: dict[str, str], status: int
) -> None:
    answer = world.client(public_url=PUBLIC).post("/approve", data=FORM, headers=headers)
    assert (answer.status_code, len(world.asked)) == (status, int(status == 202))


def test_a_form_of_another_kind_or_beyond_its_bound_is_refused(world: World) -> None:
    client = world.client()
    assert client.post("/approve", json=FORM).status_code == 415
    assert client.post("/approve", data={**FORM, "more": "x" * 9_000}).status_code == 413
    assert world.asked == []


def test_without_a_secret_there_is_no_page(world: World) -> None:
    world.secret = ""
    client = world.client()
    assert client.get("/approve", params={"token": TOKEN}).status_code == 404
    assert client.post("/approve", data=FORM).status_code in (404, 405)
