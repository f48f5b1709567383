"""Random Fourier features: many numbers at once as sums that add up exactly (Rahimi & Recht 2007).

A vector becomes ``D`` cosines and ``D`` sines of random projections, whose inner product estimates a Gaussian kernel. The state of a set of vectors is a
count and ``2 * D`` sums; ``monitor.mmd`` compares two::

    x --centre, scale--> whole quanta --matrix of whole numbers--> phase --table--> cosine, sine as whole numbers --> sums

It adds up like a histogram, to the last bit, on any machine: a product of matrices of whole numbers below 2**53 rounds nothing, so its order does not
matter, and the rest are correctly rounded operations on one number. What the grid costs is part of the kernel: an angle is off by at most 0.001 rad, in
the window as in the reference.

A component that is not finite counts as the reference's centre: leaving out each vector with a gap would lose most of them from some 50 features on, and
choose by what is missing. Who wants whole vectors only, leaves the others out and counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from scipy import special
from scipy.spatial import distance

from monitor.binning import Codes, Floats, Ints
from monitor.errors import IncompatibleError

FREQUENCIES: Final = 128
MAX_FREQUENCIES: Final = 512  # 8 KiB of sums
MAX_DIMENSIONS: Final = 4_096
MEDIAN_ROWS: Final = 1_000  # half a million distances: their median to 0.2 %
# Of the median distance. A shift of the mean shows best at 0.7 of it, a correlation at 0.5, where the former has lost a quarter.
BANDWIDTH: Final = 0.5
_SMALLEST_BANDWIDTH: Final = 1 / 16  # of a scale: a finer kernel would see the quanta
_SMALLEST_SCALE: Final = 1e-300  # its reciprocal is a number still
_AMPLITUDE: Final = 1 << 15  # the whole number that stands for a cosine of 1
_QUANTUM_BITS: Final = 14
_CLIP: Final = 32 << _QUANTUM_BITS  # a component beyond 32 scales counts as that far
_TURN_BITS: Final = 22  # a projection is counted in 2**-22 turns a scale
_TABLE_BITS: Final = 12  # 4,096 angles in 32 KiB, which stay in the nearest cache
_SHIFT: Final = _QUANTUM_BITS + _TURN_BITS - _TABLE_BITS
# Rows at once, for the cache: as many as their 128 phases and their components allow; below 2**16, where packed sines would overflow.
_ROWS: Final = 512
_FEWEST_ROWS: Final = 64
_CELLS: Final = 1 << 16
_WORD: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class FourierSum:
    """The state: ``n`` vectors, and the ``(2 * D,)`` int64 sums of their cosines, then of their sines, in 2**-15."""

    n: int
    total: Ints

    def __add__(self, other: FourierSum) -> FourierSum:
        """Of both sets together; exact, in any order."""
        if len(self.total) != len(other.total):
            raise IncompatibleError("sums of different maps never merge")
        return FourierSum(self.n + other.n, self.total + other.total)

    @property
    def is_possible(self) -> bool:
        """Whether as many cosines and sines can have these sums."""
        most = self.n * _AMPLITUDE
        return bool(np.all(self.total >= -most) and np.all(self.total <= most))

    @property
    def mean(self) -> Floats:
        """``(2 * D,)`` mean embedding; its length is at most 1. ``n`` must not be 0."""
        return embed(np.asarray(self.n), self.total)


def embed(n: Ints, totals: Ints) -> Floats:
    """``(..., 2 * D)`` mean embeddings of ``(..., 2 * D)`` sums over ``(...,)`` vectors; 0 where there are none."""
    unit = _AMPLITUDE * np.sqrt(totals.shape[-1] / 2)
    return np.asarray(totals / (np.maximum(n, 1)[..., None] * unit))


@dataclass(frozen=True, eq=False)
class FourierMap:
    """The frozen map of vectors to cosines and sines.

    Attributes:
        seed: of the directions.
        frequencies: ``D``.
        bandwidth: standard deviation of the Gaussian kernel, in scales.
        center, scale: ``(d,)`` of the components.
    """

    seed: int
    frequencies: int
    bandwidth: float
    center: Floats
    scale: Floats

    def __post_init__(self) -> None:
        if not 1 <= self.frequencies <= MAX_FREQUENCIES:
            raise ValueError(f"{self.frequencies} frequencies; give 1 to {MAX_FREQUENCIES}")
        if not 1 <= len(self.center) <= MAX_DIMENSIONS:
            raise ValueError(f"vectors of {len(self.center)}; give 1 to {MAX_DIMENSIONS}")
        if self.scale.shape != self.center.shape or self.center.ndim != 1:
            raise ValueError("center and scale must be vectors of one length")
        if not (np.isfinite(self.center).all() and np.isfinite(self.scale).all()):
            raise ValueError("center and scale must be finite")
        if not (
            (self.scale >= _SMALLEST_SCALE).all() and _SMALLEST_BANDWIDTH <= self.bandwidth < np.inf
        ):
            raise ValueError(
                "scale must be at least 1e-300, and bandwidth finite and at least 1/16"
            )
        if np.abs(self.directions).sum(axis=0).max() * _CLIP >= 2.0**53:
            raise ValueError("so many components in so narrow a kernel cannot be added exactly")

    @classmethod
    def fit(
        cls,
        sample: Floats,
        *,
        seed: int,
        frequencies: int = FREQUENCIES,
        common_scale: bool = False,
    ) -> FourierMap:
        """The map for a reference, from ``(n, d)`` of its vectors.

        Centred at each component's median. Scaled by each one's standard deviation: features have units of their own; or all by the root mean
        square of these: the components of an embedding share one, and which of them vary is its geometry. The bandwidth is half the median distance.
        A gap (NaN, infinity) is left out. No rows at all: centre 0, scale 1, bandwidth 1.
        """
        values = np.where(np.isfinite(sample), sample, np.nan)
        center = np.array([_median(column) for column in values.T])
        with np.errstate(over="ignore", invalid="ignore"):
            spread = np.sqrt([_mean(column) for column in ((values - center) ** 2).T])
        if common_scale:
            spread = np.full_like(spread, np.sqrt(np.mean(spread**2)))
        # A constant component, or one whose variance overflows: its own magnitude is the only unit left.
        unit = np.where(
            np.isfinite(spread) & (spread >= _SMALLEST_SCALE),
            spread,
            np.maximum(np.abs(center), 1.0),
        )
        rough = cls(seed, 1, 1.0, center, unit)
        step = -(-len(values) // MEDIAN_ROWS) or 1
        quanta = rough._quantise(values[::step])
        bandwidth = BANDWIDTH * _typical_distance(quanta) / (1 << _QUANTUM_BITS)
        return cls(seed, frequencies, max(bandwidth, _SMALLEST_BANDWIDTH), center, unit)

    @property
    def dimensions(self) -> int:
        """``d``."""
        return len(self.center)

    @cached_property
    def directions(self) -> Floats:
        """``(d, D)`` whole numbers: normal deviates over the bandwidth, in 2**-22 turns a scale.

        From SHAKE-128, which a standard fixes, and not from a library's generator, whose streams change between releases.
        """
        shape = (self.dimensions, self.frequencies)
        stream = hashlib.shake_128(f"driftline {self.seed}".encode()).digest(
            4 * shape[0] * shape[1]
        )
        uniform = (np.frombuffer(stream, "<u4").reshape(shape) + 0.5) / 2.0**32
        turns = special.ndtri(uniform) / (2 * np.pi * self.bandwidth)
        return np.asarray(np.rint(turns * (1 << _TURN_BITS)))

    @cached_property
    def map_id(self) -> str:
        """Content hash: sums of equal ids may merge. Covers the directions themselves, so a machine that derived others is found out."""
        state = hashlib.blake2b(digest_size=8)
        for part in (self.directions, self.center, self.scale):
            state.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        return state.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A JSON form; floats round-trip exactly."""
        return {
            "seed": self.seed,
            "frequencies": self.frequencies,
            "bandwidth": self.bandwidth,
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "map_id": self.map_id,
        }

    @staticmethod
    def from_dict(form: dict[str, Any]) -> FourierMap:
        """The map whose ``to_dict`` is ``form``.

        Raises:
            IncompatibleError: this machine derives other directions from the seed.
            KeyError, TypeError, ValueError: not such a form.
        """
        center, scale = (np.array(form[key], dtype=np.float64) for key in ("center", "scale"))
        known = FourierMap(form["seed"], form["frequencies"], form["bandwidth"], center, scale)
        if known.map_id != form["map_id"]:
            raise IncompatibleError(f"map {form['map_id']} comes out as {known.map_id} here")
        return known

    def sums(self, vectors: Floats, group: Codes, groups: int) -> Ints:
        """``(groups, 2 * D)`` int64 sums of the ``(n, d)`` vectors of each group; ``group`` is ``(n,)`` in ``[0, groups)``."""
        (sums,) = self.sums_by(vectors, [(group, groups)])
        return sums

    def sums_by(self, vectors: Floats, groupings: Sequence[tuple[Codes, int]]) -> list[Ints]:
        """The same for several ways to group the vectors, each of which is mapped once.

        Cost at 128 frequencies, on one core: 1 us a vector of up to 20 numbers, 2.5 us of 100, 15 us of 768, 35 us of 2,000
        (``python -m load.multivariate``).
        """
        sums = [np.zeros((groups, 2, self.frequencies), dtype=np.int64) for _, groups in groupings]
        step = max(_FEWEST_ROWS, min(_ROWS, _CELLS // self.dimensions))
        for start in range(0, len(vectors), step):
            rows = slice(start, start + step)
            waves = self._waves(vectors[rows])
            for (group, groups), into in zip(groupings, sums, strict=True):
                if groups == 1:
                    present, packed = np.zeros(1, dtype=np.intp), waves.sum(axis=0)[None]
                else:
                    order = np.argsort(group[rows], kind="stable")
                    present, starts = np.unique(group[rows][order], return_index=True)
                    packed = np.add.reduceat(waves[order], starts, axis=0)
                sine = ((packed + (1 << _WORD - 1)) & ((1 << _WORD) - 1)) - (1 << _WORD - 1)
                into[present, 0] += (packed - sine) >> _WORD
                into[present, 1] += sine
        return [by_group.reshape(-1, 2 * self.frequencies) for by_group in sums]

    def embed(self, vectors: Floats) -> Floats:
        """``(n, 2 * D)`` embeddings of single vectors."""
        sums = self.sums(vectors, np.arange(len(vectors)), len(vectors))
        return embed(np.ones(len(sums), dtype=np.int64), sums)

    @cached_property
    def _steps(self) -> Floats:
        """The directions in angles of the table: a power of two apart, so as exact."""
        return self.directions * 0.5**_SHIFT

    def _waves(self, vectors: Floats) -> Ints:
        """``(n, D)`` cosine in the high word, sine in the low: one look-up and one sum for both."""
        phase = self._quantise(vectors) @ self._steps
        angle = np.rint(phase, out=phase).astype(np.int32)  # below 2**(53 - _SHIFT)
        angle &= (1 << _TABLE_BITS) - 1
        return np.asarray(_TABLE.take(angle))

    def _quantise(self, vectors: Floats) -> Floats:
        """Whole numbers within ``_CLIP``; 0 for what is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            quanta = vectors - self.center
            quanta *= (1 << _QUANTUM_BITS) / self.scale
        np.clip(quanta, -_CLIP, _CLIP, out=quanta)
        known = np.isfinite(vectors)
        if not known.all():
            quanta[~known] = 0.0
        return np.rint(quanta, out=quanta)


def _median(column: Floats) -> float:
    known = column[np.isfinite(column)]
    return float(np.quantile(known, 0.5, method="inverted_cdf")) if known.size else 0.0


def _mean(column: Floats) -> float:
    known = column[~np.isnan(column)]
    return float(known.mean()) if known.size else 0.0


def _typical_distance(rows: Floats) -> float:
    """Median distance of different rows; 2 quanta's scales if there are none."""
    if len(rows) > 1:
        distances = distance.pdist(rows)
        apart = distances[distances > 0]
        if apart.size:
            return float(np.median(apart))
    return float(2 << _QUANTUM_BITS)


def _waves_packed() -> Ints:
    angles = np.arange(1 << _TABLE_BITS) * (2 * np.pi / (1 << _TABLE_BITS))
    cosine = np.rint(_AMPLITUDE * np.cos(angles)).astype(np.int64)
    sine = np.rint(_AMPLITUDE * np.sin(angles)).astype(np.int64)
    return np.asarray((cosine << _WORD) + sine)


_TABLE: Final = _waves_packed()
