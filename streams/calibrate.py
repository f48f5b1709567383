"""Models that arrive without a reference: their first events are collected until there are enough to be one.

The events are anybody's. Where no reference can be made of them, or none that fits into a record, the model stays without one until somebody gives it
one: the samples are dropped all the same, and the reason goes to the dead letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from monitor import reference as references
from monitor import wire
from monitor.columns import decode_sample, feature_names, from_events
from monitor.errors import DriftlineError
from monitor.spec import Calibration, ModelSpec
from streams.models import MAX_RECORD, too_large

_SAMPLE: Final = b"sample/"
_DONE: Final = b"sampled/"
DEFAULT_EVENTS: Final = Calibration().events
MAX_CALIBRATING: Final = 200  # models at once that nobody has described: names may be generated
MAX_MODEL_BYTES: Final = 16 << 20  # of one model's samples; 5,000 events of 200 numbers are 12 MB
MAX_BYTES: Final = 256 << 20  # of all models that nobody has described
MAX_FEATURES: Final = 200  # inferred; a spec may name more


class _Stored(msgspec.Struct, array_like=True):
    model: str
    events: int
    rows: bytes


Writes = list[tuple[bytes, bytes | None]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sample causes: table writes, and once the events suffice the model's record, or why there is none.

    ``accepted`` is false where there was no room for it.
    """

    writes: Writes
    record: bytes | None = None
    failure: str | None = None
    accepted: bool = True


class Samples:
    """Collected events by model. Mutable: they accumulate. Each sample is a table value of its own, written once.

    Models that nobody has described have a bounded number of places and bounded memory. A model that no reference can be made for keeps its place,
    so that it isn't tried for ever. One with a spec always has a place: there are as many as people write.
    """

    def __init__(self) -> None:
        self._chunks: dict[str, dict[bytes, _Stored]] = {}
        self._done: set[str] = set()

    @property
    def models(self) -> list[str]:
        """Models that have a place."""
        return sorted(self._chunks.keys() | self._done)

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Take up the samples in a table."""
        self._done = {key[len(_DONE) :].decode() for key in rows if key.startswith(_DONE)}
        for key, value in rows.items():
            if key.startswith(_SAMPLE):
                stored = msgspec.msgpack.decode(wire.unpack(value), type=_Stored)
                self._chunks.setdefault(stored.model, {})[key] = stored

    def add(
        self,
        sample: wire.Sample,
        spec: ModelSpec | None,
        offset: int,
        index: int,
        *,
        places: int = MAX_CALIBRATING,
    ) -> Taken:
        """Take up a sample.

        The same sample at the same offset replaces itself. What comes after the reference was built is of no use here: that it was built
        is written down, since a crash may come between that and the deletions.

        Args:
            sample: events of a model.
            spec: what its owner says about it, if anything.
            offset: of the message that it came with.
            index: its place there.
            places: how many models that nobody has described there may be.
        """
        if sample.model in self._done:
            return Taken(self._drop(sample.model))
        if spec is None and not self._has_place(sample, places):
            return Taken([], accepted=False)
        stored = _Stored(sample.model, sample.events, sample.rows)
        chunks = self._chunks.setdefault(sample.model, {})
        key = b"%b%020d/%d" % (_SAMPLE, offset, index)
        chunks[key] = stored
        enough = sum(chunk.events for chunk in chunks.values()) >= _wanted(spec)
        if not enough and _size(chunks.values()) < MAX_MODEL_BYTES:
            return Taken([(key, wire.pack(msgspec.msgpack.encode(stored)))])
        record, failure = _built(sample.model, spec, list(chunks.values()))
        self._done.add(sample.model)
        del chunks[key]  # never written
        writes: Writes = [(_DONE + sample.model.encode(), wire.pack(b""))]
        return Taken(writes + self._drop(sample.model), record, failure)

    def finish(self, model: str) -> Writes:
        """Table writes that drop what is left of a model whose reference is known: here, or from a file."""
        writes = self._drop(model)
        if model in self._done:
            self._done.discard(model)
            writes.append((_DONE + model.encode(), None))
        return writes

    def _drop(self, model: str) -> Writes:
        return [(key, None) for key in self._chunks.pop(model, ())]

    def _has_place(self, sample: wire.Sample, places: int) -> bool:
        if sample.model not in self._chunks and len(self.models) >= min(places, MAX_CALIBRATING):
            return False
        held = sum(_size(chunks.values()) for chunks in self._chunks.values())
        return held + len(sample.rows) <= MAX_BYTES


def _size(chunks: Iterable[_Stored]) -> int:
    return sum(len(chunk.rows) for chunk in chunks)


def _wanted(spec: ModelSpec | None) -> int:
    calibrate = None if spec is None else spec.reference.calibrate
    return DEFAULT_EVENTS if calibrate is None else calibrate.events


def _built(
    model: str, spec: ModelSpec | None, chunks: list[_Stored]
) -> tuple[bytes | None, str | None]:
    """The record, or why there is none."""
    try:
        record = _build(model, spec, chunks)
    except Exception as err:  # noqa: BLE001  whatever their events do, one model fails and not the stage
        # A message of the library may quote values of events; one of ours does not.
        return None, str(err) if isinstance(err, DriftlineError) else type(err).__name__
    if len(record) > MAX_RECORD:
        return None, too_large(record)
    return record, None


def _build(model: str, spec: ModelSpec | None, chunks: list[_Stored]) -> bytes:
    events = [event for chunk in chunks for event in decode_sample(model, chunk.rows)]
    events.sort(key=lambda event: event.ts_ms)
    spec = spec or ModelSpec(model=model)
    names = feature_names(events) if spec.features else feature_names(events, MAX_FEATURES)
    columns = from_events(events, names)
    reference = references.build(spec, lambda: [columns], origin=f"the first {len(events)} events")
    return references.dump(reference, spec)
