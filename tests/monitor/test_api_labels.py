"""Labels over HTTP: what is accepted, what is said of the rest, and that nothing is claimed which the broker has not got."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from pydantic import SecretStr

from monitor import api
from monitor.api_labels import MAX_BODY
from monitor.api_orders import Desk
from monitor.errors import TransientError
from monitor.labels import MAX_SHOWN, Label
from monitor.settings import ApiSettings
from monitor.store import Store
from monitor.wire import Command
from tests.monitor.door import BROKER_AWAY
from tests.monitor.test_api_orders import Client

NOW = 1_700_000_000_000
AT = "/api/v1/labels"
TIME, TIME_MS = "2013-02-01T05:17:00Z", 1_359_695_820_000
GOOD: dict[str, Any] = {"id": "a", "model": "m", "label": 1, "ts": TIME}
JSON, CSV = {"Content-Type": "application/json"}, {"Content-Type": "text/csv; charset=utf-8"}


@dataclass
class World:
    """A topic that takes labels, and a database that knows join keys."""

    failure: Exception | None = None
    away: bool = False
    taken: list[Label] = field(default_factory=list)
    asked: int = 0

    def take(self, labels: Sequence[Label]) -> None:
        if self.failure is not None:
            raise self.failure
        self.taken += labels

    def join_keys(self) -> dict[str, list[str]]:
        if self.away:
            raise TransientError("the database at 10.0.0.1 does not answer")
        self.asked += 1
        return {"keyed": ["request_id"]}

    def client(self, *, broker: bool = True, **settings: Any) -> Client:
        def give(command: Command) -> None:
            raise AssertionError(command)

        desk = Desk(give, lambda: NOW, take=self.take if broker else None)
        app = api.create_app(cast("Store", self), ApiSettings.model_validate(settings), desk=desk)
        return Client(app)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (msgspec.json.encode(GOOD), JSON),
        (msgspec.json.encode([GOOD]), JSON),
        (f"\ufeffid,model,label,ts\r\na,m,true,{TIME}\r\n".encode(), CSV),
    ],
)
def test_a_label_is_taken_in_each_form(
    world: World, content: bytes, headers: dict[str, str]
) -> None:
    answer = world.client().post(AT, content=content, headers=headers)
    assert (answer.status_code, world.taken) == (202, [Label("m", TIME_MS, "a", "1")])
    assert answer.json() == {
        "accepted": 1,
        "refused": 0,
        "reasons": {},
        "errors": [],
        "truncated": False,
    }


def test_a_label_without_a_time_has_that_of_its_arrival(world: World) -> None:
    world.client().post(AT, json=GOOD | {"ts": None})
    assert [label.ts_ms for label in world.taken] == [NOW]


def test_the_good_rows_are_taken_and_the_others_are_named(world: World) -> None:
    rows = [GOOD, GOOD | {"label": None}, GOOD | {"id": "b"}, GOOD | {"ts": "hunter2"}, 5]
    answer = world.client().post(AT, json=rows)
    assert (answer.status_code, [label.id for label in world.taken]) == (202, ["a", "b"])
    said = answer.json()
    assert (said["accepted"], said["refused"]) == (2, 3)
    assert [(row["row"], row["reason"]) for row in said["errors"]] == [
        (2, "missing_field"),
        (4, "bad_timestamp"),
        (5, "wrong_type"),
    ]
    assert "hunter2" not in answer.text


def test_the_list_of_refused_rows_is_bounded(world: World) -> None:
    said = world.client().post(AT, json=[GOOD] + [{}] * 5_000).json()
    assert (said["refused"], len(said["errors"]), said["truncated"]) == (5_000, MAX_SHOWN, True)


@pytest.mark.parametrize(
    ("content", "headers", "detail"),
    [
        (b'{"id": "a"}', JSON, "not one row"),
        (b"[{}, {}]", JSON, "not one row"),
        (b"hello", JSON, "not one row"),
        (b"", JSON, "not one row"),
        (b"[{]", JSON, "malformed array"),
        (b"[" * 100_000, JSON, "malformed array"),
        (b"", CSV, "without a header row"),
        (b"id,id,label,model\n", CSV, "twice"),
        (b"id,model\na,m\n", CSV, "not one row"),
    ],
)
def test_what_holds_no_label_is_a_problem(
    world: World, content: bytes, headers: dict[str, str], detail: str
) -> None:
    answer = world.client().post(AT, content=content, headers=headers)
    assert (answer.status_code, world.taken) == (422, [])
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert detail in said["detail"]
    if detail == "not one row":
        assert said["errors"][0]["row"] == 1


def test_nothing_to_take_is_no_mistake(world: World) -> None:
    for content, headers in ((b"[]", JSON), (b"id,model,label\n", CSV)):
        answer = world.client().post(AT, content=content, headers=headers)
        assert (answer.status_code, answer.json()["accepted"]) == (202, 0)


def test_the_join_key_of_a_model_stands_for_the_id(world: World) -> None:
    client = world.client()
    client.post(AT, json=GOOD)
    assert world.asked == 0, "an id is enough"
    row = {"model": "keyed", "label": 1, "request_id": "r"}
    said = client.post(AT, json=[row, row, row | {"model": "m"}]).json()
    assert (said["accepted"], said["refused"], world.asked) == (2, 1, 1)
    assert {label.id for label in world.taken} == {"a", "r"}


@pytest.mark.parametrize(("failure", "detail", "again"), BROKER_AWAY)
def test_nothing_is_claimed_while_the_broker_is_away(
    failure: Exception, detail: str, again: str | None
) -> None:
    answer = World(failure).client().post(AT, json=[GOOD, {}])
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, again)
    assert detail in answer.json()["detail"]
    assert "accepted" not in answer.json()
    assert "10.0.0" not in answer.text


def test_a_database_that_is_away_is_missed_only_where_a_join_key_is_needed() -> None:
    client = World(away=True).client()
    assert client.post(AT, json=GOOD).status_code == 202
    answer = client.post(AT, json={"model": "keyed", "label": 1, "request_id": "r"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_an_api_without_a_broker_says_how_else_to_load_labels(world: World) -> None:
    answer = world.client(broker=False).post(AT, json=GOOD)
    assert answer.status_code == 503
    assert "driftline labels load" in answer.json()["detail"]


def test_labels_need_the_key_and_come_from_no_page_of_another_site(world: World) -> None:
    client = world.client(key=SecretStr("k" * 32))
    key = {"X-API-Key": "k" * 32}
    assert client.post(AT, json=GOOD).status_code == 401
    foreign = {**key, "Origin": "https://evil.example"}
    assert client.post(AT, json=GOOD, headers=foreign).status_code == 403
    plain = {**key, "Content-Type": "text/plain"}  # what a page can send without asking
    assert client.post(AT, content=b"id", headers=plain).status_code == 415
    assert world.taken == []
    assert client.post(AT, json=GOOD, headers=key).status_code == 202


def test_a_body_is_bounded_even_if_its_length_is_not_said(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 100_000 + 1):
            yield b" " * 100_000

    for content in (b" " * (MAX_BODY + 1), endless()):
        answer = world.client().post(AT, content=content, headers=JSON)
        assert answer.status_code == 413
        assert str(MAX_BODY) in answer.json()["detail"]


def test_a_full_body_of_the_smallest_labels_is_taken(world: World) -> None:
    row = b'{"id":%d,"model":"m","label":1}'
    content = b"[" + b",".join(row % i for i in range(29_000)) + b"]"
    assert 0.9 * MAX_BODY < len(content) <= MAX_BODY
    assert world.client().post(AT, content=content, headers=JSON).json()["accepted"] == 29_000


def test_the_schema_says_what_a_label_is(world: World) -> None:
    paths: dict[str, Any] = world.client().get("/api/v1/openapi.json").json()["paths"]
    content = paths[AT]["post"]["requestBody"]["content"]
    (label, _) = content["application/json"]["schema"]["oneOf"]
    assert set(label["properties"]) == set(GOOD)
    assert "text/csv" in content
