"""The application over a real database, with keys of each role, asked without a socket or over one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from monitor import api
from monitor.api_orders import Desk
from monitor.events import Record
from monitor.keys import SCOPES, create
from monitor.labels import Label
from monitor.settings import ApiSettings
from monitor.store import Store
from monitor.wire import Command
from streams.supervisor import LOOPBACK
from tests.monitor.stored import DAY, START

NOW = START + 40 * DAY
ROLES: dict[str, tuple[str, ...]] = {
    "reader": ("read",),
    "writer": ("write",),
    "approver": ("approve",),
    "all": SCOPES,
}
_MADE = {name: create(name, may, bytes([i]) * 32) for i, (name, may) in enumerate(ROLES.items())}
SECRETS = {name: secret for name, (secret, _) in _MADE.items()}
KEYS = "\n".join(key.line for _, key in _MADE.values())


def application(store: Store, taken: list[object] | None = None) -> FastAPI:
    """One that takes orders, labels and predictions, and asks for one of ``SECRETS``."""
    kept: list[object] = [] if taken is None else taken

    def give(order: Command) -> None:
        kept.append(order)

    def take(labels: Sequence[Label]) -> None:
        kept.extend(labels)

    def post(records: Sequence[Record]) -> None:
        kept.extend(records)

    settings = ApiSettings(keys=SecretStr(KEYS), rate_per_s=0)
    desk = Desk(give, lambda: NOW, "s" * 32, take, post)
    over = threading.Event()
    over.set()  # its stream of changes ends at once, for clients that read to the end
    return api.create_app(store, settings, desk=desk, stop=over)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of an application that answers while the context lasts."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
