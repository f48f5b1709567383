"""What travels on the internal topics: typed structs, msgpack, zstd, and a schema version in the envelope.

Every message is ``MAGIC | schema version (1 byte) | raw size (4 bytes) | zstd(msgpack)``. Fields may be added
with defaults; a field that changes its meaning raises ``SCHEMA_VERSION``, and an older reader refuses it by name.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from monitor.errors import IncompatibleError
from monitor.targets import ActionName

MAGIC: Final = b"DL"
SCHEMA_VERSION: Final = 1
MAX_RAW_BYTES: Final = 64 << 20  # a decompression bound: no message of ours comes near 64 MiB
_HEADER: Final = struct.Struct(">2sBI")
_ZSTD: Final = pa.Codec("zstd", compression_level=1)  # level 3 saved 4 % more bytes for 2x the time

VerdictKind = Literal[
    "data_quality",
    "data_drift",
    "prediction_drift",
    "concept_drift",
    "performance",
    "service",
    "no_data",
    "canary",
]
VerdictSource = Literal["window", "pane", "performance"]
VerdictStatus = Literal["ok", "breach", "no_data"]
Cause = Literal[
    "pipeline_fault", "benign_shift", "drift", "concept_drift", "bad_release", "outage", "unknown"
]
Advice = Literal["fix_data", "watch", "retrain", "rollback", "page", "investigate"]
IncidentState = Literal["pending", "firing", "resolved"]
Severity = Literal["critical", "error", "warning", "info"]
DeliveryOutcome = Literal[
    "delivered", "refused", "expired", "superseded", "disabled", "unknown", "dry_run"
]
Transition = Literal["fired", "changed", "acknowledged", "escalated", "resolved", "action"]


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What one profiler batch covers of one source partition, as seen from one ``profiles`` partition.

    ``start`` is the position before the batch and ``end`` the position after it, so in one ``profiles`` partition
    the links of a source partition form a chain. ``on_time``, ``late`` and ``calibrating`` count the events
    that this ``profiles`` partition was given; ``events`` and ``dead`` count the whole batch.
    """

    partition: int
    start: int
    end: int
    events: int
    dead: int
    on_time: int
    late: int
    calibrating: int
    watermark_ms: int | None
    idle: bool
    jump: str | None = (
        None  # why ``start`` is not the last ``end``: retention, or an operator's reset
    )


class Delta(msgspec.Struct, frozen=True):
    """The part of one pane's profile that one batch contributes. ``segment`` is ``""`` for the whole model."""

    model: str
    version: str
    segment: str
    pane_ms: int
    bins_id: str
    late: bool
    profile: bytes


class Sample(msgspec.Struct, frozen=True):
    """Raw events of a model that has no reference yet (``columns.encode_sample``), for calibration."""

    model: str
    events: int
    rows: bytes


class Profiles(msgspec.Struct, frozen=True, tag="profiles"):
    """One profiler batch for one partition of ``profiles``; without deltas it is a heartbeat."""

    links: list[Link]
    deltas: list[Delta]
    samples: list[Sample] = []


class Window(msgspec.Struct, frozen=True, tag="window"):
    """A closed window, or a late contribution to one that is closed already.

    ``contribution`` is ``""`` for the window as it closed; a late batch adds a contribution named after its chain link.
    The true counts of a window are the sum over its contributions: a repeat replaces, it never adds.
    """

    model: str
    version: str
    segment: str
    size_ms: int
    start_ms: int
    contribution: str
    revision: int
    bins_id: str
    n: int
    profile: bytes


class LedgerEntry(msgspec.Struct, frozen=True, tag="ledger"):
    """What became of the events of one chain link in one ``profiles`` partition. A repeat replaces, it never adds.

    ``open`` counts the events that this ``profiles`` partition held in panes and unfinished windows once it had applied the message at
    ``offset``: an account by the detector itself, independent of what the profiler and ClickHouse count.
    """

    profiles_partition: int
    offset: int
    open: int
    partition: int
    start: int
    end: int
    events: int
    dead: int
    on_time: int
    late: int
    calibrating: int
    jump: str | None


class Verdict(msgspec.Struct, frozen=True):
    """One statistic of one feature against its limit.

    ``value``, ``limit`` and ``p_value`` are never NaN: ``None`` means not defined. ``onset_ms`` is set where a change point is known.
    """

    kind: VerdictKind
    feature: str
    statistic: str
    status: VerdictStatus
    value: float | None
    limit: float | None
    p_value: float | None
    n: int
    onset_ms: int | None = None
    evidence: dict[str, float | int | str] = {}


class Verdicts(msgspec.Struct, frozen=True, tag="verdicts"):
    """All verdicts of one judged window. ``source`` says who judged; clean windows are sent too, so that incidents can resolve.

    ``closes`` marks the last message of a window end: whoever compares versions and segments need not wait for a later end.
    """

    source: VerdictSource
    model: str
    version: str
    segment: str
    size_ms: int
    start_ms: int
    end_ms: int
    n: int
    revision: int
    verdicts: list[Verdict]
    closes: bool = False


class Performance(msgspec.Struct, frozen=True, tag="performance"):
    """How the labelled predictions of one window did. ``final`` once its labels are due: detectors take each window once."""

    model: str
    version: str
    segment: str
    size_ms: int
    start_ms: int
    revision: int  # labels joined so far: grows, and is a function of the labels alone
    predictions: int
    labelled: int
    errors: int  # wrong predictions (classification)
    final: bool
    metrics: dict[str, float]  # undefined metrics are absent
    label_delay_p50_ms: int | None = None
    label_delay_p95_ms: int | None = None
    intervals: dict[str, tuple[float, float]] = {}  # at 95 %, of the metrics that have one
    classes: list[str] = []
    confusion: list[int] = []  # rows by label and prediction, label by label: classes x classes
    # Of the whole model: how many labels, and errors, the other versions had in this window.
    peers: dict[str, tuple[int, int]] = {}


class Evidence(msgspec.Struct, frozen=True):
    """One line of an incident's story: which statistic of which feature moved, where, and by how much. ``note``: which values."""

    kind: VerdictKind
    version: str
    segment: str
    feature: str
    statistic: str
    value: float | None
    limit: float | None
    start_ms: int
    end_ms: int
    note: str = ""


class TimelineEntry(msgspec.Struct, frozen=True):
    """What happened to an incident, when (event time)."""

    at_ms: int
    what: str


class Incident(msgspec.Struct, frozen=True, tag="incident"):
    """One cause, one page. ``id`` is made of model, version, cause and opening time: never of a score or a severity."""

    id: str
    model: str
    version: str
    cause: Cause
    advice: Advice
    severity: Severity
    state: IncidentState
    title: str
    reason: str
    onset_ms: int
    opened_ms: int
    updated_ms: int
    resolved_ms: int | None
    revision: int
    rollback_to: str | None = None
    retrain_blocked: bool = False
    acknowledged_by: str | None = None
    evidence: list[Evidence] = []
    timeline: list[TimelineEntry] = []
    reopened_ms: int | None = None  # it was over, and came back: then ``onset_ms`` is of this time
    silenced_until_ms: int | None = None  # by an order; silences of the spec are not among them


class OutboxItem(msgspec.Struct, frozen=True, tag="outbox"):
    """Something to send. ``id`` is stable over repeats and retries: it is the idempotency key at the receiver."""

    id: str
    target: str  # a name in the model's spec: the dispatcher resolves address and secret there
    action: str  # "notify", "retrain" or "rollback"
    transition: Transition
    incident: Incident
    dry_run: bool = False  # an action that is recorded and not sent


class Delivery(msgspec.Struct, frozen=True, tag="delivery"):
    """What became of an outbox item. ``detail`` is redacted."""

    id: str
    incident_id: str
    target: str
    action: str
    outcome: DeliveryOutcome
    attempts: int
    at_ms: int
    detail: str = ""


class Command(msgspec.Struct, frozen=True, tag="command", omit_defaults=True):
    """What a person or an API client asks for.

    ``action`` is what they saw when they approved or rejected: where the advice has changed since, the order is void.
    """

    kind: Literal["acknowledge", "silence", "approve", "reject", "rebaseline"]
    model: str
    incident_id: str
    author: str
    at_ms: int
    until_ms: int | None = None
    comment: str = ""
    action: ActionName | None = None


Message = (
    Profiles
    | Window
    | LedgerEntry
    | Verdicts
    | Performance
    | Incident
    | OutboxItem
    | Delivery
    | Command
)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Envelope and compressed body of a message."""
    return pack(_ENCODER.encode(message))


def decode(value: bytes) -> Message:
    """The message in ``value``.

    Raises:
        IncompatibleError: not one of our messages, or of a schema version that this release cannot read.
    """
    try:
        return _DECODER.decode(unpack(value))
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise IncompatibleError(f"not a message of this release: {err}") from err


def pack(body: bytes) -> bytes:
    """``body`` compressed, behind the envelope: used for table values as well."""
    return _HEADER.pack(MAGIC, SCHEMA_VERSION, len(body)) + bytes(
        _ZSTD.compress(body, asbytes=True)
    )


def unpack(value: bytes) -> bytes:
    """The body behind the envelope.

    Raises:
        IncompatibleError: no envelope, another schema version, or a body over ``MAX_RAW_BYTES``.
    """
    if len(value) < _HEADER.size or value[:2] != MAGIC:
        raise IncompatibleError("no Driftline envelope")
    _, version, size = _HEADER.unpack_from(value)
    if version != SCHEMA_VERSION:
        hint = ": a newer release wrote it, run that one" if version > SCHEMA_VERSION else ""
        raise IncompatibleError(
            f"schema version {version}; this release reads {SCHEMA_VERSION}{hint}"
        )
    if size > MAX_RAW_BYTES:
        raise IncompatibleError(f"body of {size} bytes is over the bound of {MAX_RAW_BYTES}")
    try:
        raw: Any = _ZSTD.decompress(value[_HEADER.size :], decompressed_size=size, asbytes=True)
    except OSError as err:
        raise IncompatibleError("damaged body") from err
    return bytes(raw)
