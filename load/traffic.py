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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Producer
from numpy.typing import NDArray

from monitor import environment
from monitor import reference as references
from monitor.columns import from_batch
from monitor.errors import ConfigError, DriftlineError
from monitor.settings import Settings
from monitor.spec import ModelSpec, parse_spec
from streams import authoring, models, wiring
from streams.clients import producer_config
from streams.demo import flights, replay
from streams.demo.replay import Batch, Message
from streams.models import Model
from streams.topics import Topics

SUMMARY: Final = "Send predictions and their labels to a broker, at a given rate, with accidents."
MODEL: Final = "checkout-risk"
CYCLE_S: Final = 1_800
CENTS_S: Final = (600, 840)  # of each cycle: a pipeline fault
RELEASE_S: Final = (1_200, 1_440)  # of each cycle: a bad release
LABEL_AFTER_S: Final = (20.0, 90.0)
MOST_AT_ONCE: Final = 5_000
_TURN_S: Final = 0.1
_SAY_EVERY_S: Final = 60.0
_FLUSH_S: Final = 10.0

logger = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode


class Source(Protocol):
    """Where events come from."""

    def announce(self, settings: Settings) -> None:
        """Tell Driftline about the model."""

    def take(self, n: int, now_ms: int) -> Batch | None:
        """The next ``n`` events or fewer, and the labels that are due; ``None`` at the end of the source."""


class Features(msgspec.Struct):
    """What the checkout's model sees. NaN is written as null."""

    amount: float
    items: int
    account_age_days: int
    previous_orders: float
    country: str
    device: str
    payment: str


class PredictionEvent(msgspec.Struct):
    """Version 1 of the event contract."""

    id: str
    ts: int
    version: str
    prediction: int
    score: float
    latency_ms: float
    features: Features
    model: str = MODEL


class LabelEvent(msgspec.Struct):
    """The truth about one prediction: 1 if the order was not paid."""

    id: str
    ts: int
    label: int
    model: str = MODEL


class Checkout:
    """Made-up orders and the risk that they are not paid. Mutable: it counts, and remembers labels that are not due."""

    def __init__(self, rng: np.random.Generator, started_ms: int) -> None:
        self._rng, self._started_ms = rng, started_ms
        self._count = 0
        self._waiting: list[tuple[int, bytes, int]] = []  # due, id, label

    @property
    def spec(self) -> ModelSpec:
        """How Driftline is to look at the model."""
        categorical = {"country", "device", "payment"}
        return parse_spec(
            {
                "model": MODEL,
                "task": "binary",
                "features": {
                    name: {"type": "categorical" if name in categorical else "numeric"}
                    for name in Features.__struct_fields__
                },
                "segments": ["device"],
                "reference": {"calibrate": {"events": 10_000}},
                "windows": {"pane": "10s", "sizes": ["1m", "10m"], "lateness": "5s"},
                "labels": {"expected_delay": "2m"},
            },
            origin=MODEL,
        )

    def announce(self, settings: Settings) -> None:
        """Publish the spec; a reference that the model has is kept."""
        authoring.apply(settings, self.spec, origin=Path(MODEL), recalibrate=False)

    def take(self, n: int, now_ms: int) -> Batch:
        """``n`` orders of this moment."""
        second = (now_ms - self._started_ms) // 1_000 % CYCLE_S
        due = [entry for entry in self._waiting if entry[0] <= now_ms]
        self._waiting = [entry for entry in self._waiting if entry[0] > now_ms]
        return Batch(now_ms, self._orders(n, now_ms, second), [_label(*entry) for entry in due])

    def _orders(self, n: int, now_ms: int, second: int) -> list[Message]:
        rng = self._rng
        features = _draw(rng, n)
        risk = _risk(features)
        if CENTS_S[0] <= second < CENTS_S[1]:
            features["amount"] = features["amount"] * 100
        released = (np.arange(n) % 2 == 1) & (RELEASE_S[0] <= second < RELEASE_S[1])
        score = np.where(released, rng.random(n), risk).round(4)
        names = [f"{self._started_ms:x}-{self._count + i}" for i in range(n)]
        self._count += n
        self._wait_for_labels(names, now_ms, rng.random(n) < risk)
        events = map(
            PredictionEvent,
            names,
            repeat(now_ms),
            np.where(released, "2", "1").tolist(),
            (score >= 0.5).astype(np.int64).tolist(),
            score.tolist(),
            rng.gamma(4.0, 3.0, n).round(2).tolist(),
            map(Features, *(features[name].tolist() for name in Features.__struct_fields__)),
        )
        return [Message(event.id.encode(), _encode(event)) for event in events]

    def _wait_for_labels(self, names: list[str], now_ms: int, unpaid: NDArray[np.bool_]) -> None:
        after = self._rng.uniform(*LABEL_AFTER_S, len(names))
        due = (now_ms + after * 1_000).astype(np.int64).tolist()
        labels = unpaid.astype(np.int64).tolist()
        self._waiting += zip(due, (name.encode() for name in names), labels, strict=True)


class Flights:
    """The demo's flights, with its two accidents. Mutable: a position in the year."""

    def __init__(self, rng: np.random.Generator) -> None:
        year = flights.load(rng)
        model = replay.train(year)
        self._january = replay.reference_table(year, model)
        self._batches = replay.served(year, model)
        self._left: Batch | None = next(self._batches)

    @property
    def spec(self) -> ModelSpec:
        """The demo's spec in what concerns detection; nobody is notified."""
        features = {
            name: {"type": "categorical" if name in flights.CATEGORICAL else "numeric"}
            for name in (*flights.CATEGORICAL, *flights.COUNTS, *flights.WEATHER)
        }
        return parse_spec(
            {
                "model": replay.MODEL,
                "task": "binary",
                "features": features,
                "segments": ["origin"],
                "windows": {"pane": "1h", "sizes": ["1d", "7d"], "lateness": "30m"},
            },
            origin=replay.MODEL,
        )

    def announce(self, settings: Settings) -> None:
        """Publish the spec with January as the reference."""
        table = self._january
        reference = references.build(
            self.spec, lambda: (from_batch(b, origin="January 2013") for b in table.to_batches())
        )
        kafka, topics = wiring.kafka(settings), wiring.topics(settings)
        models.publish(kafka, topics, Model(self.spec, reference), logger)

    def take(self, n: int, now_ms: int) -> Batch | None:
        """The next ``n`` flights, or those that are left of the hour; the hour's labels follow its last flight."""
        batch = self._left
        if batch is None:
            return None
        if n < len(batch.events):
            self._left = batch._replace(events=batch.events[n:])
            return batch._replace(events=batch.events[:n], labels=[])
        self._left = next(self._batches, None)
        return batch


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
    return _send(Producer(producer_config(address, logger)), wiring.topics(settings), batches)


def _send(producer: Producer, topics: Topics, batches: Iterator[Batch]) -> int:
    """Send everything, in order, and say once a minute how much; 1 if the broker did not take all of it."""
    events = labels = lost = 0

    def delivered(error: KafkaError | None, _: object) -> None:
        nonlocal lost
        lost += error is not None

    def put(topic: str, message: Message) -> None:
        while True:
            try:
                producer.produce(topic, key=message.key, value=message.value, on_delivery=delivered)
            except BufferError:
                producer.poll(_TURN_S)
            else:
                return

    said_s = time.monotonic()
    for batch in batches:
        for message in batch.events:
            put(topics.predictions, message)
        for message in batch.labels:
            put(topics.labels, message)
        producer.poll(0)
        events, labels = events + len(batch.events), labels + len(batch.labels)
        if time.monotonic() - said_s >= _SAY_EVERY_S:
            said_s = time.monotonic()
            logger.info("traffic: %d events, %d labels, %d lost", events, labels, lost)
    lost += producer.flush(_FLUSH_S)
    logger.info("traffic: %d events, %d labels, %d lost", events, labels, lost)
    return 1 if lost else 0


def _draw(rng: np.random.Generator, n: int) -> dict[str, NDArray[Any]]:
    """Columns of ``n`` orders in the order of ``Features``."""
    shares = {
        "country": {"US": 0.4, "DE": 0.2, "FR": 0.15, "GB": 0.1, "BR": 0.1, "IN": 0.05},
        "device": {"android": 0.4, "ios": 0.35, "web": 0.25},
        "payment": {"card": 0.6, "wallet": 0.25, "invoice": 0.15},
    }
    return {
        "amount": rng.lognormal(3.5, 0.8, n).round(2),
        "items": 1 + rng.poisson(1.5, n),
        "account_age_days": rng.exponential(400.0, n).astype(np.int64),
        "previous_orders": np.where(rng.random(n) < 0.1, np.nan, rng.poisson(3.0, n)),
        **{name: rng.choice([*of], n, p=[*of.values()]) for name, of in shares.items()},
    }


def _risk(features: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Probability that an order is not paid: what version 1 knows, and what the labels are drawn from."""
    logit = 0.02 * (features["amount"] - 40) - 0.004 * features["account_age_days"] - 1
    logit = logit + (features["country"] == "BR") + 1.5 * (features["payment"] == "invoice")
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float64)


def _label(due_ms: int, name: bytes, label: int) -> Message:
    return Message(name, _encode(LabelEvent(name.decode(), due_ms, label)))


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
