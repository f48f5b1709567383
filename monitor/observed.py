"""What only the database knows, looked up regularly and kept for whoever asks: metrics and the ledger of the API.

A scrape never waits for ClickHouse. What was not looked up lately is not known, and is then absent from /metrics: a 0
that means "nobody looked" would be the worst answer to "is anything lost?".
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, get_args

import structlog

from monitor import metrics
from monitor.errors import DriftlineError
from monitor.ledger import Ledger
from monitor.store import Store
from monitor.wire import Cause

EVERY_S: Final = 15.0  # Prometheus asks as often
FRESH_S: Final = 5.0  # a ledger of this age is shown again: a page with many readers asks once
KNOWN_HERE: Final = (
    metrics.UNACCOUNTED,
    metrics.HOLES,
    metrics.DEPLOYMENTS,
    metrics.DEPLOYMENTS_FAILED,
    metrics.CHANGE_FAILURE_RATE,
    metrics.ROLLBACKS,
    metrics.RETRAINS,
)
_SHARE: Final = 20  # the database is asked for at most a 20th of the time, however slow it is


class Observed:
    """Looks from a thread of its own. Mutable: it owns the last ledger. Share it between threads."""

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._lock = threading.Lock()  # one look at a time
        self._ledgers: dict[bool, tuple[float, Ledger]] = {}
        self._failing = False

    def ledger(self, *, drained: bool = False) -> Ledger:
        """The ledger, at most ``FRESH_S`` old.

        Raises:
            TransientError, ConfigError: the database cannot say.
        """
        with self._lock:
            known = self._ledgers.get(drained)
            if known is None or self._monotonic() - known[0] > FRESH_S:
                found = self._store.ledger(drained=drained)
                known = self._ledgers[drained] = (self._monotonic(), found)
            return known[1]

    def look(self) -> None:
        """Bring the metrics up to date, or take those away that are not known any more."""
        try:
            total = self.ledger().total
            incidents = self._store.incidents(state="firing", limit=10_000)
            spent = self._store.spending()
            releases = self._store.releases()
        except DriftlineError as err:
            for gauge in KNOWN_HERE:
                gauge.forget()
            if not self._failing:  # once per outage
                structlog.get_logger(__name__).warning("cannot look", error=str(err))
            self._failing = True
            return
        self._failing = False
        metrics.UNACCOUNTED.set(total.unaccounted)
        metrics.HOLES.set(total.passed)
        metrics.BUDGET_ALLOWED.set(sum(one.recent_expected for one in spent))
        opened = sum((Counter(one.recent_opened) for one in spent), Counter[str]())
        causes = Counter(incident.cause for incident in incidents)
        for cause in get_args(Cause):
            metrics.INCIDENTS_OPEN.labels(cause).set(causes[cause])
            metrics.BUDGET_OPENED.labels(cause).set(opened[cause])
        metrics.DEPLOYMENTS.set(releases.deployments)
        metrics.DEPLOYMENTS_FAILED.set(releases.failed)
        metrics.ROLLBACKS.set(releases.rollbacks)
        metrics.RETRAINS.set(releases.retrains)
        rate = releases.change_failure_rate
        if rate is None:
            metrics.CHANGE_FAILURE_RATE.forget()
        else:
            metrics.CHANGE_FAILURE_RATE.set(rate)

    def follow(self, stop: threading.Event) -> None:
        """Look again and again until ``stop`` is set."""
        while True:
            began = self._monotonic()
            self.look()
            if stop.wait(max(EVERY_S, _SHARE * (self._monotonic() - began))):
                return
