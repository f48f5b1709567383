from __future__ import annotations

import numpy as np
import pytest

from monitor.errors import ConfigError
from streams.demo import flights as module
from streams.demo.flights import WEATHER, Flights, load

HOUR_MS = 3_600_000


def row(flights: Flights, name: str) -> int:
    (index,) = np.flatnonzero(flights.ids == name)
    return int(index)


def test_the_year_is_complete_and_each_flight_has_one_id(flights: Flights) -> None:
    assert len(flights) == 336_776
    assert len(np.unique(flights.ids)) == 336_776
    assert int((flights.month != 1).sum()) == 309_772
    assert int(flights.arrived[flights.month != 1].sum()) == 300_948


def test_flights_are_in_the_order_of_scheduled_departure(flights: Flights) -> None:
    assert (np.diff(flights.at_ms) >= 0).all()


@pytest.mark.parametrize(
    ("name", "departure"),
    [
        ("2013-01-01-UA-1545-EWR", "2013-01-01T10:15"),  # 05:15 in winter
        ("2013-07-01-B6-745-JFK", "2013-07-02T03:59"),  # 23:59 in summer: the next day in UTC
    ],
)
def test_scheduled_departure_is_utc_and_knows_summer_time(
    flights: Flights, name: str, departure: str
) -> None:
    at_ms = int(flights.at_ms[row(flights, name)])

    assert np.datetime64(at_ms, "ms") == np.datetime64(departure)


def test_a_flight_has_the_weather_of_its_hour_at_its_airport(flights: Flights) -> None:
    first = row(flights, "2013-01-01-UA-1545-EWR")

    # Line "EWR,2013,1,1,5" of weather.csv: 11 knots are 12.65858 mph.
    seen = {name: float(flights.numbers[name][first]) for name in WEATHER}
    assert seen == {
        "temp": 39.02,
        "dewp": 28.04,
        "humid": 64.43,
        "wind_speed": 12.65858,
        "precip": 0.0,
        "pressure": 1011.9,
        "visib": 10.0,
    }
    assert flights.numbers["day_of_week"][first] == 2  # a Tuesday
    assert flights.numbers["hour"][first] == 5


def test_wind_comes_in_whole_knots_only(flights: Flights) -> None:
    wind = flights.numbers["wind_speed"]
    knots = wind[~np.isnan(wind)] / 1.15078

    assert np.abs(knots - knots.round()).max() < 1e-4


def test_the_last_day_has_no_weather_and_stays_missing(flights: Flights) -> None:
    last_day = np.char.startswith(flights.ids, "2013-12-31")

    assert last_day.sum() == 776
    assert all(np.isnan(flights.numbers[name][last_day]).all() for name in WEATHER)


def test_labels_are_booked_between_one_and_six_hours_after_landing(flights: Flights) -> None:
    name = "2013-01-01-UA-1545-EWR"  # left at 05:17, flew 227 minutes, 28 to taxi: 09:32, 14:32 UTC
    booked_h = flights.label_ms[row(flights, name)] / HOUR_MS - (
        np.datetime64("2013-01-01T14:32", "ms").astype(int) / HOUR_MS
    )
    delay_ms = (flights.label_ms - flights.at_ms)[flights.arrived]

    assert 1.0 <= booked_h <= 6.0
    assert delay_ms.min() > HOUR_MS


def test_late_means_more_than_fifteen_minutes_and_only_arrivals_can_be_late(
    flights: Flights,
) -> None:
    assert not flights.late[row(flights, "2013-01-01-UA-1545-EWR")]  # 11 minutes late
    assert flights.late[row(flights, "2013-01-01-AA-1141-JFK")]  # 33 minutes late
    assert not (flights.late & ~flights.arrived).any()


def test_the_same_generator_gives_the_same_year(flights: Flights) -> None:
    again = load(np.random.default_rng(2013))
    other = load(np.random.default_rng(2014))

    np.testing.assert_array_equal(again.ids, flights.ids)
    np.testing.assert_array_equal(again.label_ms, flights.label_ms)
    np.testing.assert_array_equal(again.latency_ms, flights.latency_ms)
    assert (other.latency_ms != flights.latency_ms).any()


def test_months_are_local_and_keep_their_columns_together(flights: Flights) -> None:
    may = flights.of([5])

    assert len(may) == 28_796
    assert np.char.startswith(may.ids, "2013-05").all()
    first = row(flights, str(may.ids[0]))
    assert may.label_ms[0] == flights.label_ms[first]
    assert may.categories["dest"][0] == flights.categories["dest"][first]
    assert may.numbers["temp"][0] == flights.numbers["temp"][first]


def test_missing_data_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="run `make install`"):
        load(np.random.default_rng(0))
