"""Both runners of the detector's stages, each as a process, on both brokers: killed, stopped, replaced, and fed with breaks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.streams.bench import (
    Start,
    abort_something,
    bench_on,
    plain_producer,
    processes,
    survive_kills,
    transactional_producer,
)

if TYPE_CHECKING:
    from tests.kafka.broker import KafkaBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(params=["topology", "transactional"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts toy detectors under each runner in turn."""
    with processes(tmp_path, request.param) as start:
        yield start


def test_two_partitions_are_added_exactly_and_sigterm_ends_it(
    broker_address: str, start: Start
) -> None:
    bench = bench_on(broker_address)
    bench.number(plain_producer(bench), 2_000)
    process = start(bench)
    bench.wait_drained()
    assert process.stop() < 10
    assert process.popen.returncode == 0
    assert bench.totals() == bench.wanted


def test_a_table_is_recovered_to_its_last_record(broker_address: str, start: Start) -> None:
    """Killed when all is committed, so that nothing is read again which would put a lost record right."""
    bench = bench_on(broker_address)
    producer = plain_producer(bench)
    for _ in range(2):
        bench.number(producer, 300)
        process = start(bench, instance="adder-0")
        bench.wait_drained()
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
    # Faust was seen once to start and then to do nothing: the worker's own watch ends it, and its supervisor starts it again.
    survive_kills(bench, start, kills=3, restarts=1)
    assert bench.totals() == bench.wanted


def test_totals_are_exact_when_a_worker_joins_another_is_stopped_beyond_its_session_and_wakes_up(
    kafka: str, start: Start
) -> None:
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    bench.number(producer, 2_000)
    first = start(bench, instance="adder-0")
    first.wait_for("committed")
    second = start(bench, instance="adder-1")
    second.wait_for("restored")
    bench.number(producer, 2_000)
    first.popen.send_signal(signal.SIGSTOP)
    bench.number(producer, 2_000)
    bench.wait_drained()  # by the second, which has both partitions once the session of the first is over
    first.popen.send_signal(signal.SIGCONT)
    bench.number(producer, 500)
    second.kill()
    start(bench, instance="adder-1")
    bench.wait_drained()
    assert bench.totals() == bench.wanted


def test_an_idle_worker_behind_a_marker_is_not_stalled_and_a_break_that_stays_ends_it(
    kafka: str, start: Start
) -> None:
    bench = bench_on(kafka)
    producer = transactional_producer(bench)
    process = start(bench, stall_s=6.0)
    process.wait_for("restored")
    producer.begin_transaction()
    bench.number(producer, 20)
    producer.commit_transaction(30)
    time.sleep(9)
    assert process.popen.poll() is None
    producer.begin_transaction()
    bench.sent[0] += 2  # two are missing
    wanted = dict(bench.wanted)
    bench.number(producer, 1)
    producer.commit_transaction(30)
    said = process.wait_for("exiting")["exiting"]
    assert "ChainBreakError" in said or "no progress" in said
    assert process.popen.wait(20) == 70
    assert bench.totals() == wanted


def test_a_worker_whose_broker_is_gone_ends_to_be_started_again(
    kafka_factory: Callable[[], KafkaBroker], start: Start
) -> None:
    broker = kafka_factory()
    bench = bench_on(broker.address)
    process = start(bench, stall_s=6.0)
    process.wait_for("restored")
    broker.kill()
    assert process.wait_for("exiting")
    assert process.popen.wait(20) == 70


@pytest.mark.timeout(300)  # three restarts of the broker
def test_a_broker_that_stops_and_comes_back_is_soon_followed_again(
    kafka_factory: Callable[[], KafkaBroker], start: Start
) -> None:
    """While it is down its clients forget it: what they remembered of it must not hold them up."""
    broker = kafka_factory()
    bench = bench_on(broker.address)
    producer = plain_producer(bench)
    process = start(bench, instance="adder-0")
    for away_s in (0.0, 3.0, 3.0):
        bench.number(producer, 200)
        bench.wait_drained(45)
        broker.stop()
        time.sleep(away_s)
        broker.start()
    bench.number(producer, 200)
    bench.wait_drained(45)
    assert bench.totals() == bench.wanted
    assert process.popen.poll() is None
    broker.stop()


def test_each_runner_takes_up_the_tables_of_the_other(kafka: str, tmp_path: Path) -> None:
    """Behind the last record of a transaction comes its marker: Faust would wait for that one for ever."""
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    for runner in ("transactional", "topology", "transactional"):
        bench.number(producer, 300)
        with processes(tmp_path, runner) as start:
            process = start(bench)
            bench.wait_drained()
            process.stop()
    assert bench.totals() == bench.wanted
