"""The models that a process works with: a live view of the compacted ``models`` topic, kept by a thread of its own.

References are immutable and found by ``bins_id``, so profiles that were made under an older reference still merge and close. The newest record of a
model decides its spec and what new events are counted with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from threading import Condition, Event, Thread
from typing import Final, Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from typing_extensions import override

from monitor import reference as references
from monitor.errors import IncompatibleError, TransientError
from monitor.spec import ModelSpec
from streams.clients import KafkaSettings, consumer_config
from streams.models import Model
from streams.topics import Topics

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_PATIENCE_S: Final = (
    30.0  # a record that somebody else has read already arrives within a fetch or two
)
_ANSWER_S: Final = 2.0
_KEPT_REFERENCES: Final = 16  # per model: older ones have no open panes any more


_MAX_MODELS: Final = 10_000  # of all: more than ``limits.models`` allows


class Lookup(Protocol):
    """What the stages ask about models."""

    def newest(self, model: str) -> Model | None:
        """The newest record of a model."""

    def model(self, model: str, bins_id: str) -> Model:
        """The model with the reference that has these bins.

        Raises:
            TransientError: it is not known, even after waiting.
        """

    def known(self, model: str, bins_id: str) -> bool:
        """Whether ``model`` has an answer now, without waiting."""

    def count(self) -> int:
        """How many models there are."""


def read(kafka: KafkaSettings, topics: Topics) -> Mapping[str, Model]:
    """The newest record of every model, once.

    Raises:
        TransientError: the broker did not answer, or the topic is not there.
    """
    registry = Registry(kafka, topics)
    try:
        registry.start()
        return registry.all()
    finally:
        registry.stop()


class Registry(Lookup):
    """A live ``Lookup``. Mutable: the thread adds, readers wait. ``stop`` ends it."""

    def __init__(
        self, kafka: KafkaSettings, topics: Topics, *, patience_s: float = _PATIENCE_S
    ) -> None:
        self._topic, self._group = topics.models, f"{topics.prefix}registry"
        self._kafka, self._patience_s = kafka, patience_s
        self._changed = Condition()
        self._newest: dict[str, Model] = {}
        self._by_bins: dict[str, dict[str, Model]] = {}
        self._current = False
        self._obstacle = f"{self._topic} at {kafka.bootstrap} could not be read"
        self._stop = Event()
        self._thread = Thread(target=self._run, name="registry", daemon=True)

    def start(self, stop: Event | None = None, *, timeout_s: float = _PATIENCE_S) -> None:
        """Read the topic to its present end. What fails leaves no thread behind, and is not started again.

        Args:
            stop: ends the wait.
            timeout_s: so does this.

        Raises:
            TransientError: the end was not reached.
        """
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._current and time.monotonic() < deadline:
                if stop is not None and stop.is_set():
                    break
                self._changed.wait(_POLL_S)
            current = self._current
        if not current:
            self.stop()
            raise TransientError(self._obstacle)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def all(self) -> Mapping[str, Model]:
        """The newest record of every model."""
        with self._changed:
            return dict(self._newest)

    def specs(self) -> Mapping[str, ModelSpec]:
        """The spec of every model by which labels are compared with its predictions."""
        return {name: model.measured for name, model in self.all().items()}

    @override
    def newest(self, model: str) -> Model | None:
        with self._changed:
            return self._newest.get(model)

    @override
    def known(self, model: str, bins_id: str) -> bool:
        with self._changed:
            return bins_id in self._by_bins.get(model, {})

    @override
    def count(self) -> int:
        with self._changed:
            return len(self._newest)

    @override
    def model(self, model: str, bins_id: str) -> Model:
        with self._changed:
            # Another process may have seen a new reference first and sent profiles made with it.
            known = self._changed.wait_for(
                lambda: bins_id in self._by_bins.get(model, {}), self._patience_s
            )
            if not known:
                logger.warning("%s: no reference with bins %s on %s", model, bins_id, self._topic)
                raise TransientError(f"{model}: no reference with bins {bins_id}")
            return self._by_bins[model][bins_id]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except KafkaException as err:
                said = f"{self._topic} at {self._kafka.bootstrap} could not be read: {err.args[0].str()}"
                if err.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    said = f"topic {self._topic} is not there: run `driftline topics create`"
                if said != self._obstacle:
                    logger.warning("%s", said)
                self._obstacle = said
                self._stop.wait(1.0)

    def _follow(self) -> None:
        # The end is known by the client's end-of-partition event. Asking for offsets is no substitute: behind a
        # transaction marker, and on the embedded broker, they do not say what a reader can reach.
        config = consumer_config(self._kafka, self._group, logger) | {"enable.partition.eof": True}
        consumer = Consumer(config)
        try:
            # Asked for, since a consumer is not told of a missing topic for its first 30 seconds.
            found = consumer.list_topics(self._topic, timeout=_ANSWER_S).topics[self._topic]
            if found.error is not None:
                raise KafkaException(found.error)
            consumer.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
            while not self._stop.is_set():
                for message in consumer.consume(500, timeout=_POLL_S):
                    error = message.error()
                    if error is None:
                        self._take(
                            (message.key() or b"").decode("utf-8", "replace"), message.value()
                        )
                    elif error.code() == KafkaError._PARTITION_EOF:
                        self._reached_end()
                    else:
                        raise KafkaException(error)
        finally:
            consumer.close()

    def _reached_end(self) -> None:
        with self._changed:
            self._current = True
            self._changed.notify_all()

    def _take(self, name: str, value: bytes | None) -> None:
        model = None if value is None else _read_record(name, value)
        if value is not None and model is None:
            return
        with self._changed:
            if model is None:
                self._newest.pop(name, None)
            elif name not in self._newest and len(self._newest) >= _MAX_MODELS:
                logger.warning("a model left out: there are %d", _MAX_MODELS)
            else:
                self._keep(name, model)
            self._changed.notify_all()

    def _keep(self, name: str, model: Model) -> None:
        self._newest[name] = model
        if model.reference is None:
            return
        history = self._by_bins.setdefault(name, {})
        history.pop(model.reference.layout.bins_id, None)  # the newest stands last
        history[model.reference.layout.bins_id] = model
        while len(history) > _KEPT_REFERENCES:
            del history[next(iter(history))]


def _read_record(name: str, value: bytes) -> Model | None:
    """The model in a record; ``None``, and a word in the log, where there is none."""
    try:
        return Model(*references.load(value))
    except IncompatibleError as err:
        spec = references.spec_of(value)
        if spec is None:
            logger.warning("model %s left out: %s", name, err)
            return None
        # Its owner's budget, segments and targets stay; a reference is never made up in their place.
        logger.warning("model %s has no reference: %s; driftline apply makes it anew", name, err)
        return Model(spec, None)
    except Exception as err:  # noqa: BLE001  of one record: the thread serves all models
        logger.warning("model %s left out: %s", name, type(err).__name__)
        return None
