"""January to December as a serving application would have lived through them: a model, its traffic, two accidents.

January trains the model and is its reference. Each later flight is one prediction event at its scheduled departure;
its label follows hours after it landed, and never where it did not land::

    stream time ──────────────────────────────────────────────────────────────►
    flight 1    event (scheduled departure) ··········· label (landed + 1 to 6 h)
    flight 2            event ················· cancelled or diverted: no label
    accident                    |from════════to|   what the model saw is wrong, and so is its score

The rest is nature: warm weather that January has not seen, 120 days with gaps in ``pressure``, and the last
day of the year without any weather at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streams.demo.delay import DelayModel, Numbers
from streams.demo.flights import CATEGORICAL, COUNTS, WEATHER, Flights

MODEL: Final = "flight-delay"
VERSION: Final = "7"
CANARY_VERSION: Final = "8"
REFERENCE_MONTH: Final = 1
SERVED_MONTHS: Final = tuple(range(2, 13))
LIMIT: Final = 0.25  # predict "late" from here: a missed delay costs three times a false alarm

_HOUR_MS: Final = 3_600_000
_KM_PER_MILE: Final = 1.609344


@dataclass(frozen=True, slots=True)
class Accident:
    """Something that goes wrong in the stretch ``[from_ms, to_ms)`` of event time."""

    cause: str
    from_ms: int
    to_ms: int

    @property
    def month(self) -> int:
        """Month of 2013 in which it happens."""
        return (
            int(np.datetime64(self.from_ms, "ms").astype("datetime64[M]").astype(np.int64)) % 12 + 1
        )

    def covers(self, at_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these times lie in the stretch."""
        return (at_ms >= self.from_ms) & (at_ms < self.to_ms)


def _utc_ms(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


WIND_FAULT: Final = Accident(
    cause="EWR's wind_speed comes in km/h instead of mph",
    from_ms=_utc_ms("2013-05-13T13:00"),  # 9 in the morning in New York, for five days
    to_ms=_utc_ms("2013-05-18T13:00"),
)
BAD_RELEASE: Final = Accident(
    cause="version 8 serves half of the flights and reads hour from the HHMM clock: 1745, not 17",
    from_ms=_utc_ms("2013-09-10T14:00"),  # 10 in the morning in New York, for seven days
    to_ms=_utc_ms("2013-09-17T14:00"),
)


def train(flights: Flights) -> DelayModel:
    """The model that is served: fitted on the flights of January that arrived. A tenth of a second."""
    january = flights.of([REFERENCE_MONTH])
    landed = january.take(np.flatnonzero(january.arrived))
    return DelayModel.fit(landed.numbers, landed.categories, landed.late)


def reference_table(flights: Flights, model: DelayModel) -> pa.Table:
    """January as the model's reference: 27,004 rows in the order of time.

    Columns: ``ts`` (UTC), the features, ``prediction`` (0 or 1), ``score``, ``latency_ms``, and ``label``
    (null where the flight never arrived). Missing weather is null.
    """
    january = flights.of([REFERENCE_MONTH])
    score = _score(january, model)
    return pa.table(
        {
            "ts": pa.array(january.at_ms, pa.timestamp("ms", tz="UTC")),
            **january.categories,
            **{name: january.numbers[name].astype(np.int64) for name in COUNTS},
            **{name: pa.array(january.numbers[name], from_pandas=True) for name in WEATHER},
            "prediction": (score >= LIMIT).astype(np.int64),
            "score": score,
            "latency_ms": january.latency_ms,
            "label": pa.array(january.late.astype(np.int64), mask=~january.arrived),
        }
    )


class Message(NamedTuple):
    """One message for Kafka: the key is the prediction's id."""

    key: bytes
    value: bytes


class Batch(NamedTuple):
    """What happens before ``until_ms`` and was not in an earlier batch. Send the events first, then the labels."""

    until_ms: int
    events: list[Message]
    labels: list[Message]


def served(
    flights: Flights,
    model: DelayModel,
    *,
    months: Collection[int] = SERVED_MONTHS,
    accidents: bool = True,
    step_ms: int = _HOUR_MS,
) -> Iterator[Batch]:
    """Replay the months: prediction events and labels as JSON, a batch for each step in which something happens.

    A label is never sent before its event, and within a batch both are in the order of their ``ts``.
    Labels of the last flights follow after the end of the last month. Cost: 5 us a flight.
    """
    log = _Log.of(flights.of(months), model, accidents=accidents)
    booked = np.flatnonzero(log.flights.arrived)
    booked = booked[np.argsort(log.flights.label_ms[booked], kind="stable")]
    event_step = log.flights.at_ms // step_ms
    label_step = log.flights.label_ms[booked] // step_ms
    for step in np.union1d(event_step, label_step).tolist():
        first, last = np.searchsorted(event_step, [step, step + 1]).tolist()
        first_label, last_label = np.searchsorted(label_step, [step, step + 1]).tolist()
        yield Batch(
            until_ms=(step + 1) * step_ms,
            events=log.events(slice(first, last)),
            labels=log.labels(booked[first_label:last_label]),
        )


class Features(msgspec.Struct):
    """What the model saw. NaN is written as null."""

    carrier: str
    origin: str
    dest: str
    hour: int
    day_of_week: int
    distance: int
    temp: float
    dewp: float
    humid: float
    wind_speed: float
    precip: float
    pressure: float
    visib: float


class PredictionEvent(msgspec.Struct):
    """Version 1 of the event contract, as far as this application has something to say."""

    id: str
    ts: str
    version: str
    prediction: int
    score: float
    latency_ms: float
    features: Features
    model: str = MODEL
    tags: dict[str, str] = {}


class LabelEvent(msgspec.Struct):
    """The truth about one prediction: 1 if the flight was late."""

    id: str
    ts: str
    label: int
    model: str = MODEL


_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, eq=False)
class _Log:
    """The flights with what the model saw, which may be wrong, and what it said."""

    flights: Flights
    version: NDArray[np.str_]
    score: NDArray[np.float64]

    @classmethod
    def of(cls, flights: Flights, model: DelayModel, *, accidents: bool) -> _Log:
        canary = np.zeros(len(flights), dtype=np.bool_)
        if accidents:
            canary = BAD_RELEASE.covers(flights.at_ms) & _half(flights.ids)
            flights = replace(flights, numbers=_seen(flights, canary))
        return cls(
            flights=flights,
            version=np.where(canary, CANARY_VERSION, VERSION),
            score=_score(flights, model),
        )

    def events(self, rows: slice) -> list[Message]:
        """Events of these flights."""
        seen = self.flights
        features = map(
            Features,
            *(seen.categories[name][rows].tolist() for name in CATEGORICAL),
            *(seen.numbers[name][rows].astype(np.int64).tolist() for name in COUNTS),
            *(seen.numbers[name][rows].tolist() for name in WEATHER),
        )
        score = self.score[rows]
        events = map(
            PredictionEvent,
            seen.ids[rows].tolist(),
            _rfc3339(seen.at_ms[rows]),
            self.version[rows].tolist(),
            (score >= LIMIT).astype(np.int64).tolist(),
            score.tolist(),
            seen.latency_ms[rows].tolist(),
            features,
        )
        return [Message(event.id.encode(), _ENCODER.encode(event)) for event in events]

    def labels(self, rows: NDArray[np.intp]) -> list[Message]:
        """Labels of these flights, which must have arrived."""
        labels = map(
            LabelEvent,
            self.flights.ids[rows].tolist(),
            _rfc3339(self.flights.label_ms[rows]),
            self.flights.late[rows].astype(np.int64).tolist(),
        )
        return [Message(label.id.encode(), _ENCODER.encode(label)) for label in labels]


def _score(flights: Flights, model: DelayModel) -> NDArray[np.float64]:
    """Rounded before anything is made of it, so that the reference and the events hold the same numbers."""
    return model.score(flights.numbers, flights.categories).round(6)


def _seen(flights: Flights, canary: NDArray[np.bool_]) -> Numbers:
    """The numbers as they reached the model."""
    wind = flights.numbers["wind_speed"]
    fault = WIND_FAULT.covers(flights.at_ms) & (flights.categories["origin"] == "EWR")
    return {
        **flights.numbers,
        "wind_speed": np.where(fault, (wind * _KM_PER_MILE).round(5), wind),
        "hour": np.where(canary, flights.clock, flights.numbers["hour"]),
    }


def _half(ids: NDArray[np.str_]) -> NDArray[np.bool_]:
    """The half of the traffic that a canary gets: by id, so a repeated request meets the same version."""
    return np.array([zlib.crc32(name.encode()) & 1 for name in ids.tolist()], dtype=np.bool_)


def _rfc3339(at_ms: NDArray[np.int64]) -> list[str]:
    seconds = (at_ms // 1000).astype("datetime64[s]")
    texts: list[str] = np.datetime_as_string(seconds, timezone="UTC").tolist()
    return texts
