"""Rows of the ClickHouse tables: what each message becomes, as Arrow columns of one fixed schema per table.

Pure. A row is a function of its message, so storing a message twice stores the same rows under the same keys.
Columns that the database fills in itself (``stored_at``) are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitor.binning import SPECIALS, CategoricalBins, NumericBins, to_dict
from monitor.profile import Field, Layout, Profile
from monitor.wire import Delivery, Incident, LedgerEntry, Performance, Verdicts, Window

TableName = Literal[
    "predictions",
    "labels",
    "arrivals",
    "outcomes",
    "performance",
    "windows",
    "bins",
    "models",
    "ledger",
    "verdicts",
    "incidents",
    "deliveries",
]
TABLES: Final[tuple[TableName, ...]] = get_args(TableName)
Row: TypeAlias = tuple[Any, ...]
FOREVER_MS: Final = (
    4_102_444_800_000  # 2100-01-01: "no upper bound", inside what DateTime64 can hold
)
MAX_VALUE_CHARS: Final = 256  # of a class name, as of an event's id

_BOOLEANS: Final = {"true": "1", "false": "0"}
_INTEGRAL: Final = re.compile(r"^(-?[0-9]+)\.0+$")
_TIME: Final = pa.timestamp("ms", "UTC")
_TEXTS: Final = pa.list_(pa.string())
_COUNTS: Final = pa.list_(pa.uint64())
_WINDOW_COUNTS: Final = (*SPECIALS, "below", "above", "off_grid")


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


_TRUTH: Final = {"model": pa.string(), "ts": _TIME, "id": pa.string()}
_SCORED: Final = {
    **_TRUTH,
    "version": pa.string(),
    "segments": _TEXTS,
    "prediction": pa.string(),
    "score": pa.float64(),
}
_PLACE: Final = {
    "model": pa.string(),
    "version": pa.string(),
    "segment": pa.string(),
    "size_ms": pa.uint64(),
    "start": _TIME,
}
SCHEMAS: Final[dict[TableName, pa.Schema]] = {
    "predictions": _schema(**_SCORED),
    "labels": _schema(**_TRUTH, label=pa.string(), position=pa.uint64()),
    "arrivals": _schema(topic=pa.string(), partition=pa.uint32(), position=pa.uint64(), **_TRUTH),
    "outcomes": _schema(**_SCORED, label=pa.string(), label_ts=_TIME, labels=pa.uint32()),
    "performance": _schema(
        **_PLACE,
        revision=pa.uint64(),
        final=pa.bool_(),
        rank=pa.uint64(),
        predictions=pa.uint64(),
        labelled=pa.uint64(),
        errors=pa.uint64(),
        metrics=pa.map_(pa.string(), pa.float64()),
        label_delay_p50_ms=pa.int64(),
        label_delay_p95_ms=pa.int64(),
        intervals=pa.map_(pa.string(), pa.list_(pa.float64())),
        classes=_TEXTS,
        confusion=_COUNTS,
    ),
    "windows": _schema(
        **_PLACE,
        feature=pa.string(),
        contribution=pa.string(),
        revision=pa.uint64(),
        bins_id=pa.string(),
        n=pa.uint64(),
        errors=pa.uint64(),
        counts=_COUNTS,
        **dict.fromkeys(_WINDOW_COUNTS, pa.uint64()),
        mean=pa.float64(),
        variance=pa.float64(),
        unseen=pa.map_(pa.string(), pa.uint64()),
    ),
    "bins": _schema(
        bins_id=pa.string(),
        feature=pa.string(),
        model=pa.string(),
        kind=pa.string(),
        edges=pa.list_(pa.float64()),
        labels=_TEXTS,
        counts=_COUNTS,
        **dict.fromkeys(SPECIALS, pa.uint64()),
        mean=pa.float64(),
        variance=pa.float64(),
        form=pa.string(),
        revision=pa.uint64(),
    ),
    "models": _schema(
        model=pa.string(), spec=pa.string(), bins_id=pa.string(), revision=pa.uint64()
    ),
    "ledger": _schema(
        partition=pa.uint32(),
        start_offset=pa.uint64(),
        profiles_partition=pa.uint32(),
        end_offset=pa.uint64(),
        profiles_offset=pa.uint64(),
        open=pa.uint64(),
        events=pa.uint64(),
        dead=pa.uint64(),
        on_time=pa.uint64(),
        late=pa.uint64(),
        calibrating=pa.uint64(),
        jump=pa.string(),
    ),
    "verdicts": _schema(
        model=pa.string(),
        version=pa.string(),
        segment=pa.string(),
        source=pa.string(),
        size_ms=pa.uint64(),
        start=_TIME,
        end=_TIME,
        kind=pa.string(),
        feature=pa.string(),
        statistic=pa.string(),
        revision=pa.uint64(),
        status=pa.string(),
        value=pa.float64(),
        limit=pa.float64(),
        p_value=pa.float64(),
        n=pa.uint64(),
        onset=_TIME,
        evidence=pa.string(),
    ),
    "incidents": _schema(
        model=pa.string(),
        id=pa.string(),
        revision=pa.uint64(),
        version=pa.string(),
        cause=pa.string(),
        advice=pa.string(),
        severity=pa.string(),
        state=pa.string(),
        title=pa.string(),
        onset=_TIME,
        opened=_TIME,
        updated=_TIME,
        resolved=_TIME,
        body=pa.string(),
    ),
    "deliveries": _schema(
        incident_id=pa.string(),
        id=pa.string(),
        at=_TIME,
        target=pa.string(),
        action=pa.string(),
        outcome=pa.string(),
        attempts=pa.uint32(),
        detail=pa.string(),
    ),
}


def to_table(name: TableName, rows: Sequence[Row]) -> pa.Table:
    """Columns of ``rows``, whose values stand in the order of the schema; times are epoch milliseconds.

    Raises:
        pyarrow.ArrowInvalid, OverflowError, TypeError: a value does not fit its column.
    """
    schema = SCHEMAS[name]
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def value_text(value: object) -> str | None:
    """Canonical text of a label or prediction, so that ``1``, ``1.0``, ``true``, ``"1"`` and ``"True"`` are one class.

    Raises:
        ValueError: not a finite number, a boolean or a short text.
    """
    match value:
        case None:
            return None
        case str() if len(value) <= MAX_VALUE_CHARS:
            return _BOOLEANS.get(value.lower()) or _INTEGRAL.sub(r"\1", value)
        case bool() | int():
            return str(int(value))
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case _:
            raise ValueError(f"{type(value).__name__} is neither a class nor a finite number")


def class_text(value: object) -> str | None:
    """The same; ``None`` also of what has none, as a list of probabilities."""
    try:
        return value_text(value)
    except ValueError:
        return None


def texts_of(column: pa.Array, text: Callable[[object], str | None] = value_text) -> pa.Array:
    """The ``text`` of each value of a column; each distinct one is looked at once."""
    encoded = column.dictionary_encode()
    texts = pa.array([text(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return texts.take(encoded.indices)


def scored_table(message: pa.Table, *, origin: str) -> pa.Table:
    """Rows of ``predictions`` in a message of ``scored``.

    Args:
        message: columns ``id, ts, model, version, segments, prediction, score``; ``ts`` as a timestamp or epoch milliseconds,
            ``segments`` as maps of dimension to value, or as lists of the names that windows carry, ``prediction`` of any scalar type.
        origin: unique place of the message: a row without an id gets one made of it and the row's number, the same at every reading.

    Raises:
        KeyError, ValueError, pyarrow.ArrowInvalid: a column is missing or of a wrong type.
    """
    plain = {name: _plain(message.column(name)) for name in _SCORED}
    rows = np.arange(message.num_rows).astype("U20")
    plain["id"] = pc.coalesce(plain["id"], pa.array(np.char.add(f"@{origin}:", rows), pa.string()))
    plain["prediction"] = texts_of(plain["prediction"])
    plain["segments"] = _segment_names(plain["segments"])
    schema = SCHEMAS["predictions"]
    return pa.table({field.name: pc.cast(plain[field.name], field.type) for field in schema})


def arrivals(topic: str, partition: int, position: int, stored: pa.Table) -> pa.Table:
    """Rows of ``arrivals`` for rows of ``predictions`` or ``labels`` that one message brought."""
    n = stored.num_rows
    columns = [pa.repeat(topic, n), pa.repeat(partition, n), pa.repeat(position, n)]
    columns += [stored.column(name).combine_chunks() for name in _TRUTH]
    schema = SCHEMAS["arrivals"]
    cast = [pc.cast(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(cast, schema=schema)


def window_rows(window: Window, layout: Layout) -> list[Row]:
    """Rows of ``windows``: one for the window itself (feature ``""``) and one per field.

    Raises:
        IncompatibleError: the profile is damaged or of another binning than ``layout``.
    """
    profile = Profile.from_bytes(layout, window.profile)
    head = (window.model, window.version, window.segment, window.size_ms, window.start_ms)
    tail = (window.contribution, window.revision, window.bins_id)
    empty = ((), *(0,) * len(_WINDOW_COUNTS), None, None, ())
    whole: Row = (*head, "", *tail, window.n, profile.errors, *empty)
    return [whole, *((*head, f.name, *tail, *_field_row(profile, f)) for f in layout.fields)]


def bins_rows(model: str, reference: Profile, revision: int) -> list[Row]:
    """Rows of ``bins``: binning and reference counts of each field."""
    layout = reference.layout
    rows = []
    for f in layout.fields:
        numeric = isinstance(f.bins, NumericBins)
        edges = f.bins.edges.tolist() if isinstance(f.bins, NumericBins) else []
        labels = list(f.bins.categories) if isinstance(f.bins, CategoricalBins) else []
        counts, specials, _ = _counts(reference, f)
        head = (layout.bins_id, f.name, model, "numeric" if numeric else "categorical")
        form = msgspec.json.encode(to_dict(f.bins)).decode()
        body = (edges, labels, counts, *specials, *_moments(reference, f), form, revision)
        rows.append((*head, *body))
    for v in layout.vectors:
        head = (layout.bins_id, v.name, model, "vector")
        missing, broken = v.left_out(reference.vector)
        specials = [0] * len(SPECIALS)
        specials[SPECIALS.index("missing")], specials[SPECIALS.index("wrong_type")] = (
            missing,
            broken,
        )
        counts = [v.state(reference.vector).n]
        form = msgspec.json.encode(v.bins.to_dict()).decode()
        rows.append((*head, [], [], counts, *specials, None, None, form, revision))
    return rows


def verdict_rows(message: Verdicts, offset: int = 0) -> list[Row]:
    """Rows of ``verdicts``, one per statistic.

    What has no revision of its own has its message's ``offset``: of the two parts of a window in which the reference
    changed, the one that was judged last is shown, however often and in whatever cuts they are stored.
    """
    revision = message.revision or offset
    head = (message.model, message.version, message.segment, message.source)
    times = (message.size_ms, message.start_ms, message.end_ms)
    return [
        (
            *(*head, *times, v.kind, v.feature, v.statistic, revision, v.status),
            *(v.value, v.limit, v.p_value, v.n, v.onset_ms),
            msgspec.json.encode(v.evidence).decode(),
        )
        for v in message.verdicts
    ]


def performance_row(p: Performance) -> Row:
    """Row of ``performance``. At equal revision the final one wins."""
    return (
        *(p.model, p.version, p.segment, p.size_ms, p.start_ms),
        *(p.revision, p.final, 2 * p.revision + p.final),
        *(p.predictions, p.labelled, p.errors, sorted(p.metrics.items())),
        *(p.label_delay_p50_ms, p.label_delay_p95_ms),
        *(sorted(p.intervals.items()), p.classes, p.confusion),
    )


def incident_row(i: Incident) -> Row:
    """Row of ``incidents``: some columns for queries, and the whole as JSON."""
    return (
        *(i.model, i.id, i.revision, i.version, i.cause, i.advice, i.severity, i.state, i.title),
        *(i.onset_ms, i.opened_ms, i.updated_ms, i.resolved_ms, msgspec.json.encode(i).decode()),
    )


def delivery_row(d: Delivery) -> Row:
    """Row of ``deliveries``."""
    return d.incident_id, d.id, d.at_ms, d.target, d.action, d.outcome, d.attempts, d.detail


def ledger_row(e: LedgerEntry) -> Row:
    """Row of ``ledger``."""
    place = (e.partition, e.start, e.profiles_partition, e.end, e.offset, e.open)
    return (*place, e.events, e.dead, e.on_time, e.late, e.calibrating, e.jump)


def _field_row(profile: Profile, f: Field) -> Row:
    counts, specials, flags = _counts(profile, f)
    hints = sorted(profile.unseen.get(f.name, {}).items())
    return sum(counts), 0, counts, *specials, *flags, *_moments(profile, f), hints


def _counts(profile: Profile, f: Field) -> tuple[list[int], list[int], list[int]]:
    vector = profile.vector
    return vector[f.counts].tolist(), vector[f.specials].tolist(), vector[f.flags].tolist()


def _moments(profile: Profile, f: Field) -> tuple[float | None, float | None]:
    """Mean and population variance; ``None`` where there is no number."""
    n, mean, m2 = profile.moments(f.name)
    return (mean, m2 / n) if n else (None, None)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunks at all
        array = pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    return array


def _segment_names(column: pa.Array) -> pa.Array:
    """Maps ``{"carrier": "UA"}`` as lists of names, ``["carrier=UA"]``; lists stay."""
    if not pa.types.is_map(column.type):
        return column
    names = pc.binary_join_element_wise(column.keys, column.items, "=", null_handling="replace")
    return pa.ListArray.from_arrays(column.offsets, names)
