"""Who may what: every route by every role, keys that are over, tokens, buckets, and what other sites get to see."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr

from monitor import api, store
from monitor.api_orders import Desk
from monitor.keys import create
from monitor.settings import ApiSettings
from monitor.store import Store
from tests.monitor import issuer
from tests.monitor.issuer import Issuer
from tests.monitor.serving import ROLES, SECRETS, application
from tests.monitor.stored import FIRING, MODEL, endpoint, fill
from tests.monitor.test_api_orders import Client

NAME = MODEL.replace("/", "%2F")
MODELS = "GET /api/v1/models"
# What each route needs; "" is open. A route that is not here fails the test: say what it needs.
NEEDED = {
    "GET /healthz": "",
    "GET /readyz": "",
    "GET /approve": "",  # the token in it is the key
    "POST /approve": "",
    "GET /metrics": "read",
    "GET /api/v1/openapi.json": "read",
    MODELS: "read",
    f"{MODELS}/{{model:path}}": "read",
    f"{MODELS}/{{model:path}}/actions": "read",
    f"{MODELS}/{{model:path}}/budget": "read",
    f"{MODELS}/{{model:path}}/estimates": "read",
    f"{MODELS}/{{model:path}}/features/{{feature}}": "read",
    f"{MODELS}/{{model:path}}/features/{{feature}}/series": "read",
    f"{MODELS}/{{model:path}}/heat": "read",
    f"{MODELS}/{{model:path}}/performance": "read",
    f"{MODELS}/{{model:path}}/references": "read",
    f"{MODELS}/{{model:path}}/references/{{bins_id}}": "read",
    f"{MODELS}/{{model:path}}/verdicts": "read",
    f"{MODELS}/{{model:path}}/versions": "read",
    f"{MODELS}/{{model:path}}/versions/{{version:path}}/gate": "read",
    f"{MODELS}/{{model:path}}/windows": "read",
    "GET /api/v1/changes": "read",
    "GET /api/v1/deliveries": "read",
    "GET /api/v1/fleet": "read",
    "GET /api/v1/incidents": "read",
    "GET /api/v1/incidents/{incident_id}": "read",
    "GET /api/v1/ledger": "read",
    "GET /api/v1/silences": "read",
    "POST /api/v1/incidents/{incident_id}/acknowledge": "write",
    "POST /api/v1/incidents/{incident_id}/silence": "write",
    "POST /api/v1/incidents/{incident_id}/approve": "approve",
    "POST /api/v1/incidents/{incident_id}/reject": "approve",
    "POST /api/v1/labels": "write",
    "POST /api/v1/events": "write",
    "POST /api/v1/cloudevents": "write",
    "POST /api/v1/inferences": "write",
}
FILES = {f"/{file.relative_to(api.PAGE)}" for file in api.PAGE.rglob("*.*")} | {"/"}
FILES |= {"/vendor/LICENSE", "/docs"} | {f"/docs/{file.name}" for file in api.DOCS.iterdir()}


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with endpoint(tmp_path_factory.mktemp("access")) as database:
        store.migrate(database)
        link = store.connect(database)
        fill(link, days=2)
        yield link
        link.close()


def routes(app: FastAPI) -> set[str]:
    """Method and path of everything that the application answers."""
    found = set()
    for route in iter_route_contexts(app.routes):
        path = cast("str", getattr(route, "path", ""))
        found |= {f"{method} {path}" for method in getattr(route, "methods", None) or ["*"]}
    return found


def test_every_route_by_every_role(filled: Store) -> None:
    app = application(filled)
    assert routes(app) - {f"* {file}" for file in FILES} == set(NEEDED)
    client = Client(app)
    wrong = []
    for (route, needed), (role, scopes) in product(
        NEEDED.items(), [("nobody", ()), *ROLES.items()]
    ):
        method, path = route.split(" ")
        path = re.sub(r"{model[^}]*}", NAME, path).replace("{incident_id}", FIRING)
        path = re.sub(r"{[^}]*}", "x", path)
        headers = {"X-API-Key": SECRETS[role]} if role in SECRETS else {}
        answer = client.request(method, path, headers=headers)
        refused = 401 if role == "nobody" else 403
        expected = needed != "" and needed not in scopes
        by_role = answer.headers["content-type"].startswith("application/problem+json")
        if (answer.status_code == refused and by_role) != expected:
            wrong.append((route, role, answer.status_code))
    assert wrong == []


def test_the_files_of_the_pages_are_open_and_only_to_be_read(filled: Store) -> None:
    client = Client(application(filled))
    for path in FILES:
        assert client.get(path).status_code == 200, path
        assert client.post(path).status_code == 405, path
    assert client.get("/docs/../api.py").status_code == 404
    assert client.get("/docs/%2e%2e/api.py").status_code == 404


def test_a_method_that_a_route_has_not_is_a_405_that_names_those_it_has(filled: Store) -> None:
    client = Client(application(filled))
    answer = client.request("DELETE", "/api/v1/models", headers={"X-API-Key": SECRETS["all"]})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({}, 401, "give a key"),
        ({"X-API-Key": SECRETS["reader"]}, 200, ""),
        ({"Authorization": f"Bearer {SECRETS['reader']}"}, 200, ""),
        ({"Authorization": f"bearer {SECRETS['reader']}"}, 200, ""),
        ({"Authorization": f"Basic {basic('any:' + SECRETS['reader'])}"}, 200, ""),
        ({"Authorization": f"Basic {basic(SECRETS['reader'])}"}, 401, "give a key"),
        ({"Authorization": f"Basic {SECRETS['reader']}"}, 401, "give a key"),
        ({"Authorization": f"Basic {basic('a:' + SECRETS['writer'])}"}, 403, "writer may not read"),
        ({"X-API-Key": SECRETS["reader"], "Authorization": "Basic cHJveHk6eA=="}, 200, ""),
        ({"X-API-Key": SECRETS["reader"][:-1]}, 401, "no such key"),
        ({"X-API-Key": SECRETS["writer"]}, 403, "writer may not read"),
        ({"Authorization": "Bearer a.b.c"}, 401, "no such key"),
    ],
)
def test_a_key_is_shown_in_either_header(
    headers: dict[str, str], status: int, says: str, filled: Store
) -> None:
    answer = Client(application(filled)).get("/api/v1/models", headers=headers)
    assert answer.status_code == status
    assert says in answer.json().get("detail", "")
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert not any(secret in answer.text for secret in SECRETS.values())


def test_a_key_that_is_over_is_told_so(filled: Store) -> None:
    secret, key = create("old", ["read"], b"o" * 32, now_ms=0, lasts_days=1)
    client = Client(api.create_app(filled, ApiSettings(keys=SecretStr(key.line))))
    answer = client.get("/api/v1/models", headers={"X-API-Key": secret})
    assert (answer.status_code, answer.json()["detail"]) == (401, "the key old is over")


def of_issuer(running: Issuer, filled: Store, **more: Any) -> Client:
    settings = running.settings.model_copy(update=more)
    orders = Desk(lambda _: None, lambda: 5)
    return Client(api.create_app(filled, settings, desk=orders))


def test_a_token_may_what_its_roles_may_beside_keys(filled: Store) -> None:
    secret, key = create("ci", ["read"], b"c" * 32)
    with issuer.served() as running:
        client = of_issuer(running, filled, keys=SecretStr(key.line))
        approve = f"/api/v1/incidents/{FIRING}/approve"
        for roles, statuses in (
            (["viewer"], (200, 403)),
            (["sre"], (200, 409)),  # there is nothing to approve, and who asks might
            (["other"], (403, 403)),
        ):
            bearer = {"Authorization": f"Bearer {running.token(roles=roles)}"}
            read = client.get("/api/v1/models", headers=bearer)
            said = client.post(approve, json={}, headers=bearer)
            assert (read.status_code, said.status_code) == statuses
        assert client.get("/api/v1/models", headers={"X-API-Key": secret}).status_code == 200
        expired = {"Authorization": f"Bearer {running.token(exp=1)}"}
        told = client.get("/api/v1/models", headers=expired)
        assert (told.status_code, told.json()["detail"]) == (401, "the token has expired")


def test_while_the_issuer_is_away_tokens_are_a_503_and_keys_are_good(filled: Store) -> None:
    secret, key = create("ci", ["read"], b"c" * 32)
    with issuer.served() as running:
        token = running.token()
        client = of_issuer(running, filled, keys=SecretStr(key.line))
    answer = client.get("/api/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert client.get("/api/v1/models", headers={"X-API-Key": secret}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_who_asks_too_often_waits_and_holds_nobody_else_up(filled: Store) -> None:
    keys = "\n".join(create(name, ["read"], name.encode() * 16)[1].line for name in ("ab", "cd"))
    first, second = (
        {"X-API-Key": create(name, ["read"], name.encode() * 16)[0]} for name in ("ab", "cd")
    )
    settings = ApiSettings(keys=SecretStr(keys), rate_per_s=0.01, burst=3)
    client = Client(api.create_app(filled, settings))
    statuses = [client.get("/api/v1/models", headers=first).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = client.get("/api/v1/models", headers=first)
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert client.get("/api/v1/models", headers=second).status_code == 200
    assert [client.get("/").status_code for _ in range(4)] == [200, 200, 200, 429], "by address"
    guesses = [client.get("/api/v1/models", headers={"X-API-Key": f"k{i}"}) for i in range(3)]
    assert {guess.status_code for guess in guesses} == {429}, "whatever key is tried"
    assert client.get("/healthz").status_code == 200, "the cluster's own question is not counted"


def test_no_other_site_may_read_an_answer(filled: Store) -> None:
    client = Client(application(filled))
    origin = {"Origin": "https://evil.example", "X-API-Key": SECRETS["all"]}
    answer = client.get("/api/v1/models", headers=origin)
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    preflight = client.request("OPTIONS", "/api/v1/labels", headers=asked)
    assert preflight.status_code == 405
    for told in (answer, preflight):
        assert not [name for name in told.headers if name.startswith("access-control-")]


def test_an_answer_that_is_the_same_is_not_sent_again(filled: Store) -> None:
    client, key = Client(application(filled)), {"X-API-Key": SECRETS["reader"]}
    path = f"/api/v1/models/{NAME}/windows"
    first = client.get(path, headers=key)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    assert "X-API-Key" in first.headers["vary"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get(path, headers={**key, "If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert "content-length" not in again.headers
    other = client.get(path, params={"limit": 1}, headers={**key, "If-None-Match": tag})
    assert (other.status_code, other.headers["etag"] != tag) == (200, True)
    unknown = client.get(path, headers={"If-None-Match": "*"})
    assert unknown.status_code == 401, "who may not read learns nothing of what there is"
    assert unknown.headers["cache-control"] == "no-store"
    assert client.get("/metrics", headers=key).headers["cache-control"] == "no-store"


def test_docs_come_from_here_and_run_no_script_of_the_page_itself(filled: Store) -> None:
    page = Client(application(filled)).get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert re.findall(r"<script(?![^>]*\bsrc=)", page.text) == []
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {f"/{name}" for name in loaded} <= FILES
    assert "http" not in (api.DOCS / "docs.js").read_text()
