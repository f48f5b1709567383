"""A record of the ``models`` topic: a model's spec and its reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Producer

from monitor import reference as references
from monitor.errors import TransientError
from monitor.reference import Reference
from monitor.spec import ModelSpec
from streams.clients import KafkaSettings, producer_config
from streams.topics import Topics

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """What is known about a model; without a reference it is calibrating itself."""

    spec: ModelSpec
    reference: Reference | None


def publish(kafka: KafkaSettings, topics: Topics, model: Model, logger: logging.Logger) -> None:
    """Write a model's record and wait until the broker has it.

    Raises:
        TransientError: the broker did not take it.
    """
    failures: list[str] = []
    producer = Producer(producer_config(kafka, logger))
    producer.produce(
        topics.models,
        key=model.spec.model,
        value=references.dump(model.reference, model.spec),
        on_delivery=lambda error, _: failures.append(error.str()) if error else None,
    )
    if producer.flush(_TIMEOUT_S) or failures:
        raise TransientError(
            f"the broker at {kafka.bootstrap} did not take the model: {'; '.join(failures) or 'no answer'}"
        )
