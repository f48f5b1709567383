"""How fast messages become profiles, beside a loop that only decodes them: ``python -m load.bench_batch [--short]``.

Ours is all that the profiler does with a batch but talking to Kafka (``streams.profiling.profile_batch``): decoding with every check, lateness,
columns, profiles of each pane and segment, rows for the labels, messages encoded and compressed. The baseline makes an ``Event`` of each of the same
messages by ``msgspec``, and drops it.

Both take turns on the same batches. The time is CPU time of one thread, for each batch the least of the repeats. What was counted is compared with numpy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from load.markdown import table
from monitor import reference as references
from monitor import wire
from monitor.columns import from_batch
from monitor.events import Event, Limits
from monitor.panes import SourceMark
from monitor.profile import Profile
from monitor.spec import parse_spec
from streams.models import Model
from streams.profiling import Outcome, Policy, Reader, SourceMessage, profile_batch

BATCH: Final = 10_000  # messages that the profiler consumes at once
PARTITIONS: Final = 4
FEATURES: Final = 20
MODEL: Final = "churn"
START_MS: Final = 1_764_000_000_000
PANE_MS: Final = 60_000
_POLICY: Final = Policy(Limits(), PARTITIONS, max_models=10, auto_register=True)
_KINDS: Final = ("red", "green", "blue", "violet")

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Speed:
    """CPU time of a message, in microseconds, by way."""

    decode_us: float
    ours_us: float

    @property
    def ratio(self) -> float:
        """Our rate as a part of that of decoding alone."""
        return self.decode_us / self.ours_us


def columns(rng: np.random.Generator, rows: int, features: int = FEATURES) -> dict[str, list[Any]]:
    """Features by name: numbers of several shapes, and for every fifth a category."""
    drawn: dict[str, list[Any]] = {}
    categorical = features // 5
    for i in range(features - categorical):
        wide = (rng.normal(0, 1, rows), rng.lognormal(6, 1.5, rows), rng.random(rows))[i % 3]
        drawn[f"amount_{i:02}"] = np.round(wide, 6).tolist()
    for i in range(categorical):
        drawn[f"colour_{i:02}"] = rng.choice(_KINDS, rows).tolist()
    return drawn


def model(
    rng: np.random.Generator,
    segments: Sequence[str] = (),
    *,
    features: int = FEATURES,
    pane: str = "1m",
    window: str = "1h",
) -> Model:
    """The model, with a reference of 20,000 rows."""
    rows = 20_000
    drawn = columns(rng, rows, features)
    spec = parse_spec(
        {
            "model": MODEL,
            "features": {
                n: {"type": "categorical" if n.startswith("colour") else "numeric"} for n in drawn
            },
            "segments": list(segments),
            "windows": {"pane": pane, "sizes": [window]},
        },
        origin="bench",
    )
    outputs = {
        "ts": (np.arange(rows) * 60_000).tolist(),
        "prediction": rng.choice(["yes", "no"], rows).tolist(),
        "score": rng.random(rows).tolist(),
        "latency_ms": rng.lognormal(3, 0.4, rows).tolist(),
    }
    batch = pa.RecordBatch.from_pydict({**drawn, **outputs})
    return Model(
        spec, references.build(spec, lambda: [from_batch(batch, origin="bench")], origin="bench")
    )


def messages(
    rng: np.random.Generator, first: int, rows: int, features: int = FEATURES
) -> list[SourceMessage]:
    """Messages of one event each, in turns on all partitions; a pane has some 6,000 of them."""
    drawn = columns(rng, rows, features)
    names = list(drawn)
    cells = zip(*drawn.values(), strict=True)
    scores = np.round(rng.random(rows), 4).tolist()
    spent = np.round(rng.lognormal(3, 0.4, rows), 2).tolist()
    found = []
    for i, (values, score, ms) in enumerate(zip(cells, scores, spent, strict=True), start=first):
        event = {
            "id": f"{i:032x}",
            "ts": START_MS + 10 * i,
            "model": MODEL,
            "version": "7",
            "features": dict(zip(names, values, strict=True)),
            "prediction": "yes" if score > 0.5 else "no",
            "score": score,
            "latency_ms": ms,
        }
        value = msgspec.json.encode(event)
        found.append(SourceMessage(i % PARTITIONS, i // PARTITIONS, value, {}))
    return found


def marks(batch: Sequence[SourceMessage]) -> dict[int, SourceMark]:
    """Where each partition stood before the batch."""
    return {p: SourceMark(batch[p].offset, None, idle=False) for p in range(PARTITIONS)}


def profiled(
    batch: Sequence[SourceMessage], known: Model, reader: Reader
) -> tuple[Outcome, list[bytes]]:
    """What the profiler would send for the batch."""
    outcome = profile_batch(
        batch,
        marks(batch),
        lambda name: known if name == MODEL else None,
        _POLICY,
        now_ms=START_MS + 86_400_000,
        known_models=1,
        reader=reader,
    )
    return outcome, [wire.encode(message) for message in outcome.profiles]


def measure(rng: np.random.Generator, clock: Clock, *, batches: int, repeats: int, segments: Sequence[str] = ()) -> Speed:  # fmt: skip
    """The speed of both ways on the same batches.

    Raises:
        AssertionError: an event was not counted, or a histogram is not numpy's.
    """
    known = model(rng, segments)
    drawn = [messages(rng, BATCH * i, BATCH) for i in range(batches)]
    decoder = msgspec.json.Decoder(Event)
    reader = Reader()
    reader.learn([MODEL], {MODEL: known}.get)
    spent_ns = np.empty((repeats, batches, 2))
    for repeat in range(repeats):
        for i, batch in enumerate(drawn):
            began = clock()
            for message in batch:
                decoder.decode(message.value or b"")
            decoded = clock()
            outcome, _ = profiled(batch, known, reader)
            spent_ns[repeat, i] = decoded - began, clock() - decoded
            if repeat == 0:
                _assert_right(batch, outcome, known)
    return Speed(*(spent_ns.min(axis=0).mean(axis=0) / BATCH / 1_000).tolist())


def _assert_right(batch: Sequence[SourceMessage], outcome: Outcome, known: Model) -> None:
    assert known.reference is not None
    layout = known.reference.layout
    events = [msgspec.json.decode(message.value or b"") for message in batch]
    assert (outcome.events, outcome.late, outcome.dead) == (len(batch), 0, [])
    deltas = [d for sent in outcome.profiles for d in sent.deltas if d.segment == ""]
    parts = [Profile.from_bytes(layout, delta.profile) for delta in deltas]
    assert sum(part.n for part in parts) == len(batch)
    field = next(f for f in layout.fields if f.name == "amount_01")
    values = np.array([event["features"]["amount_01"] for event in events])
    expected = np.bincount(np.searchsorted(field.bins.edges, values, side="right"), minlength=field.bins.bins)  # type: ignore[union-attr]  # fmt: skip
    counted = sum(part.counts("amount_01") for part in parts)
    assert np.array_equal(counted, expected)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 below the bar."""
    options = parser().parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    batches, repeats = (2, 4) if options.short else (5, 10)
    sample = messages(np.random.default_rng(options.seed), 0, 1)[0].value or b""
    speed = measure(rng, time.thread_time_ns, batches=batches, repeats=repeats)
    rows = [
        [name, f"{us:.2f}", f"{1e3 / us:.0f}", f"{speed.decode_us / us:.2f}"]
        for name, us in (
            ("decode only", speed.decode_us),
            ("profiler, all but Kafka", speed.ours_us),
        )
    ]
    print(f"{FEATURES} features, {len(sample)} bytes a message, {BATCH:,} messages a batch")  # fmt: skip
    print(table(["way", "CPU us a message", "thousand a second", "of decoding only"], rows))
    return int(speed.ratio < options.bar)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench_batch", description=__doc__)
    found.add_argument("--short", action="store_true", help="fewer batches and repeats, for CI")
    found.add_argument("--bar", type=float, default=0.6, help="least part of the decoding rate")
    found.add_argument("--seed", type=int, default=2026)
    return found


if __name__ == "__main__":
    sys.exit(main())
