"""Clean streams: 50 features in which nothing ever changes, as profiles of panes, fast enough for a hundred thousand windows.

Every feature follows a latent number ``z``, standard normal apart from its season, and a fixed function of it: a normal, a lognormal and a
discrete value, or a category. ``z`` is rounded to one of 65,536 *atoms*, so whatever an event adds to a profile stands in a table::

    z ──round──► atom ──table──► bin and flags, quanta        (a table per feature, made by the reference's own ``encode``)

What is counted so equals, to the last bit, ``profile_groups`` of the values themselves; a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from monitor import reference as references
from monitor.binning import SPECIALS, Floats, Ints, NumericBins
from monitor.columns import Columns
from monitor.profile import Field, Layout
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec

Kind = Literal["iid", "ar1", "season"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Shape = Literal["normal", "lognormal", "discrete", "categorical"]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
START_MS: Final = 1_359_676_800_000  # 2013-02-01T00:00Z, a midnight
PHI: Final = 0.9  # of the AR(1) from one event to the next
SWING: Final = 0.5  # of the season, in standard deviations of z
TIDE: Final = 0.5  # of the traffic: it swings between half and one and a half times its mean
ATOMS: Final = 1 << 16
_PER_SIGMA: Final = 5_000  # atoms a standard deviation: they end 6.5 away
_LATENT: Final = (np.arange(ATOMS) - ATOMS // 2) / _PER_SIGMA
_NORMAL: Final = ndtri((np.arange(ATOMS) + 0.5) / ATOMS)
_NORMAL_ATOMS: Final = np.rint(_NORMAL * _PER_SIGMA + ATOMS // 2).astype(np.uint16)
_SHAPES: Final[tuple[Shape, ...]] = ("normal", "lognormal", "discrete", "normal", "categorical")
_FEW: Final = 12  # categories
_MANY: Final = 400  # of the one feature that has more than a reference keeps

Atoms = npt.NDArray[np.uint16]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: a function of z, a share of missing values, and where in the day its season peaks."""

    name: str
    shape: Shape
    missing: float
    phase: float
    categories: int = 0

    def values(self) -> Floats:
        """``(ATOMS,)`` value of each atom; of a category its number."""
        match self.shape:
            case "normal":
                return 10.0 + np.pi * _LATENT
            case "lognormal":
                return np.exp(_LATENT)
            case "discrete":
                return np.maximum(np.rint(8.0 + 4.0 * _LATENT), 0.0)
            case "categorical":
                shares = np.cumsum(1.0 / np.arange(1, self.categories + 1))
                return np.searchsorted(shares[:-1] / shares[-1], ndtr(_LATENT)).astype(np.float64)


def _feature(i: int) -> Feature:
    shape = _SHAPES[i % len(_SHAPES)]
    categories = 0 if shape != "categorical" else _MANY if i < len(_SHAPES) else _FEW
    return Feature(f"f{i:02d}", shape, 0.02 if i % 10 == 0 else 0.0, i / 50, categories)


# 20 normal, 10 lognormal, 10 discrete and 10 categorical; every tenth lacks 2 % of its values.
FEATURES: Final = tuple(map(_feature, range(50)))


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one feature, for ``load.power``: all zero is nothing."""

    feature: str = ""
    shift: float = 0.0  # of z, in its standard deviations
    new_category: float = 0.0  # share of events that have one
    missing: float = 0.0  # share in addition to the usual


@dataclass(frozen=True, slots=True)
class Plan:
    """Which stream: all that it depends on.

    Attributes:
        kind: how z moves: from event to event without memory, as an AR(1), or with the hour.
        seed: of everything.
        per_hour: events an hour, on average.
        pane_ms: size of a pane.
    """

    kind: Kind
    seed: int
    per_hour: int = 500
    pane_ms: int = 30 * MINUTE_MS


class Clean:
    """A stream of ``FEATURES`` in the order of time. Mutable: it remembers where each AR(1) stands."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = np.random.default_rng([plan.seed, KINDS.index(plan.kind)])
        self._last = self._rng.standard_normal(len(FEATURES)) * PHI
        self._pane = 0

    @property
    def now_ms(self) -> int:
        """Where the next pane starts."""
        return START_MS + self._pane * self._plan.pane_ms

    def sizes(self, panes: int) -> Ints:
        """Events of each of the next panes: Poisson."""
        mean = self._plan.per_hour * self._plan.pane_ms / HOUR_MS
        tide = TIDE if self._plan.kind == "season" else 0.0
        hours = self._hours(panes)
        return self._rng.poisson(mean * (1 + tide * np.sin(hours * np.pi / 12)))

    def days(self, days: int) -> list[Draw]:
        """The next days' events, day by day."""
        return [self.draw(DAY_MS // self._plan.pane_ms) for _ in range(days)]

    def draw(self, panes: int) -> Draw:
        """The next panes' events."""
        n = self.sizes(panes)
        draw = Draw(n, [self._atoms(i, n) for i in range(len(FEATURES))], self._missing(n))
        self._pane += panes
        return draw

    def _hours(self, panes: int) -> Floats:
        return (self._pane + np.arange(panes)) * self._plan.pane_ms / HOUR_MS % 24

    def _atoms(self, feature: int, n: Ints) -> Atoms:
        uniform = self._rng.integers(0, ATOMS, int(n.sum()), dtype=np.uint16)
        match self._plan.kind:
            case "iid":
                return _NORMAL_ATOMS[uniform]
            case "ar1":
                steps = _NORMAL[uniform] * np.sqrt(1 - PHI**2)
                z, last = lfilter([1.0], [1.0, -PHI], steps, zi=self._last[feature : feature + 1])
                self._last[feature] = last[0]
                return to_atoms(z)
            case "season":
                angle = 2 * np.pi * (self._hours(len(n)) / 24 + FEATURES[feature].phase)
                return to_atoms(_NORMAL[uniform] + np.repeat(SWING * np.sin(angle), n))

    def _missing(self, n: Ints) -> dict[int, Bools]:
        total = int(n.sum())
        return {
            i: self._rng.integers(0, ATOMS, total, dtype=np.uint16) < f.missing * ATOMS
            for i, f in enumerate(FEATURES)
            if f.missing
        }


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Events of some panes, in order.

    Attributes:
        n: ``(panes,)`` events of each pane.
        atoms: of each feature, ``(n.sum(),)``.
        missing: feature -> which events lack it; others lack none.
        unseen: feature -> which events have a category that no reference has.
    """

    n: Ints
    atoms: list[Atoms]
    missing: Mapping[int, Bools]
    unseen: Mapping[int, Bools] = field(default_factory=dict)


def faulty(draw: Draw, fault: Fault, rng: np.random.Generator) -> Draw:
    """The same events with a fault in one feature."""
    i = [f.name for f in FEATURES].index(fault.feature)
    atoms = list(draw.atoms)
    atoms[i] = to_atoms(_LATENT[atoms[i]] + fault.shift)
    struck = rng.random(len(atoms[i]))
    missing, unseen = dict(draw.missing), dict(draw.unseen)
    if fault.missing:
        missing[i] = (struck < fault.missing) | missing.get(i, False)
    if fault.new_category:
        unseen[i] = struck < fault.new_category
    return replace(draw, atoms=atoms, missing=missing, unseen=unseen)


def to_atoms(z: Floats) -> Atoms:
    """The nearest atoms."""
    return np.clip(z * _PER_SIGMA + (ATOMS // 2 + 0.5), 0, ATOMS - 1).astype(np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """What an atom of a feature adds to a profile.

    Attributes:
        at: where.
        classes: ``(ATOMS,)`` class of each atom; after the last come "unseen" and "missing".
        places: per class the positions in the vector that it counts in.
        quanta: ``(ATOMS,)`` for the moments; ``None`` for a category.
    """

    at: Field
    classes: Ints
    places: list[list[int]]
    quanta: Ints | None


class Counter:
    """Draws to profile vectors, through tables that the layout's own ``encode`` fills."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tables = [_table(layout.by_name[f.name], f) for f in FEATURES]
        values = {f.name for f in FEATURES}
        self._absent = [
            f.specials.start + SPECIALS.index("missing")
            for f in layout.fields
            if f.name not in values
        ]

    def vectors(self, draw: Draw) -> Ints:
        """``(panes, layout.size)``, in canonical form."""
        panes = len(draw.n)
        into = np.zeros((panes, self._layout.size), dtype=np.int64)
        into[:, 0] = draw.n
        into[:, self._absent] = draw.n[:, None]
        pane = np.repeat(np.arange(panes), draw.n)
        starts = np.cumsum(draw.n) - draw.n
        for i, table in enumerate(self._tables):
            _count(into, table, draw, i, pane)
            if table.quanta is not None:
                quanta = table.quanta[draw.atoms[i]]
                if i in draw.missing:
                    quanta[draw.missing[i]] = 0
                _sum(into[:, table.at.moments], quanta, starts, draw.n)
        return self._layout.normalise(into)


def _table(at: Field, feature: Feature) -> _Table:
    values = feature.values()
    if isinstance(at.bins, NumericBins):
        encoded = at.bins.encode(pa.array(values))
        codes, flags = encoded.codes, encoded.flags
        quanta: Ints | None = at.bins.quantise(values).astype(np.int64)
    else:
        codes = at.bins.encode(names(feature)).codes[values.astype(np.intp)]
        flags, quanta = None, None
    pairs = codes * 4 + (0 if flags is None else flags)
    present, classes = np.unique(pairs, return_inverse=True)
    places = [
        [at.counts.start + int(pair) // 4]
        + ([at.flags.start + int(pair) % 4 - 1] if pair % 4 else [])
        for pair in present
    ]
    places.append([at.counts.stop - 1])
    places.append([at.specials.start + SPECIALS.index("missing")])
    return _Table(at, classes.astype(np.int64), places, quanta)


def names(feature: Feature) -> list[str]:
    """Texts of a categorical feature's categories, by number."""
    return [f"c{i}" for i in range(feature.categories)]


def _count(into: Ints, table: _Table, draw: Draw, feature: int, pane: Ints) -> None:
    width = len(table.places)
    classes = table.classes[draw.atoms[feature]]
    if feature in draw.unseen:
        classes[draw.unseen[feature]] = width - 2
    if feature in draw.missing:
        classes[draw.missing[feature]] = width - 1
    counts = np.bincount(pane * width + classes, minlength=len(into) * width).reshape(-1, width)
    for i, places in enumerate(table.places):
        for place in places:
            into[:, place] += counts[:, i]


def _sum(into: Ints, quanta: Ints, starts: Ints, n: Ints) -> None:
    some = np.flatnonzero(n)
    if not len(some):
        return
    into[some, 0] = np.add.reduceat(quanta, starts[some])
    square = np.add.reduceat(quanta * quanta, starts[some])  # far below 2**63: 1,000 of 2**52
    into[some, 1], into[some, 2] = square >> 32, square & 0xFFFF_FFFF


def columns(draw: Draw, plan: Plan, start_ms: int) -> Columns:
    """The same events as raw columns, at even distances inside their pane."""
    starts = np.cumsum(draw.n) - draw.n
    within = np.arange(int(draw.n.sum())) - np.repeat(starts, draw.n)
    pane = np.repeat(np.arange(len(draw.n)), draw.n)
    ts = start_ms + pane * plan.pane_ms + within * plan.pane_ms // np.repeat(draw.n, draw.n)
    return Columns(
        ts_ms=ts.astype(np.int64),
        features={f.name: _raw(f, draw, i) for i, f in enumerate(FEATURES)},
        outputs={},
        errors=np.zeros(len(ts), dtype=bool),
        tags=[None] * len(ts),
    )


def _raw(feature: Feature, draw: Draw, i: int) -> pa.Array:
    values, missing = feature.values()[draw.atoms[i]], draw.missing.get(i)
    if feature.shape != "categorical":
        return pa.array(values, mask=missing)
    numbers = values.astype(np.int64)
    if i in draw.unseen:
        numbers[draw.unseen[i]] = feature.categories
    return pa.array([*names(feature), "new"]).take(pa.array(numbers, mask=missing))


def spec(plan: Plan, sizes: tuple[str, ...] = ("1h",), budget: float = 1.0) -> ModelSpec:
    """The model that watches such a stream."""
    return parse_spec(
        {
            "model": "clean",
            "features": {
                f.name: {"type": "categorical" if f.shape == "categorical" else "numeric"}
                for f in FEATURES
            },
            "windows": {"pane": plan.pane_ms, "sizes": list(sizes)},
            "alarm_budget": {"false_alarms": budget, "per": "30d"},
        },
        origin="clean",
    )


def learn(model: ModelSpec, past: Sequence[Draw], plan: Plan) -> Reference:
    """The reference from a stream's first panes."""
    batches, start_ms = [], START_MS
    for draw in past:
        batches.append(columns(draw, plan, start_ms))
        start_ms += len(draw.n) * plan.pane_ms
    return references.build(model, lambda: batches)
