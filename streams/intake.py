"""What a message of each topic becomes in ClickHouse: rows of one or more tables, and what is wrong with it.

A message that cannot be read never stops the sink: it carries no rows and a reason. Of an array of labels the good
ones are rows, and the message as a whole goes to the dead letters as well, since these keep original bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import pyarrow as pa
from confluent_kafka import Message

from monitor import labels, metrics, tables, wire
from monitor import reference as references
from monitor.arrow import read_table
from monitor.errors import IncompatibleError, InvalidEventError
from monitor.events import Aliases, Limits, cloudevent_attributes, no_aliases
from monitor.profile import Layout
from monitor.tables import Row, TableName
from streams.deadletter import header_map
from streams.topics import Topics

Rows: TypeAlias = list[Row] | pa.Table
Layouts: TypeAlias = Callable[[str, str], Layout | None]
"""Binning by model and ``bins_id``, or ``None`` if nobody knows it."""

_LIMITS: Final = Limits()


@dataclass(slots=True)
class Parcel:
    """A message and what it becomes. ``reason`` is set where (a part of) it goes to the dead letters, ``closed_ms`` where it is a window that closed: its end."""

    message: Message
    rows: dict[TableName, Rows] = field(default_factory=dict)
    reason: str | None = None
    detail: str = ""
    closed_ms: int | None = None

    @property
    def size(self) -> int:
        """Rows of all its tables."""
        return sum(
            rows.num_rows if isinstance(rows, pa.Table) else len(rows)
            for rows in self.rows.values()
        )

    def reject(self, reason: str, detail: str) -> None:
        """Send it to the dead letters; the first reason stays."""
        if self.reason is None:
            self.reason, self.detail = reason, detail


class Intake:
    """Reads messages of all the topics that the sink follows."""

    def __init__(self, topics: Topics, layouts: Layouts, aliases: Aliases = no_aliases) -> None:
        self._layouts, self._aliases = layouts, aliases
        self._readers: Mapping[str, Callable[[Parcel], None]] = {
            topics.scored: _scored,
            topics.labels: self._labels,
            topics.models: _model,
            topics.windows: self._internal,
            topics.verdicts: self._internal,
            topics.performance: self._internal,
            topics.incidents: self._internal,
            topics.deliveries: self._internal,
        }

    @property
    def topics(self) -> list[str]:
        """Full names of the topics that it reads."""
        return list(self._readers)

    def read(self, message: Message) -> Parcel:
        """Rows of a message, or why there are none. A tombstone of a compacted topic has none and is no error.

        Raises:
            TransientError: a binning has to be looked up and cannot be now.
        """
        parcel = Parcel(message)
        self.fill(parcel)
        return parcel

    def fill(self, parcel: Parcel) -> None:
        """The same for a parcel that is empty still; after an error it is as before.

        Raises:
            TransientError: a binning has to be looked up and cannot be now.
        """
        if parcel.message.value() is not None:
            self._readers[parcel.message.topic() or ""](parcel)

    def _labels(self, parcel: Parcel) -> None:
        """Rows of the good labels; the first bad one is the reason why the message is a dead letter too."""
        message = parcel.message
        partition, offset = _place(message)
        value, ce_id = message.value() or b"", _cloudevent_id(message)
        stored: list[Row] = []
        arrived: list[Row] = []
        for row in _label_rows(value):
            try:
                if isinstance(row, InvalidEventError):
                    raise row
                label = labels.checked(
                    row, arrival_ms=message.timestamp()[1], aliases=self._aliases, ce_id=ce_id
                )
            except InvalidEventError as err:
                parcel.reject(err.reason, err.detail)
                metrics.LABELS_REFUSED.labels(err.reason).inc()
                continue
            stored.append((label.model, label.ts_ms, label.id, label.text, offset))
            arrived.append(("labels", partition, offset, label.model, label.ts_ms, label.id))
        if stored:
            parcel.rows["labels"], parcel.rows["arrivals"] = stored, arrived

    def _internal(self, parcel: Parcel) -> None:
        try:
            decoded = wire.decode(parcel.message.value() or b"")
            parcel.rows.update(self._rows(decoded, parcel.message.offset() or 0))
            _count(decoded)
            if isinstance(decoded, wire.Window) and decoded.contribution == "":
                parcel.closed_ms = decoded.start_ms + decoded.size_ms
        except IncompatibleError as err:
            parcel.reject("incompatible", str(err))

    def _rows(self, decoded: wire.Message, offset: int) -> dict[TableName, Rows]:
        match decoded:
            case wire.Window():
                return {"windows": self._window_rows(decoded)}
            case wire.LedgerEntry():
                return {"ledger": [tables.ledger_row(decoded)]}
            case wire.Verdicts():
                return {"verdicts": tables.verdict_rows(decoded, offset)}
            case wire.Performance():
                return {"performance": [tables.performance_row(decoded)]}
            case wire.Incident():
                return {"incidents": [tables.incident_row(decoded)]}
            case wire.Delivery():
                return {"deliveries": [tables.delivery_row(decoded)]}
            case _:
                raise IncompatibleError(f"{type(decoded).__name__} does not belong on this topic")

    def _window_rows(self, window: wire.Window) -> list[Row]:
        layout = self._layouts(window.model, window.bins_id)
        if layout is None:
            raise IncompatibleError(f"nobody knows bins {window.bins_id} of {window.model}")
        return tables.window_rows(window, layout)


def _count(decoded: wire.Message) -> None:
    """Metrics of what the pure stages decided, noted where it passes by."""
    match decoded:
        case wire.Window():
            closed = decoded.contribution == ""
            (metrics.WINDOWS_CLOSED if closed else metrics.WINDOWS_CORRECTED).inc()
        case wire.Verdicts():
            for verdict in decoded.verdicts:
                metrics.VERDICTS.labels(verdict.kind, verdict.status).inc()
        case wire.LedgerEntry() if decoded.jump is not None:
            metrics.CHAIN_HOLES.inc()
        case _:
            pass


def _scored(parcel: Parcel) -> None:
    message = parcel.message
    partition, offset = _place(message)
    try:
        table = read_table(
            message.value() or b"", max_bytes=_LIMITS.message_bytes, max_columns=_LIMITS.features
        )
        rows = tables.scored_table(table, origin=f"{partition}:{offset}")
    except (InvalidEventError, pa.ArrowException, KeyError, ValueError) as err:
        parcel.reject("incompatible", f"scored rows: {type(err).__name__}")
        return
    parcel.rows["predictions"] = rows
    parcel.rows["arrivals"] = tables.arrivals("scored", partition, offset, rows)


def _label_rows(value: bytes) -> labels.Rows:
    try:
        return labels.message_rows(value)
    except InvalidEventError as err:
        return iter((err,))


def _cloudevent_id(message: Message) -> str | None:
    """Of the one label in a message; each label of an array has an id of its own, or none."""
    if not message.headers() or (message.value() or b"").lstrip(b" \t\r\n")[:1] != b"{":
        return None
    return cloudevent_attributes(header_map(message)).get("id")


def _model(parcel: Parcel) -> None:
    _, offset = _place(parcel.message)
    try:
        spec, reference = references.load(parcel.message.value() or b"")
    except IncompatibleError as err:
        parcel.reject("incompatible", str(err))
        return
    bins_id = "" if reference is None else reference.layout.bins_id
    if reference is not None:
        whole = reference.profiles[""]
        parcel.rows["bins"] = tables.bins_rows(spec.model, whole, offset)
    parcel.rows["models"] = [(spec.model, spec.model_dump_json(), bins_id, offset)]


def _place(message: Message) -> tuple[int, int]:
    return message.partition() or 0, message.offset() or 0


def gather(parcels: Iterable[Parcel]) -> dict[TableName, list[Parcel]]:
    """Parcels by the tables that they have rows for, in the order of ``tables.TABLES``: what is looked for goes before who looks."""
    by_table: defaultdict[TableName, list[Parcel]] = defaultdict(list)
    for parcel in parcels:
        for name in parcel.rows:
            by_table[name].append(parcel)
    return {name: by_table[name] for name in tables.TABLES if name in by_table}


def columns(name: TableName, parcels: Iterable[Parcel]) -> pa.Table:
    """All the rows that parcels have for one table.

    Raises:
        pyarrow.ArrowException, OverflowError, TypeError, ValueError: a value does not fit its column.
    """
    loose: list[Row] = []
    parts: list[pa.Table] = []
    for parcel in parcels:
        rows = parcel.rows[name]
        if isinstance(rows, pa.Table):
            parts.append(rows)
        else:
            loose += rows
    if loose:
        parts.append(tables.to_table(name, loose))
    return pa.concat_tables(parts)
