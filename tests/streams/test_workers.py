"""``driftline run profiler --workers 2`` as a user runs it: the workers share the work, and are started, started again and stopped as one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.environment import environment
from streams.supervisor import LOOPBACK, free_port, is_free
from tests.monitor.builders import event
from tests.streams.profiled import SOURCES, Bench
from tests.streams.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def workers(bench: Bench, log: Path, port: int = 0, count: int = 2) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """The command; it is ended, and so are its workers."""
    command = [sys.executable, "-m", "streams", "run", "profiler", "--workers", str(count)]
    env = os.environ | environment(bench.settings) | {"DRIFTLINE_METRICS__PORT": str(port)}
    with log.open("wb") as stderr, subprocess.Popen(command, env=env, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Workers of a command, in the order in which they were started: by what their environment says."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == pid:
            continue
        try:
            parent = int(re.findall(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.M)[0])
            said = (entry / "environ").read_bytes()
        except (OSError, IndexError):
            continue
        name = re.search(rb"DRIFTLINE_PROFILER__INSTANCE=test-(\d+)\0", said)
        if parent == pid and name is not None:
            found[int(name[1])] = int(entry.name)
    return [found[number] for number in sorted(found)]


def consumed(port: int) -> float:
    """Events that the worker which serves this port has counted; 0 before it serves it."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return float(re.findall(r"^driftline_events_consumed_total (\S+)$", text, re.M)[0])


def test_two_workers_share_the_partitions_and_one_that_is_killed_comes_back(
    kafka: str, tmp_path: Path
) -> None:
    bench, port = Bench(kafka), free_port()
    while not is_free(port + 1):
        port = free_port()
    now_ms = time.time_ns() // 1_000_000

    def send() -> None:
        for partition in range(SOURCES):
            n = bench.sent[partition]
            bench.send(partition, *(event(now_ms, id=f"{partition}-{n + i}") for i in range(20)))

    def each_works() -> bool:
        send()  # whoever comes first has all partitions until the second is there
        return consumed(port) > 0 < consumed(port + 1)

    log = tmp_path / "log"
    with workers(bench, log, port) as process:
        wait_until(each_works, 60, "each of them works")
        first, second = children(process.pid)
        os.kill(second, signal.SIGKILL)
        send()
        wait_until(lambda: children(process.pid)[1:] not in ([], [second]), 60, "it comes back")
        wait_until(bench.is_drained, 60, f"drained: {log.read_text()[-2_000:]}")
        assert children(process.pid)[0] == first
        began = time.monotonic()
        process.terminate()
        assert process.wait(15) == 0
        assert time.monotonic() - began < 10
        assert children(process.pid) == []
    assert bench.account()["calibrating"] == sum(bench.sent)
    assert f"test-1 ended with code {-signal.SIGKILL}; again in" in log.read_text()


def test_what_a_worker_refuses_ends_the_command(tmp_path: Path) -> None:
    bench_settings = {"DRIFTLINE_PROFILER__INSTANCE": "x" * 128}  # and its number: too long
    done = subprocess.run(
        [sys.executable, "-m", "streams", "run", "profiler", "--workers", "2"],
        env=os.environ | bench_settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "DRIFTLINE_PROFILER__INSTANCE" in done.stderr
    assert "Traceback" not in done.stderr


def test_ports_have_to_suffice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams", "run", "profiler", "--workers", "3"],
        env=os.environ | {"DRIFTLINE_METRICS__PORT": "65534"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "metrics.port 65534: 3 workers take as many ports from it on" in done.stderr
