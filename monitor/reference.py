"""The reference: what a model's world looked like when all was well. Versioned, hashed, never changed silently.

Built in two passes over a source of any size, in bounded memory: the first draws a sample of each column and cuts the bins, the second
counts every row into them, per segment and per block of time. The blocks calibrate the statistics (``monitor.calibration``) and are
then dropped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from monitor import binning
from monitor.binning import Bins, Floats, Raw
from monitor.calibration import PSI_GROUPS, Null, calibrate, rate_design_effect
from monitor.columns import OTHER_SEGMENT, Columns
from monitor.comparison import Comparison
from monitor.counting import Grouping
from monitor.errors import ConfigError, IncompatibleError
from monitor.estimation import Meaning
from monitor.labelled import LabelCount, Tolerance
from monitor.latency import cut_latency
from monitor.mmd import MmdNull, Spectrum, calibrate_vectors
from monitor.profile import LATENCY, PREDICTION, SCORE, Layout, Profile
from monitor.raw import finite_values
from monitor.sampling import StridedSample
from monitor.spec import ModelSpec, WindowSpec
from monitor.vectors import VectorColumns, VectorSample

SAMPLE: Final = 1 << 17  # values kept per numeric column: quantiles to about 0.3 % of mass
MAX_RAW_BYTES: Final = 32 << 20  # of a record before it is compressed
MAX_COUNTED_CATEGORIES: Final = 100_000
MAX_BLOCKS: Final = 1_024
MAX_BLOCK_CELLS: Final = 1 << 25  # 256 MiB of int64: more segments or bins make longer blocks
TOP_SEGMENTS: Final = 32
VECTOR_CELLS: Final = 1 << 22  # numbers kept per vector: 32 MiB, 2,048 embeddings of 2,048
SPECTRUM_ROWS: Final = 4_096  # a covariance of 256 numbers to 2 %
_OUTPUTS: Final = (PREDICTION, SCORE, LATENCY)
_FORMAT: Final = 2

# What reading a form of any shape may raise.
_DAMAGE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

Source = Callable[[], Iterable[Columns]]


@dataclass(frozen=True, eq=False)
class Reference:
    """Frozen bins, what they held, and how much that varies by itself.

    Attributes:
        segments: dimension -> its values by traffic, at most ``TOP_SEGMENTS``; the rest is ``__other__``.
        profiles: segment (``""`` is the whole model, else ``"carrier=UA"``) -> profile.
        nulls: segment -> window size in ms -> how the statistics scatter when nothing is wrong.
        accuracy: share of right predictions, where the source had labels; ``labelled`` of them.
        accuracy_deff: design effect of that share over windows of the smallest size.
        tolerance: by how much the prediction of a number may be off and be right.
        meaning: what scores meant, for estimates until labels come; ``None`` without labels or scores.
        first_ms, last_ms: event times that it covers, both inclusive.
        vector_nulls: segment -> window size in ms -> vector -> how its MMD scatters; empty for a model without vectors.
    """

    model: str
    layout: Layout
    segments: Mapping[str, tuple[str, ...]]
    profiles: Mapping[str, Profile]
    nulls: Mapping[str, Mapping[int, Null]]
    first_ms: int
    last_ms: int
    accuracy: float | None = None
    labelled: int = 0
    accuracy_deff: float = 1.0
    tolerance: float | None = None
    meaning: Meaning | None = None
    origin: str = field(default="", compare=False)
    vector_nulls: Mapping[str, Mapping[int, Mapping[str, MmdNull]]] = field(default_factory=dict)
    _comparisons: dict[str, Comparison] = field(default_factory=dict, init=False, repr=False)

    def comparison(self, segment: str) -> Comparison:
        """The reference's side of the distances of a segment; kept, since every window of the segment needs it."""
        if segment not in self._comparisons:
            expected = self.profiles[segment].vector
            self._comparisons[segment] = Comparison(self.layout, expected, PSI_GROUPS)
        return self._comparisons[segment]

    @property
    def n(self) -> int:
        """Events."""
        return self.profiles[""].n

    def segment_of(self, dimension: str, value: str) -> str:
        """The segment that a value of a dimension belongs to."""
        return f"{dimension}={value if value in self.segments[dimension] else OTHER_SEGMENT}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON form that round-trips exactly."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "bins": self.layout.forms,
            "segments": {d: list(values) for d, values in self.segments.items()},
            "profiles": {s: p.vector.tolist() for s, p in self.profiles.items()},
            "nulls": {
                s: {str(size): n.to_dict() for size, n in by.items()}
                for s, by in self.nulls.items()
            },
            "vector_nulls": {
                s: {
                    str(size): {name: n.to_dict() for name, n in nulls.items()}
                    for size, nulls in by.items()
                }
                for s, by in self.vector_nulls.items()
            },
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "accuracy": self.accuracy,
            "labelled": self.labelled,
            "accuracy_deff": self.accuracy_deff,
            **({} if self.tolerance is None else {"tolerance": self.tolerance}),
            **({} if self.meaning is None else {"score_cells": self.meaning.cells.tolist()}),
            "origin": self.origin,
        }

    @property
    def reference_id(self) -> str:
        """Content hash."""
        form = self.to_dict()
        del form["origin"]
        return binning.digest(msgspec.json.encode(form, order="deterministic").decode())

    @staticmethod
    def from_dict(form: dict[str, Any]) -> Reference:
        """The reference whose ``to_dict`` is ``form``.

        Raises:
            IncompatibleError: of another format, or damaged.
        """
        try:
            if form["format"] != _FORMAT:
                raise IncompatibleError(
                    f"reference format {form['format']}; this release reads {_FORMAT}"
                )
            layout = Layout.of(form["bins"])
            vectors = {s: np.array(v, dtype=np.int64) for s, v in form["profiles"].items()}
            if "" not in vectors or any(len(v) != layout.size for v in vectors.values()):
                raise IncompatibleError("damaged reference: a profile does not fit its bins")
            return Reference(
                model=form["model"],
                layout=layout,
                segments={d: tuple(values) for d, values in form["segments"].items()},
                profiles={s: Profile(layout, v) for s, v in vectors.items()},
                nulls={
                    s: {int(size): Null.from_dict(n) for size, n in by.items()}
                    for s, by in form["nulls"].items()
                },
                vector_nulls={
                    s: {
                        int(size): {name: MmdNull.from_dict(n) for name, n in nulls.items()}
                        for size, nulls in by.items()
                    }
                    for s, by in form.get("vector_nulls", {}).items()
                },
                first_ms=form["first_ms"],
                last_ms=form["last_ms"],
                accuracy=form["accuracy"],
                labelled=form["labelled"],
                accuracy_deff=form["accuracy_deff"],
                tolerance=form.get("tolerance"),
                meaning=_meaning(form, layout),
                origin=form["origin"],
            )
        except _DAMAGE as err:
            raise IncompatibleError(f"damaged reference: {type(err).__name__}") from err


def build(spec: ModelSpec, source: Source, *, origin: str = "") -> Reference:
    """The reference of a model from past events in the order of time.

    Raises:
        ConfigError: no events.
    """
    draft = _Draft(spec)
    for columns in source():
        draft.see(columns)
    if draft.n == 0:
        raise ConfigError(f"{origin or spec.model}: the reference has no events")
    layout, segments = draft.layout(), draft.segments()
    count = _Count(spec, layout, segments, draft)
    for columns in source():
        count.add(columns)
    profiles = {
        s: Profile(layout, layout.normalise(v.sum(axis=0))) for s, v in count.blocks.items()
    }
    labelled, right = (int(x) for x in count.labels.truth.sum(axis=0))
    accuracy_deff = rate_design_effect(
        count.labels.truth, min(spec.windows.sizes) // count.block_ms
    )
    return Reference(
        model=spec.model,
        layout=layout,
        segments=segments,
        profiles=profiles,
        nulls={
            s: calibrate(layout, blocks, count.block_ms, spec.windows)
            for s, blocks in count.blocks.items()
            if profiles[s].n > 0
        },
        first_ms=draft.first_ms,
        last_ms=draft.last_ms,
        accuracy=None if labelled == 0 else right / labelled,
        labelled=labelled,
        accuracy_deff=accuracy_deff,
        tolerance=count.labels.tolerance,
        meaning=count.labels.meaning(accuracy_deff),
        origin=origin,
        vector_nulls=_vector_nulls(count, draft.spectra(layout), spec.windows)
        if layout.vectors
        else {},
    )


def _meaning(form: dict[str, Any], layout: Layout) -> Meaning | None:
    if "score_cells" not in form:
        return None
    cells = np.array(form["score_cells"], dtype=np.int64)
    if cells.shape not in ((layout.by_name[SCORE].bins.bins, kinds) for kinds in (2, 4)):
        raise IncompatibleError("damaged reference: what scores meant does not fit its bins")
    return Meaning(cells, form["accuracy_deff"])


def _vector_nulls(
    count: _Count, spectra: Mapping[str, Spectrum], windows: WindowSpec
) -> dict[str, dict[int, dict[str, MmdNull]]]:
    return {
        segment: {
            size: calibrate_vectors(count.layout, blocks, spectra, max(1, size // count.block_ms))
            for size in windows.sizes
        }
        for segment, blocks in count.blocks.items()
        if blocks[:, 0].any()
    }


def dump(reference: Reference | None, spec: ModelSpec) -> bytes:
    """A record of the ``models`` topic: spec and reference, compressed JSON.

    Raises:
        ConfigError: larger than ``load`` takes.
    """
    form = {
        "spec": spec.model_dump(mode="json"),
        "reference": None if reference is None else reference.to_dict(),
    }
    raw = msgspec.json.encode(form)
    if len(raw) > MAX_RAW_BYTES:
        raise ConfigError(
            f"the reference has {len(raw):,} bytes before it is compressed, over {MAX_RAW_BYTES:,}: name fewer features or segments"
        )
    return zlib.compress(raw)


def load(value: bytes) -> tuple[ModelSpec, Reference | None]:
    """Spec and reference of a record of the ``models`` topic.

    Raises:
        IncompatibleError: damaged, or of another release.
    """
    try:
        form = msgspec.json.decode(_unpacked(value))
        spec = ModelSpec.model_validate(form["spec"])
        return spec, None if form["reference"] is None else Reference.from_dict(form["reference"])
    except (zlib.error, msgspec.MsgspecError, *_DAMAGE) as err:
        raise IncompatibleError(f"damaged model record: {type(err).__name__}") from err


def _unpacked(value: bytes) -> bytes:
    """The JSON in a record. A small one may stand for gigabytes: of a larger one than ours nothing is unpacked beyond the bound."""
    stream = zlib.decompressobj()
    raw = stream.decompress(value, MAX_RAW_BYTES)
    if not stream.eof:
        raise zlib.error("cut short, or too large")
    return raw


def spec_of(value: bytes) -> ModelSpec | None:
    """The spec of a record whose reference ``load`` cannot read; ``None`` if that is damaged as well."""
    try:
        return ModelSpec.model_validate(msgspec.json.decode(_unpacked(value))["spec"])
    except (zlib.error, msgspec.MsgspecError, *_DAMAGE):
        return None


class _Draft:
    """First pass: what the columns are. Mutable because it streams; one per build."""

    def __init__(self, spec: ModelSpec) -> None:
        self.n, self.first_ms, self.last_ms = 0, 2**62, -(2**62)
        self._spec = spec
        self.tolerance = Tolerance(spec)
        self._numeric: dict[str, _Sample] = {}
        self._categories: dict[str, dict[str, int]] = {}
        self._kinds: dict[str, str] = {name: f.type for name, f in spec.features.items()}
        if spec.task in ("binary", "multiclass"):
            self._kinds[PREDICTION] = "categorical"
        self._kinds |= {SCORE: "numeric", LATENCY: "numeric"}
        self._segments: dict[str, dict[str, int]] = {d: {} for d in spec.segments}
        self._embeddings = {name for name, kind in self._kinds.items() if kind == "embedding"}
        self._vectors = {
            columns.name: VectorSample(columns, max(1, VECTOR_CELLS // columns.dimensions))
            for columns in _vector_columns(spec)
        }

    def see(self, columns: Columns) -> None:
        if columns.n == 0:
            return
        self.n += columns.n
        self.first_ms = min(self.first_ms, int(columns.ts_ms.min()))
        self.last_ms = max(self.last_ms, int(columns.ts_ms.max()))
        for name in (*(self._spec.features or columns.features), *_OUTPUTS):
            if name not in self._embeddings:
                self._see_field(name, columns.field(name))
        for sample in self._vectors.values():
            sample.add(columns.field, columns.n)
        self.tolerance.see(columns)
        for dimension, counts in self._segments.items():
            _tally(counts, columns.segment_values(dimension))

    def layout(self) -> Layout:
        bins: dict[str, Bins] = {
            name: (cut_latency if name == LATENCY else binning.cut_numeric)(sample.values())
            for name, sample in self._numeric.items()
        }
        bins |= {name: binning.cut_categorical(counts) for name, counts in self._categories.items()}
        # The name is the seed of the directions: the same reference gives the same map.
        maps = {name: s.bins(zlib.crc32(name.encode())) for name, s in self._vectors.items()}
        return Layout(bins, maps)

    def spectra(self, layout: Layout) -> dict[str, Spectrum]:
        spectra = {}
        for f in layout.vectors:
            rows = self._vectors[f.name].rows
            chosen = rows[:: -(-len(rows) // SPECTRUM_ROWS) or 1]
            spectra[f.name] = Spectrum.of(f.bins.fourier.embed(chosen))
        return spectra

    def segments(self) -> dict[str, tuple[str, ...]]:
        return {
            d: tuple(
                sorted(counts.keys() - {OTHER_SEGMENT}, key=lambda value: (-counts[value], value))[
                    :TOP_SEGMENTS
                ]
            )
            for d, counts in self._segments.items()
        }

    def _see_field(self, name: str, raw: Raw) -> None:
        kind = self._kinds.get(name)
        if kind is None:
            kind = kind_of(raw)
            if kind is None:
                return  # all missing so far
            self._kinds[name] = kind
        if kind == "categorical":
            counts = self._categories.setdefault(name, {})
            _tally(counts, raw.to_pylist() if isinstance(raw, pa.Array) else raw)
            return
        self._numeric.setdefault(name, _Sample()).add(finite_values(raw))


class _Sample:
    """Values of a numeric column, and its ends. Mutable because it streams."""

    def __init__(self) -> None:
        self._values = StridedSample(SAMPLE, np.empty(0))
        self._low, self._high = np.inf, -np.inf

    def add(self, values: Floats) -> None:
        if values.size == 0:
            return
        self._low, self._high = min(self._low, values.min()), max(self._high, values.max())
        self._values.add(values)

    def values(self) -> Floats:
        ends = [self._low, self._high] if self._values.stride > 1 else []
        return np.concatenate((self._values.rows, ends))


class _Count:
    """Second pass: blocks of time, per segment. Mutable because it streams; one per build."""

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        segments: Mapping[str, tuple[str, ...]],
        draft: _Draft,
    ) -> None:
        first_ms, last_ms = draft.first_ms, draft.last_ms
        pane = spec.windows.pane
        self._start = first_ms // pane * pane
        names = [
            "",
            *(f"{d}={v}" for d, values in segments.items() for v in (*values, OTHER_SEGMENT)),
        ]
        most = max(1, min(MAX_BLOCKS, MAX_BLOCK_CELLS // (layout.size * len(names))))
        panes = (last_ms - self._start) // pane + 1
        self.block_ms = pane * -(-panes // most)
        count = (last_ms - self._start) // self.block_ms + 1
        self.blocks = {name: np.zeros((count, layout.size), dtype=np.int64) for name in names}
        self.labels = LabelCount(spec, layout, count, draft.tolerance.value)
        self.layout, self._segments = layout, segments

    def add(self, columns: Columns) -> None:
        block = ((columns.ts_ms - self._start) // self.block_ms).astype(np.intp)
        present, where = np.unique(block, return_inverse=True)
        names, groupings = [[""]], [Grouping(where, len(present))]
        for dimension, values in self._segments.items():
            codes = columns.segment_codes(dimension, values)
            names.append([f"{dimension}={value}" for value in (*values, OTHER_SEGMENT)])
            groupings.append(Grouping(codes * len(present) + where, len(names[-1]) * len(present)))
        counted = columns.profiles(self.layout, groupings)
        for segments, profiles in zip(names, counted, strict=True):
            for i, segment in enumerate(segments):
                for at, profile in zip(present, profiles[i * len(present) :], strict=False):
                    self.blocks[segment][at] += profile.vector
        self.labels.add(columns, block)


def _vector_columns(spec: ModelSpec) -> Iterator[VectorColumns]:
    for name, feature in spec.features.items():
        if feature.dim is not None:
            yield VectorColumns(name, (), feature.dim)
    for name, members in spec.multivariate.items():
        yield VectorColumns(name, members, len(members))


def _tally(counts: dict[str, int], values: Iterable[Any]) -> None:
    for value in values:
        text = binning.category_text(value)
        if text is not None and (text in counts or len(counts) < MAX_COUNTED_CATEGORIES):
            counts[text] = counts.get(text, 0) + 1


def kind_of(raw: Raw) -> str | None:
    """``numeric`` if every value that is there is a number, ``categorical`` else, ``None`` if nothing is there."""
    if isinstance(raw, pa.Array):
        if raw.null_count == len(raw):
            return None
        t = raw.type
        return (
            "numeric"
            if pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t)
            else "categorical"
        )
    kinds = {type(value) for value in raw} - {type(None)}
    if not kinds:
        return None
    return "numeric" if kinds <= {int, float, bool} else "categorical"
