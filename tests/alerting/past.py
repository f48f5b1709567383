"""A model, its reference, and forty stored days of it: clean, but for a shift of one feature."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import pyarrow as pa

from monitor import reference as references
from monitor.columns import Columns, from_batch
from monitor.counting import profile_groups
from monitor.panes import ClosedWindow, SeriesKey
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec

DAY: Final = 86_400_000
START: Final = 1_359_676_800_000  # 2013-02-01T00:00Z
EVENTS: Final = 1_000
PLANTED: Final = range(20, 25)


@cache
def spec() -> ModelSpec:
    document: dict[str, Any] = {
        "model": "m",
        "task": "binary",
        "features": {
            "carrier": {"type": "categorical"},
            **{f"x{i}": {"type": "numeric"} for i in range(6)},
        },
        "windows": {"pane": "1h", "sizes": ["1d"], "lateness": "1h"},
        # So little that a clean day of these tests pages once in 600 days.
        "alarm_budget": {"false_alarms": 0.05, "per": "30d"},
    }
    return parse_spec(document, origin="test")


def events(day: int, *, n: int = EVENTS, shift: float = 0.0, missing: float = 0.0) -> Columns:
    """A day of events; ``shift`` is of the mean of x0, in standard deviations."""
    rng = np.random.default_rng((day, 1))
    at = START + day * DAY
    x = rng.normal(size=(6, n))
    x[0] += shift
    lost = rng.random(n) < missing
    batch = pa.record_batch(
        {
            "ts": pa.array(np.sort(rng.integers(at, at + DAY, n)), pa.timestamp("ms", "UTC")),
            "carrier": rng.choice(["UA", "B6", "EV"], n, p=[0.5, 0.3, 0.2]),
            **{f"x{i}": pa.array(x[i], mask=lost if i == 1 else None) for i in range(6)},
            "prediction": rng.integers(0, 2, n),
        }
    )
    return from_batch(batch, origin="test")


@cache
def reference() -> Reference:
    return references.build(spec(), lambda: [events(1_000 + day, n=2_000) for day in range(-40, 0)])


@cache
def profile(day: int, n: int, shift: float, missing: float) -> Profile:
    columns = events(day, n=n, shift=shift, missing=missing)
    layout = reference().layout
    group = np.zeros(columns.n, dtype=np.intp)
    return profile_groups(layout, columns.encode(layout), columns.errors, group, 1)[0]


def window(
    day: int,
    *,
    n: int = EVENTS,
    shift: float = 0.0,
    missing: float = 0.0,
    version: str = "1",
    whole: bool = True,
) -> ClosedWindow:
    key = SeriesKey("m", version, "", reference().layout.bins_id)
    return ClosedWindow(key, START + day * DAY, DAY, profile(day, n, shift, missing), whole)


def history(days: int = 40, shift: float = 0.6) -> list[ClosedWindow]:
    """Clean days, but for a shift of x0 from day 20 to day 24."""
    return [window(day, shift=shift if day in PLANTED else 0.0) for day in range(days)]
