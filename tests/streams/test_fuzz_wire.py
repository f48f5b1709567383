"""Whatever bytes come: rows or a reason in the sink, dead letters or profiles from the profiler, steps from the detector; never an exception."""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from typing import Any

import pyarrow as pa
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from monitor import reference as references
from monitor import wire
from monitor.errors import REJECT_REASONS
from streams.intake import Intake, columns, gather
from streams.merge import MergeStage
from streams.models import Model
from streams.profiling import SourceMessage
from streams.stage import ChainBreakError, read
from streams.topics import Topics
from tests.monitor.builders import MODEL, NOW, START, body, event
from tests.simulation.mutants import in_time, mutants
from tests.streams.builders import PARTITIONS, Known, Profiling, marks, message, model

TOPICS = Topics()
KNOWN = Known(model(MODEL), model("other", segments=[], features={}))
REASONS = {*REJECT_REASONS, "incompatible"}
LABEL = {"id": "p1", "model": "m", "label": 1, "ts": START}


def stream(rows: dict[str, Any], compression: str | None = None) -> bytes:
    """An Arrow IPC stream."""
    table, sink = pa.table(rows), io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


SCORED = {
    "id": ["p1", None],
    "ts": [START, START + 1],
    "model": ["m", "m"],
    "version": ["7", "8"],
    "segments": pa.array([[("c", "UA")], []], pa.map_(pa.string(), pa.string())),
    "prediction": ["1", None],
    "score": [0.5, None],
}
LABELS = (
    body(LABEL),
    body([LABEL, LABEL | {"id": 2, "label": "x"}]),
    stream({name: [value] for name, value in LABEL.items()}),
)
ROWS = (stream(SCORED), stream(SCORED, "zstd"), stream(SCORED, "lz4"))


def stored(topic: str, value: bytes) -> None:
    """The sink's property: what has rows has such as fit their columns, or the message alone is refused."""
    intake = Intake(TOPICS, lambda _model, _bins: None)
    sent = Message(topic=topic, partition=0, offset=0, value=value, timestamp=(1, NOW))
    parcel = in_time(lambda: intake.read(sent))
    assert parcel.reason is None or parcel.reason in REASONS
    for name, having in gather([parcel]).items():
        # What streams.inserts expects, and answers with a dead letter.
        with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
            columns(name, having)


@given(st.binary(max_size=100) | mutants(LABELS))
def test_labels_are_rows_or_have_a_reason(value: bytes) -> None:
    if value:
        stored(TOPICS.labels, value)


@given(st.binary(max_size=100) | mutants(ROWS))
def test_scored_predictions_are_rows_or_have_a_reason(value: bytes) -> None:
    if value:
        stored(TOPICS.scored, value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "wind": VALUES,
                "carrier": VALUES,
            }
        ),
        min_size=1,
        max_size=4,
    ),
    VALUES,
    VALUES,
    st.sampled_from([MODEL, "other", "nobody"]),
)
def test_no_event_stops_the_profiler_or_the_detector(
    features: list[dict[str, Any]], prediction: Any, score: Any, name: str
) -> None:
    events = [
        event(START + i, model=name, features=values, prediction=prediction, score=score, latency_ms=score)
        for i, values in enumerate(features)
    ]  # fmt: skip
    value = json.dumps(events).encode()  # writes NaN and Infinity, as careless clients do
    run = Profiling(KNOWN.newest, marks([0]))
    outcome = in_time(lambda: run.batch([SourceMessage(0, 0, value, {})]))
    dead = sum(letter.events for letter in outcome.dead)
    links = [profiles.links[0] for profiles in outcome.profiles]
    assert outcome.events == dead + sum(x.on_time + x.late + x.calibrating for x in links)
    run.batch([message(0, 1, event(START + 86_400_000))])
    stage = MergeStage(TOPICS, PARTITIONS, KNOWN)
    for offset, made in enumerate(run.outcomes):
        for target, profiles in enumerate(made.profiles):
            assert list(stage.advance(TOPICS.profiles, target, offset, wire.encode(profiles)))


RUN = Profiling(KNOWN.newest, marks([0]))
RUN.batch([message(0, i, event(START + 20_000 * i)) for i in range(4)])
WHOLE = max(RUN.outcomes[0].profiles, key=lambda profiles: len(profiles.deltas))


@given(mutants([wire.unpack(wire.encode(WHOLE)), *(delta.profile for delta in WHOLE.deltas)]), st.integers(0, 3))  # fmt: skip
def test_a_damaged_message_of_profiles_is_a_dead_letter_or_applied(
    damaged: bytes, which: int
) -> None:
    delta = WHOLE.deltas[which % len(WHOLE.deltas)]
    for value in (
        wire.pack(damaged),
        wire.encode(
            wire.Profiles(
                WHOLE.links,
                [wire.Delta(delta.model, delta.version, delta.segment, delta.pane_ms, delta.bins_id, delta.late, damaged)],
            )
        ),
    ):  # fmt: skip
        stage = MergeStage(TOPICS, PARTITIONS, KNOWN)
        in_time(lambda stage=stage, value=value: applied(stage, value))  # type: ignore[misc]  # bound at once


def applied(stage: MergeStage, value: bytes) -> None:
    """Two messages: the damaged one, and one that closes what it opened."""
    later = wire.Link(0, 2**40, 2**40, 0, 0, 0, 0, 0, START + 10_000_000, idle=True, jump="on")
    for offset, sent in enumerate((value, wire.encode(wire.Profiles([later], [])))):
        try:
            list(stage.advance(TOPICS.profiles, 0, offset, sent))
        except ChainBreakError:
            return


@given(st.binary(max_size=64) | mutants([wire.encode(WHOLE)]))
def test_any_stage_reads_a_message_or_none(value: bytes) -> None:
    in_time(lambda: read(value))


def test_a_record_of_another_model_is_no_reason_to_stop() -> None:
    known = KNOWN.models[MODEL]
    record = references.dump(known.reference, known.spec)
    assert Model(*references.load(record)).spec == known.spec
    for wrong in (record[:-1], b"", record + b"x", struct.pack(">I", 7)):
        stored(TOPICS.models, wrong or b"x")
