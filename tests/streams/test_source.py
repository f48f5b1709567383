"""A partition is idle by the broker's word of now, and by nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Producer

from monitor.panes import SourceMark
from streams import wiring
from streams.source import Source
from tests.kafka.broker import KafkaBroker
from tests.streams.profiled import Bench, some
from tests.streams.standing import Standing


def test_silence_alone_is_not_idleness_the_broker_must_have_nothing_more() -> None:
    standing = Standing(4, lambda: 100.0, silent={0: 10.0, 1: 10.0, 2: 10.0})
    standing.ends = {0: 0, 1: 1}  # 1 has got a message, and of 2 the broker says nothing
    assert standing.claim(set()).idle == {0}
    assert standing.claim({0}).idle == set()


def test_an_end_that_the_broker_understates_is_the_end() -> None:
    standing = Standing(1, lambda: 100.0, silent={0: 10.0})
    standing.ends = {0: -1}
    assert standing.claim(set()).idle == {0}


def test_the_broker_is_asked_only_where_its_answer_may_change_something() -> None:
    standing = Standing(2, lambda: 100.0, silent={0: 10.0, 1: 99.9})
    assert standing.changed()
    assert standing.asked == 1
    standing.positions.marks[0] = SourceMark(0, None, idle=True)
    assert not standing.changed()
    assert standing.asked == 1


@pytest.mark.parametrize("silent", [{}, {0: 99.9}])
def test_who_was_not_silent_for_long_is_not_asked_about(silent: dict[int, float]) -> None:
    standing = Standing(1, lambda: 100.0, silent=silent)
    claim = standing.claim(set())
    assert (claim.idle, claim.asked_s) == (set(), 100.0)


@contextmanager
def following(bench: Bench) -> Iterator[Source]:
    """A source that has joined its group, on a real broker."""
    taken_up: list[bool] = []
    source = Source(
        wiring.kafka(bench.settings),
        f"{bench.topics.prefix}profiler",
        bench.topics.predictions,
        taken_up=lambda: taken_up.append(True),
        monotonic=time.monotonic,
        idle_after_s=0.3,
    )
    source.subscribe()
    try:
        deadline = time.monotonic() + 30
        while not taken_up:
            assert time.monotonic() < deadline
            source.read(100, 0.2)
        yield source
    finally:
        source.close()


def settle(source: Source, idle: set[int], *, reading: bool = True) -> None:
    """Wait until the claim is this one."""
    deadline = time.monotonic() + 20
    while source.claim(set()).idle != idle:
        assert time.monotonic() < deadline, f"{source.claim(set()).idle} are idle, not {idle}"
        if reading:
            source.read(100, 0.2)


def test_a_message_that_waits_at_the_broker_ends_the_idleness_of_a_process_that_was_stopped(
    broker_address: str,
) -> None:
    bench = Bench(broker_address)
    bench.send(0, *some(3))
    with following(bench) as source:
        settle(source, {0, 1})
        time.sleep(0.5)  # as long as it was stopped
        bench.send(1, *some(1))
        settle(source, {0}, reading=False)
        settle(source, {0, 1})


def test_an_open_transaction_is_no_silence_and_an_aborted_one_leaves_none_behind(
    kafka: str,
) -> None:
    bench = Bench(kafka)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": bench.topics.prefix})
    producer.init_transactions(20)
    with following(bench) as source:
        settle(source, {0, 1})
        producer.begin_transaction()
        producer.produce(bench.topics.predictions, b"x", partition=1)
        assert producer.flush(10) == 0
        settle(source, {0})
        producer.abort_transaction(10)
        settle(source, {0, 1})


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_partitions_are_idle_again_after_the_broker_was_away(
    kafka_factory: Callable[[], KafkaBroker], end: str
) -> None:
    """It comes back with a new leader epoch, which an administrative client does not learn by itself."""
    broker = kafka_factory()
    bench = Bench(broker.address)
    bench.send(0, *some(3))
    with following(bench) as source:
        settle(source, {0, 1})
        getattr(broker, end)()
        broker.start()
        settle(source, {0, 1})
