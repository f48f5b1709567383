from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from streams.demo.delay import DelayModel
from streams.demo.flights import CATEGORICAL, COUNTS, WEATHER, Flights
from streams.demo.replay import (
    BAD_RELEASE,
    LIMIT,
    WIND_FAULT,
    Accident,
    Batch,
    LabelEvent,
    reference_table,
    served,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Seen(msgspec.Struct):
    """Decoder of our own events: numbers may be null."""

    id: str
    ts: str
    model: str
    version: str
    prediction: int
    score: float
    latency_ms: float
    features: dict[str, str | float | None]
    tags: dict[str, str]


def ms(ts: str) -> int:
    return int(np.datetime64(ts.removesuffix("Z"), "ms").astype(np.int64))


def events(batches: list[Batch]) -> list[Seen]:
    return [msgspec.json.decode(m.value, type=Seen) for batch in batches for m in batch.events]


def labels(batches: list[Batch]) -> list[LabelEvent]:
    return [
        msgspec.json.decode(m.value, type=LabelEvent) for batch in batches for m in batch.labels
    ]


def around(flights: Flights, accident: Accident, days: int = 1) -> Flights:
    """The flights from ``days`` before the accident to ``days`` after it."""
    near = (flights.at_ms >= accident.from_ms - days * DAY_MS) & (
        flights.at_ms < accident.to_ms + days * DAY_MS
    )
    return flights.take(np.flatnonzero(near))


@pytest.fixture(scope="module")
def february(flights: Flights, model: DelayModel) -> list[Batch]:
    return list(served(flights, model, months=[2]))


def test_the_whole_year_is_served_once_and_every_arrival_is_labelled_once(
    flights: Flights, model: DelayModel
) -> None:
    keys: list[bytes] = []
    booked: list[bytes] = []
    for batch in served(flights, model):
        keys += [message.key for message in batch.events]
        booked += [message.key for message in batch.labels]

    assert len(keys) == len(set(keys)) == 309_772
    assert len(booked) == len(set(booked)) == 300_948
    assert set(booked) < set(keys)


def test_time_never_goes_back_and_nothing_is_sent_before_its_time(february: list[Batch]) -> None:
    assert all(a.until_ms < b.until_ms for a, b in pairwise(february))
    for batch in february:
        for stamps in (
            [msgspec.json.decode(m.value, type=Seen).ts for m in batch.events],
            [msgspec.json.decode(m.value, type=LabelEvent).ts for m in batch.labels],
        ):
            assert stamps == sorted(stamps)
            assert all(batch.until_ms - HOUR_MS <= ms(ts) < batch.until_ms for ts in stamps)


def test_a_label_follows_its_event(february: list[Batch]) -> None:
    departure = {event.id: ms(event.ts) for event in events(february)}

    assert all(ms(label.ts) > departure[label.id] for label in labels(february))


def test_an_event_keeps_the_contract(february: list[Batch]) -> None:
    first = february[0].events[0]
    fields = msgspec.json.decode(first.value)

    assert set(fields) == {
        "id", "ts", "model", "version", "features", "prediction", "score", "latency_ms", "tags",
    }  # fmt: skip
    assert fields["id"].encode() == first.key
    assert list(fields["features"]) == [*CATEGORICAL, *COUNTS, *WEATHER]
    assert fields["ts"].endswith("Z")
    assert (fields["model"], fields["version"], fields["tags"]) == ("flight-delay", "7", {})


def test_predictions_follow_the_score_and_are_mixed(february: list[Batch]) -> None:
    seen = events(february)

    assert all(event.prediction == (event.score >= LIMIT) for event in seen)
    assert 0.2 < np.mean([event.prediction for event in seen]) < 0.6


def test_missing_weather_is_null(flights: Flights, model: DelayModel) -> None:
    last_day = flights.take(np.flatnonzero(np.char.startswith(flights.ids, "2013-12-31")))

    seen = events(list(served(last_day, model)))

    assert len(seen) == 776
    assert all(event.features[name] is None for event in seen for name in WEATHER)


def test_batches_of_any_size_carry_the_same_messages(flights: Flights, model: DelayModel) -> None:
    hourly = list(served(flights, model, months=[2]))
    daily = list(served(flights, model, months=[2], step_ms=DAY_MS))

    assert len(daily) < len(hourly) / 12
    for part in ("events", "labels"):
        assert [m for b in hourly for m in getattr(b, part)] == [
            m for b in daily for m in getattr(b, part)
        ]


def test_a_month_served_alone_is_the_same_month(flights: Flights, model: DelayModel) -> None:
    both = events(list(served(flights, model, months=[2, 3], step_ms=DAY_MS)))
    march = events(list(served(flights, model, months=[3], step_ms=DAY_MS)))

    assert [event for event in both if event.id.startswith("2013-03")] == march


def test_the_wind_fault_hits_newark_alone_and_for_five_days_alone(
    flights: Flights, model: DelayModel
) -> None:
    near = around(flights, WIND_FAULT)

    wrong = events(list(served(near, model)))
    clean = events(list(served(near, model, accidents=False)))

    hit = 0
    for seen, truth in zip(wrong, clean, strict=True):
        wind, true_wind = seen.features["wind_speed"], truth.features["wind_speed"]
        faulty = (
            WIND_FAULT.from_ms <= ms(seen.ts) < WIND_FAULT.to_ms
            and seen.features["origin"] == "EWR"
        )
        if faulty and isinstance(true_wind, float):
            assert wind == pytest.approx(true_wind * 1.609344, abs=1e-5)
            hit += wind != true_wind
        else:
            assert seen == truth
    assert hit == 1_628  # of 1,780: the rest are calm, and 0 mph is 0 km/h


def test_the_model_is_fed_with_the_wrong_wind(flights: Flights, model: DelayModel) -> None:
    near = around(flights, WIND_FAULT)
    wrong = {event.id: event for event in events(list(served(near, model)))}
    clean = {event.id: event for event in events(list(served(near, model, accidents=False)))}
    windy = [i for i in wrong if wrong[i].features["wind_speed"] != clean[i].features["wind_speed"]]

    assert all(wrong[i].score != clean[i].score for i in windy)


def test_version_8_takes_half_of_the_traffic_while_it_runs(
    flights: Flights, model: DelayModel
) -> None:
    seen = events(list(served(around(flights, BAD_RELEASE), model)))
    runs = [BAD_RELEASE.from_ms <= ms(event.ts) < BAD_RELEASE.to_ms for event in seen]
    share = np.mean([event.version == "8" for event, on in zip(seen, runs, strict=True) if on])

    assert {event.version for event, on in zip(seen, runs, strict=True) if not on} == {"7"}
    assert share == pytest.approx(0.5, abs=0.025)  # 6,474 flights: 4 standard errors


def test_version_8_mistakes_the_clock_for_the_hour_and_does_worse(
    flights: Flights, model: DelayModel
) -> None:
    near = around(flights, BAD_RELEASE, days=0)
    late = dict(zip(near.ids.tolist(), near.late.tolist(), strict=True))
    hour = dict(zip(near.ids.tolist(), near.numbers["hour"].tolist(), strict=True))
    landed = set(near.ids[near.arrived].tolist())
    seen = events(list(served(near, model)))

    right: dict[str, list[bool]] = {"7": [], "8": []}
    for event in seen:
        logged = event.features["hour"]
        assert isinstance(logged, int | float)
        assert (logged // 100 if event.version == "8" else logged) == hour[event.id]
        if event.id in landed:
            right[event.version].append(event.prediction == late[event.id])
    assert np.mean(right["7"]) > 0.6
    assert np.mean(right["8"]) < 0.4


def test_a_clean_replay_has_no_version_8(flights: Flights, model: DelayModel) -> None:
    seen = events(list(served(around(flights, BAD_RELEASE, days=0), model, accidents=False)))

    assert {event.version for event in seen} == {"7"}


def test_accidents_do_not_start_at_midnight_of_either_clock() -> None:
    for accident in (WIND_FAULT, BAD_RELEASE):
        assert accident.from_ms % DAY_MS not in (0, 4 * HOUR_MS)
        assert accident.to_ms > accident.from_ms


def test_the_reference_is_january_as_it_would_have_been_served(
    flights: Flights, model: DelayModel
) -> None:
    table = reference_table(flights, model)
    january = events(list(served(flights, model, months=[1])))

    assert table.num_rows == len(january) == 27_004
    assert table["score"].to_pylist() == [event.score for event in january]
    assert table["prediction"].to_pylist() == [event.prediction for event in january]
    for name in (*CATEGORICAL, *COUNTS, *WEATHER):
        assert table[name].to_pylist() == [event.features[name] for event in january], name
    assert table["label"].null_count == 606
