"""A broker with a toy detector's topics, and the toy detector as a process: for the tests of its runners."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.liveness import EXIT_RESTART

ROOT = Path(__file__).parents[2]
PARTITIONS = (0, 1)


@dataclass
class Bench:
    """A broker with the adder's topics, what was sent, and what the totals have to be."""

    bootstrap: str
    prefix: str

    def __post_init__(self) -> None:
        self.sent = dict.fromkeys(PARTITIONS, 0)
        self.ends = dict[int, int]()  # the offsets behind the last numbers
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
            producer.produce(
                f"{self.prefix}in",
                json.dumps(body),
                partition=partition,
                on_delivery=self._delivered,
            )
            self.sent[partition] += 1
            self.wanted[partition, key] = self.wanted.get((partition, key), 0) + total
        producer.flush()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert error is None
        assert partition is not None
        assert offset is not None
        self.ends[partition] = offset + 1

    def wait_drained(self, timeout_s: float = 60) -> None:
        """Wait until the group has committed everything that was sent."""
        config = {"bootstrap.servers": self.bootstrap, "group.id": f"{self.prefix}group"}
        places = [TopicPartition(f"{self.prefix}in", partition) for partition in PARTITIONS]
        consumer = Consumer(config)
        deadline = time.monotonic() + timeout_s
        committed = dict[int, int]()
        while committed != self.ends:
            assert time.monotonic() < deadline, f"committed to {committed} of {self.ends}"
            time.sleep(0.1)
            with suppress(KafkaException):  # a broker that has just started does not know yet
                found = consumer.committed(places, timeout=10)
                committed = {place.partition: place.offset for place in found}
        consumer.close()

    def totals(self) -> dict[tuple[int, str], int]:
        """The last total of each key on the output topic."""
        return {(partition, key): total for partition, key, _, total in self.outputs()}

    def outputs(self) -> list[tuple[int, str, int, int]]:
        """Partition, key, number of the message and total of every committed output."""
        config = {"bootstrap.servers": self.bootstrap, "group.id": f"{self.prefix}look"}
        # The embedded broker knows the end of a partition only when it is read.
        consumer = Consumer({**config, "enable.partition.eof": True, "fetch.wait.max.ms": 10})
        consumer.assign([TopicPartition(f"{self.prefix}out", number, 0) for number in PARTITIONS])
        unread, found = set(PARTITIONS), list[tuple[int, str, int, int]]()
        while unread:
            for message in consumer.consume(10_000, timeout=0.1):
                partition, key, value = message.partition(), message.key(), message.value()
                assert partition is not None
                if message.error() is not None:
                    unread.discard(partition)
                elif key is not None and value is not None:
                    found.append((partition, key.decode(), *json.loads(value)))
        consumer.close()
        return found


class Process:
    """A running toy detector. What it says is kept until it is asked for."""

    def __init__(self, errors: Path, arguments: Sequence[str]) -> None:
        self._errors = errors
        with errors.open("w") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.streams.toy", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def wait_for(self, word: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until it says ``word``."""
        deadline = time.monotonic() + timeout_s
        while (said := self._said.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            if word in said:
                return said
        pytest.fail(f"ended with {self.popen.wait()}:\n{self.errors()}")

    def errors(self) -> str:
        """The end of its log."""
        return self._errors.read_text()[-3000:]

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.popen.kill()
        self.popen.wait()
        self._reader.join()

    def stop(self) -> float:
        """End it with SIGTERM; seconds that it took."""
        began = time.monotonic()
        self.popen.terminate()
        self.popen.wait(timeout=15)
        return time.monotonic() - began

    def _listen(self) -> None:
        """Read all that it says, so that a full pipe never holds it up."""
        assert self.popen.stdout is not None
        with self.popen.stdout:
            for line in self.popen.stdout:
                self._said.put(json.loads(line))
        self._said.put(None)


Start: TypeAlias = Callable[..., Process]


@contextmanager
def processes(directory: Path, runner: str) -> Iterator[Start]:
    """Starts toy detectors under a runner; none is left behind."""
    with ExitStack() as running:

        @contextmanager
        def killed(process: Process) -> Iterator[Process]:
            try:
                yield process
            finally:
                process.kill()

        def start(
            bench: Bench, *, stage: str = "Adder", instance: str = "", stall_s: float = 60.0
        ) -> Process:
            errors = directory / f"{uuid.uuid4().hex}.log"
            arguments = [runner, stage, bench.bootstrap, bench.prefix, instance, str(stall_s)]
            return running.enter_context(killed(Process(errors, arguments)))

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


def survive_kills(
    bench: Bench, start: Start, kills: int, restarts: int = 0, **options: Any
) -> None:
    """Run it until all is done, after killing it at random moments; ``restarts`` as for ``supervised``."""
    rng = np.random.default_rng(20_130_201)
    for _ in range(kills):
        process = start(bench, instance="adder-0", **options)
        process.wait_for("restored")
        time.sleep(rng.uniform(0.0, 1.0))
        process.kill()
    supervised(bench, start, restarts, **options).stop()


def supervised(bench: Bench, start: Start, restarts: int = 0, **options: Any) -> Process:
    """Run it until all is done, as its supervisor would: one that ends in order to be started again is, ``restarts`` times."""
    process = start(bench, instance="adder-0", stall_s=30.0, **options)
    try:
        bench.wait_drained()
    except AssertionError as error:
        if restarts and process.popen.poll() == EXIT_RESTART:
            return supervised(bench, start, restarts - 1, **options)
        error.add_note(f"the log of the last one:\n{process.errors()}")
        raise
    return process
