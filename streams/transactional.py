"""The transactional worker: state changes, outputs and input offsets of a batch are one Kafka transaction.

The protocol; the numbers stand in the code:

1. *Ticket.* On assignment the group's metadata of this moment is kept: generation and member. The broker takes
   offsets only with the group's present one, so a worker that was away (SIGSTOP, a cut network) commits nothing, neither offsets nor
   state, once its partitions are somebody else's. That is the fence, and the broker's: no lease and no clock of ours is needed.
2. *Offsets.* Ask for the committed offsets. The broker does not answer while a transaction with offsets of these partitions
   is open; and after 1 nobody else can open another. So the offsets come before the state, which is then no older than they are.
3. *State.* Read the changelogs from their starts to their ends, committed records only, and restore the stages. The end is the high watermark, and not
   only the last stable offset: between the two may be the last transaction of the partition's previous owner, decided, but without its mark yet.
4. *Read* what there is, up to ``batch_messages``; the stages advance in memory and yield steps.
5. *Commit* all steps and the next offsets in one transaction, with the ticket.
6. *Rewind.* After any error the memory is ahead of the log, or nobody knows. It is dropped, and 2 and 3 build it anew.

A chain break (``streams.chain``) is a rewind as well. What the stage yielded before it (its count of the break) is committed, with the offset of the very
message that broke the chain, since a transaction without offsets would have no ticket. The process need not end: the client fetches again, and the state comes from
the log. A break that is never booked moves no offset, and so the watch ends the process (``streams.health``).

A stage's memory is the only copy of its state: the rows of its table exist while they are read.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from monitor.errors import ConfigError, TransientError
from streams.batch import Batch
from streams.clients import UNRETURNED, bounded, consumer_config, is_fatal, reachable
from streams.delivery import Record, Target
from streams.health import Ends, Watch
from streams.recovery import Recovery
from streams.stage import ChainBreakError
from streams.transactions import (
    TIMEOUT_S,
    Produced,
    RolledBackError,
    Transactions,
    new_producer,
)
from streams.worker import Binding, Observer, WorkerSettings, end_worker

_POLL_S: Final = 0.5
_COMMITTED_S: Final = 1.5 * TIMEOUT_S  # its own time is shorter, and it does not always keep to it
_RECOVERY_MESSAGES: Final = 10_000  # read at once; between two reads the group hears of us
_FETCH_MS: Final = 100  # 500 by default: a waiting fetch holds up that of a new assignment
_BATCH_S: Final = 1.0  # a longer batch would be one long silence
_BATCH_BYTES: Final = 8_000_000  # memory; a transaction may be larger
_BREAK_WAIT_S: Final = 1.0  # for what mends itself, such as a broker that comes back
_PASSING: Final = {
    KafkaError.UNSTABLE_OFFSET_COMMIT,  # a transaction is open
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,  # a broker came back
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
}

logger = logging.getLogger(__name__)


class Worker:
    """The loop. Mutable: it owns the clients and what this process holds of the partitions."""

    def __init__(
        self,
        bindings: Sequence[Binding],
        settings: WorkerSettings,
        observer: Observer,
        *,
        monotonic: Callable[[], float],
        end: Callable[[str, Observer], NoReturn],
        watch: Watch,
    ) -> None:
        self.busy: str | None = "joining the group"
        """What it does beside reading its inputs."""
        self._end, self._watch = end, watch
        self._reached: dict[Target, int] = {}
        self._recovered = 0  # records of the longest recovery of this assignment: one that repeats itself is no progress
        self._bindings, self._observer = bindings, observer
        self._limit, self._monotonic = settings.batch_messages, monotonic
        self._stages = {topic: binding for binding in bindings for topic in binding.topics}
        # Without a lasting name, a transaction that is cut off waits for its time to be out.
        instance = settings.instance or uuid.uuid4().hex
        self._transactions = Transactions(
            lambda: new_producer(settings.kafka, logger, f"{settings.group}-{instance}")
        )
        self._consumer = Consumer(
            consumer_config(settings.kafka, settings.group, logger, instance=settings.instance)
            | {"enable.partition.eof": True, "fetch.wait.max.ms": _FETCH_MS}
        )
        self._ticket: object = None
        self._held: frozenset[int] = frozenset()
        self._restored: frozenset[int] = frozenset()
        self._recovery: Recovery | None = None
        self._inbox: deque[Message] = deque()
        self._said = ""  # why it waits for the committed offsets, if that was logged
        self._stale = False  # what is in memory is no longer, or not yet, what the log says

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set, then leave the group.

        Raises:
            TransientError: a topic is missing.
            ConfigError: topics differ in their partitions.
            KafkaException: the broker is away, or refuses us.
        """
        self._check_widths()
        self._consumer.subscribe(
            list(self._stages),
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._revoked,
        )
        try:
            while not stop.is_set():
                if self._stale:
                    self._begin()
                elif self._recovery is not None:
                    self._recover(self._recovery)
                elif (broken := self._turn()) is not None:
                    self._rewind(repr(broken))
                    stop.wait(_BREAK_WAIT_S)
        except KafkaException as failure:
            if is_fatal(failure.args[0]):
                # A join that was answered while the broker went down leaves a static member fenced by itself.
                self._end(f"kafka: {failure.args[0].str()}", self._observer)
            raise
        finally:
            self._consumer.close()

    def _check_widths(self) -> None:
        known = self._consumer.list_topics(timeout=TIMEOUT_S).topics
        topics = [*self._stages, *(binding.changelog for binding in self._bindings)]
        if missing := [name for name in topics if name not in known]:
            raise TransientError(f"topics are not there: {', '.join(missing)}")
        widths = {name: len(known[name].partitions) for name in topics}
        if len(set(widths.values())) > 1:
            raise ConfigError(f"topics of one detector need equally many partitions: {widths}")

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing is read yet. What this call of consume() returns is of the time before, and dropped.
        consumer.assign([])
        self._ticket = consumer.consumer_group_metadata()  # 1.
        self._held = frozenset(place.partition for place in partitions)
        divided = {(place.topic, place.partition) for place in partitions}
        if divided != {(topic, partition) for topic in self._stages for partition in self._held}:
            raise TransientError(f"the group divides topics unequally: {sorted(divided)}")
        self._stale = True
        self._moved_to("recovering" if self._held else None)
        logger.info("assigned partitions %s", sorted(self._held))

    def _revoked(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        # No transaction is open: callbacks run in consume(). In memory is what the next owner will read from the log.
        self._held = frozenset()
        self._stale = True
        self._moved_to("joining the group")

    def _moved_to(self, busy: str | None) -> None:
        """Note that there is another assignment."""
        self.busy, self._reached, self._recovered = busy, {}, 0
        self._watch.reached({})
        self._watch.waits()

    def _rewind(self, reason: str) -> None:  # 6.
        logger.warning("rewinds to the committed offsets: %s", reason)
        self._observer.rewound(reason)
        self._stale = True
        self.busy = "recovering"

    def _begin(self) -> None:
        """Drop what is in memory, and start to recover what this worker holds."""
        self._inbox.clear()
        self._recovery = None
        for binding in self._bindings:
            for partition in sorted(self._restored):
                binding.stage.forget(partition)
        self._restored = frozenset()
        if self._held:
            self._consumer.assign([])
            offsets = self._committed()  # 2.
            if offsets is None:
                self._poll(1, _POLL_S)  # nothing is assigned: this serves callbacks
                return
            changelogs = [(b.changelog, p) for b in self._bindings for p in sorted(self._held)]
            self._recovery = Recovery(changelogs, offsets)
            self._consumer.assign([TopicPartition(*t, OFFSET_BEGINNING) for t in changelogs])
        self._stale = False

    def _committed(self) -> dict[Target, int] | None:
        """The committed offsets; ``None`` while the broker does not say: a transaction that is open has new ones."""
        places = [TopicPartition(topic, p) for topic in self._stages for p in sorted(self._held)]
        try:
            committed = bounded(
                lambda: self._consumer.committed(places, timeout=TIMEOUT_S), _COMMITTED_S
            )
        except KafkaException as failure:
            if failure.args[0] is UNRETURNED:  # seen after a broker came back: it never does
                self._end("the committed offsets were not told in time", self._observer)
            if not _waits(failure.args[0]):
                raise
            self._wait_for_offsets(failure.args[0])
            return None
        if faults := [fault for place in committed if (fault := _fault(place)) is not None]:
            if all(map(_waits, faults)):
                self._wait_for_offsets(faults[0])
                return None
            raise KafkaException(faults[0])
        self._said = ""
        return {(place.topic, place.partition): place.offset for place in committed}

    def _wait_for_offsets(self, error: KafkaError) -> None:
        if self._said != error.name():  # once: it is asked twice a second
            self._said = error.name()
            logger.info("waits for the committed offsets: %s", error.str())

    def _poll(self, limit: int, wait_s: float) -> list[Message]:
        """What there is, up to ``limit``; waits for the first only. Nothing if a rebalance came in between.

        Raises:
            KafkaException: the consumer is of no more use. It is said once, and so must not be dropped with the rest.
        """
        messages = self._consumer.consume(1, wait_s)
        if messages and limit > 1:
            messages += self._consumer.consume(limit - 1, 0)
        if not self._stale:
            return messages
        for error in filter(None, (message.error() for message in messages)):
            if is_fatal(error):
                raise KafkaException(error)
        return []

    def _recover(self, recovery: Recovery) -> None:  # 3.
        for message in self._poll(_RECOVERY_MESSAGES, _POLL_S):
            target = _target(message)
            if _is_end(message):
                _, high = self._consumer.get_watermark_offsets(TopicPartition(*target), cached=True)
                recovery.reached(target, message.offset() or 0, high)
            else:
                recovery.add(target, message.key(), message.value())
        if self._stale:
            return
        self.busy = f"recovering: {recovery.left}"
        if recovery.records > self._recovered:
            self._recovered = recovery.records
            self._watch.waits()
        if recovery.whole:
            self._restore(recovery)

    def _restore(self, recovery: Recovery) -> None:
        for binding in self._bindings:
            for partition in sorted(self._held):
                rows = recovery.rows((binding.changelog, partition))
                binding.stage.restore(partition, rows)
                self._observer.restored(binding.name, partition, len(rows))
        self._restored, self._recovery = self._held, None
        offsets = recovery.offsets.items()
        self._consumer.assign(
            [
                TopicPartition(*t, offset if offset >= 0 else OFFSET_BEGINNING)
                for t, offset in offsets
            ]
        )
        self.busy, self._reached = None, {target: max(offset, 0) for target, offset in offsets}
        self._watch.reached(self._reached)

    def _turn(self) -> ChainBreakError | None:
        """Read a batch, apply it and commit it; the break of a chain that it ended with."""
        wait_s = 0.0 if self._inbox else _POLL_S
        self._inbox.extend(self._poll(self._limit - len(self._inbox) + 1, wait_s))  # 4.
        if self._stale or not self._inbox:
            return None
        began_s, batch = self._monotonic(), self._advance()
        if batch.offsets:
            places = [TopicPartition(*target, offset) for target, offset in batch.offsets.items()]
            records = (_produced(target, record) for target, record in batch.records())
            try:
                self._transactions.commit(records, places, self._ticket)  # 5.
            except RolledBackError as failure:
                self._rewind(str(failure))
                return None
            self._observer.batch(self._monotonic() - began_s)
        self._tell(batch)
        return batch.broken

    def _advance(self) -> Batch:
        batch, until = Batch(self._stages), self._monotonic() + _BATCH_S
        while self._inbox and batch.broken is None and batch.size < _BATCH_BYTES:
            message = self._inbox.popleft()
            target, offset = _target(message), message.offset() or 0
            if _is_end(message):
                batch.reached[target] = offset
            else:
                batch.apply(target, offset, message.value() or b"")
            if self._monotonic() > until:
                break
        return batch

    def _tell(self, batch: Batch) -> None:
        for counts in batch.counts():
            self._observer.applied(*counts)
        for (topic, partition), offset in batch.offsets.items():
            self._observer.committed(topic, partition, offset)
        self._reached |= batch.reached
        self._watch.reached(self._reached)


def run(
    bindings: Sequence[Binding],
    settings: WorkerSettings,
    stop: threading.Event,
    observer: Observer | None = None,
    *,
    end: Callable[[str, Observer], NoReturn] = end_worker,
) -> None:
    """Run the stages in this process until ``stop`` is set.

    Ends the process with ``EXIT_RESTART``, by ``end``, where there is work and no progress for ``settings.stall_s``, or another
    worker has taken its name.

    Raises:
        TransientError: no broker answers at the start, one is away for longer than a call is repeated, a topic is missing.
        ConfigError: the topics differ in their partitions.
    """
    if not reachable(settings.kafka):
        raise TransientError(f"no Kafka broker answers at {settings.kafka.bootstrap}")
    told = observer or Observer()
    ends = Ends("detector", settings.kafka, unanswered="the broker does not answer")

    def left(reached: Mapping[Target, int]) -> str | None:
        short = ends(reached)  # asked all the same: what is recovered has no lag that is known
        return worker.busy or short

    watch = Watch(
        "detector", left, limit_s=settings.stall_s, ended=lambda reason: end(reason, told)
    )
    try:
        worker = Worker(bindings, settings, told, monotonic=time.monotonic, end=end, watch=watch)
        with watch:
            worker.run(stop)
    except KafkaException as failure:
        raise TransientError(f"kafka: {failure.args[0].str()}") from failure
    finally:
        ends.close()


def _target(message: Message) -> Target:
    return message.topic() or "", message.partition() or 0


def _is_end(message: Message) -> bool:
    """Whether it is no message, but the news that there is none now.

    Raises:
        KafkaException: it is an error.
    """
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return error is not None


def _fault(place: TopicPartition) -> KafkaError | None:
    """Its error: the client's types say that there always is one."""
    return place.error


def _waits(error: KafkaError) -> bool:
    return error.code() in _PASSING


def _produced(target: Target, record: Record) -> Produced:
    return {"topic": target[0], "partition": target[1], "key": record[0], "value": record[1]}
