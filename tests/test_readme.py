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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from msgspec.structs import replace

from monitor import store as stores
from monitor import wire
from monitor.environment import environment, load
from monitor.spec import load_spec, parse_spec
from monitor.targets import ActionTarget, NotifyTarget
from streams import wiring
from streams.clients import put
from streams.embedded.stack import Stack, embedded_stack
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
        "docker compose up --build --detach",  # tests/test_compose.py
    }
    assert set(COMMANDS) == tested


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
    """What ``make up`` starts, on free ports."""
    with embedded_stack(load(), data_dir=tmp_path_factory.mktemp("up"), fresh=True) as running:
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
        if c.startswith(".venv/bin/driftline") and c.split()[1] not in ("backtest", "incident")
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


@pytest.mark.embedded
@pytest.mark.timeout(240)
def test_an_incident_is_looked_at_acknowledged_silenced_and_its_action_approved(
    stack: Stack, tmp_path: Path
) -> None:
    hook = {"url": "https://ci.example/retrain", "secret": "env:NOWHERE"}
    spec = {"model": "rides", "actions": {"retrain": {"webhook": hook}}}
    (tmp_path / "rides.yaml").write_text(yaml.safe_dump(spec))
    applied = _driftline(stack, ".venv/bin/driftline apply rides.yaml", tmp_path)
    assert applied.returncode == 0, applied.stderr
    kafka, names = wiring.kafka(stack.settings), wiring.topics(stack.settings)
    partition = partition_of("rides", stack.settings.kafka.detector_partitions)
    for message in FALLING:  # drift, and labels that fall with it
        value = wire.encode(replace(message, model="rides"))
        put(kafka, logging.getLogger(__name__), names.verdicts, "rides", value, partition=partition)

    def of_rides() -> list[dict[str, Any]]:
        listed = _driftline(stack, ".venv/bin/driftline incident list --open --json", tmp_path)
        assert listed.returncode == 0, listed.stderr
        return [x for x in json.loads(listed.stdout) if x["advice"] == "retrain"]

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


def test_vectors_in_the_readme_fit_into_a_spec() -> None:
    (block,) = (block for block in blocks("yaml") if "embedding" in block)
    parsed = parse_spec({"model": "churn", **yaml.safe_load(block)}, origin="README.md")
    assert parsed.multivariate == {"place": ("lat", "lon")}


def test_every_target_of_notifications_and_actions_is_in_the_readme() -> None:
    (block,) = (block for block in blocks("yaml") if "silences:" in block)
    ruled = parse_spec({"model": "churn", **yaml.safe_load(block)}, origin="README.md")
    assert (len(ruled.rules), len(ruled.silences)) == (4, 2)
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
