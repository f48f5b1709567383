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
from collections.abc import Callable, Sequence, Set
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
class _Jump:
    """Why a source partition goes on elsewhere, and the position that it left: the committed one until the jump is."""

    why: str
    left: int


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
    registry = Registry(wiring.require_broker(settings), wiring.topics(settings))
    registry.start(stop)
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
        self._jumps: dict[int, _Jump] = {}
        self._unreadable: set[int] = set()  # source partitions whose position is not in the log
        self._at_end: dict[
            int, float
        ] = {}  # source partition -> monotonic time since when nothing was left
        self._sent_s = -1e9
        group = f"{self._topics.prefix}profiler"
        config = (
            consumer_config(self._kafka, group, logger)
            | {
                "enable.partition.eof": True,
                "auto.offset.reset": "error",  # each position is given: one that is gone is a jump, and announced
            }
        )
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
            self._marks[partition] = SourceMark(
                low if offset < 0 else offset, watermark, idle=False
            )
            if 0 <= offset < low:
                self._jump(partition, low)
        self._go_on()
        self._sent_s = -1e9  # say at once where the partitions stand
        logger.info("assigned partitions %s", sorted(p.partition for p in partitions))

    def _jump(self, partition: int, low: int) -> None:
        """Go on at the log's start. The hole is announced and booked, not papered over."""
        mark, earlier = self._marks[partition], self._jumps.get(partition)
        left = mark.position if earlier is None else earlier.left
        if left < low:
            why = f"retention removed {left} to {low}"
        else:
            why = f"the topic was created anew: it ends before {left}"
        logger.warning("partition %d goes on at %d: %s", partition, low, why)
        self._jumps[partition] = _Jump(why, left)
        self._marks[partition] = SourceMark(low, mark.watermark_ms, idle=False)

    def _reset(self) -> None:
        """Give each partition that cannot be read at its position a new one.

        That it cannot is the broker's word in a fetch. The embedded broker's ListOffsets understates a partition's
        end, so that the one cannot be compared with the other.
        """
        if not self._unreadable:
            return
        for partition in self._unreadable:
            place = TopicPartition(self._topics.predictions, partition)
            low, _ = self._consumer.get_watermark_offsets(place, timeout=_TXN_TIMEOUT_S)
            self._jump(partition, low)
        self._go_on()

    def _go_on(self) -> None:
        """Read on from the marks. A seek would not do: librdkafka ignores it for a partition that it stopped to read."""
        self._unreadable.clear()  # the broker will say it again
        self._consumer.assign(
            [
                TopicPartition(self._topics.predictions, partition, mark.position)
                for partition, mark in self._marks.items()
            ]
        )

    def _revoked(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._marks.pop(partition.partition, None)
            self._at_end.pop(partition.partition, None)
            self._jumps.pop(partition.partition, None)
            self._unreadable.discard(partition.partition)

    def _consume(self) -> list[_Read]:
        self._reset()  # only now: what was read before belongs to the old position, and is sent
        batch: list[_Read] = []
        for message in self._consumer.consume(
            self._settings.batch_events, timeout=self._settings.batch_wait_s
        ):
            error = message.error()
            partition = message.partition()
            if error is not None:
                self._note(error, partition or 0)
                continue
            if partition not in self._marks:
                continue  # revoked while it was on its way
            self._at_end.pop(partition, None)
            batch.append(_Read(_source(message), message))
        return batch

    def _note(self, error: KafkaError, partition: int) -> None:
        match error.code():
            case KafkaError._PARTITION_EOF:
                self._at_end.setdefault(partition, self._monotonic())
            case KafkaError._AUTO_OFFSET_RESET if partition in self._marks:
                self._unreadable.add(partition)
            case KafkaError._AUTO_OFFSET_RESET:
                pass  # revoked while it was on its way
            case _:
                raise KafkaException(error)

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
        """Profile and commit a batch. False: it was rolled back, to be read again."""
        # Once for all its parts: while the first is sent, nobody may say that the second one's partition is silent.
        idle = self._idle() - {read.source.partition for read in batch}
        return self._send_parts(batch, idle)

    def _send_parts(self, batch: Sequence[_Read], idle: Set[int]) -> bool:
        """The same; halved where a message would become too large."""
        started = self._monotonic()
        outcome = self._profile(batch, idle)
        profiles = [wire.encode(message) for message in outcome.profiles]
        if max(map(len, profiles)) > _MAX_MESSAGE:
            if len(batch) > 1:
                half = len(batch) // 2
                # The second half must not commit past a first half that did not.
                return self._send_parts(batch[:half], idle) and self._send_parts(batch[half:], idle)
            outcome = self._profile(batch, idle, refusal="its profiles do not fit into one message")
            profiles = [wire.encode(message) for message in outcome.profiles]
        if not self._commit(batch, outcome, profiles):
            return False
        self._sent_s = self._monotonic()
        metrics.finished("profiler", self._sent_s - started)
        return True

    def _profile(
        self, batch: Sequence[_Read], idle: Set[int], refusal: str | None = None
    ) -> Outcome:
        return profile_batch(  # 2.
            [read.source for read in batch],
            self._marks,
            self._registry.newest,
            self._policy,
            now_ms=round(self._clock() * 1_000),
            known_models=len(self._registry.all()),
            idle=idle,
            jumps={partition: jump.why for partition, jump in self._jumps.items()},
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
            partition, mark = committed.partition, self._marks[committed.partition]
            jump = self._jumps.get(partition)
            # Behind a jump that is not committed stands the position that it left, which is gone.
            known = mark.position if jump is None else jump.left
            if committed.offset >= 0 and committed.offset != known:
                watermark = _watermark(committed.metadata)
                mark = SourceMark(
                    committed.offset,
                    watermark if watermark is not None else mark.watermark_ms,
                    idle=False,
                )
                self._marks[partition] = mark
                self._jumps.pop(partition, None)
            self._at_end.pop(partition, None)
        if held:
            self._go_on()

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
