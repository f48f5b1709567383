"""A real Prometheus for tests, and its promtool (Debian's)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client import REGISTRY

import monitor.metrics  # noqa: F401 - declares what the registry holds
from streams.supervisor import LOOPBACK, free_port
from tests.alerting.managers import wait_for

PROGRAM: Final = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROGRAM is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: prometheus)",
)


def promtool(*arguments: str, text: str | None = None, code: int = 0) -> str:
    """What promtool says, which has to end with ``code``."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def prometheus(config: Path) -> Iterator[str]:
    """A server on loopback with its data beside ``config``; gives its address."""
    at = f"{LOOPBACK}:{free_port()}"
    with (config.parent / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                str(PROGRAM),
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent}/data",
                f"--web.listen-address={at}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: _ready(at), (config.parent / "log").read_text)
        yield f"http://{at}"
    finally:
        process.terminate()
        process.wait(20)


def ask(address: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus's API."""
    answer = httpx.get(f"{address}/api/v1/{path}", params=parameters, trust_env=False).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def exported() -> set[str]:
    """Every name that our registry knows: families, and the series of histograms and counters."""
    ends = ("", "_total", "_bucket", "_sum", "_count")
    families = [family.name for family in REGISTRY.collect()]
    known = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    return known | {f"{name}{end}" for name in families for end in ends if end != "_total"}


def _ready(at: str) -> bool:
    try:
        return httpx.get(f"http://{at}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
