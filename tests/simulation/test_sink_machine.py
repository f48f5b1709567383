"""A state machine of the sink: whatever fails, and wherever it dies, no committed offset is past a message that is not stored or buried."""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typing_extensions import override

from monitor.clickhouse import RefusedError
from monitor.errors import TransientError
from monitor.store import Store
from monitor.tables import TableName
from streams.deadletter import Cap
from streams.intake import Intake
from streams.sink import Sink
from streams.topics import Topics
from tests.simulation.broker import CrashError

TOPICS = Topics()
PARTITIONS, BATCH_ROWS, MOST_A_CALL = 3, 4, 3
REFUSAL = 53  # TYPE_MISMATCH
NOW = 1_700_000_000_000
DEATHS = ("before insert", "after insert", "after letters", "before commit", "after commit")
Place = tuple[int, int]
"""Partition and offset of a label."""


class World:
    """A topic of labels, the sink's group, the database and the dead letters: all that outlives a sink."""

    def __init__(self) -> None:
        self.logs: list[list[str]] = [[] for _ in range(PARTITIONS)]  # "good", "bad" or "refused"
        self.committed = [0] * PARTITIONS
        self.stored: set[Place] = set()
        self.buried: set[Place] = set()
        self.largest = 0
        self.failing = defaultdict[str, int](int)  # insert, letter or commit -> how often in a row
        self.dies_at = ""
        self.moves: set[int] = set()

    def step(self, what: str) -> None:
        """Something that may fail or be the last thing to happen."""
        if self.dies_at == what:
            self.dies_at = ""
            raise CrashError(what)

    def check(self) -> None:
        """No committed offset is past a message that is neither stored nor buried."""
        for partition, committed in enumerate(self.committed):
            assert committed <= len(self.logs[partition])
            for offset, kind in enumerate(self.logs[partition][:committed]):
                assert (partition, offset) in (self.stored if kind == "good" else self.buried), kind

    def fails(self, what: str) -> bool:
        """Whether it fails this time."""
        self.failing[what] -= 1
        return self.failing[what] >= 0


class FakeConsumer:
    """One member of the group: callbacks run within ``consume``, as those of librdkafka do."""

    def __init__(self, world: World, stop: threading.Event, polls: int) -> None:
        self.world, self.stop, self.polls = world, stop, polls
        self.paused = False
        self.assignments = self.polled = 0
        self.at: dict[int, int] = {}
        self.told: set[int] = set()

    def subscribe(self, _topics: object, on_assign: Callable[..., None], on_revoke: Callable[..., None]) -> None:  # fmt: skip
        self.on_assign, self.on_revoke = on_assign, on_revoke

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(TOPICS.labels, p) for p in self.at]

    def assign(self) -> None:
        if self.at:
            self.on_revoke(self, self.assignment())
        self.assignments += 1  # and with each another partition comes first
        self.at = dict(enumerate(self.world.committed))
        self.told.clear()
        self.paused = False
        self.on_assign(self, self.assignment())

    def consume(self, most: int, timeout: float) -> list[Message]:
        self.polls -= 1
        self.polled += 1
        if self.polls <= 0:
            self.stop.set()
        if not self.at or self.polled in self.world.moves:
            self.assign()
            return []
        if (
            self.paused and self.polls % 3 == 0
        ):  # what was fetched before the pause comes all the same
            return []
        found = list(self._messages(min(most, MOST_A_CALL)))
        if not found and not self.paused:
            self.polls = min(self.polls, 3)  # there is nothing to wait for
        return found

    def _messages(self, most: int) -> Iterator[Message]:
        for partition in sorted(self.at, key=lambda p: (p + self.assignments) % PARTITIONS):
            log = self.world.logs[partition]
            while most and self.at[partition] < len(log):
                offset = self.at[partition]
                self.at[partition] += 1
                most -= 1
                yield Message(TOPICS.labels, partition, offset, value=label(partition, offset, log[offset]), timestamp=(1, NOW))  # fmt: skip
            if most and partition not in self.told:
                self.told.add(partition)
                end = KafkaError(KafkaError._PARTITION_EOF)
                yield Message(TOPICS.labels, partition, len(log), error=end)

    def pause(self, _held: object) -> None:
        self.paused = True

    def resume(self, _held: object) -> None:
        self.paused = False

    def seek(self, to: TopicPartition) -> None:
        self.at[to.partition] = to.offset

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        self.world.step("before commit")
        if self.world.fails("commit"):
            raise KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
        for to in offsets:
            self.world.committed[to.partition] = to.offset
        self.world.check()
        self.world.step("after commit")

    def get_watermark_offsets(self, where: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, len(self.world.logs[where.partition])


class FakeProducer:
    """Takes dead letters; ``flush`` makes them durable."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: list[tuple[Place, Callable[..., None]]] = []

    def produce(self, _topic: str, on_delivery: Callable[..., None], headers: list[tuple[str, bytes]], **_: Any) -> None:  # fmt: skip
        said = {name.rpartition(".")[2]: value for name, value in headers}
        self.waiting.append(((int(said["partition"]), int(said["offset"])), on_delivery))

    def poll(self, _timeout: float) -> int:
        return 0

    def flush(self, _timeout: float) -> int:
        failed = self.world.fails("letter")
        for place, told in self.waiting:
            if not failed:
                self.world.buried.add(place)
            told(KafkaError(KafkaError._MSG_TIMED_OUT) if failed else None, None)
        self.waiting.clear()
        self.world.step("after letters")
        return 0


class FakeStore:
    """Takes rows; what a message is called says whether it is refused."""

    def __init__(self, world: World) -> None:
        self.world = world

    def append(self, name: TableName, rows: pa.Table, *, token: str) -> None:
        self.world.step("before insert")
        assert token
        self.world.largest = max(self.world.largest, rows.num_rows)
        places = [tuple(map(int, key.split(":"))) for key in rows.column("id").to_pylist()]
        if self.world.fails("insert"):
            raise TransientError("gone")
        if any(self.world.logs[p][o] == "refused" for p, o in places):
            raise RefusedError(REFUSAL)
        if name == "arrivals":  # the last table
            self.world.stored |= {(p, o) for p, o in places}
        self.world.step("after insert")


def label(partition: int, offset: int, kind: str) -> bytes:
    if kind == "bad":
        return b"{"
    return json.dumps({"id": f"{partition}:{offset}", "model": "m", "label": 1}).encode()


@contextmanager
def impatient() -> Iterator[None]:
    """Nothing is waited for."""
    with patch("streams.sink._FIRST_WAIT_S", 0.0), patch("streams.sink._CONSUME", MOST_A_CALL):
        yield


class SinkMachine(RuleBasedStateMachine):
    """Messages come, and a sink works for a while: through outages and rebalances, until it is stopped or dies."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        kinds=st.lists(st.sampled_from(["good"] * 6 + ["bad", "refused"]), max_size=8),
    )
    def produce(self, partition: int, kinds: list[str]) -> None:
        """Labels arrive."""
        self.world.logs[partition] += kinds

    @rule(
        polls=st.integers(2, 20),
        moves=st.sets(st.integers(3, 6), max_size=2),
        outages=st.dictionaries(st.sampled_from(["insert", "letter", "commit"]), st.integers(1, 3)),
        dies_at=st.sampled_from(("", "", *DEATHS)),
    )
    def work(self, polls: int, moves: set[int], outages: dict[str, int], dies_at: str) -> None:
        """One life of a sink."""
        world, stop = self.world, threading.Event()
        world.failing.clear()
        world.failing |= outages
        world.dies_at, world.moves = dies_at, moves
        sink = Sink(
            cast("Consumer", FakeConsumer(world, stop, polls)),
            cast("Producer", FakeProducer(world)),
            cast("Store", FakeStore(world)),
            Intake(TOPICS, lambda _model, _bins: None),
            dlq=TOPICS.dlq,
            cap=Cap("sink", 1_000_000, logging.getLogger(__name__)),
            batch_rows=BATCH_ROWS,
            batch_wait_s=0.002,
            rng=np.random.default_rng(1),
            clock=lambda: 0.0,
        )
        with impatient(), suppress(CrashError):
            sink.run(stop)

    @invariant()
    def what_is_committed_is_stored_or_buried(self) -> None:
        """The promise of the sink, which each commit is asked for as well."""
        self.world.check()

    @invariant()
    def only_what_is_wrong_is_buried_and_batches_are_bounded(self) -> None:
        """A good message is no dead letter, and a refused one is not stored."""
        assert all(self.world.logs[p][o] != "good" for p, o in self.world.buried)
        assert all(self.world.logs[p][o] == "good" for p, o in self.world.stored)
        assert self.world.largest <= BATCH_ROWS + MOST_A_CALL

    @override
    def teardown(self) -> None:
        """Left alone, it comes to the end."""
        for _ in range(20):
            if self.world.committed == [len(log) for log in self.world.logs]:
                return
            self.work(60, set(), {}, "")
        raise AssertionError(f"stopped at {self.world.committed}")


TestSink = SinkMachine.TestCase
TestSink.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
