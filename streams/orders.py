"""How an order gets to the detector that holds the incident's model, and how what came of it is read from the store.

An order (``monitor.orders``) is a record of ``commands`` in the model's partition. One that changes nothing, such as a second acknowledgement,
leaves no trace.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from monitor import wire
from monitor.errors import ConfigError, TransientError
from monitor.events import Record
from monitor.labels import Label
from monitor.settings import Settings
from monitor.store import Store
from monitor.wire import Command, Incident
from streams import clients, wiring
from streams.topics import partition_of

logger = logging.getLogger(__name__)

LEAST_ID: Final = 4  # characters of an id that have to be given
_TURN_S: Final = 0.25
_TAKEN_MS: Final = 5_000  # less than what `clients.write` waits, so that it learns what came of it


def find(store: Store, id_prefix: str) -> Incident:
    """The incident whose id begins so.

    Raises:
        ConfigError: none does, or more than one.
    """
    if len(id_prefix) < LEAST_ID:
        raise ConfigError(f"give at least {LEAST_ID} characters of the incident's id")
    found = store.incidents_like(id_prefix)
    if not found:
        raise ConfigError("no such incident")
    if len(found) > 1:
        raise ConfigError("more than one incident begins so: give more of its id")
    return found[0]


class Messenger:
    """Takes to the broker what people and programs hand in, through one producer that is made at the first. Mutable: it owns the producer.

    Any number of threads may use it at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._producer: Producer | None = None

    def give(self, command: Command) -> None:
        """Give an order to the detector; returns when the broker has it.

        Raises:
            TransientError, ConfigError: as ``write``.
        """
        record = {
            "topic": wiring.topics(self._settings).commands,
            "key": command.model,
            "value": wire.encode(command),
            "partition": partition_of(command.model, self._settings.kafka.detector_partitions),
        }
        self.write("the order", [record])

    def take(self, labels: Sequence[Label]) -> None:
        """Take labels to their topic; returns when the broker has all of them.

        Raises:
            TransientError, ConfigError: as ``write``; it may have some.
        """
        topic = wiring.topics(self._settings).labels
        self.write(
            "the labels",
            ({"topic": topic, "key": label.id, "value": label.to_json()} for label in labels),
        )

    def post(self, records: Sequence[Record]) -> None:
        """Take predictions to their topic; returns when the broker has all of them.

        Raises:
            TransientError, ConfigError: as ``write``; it may have some.
        """
        topic = wiring.topics(self._settings).predictions
        self.write(
            "the predictions",
            (
                {"topic": topic, "key": r.key, "value": r.value, "headers": dict(r.headers)}
                for r in records
            ),
        )

    def write(self, what: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records; returns when the broker has them.

        Raises:
            TransientError: the broker does not answer.
            ConfigError: the broker refuses who we are.
        """
        producer = self._connected()
        try:
            clients.write(producer, self._settings.kafka.bootstrap, what, records)
        except KafkaException as err:
            self._forget(producer)
            raise TransientError(f"kafka: {err.args[0].str()}") from err
        except TransientError:
            self._forget(producer)
            raise

    def _forget(self, producer: Producer) -> None:
        """It may be broken for good: the next order begins with a new one."""
        with self._lock:
            if self._producer is producer:
                self._producer = None

    def _connected(self) -> Producer:
        if self._producer is not None:
            return self._producer
        kafka = wiring.require_broker(self._settings)  # outside: nobody queues for a silent broker
        with self._lock:
            if self._producer is None:
                config = clients.producer_config(kafka, logger)
                # Whoever was told that it failed must not see it happen minutes later.
                config |= {"message.timeout.ms": _TAKEN_MS, "linger.ms": 0}
                self._producer = Producer(config)
            return self._producer


def taken(
    store: Store,
    command: Command,
    *,
    within_s: float,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> Incident | None:
    """The incident once an order is in its timeline; ``None`` if it is not there in time.

    Raises:
        TransientError: the database does not answer.
    """
    deadline = monotonic() + within_s
    said = f"{command.kind} by {command.author}"
    while True:
        incident = store.incident(command.incident_id)
        lines = incident.timeline if incident else []
        if any(x.at_ms == command.at_ms and x.what.startswith(said) for x in lines):
            return incident
        if monotonic() > deadline:
            return None
        sleep(_TURN_S)
