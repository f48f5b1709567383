"""A single Apache Kafka broker for tests: the project's own jars, KRaft in combined mode, loopback only.

Jars come through Maven once, into a cache outside the checkout; everything else lives in a directory that the
caller throws away. ``kill`` and ``restart`` keep port and data, as a crash of a real broker does.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.supervisor import free_port

_HERE: Final = Path(__file__).parent
_CLUSTER_ID: Final = "ZHJpZnRsaW5lLXRlc3RzMQ"  # any 16 bytes in URL-safe base64
_START_S: Final = 60  # 2.5 s on two idle cores; the rest is for a busy machine
_STOP_S: Final = 20
_FIRST_ANSWER_S: Final = 12  # Maven's own start and plugin look-up take 3 s
_FETCH_S: Final = 300  # 65 MB with the plugin: 45 s here

# Serial collector and first-tier compiler: the broker starts in 2.5 s and stays below 200 MB.
_JVM: Final = (
    *("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)

_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
# One broker keeps one copy.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# A killed broker is let back in only when its old session has ended: start takes 4.5 s and not 12 s.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Of its 128 MB default nothing is used here.
log.cleaner.dedupe.buffer.size=4194304
"""


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot be had on this machine; the message says what is missing."""


class KafkaBroker:
    """One broker process. Not thread-safe, but any one thread at a time may use it."""

    def __init__(self, directory: Path, jars: Path) -> None:
        self._directory = directory
        self._jars = jars
        self._log = directory / "broker.log"
        self._guard: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._controller_port = free_port(other_than=self.port)
        self._format()

    @property
    def address(self) -> str:
        """What clients take as ``bootstrap.servers``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the broker and wait until it answers a metadata request."""
        if self._guard is not None:
            raise RuntimeError("the broker runs already")
        command = [*_java(self._jars), "kafka.Kafka", str(self._directory / "server.properties")]
        with self._log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(_HERE / "guard.py"), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the broker
            )
        self._wait_until_it_answers(self._guard)

    def stop(self) -> None:
        """Stop in order, as an operator would: the log is flushed and the groups are told."""
        self._end(b"stop\n")

    def kill(self) -> None:
        """End the broker as a power cut would (SIGKILL). Port and data stay for ``start``."""
        self._end(b"")

    def restart(self) -> None:
        """Stop in order, and start on the same port and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _end(self, word: bytes) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        try:
            guard.communicate(word, timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            guard.communicate(timeout=_STOP_S)  # the pipe is closed by now: the guard kills

    def _format(self) -> None:
        (self._directory / "server.properties").write_text(
            _PROPERTIES.format(
                port=self.port,
                controller_port=self._controller_port,
                data=self._directory / "data",
            )
        )
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID]
        done = subprocess.run(
            [*_java(self._jars), *tool, "--config", str(self._directory / "server.properties")],
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"kafka.tools.StorageTool failed:\n{done.stdout}{done.stderr}")

    def _wait_until_it_answers(self, guard: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        admin: AdminClient | None = None
        while time.monotonic() < deadline and guard.poll() is None:
            # librdkafka backs off after a refused connection; a plain socket may ask every 50 ms.
            if admin is None and _listens(self.port):
                admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
            if admin is not None and _has_brokers(admin):
                return
            time.sleep(0.05)
        self.kill()
        tail = self._log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"Kafka did not start on {self.address}:\n{tail}")


def fetch_jars(cache: Path | None = None) -> Path:
    """Directory with the jars that ``pom.xml`` names, taken from the cache or through Maven.

    Raises:
        KafkaUnavailableError: Java or Maven is missing or too old, or Maven cannot fetch.
    """
    _check_java()
    pom = _HERE / "pom.xml"
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>([^<]+)", pom.read_text())
    assert version, "pom.xml names no version of Kafka"
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftline"
    jars = root / f"kafka-{version[1]}-{zlib.crc32(pom.read_bytes()):08x}"
    if jars.is_dir():
        return jars
    root.mkdir(parents=True, exist_ok=True)
    # Complete or absent: an interrupted download leaves nothing under the final name.
    with tempfile.TemporaryDirectory(dir=root, prefix="fetching-") as scratch:
        fetched = Path(scratch) / "jars"
        _run_maven(pom, fetched, log=Path(scratch) / "maven.log")
        try:
            fetched.rename(jars)
        except OSError:
            if not jars.is_dir():  # else another run was first, with the same jars
                raise
    return jars


def _check_java() -> None:
    if shutil.which("java") is None:
        raise KafkaUnavailableError("no java on PATH: Kafka's broker needs Java 17 or later")
    said = subprocess.run(
        ["java", "-version"], capture_output=True, text=True, timeout=20, check=False
    )
    major = re.search(r'version "(\d+)', said.stderr)
    if major is None or int(major[1]) < 17:
        raise KafkaUnavailableError(f"java on PATH is not 17 or later: {said.stderr.strip()[:80]}")


def _run_maven(pom: Path, target: Path, *, log: Path) -> None:
    """Copy the jars; give up after 12 s if nothing was downloaded by then, as behind a closed firewall."""
    if shutil.which("mvn") is None:
        raise KafkaUnavailableError("no mvn on PATH: Maven fetches Kafka's jars")
    command = ["mvn", "--batch-mode", "--file", str(pom), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={target}", "-DincludeScope=runtime"]
    with log.open("wb") as out:
        maven = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        if not _wait(maven, _FIRST_ANSWER_S, until=lambda: "Downloaded from" in log.read_text()):
            raise KafkaUnavailableError(f"Maven got no answer within {_FIRST_ANSWER_S} s")
        if not _wait(maven, _FETCH_S, until=lambda: False):
            raise KafkaUnavailableError(f"Maven did not finish within {_FETCH_S} s")
    finally:
        maven.kill()
        maven.wait()
    if maven.returncode != 0:
        errors = [line for line in log.read_text().splitlines() if line.startswith("[ERROR]")]
        raise KafkaUnavailableError(
            f"Maven cannot fetch Kafka's jars: {' '.join(errors[:1])[:300]}"
        )


def _wait(process: subprocess.Popen[bytes], timeout_s: float, *, until: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None or until():
            return True
        time.sleep(0.1)
    return False


def _java(jars: Path) -> list[str]:
    return ["java", *_JVM, "-cp", f"{jars}/*"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _has_brokers(admin: AdminClient) -> bool:
    try:
        return bool(admin.list_topics(timeout=2).brokers)
    except KafkaException:
        return False
