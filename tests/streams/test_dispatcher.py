"""The dispatcher: lanes and positions by themselves, then the whole of it against both brokers and a strict receiver."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from msgspec.structs import replace
from pydantic import SecretStr
from typing_extensions import override

from alerting.breaker import FAILURES, Destination, Permit, Sign
from alerting.courier import Courier
from alerting.delivery import Attempt, Outcome
from alerting.mail import Mailer
from alerting.requests import Request
from monitor import wire
from monitor.environment import environment
from monitor.errors import TransientError
from monitor.settings import DispatcherSettings, KafkaSettings, Settings
from monitor.spec import ModelSpec, parse_spec
from monitor.tls import trust
from monitor.wire import Delivery, OutboxItem
from streams import clients, dispatcher, models, topics, wiring
from streams.demo.receiver import Receiver
from streams.dispatcher import Dispatcher
from streams.lanes import Lanes, Progress, Task
from streams.models import Model
from streams.supervisor import free_port
from tests.alerting.builders import MODEL
from tests.alerting.managers import alertmanager, known, needs_alertmanager, receiver, wait_for
from tests.alerting.test_notify import FALLING, deliver
from tests.streams.threads import in_thread

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
logger = logging.getLogger(__name__)


def test_a_position_never_passes_an_item_that_is_not_done() -> None:
    progress = Progress()
    for offset in (3, 5, 6):  # offsets may have gaps
        assert progress.begin(offset)
    positions = []
    for offset in (6, 3, 5):
        progress.finish(offset)
        positions.append(progress.position)
    assert positions == [None, 4, 7]
    assert not progress.begin(5), "a rebalance read it again"


def outcome(item: OutboxItem) -> Delivery:
    return Delivery(item.id, item.incident.id, item.target, item.action, "delivered", 1, 0)


def asked(model: ModelSpec) -> list[OutboxItem]:
    return deliver(FALLING, model)[1]


class Rig:
    """Lanes with receivers that answer when they are told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.recorded: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.lanes = Lanes(self._send, self._record)

    async def _send(self, item: OutboxItem, asked_s: float, newer: Callable[[], bool]) -> Delivery:
        self.sent.append(item.id)
        if item.target in self.gates:
            await self.gates[item.target].wait()
        return outcome(item)

    async def _record(self, partition: int, done: Delivery) -> None:
        self.recorded.append(done.id)


def item(target: str, name: str) -> OutboxItem:
    first = ITEMS[0]
    return OutboxItem(name, target, "notify", "fired", first.incident)


ITEMS = asked(parse_spec({"model": MODEL, "notify": [{"slack": {"url": "env:X"}}]}, origin="test"))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_receiver_that_hangs_delays_its_own_lane_and_no_other() -> None:
    rig = Rig()
    rig.gates["slow"] = asyncio.Event()
    rig.lanes.assign(0, ())
    for offset, (target, name) in enumerate(
        [("slow", "a"), ("fast", "b"), ("slow", "c"), ("fast", "d")]
    ):
        rig.lanes.put(Task(item(target, name), 0, offset, 0.0))
    await settle()
    assert rig.recorded == ["b", "d"]
    assert rig.sent == ["a", "b", "d"], "within a lane one item follows the other"
    assert rig.lanes.positions() == {}
    rig.gates["slow"].set()
    await settle()
    assert (rig.lanes.positions(), rig.lanes.pending) == ({0: 4}, 0)


async def test_an_item_knows_whether_later_news_of_its_incident_waits_behind_it() -> None:
    news: dict[str, bool] = {}

    async def send(item: OutboxItem, asked_s: float, newer: Callable[[], bool]) -> Delivery:
        news[item.id] = newer()
        return outcome(item)

    async def record(partition: int, done: Delivery) -> None:
        """Remember nothing."""

    lanes = Lanes(send, record)
    lanes.assign(0, ())
    first = item("slack", "a")
    other = replace(first.incident, id="other")
    items = [
        first,
        replace(first, id="b", incident=other),
        replace(first, id="c", transition="changed"),
        replace(first, id="d", target="teams", transition="resolved"),
        replace(first, id="e", transition="resolved", incident=other),
    ]
    for offset, each in enumerate(items):
        lanes.put(Task(each, 0, offset, 0.0))
    await settle()
    assert news == {"a": True, "b": True, "c": False, "d": False, "e": False}


async def test_what_is_recorded_or_repeated_is_not_sent_again() -> None:
    rig = Rig()
    rig.lanes.assign(0, {"a"})
    for offset, name in enumerate(["a", "b", "b"]):
        rig.lanes.put(Task(item("slack", name), 0, offset, 0.0))
    await settle()
    assert rig.sent == ["b"]
    assert rig.lanes.positions() == {0: 3}


async def test_a_partition_that_was_taken_away_is_left_alone() -> None:
    rig = Rig()
    rig.gates["slow"] = asyncio.Event()
    rig.lanes.assign(0, ())
    rig.lanes.put(Task(item("slow", "a"), 0, 0, 0.0))
    rig.lanes.put(Task(item("slow", "b"), 0, 1, 0.0))
    await settle()
    rig.lanes.revoke(0)
    rig.lanes.put(Task(item("slow", "c"), 0, 2, 0.0))
    rig.gates["slow"].set()
    await settle()
    assert rig.sent == ["a"]
    assert rig.lanes.positions() == {}


async def test_what_waits_while_a_partition_leaves_and_comes_back_is_sent_once() -> None:
    rig = Rig()
    rig.gates["slow"] = asyncio.Event()
    for _ in range(2):
        rig.lanes.assign(0, ())
        for offset, name in enumerate("abcd"):
            rig.lanes.put(Task(item("slow", name), 0, offset, 0.0))
        await settle()
        rig.lanes.revoke(0)
    rig.lanes.assign(0, ())
    for offset, name in enumerate("abcd"):
        rig.lanes.put(Task(item("slow", name), 0, offset, 0.0))
    rig.gates["slow"].set()
    await settle()
    assert rig.sent == ["a", *"abcd"], "only what was under way is sent again"
    assert (rig.lanes.positions(), rig.lanes.pending) == ({0: 4}, 0)


async def test_an_item_that_rests_between_two_attempts_is_left_to_the_next_owner() -> None:
    attempts: list[str] = []

    async def send(item: OutboxItem, asked_s: float, newer: Callable[[], bool]) -> Delivery:
        while True:
            attempts.append(item.id)
            await lanes.rest(60.0)

    rig = Rig()
    lanes = Lanes(send, rig._record)
    for partition in (0, 1):
        lanes.assign(partition, ())
        lanes.put(Task(item(f"down{partition}", f"{partition}"), partition, 0, 0.0))
    lanes.put(Task(item("down0", "waits"), 0, 1, 0.0))
    await settle()
    lanes.revoke(0)
    await settle()
    assert attempts == ["0", "1"]
    assert lanes.pending == 1, "the other partition's item goes on to rest"
    await lanes.stop()
    assert (rig.recorded, lanes.pending) == ([], 0)


async def test_an_item_whose_destination_takes_nothing_is_left_to_the_next_owner_without_an_attempt() -> (
    None
):
    calls: list[Request] = []

    class Never:
        async def send(self, request: Request) -> Attempt:
            calls.append(request)
            return Attempt(Outcome.RETRY, "status 503")

    settings, rig = Settings(), Rig()
    context = trust()
    spec = parse_spec({"model": MODEL, "notify": [{"slack": {"url": "env:X"}}]}, origin="test")
    courier = Courier(
        spec_of=lambda _: spec,
        sender=Never(),
        mailer=Mailer(settings.email, context, 1.0),
        resolve=lambda _: "https://hooks.example/x",
        clock_s=lambda: 0.0,
        sleep=lambda seconds: lanes.rest(seconds),
        rng=np.random.default_rng(1),
        max_age_s=60.0,
    )
    lanes = Lanes(courier.deliver, rig._record)
    lanes.assign(0, ())
    whom = Destination("https://hooks.example:443")
    for _ in range(FAILURES):
        permit = courier.breaker.ask(whom, 0.0)
        assert isinstance(permit, Permit)
        courier.breaker.tell(permit, Sign.SILENCE, 0.0)
    lanes.put(Task(item("slack", "a"), 0, 0, 0.0))
    await settle()
    assert (lanes.pending, courier.breaker.held) == (1, 1)
    lanes.revoke(0)
    await settle()
    assert (lanes.pending, courier.breaker.held, calls, rig.recorded) == (0, 0, [], [])


async def test_a_process_that_was_stopped_sends_nothing_before_it_knows_what_is_its_own() -> None:
    known = asyncio.Event()
    rig = Rig()

    async def certain() -> None:
        await known.wait()

    lanes = Lanes(rig._send, rig._record, certain)
    lanes.assign(0, ())
    lanes.assign(1, ())
    for partition in (0, 1):
        lanes.put(Task(item(f"target{partition}", f"{partition}"), partition, 0, 0.0))
    await settle()
    assert rig.sent == []
    lanes.revoke(0)
    known.set()
    await settle()
    assert rig.sent == ["1"]


async def test_an_outcome_that_cannot_be_recorded_ends_the_dispatcher() -> None:
    async def lost(partition: int, done: Delivery) -> None:
        raise TransientError("no broker")

    async def send(item: OutboxItem, asked_s: float, newer: Callable[[], bool]) -> Delivery:
        return outcome(item)

    lanes = Lanes(send, lost)
    lanes.assign(0, ())
    lanes.put(Task(item("slack", "a"), 0, 0, 0.0))
    await settle()
    with pytest.raises(TransientError, match="no broker"):
        lanes.positions()


class Stack:
    """Topics of its own on a broker, a receiver, and a model that names it."""

    def __init__(self, address: str, receiver: Receiver, *more: dict[str, Any]) -> None:
        self.receiver = receiver
        self.settings = Settings(
            kafka=KafkaSettings(
                bootstrap=address,
                topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
                detector_partitions=2,
                session_timeout_s=6,
            ),
            dispatcher=DispatcherSettings(allowed_networks=("127.0.0.0/8",), timeout_s=5),
        )
        self.kafka = wiring.kafka(self.settings)
        self.topics = wiring.topics(self.settings)
        admin = clients.admin(self.kafka, logger)
        topics.create(admin, self.topics, wiring.widths(self.settings))
        hook = {"url": f"{receiver.url}/retrain", "secret": "env:HOOK"}
        self.spec = parse_spec(
            {
                "model": MODEL,
                "notify": [
                    {"slack": {"url": "env:SLACK"}},
                    {"pagerduty": {"routing_key": "env:PD", "url": f"{receiver.url}/pagerduty"}},
                    *more,
                ],
                "actions": {"retrain": {"webhook": hook, "approval": "auto"}},
            },
            origin="test",
        )
        models.publish(self.kafka, self.topics, Model(self.spec, None), logger)

    def put(self, *values: bytes) -> None:
        producer = Producer(clients.producer_config(self.kafka, logger))
        failures: list[str] = []
        for number, value in enumerate(values):
            producer.produce(
                self.topics.outbox,
                key=str(number),  # a compacted topic refuses records without a key
                value=value,
                partition=1,
                on_delivery=lambda error, _: failures.append(error.str()) if error else None,
            )
        assert (producer.flush(10), failures) == (0, [])

    def deliveries(self) -> list[Delivery]:
        """What is recorded now."""
        config = clients.consumer_config(self.kafka, "reader", logger)
        reader = Consumer({**config, "enable.partition.eof": True, "fetch.wait.max.ms": 10})
        reader.assign([TopicPartition(self.topics.deliveries, 1, OFFSET_BEGINNING)])
        found: list[Delivery] = []
        try:
            while True:
                for message in reader.consume(100, 0.1):
                    if message.error() is not None:
                        return found
                    record = wire.decode(message.value() or b"")
                    assert isinstance(record, Delivery)
                    found.append(record)
        finally:
            reader.close()

    @contextmanager
    def running(
        self, run: Callable[[Settings, threading.Event], None], *, fails: str | None = None
    ) -> Iterator[None]:
        """Run until the block ends; ``fails`` is the transient error that is meant to end it before."""
        ended = pytest.raises(TransientError, match=f"^{fails}$") if fails else nullcontext()
        with ended, in_thread(partial(run, self.settings), stop_s=20):
            yield

    def wait(self, count: int, within_s: float = 20.0) -> list[str]:
        """Paths of the requests that the receiver took, once there are ``count``."""
        deadline = time.monotonic() + within_s
        while len(self.receiver.received()) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [r.problem for r in self.receiver.received()] == [None] * count
        return sorted(r.path for r in self.receiver.received())

    def wait_recorded(self, count: int) -> list[Delivery]:
        deadline = time.monotonic() + 20
        while len(found := self.deliveries()) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


@pytest.fixture
def stack(broker_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    with Receiver(SECRET, clock=time.time) as receiver:
        monkeypatch.setenv("SLACK", f"{receiver.url}/slack")
        monkeypatch.setenv("PD", "p" * 32)
        monkeypatch.setenv("HOOK", SECRET)
        yield Stack(broker_address, receiver)


class DiesBeforeRecording(Dispatcher):
    """Killed between sending and recording."""

    @override
    async def _record(self, partition: int, outcome: Delivery) -> None:
        died.set()
        raise TransientError("killed")


def run_dying(settings: Settings, stop: threading.Event) -> None:
    model = asked_spec[0]
    asyncio.run(DiesBeforeRecording(settings, lambda _: model).run(stop))


asked_spec: list[ModelSpec] = []
died = threading.Event()


def test_each_item_reaches_its_receiver_and_a_kill_before_the_record_costs_one_repeat(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    items = asked(stack.spec)
    assert [i.target for i in items] == ["slack", "pagerduty", "slack", "pagerduty", "retrain"]
    retrain = items[-1]
    asked_spec[:] = [stack.spec]
    died.clear()
    stack.put(wire.encode(retrain))
    with stack.running(run_dying, fails="killed"):
        assert stack.wait(1) == ["/retrain"]
        assert died.wait(20), "to be stopped between the two is another end"
    assert stack.deliveries() == []
    junk = b"not an outbox item"
    stack.put(*(wire.encode(i) for i in items), junk, *(wire.encode(i) for i in items))
    with stack.running(dispatcher.run):
        paths = ["/pagerduty", "/pagerduty", "/retrain", "/retrain", "/slack", "/slack"]
        assert stack.wait(6) == paths
        assert len(stack.wait_recorded(5)) == 5
    repeats = [r.repeats for r in stack.receiver.received() if r.path == "/retrain"]
    assert repeats == [0, 1], "the same webhook-id, once more"
    with stack.running(dispatcher.run):
        time.sleep(1.0)
    assert len(stack.receiver.received()) == 6, "what is recorded is never sent again"
    assert {d.id for d in stack.deliveries()} == {i.id for i in items}
    shown = caplog.text + "".join(d.detail for d in stack.deliveries())
    assert SECRET not in shown
    assert "p" * 32 not in shown
    assert f"{stack.receiver.url}/slack" not in shown


def test_a_process_with_everything_logged_writes_no_secret_while_its_receivers_fail(
    embedded_broker: str, tmp_path: Path
) -> None:
    """Nobody listens at Slack's address, PagerDuty's takes what it gets, and the pipeline's refuses its signature."""
    hook = "whsec_" + "planted0" * 5
    pager = "plantedpagerduty" + "0" * 16
    port = free_port()
    with Receiver(SECRET, clock=time.time) as other:
        stack = Stack(embedded_broker, other)
        stack.put(*(wire.encode(each) for each in asked(stack.spec)))
        env = {
            **os.environ,
            **environment(stack.settings),
            "DRIFTLINE_METRICS__PORT": str(port),
            "DRIFTLINE_LOG__LEVEL": "DEBUG",
            "PYTHONUNBUFFERED": "1",
            "SLACK": f"http://127.0.0.1:{free_port()}/services/planted-slack",
            "PD": pager,
            "HOOK": hook,
        }
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "streams", "run", "dispatcher"],
                env=env,
                stdout=out,
                stderr=out,
            )
        try:
            wait_for(lambda: "to slack of" in log.read_text(), log.read_text)
            wait_for(lambda: len(other.received()) == 3, log.read_text)
            assert len(stack.wait_recorded(3)) == 3
            shown = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        finally:
            process.terminate()
            assert process.wait(20) == 0
    recorded = {(each.target, each.outcome) for each in stack.deliveries()}
    assert recorded == {("pagerduty", "delivered"), ("retrain", "refused")}
    assert 'driftline_deliveries_total{outcome="refused"} 1.0' in shown
    written = log.read_text() + shown + repr(stack.deliveries())
    assert "connection failed" in written
    assert "planted" not in written.lower()


@needs_alertmanager
@pytest.mark.timeout(120)
def test_what_fires_is_renewed_by_whoever_holds_its_partition_after_alertmanager_forgot_it(
    embedded_broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "EVERY_S", 0.5)
    port = free_port()  # the same before and after: the address is in the spec
    target = {"alertmanager": {"url": f"http://127.0.0.1:{port}/am"}}
    with receiver() as (tells, _), Receiver(SECRET, clock=time.time) as other:
        stack = Stack(embedded_broker, other, target)
        fired = next(i for i in asked(stack.spec) if i.target == "alertmanager")
        ended = replace(fired.incident, state="resolved")
        over = replace(fired, id="0" * 32, transition="resolved", incident=ended)
        stack.put(wire.encode(fired))
        with alertmanager(tmp_path / "one", tells, port) as url, stack.running(dispatcher.run):
            wait_for(lambda: known(url).keys() == {fired.incident.id}, lambda: known(url))
            assert len(stack.wait_recorded(1)) == 1
        with alertmanager(tmp_path / "two", tells, port) as url:
            assert known(url) == {}
            with stack.running(dispatcher.run):
                wait_for(lambda: known(url).keys() == {fired.incident.id}, lambda: known(url))
                stack.put(wire.encode(over))
                wait_for(lambda: known(url) == {}, lambda: known(url))
                time.sleep(1.5)
                assert known(url) == {}, "what is over is not renewed"
        assert [d.outcome for d in stack.deliveries()] == ["delivered"] * 2, (
            "renewals are no deliveries"
        )


def test_a_heartbeat_is_called_while_the_loop_turns_and_its_address_is_not_logged(
    embedded_broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with receiver() as (url, beats), Receiver(SECRET, clock=time.time) as other:
        stack = Stack(embedded_broker, other)
        chosen = stack.settings.dispatcher.model_copy(
            update={"heartbeat_url": SecretStr(f"{url}planted"), "heartbeat_s": 0.3}
        )
        stack.settings = stack.settings.model_copy(update={"dispatcher": chosen})
        with stack.running(dispatcher.run):
            wait_for(lambda: len(beats) >= 3, lambda: beats)
        assert beats[0] == {"status": "ok"}
        heard = len(beats)
        time.sleep(1.0)
        assert len(beats) == heard
    with stack.running(dispatcher.run):  # nobody listens there any more
        wait_for(lambda: "heartbeat is not heard" in caplog.text, lambda: caplog.text)
        time.sleep(1.0)
    assert caplog.text.count("heartbeat is not heard") == 1
    assert "planted" not in caplog.text
