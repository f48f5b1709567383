"""The sink: what the topics carry goes to ClickHouse, in batches, at least once, under keys that make a repeat harmless.

The protocol of a batch; the numbers stand in the code:

1. *Read* messages into a batch, until it has ``batch_rows`` rows or ``batch_wait_s`` have passed.
   A message whose binning cannot be looked up now ends the batch, and is read again in step 2.
2. *Insert* its rows, a table at a time. A failure repeats this step: meanwhile the partitions are paused and polled, so
   the sink stays in its group and its memory stays one batch. What comes in spite of the pause is put back. A database
   that takes minutes for a batch is polled through in the same way, between two tables.
3. *Dead-letter* what cannot be read, and what ClickHouse refuses: the batch is halved until the message is found.
4. *Commit* the positions. They tell the evaluator what is stored, so ends of partitions are committed too.

A crash before 4 repeats the batch: rows are replaced by key, and an insert token is the second line. A rebalance drops
the batch; its new owner reads it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import compress
from typing import Any, Final

import numpy as np
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from monitor import metrics, store
from monitor.errors import DriftlineError, TransientError
from monitor.settings import Settings
from monitor.store import Store
from streams import wiring
from streams.clients import consumer_config, producer_config
from streams.deadletter import Cap, dead_letter
from streams.delivery import Target
from streams.health import Watch, watching
from streams.inserts import KnownLayouts, count_refused, store_parcels
from streams.intake import Intake, Parcel
from streams.models import aliases_of
from streams.registry import Registry
from streams.topics import Topics

logger = logging.getLogger(__name__)

STAGE: Final = "sink"
MAX_BATCH_BYTES: Final = 64 << 20  # of message values: rows of windows are wide
# Messages a call. A batch exceeds its bounds by one call at most: that is 32 MB, what librdkafka fetches ahead.
_CONSUME: Final = 200
SETTLE_S: Final = 600.0  # about 20,000 rows of the ledger in a busy system: 0.1 s
_ROLL_S: Final = (
    5.0  # of rolling up between two batches: after a long pause there may be a year to do
)
_SILENT_S: Final = (
    60.0  # between two polls; the group would expel us after 300 s (max.poll.interval.ms)
)
_POLL_S: Final = 0.2
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_FLUSH_S: Final = 10.0


def sink_group(topics: Topics) -> str:
    """Consumer group of the sink; its committed positions say what is stored."""
    return f"{topics.prefix}sink"


class Sink:
    """The loop. Mutable state is one batch and the positions behind it; a rebalance clears both."""

    def __init__(
        self,
        consumer: Consumer,
        producer: Producer,
        target: Store,
        intake: Intake,
        *,
        dlq: str,
        cap: Cap,
        batch_rows: int,
        batch_wait_s: float,
        rng: np.random.Generator,
        clock: Callable[[], float],
        watch: Watch | None = None,
    ) -> None:
        self._consumer, self._producer, self._watch = consumer, producer, watch
        self._target, self._intake, self._dlq, self._cap = target, intake, dlq, cap
        self._batch_rows, self._batch_wait_s, self._rng = batch_rows, batch_wait_s, rng
        self._clock = clock
        self._newest_ms = 0
        self._parcels: list[Parcel] = []
        self._unread: list[Parcel] = []
        self._rows = self._bytes = 0
        self._polled_s = time.monotonic()
        self._settle_at_s = self._roll_at_s = self._polled_s + SETTLE_S
        self._positions: dict[Target, int] = {}
        self._committed: dict[Target, int] = {}
        self._held: list[Target] = []
        self._generation = 0
        self._failing = False

    def run(self, stop: threading.Event) -> None:
        """Follow the topics until ``stop`` is set.

        Raises:
            TransientError: a topic is missing, or the broker does not take dead letters.
            ConfigError: ClickHouse will never take rows as things are.
        """
        self._consumer.subscribe(
            self._intake.topics, on_assign=self._assigned, on_revoke=self._rebalanced
        )
        while not stop.is_set():
            self._read(stop)  # 1
            began = time.monotonic()
            if self._write(stop):  # 2 and 3
                self._commit()  # 4
                metrics.finished("sink", time.monotonic() - began)
            self._settle()
            self._roll()

    def _settle(self) -> None:
        """Now and then, let the ledger's sums replace its rows in what is asked: see ``monitor.bookings``."""
        if time.monotonic() < self._settle_at_s:
            return
        self._settle_at_s = time.monotonic() + SETTLE_S
        try:
            self._target.bookings.settle()
        except DriftlineError as err:
            logger.warning("the ledger is not settled, trying again later: %s", err)

    def _roll(self) -> None:
        """Now and then, make hours and days of shorter windows: see ``monitor.rollups``."""
        began = time.monotonic()
        if began < self._roll_at_s:
            return
        self._roll_at_s = began + SETTLE_S
        try:
            if not self._target.rollups.roll(
                enough=lambda: time.monotonic() > began + _ROLL_S, every_s=int(SETTLE_S / 2)
            ):
                self._roll_at_s = began  # the rest after the next batch
        except DriftlineError as err:
            logger.warning("windows are not rolled up, trying again later: %s", err)

    def _read(self, stop: threading.Event) -> None:
        """Fill the batch."""
        deadline = time.monotonic() + self._batch_wait_s
        while self._rows < self._batch_rows and self._bytes < MAX_BATCH_BYTES and not self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or stop.is_set():
                return
            for message in self._poll(_CONSUME, min(left, _POLL_S)):
                self._take(message)

    def _poll(self, most: int, timeout_s: float) -> list[Message]:
        messages = self._consumer.consume(most, timeout=timeout_s)
        self._polled_s = time.monotonic()
        return messages

    def _take(self, message: Message) -> None:
        error = message.error()
        place = (message.topic() or "", message.partition() or 0)
        offset = message.offset() or 0
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                # The end is past the last message where a transaction marker follows it.
                self._positions[place] = offset
            elif error.code() in _MISSING_TOPIC:
                raise TransientError(
                    f"topic {place[0]} is not there: run `driftline topics create`"
                )
            else:
                logger.warning("read failed: %s", error.str())
            return
        parcel = Parcel(message)
        self._positions[place] = offset + 1
        self._parcels.append(parcel)
        self._unread.append(parcel)
        self._bytes += len(message.value() or b"")
        if len(self._unread) == 1:
            with suppress(TransientError):  # it stays unread: step 2 has the patience
                self._read_rows()

    def _read_rows(self) -> None:
        """Turn messages into rows.

        Raises:
            TransientError: a binning cannot be looked up now; the rest is unread still.
        """
        while self._unread:
            self._intake.fill(self._unread[0])
            self._rows += self._unread.pop(0).size

    def _write(self, stop: threading.Event) -> bool:
        """Make the batch durable, however long it takes; false if a rebalance took it, or ``stop`` came first."""
        generation, wait = self._generation, _FIRST_WAIT_S
        while self._generation == generation:
            try:
                if not self._store(generation):
                    return False
                self._bury()
            except TransientError as err:
                self._note_failure(err)
                if stop.is_set() or not self._pause(stop, wait * self._rng.uniform(0.5, 1.0)):
                    return False
                wait = min(_LONGEST_WAIT_S, 2 * wait)
            else:
                if self._failing:
                    logger.info("stored again")
                self._failing = False
                self._tell_delays()
                self._clear()
                return True
        return False

    def _store(self, generation: int) -> bool:
        self._read_rows()
        return store_parcels(
            self._target,
            self._parcels,
            refused=count_refused,
            ours=lambda: self._is_ours(generation),
        )

    def _note_failure(self, err: TransientError) -> None:
        if not self._failing:  # once per outage
            logger.warning("batch is repeated until it is stored: %s", err)
        self._failing = True
        metrics.TRANSIENT_ERRORS.labels("sink").inc()
        if self._watch is not None:
            self._watch.waits()

    def _tell_delays(self) -> None:
        now_s = self._clock()
        for end_ms in (p.closed_ms for p in self._parcels if p.closed_ms is not None):
            metrics.WINDOW_DELAY.observe(max(0.0, now_s - end_ms / 1_000))
            self._newest_ms = max(self._newest_ms, end_ms)
            metrics.NEWEST_WINDOW.set(self._newest_ms / 1_000)

    def _is_ours(self, generation: int) -> bool:
        """Whether the batch still is; polls where a slow database has kept us from it for long."""
        if time.monotonic() - self._polled_s > _SILENT_S:
            self._pause(threading.Event(), 0.0)
        return self._generation == generation

    def _pause(self, stop: threading.Event, wait_s: float) -> bool:
        """Wait without reading, yet stay in the group; false if the partitions were taken away or ``stop`` came."""
        generation = self._generation
        held = self._consumer.assignment()
        self._consumer.pause(held)
        back: dict[Target, int] = {}
        deadline = time.monotonic() + wait_s
        while True:
            left = deadline - time.monotonic()
            for message in self._poll(1, min(max(left, 0.0), _POLL_S)):
                if message.error() is None:  # fetched before the pause: the batch must not grow
                    place = (message.topic() or "", message.partition() or 0)
                    back.setdefault(place, message.offset() or 0)
            if self._generation != generation:
                return False  # new partitions are not paused
            if left <= 0 or stop.is_set():
                break
        try:
            for (topic, partition), offset in back.items():
                self._consumer.seek(TopicPartition(topic, partition, offset))
            self._consumer.resume(held)
        except KafkaException as err:
            raise TransientError("the consumer cannot go back to what it put aside") from err
        return not stop.is_set()

    def _bury(self) -> None:
        """Send rejected messages to the dead letters, up to the cap, and wait until the broker has them."""
        failures: list[str] = []
        dead = [parcel for parcel in self._parcels if parcel.reason is not None]
        sent = self._cap.sift([parcel.reason or "" for parcel in dead], time.monotonic())
        for parcel in compress(dead, sent):
            letter = dead_letter(
                parcel.message,
                reason=parcel.reason or "",
                detail=parcel.detail,
                stage=STAGE,
            )
            try:
                self._produce(letter, failures)
            except KafkaException as err:
                if err.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise TransientError("the broker does not take dead letters") from err
                # With its headers it is too large for the broker: they say where the original is.
                self._produce({**letter, "value": None}, failures)
        if dead and (self._producer.flush(_FLUSH_S) or failures):
            raise TransientError("the broker does not take dead letters")
        self._cap.spent(time.monotonic())

    def _produce(self, letter: dict[str, Any], failures: list[str]) -> None:
        self._producer.produce(
            self._dlq,
            on_delivery=lambda error, _: failures.append(error.str()) if error else None,
            **letter,
        )
        self._producer.poll(0)

    def _commit(self) -> None:
        moved = {p: at for p, at in self._positions.items() if self._committed.get(p) != at}
        if not moved:
            return
        offsets = [TopicPartition(topic, part, at) for (topic, part), at in moved.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as err:
            # The rows are stored; whoever reads them again replaces them. The next commit covers these positions too.
            logger.warning("commit failed: %s", err.args[0].str())
            return
        self._committed |= moved
        self._tell()

    def _clear(self) -> None:
        self._parcels.clear()
        self._unread.clear()
        self._rows = self._bytes = 0

    def _tell(self) -> None:
        if self._watch is not None:
            self._watch.reached(dict.fromkeys(self._held, -1) | self._committed)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalanced(consumer, partitions)
        self._held = [(place.topic, place.partition) for place in partitions]
        self._tell()

    def _rebalanced(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._generation += 1
        self._clear()
        self._held = []
        self._positions.clear()
        self._committed.clear()
        self._tell()


_MISSING_TOPIC: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
)


def run(settings: Settings, stop: threading.Event) -> None:
    """Write to ClickHouse until ``stop`` is set.

    Raises:
        TransientError: broker or database are away: start again later, nothing is lost.
        ConfigError: the settings will never work.
    """
    kafka, topics = wiring.require_broker(settings), wiring.topics(settings)
    config = consumer_config(kafka, sink_group(topics), logger)
    with ExitStack() as opened:
        target = store.connect(settings.clickhouse)
        opened.callback(target.close)
        registry = Registry(kafka, topics)
        opened.callback(registry.stop)
        registry.start(stop)
        watch = opened.enter_context(watching("sink", kafka))
        consumer = Consumer({**config, "enable.partition.eof": True})  # see step 4
        opened.callback(consumer.close)
        Sink(
            consumer,
            Producer(producer_config(kafka, logger)),
            target,
            Intake(topics, KnownLayouts(target, registry), aliases_of(registry.newest)),
            dlq=topics.dlq,
            cap=Cap("sink", settings.limits.dead_letters_per_minute, logger),
            batch_rows=settings.sink.batch_rows,
            batch_wait_s=settings.sink.batch_wait_s,
            rng=np.random.default_rng(),
            clock=time.time,  # noqa: TID251 - how old a window is, is of the wall clock
            watch=watch,
        ).run(stop)
