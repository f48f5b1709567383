"""What only the transactional worker has to prove: every message applied once, by a stage that has no fence of its own.

The rest is the contract of both runners: tests/contracts/test_runners.py.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from typing_extensions import override

from monitor.errors import ConfigError, TransientError
from streams import transactional, transactions
from streams.batch import Batch
from streams.clients import KafkaSettings
from streams.recovery import Recovery, readable_ends
from streams.stage import Stage
from streams.worker import Binding, Observer, WorkerSettings
from tests.streams.bench import (
    Bench,
    bench_on,
    plain_producer,
    processes,
    survive_kills,
)
from tests.streams.flaky import ABORTABLE, FENCED, RETRIABLE, UNKNOWN, Flaky
from tests.streams.threads import in_thread
from tests.streams.toy import Adder, Counting, Unfenced

pytestmark = pytest.mark.timeout(120)


class Diary(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.restorations: list[tuple[int, int]] = []
        self.reasons: list[str] = []

    @override
    def restored(self, stage: str, partition: int, keys: int) -> None:
        self.restorations.append((partition, keys))

    @override
    def rewound(self, reason: str) -> None:
        self.reasons.append(reason)


def binding(bench: Bench, stage: Stage) -> Binding:
    return Binding("adder", (f"{bench.prefix}in",), f"{bench.prefix}changelog", stage)


def ended(reason: str, _observer: Observer) -> NoReturn:
    """Instead of the process, the thread."""
    raise TransientError(reason)


@contextmanager
def working(bench: Bench, stage: type[Adder] = Unfenced, **options: Any) -> Iterator[Diary]:
    """A worker in a thread; what ended it is raised here."""
    diary = Diary()
    settings = WorkerSettings(
        KafkaSettings(bench.bootstrap), f"{bench.prefix}group", instance="adder-0", **options
    )

    def work(stop: threading.Event) -> None:
        bound = binding(bench, stage(f"{bench.prefix}out"))
        transactional.run([bound], settings, stop, diary, end=ended)

    with in_thread(work):
        yield diary


def assert_each_counted_once(bench: Bench) -> None:
    outputs = bench.outputs()
    assert bench.totals() == bench.wanted
    assert Counter((partition, at) for partition, _, at, _ in outputs) == {
        (partition, at): 1 for partition, sent in bench.sent.items() for at in range(sent)
    }


def test_a_batch_whose_transaction_fails_in_any_way_is_counted_once(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [
        ("send_offsets_to_transaction", "before", ABORTABLE),
        ("send_offsets_to_transaction", "after", ABORTABLE),
        ("commit_transaction", "before", ABORTABLE),
        ("commit_transaction", "before", RETRIABLE),
        ("commit_transaction", "before", UNKNOWN),
        ("commit_transaction", "after", UNKNOWN),  # committed, but nobody was told
        ("begin_transaction", "before", FENCED),
        ("commit_transaction", "before", ABORTABLE),
        ("abort_transaction", "before", UNKNOWN),  # and the abort fails as well
    ]
    monkeypatch.setattr(
        transactional,
        "new_producer",
        lambda *args: cast("Producer", Flaky(transactions.new_producer(*args), plan)),
    )
    bench = bench_on(kafka)
    bench.number(plain_producer(bench), 400)
    with working(bench, batch_messages=20) as diary:
        bench.wait_drained()
    assert plan == []
    assert len(diary.reasons) == 7
    assert_each_counted_once(bench)


def test_that_a_consumer_is_of_no_more_use_is_heard_even_while_messages_are_dropped() -> None:
    """A static member that is fenced says so once, and goes on to give nothing."""
    fenced = KafkaError(KafkaError._FATAL, "planned")
    said = [Message(topic="t", partition=0, offset=1), Message(topic="t", error=fenced)]
    worker = object.__new__(transactional.Worker)  # without its clients
    worker._consumer = cast("Consumer", SimpleNamespace(consume=lambda *_: [said.pop(0)]))
    worker._stale = True
    assert worker._poll(1, 0.1) == []
    with pytest.raises(KafkaException, match="planned"):
        worker._poll(1, 0.1)


class Hanging(Flaky):
    """Takes offsets three times. The fourth call does not return before the test is over."""

    over = threading.Event()
    left = 3

    def send_offsets_to_transaction(self, *args: Any) -> None:
        if not self.left:
            self.over.wait(60)
            return
        self.left -= 1
        self._real.send_offsets_to_transaction(*args)


def test_offsets_that_are_never_taken_cost_a_producer_and_some_time(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Producer] = []

    def new_producer(*args: Any) -> Producer:
        real = transactions.new_producer(*args)
        made.append(real if made else cast("Producer", Hanging(real, [])))
        return made[-1]

    monkeypatch.setattr(transactional, "new_producer", new_producer)
    monkeypatch.setattr(transactions, "_OFFSETS_S", 2.0)
    bench = bench_on(kafka)
    bench.number(plain_producer(bench), 400)
    with working(bench, batch_messages=20) as diary:
        bench.wait_drained()
    Hanging.over.set()
    assert len(made) == 2
    assert ["did not return in time" in reason for reason in diary.reasons] == [True]
    assert_each_counted_once(bench)


@pytest.mark.slow
def test_after_three_kills_a_stage_without_fences_has_counted_each_message_once(
    kafka: str, tmp_path: Path
) -> None:
    bench = bench_on(kafka)
    bench.number(plain_producer(bench), 30_000)
    with processes(tmp_path, "transactional") as start:
        survive_kills(bench, start, kills=3, stage="Unfenced")
    assert_each_counted_once(bench)


@pytest.mark.slow
def test_a_worker_that_wakes_up_when_its_partitions_are_somebody_elses_commits_nothing(
    kafka: str, tmp_path: Path
) -> None:
    """Stopped with a batch in memory, before its transaction begins: no timeout of the broker's can end that one."""
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    with processes(tmp_path, "transactional") as start:
        first = start(bench, stage="Stopping", instance="adder-0")
        first.wait_for("restored")
        bench.number(producer, 1_600)
        wait_stopped(first.popen.pid)
        start(bench, stage="Unfenced", instance="adder-1").wait_for("restored")
        bench.wait_drained()
        first.popen.send_signal(signal.SIGCONT)
        refusal = first.wait_for("rewound")["rewound"]
        bench.number(producer, 100)
        bench.wait_drained()
    assert "member" in refusal or "generation" in refusal
    assert_each_counted_once(bench)


def wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").read_text().split()[2] != "T":
        assert time.monotonic() < deadline, "it did not stop"
        time.sleep(0.05)


@pytest.mark.parametrize("ending", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("with_offsets", [True, False])
def test_a_worker_waits_for_the_transaction_that_the_last_owner_left_open(
    kafka: str, ending: str, with_offsets: bool
) -> None:
    """Decided after the worker has its partitions, and before it may read the state."""
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    bench.number(producer, 20)
    owner = Producer({"bootstrap.servers": kafka, "transactional.id": bench.prefix})
    owner.init_transactions(30)
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"{bench.prefix}group"})
    consumer.subscribe([f"{bench.prefix}in"])
    while not consumer.assignment():
        consumer.poll(0.1)
    owner.begin_transaction()
    row = json.dumps([9, 1_000]).encode()
    owner.produce(f"{bench.prefix}changelog", key=b"0/k0", value=row, partition=0)
    offsets = [TopicPartition(f"{bench.prefix}in", 0, 10)] if with_offsets else []
    if offsets:
        owner.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10)
    owner.flush()
    consumer.close()
    with working(bench) as diary:
        time.sleep(2)
        assert diary.restorations == []
        getattr(owner, ending)(10)
        bench.wait_drained()
    committed = ending == "commit_transaction"
    assert diary.restorations == [(0, 1 if committed else 0), (1, 0)]
    counted = Counter(partition for partition, *_ in bench.outputs())
    assert counted == ({1: 10} if committed and with_offsets else {0: 10, 1: 10})


def test_a_chain_break_is_counted_and_read_again_and_one_that_is_given_up_is_passed(
    kafka: str,
) -> None:
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    bench.number(producer, 40)
    bench.sent[0] += 2  # two are missing
    bench.number(producer, 1)
    with working(bench, stage=Counting) as diary:
        bench.wait_drained()
    assert [reason.partition("(")[0] for reason in diary.reasons] == ["ChainBreakError"] * 2
    assert bench.totals() == bench.wanted


def test_two_workers_of_one_name_never_count_a_message_twice(kafka: str) -> None:
    """A mistake of an operator's: the second fences the first, which gives way."""
    bench = bench_on(kafka)
    producer = plain_producer(bench)
    bench.number(producer, 500)
    with pytest.raises(TransientError, match="kafka"):
        outlive_a_namesake(bench, producer)
    assert_each_counted_once(bench)


def outlive_a_namesake(bench: Bench, producer: Producer) -> None:
    with working(bench):
        bench.wait_drained()
        with working(bench):
            bench.number(producer, 500)
            bench.wait_drained()
            time.sleep(1)


def test_topics_that_differ_in_their_partitions_are_refused(kafka: str) -> None:
    bench = bench_on(kafka)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(f"{bench.prefix}wide", 3, 1)])[f"{bench.prefix}wide"].result()
    settings = WorkerSettings(KafkaSettings(kafka), f"{bench.prefix}group")
    for name, error in (("wide", ConfigError), ("absent", TransientError)):
        bound = Binding(
            "adder", (f"{bench.prefix}in",), f"{bench.prefix}{name}", Unfenced(f"{bench.prefix}out")
        )
        with pytest.raises(error, match=name):
            transactional.run([bound], settings, threading.Event())


A, B = ("log", 0), ("log", 1)


@pytest.mark.parametrize(
    ("read", "whole"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param([(A, 0, 0)], False, id="one of two"),
        pytest.param([(A, 0, 0), (B, 5, 5)], True, id="both"),
        pytest.param([(A, 0, 0), (B, 5, 7)], False, id="an open transaction behind the end"),
        pytest.param([(A, 0, 0), (B, 5, 7), (B, 8, 8)], True, id="and it was decided"),
        pytest.param([(A, 0, -1001), (B, 5, 5)], False, id="high watermark unknown"),
    ],
)
def test_tables_are_whole_when_each_was_read_to_its_high_watermark(
    read: list[tuple[tuple[str, int], int, int]], whole: bool
) -> None:
    recovery = Recovery([A, B], {})
    for target, offset, high in read:
        recovery.reached(target, offset, high)
    assert recovery.whole is whole


def test_what_a_recovery_waits_for_is_said() -> None:
    recovery = Recovery([A, B], {})
    recovery.reached(A, 5, 7)
    assert "/0 is readable to 5 of 7: a transaction is open" in recovery.left
    assert recovery.left.count("not read yet") == 1
    recovery.reached(A, 8, 8)
    recovery.reached(B, 0, 0)
    assert recovery.left == ""


def test_a_table_is_the_last_value_of_each_key_without_those_deleted() -> None:
    recovery = Recovery([A, B], {})
    for key, value in [(b"0/a", b"1"), (b"0/b", b"1"), (b"0/a", b"2"), (b"0/b", None), (None, b"")]:
        recovery.add(A, key, value)
    recovery.add(("in", 0), b"0/c", b"a message, still on its way")
    assert recovery.rows(A) == [(b"a", b"2")]
    assert recovery.rows(B) == []
    assert recovery.records == 4


def batch_of(stage: Adder, *messages: tuple[int, int]) -> Batch:
    """A batch of messages: their offset, and their number in the chain."""
    stage.restore(0, [])
    batch = Batch({"in": Binding("adder", ("in",), "log", stage)})
    for offset, at in messages:
        value = json.dumps({"at": at, "key": "a", "add": 1}).encode()
        batch.apply(("in", 0), offset, value)
    return batch


def test_a_batch_holds_all_outputs_and_the_last_value_of_each_key() -> None:
    batch = batch_of(Adder("out"), (5, 0), (7, 1))
    outputs = [record for target, record in batch.records() if target == ("out", 0)]
    changes = [record for target, record in batch.records() if target == ("log", 0)]
    assert outputs == [(b"a", b"[0, 1]"), (b"a", b"[1, 2]")]
    assert changes == [(b"0/a", b"[1, 2]"), (b"0/chain", b"2")]
    assert batch.offsets == {("in", 0): 8}
    assert list(batch.counts()) == [("adder", 2, 2, 4)]


def test_a_batch_ends_at_a_break_with_what_was_yielded_before_and_that_messages_own_offset() -> (
    None
):
    batch = batch_of(Counting("out"), (5, 0), (7, 2))
    assert batch.broken is not None
    assert batch.offsets == {("in", 0): 7}
    assert (("log", 0), (b"0/break", b"[0, 1]")) in list(batch.records())
    assert list(batch.counts()) == [("adder", 1, 1, 3)]


def test_the_last_record_is_found_before_markers_and_aborted_ones(kafka: str) -> None:
    bench = bench_on(kafka)
    log = f"{bench.prefix}changelog"
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": bench.prefix})
    producer.init_transactions(30)
    for records, end in ((7, "commit_transaction"), (250, "abort_transaction")):
        producer.begin_transaction()
        for _ in range(records):
            producer.produce(log, b"value", b"key", partition=0)
        producer.flush()
        getattr(producer, end)(10)
    ends = {(log, 0): 7 + 1 + 250 + 1, (log, 1): 0}
    assert readable_ends(KafkaSettings(kafka), ends) == {(log, 0): 7, (log, 1): 0}
