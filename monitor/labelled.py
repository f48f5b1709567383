"""What the labels of a reference say: how often the model was right, by time and by score.

Streams as the reference does, in its two passes: the first learns what counts as right, the second counts.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from monitor.binning import Codes, Floats, Ints, Raw
from monitor.columns import Columns
from monitor.estimation import Meaning
from monitor.performance import MISSING
from monitor.profile import PREDICTION, SCORE, Layout
from monitor.raw import numbers
from monitor.sampling import StridedSample
from monitor.spec import ModelSpec
from monitor.tables import class_text, value_text

Flags = npt.NDArray[np.bool_]

SAMPLE: Final = 1 << 14  # errors kept for their quantile: to half a percent
WITHIN: Final = 0.9  # share of the reference's predictions that a derived tolerance calls right


class Tolerance:
    """First pass: by how much a model of numbers is off when all is well. Mutable because it streams."""

    def __init__(self, spec: ModelSpec) -> None:
        self._given = spec.labels.tolerance
        self._wanted = spec.task == "regression" and self._given is None
        self._errors = StridedSample(SAMPLE, np.empty(0))

    def see(self, columns: Columns) -> None:
        """Take up rows."""
        if self._wanted and columns.labels is not None:
            error = _error(columns.labels, columns.field(PREDICTION))
            self._errors.add(error[np.isfinite(error)])

    @property
    def value(self) -> float | None:
        """What is right is off by no more; ``None`` if nothing was labelled."""
        if not self._wanted or self._errors.rows.size == 0:
            return self._given
        return float(np.quantile(self._errors.rows, WITHIN, method="inverted_cdf"))


class LabelCount:
    """Second pass: right and wrong, per block of time and per bin of the score. Mutable because it streams.

    Attributes:
        truth: ``(blocks, 2)`` rows with a label, and those of them that were right.
        tolerance: what a number that is right is off by at most.
    """

    def __init__(
        self, spec: ModelSpec, layout: Layout, blocks: int, tolerance: float | None
    ) -> None:
        self.truth: Ints = np.zeros((blocks, 2), dtype=np.int64)
        self._task, self.tolerance = spec.task, tolerance
        self._positive = value_text(spec.score.positive_class)
        self._score = layout.by_name.get(SCORE)
        kinds = {"binary": 4, "multiclass": 2}.get(spec.task, 0)
        self._classes: dict[str, int] = {}
        bins = self._score.bins.bins if self._score is not None else 0
        self._cells: Ints = np.zeros((bins, kinds), dtype=np.int64)

    def add(self, columns: Columns, block: Codes) -> None:
        """Count rows; ``block`` of each."""
        if columns.labels is None:
            return
        predictions = columns.field(PREDICTION)
        if self._task == "regression":
            error = _error(columns.labels, predictions)
            known = np.isfinite(error) & (self.tolerance is not None)
            right = error <= (self.tolerance or 0.0)
        else:
            label, said = self._codes(columns.labels), self._codes(predictions)
            known, right = (label != MISSING) & (said != MISSING), label == said
            self._add_scores(columns, label[known], said[known], known)
        np.add.at(self.truth[:, 0], block[known], 1)
        np.add.at(self.truth[:, 1], block[known & right], 1)

    def meaning(self, design_effect: float) -> Meaning | None:
        """What scores meant; ``None`` where they say nothing, because there are none or it is no classification."""
        return Meaning(self._cells, design_effect) if self._cells.any() else None

    def _codes(self, raw: Raw) -> Codes:
        """Class of each row, 1 and 0 for a yes/no model; ``MISSING`` where there is none."""
        texts = [
            class_text(value) for value in (raw.to_pylist() if isinstance(raw, pa.Array) else raw)
        ]
        if self._task == "binary":
            codes = (MISSING if t is None else int(t == self._positive) for t in texts)
        else:
            codes = (
                MISSING if t is None else self._classes.setdefault(t, len(self._classes))
                for t in texts
            )
        return np.fromiter(codes, dtype=np.intp, count=len(texts))

    def _add_scores(self, columns: Columns, label: Codes, said: Codes, known: Flags) -> None:
        kinds = self._cells.shape[1]
        if self._score is None or kinds == 0:
            return
        at = self._score.bins.encode(columns.field(SCORE)).codes[known]
        inside = at < len(self._cells)  # beyond are the special classes: no score
        cell = 2 * label + said if self._task == "binary" else (label == said).astype(np.intp)
        np.add.at(self._cells, (at[inside], cell[inside]), 1)


def _error(labels: Raw, predictions: Raw) -> Floats:
    """Absolute errors; not finite where one of both is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.abs(numbers(predictions).values - numbers(labels).values))
