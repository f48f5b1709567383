"""Finds the message that ends the process which decodes it (a segmentation fault, too much memory, no end), by letting other processes decode it.

When worker after worker ended before it got past a batch, the next one does not touch the batch before this has looked through it::

    parent                                       child (python -m streams.quarantine)
    messages, models, limits  ──── stdin ────►   profiles each group of messages, and says before each which one it is
                              ◄─── stdout ───    0, 1, 2 ... end
    it ends in a group   ─►  another child, which takes that group one by one
    it ends in one message ─► that one is a killer; another child goes on behind it

So a batch that is innocent costs one start of a process, and each killer two. A child has no part of the environment that may hold secrets, a bound
on its memory, and is what the kernel ends first where memory is short. Time is bounded as well: ``vetted`` says how far the search came.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from monitor import reference as references
from monitor import wire
from monitor.errors import TransientError
from monitor.panes import SourceMark
from monitor.settings import PREFIX
from streams.models import Model
from streams.profiling import Policy, Reader, SourceMessage, profile_batch

COMMAND: Final = (sys.executable, "-m", "streams.quarantine")
GROUP: Final = 250  # messages: a group is split only where a child ended in it
PATIENCE_S: Final = 10.0  # for one group or one message; 1 MiB takes well below a second
_START_S: Final = 20.0  # imports take 1 s, and longer on a machine in trouble
TOTAL_S: Final = 20.0  # nothing is committed meanwhile, and a stalled worker gets restarted
_MEMORY: Final = 1 << 30  # bytes beside what a child has when it begins
_TICK_S: Final = 0.2
_END: Final = b"end\n"
_RAISED: Final = b"!"


@dataclass(frozen=True, slots=True)
class Bench:
    """What the messages are profiled with, beside themselves."""

    marks: Mapping[int, SourceMark]
    models: Mapping[str, Model]
    policy: Policy
    now_ms: int


@dataclass(frozen=True, slots=True)
class Finding:
    """``vetted`` messages, from the first on, were looked at; ``killers`` are places among them, and how each ended its process."""

    vetted: int
    killers: Mapping[int, str]


class _Job(msgspec.Struct):
    """What a child reads. Groups are ``(first, end)`` places in ``messages``."""

    messages: list[SourceMessage]
    groups: list[tuple[int, int]]
    marks: dict[int, SourceMark]
    models: list[bytes]
    policy: Policy
    now_ms: int


@dataclass(frozen=True, slots=True)
class _Run:
    """How one child came out: groups that it survived, and how it ended in the next. ``None``: there was none, or it was called off."""

    survived: int
    ended: str | None


def examine(
    messages: Sequence[SourceMessage],
    bench: Bench,
    *,
    monotonic: Callable[[], float],
    stopping: Callable[[], bool] = lambda: False,
    command: Sequence[str] = COMMAND,
    patience_s: float = PATIENCE_S,
    total_s: float = TOTAL_S,
) -> Finding:
    """Look for messages that end a process.

    Args:
        messages: in the order in which they would be profiled.
        bench: marks, models and limits.
        monotonic: a clock.
        stopping: whether to call it off.
        command: the child, which runs ``main`` of this module.
        patience_s: how long a group, or a single message, may take.
        total_s: no child begins after this time.

    Raises:
        TransientError: no child comes to the first message.
    """
    models = [references.dump(model.reference, model.spec) for model in bench.models.values()]
    deadline, killers = monotonic() + total_s, dict[int, str]()
    pending = [(at, min(at + GROUP, len(messages))) for at in range(0, len(messages), GROUP)]
    while pending and monotonic() < deadline:
        base = pending[0][0]
        groups = [(first - base, end - base) for first, end in pending]
        job = _Job(
            list(messages[base:]), groups, dict(bench.marks), models, bench.policy, bench.now_ms
        )
        run = _run(job, command, monotonic, stopping, patience_s)
        del pending[: run.survived]
        if run.ended is None:
            break
        first, end = pending.pop(0)
        if end - first == 1:
            killers[first] = run.ended
        else:
            pending[:0] = [(at, at + 1) for at in range(first, end)]
    return Finding(pending[0][0] if pending else len(messages), killers)


def _run(
    job: _Job,
    command: Sequence[str],
    monotonic: Callable[[], float],
    stopping: Callable[[], bool],
    patience_s: float,
) -> _Run:
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback may quote values
        env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
    )
    with child:
        try:
            return _follow(child, job, monotonic, stopping, patience_s)
        finally:
            child.kill()


def _follow(
    child: subprocess.Popen[bytes],
    job: _Job,
    monotonic: Callable[[], float],
    stopping: Callable[[], bool],
    patience_s: float,
) -> _Run:
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError):  # it reads everything before it says anything
        child.stdin.write(msgspec.msgpack.encode(job))
        child.stdin.close()
    said, deadline, how = b"", monotonic() + _START_S, ""
    while not how:
        if said.endswith(_END):
            return _Run(len(job.groups), None)
        if stopping():
            return _Run(_last_group(said) or 0, None)
        if monotonic() > deadline:
            how = f"no end after {patience_s:g} s"
        elif select.select([child.stdout], [], [], _TICK_S)[0]:
            heard = os.read(child.stdout.fileno(), 65_536)
            said, deadline = said + heard, monotonic() + patience_s
            how = "" if heard else _manner(child.wait(), said)
    at = _last_group(said)
    if at is None:
        raise TransientError(f"the process that looks for a bad message does not begin: {how}")
    return _Run(at, how)


def _last_group(said: bytes) -> int | None:
    """The group that a child began last."""
    groups = [line for line in said.split(b"\n")[:-1] if line.isdigit()]
    return int(groups[-1]) if groups else None


def _manner(code: int, said: bytes) -> str:
    if code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    *_, last = said.rstrip(b"\n").split(b"\n")
    return last[1:].decode() if last.startswith(_RAISED) else f"exit code {code}"


def main() -> None:
    """The child: profile each group of the job on standard input, and say on standard output which one is next."""
    with suppress(OSError):  # where there is no /proc, the kernel chooses as it likes
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Job)
    models = [Model(*references.load(record)) for record in job.models]
    by_name = {model.spec.model: model for model in models}
    newest = by_name.get
    reader = Reader()
    reader.learn(by_name, newest)
    # Loads pandas where that is installed, and reserves a GiB: longer and more than a message may take.
    pa.array([0])
    _restrict()
    for number, (first, end) in enumerate(job.groups):
        _say(b"%d" % number)
        try:
            outcome = profile_batch(
                job.messages[first:end],
                job.marks,
                newest,
                job.policy,
                now_ms=job.now_ms,
                known_models=len(models),
                reader=reader,
            )
            for message in outcome.profiles:
                wire.encode(message)
        except Exception as err:  # noqa: BLE001  whatever it is, it would end the profiler as well
            _say(_RAISED + type(err).__name__.encode())
            sys.exit(1)
    _say(_END.rstrip())


def _say(line: bytes) -> None:
    os.write(1, line + b"\n")


def _restrict() -> None:
    """A bound on memory, where the kernel tells how much there is, and no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # private ones, touched or not
        bound = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


if __name__ == "__main__":
    main()
