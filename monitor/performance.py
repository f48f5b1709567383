"""How well a model did: metrics of the labelled predictions of one window, with 95 % confidence intervals (``monitor.intervals``).

Pure, and a function of the set of rows: rows are taken in the order given, so callers that want equal floats give an equal order.
A metric that is not defined (a precision without positive predictions, an AUC with one class) is absent, never NaN and never 0. On the same
rows the others equal scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from monitor import intervals
from monitor.intervals import Interval

Task = Literal["binary", "multiclass", "regression"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LOG_CLIP: Final = 1e-15  # a score of exactly 0 or 1 that is wrong costs 34.5 nats, not infinity
ECE_BINS: Final = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2
MISSING: Final = -1  # code of a prediction that is not there
MAX_CLASSES: Final = 20  # of a confusion matrix: whoever sends labels chooses how many there are
# Group fairness: demographic parity, equal opportunity, and with it equalised odds (Hardt, Price and Srebro 2016).
GAPS: Final = ("selection_rate", "recall", "fpr")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rows of one place say.

    Attributes:
        errors: rows with a wrong prediction; for numbers, one that is off by more than the tolerance.
        metrics: by name.
        intervals: low and high end, of the metrics that have a closed form.
        classes: ``(k,)`` codes of the classes of ``confusion``, rising; of more than ``MAX_CLASSES`` the most frequent, and ``MISSING`` for
            the others together.
        confusion: ``(k, k)`` rows by label and prediction; empty for regression.
    """

    errors: int
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    classes: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    confusion: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))


class Share(NamedTuple):
    """``part`` of ``whole`` rows."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        """The share; ``whole`` is not 0."""
        return self.part / self.whole

    @property
    def interval(self) -> Interval:
        """Its confidence interval."""
        return intervals.proportion(self.part, self.whole)


def binary(label: Ints, prediction: Ints, score: Floats) -> Measured:
    """Metrics of a yes/no model.

    ================== ======================================================================
    accuracy           share of rows with ``prediction == label``
    balanced_accuracy  (TP / (TP + FN) + TN / (TN + FP)) / 2
    precision          TP / (TP + FP)
    recall             TP / (TP + FN), the true positive rate
    fpr                FP / (FP + TN)
    f1                 2 TP / (2 TP + FP + FN)
    selection_rate     share of positive predictions
    base_rate          share of positive labels
    roc_auc            chance that a positive scores above a negative, ties count half (Mann-Whitney)
    pr_auc             average precision: sum over thresholds of (recall gained) * precision
    log_loss           -mean ln(score given to the true class), scores clipped to ``LOG_CLIP`` from 0 and 1
    brier              mean (score - label)^2
    ece                calibration error: sum over 15 equal score bins of share * |mean score - base rate|
    ================== ======================================================================

    Args:
        label: ``(n,)`` 1 for the positive class, else 0.
        prediction: ``(n,)`` the same, or ``MISSING``: such rows count for the score's metrics only.
        score: ``(n,)`` probability of the positive class, NaN where there is none: such rows count for the class's metrics only.
            Scores outside [0, 1] are ranks, not probabilities: only the areas are defined then.
    """
    given = prediction != MISSING
    confusion = _confusion(label[given], prediction[given], 2)
    (tn, fp), (fn, tp) = confusion.tolist()
    shares = {
        "accuracy": Share(tp + tn, tp + tn + fp + fn),
        **rates(confusion),
        "base_rate": Share(_count(label == 1), len(label)),
    }
    measured = _Gathered()
    for name, share in shares.items():
        if share.whole:
            measured.add(name, share.value, share.interval)
    if tp + fp + fn:
        measured.add("f1", 2 * tp / (2 * tp + fp + fn), intervals.f1(tp, fp + fn))
    if tp + fn and tn + fp:
        recall, specificity = shares["recall"], Share(tn, tn + fp)
        both = recall.value, specificity.value
        interval = intervals.mean_of_two(recall.interval, specificity.interval, both)
        measured.add("balanced_accuracy", sum(both) / 2, interval)
    scored = np.isfinite(score)
    _add_scores(measured, label[scored] == 1, score[scored])
    return Measured(fp + fn, measured.metrics, measured.intervals, np.arange(2), confusion)


def rates(confusion: Ints) -> dict[str, Share]:
    """The rates of a yes/no model from its confusion matrix, ``(2, 2)``; a share of no rows is not defined."""
    (tn, fp), (fn, tp) = confusion.tolist()
    return {
        "precision": Share(tp, tp + fp),
        "recall": Share(tp, tp + fn),
        "fpr": Share(fp, fp + tn),
        "selection_rate": Share(tp + fp, tp + tn + fp + fn),
    }


def gaps(inside: Ints, everyone: Ints) -> tuple[dict[str, float], dict[str, Interval]]:
    """What is different for a group: each rate of ``GAPS`` in it less that of everyone else, as ``NAME_gap``, with intervals.

    Args:
        inside: ``(2, 2)`` confusion matrix of the group.
        everyone: that of all, the group included.
    """
    mine, theirs = rates(inside), rates(everyone - inside)
    found = _Gathered()
    for name in GAPS:
        a, b = mine[name], theirs[name]
        if a.whole and b.whole:
            both = a.value, b.value
            interval = intervals.difference(a.interval, b.interval, both)
            found.add(f"{name}_gap", both[0] - both[1], interval)
    return found.metrics, found.intervals


def multiclass(label: Ints, prediction: Ints, confidence: Floats) -> Measured:
    """Accuracy; precision, recall and F1 as plain means over the classes (macro); and how far the confidence can be believed.

    The classes are those of the labels and of the predictions. A class that was never predicted has precision 0, one without labels recall
    0: leaving it out would reward a model that gave a class up. ``balanced_accuracy`` is the mean recall of the classes that have labels.
    ``ece`` is that of the top label (Guo et al. 2017): the confidence against how often the prediction is right.

    Args:
        label: ``(n,)`` class codes, not negative.
        prediction: ``(n,)`` class codes, or ``MISSING``: such rows are left out.
        confidence: ``(n,)`` probability of the predicted class, NaN where there is none.
    """
    given = prediction != MISSING
    label, prediction, confidence = label[given], prediction[given], confidence[given]
    if len(label) == 0:
        return Measured(0, {})
    right = label == prediction
    width = int(max(label.max(), prediction.max())) + 1
    tp, actual, predicted = (
        np.bincount(codes, minlength=width) for codes in (label[right], label, prediction)
    )
    classes = np.flatnonzero(actual + predicted)
    tp, actual, predicted = tp[classes], actual[classes], predicted[classes]
    recall = tp / np.maximum(actual, 1)
    accuracy = Share(_count(right), len(label))
    measured = _Gathered()
    measured.add("accuracy", accuracy.value, accuracy.interval)
    measured.metrics |= {
        "balanced_accuracy": float(recall[actual > 0].mean()),
        "precision": float((tp / np.maximum(predicted, 1)).mean()),
        "recall": float(recall.mean()),
        "f1": float((2 * tp / (actual + predicted)).mean()),
    }
    scored = np.isfinite(confidence)
    if _are_probabilities(confidence[scored]):
        measured.add("ece", _calibration_error(right[scored], confidence[scored]))
    wrong = len(label) - accuracy.part
    if len(classes) > MAX_CLASSES:
        most = np.argsort(-(actual + predicted), kind="stable")[:MAX_CLASSES]
        classes = np.append(np.sort(classes[most]), MISSING)
    confusion = _confusion(_places(label, classes), _places(prediction, classes), len(classes))
    return Measured(wrong, measured.metrics, measured.intervals, classes, confusion)


def regression(label: Floats, prediction: Floats, tolerance: float | None = None) -> Measured:
    """Metrics of a model of numbers, with e = prediction - label.

    ======== ==============================================================================
    accuracy share of rows with |e| <= tolerance; the others are errors
    mae      mean |e|
    rmse     sqrt(mean e^2)
    mape     mean |e / label|; not defined with a label of 0
    bias     mean e
    r2       1 - sum e^2 / sum (label - mean label)^2; not defined for equal labels
    coverage share of labels at or below the prediction: of a model of a quantile, that quantile
    ======== ==============================================================================

    Args:
        label: ``(n,)`` true values; rows with a NaN are left out.
        prediction: ``(n,)`` the same.
        tolerance: in the label's unit; without it nothing is right or wrong.
    """
    known = np.isfinite(label) & np.isfinite(prediction)
    label, error = label[known], prediction[known] - label[known]
    if error.size == 0:
        return Measured(0, {})
    with np.errstate(over="ignore", invalid="ignore"):
        squares, size = error * error, np.abs(error)
        spread = np.square(label - label.mean())
        measured = _Gathered()
        measured.add("mae", float(size.mean()), intervals.mean(size))
        mean_square = intervals.mean(squares)
        if mean_square is not None:
            low, high = mean_square
            mean_square = float(np.sqrt(max(low, 0.0))), float(np.sqrt(high))
        measured.add("rmse", float(np.sqrt(squares.mean())), mean_square)
        measured.add("bias", float(error.mean()), intervals.mean(error))
        if label.all():
            relative = np.abs(error / label)
            measured.add("mape", float(relative.mean()), intervals.mean(relative))
        if spread.any():
            measured.add("r2", float(1.0 - squares.sum() / spread.sum()))
    shares = {"coverage": _count(error >= 0)}
    if tolerance is not None:
        shares["accuracy"] = _count(size <= tolerance)
    for name, part in shares.items():
        measured.add(name, part / error.size, intervals.proportion(part, error.size))
    wrong = error.size - shares.get("accuracy", error.size)
    return Measured(wrong, measured.metrics, measured.intervals)


def delay_quantiles_ms(delay_ms: Ints) -> tuple[int | None, int | None]:
    """Median and 95th percentile of the time from prediction to label, in ms; each is one of the delays."""
    if delay_ms.size == 0:
        return None, None
    p50, p95 = np.quantile(delay_ms, (0.5, 0.95), method="inverted_cdf")
    return int(p50), int(p95)


class _Gathered:
    """Metrics and intervals as they are found: what is not finite is not defined."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, Interval] = {}

    def add(self, name: str, value: float, interval: Interval | None = None) -> None:
        if np.isfinite(value):
            self.metrics[name] = value
            if interval is not None:
                self.intervals[name] = interval


def _places(codes: Ints, classes: Ints) -> Ints:
    """Where each code stands among the classes; one that is not there is the last."""
    at = np.minimum(np.searchsorted(classes[classes != MISSING], codes), len(classes) - 1)
    return np.where(classes[at] == codes, at, len(classes) - 1)


def _confusion(label: Ints, prediction: Ints, k: int) -> Ints:
    return np.bincount(label * k + prediction, minlength=k * k).reshape(k, k)


def _add_scores(measured: _Gathered, y: Flags, score: Floats) -> None:
    _add_areas(measured, y, score)
    if not _are_probabilities(score):
        return
    clipped = np.clip(score, LOG_CLIP, 1.0 - LOG_CLIP)
    loss, square = -np.log(np.where(y, clipped, 1.0 - clipped)), np.square(score - y)
    measured.add("log_loss", float(loss.mean()), intervals.mean(loss))
    measured.add("brier", float(square.mean()), intervals.mean(square))
    measured.add("ece", _calibration_error(y, score))


def _are_probabilities(score: Floats) -> bool:
    return score.size > 0 and bool(score.min() >= 0.0 and score.max() <= 1.0)


def _calibration_error(right: Flags, score: Floats) -> float:
    bins = np.minimum((score * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=score - right, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / score.size)


def _add_areas(measured: _Gathered, y: Flags, score: Floats) -> None:
    """Under the ROC curve, by ranks with ties at their mean rank, and under that of precision and recall. O(n log n)."""
    positives = _count(y)
    negatives = y.size - positives
    if positives == 0:
        return
    values, where = np.unique(score, return_inverse=True)
    of_positives = np.bincount(where[y], minlength=values.size)
    of_negatives = np.bincount(where[~y], minlength=values.size)
    # From the highest score down: what a threshold at each value would select.
    hits, selected = np.cumsum(of_positives[::-1]), np.cumsum((of_positives + of_negatives)[::-1])
    measured.add("pr_auc", float((of_positives[::-1] * hits / selected).sum() / positives))
    if negatives == 0:
        return
    # Twice a count of pairs is an integer, so the sums are exact.
    below = 2 * np.cumsum(of_negatives) - of_negatives
    above = 2 * (positives - np.cumsum(of_positives)) + of_positives
    auc = int((of_positives * below).sum()) / (2 * positives * negatives)
    placed = below[where[y]] / (2 * negatives), above[where[~y]] / (2 * positives)
    measured.add("roc_auc", auc, intervals.roc_auc(auc, *placed))


def _count(flags: Flags) -> int:
    return int(np.count_nonzero(flags))
