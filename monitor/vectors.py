"""Vectors of a profile: several numeric features side by side, or one feature that is a list of numbers (an embedding).

Each has a part of its own in a profile's vector, beside the fields::

    | vectors, missing, broken | 2 * D sums of monitor.fourier |

Every event counts once. Features side by side are *missing* if none of them has a number, and *broken* if fewer than half have; a single gap counts as
the reference's centre. An embedding is missing where there is nothing, and broken unless it is a list of as many finite numbers as the reference's: half
an embedding is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitor.fourier import FourierMap, FourierSum
from monitor.raw import Codes, Floats, Ints, Raw, numbers
from monitor.sampling import StridedSample

WHOLE, MISSING, BROKEN = 0, 1, 2  # fates of an event
_HEAD: Final = 3
_CELLS: Final = 1 << 20  # numbers read at once: 8 MiB


@dataclass(frozen=True, slots=True)
class VectorColumns:
    """Where a vector's numbers are.

    Attributes:
        name: of the vector; of an embedding, the feature.
        members: features side by side; none for an embedding.
        dimensions: how many numbers.
    """

    name: str
    members: tuple[str, ...]
    dimensions: int

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that are read."""
        return self.members or (self.name,)

    def read(self, column: Callable[[str], Raw], rows: slice) -> tuple[Floats, Codes]:
        """``(n, dimensions)`` numbers of some rows, not finite where there is a gap, and the ``(n,)`` fate of each row."""
        if self.members:
            values = np.stack([numbers(column(m)[rows]).values for m in self.members], axis=1)
            known = np.isfinite(values).sum(axis=1)
            fate = np.where(2 * known >= self.dimensions, WHOLE, BROKEN)
            fate[known == 0] = MISSING
            return values, fate
        raw = column(self.name)[rows]
        if isinstance(raw, pa.Array):
            return _from_arrow(raw, self.dimensions)
        return _from_lists(raw, self.dimensions)

    def parts(self, n: int) -> list[slice]:
        """Cuts of ``n`` rows that are read at once."""
        step = max(1, _CELLS // self.dimensions)
        return [slice(at, min(at + step, n)) for at in range(0, n, step)]


@dataclass(frozen=True, eq=False)
class VectorBins:
    """What a vector becomes: where its numbers are, and the frozen map."""

    columns: VectorColumns
    fourier: FourierMap

    def __post_init__(self) -> None:
        if self.columns.dimensions != self.fourier.dimensions:
            raise ValueError("the map is for vectors of another length")

    @property
    def width(self) -> int:
        """Numbers in a profile."""
        return _HEAD + 2 * self.fourier.frequencies

    def count(
        self, column: Callable[[str], Raw], groupings: Sequence[tuple[Codes, int]]
    ) -> list[Ints]:
        """For each way to group the rows, the ``(groups, width)`` parts of the groups' profiles.

        Cost: see ``FourierMap.sums_by``; and of lists, 50 ns a number to read it.
        """
        found = [np.zeros((groups, self.width), dtype=np.int64) for _, groups in groupings]
        for rows in self.columns.parts(len(groupings[0][0])):
            values, fate = self.columns.read(column, rows)
            whole = np.flatnonzero(fate == WHOLE)
            cuts = [(group[rows], groups) for group, groups in groupings]
            sums = self.fourier.sums_by(values[whole], [(of[whole], groups) for of, groups in cuts])
            for (of, groups), into, added in zip(cuts, found, sums, strict=True):
                fates = np.bincount(of * _HEAD + fate, minlength=groups * _HEAD)
                into[:, :_HEAD] += fates.reshape(groups, _HEAD)
                into[:, _HEAD:] += added
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON form; floats round-trip exactly."""
        return {
            "kind": "vector",
            "members": list(self.columns.members),
            "fourier": self.fourier.to_dict(),
        }

    @staticmethod
    def from_dict(name: str, form: dict[str, Any]) -> VectorBins:
        """The bins whose ``to_dict`` is ``form``.

        Raises:
            IncompatibleError, KeyError, TypeError, ValueError: not such a form, or this machine cannot make the map.
        """
        fourier = FourierMap.from_dict(form["fourier"])
        columns = VectorColumns(name, tuple(form["members"]), fourier.dimensions)
        return VectorBins(columns, fourier)


@dataclass(frozen=True, slots=True)
class VectorField:
    """Where a vector's numbers stand in a profile's vector."""

    name: str
    bins: VectorBins
    start: int

    @property
    def place(self) -> slice:
        """All of them."""
        return slice(self.start, self.start + self.bins.width)

    @property
    def sums(self) -> slice:
        """The wide ones."""
        return slice(self.start + _HEAD, self.place.stop)

    def state(self, vector: Ints) -> FourierSum:
        """The state in a profile's vector."""
        return FourierSum(int(vector[self.start + WHOLE]), vector[self.sums])

    def left_out(self, vector: Ints) -> tuple[int, int]:
        """Events without a vector: missing, and broken."""
        return int(vector[self.start + MISSING]), int(vector[self.start + BROKEN])


class VectorSample:
    """Whole vectors of a stream, at most ``most``. Mutable: it streams."""

    def __init__(self, columns: VectorColumns, most: int) -> None:
        self._columns = columns
        self._whole = StridedSample(most, np.empty((0, columns.dimensions)))

    def add(self, column: Callable[[str], Raw], n: int) -> None:
        """Take up ``n`` rows."""
        for rows in self._columns.parts(n):
            values, fate = self._columns.read(column, rows)
            self._whole.add(values[fate == WHOLE])

    def bins(self, seed: int) -> VectorBins:
        """The map for what was seen."""
        embedding = not self._columns.members
        return VectorBins(
            self._columns, FourierMap.fit(self.rows, seed=seed, common_scale=embedding)
        )

    @property
    def rows(self) -> Floats:
        """``(k, dimensions)`` in the order of the stream."""
        return self._whole.rows


def _from_arrow(raw: pa.Array, dimensions: int) -> tuple[Floats, Codes]:
    kind = raw.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)  # fmt: skip
    if not lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):  # fmt: skip
        return _from_lists(raw.to_pylist(), dimensions)
    fate = np.full(len(raw), BROKEN)
    fate[raw.is_null().to_numpy(zero_copy_only=False)] = MISSING
    long = pc.fill_null(pc.equal(pc.list_value_length(raw), dimensions), False)
    fits = long.to_numpy(zero_copy_only=False)
    flat = pc.cast(raw.filter(long).flatten(), pa.float64(), safe=False)
    values = np.zeros((len(raw), dimensions))
    values[fits] = flat.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    fate[fits] = WHOLE
    return values, _whole_if_finite(values, fate)


def _from_lists(raw: Sequence[Any], dimensions: int) -> tuple[Floats, Codes]:
    fate = np.full(len(raw), BROKEN)
    fate[[i for i, value in enumerate(raw) if value is None]] = MISSING
    long = [i for i, row in enumerate(raw) if isinstance(row, list) and len(row) == dimensions]
    values = np.zeros((len(raw), dimensions))
    rows = [raw[i] for i in long]
    together = _as_floats(rows) if rows else None
    if together is not None:
        values[long], fate[long] = together, WHOLE
    else:  # one of them may have a text, a gap or a list inside
        for i, row in zip(long, rows, strict=True):
            alone = _as_floats([row])
            if alone is not None:
                values[i], fate[i] = alone[0], WHOLE
    return values, _whole_if_finite(values, fate)


def _as_floats(rows: list[list[Any]]) -> Floats | None:
    """The rows as numbers, or ``None``: a text is never read as one."""
    try:
        values = np.array(rows)
    except ValueError:  # lists of different length inside
        return None
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        return None
    return values.astype(np.float64)


def _whole_if_finite(values: Floats, fate: Codes) -> Codes:
    fate[(fate == WHOLE) & ~np.isfinite(values).all(axis=1)] = BROKEN
    return fate
