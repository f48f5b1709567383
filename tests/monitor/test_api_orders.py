"""Orders over HTTP: what is asked for, by whom it may be asked, and what is said where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from msgspec.structs import replace
from pydantic import SecretStr

from monitor import api
from monitor.api_orders import MAX_BODY, Desk
from monitor.errors import ConfigError, TransientError
from monitor.keys import create
from monitor.settings import ApiSettings
from monitor.store import ModelRow, Store
from monitor.tables import FOREVER_MS
from monitor.wire import Command, Incident
from tests.alerting.builders import DAY, HOUR, MODEL
from tests.alerting.test_payloads import item

NOW = 1_700_000_000_000
SECRET = "s" * 32
INCIDENT = replace(item().incident, id="abcdef" + "0" * 26, advice="retrain")
AT = f"/api/v1/incidents/{INCIDENT.id}"
HERE = "http://127.0.0.1:8080"
PUBLIC = "https://ml.example/driftline"


@dataclass(frozen=True)
class Client:
    """Asks an application without a socket."""

    app: FastAPI

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


@dataclass
class World:
    """A store of one incident, and what was asked for."""

    incident: Incident = INCIDENT
    actions: dict[str, Any] = field(default_factory=dict)
    away: bool = False
    failure: Exception | None = None
    secret: str = SECRET
    asked: list[Command] = field(default_factory=list)

    def incident_of(self, incident_id: str) -> Incident | None:
        if self.away:
            raise TransientError("the database at 10.0.0.1 does not answer")
        return self.incident if incident_id == self.incident.id else None

    def give(self, command: Command) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append(command)

    def client(self, *, desk: bool = True, **settings: Any) -> Client:
        taken = Desk(self.give, lambda: NOW, self.secret) if desk else None
        app = api.create_app(
            cast("Store", Stored(self)), ApiSettings.model_validate(settings), desk=taken
        )
        return Client(app)


@dataclass
class Stored:
    """The store of a world."""

    world: World

    def incident(self, incident_id: str) -> Incident | None:
        return self.world.incident_of(incident_id)

    def models(self, model: str) -> list[ModelRow]:
        specs = {"another": {}, MODEL: {"actions": self.world.actions}}
        return [ModelRow(model, specs[model], "", [], [], [], None, None)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("acknowledge", {"author": "ada"}, Command("acknowledge", MODEL, INCIDENT.id, "ada", NOW)),
        (
            "silence",
            {"author": "ada", "for": "2h", "comment": "deploy"},
            Command("silence", MODEL, INCIDENT.id, "ada", NOW, NOW + 2 * HOUR, "deploy"),
        ),
        (
            "silence",
            {"author": "ada", "until_ms": DAY},
            Command("silence", MODEL, INCIDENT.id, "ada", NOW, DAY),
        ),
        (
            "approve",
            {"author": "ada"},
            Command("approve", MODEL, INCIDENT.id, "ada", NOW, action="retrain"),
        ),
        (
            "reject",
            {"author": "ada", "comment": "no"},
            Command("reject", MODEL, INCIDENT.id, "ada", NOW, comment="no", action="retrain"),
        ),
    ],
)
def test_an_order_is_handed_on_and_answered_with_what_was_asked_for(
    world: World, kind: str, body: dict[str, Any], expected: Command
) -> None:
    answer = world.client().post(f"{AT}/{kind}", json=body)
    assert (answer.status_code, world.asked) == (202, [expected])
    said = answer.json()
    assert (said["kind"], said["incident_id"], said["author"]) == (kind, INCIDENT.id, "ada")


@pytest.mark.parametrize(
    ("kind", "body", "status", "detail"),
    [
        ("approve", {}, 422, "the author is one line"),
        ("approve", {"author": "ada", "why": "x"}, 422, "a parameter is wrong"),
        ("approve", {"author": 7}, 422, "a parameter is wrong"),
        ("approve", ["ada"], 422, "a parameter is wrong"),
        ("approve", {"author": "a\nb"}, 422, "the author is one line"),
        ("approve", {"author": ""}, 422, "the author is one line"),
        ("approve", {"author": "ada", "comment": "x" * 501}, 422, "the comment is one line"),
        ("approve", {"author": "ada", "for": "2h"}, 422, "only a silence has an end"),
        ("silence", {"author": "ada"}, 422, "give either for"),
        ("silence", {"author": "ada", "for": "2h", "until_ms": 5}, 422, "give either for"),
        ("silence", {"author": "ada", "for": "soon"}, 422, "is not a duration"),
        ("silence", {"author": "ada", "for": "9999999999999w"}, 422, "longer than anything"),
        ("silence", {"author": "ada", "until_ms": FOREVER_MS + 1}, 422, "a parameter is wrong"),
        ("delete", {"author": "ada"}, 404, "Not Found"),
    ],
)
def test_a_wrong_order_is_a_problem_that_says_what_to_do(
    world: World, kind: str, body: object, status: int, detail: str
) -> None:
    answer = world.client().post(f"{AT}/{kind}", json=body)
    assert (answer.status_code, world.asked) == (status, [])
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "changes", "status"),
    [
        ("acknowledge", {"acknowledged_by": "bob"}, 409),
        ("silence", {"state": "resolved"}, 409),
        ("approve", {"advice": "fix_data"}, 409),
        ("reject", {"advice": "watch"}, 409),
        ("reject", {"id": "another"}, 404),
    ],
)
def test_what_would_change_nothing_or_is_not_known_is_not_asked_for(
    kind: str, changes: dict[str, Any], status: int
) -> None:
    world = World(replace(INCIDENT, **changes))
    body = {"author": "ada", **({"for": "1h"} if kind == "silence" else {})}
    answer = world.client().post(f"{AT}/{kind}", json=body)
    assert (answer.status_code, answer.json()["status"], world.asked) == (status, status, [])


@pytest.mark.parametrize(
    ("world", "detail", "again"),
    [
        (World(failure=TransientError("no broker at 10.0.0.2")), "broker does not answer", "5"),
        (World(failure=ConfigError("10.0.0.2 refuses us")), "driftline doctor", None),
        (World(away=True), "the database does not answer", "5"),
    ],
)
def test_who_does_not_answer_is_named_without_an_address(
    world: World, detail: str, again: str | None
) -> None:
    answer = world.client().post(f"{AT}/approve", json={"author": "ada"})
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, again)
    assert detail in answer.json()["detail"]
    assert "10.0.0" not in answer.text


def test_an_api_without_a_broker_says_how_else_to_give_orders(world: World) -> None:
    answer = world.client(desk=False).post(f"{AT}/approve", json={"author": "ada"})
    assert answer.status_code == 503
    assert "driftline incident" in answer.json()["detail"]


def test_an_order_needs_the_key(world: World) -> None:
    client = world.client(key=SecretStr("k" * 32))
    for headers, status in (({}, 401), ({"X-API-Key": "k" * 32}, 202)):
        answer = client.post(f"{AT}/approve", json={"author": "ada"}, headers=headers)
        assert answer.status_code == status
    assert len(world.asked) == 1


def test_the_name_of_the_key_stands_beside_who_asks_or_for_nobody(world: World) -> None:
    secret, key = create("ops", ["write"], b"r" * 32)
    client = world.client(keys=SecretStr(key.line))
    for body in ({"author": "ada"}, {"author": "a" * 128}, {"comment": "by a program"}):
        sent = client.post(f"{AT}/acknowledge", json=body, headers={"X-API-Key": secret})
        assert sent.status_code == 202, sent.text
    assert [order.author for order in world.asked] == [
        "ada (by ops)",
        "a" * 128 + " (by ops)",
        "ops",
    ]


def test_a_body_is_bounded_even_if_its_length_is_not_said(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 1_000 + 1):
            yield b" " * 1_000

    json = {"Content-Type": "application/json"}
    for content in (b" " * (MAX_BODY + 1), endless()):
        answer = world.client().post(f"{AT}/approve", content=content, headers=json)
        assert answer.status_code == 413


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_foreign_page_can_send_without_asking_is_no_order(
    world: World, media_type: str
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = world.client().post(f"{AT}/approve", content=b'{"author": "eve"}', headers=headers)
    assert (answer.status_code, world.asked) == (415, [])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),  # no browser
        ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": HERE}, 403),
        ({"Origin": HERE}, 202),
        ({"Origin": "https://ml.example"}, 202),  # where people reach us, behind a proxy
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),  # a frame in a sandbox
        ({"Origin": ""}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),  # it resolves to us
        ({"Host": "ml.example", "Origin": "https://ml.example"}, 202),
    ],
)
def test_no_page_of_another_site_gives_orders(
    world: World, headers: dict[str, str], status: int
) -> None:
    client = world.client(public_url=PUBLIC)
    answer = client.post(f"{AT}/approve", json={"author": "ada"}, headers=headers)
    assert (answer.status_code, len(world.asked)) == (status, int(status == 202))


def test_the_schema_says_what_an_order_is(world: World) -> None:
    paths: dict[str, Any] = world.client().get("/api/v1/openapi.json").json()["paths"]
    for kind in ("acknowledge", "silence", "approve", "reject"):
        asked = paths[f"/api/v1/incidents/{{incident_id}}/{kind}"]["post"]["requestBody"]
        properties: Sequence[str] = asked["content"]["application/json"]["schema"]["properties"]
        ends = {"for", "until_ms"} if kind == "silence" else set()
        assert set(properties) == {"author", "comment"} | ends
