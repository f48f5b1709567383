"""Three models of a chaos run: what their features look like, which values are odd, and what goes wrong when.

Odd values stand in every stretch of the stream, too rarely for an alarm and never in a reference: of a wrong type, out of range, off the grid,
or a category that nobody knows. Missing ones stand in both. Faults are strong, since the alarm budget is strict::

    progress    0      .25      .45  .5           .75      1
    fraud       |       [missing )    |                     |   amount is missing in 9 of 10 events
    eta         |                     [ shift     )         |   distance is three times as far
    churn       |                     [ version 2           )   takes half of the traffic: scores, latency and errors get worse
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from monitor.binning import Floats

Kind = Literal["normal", "money", "whole", "ties", "flag", "category", "code"]
Rng: TypeAlias = np.random.Generator
Bools: TypeAlias = npt.NDArray[np.bool_]

CLEAN: Final = -1.0  # progress at which nothing is wrong
FAULT: Final = (0.25, 0.45)
SHIFT: Final = (0.5, 0.75)
RELEASE: Final = 0.5
FAULTY_FEATURE: Final = "amount"
SHIFTED_FEATURE: Final = "distance"
ODD: Final = 0.001  # of the values of a feature
_NUMERIC_ODD: Final = ("n/a", [1, 2], {"v": 1}, True, 1e12, -1e12, 0.123456, -0.0, 7, "12.5")
_TEXT_ODD: Final = (3, 2.5, True, ["x"], {"a": 1}, "", "x" * 300, "straße", "new")
_DRAW: Final[Mapping[Kind, Callable[[Rng, int, float, float], npt.NDArray[Any]]]] = {
    "normal": lambda rng, n, a, b: rng.normal(a, b, n),
    "money": lambda rng, n, a, b: np.round(rng.lognormal(a, b, n), 2),
    "whole": lambda rng, n, a, b: rng.poisson(a, n) + int(b),
    "ties": lambda rng, n, a, b: np.where(
        rng.random(n) < a, 0.0, np.round(rng.lognormal(b, 1, n), 1)
    ),
    "flag": lambda rng, n, a, b: rng.random(n) < a,
    "category": lambda rng, n, a, b: _zipf(rng, n, int(a), b),
    "code": lambda rng, n, a, b: _zipf(rng, n, int(a), b),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A feature: how it is drawn, and how often it is missing. Categories are Zipf: ``a`` of them, with exponent ``b``."""

    name: str
    kind: Kind
    a: float
    b: float = 1.0
    missing: float = 0.005

    @property
    def categorical(self) -> bool:
        """Whether its values count as texts; those of a ``code`` are whole numbers."""
        return self.kind in ("category", "code")

    def draw(
        self, rng: Rng, n: int, faults: Callable[[Floats], Floats] | None, odd_share: float
    ) -> list[Any]:
        """``n`` values: ``None`` where missing, some odd."""
        values = _DRAW[self.kind](rng, n, self.a, self.b)
        drawn: list[Any] = (values if faults is None else faults(values)).tolist()
        if self.kind == "category":
            names = [f"{self.name[:3]}-{k:02}" for k in range(int(self.a))]
            drawn = [names[k] for k in drawn]
        odd = _TEXT_ODD if self.categorical else _NUMERIC_ODD
        for i in np.flatnonzero(rng.random(n) < odd_share).tolist():
            drawn[i] = odd[int(rng.integers(len(odd)))]
            if drawn[i] == "new":
                drawn[i] = f"new-{rng.integers(60)}"
        for i in np.flatnonzero(rng.random(n) < self.missing).tolist():
            drawn[i] = None
        return drawn


@dataclass(frozen=True, slots=True)
class Shape:
    """A model: its spec's task and segments, its features, and how much of the traffic is its own."""

    model: str
    task: Literal["binary", "multiclass", "regression"]
    share: float
    segments: tuple[str, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Events of one model without their times: columns of ``n`` values."""

    features: list[dict[str, Any]]
    versions: list[str | int]
    predictions: list[Any]
    scores: list[float | None]
    latencies: list[float | None]
    errors: list[str | None]
    tags: list[dict[str, Any] | None]


def draw(shape: Shape, rng: Rng, progress: Floats, *, odd: float = ODD) -> Rows:
    """Rows of a model.

    Args:
        progress: ``(n,)`` how far the run has come, ``0 <= p < 1``, or ``CLEAN``.
        odd: share of odd values, in each feature and output.
    """
    n = len(progress)
    released = (progress >= RELEASE) & (rng.random(n) < 0.5) & (shape.model == CHURN.model)
    names = [column.name for column in shape.columns]
    drawn = {c.name: c.draw(rng, n, _shift(c, shape, progress), odd) for c in shape.columns}
    if shape.model == FRAUD.model:
        gone = _within(progress, FAULT) & (rng.random(n) < 0.9)
        drawn[FAULTY_FEATURE] = [
            None if lost else v for v, lost in zip(drawn[FAULTY_FEATURE], gone, strict=True)
        ]
    return Rows(
        features=_dictionaries(names, [drawn[name] for name in names], rng.random(n) < 0.3),
        versions=[(2 if odd else "2") if new else "1" for new, odd in _pairs(released, rng)],
        predictions=_predictions(shape, rng, n, odd),
        scores=_gaps(rng, odd, np.where(released, rng.beta(5, 2, n), rng.beta(2, 5, n))),
        latencies=_gaps(rng, odd, np.round(rng.gamma(4, 3, n) * np.where(released, 3.0, 1.0), 1)),
        errors=_errors(rng, released),
        tags=_tags(rng, n, odd),
    )


def _within(progress: Floats, span: tuple[float, float]) -> Bools:
    inside: Bools = (progress >= span[0]) & (progress < span[1])
    return inside


def _shift(column: Column, shape: Shape, progress: Floats) -> Callable[[Floats], Floats] | None:
    if shape.model != ETA.model or column.name != SHIFTED_FEATURE:
        return None
    return lambda values: np.where(_within(progress, SHIFT), 3.0 * values + 1.0, values)


def _dictionaries(
    names: Sequence[str], columns: Sequence[list[Any]], sparse: Bools
) -> list[dict[str, Any]]:
    """A dictionary per row; a ``sparse`` writer leaves out what it does not have, another writes null."""
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    for i in np.flatnonzero(sparse).tolist():
        if None in rows[i].values():
            rows[i] = {name: value for name, value in rows[i].items() if value is not None}
    return rows


def _pairs(released: Bools, rng: Rng) -> list[tuple[bool, bool]]:
    return list(zip(released.tolist(), (rng.random(len(released)) < 0.1).tolist(), strict=True))


def _predictions(shape: Shape, rng: Rng, n: int, odd: float) -> list[Any]:
    if shape.task == "regression":
        drawn: list[Any] = np.round(rng.lognormal(3.2, 0.5, n), 1).tolist()
    elif shape.task == "binary":
        drawn = (rng.random(n) < 0.2).astype(int).tolist()
    else:
        drawn = rng.choice(["stay", "leave", "pause"], n, p=[0.7, 0.2, 0.1]).tolist()
    for i in np.flatnonzero(rng.random(n) < odd).tolist():
        drawn[i] = [0.3, 0.7] if i % 2 else None
    return drawn


def _gaps(rng: Rng, odd: float, values: Floats) -> list[float | None]:
    """The values, some of them missing."""
    drawn: list[float | None] = values.tolist()
    for i in np.flatnonzero(rng.random(len(values)) < odd).tolist():
        drawn[i] = None
    return drawn


def _errors(rng: Rng, released: Bools) -> list[str | None]:
    failed = rng.random(len(released)) < np.where(released, 0.08, 0.002)
    errors: list[str | None] = [None] * len(released)
    for i in compress(range(len(errors)), failed.tolist()):
        errors[i] = "timeout"
    return errors


def _tags(rng: Rng, n: int, odd_share: float) -> list[dict[str, Any] | None]:
    """Regions; some are unknown to the reference's segments, and some events have no tags."""
    regions = ("north", "south", "east", "west", "atlantis")
    tags: list[dict[str, Any]] = [{"region": region, "host": 7} for region in regions]
    odd: list[dict[str, Any] | None] = [None, {}, {"region": ["?"]}, {"region": 12}, {"region": ""}]
    chosen = rng.choice(5, n, p=[0.4, 0.3, 0.2, 0.1 - 2 * odd_share, 2 * odd_share])
    drawn: list[dict[str, Any] | None] = [tags[k] for k in chosen.tolist()]
    for i in np.flatnonzero(rng.random(n) < 4 * odd_share).tolist():
        drawn[i] = odd[i % len(odd)]
    return drawn


def _zipf(rng: Rng, n: int, values: int, exponent: float) -> npt.NDArray[np.int64]:
    weights = np.arange(1.0, values + 1) ** -exponent
    return np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(n), side="right")


FRAUD: Final = Shape(
    "payments/fraud",
    "binary",
    0.4,
    ("merchant",),  # 40 merchants: eight and more share the segment of the others
    (
        Column("amount", "money", 3.5, 1.1),
        Column("balance", "normal", 1_800, 900),
        Column("age_days", "whole", 400),
        Column("velocity", "normal", 0, 1),
        Column("distance_home", "money", 1.5, 1.4),
        Column("hour", "whole", 13),
        Column("items", "whole", 2.5, 1),
        Column("tip", "ties", 0.7, 0.5),
        Column("refunds", "whole", 0.3),
        Column("discount", "ties", 0.9, 1.0),
        Column("device_score", "normal", 0.6, 0.15, 0.08),
        Column("card_present", "flag", 0.6),
        Column("recurring", "flag", 0.1),
        Column("foreign", "flag", 0.03),
        Column("merchant", "category", 40, 0.8),
        Column("country", "category", 150, 1.3),
        Column("network", "category", 4, 1.0),
        Column("channel", "category", 3, 0.5),
        Column("risk_code", "code", 12, 1.2),
        Column("mcc", "code", 300, 1.1),
    ),
)
ETA: Final = Shape(
    "delivery-eta",
    "regression",
    0.35,
    ("vehicle", "tags.region"),
    (
        Column("distance", "money", 1.8, 0.6),
        Column("weight", "normal", 12, 4),
        Column("volume", "money", 0.5, 0.8),
        Column("stops", "whole", 6, 1),
        Column("queue", "whole", 1.2),
        Column("rain", "ties", 0.8, 0.2),
        Column("wind", "normal", 14, 6, 0.03),
        Column("temperature", "normal", 9, 7),
        Column("elevation", "ties", 0.5, 2.0),
        Column("driver_days", "whole", 90),
        Column("rating", "whole", 3, 1),
        Column("express", "flag", 0.25),
        Column("fragile", "flag", 0.1),
        Column("weekend", "flag", 0.3),
        Column("vehicle", "category", 6, 0.7),
        Column("depot", "category", 30, 0.9),
        Column("zone", "category", 400, 1.1),
        Column("weather", "category", 5, 1.0),
        Column("road", "code", 9, 0.8),
        Column("slot", "code", 24, 0.3),
    ),
)
CHURN: Final = Shape(
    "churn",
    "multiclass",
    0.25,
    (),
    (
        Column("tenure", "whole", 30),
        Column("spend", "money", 3.0, 0.7),
        Column("usage", "normal", 50, 20),
        Column("trend", "normal", 0, 0.1),
        Column("tickets", "whole", 0.8),
        Column("calls", "whole", 2),
        Column("overage", "ties", 0.85, 1.5),
        Column("credit", "ties", 0.95, 2.0),
        Column("latency_p95", "money", 4.0, 0.3),
        Column("nps", "whole", 7),
        Column("age", "normal", 41, 13, 0.1),
        Column("bundle", "flag", 0.4),
        Column("autopay", "flag", 0.7),
        Column("paperless", "flag", 0.9),
        Column("plan", "category", 8, 0.8),
        Column("state", "category", 50, 0.6),
        Column("handset", "category", 350, 1.2),
        Column("contract", "category", 3, 0.4),
        Column("cohort", "code", 36, 0.2),
        Column("tier", "code", 4, 1.0),
    ),
)
SHAPES: Final = (FRAUD, ETA, CHURN)
