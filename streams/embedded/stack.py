"""The whole of Driftline on one machine: used by ``driftline up``, by the demo and by the end-to-end tests.

::

    1. servers     broker and database, unless addresses are given
    2. contracts   topics and migrations
    3. processes   profiler, detector, sink, evaluator, dispatcher, api

The embedded broker forgets everything when it ends, so its offsets start at 0 with every run. The database must not
remember other offsets: an embedded one is emptied first, one that was given gets a database of its own for the run.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.request import ProxyHandler, build_opener

from monitor import store
from monitor.environment import environment
from monitor.errors import ConfigError
from monitor.settings import Settings
from streams import clients, topics, wiring
from streams.embedded import broker as broker_server
from streams.embedded import clickhouse as database_server
from streams.embedded.supervisor import (
    LOOPBACK,
    Child,
    ChildConfigError,
    Supervisor,
    free_port,
)
from streams.processes import PROCESSES

SERVERS_TIMEOUT_S: Final = 30.0  # measured: broker 0.1 s, database 1.2 s
API_TIMEOUT_S: Final = 60.0  # seven Python processes start at once, on few cores
EMBEDDED_SESSION_S: Final = clients.EMBEDDED_SESSION_MS / 1_000
_POLL_S: Final = 0.2
_OPENER: Final = build_opener(ProxyHandler({}))  # no proxy stands between us and loopback

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack. ``settings`` hold its true addresses; whoever holds it must call ``poll`` about every second."""

    settings: Settings
    supervisor: Supervisor
    data_dir: Path
    metrics_ports: dict[str, int]

    @property
    def kafka(self) -> str:
        """Address of the broker."""
        return self.settings.kafka.bootstrap

    @property
    def clickhouse(self) -> str:
        """Address of the database."""
        return self.settings.clickhouse.url

    @property
    def api(self) -> str:
        """Address of the API and the page."""
        return f"http://{self.settings.api.host}:{self.settings.api.port}"

    def addresses(self) -> dict[str, str]:
        """What is where, for people."""
        return {
            "page": f"{self.api}/",
            "API": f"{self.api}/api/v1/models",
            "Kafka": f"{self.kafka}, topics {self.settings.kafka.topic_prefix}*",
            "ClickHouse": f"{self.clickhouse}, database {self.settings.clickhouse.database}",
            "logs": str(self.data_dir / "logs"),
        }

    def poll(self) -> None:
        """Restart what ended.

        Raises:
            ConfigError: a process refused its configuration.
            streams.embedded.supervisor.ChildFailedError: the broker ended.
        """
        with _config_errors():
            for end in self.supervisor.poll():
                logger.warning(
                    "%s ended with code %d; again in %s s", end.name, end.code, end.restart_in_s
                )

    def wait(self) -> None:
        """Look after the processes until Ctrl-C or SIGTERM raises ``KeyboardInterrupt``."""
        while True:
            self.poll()
            time.sleep(_POLL_S)


@contextmanager
def embedded_stack(
    settings: Settings,
    *,
    data_dir: Path | None = None,
    broker: str | None = None,
    database: str | None = None,
    fresh: bool = False,
    processes: Sequence[str] = tuple(process.name for process in PROCESSES),
) -> Iterator[Stack]:
    """Start everything, and stop it at the end, whatever happens.

    Args:
        settings: what the user set; addresses are replaced by those of the stack.
        data_dir: where data and logs go; ``settings.embedded.data_dir`` if not given.
        broker: a Kafka to use instead of the embedded one.
        database: a ClickHouse (URL) to use instead of the embedded one.
        fresh: share nothing with other runs: free ports, own topics and database on servers that were given.
        processes: the processes to start.

    Raises:
        ConfigError: a setting is wrong, or the directory is in use.
        TransientError: a server that was given does not answer.
        streams.embedded.supervisor.ChildFailedError: a server does not start.
    """
    home = (data_dir or settings.embedded.data_dir).absolute()
    with _locked(home), Supervisor(home / "logs") as supervisor, _config_errors():
        placed = _placed(settings, home, broker, database, fresh=fresh)
        if broker is None:
            supervisor.start(broker_server.child(_port_of(placed.kafka.bootstrap), home))
        if database is None:
            if broker is None:
                shutil.rmtree(home / "clickhouse", ignore_errors=True)
            supervisor.start(database_server.child(placed.clickhouse.port, home / "clickhouse"))
        supervisor.wait_ready(SERVERS_TIMEOUT_S)
        _prepare(placed)
        ports = {name: free_port() for name in processes}
        for name in processes:
            supervisor.start(_child(name, placed, ports[name]))
        supervisor.wait_ready(API_TIMEOUT_S)
        yield Stack(placed, supervisor, home, ports)


def _placed(
    settings: Settings, home: Path, broker: str | None, url: str | None, *, fresh: bool
) -> Settings:
    """The settings with the addresses of this run."""
    run = secrets.token_hex(3)
    kafka: dict[str, Any] = {"bootstrap": broker}
    if broker is None:
        wanted = _port_of(settings.kafka.bootstrap)
        kafka = {
            "bootstrap": f"{LOOPBACK}:{_port(wanted, fresh=fresh)}",
            "session_timeout_s": EMBEDDED_SESSION_S,
            "security_protocol": "PLAINTEXT",
        }
    elif fresh:
        kafka["topic_prefix"] = f"{settings.kafka.topic_prefix}{run}."
    database: dict[str, Any] = {"url": url}
    if url is None:
        port = _port(settings.clickhouse.port, fresh=fresh)
        database = {"url": f"http://{LOOPBACK}:{port}", "user": "default"}
    elif fresh or broker is None:
        database["database"] = f"{settings.clickhouse.database}_{run}"
    api = settings.api.port
    if fresh or "port" not in settings.api.model_fields_set:
        api = _port(api, fresh=fresh)
    form = {name: getattr(settings, name).model_dump() for name in type(settings).model_fields}
    form["kafka"] |= kafka
    form["clickhouse"] |= database
    form["api"] |= {"port": api}
    form["detector"] |= {"data_dir": home / "detector"}
    return Settings.model_construct(
        **{
            name: type(getattr(settings, name)).model_validate(group)
            for name, group in form.items()
        }
    )


def _prepare(settings: Settings) -> None:
    admin = clients.admin(wiring.require_broker(settings), logger)
    topics.create(admin, wiring.topics(settings), wiring.widths(settings))
    store.migrate(settings.clickhouse)


def _child(name: str, settings: Settings, metrics_port: int) -> Child:
    env = environment(settings) | {
        "DRIFTLINE_METRICS__PORT": str(metrics_port),
        "DRIFTLINE_CONFIG": "",
        "PYTHONUNBUFFERED": "1",
    }
    ready = partial(_answers, settings.api.port) if name == "api" else None
    return Child(name, (sys.executable, "-m", "streams", "run", name), env, ready)


def _answers(port: int) -> bool:
    try:
        with _OPENER.open(f"http://{LOOPBACK}:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _port_of(bootstrap: str) -> int:
    return int(bootstrap.split(",")[0].rpartition(":")[2])


def _port(preferred: int, *, fresh: bool) -> int:
    """The usual port where it is free: an address that stays the same is worth a try."""
    if fresh:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, preferred))
        except OSError:
            return free_port()
    return preferred or free_port()


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as err:
        raise ConfigError(f"{home}: cannot be written: {err.strerror}") from err
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigError(
                f"{home} is in use by another driftline: stop it, or give another --data-dir"
            ) from err
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _config_errors() -> Iterator[None]:
    try:
        yield
    except ChildConfigError as err:
        raise ConfigError(str(err)) from err
