"""Real parts for a chaos run: one Apache Kafka, one ClickHouse endpoint, and deployments of Driftline's own processes.

::

    Cluster      broker and database, each a process that can be taken away and given back
    Deployment   topics under a prefix, a database, and the processes on them, looked after by the supervisor of
                 `driftline up`: what ends is started again, with its backoff

Both live in one directory and on the loopback address. A deployment is a user's: nothing in it knows of the faults.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

from load.chaos.workload import SECRET_VARIABLE
from monitor import store
from monitor.environment import environment
from monitor.settings import (
    ClickHouseSettings,
    DetectorSettings,
    DispatcherSettings,
    KafkaSettings,
    ProfilerSettings,
    Settings,
)
from streams import clients, models, topics, wiring
from streams.embedded import clickhouse
from streams.models import Model
from streams.supervisor import LOOPBACK, Child, Ended, Supervisor, free_port
from tests.kafka.broker import KafkaBroker, fetch_jars

HEARTBEAT_S: Final = 2.0  # after the last event, windows close with a heartbeat
WEBHOOK_TIMEOUT_S: Final = 3.0  # a slow receiver is to cost seconds, not minutes
SECRET: Final = "whsec_Y2hhb3MgaXMgYSBsYWRkZXIgYnV0IG5vdCBvdXJz"  # noqa: S105  # of a receiver on loopback
SOURCES: Final = 4
_READY_S: Final = 60.0

Runner: TypeAlias = Literal["transactional", "faust"]

logger = logging.getLogger(__name__)


class Cluster:
    """The servers. Use it as a context manager, in the main thread; ``kafka`` may be used by one other thread at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        home = directory / "kafka"
        home.mkdir(parents=True)
        self.kafka = KafkaBroker(home, fetch_jars())
        self._port = free_port()
        self._database = Supervisor(directory / "servers")
        self._gone = False

    @property
    def clickhouse_url(self) -> str:
        """Address of the database."""
        return f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.kafka)
            self._stack.enter_context(self._database)
            home = self.directory / "clickhouse"
            home.mkdir()
            self._database.start(clickhouse.child(self._port, home))
            self._database.wait_ready(_READY_S)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def database_pid(self) -> int:
        """Process id of the database's server."""
        return self._database.pid("clickhouse")

    def take_database(self) -> None:
        """Kill the database; it stays away until ``give_database``."""
        self._gone = True
        send(self.database_pid(), signal.SIGKILL)

    def give_database(self) -> None:
        """Let the database come back."""
        self._gone = False

    def poll(self) -> None:
        """Start the database again if it ended, unless it was taken away."""
        if not self._gone:
            self._database.poll()


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment: its name in prefixes, how many of what, and how its processes are started.

    ``states`` is the width of the detector, ``runner`` what runs it. With work and without progress for
    ``stuck_s`` after the last event the run has failed. ``module`` is what ``python -m`` runs; a mutant puts itself before ``streams``.
    """

    name: str
    profilers: int
    detectors: int
    idle_after_s: float
    session_s: float
    states: int = 4
    runner: Runner = "transactional"
    stuck_s: float = 180.0
    module: tuple[str, ...] = ("streams",)
    variables: Mapping[str, str] = field(default_factory=dict)

    def processes(self) -> dict[str, str]:
        """Name of each process and its role, in the order of the data: consumers of others' output come later."""
        return {
            **{f"profiler-{i}": "profiler" for i in range(self.profilers)},
            **{f"detector-{i}": "detector" for i in range(self.detectors)},
            "sink": "sink",
            "dispatcher": "dispatcher",
        }


class Deployment:
    """Driftline on a cluster. Mutable: it owns the processes and counts their lives. Use it as a context manager."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.plan = plan
        self.directory = cluster.directory / plan.name
        self.settings = Settings(
            kafka=KafkaSettings(
                bootstrap=cluster.kafka.address,
                topic_prefix=f"{plan.name}.",
                session_timeout_s=plan.session_s,
                predictions_partitions=SOURCES,
                detector_partitions=plan.states,
            ),
            clickhouse=ClickHouseSettings(url=cluster.clickhouse_url, database=plan.name),
            profiler=ProfilerSettings(
                idle_after_s=plan.idle_after_s, heartbeat_s=HEARTBEAT_S, instance="profiler-0"
            ),
            detector=DetectorSettings(runner=plan.runner, instance="detector-0"),
            dispatcher=DispatcherSettings(
                allowed_networks=("127.0.0.0/8",), timeout_s=WEBHOOK_TIMEOUT_S
            ),
        )
        self.topics = wiring.topics(self.settings)
        self.starts = Counter[str]()
        self.ends: list[Ended] = []
        self._supervisor = Supervisor(self.directory)

    def prepare(self, followed: Sequence[Model]) -> None:
        """Topics, tables and models, as ``driftline topics create``, ``migrate`` and ``apply`` make them."""
        admin = clients.admin(wiring.kafka(self.settings), logger)
        topics.create(admin, self.topics, wiring.widths(self.settings))
        store.migrate(self.settings.clickhouse)
        for model in followed:
            models.publish(wiring.kafka(self.settings), self.topics, model, logger)

    def __enter__(self) -> Self:
        self._supervisor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.starts:  # a stopped process would have to be killed
            send(self.pid(name), signal.SIGCONT)
        self._supervisor.__exit__()

    def start(self) -> None:
        """Start every process."""
        for name, role in self.plan.processes().items():
            self._supervisor.start(self._child(name, role))
            self.starts[name] += 1

    def poll(self) -> list[Ended]:
        """Start again what ended, and tell what did."""
        ends = self._supervisor.poll()
        self.ends += ends
        for end in ends:
            self.starts[end.name] += 1
        return ends

    def pid(self, name: str) -> int:
        """Process id of a process, or of the one that it was."""
        return self._supervisor.pid(name)

    def log(self, name: str) -> Path:
        """Log of a process."""
        return self._supervisor.log(name)

    def tails(self, lines: int = 12) -> str:
        """The ends of all logs, for who has to find out why."""
        parts = []
        for name in self.plan.processes():
            said = self.log(name).read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {name}", *said]))
        return "\n".join(parts)

    def _child(self, name: str, role: str) -> Child:
        variables = {
            "DRIFTLINE_PROFILER__INSTANCE": name,
            "DRIFTLINE_DETECTOR__INSTANCE": name,
            "DRIFTLINE_DETECTOR__DATA_DIR": str(self.directory / name),
            "DRIFTLINE_CONFIG": "",
            SECRET_VARIABLE: SECRET,
            "PYTHONUNBUFFERED": "1",
        }
        argv = (sys.executable, "-m", *self.plan.module, "run", role)
        return Child(name, argv, environment(self.settings) | variables | dict(self.plan.variables))


def send(pid: int, what: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def is_alive(pid: int) -> bool:
    """Whether a process runs or is stopped; one that ended and was not yet waited for is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
