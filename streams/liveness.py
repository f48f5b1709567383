"""When a worker has to give up: it makes no progress although there is work, or it was away for longer than its session.

Liveness is "the work moves, or there is none": that a port answers proves nothing about a consumer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final, NoReturn

EXIT_RESTART: Final = 70  # EX_SOFTWARE: start again, and read from the committed offset
_FRAMES: Final = 8  # from our loop down to the call of a client that hangs

logger = logging.getLogger(__name__)


def main_stack() -> str:
    """Where the main thread is, the innermost call last: names of files and functions, and no values."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    calls = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
    return " > ".join(f"{Path(c.filename).name}:{c.lineno} {c.name}" for c in calls)


def end_process(reason: str, last_words: Callable[[str], object] | None = None) -> NoReturn:
    """End at once, without a commit and without a clean-up: whatever hangs would hang that as well."""
    try:
        if threading.current_thread() is not threading.main_thread():
            reason = f"{reason}; the main thread is in {main_stack()}"
        logger.critical("ends with exit code %d: %s", EXIT_RESTART, reason)
        if last_words is not None:
            last_words(reason)
        logging.shutdown()
    finally:  # whatever the last words did
        os._exit(EXIT_RESTART)


class StallClock:
    """Measures for how long there has been work without progress.

    ``progress`` is any value that changes when something moves: messages applied, a recovery's position, a new
    generation. So a recovery of ten minutes that reads on is no stall. Blind to work that moves but never ends.
    """

    def __init__(self, limit_s: float) -> None:
        if limit_s <= 0:
            raise ValueError(f"limit_s is {limit_s}: it has to be positive")
        self._limit_s = limit_s
        self._progress: Hashable = None
        self._since_s: float | None = None

    def stalled(self, now_s: float, progress: Hashable, *, work: bool) -> bool:
        """Take one observation; true when all those of the last ``limit_s`` seconds showed work and no progress."""
        if progress != self._progress or not work:
            self._progress = progress
            self._since_s = None
        if not work:
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= self._limit_s

    def for_s(self, now_s: float) -> float:
        """For how long there has been work without progress; 0 if there is none, or it moves."""
        return 0.0 if self._since_s is None else now_s - self._since_s


class Lease:
    """Ends a process that was stopped (SIGSTOP, a frozen machine) for longer than its session lasts.

    Its partitions then belong to another worker, and what it would write next into their changelog would overwrite
    newer state. A thread ticks; whoever finds the last tick too old calls ``lost``. It is not a fence: bytes that
    already are in a socket are sent. ``lost`` may be called in any thread and must not return.
    """

    def __init__(
        self,
        limit_s: float,
        lost: Callable[[str], object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._lost = lost
        self._monotonic = monotonic
        self._tick_s = monotonic()
        self._stopped = threading.Event()

    def check(self) -> None:
        """Call before each write."""
        away_s = self._monotonic() - self._tick_s
        if away_s > self._limit_s:
            self._lost(f"the process was stopped for {away_s:.1f} s: its session is over")

    def start(self) -> None:
        """Start to tick."""
        threading.Thread(target=self._tick, name="lease", daemon=True).start()

    def stop(self) -> None:
        """Stop to tick and never again call ``lost`` by itself."""
        self._stopped.set()

    def _tick(self) -> None:
        while not self._stopped.wait(min(0.25, self._limit_s / 4)):
            self.check()
            self._tick_s = self._monotonic()
