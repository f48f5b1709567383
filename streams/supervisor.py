"""Runs the processes of an embedded Driftline: starts them, restarts them, and never leaves one behind.

    with Supervisor(log_dir) as supervisor:
        supervisor.start(Child("broker", argv, ready=..., on_end=OnEnd.FAIL))
        supervisor.wait_ready(30)
        while running:
            for end in supervisor.poll():
                ...

Three things end a child: ``stop`` (SIGTERM in reverse order of start, SIGKILL after the grace), a second Ctrl-C
(SIGKILL at once), and the guard. The guard is a process that holds the other end of a pipe: when the supervisor is
gone for whatever reason, ``kill -9`` included, the pipe ends and the guard kills every process that carries the
supervisor's mark in its environment, so grandchildren too. ``PR_SET_PDEATHSIG`` could not: it misses grandchildren,
and it fires when the *thread* that started the child ends.

Linux only: the guard reads ``/proc``. This file imports nothing but the standard library, because it is the guard, too.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, Self

CONFIG_EXIT_CODE: Final = 2
# An environment variable. Not DRIFTLINE_*: those are settings, and unknown ones are refused.
MARK: Final = "_DRIFTLINE_SUPERVISOR"
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
STEADY_S: Final = 60.0  # a child that lived this long starts again with the first backoff
GRACE_S: Final = 10.0  # the slowest of ours: the endpoint lets a query finish
TAIL_BYTES: Final = 2000
LOOPBACK: Final = "127.0.0.1"
_POLL_S: Final = 0.02


def free_port(*, other_than: int = 0) -> int:
    """A port of the loopback address that nobody listens on at this moment, below the kernel's ephemeral range (32768 and up).

    From that range any client may be given the port before its owner listens; and one that reconnects while its server is away can be
    given the server's own port as its source, connect to itself, and keep the server from coming back.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            if port != other_than:
                return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class OnEnd(Enum):
    """What the end of a child means."""

    RESTART = "restart"
    FAIL = "fail"  # it held state that is gone: nothing can go on
    DONE = "done"  # a job: code 0 is fine, any other is a failure


class ChildFailedError(Exception):
    """A child ended, or never got ready, and cannot be restarted. The message has the end of its log."""


class ChildConfigError(ChildFailedError):
    """A child refused its configuration (exit code 2). The message is the one line that it said."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process to run. ``env`` is added to the supervisor's own; ``ready`` may be asked often and must not block long."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets
    ready: Callable[[], bool] | None = None
    on_end: OnEnd = OnEnd.RESTART


@dataclass(frozen=True, slots=True)
class Ended:
    """A child ended. ``restart_in_s`` is None for a job that is done."""

    name: str
    code: int
    restart_in_s: float | None


@dataclass(slots=True)
class _Run:
    """A child and its present process; mutable, because a restart replaces the process."""

    child: Child
    process: subprocess.Popen[bytes]
    started_s: float
    log_start: int
    failures: int = 0
    restart_at_s: float | None = None
    done: bool = False


class Supervisor:
    """Owner of the child processes. Calls come from one thread; use it as a context manager.

    Inside the context, if that is in the main thread, SIGTERM and Ctrl-C raise ``KeyboardInterrupt``, which leaves
    the context and so stops the children in order; a second one kills them at once.

    Args:
        log_dir: where each child has a log of its own. ``None``: they write where the supervisor does, and stop all at once, as equals have no order.
        grace_s: how long a child may take to stop.
    """

    def __init__(self, log_dir: Path | None, *, grace_s: float = GRACE_S) -> None:
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._mark = secrets.token_hex(16)
        self._runs: dict[str, _Run] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._handlers: dict[signal.Signals, signal._HANDLER] = {}
        self._interrupts = 0

    def __enter__(self) -> Self:
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._mark],
            stdin=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != MARK},
            start_new_session=True,  # neither Ctrl-C nor the end of the terminal reaches it
        )
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._handlers[name] = signal.signal(name, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for name, handler in self._handlers.items():
                signal.signal(name, handler)

    def start(self, child: Child) -> None:
        """Start a child. Its output is appended to ``NAME.log`` in the log directory, if there is one.

        Raises:
            ChildFailedError: the program cannot be run.
        """
        if self._guard is None:
            raise RuntimeError("use the supervisor as a context manager: the guard is not running")
        if child.name in self._runs:
            raise ValueError(f"a child is called {child.name!r} already")
        self._runs[child.name] = self._spawn(child)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every child that can say so is ready.

        Raises:
            ChildConfigError: a child refused its configuration.
            ChildFailedError: one ended that is not restarted, or is not ready in time.
        """
        deadline_s = time.monotonic() + timeout_s
        for run in self._runs.values():
            while run.child.ready is not None and not run.child.ready():
                self.poll()
                if time.monotonic() > deadline_s:
                    raise ChildFailedError(
                        f"{run.child.name} was not ready within {timeout_s:g} s{self._tail(run)}"
                    )
                time.sleep(_POLL_S)

    def poll(self) -> list[Ended]:
        """Look after the children: report what ended, restart what is due. Never blocks.

        Raises:
            ChildConfigError: a child refused its configuration.
            ChildFailedError: one ended that is not restarted.
        """
        now_s = time.monotonic()
        ends = []
        for run in self._runs.values():
            if run.restart_at_s is not None and now_s >= run.restart_at_s:
                self._restart(run)
            code = run.process.poll()
            if code is not None and run.restart_at_s is None and not run.done:
                ends.append(self._ended(run, code, now_s))
        return ends

    def pid(self, name: str) -> int:
        """Process id of a child, for tests that kill it."""
        return self._runs[name].process.pid

    def log(self, name: str) -> Path:
        """Log file of a child.

        Raises:
            ValueError: it has none of its own.
        """
        if self._log_dir is None:
            raise ValueError("children write where their supervisor does")
        return self._log_dir / f"{name}.log"

    def stop(self) -> None:
        """Stop the children, the last one started first or, without logs of their own, all at once; then whatever they left behind. May be repeated.

        Takes at most twice the grace, whatever the children do.
        """
        deadline_s = time.monotonic() + 2 * self._grace_s
        try:
            if self._log_dir is None:
                for run in self._runs.values():
                    run.process.terminate()
            for run in reversed(self._runs.values()):
                if self._interrupts > 1:
                    break
                # Once each: at a second signal our processes end at once.
                if self._log_dir is not None:
                    run.process.terminate()
                _wait(run.process, min(self._grace_s, max(deadline_s - time.monotonic(), 0)))
        finally:  # also on a second Ctrl-C
            self._kill_all()

    def _spawn(self, child: Child) -> _Run:
        has_log = self._log_dir is not None
        with self.log(child.name).open("ab") if has_log else nullcontext() as log:
            # Before the child, which shares this position, writes.
            log_start = 0 if log is None else log.tell()
            try:
                process = subprocess.Popen(
                    child.argv,
                    env={**os.environ, **child.env, MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the supervisor, which stops them in order
                )
            except OSError as error:
                raise ChildFailedError(
                    f"cannot run {child.name} ({child.argv[0]}): {error.strerror}"
                ) from None
            return _Run(child, process, time.monotonic(), log_start)

    def _restart(self, run: _Run) -> None:
        fresh = self._spawn(run.child)
        run.process, run.started_s = fresh.process, fresh.started_s
        run.log_start, run.restart_at_s = fresh.log_start, None

    def _ended(self, run: _Run, code: int, now_s: float) -> Ended:
        name = run.child.name
        if code == CONFIG_EXIT_CODE:
            lines = self._said(run).strip().splitlines() or ["refused its configuration"]
            raise ChildConfigError(f"{name}: {lines[-1]}")
        if run.child.on_end is OnEnd.FAIL or (run.child.on_end is OnEnd.DONE and code != 0):
            raise ChildFailedError(f"{name} ended with code {code}{self._tail(run)}")
        if run.child.on_end is OnEnd.DONE:
            run.done = True
            return Ended(name, code, None)
        if now_s - run.started_s >= STEADY_S:
            run.failures = 0
        wait_s = min(FIRST_BACKOFF_S * 2**run.failures, MAX_BACKOFF_S)
        run.failures = min(run.failures + 1, 10)
        run.restart_at_s = now_s + wait_s
        return Ended(name, code, wait_s)

    def _said(self, run: _Run) -> str:
        if self._log_dir is None:
            return ""  # it said it where everybody reads
        with self.log(run.child.name).open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(run.log_start, end - TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _tail(self, run: _Run) -> str:
        if self._log_dir is None:
            return ""
        said = self._said(run).strip()
        return f"; the end of {self.log(run.child.name)}:\n{said}" if said else "; it said nothing"

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> NoReturn:
        self._interrupts += 1
        raise KeyboardInterrupt

    def _kill_all(self) -> None:
        for run in self._runs.values():
            run.process.kill()
        for run in self._runs.values():
            run.process.wait()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            _wait(self._guard, self._grace_s)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()


def marked_processes(mark: str) -> Iterator[int]:
    """Ids of the processes that a supervisor or its children started, zombies left out."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            variables = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            continue
        if wanted in variables:
            yield int(entry.name)


def guard(mark: str) -> None:
    """Wait for the end of the supervisor, then kill what carries its mark, until nothing does."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while os.read(0, 1):  # nobody writes: this waits for the end
        pass
    while pids := list(marked_processes(mark)):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_POLL_S)


if __name__ == "__main__":
    guard(sys.argv[1])
