"""Records that hold a request and its response together, as capture tables and monitoring logs do, to predictions.

===================  ==========================================================================================================
a record of ours     ``{"id", "ts", "model", "version", "latency_ms", "request": BODY, "response": BODY}``, for whoever sees both
Databricks           a row of an inference table: ``databricks_request_id``, ``request`` and ``response`` as texts
SageMaker            a line of data capture: ``captureData``
BentoML              a row of monitoring: ``timestamp``, ``request_id`` and a field for each value
===================  ==========================================================================================================

What a BODY may be, ``monitor.inference`` says.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from monitor.errors import InvalidEventError
from monitor.events import Limits, parsed
from monitor.inference import MAX_ID, About

_OK: Final = 200
_BENTOML: Final = frozenset({"timestamp", "request_id", "trace_id", "bento_meta"})


class Capture(NamedTuple):
    """A prediction as it was captured: parsed bodies, ``None`` where there is none."""

    about: About
    request: object
    response: object


@dataclass(frozen=True, slots=True)
class Said:
    """What the sender says of all its records.

    Attributes:
        model: of those that do not say it. ``version``: likewise.
        offset_min: minutes ahead of UTC of times without an offset; ``None``: such times are refused.
    """

    model: str = ""
    version: str = ""
    offset_min: int | None = None


def capture_of(row: object, said: Said, limits: Limits) -> Capture:
    """The prediction in a record.

    Raises:
        InvalidEventError: it is of no form that is known, or says too little.
    """
    if not isinstance(row, dict):
        raise InvalidEventError("wrong_type", "a record is an object")
    if isinstance(row.get("captureData"), dict):
        return _sagemaker(row, said, limits)
    if "databricks_request_id" in row:
        return _databricks(row, said, limits)
    if "request" in row or "response" in row:
        return _ours(row, said, limits)
    if "timestamp" in row and "request_id" in row:
        return _bentoml(row, said)
    raise InvalidEventError(
        "missing_field",
        "no record that we know: it has neither request and response, nor captureData, nor timestamp and request_id",
    )


def body_of(said: object, limits: Limits) -> object:
    """A body that is JSON already, or a text of it; a list or an object either way, or ``None``.

    Raises:
        InvalidEventError: it is neither.
    """
    body = parsed(said.encode(), limits) if isinstance(said, str) and said else said
    if body in (None, ""):
        return None
    if not isinstance(body, list | dict):
        raise InvalidEventError("wrong_type", "a body is an object or a list")
    return body


def _ours(row: dict[str, Any], said: Said, limits: Limits) -> Capture:
    about = About(
        model=_text(row, "model") or _model(said),
        id=_id(row, "id"),
        ts=_time(row.get("ts"), said),
        version=_text(row, "version") or said.version,
        latency_ms=_number(row.get("latency_ms")),
        error=_text(row, "error") or None,
    )
    return Capture(about, body_of(row.get("request"), limits), body_of(row.get("response"), limits))


def _databricks(row: dict[str, Any], said: Said, limits: Limits) -> Capture:
    meta = row.get("request_metadata")
    meta = meta if isinstance(meta, dict) else {}
    status = row.get("status_code")
    failed = isinstance(status, int) and status != _OK
    about = About(
        model=said.model or _text(meta, "model_name") or _model(said),
        id=_id(row, "client_request_id", "databricks_request_id"),
        ts=_time(_first(row, "timestamp_ms", "request_time"), said),
        version=said.version or _text(meta, "model_version"),
        latency_ms=_number(_first(row, "execution_time_ms", "execution_duration_ms")),
        error=str(status) if failed else None,
    )
    response = None if failed else body_of(row.get("response"), limits)
    return Capture(about, body_of(row.get("request"), limits), response)


def _sagemaker(row: dict[str, Any], said: Said, limits: Limits) -> Capture:
    meta = row.get("eventMetadata")
    meta = meta if isinstance(meta, dict) else {}
    about = About(
        model=_model(said),
        id=_id(meta, "inferenceId", "eventId"),
        ts=_time(meta.get("inferenceTime"), said),
        version=said.version,
    )
    captured = row["captureData"]
    return Capture(
        about,
        _captured(captured.get("endpointInput"), "instances", limits),
        _captured(captured.get("endpointOutput"), "predictions", limits),
    )


def _captured(side: object, name: str, limits: Limits) -> object:
    """A body by its encoding; of CSV, the rows under the name that V1 has for them."""
    if not isinstance(side, dict):
        return None
    content, encoding = side.get("data"), side.get("encoding")
    if not isinstance(content, str):
        raise InvalidEventError("wrong_type", "captureData: data is a text")
    if encoding == "BASE64":
        try:
            content = base64.b64decode(content, validate=True).decode()
        except (binascii.Error, ValueError):
            raise InvalidEventError("not_json", "captureData: no BASE64 of a text") from None
        encoding = "CSV" if _text(side, "observedContentType").startswith("text/csv") else "JSON"
    if encoding == "JSON":
        return body_of(content, limits)
    if encoding != "CSV":
        raise InvalidEventError("wrong_type", "captureData: encoding is CSV, JSON or BASE64")
    try:
        rows = [list(map(_cell, row)) for row in csv.reader(io.StringIO(content)) if row]
    except csv.Error:
        raise InvalidEventError("not_json", "captureData: no CSV") from None
    return {name: rows}


def _cell(text: str) -> float | str | None:
    try:
        number = float(text)
    except ValueError:
        return text or None
    return number if math.isfinite(number) else text


def _bentoml(row: dict[str, Any], said: Said) -> Capture:
    """A row of monitoring. Its roles and types are in another file: the spec says which fields are the prediction and the score."""
    stamp = row["timestamp"]
    seconds = isinstance(stamp, int | float) and not isinstance(stamp, bool)
    about = About(
        model=_model(said),
        id=_id(row, "request_id"),
        ts=_time(stamp * 1_000 if seconds and abs(stamp) < 1e11 else stamp, said),
        version=said.version,
    )
    rows = [{name: value for name, value in row.items() if name not in _BENTOML}]
    return Capture(about, rows, rows)


def _model(said: Said) -> str:
    if not said.model:
        raise InvalidEventError("missing_field", "it does not say of which model it is: add ?model=NAME to the address")  # fmt: skip
    return said.model


def _id(row: Mapping[str, Any], *names: str) -> str:
    found = _first(row, *names)
    if (
        isinstance(found, bool)
        or not isinstance(found, str | int)
        or not 0 < len(str(found)) <= MAX_ID
    ):
        raise InvalidEventError("missing_field", f"no {' and no '.join(names)} of 1 to {MAX_ID} characters")  # fmt: skip
    return str(found)


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return found if isinstance(found, str) else ""


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(value: object, said: Said) -> str | float:
    """As an event writes it; a time without an offset is that of the sender."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise InvalidEventError("missing_field", "no time")
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidEventError("bad_timestamp", "the time is neither RFC 3339 nor a number") from None  # fmt: skip
    if at.tzinfo is None:
        if said.offset_min is None:
            raise InvalidEventError("bad_timestamp", "the time has no offset: add ?offset=+00:00, the sender's, to the address")  # fmt: skip
        at = at.replace(tzinfo=timezone(timedelta(minutes=said.offset_min)))
    return at.isoformat()
