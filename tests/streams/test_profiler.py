"""The profiler's loop on both brokers: one transaction a batch, and nothing lost or counted twice when one fails."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import pyarrow as pa
import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from typing_extensions import override

from monitor import wire
from monitor.errors import TransientError
from monitor.settings import KafkaSettings, LimitSettings, ProfilerSettings, Settings
from streams import evaluator, sink, topics, wiring
from streams import profiler as profiler_module
from streams.deadletter import header_list
from streams.profiler import Profiler
from streams.registry import Registry
from tests.monitor.builders import MODEL, NOW, SECOND, START, body, event
from tests.streams.builders import POLICY, Known, marks, model
from tests.streams.builders import message as message_of

pytestmark = pytest.mark.timeout(120)

KNOWN = Known(model(MODEL), model("fraud", segments=[]))
SOURCES, STATES = 2, 2


class Bench:
    """A broker with topics of one's own, what was sent there, and what came out."""

    def __init__(self, address: str, **changes: Any) -> None:
        prefix = f"profiler-{uuid.uuid4().hex[:8]}."
        fast = {"batch_events": 100, "batch_wait_s": 0.2, "idle_after_s": 0.5, "heartbeat_s": 30.0}
        self.settings = Settings(
            kafka=KafkaSettings(
                bootstrap=address,
                topic_prefix=prefix,
                session_timeout_s=6,
                predictions_partitions=SOURCES,
                detector_partitions=STATES,
            ),
            profiler=ProfilerSettings(instance="test", **{**fast, **changes}),
            limits=LimitSettings(models=3),
        )
        self.topics = wiring.topics(self.settings)
        self.address = address
        admin = AdminClient({"bootstrap.servers": address})
        topics.create(admin, self.topics, wiring.widths(self.settings))
        self.producer = Producer({"bootstrap.servers": address, "log_level": 0})
        self.sent = [0] * SOURCES

    def send(self, partition: int, *values: Any, **record: Any) -> None:
        """Messages to one source partition: bytes as they are, anything else as JSON."""
        for value in values:
            raw = value if isinstance(value, bytes) else body(value)
            self.producer.produce(self.topics.predictions, raw, partition=partition, **record)
            self.sent[partition] += 1
        assert self.producer.flush(20) == 0

    def read(self, topic: str) -> list[Message]:
        """Everything committed on a topic."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "look",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        width = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(width)])
        messages, open_ = [], set(range(width))
        while open_:
            message = consumer.poll(10)
            assert message is not None, f"{topic} has no end"
            error = message.error()
            if error is None:
                messages.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                open_.discard(cast("int", message.partition()))
        consumer.close()
        return messages

    def profiles(self) -> list[list[wire.Profiles]]:
        """The messages of each profiles partition, in order."""
        found: list[list[wire.Profiles]] = [[] for _ in range(STATES)]
        for message in self.read(self.topics.profiles):
            decoded = wire.decode(message.value() or b"")
            assert isinstance(decoded, wire.Profiles)
            found[cast("int", message.partition())].append(decoded)
        return found

    def account(self) -> Counter[str]:
        """Events by fate; fails if a chain has a gap or an overlap, or the partitions disagree."""
        total: Counter[str] = Counter()
        for target, messages in enumerate(self.profiles()):
            at: dict[int, int] = {}
            for x in (link for profiles in messages for link in profiles.links):
                assert x.start == at.get(x.partition, 0), f"{target}: {x} does not follow {at}"
                at[x.partition] = x.end
                for fate in ("on_time", "late", "calibrating"):
                    total[fate] += getattr(x, fate)
                if target == 0:
                    total["events"] += x.events
                    total["dead"] += x.dead
            assert at == {p: n for p, n in enumerate(self.sent) if p in at}
        return total

    def is_drained(self) -> bool:
        """Whether the last links cover everything that was sent."""
        ends = [
            {x.partition: x.end for profiles in messages for x in profiles.links}
            for messages in self.profiles()
        ]
        return all(end == dict(enumerate(self.sent)) for end in ends)


Make = Callable[..., Profiler]


@contextmanager
def running(bench: Bench, make: Make = Profiler) -> Iterator[None]:
    """A profiler in a thread; what ended it is raised here."""
    stop, failures = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            registry = cast("Registry", _Live())
            clock = lambda: NOW / 1_000  # noqa: E731
            make(bench.settings, registry, clock=clock, monotonic=time.monotonic).run(stop)
        except BaseException as failure:  # noqa: BLE001  it is raised in the test
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


class _Live(Known):
    """Known models, with the one more question that the loop asks."""

    def __init__(self) -> None:
        super().__init__(*KNOWN.models.values())

    def all(self) -> Any:
        return self.models


def drain(bench: Bench, make: Make = Profiler, timeout_s: float = 45) -> None:
    """Run a profiler until everything sent is accounted for, then stop it."""
    with running(bench, make):
        deadline = time.monotonic() + timeout_s
        while not bench.is_drained():
            assert time.monotonic() < deadline, "not drained"
            time.sleep(0.2)


def some(n: int, at: int = 0, **fields: Any) -> list[dict[str, Any]]:
    return [event(START + (at + i) * SECOND, id=f"e{at + i}", **fields) for i in range(n)]


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

    letters = {cast("bytes", m.value()): dict(header_list(m)) for m in bench.read(bench.topics.dlq)}
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


class Flaky:
    """A producer one of whose calls fails once, before or after it had its effect."""

    def __init__(self, real: Producer, plan: list[tuple[str, str, KafkaError]]) -> None:
        self._real, self._plan = real, plan

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not self._plan or self._plan[0][0] != name:
            return real

        def fails(*args: Any) -> Any:
            _, when, error = self._plan.pop(0)
            if when == "after":
                real(*args)
            raise KafkaException(error)

        return fails


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


ABORTABLE = KafkaError(KafkaError._TIMED_OUT, "planned", False, False, True)
RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "planned", False, True, False)
FENCED = KafkaError(KafkaError._FENCED, "planned", True, False, False)
UNKNOWN = KafkaError(KafkaError._TIMED_OUT, "planned", False, False, False)


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
    assert len(bench.read(bench.topics.dlq)) == 1


def test_a_batch_that_is_too_large_goes_in_parts_and_a_failed_part_takes_the_rest_back(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "_MAX_MESSAGE", SMALL)
    bench = Bench(kafka)
    bench.send(0, *wide(60))
    make, left = failing(("commit_transaction", "before", ABORTABLE))
    drain(bench, make)
    assert left == []
    assert len(bench.read(bench.topics.profiles)) > 5 * STATES
    assert max(len(m.value() or b"") for m in bench.read(bench.topics.profiles)) <= SMALL
    account = bench.account()
    assert (account["events"], account["on_time"], account["dead"]) == (60, 60, 0)


def test_one_message_whose_profiles_fit_nowhere_is_a_dead_letter(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_module, "_MAX_MESSAGE", SMALL)
    bench = Bench(kafka)
    bench.send(0, *some(2), wide(60), *some(2, 2))
    drain(bench)
    (letter,) = bench.read(bench.topics.dlq)
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
    (letter,) = bench.read(bench.topics.dlq)
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
    def _commit(self, batch: Any, outcome: Any, profiles: Any) -> bool:
        self.now_s += 5.0
        self.spoken.append((len(batch), {x.partition: x.idle for x in outcome.profiles[0].links}))
        self._marks.update(outcome.marks)
        return True


def test_no_part_of_a_halved_batch_calls_a_partition_idle_that_a_later_part_has_events_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiler_module, "_MAX_MESSAGE", SMALL)
    halving = object.__new__(Halving)  # without its clients
    halving.spoken = []
    halving._settings = ProfilerSettings(idle_after_s=0.5)
    halving._registry = cast("Registry", _Live())
    halving._clock, halving._monotonic = (lambda: NOW / 1_000), (lambda: halving.now_s)
    halving._policy, halving._jumps, halving._sent_s = POLICY, {}, 0.0
    halving._at_end, halving._marks = {1: 99.0, 2: 99.0}, marks([0, 1, 2])
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
