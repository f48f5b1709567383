"""A serving application that never ends: predictions and their labels, at a given rate, to any broker.

``python -m load.traffic --broker HOST:PORT --rate 50`` follows one of two sources:

- ``checkout`` (default): made-up predictions that happen now, of a model ``checkout-risk``. Each half hour has two
  accidents: from minute 10 to 14 ``amount`` comes in cents, from minute 20 to 24 a version 2 serves every other
  request with a random score.
- ``flights``: the demo's flights of 2013, at their own times, as fast as ``--rate`` allows.

Both tell Driftline first how to look at their model. The broker's address and security are the usual settings.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from confluent_kafka import KafkaError, Producer

from load.sources import Checkout, Flights, Source
from monitor import environment
from monitor.errors import ConfigError, DriftlineError
from streams import wiring
from streams.clients import enqueue, producer_config
from streams.demo.replay import Batch, Message
from streams.topics import Topics

SUMMARY: Final = "Send predictions and their labels to a broker, at a given rate, with accidents."
MOST_AT_ONCE: Final = 5_000
_TURN_S: Final = 0.1
_SAY_EVERY_S: Final = 60.0
_FLUSH_S: Final = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How much and how fast: ``rate`` events a second (0: no bound), ``events`` in all (0: no end)."""

    rate: float
    events: int

    def __post_init__(self) -> None:
        if self.rate < 0 or self.events < 0:
            raise ConfigError("--rate and --events cannot be negative")


def paced(
    source: Source,
    pace: Pace,
    *,
    monotonic: Callable[[], float],
    now_ms: Callable[[], int],
    wait: Callable[[float], bool],
) -> Iterator[Batch]:
    """Batches of ``source`` when they are due, about ten a second; a backlog is worked off in small pieces.

    Args:
        wait: waits for so many seconds; true when it is time to stop.
    """
    began, sent = monotonic(), 0
    while not pace.events or sent < pace.events:
        due = int((monotonic() - began) * pace.rate) - sent if pace.rate else MOST_AT_ONCE
        due = min(due, MOST_AT_ONCE, pace.events - sent if pace.events else MOST_AT_ONCE)
        batch = source.take(due, now_ms())
        if batch is None:
            return
        sent += len(batch.events)
        yield batch
        if wait(_TURN_S if pace.rate else 0.0):
            return


class Sender:
    """Sends batches in order. Mutable: it counts."""

    def __init__(self, producer: Producer, topics: Topics) -> None:
        self.events = self.labels = self.lost = 0
        self._producer, self._topics = producer, topics

    def send(self, batch: Batch) -> None:
        """Send a batch, events first; waits while the client's queue is full."""
        for message in batch.events:
            self._put(self._topics.predictions, message)
        for message in batch.labels:
            self._put(self._topics.labels, message)
        self._producer.poll(0)
        self.events += len(batch.events)
        self.labels += len(batch.labels)

    def close(self) -> None:
        """Wait until the broker has everything; what it does not take counts as lost."""
        self.lost += self._producer.flush(_FLUSH_S)

    def _put(self, topic: str, message: Message) -> None:
        record = {"topic": topic, "key": message.key, "value": message.value}
        enqueue(self._producer, {**record, "on_delivery": self._delivered})

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        self.lost += error is not None


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM, Ctrl-C or the last event; 1 if the broker fails, 2 if an option or a setting is wrong."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    try:
        return _run(options, stop)
    except DriftlineError as err:
        logger.error("traffic: %s", err)  # noqa: TRY400 - one line, as the product's own
        return 2 if isinstance(err, ConfigError) else 1


def _run(options: argparse.Namespace, stop: threading.Event) -> int:
    settings = environment.load()
    if options.broker:
        kafka = settings.kafka.model_copy(update={"bootstrap": options.broker})
        settings = settings.model_copy(update={"kafka": kafka})
    pace = Pace(options.rate, options.events)
    address = wiring.require_broker(settings)
    rng = np.random.default_rng(options.seed)
    source: Source = (
        Flights(rng) if options.source == "flights" else Checkout(rng, round(time.time() * 1_000))
    )
    source.announce(settings)
    batches = paced(
        source,
        pace,
        monotonic=time.monotonic,
        now_ms=lambda: round(time.time() * 1_000),
        wait=stop.wait,
    )
    sender = Sender(Producer(producer_config(address, logger)), wiring.topics(settings))
    said_s = time.monotonic()
    for batch in batches:
        sender.send(batch)
        if time.monotonic() - said_s >= _SAY_EVERY_S:
            said_s = time.monotonic()
            _say(sender)
    sender.close()
    _say(sender)
    return 1 if sender.lost else 0


def _say(sender: Sender) -> None:
    logger.info("traffic: %d events, %d labels, %d lost", sender.events, sender.labels, sender.lost)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.traffic", description=SUMMARY)
    found.add_argument("--broker", metavar="HOST:PORT", help="else DRIFTLINE_KAFKA__BOOTSTRAP")
    found.add_argument("--rate", type=float, default=50.0, help="events a second; 0: no bound")
    found.add_argument("--events", type=int, default=0, help="how many; 0: until stopped")
    found.add_argument("--source", choices=("checkout", "flights"), default="checkout")
    found.add_argument("--seed", type=int, default=2013, help="of all that is drawn")
    return found


if __name__ == "__main__":
    sys.exit(main())
