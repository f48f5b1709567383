"""What a way to count predictions costs its process: wall and CPU time between its first event and its last, and its largest memory.

Of the project it imports only what imports the standard library: peers in environments of their own use it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from load.proc import peak_rss_bytes

WARM: Final = (
    6_000  # rows that a library is given first, so that what it loads late is not measured
)


@dataclass(frozen=True, slots=True)
class Used:
    """Of a process, for so many events."""

    events: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


class Meter:
    """Measures this process. Mutable: a stop watch."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From here on."""
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def report(self, events: int) -> None:
        """Up to here; written to standard output, for ``load.bench``."""
        used = Used(
            events,
            time.perf_counter() - self._wall_s,
            time.process_time() - self._cpu_s,
            peak_rss_bytes(os.getpid()),
        )
        sys.stdout.write(json.dumps(asdict(used)) + "\n")
        sys.stdout.flush()
