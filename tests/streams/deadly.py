"""The profiler, and the child that looks through its batches, with a decoder that some messages really end. A process.

``python -m tests.streams.deadly`` is the child, ``python -m tests.streams.deadly profiler`` the profiler.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from monitor import environment
from monitor.events import Aliases, Limits, Outcome, decode_message, no_aliases
from streams import profiling, quarantine
from streams.profiler import Profiler
from streams.registry import Registry
from tests.monitor.builders import NOW


def _decode(
    value: bytes | None,
    headers: Mapping[str, bytes],
    limits: Limits,
    *,
    now_ms: int,
    aliases: Aliases = no_aliases,
) -> list[Outcome]:
    if value is not None and value.startswith(b"deadly:"):
        _die(value.removeprefix(b"deadly:").decode())
    return decode_message(value, headers, limits, now_ms=now_ms, aliases=aliases)


def _each(
    messages: Sequence[tuple[bytes | None, Mapping[str, bytes]]],
    limits: Limits,
    *,
    now_ms: int,
    aliases: Aliases = no_aliases,
) -> Iterator[list[Outcome]]:
    for value, headers in messages:
        yield _decode(value, headers, limits, now_ms=now_ms, aliases=aliases)


def _die(how: str) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit":
            os._exit(9)
        case "raise":
            raise RuntimeError("never said")
        case "memory":
            bytearray(64 << 30)
        case "hang":
            time.sleep(60)
        case _:
            assert not any(name.startswith("DRIFTLINE_") for name in os.environ)


def _profile() -> None:
    from tests.streams.profiled import Live

    Profiler(
        environment.load(None),
        cast("Registry", Live()),
        clock=lambda: NOW / 1_000,
        monotonic=time.monotonic,
        examiner=(sys.executable, "-m", "tests.streams.deadly"),
    ).run(threading.Event())


if __name__ == "__main__":
    profiling.decode_messages = _each  # type: ignore[attr-defined]  # it is theirs by import only
    if len(sys.argv) > 1:
        _profile()
    else:
        quarantine.main()
