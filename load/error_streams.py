"""Error streams with known drifts: what a classifier that keeps learning gets wrong while its world changes.

A stream is 31 concepts of one of river's generators, 10,000 values each: 30 drifts, and a Hoeffding tree that is tested on
each value before it learns it. Its input to a detector is 1 where the tree was wrong, else 0::

    values    0          10,000                20,000                    300,000      310,000
    concept   [    3    ][         0          ][         2          ]...[      1      ]
    abrupt               |start = end          |start = end             |start = end
    gradual              |start...end|         |start...end|            |start...end|     <- 2,000 values each

Each concept is another one than that before, at random. In a gradual drift the new concept's share of the values grows from
0 to 1 in a straight line. The tree is river's default, never told of a drift and never replaced.

A stream takes half a minute to make, so it is kept, one file each, named by all that it depends on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from river.datasets import synth
from river.tree import HoeffdingTreeClassifier

Errors = npt.NDArray[np.uint8]
Event = tuple[dict[Hashable, object], int]
Source = Literal["SEA", "Agrawal", "STAGGER"]
Kind = Literal["abrupt", "gradual"]

SOURCES: Final[tuple[Source, ...]] = get_args(Source)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CACHE: Final = Path(__file__).parent.parent / ".driftline" / "error-streams"
_CONCEPTS: Final[dict[Source, int]] = {"SEA": 4, "Agrawal": 10, "STAGGER": 3}


@dataclass(frozen=True, slots=True)
class Plan:
    """Which stream: all that its values depend on, but for river's version.

    Attributes:
        source: the generator.
        kind: how one concept gives way to the next.
        seed: of the concepts' order and of their values.
        drifts: how many.
        spacing: values from one drift's start to the next's; before the first drift as many.
        width: values that a gradual drift takes.
    """

    source: Source
    kind: Kind
    seed: int
    drifts: int = 30
    spacing: int = 10_000
    width: int = 2_000

    @property
    def length(self) -> int:
        """Values of the stream."""
        return (self.drifts + 1) * self.spacing

    @property
    def episodes(self) -> list[tuple[int, int]]:
        """Each drift's start and end, as numbers of values from 0."""
        width = self.width if self.kind == "gradual" else 0
        starts = range(self.spacing, self.length, self.spacing)
        return [(start, start + width) for start in starts]

    @property
    def name(self) -> str:
        """Of the file that keeps the stream."""
        shape = f"{self.drifts}x{self.spacing}-{self.width}"
        return f"{self.source}-{self.kind}-{self.seed}-{shape}-river{version('river')}"


def error_stream_of(plan: Plan, kept: Path = CACHE) -> Errors:
    """The errors of a plan, from the folder ``kept``, or made and put there."""
    path = kept / f"{plan.name}.npz"
    if path.exists():
        with np.load(path) as stored:
            return np.asarray(stored["errors"], dtype=np.uint8)
    errors = _made(plan)
    kept.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, errors=errors)
    part.replace(path)  # whole or not at all: making it takes long enough to be stopped
    return errors


def _made(plan: Plan) -> Errors:
    tree = HoeffdingTreeClassifier()
    errors = np.zeros(plan.length, dtype=np.uint8)
    for i, (x, y) in enumerate(_events(plan)):
        errors[i] = tree.predict_one(x) != y
        tree.learn_one(x, y)  # type: ignore[no-untyped-call]  # as river has it
    return errors


def _events(plan: Plan) -> Iterator[Event]:
    rng = np.random.default_rng([plan.seed, SOURCES.index(plan.source)])
    order = _order(rng, _CONCEPTS[plan.source], plan.drifts)
    concepts = [
        iter(_generator(plan.source, concept, int(rng.integers(2**31))))
        for concept in range(_CONCEPTS[plan.source])
    ]
    coins = rng.random(plan.length)
    for i in range(plan.length):
        drift, age = divmod(i, plan.spacing)
        mixed = plan.kind == "gradual" and drift > 0 and age < plan.width
        old = mixed and coins[i] >= (age + 1) / plan.width
        yield next(concepts[order[drift - 1] if old else order[drift]])


def _order(rng: np.random.Generator, concepts: int, drifts: int) -> list[int]:
    order = [int(rng.integers(concepts))]
    for _ in range(drifts):
        other = int(rng.integers(concepts - 1))
        order.append(other + (other >= order[-1]))
    return order


def _generator(source: Source, concept: int, seed: int) -> Iterator[Event]:
    match source:
        case "SEA":
            return iter(synth.SEA(variant=concept, seed=seed))
        case "Agrawal":
            return iter(synth.Agrawal(classification_function=concept, seed=seed))
        case "STAGGER":
            return iter(synth.STAGGER(classification_function=concept, seed=seed))
