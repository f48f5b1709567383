"""Where the traffic comes from: made-up orders of this moment, or the demo's flights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor import reference as references
from monitor.columns import from_batch
from monitor.settings import Settings
from monitor.spec import ModelSpec, parse_spec
from streams import authoring, models, wiring
from streams.demo import flights, replay
from streams.demo.replay import Batch, Message
from streams.models import Model

MODEL: Final = "checkout-risk"
CYCLE_S: Final = 1_800
CENTS_S: Final = (600, 840)  # of each cycle: a pipeline fault
RELEASE_S: Final = (1_200, 1_440)  # of each cycle: a bad release
LABEL_AFTER_S: Final = (20.0, 90.0)

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


class LabelledFlights(NamedTuple):
    """What was said of the flights whose label came, and whether it was right: columns of ``n`` rows, in the order of the labels."""

    at_ms: NDArray[np.int64]
    version: NDArray[np.str_]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]


def labelled(batches: Iterable[Batch]) -> LabelledFlights:
    """The predictions of ``replay.served`` with their labels, by id, as the system is sent them."""
    said: dict[str, tuple[str, str, float, int]] = {}
    rows = []
    for batch in batches:
        for message in batch.events:
            event = msgspec.json.decode(message.value)
            said[event["id"]] = event["ts"], event["version"], event["score"], event["prediction"]
        for message in batch.labels:
            label = msgspec.json.decode(message.value, type=replay.LabelEvent)
            *known, prediction = said[label.id]
            rows.append((*known, prediction == label.label))
    ts, version, score, right = zip(*rows, strict=True)
    at = np.array([text.rstrip("Z") for text in ts], dtype="datetime64[ms]")
    return LabelledFlights(at.astype(np.int64), np.array(version), np.array(score), np.array(right))


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
