"""A profile: what a set of events looked like, as one vector of integers that adds up exactly.

For each field (features in name order, then prediction, score, latency) the vector holds::

    | bin counts ... | missing nan pos_inf neg_inf wrong_type | below above off_grid | sum q, sum q^2 high, sum q^2 low |

Behind the fields stand the vectors (``monitor.vectors``), which take many numbers at once. ``q`` is the value in whole quanta of the reference's
scale (``monitor.binning``). ``+`` is integer addition, so it is associative and commutative to the last bit, and ``zero`` is its neutral element: a
profile does not depend on how its events were cut into batches or in which order these were merged. Profiles of different ``bins_id`` never merge.
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
    WORD_BITS,
    Bins,
    Floats,
    Ints,
    NumericBins,
    digest,
    from_dict,
    to_dict,
)
from monitor.errors import IncompatibleError
from monitor.vectors import VectorBins, VectorField

PREDICTION: Final = "$prediction"
SCORE: Final = "$score"
LATENCY: Final = "$latency_ms"
UNSEEN_KEPT: Final = 16  # distinct unseen categories kept per field, as a hint for people
MOMENTS: Final = 3
_LOW_MASK: Final = (1 << WORD_BITS) - 1
_MOST: Final = 1 << 36  # events: sums of as many quanta have no overflow
_HEAD: Final = 2  # events, events with an error


@dataclass(frozen=True)
class Field:
    """Where a field's numbers stand in the vector."""

    name: str
    bins: Bins
    start: int

    @cached_property
    def counts(self) -> slice:
        """The bin counts."""
        return slice(self.start, self.start + self.bins.bins)

    @cached_property
    def specials(self) -> slice:
        """Counts of SPECIALS."""
        return slice(self.counts.stop, self.counts.stop + len(SPECIALS))

    @cached_property
    def classes(self) -> slice:
        """Both together: one of them counts each event."""
        return slice(self.counts.start, self.specials.stop)

    @cached_property
    def flags(self) -> slice:
        """Counts of FLAGS."""
        return slice(self.specials.stop, self.specials.stop + len(FLAGS))

    @cached_property
    def moments(self) -> slice:
        """Sum of q; sum of squares, high and low word."""
        return slice(self.flags.stop, self.flags.stop + MOMENTS)


@dataclass(frozen=True, eq=False)
class Layout:
    """The binning of a whole model: what gives a profile's vector its meaning. Content-hashed as ``bins_id``."""

    bins: Mapping[str, Bins]
    vector_bins: Mapping[str, VectorBins] = field(default_factory=dict)

    @classmethod
    def of(cls, forms: Mapping[str, dict[str, Any]]) -> Layout:
        """The layout whose ``forms`` these are.

        Raises:
            IncompatibleError, KeyError, TypeError, ValueError: not such forms.
        """
        of_vectors = {name for name, form in forms.items() if form["kind"] == "vector"}
        return cls(
            {name: from_dict(form) for name, form in forms.items() if name not in of_vectors},
            {name: VectorBins.from_dict(name, forms[name]) for name in sorted(of_vectors)},
        )

    @cached_property
    def forms(self) -> Mapping[str, dict[str, Any]]:
        """JSON forms of all fields, then of the vectors; floats round-trip exactly."""
        forms = {f.name: to_dict(f.bins) for f in self.fields}
        return forms | {f.name: f.bins.to_dict() for f in self.vectors}

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """All fields in the order of the vector."""
        fields, at = [], _HEAD
        for name in sorted(self.bins, key=lambda name: (name.startswith("$"), name)):
            fields.append(Field(name, self.bins[name], at))
            at = fields[-1].moments.stop
        return tuple(fields)

    @cached_property
    def vectors(self) -> tuple[VectorField, ...]:
        """All vectors, in name order, behind the fields."""
        vectors, at = [], self.fields[-1].moments.stop if self.fields else _HEAD
        for name in sorted(self.vector_bins):
            vectors.append(VectorField(name, self.vector_bins[name], at))
            at = vectors[-1].place.stop
        return tuple(vectors)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The features that events are read for."""
        read = {name for v in self.vectors for name in v.bins.columns.features}
        return tuple(sorted(read | {name for name in self.bins if not name.startswith("$")}))

    @cached_property
    def numeric(self) -> npt.NDArray[np.bool_]:
        """``(fields,)`` true where a field is numeric."""
        return np.array([isinstance(f.bins, NumericBins) for f in self.fields], dtype=bool)

    @cached_property
    def starts(self) -> npt.NDArray[np.intp]:
        """``(fields,)`` where the specials of each field stand; its flags and moments follow."""
        return np.array([f.specials.start for f in self.fields], dtype=np.intp)

    @cached_property
    def ranges(self) -> npt.NDArray[np.intp]:
        """``(2 * fields,)`` where the bin counts of each field start and end, in turn."""
        ends = [(f.counts.start, f.counts.stop) for f in self.fields]
        return np.array(ends, dtype=np.intp).ravel()

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        """The same by name."""
        return {f.name: f for f in self.fields}

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        if self.vectors:
            return int(self.vectors[-1].place.stop)
        return self.fields[-1].moments.stop if self.fields else _HEAD

    @cached_property
    def bins_id(self) -> str:
        """Hash of the binning: equal if and only if profiles may merge."""
        return digest(msgspec.json.encode(self.forms).decode())

    @cached_property
    def moment_mask(self) -> npt.NDArray[np.bool_]:
        """``(size,)`` true where a moment or a vector's sum stands: these are wide, the counts narrow."""
        mask = np.zeros(self.size, dtype=bool)
        for f in self.fields:
            mask[f.moments] = True
        for v in self.vectors:
            mask[v.sums] = True
        return mask

    @cached_property
    def _carries(self) -> npt.NDArray[np.intp]:
        """Positions of the low words, whose overflow belongs into the high word before them."""
        return np.array([f.moments.stop - 1 for f in self.fields], dtype=np.intp)

    def normalise(self, vectors: Ints) -> Ints:
        """Carry the low words of ``(..., size)`` in place: the canonical form, so that equal sums are equal bytes."""
        at = self._carries
        vectors[..., at - 1] += vectors[..., at] >> WORD_BITS
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
        """The same in scales of the reference around its centre: finite whatever the unit."""
        f = self.layout.by_name[name]
        if not isinstance(f.bins, NumericBins):
            return 0, 0.0, 0.0
        return _moments(int(self.vector[f.counts].sum()), *self.vector[f.moments].tolist())

    def all_scaled_moments(self) -> Floats:
        """``(3, fields)`` n, mean and M2 of ``scaled_moments``: what detectors take."""
        n, sums = _sums(self.layout, self.vector)
        rows = zip(n.tolist(), sums.tolist(), self.layout.fields, strict=True)
        numeric = (
            _moments(k, *row) if isinstance(f.bins, NumericBins) else _NOTHING for k, row, f in rows
        )
        return np.array([*numeric], dtype=np.float64).reshape(-1, 3).T

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
            IncompatibleError: damaged, of another binning, or of no possible set of events: its sums would end a detector later.
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
                if dtype not in _WIDTHS:
                    raise IncompatibleError("damaged profile")
                values = np.frombuffer(raw, dtype=np.dtype(dtype))
                if len(values) != np.count_nonzero(mask):
                    raise IncompatibleError("damaged profile")  # one value would be broadcast
                vector[mask] = values
        except (msgspec.MsgspecError, TypeError, ValueError) as err:
            raise IncompatibleError("damaged profile") from err
        if not _is_possible(layout, vector):
            raise IncompatibleError("damaged profile")
        return Profile(layout, vector, hints)


_WIDTHS: Final = ("u1", "<i2", "<i4", "<i8")
_TO_MOMENTS: Final = len(SPECIALS) + len(FLAGS) + np.arange(MOMENTS)
_NOTHING: Final = (0, 0.0, 0.0)


def _is_possible(layout: Layout, vector: Ints) -> bool:
    """Whether some set of events has this vector: what all parts obey, their sum does."""
    n, narrow = int(vector[0]), vector[~layout.moment_mask]
    if not (narrow.min() >= 0 and narrow.max() <= n <= _MOST):
        return False
    for v in layout.vectors:
        state = v.state(vector)
        if state.n + sum(v.left_out(vector)) != n or not state.is_possible:
            return False
    counts, sums = _sums(layout, vector)
    specials = vector[layout.starts[:, None] + np.arange(len(SPECIALS))].sum(axis=1)
    rows = zip(counts.tolist(), sums.tolist(), strict=True)
    return bool(np.all(counts + specials == n)) and all(_are_sums(k, *row) for k, row in rows)


def _are_sums(n: int, s1: int, high: int, low: int) -> bool:
    """Whether ``n`` quanta can have this sum and these squares: the first inequality is that of Cauchy and Schwarz."""
    s2 = (high << WORD_BITS) + low
    return 0 <= low <= _LOW_MASK and s1 * s1 <= n * s2 <= (n * CLIP) ** 2


def _sums(layout: Layout, vector: Ints) -> tuple[Ints, Ints]:
    """``(fields,)`` events in bins, and their ``(fields, MOMENTS)`` moments."""
    n = np.add.reduceat(vector, layout.ranges)[::2] if layout.fields else vector[:0]
    return n, vector[layout.starts[:, None] + _TO_MOMENTS]


def _moments(n: int, s1: int, high: int, low: int) -> tuple[int, float, float]:
    """``(n, mean, M2)`` from sums of q and of its squares."""
    if n == 0:
        return _NOTHING
    s2 = (high << WORD_BITS) + low
    # Integer arithmetic to the end: n * s2 - s1 * s1 has no cancellation error.
    return n, s1 / n / (1 << QUANTUM_BITS), (n * s2 - s1 * s1) / n / (1 << 2 * QUANTUM_BITS)


def keep_hints(counts: Mapping[str, int]) -> dict[str, int]:
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
        merged[name] = keep_hints({t: mine.get(t, 0) + theirs.get(t, 0) for t in {*mine, *theirs}})
    return merged


def _narrow(vector: Ints) -> tuple[str, bytes]:
    for dtype in _WIDTHS[:-1]:
        bounds = np.iinfo(dtype)
        if len(vector) == 0 or (vector.min() >= bounds.min and vector.max() <= bounds.max):
            return dtype, vector.astype(dtype).tobytes()
    return _WIDTHS[-1], vector.astype(_WIDTHS[-1]).tobytes()


_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODER: Final[Any] = msgspec.msgpack.Decoder(
    tuple[str, tuple[tuple[str, bytes], tuple[str, bytes]], dict[str, dict[str, int]]]
)
