"""Our alerts in a real Alertmanager (Debian's): it takes them, groups them, tells of them, and forgets what is not sent again."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from typing_extensions import override

from alerting.delivery import Outcome, Sender
from alerting.payloads import alerts_request
from monitor.targets import AlertmanagerTarget
from monitor.wire import Incident
from streams.embedded.supervisor import free_port
from tests.alerting.test_payloads import item

PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="Alertmanager is not installed (Debian: prometheus-alertmanager)"),
    pytest.mark.timeout(120),
]  # fmt: skip
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
def alertmanager(directory: Path, tells: str) -> Iterator[str]:
    """A server on loopback, without a cluster; gives its address. What it knew before is in the directory."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yml").write_text(CONFIG.format(url=tells))
    url = f"127.0.0.1:{free_port()}"
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


async def send(url: str, *incidents: Incident) -> Outcome:
    request = alerts_request(
        incidents, AlertmanagerTarget(url=url), lambda text: text, at_s=int(time.time())
    )
    sender = Sender(("127.0.0.0/8",), 5.0)
    try:
        return (await sender.send(request)).outcome
    finally:
        await sender.close()


def known(url: str) -> dict[str, dict[str, Any]]:
    """Alerts that Alertmanager holds to be firing, by incident."""
    found = httpx.get(f"{url}api/v2/alerts").json()
    return {alert["labels"]["incident"]: alert for alert in found}


def states(told: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Of each notification: incident -> state."""
    return [{a["labels"]["incident"]: a["status"] for a in each["alerts"]} for each in told]


async def test_incidents_are_taken_grouped_and_resolved_and_sent_again_after_a_restart(
    tmp_path: Path,
) -> None:
    one, two = (replace(item().incident, id=letter * 32) for letter in "12")
    other = replace(one, id="3" * 32, model="other/ß", title="\u202e<b>\n", evidence=[])
    with receiver() as (tells, told):
        with alertmanager(tmp_path / "am", tells) as url:
            assert await send(url, one, two, other) is Outcome.DELIVERED
            assert await send(url, one, two, other) is Outcome.DELIVERED, "and again, as it asks"
            assert known(url).keys() == {one.id, two.id, other.id}
            assert known(url)[one.id]["annotations"]["advice"] == "fix data (retrain blocked)"
            wait_for(lambda: len(told) == 2, lambda: told)
            both = {one.id: "firing", two.id: "firing"}
            assert sorted(states(told), key=len) == [{other.id: "firing"}, both]
            assert await send(url, replace(one, state="resolved")) is Outcome.DELIVERED
            wait_for(lambda: len(told) == 3, lambda: told)
            assert states(told)[2] == {one.id: "resolved", two.id: "firing"}
        with alertmanager(tmp_path / "am", tells) as url:
            assert known(url) == {}, "it keeps no alerts over a restart"
            assert await send(url, two, other) is Outcome.DELIVERED
            assert known(url).keys() == {two.id, other.id}
            await asyncio.sleep(3)
            assert len(told) == 3, "but it keeps what it has told"


async def test_what_alertmanager_refuses_is_refused(tmp_path: Path) -> None:
    with receiver() as (tells, _), alertmanager(tmp_path / "am", tells) as url:
        assert await send(f"{url}elsewhere/", item().incident) is Outcome.REFUSED
