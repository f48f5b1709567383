"""What an owner does to a model from the command line: apply a spec, build a reference, look at one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monitor import reference as references
from monitor.errors import ConfigError
from monitor.reference import Reference
from monitor.settings import Settings
from monitor.source import read_source
from monitor.spec import Calibration, ModelSpec
from streams import models, registry, wiring
from streams.models import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``apply`` did, for people and for programs."""

    sentence: str
    summary: dict[str, Any]


def apply(settings: Settings, spec: ModelSpec, *, origin: Path, recalibrate: bool) -> Applied:
    """Publish a spec with its reference.

    A reference file is read now, relative to the spec. A model that calibrates itself keeps the reference that it has,
    unless its segments changed or ``recalibrate`` is set: a reference never changes silently.

    Raises:
        ConfigError: the reference file is wrong.
        TransientError: the broker is away.
    """
    kafka, topics = wiring.kafka(settings), wiring.topics(settings)
    if spec.reference.file is not None:
        source = origin.parent / spec.reference.file
        reference: Reference | None = _built(spec, source)
        how = f"compared with {source}"
    else:
        known = registry.read(kafka, topics).get(spec.model)
        reference = known.reference if known is not None and not recalibrate else None
        if reference is not None and set(reference.segments) != set(spec.segments):
            reference = None
        how = "keeps its reference" if reference is not None else "calibrates itself"
    models.publish(kafka, topics, Model(spec, reference), logger)
    shown = {"model": spec.model, "reference": reference and summary(reference), "how": how}
    return Applied(f"{spec.model}: {how}", shown)


def build(settings: Settings, spec: ModelSpec, source: Path, *, publish: bool) -> Reference:
    """Build the reference of a model from a file, and publish it if asked to.

    Raises:
        ConfigError: the file is wrong.
        TransientError: the broker is away.
    """
    reference = _built(spec, source)
    if publish:
        kafka, topics = wiring.kafka(settings), wiring.topics(settings)
        models.publish(kafka, topics, Model(spec, reference), logger)
    return reference


def followed(settings: Settings, name: str) -> Model:
    """The newest record of a model.

    Raises:
        ConfigError: no such model.
        TransientError: the broker is away.
    """
    known = registry.read(wiring.kafka(settings), wiring.topics(settings))
    if name not in known:
        raise ConfigError(
            f"no model is called {name}: {', '.join(sorted(known)) or 'there are none'}"
            f" (a new model appears after its first {Calibration().events:,} events)"
        )
    return known[name]


def current(settings: Settings, name: str) -> Reference:
    """The reference that a model is compared with.

    Raises:
        ConfigError: no such model, or it has none yet.
        TransientError: the broker is away.
    """
    reference = followed(settings, name).reference
    if reference is None:
        raise ConfigError(
            f"{name} has no reference yet: it calibrates itself from its first events"
        )
    return reference


def summary(reference: Reference) -> dict[str, Any]:
    """A reference in short: what it covers, and one row per field."""
    whole = reference.profiles[""]
    fields = [
        {
            "field": field.name,
            "bins": field.bins.bins,
            "missing": f"{whole.special(field.name, 'missing') / max(1, whole.n):.1%}",
        }
        for field in reference.layout.fields
    ]
    return {
        "model": reference.model,
        "reference": reference.reference_id,
        "bins_id": reference.layout.bins_id,
        "events": reference.n,
        "from": _utc(reference.first_ms),
        "to": _utc(reference.last_ms),
        "segments": {name: len(values) for name, values in reference.segments.items()},
        "accuracy": reference.accuracy,
        "fields": fields,
    }


def _built(spec: ModelSpec, source: Path) -> Reference:
    return references.build(spec, read_source(source), origin=source.name)


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="seconds")
