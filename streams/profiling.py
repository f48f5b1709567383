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
from operator import attrgetter
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor import columnar, wire
from monitor.binning import Codes, Ints
from monitor.columns import OTHER_SEGMENT, Columns, encode_sample
from monitor.counting import Grouping
from monitor.errors import InvalidEventError
from monitor.events import Event, Limits, decode_messages, is_arrow, is_plain
from monitor.kernel import Form, Found, Kernel, Read, nothing
from monitor.panes import SourceMark
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.rows import Rows, coded, distinct
from monitor.spec import ModelSpec
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


class SourceMessage(msgspec.Struct, frozen=True, gc=False):
    """A message of ``predictions``, as it was read. There are thousands in a batch: a dataclass would take ten times as long to make."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _Accepted:
    """The events that are to be counted, ``n`` of them in the order in which they were read.

    Attributes:
        ts_ms: ``(n,)`` the time of each.
        source: ``(n,)`` the source partition of each.
        read: by model, those that were read as columns, and their places.
        decoded: by model, the others, and their places.
    """

    ts_ms: Ints
    source: Codes
    read: Mapping[str, Sequence[tuple[Read, Codes]]]
    decoded: Mapping[str, tuple[Sequence[Event], Codes]]

    def of_model(self) -> Iterator[tuple[str, Codes]]:
        """Each model by name, in order, and the places of its events."""
        for name in sorted({*self.read, *self.decoded}):
            parts = [places for _, places in self.read.get(name, ())]
            if name in self.decoded:
                parts.append(self.decoded[name][1])
            yield name, np.concatenate(parts)

    def rows(self, name: str, features: Iterable[str]) -> Iterator[Rows]:
        """The events of a model as columns."""
        for read, places in self.read.get(name, ()):
            yield Rows.of_read(read, places)
        if name in self.decoded:
            yield Rows.of_events(*self.decoded[name], features)

    def events(self, name: str) -> Sequence[Event]:
        """The events of a model that are never read as columns, as it has no reference."""
        return self.decoded[name][0]


class Reader:
    """Reads batches as columns: plain JSON by the kernel, and Arrow. Mutable: it remembers the models that it met, as the kernel has to know them beforehand."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._kernel = Kernel({})

    def read(
        self,
        messages: Sequence[SourceMessage],
        newest: Callable[[str], Model | None],
        limits: Limits,
        now_ms: int,
    ) -> Found:
        """What can be read so; models of which something is new the kernel does not know any more."""
        known = {name: model for name, model in self._models.items() if newest(name) is model}
        if len(known) < len(self._models):
            self._know(known)
        values = _plain_values(messages)
        found = self._kernel.read(values, limits, now_ms=now_ms)
        arrow = [b""] * len(messages)
        for i in np.flatnonzero(found.rows_of == 0).tolist():
            value = messages[i].value or b""
            if is_arrow(value, messages[i].headers) and len(value) <= limits.message_bytes:
                arrow[i] = value
        if not any(arrow):
            return found
        return found + columnar.read(arrow, lambda name: _form(newest(name)), limits, now_ms=now_ms)

    def learn(self, names: Iterable[str], newest: Callable[[str], Model | None]) -> None:
        """Remember these models, of which events were decoded."""
        met = {
            name: model
            for name in names
            if name not in self._models
            and (model := newest(name)) is not None
            and model.reference is not None
        }
        if met:
            self._know(self._models | met)

    def _know(self, models: dict[str, Model]) -> None:
        self._models = models
        forms = ((name, _form(model)) for name, model in models.items())
        self._kernel = Kernel({name: form for name, form in forms if form is not None})


def _plain_values(messages: Sequence[SourceMessage]) -> list[bytes]:
    """The value of each message; of one that is no plain JSON, or has none, no bytes."""
    values = list(map(_VALUE, messages))
    if None not in values and not any(map(_HEADERS, messages)):
        return values
    return [
        (message.value or b"") if not message.headers or is_plain(message.headers) else b""
        for message in messages
    ]


def _form(model: Model | None) -> Form | None:
    """What its events look like; ``None`` without a reference, as nobody knows then."""
    if model is None or model.reference is None:
        return None
    reference = model.reference
    return Form(reference.layout, list(reference.segments), bool(model.spec.labels.join_key))


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
    reader: Reader | None = None,
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
        reader: saves time from the second batch on; the outcome is the same without it.

    Raises:
        TooManyProfilesError: halve the batch; a single message has to be refused.
    """
    newest = _frozen(newest)
    counts = {partition: _Counts() for partition in marks}
    dead: list[DeadLetter] = []
    accepted = _accepted(messages, counts, dead, newest, policy, known_models, now_ms, refusal, reader)  # fmt: skip
    late, watermarks = _lateness(accepted, marks, newest)
    deltas: list[list[wire.Delta]] = [[] for _ in range(policy.partitions)]
    samples: list[list[wire.Sample]] = [[] for _ in range(policy.partitions)]
    scored: list[tuple[str, bytes]] = []
    for name, places in accepted.of_model():
        target = partition_of(name, policy.partitions)
        model = newest(name)
        source, is_late = accepted.source[places], late[places]
        if model is None or model.reference is None:
            samples[target].append(_sample(name, accepted.events(name)))
            _count(counts, source, "calibrating", target, policy)
            scored += _scored(name, [(rows, []) for rows in accepted.rows(name, ())])
            continue
        parts = [
            (rows, _segments(model.reference, rows.columns))
            for rows in accepted.rows(name, model.reference.layout.features)
        ]
        deltas[target] += _deltas(name, model.spec, model.reference, parts, late)
        if sum(len(delta.profile) for delta in deltas[target]) > MAX_PROFILE_BYTES:
            raise TooManyProfilesError(f"over {MAX_PROFILE_BYTES} bytes for one message")
        _count(counts, source[is_late], "late", target, policy)
        _count(counts, source[~is_late], "on_time", target, policy)
        scored += _scored(name, parts)
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


def _sample(name: str, events: Sequence[Event]) -> wire.Sample:
    """The first events, as many as fit."""
    chosen = events[:SAMPLE_EVENTS]
    while len(rows := encode_sample(chosen)) > SAMPLE_BYTES and len(chosen) > 1:
        chosen = chosen[: len(chosen) // 2]
    return wire.Sample(name, len(chosen), rows)


def _accepted(
    messages: Sequence[SourceMessage],
    counts: Mapping[int, _Counts],
    dead: list[DeadLetter],
    newest: Callable[[str], Model | None],
    policy: Policy,
    known_models: int,
    now_ms: int,
    refusal: str | None,
    reader: Reader | None,
) -> _Accepted:
    """Events that are to be counted; the others are noted as dead, by message."""
    reader = reader or Reader()
    # What is refused is decoded all the same: its events are counted.
    found = reader.read(messages, newest, policy.limits, now_ms) if refusal is None else nothing(len(messages))  # fmt: skip
    partition = np.fromiter(map(_PARTITION, messages), dtype=np.intp, count=len(messages))
    for p in np.unique(partition).tolist():
        counts[p].events += int(found.rows_of[partition == p].sum())
    left = np.flatnonzero(found.rows_of == 0).tolist()
    plain = [(messages[i].value, messages[i].headers) for i in left]
    aliases = aliases_of(newest)
    decoded = decode_messages(plain, policy.limits, now_ms=now_ms, aliases=aliases)
    new_models: set[str] = set()
    events: list[Event] = []
    came_in: list[int] = []
    for i, outcomes in zip(left, decoded, strict=True):
        message = messages[i]
        if refusal is not None:
            outcomes = [InvalidEventError("too_large", refusal)] * len(outcomes)
        rejected: list[InvalidEventError] = []
        for outcome in outcomes:
            if isinstance(outcome, Event):
                refused = _refused(outcome.model, newest, policy, known_models, new_models)
                if refused is None:
                    events.append(outcome)
                    came_in.append(i)
                    continue
                outcome = refused
            rejected.append(outcome)
        count = counts[message.partition]
        count.events += len(outcomes)
        if rejected:
            count.dead += len(rejected)
            dead.append(DeadLetter(message, rejected[0], len(rejected)))
    by_model = _by_model(events)
    reader.learn(by_model, newest)
    # A message was read as a whole by one way or the other: the order of messages is that of all events.
    message_of = np.concatenate((found.message, np.array(came_in, dtype=np.intp)))
    order = np.argsort(message_of, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ts_ms = np.fromiter((event.ts_ms for event in events), dtype=np.int64, count=len(events))
    return _Accepted(
        np.concatenate((found.ts_ms, ts_ms))[order],
        partition[message_of[order]],
        {
            name: [(read, place[read.row]) for read in reads]
            for name, reads in found.of_model.items()
        },
        {
            name: ([events[i] for i in index.tolist()], place[len(found.message) + index])
            for name, index in by_model.items()
        },
    )


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
    accepted: _Accepted, marks: Mapping[int, SourceMark], newest: Callable[[str], Model | None]
) -> tuple[Bools, dict[int, int]]:
    """Which rows are late, and each source partition's new watermark.

    A row is late if its pane had closed by the watermark of its own partition when its turn came: a function of the log alone.
    A model that is calibrating has no panes.
    """
    ts, source = accepted.ts_ms, accepted.source
    closes = np.full(len(ts), _NEVER, dtype=np.int64)
    for name, index in accepted.of_model():
        model = newest(name)
        if model is not None and model.reference is not None:
            pane = model.spec.windows.pane
            closes[index] = ts[index] // pane * pane + pane + model.spec.windows.lateness
    late = np.zeros(len(ts), dtype=bool)
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
    name: str, spec: ModelSpec, reference: Reference, parts: Sequence[_Part], late: Bools
) -> Iterator[wire.Delta]:
    """One delta per (version, segment, pane, late) that occurs."""
    found: dict[_Key, Profile] = {}
    for rows, segments in parts:
        for key, profile in _profiles(spec, reference, rows, segments, late[rows.place]):
            found[key] = found[key] + profile if key in found else profile
    bins_id = reference.layout.bins_id
    for (version, segment, start_ms, is_late), profile in found.items():
        yield wire.Delta(name, version, segment, start_ms, bins_id, is_late, profile.to_bytes())


def _profiles(
    spec: ModelSpec,
    reference: Reference,
    rows: Rows,
    segments: Sequence[_Segments],
    late: Bools,
) -> Iterator[tuple[_Key, Profile]]:
    panes, pane = distinct(rows.columns.ts_ms // spec.windows.pane)
    panes *= spec.windows.pane
    cell = (rows.version * len(panes) + pane) * 2 + late
    whole = ([""], np.zeros(len(cell), dtype=np.intp))
    divided = [
        (names, *distinct(cell * len(names) + code))
        for names, code in (whole, *((of.names, of.code) for of in segments))
    ]
    groupings = [Grouping(group, len(cells)) for _, cells, group in divided]
    if sum(grouping.groups for grouping in groupings) * reference.layout.size > MAX_CELLS:
        raise TooManyProfilesError(f"over {MAX_CELLS} numbers in the profiles of one model")
    grouped = rows.columns.profiles(reference.layout, groupings)
    for (names, cells, _), profiles in zip(divided, grouped, strict=True):
        place = np.unravel_index(cells, (len(rows.versions), len(panes), 2, len(names)))
        for v, start, is_late, s, profile in zip(
            *map(np.ndarray.tolist, place), profiles, strict=True
        ):
            yield (rows.versions[v], names[s], int(panes[start]), bool(is_late)), profile


@dataclass(frozen=True, slots=True, eq=False)
class _Segments:
    """A declared dimension: the values that the reference has, then all others, and ``(n,)`` which of them each row has."""

    dimension: str
    values: Sequence[str]
    code: Codes

    @property
    def names(self) -> Sequence[str]:
        """As windows carry them."""
        return [f"{self.dimension}={value}" for value in self.values]


def _segments(reference: Reference, columns: Columns) -> list[_Segments]:
    return [
        _Segments(dimension, (*values, OTHER_SEGMENT), columns.segment_codes(dimension, values))
        for dimension, values in reference.segments.items()
    ]


def _scored(name: str, parts: Sequence[_Part]) -> Iterator[tuple[str, bytes]]:
    """Rows for the labels to join, as Arrow IPC. An event without id cannot be joined and is left out."""
    batch = pa.concat_batches([_scored_rows(name, *part) for part in parts])
    if len(parts) > 1:
        batch = batch.take(np.argsort(np.concatenate([rows.place for rows, _ in parts])))
    if batch.column("id").null_count:
        batch = batch.filter(batch.column("id").is_valid())
    for piece in _pieces(batch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCORED_SCHEMA) as writer:
            writer.write_batch(piece)
        yield name, sink.getvalue().to_pybytes()


def _scored_rows(name: str, rows: Rows, segments: Sequence[_Segments]) -> pa.RecordBatch:
    n, dimensions = len(rows.place), len(segments)
    values = [pa.array(of.values, pa.string()).take(pa.array(of.code)) for of in segments]
    # Row by row: the columns behind each other, each taken in turns.
    turns = np.arange(n * dimensions).reshape(dimensions, n).T.ravel()
    items = pa.concat_arrays(values).take(pa.array(turns)) if values else pa.array([], pa.string())
    keys = pa.array([of.dimension for of in segments] * n, pa.string())
    offsets = np.arange(n + 1, dtype=np.int32) * dimensions
    return pa.record_batch(
        [
            rows.ids,
            pa.array(rows.columns.ts_ms),
            pa.repeat(pa.scalar(name), n),
            pa.array(rows.versions, pa.string()).take(pa.array(rows.version)),
            pa.MapArray.from_arrays(offsets, keys, items),
            rows.predictions,
            rows.scores,
        ],
        schema=SCORED_SCHEMA,
    )


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in order, halved until each part fits into a message."""
    rows = batch.num_rows
    if rows > 1 and (rows > SCORED_ROWS or batch.nbytes > SCORED_BYTES):
        yield from _pieces(batch.slice(0, rows // 2))
        yield from _pieces(batch.slice(rows // 2))
    elif rows:
        yield batch


def _by_model(events: Sequence[Event]) -> dict[str, Codes]:
    names, code = coded([event.model for event in events])
    order = np.argsort(code, kind="stable")
    cuts = np.searchsorted(code[order], np.arange(1, len(names)))
    return dict(zip(names, np.split(order, cuts), strict=True)) if names else {}


def _count(
    counts: Mapping[int, _Counts], source: Codes, fate: str, target: int, policy: Policy
) -> None:
    for partition, n in zip(*np.unique(source, return_counts=True), strict=True):
        counts[int(partition)].add(fate, target, policy.partitions, int(n))


def _ends(messages: Sequence[SourceMessage], marks: Mapping[int, SourceMark]) -> dict[int, int]:
    ends = {partition: mark.position for partition, mark in marks.items()}
    last = dict(zip(map(_PARTITION, messages), map(_OFFSET, messages), strict=True))
    return ends | {partition: offset + 1 for partition, offset in last.items()}


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


_Part: TypeAlias = tuple[Rows, Sequence[_Segments]]
_Key: TypeAlias = tuple[str, str, int, bool]  # version, segment, start of the pane, late
# Of ten thousand messages at once: a loop in Python takes several times as long.
_PARTITION, _OFFSET, _VALUE, _HEADERS = map(attrgetter, ("partition", "offset", "value", "headers"))
_NONE: Final = -(2**62)
_NEVER: Final = 2**63 - 1
