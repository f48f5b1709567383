"""Builders of the stream tests: a log of predictions, its models, and batches cut from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from typing_extensions import override

from monitor import wire
from monitor.errors import TransientError
from monitor.events import Limits
from monitor.panes import SourceMark
from streams.models import Model
from streams.profiling import Outcome, Policy, Reader, SourceMessage, profile_batch
from streams.registry import Lookup
from tests.monitor.builders import NOW, body, reference, spec

PARTITIONS = 2  # of the detector's topics
POLICY = Policy(Limits(), PARTITIONS, max_models=100, auto_register=True)


class Known(Lookup):
    """Models that are simply there."""

    def __init__(self, *models: Model) -> None:
        self.models = {model.spec.model: model for model in models}

    @override
    def newest(self, model: str) -> Model | None:
        return self.models.get(model)

    @override
    def model(self, model: str, bins_id: str) -> Model:
        known = self.models.get(model)
        if known is None or known.reference is None or known.reference.layout.bins_id != bins_id:
            raise TransientError(f"{model}: no reference with bins {bins_id}")
        return known

    @override
    def known(self, model: str, bins_id: str) -> bool:
        known = self.models.get(model)
        return (
            known is not None
            and known.reference is not None
            and known.reference.layout.bins_id == bins_id
        )

    @override
    def count(self) -> int:
        return len(self.models)


def model(name: str, **changes: object) -> Model:
    """A model with a reference of 2,000 rows."""
    chosen = spec(name, **changes)
    return Model(chosen, reference(chosen))


def message(partition: int, offset: int, *events: Any, headers: Any = None) -> SourceMessage:
    """One event, or an array of them."""
    value = body(events[0] if len(events) == 1 else list(events))
    return SourceMessage(partition, offset, value, headers or {})


def marks(partitions: Iterable[int], position: int = 0) -> dict[int, SourceMark]:
    """Partitions of which nothing was read."""
    return {p: SourceMark(position, None, idle=False) for p in partitions}


@dataclass
class Profiling:
    """Batches through ``profile_batch``, each from where the last one ended."""

    newest: Callable[[str], Model | None]
    at: dict[int, SourceMark]
    policy: Policy = POLICY
    known_models: int = 2
    reader: Reader = field(default_factory=Reader)
    outcomes: list[Outcome] = field(default_factory=list)

    def batch(
        self,
        messages: Sequence[SourceMessage],
        *,
        idle: Iterable[int] = (),
        jumps: Mapping[int, str] | None = None,
    ) -> Outcome:
        """One batch; the marks move on."""
        outcome = profile_batch(
            messages,
            self.at,
            self.newest,
            self.policy,
            now_ms=NOW,
            known_models=self.known_models,
            idle=idle,
            jumps=jumps,
            reader=self.reader,
        )
        self.at = outcome.marks
        self.outcomes.append(outcome)
        return outcome

    def links(self) -> Iterator[wire.Link]:
        """All links of all profiles partitions so far."""
        for outcome in self.outcomes:
            for profiles in outcome.profiles:
                yield from profiles.links


def cuts(rng: np.random.Generator, n: int, parts: int) -> list[slice]:
    """``n`` things in about ``parts`` slices, some of them empty."""
    at = [0, *sorted(rng.integers(0, n + 1, parts - 1).tolist()), n]
    return [slice(a, b) for a, b in pairwise(at)]
