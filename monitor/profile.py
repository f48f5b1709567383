"""A profile: what a set of events looked like, as one vector of integers that adds up exactly.

For each field (features in name order, then prediction, score, latency) the vector holds::

    | bin counts ... | missing nan pos_inf neg_inf wrong_type | below above off_grid | sum q, sum q^2 high, sum q^2 low |

``q`` is the value in whole quanta of the reference's scale (``monitor.binning``). ``+`` is integer addition, so it is associative and commutative to
the last bit, and ``zero`` is its neutral element: a profile does not depend on how its events were cut into batches or in
which order these were merged. Profiles of different ``bins_id`` never merge.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.binning import (
    CLIP,
    FLAGS,
    QUANTUM_BITS,
    SPECIALS,
    Bins,
    Codes,
    Encoded,
    Ints,
    NumericBins,
    digest,
    to_dict,
)
from monitor.errors import IncompatibleError

PREDICTION: Final = "$prediction"
SCORE: Final = "$score"
LATENCY: Final = "$latency_ms"
UNSEEN_KEPT: Final = 16  # distinct unseen categories kept per field, as a hint for people
_MOMENTS: Final = 3
_LOW_BITS: Final = 32
_LOW_MASK: Final = (1 << _LOW_BITS) - 1
_HEAD: Final = 2  # events, events with an error


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field's numbers stand in the vector."""

    name: str
    bins: Bins
    start: int

    @property
    def counts(self) -> slice:
        """The bin counts."""
        return slice(self.start, self.start + self.bins.bins)

    @property
    def specials(self) -> slice:
        """Counts of SPECIALS."""
        return slice(self.counts.stop, self.counts.stop + len(SPECIALS))

    @property
    def flags(self) -> slice:
        """Counts of FLAGS."""
        return slice(self.specials.stop, self.specials.stop + len(FLAGS))

    @property
    def moments(self) -> slice:
        """Sum of q; sum of squares, high and low word."""
        return slice(self.flags.stop, self.flags.stop + _MOMENTS)


@dataclass(frozen=True, eq=False)
class Layout:
    """The binning of a whole model: what gives a profile's vector its meaning. Content-hashed as ``bins_id``."""

    bins: Mapping[str, Bins]

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """All fields in the order of the vector."""
        fields, at = [], _HEAD
        for name in sorted(self.bins, key=lambda name: (name.startswith("$"), name)):
            fields.append(Field(name, self.bins[name], at))
            at = fields[-1].moments.stop
        return tuple(fields)

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        """The same by name."""
        return {f.name: f for f in self.fields}

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return self.fields[-1].moments.stop if self.fields else _HEAD

    @cached_property
    def bins_id(self) -> str:
        """Hash of the binning: equal if and only if profiles may merge."""
        form = {f.name: to_dict(f.bins) for f in self.fields}
        return digest(msgspec.json.encode(form).decode())

    @cached_property
    def moment_mask(self) -> npt.NDArray[np.bool_]:
        """``(size,)`` true where a moment stands: these are wide, the counts narrow."""
        mask = np.zeros(self.size, dtype=bool)
        for f in self.fields:
            mask[f.moments] = True
        return mask

    @cached_property
    def _carries(self) -> npt.NDArray[np.intp]:
        """Positions of the low words, whose overflow belongs into the high word before them."""
        return np.array([f.moments.stop - 1 for f in self.fields], dtype=np.intp)

    def normalise(self, vectors: Ints) -> Ints:
        """Carry the low words of ``(..., size)`` in place: the canonical form, so that equal sums are equal bytes."""
        at = self._carries
        vectors[..., at - 1] += vectors[..., at] >> _LOW_BITS
        vectors[..., at] &= _LOW_MASK
        return vectors


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts and moments of a set of events.

    Attributes:
        vector: ``(layout.size,)`` int64, in canonical form.
        unseen: field -> text -> count, of categories that the reference does not have: the ``UNSEEN_KEPT`` with the smallest hash. Which values
            stay depends on the values alone, so merging is exact here too. A hint for people, never the input of a statistic.
    """

    layout: Layout
    vector: Ints
    unseen: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def zero(cls, layout: Layout) -> Profile:
        """The profile of no event."""
        return cls(layout, np.zeros(layout.size, dtype=np.int64))

    @property
    def n(self) -> int:
        """Events."""
        return int(self.vector[0])

    @property
    def errors(self) -> int:
        """Events whose ``error`` is set."""
        return int(self.vector[1])

    def __add__(self, other: Profile) -> Profile:
        """The profile of both sets together.

        Raises:
            IncompatibleError: of different binnings.
        """
        if self.layout is not other.layout and self.layout.bins_id != other.layout.bins_id:
            raise IncompatibleError(
                f"bins {self.layout.bins_id} and {other.layout.bins_id} never merge"
            )
        vector = self.layout.normalise(self.vector + other.vector)
        return Profile(self.layout, vector, _merge_unseen(self.unseen, other.unseen))

    def counts(self, name: str) -> Ints:
        """Bin counts of a field, ``(bins,)``."""
        return self.vector[self.layout.by_name[name].counts]

    def special(self, name: str, which: str) -> int:
        """A count of SPECIALS or FLAGS."""
        f = self.layout.by_name[name]
        if which in SPECIALS:
            return int(self.vector[f.specials][SPECIALS.index(which)])
        return int(self.vector[f.flags][FLAGS.index(which)])

    def moments(self, name: str) -> tuple[int, float, float]:
        """``(n, mean, M2)`` of a numeric field's finite values, in the field's own unit; ``M2`` is the sum of squared deviations.

        Values beyond 1,024 scales of the centre count as that far. ``(0, 0, 0)`` without values and for categoricals.
        """
        n, mean, m2 = self.scaled_moments(name)
        bins = self.layout.by_name[name].bins
        if n == 0 or not isinstance(bins, NumericBins):
            return 0, 0.0, 0.0
        return n, bins.center + mean * bins.scale, m2 * bins.scale * bins.scale

    def scaled_moments(self, name: str) -> tuple[int, float, float]:
        """The same in scales of the reference around its centre: what detectors take, and finite whatever the unit."""
        f = self.layout.by_name[name]
        n = int(self.vector[f.counts].sum())
        if n == 0 or not isinstance(f.bins, NumericBins):
            return 0, 0.0, 0.0
        s1, high, low = (int(x) for x in self.vector[f.moments])
        s2 = (high << _LOW_BITS) + low
        # Integer arithmetic to the end: n * s2 - s1 * s1 has no cancellation error.
        return n, s1 / n / (1 << QUANTUM_BITS), (n * s2 - s1 * s1) / n / (1 << 2 * QUANTUM_BITS)

    def to_bytes(self) -> bytes:
        """Wire form: the vector in the narrowest integers that hold it (compression is the envelope's)."""
        hints = {name: dict(texts) for name, texts in self.unseen.items()}
        moments = self.layout.moment_mask
        parts = (_narrow(self.vector[~moments]), _narrow(self.vector[moments]))
        return _ENCODER.encode((self.layout.bins_id, parts, hints))

    @staticmethod
    def from_bytes(layout: Layout, body: bytes) -> Profile:
        """The profile in ``body``.

        Raises:
            IncompatibleError: damaged, or of another binning.
        """
        try:
            bins_id, (counts, moments), hints = _DECODER.decode(body)
            if bins_id != layout.bins_id:
                raise IncompatibleError(f"profile of bins {bins_id}, expected {layout.bins_id}")
            vector = np.empty(layout.size, dtype=np.int64)
            for mask, (dtype, raw) in (
                (~layout.moment_mask, counts),
                (layout.moment_mask, moments),
            ):
                values = np.frombuffer(raw, dtype=np.dtype(dtype))
                if len(values) != np.count_nonzero(mask):
                    raise IncompatibleError("damaged profile")  # one value would be broadcast
                vector[mask] = values
        except (msgspec.MsgspecError, TypeError, ValueError) as err:
            raise IncompatibleError("damaged profile") from err
        return Profile(layout, vector, hints)


def profile_groups(
    layout: Layout,
    columns: Mapping[str, Encoded],
    errors: npt.NDArray[np.bool_],
    group: Codes,
    groups: int,
) -> list[Profile]:
    """One profile per group of the rows of a batch.

    Args:
        layout: the model's binning.
        columns: every field of the layout, encoded; all of ``n`` rows.
        errors: ``(n,)`` whether the event carried an error.
        group: ``(n,)`` group of each row, in ``[0, groups)``.
        groups: how many groups.

    Cost: O(fields * (n + groups * bins)); a loop over fields, never over rows.
    """
    vectors = np.zeros((groups, layout.size), dtype=np.int64)
    vectors[:, 0] = np.bincount(group, minlength=groups)
    vectors[:, 1] = np.bincount(group[errors], minlength=groups)
    unseen: list[dict[str, dict[str, int]]] = [{} for _ in range(groups)]
    for f in layout.fields:
        column = columns[f.name]
        width = f.bins.bins + len(SPECIALS)
        counts = np.bincount(group * width + column.codes, minlength=groups * width)
        vectors[:, f.counts.start : f.specials.stop] = counts.reshape(groups, width)
        if column.flags is not None:
            flagged = np.bincount(group * 4 + column.flags, minlength=groups * 4).reshape(groups, 4)
            vectors[:, f.flags] = flagged[:, 1:]
        if isinstance(f.bins, NumericBins) and column.values is not None:
            vectors[:, f.moments] = _sums(f.bins.quantise(column.values), group, groups)
        elif column.unseen:
            _count_unseen(unseen, f, column, group)
    layout.normalise(vectors)
    return [Profile(layout, vectors[i], unseen[i]) for i in range(groups)]


def _sums(q: Ints, group: Codes, groups: int) -> Ints:
    """``(groups, 3)`` exact sums: ``np.bincount`` would add in floating point, so each group is one reduction."""
    sums = np.zeros((groups, _MOMENTS), dtype=np.int64)
    square = q * q  # at most 2**52
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    if len(present):
        sums[present, 0] = np.add.reduceat(q[order], starts)
        sums[present, 1] = np.add.reduceat(square[order] >> _LOW_BITS, starts)
        sums[present, 2] = np.add.reduceat(square[order] & _LOW_MASK, starts)
    return sums


def _count_unseen(
    into: list[dict[str, dict[str, int]]], f: Field, column: Encoded, group: Codes
) -> None:
    rows = np.flatnonzero(column.codes == f.bins.bins - 1)
    for row, text in zip(rows, column.unseen, strict=True):
        counts = into[group[row]].setdefault(f.name, {})
        counts[text] = counts.get(text, 0) + 1
    for counted in into:
        if f.name in counted:
            counted[f.name] = _keep(counted[f.name])


def _keep(counts: Mapping[str, int]) -> dict[str, int]:
    """The ``UNSEEN_KEPT`` texts with the smallest hash.

    A text among the smallest of a union is among the smallest of each part that has it, so its count is exact whatever the merge order.
    """
    if len(counts) <= UNSEEN_KEPT:
        return dict(counts)
    return dict(
        sorted(counts.items(), key=lambda item: (zlib.crc32(item[0].encode()), item[0]))[
            :UNSEEN_KEPT
        ]
    )


def _merge_unseen(
    a: Mapping[str, Mapping[str, int]], b: Mapping[str, Mapping[str, int]]
) -> Mapping[str, Mapping[str, int]]:
    if not (a and b):
        return a or b
    merged: dict[str, Mapping[str, int]] = {}
    for name in sorted({*a, *b}):
        mine, theirs = a.get(name, {}), b.get(name, {})
        merged[name] = _keep({t: mine.get(t, 0) + theirs.get(t, 0) for t in {*mine, *theirs}})
    return merged


def _narrow(vector: Ints) -> tuple[str, bytes]:
    for dtype in ("u1", "<i2", "<i4"):
        bounds = np.iinfo(dtype)
        if len(vector) == 0 or (vector.min() >= bounds.min and vector.max() <= bounds.max):
            return dtype, vector.astype(dtype).tobytes()
    return "<i8", vector.astype("<i8").tobytes()


_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final[Any] = msgspec.msgpack.Decoder(
    tuple[str, tuple[tuple[str, bytes], tuple[str, bytes]], dict[str, dict[str, int]]]
)
assert CLIP * CLIP <= 1 << 52
