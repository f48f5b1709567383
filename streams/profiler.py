"""The profiler: raw predictions in, profiles out, one Kafka transaction a batch.

The protocol of a batch; the numbers stand in the code:

1. *Count in* (in ``streams.source``). Who takes partitions up commits their offsets as they are, with one try more in the metadata.
2. *Consume* up to ``batch_events`` messages, or what there is after ``batch_wait_s``.
3. *Look through* the batch, if three workers ended before they got past it: what would end this one as well is taken out (``streams.quarantine``).
4. *Profile* it: pure, no state but the marks (position and watermark of each source partition). A partition is called idle only where the broker,
   asked now, has nothing beyond the end that was read to.
5. *Commit* in one transaction (``streams.transactions``): one message to every partition of ``profiles``, the scored rows, the dead letters, and the
   offsets, with each partition's watermark and tries as metadata. Only then do the marks move.

What did not commit needs no recovery: the committed offsets say where to go on, whatever became of the transaction.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from operator import attrgetter, methodcaller
from threading import Event
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from monitor import metrics, wire
from monitor.errors import InvalidEventError, TransientError
from monitor.events import decode_message
from monitor.settings import Settings
from streams import wiring
from streams.deadletter import Cap, dead_letter, header_map, refused_events
from streams.health import Watch, watching
from streams.profiling import (
    DeadLetter,
    Outcome,
    Policy,
    Reader,
    SourceMessage,
    TooManyProfilesError,
    profile_batch,
)
from streams.quarantine import COMMAND, Bench, Finding, examine
from streams.registry import Registry
from streams.source import Claim, Source
from streams.transactions import Produced, RolledBackError, Transactions, new_producer

logger = logging.getLogger(__name__)

_MAX_MESSAGE: Final = 900_000  # brokers take 1 MiB; the rest is for headers
_COLLECT_AFTER: Final = 100_000  # new objects; Python's own is 700
_PART_BYTES: Final = 8_000_000  # 10,000 JSON events of 800 bytes
_TRIES: Final = 3
_OUTDATED: Final = KafkaError(
    KafkaError._TIMED_OUT, "the claim that a partition is idle is old", False, False, True
)


class _Read(msgspec.Struct, frozen=True, gc=False):
    """A consumed message, as the pure part sees it and as it came. ``killed``: how it ends the process that decodes it."""

    source: SourceMessage
    original: Message
    killed: str | None = None


def run(settings: Settings, stop: Event) -> None:
    """Profile until ``stop`` is set.

    Raises:
        TransientError: the broker does not answer.
    """
    kafka = wiring.require_broker(settings)
    clock = time.time  # noqa: TID251 - the process's edge
    with ExitStack() as opened:
        registry = Registry(kafka, wiring.topics(settings))
        opened.callback(registry.stop)
        registry.start(stop)
        watch = opened.enter_context(watching("profiler", kafka))
        # To look through all that was loaded takes 50 to 100 ms, and came with every few batches.
        gc.collect()
        gc.freeze()
        # A batch makes some ten thousand objects, and no cycle: to look through them 14 times a batch took a twentieth of all.
        gc.set_threshold(_COLLECT_AFTER)
        try:
            Profiler(settings, registry, clock=clock, monotonic=time.monotonic, watch=watch).run(
                stop
            )
        except KafkaException as err:
            raise TransientError(f"kafka: {err.args[0].str()}") from err


class Profiler:
    """The loop. Mutable: it owns the clients and the positions of the partitions that it holds."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        examiner: Sequence[str] = COMMAND,
        watch: Watch | None = None,
    ) -> None:
        self._kafka, self._topics = wiring.kafka(settings), wiring.topics(settings)
        self._settings, self._registry = settings.profiler, registry
        self._clock, self._monotonic, self._examiner = clock, monotonic, examiner
        self._watch = watch
        self._policy = Policy(
            limits=wiring.limits(settings),
            partitions=settings.kafka.detector_partitions,
            max_models=settings.limits.models,
            auto_register=settings.limits.auto_register,
        )
        self._cap = Cap("profiler", settings.limits.dead_letters_per_minute, logger)
        self._reader = Reader()
        self._wary = 0  # messages that are still to be looked through
        self._most = settings.profiler.batch_events
        self._sent_s = -1e9
        group = f"{self._topics.prefix}profiler"
        self._source = Source(
            self._kafka,
            group,
            self._topics.predictions,
            taken_up=self._taken_up,
            monotonic=monotonic,
            idle_after_s=self._settings.idle_after_s,
        )
        self._transactional_id = f"{group}-{settings.profiler.instance}"
        self._transactions = Transactions(self._new_producer)

    def run(self, stop: Event) -> None:
        """Profile until ``stop`` is set, then leave the group."""
        self._source.subscribe()
        try:
            while not stop.is_set():
                batch = self._read()  # 2.
                self._tell_watch()
                vetted = self._vetted(batch, stop)  # 3.
                if vetted or self._heartbeat_due():
                    self._send(vetted)
                else:
                    metrics.turned("profiler")
                if len(vetted) < len(batch):
                    self._source.go_on()
        finally:
            self._source.close()

    def _new_producer(self) -> Producer:
        return new_producer(self._kafka, logger, self._transactional_id)

    def _taken_up(self) -> None:
        failed, most = self._source.positions.failed, self._settings.batch_events
        self._wary = most if failed >= _TRIES else 0
        # What ends a process only together with others is read in ever smaller batches.
        self._most = max(1, most // 10 ** max(0, failed - _TRIES))
        if self._wary:
            logger.warning(
                "%d workers ended before they got past a batch: it is looked through", failed
            )
        self._sent_s = -1e9  # say at once where the partitions stand

    def _read(self) -> list[_Read]:
        most = self._most if self._wary > 0 else self._settings.batch_events
        messages = self._source.read(most, self._settings.batch_wait_s)
        return list(map(_Read, _sources(messages), messages))

    def _vetted(self, batch: list[_Read], stop: Event) -> list[_Read]:
        """The batch without what would end this process, as far as there was time to look."""
        if not batch or self._wary <= 0:
            return batch
        bench = Bench(
            self._source.positions.marks, self._registry.all(), self._policy, self._now_ms()
        )
        try:
            finding = examine(
                [read.source for read in batch],
                bench,
                monotonic=self._monotonic,
                stopping=stop.is_set,
                command=self._examiner,
            )
        except TransientError as err:
            logger.error("the batch is not looked through: %s", err)  # noqa: TRY400  it is no defect
            finding = Finding(len(batch), {})
        for at, how in finding.killers.items():
            place = batch[at].source
            logger.error(
                "message %d of partition %d goes to the dead letters: it ends the process that decodes it, by %s",
                place.offset,
                place.partition,
                how,
            )
            nothing = SourceMessage(place.partition, place.offset, None, {})
            batch[at] = _Read(nothing, batch[at].original, how)
        for read in batch[finding.vetted :]:
            self._source.positions.came(read.source.partition)
        self._wary -= finding.vetted
        return batch[: finding.vetted]

    def _tell_watch(self) -> None:
        """Before the batch is sent: if that hangs, the partitions that were assigned a moment ago are known."""
        if self._watch is not None:
            topic, reached = self._topics.predictions, self._source.positions.reached
            self._watch.reached({(topic, p): at for p, at in reached.items()})

    def _heartbeat_due(self) -> bool:
        if not self._source.positions.marks:
            return False
        late = self._monotonic() - self._sent_s >= self._settings.heartbeat_s
        return late or self._source.changed()

    def _send(self, batch: Sequence[_Read]) -> bool:
        """Profile and commit a batch. False: it was rolled back, to be read again."""
        # For all its parts: while the first is sent, nobody may say that the second one's partition is silent.
        busy = set(map(_PARTITION, batch))
        # No part may commit past one that did not.
        return all(self._send_part(part, busy) for part in _parts(batch))

    def _send_part(self, batch: Sequence[_Read], busy: Set[int]) -> bool:
        """The same of a part; halved where a message would become too large."""
        started, now_ms, claim = self._monotonic(), self._now_ms(), self._source.claim(busy)
        fitting = self._fitting(batch, claim.idle, now_ms)
        if fitting is None and len(batch) > 1:
            half = len(batch) // 2
            # The second half must not commit past a first half that did not.
            return self._send_part(batch[:half], busy) and self._send_part(batch[half:], busy)
        if fitting is None:
            outcome = self._profile(
                batch, claim.idle, now_ms, "its profiles do not fit into one message"
            )
            fitting = outcome, [wire.encode(message) for message in outcome.profiles]
        outcome, profiles = fitting
        if not self._commit(batch, outcome, profiles, claim, now_ms):
            return False
        self._sent_s = self._monotonic()
        metrics.finished("profiler", self._sent_s - started)
        return True

    def _fitting(
        self, batch: Sequence[_Read], idle: Set[int], now_ms: int
    ) -> tuple[Outcome, list[bytes]] | None:
        """What the batch causes, with its profiles encoded; ``None`` where one is too large for a message."""
        try:
            outcome = self._profile(batch, idle, now_ms)
        except TooManyProfilesError:
            return None
        profiles = [wire.encode(message) for message in outcome.profiles]
        return (outcome, profiles) if max(map(len, profiles)) <= _MAX_MESSAGE else None

    def _profile(
        self, batch: Sequence[_Read], idle: Set[int], now_ms: int, refusal: str | None = None
    ) -> Outcome:
        outcome = profile_batch(  # 4.
            list(map(_SOURCE, batch)),
            self._source.positions.marks,
            self._registry.newest,
            self._policy,
            now_ms=now_ms,
            known_models=len(self._registry.all()),
            idle=idle,
            jumps=self._source.positions.jumps,
            refusal=refusal,
            reader=self._reader,
        )
        if not outcome.dead:
            return outcome
        killed = {id(read.source): read.killed for read in batch if read.killed is not None}
        outcome.dead = [
            DeadLetter(dead.message, InvalidEventError("killed_worker", how), dead.events)
            if (how := killed.get(id(dead.message))) is not None
            else dead
            for dead in outcome.dead
        ]
        return outcome

    def _commit(
        self,
        batch: Sequence[_Read],
        outcome: Outcome,
        profiles: Sequence[bytes],
        claim: Claim,
        now_ms: int,
    ) -> bool:
        reasons = [dead.error.reason for dead in outcome.dead]
        sent = self._cap.sift(reasons, self._monotonic())
        letters = [dead for dead, is_sent in zip(outcome.dead, sent, strict=True) if is_sent]
        records = self._records(batch, outcome, profiles, letters, claim, now_ms)
        offsets = self._source.offsets(outcome.marks)
        try:
            self._transactions.commit(records, offsets, self._source.ticket)  # 5.
        except RolledBackError as err:
            metrics.TRANSACTIONS_ABORTED.inc()
            logger.warning("transaction rolled back: %s", err)
            self._source.rewind()
            return False
        self._source.positions.committed(outcome.marks)
        self._cap.spent(self._monotonic())
        self._count(outcome)
        return True

    def _records(
        self,
        batch: Sequence[_Read],
        outcome: Outcome,
        profiles: Sequence[bytes],
        letters: Sequence[DeadLetter],
        claim: Claim,
        now_ms: int,
    ) -> Iterator[Produced]:
        for partition, value in enumerate(profiles):
            yield {"topic": self._topics.profiles, "value": value, "partition": partition}
        for model, rows in outcome.scored:
            yield {"topic": self._topics.scored, "key": model.encode(), "value": rows}
        reads = {id(read.source): read for read in batch} if letters else {}
        for dead in letters:
            yield {"topic": self._topics.dlq, **self._letter(dead, reads[id(dead.message)], now_ms)}
        # A process that was stopped meanwhile says nothing of partitions: who knows what they have got.
        if claim.idle and self._monotonic() - claim.asked_s > self._settings.idle_after_s:
            raise KafkaException(_OUTDATED)

    def _letter(self, dead: DeadLetter, read: _Read, now_ms: int) -> dict[str, Any]:
        """A message that does not end whoever decodes it is decoded again, to say which of its events died: few messages are mixed."""
        source, refused = read.source, None
        if read.killed is None:
            outcomes = decode_message(
                source.value, source.headers, self._policy.limits, now_ms=now_ms
            )
            refused = refused_events(outcomes, dead.events, self._registry.newest)
        return dead_letter(
            read.original,
            reason=dead.error.reason,
            detail=dead.error.detail,
            stage="profiler",
            refused=refused,
        )

    def _now_ms(self) -> int:
        return round(self._clock() * 1_000)

    def _count(self, outcome: Outcome) -> None:
        metrics.EVENTS.inc(outcome.events)
        metrics.EVENTS_LATE.inc(outcome.late)
        for dead in outcome.dead:
            metrics.EVENTS_REJECTED.labels(dead.error.reason).inc(dead.events)
        watermarks: dict[tuple[str, ...], float] = {
            (str(partition),): mark.watermark_ms / 1_000
            for partition, mark in outcome.marks.items()
            if mark.watermark_ms is not None
        }
        metrics.only(metrics.WATERMARK, watermarks)


_NONE: Final[Mapping[str, bytes]] = {}


def _parts(batch: Sequence[_Read]) -> Iterator[Sequence[_Read]]:
    """The batch in parts of about ``_PART_BYTES``: as one, ten thousand messages of many events each would take gigabytes."""
    if sum(map(len, filter(None, map(_VALUE, batch)))) <= _PART_BYTES:
        yield batch
        return
    first = size = 0
    for i, value in enumerate(map(_VALUE, batch)):
        size += len(value or b"")
        if size > _PART_BYTES:
            yield batch[first : i + 1]
            first, size = i + 1, 0
    if first < len(batch):
        yield batch[first:]


def _sources(messages: Sequence[Message]) -> list[SourceMessage]:
    """What the pure part sees of them. Column by column: ten thousand messages are a batch, and a loop over their methods is half of its cost."""
    partitions, offsets, values, headers = (list(map(column, messages)) for column in _COLUMNS)
    if None in partitions or None in offsets:
        raise TransientError("a message without a position")  # the client never hands one over
    named = [
        header_map(message) if pairs else _NONE
        for pairs, message in zip(headers, messages, strict=True)
    ]
    return list(map(SourceMessage, partitions, offsets, values, named))


_SOURCE, _VALUE, _PARTITION = map(attrgetter, ("source", "source.value", "source.partition"))
_COLUMNS: Final = tuple(map(methodcaller, ("partition", "offset", "value", "headers")))
