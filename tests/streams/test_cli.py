from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from monitor import environment, store
from monitor.errors import DriftlineError
from monitor.keys import find
from monitor.settings import Settings
from streams import __main__ as cli
from streams.console import working, write_rows
from streams.embedded import clickhouse
from streams.processes import PROCESSES, Process
from streams.supervisor import LOOPBACK, Supervisor, free_port
from tests.streams.commands import main, plain_terminal, run

__all__ = ["plain_terminal"]  # a fixture of every test here

ROOT = Path(__file__).parents[2]
SPEC = """
model: churn
task: binary
features:
  plan: {type: categorical}
  age: {type: numeric}
segments: [plan]
windows: {pane: 1h, sizes: [1d]}
"""


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_a_process_lists_every_setting_that_it_reads(process: Process) -> None:
    text = run("run", process.name, "--help").output
    rows = list(environment.describe(*process.groups))
    assert len(rows) >= 10
    for row in rows:
        shown = f"  {row.variable} = {row.default}\n" if row.default else f"  {row.variable}\n"
        assert shown in text
        assert row.description in text
        assert row.variable_file in text


def test_help_of_every_command_answers_without_importing_what_it_runs() -> None:
    heavy = {"faust", "aiokafka", "pyarrow", "confluent_kafka", "chdb", "fastapi", "scipy"}
    heavy |= {"numpy", "uvicorn", "clickhouse_connect", "httpx"}
    script = "import sys\nfrom streams.__main__ import app\nprint(*sys.modules)\n"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    ).stdout
    assert heavy & set(loaded.split()) == set()


def test_version_is_one_line_or_json() -> None:
    assert run("version").output.startswith("driftline 0.")
    assert set(json.loads(run("version", "--json").output)) == {"driftline", "python"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "sink", "--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["apply", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["doctor", "-c", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["up", "--broker", "foo"], "--broker: expected HOST:PORT"),
        (["up", "--clickhouse", "foo"], "--clickhouse: expected http://HOST:PORT"),
        (["up", "--clickhouse", "http://u:p@h:1"], "--clickhouse: no user and password"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("DRIFTLINE_EMBEDDED__DATA_DIR", str(tmp_path))
    code, error = main(capsys, *arguments)
    assert code == 2
    assert error.startswith("driftline: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_setting_ends_the_real_command_without_a_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "streams", "run", "api"],
        env={**os.environ, "DRIFTLINE_API__HOST": "0.0.0.0"},  # refused
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "driftline: api (DRIFTLINE_API): listening on 0.0.0.0 needs a key:"
        " set DRIFTLINE_API__KEYS_FILE or DRIFTLINE_API__KEY_FILE, or OIDC\n"
    )


def test_a_broker_that_is_away_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", f"{LOOPBACK}:{free_port()}")
    code, error = main(capsys, "topics", "list")
    assert (code, error.count("\n")) == (1, 1)
    assert "no Kafka broker answers at" in error


def test_a_key_is_shown_once_and_its_line_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("keys", "create", "ci", "--scope", "read", "--scope", "write", "--days", "30")
    secret = re.search(r"dlk_[\w-]{43}", made.output)
    line = re.search(r"^line of the settings:  (.*)$", made.output, re.MULTILINE)
    assert secret
    assert line
    monkeypatch.setenv("DRIFTLINE_API__KEYS", line[1])
    (key,) = environment.load().api.known_keys
    assert (key.name, sorted(key.scopes)) == ("ci", ["read", "write"])
    assert find([key], secret[0]) is key
    assert key.until is not None
    again = json.loads(run("keys", "create", "ci", "--scope", "read", "--json").output)
    assert again["key"] != secret[0]
    assert again["key"] not in again["line"]


def test_a_key_of_no_scope_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = main(capsys, "keys", "create", "ci", "--scope", "admin")
    assert (code, error) == (2, "driftline: scopes are read, write and approve\n")


def test_any_other_failure_that_we_know_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stalled(*_: object, **__: object) -> None:
        raise DriftlineError("broker ended with code 1; the end of broker.log:\nout of memory")

    monkeypatch.setattr("streams.demo.show.run", stalled)
    assert main(capsys, "demo") == (
        1,
        "driftline: broker ended with code 1; the end of broker.log: out of memory\n",
    )


def test_a_demo_that_is_interrupted_says_so_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("streams.demo.show.run", interrupted)
    ended = run("demo")
    assert (ended.exit_code, ended.output) == (130, "stopped\n")


@pytest.mark.parametrize("process", [p for p in PROCESSES if "kafka" in p.groups], ids=str)
def test_a_process_whose_certificate_cannot_be_read_ends_instead_of_waiting(
    process: Process, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "stop_on_signals", lambda _stop: None)
    monkeypatch.setenv("DRIFTLINE_KAFKA__SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("DRIFTLINE_KAFKA__SSL_CA_LOCATION", "/nowhere/ca.pem")
    code, error = main(capsys, "run", process.name)
    assert (code, error.count("\n")) == (2, 1)
    assert "ssl.ca.location" in error


def test_headings_are_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    with redirect_stdout(out):
        write_rows([{"partition": 0, "calibrating": 1, "unaccounted": 2}], as_json=False)
    assert "…" not in out.getvalue()
    letters = Counter(c for c in out.getvalue() if c.isalpha())
    assert letters == Counter("partitioncalibratingunaccounted")


def complete(words: str, home: Path) -> list[str]:
    """What bash offers after ``words``."""
    driftline = home / "driftline"
    driftline.write_text(f'#!/bin/sh\nexec {sys.executable} -m streams "$@"\n')
    driftline.chmod(0o755)
    script = (
        'eval "$(driftline completion bash)"; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1));'
        ' "$(complete -p driftline | sed "s/.*-F \\([^ ]*\\).*/\\1/")" driftline; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", words],
        env=environment,
        cwd=home,
        capture_output=True,
        check=True,
        text=True,
    )
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("driftline inc", ["incidents", "incident"]),
        ("driftline incident ack", ["acknowledge"]),
        ("driftline drift --si", ["--since", "--size"]),
        ("driftline completion z", ["zsh"]),
    ],
)
def test_bash_completes_commands_options_and_values(
    tmp_path: Path, words: str, offered: list[str]
) -> None:
    assert sorted(complete(words, tmp_path)) == sorted(offered)


@pytest.mark.parametrize(
    ("shell", "answer"),
    [("zsh", '_arguments \'*: :(("incidents"'), ("fish", "incidents\t")],
)
def test_other_shells_get_a_script_that_asks_for_what_we_answer(shell: str, answer: str) -> None:
    script = run("completion", shell).output
    asked = {
        "_DRIFTLINE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "driftline incidents",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    for name, value in asked.items():
        if name != "_TYPER_COMPLETE_FISH_ACTION" or shell == "fish":
            assert name in script
            assert value in script or "ARGS" in name
    ended = subprocess.run(
        [sys.executable, "-m", "streams"],
        env={**os.environ, **asked},
        capture_output=True,
        check=False,
        text=True,
    )
    assert answer in ended.stdout


def told_on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, takes_s: float) -> str:
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with working("adding [up]", patience_s=0.05) as told:
        time.sleep(takes_s)
        told("2 of 3")
        time.sleep(takes_s)
    return err.getvalue()


def test_what_takes_long_says_so_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_on_a_terminal(monkeypatch, terminal=True, takes_s=0.5)
    assert "adding [up]" in told
    assert "2 of 3" in told
    assert told_on_a_terminal(monkeypatch, terminal=True, takes_s=0.0) == ""


def test_what_is_written_meanwhile_stays_on_standard_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with redirect_stdout(out), working("adding up", patience_s=0):
        time.sleep(0.2)
        sys.stdout.write("42\n")
    assert out.getvalue() == "42\n"


def test_what_takes_long_in_a_pipe_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_on_a_terminal(monkeypatch, terminal=False, takes_s=0.1) == ""


@pytest.fixture
def servers(
    embedded_broker: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """A broker and a database, named by the environment, under a prefix of the test's own."""
    directory, port = tmp_path_factory.mktemp("cli"), free_port()
    with Supervisor(directory) as supervisor:
        supervisor.start(clickhouse.child(port, directory / "clickhouse"))
        supervisor.wait_ready(30)
        monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", embedded_broker)
        monkeypatch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", f"cli{port}.")
        monkeypatch.setenv("DRIFTLINE_KAFKA__SESSION_TIMEOUT_S", "6")
        monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__URL", f"http://{LOOPBACK}:{port}")
        monkeypatch.setenv("DRIFTLINE_EMBEDDED__DATA_DIR", str(directory))
        yield environment.load()


def test_an_operators_first_hour(servers: Settings, tmp_path: Path) -> None:
    sick = run("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(sick.output)}
    assert sick.exit_code == 1
    assert found["topics"]["advice"] == "run `driftline topics create`"
    assert found["migrations"]["advice"] == "run `driftline migrate`"

    listed = run("topics", "list", "--json")
    assert listed.exit_code == 1
    assert not any(row["exists"] for row in json.loads(listed.output))
    created = json.loads(run("topics", "create", "--json").output)["created"]
    assert f"{servers.kafka.topic_prefix}predictions" in created
    assert run("topics", "create").output == "all topics are there\n"
    assert "predictions" in run("topics", "list").output

    planned = json.loads(run("migrate", "--dry-run", "--json").output)["applied"]
    assert json.loads(run("migrate", "--json").output) == {"dry_run": False, "applied": planned}
    assert run("migrate").output == "all migrations are applied\n"

    spec = tmp_path / "churn.yaml"
    spec.write_text(SPEC)
    assert run("apply", str(spec)).output == "churn: calibrates itself\n"
    rows = [f"{1_700_000_000_000 + i * 60_000},{'ab'[i % 2]},{20 + i % 50}" for i in range(3000)]
    source = tmp_path / "past.csv"
    source.write_text("\n".join(["ts,plan,age", *rows]) + "\n")
    built = run("reference", "build", str(source), "--spec", str(spec), "--publish", "--json")
    summary = json.loads(built.output)
    assert (summary["events"], summary["segments"]) == (3000, {"plan": 2})
    assert json.loads(run("reference", "show", "churn", "--json").output) == summary
    assert run("apply", str(spec)).output == "churn: keeps its reference\n"
    assert run("apply", str(spec), "--recalibrate").output == "churn: calibrates itself\n"
    spec.write_text(SPEC + "reference: {file: past.csv}\n")
    assert run("apply", str(spec)).output.startswith("churn: compared with")

    assert json.loads(run("ledger", "--json").output)["total"]["events"] == 0
    assert "unaccounted 0" in run("ledger").output
    well = run("doctor", "--json")
    assert well.exit_code == 0, well.output
    assert {f["status"] for f in json.loads(well.output)} <= {"ok", "warn"}


def test_an_unknown_model_has_no_reference(
    servers: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("topics", "create").exit_code == 0
    code, error = main(capsys, "reference", "show", "nobody")
    assert code == 2
    assert "no model is called nobody: there are none" in error
    assert "a new model appears after its first 5,000 events" in error


def test_a_missing_event_in_the_ledger_is_exit_code_1(servers: Settings) -> None:
    from monitor.tables import ledger_row, to_table
    from monitor.wire import LedgerEntry

    store.migrate(servers.clickhouse)
    link = store.connect(servers.clickhouse)
    lost = LedgerEntry(
        profiles_partition=0,
        offset=1,
        open=8,
        partition=0,
        start=0,
        end=10,
        events=10,
        dead=1,
        on_time=8,
        late=0,
        calibrating=0,
        jump=None,
    )
    link.append("ledger", to_table("ledger", [ledger_row(lost)]), token="t")
    link.close()
    told = run("ledger", "--json")
    assert told.exit_code == 1
    assert json.loads(told.output)["total"]["unaccounted"] == 1


def test_labels_are_loaded_with_the_join_key_of_their_model(
    servers: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("topics", "create").exit_code == 0
    spec, source = tmp_path / "churn.yaml", tmp_path / "left.csv"
    spec.write_text(SPEC + "labels: {join_key: [request_id]}\n")
    assert run("apply", str(spec)).exit_code == 0
    source.write_text("request_id,label,ts\nr1,1,\nr2,,\nr3,0,2013-02-01T05:17:00Z\n")
    loaded = run("labels", "load", str(source), "--model", "churn", "--json")
    said = json.loads(loaded.output)
    assert (loaded.exit_code, said["accepted"], said["refused"]) == (1, 2, 1)
    assert said["errors"][0]["row"] == 2
    told = run("labels", "load", str(source), "--model", "churn")
    assert told.output.startswith("accepted 2 of 3 labels\n")
    assert "missing_field" in told.output
    source.write_text('{"id": 1, "model": "churn", "label": 1}\n')
    told = run("labels", "load", str(source), "--format", "jsonl")
    assert (told.exit_code, told.output) == (0, "accepted 1 of 1 labels\n")
    code, error = main(capsys, "labels", "load", str(source))
    assert (code, error.count("\n")) == (2, 1)
    assert "no column label, model" in error
