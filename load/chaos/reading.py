"""The wire contract, read a second time for the oracle: which events a message holds, and which of them are good.

Plain and slow on purpose, with no line in common with what it checks. Limits are the default ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa

_MAX_MESSAGE: Final = 1 << 20
_MAX_FEATURES: Final = 2_000
_MAX_DEPTH: Final = 8
_MAX_FUTURE_MS: Final = 300_000
_SMALLEST_MS: Final = 100_000_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_OBJECT: Final = (dict, type(None))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """A good event."""

    model: str
    version: str
    ts_ms: int
    features: Mapping[str, Any]
    prediction: object
    score: float | None
    latency_ms: float | None
    failed: bool
    tags: Mapping[str, Any]


class _BadError(ValueError):
    """Nothing can be read here."""


def read(value: bytes, headers: Mapping[str, bytes], *, now_ms: int) -> Iterator[Event | None]:
    """The events of a message in order; ``None`` for each that is rejected, and one for a message that cannot be read."""
    try:
        found = _bodies(value, headers)
    except (ValueError, pa.ArrowException):  # _BadError as well
        yield None
        return
    for body in found:
        try:
            yield _event(body, now_ms)
        except ValueError:  # _BadError as well
            yield None


def _bodies(value: bytes, headers: Mapping[str, bytes]) -> list[Any]:
    kind = headers.get("content-type", b"").decode().partition(";")[0].strip().lower()
    _require(0 < len(value) <= _MAX_MESSAGE)
    if kind == "application/vnd.apache.arrow.stream" or value.startswith(b"\xff\xff\xff\xff"):
        return _rows(value)
    parsed = _JSON.decode(value.decode("utf-8"))
    _require(isinstance(parsed, (dict, list)))
    if value.count(b"{") + value.count(b"[") > _MAX_DEPTH:
        _require(_depth(parsed) <= _MAX_DEPTH)
    attributes = {
        name: headers[f"ce_{name}"].decode() for name in ("id", "time") if f"ce_{name}" in headers
    }
    if kind == "application/cloudevents+json":
        _require(isinstance(parsed, dict) and "data" in parsed)
        attributes = {name: parsed[name] for name in ("id", "time") if name in parsed}
        _require(all(isinstance(text, str) for text in attributes.values()))
        parsed = parsed["data"]
    if isinstance(parsed, list):
        attributes.pop("id", None)
        return [_completed(item, attributes) for item in parsed]
    return [_completed(parsed, attributes)]


def _completed(body: Any, attributes: Mapping[str, str]) -> Any:
    if isinstance(body, dict):
        for name, attribute in (("id", "id"), ("ts", "time")):
            if attribute in attributes:
                body.setdefault(name, attributes[attribute])
    return body


def _rows(value: bytes) -> list[dict[str, Any]]:
    with pa.ipc.open_stream(value) as stream:
        table = stream.read_all()
    at = table.schema.get_field_index("ts")
    if pa.types.is_timestamp(table.schema.field(at).type):
        # Milliseconds since the epoch, whatever the unit.
        table = table.set_column(
            at, "ts", table.column(at).cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        )
    rows = [{name: v for name, v in row.items() if v is not None} for row in table.to_pylist()]
    for row in rows:
        for name in ("features", "tags"):
            if isinstance(row.get(name), list):
                row[name] = dict(row[name])
    return rows


def _event(body: Any, now_ms: int) -> Event:
    _require(isinstance(body, dict) and isinstance(body.get("model"), str))
    ts_ms = _time_ms(body.get("ts"))
    _require(0 <= ts_ms <= now_ms + _MAX_FUTURE_MS)
    _require(_NAME.fullmatch(body["model"]) is not None)
    features, tags = body.get("features"), body.get("tags")
    _require(isinstance(features, _OBJECT) and isinstance(tags, _OBJECT))
    _require(_is(body.get("score"), int, float) and _is(body.get("latency_ms"), int, float))
    _require(_is(body.get("id"), int, str) and _is(body.get("version"), int, str))
    failed, version = body.get("error") is not None, body.get("version")
    _require(bool(features) or body.get("prediction") is not None or failed)
    _require(len(features or ()) <= _MAX_FEATURES)
    return Event(
        model=body["model"],
        version="" if version is None else str(version)[:256],
        ts_ms=ts_ms,
        features=features or {},
        prediction=body.get("prediction"),
        score=body.get("score"),
        latency_ms=body.get("latency_ms"),
        failed=failed,
        tags=tags or {},
    )


def _time_ms(ts: object) -> int:
    """Milliseconds; a half goes to the even one, and what a text has beyond them is cut off."""
    if isinstance(ts, str):
        at = datetime.fromisoformat(ts)  # of Python 3.11 on: Z as well
        _require(at.tzinfo is not None)
        return (at - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(ts, (int, float)) and not isinstance(ts, bool):
        _require(_SMALLEST_MS <= abs(ts) < 2**62)
        return round(ts)
    raise _BadError


def _is(value: object, *kinds: type) -> bool:
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool))


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return 0
    return 1 + max((_depth(item) for item in value if isinstance(item, (dict, list))), default=0)


def _require(holds: bool) -> None:
    if not holds:
        raise _BadError


def _refuse(constant: str) -> Any:
    raise _BadError(constant)


_JSON: Final = json.JSONDecoder(parse_constant=_refuse)
