"""The README does what it says: each command runs, each file that it names is there, and the first own model works."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from msgspec.structs import replace
from pydantic import SecretStr
from typing_extensions import override

from monitor import store as stores
from monitor import wire
from monitor.environment import environment, load
from monitor.halves import Bounds
from monitor.ingest import MAX_BODY
from monitor.settings import ApiSettings, ApprovalSettings
from monitor.spec import IngestSpec, load_spec, parse_spec
from monitor.targets import ActionTarget, NotifyTarget
from streams import wiring
from streams.clients import put
from streams.embedded.stack import Stack, embedded_stack
from streams.embedded.supervisor import LOOPBACK, free_port
from streams.topics import partition_of
from tests.alerting.test_notify import FALLING

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


def _driftline(stack: Stack, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == ".venv/bin/driftline"
    return subprocess.run(
        [sys.executable, "-m", "streams", *words[1:]],
        cwd=cwd,
        env={**environment(stack.settings), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _wait(stack: Stack, what: str, look: Any) -> Any:
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        stack.poll()
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come within {SETTLE_S:g} s")


@pytest.mark.embedded
@pytest.mark.timeout(240)
def test_the_first_own_model_works_as_the_readme_says(stack: Stack, tmp_path: Path) -> None:
    (spec,) = (block for block in blocks("yaml") if block.startswith("# churn.yaml"))
    (tmp_path / "churn.yaml").write_text(spec.replace("env:SLACK_WEBHOOK", "env:NOWHERE"))
    own = [
        c
        for c in COMMANDS
        if c.startswith(".venv/bin/driftline")
        and c.split()[1] in ("apply", "doctor", "ledger", "budget")
    ]
    apply, doctor, ledger, budget = own
    applied = _driftline(stack, apply, tmp_path)
    assert applied.returncode == 0, applied.stderr
    assert "churn" in applied.stdout

    (code,) = blocks("python")
    app: dict[str, Any] = {}
    exec(code.replace("127.0.0.1:9092", stack.kafka), app)
    rng = np.random.default_rng(7)
    for i in range(3_000):
        features = {
            "age": int(rng.integers(18, 90)),
            "country": str(rng.choice(["DE", "FR", "IT"])),
        }
        app["record"](f"a{i}", features, int(rng.random() < 0.2), float(rng.random()))
        app["producer"].poll(0)
    app["producer"].produce("driftline.predictions", value=b"not an event")
    assert app["producer"].flush(20) == 0

    store = stores.connect(stack.settings.clickhouse)
    _wait(stack, "the account of 3,001 events", lambda: store.ledger().total.events == 3_001)
    total = store.ledger().total
    assert total.dead == 1
    assert total.unaccounted == 0
    assert total.calibrating >= 2_000
    models = _wait(stack, "the reference", lambda: [m for m in store.models() if m.bins_id])
    assert [model.model for model in models] == ["churn"]

    examined = _driftline(stack, doctor, tmp_path)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    booked = _driftline(stack, ledger, tmp_path)
    assert booked.returncode == 0, booked.stdout + booked.stderr
    assert "3,001" in booked.stdout or "3001" in booked.stdout
    spent = _driftline(stack, budget, tmp_path)
    assert spent.returncode == 0, spent.stdout + spent.stderr
    assert "churn" in spent.stdout

    (command,) = (c for c in COMMANDS if c.startswith("curl "))
    answer = _curl(stack, command)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
    _wait(stack, "the prediction by HTTP", lambda: store.ledger().total.events == 3_002)


def _curl(stack: Stack, command: str) -> httpx.Response:
    """What curl does, on machines that have none."""
    _, url, said, header, flag, content = shlex.split(command)
    assert (said, flag) == ("-H", "-d")
    name, _, value = header.partition(": ")
    url = url.replace("http://127.0.0.1:8080", stack.api)
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

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            links.extend(filter(None, [event["data"].get("approve_url")]))
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


@pytest.mark.embedded
@pytest.mark.timeout(240)
def test_an_incident_is_looked_at_acknowledged_silenced_and_its_action_approved(
    stack: Stack, tmp_path: Path
) -> None:
    _becomes_worse(stack, "rides", tmp_path)

    def of_rides() -> list[dict[str, Any]]:
        listed = _driftline(stack, ".venv/bin/driftline incident list --open --json", tmp_path)
        assert listed.returncode == 0, listed.stderr
        found: list[dict[str, Any]] = json.loads(listed.stdout)
        return [x for x in found if (x["model"], x["advice"]) == ("rides", "retrain")]

    (incident,) = _wait(stack, "the incident", of_rides)
    show, *rest = [c for c in COMMANDS if "3fa2c1" in c]
    told = {}
    for command in (*rest, show):
        told[command] = _driftline(stack, command.replace("3fa2c1", incident["id"][:6]), tmp_path)
        assert told[command].returncode == 0, told[command].stderr + told[command].stdout
    lines = told[show].stdout
    assert "retrain asked for" in lines
    for said in ("acknowledge by ", "silence by ", ": known, release at noon", "approve by "):
        assert said in lines
    again = _driftline(
        stack, f".venv/bin/driftline incident acknowledge {incident['id']}", tmp_path
    )
    assert (again.returncode, "has acknowledged it already" in again.stderr) == (2, True)


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
