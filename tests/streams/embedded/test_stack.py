from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from confluent_kafka import Producer

from monitor import metrics, store
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.settings import ClickHouseSettings, KafkaSettings, MetricsSettings, Settings
from streams import clients, topics, wiring
from streams.embedded.stack import Stack, embedded_stack
from streams.supervisor import LOOPBACK, free_port
from tests.alerting.managers import alertmanager, needs_alertmanager, receiver, wait_for
from tests.prometheus import ask, needs_prometheus, prometheus

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(120)]
EVENTS = 50
GRAFANA: Final = Path(__file__).parents[3] / "grafana"
DEPLOYED: Final = GRAFANA / "prometheus"
DASHBOARDS: Final = sorted((GRAFANA / "dashboards").glob("*.json"))


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


def of_each_process(address: str, query: str) -> dict[str, float]:
    """What a query answers, by process."""
    found = ask(address, "query", query=query)["result"]
    return {each["metric"]["process"]: float(each["value"][1]) for each in found}


@needs_alertmanager
@needs_prometheus
def test_prometheus_scrapes_every_process_and_tells_alertmanager_of_one_that_is_killed(
    stack: Stack, tmp_path: Path
) -> None:
    """With the files that are deployed: other addresses, every second, and no `for`."""
    document = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = document["scrape_configs"]
    for target in job["static_configs"]:
        port = stack.metrics_ports[target["labels"]["process"]]
        target["targets"] = [f"{LOOPBACK}:{port}"]
    rules = (DEPLOYED / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(re.sub(r"\bfor: \w+", "for: 0s", rules))
    (tmp_path / "alertmanagers").mkdir()

    def killed(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
        alerts = [alert for group in told for alert in group["alerts"]]
        down = [a for a in alerts if a["labels"]["alertname"] == "DriftlineProcessDown"]
        return [(a["status"], a["annotations"]["summary"]) for a in down]

    with receiver() as (tells, told), alertmanager(tmp_path / "am", tells) as manager:
        host, _, prefix = manager.removeprefix("http://").partition("/")
        document["alerting"]["alertmanagers"][0]["path_prefix"] = f"/{prefix}"
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(document))
        (tmp_path / "alertmanagers" / "ours.yml").write_text(json.dumps([{"targets": [host]}]))
        with prometheus(tmp_path / "prometheus.yml") as address:
            everyone = dict.fromkeys(stack.metrics_ports, 1.0)
            wait_for(lambda: of_each_process(address, "up") == everyone, lambda: told)
            lagging = {"profiler", "detector", "sink", "evaluator", "dispatcher"}
            lag = "sum by (process) (driftline_consumer_lag_messages)"
            wait_for(
                lambda: of_each_process(address, lag).keys() == lagging,
                lambda: of_each_process(address, lag),
            )
            own = 'count by (process) ({__name__=~"driftline_.+", partition=""})'
            assert max(of_each_process(address, own).values()) <= metrics.SERIES
            for path in DASHBOARDS:
                for query in re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', path.read_text()):
                    ask(
                        address,
                        "query",
                        query=json.loads(f'"{query}"').replace("$__rate_interval", "1m"),
                    )
            groups = ask(address, "rules")["groups"]
            found = [(rule["name"], rule["health"]) for g in groups for rule in g["rules"]]
            assert {health for _, health in found} == {"ok"}
            assert len(found) == len(re.findall(r"- (?:alert|record):", rules))
            os.kill(stack.supervisor.pid("dispatcher"), signal.SIGKILL)  # nobody polls: it stays so
            gone = "dispatcher does not answer"
            wait_for(lambda: killed(told) == [("firing", gone)], lambda: told)
            deadline = time.monotonic() + 30
            while of_each_process(address, "up") != everyone:
                assert time.monotonic() < deadline
                stack.poll()
                time.sleep(0.2)
            wait_for(lambda: killed(told)[-1] == ("resolved", gone), lambda: told)


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
    nowhere = MetricsSettings(host="192.0.2.1")  # of no machine
    with (
        pytest.raises(ConfigError, match=r"^api: driftline: metrics\.port"),
        embedded_stack(
            Settings(metrics=nowhere), data_dir=tmp_path, fresh=True, processes=("api",)
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
