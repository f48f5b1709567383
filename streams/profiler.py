"""The profiler: raw predictions in, profiles out, one Kafka transaction a batch.

The protocol of a batch; the numbers stand in the code:

1. *Consume* up to ``batch_events`` messages, or what there is after ``batch_wait_s``.
2. *Profile* them: pure, no state but the marks (position and watermark of each source partition).
3. *Begin* a transaction and produce one message to every partition of ``profiles``, the scored rows, and the dead letters.
4. *Offsets* of the batch go into the same transaction, each with its partition's watermark as metadata.
5. *Commit*. Only now do the marks move.

An abort needs no recovery: seek back to the marks and go on. After an indefinite error (a commit that timed out, a fenced producer) nobody knows
whether the transaction exists: the producer is destroyed, its successor fences it, and the committed offsets say what happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

import msgspec
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from monitor import metrics, wire
from monitor.errors import TransientError
from monitor.panes import SourceMark
from monitor.settings import Settings
from streams import wiring
from streams.clients import consumer_config, producer_config
from streams.deadletter import dead_letter, header_list
from streams.profiling import Outcome, Policy, SourceMessage, profile_batch
from streams.registry import Registry

logger = logging.getLogger(__name__)

_TXN_TIMEOUT_S: Final = 10.0
_MAX_MESSAGE: Final = 900_000  # brokers take 1 MiB; the rest is for headers


class _Metadata(msgspec.Struct, array_like=True):
    """What rides with a committed offset. Kafka allows 4 KiB."""

    watermark_ms: int | None


@dataclass(frozen=True, slots=True)
class _Read:
    """A consumed message, as the pure part sees it and as it came."""

    source: SourceMessage
    original: Message


def run(settings: Settings, stop: Event) -> None:
    """Profile until ``stop`` is set.

    Raises:
        TransientError: the broker does not answer.
    """
    registry = Registry(wiring.kafka(settings), wiring.topics(settings))
    registry.start()
    try:
        clock = time.time  # noqa: TID251 - the process's edge
        Profiler(settings, registry, clock=clock, monotonic=time.monotonic).run(stop)
    except KafkaException as err:
        raise TransientError(f"kafka: {err.args[0].str()}") from err
    finally:
        registry.stop()


class Profiler:
    """The loop. Mutable: it owns the clients and the marks of the partitions that it holds."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._kafka, self._topics = wiring.kafka(settings), wiring.topics(settings)
        self._settings, self._registry = settings.profiler, registry
        self._clock, self._monotonic = clock, monotonic
        self._policy = Policy(
            limits=wiring.limits(settings),
            partitions=settings.kafka.detector_partitions,
            max_models=settings.limits.models,
            auto_register=settings.limits.auto_register,
        )
        self._marks: dict[int, SourceMark] = {}
        self._jumps: dict[int, str] = {}
        self._at_end: dict[
            int, float
        ] = {}  # source partition -> monotonic time since when nothing was left
        self._sent_s = -1e9
        group = f"{self._topics.prefix}profiler"
        config = consumer_config(self._kafka, group, logger) | {"enable.partition.eof": True}
        self._consumer = Consumer(config)
        self._transactional_id = f"{group}-{settings.profiler.instance}"
        self._producer = self._new_producer()

    def run(self, stop: Event) -> None:
        """Profile until ``stop`` is set, then leave the group."""
        self._consumer.subscribe(
            [self._topics.predictions],
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._revoked,
        )
        try:
            while not stop.is_set():
                batch = self._consume()  # 1.
                if batch or self._heartbeat_due():
                    self._send(batch)
                else:
                    metrics.turned("profiler")
        finally:
            self._consumer.close()

    def _new_producer(self) -> Producer:
        producer = Producer(
            producer_config(self._kafka, logger, transactional_id=self._transactional_id)
        )
        producer.init_transactions(_TXN_TIMEOUT_S)
        return producer

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Take up each partition where its committed offset says, or at its start."""
        for committed in consumer.committed(partitions, timeout=_TXN_TIMEOUT_S):
            low, _ = consumer.get_watermark_offsets(committed, timeout=_TXN_TIMEOUT_S)
            partition, offset = committed.partition, committed.offset
            watermark = _watermark(committed.metadata)
            if offset < 0:
                offset = low
            elif offset < low:
                # Retention was faster than we were: the hole is announced and booked, not papered over.
                self._jumps[partition] = f"retention removed {offset} to {low}"
                offset = low
            self._marks[partition] = SourceMark(offset, watermark, idle=False)
        positions = [
            TopicPartition(p.topic, p.partition, self._marks[p.partition].position)
            for p in partitions
        ]
        consumer.assign(positions)
        self._sent_s = -1e9  # say at once where the partitions stand
        logger.info("assigned partitions %s", sorted(p.partition for p in partitions))

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._marks.pop(partition.partition, None)
            self._at_end.pop(partition.partition, None)
            self._jumps.pop(partition.partition, None)

    def _consume(self) -> list[_Read]:
        batch: list[_Read] = []
        for message in self._consumer.consume(
            self._settings.batch_events, timeout=self._settings.batch_wait_s
        ):
            error = message.error()
            partition = message.partition()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                self._at_end.setdefault(partition or 0, self._monotonic())
                continue
            if partition not in self._marks:
                continue  # revoked while it was on its way
            self._at_end.pop(partition, None)
            batch.append(_Read(_source(message), message))
        return batch

    def _idle(self) -> set[int]:
        now = self._monotonic()
        return {
            p for p, since in self._at_end.items() if now - since >= self._settings.idle_after_s
        }

    def _heartbeat_due(self) -> bool:
        if not self._marks:
            return False
        idle = self._idle()
        changed = any(mark.idle != (p in idle) for p, mark in self._marks.items())
        return changed or self._monotonic() - self._sent_s >= self._settings.heartbeat_s

    def _send(self, batch: Sequence[_Read]) -> bool:
        """Profile and commit a batch; halve it where a message would become too large. False: it was rolled back, to be read again."""
        started = self._monotonic()
        outcome = self._profile(batch)
        profiles = [wire.encode(message) for message in outcome.profiles]
        if max(map(len, profiles)) > _MAX_MESSAGE:
            if len(batch) > 1:
                half = len(batch) // 2
                # The second half must not commit past a first half that did not.
                return self._send(batch[:half]) and self._send(batch[half:])
            outcome = self._profile(batch, refusal="its profiles do not fit into one message")
            profiles = [wire.encode(message) for message in outcome.profiles]
        if not self._commit(batch, outcome, profiles):
            return False
        self._sent_s = self._monotonic()
        metrics.finished("profiler", self._sent_s - started)
        return True

    def _profile(self, batch: Sequence[_Read], refusal: str | None = None) -> Outcome:
        return profile_batch(  # 2.
            [read.source for read in batch],
            self._marks,
            self._registry.newest,
            self._policy,
            now_ms=round(self._clock() * 1_000),
            known_models=len(self._registry.all()),
            idle=self._idle(),
            jumps=self._jumps,
            refusal=refusal,
        )

    def _commit(self, batch: Sequence[_Read], outcome: Outcome, profiles: Sequence[bytes]) -> bool:
        try:
            self._producer.begin_transaction()  # 3.
            self._produce(batch, outcome, profiles)
            offsets = [
                TopicPartition(self._topics.predictions, p, mark.position, _metadata(mark))
                for p, mark in outcome.marks.items()
            ]
            metadata = self._consumer.consumer_group_metadata()
            _retried(
                lambda: self._producer.send_offsets_to_transaction(
                    offsets, metadata, _TXN_TIMEOUT_S
                )
            )  # 4.
            _retried(lambda: self._producer.commit_transaction(_TXN_TIMEOUT_S))  # 5.
        except KafkaException as err:
            self._roll_back(err.args[0])
            return False
        self._marks.update(outcome.marks)
        self._jumps.clear()
        self._count(outcome)
        return True

    def _produce(self, batch: Sequence[_Read], outcome: Outcome, profiles: Sequence[bytes]) -> None:
        for partition, value in enumerate(profiles):
            self._put(self._topics.profiles, value=value, partition=partition)
        for model, rows in outcome.scored:
            self._put(self._topics.scored, key=model.encode(), value=rows)
        originals = {id(read.source): read.original for read in batch}
        for dead in outcome.dead:
            original = originals[id(dead.message)]
            letter = dead_letter(
                original, reason=dead.error.reason, detail=dead.error.detail, stage="profiler"
            )
            self._put(self._topics.dlq, **letter)

    def _put(self, topic: str, **record: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, **record)
            except BufferError:
                self._producer.poll(0.1)  # the local queue is full: wait for the broker
            else:
                return

    def _roll_back(self, error: KafkaError) -> None:
        """Forget a batch that did not commit, and read it again."""
        metrics.TRANSACTIONS_ABORTED.inc()
        logger.warning("transaction rolled back: %s", error.str())
        if error.txn_requires_abort():
            try:
                _retried(lambda: self._producer.abort_transaction(_TXN_TIMEOUT_S))
            except KafkaException as err:
                error = err.args[0]
            else:
                self._rewind()
                return
        # Indefinite: only a successor with the same transactional id can end what was begun.
        self._producer = self._new_producer()
        self._rewind()

    def _rewind(self) -> None:
        """Go back to the committed offsets: the broker knows whether the batch went through."""
        held = [TopicPartition(self._topics.predictions, p) for p in self._marks]
        for committed in self._consumer.committed(held, timeout=_TXN_TIMEOUT_S):
            mark = self._marks[committed.partition]
            if committed.offset >= 0 and committed.offset != mark.position:
                watermark = _watermark(committed.metadata)
                mark = SourceMark(
                    committed.offset,
                    watermark if watermark is not None else mark.watermark_ms,
                    idle=False,
                )
                self._marks[committed.partition] = mark
            self._consumer.seek(
                TopicPartition(self._topics.predictions, committed.partition, mark.position)
            )
            self._at_end.pop(committed.partition, None)

    def _count(self, outcome: Outcome) -> None:
        metrics.EVENTS.inc(outcome.events)
        metrics.EVENTS_LATE.inc(outcome.late)
        for dead in outcome.dead:
            metrics.EVENTS_REJECTED.labels(dead.error.reason).inc(dead.events)
            metrics.DEAD_LETTERS.labels("profiler").inc()
        for partition, mark in outcome.marks.items():
            if mark.watermark_ms is not None:
                metrics.WATERMARK.labels(str(partition)).set(mark.watermark_ms / 1_000)


def _source(message: Message) -> SourceMessage:
    headers = {
        name.lower(): value for name, value in header_list(message) if isinstance(value, bytes)
    }
    partition, offset = message.partition(), message.offset()
    if partition is None or offset is None:
        raise TransientError("a message without a position")  # the client never hands one over
    return SourceMessage(partition, offset, message.value(), headers)


def _metadata(mark: SourceMark) -> str:
    return msgspec.json.encode(_Metadata(mark.watermark_ms)).decode()


def _watermark(metadata: str | None) -> int | None:
    """The watermark in a committed offset's metadata; ``None`` where the broker keeps none, or someone else wrote it."""
    try:
        return msgspec.json.decode(metadata or "[null]", type=_Metadata).watermark_ms
    except msgspec.MsgspecError:
        return None


def _retried(call: Callable[[], object], attempts: int = 5) -> None:
    """Repeat a transactional call while the client says that it may be repeated."""
    for attempt in range(attempts):
        try:
            call()
        except KafkaException as err:
            if not err.args[0].retriable() or attempt == attempts - 1:
                raise
        else:
            return
