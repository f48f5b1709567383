"""Events of one model that are counted together, as columns: from decoded events, or from what the kernel read. Both give the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitor.binning import Codes, Ints
from monitor.columns import Columns, from_events
from monitor.events import Event
from monitor.kernel import Read
from monitor.profile import PREDICTION, SCORE
from monitor.tables import class_text, texts_of


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``n`` events of one model.

    Attributes:
        place: ``(n,)`` ascending: their places among all events that were read together.
        columns: what is counted.
        versions: those that occur, in order.
        version: ``(n,)`` the place of each event's version among them.
        ids: ``n`` texts, null where there is none.
        predictions: ``n`` texts as labels are compared with, null where there is none.
        scores: ``n`` numbers, null where there is none.
    """

    place: Codes
    columns: Columns
    versions: Sequence[str]
    version: Codes
    ids: pa.Array
    predictions: pa.Array
    scores: pa.Array

    @classmethod
    def of_events(cls, events: Sequence[Event], place: Codes, features: Iterable[str]) -> Rows:
        """Of decoded events."""
        versions, version = coded([str(event.version) for event in events])
        return cls(
            place,
            from_events(events, features),
            versions,
            version,
            pa.array([event.id for event in events], pa.string()),
            pa.array([class_text(event.prediction) for event in events], pa.string()),
            pa.array([event.score for event in events], pa.float64()),
        )

    @classmethod
    def of_read(cls, read: Read, place: Codes) -> Rows:
        """Of what the kernel read."""
        found = pc.fill_null(read.versions, "").dictionary_encode()
        versions, rank = coded(found.dictionary.to_pylist())
        columns = Columns(
            ts_ms=read.ts_ms,
            features=read.features,
            outputs=read.outputs,
            errors=read.errors,
            tags=read.tags,
        )
        return cls(
            place,
            columns,
            versions,
            rank[found.indices.to_numpy()],
            read.ids,
            texts_of(read.outputs[PREDICTION], class_text),
            read.outputs[SCORE],
        )


def coded(texts: Sequence[str]) -> tuple[list[str], Codes]:
    """The texts that occur, in order, and the place of each of ``texts`` among them."""
    names = sorted(set(texts))
    place = {name: i for i, name in enumerate(names)}
    return names, np.fromiter(map(place.__getitem__, texts), dtype=np.intp, count=len(texts))


def distinct(values: Ints) -> tuple[Ints, Codes]:
    """``np.unique`` with the inverse, of whole numbers. O(n) where they lie close together, as panes do."""
    if len(values) == 0:
        return values, np.zeros(0, dtype=np.intp)
    low, high = int(values.min()), int(values.max())
    if high - low > len(values):
        return np.unique(values, return_inverse=True)
    place = values - low
    there = np.bincount(place) > 0
    return low + np.flatnonzero(there), (np.cumsum(there) - 1)[place]
