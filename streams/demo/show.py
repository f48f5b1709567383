"""``driftline demo``: a year of flights through the whole of Driftline, on one screen.

::

    feed ──► predictions, labels ──► (every process of Driftline) ──► incidents ──► webhooks ──► receiver
                                                   └── ClickHouse ──► this screen, and the report
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from base64 import b64encode
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from rich.console import Console

from monitor import reference as references
from monitor import store as stores
from monitor.columns import from_batch
from monitor.errors import ConfigError, DriftlineError
from monitor.settings import Settings
from monitor.spec import ModelSpec, parse_spec
from monitor.store import Store
from streams import models, wiring
from streams.demo import flights, replay
from streams.demo import report as reports
from streams.demo.feed import Feed
from streams.demo.receiver import Receiver
from streams.demo.report import Report
from streams.demo.screen import Screen, View
from streams.embedded.stack import Stack, embedded_stack
from streams.models import Model

logger = logging.getLogger(__name__)

ORIGIN: Final = "January 2013"
FEATURES: Final = tuple(f.name for f in msgspec.structs.fields(replay.Features))
DAY_MS: Final = 86_400_000
LEAD: Final = (
    14 * 24
)  # hours: two weeks, as the labels of a drift that lasts should catch up with it
_POLL_S: Final = 0.5
_SETTLE_S: Final = (
    4.0  # nothing new for this long, with all counts complete: the pipeline has caught up
)
_GIVE_UP_S: Final = 180.0  # without any progress
_LONGEST_NIGHT_S: Final = 7 * 3_600  # of event time without an event: 6.35 h in the data


def run(
    settings: Settings,
    *,
    months: str = "2-12",
    speed: float = 0.0,
    headless: bool = False,
    report: Path | None = None,
    keep: bool = False,
    broker: str | None = None,
    clickhouse: str | None = None,
) -> Report:
    """Run the demo to its end and say what came out.

    Raises:
        ConfigError: a wrong option.
        DriftlineError: the pipeline stopped making progress.
    """
    chosen = parse_months(months)
    if report is not None:
        _check_writable(report)
    console = Console(highlight=False, stderr=headless)
    began = time.monotonic()
    secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
    clock = time.time  # noqa: TID251 - signatures carry the time of day
    with Receiver(secret, clock=clock) as receiver, _environment(receiver.url, secret):
        console.print("Loading the flights and training a model on January ...", style="dim")
        served = flights.load(np.random.default_rng(2013))
        model = replay.train(served)
        console.print("Starting a broker, a database and the processes ...", style="dim")
        with embedded_stack(
            _settings(settings),
            broker=broker,
            database=clickhouse,
            fresh=bool(broker or clickhouse),
        ) as stack:
            _publish(stack, demo_spec(chosen), replay.reference_table(served, model))
            feed = Feed(
                wiring.kafka(stack.settings),
                wiring.topics(stack.settings),
                replay.served(served, model, months=chosen),
                speed=speed,
                lead=LEAD,
            )
            expected = served.of(chosen)
            watch = _Watch(stack, receiver, feed, expected, chosen, speed)
            with Screen(console, stack.addresses(), headless=headless) as screen:
                feed.start()
                try:
                    watch.until_settled(screen)
                finally:
                    feed.stop()
            result = watch.report(time.monotonic() - began)
            screen.close(result)
            if report is not None:
                report.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
            if keep:
                console.print(f"Still up: {stack.addresses()['page']}; Ctrl-C stops it.")
                with suppress(KeyboardInterrupt):
                    stack.wait()
    return result


def _check_writable(report: Path) -> None:
    """Before the run, not after it."""
    try:
        report.open("ab").close()
    except OSError as err:
        raise ConfigError(f"--json {report}: cannot be written: {err.strerror}") from err


def demo_spec(months: Sequence[int] = replay.SERVED_MONTHS) -> ModelSpec:
    """The spec of the demo's model, for ascending months. Its addresses and secrets come by environment, as in production."""
    hook = {"secret": "env:DEMO_SECRET"}
    # Months that are left out between others would be the outage that they are.
    gaps = any(later - month > 1 for month, later in pairwise(months))
    return parse_spec(
        {
            "model": replay.MODEL,
            "task": "binary",
            "features": {
                name: {
                    "type": "categorical" if name in ("carrier", "origin", "dest") else "numeric"
                }
                for name in FEATURES
            },
            "segments": ["origin"],
            "windows": {"pane": "1h", "sizes": ["1d", "7d"], "lateness": "30m"},
            "alarm_budget": {"false_alarms": 1, "per": "30d"},
            "labels": {"expected_delay": "1d"},
            "rules": [{"statistic": "volume", "ignore": True}] if gaps else [],
            "notify": [
                {"slack": {"url": "env:DEMO_SLACK"}},
                {"pagerduty": {"routing_key": "env:DEMO_KEY", "url": "env:DEMO_PAGERDUTY"}},
            ],
            "actions": {
                "retrain": {
                    "webhook": {"url": "env:DEMO_RETRAIN", **hook},
                    "approval": "auto",
                    "cooldown": "30d",
                },
                "rollback": {"webhook": {"url": "env:DEMO_ROLLBACK", **hook}, "approval": "auto"},
            },
        },
        origin="demo",
    )


def parse_months(text: str) -> tuple[int, ...]:
    """Months of ``"2-12"``, ``"5"`` or ``"5,9-10"``.

    Raises:
        ConfigError: not of this form, or not within February to December.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise ConfigError(f"--months {text}: expected something like 2-12, 5 or 5,9-10")
        low, high = int(first), int(last or first)
        if low > high or not {low, high} <= set(replay.SERVED_MONTHS):
            raise ConfigError(f"--months {text}: the demo serves February (2) to December (12)")
        chosen |= set(range(low, high + 1))
    return tuple(sorted(chosen))


class _Watch:
    """Looks at the pipeline from outside, as a user would. Mutable: it remembers when something moved last."""

    def __init__(
        self,
        stack: Stack,
        receiver: Receiver,
        feed: Feed,
        expected: flights.Flights,
        months: Collection[int],
        speed: float,
    ) -> None:
        self._stack, self._receiver, self._feed = stack, receiver, feed
        self._events, self._labels = len(expected), int(expected.arrived.sum())
        self._months = months
        # At a slow pace the longest night without a flight is no standstill.
        self._patience_s = _GIVE_UP_S + (_LONGEST_NIGHT_S / speed if speed else 0.0)
        self._store: Store = stores.connect(stack.settings.clickhouse)
        self._last: tuple[Any, ...] = ()
        self._moved_s = time.monotonic()

    def until_settled(self, screen: Screen) -> None:
        while True:
            self._stack.poll()
            if self._feed.failure is not None:
                raise DriftlineError(f"the demo could not write its events: {self._feed.failure}")
            view = self._look()
            self._feed.judged_ms = self._judged_ms()
            screen.show(view)
            now = time.monotonic()
            if view.progress != self._last:
                self._last, self._moved_s = view.progress, now
            still_s = now - self._moved_s
            complete = view.accounted >= self._events and view.joined >= self._labels
            if self._feed.done and complete and still_s >= _SETTLE_S:
                return
            if still_s >= self._patience_s:
                return  # the report says what is missing
            time.sleep(_POLL_S)

    def report(self, seconds: float) -> Report:
        staged = [a for a in reports.STAGED if a.month in self._months]
        return reports.build(
            expected=self._events,
            sent=self._feed.events,
            labels_sent=self._feed.labels,
            labels_joined=self._joined(),
            windows=self._windows(),
            ledger=self._store.ledger(drained=True),
            incidents=self._store.incidents(limit=1_000),
            received=self._receiver.received(),
            deliveries=self._store.deliveries(limit=10_000),
            staged=staged,
            seconds=seconds,
        )

    def _look(self) -> View:
        total = self._store.ledger().total
        return View(
            at_ms=self._feed.at_ms,
            sent=self._feed.events,
            expected=self._events,
            accounted=total.accounted,
            unaccounted=total.unaccounted,
            joined=self._joined(),
            windows=self._windows(),
            incidents=self._store.incidents(limit=200),
            received=self._receiver.received(),
        )

    def _joined(self) -> int:
        rows = self._store.link.rows(
            "SELECT sum(labelled) AS n FROM performance FINAL "
            "WHERE segment = '' AND size_ms = {size:Int64}",
            {"size": DAY_MS},
        )
        return int(rows[0]["n"])

    def _judged_ms(self) -> int | None:
        rows = self._store.link.rows(
            "SELECT max(toUnixTimestamp64Milli(start)) AS start_ms, count() AS n FROM performance FINAL "
            "WHERE final AND segment = '' AND size_ms = {size:Int64}",
            {"size": DAY_MS},
        )
        return int(rows[0]["start_ms"]) + DAY_MS if rows[0]["n"] else None

    def _windows(self) -> int:
        rows = self._store.link.rows(
            "SELECT uniqExact(model, version, segment, size_ms, start) AS n FROM windows", {}
        )
        return int(rows[0]["n"])


def _settings(settings: Settings) -> Settings:
    """The user's settings, with the receiver's network allowed."""
    dispatcher = settings.dispatcher.model_copy(update={"allowed_networks": ("127.0.0.0/8",)})
    return settings.model_copy(update={"dispatcher": dispatcher})


def _publish(stack: Stack, spec: ModelSpec, table: Any) -> None:
    reference = references.build(
        spec,
        lambda: (from_batch(batch, origin=ORIGIN) for batch in table.to_batches()),
        origin=ORIGIN,
    )
    kafka, topics = wiring.kafka(stack.settings), wiring.topics(stack.settings)
    models.publish(kafka, topics, Model(spec, reference), logger)


@contextmanager
def _environment(url: str, secret: str) -> Iterator[None]:
    """The references of ``demo_spec``, for the processes that are about to start."""
    added = {
        "DEMO_SLACK": f"{url}/slack",
        "DEMO_PAGERDUTY": f"{url}/pagerduty",
        "DEMO_RETRAIN": f"{url}/retrain",
        "DEMO_ROLLBACK": f"{url}/rollback",
        "DEMO_KEY": secrets.token_hex(16),
        "DEMO_SECRET": secret,
    }
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
