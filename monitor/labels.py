"""Ground truth as it comes, by the topic, over HTTP and from files: rows of ``id``, ``model``, ``label`` and ``ts``, read by one rule.

- ``id`` is that of the prediction; where there is none, the join key (``events.join_key``, ``labels.join_key`` in the model's spec).
- ``label`` is a class or a finite number: ``1``, ``1.0``, ``true`` and ``"1"`` are one class.
- ``ts`` is when it became known, RFC 3339 or epoch milliseconds; without it, the time of its arrival. Rows of one id and ``ts`` are one label, and
  of several the newest counts: ``monitor.truth`` says what becomes of each.

Each row is accepted or refused on its own, and other fields are ignored.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from monitor.arrow import read_rows
from monitor.errors import InvalidEventError, RejectReason
from monitor.events import ARROW_START, Aliases, Limits, join_key, timestamp_ms, validation_error
from monitor.tables import FOREVER_MS, value_text

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Iterator[Row | InvalidEventError]

LIMITS: Final = Limits()  # the defaults: a label has no reason to be larger than an event
MAX_SHOWN: Final = 100  # refused rows that are named one by one
_MAX_ID: Final = 256
_NUMBER: Final = re.compile(r"-?\d{1,18}(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Label:
    """What became known of one prediction; ``text`` is canonical (``tables.value_text``)."""

    model: str
    ts_ms: int
    id: str
    text: str

    def to_json(self) -> bytes:
        """The message for the topic: reading it again gives the same label."""
        return msgspec.json.encode(
            {"id": self.id, "model": self.model, "label": self.text, "ts": self.ts_ms}
        )


Take: TypeAlias = Callable[[Sequence[Label]], None]
"""Takes labels to their topic, and returns when the broker has all; a ``DriftlineError`` says that it may have some."""


class RefusedRow(msgspec.Struct, frozen=True):
    """A row that is no label, by its number: the first is 1, and a header has none."""

    row: int
    reason: RejectReason
    detail: str


@dataclass(slots=True)
class Receipt:
    """What became of rows that somebody handed in. Mutable: it counts."""

    accepted: int = 0
    reasons: Counter[RejectReason] = field(default_factory=Counter)
    shown: list[RefusedRow] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Rows that are no labels."""
        return self.reasons.total()

    def refuse(self, row: int, err: InvalidEventError) -> None:
        """Note that a row is no label, and why."""
        self.reasons[err.reason] += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(RefusedRow(row, err.reason, err.detail))

    def to_dict(self) -> dict[str, Any]:
        """For programs. ``errors`` names the first ``MAX_SHOWN`` refused rows; where there are more, ``truncated`` says so."""
        return {
            "accepted": self.accepted,
            "refused": self.refused,
            "reasons": dict(self.reasons),
            "errors": msgspec.to_builtins(self.shown),
            "truncated": self.refused > len(self.shown),
        }


def sift(
    rows: Iterable[Row | InvalidEventError],
    receipt: Receipt,
    *,
    arrival_ms: int,
    aliases: Aliases,
    first: int = 1,
) -> Iterator[Label]:
    """The labels in rows, of which the first has the number ``first``; the others are noted as refused.

    Who makes the labels durable counts them as accepted. The other arguments are those of ``checked``.
    """
    for number, row in enumerate(rows, first):
        try:
            if isinstance(row, InvalidEventError):
                raise row
            yield checked(row, arrival_ms=arrival_ms, aliases=aliases)
        except InvalidEventError as err:
            receipt.refuse(number, err)


class _Fields(msgspec.Struct):
    model: str
    label: Any
    id: str | int | None = None
    ts: datetime | int | float | None = None


def checked(row: Row, *, arrival_ms: int, aliases: Aliases, ce_id: str | None = None) -> Label:
    """The label in a row.

    Args:
        row: its fields.
        arrival_ms: when it came, which stands for a ``ts`` that is not there; 0 or less: nobody knows. A label from further in the future than
            clocks differ would end the waiting for others.
        aliases: asked for the model of a row without ``id``.
        ce_id: the id of the CloudEvent that the row came in alone.

    Raises:
        InvalidEventError: a field is missing or unusable.
    """
    try:
        said = msgspec.convert(row, _Fields)
    except msgspec.ValidationError as err:
        raise validation_error(err) from None
    ts_ms = arrival_ms if said.ts is None else timestamp_ms(said.ts)
    if not 0 <= ts_ms < FOREVER_MS:
        raise InvalidEventError("bad_timestamp", "ts is before 1970 or after 2100")
    if arrival_ms > 0 and ts_ms > arrival_ms + LIMITS.max_future_ms:
        raise InvalidEventError("future_timestamp", f"{(ts_ms - arrival_ms) // 1000} s ahead")
    key = str(_id_of(said, row, aliases, ce_id))
    if not key or not said.model or len(key) > _MAX_ID or len(said.model) > _MAX_ID:
        raise InvalidEventError("wrong_type", f"id and model have 1 to {_MAX_ID} characters")
    try:
        text = value_text(said.label)
    except ValueError as err:
        raise InvalidEventError("wrong_type", f"label: {err}") from None
    if text is None:
        raise InvalidEventError("missing_field", "label is null")
    return Label(said.model, ts_ms, key, text)


def _id_of(said: _Fields, row: Row, aliases: Aliases, ce_id: str | None) -> str | int:
    if said.id is not None:
        return said.id
    names = aliases(said.model)
    found = join_key(row, names, ce_id)
    if found is None:
        raise InvalidEventError("missing_field", f"none of {', '.join(('id', 'prediction_id', *names))}")  # fmt: skip
    return found


def message_rows(value: bytes) -> Rows:
    """Rows of a message of the topic: JSON, an array of it, or an Arrow IPC stream.

    Raises:
        InvalidEventError: not one of them can be read.
    """
    if value[:4] != ARROW_START:
        return json_rows(value)
    return iter(read_rows(value, max_bytes=LIMITS.message_bytes, max_columns=LIMITS.features))


def json_rows(value: bytes) -> Rows:
    """Rows of a JSON object, or of an array of objects.

    Raises:
        InvalidEventError: an array that is malformed as a whole.
    """
    if not value.lstrip(b" \t\r\n").startswith(b"["):
        return iter((json_row(value),))
    try:
        items = _RAW_LIST.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidEventError("not_json", "malformed array") from None
    return (json_row(bytes(item)) for item in items)


def json_row(value: bytes) -> Row | InvalidEventError:
    """The row in a JSON object."""
    try:
        return _OBJECT.decode(value)
    except msgspec.ValidationError as err:
        return validation_error(err)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return InvalidEventError("not_json", "malformed")


def csv_rows(lines: Iterable[str], wanted: Collection[str] = ()) -> Rows:
    """Rows of a CSV text; the first line has the names of the columns, and an empty cell is a field that is not there.

    Args:
        lines: with their ends; bytes that are no UTF-8 as surrogates.
        wanted: columns without which the text is of no use.

    Raises:
        InvalidEventError: there is no usable header.
    """
    reader = csv.reader(lines, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as err:
        raise InvalidEventError("wrong_type", f"CSV header: {err}") from None
    if not names:
        raise InvalidEventError("missing_field", "CSV without a header row")
    if len(set(names)) < len(names):
        raise InvalidEventError("wrong_type", "CSV header: a column stands there twice")
    require(wanted, names)
    return _csv_rows(reader, names)


def require(wanted: Collection[str], names: Collection[str]) -> None:
    """See to it that ``names``, those of the columns, has all that are wanted.

    Raises:
        InvalidEventError: it has not.
    """
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise InvalidEventError("missing_field", f"no column {', '.join(missing)}")


def _csv_rows(reader: Iterator[list[str]], names: list[str]) -> Rows:
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as err:  # it says what was expected, and quotes no cell
            yield InvalidEventError("wrong_type", f"CSV: {err}")
            continue
        if cells is None:
            return
        if cells:  # a blank line has none
            yield _csv_row(names, cells)


def _csv_row(names: list[str], cells: list[str]) -> Row | InvalidEventError:
    if len(cells) != len(names):
        return InvalidEventError("wrong_type", f"{len(cells)} cells, and {len(names)} columns")
    row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return InvalidEventError("wrong_type", "not UTF-8")
    if _NUMBER.fullmatch(row.get("ts", "")):
        row["ts"] = float(row["ts"])
    return row


_RAW_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
