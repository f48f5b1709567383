"""The Faust worker: reads, recovers, sends and commits for the stages. The only module that imports faust.

Faust brings group membership, fetching, and the recovery of a table from its changelog. What has to be exact is done
by us, since Faust's own way was measured to lose and to repeat messages:

- *Reading* is ``read_committed``, which Faust offers only together with its own transactions.
- *Delivery* is compared with what the fetcher handed over (``FetchLog``): a message left out ends the process.
- *Writing* goes through one idempotent producer. A batch's changelog records are one record batch: all or nothing.
- *Committing* is ours, from what is durable. Faust's commits move by one message a second behind a transactional
  producer: its gap code counts the message after each transaction marker twice.

The life of a partition::

    assigned ──► changelog is read (Faust) ──► restore ──► inputs are read ──► revoked: batch finished, committed,
                                                                               forgotten
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias

import faust
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, UnknownError
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from typing_extensions import override

from monitor.errors import TransientError
from streams.clients import KafkaSettings, reachable
from streams.delivery import BATCH_BYTES, FetchLog, Record, Target
from streams.liveness import Lease, StallClock
from streams.recovery import readable_ends
from streams.runner import Effects, Incoming, StageRunner
from streams.worker import Binding, Observer, WorkerSettings, end_worker

Untyped: TypeAlias = Any
"""An object of Faust's whose class says less than we need: members of its drivers, some of them private."""

_POLL_STOP_S = 0.1
_ANSWER_S = 10.0

logger = logging.getLogger(__name__)
_faust_logger = logging.getLogger(
    "faust"
)  # a subclass of a service would log its starts and stops as ours


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    logger = _faust_logger

    @override
    def _create_worker_consumer(self, transport: driver.Transport) -> Untyped:
        consumer = super()._create_worker_consumer(transport)
        # Private attributes of aiokafka 0.14.0, read when the consumer starts; a test sees that they arrive.
        consumer._isolation_level = "read_committed"  # Faust has no setting for it
        consumer._fetch_max_wait_ms = 250  # Faust's 1.5 s delay each newly assigned partition
        return consumer

    @override
    async def _highwaters(self, partitions: list[TP]) -> Mapping[TP, int]:
        """Ends of partitions; a table's recovery reads up to there.

        As seen by a fetch, too. The embedded broker's answer to ListOffsets is the first offset of the last record
        batch, plus one: recovery would leave out the rest of the batch, which is most of what was written last.
        """
        ends: dict[TP, int] = {**await super()._highwaters(partitions)}
        consumer = self._ensure_consumer()
        async with asyncio.timeout(_ANSWER_S):
            for tp in partitions:
                # Each newly assigned partition is fetched from at once; there is no event to wait for.
                while (seen := consumer.last_stable_offset(tp)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                ends[tp] = max(ends[tp], seen)
        app: Untyped = self.app
        changelogs = [tp for tp in partitions if tp.topic in app.tables.changelog_topics]
        # Of a table that the transactional worker has written: there the last offset is a marker's, which never arrives.
        readable = await asyncio.to_thread(
            readable_ends, app.kafka, {(tp.topic, tp.partition): ends[tp] for tp in changelogs}
        )
        return {**ends, **{tp: readable[tp.topic, tp.partition] for tp in changelogs}}

    @override
    async def _fetch_records(self, *args: Untyped, **kwargs: Untyped) -> Untyped:
        app: Untyped = self.app
        fetched = await super()._fetch_records(*args, **kwargs)
        for tp, records in fetched.items():
            app.fetch_log.fetched((tp.topic, tp.partition), [record.offset for record in records])
        return fetched


class _Consumer(driver.Consumer):
    logger = _faust_logger

    @override
    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Producer(driver.Producer):
    """Idempotent where the broker lets it.

    aiokafka asks for its producer id in version 0 of the request, which the embedded broker refuses. There, after a
    lost answer, a record batch may be appended twice. Its successor is sent only after its answer, so that nothing
    comes out of order, and a repeated output or state does no harm.
    """

    logger = _faust_logger
    _idempotent = True

    @override
    def _settings_extra(self) -> Mapping[str, Untyped]:
        return {"acks": "all", "enable_idempotence": self._idempotent}

    @override
    async def on_start(self) -> None:
        sender = logging.getLogger("aiokafka.producer.sender")
        sender.disabled = True  # it logs what it raises
        try:
            await super().on_start()
        except UnknownError:
            logger.info("the broker gives no producer id: record batches may be repeated")
            await self._ensure_producer().client.close()
            self._idempotent = False
            await super().on_start()
        finally:
            sender.disabled = False


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _App(faust.App):
    logger = _faust_logger

    def __init__(
        self, *args: Untyped, kafka: KafkaSettings, fetch_log: FetchLog, **kwargs: Untyped
    ) -> None:
        super().__init__(*args, **kwargs)
        self.kafka = kafka
        self.fetch_log = fetch_log

    @override
    def _new_transport(self) -> driver.Transport:
        return _Transport(self.conf.broker_consumer, self)

    @override
    def _create_directories(self) -> None:
        """Tables live in memory: there is nothing to put into a directory."""


def build_app(settings: WorkerSettings, fetch_log: FetchLog) -> _App:
    """A Faust app in which every default that was found wanting is replaced."""
    kafka = settings.kafka
    return _App(
        settings.group,
        kafka=kafka,
        fetch_log=fetch_log,
        broker=[f"kafka://{address.strip()}" for address in kafka.bootstrap.split(",")],
        broker_credentials=_credentials(kafka.security),
        broker_client_id=kafka.client_id,
        broker_session_timeout=kafka.session_timeout_ms / 1000,
        broker_heartbeat_interval=kafka.heartbeat_ms / 1000,
        broker_max_poll_records=500,
        consumer_group_instance_id=settings.instance,
        consumer_auto_offset_reset="earliest",
        processing_guarantee="at_least_once",  # five defects of "exactly_once" are open
        table_standby_replicas=0,  # by default 1: a second copy of the state, on a worker that never uses it
        store="memory://",  # rocksdb caches up to 2 GiB a partition; our state is small
        stream_buffer_maxsize=512,
        stream_wait_empty=False,  # it waits for Faust's acks; a revocation waits for our lock
        topic_allow_declare=False,  # topics are made by `driftline topics create`
        topic_disable_leader=True,
        producer_max_batch_size=BATCH_BYTES,
        producer_linger=0,  # a batch is complete when it is handed over
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,  # it serves the tables' contents on 0.0.0.0
        autodiscover=False,
    )


class Worker:
    """One process: a Faust app, its stages, their commits, and the watchdog. Make it inside the event loop."""

    def __init__(
        self, bindings: Sequence[Binding], settings: WorkerSettings, observer: Observer
    ) -> None:
        kafka = settings.kafka
        self._settings = settings
        self._observer = observer
        self._commit_fails = False
        # The session may have been as old as one heartbeat when the process was stopped.
        self._session_s = (kafka.session_timeout_ms - kafka.heartbeat_ms) / 1000
        self._lease = Lease(self._session_s, self._end)
        self._inputs = {topic for binding in bindings for topic in binding.topics}
        self._app = build_app(settings, FetchLog(self._inputs))
        self._stages = [self._stage(binding) for binding in bindings]
        revoked: Untyped = self._app.on_partitions_revoked  # typed for functions without a name
        revoked.connect(self._revoked)
        assigned: Untyped = self._app.on_partitions_assigned
        assigned.connect(self._assigned)

    async def run(self, stop: threading.Event) -> bool:
        """Work until ``stop`` is set; false if Faust did not stop in time and has to be abandoned."""
        self._lease.start()
        tasks = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._commit_regularly()),
            *(asyncio.create_task(stage.work()) for stage in self._stages),
        ]
        # Returns only when the first recovery is complete.
        tasks.append(start := asyncio.create_task(self._app.start()))
        while not stop.is_set():  # set by a signal handler, which asyncio does not see
            await asyncio.sleep(_POLL_STOP_S)
            for task in tasks:
                if task.done() and (task is not start or task.exception() is not None):
                    logger.critical("the worker cannot go on", exc_info=task.exception())
                    self._end(repr(task.exception()))
        return await self._stop(tasks)

    def _stage(self, binding: Binding) -> StageRunner:
        raw: dict[str, Untyped] = {
            "key_type": bytes,
            "value_type": bytes,
            "allow_empty": True,
            "acks": False,  # commits are ours
        }
        changelog = self._app.topic(binding.changelog, internal=True, maxsize=131_072, **raw)
        table: Untyped = self._app.Table(
            binding.name, key_type=bytes, value_type=bytes, changelog_topic=changelog
        )
        effects = Effects(
            rows=table.data,
            append=self._append,
            commit=self._commit,
            fetch_log=self._app.fetch_log,
            lease=self._lease,
            observer=self._observer,
            end=self._end,
        )
        stage = StageRunner(binding, effects, batch_messages=self._settings.batch_messages)
        table.on_recover(partial(self._recovered, stage))
        self._app.agent(self._app.topic(*binding.topics, **raw), name=binding.name, concurrency=1)(
            partial(self._read, stage)
        )
        return stage

    async def _read(self, stage: StageRunner, stream: faust.StreamT[bytes]) -> None:
        async for event in stream.events():
            message = event.message
            if message.generation_id == self._app.consumer_generation_id:
                assignment = stage.assignment  # of now: waiting for room may take longer
                await stage.take(
                    Incoming(
                        message.topic,
                        message.partition,
                        message.offset,
                        message.value or b"",
                        assignment,
                    )
                )

    async def _recovered(self, stage: StageRunner) -> None:
        """Called by Faust when the changelogs are read to their ends, and before it resumes the inputs.

        Between the two it would fetch inputs already, then clear its queues, and then refuse what it had cleared
        when that comes again: this is how a message got lost at 3 of 9 starts (Apache Kafka). With its flow stopped
        it fetches nothing before it is ready, and lost none at 30.
        """
        self._app.consumer.stop_flow()
        self._app.flow_control.suspend()
        try:
            assigned = self._app.consumer.assignment()
            await stage.restore(_partitions(assigned, stage.binding.changelog))
        except Exception as failure:  # noqa: BLE001  Faust would drop it and go on with half a state
            stage.fail(failure)

    async def _revoked(self, _app: object, _revoked: object, **_: object) -> None:
        for stage in self._stages:
            await stage.release()

    async def _assigned(self, _app: object, assigned: set[TP], **_: object) -> None:
        for stage in self._stages:
            stage.keep_only(_partitions(assigned, stage.binding.changelog))

    async def _append(self, target: Target, records: Sequence[Record]) -> None:
        """Append records in their order, as few record batches, one after the other.

        The producer repeats one after a transient error, and the broker drops repetitions. What the broker has not
        acknowledged within the session might be appended behind the writes of the partition's next owner: a worker
        that is cut off for so long ends before that.
        """
        topic, partition = target
        faust_producer: Untyped = self._app.producer
        producer = faust_producer._ensure_producer()  # Faust's own API sends record by record
        begin = 0
        try:
            async with asyncio.timeout(self._session_s):
                while begin < len(records):
                    builder, end = producer.create_batch(), begin
                    while end < len(records) and _added(builder, *records[end]):
                        end += 1
                    await (await producer.send_batch(builder, topic, partition=partition))
                    begin = end
        except TimeoutError:
            self._end(f"{topic}/{partition}: not acknowledged within the session")

    async def _commit(self, offsets: Mapping[Target, int]) -> bool:
        """Commit past Faust, which knows its own acks only and crashes when the broker is away for a moment."""
        faust_consumer: Untyped = self._app.consumer
        consumer = faust_consumer._thread._ensure_consumer()
        assigned = consumer.assignment()
        moved = {TopicPartition(*target): offset for target, offset in offsets.items()}
        try:
            await faust_consumer._thread.call_thread(
                consumer.commit, {tp: offset for tp, offset in moved.items() if tp in assigned}
            )
        except KafkaError as error:
            if not self._commit_fails:
                logger.warning("cannot commit, trying again: %r", error)
            self._commit_fails = True
            return False
        self._commit_fails = False
        return True

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.commit_s)
            for stage in self._stages:
                await stage.commit()

    async def _watch(self) -> None:
        clock = StallClock(self._settings.stall_s)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(5.0, self._settings.stall_s / 6))
            if self._app.crashed:
                self._end(f"Faust: {self._app.crash_reason!r}")
            tables: Untyped = self._app.tables
            progress = (
                tuple(tuple(sorted(stage.committed.items())) for stage in self._stages),
                tuple(sorted(tables.recovery.active_offsets.items())),
                self._app.consumer_generation_id,
            )
            work = await self._work(tables.recovery.completed.is_set())
            if clock.stalled(loop.time(), progress, work=work is not None):
                self._end(f"no progress for {self._settings.stall_s:g} s: {work}")

    async def _work(self, recovered: bool) -> str | None:
        """What there is to do, or ``None``. Asks the broker, since a fetcher that died knows of no lag."""
        if self._app.rebalancing or not recovered:
            return "joining the group, or recovering"
        if any(stage.waiting for stage in self._stages):
            return "messages are read, but their offsets are not committed"
        consumer = self._app.consumer
        inputs = [tp for tp in consumer.assignment() if tp.topic in self._inputs]
        try:
            async with asyncio.timeout(_ANSWER_S):
                ends = await consumer.highwaters(*inputs)
                for tp in inputs:
                    position = await consumer.position(tp)
                    if (position or 0) < (ends[tp] or 0):
                        return f"{tp.topic}/{tp.partition} is read to {position} of {ends[tp]}"
        except (TimeoutError, KafkaError):
            return "the broker or the consumer does not answer"
        return None

    async def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> bool:
        """Finish the batches in flight and commit; whatever comes after that loses nothing, however it ends."""
        self._lease.stop()
        try:
            async with asyncio.timeout(self._settings.stop_s):
                for stage in self._stages:
                    await stage.release()
                for task in tasks:
                    task.cancel()
                await self._app.stop()
        except TimeoutError:
            return False
        return True

    def _end(self, reason: str) -> NoReturn:
        end_worker(reason, self._observer)


def run(
    bindings: Sequence[Binding],
    settings: WorkerSettings,
    stop: threading.Event,
    observer: Observer | None = None,
) -> None:
    """Run the stages in this process, in an event loop of its own, until ``stop`` is set; main thread only.

    Ends the process with ``EXIT_RESTART`` where it cannot go on, and with 0 where Faust does not stop within
    ``settings.stop_s``: by then all is committed. Faust's own logs are muted below warnings (it draws a table for
    each rebalance).

    Raises:
        TransientError: no broker answers at the start.
    """
    if not reachable(settings.kafka):
        raise TransientError(f"no Kafka broker answers at {settings.kafka.bootstrap}")
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)

    async def main() -> bool:
        return await Worker(bindings, settings, observer or Observer()).run(stop)

    if not asyncio.run(main()):
        logger.warning("Faust did not stop within %g s: abandoned", settings.stop_s)
        logging.shutdown()
        os._exit(0)


def _partitions(assigned: set[TP], topic: str) -> frozenset[int]:
    return frozenset(tp.partition for tp in assigned if tp.topic == topic)


def _added(builder: Untyped, key: bytes | None, value: bytes | None) -> bool:
    return builder.append(timestamp=None, key=key, value=value) is not None


def _credentials(security: Mapping[str, str]) -> SASLCredentials | SSLCredentials | None:
    """Faust's form of librdkafka's security options. Certificates and host names are always verified."""
    protocol = security.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return None
    context = None
    if protocol in {"SSL", "SASL_SSL"}:
        context = ssl.create_default_context(cafile=security.get("ssl.ca.location"))
        if certificate := security.get("ssl.certificate.location"):
            context.load_cert_chain(
                certificate, security.get("ssl.key.location"), security.get("ssl.key.password")
            )
    if protocol == "SSL":
        return SSLCredentials(context=context)
    return SASLCredentials(
        username=security.get("sasl.username"),
        password=security.get("sasl.password"),
        mechanism=security.get("sasl.mechanism", security.get("sasl.mechanisms", "PLAIN")),
        ssl_context=context,
    )
