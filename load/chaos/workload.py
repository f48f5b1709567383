"""What a chaos run produces: predictions of three models on four partitions, as a file that is a function of a seed.

::

    event time   0 ───────────── 40 min ─────── a day later ──► 2.5 min ───► + 10 min
                 │ odd, late, malformed, drift │                │ clean     │ an event per partition, which closes the rest

The day in between is the hold of incidents (``alerting.book.Rules``): those of the first stretch resolve in the second. A late event is 20 s to 5 min behind its
partition, which is late in any pane; others are at most 4 s behind, which is in time in any (but for a repeat that follows a long packet). The first late ones lie
before the run, in windows of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from load.chaos import packing, tape
from load.chaos.shapes import CLEAN, SHAPES, Shape, draw
from load.chaos.tape import Message as Message
from load.chaos.tape import messages as messages
from monitor import reference as references
from monitor.binning import Floats, Ints
from monitor.columns import Columns
from monitor.profile import LATENCY, PREDICTION, SCORE
from monitor.reference import Reference
from monitor.spec import ModelSpec, parse_spec

PARTITIONS: Final = 4
START_MS: Final = 1_772_323_200_000  # 2026-03-01T00:00Z
SECRET_VARIABLE: Final = "CHAOS_WEBHOOK_SECRET"  # noqa: S105 - a name, which the dispatcher's environment has to have

_MINUTE_MS: Final = 60_000
_TAIL_MS: Final = START_MS + 26 * 60 * _MINUTE_MS
_TAIL_LENGTH_MS: Final = 150_000
_LAST_MS: Final = _TAIL_MS + 12 * _MINUTE_MS
_EVENTS_A_MINUTE: Final = 25_000
_LEAST_MINUTES: Final = 12
_CHUNK: Final = 20_000  # events at once: about 60 MB
_WEIGHTS: Final = (0.4, 0.3, 0.2, 0.1)
_SKEW_MS: Final = np.array([0, 1_200, 2_400, 3_600])
_DISORDER_MS: Final = 4_000
_LATE: Final = 0.01
_LATE_MS: Final = (25_000, 290_000)
_REFERENCE_ROWS: Final = 20_000
_REFERENCE_MS: Final = 2 * 60 * _MINUTE_MS
_REFERENCE_STREAM: Final = 1  # of randomness, beside 0, the events'


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that one chaos run sends.

    Attributes:
        seed: of all that is drawn.
        events: how many there are, malformed ones included; at least 5,000.
        shapes: the models, which share the events as their shares say.
    """

    seed: int
    events: int
    shapes: tuple[Shape, ...] = SHAPES

    def __post_init__(self) -> None:
        if self.events < 5_000:
            raise ValueError("fewer than 5,000 events fill no windows")

    def specs(self, receiver_url: str) -> list[ModelSpec]:
        """The models. They notify ``/notify`` of the receiver and ask for actions at ``/retrain`` and ``/rollback``, without approval."""
        return [_spec(shape, receiver_url.rstrip("/")) for shape in self.shapes]

    def references(self) -> dict[str, Reference]:
        """Model -> its reference, from rows of the same kind without faults; to be published with its spec. Half a second a segment, once a seed."""
        return _references(self.seed, self.shapes)

    def write(self, path: Path) -> None:
        """Write all messages in the order of production. It appears under its name when it is complete."""
        part = path.with_suffix(".part")
        with part.open("wb", buffering=1 << 20) as file:
            for chunk in self._chunks():
                self._write(file, chunk)
        os.replace(part, path)

    def _chunks(self) -> Iterator[_Chunk]:
        """The events in order of production, cut into parts of bounded size."""
        minutes = max(_LEAST_MINUTES, self.events / _EVENTS_A_MINUTE)
        length_ms = minutes * _MINUTE_MS
        last = PARTITIONS
        tail = round((self.events - last) * _TAIL_LENGTH_MS / (length_ms + _TAIL_LENGTH_MS))
        main = self.events - last - tail
        number = 0
        for first_ms, span_ms, rows in (
            (START_MS, length_ms, main),
            (_TAIL_MS, _TAIL_LENGTH_MS, tail),
        ):
            for at in range(0, rows, _CHUNK):
                place = np.arange(at, min(at + _CHUNK, rows)) / rows
                rng = np.random.default_rng((self.seed, 0, number))
                yield _chunk(rng, number, place, first_ms, span_ms)
                number += 1
        yield _Chunk(
            number=number,
            rng=np.random.default_rng((self.seed, 0, number)),
            partition=np.arange(PARTITIONS),
            ts_ms=np.full(PARTITIONS, _LAST_MS),
            progress=np.full(PARTITIONS, CLEAN),
        )

    def _write(self, file: BinaryIO, chunk: _Chunk) -> None:
        rng, n = chunk.rng, len(chunk.ts_ms)
        clean = bool(chunk.progress[0] == CLEAN)
        shares = np.array([shape.share for shape in self.shapes])
        model = rng.choice(len(shares), n, p=shares / shares.sum())
        packets = packing.packets(rng, chunk.partition, model)
        bodies: list[dict[str, Any]] = [{}] * n
        for which, shape in enumerate(self.shapes):
            mine = np.flatnonzero(model == which)
            events = _events(shape, rng, chunk, mine)
            for row, body in zip(mine.tolist(), events, strict=True):
                bodies[row] = body
        fates = packing.Fates.drawn(rng, n, clean=clean)
        for message in packing.pack(packets, self.shapes, model, bodies, chunk.ts_ms, fates):
            tape.append(file, message)


@cache
def _references(seed: int, shapes: tuple[Shape, ...]) -> dict[str, Reference]:
    return {shape.model: _reference(seed, shape) for shape in shapes}


def _reference(seed: int, shape: Shape) -> Reference:
    rng = np.random.default_rng((seed, _REFERENCE_STREAM, SHAPES.index(shape)))
    rows = draw(shape, rng, np.full(_REFERENCE_ROWS, CLEAN), odd=0.0)
    columns = Columns(
        ts_ms=np.sort(rng.integers(START_MS - _REFERENCE_MS, START_MS, _REFERENCE_ROWS)),
        features={c.name: [row.get(c.name) for row in rows.features] for c in shape.columns},
        outputs={PREDICTION: rows.predictions, SCORE: rows.scores, LATENCY: rows.latencies},
        errors=np.array([error is not None for error in rows.errors], dtype=bool),
        tags=rows.tags,
    )
    return references.build(_spec(shape, "http://127.0.0.1"), lambda: [columns], origin="chaos")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Times and places of some events, in order of production.

    Attributes:
        partition, ts_ms, progress: ``(n,)`` each.
    """

    number: int
    rng: np.random.Generator
    partition: Ints
    ts_ms: Ints
    progress: Floats


def _chunk(
    rng: np.random.Generator, number: int, place: Floats, first_ms: int, span_ms: float
) -> _Chunk:
    n, main = len(place), first_ms == START_MS
    partition = rng.choice(PARTITIONS, n, p=_WEIGHTS)
    # The square makes most events nearly in order, as they are in life.
    disorder = rng.random(n) ** 2 * (_DISORDER_MS if main else _DISORDER_MS // 8)
    behind = disorder + _SKEW_MS[partition]
    if main:
        late = rng.random(n) < _LATE
        behind[late] = rng.uniform(*_LATE_MS, np.count_nonzero(late)) + _SKEW_MS[partition[late]]
    ts = (first_ms + place * span_ms - behind).astype(np.int64)
    return _Chunk(number, rng, partition, ts, place if main else np.full(n, CLEAN))


def _events(
    shape: Shape, rng: np.random.Generator, chunk: _Chunk, mine: npt.NDArray[np.intp]
) -> Iterator[dict[str, Any]]:
    """Event bodies of one model, in all the forms that a producer may choose."""
    rows = draw(shape, rng, chunk.progress[mine])
    times = packing.times(rng, chunk.ts_ms[mine])
    for i, row in enumerate(mine.tolist()):
        body: dict[str, Any] = {
            "id": f"{chunk.number}-{row}" if row % 50 else chunk.number * _CHUNK + row,
            "ts": times[i],
            "model": shape.model,
            "version": rows.versions[i],
            "features": rows.features[i],
            "prediction": rows.predictions[i],
            "score": rows.scores[i],
            "latency_ms": rows.latencies[i],
        }
        if row % 97 == 0:
            del body["id"]
        if rows.errors[i] is not None:
            body["error"] = rows.errors[i]
        if rows.tags[i] is not None:
            body["tags"] = rows.tags[i]
        yield body


def _spec(shape: Shape, receiver_url: str) -> ModelSpec:
    def webhook(path: str) -> dict[str, str]:
        return {"url": f"{receiver_url}/{path}", "secret": f"env:{SECRET_VARIABLE}"}

    def action(path: str) -> dict[str, Any]:
        return {"webhook": webhook(path), "approval": "auto"}

    document = {
        "model": shape.model,
        "task": shape.task,
        "features": {
            c.name: {"type": "categorical" if c.categorical else "numeric"} for c in shape.columns
        },
        "segments": list(shape.segments),
        "reference": {"file": "clean.parquet"},
        "windows": {"pane": "10s", "sizes": ["1m", "10m"], "lateness": "5s"},
        "notify": [{"webhook": webhook("notify")}],
        "actions": {"retrain": action("retrain"), "rollback": action("rollback")},
    }
    return parse_spec(document, origin="chaos")
