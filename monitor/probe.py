"""Is a process well? Asked from outside, of its own /metrics: one line and an exit code, as health checks want it.

Standard library only, since a health check runs every few seconds: 0.1 s of CPU, where the whole
command line takes 0.6 s.
Liveness is "the work moves, or there is none" (``streams.health``): that a port answers proves nothing.

Run as ``python -m monitor.probe [URL]``; without URL it asks port DRIFTLINE_METRICS__PORT of this machine.
"""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.request
from typing import Final

STALLED_S: Final = 60.0  # of work without progress; at twice this the process ends itself
SILENT_S: Final = 120.0  # of a process that only says when it last did something
_TIMEOUT_S: Final = 5.0
_SAMPLE: Final = r'^driftline_{}\{{process="(\w+)"\}} (\S+)$'
_STALLED: Final = re.compile(_SAMPLE.format("stalled_seconds"), re.MULTILINE)
_PROGRESS: Final = re.compile(_SAMPLE.format("last_progress_timestamp_seconds"), re.MULTILINE)


def problem(page: str, now_s: float) -> str | None:
    """What is wrong with the process whose /metrics are ``page``, or ``None``."""
    stalled = {name: float(seconds) for name, seconds in _STALLED.findall(page)}
    for name, seconds in stalled.items():
        if seconds > STALLED_S:
            return f"{name} has work, and made no progress for {seconds:.0f} s"
    for name, seen in _PROGRESS.findall(page):
        if name not in stalled and now_s - float(seen) > SILENT_S:
            return f"{name} made no progress for {now_s - float(seen):.0f} s"
    return None


def ask(url: str, now_s: float) -> str | None:
    """What is wrong with what answers at ``url``, or ``None``. Only /metrics says more than that it answers."""
    # No proxy: the address is this machine's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        page = opener.open(url, timeout=_TIMEOUT_S).read().decode("utf-8", "replace")
    except OSError as err:
        return f"{url}: {err}"
    return problem(page, now_s)


def metrics_url(port: int) -> str:
    """Where a process on this machine serves its metrics."""
    return f"http://127.0.0.1:{port}/metrics"


if __name__ == "__main__":
    asked = (
        sys.argv[1]
        if len(sys.argv) > 1
        else metrics_url(int(os.environ["DRIFTLINE_METRICS__PORT"]))
    )
    sys.exit(ask(asked, time.time()))  # noqa: TID251  an edge
