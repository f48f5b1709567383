"""Several profilers on one machine, as processes under one: ``driftline run profiler --workers N``.

Python runs one thread at a time, so a second core takes a second process. The workers share the partitions of ``predictions`` as any members of the
consumer group do; each has a name of its own, by which the broker tells a worker that comes back from a second one that must be fenced.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from monitor.errors import ConfigError
from monitor.settings import Settings
from streams.processes import look_after, one_line
from streams.supervisor import Child, Supervisor

_POLL_S: Final = 0.1
_LAST_PORT: Final = 65_535


def run_profilers(settings: Settings, config: Path | None, workers: int) -> None:
    """Run them until Ctrl-C or SIGTERM raises ``KeyboardInterrupt``. One that ends is started again, after a pause that grows.

    Args:
        settings: of all; worker ``i`` from 0 on is called ``INSTANCE-i`` and serves its metrics on ``metrics.port`` + i, unless that is off.
        config: the file that these came from, for the workers.
        workers: how many.

    Raises:
        ConfigError: the ports do not suffice, or a worker refused its configuration; it has said why.
        DriftlineError: the machine has no room for a process more.
    """
    if settings.metrics.port and settings.metrics.port + workers - 1 > _LAST_PORT:
        raise ConfigError(f"metrics.port {settings.metrics.port}: {workers} workers take as many ports from it on")  # fmt: skip
    with Supervisor(None) as supervisor:
        with one_line():
            for number in range(workers):
                supervisor.start(_worker(settings, config, number))
        while True:
            look_after(supervisor)
            time.sleep(_POLL_S)


def _worker(settings: Settings, config: Path | None, number: int) -> Child:
    name = f"{settings.profiler.instance}-{number}"
    port = settings.metrics.port + number if settings.metrics.port else 0
    options = () if config is None else ("--config", str(config))
    return Child(
        name,
        (sys.executable, "-m", "streams", "run", "profiler", *options),
        {"DRIFTLINE_PROFILER__INSTANCE": name, "DRIFTLINE_METRICS__PORT": str(port)},
    )
