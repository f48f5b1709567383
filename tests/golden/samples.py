"""One sample of everything that is stored or travels, what it must mean, and how today's code understands it.

A *sample* is bytes as a release wrote them. Its *meaning* is what came out when they were read and used: plain values, so that two releases
can be compared. ``write`` makes the bytes, ``understand`` gives the meaning of any bytes. Inputs are fixed and no clock is read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from monitor import reference as references
from monitor import wire
from monitor.adwin import Adwin
from monitor.charts import Cusum, CusumConfig, PageHinkley
from monitor.detectors import ErrorStream
from monitor.river_adapter import RiverDetector
from monitor.sequential import EDetector, EDetectorConfig
from streams import positions
from streams.chain import RESTARTS
from streams.evaluator import State
from streams.incidents import IncidentStage
from streams.merge import MergeStage
from streams.models import Model
from streams.performance import PerformanceStage
from streams.stage import ChainBreakError, Stage, Step
from streams.topics import Topics
from tests.alerting.builders import judged, labels, verdict
from tests.alerting.builders import spec as alerting_spec
from tests.monitor.builders import HOUR, MINUTE, MODEL, SECOND, START, event, past, reference, spec
from tests.streams.builders import POLICY, Known, Profiling, marks, message

Rows = dict[bytes, bytes]
TOPICS: Final = Topics()
CALIBRATING: Final = "newcomer"


@dataclass(frozen=True)
class Sample:
    """How one kind of bytes is written, and understood."""

    write: Callable[[], bytes]
    understand: Callable[[bytes], Any]


def plain(value: Any) -> Any:
    """As JSON gives it back: bytes as base64."""
    return msgspec.json.decode(
        msgspec.json.encode(
            value, enc_hook=lambda x: x.tolist() if isinstance(x, np.ndarray) else str(x)
        )
    )


def samples(record: bytes) -> Mapping[str, Sample]:
    """All samples. ``record`` is the models' record that the stages work with."""
    found = {f"message-{type(m).__name__.lower()}": _message(m) for m in messages()}
    found |= {f"detector-{name}": sample for name, sample in _detectors()}
    return found | {
        "model": Sample(lambda: record, _model),
        "state-merge": _state(_merge(record), _profiles(record)),
        "state-merge-broken": Sample(lambda: _broken(record), lambda old: _mended(record, old)),
        "state-performance": _state(_performance(record), _labelled()),
        "state-incidents": _state(_incidents(), _judgements()),
        "offset-metadata": Sample(
            lambda: positions._written(positions._Metadata(START, 2)).encode(),
            lambda old: plain(positions._read(old.decode())),
        ),
        "evaluator": Sample(
            lambda: msgspec.json.encode(
                State("cluster", {"labels/0": 7}, {MODEL: {"0": START}}, {MODEL: START}, {MODEL: 5})
            ),
            lambda old: plain(msgspec.json.decode(old, type=State)),
        ),
    }


def new_record() -> bytes:
    """A model's record, made anew."""
    chosen = spec()
    return references.dump(reference(chosen), chosen)


def messages() -> list[wire.Message]:
    """One of each that travels; fields away from their defaults."""
    link = wire.Link(1, 10, 20, 9, 1, 5, 2, 1, START, idle=True, jump="retention removed 5 to 10")
    delta = wire.Delta(MODEL, "7", "carrier=UA", START, "b1", late=True, profile=b"\x01\x02")
    line = wire.Evidence("data_drift", "7", "", "wind", "psi", 0.3, 0.1, START, START + 1, "note")
    told = wire.TimelineEntry(START, "fired")
    incident = wire.Incident(
        id="i1", model=MODEL, version="7", cause="drift", advice="retrain", severity="error", state="firing", title="t", reason="r",
        onset_ms=START, opened_ms=START + 1, updated_ms=START + 2, resolved_ms=START + 3, revision=4, rollback_to="6", retrain_blocked=True,
        acknowledged_by="me", evidence=[line], timeline=[told],
    )  # fmt: skip
    judgement = wire.Verdict(
        "data_drift", "wind", "psi", "breach", 0.3, 0.1, 0.01, 50, START, {"k": 1, "t": "x", "f": 0.5}
    )  # fmt: skip
    return [
        wire.Profiles([link], [delta], [wire.Sample(MODEL, 3, b"rows")]),
        wire.Window(MODEL, "7", "", MINUTE, START, "0:5:1", 6, "b1", 50, b"\x01\x02"),
        wire.LedgerEntry(1, 5, 3, 0, 10, 20, 9, 1, 5, 2, 1, "retention"),
        wire.Verdicts(
            "window", MODEL, "7", "", MINUTE, START, START + 1, 9, 2, [judgement], closes=True
        ),
        wire.Performance(MODEL, "7", "", HOUR, START, 4, 9, 8, 2, True, {"accuracy": 0.75}, 5, 6),
        incident,
        wire.OutboxItem("o1", "slack", "notify", "fired", incident, dry_run=True),
        wire.Delivery("o1", "i1", "slack", "notify", "delivered", 2, START, "200"),
        wire.Command("silence", MODEL, "i1", "me", START, START + 1, "why"),
    ]


def _message(one: wire.Message) -> Sample:
    return Sample(
        lambda: wire.encode(one),
        lambda old: {"kind": type(m := wire.decode(old)).__name__, "fields": plain(m)},
    )


def _model(record: bytes) -> Any:
    chosen, known = references.load(record)
    assert known is not None
    profiles = {name: base64.b64encode(p.to_bytes()).decode() for name, p in known.profiles.items()}
    return plain(
        {"spec": chosen.model_dump(mode="json"), "layout": known.layout.bins_id, "profiles": profiles}
    )  # fmt: skip


def _detectors() -> Iterator[tuple[str, Sample]]:
    k, panes = 3, 60
    rng = np.random.default_rng(11)
    n = np.full((2 * panes, k), 20.0)
    mean = rng.normal(0, 0.2, (2 * panes, k))
    mean[panes + 10 :, 0] += 3
    m2 = np.full((2 * panes, k), 20.0)
    wrong = (mean[:, 0] > 1).astype(float)

    def fed(detector: Any, steps: range) -> list[Any]:
        return [plain(detector.update(at, n[at], mean[at], m2[at])) for at in steps]

    def streamed(detector: Any, steps: range) -> list[Any]:
        return [bool(detector.update(float(wrong[at]))) for at in steps]

    def sample(
        make: Callable[[], Any],
        restore: Callable[[bytes], Any],
        feed: Callable[[Any, range], list[Any]],
    ) -> Sample:
        def write() -> bytes:
            detector = make()
            feed(detector, range(panes))
            snapshot: bytes = detector.snapshot()
            return snapshot

        return Sample(write, lambda old: feed(restore(old), range(panes, 2 * panes)))

    yield "adwin", sample(lambda: Adwin(k), Adwin.restore, fed)
    yield "edetector", sample(lambda: EDetector(k, EDetectorConfig(1e4)), EDetector.restore, fed)
    yield "page-hinkley", sample(lambda: PageHinkley(k), PageHinkley.restore, fed)
    yield "cusum", sample(lambda: Cusum(k, CusumConfig(8.0)), Cusum.restore, fed)
    yield "error-stream", sample(ErrorStream, ErrorStream.restore, streamed)
    yield "river-ddm", sample(lambda: RiverDetector("ddm"), RiverDetector.restore, streamed)


def _state(make: Callable[[], Stage], inputs: list[tuple[str, bytes]]) -> Sample:
    """A stage's table after the first half of its inputs; its meaning is what the second half causes."""
    half = len(inputs) // 2

    def write() -> bytes:
        table: Rows = {}
        stage = make()
        stage.restore(0, [])
        for offset, (topic, value) in enumerate(inputs[:half]):
            _carry_out(stage.advance(topic, 0, offset, value), table)
        return packed(table)

    def understand(old: bytes) -> Any:
        stage = make()
        table = unpacked(old)
        stage.restore(0, table.items())
        said: list[Any] = []
        for offset, (topic, value) in enumerate(inputs[half:], half):
            said += _carry_out(stage.advance(topic, 0, offset, value), table)
        return {"outputs": said, "keys": sorted(map(ascii, table))}

    return Sample(write, understand)


def packed(table: Rows) -> bytes:
    """A table as one value."""
    return msgspec.msgpack.encode([(key, table[key]) for key in sorted(table)])


def unpacked(value: bytes) -> Rows:
    """What ``packed`` was given."""
    return dict(msgspec.msgpack.decode(value, type=list[tuple[bytes, bytes]]))


def _carry_out(steps: Iterable[Step], table: Rows) -> list[Any]:
    said: list[Any] = []
    for step in steps:
        said += [[out.topic, ascii(out.key), _said(out.value)] for out in step.outputs]
        for key, value in step.writes:
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
    return said


def _said(value: bytes) -> Any:
    return plain(wire.decode(value)) if value[:2] == wire.MAGIC else f"{len(value)} bytes"


def _merge(record: bytes) -> Callable[[], Stage]:
    return lambda: MergeStage(TOPICS, 1, Known(Model(*references.load(record))))


def _profiles(record: bytes) -> list[tuple[str, bytes]]:
    """Batches of one source partition over six minutes, with late events and a model that calibrates itself."""
    known = Known(Model(*references.load(record)))
    run = Profiling(known.newest, marks([0]), replace(POLICY, partitions=1))
    rows = past(np.random.default_rng(3), 240, start_ms=START, span_ms=6 * MINUTE).to_pylist()
    log = []
    for i, row in enumerate(rows):
        at = int(row["ts"].timestamp() * 1_000) - 90 * SECOND * (i % 40 == 39)
        features = {"wind": row["wind"] * (1 if i < 150 else 1.6), "carrier": row["carrier"]}
        name = CALIBRATING if i % 20 == 0 else MODEL
        log.append(message(0, i, event(at, model=name, features=features, score=row["score"])))
    return [
        (TOPICS.profiles, wire.encode(profiles))
        for part in range(0, len(log), 12)
        for profiles in run.batch(log[part : part + 12]).profiles[:1]
    ]


def _broken(record: bytes) -> bytes:
    """The table of a detector that has found a gap, and counted it once."""
    table: Rows = {}
    stage = _merge(record)()
    stage.restore(0, [])
    inputs = _profiles(record)
    for offset in (0, 1, 3):  # 2 is missing
        try:
            _carry_out(_kept(stage.advance(*_at(inputs, offset)), table), table)
        except ChainBreakError:
            continue
    return packed(table)


def _mended(record: bytes, old: bytes) -> Any:
    """How often the gap still ends the process, and what is said once it is passed."""
    table, inputs = unpacked(old), _profiles(record)
    for ends in range(RESTARTS + 1):
        stage = _merge(record)()
        stage.restore(0, table.items())
        try:
            said = _carry_out(_kept(stage.advance(*_at(inputs, 3)), table), table)
        except ChainBreakError:
            continue
        return {"ends": ends, "outputs": said, "keys": sorted(map(ascii, table))}
    return "never passed"


def _at(inputs: list[tuple[str, bytes]], offset: int) -> tuple[str, int, int, bytes]:
    return inputs[offset][0], 0, offset, inputs[offset][1]


def _kept(steps: Iterable[Step], table: Rows) -> Iterator[Step]:
    """Steps one by one, so that what comes before an error is carried out."""
    yield from steps


def _performance(record: bytes) -> Callable[[], Stage]:
    chosen, known = references.load(record)
    hourly = chosen.model_copy(
        update={"windows": chosen.windows.model_copy(update={"sizes": (HOUR,)})}
    )
    return lambda: PerformanceStage(TOPICS, 1, Known(Model(hourly, known)))


def _labelled() -> list[tuple[str, bytes]]:
    return [
        (
            TOPICS.performance,
            wire.encode(
                wire.Performance(
                    MODEL, "7", "", HOUR, START + i * HOUR, 400, 500, 400, 80 if i < 14 else 240, True,
                    {"accuracy": 0.8 if i < 14 else 0.4},
                )
            ),
        )
        for i in range(24)
    ]  # fmt: skip


def _incidents() -> Callable[[], Stage]:
    return lambda: IncidentStage(TOPICS, Known(Model(alerting_spec(), None)))


def _judgements() -> list[tuple[str, bytes]]:
    drifted = [judged(verdict(), day=i, closes=True) for i in range(3)]
    clean = [judged(verdict(status="ok"), day=i, closes=True) for i in range(3, 7)]
    wrong = [judged(labels(), day=i, source="performance", closes=True) for i in range(2)]
    return [
        (TOPICS.verdicts, wire.encode(m))
        for m in (drifted[0], wrong[0], drifted[1], wrong[1], drifted[2], *clean)
    ]
