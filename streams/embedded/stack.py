"""The whole of Driftline on one machine: used by ``driftline up``, by the demo and by the end-to-end tests.

::

    1. servers     broker and database, unless addresses are given
    2. contracts   topics and migrations
    3. processes   profiler, detector, sink, evaluator, dispatcher, api

The embedded broker forgets everything when it ends, so its offsets start at 0 with every run. The database must not
remember other offsets: an embedded one is emptied first, one that was given gets a database of its own for the run.
What a ``fresh`` run created on servers that were given is deleted when the run is over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.request import ProxyHandler, build_opener

from confluent_kafka import KafkaException

from monitor import clickhouse, store
from monitor.environment import environment
from monitor.errors import ConfigError, DriftlineError
from monitor.settings import Settings
from streams import clients, topics, wiring
from streams.embedded import broker as broker_server
from streams.embedded import clickhouse as database_server
from streams.embedded.placement import place, port_of
from streams.processes import EMBEDDED, look_after, one_line
from streams.supervisor import (
    LOOPBACK,
    Child,
    Supervisor,
    free_port,
)

SERVERS_TIMEOUT_S: Final = 30.0  # measured: broker 0.1 s, database 1.2 s
API_TIMEOUT_S: Final = 60.0  # seven Python processes start at once, on few cores
_TIDY_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.2
_EMPTIED: Final = (
    "emptied-at-each-start"  # the mark in a directory of ours: only its store is deleted
)
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
            DriftlineError: the broker ended.
        """
        look_after(self.supervisor)

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
    processes: Sequence[str] = EMBEDDED,
) -> Iterator[Stack]:
    """Start everything, and stop it at the end, whatever happens.

    Args:
        settings: what the user set; addresses are replaced by those of the stack.
        data_dir: where data and logs go; ``settings.embedded.data_dir`` if not given.
        broker: a Kafka to use instead of the embedded one.
        database: a ClickHouse (URL) to use instead of the embedded one.
        fresh: share nothing with other runs: free ports, own topics and database on servers that were given, which
            are deleted at the end.
        processes: the processes to start.

    Raises:
        ConfigError: a setting is wrong, or the directory is in use.
        TransientError: a server that was given does not answer.
        DriftlineError: a server does not start, or ends.
    """
    home = (data_dir or settings.embedded.data_dir).absolute()
    with _locked(home):
        placed = place(settings, home, broker, database, fresh=fresh)
        with (
            ExitStack() as afterwards,  # outside: our processes have ended by then
            Supervisor(home / "logs") as supervisor,
            one_line(),
        ):
            if broker is None:
                supervisor.start(broker_server.child(port_of(placed.kafka.bootstrap), home))
            if database is None:
                tables = home / "embedded-clickhouse"
                _claim(tables, empty=broker is None)
                supervisor.start(database_server.child(placed.clickhouse.port, tables))
            supervisor.wait_ready(SERVERS_TIMEOUT_S)
            wiring.require_broker(placed)
            if fresh and broker is not None:
                afterwards.callback(_best_effort, "topics", partial(_delete_topics, placed))
            if fresh and database is not None:
                afterwards.callback(_best_effort, "database", partial(_drop_database, placed))
            _prepare(placed)
            ports = {name: free_port() for name in processes}
            for name in processes:
                supervisor.start(_child(name, placed, ports[name]))
            supervisor.wait_ready(API_TIMEOUT_S)
            yield Stack(placed, supervisor, home, ports)


def _claim(tables: Path, *, empty: bool) -> None:
    """Make the directory of the embedded database, or empty it if it is ours."""
    mark = tables / _EMPTIED
    try:
        tables.mkdir(exist_ok=True)
        if not mark.exists() and any(tables.iterdir()):
            raise ConfigError(f"{tables} is not ours: move it away, or use another data directory")
        mark.touch()
        if empty and (tables / "store").exists():
            shutil.rmtree(tables / "store")
    except OSError as err:
        raise ConfigError(f"{tables}: cannot be used: {err.strerror}") from err


def _best_effort(what: str, delete: Callable[[], str]) -> None:
    try:
        logger.info("deleted the %s of this run: %s", what, delete())
    except (DriftlineError, KafkaException, TimeoutError) as err:
        logger.warning("the %s of this run could not be deleted: %s", what, err)


def _delete_topics(placed: Settings) -> str:
    admin = clients.admin(wiring.require_broker(placed), logger)
    prefix = placed.kafka.topic_prefix
    names = [n for n in admin.list_topics(timeout=_TIDY_TIMEOUT_S).topics if n.startswith(prefix)]
    if names:
        for deleted in admin.delete_topics(names, request_timeout=_TIDY_TIMEOUT_S).values():
            deleted.result(_TIDY_TIMEOUT_S)
    return f"{prefix}* ({len(names)})"


def _drop_database(placed: Settings) -> str:
    with clickhouse.translated(), wiring.clickhouse_client(placed) as client:
        client.command(f"DROP DATABASE IF EXISTS {placed.clickhouse.database}")
    return placed.clickhouse.database


def _prepare(settings: Settings) -> None:
    admin = clients.admin(wiring.kafka(settings), logger)
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
                f"{home} is in use by another driftline: stop it, or set DRIFTLINE_EMBEDDED__DATA_DIR"
                " to another directory"
            ) from err
        lock.write(str(os.getpid()))
        lock.flush()
        yield
