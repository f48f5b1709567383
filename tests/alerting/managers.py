"""A real Alertmanager for tests (Debian's), and somebody whom it tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from typing_extensions import override

from streams.supervisor import free_port

PROGRAM: Final = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
needs_alertmanager = pytest.mark.skipif(
    PROGRAM is None, reason="Alertmanager is not installed (Debian: prometheus-alertmanager)"
)
CONFIG = """
route:
  receiver: us
  group_by: [model]
  group_wait: 1s
  group_interval: 1s
  repeat_interval: 1h
receivers:
- name: us
  webhook_configs:
  - url: {url}
    send_resolved: true
"""


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that keeps what Alertmanager tells it."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        @override
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def alertmanager(directory: Path, tells: str, port: int = 0) -> Iterator[str]:
    """A server on loopback, without a cluster; gives its address. What it knew before is in the directory."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yml").write_text(CONFIG.format(url=tells))
    url = f"127.0.0.1:{port or free_port()}"
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                str(PROGRAM),
                f"--config.file={directory}/config.yml",
                f"--storage.path={directory}/data",
                f"--web.listen-address={url}",
                "--web.route-prefix=/am",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: ready(url), (directory / "log").read_text)
        yield f"http://{url}/am/"
    finally:
        process.terminate()
        process.wait(20)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"http://{url}/am/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def known(url: str) -> dict[str, dict[str, Any]]:
    """Alerts that Alertmanager holds to be firing, by incident."""
    found = httpx.get(f"{url}api/v2/alerts").json()
    return {alert["labels"]["incident"]: alert for alert in found}
