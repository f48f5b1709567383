from __future__ import annotations

import hashlib
import logging
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest
from pydantic import SecretStr

from monitor import api, api_page, store
from monitor.api_orders import Desk
from monitor.approvals import Approval
from monitor.errors import ConfigError
from monitor.observed import Observed
from monitor.settings import ApiSettings, ApprovalSettings, ClickHouseSettings, Settings
from monitor.store import Store
from monitor.tables import delivery_row, to_table
from monitor.wire import Command, Delivery
from streams.supervisor import LOOPBACK, free_port
from tests.monitor.serving import served
from tests.monitor.stored import DAY, EVENTS, FIRING, MODEL, START, endpoint, fill

DAYS = 30
NAME = MODEL.replace("/", "%2F")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("api")) as settings:
        store.migrate(settings)
        yield settings


@pytest.fixture(scope="module")
def filled(database: ClickHouseSettings) -> Iterator[Store]:
    link = store.connect(database)
    fill(link, days=DAYS)
    yield link
    link.close()


Serve: TypeAlias = Callable[..., httpx.Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an application on a free port, and gives a client of it."""
    with ExitStack() as opened:

        def start(
            link: Store, settings: ApiSettings | None = None, desk: Desk | None = None
        ) -> httpx.Client:
            app = api.create_app(link, settings or ApiSettings(), desk=desk)
            address = opened.enter_context(served(app))
            return opened.enter_context(httpx.Client(base_url=address, trust_env=False))

        yield start


@pytest.fixture
def client(serve: Serve, filled: Store) -> httpx.Client:
    return serve(filled)


def test_health_and_readiness_answer(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_a_model_is_found_by_its_name_even_with_a_slash_in_it(client: httpx.Client) -> None:
    (row,) = client.get("/api/v1/models").json()["items"]
    assert client.get(f"/api/v1/models/{NAME}").json() == row
    assert (row["model"], row["versions"], row["sizes_ms"]) == (MODEL, ["7"], [DAY])
    assert row["spec"]["notify"][0]["slack"]["url"] == "env:SLACK_WEBHOOK"


def test_the_page_asks_for_nothing_that_the_api_does_not_have(client: httpx.Client) -> None:
    scripts = "".join(path.read_text() for path in sorted((api.PAGE / "views").glob("*.js")))
    asked = re.findall(r"ask(?:IfAny)?\(([`\"])(.+?)\1", scripts)
    # In a view, `path` is a model's address, and in one function that of a feature.
    places = [path.replace("${path}", "/api/v1/models/*") for _, path in asked]
    wanted = {re.sub(r"\$\{.+?\}", "*", place) for place in places}
    known = client.get("/api/v1/openapi.json").json()["paths"]
    shapes = {re.sub(r"\{.+?\}", "*", path) for path in known}
    assert len(wanted) >= 12
    assert wanted - shapes == {"/api/v1/models/*/series"}, "of a feature"


def test_the_fleet_says_what_is_wrong_with_which_model(client: httpx.Client) -> None:
    (row,) = client.get("/api/v1/fleet").json()["items"]
    assert (row["model"], row["firing"], row["severity"]) == (MODEL, 1, "error")
    assert (row["incident_id"], row["features"]) == (FIRING, 3)
    assert (row["serving"], row["versions"]) == (["7"], 1)
    assert row["last_ms"] == START + DAYS * DAY
    assert row["rate"] == pytest.approx(EVENTS / 86_400)


def test_the_heat_map_has_in_each_column_the_worst_of_its_windows(client: httpx.Client) -> None:
    at = f"/api/v1/models/{NAME}/heat"
    span: dict[str, str | int] = {
        "version": "7",
        "size_ms": DAY,
        "from_ms": START,
        "to_ms": START + DAYS * DAY,
    }
    fine = client.get(at, params={**span, "columns": DAYS}).json()
    assert (fine["from_ms"], fine["column_ms"], fine["columns"]) == (START, DAY, DAYS)
    assert fine["statistics"] == ["ks", "psi"]
    rows = {row["feature"]: row for row in fine["features"]}
    assert set(rows) == {"carrier", "temp", "wind_speed", "$score"}
    assert fine["features"][0]["feature"] == "wind_speed", "the worst comes first"
    verdicts = client.get(f"/api/v1/models/{NAME}/verdicts", params={"feature": "wind_speed"})
    for verdict in verdicts.json()["items"]:
        day = (verdict["start_ms"] - START) // DAY
        ratio = rows["wind_speed"]["ratios"][day]
        assert ratio == pytest.approx(verdict["value"] / verdict["limit"], rel=0.005)
        assert fine["statistics"][rows["wind_speed"]["which"][day]] == "psi"
    coarse = client.get(at, params={**span, "columns": 7}).json()
    assert (coarse["column_ms"], coarse["columns"]) == (5 * DAY, 6), "whole windows only"
    for row in coarse["features"]:
        ratios = rows[row["feature"]]["ratios"]
        assert row["ratios"] == [max(ratios[i : i + 5]) for i in range(0, DAYS, 5)]
        assert row["worst"] == max(ratios)
    one = client.get(at, params={**span, "columns": DAYS, "statistic": "ks"}).json()
    (temp,) = one["features"]
    assert (temp["feature"], temp["worst"]) == ("temp", None)
    assert temp["ratios"] == [None] * DAYS, "too few to say is not fine"
    nothing = client.get(at, params={**span, "version": "8"}).json()
    assert (nothing["features"], nothing["statistics"]) == ([], [])
    assert client.get(at, params={**span, "columns": 201}).status_code == 422
    backwards = client.get(at, params={**span, "to_ms": 0}).json()
    assert backwards["columns"] == 1


def test_readers_are_told_of_changes_and_let_go_when_the_api_stops(filled: Store) -> None:
    stop = threading.Event()
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen(address: str) -> None:
        with httpx.stream("GET", f"{address}/api/v1/changes", timeout=20, trust_env=False) as found:
            assert found.headers["content-type"].startswith("text/event-stream")
            for line in found.iter_lines():
                if line.startswith("event:"):
                    told.put(line)

    app = api.create_app(filled, ApiSettings(), stop=stop)
    with served(app) as address, ThreadPoolExecutor(1) as thread:
        listening = thread.submit(listen, address)
        assert told.get(timeout=10) == "event: changed"
        with pytest.raises(queue.Empty):
            told.get(timeout=2 * api_page.LOOK_S)
        # One that is there already: other tests count them.
        again = Delivery("d1", FIRING, "slack", "notify", "delivered", 2, START + DAYS * DAY)
        filled.append("deliveries", to_table("deliveries", [delivery_row(again)]), token="again")
        assert told.get(timeout=10) == "event: changed"
        stop.set()
        listening.result(timeout=5)


def test_only_so_many_readers_may_listen(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_page, "MAX_READERS", 1)
    stop = threading.Event()
    app = api.create_app(filled, ApiSettings(), stop=stop)
    with served(app) as address, httpx.Client(base_url=address, trust_env=False) as client:
        with client.stream("GET", "/api/v1/changes") as first:
            lines = first.iter_lines()  # held: the stream ends with it
            assert next(lines) == "event: changed"
            assert client.get("/api/v1/changes").status_code == 503
        deadline = time.monotonic() + 10
        while True:  # the first has gone, which is noticed a moment later
            with client.stream("GET", "/api/v1/changes") as again:
                if again.status_code == 200:
                    break
            assert time.monotonic() < deadline, "a reader who has left is still counted"
            time.sleep(0.1)
        stop.set()


def test_who_is_given_the_models_is_told_where_their_dashboards_are(
    serve: Serve, filled: Store
) -> None:
    key, grafana = "k" * 32, "https://grafana.example/ops"
    client = serve(filled, ApiSettings(key=SecretStr(key), grafana_url=f"{grafana}/"))
    told = client.get("/api/v1/models", headers={"X-API-Key": key}).headers["link"]
    assert told == f'<{grafana}>; rel="related"; title="Grafana"'
    for place in ("fleet", f"models/{NAME}"):
        beside = client.get(f"/api/v1/{place}", headers={"X-API-Key": key}).headers["link"]
        assert beside == told, "what the page asks for says so as well"
    (pattern,) = re.findall(r"/(\^<.+?\$)/\.exec", (api.PAGE / "api.js").read_text())
    found = re.fullmatch(pattern, told)
    assert found is not None
    assert found[1] == grafana, "and the page finds it there"
    assert "link" not in client.get("/api/v1/models").headers, "nobody without a key is"
    assert "link" not in client.get("/").headers
    assert "link" not in serve(filled).get("/api/v1/models").headers


def test_a_gate_says_whether_a_version_may_go_on(client: httpx.Client) -> None:
    at = f"/api/v1/models/{NAME}/versions"
    found = client.get(f"{at}/7/gate")
    data = found.json()["data"]
    assert (found.status_code, data["ok"], data["state"]) == (200, False, "fail")
    assert (data["incidents"], data["windows"]) == ([FIRING], 1)
    unknown = client.get(f"{at}/9%2F9/gate", params={"least": 3}).json()["data"]
    assert (unknown["ok"], unknown["state"]) == (False, "unknown")
    assert unknown["reason"] == "0 of 3 windows have closed"
    later = client.get(f"{at}/7/gate", params={"from_ms": START + 2 * DAYS * DAY}).json()["data"]
    assert later["windows"] == 0, "a version that comes back is looked at anew"
    assert client.get(f"{at}/7/gate", params={"strict": True}).status_code == 409
    assert client.get(f"{at}/7/gate", params={"least": 0}).status_code == 422
    assert data["compared"] == {}
    proof = client.get(f"{at}/7/gate", params={"proven": True, "from_ms": START}).json()["data"]
    assert proof["state"] == "fail", "what fires comes first"


def test_the_versions_of_a_model_say_since_when_they_serve(client: httpx.Client) -> None:
    found = client.get(f"/api/v1/models/{NAME}/versions").json()
    end = START + DAYS * DAY
    seen = {"version": "7", "first_ms": START, "last_ms": end, "requests": DAYS * EVENTS}
    assert found == {"items": [seen], "truncated": False}
    assert client.get("/api/v1/models/none/versions").json()["items"] == []


def test_windows_come_newest_first_in_bounded_pages_without_a_gap(client: httpx.Client) -> None:
    path = f"/api/v1/models/{NAME}/windows"
    starts: list[int] = []
    to_ms = START + DAYS * DAY
    while True:
        page = client.get(path, params={"size_ms": DAY, "to_ms": to_ms, "limit": 7}).json()
        starts += [w["start_ms"] for w in page["items"] if w["start_ms"] not in starts]
        if not page["truncated"]:
            break
        assert len(page["items"]) == 7
        to_ms = page["items"][-1]["start_ms"] + 1
    assert starts == [START + day * DAY for day in reversed(range(DAYS))]
    assert client.get(path, params={"limit": DAYS}).json()["truncated"] is False
    assert client.get(path, params={"limit": DAYS - 1}).json()["truncated"] is True


def test_no_limit_goes_beyond_the_page_size_of_the_settings(serve: Serve, filled: Store) -> None:
    page = serve(filled, ApiSettings(page_size=3)).get(
        f"/api/v1/models/{NAME}/windows", params={"limit": 1000}
    )
    assert (len(page.json()["items"]), page.json()["truncated"]) == (3, True)


def test_a_feature_of_a_window_stands_beside_its_reference(client: httpx.Client) -> None:
    shown = client.get(
        f"/api/v1/models/{NAME}/features/carrier",
        params={"version": "7", "size_ms": DAY, "start_ms": START},
    ).json()
    assert shown["kind"] == "categorical"
    assert set(shown["labels"]) == {"UA", "B6", "EV", "DL"}
    assert sum(shown["counts"]) == EVENTS
    assert sum(shown["reference"]) == 6000


def test_a_feature_over_time_has_one_row_a_window(client: httpx.Client) -> None:
    rows = client.get(
        f"/api/v1/models/{NAME}/features/wind_speed/series", params={"size_ms": DAY}
    ).json()["items"]
    assert len(rows) == DAYS
    assert rows[0]["mean"] > 1.3 * rows[-1]["mean"]  # km/h against mph
    assert rows[0]["off_grid"] > 0.5 * EVENTS


def test_pages_go_on_inside_one_time_without_a_gap(client: httpx.Client) -> None:
    """Six verdicts have the same start: pages of four end between them."""
    for path, whole in (
        (f"/api/v1/models/{NAME}/verdicts", 6 * DAYS),
        (f"/api/v1/models/{NAME}/estimates", DAYS),
        ("/api/v1/incidents", 2),
        ("/api/v1/deliveries", 1),
        (f"/api/v1/models/{NAME}/actions", 0),
    ):
        rows: list[str] = []
        page = client.get(path, params={"limit": 4 if whole > 4 else 1})
        while True:
            rows += [str(row) for row in page.json()["items"]]
            assert page.json()["truncated"] == ("next" in page.links)
            if "next" not in page.links:
                break
            page = client.get(page.request.url.join(page.links["next"]["url"]))
        assert len(rows) == len(set(rows)) == whole, path


def test_incidents_and_deliveries_are_of_the_times_that_are_asked_for(
    client: httpx.Client,
) -> None:
    firing = client.get(f"/api/v1/incidents/{FIRING}").json()
    for path, at_ms in (
        ("/api/v1/incidents", firing["opened_ms"]),
        ("/api/v1/deliveries", START + DAYS * DAY),
    ):
        span = {"from_ms": at_ms, "to_ms": at_ms + 1}
        assert len(client.get(path, params=span).json()["items"]) == 1
        assert client.get(path, params={"from_ms": at_ms + 1}).json()["items"] == []


def test_a_model_has_references_with_bins_and_counts(client: httpx.Client) -> None:
    path = f"/api/v1/models/{NAME}/references"
    (row,) = client.get(path).json()["items"]
    (model,) = client.get("/api/v1/models").json()["items"]
    assert (row["bins_id"], row["current"], row["features"]) == (model["bins_id"], True, 3)
    fields = {f["feature"]: f for f in client.get(f"{path}/{row['bins_id']}").json()["items"]}
    assert set(fields) >= {"carrier", "wind_speed", "temp", "$score"}
    assert sum(fields["carrier"]["counts"]) == 6000
    assert len(fields["temp"]["counts"]) == len(fields["temp"]["edges"]) + 1
    assert client.get(f"/api/v1/models/none/references/{row['bins_id']}").status_code == 404
    assert client.get("/api/v1/models/none/references").json()["items"] == []


def test_verdicts_are_filtered_by_statistic_and_status(client: httpx.Client) -> None:
    path = f"/api/v1/models/{NAME}/verdicts"
    psi = client.get(path, params={"statistic": "psi"}).json()["items"]
    assert {row["statistic"] for row in psi} == {"psi"}
    breached = client.get(path, params={"status": "breach"}).json()["items"]
    assert {row["status"] for row in breached} == {"breach"}
    assert breached[0]["value"] > breached[0]["limit"]
    nothing = client.get(path, params={"statistic": "ks"}).json()["items"][0]
    assert (nothing["status"], nothing["value"]) == ("no_data", None)


def test_performance_incidents_deliveries_and_the_ledger_are_shown(client: httpx.Client) -> None:
    rows = client.get(f"/api/v1/models/{NAME}/performance").json()["items"]
    assert len(rows) == DAYS
    assert 0.78 <= rows[0]["metrics"]["accuracy"] <= 0.83
    firing = client.get("/api/v1/incidents", params={"state": "firing"}).json()["items"]
    assert [incident["id"] for incident in firing] == [FIRING]
    assert client.get(f"/api/v1/incidents/{FIRING}").json() == firing[0]
    sent = client.get("/api/v1/deliveries", params={"incident_id": FIRING}).json()["items"]
    assert [(d["target"], d["outcome"], d["attempts"]) for d in sent] == [("slack", "delivered", 2)]
    report = client.get("/api/v1/ledger").json()
    assert report["total"]["events"] == DAYS * EVENTS + 3
    assert (report["total"]["dead"], report["total"]["unaccounted"]) == (3, 0)


def test_an_estimate_stands_beside_what_the_labels_said(client: httpx.Client) -> None:
    path = f"/api/v1/models/{NAME}/estimates"
    rows = client.get(path, params={"metric": "accuracy"}).json()["items"]
    labelled = client.get(f"/api/v1/models/{NAME}/performance").json()["items"]
    assert len(rows) == DAYS
    assert {(row["metric"], row["estimate"], row["low"], row["high"]) for row in rows} == {
        ("accuracy", 0.8, 0.75, 0.85)
    }
    assert [row["realised"] for row in rows] == [row["metrics"]["accuracy"] for row in labelled]
    assert [row["error"] for row in rows] == pytest.approx([row["realised"] - 0.8 for row in rows])
    assert (rows[0]["labelled"], rows[0]["predictions"], rows[0]["final"]) == (190, EVENTS, True)
    assert client.get(path, params={"metric": "f1"}).json()["items"] == []


def test_the_budget_of_a_model_stands_beside_its_incidents(
    client: httpx.Client, filled: Store
) -> None:
    spent = client.get(f"/api/v1/models/{NAME}/budget").json()
    assert (spent["model"], spent["false_alarms"], spent["per_ms"]) == (MODEL, 1.0, 30 * DAY)
    assert (spent["watched_ms"], spent["expected"]) == (DAYS * DAY, 1.0)
    assert spent["opened"] == spent["recent_opened"] == {"pipeline_fault": 2}
    assert spent["chance"] == pytest.approx(1 - 2 / 2.718281828, rel=1e-6)  # P(Poisson(1) >= 2)
    assert sum(spent["shares"].values()) == pytest.approx(1.0)
    Observed(filled).look()
    body = client.get("/metrics").text
    assert "driftline_budget_false_alarms 1.0" in body
    assert 'driftline_budget_incidents_opened{cause="pipeline_fault"} 2.0' in body
    assert 'driftline_budget_incidents_opened{cause="drift"} 0.0' in body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/models/none", 404),
        ("/api/v1/models/none/budget", 404),
        ("/api/v1/incidents/none", 404),
        (f"/api/v1/models/{NAME}/windows?from_ms=x", 422),
        (f"/api/v1/models/{NAME}/windows?limit=0", 422),
        (f"/api/v1/models/{NAME}/verdicts?status=fine", 422),
        (f"/api/v1/models/{NAME}/features/temp?version=7&size_ms=1&start_ms=0", 404),
        ("/nowhere", 404),
    ],
)
def test_errors_are_problem_documents(client: httpx.Client, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


def test_with_a_key_only_the_probes_and_the_pages_own_files_are_open(
    serve: Serve, filled: Store
) -> None:
    client = serve(filled, ApiSettings(key=SecretStr("k" * 32)))
    opened = ("/healthz", "/readyz", "/", "/page.js")
    guarded = ("/metrics", "/api/v1/openapi.json", "/api/v1/ledger", f"/api/v1/models/{NAME}")
    for path in opened:
        assert client.get(path).status_code == 200, path
    for path in guarded:
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers={"X-API-Key": "k" * 31}).status_code == 401, path
        assert client.get(path, headers={"X-API-Key": "k" * 32}).status_code == 200, path


def test_every_route_but_the_probes_is_behind_the_key(serve: Serve, filled: Store) -> None:
    client = serve(filled, ApiSettings(key=SecretStr("k" * 32)))
    schema = client.get("/api/v1/openapi.json", headers={"X-API-Key": "k" * 32}).json()
    for path, methods in schema["paths"].items():
        concrete = re.sub(r"{[^}]*}", "x", path)
        expected = 200 if path in ("/healthz", "/readyz") else 401
        for method in methods:
            assert client.request(method, concrete).status_code == expected, path


def test_without_a_key_only_loopback_names_are_answered(serve: Serve, filled: Store) -> None:
    client = serve(filled)
    assert client.get("/api/v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/v1/models", headers={"Host": "localhost:8080"}).status_code == 200


def test_the_page_is_self_contained_and_may_load_nothing_from_elsewhere(
    client: httpx.Client,
) -> None:
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200, name
    ours = [path for path in api.PAGE.rglob("*.*") if path.parent.name != "vendor"]
    assert len(ours) >= 15
    for file in ours:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text, file.name
        assert "innerHTML" not in text, file.name


def test_the_vendored_library_is_as_its_authors_published_it() -> None:
    """uPlot 1.6.32, ``dist/`` of the npm package ``uplot``; its licence asks to stay with it."""
    vendored = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (api.PAGE / "vendor").iterdir()
    }
    assert vendored == {
        "LICENSE": "8f989229699b4fe2",
        "uPlot.iife.min.js": "19c8d4c6ad88929a",
        "uPlot.min.css": "df630c6a8d6f8eea",
    }


def test_an_order_that_waits_for_the_broker_holds_nobody_up(serve: Serve, filled: Store) -> None:
    given, broker = threading.Event(), threading.Event()

    def give(_: Command) -> None:
        given.set()
        assert broker.wait(10)

    client = serve(filled, desk=Desk(give, clock_ms=lambda: 5))
    path = f"/api/v1/incidents/{FIRING}/acknowledge"
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.post, path, json={"author": "ada"})
        assert given.wait(10)
        assert client.get("/healthz").status_code == 200
        assert not asked.done()
        broker.set()
        assert asked.result().json()["incident_id"] == FIRING


def test_metrics_count_answers_by_class_of_status(client: httpx.Client) -> None:
    client.get("/api/v1/models/none")
    body = client.get("/metrics").text
    assert re.search(r'driftline_api_requests_total\{status="4xx"\} [1-9]', body)


def test_a_database_that_goes_away_is_a_503_that_says_when_to_come_back(
    serve: Serve, tmp_path: Path
) -> None:
    with endpoint(tmp_path) as settings:
        store.migrate(settings)
        client = serve(store.connect(settings))
        assert client.get("/readyz").status_code == 200
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert client.get("/healthz").status_code == 200
    assert LOOPBACK not in answer.text


def test_tables_that_are_missing_are_a_503_that_names_the_doctor(
    serve: Serve, database: ClickHouseSettings
) -> None:
    nothing = store.connect(database.model_copy(update={"database": "nothing"}))
    answer = serve(nothing).get("/readyz")
    assert answer.status_code == 503
    assert "driftline doctor" in answer.json()["detail"]


def test_the_process_serves_until_it_is_told_to_stop(
    database: ClickHouseSettings, filled: Store
) -> None:
    port = free_port()
    settings = Settings(clickhouse=database, api=ApiSettings(port=port))
    stop = threading.Event()
    thread = threading.Thread(target=api.run, args=(settings, stop))
    thread.start()
    try:
        assert _models(port) == [MODEL]
        assert _metrics(port, "driftline_unaccounted_events 0.0")
        with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", trust_env=False) as kept:
            times = [kept.get("/healthz").elapsed.total_seconds() for _ in range(20)]
        assert min(times[1:]) < 0.03, "a body waits for the acknowledgement of its head: 40 ms"
        with pytest.raises(ConfigError, match="DRIFTLINE_API__PORT"):
            api.run(settings, stop)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_asyncio_knows_the_listener_for_tcp_and_so_does_not_delay_small_answers() -> None:
    with api._listen(ApiSettings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_token_stands_in_no_log(
    database: ClickHouseSettings,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret, port = "s" * 32, free_port()
    settings = Settings(
        clickhouse=database,
        api=ApiSettings(port=port),
        approvals=ApprovalSettings(secret=SecretStr(secret)),
    )
    good = Approval(FIRING, "retrain", 1 << 40).token(secret)
    stop = threading.Event()
    thread = threading.Thread(target=api.run, args=(settings, stop, lambda _: None))
    with caplog.at_level(logging.DEBUG):
        thread.start()
        try:
            _models(port)
            for token in (good, good[:-1]):
                address = f"http://{LOOPBACK}:{port}/approve"
                page = httpx.get(address, params={"token": token}, trust_env=False)
                assert page.status_code in (403, 404, 409)
        finally:
            stop.set()
            thread.join(10)
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    said = "\n".join(ours) + "".join(capfd.readouterr())
    assert "listening" in said
    assert good[:-1] not in said
    assert secret not in said


def _metrics(port: int, line: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if line in httpx.get(f"http://{LOOPBACK}:{port}/metrics", trust_env=False).text:
            return True
        time.sleep(0.1)
    return False


def _models(port: int) -> list[str]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"http://{LOOPBACK}:{port}/api/v1/models", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return [row["model"] for row in answer.json()["items"]]
    raise AssertionError("nobody answers")
