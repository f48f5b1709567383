"""The sink: what the topics carry goes to ClickHouse, in batches, at least once, under keys that make a repeat harmless.

The protocol of a batch; the numbers stand in the code:

1. *Read* messages into a batch, until it has ``batch_rows`` rows or ``batch_wait_s`` have passed.
2. *Insert* its rows, a table at a time. A failure repeats this step: meanwhile the partitions are paused and polled, so
   the sink stays in its group and its memory stays one batch.
3. *Dead-letter* what cannot be read, and what ClickHouse refuses: the batch is halved until the message is found.
4. *Commit* the positions. They tell the evaluator what is stored, so ends of partitions are committed too.

A crash before 4 repeats the batch: rows are replaced by key, and an insert token is the second line. A rebalance drops
the batch; its new owner reads it again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from monitor import metrics, store
from monitor.clickhouse import RefusedError
from monitor.errors import TransientError
from monitor.profile import Layout
from monitor.settings import Settings
from monitor.store import Store
from monitor.tables import TableName
from streams import wiring
from streams.clients import consumer_config, producer_config
from streams.deadletter import dead_letter
from streams.intake import Intake, Parcel, columns, gather
from streams.registry import Registry
from streams.topics import Topics

logger = logging.getLogger(__name__)

Target: TypeAlias = tuple[str, int]
"""Topic and partition."""

STAGE: Final = "sink"
MAX_BATCH_BYTES: Final = 64 << 20  # of message values: rows of windows are wide
_CONSUME: Final = 1_000  # messages a call: a scored message may have thousands of rows
_POLL_S: Final = 0.2
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_FLUSH_S: Final = 10.0


def sink_group(topics: Topics) -> str:
    """Consumer group of the sink; its committed positions say what is stored."""
    return f"{topics.prefix}sink"


def store_parcels(
    target: Store, parcels: Sequence[Parcel], *, refused: Callable[[TableName], None]
) -> None:
    """Insert the rows of a batch; a message that ClickHouse refuses is rejected, and its rows in later tables are left out.

    Raises:
        TransientError: some tables may be stored and some not: repeat the whole.
    """
    for name, having in gather(parcels).items():
        _store(target, name, having, refused)


def _store(
    target: Store, name: TableName, parcels: Sequence[Parcel], refused: Callable[[TableName], None]
) -> None:
    fit = [parcel for parcel in parcels if name in parcel.rows]
    if not fit:
        return
    try:
        rows = columns(name, fit)
        target.append(name, rows, token=insert_token(name, fit))
    except (RefusedError, pa.ArrowException, OverflowError, TypeError, ValueError) as err:
        if len(fit) == 1:
            detail = str(err) if isinstance(err, RefusedError) else type(err).__name__
            fit[0].reject("refused", f"{name}: {detail}")
            fit[0].rows.clear()
            refused(name)
            return
        half = len(fit) // 2
        _store(target, name, fit[:half], refused)
        _store(target, name, fit[half:], refused)
    else:
        metrics.SINK_ROWS.labels(name).inc(rows.num_rows)
        metrics.SINK_INSERTS.labels(name).inc()


def insert_token(name: TableName, parcels: Iterable[Parcel]) -> str:
    """Equal for equal messages. Times are part of it, as offsets start anew with a topic that is created again."""
    spans: dict[Target, list[int]] = {}
    for parcel in parcels:
        message = parcel.message
        place = (message.topic() or "", message.partition() or 0)
        here = (message.offset() or 0, message.timestamp()[1])
        spans.setdefault(place, [*here, *here, 0])[2:] = [
            *here,
            spans.get(place, [0] * 5)[4] + 1,
        ]
    return f"{name}:{hashlib.sha256(repr(sorted(spans.items())).encode()).hexdigest()[:32]}"


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
        batch_rows: int,
        batch_wait_s: float,
        rng: np.random.Generator,
    ) -> None:
        self._consumer, self._producer = consumer, producer
        self._target, self._intake, self._dlq = target, intake, dlq
        self._batch_rows, self._batch_wait_s, self._rng = batch_rows, batch_wait_s, rng
        self._parcels: list[Parcel] = []
        self._rows = self._bytes = 0
        self._positions: dict[Target, int] = {}
        self._committed: dict[Target, int] = {}
        self._generation = 0
        self._failing = False

    def run(self, stop: threading.Event) -> None:
        """Follow the topics until ``stop`` is set.

        Raises:
            TransientError: a topic is missing, or the broker does not take dead letters.
            ConfigError: ClickHouse will never take rows as things are.
        """
        self._consumer.subscribe(
            self._intake.topics, on_assign=self._rebalanced, on_revoke=self._rebalanced
        )
        while not stop.is_set():
            self._read(stop)  # 1
            began = time.monotonic()
            if self._write(stop):  # 2 and 3
                self._commit()  # 4
                metrics.finished("sink", time.monotonic() - began)

    def _read(self, stop: threading.Event) -> None:
        """Fill the batch."""
        deadline = time.monotonic() + self._batch_wait_s
        while self._rows < self._batch_rows and self._bytes < MAX_BATCH_BYTES:
            left = deadline - time.monotonic()
            if left <= 0 or stop.is_set():
                return
            for message in self._consumer.consume(_CONSUME, timeout=min(left, _POLL_S)):
                self._take(message)

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
        parcel = self._intake.read(message)
        self._positions[place] = offset + 1
        self._parcels.append(parcel)
        self._rows += parcel.size
        self._bytes += len(message.value() or b"")

    def _write(self, stop: threading.Event) -> bool:
        """Make the batch durable, however long it takes; false if a rebalance took it, or ``stop`` came first."""
        generation, wait = self._generation, _FIRST_WAIT_S
        while self._generation == generation:
            try:
                store_parcels(self._target, self._parcels, refused=_count_refused)
                self._bury()
            except TransientError as err:
                if not self._failing:  # once per outage
                    logger.warning("batch is repeated until it is stored: %s", err)
                self._failing = True
                metrics.TRANSIENT_ERRORS.labels("sink").inc()
                if stop.is_set() or not self._pause(stop, wait * self._rng.uniform(0.5, 1.0)):
                    return False
                wait = min(_LONGEST_WAIT_S, 2 * wait)
            else:
                if self._failing:
                    logger.info("stored again")
                self._failing = False
                self._clear()
                return True
        return False

    def _pause(self, stop: threading.Event, wait_s: float) -> bool:
        """Wait without reading, yet stay in the group; false if the partitions were taken away or ``stop`` came."""
        generation = self._generation
        held = self._consumer.assignment()
        self._consumer.pause(held)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not stop.is_set():
            for message in self._consumer.consume(1, timeout=_POLL_S):
                self._take(message)  # fetched before the pause: it joins the batch
            if self._generation != generation:
                return False  # new partitions are not paused
        self._consumer.resume(held)
        return not stop.is_set()

    def _bury(self) -> None:
        """Send rejected messages to the dead letters and wait until the broker has them."""
        failures: list[str] = []
        dead = [parcel for parcel in self._parcels if parcel.reason is not None]
        for parcel in dead:
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
        metrics.DEAD_LETTERS.labels("sink").inc(len(dead))

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
        for (topic, partition), at in moved.items():
            where = TopicPartition(topic, partition)
            _, high = self._consumer.get_watermark_offsets(where, cached=True)
            metrics.LAG.labels(topic, str(partition)).set(max(high - at, 0))

    def _clear(self) -> None:
        self._parcels.clear()
        self._rows = self._bytes = 0

    def _rebalanced(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._generation += 1
        self._clear()
        self._positions.clear()
        self._committed.clear()


class KnownLayouts:
    """Binnings by id: remembered, then from ClickHouse, then from the ``models`` topic. They never change, so there is nothing to expire.

    What nobody knows is not remembered: its reference may be published a moment later.
    """

    def __init__(self, target: Store, registry: Registry) -> None:
        self._target, self._registry = target, registry
        self._known: dict[str, Layout] = {}

    def __call__(self, model: str, bins_id: str) -> Layout | None:
        """The binning, or ``None`` if nobody knows it.

        Raises:
            TransientError: ClickHouse does not answer.
        """
        if bins_id in self._known:
            return self._known[bins_id]
        found = self._target.layout(bins_id) or self._published(model, bins_id)
        if found is not None:
            self._known[bins_id] = found
        return found

    def _published(self, model: str, bins_id: str) -> Layout | None:
        try:
            reference = self._registry.model(model, bins_id).reference
        except TransientError:
            return None  # it has waited for the topic already
        return None if reference is None else reference.layout


_MISSING_TOPIC: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
)


def _count_refused(name: TableName) -> None:
    metrics.SINK_ERRORS.labels(name).inc()


def run(settings: Settings, stop: threading.Event) -> None:
    """Write to ClickHouse until ``stop`` is set.

    Raises:
        TransientError: broker or database are away: start again later, nothing is lost.
        ConfigError: the settings will never work.
    """
    kafka, topics = wiring.require_broker(settings), wiring.topics(settings)
    target = store.connect(settings.clickhouse)
    registry = Registry(kafka, topics)
    config = consumer_config(kafka, sink_group(topics), logger)
    consumer = Consumer({**config, "enable.partition.eof": True})  # see step 4
    try:
        registry.start(stop)
        Sink(
            consumer,
            Producer(producer_config(kafka, logger)),
            target,
            Intake(topics, KnownLayouts(target, registry)),
            dlq=topics.dlq,
            batch_rows=settings.sink.batch_rows,
            batch_wait_s=settings.sink.batch_wait_s,
            rng=np.random.default_rng(),
        ).run(stop)
    finally:
        consumer.close()
        registry.stop()
        target.close()
