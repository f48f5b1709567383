"""A record of the ``models`` topic: a model's spec and its reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from monitor import reference as references
from monitor.errors import ConfigError
from monitor.events import Aliases
from monitor.reference import Reference
from monitor.spec import ModelSpec
from streams.clients import KafkaSettings, put
from streams.topics import Topics

MAX_RECORD: Final = 900_000  # bytes: brokers take 1 MiB; the rest is for headers


@dataclass(frozen=True, slots=True)
class Model:
    """What is known about a model; without a reference it is calibrating itself."""

    spec: ModelSpec
    reference: Reference | None

    @property
    def measured(self) -> ModelSpec:
        """The spec by which labels are compared with predictions: where it does not say what is right, the reference does."""
        labels = self.spec.labels
        if self.reference is None or labels.tolerance is not None:
            return self.spec
        labels = labels.model_copy(update={"tolerance": self.reference.tolerance})
        return self.spec.model_copy(update={"labels": labels})


def aliases_of(newest: Callable[[str], Model | None]) -> Aliases:
    """What the models' specs say of their join keys; ``newest`` finds a model by its name."""

    def aliases(name: str) -> Sequence[str]:
        model = newest(name)
        return () if model is None else model.spec.labels.join_key

    return aliases


def publish(kafka: KafkaSettings, topics: Topics, model: Model, logger: logging.Logger) -> None:
    """Write a model's record and wait until the broker has it.

    Raises:
        ConfigError: the record is larger than a broker takes.
        TransientError: the broker did not take it.
    """
    value = references.dump(model.reference, model.spec)
    if len(value) > MAX_RECORD:
        raise ConfigError(too_large(value))
    put(kafka, logger, topics.models, model.spec.model, value)


def too_large(record: bytes) -> str:
    """Why a record cannot be published, and what to do."""
    return f"the reference has {len(record):,} bytes, over {MAX_RECORD:,}: name fewer features or segments"
