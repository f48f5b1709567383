"""One batch of the ``predictions`` topic to what the profiler sends: pure, so that it can be proven without a broker.

::

    messages ──► events ──► late? ──► columns per model ──► profiles per (version, segment, pane) ──► one message per partition of ``profiles``
                   │                                                                                   (with the chain links)
                   └──► dead letters                    └──► scored rows, for the labels to join

No state survives a batch but the marks: position and watermark of each source partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor import wire
from monitor.binning import Codes, Ints
from monitor.columns import OTHER_SEGMENT, Columns, encode_sample, from_events
from monitor.counting import Grouping
from monitor.errors import InvalidEventError
from monitor.events import Aliases, Event, Limits, decode_message
from monitor.panes import SourceMark
from monitor.reference import Reference
from monitor.spec import ModelSpec
from monitor.tables import value_text
from streams.models import Model, aliases_of
from streams.topics import partition_of

Bools: TypeAlias = npt.NDArray[np.bool_]

SAMPLE_EVENTS: Final = (
    5_000  # of a model without a reference, per batch: what a reference needs by default
)
SAMPLE_BYTES: Final = (
    2_000_000  # before compression, which takes out the names: the message keeps below 1 MiB
)
MAX_CELLS: Final = 16 << 20  # numbers in all profiles of one model: 128 MiB while they are counted
MAX_PROFILE_BYTES: Final = wire.MAX_RAW_BYTES // 2  # of one message, before it is compressed
SCORED_ROWS: Final = 5_000  # about 400 KB of Arrow
SCORED_BYTES: Final = 800_000
SCORED_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("ts", pa.int64()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("segments", pa.map_(pa.string(), pa.string())),
        ("prediction", pa.string()),
        ("score", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceMessage:
    """A message of ``predictions``, as it was read."""

    partition: int
    offset: int
    value: bytes | None
    headers: Mapping[str, bytes]


class TooManyProfilesError(Exception):
    """The events lie in so many panes, versions and segments that one batch of them takes too much memory: make it smaller."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was rejected; the whole message goes to the dead letters, once."""

    message: SourceMessage
    error: InvalidEventError
    events: int


@dataclass(slots=True)
class Outcome:
    """Everything that one batch causes."""

    profiles: list[wire.Profiles]
    scored: list[tuple[str, bytes]]
    dead: list[DeadLetter]
    marks: dict[int, SourceMark]
    events: int = 0
    late: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the profiler needs to know beside the models."""

    limits: Limits
    partitions: int  # of the detector's topics
    max_models: int
    auto_register: bool


@dataclass(slots=True)
class _Row:
    """An accepted event and where it came from."""

    event: Event
    partition: int


@dataclass(slots=True)
class _Counts:
    """Fates of the events of one source partition."""

    events: int = 0
    dead: int = 0
    # fate -> profiles partition -> events
    fates: dict[str, Ints] = field(default_factory=dict)

    def add(self, fate: str, partition: int, partitions: int, n: int) -> None:
        self.fates.setdefault(fate, np.zeros(partitions, dtype=np.int64))[partition] += n

    def of(self, fate: str, partition: int) -> int:
        counted = self.fates.get(fate)
        return 0 if counted is None else int(counted[partition])


def profile_batch(
    messages: Sequence[SourceMessage],
    marks: Mapping[int, SourceMark],
    newest: Callable[[str], Model | None],
    policy: Policy,
    *,
    now_ms: int,
    known_models: int,
    idle: Iterable[int] = (),
    jumps: Mapping[int, str] | None = None,
    refusal: str | None = None,
) -> Outcome:
    """Profile a batch. Deterministic: a function of the messages, the marks and the models.

    Args:
        messages: in offset order within each source partition.
        marks: positions and watermarks before the batch, of every source partition that this worker holds.
        newest: the model as it is now, or ``None``.
        policy: limits and widths.
        now_ms: the clock, for the limits on ``ts``.
        known_models: how many models there are, for the cap on new ones.
        idle: source partitions with nothing left to read.
        jumps: why a source partition does not start at its mark.
        refusal: why every event is to be refused as too large; ``None``: none is.

    Raises:
        TooManyProfilesError: halve the batch; a single message has to be refused.
    """
    newest = _frozen(newest)
    counts = {partition: _Counts() for partition in marks}
    dead: list[DeadLetter] = []
    read = _read(messages, policy.limits, now_ms, refusal, aliases_of(newest))
    rows = list(_accepted(read, counts, dead, newest, policy, known_models))
    late, watermarks = _lateness(rows, marks, newest)
    deltas: list[list[wire.Delta]] = [[] for _ in range(policy.partitions)]
    samples: list[list[wire.Sample]] = [[] for _ in range(policy.partitions)]
    scored: list[tuple[str, bytes]] = []
    for name, index in _by_model(rows).items():
        target = partition_of(name, policy.partitions)
        model = newest(name)
        chosen = [rows[i] for i in index]
        events = [row.event for row in chosen]
        if model is None or model.reference is None:
            samples[target].append(_sample(name, events))
            _count(counts, chosen, "calibrating", target, policy)
            scored += _scored(name, events, None, None)
            continue
        columns = from_events(events, model.reference.layout.features)
        deltas[target] += _deltas(name, model.spec, model.reference, events, columns, late[index])
        if sum(len(delta.profile) for delta in deltas[target]) > MAX_PROFILE_BYTES:
            raise TooManyProfilesError(f"over {MAX_PROFILE_BYTES} bytes for one message")
        for fate, wanted in (("late", True), ("on_time", False)):
            _count(
                counts,
                [r for r, is_late in zip(chosen, late[index], strict=True) if is_late == wanted],
                fate,
                target,
                policy,
            )
        scored += _scored(name, events, model.reference, columns)
    ends = _ends(messages, marks)
    now_idle = set(idle)
    after = {
        p: SourceMark(ends[p], watermarks.get(p, mark.watermark_ms), p in now_idle)
        for p, mark in marks.items()
    }
    links = [
        [
            _link(p, marks[p], after[p], counts[p], target, (jumps or {}).get(p))
            for p in sorted(marks)
        ]
        for target in range(policy.partitions)
    ]
    return Outcome(
        profiles=[wire.Profiles(links[t], deltas[t], samples[t]) for t in range(policy.partitions)],
        scored=scored,
        dead=dead,
        marks=after,
        events=sum(c.events for c in counts.values()),
        late=int(late.sum()),
    )


def _frozen(newest: Callable[[str], Model | None]) -> Callable[[str], Model | None]:
    """The models as they are for one batch: a live registry may change between two questions."""
    known: dict[str, Model | None] = {}

    def once(name: str) -> Model | None:
        if name not in known:
            known[name] = newest(name)
        return known[name]

    return once


def _read(
    messages: Sequence[SourceMessage],
    limits: Limits,
    now_ms: int,
    refusal: str | None,
    aliases: Aliases,
) -> Iterator[tuple[SourceMessage, Sequence[Event | InvalidEventError]]]:
    for message in messages:
        outcomes = decode_message(
            message.value, message.headers, limits, now_ms=now_ms, aliases=aliases
        )
        if refusal is not None:
            yield message, [InvalidEventError("too_large", refusal)] * len(outcomes)
        else:
            yield message, outcomes


def _sample(name: str, events: Sequence[Event]) -> wire.Sample:
    """The first events, as many as fit."""
    chosen = events[:SAMPLE_EVENTS]
    while len(rows := encode_sample(chosen)) > SAMPLE_BYTES and len(chosen) > 1:
        chosen = chosen[: len(chosen) // 2]
    return wire.Sample(name, len(chosen), rows)


def _accepted(
    read: Iterable[tuple[SourceMessage, Sequence[Event | InvalidEventError]]],
    counts: Mapping[int, _Counts],
    dead: list[DeadLetter],
    newest: Callable[[str], Model | None],
    policy: Policy,
    known_models: int,
) -> Iterator[_Row]:
    """Events that are to be counted; the others are noted as dead, by message."""
    new_models: set[str] = set()
    for message, outcomes in read:
        rejected: list[InvalidEventError] = []
        for outcome in outcomes:
            if isinstance(outcome, Event):
                refused = _refused(outcome.model, newest, policy, known_models, new_models)
                if refused is None:
                    yield _Row(outcome, message.partition)
                    continue
                outcome = refused
            rejected.append(outcome)
        counts[message.partition].events += len(outcomes)
        counts[message.partition].dead += len(rejected)
        if rejected:
            dead.append(DeadLetter(message, rejected[0], len(rejected)))


def _refused(
    name: str,
    newest: Callable[[str], Model | None],
    policy: Policy,
    known_models: int,
    new: set[str],
) -> InvalidEventError | None:
    if name in new or newest(name) is not None:
        return None
    if not policy.auto_register:
        return InvalidEventError("unknown_model", "no spec, and automatic registration is off")
    if known_models + len(new) >= policy.max_models:
        return InvalidEventError("unknown_model", f"there are {policy.max_models} models already")
    new.add(name)
    return None


def _lateness(
    rows: Sequence[_Row], marks: Mapping[int, SourceMark], newest: Callable[[str], Model | None]
) -> tuple[Bools, dict[int, int]]:
    """Which rows are late, and each source partition's new watermark.

    A row is late if its pane had closed by the watermark of its own partition when its turn came: a function of the log alone.
    A model that is calibrating has no panes.
    """
    ts = np.fromiter((row.event.ts_ms for row in rows), dtype=np.int64, count=len(rows))
    source = np.fromiter((row.partition for row in rows), dtype=np.int64, count=len(rows))
    closes = np.full(len(rows), _NEVER, dtype=np.int64)
    for name, index in _by_model(rows).items():
        model = newest(name)
        if model is not None and model.reference is not None:
            pane = model.spec.windows.pane
            closes[index] = ts[index] // pane * pane + pane + model.spec.windows.lateness
    late = np.zeros(len(rows), dtype=bool)
    watermarks: dict[int, int] = {}
    for partition in np.unique(source):
        mine = np.flatnonzero(source == partition)
        start = marks[int(partition)].watermark_ms
        before = np.maximum.accumulate(
            np.concatenate(([_NONE if start is None else start], ts[mine]))
        )
        late[mine] = closes[mine] <= before[:-1]
        watermarks[int(partition)] = int(before[-1])
    return late, watermarks


def _deltas(
    name: str,
    spec: ModelSpec,
    reference: Reference,
    events: Sequence[Event],
    columns: Columns,
    late: Bools,
) -> Iterator[wire.Delta]:
    """One delta per (version, segment, pane, late) that occurs."""
    versions, version = np.unique(
        np.array([event.version for event in events], dtype=object), return_inverse=True
    )
    pane = columns.ts_ms // spec.windows.pane * spec.windows.pane
    bins_id = reference.layout.bins_id
    divided = [
        (
            segments,
            *np.unique(
                np.stack((version, pane, late.astype(np.int64), code)), axis=1, return_inverse=True
            ),
        )
        for segments, code in _segment_codes(reference, columns)
    ]
    groupings = [Grouping(group.ravel(), cells.shape[1]) for _, cells, group in divided]
    if sum(grouping.groups for grouping in groupings) * reference.layout.size > MAX_CELLS:
        raise TooManyProfilesError(f"over {MAX_CELLS} numbers in the profiles of one model")
    grouped = columns.profiles(reference.layout, groupings)
    for (segments, cells, _), profiles in zip(divided, grouped, strict=True):
        for (v, start, is_late, s), profile in zip(cells.T.tolist(), profiles, strict=True):
            yield wire.Delta(
                name,
                str(versions[v]),
                segments[s],
                start,
                bins_id,
                bool(is_late),
                profile.to_bytes(),
            )


def _segment_codes(reference: Reference, columns: Columns) -> Iterator[tuple[Sequence[str], Codes]]:
    """Segment names and the code of each row: the whole model first, then each declared dimension."""
    yield [""], np.zeros(columns.n, dtype=np.intp)
    for dimension, values in reference.segments.items():
        index = {value: i for i, value in enumerate(values)}
        codes = np.array(
            [index.get(v, len(values)) for v in columns.segment_values(dimension)], dtype=np.intp
        )
        yield [f"{dimension}={value}" for value in (*values, OTHER_SEGMENT)], codes


def _scored(
    name: str, events: Sequence[Event], reference: Reference | None, columns: Columns | None
) -> Iterator[tuple[str, bytes]]:
    """Rows for the labels to join, as Arrow IPC. An event without id cannot be joined and is left out."""
    keep = [i for i, event in enumerate(events) if event.id is not None]
    segments: list[list[tuple[str, str]]] = [[] for _ in events]
    if reference is not None and columns is not None:
        for dimension in reference.segments:
            for i, value in enumerate(columns.segment_values(dimension)):
                segments[i].append(
                    (dimension, reference.segment_of(dimension, value).partition("=")[2])
                )
    batch = pa.record_batch(
        [
            pa.array([events[i].id for i in keep], pa.string()),
            pa.array([events[i].ts_ms for i in keep], pa.int64()),
            pa.array([name] * len(keep), pa.string()),
            pa.array([events[i].version for i in keep], pa.string()),
            pa.array([segments[i] for i in keep], SCORED_SCHEMA.field("segments").type),
            pa.array([_prediction(events[i].prediction) for i in keep], pa.string()),
            pa.array([events[i].score for i in keep], pa.float64()),
        ],
        schema=SCORED_SCHEMA,
    )
    for piece in _pieces(batch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCORED_SCHEMA) as writer:
            writer.write_batch(piece)
        yield name, sink.getvalue().to_pybytes()


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in order, halved until each part fits into a message."""
    rows = batch.num_rows
    if rows > 1 and (rows > SCORED_ROWS or batch.nbytes > SCORED_BYTES):
        yield from _pieces(batch.slice(0, rows // 2))
        yield from _pieces(batch.slice(rows // 2))
    elif rows:
        yield batch


def _prediction(value: object) -> str | None:
    """Text to compare labels with; what is no class and no number (a list of probabilities) has none."""
    try:
        return value_text(value)
    except ValueError:
        return None


def _by_model(rows: Sequence[_Row]) -> dict[str, Codes]:
    index: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        index.setdefault(row.event.model, []).append(i)
    return {name: np.array(index[name], dtype=np.intp) for name in sorted(index)}


def _count(
    counts: Mapping[int, _Counts], rows: Iterable[_Row], fate: str, target: int, policy: Policy
) -> None:
    for row in rows:
        counts[row.partition].add(fate, target, policy.partitions, 1)


def _ends(messages: Iterable[SourceMessage], marks: Mapping[int, SourceMark]) -> dict[int, int]:
    ends = {partition: mark.position for partition, mark in marks.items()}
    for message in messages:
        ends[message.partition] = message.offset + 1
    return ends


def _link(
    partition: int,
    before: SourceMark,
    after: SourceMark,
    counts: _Counts,
    target: int,
    jump: str | None,
) -> wire.Link:
    return wire.Link(
        partition=partition,
        start=before.position,
        end=after.position,
        events=counts.events,
        dead=counts.dead,
        on_time=counts.of("on_time", target),
        late=counts.of("late", target),
        calibrating=counts.of("calibrating", target),
        watermark_ms=after.watermark_ms,
        idle=after.idle,
        jump=jump,
    )


_NONE: Final = -(2**62)
_NEVER: Final = 2**63 - 1
