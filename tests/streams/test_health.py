"""A process that does not get on is found, and one that has nothing to do, or waits for others, is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from monitor import metrics
from monitor.settings import MetricsSettings
from streams import __main__ as cli
from streams.clients import KafkaSettings
from streams.health import Ends, Watch
from streams.liveness import EXIT_RESTART
from streams.supervisor import free_port

OUTBOX = ("outbox", 0)


class Rig:
    """A watch whose clock and whose work are set by the test."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.end = 0
        self.ended: list[str] = []
        self.watch = Watch(
            "sink", self._left, limit_s=60, ended=self.ended.append, monotonic=lambda: self.now_s
        )

    def _left(self, positions: Mapping[tuple[str, int], int]) -> str | None:
        short = [place for place, at in positions.items() if at < self.end]
        return f"{short[0][0]} is short of {self.end}" if short else None

    def after(self, seconds: float) -> float | None:
        self.now_s += seconds
        self.watch.look()
        return REGISTRY.get_sample_value("driftline_stalled_seconds", {"process": "sink"})


def test_a_process_ends_after_its_time_without_progress_although_there_is_work() -> None:
    rig = Rig()
    rig.watch.reached({OUTBOX: 5})
    rig.end = 9
    assert [rig.after(10) for _ in range(6)] == [0, 10, 20, 30, 40, 50]
    assert rig.ended == []
    rig.after(10)
    assert rig.ended == ["no progress for 60 s: outbox is short of 9"]


def test_idle_progress_and_waiting_for_others_are_no_stall() -> None:
    rig = Rig()
    rig.watch.reached({OUTBOX: 5})
    for step in range(30):
        rig.end = 5 if step < 10 else 100
        if 10 <= step < 20:
            rig.watch.reached({OUTBOX: step})
        if step >= 20:
            rig.watch.waits()
        assert rig.after(50) == 0
    assert rig.ended == []


def test_partitions_of_which_nothing_is_known_count_as_unread() -> None:
    rig = Rig()
    rig.watch.reached({OUTBOX: -1})
    rig.end = 0  # even an empty partition is read: its end is told
    rig.after(1)
    rig.after(60)
    assert len(rig.ended) == 1


def lag(topic: str) -> float | None:
    labels = {"process": "dispatcher", "topic": topic, "partition": "0"}
    return REGISTRY.get_sample_value("driftline_consumer_lag_messages", labels)


def test_ends_are_the_brokers_word_and_a_broker_that_is_away_is_no_work(kafka: str) -> None:
    topic = f"ends{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    ends = Ends("dispatcher", KafkaSettings(kafka))
    assert ends({(topic, 0): 0}) is None
    producer = Producer({"bootstrap.servers": kafka})
    for _ in range(3):
        producer.produce(topic, b"x", partition=0)
    assert producer.flush(10) == 0
    assert ends({(topic, 0): 2}) == f"{topic}/0 is at 2 of 3"
    assert lag(topic) == 1
    assert ends({(topic, 0): 3}) is None
    assert lag(topic) == 0
    assert ends({(topic, 0): -1}) == f"{topic}/0 is at 0 of 3"
    assert lag(topic) is None, "its position is not known"
    ends({(topic, 0): 0})
    assert lag(topic) == 3
    ends({})
    assert lag(topic) is None, "it is another's"
    ends.close()
    away = Ends("dispatcher", KafkaSettings("127.0.0.1:1"))
    assert away({(topic, 0): 0}) is None
    away.close()


def test_a_loop_that_hangs_ends_the_process_for_the_supervisor() -> None:
    code = """
import time
from streams.health import Watch
with Watch("sink", lambda _: "the outbox is not read", limit_s=0.5):
    time.sleep(30)
"""
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False
    )
    assert ran.returncode == EXIT_RESTART
    assert "no progress for 0.5 s: the outbox is not read" in ran.stderr
    assert "the main thread is in <string>:5 <module>" in ran.stderr
    assert time.monotonic() - began < 20


def test_the_watch_stops_with_its_loop() -> None:
    with Watch("sink", lambda _: None, limit_s=0.5):
        assert "watch" in {thread.name for thread in threading.enumerate()}
    assert "watch" not in {thread.name for thread in threading.enumerate()}


def test_the_command_says_in_one_line_whether_a_process_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monitor.logs.configure", lambda *_args, **_kwargs: None)
    for gauge in (metrics.STALLED, metrics.LAST_PROGRESS):  # other tests ran in this process
        gauge.clear()
    port = free_port()
    monkeypatch.setenv("DRIFTLINE_METRICS__PORT", str(port))
    away = CliRunner().invoke(cli.app, ["health", "sink"])
    assert (away.exit_code, "refused" in away.output) == (1, True)
    metrics.serve(MetricsSettings(port=port))
    rig = Rig()
    assert CliRunner().invoke(cli.app, ["health", "sink"]).output == "sink is well\n"
    rig.watch.reached({OUTBOX: 5})
    rig.end = 9
    rig.after(1)
    rig.after(70)
    stuck = CliRunner().invoke(cli.app, ["health", "sink"])
    assert stuck.output == "sink has work, and made no progress for 70 s\n"
    assert stuck.exit_code == 1
    rig.end = 0
    rig.after(1)
    monkeypatch.setenv("DRIFTLINE_METRICS__PORT", "0")
    with pytest.raises(SystemExit) as ended:
        cli.main(["health", "sink"])
    assert ended.value.code == 2
    assert "DRIFTLINE_METRICS__PORT" in capsys.readouterr().err
