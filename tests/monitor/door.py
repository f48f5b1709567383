"""An API that takes predictions without a broker: what reached the topic is read as the profiler reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from monitor import api
from monitor.api_orders import Desk
from monitor.errors import ConfigError, TransientError
from monitor.events import Event, Limits, Record, decode_message
from monitor.settings import ApiSettings
from monitor.spec import ModelSpec
from monitor.store import Store
from monitor.wire import Command
from tests.monitor.test_api_orders import Client

NOW = 1_795_255_260_000  # 2026-11-21T10:01:00Z
BROKER_AWAY = [
    (TransientError("no broker at 10.0.0.2"), "broker does not answer", "5"),
    (ConfigError("10.0.0.2 refuses us"), "driftline doctor", None),
]
"""What posting fails with, what the answer says of it, and its `Retry-After`."""


@dataclass
class Door:
    """A topic that takes predictions, and a database that knows specs."""

    specs: dict[str, ModelSpec] = field(default_factory=dict)
    failure: Exception | None = None
    away: bool = False
    now_ms: int = NOW
    records: list[Record] = field(default_factory=list)
    asked: int = 0

    def spec(self, model: str) -> ModelSpec | None:
        if self.away:
            raise TransientError("the database at 10.0.0.1 does not answer")
        self.asked += 1
        return self.specs.get(model)

    def post(self, records: Sequence[Record]) -> None:
        if self.failure is not None:
            raise self.failure
        self.records += records

    @property
    def store(self) -> Store:
        return cast("Store", self)

    def client(self, *, broker: bool = True, **settings: Any) -> Client:
        def give(command: Command) -> None:
            raise AssertionError(command)

        desk = Desk(give, lambda: self.now_ms, post=self.post if broker else None)
        return Client(api.create_app(self.store, ApiSettings.model_validate(settings), desk=desk))

    def events(self) -> list[Event]:
        """What the profiler makes of the topic; nothing that is there is refused."""
        found: list[Event] = []
        for record in self.records:
            for outcome in decode_message(
                record.value, record.headers, Limits(), now_ms=self.now_ms
            ):
                assert isinstance(outcome, Event), outcome
                found.append(outcome)
        return found

    def taken(self) -> list[dict[str, Any]]:
        """The same as plain values, without what is not there."""
        return [shown(event) for event in self.events()]


def shown(event: Event) -> dict[str, Any]:
    """Fields that are there."""
    fields: dict[str, Any] = msgspec.to_builtins(event)
    fields["ts_ms"] = fields.pop("$ts_ms")
    return {n: v for n, v in fields.items() if n != "ts" and v is not None}
