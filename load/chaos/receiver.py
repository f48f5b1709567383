"""A webhook receiver as bad as real ones: half of its calls fail, in five ways.

============ ==========================================================
``ok``       200
``error``    500
``throttle`` 429 with ``Retry-After: 1``
``reset``    the connection is reset before anything was read
``lost``     taken in, and then the connection is reset: the sender cannot know
``slow``     taken in, and answered only after the sender has given up
============ ==========================================================

At most ``IN_A_ROW`` attempts of one message fail after another: the sender's waits double, and a run has an end.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

import numpy as np
from typing_extensions import override

IN_A_ROW: Final = 3
SLOW_S: Final = 4.0  # the dispatcher's timeout is 3 s
_FAILURES: Final = ("error", "throttle", "reset", "lost", "slow")
_TAKEN: Final = ("ok", "lost", "slow")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what was sent, and how it was met."""

    path: str
    webhook_id: str
    answer: str
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @property
    def taken(self) -> bool:
        """Whether the receiver has the message, whatever the sender believes."""
        return self.answer in _TAKEN


class Receiver:
    """Server on the loopback address, each call in a thread. Mutable: it remembers all calls."""

    def __init__(self, rng: np.random.Generator, *, failing: float = 0.5) -> None:
        self._rng, self._failing = rng, failing
        self._lock = threading.Lock()
        self._failed = Counter[tuple[str, str]]()
        self._calls: list[Call] = []
        self._server = _Server(self)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        """Address for a deployment, which calls paths under it; under ``calm`` no call fails."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path}"

    def calls(self, path: str) -> list[Call]:
        """All calls of an address so far."""
        with self._lock:
            return [call for call in self._calls if call.path.startswith(f"/{path}/")]

    def meet(self, path: str, headers: dict[str, str], body: bytes) -> str:
        """Decide how a call is met, and remember it."""
        key = path, headers.get("webhook-id", "")
        with self._lock:
            fails = not path.startswith("/calm") and self._rng.random() < self._failing
            fails = fails and self._failed[key] < IN_A_ROW
            answer = str(self._rng.choice(_FAILURES)) if fails else "ok"
            self._failed[key] = self._failed[key] + 1 if fails else 0
            self._calls.append(Call(path, key[1], answer, body, headers))
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = receiver

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that was killed: it is meant to be."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        match self.server.receiver.meet(self.path, headers, body):
            case "error":
                self._answer(500)
            case "throttle":
                self._answer(429, {"Retry-After": "1"})
            case "reset" | "lost":
                # Nothing lingers, so closing sends a reset.
                off = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
                self.connection.close()
            case "slow":
                time.sleep(SLOW_S)
                self._answer(200)
            case _:
                self._answer(200)

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Calls are remembered, not printed."""
