"""Rows to columns: what events of one model become before they are counted, and what a reference file is read as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from monitor.binning import Codes, Encoded, Ints, Raw, category_text
from monitor.counting import Grouping, profile_groupings
from monitor.errors import ConfigError, IncompatibleError
from monitor.events import TAG, Event
from monitor.profile import LATENCY, PREDICTION, SCORE, Layout, Profile
from monitor.raw import by_value

OTHER_SEGMENT: Final = "__other__"
RESERVED: Final = frozenset(
    {"id", "ts", "model", "version", "prediction", "score", "latency_ms", "error", "tags", "label"}
)
MAX_FEATURES: Final = (
    2_000  # of a model without a spec: a producer may invent a name for every event
)
_MAX_INT: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of one model as raw columns.

    Attributes:
        ts_ms: ``(n,)`` event times.
        features: name -> ``n`` raw values.
        outputs: the same for prediction, score and latency (``$`` names).
        errors: ``(n,)`` whether the event carries an error.
        tags: for segments by ``tags.NAME``: ``n`` dictionaries, or a raw column by name.
        labels: ``n`` labels, where a reference file has them.
    """

    ts_ms: Ints
    features: Mapping[str, Raw]
    outputs: Mapping[str, Raw]
    errors: npt.NDArray[np.bool_]
    tags: Sequence[Mapping[str, Any] | None] | Mapping[str, Raw]
    labels: Raw | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.ts_ms)

    def field(self, name: str) -> Raw:
        """The raw column of a field; all missing if the rows do not have it."""
        column = (self.outputs if name.startswith("$") else self.features).get(name)
        return [None] * self.n if column is None else column

    def encode(self, layout: Layout) -> dict[str, Encoded]:
        """Every field of the layout, encoded. Features that the layout does not know are ignored."""
        return {f.name: f.bins.encode(self.field(f.name)) for f in layout.fields}

    def profiles(self, layout: Layout, groupings: Sequence[Grouping]) -> list[list[Profile]]:
        """For each grouping of the rows, a profile per group. Every field is encoded once."""
        return profile_groupings(layout, self.field, self.errors, groupings)

    def segment_values(self, dimension: str) -> list[str]:
        """Text of a segment dimension in each row: a feature, or ``tags.NAME``; missing is ``""``, and what has no text ``__other__``."""
        return [_segment(value) for value in _listed(self._dimension(dimension))]

    def segment_codes(self, dimension: str, values: Sequence[str]) -> Codes:
        """``(n,)`` the place of each row's segment among ``values``, or behind them."""
        place = {value: i for i, value in enumerate(values)}
        raw = self._dimension(dimension)
        if isinstance(raw, pa.Array) and (found := by_value(raw)) is not None:
            distinct, codes = found
            places = [place.get(_segment(value), len(values)) for value in distinct]
            return np.array(places, dtype=np.intp)[codes]
        each = [place.get(_segment(value), len(values)) for value in _listed(raw)]
        return np.array(each, dtype=np.intp)

    def _dimension(self, dimension: str) -> Raw:
        if not dimension.startswith(TAG):
            return self.field(dimension)
        name = dimension.removeprefix(TAG)
        if isinstance(self.tags, Mapping):
            return self.tags[name]
        return [(tags or {}).get(name) for tags in self.tags]


def _segment(value: Any) -> str:
    return "" if value is None else category_text(value) or OTHER_SEGMENT


def _listed(raw: Raw) -> Iterable[Any]:
    values: Iterable[Any] = raw.to_pylist() if isinstance(raw, pa.Array) else raw
    return values


def from_events(events: Sequence[Event], names: Iterable[str]) -> Columns:
    """Columns of the named features; the others stay behind."""
    empty: dict[str, Any] = {}
    rows = [event.features or empty for event in events]
    return Columns(
        ts_ms=np.fromiter((event.ts_ms for event in events), dtype=np.int64, count=len(events)),
        features={name: [row.get(name) for row in rows] for name in names},
        outputs={
            PREDICTION: [event.prediction for event in events],
            SCORE: [event.score for event in events],
            LATENCY: [event.latency_ms for event in events],
        },
        errors=np.fromiter(
            (event.error is not None for event in events), dtype=bool, count=len(events)
        ),
        tags=[event.tags for event in events],
    )


def feature_names(events: Iterable[Event], most: int = MAX_FEATURES) -> list[str]:
    """The features that occur, in name order; of more than ``most`` the most frequent."""
    counts = Counter(name for event in events for name in (event.features or ()))
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:most])


def from_batch(batch: pa.RecordBatch, *, origin: str) -> Columns:
    """Columns of a reference file: ``RESERVED`` names have their meaning, every other column is a feature.

    Raises:
        ConfigError: no usable ``ts`` column.
    """
    columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
    n = batch.num_rows
    errors = columns.get("error")
    return Columns(
        ts_ms=_times(columns.get("ts"), origin),
        features={name: _plain(column) for name, column in columns.items() if name not in RESERVED},
        outputs={
            key: _plain(columns[name])
            for key, name in ((PREDICTION, "prediction"), (SCORE, "score"), (LATENCY, "latency_ms"))
            if name in columns
        },
        errors=np.zeros(n, dtype=bool)
        if errors is None
        else errors.is_valid().to_numpy(zero_copy_only=False),
        tags=columns["tags"].to_pylist() if "tags" in columns else [None] * n,
        labels=columns.get("label"),
    )


def encode_sample(events: Sequence[Event]) -> bytes:
    """Raw events of a model without a reference, for ``wire.Sample``."""
    rows = [
        (e.ts_ms, e.version, e.features, e.prediction, e.score, e.latency_ms, e.error, e.tags)
        for e in events
    ]
    try:
        return _SAMPLE_ENCODER.encode(rows)
    except OverflowError:  # JSON has integers of any size, msgpack of 64 bits
        return _SAMPLE_ENCODER.encode(_bounded(rows))


def decode_sample(model: str, body: bytes) -> list[Event]:
    """The events of a sample.

    Raises:
        IncompatibleError: damaged.
    """
    try:
        rows = _SAMPLE_DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise IncompatibleError("damaged sample") from err
    return [
        Event(model, ts, None, version, features, prediction, score, latency_ms, error, tags, ts)
        for ts, version, features, prediction, score, latency_ms, error, tags in rows
    ]


def _times(column: pa.Array | None, origin: str) -> Ints:
    if column is None:
        raise ConfigError(
            f"{origin}: no column ts: the reference needs its events' times, in order"
        )
    if column.null_count:
        raise ConfigError(f"{origin}: column ts has missing values")
    if pa.types.is_timestamp(column.type):
        column = pc.cast(
            pc.cast(column, pa.timestamp("ms", tz=column.type.tz), safe=False), pa.int64()
        )
    if not pa.types.is_integer(column.type):
        raise ConfigError(
            f"{origin}: column ts is {column.type}; expected a timestamp or epoch milliseconds"
        )
    return np.asarray(pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _bounded(value: Any) -> Any:
    """The same with its largest integers as floating-point numbers, as the bins take them."""
    match value:
        case list() | tuple():
            return [_bounded(item) for item in value]
        case dict():
            return {key: _bounded(item) for key, item in value.items()}
        case int() if not -_MAX_INT <= value < _MAX_INT:
            try:
                return float(value)
            except OverflowError:
                return np.inf if value > 0 else -np.inf
        case _:
            return value


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


# Arrow has types that msgpack has not: as text they keep the wrong type, which is what they have.
_SAMPLE_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=str)
_SAMPLE_DECODER: Final = msgspec.msgpack.Decoder(
    list[
        tuple[
            int,
            str,
            dict[str, Any] | None,
            Any,
            float | None,
            float | None,
            Any,
            dict[str, Any] | None,
        ]
    ]
)
