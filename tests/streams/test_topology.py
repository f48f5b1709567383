"""What only the Faust worker has to prove. The rest is the contract of both runners: tests/contracts/test_runners.py."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import aiokafka
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from confluent_kafka import Consumer, TopicPartition

from streams import topology
from streams.clients import KafkaSettings
from streams.delivery import BATCH_BYTES
from streams.worker import Observer, WorkerSettings
from tests.streams.bench import ROOT, Bench, bench_on, plain_producer, processes


async def test_a_worker_that_gets_no_acknowledgement_within_its_session_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off for longer, its record batch might arrive behind those of the partition's next owner."""

    class Unanswered:
        def create_batch(self) -> BatchBuilder:
            return BatchBuilder(BATCH_BYTES, 0)

        async def send_batch(self, *_: object, **__: object) -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()

    def end(reason: str, _observer: Observer) -> NoReturn:
        raise SystemExit(reason)

    monkeypatch.setattr(topology, "end_worker", end)
    kafka = KafkaSettings("127.0.0.1:9", session_timeout_ms=3_000)
    worker = topology.Worker([], WorkerSettings(kafka, "group"), Observer())
    producer: Any = SimpleNamespace(_ensure_producer=Unanswered)
    worker._app.producer = producer
    began = time.monotonic()
    with pytest.raises(SystemExit, match="changelog/1: not acknowledged within the session"):
        await worker._append(("changelog", 1), [(b"key", b"value")])
    assert time.monotonic() - began < 3.0
    assert worker._app.conf.table_standby_replicas == 0


def test_the_private_attributes_that_the_worker_sets_are_those_of_this_aiokafka() -> None:
    """That they also arrive is what the aborted messages above show."""
    names = aiokafka.AIOKafkaConsumer.start.__code__.co_names
    assert {"_isolation_level", "_fetch_max_wait_ms"} <= set(names)


@pytest.mark.slow
def test_a_worker_frozen_on_its_way_to_the_socket_writes_a_stale_row_behind_its_successor(
    kafka: str, tmp_path: Path
) -> None:
    """The limit for which Faust is not the default: the lease is checked before, and the broker does not know it."""
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    bench.number(producer, 1_000)
    with processes(tmp_path, "topology") as start:
        first = subprocess.Popen(
            [sys.executable, "-m", "tests.streams.frozen", kafka, bench.prefix, "adder-0"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while Path(f"/proc/{first.pid}/stat").read_text().split()[2] != "T":
                bench.number(producer, 20)
                time.sleep(0.1)
            bench.number(producer, 200)  # for the successor
            start(bench, instance="adder-1").wait_for("restored")
            bench.wait_drained()
            newest = chain_rows(bench)[-1]
            first.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 20
            while (last := chain_rows(bench)[-1]) == newest and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            first.kill()
            first.wait()
    assert last < newest


def chain_rows(bench: Bench) -> list[int]:
    """Offsets in the chain rows of partition 0, as the changelog has them one after the other."""
    config = {"bootstrap.servers": bench.bootstrap, "group.id": f"{bench.prefix}look"}
    consumer = Consumer({**config, "enable.partition.eof": True, "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(f"{bench.prefix}changelog", 0, 0)])
    found = list[int]()
    while True:
        for message in consumer.consume(10_000, timeout=0.1):
            if message.error() is not None:
                consumer.close()
                return found
            if message.key() == b"0/chain":
                found.append(int(message.value() or b""))
