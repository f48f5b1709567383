"""The Faust worker as a process of its own, on both brokers: killed, stopped, and fed with breaks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import aiokafka
import numpy as np
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams import topology
from streams.clients import KafkaSettings
from streams.delivery import BATCH_BYTES
from streams.runner import Observer

if TYPE_CHECKING:
    from tests.kafka.broker import KafkaBroker

ROOT = Path(__file__).parents[2]
PARTITIONS = (0, 1)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@dataclass
class Bench:
    """A broker with the adder's topics, what was sent, and what the totals have to be."""

    bootstrap: str
    prefix: str

    def __post_init__(self) -> None:
        self.sent = dict.fromkeys(PARTITIONS, 0)
        self.wanted: dict[tuple[int, str], int] = {}
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        topics = [NewTopic(self.prefix + name, len(PARTITIONS), 1) for name in ("in", "out")]
        topics.append(
            NewTopic(
                f"{self.prefix}changelog",
                len(PARTITIONS),
                1,
                config={"cleanup.policy": "compact"},
            )
        )
        for future in admin.create_topics(topics).values():
            future.result()

    def number(self, producer: Producer, count: int) -> None:
        """Produce ``count`` numbers, round robin."""
        for _ in range(count):
            total = sum(self.sent.values())
            partition, key = total % 2, f"k{total * 7 % 50}"
            body = {"at": self.sent[partition], "key": key, "add": total}
            producer.produce(f"{self.prefix}in", json.dumps(body), partition=partition)
            self.sent[partition] += 1
            self.wanted[partition, key] = self.wanted.get((partition, key), 0) + total
        producer.flush()

    def totals(self) -> dict[tuple[int, str], int]:
        """The last total of each key on the output topic."""
        config = {"bootstrap.servers": self.bootstrap, "group.id": f"{self.prefix}look"}
        # The embedded broker knows the end of a partition only when it is read.
        consumer = Consumer({**config, "enable.partition.eof": True})
        consumer.assign([TopicPartition(f"{self.prefix}out", number, 0) for number in PARTITIONS])
        unread, found = set(PARTITIONS), dict[tuple[int, str], int]()
        while unread:
            for message in consumer.consume(10_000, timeout=1):
                partition, key, value = message.partition(), message.key(), message.value()
                assert partition is not None
                if message.error() is not None:
                    unread.discard(partition)
                elif key is not None and value is not None:
                    found[partition, key.decode()] = json.loads(value)[1]
        consumer.close()
        return found


class Process:
    """A running adder. What it prints is read line by line."""

    def __init__(self, bench: Bench, errors: Path, *, instance: str, stall_s: float) -> None:
        self._errors = errors
        with errors.open("w") as stderr:
            self.popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.streams.toy"),
                    *(bench.bootstrap, bench.prefix, instance, str(stall_s)),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def says(self) -> Iterator[dict[str, Any]]:
        """What it says until it ends."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            yield json.loads(line)

    def wait_for(self, word: str) -> dict[str, Any]:
        """Read on until it says ``word``."""
        for said in self.says():
            if word in said:
                return said
        pytest.fail(f"ended with {self.popen.wait()}:\n{self._errors.read_text()[-3000:]}")

    def wait_committed(self, ends: dict[int, int]) -> None:
        """Read on until the committed offsets reach ``ends``."""
        committed = dict.fromkeys(ends, 0)
        while any(committed[partition] < end for partition, end in ends.items()):
            said = self.wait_for("committed")
            committed[said["partition"]] = said["committed"]

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> float:
        """End it with SIGTERM; seconds that it took."""
        began = time.monotonic()
        self.popen.terminate()
        self.popen.wait(timeout=15)
        return time.monotonic() - began


Start = Callable[..., "Process"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts adders; none is left behind."""
    with ExitStack() as running:

        @contextmanager
        def killed(process: Process) -> Iterator[Process]:
            try:
                yield process
            finally:
                process.kill()
                assert process.popen.stdout is not None
                process.popen.stdout.close()

        def start(bench: Bench, *, instance: str = "", stall_s: float = 60.0) -> Process:
            errors = tmp_path / f"{uuid.uuid4().hex}.log"
            return running.enter_context(
                killed(Process(bench, errors, instance=instance, stall_s=stall_s))
            )

        yield start


def bench_on(bootstrap: str) -> Bench:
    return Bench(bootstrap, f"adder-{uuid.uuid4().hex[:8]}.")


def plain_producer(bench: Bench) -> Producer:
    return Producer({"bootstrap.servers": bench.bootstrap, "enable.idempotence": True})


def transactional_producer(bench: Bench) -> Producer:
    producer = Producer({"bootstrap.servers": bench.bootstrap, "transactional.id": bench.prefix})
    producer.init_transactions(30)
    return producer


def abort_something(producer: Producer, bench: Bench) -> None:
    """Put messages into the log that nobody may see: the adder would end at the first."""
    producer.begin_transaction()
    for partition in PARTITIONS:
        producer.produce(f"{bench.prefix}in", b"aborted", partition=partition)
    producer.flush()
    producer.abort_transaction(30)


def test_two_partitions_are_added_exactly_and_sigterm_ends_it(
    broker_address: str, start: Start
) -> None:
    bench = bench_on(broker_address)
    bench.number(plain_producer(bench), 2_000)
    process = start(bench)
    process.wait_committed(bench.sent)
    assert process.stop() < 10
    assert process.popen.returncode == 0
    assert bench.totals() == bench.wanted


def survive_kills(bench: Bench, start: Start, ends: dict[int, int], kills: int) -> int:
    """Run the adder to ``ends``, killing it at random moments; count how often it had to be started."""
    rng = np.random.default_rng(20_130_201)
    for starts in range(1, 12):
        process = start(bench, instance="adder-0")
        process.wait_for("restored")
        if kills:
            time.sleep(rng.uniform(0.0, 1.5))
            process.kill()
            kills -= 1
            continue
        process.wait_committed(ends)
        process.stop()
        return starts
    pytest.fail("it never came to the end")


def test_a_table_is_recovered_to_its_last_record(broker_address: str, start: Start) -> None:
    """Killed when all is committed, so that nothing is read again which would put a lost record right."""
    bench = bench_on(broker_address)
    producer = plain_producer(bench)
    for _ in range(2):
        bench.number(producer, 300)
        process = start(bench, instance="adder-0")
        process.wait_committed(bench.sent)
        process.kill()
    assert bench.totals() == bench.wanted


def test_totals_are_exact_after_three_kills_behind_a_transactional_producer(
    kafka: str, start: Start
) -> None:
    """Markers leave gaps in the offsets and aborted messages lie between: neither is seen, nor stalls it."""
    bench = bench_on(kafka)
    producer = transactional_producer(bench)
    for batch in range(200):
        if batch % 5 == 0:
            abort_something(producer, bench)
        producer.begin_transaction()
        bench.number(producer, 100)
        producer.commit_transaction(30)
    # Behind the last message of a partition is one more offset: the marker of its commit.
    ends = {partition: ends_at(bench, partition) - 1 for partition in PARTITIONS}
    survive_kills(bench, start, ends, kills=3)
    assert bench.totals() == bench.wanted


def ends_at(bench: Bench, partition: int) -> int:
    consumer = Consumer({"bootstrap.servers": bench.bootstrap, "group.id": f"{bench.prefix}end"})
    end = consumer.get_watermark_offsets(TopicPartition(f"{bench.prefix}in", partition))[1]
    consumer.close()
    return end


def test_an_idle_worker_behind_a_marker_is_not_stalled_and_a_break_ends_it(
    kafka: str, start: Start
) -> None:
    bench = bench_on(kafka)
    producer = transactional_producer(bench)
    process = start(bench, stall_s=2.0)
    process.wait_for("restored")
    producer.begin_transaction()
    bench.number(producer, 20)
    producer.commit_transaction(30)
    time.sleep(5)
    assert process.popen.poll() is None
    producer.begin_transaction()
    bench.sent[0] += 2  # two are missing
    wanted = dict(bench.wanted)
    bench.number(producer, 1)
    producer.commit_transaction(30)
    assert "ChainBreakError" in process.wait_for("exiting")["exiting"]
    assert process.popen.wait(10) == 70
    assert bench.totals() == wanted


def test_a_worker_whose_broker_is_gone_ends_to_be_started_again(
    kafka_factory: Callable[[], KafkaBroker], start: Start
) -> None:
    broker = kafka_factory()
    bench = bench_on(broker.address)
    process = start(bench, stall_s=2.0)
    process.wait_for("restored")
    broker.kill()
    assert process.wait_for("exiting")
    assert process.popen.wait(10) == 70


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

    monkeypatch.setattr(topology, "end_process", end)
    kafka = KafkaSettings("127.0.0.1:9", session_timeout_ms=3_000)
    worker = topology.Worker([], topology.WorkerSettings(kafka, "group"), Observer())
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
