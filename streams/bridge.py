"""The bridge: what Seldon, MLServer or KServe write to Kafka in, predictions out, each message once.

The protocol; the numbers stand in the code:

1. *Fence.* The transactional id is the bridge's name: who starts ends the transaction of who was there before, and that one ends when it commits next. There
   is no consumer group to divide the topics: a request and its response may be in any partitions, and have to meet in one process.
2. *Offsets.* The committed offsets, and the time that rides with them: all that was due by then had gone.
3. *Recall* what was held: read again, from ``Bounds.horizon_ms`` before that time up to these offsets, and send nothing (``streams.bridging``).
4. *Read* what there is. A partition that is further ahead than half the time that a request waits is not read until the others are there, or the catch-up after an
   outage would hold all of it in memory.
5. *Commit* predictions, dead letters, the next offsets and the time in one transaction (``streams.transactions``).

After any error the process begins again with 1. What did not commit needs no other recovery.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from threading import Event
from typing import Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from monitor import metrics
from monitor.errors import DriftlineError, TransientError
from monitor.events import parts, record_of
from monitor.halves import Bounds
from monitor.inference import Reading
from monitor.settings import Settings
from monitor.spec import ModelSpec
from streams import wiring
from streams.bridging import Incoming, Join, Naming, Outcome, Place, Tide
from streams.clients import bounded, consumer_config
from streams.deadletter import Cap, dead_letter, header_map
from streams.delivery import Target
from streams.health import Watch, watching
from streams.registry import Lookup, Registry
from streams.transactions import (
    Produced,
    RolledBackError,
    SupersededError,
    Transactions,
    new_producer,
)

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_ANSWER_S: Final = 10.0
_LOOK_S: Final = 30.0  # for topics that are new: a model's are made when it is loaded
# Of the memory for what waits: when it is used, only the partition that is furthest behind is read.
_FULL: Final = 0.5
_HELD_BYTES: Final = 1_024  # each half counts as more, so that memory alone decides how many wait
_GONE: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}


def run(settings: Settings, stop: Event) -> None:
    """Read and join until ``stop`` is set.

    Raises:
        TransientError: the broker does not answer, or took a batch back.
        DriftlineError: another bridge of this name has begun.
    """
    kafka = wiring.require_broker(settings)
    clock = time.time  # noqa: TID251 - the process's edge
    with ExitStack() as opened:
        registry = Registry(kafka, wiring.topics(settings))
        opened.callback(registry.stop)
        registry.start(stop)
        watch = opened.enter_context(watching("bridge", kafka))
        try:
            bridge = Bridge(settings, registry, clock=clock, monotonic=time.monotonic, watch=watch)
            opened.callback(bridge.close)
            bridge.run(stop)
        except SupersededError as err:
            name = settings.bridge.name
            raise DriftlineError(f"another bridge of the name {name} has begun: each needs a name of its own (DRIFTLINE_BRIDGE__NAME)") from err  # fmt: skip
        except RolledBackError as err:
            metrics.TRANSACTIONS_ABORTED.inc()
            raise TransientError(f"kafka: transaction rolled back: {err}") from err
        except KafkaException as err:
            raise TransientError(f"kafka: {err.args[0].str()}") from err


class Bridge:
    """The loop. Mutable: it owns the clients, the halves that wait, and where each partition stands. ``close`` it.

    Args:
        settings: topics and bounds.
        models: whose specs say how bodies are read.
        clock: Unix seconds.
        monotonic: seconds.
        watch: is told what is durable.
    """

    def __init__(
        self,
        settings: Settings,
        models: Lookup,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        watch: Watch | None = None,
    ) -> None:
        self._kafka, self._topics = wiring.kafka(settings), wiring.topics(settings)
        self._settings, self._models = settings.bridge, models
        self._clock, self._monotonic, self._watch = clock, monotonic, watch
        self._naming = Naming(re.compile(self._settings.topics), self._topics.prefix)
        self._hold_ms = round(self._settings.hold_s * 1_000)
        bytes_ = self._settings.held_bytes
        self._bounds = Bounds(bytes_ // _HELD_BYTES, bytes_, self._hold_ms, again_ms=self._hold_ms)
        self._join = Join(self._bounds, wiring.limits(settings), self._reading)
        self._readings: dict[str, tuple[ModelSpec, Reading]] = {}
        self._places: dict[str, Place] = {}
        self._tide = Tide()
        self._positions: dict[Target, int] = {}
        self._committed: dict[Target, int] = {}
        self._resting: set[Target] = set()
        self._looked_s = -_LOOK_S
        self._cap = Cap("bridge", settings.limits.dead_letters_per_minute, logger)
        self._group = f"{self._topics.prefix}{self._settings.name}"
        self._transactions = Transactions(  # 1.
            lambda: new_producer(self._kafka, logger, self._group), exclusive=True
        )
        config = consumer_config(self._kafka, self._group, logger)
        self._consumer = Consumer(config | {"enable.partition.eof": True})

    def run(self, stop: Event) -> None:
        """Read and join until ``stop`` is set.

        Raises:
            KafkaException: the broker does not answer.
            RolledBackError: it took a batch back, or nobody knows.
        """
        self._recall(stop)
        while not stop.is_set():
            self._turn()

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _recall(self, stop: Event) -> None:
        """Hold again what was held, and stand at the committed offsets."""
        found, said_ms = self._offsets(self._new_targets())  # 2.
        clock_ms = said_ms or 0
        starts = {} if said_ms is None else self._starts(found, said_ms)
        logger.info("reads %d partitions, %d of them again from %d ms before", len(found), len(starts), self._bounds.horizon_ms)  # fmt: skip
        self._assign(starts)
        unread, recalled = set(starts), 0
        while unread and not stop.is_set():  # 3.
            messages = self._read()
            past = [m for m in messages if m.offset < found[m.topic, m.partition]]
            self._join.recall(past, clock_ms, self._now_ms())
            recalled += len(past)
            unread = {t for t in unread & self._positions.keys() if self._positions[t] < found[t]}
            # What lies behind the offsets has to wait until all that lies before them is known, and nobody waits for who is there.
            done = self._positions.keys() - unread
            for target in done:
                self._tide.drop(target)
            self._rest(self._ahead() | done)
            if self._watch is not None:
                self._watch.waits()
        self._tide = Tide(clock_ms)
        self._assign(found)
        self._committed = {t: offset for t, offset in found.items() if offset >= 0}
        logger.info("holds %d of %d messages that it read again", len(self._join.halves), recalled)

    def _turn(self) -> None:
        began_s, outcome = self._monotonic(), Outcome()
        if began_s - self._looked_s >= _LOOK_S:
            self._assign(self._offsets(self._new_targets())[0])
        messages, now_ms = self._read(), self._now_ms()  # 4.
        for message in messages:
            self._join.take(message, now_ms, outcome)
        self._join.due(self._tide.rise(now_ms), now_ms, outcome)
        self._rest(self._ahead())
        if messages or outcome.events or outcome.letters:
            self._commit(outcome)  # 5.
            metrics.finished("bridge", self._monotonic() - began_s)
        else:
            metrics.turned("bridge")
        for fate in outcome.fates:
            metrics.HALVES.labels(fate).inc()
        metrics.HALVES_HELD.set(len(self._join.halves))
        if self._watch is not None:
            self._watch.reached(self._positions)

    def _commit(self, outcome: Outcome) -> None:
        sent = self._cap.sift([err.reason for _, err in outcome.letters], self._monotonic())
        clock = str(self._join.halves.clock_ms)
        known = {t: at for t, at in self._positions.items() if at >= 0}
        moved = {t: at for t, at in known.items() if self._committed.get(t) != at}
        # Of what is only due, the time has to be kept, too, and it rides with an offset.
        offsets = moved or dict(list(known.items())[:1])
        places = [TopicPartition(*target, at, clock) for target, at in offsets.items()]
        records = self._records(outcome, sent)
        self._transactions.commit(records, places, self._consumer.consumer_group_metadata())
        self._committed |= moved
        self._cap.spent(self._monotonic())
        metrics.INGESTED.inc(len(outcome.events))

    def _records(self, outcome: Outcome, sent: Sequence[bool]) -> Iterator[Produced]:
        for record in map(record_of, parts(outcome.events)):
            yield {"topic": self._topics.predictions, **record._asdict()}
        for letter, is_sent in zip(outcome.letters, sent, strict=True):
            if is_sent and isinstance(letter.origin, Message):
                err = letter.error
                made = dead_letter(
                    letter.origin, reason=err.reason, detail=err.detail, stage="bridge"
                )
                yield {"topic": self._topics.dlq, **made}

    def _reading(self, model: str) -> Reading:
        found = self._models.newest(model)
        if found is None:
            return Reading()
        known = self._readings.get(model)
        if known is None or known[0] is not found.spec:
            known = self._readings[model] = found.spec, Reading.of(found.spec)
        return known[1]

    def _new_targets(self) -> list[Target]:
        """Partitions of topics that are read, and were not yet."""
        self._looked_s = self._monotonic()
        found = self._consumer.list_topics(timeout=_ANSWER_S).topics
        places = {name: self._naming.place(name) for name, x in found.items() if x.error is None}
        ours = {name: place for name, place in places.items() if place is not None}
        self._places |= ours
        targets = [(name, partition) for name in ours for partition in found[name].partitions]
        return [target for target in targets if target not in self._positions]

    def _offsets(self, targets: Collection[Target]) -> tuple[dict[Target, int], int | None]:
        """The committed offset of each, negative where there is none, and the latest time that rides with them; ``None``: none does."""
        if not targets:
            return {}, None
        places = [TopicPartition(*target) for target in targets]
        committed = bounded(
            lambda: self._consumer.committed(places, timeout=_ANSWER_S), 1.5 * _ANSWER_S
        )
        if fault := next((place.error for place in committed if place.error is not None), None):
            raise KafkaException(fault)
        clocks = [int(said) for place in committed if (said := place.metadata or "").isdecimal()]
        offsets = {(place.topic, place.partition): place.offset for place in committed}
        return {t: self._readable(t, at) for t, at in offsets.items()}, max(clocks, default=None)

    def _readable(self, target: Target, offset: int) -> int:
        """A committed offset, or where the log begins now if that is beyond it."""
        if offset < 0:
            return offset
        low, _ = self._consumer.get_watermark_offsets(TopicPartition(*target), timeout=_ANSWER_S)
        if offset < low:
            logger.error("%d messages of %s/%d were deleted before they were read", low - offset, *target)  # fmt: skip
        return max(offset, int(low))

    def _starts(self, found: Mapping[Target, int], clock_ms: int) -> dict[Target, int]:
        """From where the partitions are read again; those of which nothing is needed are left out."""
        since_ms = max(0, clock_ms - self._bounds.horizon_ms)
        asked = [TopicPartition(*target, since_ms) for target, at in found.items() if at > 0]
        if not asked:
            return {}
        answers = self._consumer.offsets_for_times(asked, timeout=_ANSWER_S)
        starts = {(place.topic, place.partition): place.offset for place in answers}
        return {target: at for target, at in starts.items() if 0 <= at < found[target]}

    def _assign(self, offsets: Mapping[Target, int]) -> None:
        """Read these partitions from these offsets, beside the others; from the beginning where one is negative."""
        again = [TopicPartition(*t) for t in offsets if t in self._positions and t not in self._resting]  # fmt: skip
        if again:
            self._consumer.incremental_unassign(again)
        self._resting -= offsets.keys()
        self._tide.hold(offsets)
        self._positions |= offsets
        if offsets:
            starts = {t: at if at >= 0 else OFFSET_BEGINNING for t, at in offsets.items()}
            self._consumer.incremental_assign([TopicPartition(*t, at) for t, at in starts.items()])

    def _rest(self, targets: set[Target]) -> None:
        """Read nothing of these partitions for now, and go on with all others."""
        begin, go_on = targets - self._resting, self._resting - targets
        if begin:
            self._consumer.incremental_unassign([TopicPartition(*target) for target in begin])
            self._resting |= begin
            self._tide.pause(begin)
        # A pause of the client's would do for most, but after it no end is told that was told before.
        self._assign({target: self._positions[target] for target in go_on})

    def _ahead(self) -> set[Target]:
        full = self._join.halves.fullness > _FULL
        return self._tide.ahead(0 if full else self._hold_ms // 2)

    def _read(self) -> list[Incoming]:
        """What there is, of each partition in its order and once.

        Raises:
            KafkaException: the broker refuses.
        """
        messages = self._consumer.consume(1, _POLL_S)
        if messages:
            messages += self._consumer.consume(self._settings.batch_messages - 1, 0)
        return [incoming for message in messages if (incoming := self._incoming(message))]

    def _incoming(self, message: Message) -> Incoming | None:
        target, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
        error, at = message.error(), self._positions.get(target)
        if at is None:
            return None
        if error is not None:
            self._told(target, error, offset)
            return None
        if offset < at:  # read before it was to rest, and again after it
            return None
        self._positions[target] = offset + 1
        kind, ts_ms = message.timestamp()
        self._tide.came(target, min(ts_ms, self._now_ms()))
        return Incoming(
            *target,
            offset,
            self._places[target[0]],
            message.key(),
            message.value(),
            header_map(message),
            ts_ms if kind else -1,
            message,
        )

    def _told(self, target: Target, error: KafkaError, offset: int) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            if target not in self._resting:
                self._positions[target] = max(self._positions[target], offset)
                self._tide.ended(target)
        elif error.code() in _GONE:
            logger.warning("%s/%d is gone: its model was unloaded", *target)
            self._drop(target)
        else:
            raise KafkaException(error)

    def _drop(self, target: Target) -> None:
        if target not in self._resting:
            self._consumer.incremental_unassign([TopicPartition(*target)])
        self._resting.discard(target)
        del self._positions[target]
        self._committed.pop(target, None)
        self._tide.drop(target)

    def _now_ms(self) -> int:
        return round(self._clock() * 1_000)
