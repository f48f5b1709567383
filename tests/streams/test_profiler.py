"""The profiler's loop on both brokers: one transaction a batch, and nothing lost or counted twice when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from typing_extensions import override

from monitor.errors import TransientError
from monitor.settings import KafkaSettings, ProfilerSettings, Settings
from streams import evaluator, sink
from streams import profiler as profiler_module
from streams.deadletter import header_list
from streams.profiler import Profiler
from streams.profiling import Reader
from streams.registry import Registry
from tests.monitor.builders import MODEL, NOW, SECOND, START, event
from tests.streams.builders import POLICY
from tests.streams.builders import message as message_of
from tests.streams.flaky import ABORTABLE, FENCED, RETRIABLE, UNKNOWN, Flaky
from tests.streams.profiled import STATES, Bench, Live, Make, drain, profile, running, some
from tests.streams.standing import Standing
from tests.streams.threads import in_thread

if TYPE_CHECKING:
    from tests.kafka.broker import KafkaBroker

pytestmark = pytest.mark.timeout(120)


def test_events_are_counted_once_over_a_restart_and_bad_ones_are_dead_letters(
    broker_address: str,
) -> None:
    bench = Bench(broker_address)
    bench.send(0, *some(150), some(20, 150))
    bench.send(1, *some(50, 170, model="fraud"), *some(5, model="new-1"))
    bench.send(0, b"\xffnot json", headers=[("trace", b"t1"), ("content-type", b"text/plain")])
    bench.send(1, some(1)[0], {"ts": 5, "model": MODEL}, key=b"k", headers={"trace": b"t2"})
    bench.send(1, some(1, model="new-2")[0])  # a fourth model: the cap is three
    drain(bench)
    bench.send(0, *some(30, 300))
    drain(bench)
    account = bench.account()
    assert account["events"] == 150 + 20 + 50 + 5 + 1 + 2 + 1 + 30
    assert account["dead"] == 3
    assert account["calibrating"] == 5
    assert account["on_time"] + account["late"] == account["events"] - 3 - 5

    letters = {cast("bytes", m.value()): dict(header_list(m)) for m in bench.letters(3)}
    assert len(letters) == 3
    garbage = letters[b"\xffnot json"]
    assert garbage["trace"] == b"t1"
    assert garbage["driftline.error.reason"] == b"not_json"
    assert garbage["driftline.error.topic"] == bench.topics.predictions.encode()
    assert (garbage["driftline.error.partition"], garbage["driftline.error.offset"]) == (b"0", b"151")  # fmt: skip
    reasons = sorted(cast("bytes", h["driftline.error.reason"]) for h in letters.values())
    assert reasons == [b"bad_timestamp", b"not_json", b"unknown_model"]

    rows = [pa.ipc.open_stream(m.value()).read_all() for m in bench.read(bench.topics.scored)]
    assert sum(table.num_rows for table in rows) == account["events"] - account["dead"]


def test_an_idle_profiler_says_so_once_per_change(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, *some(3))
    with running(bench):
        deadline = time.monotonic() + 30
        while not all(m and all(x.idle for x in m[-1].links) for m in bench.profiles()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(1)
        counts = [len(messages) for messages in bench.profiles()]
    assert max(counts) <= 4  # assigned, the events, and each partition's silence
    last = bench.profiles()[0][-1].links
    assert {x.partition: x.watermark_ms for x in last} == {0: START + 2 * SECOND, 1: None}


def test_the_watermark_survives_a_restart_in_the_metadata_of_the_offset(kafka: str) -> None:
    bench = Bench(kafka)
    bench.send(0, *some(60))
    drain(bench)
    bench.send(0, event(START), event(START + 59 * SECOND))
    drain(bench)
    assert bench.account()["late"] == 1


def failing(*plan: tuple[str, str, KafkaError]) -> tuple[Make, list[Any]]:
    """A profiler whose producers fail as planned, and the plan as it is worked off."""
    left = list(plan)

    class Failing(Profiler):
        @override
        def _new_producer(self) -> Producer:
            return cast("Producer", Flaky(super()._new_producer(), left))

    return Failing, left


SMALL = 800  # bytes of a profiles message, in place of 900,000


def wide(n: int) -> list[dict[str, Any]]:
    """Events each in a pane of its own, so that their profiles do not add up."""
    return [event(START + i * 10 * SECOND, features={"wind": i * 1.15, "carrier": "UA"}) for i in range(n)]  # fmt: skip


def test_a_batch_whose_transaction_fails_in_any_way_is_counted_once(kafka: str) -> None:
    plan = [
        ("send_offsets_to_transaction", "before", ABORTABLE),
        ("commit_transaction", "before", ABORTABLE),
        ("commit_transaction", "before", ABORTABLE),  # the second attempt too
        ("commit_transaction", "before", RETRIABLE),
        ("commit_transaction", "before", UNKNOWN),
        ("commit_transaction", "after", UNKNOWN),  # committed, but nobody was told
        ("begin_transaction", "before", FENCED),
        ("commit_transaction", "before", ABORTABLE),
        ("abort_transaction", "before", UNKNOWN),  # and the abort fails as well
    ]
    bench = Bench(kafka, batch_events=10)
    bench.send(0, *some(70), b"bad")
    bench.send(1, *some(60, 70))
    make, left = failing(*plan)
    drain(bench, make)
    assert left == []
    account = bench.account()
    assert (account["events"], account["dead"]) == (131, 1)
    assert account["on_time"] + account["late"] == 130
    assert len(bench.letters(1)) == 1


# Why a batch goes in parts: a message of its profiles would be too large, or it is itself.
BOUNDS = pytest.mark.parametrize("bound", ["_MAX_MESSAGE", "_PART_BYTES"])


@BOUNDS
def test_a_batch_that_is_too_large_goes_in_parts_and_a_failed_part_takes_the_rest_back(
    kafka: str, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(profiler_module, bound, SMALL)
    bench = Bench(kafka)
    bench.send(0, *wide(60))
    make, left = failing(("commit_transaction", "before", ABORTABLE))
    drain(bench, make)
    assert left == []
    assert len(bench.read(bench.topics.profiles)) > 5 * STATES
    largest = max(len(m.value() or b"") for m in bench.read(bench.topics.profiles))
    assert largest <= SMALL or bound == "_PART_BYTES"
    account = bench.account()
    assert (account["events"], account["on_time"], account["dead"]) == (60, 60, 0)


def test_one_message_whose_profiles_fit_nowhere_is_a_dead_letter(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "_MAX_MESSAGE", SMALL)
    bench = Bench(kafka)
    bench.send(0, *some(2), wide(60), *some(2, 2))
    drain(bench)
    (letter,) = bench.letters(1)
    assert dict(header_list(letter))["driftline.error.reason"] == b"too_large"
    account = bench.account()
    assert (account["events"], account["on_time"], account["dead"]) == (64, 4, 60)


def test_a_message_at_the_brokers_limit_that_is_bad_does_not_stop_the_stream(
    kafka: str,
) -> None:
    bench = Bench(kafka)
    bench.send(0, b"x" * 999_000, headers=[("h", b"y" * 900)])
    bench.send(0, some(1)[0])
    drain(bench)
    (letter,) = bench.letters(1)
    assert "driftline.error.truncated" in dict(header_list(letter))
    assert bench.account()["on_time"] == 1


def committed(bench: Bench, position: int, metadata: str = "[5]") -> None:
    """Commit a position of source partition 0 in the profiler's place."""
    group = f"{bench.topics.prefix}profiler"
    consumer = Consumer({"bootstrap.servers": bench.address, "group.id": group})
    place = TopicPartition(bench.topics.predictions, 0, position, metadata)
    consumer.commit(offsets=[place], asynchronous=False)
    consumer.close()


@pytest.mark.parametrize("fails", [None, "before", "after"])
def test_a_position_behind_the_end_of_a_new_topic_is_an_announced_jump(
    kafka: str, fails: str | None
) -> None:
    bench = Bench(kafka)
    bench.send(0, *some(20))
    committed(bench, 500)
    make, left = failing(*([("commit_transaction", fails, UNKNOWN)] if fails else []))
    with running(bench, make):
        deadline = time.monotonic() + 20
        while not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.2)
        bench.send(0, *some(10, 20))
        while not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.2)
    assert left == []
    for messages in bench.profiles():
        links = [x for m in messages for x in m.links if x.partition == 0 and x.end > x.start]
        assert sum(x.events for x in links) == 30
        announced = [x for m in messages for x in m.links if x.jump is not None]
        assert [(x.start, x.jump) for x in announced] == [
            (0, "the topic was created anew: it ends before 500")
        ]


class Halving(Profiler):
    """Says what each transaction held, while time passes between them."""

    spoken: list[tuple[int, dict[int, bool]]]
    now_s = 100.0

    @override
    def _commit(self, batch: Any, outcome: Any, *_: Any) -> bool:
        self.now_s += 5.0
        self.spoken.append((len(batch), {x.partition: x.idle for x in outcome.profiles[0].links}))
        self._source.positions.committed(outcome.marks)
        return True


@BOUNDS
def test_no_part_of_a_batch_calls_a_partition_idle_that_a_later_part_has_events_of(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(profiler_module, bound, SMALL)
    halving = object.__new__(Halving)  # without its clients
    halving.spoken = []
    halving._settings = ProfilerSettings(idle_after_s=0.5)
    halving._registry = cast("Registry", Live())
    halving._clock, halving._monotonic = (lambda: NOW / 1_000), (lambda: halving.now_s)
    halving._policy, halving._sent_s = POLICY, 0.0
    halving._reader = Reader()
    halving._source = Standing(3, lambda: halving.now_s, silent={1: 99.0, 2: 99.0})
    reads = [
        profiler_module._Read(message_of(p, i, e), Message())
        for p in (0, 1)
        for i, e in enumerate(wide(20))
    ]
    assert halving._send(reads)
    assert len(halving.spoken) > 2
    assert {tuple(said.items()) for _, said in halving.spoken} == {
        ((0, False), (1, False), (2, True))
    }


@pytest.mark.parametrize("process", [profiler_module, sink, evaluator])
def test_a_process_whose_broker_is_away_says_so_at_once(
    process: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap="127.0.0.1:9"))
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"no Kafka broker answers at 127\.0\.0\.1:9"):
        process.run(settings, threading.Event())
    assert time.monotonic() - began < 10


def test_a_flood_of_bad_messages_is_counted_in_full_and_its_letters_are_capped(kafka: str) -> None:
    bench = Bench(kafka, letters=5)
    bench.send(0, *[b"\xffnot json"] * 40, {"ts": 5, "model": MODEL}, *some(1))
    drain(bench)
    account = bench.account()
    assert (account["events"], account["dead"], account["on_time"]) == (42, 41, 1)
    reasons = [dict(header_list(m))["driftline.error.reason"] for m in bench.letters(6)]
    assert Counter(reasons) == {b"not_json": 5, b"bad_timestamp": 1}


def test_two_profilers_of_one_name_fence_each_other_and_count_once(kafka: str) -> None:
    bench = Bench(kafka, batch_events=20)
    bench.send(0, *some(300))
    bench.send(1, *some(300, 300))
    with running(bench):
        drain(bench)
    account = bench.account()
    assert account["events"] == account["on_time"] + account["late"] == 600


@pytest.mark.timeout(180)
def test_a_broker_that_dies_in_the_middle_of_a_commit_costs_a_producer_and_no_event(
    kafka_factory: Callable[[], KafkaBroker],
) -> None:
    broker = kafka_factory()
    bench = Bench(broker.address, batch_events=20)
    bench.send(0, *some(60))
    made: list[Producer] = []

    class Interrupted(Profiler):
        @override
        def _new_producer(self) -> Producer:
            made.append(super()._new_producer())
            return made[-1] if len(made) > 1 else cast("Producer", Dying(made[0], broker))

    with patiently(bench, Interrupted):
        deadline = time.monotonic() + 120
        while len(made) < 2 or not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.5)
    account = bench.account()
    assert account["events"] == account["on_time"] + account["late"] == 60
    broker.stop()


class Dying:
    """A producer whose broker is killed when it first commits, and comes back after its patience."""

    def __init__(self, real: Producer, broker: KafkaBroker) -> None:
        self._real, self._broker, self._killed = real, broker, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit_transaction(self, _timeout: float) -> None:
        if not self._killed:
            self._killed = True
            assert self._real.flush(10) == 0
            self._broker.kill()
            threading.Timer(8, self._broker.start).start()
        self._real.commit_transaction(1)  # five times


@contextmanager
def patiently(bench: Bench, make: Make) -> Iterator[None]:
    """A profiler in a thread that is started again whenever the broker was away, as its process is."""

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(KafkaException):
                profile(bench, make, stop)

    with in_thread(work):
        yield


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_message_that_kills_three_workers_is_a_dead_letter_and_all_others_count_once(
    kafka: str,
) -> None:
    bench = Bench(kafka)
    bench.send(0, *some(30), b"deadly:segfault", *some(30, 30))
    bench.send(1, *some(40, 60))
    ends = [deadly(bench, f"w{i}").wait(60) for i in range(3)]
    assert ends == [-signal.SIGSEGV] * 3
    last = deadly(bench, "w3")
    try:
        deadline = time.monotonic() + 60
        while not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            assert last.poll() is None
            time.sleep(0.5)
    finally:
        last.terminate()
        last.wait(20)
    account = bench.account()
    assert (account["events"], account["dead"]) == (101, 1)
    assert account["on_time"] + account["late"] == 100
    (letter,) = bench.letters(1)
    headers = dict(header_list(letter))
    assert letter.value() == b"deadly:segfault"
    assert headers["driftline.error.reason"] == b"killed_worker"
    assert headers["driftline.error.detail"] == b"signal 11 (SIGSEGV)"


def deadly(bench: Bench, instance: str) -> subprocess.Popen[bytes]:
    """A profiler as a process, whose decoder the deadly messages end."""
    chosen = bench.settings
    settings = {
        "KAFKA__BOOTSTRAP": bench.address,
        "KAFKA__TOPIC_PREFIX": chosen.kafka.topic_prefix,
        "KAFKA__SESSION_TIMEOUT_S": chosen.kafka.session_timeout_s,
        "KAFKA__DETECTOR_PARTITIONS": STATES,
        "PROFILER__INSTANCE": instance,
        "LIMITS__MODELS": chosen.limits.models,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.streams.deadly", "profiler"],
        env={**os.environ, **{f"DRIFTLINE_{name}": str(v) for name, v in settings.items()}},
    )
