"""Kafka clients: one description of the broker, and from it the configuration of each kind of client.

Everything that differs from librdkafka's default has its reason beside it. Values of ``security`` may be secrets:
they are never part of a ``repr``, a log line or an error of this module.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias, TypeVar, cast

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs forget OffsetSpec
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
)

from monitor.errors import ConfigError, TransientError

# What confluent-kafka's clients take: strings, numbers, switches and callbacks.
Config: TypeAlias = dict[str, Any]

# The whole of a session is lost time when a worker dies, and half of it when one joins the embedded broker
# (a first join took 22 s with librdkafka's default of 45 s), so the two brokers get different sessions.
EMBEDDED_SESSION_MS = 6_000
SESSION_MS = 45_000

_TAKEN_S: Final = 10.0  # for a broker to take what is written
_TURN_S: Final = 0.2
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]

# Switches which would turn off the check that the broker is the one that was meant.
_UNSAFE = {"enable.ssl.certificate.verification", "enable.sasl.oauthbearer.unsecure.jwt"}


T = TypeVar("T")
UNRETURNED: Final = KafkaError(KafkaError._TIMED_OUT, "the call did not return in time")
_FATAL = {KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID}
_REFUSED = {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach the broker.

    ``bootstrap`` is ``host:port[,host:port...]``; ``security`` holds librdkafka's own option names
    (``security.protocol``, ``sasl.*``, ``ssl.*``) and is handed on as it is.
    """

    bootstrap: str
    prefix: str = "driftline."
    client_id: str = "driftline"
    session_timeout_ms: int = EMBEDDED_SESSION_MS
    security: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for address in self.bootstrap.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(f"broker address {address!r} is not of the form host:port")
        if self.session_timeout_ms < 3_000:
            raise ValueError(
                f"session_timeout_ms is {self.session_timeout_ms}: below 3000 a pause looks like a death"
            )
        for name in self.security:
            if name in _UNSAFE or not name.startswith(("security.", "sasl.", "ssl.")):
                raise ValueError(f"{name} is not a security option that Driftline hands on")

    @property
    def heartbeat_ms(self) -> int:
        """A third of the session, so that two lost heartbeats do not end it."""
        return self.session_timeout_ms // 3


class ErrorLog:
    """librdkafka's ``error_cb``: logs each kind of failure once until it has been quiet for a minute."""

    def __init__(
        self, logger: logging.Logger, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._last: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        """Log ``error`` unless its kind was seen within the last minute."""
        now = self._monotonic()
        code = error.name()
        quiet = now - self._last.get(code, -60.0) >= 60.0
        self._last[code] = now
        if quiet:  # librdkafka repeats an unreachable broker for each attempt to connect
            self._logger.log(
                logging.CRITICAL if error.fatal() else logging.WARNING,
                "kafka client: %s: %s",
                code,
                error.str(),
            )


def base_config(settings: KafkaSettings, logger: logging.Logger) -> Config:
    """What every client needs: addresses, identity, security and the error callback."""
    return {
        **settings.security,
        "bootstrap.servers": settings.bootstrap,
        "client.id": settings.client_id,
        "error_cb": ErrorLog(logger),
        "log_level": 2,  # at 3 librdkafka writes each reconnect to stderr (30 lines/s), beside error_cb
        "reconnect.backoff.max.ms": 2_000,  # 10 s would outlast a broker's restart
        "broker.address.family": "v4" if _all_v4(settings.bootstrap) else "any",
    }


def consumer_config(
    settings: KafkaSettings, group: str, logger: logging.Logger, *, instance: str | None = None
) -> Config:
    """A consumer whose offsets are committed by its owner only, after the effects are durable.

    ``instance`` is a stable name of this worker: a restart then takes over its old membership, without a rebalance.
    """
    config: Config = {
        **base_config(settings, logger),
        "group.id": group,
        "enable.auto.commit": False,  # an offset is committed after its effects, never by a timer
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",  # "latest" would lose what came before the first start
        "isolation.level": "read_committed",  # the default, stated: exactness rests on it
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": settings.heartbeat_ms,
        "max.poll.interval.ms": max(300_000, settings.session_timeout_ms),
        "queued.max.messages.kbytes": 32_768,  # 64 MiB a consumer by default, and all of it gets used
        "fetch.queue.backoff.ms": 50,  # 1 s by default: a full queue would then pause the stream
        "partition.assignment.strategy": "range",  # eager: cooperative aborts transactions at each join
    }
    if instance is not None:
        config["group.instance.id"] = instance
    return config


def producer_config(
    settings: KafkaSettings, logger: logging.Logger, *, transactional_id: str | None = None
) -> Config:
    """An idempotent producer; with ``transactional_id`` a transactional one that fences its predecessor."""
    config: Config = {
        **base_config(settings, logger),
        "enable.idempotence": True,  # a retry must not append twice; implies acks=all and order
        "linger.ms": 20,  # 5 ms by default; throughput counts more here than 15 ms
        # aiokafka without cramjam reads gzip only, and what is large here is compressed already (zstd, Arrow).
        "compression.type": "none",
        "message.max.bytes": 1_048_576,  # what brokers take; more fails there instead of here
    }
    if transactional_id is not None:
        timeout_ms = transaction_timeout_ms(settings)
        config |= {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout_ms,
            "message.timeout.ms": timeout_ms - 500,  # has to be below the transaction's
        }
    return config


def put(
    settings: KafkaSettings,
    logger: logging.Logger,
    topic: str,
    key: str,
    value: bytes,
    *,
    partition: int = -1,
) -> None:
    """Write one record, and wait until the broker has it.

    Raises:
        TransientError: the broker did not take it.
    """
    record = {"topic": topic, "key": key, "value": value, "partition": partition}
    write(Producer(producer_config(settings, logger)), settings.bootstrap, topic, [record])


def write(
    producer: Producer, bootstrap: str, what: str, records: Iterable[Mapping[str, Any]]
) -> None:
    """Produce records, and wait until the broker has them; ``what`` they are is named where it does not take them.

    Raises:
        TransientError: it did not take all of them.
    """
    answers: list[str | None] = []  # a list, since whichever thread polls may add to it
    sent = 0
    for record in records:
        answered = {"on_delivery": lambda error, _: answers.append(error and error.str())}
        if not enqueue(producer, {**record, **answered}, within_s=_TAKEN_S):
            raise TransientError(f"the queue to the broker at {bootstrap} stays full")
        producer.poll(0)
        sent += 1
    deadline = time.monotonic() + _TAKEN_S
    # Not until the queue is empty: other threads may fill it as fast.
    while len(answers) < sent and time.monotonic() < deadline:
        producer.flush(_TURN_S)
    failures = [answer for answer in answers if answer is not None]
    if len(answers) < sent or failures:
        why = "; ".join(dict.fromkeys(failures)) or "no answer"
        raise TransientError(f"the broker at {bootstrap} did not take {what}: {why}")


def enqueue(producer: Producer, record: Mapping[str, Any], *, within_s: float = math.inf) -> bool:
    """Put a record, the arguments of ``produce``, into the producer's queue. While that is full, what is in it goes first; ``False`` if it stays full."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            producer.produce(**record)
        except BufferError:
            if time.monotonic() > deadline:
                return False
            producer.poll(_TURN_S)
        else:
            return True


def transaction_timeout_ms(settings: KafkaSettings) -> int:
    """At most 10 s (a hung transaction stalls every reader), and below the session.

    Then a worker that lost its session cannot commit what it had begun.
    """
    return min(10_000, settings.session_timeout_ms - 1_000)


def admin(settings: KafkaSettings, logger: logging.Logger) -> AdminClient:
    """An administrative client.

    Raises:
        ConfigError: an option is wrong, such as a certificate that cannot be read.
    """
    return _admin(base_config(settings, logger))


def bounded(call: Callable[[], T], timeout_s: float) -> T:
    """The result of a call that does not keep to its own time, made in a thread. One that never returns is left behind, with its client.

    Raises:
        KafkaException: ``UNRETURNED``, it did not return in time; or what the call raised.
    """
    ended: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def work() -> None:
        try:
            ended.put((call(), None))
        except Exception as failure:  # noqa: BLE001  raised again below
            ended.put((None, failure))

    Thread(target=work, name="bounded", daemon=True).start()
    try:
        result, failure = ended.get(timeout=timeout_s)
    except Empty:
        raise KafkaException(UNRETURNED) from None
    if failure is not None:
        raise failure
    return cast("T", result)


def is_fatal(error: KafkaError) -> bool:
    """Whether a consumer is of no more use: another has taken its name. To close it may hang."""
    return error.fatal() or error.code() in _FATAL


def log_ends(
    client: AdminClient, places: Iterable[TopicPartition], *, committed: bool, timeout_s: float
) -> Mapping[TopicPartition, Future[ListOffsetsResultInfo]]:
    """Where the log of each partition ends; keep the client until they are answered.

    A client that has asked before a broker went away is refused for ever when it is back: it does not learn the new leader epoch.

    Args:
        client: asks.
        places: partitions.
        committed: whether the log ends where a transaction is open, as for who reads committed records only.
        timeout_s: for the broker's answer.
    """
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    asked = dict.fromkeys(places, _LATEST)
    return client.list_offsets(asked, isolation_level=level, request_timeout=timeout_s)


class Refusals:
    """librdkafka's ``error_cb`` which remembers a failure that waiting will not mend: ``reason``, or ``""``."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self, error: KafkaError) -> None:
        """Remember ``error`` if it says that the broker or we refuse the other's credentials."""
        # A broker that goes away during the handshake is an SSL error, too.
        if error.code() in _REFUSED and "Disconnected" not in error.str():
            self.reason = error.str()


def reachable(settings: KafkaSettings, *, timeout_s: float = 2.0) -> bool:
    """Whether a broker answers within ``timeout_s``. Silent, so that the caller can say it in its own way.

    Raises:
        ConfigError: a security option is wrong, or the broker refuses who we are.
    """
    refusals = Refusals()
    client = _admin(
        {
            **settings.security,
            "bootstrap.servers": settings.bootstrap,
            "log_level": 0,
            "error_cb": refusals,
        }
    )
    try:
        client.list_topics(timeout=timeout_s)
    except KafkaException:
        client.poll(0)  # serves error_cb
        if refusals.reason:
            raise ConfigError(f"kafka: {refusals.reason}") from None
        return False
    return True


def _admin(config: Config) -> AdminClient:
    try:
        return AdminClient(config)
    except KafkaException as err:
        raise ConfigError(f"kafka: {err.args[0].str()}") from None


def _all_v4(bootstrap: str) -> bool:
    """Loopback brokers listen on IPv4 only; "localhost" tried as ::1 first costs a failed connection."""
    hosts = (address.strip().rpartition(":")[0] for address in bootstrap.split(","))
    return all(host in {"localhost", "127.0.0.1"} for host in hosts)
