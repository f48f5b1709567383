"""From labelled predictions to performance windows: rows are grouped by place, and each group is measured.

Pure: the same rows give the same messages, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from monitor import performance
from monitor.intervals import Interval
from monitor.performance import MISSING, Floats, Ints, Measured
from monitor.spec import ModelSpec
from monitor.tables import value_text
from monitor.versions import OTHER_VERSION
from monitor.wire import Performance

Place: TypeAlias = tuple[str, str, int]
"""Version, segment (``""`` is the whole model) and window start in ms."""

OTHER_CLASS: Final = (
    "__other__"  # whatever is not the positive class, or not among the most frequent
)

Rows: TypeAlias = npt.NDArray[np.intp]
_Measure: TypeAlias = Callable[[Rows], Measured]


@dataclass(frozen=True, eq=False, slots=True)
class Outcomes:
    """Labelled predictions of one model in an order that only they decide: columns of ``n`` rows.

    Attributes:
        labels: labels that each prediction had so far, corrections included.
        version: text.
        segments: names of the segments that each is in, beside the whole model.
        prediction: canonical text (``monitor.tables.value_text``), or null.
        score: NaN where there is none.
        label: canonical text.
    """

    ts_ms: Ints
    label_ms: Ints
    labels: Ints
    version: pa.Array
    segments: pa.ListArray
    prediction: pa.Array
    score: Floats
    label: pa.Array

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.ts_ms)


def measure(
    spec: ModelSpec,
    size_ms: int,
    predictions: Mapping[Place, int],
    outcomes: Outcomes,
    *,
    final_ms: int | None,
) -> list[Performance]:
    """One message per place, in the order of start.

    Args:
        spec: the model; its task is not ``none``.
        size_ms: size of the windows.
        predictions: how many predictions each place has, with labels or without: the places to measure, those of the whole model
            among them. A version that has no place in a window is counted there as ``OTHER_VERSION``.
        outcomes: labelled predictions, at least all those of these places.
        final_ms: a window that ends by then is final; ``None``: none is.
    """
    measure_rows, names = _measure(spec, outcomes)
    groups = dict(_groups(outcomes, size_ms, predictions))
    nothing = np.empty(0, dtype=np.intp)
    found = {place: measure_rows(groups.get(place, nothing)) for place in predictions}
    beside: dict[int, dict[str, tuple[int, int]]] = {}
    for version, segment, start in sorted(predictions):
        if segment == "" and version != OTHER_VERSION:
            rows = groups.get((version, "", start), nothing)
            counts = len(rows), found[version, "", start].errors
            beside.setdefault(start, {})[version] = counts
    messages = []
    for place in sorted(predictions, key=lambda p: (p[2], p[0], p[1])):
        rows, result = groups.get(place, nothing), found[place]
        version, segment, start = place
        n = max(predictions[place], len(rows))
        gaps, of_gaps = _gaps(spec, segment, result, found[version, "", start])
        p50, p95 = performance.delay_quantiles_ms(outcomes.label_ms[rows] - outcomes.ts_ms[rows])
        messages.append(
            Performance(
                model=spec.model,
                version=version,
                segment=segment,
                size_ms=size_ms,
                start_ms=start,
                revision=int(outcomes.labels[rows].sum()),
                predictions=n,
                labelled=len(rows),
                errors=result.errors,
                final=final_ms is not None and start + size_ms <= final_ms,
                metrics={"label_coverage": len(rows) / n, **result.metrics, **gaps},
                label_delay_p50_ms=p50,
                label_delay_p95_ms=p95,
                intervals={**result.intervals, **of_gaps},
                classes=[names.get(code, OTHER_CLASS) for code in result.classes.tolist()],
                confusion=result.confusion.ravel().tolist(),
                peers={
                    other: counts
                    for other, counts in beside.get(start, {}).items()
                    if segment == "" and other != version
                },
            )
        )
    return messages


def _gaps(
    spec: ModelSpec, segment: str, inside: Measured, everyone: Measured
) -> tuple[dict[str, float], dict[str, Interval]]:
    """How a protected group fares against everyone else."""
    dimension = segment.partition("=")[0]
    if spec.task != "binary" or dimension not in spec.protected:
        return {}, {}
    return performance.gaps(inside.confusion, everyone.confusion)


def _groups(
    outcomes: Outcomes, size_ms: int, wanted: Mapping[Place, int]
) -> Iterator[tuple[Place, Rows]]:
    """Rows of each place, ascending. O(m log m) in the rows times their segments."""
    if outcomes.n == 0:
        return
    versions = outcomes.version.dictionary_encode()
    names = outcomes.segments.flatten().dictionary_encode()
    lengths = outcomes.segments.value_lengths().to_numpy(zero_copy_only=False)
    every = np.arange(outcomes.n)
    rows = np.concatenate((every, np.repeat(every, lengths)))
    # Code 0 is the whole model.
    segment = np.concatenate((np.zeros(outcomes.n, np.int64), _codes(names) + 1))
    version = _codes(versions)[rows]
    start = outcomes.ts_ms[rows] // size_ms * size_ms
    keep = np.isin(start, [place[2] for place in wanted])
    rows, segment, version, start = rows[keep], segment[keep], version[keep], start[keep]
    order = np.lexsort((rows, start, version, segment))
    rows, segment, version, start = rows[order], segment[order], version[order], start[order]
    changes = (np.diff(segment) != 0) | (np.diff(version) != 0) | (np.diff(start) != 0)
    bounds = [0, *(np.flatnonzero(changes) + 1), len(rows)]
    segment_names = ["", *names.dictionary.to_pylist()]
    version_names = versions.dictionary.to_pylist()
    others: dict[Place, list[Rows]] = {}
    for first, stop in pairwise(bounds):
        if first < stop:
            name, at = version_names[version[first]], int(start[first])
            place = name, segment_names[segment[first]], at
            if name != OTHER_VERSION and (name, "", at) in wanted:
                yield place, rows[first:stop]
            else:
                others.setdefault((OTHER_VERSION, *place[1:]), []).append(rows[first:stop])
    for place, parts in others.items():
        yield place, np.sort(np.concatenate(parts))


def _measure(spec: ModelSpec, outcomes: Outcomes) -> tuple[_Measure, Mapping[int, str]]:
    """The metrics of a choice of rows, for the task of the model, and the names of its class codes."""
    score = outcomes.score
    match spec.task:
        case "binary":
            positive = value_text(spec.score.positive_class)
            label = _flags(outcomes.label, positive)
            prediction = _flags(outcomes.prediction, positive)
            names = {1: positive or ""}
            return lambda rows: performance.binary(
                label[rows], prediction[rows], score[rows]
            ), names
        case "multiclass":
            codes, names = _classes(pa.concat_arrays([outcomes.label, outcomes.prediction]))
            label, prediction = codes[: outcomes.n], codes[outcomes.n :]
            return (
                lambda rows: performance.multiclass(label[rows], prediction[rows], score[rows]),
                names,
            )
        case "regression":
            true, given = _numbers(outcomes.label), _numbers(outcomes.prediction)
            within = spec.labels.tolerance
            return lambda rows: performance.regression(true[rows], given[rows], within), {}
        case "none":
            raise ValueError(f"{spec.model} has no task: there is nothing to measure")


def _classes(texts: pa.Array) -> tuple[Ints, dict[int, str]]:
    """Codes in the order of the texts, so that sums over classes do not depend on what else was read; and the texts."""
    encoded = texts.dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(names)
    rank = np.empty(len(names) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(names)), MISSING  # MISSING is the last place
    return rank[_codes(encoded)], dict(enumerate(names[order]))


def _flags(texts: pa.Array, positive: str | None) -> Ints:
    """1 where the text is the positive class, 0 where it is another, ``MISSING`` where it is null."""
    flags = pc.cast(pc.equal(texts, pa.scalar(positive, pa.string())), pa.int64())
    return np.asarray(pc.fill_null(flags, MISSING).to_numpy(zero_copy_only=False), dtype=np.int64)


def _codes(encoded: pa.DictionaryArray) -> Ints:
    codes = pc.fill_null(pc.cast(encoded.indices, pa.int64()), MISSING)
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)


def _numbers(texts: pa.Array) -> Floats:
    return np.array([_number(text) for text in texts.to_pylist()], dtype=np.float64)


def _number(text: str | None) -> float:
    try:
        return float("nan") if text is None else float(text)
    except ValueError:
        return float("nan")  # a label that is no number is no label of a regression
