from __future__ import annotations

import json
import logging
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY
from typing_extensions import override

from monitor import metrics, store, wire
from monitor.clickhouse import RefusedError
from monitor.errors import TransientError
from monitor.settings import ClickHouseSettings, KafkaSettings, Settings, SinkSettings
from monitor.spec import parse_spec
from monitor.store import Store
from monitor.tables import TableName
from streams import models, sink, wiring
from streams import topics as topics_
from streams.deadletter import Cap
from streams.inserts import KnownLayouts, insert_token, store_parcels
from streams.intake import Intake, Parcel
from streams.models import Model, aliases_of
from streams.registry import Registry
from streams.supervisor import free_port
from streams.topics import Topics
from tests.monitor.stored import DAY, MODEL, START, endpoint, fill
from tests.streams.builders import Known, model
from tests.streams.threads import in_thread
from tests.streams.waiting import wait_until

TOPICS = Topics("t.")
NOW = 1_700_000_000_000
KEYED = Model(
    parse_spec({"model": MODEL, "labels": {"join_key": ["request_id", "ce-id"]}}, origin="test"),
    None,
)


def message(
    value: bytes | str | dict[str, Any] | list[Any] | None,
    *,
    topic: str = TOPICS.labels,
    partition: int = 0,
    offset: int = 0,
) -> Message:
    if isinstance(value, dict | list):
        value = json.dumps(value)
    body = value.encode() if isinstance(value, str) else value
    return Message(topic=topic, partition=partition, offset=offset, value=body, timestamp=(1, NOW))


def read(value: bytes | str | dict[str, Any] | list[Any] | None, **place: Any) -> Parcel:
    return Intake(TOPICS, lambda _model, _bins: None).read(message(value, **place))


def label(**changed: Any) -> dict[str, Any]:
    return {"id": "p1", "model": "m", "label": 1, "ts": 1_359_676_800_000, **changed}


def ipc(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return bytes(out.getvalue())


def scored(n: int = 3, **changed: Any) -> pa.Table:
    columns = {
        "id": [f"p{i}" for i in range(n)],
        "ts": [START + i for i in range(n)],
        "model": ["m"] * n,
        "version": ["7"] * n,
        "segments": pa.array([[("carrier", "UA")]] * n, pa.map_(pa.string(), pa.string())),
        "prediction": ["1.0"] * n,
        "score": [0.5] * n,
    }
    return pa.table({**columns, **changed})


GOOD = ("m", 1_359_676_800_000, "p1", "1", 0)


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (label(), [GOOD]),
        (label(label=True), [GOOD]),
        (label(label="1"), [GOOD]),
        (label(label=1.0), [GOOD]),
        (label(ts="2013-02-01T00:00:00Z"), [GOOD]),
        (label(unknown="field"), [GOOD]),
        (label(ts=None), [("m", NOW, "p1", "1", 0)]),
        ([label(), label(id=2)], [GOOD, ("m", 1_359_676_800_000, "2", "1", 0)]),
        (ipc(pa.table({k: [v] for k, v in label().items()})), [GOOD]),
    ],
)
def test_a_label_is_read_in_every_form(value: Any, rows: list[Any]) -> None:
    parcel = read(value)
    assert parcel.rows["labels"] == rows
    assert [row[3:] for row in parcel.rows["arrivals"]] == [row[:3] for row in rows]
    assert parcel.reason is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("not json", "not_json"),
        ("[{]", "not_json"),
        (b"\xff\xff\xff\xff broken", "not_json"),
        (b"[" * 200_000, "not_json"),
        (b'[{"id":"\xff"}]', "not_json"),
        ({"id": "p1", "model": "m"}, "missing_field"),
        ({"id": "p1", "label": 1}, "missing_field"),
        ({"model": "m", "label": 1}, "missing_field"),
        (label(label=None), "missing_field"),
        (label(label=[1]), "wrong_type"),
        (label(label="x" * 300), "wrong_type"),
        (label(id=""), "wrong_type"),
        (label(id=["p1"]), "wrong_type"),
        (label(ts="yesterday"), "bad_timestamp"),
        (label(ts="2013-02-01T00:00:00"), "bad_timestamp"),
        (label(ts=-1), "bad_timestamp"),
        (label(ts=NOW + 3_600_000), "future_timestamp"),
    ],
)
def test_a_bad_label_has_a_reason_and_no_rows(value: Any, reason: str) -> None:
    parcel = read(value)
    assert (parcel.reason, parcel.rows) == (reason, {})


def test_a_label_may_have_the_join_key_of_its_model_in_place_of_an_id() -> None:
    intake = Intake(TOPICS, lambda _model, _bins: None, aliases_of(Known(KEYED).newest))
    nameless = {name: value for name, value in label(model=MODEL).items() if name != "id"}
    headers: dict[str, str | bytes | None] = {"content-type": b"application/json", "CE_id": b"q"}

    def ids(value: Any) -> list[str]:
        parcel = intake.read(
            Message(topic=TOPICS.labels, value=value, headers=headers, timestamp=(1, NOW))
        )
        return [row[2] for row in parcel.rows.get("labels", ())]

    assert ids(json.dumps(nameless | {"request_id": "r"}).encode()) == ["r"]
    assert ids(json.dumps(nameless).encode()) == ["q"]
    assert ids(json.dumps([nameless, nameless | {"request_id": "r"}]).encode()) == ["r"]
    assert ids(ipc(pa.table({k: [v] for k, v in {**nameless, "request_id": "r"}.items()}))) == ["r"]
    assert ids(json.dumps(nameless | {"model": "other"}).encode()) == []


def test_a_label_that_is_none_is_counted_by_its_reason() -> None:
    counter = metrics.LABELS_REFUSED.labels("missing_field")
    before = counter._value.get()
    read([label(), {"id": "p2"}, {"id": "p3"}])
    assert counter._value.get() == before + 2


def test_the_good_labels_of_an_array_are_kept_when_one_is_bad() -> None:
    parcel = read([label(), {"id": "p2"}, label(id="p3")])
    assert [row[2] for row in parcel.rows["labels"]] == ["p1", "p3"]
    assert parcel.reason == "missing_field"


def arrow_labels(n: int = 1, **changed: Any) -> bytes:
    columns = {"id": [f"p{i}" for i in range(n)], "model": ["m"] * n, "label": [1] * n}
    return ipc(pa.table({**columns, **changed}))


@pytest.mark.parametrize(
    "ts",
    [
        pa.array([NOW], pa.timestamp("ms", "Mars/Phobos")),
        pa.array([NOW], pa.timestamp("ms")),
        pa.array([NOW * 1_000_000 + 7], pa.timestamp("ns", "Asia/Tokyo")),
    ],
)
def test_a_label_in_arrow_has_any_resolution_and_any_zone(ts: pa.Array) -> None:
    parcel = read(arrow_labels(ts=ts))
    assert parcel.rows["labels"] == [("m", NOW, "p0", "1", 0)]
    assert parcel.reason is None


def cut_loose(message: bytes, n: int) -> bytes:
    """The same with the last offset of its ids far behind the end of the message."""
    offsets = struct.pack(f"<{n + 1}i", *range(0, 2 * (n + 1), 2))
    assert message.count(offsets) == 1
    return message.replace(offsets, offsets[:-4] + struct.pack("<i", 2_000_000_000))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (arrow_labels(ts=pa.array([10**15], pa.timestamp("s", "UTC"))), "not_json"),
        (cut_loose(arrow_labels(4), 4), "not_json"),
        (ipc(pa.table({name: pa.nulls(50_000_000) for name in ("id", "model")})), "too_large"),
    ],
)
def test_no_stream_of_labels_stops_the_sink(value: bytes, reason: str) -> None:
    parcel = read(value)
    assert (parcel.reason, parcel.rows) == (reason, {})
    assert read(value, topic=TOPICS.scored).reason == "incompatible"


def test_a_binning_that_nobody_knows_yet_is_asked_for_again() -> None:
    published = Known()
    empty = cast("Store", SimpleNamespace(layout=lambda _bins: None))
    layouts = KnownLayouts(empty, cast("Registry", published))
    later = model(MODEL)
    assert later.reference is not None
    wanted = later.reference.layout
    assert layouts(MODEL, wanted.bins_id) is None
    published.models[MODEL] = later
    assert layouts(MODEL, wanted.bins_id) == wanted
    published.models.clear()
    assert layouts(MODEL, wanted.bins_id) == wanted, "and from then on it is remembered"


def test_a_reason_never_quotes_the_value() -> None:
    parcel = read(label(label={"secret": "hunter2"}))
    assert "hunter2" not in f"{parcel.reason}{parcel.detail}"


def test_scored_rows_become_predictions_and_arrivals() -> None:
    parcel = read(ipc(scored()), topic=TOPICS.scored, partition=2, offset=9)
    (rows, arrived) = (parcel.rows["predictions"], parcel.rows["arrivals"])
    assert isinstance(rows, pa.Table)
    assert isinstance(arrived, pa.Table)
    assert rows.to_pylist()[0]["segments"] == ["carrier=UA"]
    assert rows.to_pylist()[0]["prediction"] == "1"
    first = arrived.to_pylist()[0]
    assert (first["topic"], first["partition"], first["position"], first["id"]) == (
        "scored",
        2,
        9,
        "p0",
    )


def test_a_tombstone_and_a_foreign_message_have_no_rows() -> None:
    assert read(None, topic=TOPICS.incidents).reason is None
    assert read(b"garbage", topic=TOPICS.windows).reason == "incompatible"
    command = wire.encode(wire.Command("acknowledge", "m", "i", "me", 1))
    assert read(command, topic=TOPICS.verdicts).reason == "incompatible"
    window = wire.Window("m", "7", "", DAY, START, "", 1, "nobody", 1, b"")
    assert "nobody knows bins" in read(wire.encode(window), topic=TOPICS.windows).detail
    assert read(b"junk", topic=TOPICS.scored).reason == "incompatible"
    assert read(b"junk", topic=TOPICS.models).reason == "incompatible"


def test_a_token_tells_messages_apart_and_is_stable() -> None:
    parcels = [read(label(), offset=i) for i in range(4)]
    assert insert_token("labels", parcels) == insert_token("labels", list(parcels))
    others = {
        insert_token("labels", parcels),
        insert_token("labels", parcels[:2]),
        insert_token("labels", parcels[1:]),
        insert_token("arrivals", parcels),
        insert_token("labels", [*parcels[:3], read(label(), offset=3, partition=1)]),
    }
    assert len(others) == 5


class Choosy(Store):
    """A store that refuses inserts which hold a certain label, and counts the rows that it took."""

    def __init__(self, bad: str) -> None:
        self.bad, self.took, self.tokens = bad, [], set()

    took: list[tuple[str, int]]
    tokens: set[str]

    @override
    def append(self, name: TableName, rows: pa.Table, *, token: str) -> None:
        if self.bad in rows.column("id").to_pylist():
            raise RefusedError(27)
        assert token not in self.tokens
        self.tokens.add(token)
        self.took.append((name, rows.num_rows))


def test_a_refused_row_is_found_by_halving_and_the_others_are_stored() -> None:
    parcels = [read(label(id=f"p{i}"), offset=i) for i in range(50)]
    target = Choosy("p17")
    refused: list[TableName] = []
    store_parcels(target, parcels, refused=refused.append)
    assert refused == ["labels"]
    assert [p.message.offset() for p in parcels if p.reason] == [17]
    assert sum(n for name, n in target.took if name == "labels") == 49
    assert sum(n for name, n in target.took if name == "arrivals") == 49
    assert len(target.took) < 2 * 2 * 6  # logarithmic


def test_storing_a_batch_again_in_other_cuts_changes_nothing(tmp_path: Path) -> None:
    with endpoint(tmp_path, free_port()) as settings:
        store.migrate(settings)
        target = store.connect(settings)
        parcels = [read(label(id=f"p{i}"), offset=i) for i in range(10)]
        parcels.append(read(ipc(scored()), topic=TOPICS.scored))
        for cut in (len(parcels), 4, 7):
            for part in (parcels[:cut], parcels[cut:]):
                store_parcels(target, part, refused=lambda _: None)
        counted = {
            name: target.link.rows(f"SELECT count() AS n FROM {name} FINAL")[0]["n"]
            for name in ("labels", "predictions", "arrivals")
        }
        assert counted == {"labels": 10, "predictions": 3, "arrivals": 13}
        target.close()


wait_for = partial(wait_until, timeout_s=25.0)


@contextmanager
def running(settings: Settings) -> Iterator[list[BaseException]]:
    """The sink in a thread, started again after a transient error as its process would be."""
    ended: list[BaseException] = []

    def main(stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                sink.run(settings, stop)
            except TransientError:
                stop.wait(0.3)
            except BaseException as err:
                ended.append(err)
                raise

    with in_thread(main, stop_s=20):
        yield ended


def setting(broker: str, clickhouse_: ClickHouseSettings, prefix: str) -> Settings:
    return Settings(
        kafka=KafkaSettings(bootstrap=broker, topic_prefix=prefix, session_timeout_s=6),
        clickhouse=clickhouse_,
        sink=SinkSettings(batch_wait_s=0.2),
    )


def count(target: Store, table: str) -> int:
    try:
        return int(target.link.rows(f"SELECT count() AS n FROM {table} FINAL")[0]["n"])
    except TransientError:
        return -1


class Buried:
    """Takes letters, as a broker would, and keeps their reasons."""

    def __init__(self) -> None:
        self.reasons: list[bytes] = []

    def produce(self, *_: Any, headers: Any, **__: Any) -> None:
        self.reasons.append(dict(headers)["driftline.error.reason"])

    def poll(self, _: float) -> int:
        return 0

    flush = poll


def told(name: str) -> float:
    return REGISTRY.get_sample_value(f"driftline_{name}") or 0.0


def test_how_late_a_window_is_stored_is_told_of_those_that_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Intake, "_window_rows", lambda *_: [])
    before = told("window_delay_seconds_count"), told("window_delay_seconds_sum")
    storing = sink_of(Buried(), clock=lambda: 100.0)
    for start_ms, contribution in ((60_000, ""), (80_000, ""), (90_000, "late")):
        window = wire.Window("m", "1", "", 10_000, start_ms, contribution, 1, "b", 0, b"")
        storing._parcels.append(read(wire.encode(window), topic=TOPICS.windows))
    storing._tell_delays()
    after = told("window_delay_seconds_count"), told("window_delay_seconds_sum")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 30 + 10]
    assert told("newest_window_end_timestamp_seconds") == 90
    storing._parcels = storing._parcels[:1]
    storing._tell_delays()
    assert told("newest_window_end_timestamp_seconds") == 90, "an older one is not newer"


def test_a_flood_of_bad_labels_sends_letters_up_to_the_cap() -> None:
    buried = Buried()
    burying = sink_of(buried)
    burying._parcels = [*(read(b"not json") for _ in range(20)), read(label(ts="never"))]
    burying._bury()
    assert Counter(buried.reasons) == {b"not_json": 5, b"bad_timestamp": 1}


def test_windows_are_rolled_up_now_and_then_and_the_rest_after_the_next_batch() -> None:
    answers: list[bool | Exception] = [False, True, TransientError("it is away"), True]
    asked: list[bool] = []

    def roll(*, enough: Callable[[], bool], every_s: int) -> bool:
        asked.append(enough())
        assert 0 < every_s < sink.SETTLE_S, "one that another sink has just done is left out"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    rolling = sink_of(Buried())
    rolling._target = cast("Store", SimpleNamespace(rollups=SimpleNamespace(roll=roll)))
    rolling._roll()
    assert asked == []
    for rounds, done in ((2, 2), (1, 3), (1, 4)):
        rolling._roll_at_s = 0.0
        for _ in range(rounds + 1):
            rolling._roll()
        assert len(asked) == done
    assert not any(asked)


def sink_of(buried: Buried, clock: Callable[[], float] = lambda: 0.0) -> sink.Sink:
    return sink.Sink(
        cast("Consumer", None),
        cast("Producer", buried),
        cast("Store", None),
        Intake(TOPICS, lambda _model, _bins: None),
        dlq=TOPICS.dlq,
        cap=Cap("sink", 5, logging.getLogger(__name__)),
        batch_rows=100,
        batch_wait_s=1.0,
        rng=np.random.default_rng(1),
        clock=clock,
    )


def test_all_topics_reach_clickhouse_bad_messages_the_dead_letters_and_an_outage_loses_nothing(
    broker_address: str, tmp_path: Path
) -> None:
    port = free_port()
    prefix = f"sink{port}."
    with endpoint(tmp_path, port) as found:
        settings = setting(broker_address, found, prefix)
        topics, kafka = wiring.topics(settings), wiring.kafka(settings)
        admin = AdminClient({"bootstrap.servers": broker_address})
        topics_.create(admin, topics, wiring.widths(settings))
        store.migrate(found)
        other = ClickHouseSettings(url=found.url, database="other")
        store.migrate(other)
        elsewhere = store.connect(other)
        reference = fill(elsewhere, days=1)
        window = wire.Window(
            MODEL, "7", "", DAY, START, "", 1, reference.layout.bins_id, 6000,
            reference.profiles[""].to_bytes(),
        )  # fmt: skip
        spec = parse_spec({"model": MODEL, "task": "binary"}, origin="test")
        models.publish(kafka, topics, Model(spec, reference), sink.logger)
        calm = wire.Verdict("data_drift", "temp", "psi", "ok", 0.1, 0.2, None, 1)
        verdict = wire.Verdicts("window", MODEL, "7", "", DAY, START, START + DAY, 1, 1, [calm])
        internal: list[tuple[str, wire.Message]] = [
            (topics.windows, window),
            (topics.windows, ENTRY),
            (topics.verdicts, verdict),
            (
                topics.performance,
                wire.Performance(MODEL, "7", "", DAY, START, 1, 2, 1, 0, True, {}),
            ),
            (topics.incidents, elsewhere.incidents()[0]),
            (topics.deliveries, elsewhere.deliveries()[0]),
        ]
        producer = Producer({"bootstrap.servers": broker_address})
        for topic, value in internal:
            producer.produce(topic, wire.encode(value), key=b"k", partition=0)
        producer.produce(topics.scored, ipc(scored(500)), partition=1)
        for i in range(100):
            producer.produce(topics.labels, json.dumps(label(id=f"p{i}")), key=f"p{i}")
        producer.produce(topics.labels, b"not json", key=b"k", headers={"mine": b"kept"})
        assert producer.flush(10) == 0
        with running(settings) as ended:
            target = store.connect(found)
            wait_for(lambda: count(target, "labels") == 100 and count(target, "deliveries") == 1)
            wanted = {
                "windows": 1 + len(reference.layout.fields),
                "bins": len(reference.layout.fields),
                "predictions": 500,
                "arrivals": 600,
                "models": 1,
                "ledger": 1,
                "verdicts": 1,
                "performance": 1,
                "incidents": 1,
            }
            wait_for(lambda: {name: count(target, name) for name in wanted} == wanted)
            assert not ended
    letter = only_message(broker_address, topics.dlq)
    headers = dict(letter.headers() or [])
    assert (letter.value(), letter.key(), headers["mine"]) == (b"not json", b"k", b"kept")
    assert headers["driftline.error.reason"] == b"not_json"
    assert headers["driftline.error.stage"] == b"sink"
    assert headers["driftline.error.topic"] == topics.labels.encode()

    # ClickHouse is away now: the sink keeps its place in the group, and goes on when it is back.
    began = metrics.TRANSIENT_ERRORS.labels("sink")._value.get()
    with endpoint(tmp_path, port):
        context = running(settings)
        ended = context.__enter__()
        producer.produce(topics.labels, json.dumps(label(id="p100")), key="p100")
        wait_for(lambda: positions(settings) >= 102)  # it is at work
    for i in range(101, 200):
        producer.produce(topics.labels, json.dumps(label(id=f"p{i}")), key=f"p{i}")
    producer.flush(10)
    wait_for(lambda: metrics.TRANSIENT_ERRORS.labels("sink")._value.get() > began)
    with endpoint(tmp_path, port) as found:
        target = store.connect(found)
        wait_for(lambda: count(target, "labels") == 200)
        wait_for(lambda: positions(settings) >= 201)
        assert not ended
        context.__exit__(None, None, None)


ENTRY = wire.LedgerEntry(
    profiles_partition=0,
    offset=1,
    open=0,
    partition=0,
    start=0,
    end=5,
    events=5,
    dead=0,
    on_time=5,
    late=0,
    calibrating=0,
    jump=None,
)


def positions(settings: Settings) -> int:
    """Sum of the committed positions of the labels."""
    topics = wiring.topics(settings)
    config = {
        "bootstrap.servers": settings.kafka.bootstrap,
        "group.id": sink.sink_group(topics),
    }
    consumer = Consumer(config)
    partitions = [TopicPartition(topics.labels, p) for p in range(4)]
    total = sum(max(p.offset, 0) for p in consumer.committed(partitions, timeout=10))
    consumer.close()
    return total


def only_message(broker: str, topic: str) -> Message:
    config = {"bootstrap.servers": broker, "group.id": "test", "auto.offset.reset": "earliest"}
    consumer = Consumer(config)
    consumer.assign([TopicPartition(topic, p, 0) for p in range(4)])
    found: list[Message] = []
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        found += [m for m in consumer.consume(10, timeout=0.5) if m.error() is None]
    consumer.close()
    (message,) = found
    return message
