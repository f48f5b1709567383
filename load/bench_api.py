"""``python -m load.bench_api``: how long the API takes while many ask and the pipeline runs.

Everything that a user starts runs on this machine, embedded, with made-up traffic: broker, profiler, detector, sink, evaluator, dispatcher, database,
API. ``wrk`` asks with one key, under the default limits, for what pages and rollouts ask: models, windows, verdicts, performance, incidents, silences, gates, the ledger.
``wrk`` has no constant rate: each of its connections waits before it asks again, a random time of ``PAUSE_MS`` in the mean, as people and programs that do
not know of each other do. So the rate is a little above ``--rate`` as long as answers are quick, and falls where they are not; a rate below ``--rate`` fails as
well. The first ``WARM_S`` are not counted: then all ask for the first time, in the same moment.

Exit codes: 0 p99 is below ``--bar``, the rate was kept and each answer was a 200; 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import SecretStr

from load.markdown import table
from monitor.environment import environment, load
from monitor.keys import SECRET_BYTES, create
from monitor.settings import ApiSettings
from streams.embedded.stack import Stack, embedded_stack
from streams.supervisor import Child, free_port

PAUSE_MS: Final = 500
WARM_S: Final = 5.0
SPARE_MS: Final = 50  # an answer may take so long, on the average, and the rate is kept
_PATIENCE_S: Final = 180.0
_SCRIPT: Final = """
local paths, n = {%s}, 0
function delay() return math.random(0, %d) end
function request()
  n = n + 1
  return wrk.format("GET", paths[n %% #paths + 1])
end
function done(summary, latency, requests)
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, "max_us": %%d, "not_200": %%d, "broken": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What ``wrk`` saw, and the events a second that the profiler read meanwhile."""

    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    requests: int
    failed: int
    events_per_s: float

    def holds(self, *, rate: float, bar_ms: float) -> bool:
        """Whether it is good enough, and was what was to be measured."""
        busy = self.rate >= rate and self.events_per_s > 0
        return busy and self.p99_ms < bar_ms and not self.failed


def measure(rate: float, seconds: float, events_per_s: float, directory: Path) -> Found:
    """One run."""
    secret, key = create("bench", ["read"], secrets.token_bytes(SECRET_BYTES))
    api = ApiSettings(port=free_port(), keys=SecretStr(key.line))
    settings = load().model_copy(update={"api": api})
    with embedded_stack(settings, data_dir=directory, fresh=True) as stack:
        variables = environment(stack.settings) | {"DRIFTLINE_CONFIG": ""}
        argv = (sys.executable, "-m", "load.traffic", "--rate", f"{events_per_s:g}")
        stack.supervisor.start(Child("traffic", argv, variables))
        with httpx.Client(
            base_url=stack.api, headers={"X-API-Key": secret}, trust_env=False, timeout=10
        ) as client:
            model = _wait(stack, lambda: _watched(client))
            asks = partial(_wrk, stack.api, secret, _paths(model), rate, directory)
            asks(WARM_S)
            before, since_s = _events(client), time.monotonic()
            told = asks(seconds)
            seen = (_events(client) - before) / (time.monotonic() - since_s)
        stack.poll()
    return Found(
        rate=told["requests"] / told["duration_us"] * 1e6,
        p50_ms=told["p50_us"] / 1e3,
        p99_ms=told["p99_us"] / 1e3,
        max_ms=told["max_us"] / 1e3,
        requests=told["requests"],
        failed=told["not_200"] + told["broken"],
        events_per_s=seen,
    )


def _watched(client: httpx.Client) -> dict[str, Any] | None:
    """A model with windows, once there is one."""
    found = client.get("/api/v1/models").json()["items"]
    return next((row for row in found if row["versions"]), None)


def _events(client: httpx.Client) -> int:
    total: dict[str, int] = client.get("/api/v1/ledger").json()["total"]
    return total["events"]


def _wait(stack: Stack, look: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        stack.poll()
        if (found := look()) is not None:
            return found
        time.sleep(0.5)
    raise TimeoutError(f"no window within {_PATIENCE_S:g} s")


def _paths(model: dict[str, Any]) -> list[str]:
    name, size_ms = model["model"], model["sizes_ms"][0]
    of_model = f"/api/v1/models/{name}"
    return [
        "/api/v1/models",
        of_model,
        f"{of_model}/windows?size_ms={size_ms}",
        f"{of_model}/verdicts?statistic=psi",
        f"{of_model}/performance",
        f"{of_model}/versions/{model['versions'][0]}/gate",
        "/api/v1/incidents",
        "/api/v1/silences",
        "/api/v1/ledger",
    ]


def _wrk(
    address: str, secret: str, paths: Sequence[str], rate: float, directory: Path, seconds: float
) -> dict[str, int]:
    script = directory / "ask.lua"
    script.write_text(_SCRIPT % (", ".join(json.dumps(path) for path in paths), 2 * PAUSE_MS))
    connections = max(2, round(rate * (PAUSE_MS + SPARE_MS) / 1_000))
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout=30s", "-s", str(script)]
    ran = subprocess.run(
        [*argv, "-H", f"X-API-Key: {secret}", address], capture_output=True, text=True, check=True
    )
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("RESULT "))
    told: dict[str, int] = json.loads(line.removeprefix("RESULT "))
    return told


def report(found: Found) -> str:
    """The run as a table."""
    heads = ["requests/s", "p50", "p99", "max", "requests", "failed", "events/s meanwhile"]
    times = [f"{ms:.1f} ms" for ms in (found.p50_ms, found.p99_ms, found.max_ms)]
    counts = [f"{found.requests:,}", str(found.failed), f"{found.events_per_s:.0f}"]
    return table(heads, [[f"{found.rate:.0f}", *times, *counts]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m load.bench_api", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rate", type=float, default=200.0, help="least requests a second")
    parser.add_argument("--bar", type=float, default=200.0, metavar="MS", help="p99 is below")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--events", type=float, default=500.0, help="predictions a second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="driftline-api-") as scratch:
        found = measure(options.rate, options.seconds, options.events, Path(scratch))
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(asdict(found)))
    return 0 if found.holds(rate=options.rate, bar_ms=options.bar) else 1


if __name__ == "__main__":
    sys.exit(main())
