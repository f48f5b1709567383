from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Producer

from monitor import store
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.settings import ClickHouseSettings, KafkaSettings, MetricsSettings, Settings
from streams import clients, topics, wiring
from streams.embedded.stack import Stack, embedded_stack
from streams.embedded.supervisor import LOOPBACK, free_port

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(120)]
EVENTS = 50


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("the stack")
    with embedded_stack(Settings(), data_dir=home, fresh=True) as running:
        yield running


def _processes_that_mention(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in words:
            found.append(entry.name)
    return found


def test_topics_tables_and_the_api_are_there_once_it_is_up(stack: Stack) -> None:
    admin = clients.admin(wiring.require_broker(stack.settings), _logger())
    assert topics.check(admin, wiring.topics(stack.settings), wiring.widths(stack.settings)) == []
    assert store.migrate(stack.settings.clickhouse, dry_run=True) == []
    assert httpx.get(f"{stack.api}/readyz", trust_env=False).json() == {"status": "ok"}
    assert stack.addresses()["page"] == f"{stack.api}/"
    for name, port in stack.metrics_ports.items():
        body = _eventually_text(f"http://{LOOPBACK}:{port}/metrics")
        assert "driftline_build_info" in body, name


def test_a_prediction_is_accounted_for_by_processes_that_only_share_addresses(stack: Stack) -> None:
    before = _ledger(stack)["events"]
    producer = Producer({"bootstrap.servers": stack.kafka})
    for i in range(EVENTS):
        event = {"ts": 1_700_000_000_000 + i, "model": "first", "features": {"x": i}}
        producer.produce(wiring.topics(stack.settings).predictions, json.dumps(event))
    assert producer.flush(10) == 0
    deadline = time.monotonic() + 60
    while (total := _ledger(stack))["events"] < before + EVENTS:
        assert time.monotonic() < deadline, total
        stack.poll()
        time.sleep(0.2)
    assert total["events"] == before + EVENTS
    assert total["unaccounted"] == 0


def test_predictions_by_http_are_accounted_for_once_each(stack: Stack) -> None:
    """One of each way in: two of ours, and a request and its response that two requests bring."""
    before = _ledger(stack)["events"]
    event = {"ts": 1_700_000_000_000, "model": "by-http", "features": {"x": 1}}
    half = {"Ce-Id": "q", "Ce-Source": "/x", "Ce-Inferenceservicename": "by-http", "Ce-Specversion": "1.0", "Content-Type": "application/json"}  # fmt: skip
    kserve = "org.kubeflow.serving.inference"
    said = [
        httpx.post(f"{stack.api}/api/v1/{path}", content=body, headers=headers, trust_env=False)
        for path, body, headers in (
            ("events", json.dumps([event, event]), {"Content-Type": "application/json"}),
            ("cloudevents", '{"instances":[{"x":1}]}', half | {"Ce-Type": f"{kserve}.request"}),
            ("cloudevents", '{"predictions":[0]}', half | {"Ce-Type": f"{kserve}.response"}),
        )
    ]
    assert [(answer.status_code, answer.json()["accepted"]) for answer in said] == [(202, 2), (202, 0), (202, 1)]  # fmt: skip
    deadline = time.monotonic() + 60
    while (total := _ledger(stack))["events"] < before + 3:
        assert time.monotonic() < deadline, total
        stack.poll()
        time.sleep(0.2)
    assert (total["events"], total["dead"], total["unaccounted"]) == (before + 3, 0, 0)


def _ledger(stack: Stack) -> dict[str, int]:
    total: dict[str, int] = httpx.get(f"{stack.api}/api/v1/ledger", trust_env=False).json()["total"]
    return total


def test_a_directory_has_one_stack(stack: Stack) -> None:
    with (
        pytest.raises(ConfigError, match="in use by another driftline"),
        embedded_stack(Settings(), data_dir=stack.data_dir, fresh=True),
    ):
        pass


def test_servers_that_are_given_are_shared_without_a_trace_of_each_other(
    stack: Stack, tmp_path: Path
) -> None:
    with embedded_stack(
        Settings(kafka=KafkaSettings(session_timeout_s=6)),
        data_dir=tmp_path,
        broker=stack.kafka,
        database=stack.clickhouse,
        fresh=True,
        processes=("api",),
    ) as other:
        assert other.kafka == stack.kafka
        assert other.settings.kafka.topic_prefix != stack.settings.kafka.topic_prefix
        assert other.settings.clickhouse.database != stack.settings.clickhouse.database
        ledger = httpx.get(f"{other.api}/api/v1/ledger", trust_env=False).json()
        assert ledger["total"]["events"] == 0
        admin = clients.admin(wiring.require_broker(stack.settings), _logger())
        prefix, database = other.settings.kafka.topic_prefix, other.settings.clickhouse.database
        assert [t for t in admin.list_topics(timeout=5).topics if t.startswith(prefix)] != []
        assert database in _databases(stack)
    left = admin.list_topics(timeout=5).topics
    assert [t for t in left if t.startswith(prefix)] == []
    assert [t for t in left if t.startswith(stack.settings.kafka.topic_prefix)] != []
    assert _databases(stack) & {database, stack.settings.clickhouse.database} == {
        stack.settings.clickhouse.database
    }


def test_a_broker_that_is_given_and_away_is_said(tmp_path: Path) -> None:
    away = f"{LOOPBACK}:{free_port()}"
    with (
        pytest.raises(TransientError, match=f"no Kafka broker answers at {away}"),
        embedded_stack(Settings(), data_dir=tmp_path, broker=away, fresh=True),
    ):
        pass
    assert _processes_that_mention(str(tmp_path)) == []


def test_a_process_that_refuses_its_settings_stops_everything_with_its_line(tmp_path: Path) -> None:
    metrics = MetricsSettings(host="192.0.2.1")  # of no machine
    with (
        pytest.raises(ConfigError, match=r"^api: driftline: metrics\.port"),
        embedded_stack(
            Settings(metrics=metrics), data_dir=tmp_path, fresh=True, processes=("api",)
        ) as stack,
    ):
        stack.wait()
    assert _processes_that_mention(str(tmp_path)) == []


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "embedded-clickhouse" / "store" / "years of work"
    theirs.mkdir(parents=True)
    with (
        pytest.raises(ConfigError, match="embedded-clickhouse is not ours"),
        embedded_stack(Settings(), data_dir=tmp_path, fresh=True, processes=()),
    ):
        pass
    assert theirs.is_dir()


def test_each_start_finds_empty_tables_and_a_broker_that_fails_is_one_line(tmp_path: Path) -> None:
    other = tmp_path / "clickhouse"
    other.mkdir()
    for _ in range(2):
        with embedded_stack(Settings(), data_dir=tmp_path, fresh=True, processes=()) as stack:
            client = wiring.clickhouse_client(stack.settings)
            client.command("CREATE DATABASE mine")  # fails where it is there already
            client.close()
            os.kill(stack.supervisor.pid("broker"), signal.SIGKILL)
            with pytest.raises(DriftlineError, match=r"^broker ended with code -9; [^\n]*$"):
                stack.wait()
    assert other.is_dir()


def test_up_ends_cleanly_at_ctrl_c_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "streams", "up", "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as up:
        assert "Driftline is up" in _said(up, "logs", within_s=60)
        assert len(_processes_that_mention(str(tmp_path))) >= 8
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0
    assert _processes_that_mention(str(tmp_path)) == []


def test_a_stack_on_a_dead_database_says_so(tmp_path: Path) -> None:
    dead = f"http://{LOOPBACK}:{free_port()}"
    with (
        pytest.raises(TransientError, match="ClickHouse does not answer"),
        embedded_stack(
            Settings(clickhouse=ClickHouseSettings()), data_dir=tmp_path, database=dead, fresh=True
        ),
    ):
        pass


def _databases(stack: Stack) -> set[str]:
    client = wiring.clickhouse_client(stack.settings)
    try:
        return {
            str(name) for (name,) in client.query("SELECT name FROM system.databases").result_rows
        }
    finally:
        client.close()


def _said(process: subprocess.Popen[bytes], until: str, *, within_s: float) -> str:
    assert process.stdout is not None
    deadline, said = time.monotonic() + within_s, b""
    while until.encode() not in said:
        left = deadline - time.monotonic()
        assert left > 0, said
        if select.select([process.stdout], [], [], left)[0]:
            chunk = os.read(process.stdout.fileno(), 4096)
            assert chunk, said
            said += chunk
    return said.decode()


def _eventually_text(address: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            return httpx.get(address, trust_env=False).text
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _logger() -> logging.Logger:
    return logging.getLogger(__name__)
