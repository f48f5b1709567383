"""``driftline run bridge`` against Apache Kafka, as Seldon Core v2 writes to it: whatever ends it, each prediction is there once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from monitor.environment import environment, load
from monitor.settings import Settings
from streams import topics, wiring
from streams.bridge import Bridge
from streams.registry import Registry
from streams.transactions import SupersededError
from tests.kafka.reading import committed
from tests.monitor.oip_wire import Tensor, request, response
from tests.streams.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODELS: Final = ("iris", "wine")
PAIRS: Final = 1_000  # of each model
SIDES: Final = ("inputs", "outputs")


def settings(kafka: str, name: str, *, hold_s: float = 600.0) -> Settings:
    """Of topics of their own: namespaces are, too."""
    base = load()
    return base.model_copy(
        update={
            "kafka": base.kafka.model_copy(
                update={
                    "bootstrap": kafka,
                    "topic_prefix": f"{name}.",
                    "predictions_partitions": 2,
                    "detector_partitions": 1,
                }
            ),
            "bridge": base.bridge.model_copy(
                update={
                    "topics": rf"seldon\.{name}\.model\.(?P<model>[^.]+)\.(?P<side>inputs|outputs)",
                    "name": name,
                    "hold_s": hold_s,
                    "batch_messages": 100,
                }
            ),
        }
    )


def prepared(chosen: Settings, name: str, partitions: int = 2) -> dict[str, str]:
    """Topics of ours and of the server; the latter's by model and side."""
    admin = AdminClient({"bootstrap.servers": chosen.kafka.bootstrap})
    topics.create(admin, wiring.topics(chosen), wiring.widths(chosen))
    theirs = {f"{m}.{s}": f"seldon.{name}.model.{m}.{s}" for m in MODELS for s in SIDES}
    made = admin.create_topics([NewTopic(topic, partitions, 1) for topic in theirs.values()])
    for future in made.values():
        future.result(20)
    return theirs


def body(side: str, model: str, number: int) -> bytes:
    if side == "inputs":
        cells = [number + 0.5, -number]
        return request(Tensor("x", "FP32", [1], cells[:1]), Tensor("n", "INT64", [1], cells[1:]), model=f"{model}_1")  # fmt: skip
    return response(Tensor("y", "FP64", [1], [number * 2.0]), model=f"{model}_1", version="1")


def stored(chosen: Settings) -> list[dict[str, Any]]:
    """All committed predictions."""
    found = list[dict[str, Any]]()
    for message in committed(chosen.kafka.bootstrap, wiring.topics(chosen).predictions):
        value = msgspec.json.decode(message.value() or b"")
        found += value if isinstance(value, list) else [value]
    return found


@contextmanager
def bridge(chosen: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command; it is ended."""
    env = os.environ | environment(chosen) | {"DRIFTLINE_METRICS__PORT": "0"}
    command = [sys.executable, "-m", "streams", "run", "bridge"]
    with log.open("ab") as out, subprocess.Popen(command, env=env, stderr=out) as process:
        try:
            yield process
        finally:
            process.kill()


def began(log: Path, starts: int) -> bool:
    """Whether so many bridges have come to read what is new."""
    return log.read_text().count("that it read again") >= starts


def test_after_three_kills_each_prediction_is_there_once(kafka: str, tmp_path: Path) -> None:
    name, rng, log = "bridgekills", random.Random(1), tmp_path / "log"
    chosen = settings(kafka, name)
    theirs = prepared(chosen, name)
    pairs = [(model, i) for model in MODELS for i in range(PAIRS)]
    # Some before their requests, some twice, some without an answer: those are not due in this test.
    silent = set(rng.sample(pairs, 50))
    sent = [(side, pair) for side in SIDES for pair in pairs if side == "inputs" or pair not in silent]  # fmt: skip
    sent += rng.sample(sent, 100)
    order = sorted(sent, key=lambda each: each[1][1] + rng.uniform(0, 200))
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5})
    wanted = len(pairs) - len(silent)
    slices = [order[i * len(order) // 4 : (i + 1) * len(order) // 4] for i in range(4)]
    for i, part in enumerate(slices):
        with bridge(chosen, log) as process:
            for side, (model, number) in part:
                producer.produce(theirs[f"{model}.{side}"], body(side, model, number), key=f"{model}-{number}")  # fmt: skip
                producer.poll(0)
                if rng.random() < 0.005:
                    time.sleep(0.02)
            producer.flush(20)
            if i < 3:
                time.sleep(rng.uniform(2.0, 4.0))  # in its start, in its recall or at work
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
            else:
                wait_until(lambda: len(stored(chosen)) >= wanted, 60, "all are there")
                time.sleep(1)
                process.terminate()
                assert process.wait(15) == 0, log.read_text()
    events = stored(chosen)
    got = {(e["model"], e["id"]): e for e in events}
    assert len(got) == len(events), "one is there twice"
    assert got.keys() == {(m, f"{m}-{i}") for m, i in pairs if (m, i) not in silent}, (
        log.read_text()
    )
    for model, i in set(pairs) - silent:
        event = got[model, f"{model}-{i}"]
        assert event["features"] == {"x": i + 0.5, "n": -i}
        assert (event["prediction"], event["version"]) == (i * 2.0, "1")


def test_a_request_without_an_answer_is_due_once_although_the_bridge_was_ended_meanwhile(
    kafka: str, tmp_path: Path
) -> None:
    name, log = "bridgealone", tmp_path / "log"
    chosen = settings(kafka, name, hold_s=6.0)
    theirs = prepared(chosen, name, partitions=1)
    producer = Producer({"bootstrap.servers": kafka})
    earlier_ms = int(time.time() * 1_000) - 9_000  # read again, and far behind the others
    for side in SIDES:
        producer.produce(theirs[f"wine.{side}"], body(side, "wine", 3), key="early", timestamp=earlier_ms)  # fmt: skip
    producer.produce(theirs["iris.inputs"], body("inputs", "iris", 1), key="lonely")
    producer.produce(theirs["iris.inputs"], body("inputs", "iris", 2), key="met")
    producer.produce(theirs["wine.outputs"], b"\xff\xff", key="bad")
    producer.flush(10)
    with bridge(chosen, log) as process:
        wait_until(partial(began, log, 1), 20, "it works")
        wait_until(lambda: len(stored(chosen)) == 1, 20)
        time.sleep(0.5)
        process.kill()
    assert [e["id"] for e in stored(chosen)] == ["early"]
    producer.produce(theirs["iris.outputs"], body("outputs", "iris", 2), key="met")
    producer.flush(10)
    for before in (1, 2):  # the second one holds nothing any more, and sends nothing again
        with bridge(chosen, log) as process:
            wait_until(partial(began, log, before + 1), 30, "it works")
            wait_until(lambda: {e["id"] for e in stored(chosen)} == {"early", "lonely", "met"}, 30)
            time.sleep(1.5)
            process.terminate()
            assert process.wait(15) == 0, log.read_text()
    events = {e["id"]: e for e in stored(chosen)}
    assert len(stored(chosen)) == 3
    assert "prediction" not in events["lonely"]
    assert events["met"]["prediction"] == 4.0
    assert events["met"]["latency_ms"] > 0


def patiently(bridge: Bridge, stop: threading.Event) -> None:
    """As the process does where the broker has no coordinator for the group yet."""
    while True:
        try:
            return bridge.run(stop)
        except KafkaException:
            time.sleep(0.2)


def test_who_was_superseded_does_not_take_over_again(kafka: str) -> None:
    name = "bridgetwo"
    chosen = settings(kafka, name)
    theirs = prepared(chosen, name, partitions=1)
    stop = threading.Event()

    def made() -> Bridge:
        return Bridge(
            chosen,
            Registry(wiring.kafka(chosen), wiring.topics(chosen)),
            clock=time.time,
            monotonic=time.monotonic,
        )

    first = made()
    second = made()
    producer = Producer({"bootstrap.servers": kafka})
    for side in SIDES:
        producer.produce(theirs[f"iris.{side}"], body(side, "iris", 1), key="a")
    producer.flush(10)
    with pytest.raises(SupersededError):
        patiently(first, stop)
    first.close()
    worker = threading.Thread(target=patiently, args=(second, stop))
    worker.start()
    try:
        wait_until(lambda: len(stored(chosen)) == 1, 30)
    finally:
        stop.set()
        worker.join(20)
        second.close()
