"""The README does what it says: each command runs, each file that it names is there, and the first own model works."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import httpx
import numpy as np
import pytest
import yaml
from confluent_kafka import Producer
from msgspec.structs import replace
from pydantic import SecretStr
from typing_extensions import override

from monitor import store as stores
from monitor import wire
from monitor.environment import environment, load
from monitor.events import MAX_BODY
from monitor.halves import Bounds
from monitor.settings import PREFIX, ApiSettings, ApprovalSettings
from monitor.spec import IngestSpec, load_spec, parse_spec
from monitor.targets import ActionTarget, NotifyTarget
from streams import wiring
from streams.client import DROP_REASONS, EXIT_S, Recorder
from streams.clients import put
from streams.embedded.stack import Stack, embedded_stack
from streams.supervisor import LOOPBACK, free_port
from streams.topics import partition_of
from tests.alerting.test_notify import FALLING
from tests.streams.taker import Broker

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTLE_S = 60.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.removeprefix("$ ")
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_every_command_is_known_to_these_tests() -> None:
    """A new command in the README needs a test: this list is where it would be missing."""
    tested = {
        "make demo",  # tests/test_end_to_end.py
        "make test",  # this run
        "make up",  # here
        ".venv/bin/driftline apply churn.yaml",  # here
        ".venv/bin/driftline doctor",  # here
        ".venv/bin/driftline ledger",  # here
        ".venv/bin/driftline incident list --open",  # here, and the others
        ".venv/bin/driftline incident show 3fa2c1",
        ".venv/bin/driftline incident acknowledge 3fa2c1",
        '.venv/bin/driftline incident silence 3fa2c1 --for 2h --comment "known, release at noon"',
        ".venv/bin/driftline incident approve 3fa2c1",
        ".venv/bin/driftline backtest --model churn --budget 1/7d --psi 0.1 --ks-p 0.05 --incidents known.csv",  # tests/streams/test_backtest.py
        ".venv/bin/driftline budget",  # here
        ".venv/bin/driftline drift team/flight-delay",  # tests/streams/test_read_commands.py, and the next
        ".venv/bin/driftline plot team/flight-delay wind_speed",
        ".venv/bin/driftline init events.jsonl --output churn.yaml",  # tests/streams/test_init_command.py
        ".venv/bin/driftline keys create ci --scope read",  # tests/streams/test_cli.py
        ".venv/bin/driftline labels load left.csv --model churn --id-column order --label-column left",  # tests/streams/test_cli.py
        "docker compose up --build --detach",  # tests/test_compose.py
    }
    assert {command for command in COMMANDS if not command.startswith("curl ")} == tested


@pytest.mark.parametrize(
    "target", sorted({c.split()[1] for c in COMMANDS if c.startswith("make ")})
)
def test_every_make_target_exists(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_every_file_that_is_linked_exists() -> None:
    linked = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What ``make up`` starts, on free ports, with what the README says that links need."""
    port, own = free_port(), load()
    public = {"port": port, "public_url": f"http://{LOOPBACK}:{port}"}
    settings = own.model_copy(
        update={
            "api": ApiSettings.model_validate(public),
            "approvals": ApprovalSettings(secret=SecretStr("s" * 48)),
            "dispatcher": own.dispatcher.model_copy(update={"allowed_networks": ("127.0.0.0/8",)}),
        }
    )
    with embedded_stack(settings, data_dir=tmp_path_factory.mktemp("up"), fresh=True) as running:
        yield running


def _command(command: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What a person types, by the interpreter that runs the tests."""
    words = shlex.split(command)
    assert words[0] == ".venv/bin/driftline"
    return subprocess.run(
        [sys.executable, "-m", "streams", *words[1:]],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _driftline(stack: Stack, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**environment(stack.settings), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return _command(command, cwd, env)


def _until(what: str, look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come within {SETTLE_S:g} s")


def _wait(stack: Stack, what: str, look: Callable[[], Any]) -> Any:
    def looked() -> Any:
        stack.poll()
        return look()

    return _until(what, looked)


class Stranger:
    """Whoever has nothing but the README, does what stands there, in that order, and believes what it promises.

    The clock is theirs: a prediction may be 300 s ahead of the broker's, so that minutes of traffic are there at once.
    """

    def __init__(self, folder: Path, addresses: dict[str, str], http: httpx.Client) -> None:
        self.folder, self.http = folder, http
        self.api = addresses["page"].rstrip("/")
        self.kafka = addresses["Kafka"]
        said = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": self.kafka,
            "DRIFTLINE_CLICKHOUSE__URL": addresses["ClickHouse"],
        }
        assert all(f"`{name}`" in README for name in said), "which nobody could have known"
        self.env = {**said, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        self.rng = np.random.default_rng(7)
        self.recorder: Recorder
        self.since_ms = 0
        self.labels: list[tuple[str, int]] = []
        self.incident: dict[str, Any] = {}
        self.accepted = self.aside = 0  # predictions by the recorder, and what came in another way

    def run(self, command: str) -> str:
        done = _command(command, self.folder, self.env)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, path: str) -> Any:
        answer = self.http.get(f"{self.api}/api/v1{path}")
        return answer.json() if answer.status_code == 200 else None

    def serve(self, events: int, from_s: float, to_s: float, *versions: str) -> None:
        """Traffic of the app between two times; version 2 reads the age in months."""
        for i, at_s in enumerate(np.linspace(from_s, to_s, events, endpoint=False)):
            version, wrong = versions[i % len(versions)], self.rng.random() < 0.1
            name, truth = f"{from_s:g}-{i}", int(self.rng.random() < 0.2)
            features = {
                "age": int(self.rng.integers(18, 90)) * (12 if version == "2" else 1),
                "country": str(self.rng.choice(["DE", "FR", "IT"])),
            }
            assert self.recorder.record(
                name,
                features,
                prediction=truth ^ wrong,
                score=float(self.rng.random()),
                version=version,
                ts=self.since_ms + int(1_000 * at_s),
            )
            self.labels.append((name, truth))
            self.accepted += 1
            if i % 1_000 == 999:
                self._sent()
        self._sent()

    def _sent(self) -> None:
        _until("the broker", lambda: self.recorder.stats().sent == self.accepted)

    # What stands in the README, block by block.

    def record(self, code: str) -> None:
        app: dict[str, Any] = {}
        exec(code.replace("127.0.0.1:9092", self.kafka), app)
        self.recorder, self.since_ms = app["recorder"], time.time_ns() // 1_000_000
        self.accepted = 1
        self.labels = [("a1", 0)]
        assert self.get("/models")["items"] == [], "not listed until then"

    def say_what_is_not_to_be_guessed(self, block: str) -> None:
        (self.folder / "churn.yaml").write_text(block)

    def apply(self, command: str) -> None:
        assert "churn" in self.run(command)
        self.serve(2_400, 0, 30, "1")
        _until("the reference", lambda: self.get("/models/churn"))
        assert [model["model"] for model in self.get("/models")["items"]] == ["churn"]

    def examine(self, command: str) -> None:
        self.run(command)

    def account(self, command: str) -> None:
        self.serve(1_600, 30, 100, "1")
        producer = Producer({"bootstrap.servers": self.kafka})
        producer.produce("driftline.predictions", value=b"not an event")
        assert producer.flush(20) == 0
        self.aside += 1
        total = self._accounted()
        assert (total["dead"], total["unaccounted"]) == (1, 0)
        assert total["calibrating"] >= 2_000
        assert f"{self.accepted + self.aside:,}" in self.run(command)

    def _accounted(self) -> dict[str, Any]:
        events = self.accepted + self.aside

        def whole() -> Any:
            total = (self.get("/ledger") or {}).get("total", {})
            return total if total.get("events") == events else None

        found: dict[str, Any] = _until(f"the account of {events} events", whole)
        return found

    def load_labels(self, command: str) -> None:
        rows = "".join(f"{name},{label}\n" for name, label in self.labels)
        (self.folder / "left.csv").write_text(f"order,left\n{rows}")
        assert f"{len(self.labels):,}" in self.run(command)

        def measured() -> Any:
            windows = (self.get("/models/churn/performance?size_ms=60000") or {}).get("items", [])
            return [w for w in windows if w["labelled"] == w["predictions"] > 1_000]

        windows = _until("the performance", measured)
        assert all(0.8 < window["metrics"]["accuracy"] < 1 for window in windows)

    def post(self, command: str) -> None:
        answer = _curl(self.api, command)
        assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
        self.aside += 1
        self._accounted()

    def allow_actions(self, block: str) -> None:
        """Adds them to the spec, and then makes the mistake that they are for."""
        spec = yaml.safe_load((self.folder / "churn.yaml").read_text())
        spec["actions"] = yaml.safe_load(block)["actions"]
        del spec["actions"]["rollback"]["dry_run"]
        (self.folder / "churn.yaml").write_text(yaml.safe_dump(spec))
        assert "keeps its reference" in self.run(".venv/bin/driftline apply churn.yaml")
        self.serve(3_600, 100, 280, "1", "2")

    def notice(self, command: str) -> None:
        def release() -> Any:
            found = json.loads(self.run(f"{command} --json"))
            return [x for x in found if x["cause"] == "bad_release"]

        (self.incident,) = _until("the incident", release)
        assert (self.incident["model"], self.incident["rollback_to"]) == ("churn", "1")
        assert self.incident["evidence"][0]["feature"] == "age"
        assert self.incident["id"][:8] in self.run(command)

    def order(self, command: str) -> None:
        command = command.replace("3fa2c1", self.incident["id"][:6])
        self.incident["said"] = self.run(command)

    def end(self) -> None:
        self.recorder.close()
        said = self.incident["said"]
        for line in ("acknowledge by ", "silence by ", ": known, release at noon", "approve by "):
            assert line in said
        assert "rollback asked for" in said
        again = f".venv/bin/driftline incident acknowledge {self.incident['id']}"
        done = _command(again, self.folder, self.env)
        assert (done.returncode, "has acknowledged it already" in done.stderr) == (2, True)

    def create_key(self, command: str) -> None:
        assert "ci" in self.run(command)

    def backtest(self, command: str) -> None:
        starts, ends = self.since_ms + 100_000, self.since_ms + 280_000
        known = f"start,end,name,feature\n{starts},{ends},months,age\n"
        (self.folder / "known.csv").write_text(known)
        assert "months" in self.run(command)

    def spend(self, command: str) -> None:
        assert "churn" in self.run(command)


# What the README has its reader do on the way, by how it begins, in its order; "": tried by a test of its own.
PATH: Final[dict[str, str]] = {
    "make up": "",  # before all that follows
    "from streams.client import Recorder": "record",
    "from fastapi import": "",  # test_the_middleware_of_the_readme_records_what_its_route_says
    "# churn.yaml": "say_what_is_not_to_be_guessed",
    ".venv/bin/driftline apply": "apply",
    ".venv/bin/driftline doctor": "examine",
    ".venv/bin/driftline ledger": "account",
    "features: {lat": "",  # test_vectors_in_the_readme_fit_into_a_spec
    ".venv/bin/driftline labels load": "load_labels",
    "curl ": "post",
    "ingest:": "",  # test_what_the_readme_says_of_ingest_fits_into_a_spec
    ".venv/bin/driftline drift": "",  # tests/streams/test_read_commands.py
    ".venv/bin/driftline plot": "",  # likewise
    ".venv/bin/driftline init": "",  # tests/streams/test_init_command.py
    "model: churn\nnotify:": "allow_actions",
    ".venv/bin/driftline incident list": "notice",
    ".venv/bin/driftline incident show": "order",
    ".venv/bin/driftline incident acknowledge": "order",
    ".venv/bin/driftline incident silence": "order",
    ".venv/bin/driftline incident approve": "order",
    "rules:": "",  # test_every_target_of_notifications_and_actions_is_in_the_readme
    "apiVersion: argoproj.io": "",  # tests/monitor/test_gate.py
    ".venv/bin/driftline keys create": "create_key",
    "api:\n  oidc_issuer": "",  # test_the_issuer_in_the_readme_is_a_setting
    ".venv/bin/driftline backtest": "backtest",
    ".venv/bin/driftline budget": "spend",
}
PATH_S: Final = 300.0  # the demo takes the other half of the ten minutes


def steps() -> Iterator[str]:
    """Commands and blocks of code between the first own model and running it for real, in the order of the README."""
    chapters = README.split("\n## Your own model\n")[1].split("\n## Run it for real\n")[0]
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", chapters, re.MULTILINE | re.DOTALL):
        if language == "console":
            yield from (x.removeprefix("$ ") for x in block.splitlines() if x.startswith("$ "))
        else:
            yield block


def test_the_path_has_every_step_of_the_readme_in_its_order() -> None:
    known = [next((name for name in PATH if step.startswith(name)), step) for step in steps()]
    assert known == list(PATH)


@pytest.mark.embedded
@pytest.mark.timeout(PATH_S + 100)
def test_a_stranger_comes_from_the_readme_to_an_incident_of_the_first_own_model(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    with _up(tmp_path) as addresses, httpx.Client(trust_env=False) as http:
        stranger = Stranger(tmp_path, addresses, http)
        for step in steps():
            (name,) = (name for name in PATH if step.startswith(name))
            if PATH[name]:
                getattr(stranger, PATH[name])(step)
        stranger.end()
    assert time.monotonic() - began < PATH_S


@contextmanager
def _up(folder: Path) -> Iterator[dict[str, str]]:
    """``make up`` as a person runs it, and the addresses that it prints."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    printed = folder / "printed"
    with printed.open("wb") as out:
        up = subprocess.Popen(
            ["make", "up"],
            cwd=ROOT,
            env={**environ, "DRIFTLINE_EMBEDDED__DATA_DIR": str(folder / "data")},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def addresses() -> dict[str, str]:
            assert up.poll() is None, printed.read_text()
            said = re.findall(
                r"^│ (page|API|Kafka|ClickHouse) +│ ([^ ,]+)", printed.read_text(), re.MULTILINE
            )
            return dict(said) if len(said) == 4 else {}

        yield _until("the addresses", addresses)
    finally:
        os.killpg(up.pid, signal.SIGINT)  # as Ctrl-C does
        up.wait(60)
    assert "Traceback" not in printed.read_text()


async def test_the_middleware_of_the_readme_records_what_its_route_says() -> None:
    _, code = blocks("python")
    broker = Broker()
    recorder = Recorder("churn", bootstrap="127.0.0.1:9", connect=broker.connect)
    app: dict[str, Any] = {"recorder": recorder, "model": AlwaysOne()}
    exec(code, app)
    transport = httpx.ASGITransport(app["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.post("/churn", json={"id": "a1", "age": 44})
    recorder.close()
    assert answer.json() == {"churn": 1}
    (event,) = broker.events(time.time_ns() // 1_000_000)
    assert (event.id, event.features, event.prediction) == ("a1", {"age": 44}, 1)
    assert event.latency_ms is not None


class AlwaysOne:
    """The model of the README's app."""

    def predict(self, _: dict[str, Any]) -> int:
        return 1


def test_the_readme_says_the_reasons_and_bounds_of_the_recorder() -> None:
    says = inspect.signature(Recorder).parameters
    assert (says["max_records"].default, says["max_bytes"].default) == (10_000, 16 << 20)
    assert "up to 10,000 predictions and 16 MiB wait" in README
    assert [reason for reason in DROP_REASONS if f"`{reason}`" not in README] == []
    assert "what waits has two seconds" in README
    assert EXIT_S == 2.0


def _curl(api: str, command: str) -> httpx.Response:
    """What curl does, on machines that have none."""
    _, url, said, header, flag, content = shlex.split(command)
    assert (said, flag) == ("-H", "-d")
    name, _, value = header.partition(": ")
    url = url.replace("http://127.0.0.1:8080", api)
    return httpx.post(url, content=content, headers={name: value}, trust_env=False)


def _becomes_worse(stack: Stack, model: str, folder: Path, **more: Any) -> None:
    """A model that waits for approval of a retrain: drift, and labels that fall with it."""
    hook = {"url": "https://ci.example/retrain", "secret": "env:NOWHERE"}
    spec = {"model": model, "actions": {"retrain": {"webhook": hook}}, **more}
    (folder / f"{model}.yaml").write_text(yaml.safe_dump(spec))
    applied = _driftline(stack, f".venv/bin/driftline apply {model}.yaml", folder)
    assert applied.returncode == 0, applied.stderr
    kafka, names = wiring.kafka(stack.settings), wiring.topics(stack.settings)
    partition = partition_of(model, stack.settings.kafka.detector_partitions)
    for message in FALLING:
        value = wire.encode(replace(message, model=model))
        put(kafka, logging.getLogger(__name__), names.verdicts, model, value, partition=partition)


@pytest.mark.embedded
@pytest.mark.timeout(240)
def test_an_action_is_approved_by_the_link_that_a_notification_brought(
    stack: Stack, tmp_path: Path
) -> None:
    links: list[str] = []
    pages: set[str] = set()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            links.extend(filter(None, [event["data"].get("approve_url")]))
            pages.add(event["data"]["page_url"])
            self.send_response(204)
            self.end_headers()

        @override
        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "secret").write_text("x" * 32)
    with ThreadingHTTPServer((LOOPBACK, 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{LOOPBACK}:{server.server_port}/"
        told = {"webhook": {"url": url, "secret": f"file:{tmp_path / 'secret'}"}}
        _becomes_worse(stack, "trips", tmp_path, notify=[told])
        _wait(stack, "the notification", lambda: links)
        server.shutdown()
    (link,) = set(links)
    address, _, token = link.partition("?token=")
    store = stores.connect(stack.settings.clickhouse)
    (incident,) = _wait(
        stack,
        "the incident",
        lambda: [x for x in store.incidents("trips") if x.advice == "retrain"],
    )
    assert f"{stack.api}/#/incidents/{incident.id}" in pages
    with httpx.Client(trust_env=False) as person:
        assert "Retrain?" in person.get(link).text
        orders = f"{stack.api}/api/v1/incidents/{incident.id}"
        noted = person.post(f"{orders}/acknowledge", json={"author": "bob"})
        assert noted.status_code == 202, noted.text
        form = {"token": token, "name": "ada", "decision": "approve"}
        assert person.post(address, data=form).status_code == 202

    def lines() -> list[str]:
        found = store.incident(incident.id)
        said = [entry.what for entry in found.timeline] if found else []
        return said if "retrain asked for" in said else []

    said = _wait(stack, "the retrain", lines)
    assert [x for x in said if x.startswith(("acknowledge", "approve", "retrain"))] == [
        "acknowledge by bob",
        "approve by ada (by signed link)",
        "retrain asked for",
    ]
    logs = "".join(path.read_text() for path in (stack.data_dir / "logs").iterdir())
    assert "token=" not in logs
    assert token.rpartition(".")[2] not in logs


def test_what_the_readme_says_of_ingest_fits_into_a_spec() -> None:
    (block,) = (block for block in blocks("yaml") if block.startswith("ingest:"))
    parsed = parse_spec({"model": "churn", **yaml.safe_load(block)}, origin="README.md")
    assert parsed.ingest.model_fields_set == IngestSpec.model_fields.keys()


def test_the_readme_says_the_bounds_of_what_waits_for_its_other_half() -> None:
    bounds = Bounds()
    assert f"up to {bounds.halves:,} of them and {bounds.bytes >> 20} MiB" in README
    assert (bounds.hold_ms, MAX_BODY) == (60_000, 1_000_000)


def test_the_issuer_in_the_readme_is_a_setting(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("yaml") if "oidc_issuer" in block)
    (tmp_path / "driftline.yaml").write_text(block)
    found = load(tmp_path / "driftline.yaml").api
    assert found.asks_who
    assert found.scopes_of_roles["data-science"] == {"read", "write"}


def test_vectors_in_the_readme_fit_into_a_spec() -> None:
    (block,) = (block for block in blocks("yaml") if "embedding" in block)
    parsed = parse_spec({"model": "churn", **yaml.safe_load(block)}, origin="README.md")
    assert parsed.multivariate == {"place": ("lat", "lon")}


def test_every_target_of_notifications_and_actions_is_in_the_readme() -> None:
    (block,) = (block for block in blocks("yaml") if "silences:" in block)
    ruled = parse_spec({"model": "churn", **yaml.safe_load(block)}, origin="README.md")
    assert (len(ruled.rules), len(ruled.silences)) == (8, 2)
    (block,) = (block for block in blocks("yaml") if "actions:" in block)
    parsed = parse_spec(yaml.safe_load(block), origin="README.md")
    told = {target.kind for target in parsed.notify}
    assert told == NotifyTarget.model_fields.keys() - {"name"}
    rows = set(re.findall(r"^\| `([a-z_]+)`", README, re.MULTILINE))
    assert rows >= ActionTarget.model_fields.keys()


def test_the_yaml_in_the_readme_is_a_spec(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("yaml") if block.startswith("# churn.yaml"))
    file = tmp_path / "churn.yaml"
    file.write_text(block)
    assert load_spec(file).model == "churn"
