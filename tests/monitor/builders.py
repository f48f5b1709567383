"""Builders of the detection tests: a small model, its past, and events of it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.columns import Columns, from_batch
from monitor.counting import profile_groups
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = 1_359_676_800_000  # 2013-02-01T00:00Z
NOW = START + 400 * DAY
MODEL = "flight-delay"


def spec(model: str = MODEL, **changes: object) -> ModelSpec:
    """A binary model with a numeric and a categorical feature, panes of 10 s and windows of 1 and 3 minutes."""
    document: dict[str, object] = {
        "model": model,
        "task": "binary",
        "features": {"wind": {"type": "numeric"}, "carrier": {"type": "categorical"}},
        "segments": ["carrier"],
        "windows": {"pane": "10s", "sizes": ["1m", "3m"], "lateness": "5s"},
    }
    return parse_spec({**document, **changes}, origin="test")


def past(
    rng: np.random.Generator, n: int = 2_000, *, start_ms: int = START, span_ms: int = HOUR
) -> pa.RecordBatch:
    """Rows of a reference file: wind in whole knots written in mph, three carriers, labels that agree in 4 of 5."""
    prediction = rng.integers(0, 2, n)
    return pa.record_batch(
        {
            "ts": pa.array(
                np.sort(rng.integers(start_ms, start_ms + span_ms, n)), pa.timestamp("ms", "UTC")
            ),
            "wind": np.round(rng.gamma(4, 3, n)) * 1.15,
            "carrier": rng.choice(["UA", "B6", "EV"], n, p=[0.5, 0.3, 0.2]),
            "prediction": prediction,
            "score": rng.random(n),
            "label": np.where(rng.random(n) < 0.8, prediction, 1 - prediction),
        }
    )


def columns(rows: pa.RecordBatch) -> Columns:
    """The rows as columns."""
    return from_batch(rows, origin="test")


def reference(chosen: ModelSpec | None = None, *, seed: int = 7, n: int = 2_000) -> Reference:
    """The reference of a spec, from ``past``."""
    rows = past(np.random.default_rng(seed), n)
    return references.build(chosen or spec(), lambda: [columns(rows)])


def profile_of(known: Reference, rows: Columns) -> Profile:
    """All rows in one profile."""
    group = np.zeros(rows.n, dtype=np.intp)
    return profile_groups(known.layout, rows.encode(known.layout), rows.errors, group, 1)[0]


def event(ts_ms: int, **fields: Any) -> dict[str, Any]:
    """A prediction event as a serving app writes it."""
    body: dict[str, Any] = {
        "ts": ts_ms,
        "model": MODEL,
        "version": "7",
        "features": {"wind": 11.5, "carrier": "UA"},
        "prediction": 1,
    }
    return {**body, **fields}


def body(value: object) -> bytes:
    """JSON."""
    return msgspec.json.encode(value)


# Panes of two features that no detector takes: n, mean, M2, and a word of the error.
BAD_PANES: list[tuple[list[float], list[float], list[float], str]] = [
    ([1], [0.0], [0.0], "shape"),
    ([1, -1], [0.0, 0.0], [0.0, 0.0], "n counts"),
    ([1, 0.5], [0.0, 0.0], [0.0, 0.0], "n counts"),
    ([1, np.nan], [0.0, 0.0], [0.0, 0.0], "n counts"),
    ([1, np.inf], [0.0, 0.0], [0.0, 0.0], "finite"),
    ([1, 1], [0.0, np.nan], [0.0, 0.0], "finite"),
    ([1, 1], [0.0, -np.inf], [0.0, 0.0], "finite"),
    ([1, 0], [0.0, 1e200], [np.inf, 0.0], "finite"),
    ([1, 1], [0.0, 0.0], [0.0, -1.0], "negative"),
]


def unreadable(snapshot: bytes) -> list[Any]:
    """What a detector of snapshots of version 1 must refuse, as cases for ``pytest.mark.parametrize``."""
    return [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x02" + snapshot[1:], id="another version"),
        pytest.param(snapshot[:-1], id="cut short"),
        pytest.param(b"\x01garbage", id="not ours"),
    ]
