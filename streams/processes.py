"""The processes of a deployment, and how one of them lives: start, wait for what is away, stop within a bound.

::

    ConfigError ──────────────► one line, exit 2
    TransientError ───────────► say so (once a minute), wait with backoff, start again
    SIGTERM, SIGINT ──────────► the stop event; after STOP_WITHIN_S, or at a second signal, the end
    any other exception ──────► traceback, exit 1: a defect, and the supervisor restarts the process
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final, TypeAlias

import structlog

from monitor.environment import Group
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.settings import Settings
from streams.supervisor import ChildConfigError, ChildFailedError, Supervisor

logger = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Settings, threading.Event], None]

STOP_WITHIN_S: Final = 10.0  # what docker stop grants before it kills
SAY_EVERY_S: Final = 60.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process: what it does, the module whose ``run(settings, stop)`` it is, and the settings that it reads."""

    name: str
    summary: str
    module: str
    groups: tuple[Group, ...]
    embedded: bool = True  # part of what `up` and the demo run


_EVERY: Final[tuple[Group, ...]] = ("metrics", "log")
PROCESSES: Final[tuple[Process, ...]] = (
    Process(
        "profiler",
        "Turn predictions into profiles, one Kafka transaction a batch.",
        "streams.profiler",
        ("kafka", "limits", "profiler", *_EVERY),
    ),
    Process(
        "detector",
        "Merge profiles, close windows, judge them, open incidents.",
        "streams.detector",
        ("kafka", "limits", "detector", *_EVERY),
    ),
    Process(
        "sink",
        "Write what the topics carry to ClickHouse.",
        "streams.sink",
        ("kafka", "clickhouse", "sink", *_EVERY),
    ),
    Process(
        "evaluator",
        "Join labels with predictions and measure performance.",
        "streams.evaluator",
        ("kafka", "clickhouse", "evaluator", *_EVERY),
    ),
    Process(
        "dispatcher",
        "Send what is in the outbox to webhooks.",
        "streams.dispatcher",
        ("kafka", "dispatcher", "email", "approvals", "api", *_EVERY),  # of api: public_url
    ),
    Process(
        "api",
        "Serve the HTTP API and the page.",
        "streams.api",
        ("kafka", "limits", "clickhouse", "approvals", "api", *_EVERY),
    ),
    Process(
        "bridge",
        "Turn what Seldon, MLServer or KServe write to Kafka into predictions.",
        "streams.bridge",
        ("kafka", "limits", "bridge", *_EVERY),
        embedded=False,
    ),
)
EMBEDDED: Final = tuple(process.name for process in PROCESSES if process.embedded)


def resolve(process: Process) -> Run:
    """The process's ``run``, imported only now: a help text must not wait for Faust."""
    run: Run = importlib.import_module(process.module).run
    return run


def stop_on_signals(stop: threading.Event, *, within_s: float = STOP_WITHIN_S) -> None:
    """Let SIGTERM and SIGINT set ``stop``; a second one, or ``within_s`` without an end, ends the process."""

    def end() -> None:
        structlog.get_logger(__name__).error("did not stop in time", within_s=within_s)
        os._exit(1)

    def stopping(signum: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set()
        deadline = threading.Timer(within_s, end)
        deadline.daemon = True
        deadline.start()

    signal.signal(signal.SIGTERM, stopping)
    signal.signal(signal.SIGINT, stopping)


def run_patiently(
    run: Run,
    settings: Settings,
    stop: threading.Event,
    *,
    clock: Callable[[], float] = time.monotonic,
    failed: Callable[[], object] = lambda: None,
) -> None:
    """Run a process; whenever a broker or a database is away, say ``failed``, wait and start it again.

    Raises:
        ConfigError: the settings will never work.
    """
    log = structlog.get_logger(__name__)
    waits = _waits()
    said_at, started_at = -SAY_EVERY_S, clock()
    while not stop.is_set():
        try:
            run(settings, stop)
        except TransientError as err:
            failed()
            now = clock()
            if now - started_at > SAY_EVERY_S:
                waits = _waits()  # it had been running: this is a new outage
            if now - said_at >= SAY_EVERY_S:
                said_at = now
                log.warning("waiting for a dependency", error=str(err))
            stop.wait(next(waits))
            started_at = clock()
        else:
            return


def named(name: str) -> Process:
    """The process of this name.

    Raises:
        ConfigError: there is none.
    """
    for process in PROCESSES:
        if process.name == name:
            return process
    raise ConfigError(f"no process is called {name}: {', '.join(p.name for p in PROCESSES)}")


def _waits() -> Iterator[float]:
    wait = _FIRST_WAIT_S
    while True:
        yield wait
        wait = min(_LONGEST_WAIT_S, wait * 2)


def look_after(supervisor: Supervisor) -> None:
    """Start again what ended, and say so.

    Raises:
        ConfigError: a process refused its configuration.
        DriftlineError: one ended that cannot be started again.
    """
    with one_line():
        for end in supervisor.poll():
            logger.warning(
                "%s ended with code %d; again in %s s", end.name, end.code, end.restart_in_s
            )


@contextmanager
def one_line() -> Iterator[None]:
    """Make of a child's end an error for the user: what ended, and the last line that it said."""
    try:
        yield
    except ChildConfigError as err:
        raise ConfigError(str(err)) from err
    except ChildFailedError as err:
        first, *tail = str(err).splitlines()
        raise DriftlineError(f"{first} {tail[-1]}" if tail else first) from err
