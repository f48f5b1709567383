"""What is simulated: a few events of tiny models in a few source partitions, and what plain counting says about them.

Everything is a function of the seed. The last event of each partition is of a model of its own and lies an hour ahead: it closes all that is open.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from monitor import reference as references
from monitor.binning import CategoricalBins, NumericBins
from monitor.columns import OTHER_SEGMENT
from streams.merge import Bounds
from streams.models import Model
from tests.monitor.builders import HOUR, NOW, START, columns, spec
from tests.streams.builders import Known

Cell = tuple[str, str, str, int, int, str, str]
"""Model, version, segment, window size, window start, feature (``""``: the window itself), bin."""

CLOCK: Final = "clock"
_SPAN_MS: Final = 120_000
_GARBAGE: Final = (b"", b"not json", b"[]", b'{"ts":5,"model":"alpha","prediction":1}', b"{}")
_FEATURES: Final[Mapping[str, Mapping[str, str]]] = {
    "alpha": {"x": "numeric", "c": "categorical"},
    "beta": {"x": "numeric"},
    "gamma": {"x": "numeric", "y": "numeric", "c": "categorical"},
    CLOCK: {"x": "numeric"},
}
_SEGMENTS: Final[Mapping[str, list[str]]] = {"alpha": ["c"]}
_WINDOWS: Final[Mapping[str, Mapping[str, object]]] = {
    "alpha": {"pane": "10s", "sizes": ["30s", "60s"], "lateness": "5s"},
    "beta": {"pane": "5s", "sizes": ["20s"], "lateness": "1s"},
    "gamma": {"pane": "20s", "sizes": ["60s"], "lateness": "2s"},
    CLOCK: {"pane": "10s", "sizes": ["60s"], "lateness": "1s"},
}


@cache
def models() -> Known:
    """The models with their references: built once, as a reference costs more than a whole run."""
    return Known(*(_model(name) for name in _FEATURES))


def _model(name: str) -> Model:
    rng = np.random.default_rng(7)
    n = 400
    chosen = spec(
        name,
        task="none",
        features={feature: {"type": kind} for feature, kind in _FEATURES[name].items()},
        segments=_SEGMENTS.get(name, []),
        windows=_WINDOWS[name],
        notify=[{"slack": {"url": "env:NOWHERE"}}],
    )
    rows = {
        "ts": pa.array(np.sort(rng.integers(START, START + HOUR, n)), pa.timestamp("ms", "UTC")),
        "x": rng.integers(0, 4, n).astype(float),
        "y": rng.integers(-3, 4, n).astype(float),
        "c": rng.choice(["a", "b"], n),
        "score": rng.integers(0, 3, n) / 2,
    }
    rows = {k: v for k, v in rows.items() if k in ("ts", "score", *_FEATURES[name])}
    built = references.build(chosen, lambda: [columns(pa.record_batch(rows))])
    return Model(chosen, built)


@dataclass(frozen=True)
class World:
    """A log of ``predictions`` by source partition, and the events that are in it.

    Attributes:
        logs: messages by partition.
        events: the good ones, without those of the clock.
        crowded: there are more versions than places; the further ones count as one.
        cramped: there is memory for few open panes; what finds no room is counted at once, in the order in which it comes.
    """

    logs: tuple[tuple[bytes, ...], ...]
    events: tuple[Mapping[str, Any], ...]
    crowded: bool
    cramped: bool

    @property
    def sources(self) -> int:
        """Number of source partitions."""
        return len(self.logs)

    @property
    def bounds(self) -> Bounds:
        """What the detector may hold."""
        return Bounds(
            versions=2 if self.crowded else 16, open_bytes=6_000 if self.cramped else 1 << 20
        )


def make_world(seed: int) -> World:
    """Events of one to three models over a minute or two in one to four partitions, out of order, some late and some bad.

    Seven worlds of eight are small, since a small one finds nearly everything and costs a quarter.
    """
    rng = np.random.default_rng((seed, 0))
    small = seed % 8 != 0
    names = rng.permutation([n for n in _FEATURES if n != CLOCK])
    names = names[: int(rng.integers(1, 3 if small else 4))]
    span = _SPAN_MS // 2 if small else _SPAN_MS
    logs: list[list[bytes]] = [[] for _ in range(rng.integers(1, 5))]
    lags = rng.integers(0, 20_000, len(logs))  # a slow producer lags behind the others
    drifting = bool(rng.random() < 0.5)
    count = int(rng.integers(4, 20) if small else rng.integers(10, 70))
    events = []
    crowded, cramped = seed % 5 == 1, seed % 7 == 3
    versions = [7, 8, 9, 10][: 4 if crowded else 2]
    waiting: list[dict[str, Any]] = []
    for i in range(count):
        partition = int(rng.integers(len(logs)))
        delay = rng.exponential(2_000) if rng.random() < 0.9 else rng.uniform(10_000, 60_000)
        at = i * span // count
        ts = START + at - int(delay) - int(lags[partition])
        broken = drifting and at > span // 3
        event = _event(rng, str(rng.choice(names)), ts, versions, broken=broken)
        events.append(event)
        waiting.append(event)
        if rng.random() < 0.8:  # else a message of several
            value = waiting[0] if len(waiting) == 1 else [*waiting, *_bad(rng)]
            logs[partition].append(msgspec.json.encode(value))
            waiting.clear()
        if rng.random() < 0.05:
            logs[partition].append(_GARBAGE[rng.integers(len(_GARBAGE))])
    if waiting:
        logs[0].append(msgspec.json.encode(waiting))
    end = {"ts": START + HOUR, "model": CLOCK, "features": {"x": 1.0}}
    for log in logs:
        if log:
            log.append(msgspec.json.encode(end))
    return World(tuple(map(tuple, logs)), tuple(events), crowded, cramped)


def _event(
    rng: np.random.Generator, model: str, ts_ms: int, versions: list[int], *, broken: bool
) -> dict[str, Any]:
    x = None if broken and rng.random() < 0.9 else float(rng.integers(-1, 5))
    values = {"x": x, "y": float(rng.integers(-4, 5)), "c": str(rng.choice(["a", "b", "z"]))}
    return {
        "id": str(rng.integers(1 << 40)),
        "ts": ts_ms,
        "model": model,
        "version": str(versions[min(int(rng.exponential(0.6)), len(versions) - 1)]),
        "features": {name: values[name] for name in _FEATURES[model]},
        "score": float(rng.integers(0, 3)) / 2 if rng.random() < 0.9 else None,
    }


def _bad(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Sometimes an event of the far future: it must not move a watermark."""
    if rng.random() < 0.7:
        return []
    return [{"ts": NOW + HOUR, "model": "alpha", "features": {"x": 1.0}}]


def oracle(world: World) -> Counter[Cell]:
    """Plain counting: no batches, no panes, no watermark, no numpy."""
    found = Counter[Cell]()
    for event in world.events:
        known = models().models[event["model"]]
        assert known.reference is not None
        segments = [""]
        for dimension in known.spec.segments:
            value = event["features"][dimension]
            there = value in known.reference.segments[dimension]
            segments.append(f"{dimension}={value if there else OTHER_SEGMENT}")
        places = list(_places(event, known))
        for segment in segments:
            for size in known.spec.windows.sizes:
                start = event["ts"] - event["ts"] % size
                head = (event["model"], event["version"], segment, size, start)
                for feature, where in places:
                    found[(*head, feature, where)] += 1
    return found


def _places(event: Mapping[str, Any], known: Model) -> Iterator[tuple[str, str]]:
    yield "", "n"
    assert known.reference is not None
    outputs = {
        "$prediction": None,
        "$score": event["score"],
        "$latency_ms": event.get("latency_ms"),
    }
    for field in known.reference.layout.fields:
        value = {**event["features"], **outputs}[field.name]
        match field.bins:
            case _ if value is None:
                yield field.name, "missing"
            case NumericBins(edges=edges):
                assert math.isfinite(value)
                yield field.name, str(bisect_right(edges.tolist(), value))
            case CategoricalBins(categories=labels):
                yield (
                    field.name,
                    str(labels.index(value) if value in labels else len(labels)),
                )
