"""The dispatcher: what is in the outbox reaches its receiver, at least once, under a key that stays the same.

The protocol; the numbers stand in the code:

1. *Remember.* When a partition of ``outbox`` is assigned, the same partition of ``deliveries`` is read to its end: what
   is recorded there is done and is never sent again. So is that of ``outbox``: what fires there is renewed at Alertmanager
   (``streams.standing``).
2. *Queue.* Each item goes to the lane of its model and target. A lane sends one item after the other, so that "resolved" never
   overtakes "fired", and a receiver that is down delays nobody else.
3. *Send*, with retries, until it is delivered, refused or too old. No attempt begins for a partition that has moved. A
   process that was stopped for long (SIGSTOP, a frozen machine) asks the group first: by then its partitions may be
   somebody else's, who sends. Only a request that was under way may end twice.
4. *Record* the outcome in ``deliveries``, acknowledged.
5. *Commit* the outbox up to the first item that is not done.

A crash between 3 and 4 sends that item once more, under the same ``webhook-id`` or ``dedup_key``: duplicates rather than misses. When
more than ``MAX_PENDING`` items wait, reading stops until the lanes have caught up, or the items have grown too old.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from alerting.courier import Courier
from alerting.delivery import Outcome, Sender, resolve_secret
from alerting.mail import Mailer
from alerting.requests import Request
from monitor import metrics, wire
from monitor.errors import IncompatibleError, TransientError
from monitor.settings import Settings
from monitor.spec import ModelSpec
from monitor.tls import trust
from monitor.wire import Delivery, OutboxItem
from streams import clients, wiring
from streams.clients import consumer_config, producer_config
from streams.deadletter import dead_letter
from streams.health import Watch, watching
from streams.lanes import Lanes, Task
from streams.registry import Registry
from streams.standing import EVERY_S, Firing, Standing, firing_in

logger = logging.getLogger(__name__)

STAGE: Final = "dispatcher"
MAX_PENDING: Final = 2_000  # ~5 KB each: 10 MB
_BATCH: Final = 100
_MANY: Final = 1_000
_POLL_S: Final = 0.2
_FETCH_MS: Final = 20  # a reader that is at the end is told so at once
_TIMEOUT_S: Final = 10.0


class Dispatcher:
    """The loop between the outbox and the lanes. Mutable: it owns the Kafka clients. ``run`` it once."""

    def __init__(
        self,
        settings: Settings,
        spec_of: Callable[[str], ModelSpec | None],
        courier: Courier | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._settings, self._topics = settings, wiring.topics(settings)
        self._kafka = wiring.kafka(settings)
        self._producer = Producer(producer_config(self._kafka, logger))
        config = consumer_config(self._kafka, f"{self._topics.prefix}dispatcher", logger)
        self._consumer = Consumer({**config, "enable.partition.eof": True})  # the watch has to know
        chosen = settings.dispatcher
        context = trust(chosen.ca_file)
        self._sender = Sender(chosen.allowed_networks, chosen.timeout_s, context=context)
        self._courier = courier or Courier(
            spec_of=spec_of,
            sender=self._sender,
            mailer=Mailer(settings.email, context, chosen.timeout_s),
            resolve=resolve_secret,
            clock_s=time.time,  # noqa: TID251  # an edge: ages and signatures are of the wall clock
            sleep=self._rest,
            rng=np.random.default_rng(),
            max_age_s=chosen.max_age_s,
            attempted=metrics.DELIVERY_ATTEMPTS.inc,
            links=wiring.links(settings),
            public_url=settings.api.public_url,
        )
        self._standing = Standing(
            spec_of,
            self._courier.sender,
            self._courier.resolve,
            self._courier.clock_s,
            self._courier.public_url,
        )
        self._lanes = Lanes(self._courier.deliver, self._record, self._certain)
        # Within a third of its session a member that says nothing loses nothing.
        self._silence_s = self._kafka.session_timeout_ms / 3_000
        self._turned_s = time.monotonic()
        self._read_to: dict[int, int] = {}
        self._changes: deque[tuple[bool, int]] = deque()  # rebalances, from the consumer's thread
        self._committed: dict[int, int] = {}
        self._paused = False

    async def run(self, stop: threading.Event) -> None:
        """Dispatch until ``stop`` is set.

        Raises:
            TransientError: the broker did not take a record, or did not answer.
        """
        loop = asyncio.get_running_loop()
        beside = [asyncio.create_task(self._renew()), asyncio.create_task(self._beat())]
        # librdkafka's calls block: one thread for the consumer keeps its callbacks in order.
        with ThreadPoolExecutor(1, "outbox") as thread:
            self._consumer.subscribe(
                [self._topics.outbox],
                on_assign=lambda _, parts: self._changes.extend((True, p.partition) for p in parts),
                on_revoke=lambda _, parts: self._changes.extend(
                    (False, p.partition) for p in parts
                ),
            )
            try:
                while not stop.is_set():
                    messages = await loop.run_in_executor(thread, self._read)
                    if self._was_stopped():
                        await loop.run_in_executor(thread, self._ask_group)
                    await self._rebalance()
                    self._turned_s = time.monotonic()
                    for message in messages:
                        self._take(message)
                    await loop.run_in_executor(thread, self._commit, self._lanes.positions())  # 5.
                    for task in beside:
                        if task.done():
                            task.result()  # a defect of ours ends the process, as elsewhere
                    metrics.turned("dispatcher")
                    self._tell()
            finally:
                for task in beside:
                    task.cancel()
                await self._lanes.stop()
                await loop.run_in_executor(thread, self._close)
                await self._sender.close()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self._certain()
            await self._standing.send()

    async def _beat(self) -> None:
        """The dead-man's switch: a call that fails to come is somebody else's alarm. A loop that does not turn calls nobody."""
        chosen = self._settings.dispatcher
        url, said = chosen.heartbeat_url.get_secret_value(), ""
        request = Request(url, {"content-type": "application/json"}, b'{"status":"ok"}')
        while url:
            await self._certain()
            attempt = await self._courier.sender.send(request)
            failed = "" if attempt.outcome is Outcome.DELIVERED else attempt.detail
            if failed and failed != said:
                logger.warning("the heartbeat is not heard: %s", failed)
            said = failed
            await asyncio.sleep(chosen.heartbeat_s)

    def _tell(self) -> None:
        """What is read counts, not what is committed: an item may wait a day for its receiver."""
        breaker = self._courier.breaker
        metrics.OUTBOX_PENDING.set(self._lanes.pending)
        metrics.OUTBOX_HELD.set(breaker.held)
        metrics.DESTINATIONS_OPEN.set(breaker.open(self._courier.clock_s()))
        if self._watch is not None:
            self._watch.reached({(self._topics.outbox, p): at for p, at in self._read_to.items()})
            if self._paused:
                self._watch.waits()

    async def _rest(self, seconds: float) -> None:
        await self._lanes.rest(seconds)

    def _was_stopped(self) -> bool:
        return time.monotonic() - self._turned_s > self._silence_s

    async def _certain(self) -> None:
        """Wait until the group has said what is ours, where the process was stopped since it last did."""
        while self._was_stopped():  # noqa: ASYNC110  a clock has no event
            await asyncio.sleep(0.05)

    def _ask_group(self) -> None:
        """Commit what is committed: the broker refuses that from a member whose session is over, who begins anew.

        Raises:
            TransientError: it did.
        """
        held = self._consumer.assignment()
        logger.warning("was stopped: asking whether %d partitions are still here", len(held))
        try:
            known = [p for p in self._consumer.committed(held, timeout=_TIMEOUT_S) if p.offset >= 0]
            if known:
                self._consumer.commit(offsets=known, asynchronous=False)
        except KafkaException as err:
            raise TransientError(f"was stopped for too long: {err.args[0].str()}") from err

    def _close(self) -> None:
        self._consumer.close()
        self._producer.purge()  # what was not acknowledged failed already: closing must not wait for it
        self._producer.close()

    def _read(self) -> list[Message]:
        full = self._lanes.pending >= MAX_PENDING
        if full:
            self._consumer.pause(self._consumer.assignment())  # each time: a rebalance resumes
        elif self._paused:
            self._consumer.resume(self._consumer.assignment())
        self._paused = full
        messages = self._consumer.consume(1, _POLL_S)  # for all 100 it would wait its whole time
        return messages + self._consumer.consume(_BATCH - 1, 0) if messages else []

    async def _rebalance(self) -> None:
        gained: list[int] = []
        while self._changes:
            assigned, partition = self._changes.popleft()
            self._committed.pop(partition, None)
            self._read_to.pop(partition, None)
            if assigned:
                self._read_to[partition] = -1
                gained.append(partition)
            else:
                self._lanes.revoke(partition)
                self._standing.revoke(partition)
                gained = [other for other in gained if other != partition]
        known = await asyncio.gather(*(asyncio.to_thread(self._recall, p) for p in gained))  # 1.
        for partition, (delivered, firing) in zip(gained, known, strict=True):
            self._lanes.assign(partition, delivered)
            self._standing.assign(partition, firing)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise TransientError(f"outbox: {error.str()}")
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        self._read_to[partition] = offset + (error is None)
        if error is not None:
            return
        try:
            item = wire.decode(message.value() or b"")
        except IncompatibleError as err:
            self._bury(message, str(err))
            self._lanes.skip(partition, offset)
            return
        if not isinstance(item, OutboxItem):
            self._bury(message, f"{type(item).__name__} in the outbox")
            self._lanes.skip(partition, offset)
            return
        kind, at_ms = message.timestamp()
        asked_s = self._courier.clock_s() if kind == TIMESTAMP_NOT_AVAILABLE else at_ms / 1000
        self._standing.note(partition, item)
        self._lanes.put(Task(item, partition, offset, asked_s))  # 2.

    def _bury(self, message: Message, detail: str) -> None:
        logger.error("not an outbox item, sent to the dead letters: %s", detail)
        metrics.DEAD_LETTERS.labels(STAGE, "wrong_type").inc()
        record = dead_letter(message, reason="wrong_type", detail=detail, stage=STAGE)
        self._produce(self._topics.dlq, **record)

    async def _record(self, partition: int, outcome: Delivery) -> None:
        """Write an outcome to ``deliveries`` under the item's id: compaction then keeps every item."""
        value = wire.encode(outcome)
        await asyncio.to_thread(
            self._produce, self._topics.deliveries, outcome.id.encode(), value, partition=partition
        )
        metrics.DELIVERIES.labels(outcome.outcome).inc()
        logger.info(
            "%s %s to %s: %s after %d attempts",
            outcome.action,
            outcome.id,
            outcome.target,
            outcome.outcome,
            outcome.attempts,
        )

    def _produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, str | bytes | None]] | None = None,
        partition: int = -1,
    ) -> None:
        record = {"key": key, "value": value, "headers": headers or [], "partition": partition}
        clients.write(self._producer, self._kafka.bootstrap, topic, [{"topic": topic, **record}])

    def _commit(self, positions: dict[int, int]) -> None:
        moved = {p: at for p, at in positions.items() if self._committed.get(p) != at}
        if not moved:
            return
        offsets = [TopicPartition(self._topics.outbox, p, at) for p, at in moved.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except (
            KafkaException
        ) as err:  # a rebalance: the new owner finds the outcomes in `deliveries`
            logger.warning("outbox not committed: %s", err.args[0].str())
            return
        self._committed |= moved

    def _recall(self, partition: int) -> tuple[set[str], Firing]:
        """Of a partition: ids of the items that are done, and what fires."""
        done = {
            (message.key() or b"").decode("ascii", "replace")
            for message in self._all(self._topics.deliveries, partition)
        }
        return done, firing_in(self._asked(partition))

    def _asked(self, partition: int) -> Iterator[OutboxItem]:
        for message in self._all(self._topics.outbox, partition):
            with suppress(IncompatibleError):  # buried where it is taken
                item = wire.decode(message.value() or b"")
                if isinstance(item, OutboxItem):
                    yield item

    def _all(self, topic: str, partition: int) -> Iterator[Message]:
        """The messages of a partition up to its end, which is the broker's word in a fetch: the embedded broker's ListOffsets understates it."""
        config = consumer_config(self._kafka, f"{self._topics.prefix}dispatcher.reader", logger)
        reader = Consumer({**config, "enable.partition.eof": True, "fetch.wait.max.ms": _FETCH_MS})
        reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
        heard = time.monotonic()
        try:
            while time.monotonic() - heard < _TIMEOUT_S:
                for message in reader.consume(_MANY, _POLL_S):  # waits for all, or for its time
                    heard = time.monotonic()
                    error = message.error()
                    if error is None:
                        yield message
                    elif error.code() == KafkaError._PARTITION_EOF:
                        return
                    else:
                        raise TransientError(f"{topic}: {error.str()}")
            raise TransientError(f"the broker at {self._kafka.bootstrap} does not answer")
        finally:
            reader.close()


def run(settings: Settings, stop: threading.Event) -> None:
    """Dispatch until ``stop`` is set.

    Raises:
        TransientError: the broker is away: start again later, nothing is lost.
    """
    kafka = wiring.require_broker(settings)
    registry = Registry(kafka, wiring.topics(settings))
    registry.start(stop)

    def spec_of(model: str) -> ModelSpec | None:
        found = registry.newest(model)
        return found.spec if found is not None else None

    async def main(watch: Watch) -> None:
        await Dispatcher(settings, spec_of, watch=watch).run(stop)

    try:
        with watching("dispatcher", kafka) as watch:
            asyncio.run(main(watch))
    finally:
        registry.stop()
