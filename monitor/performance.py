"""How well a model did: metrics of the labelled predictions of one window.

Pure, and a function of the set of rows: rows are taken in the order given, so callers that want equal floats give an equal order.
A metric that is not defined (a precision without positive predictions, an AUC with one class) is absent, never NaN and never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Task = Literal["binary", "multiclass", "regression"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LOG_CLIP: Final = 1e-15  # a score of exactly 0 or 1 that is wrong costs 34.5 nats, not infinity
ECE_BINS: Final = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2
MISSING: Final = -1  # code of a prediction that is not there


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics by name, and how many predictions were wrong (0 for regression)."""

    errors: int
    metrics: dict[str, float]


def binary(label: Ints, prediction: Ints, score: Floats) -> Measured:
    """Metrics of a yes/no model.

    ========== ==========================================================================
    accuracy   share of rows with ``prediction == label``
    precision  TP / (TP + FP)
    recall     TP / (TP + FN)
    f1         2 TP / (2 TP + FP + FN)
    base_rate  share of positive labels
    roc_auc    chance that a positive scores above a negative, ties count half (Mann-Whitney)
    log_loss   -mean ln(score given to the true class), scores clipped to ``LOG_CLIP`` from 0 and 1
    brier      mean (score - label)^2
    ece        calibration error: sum over 15 equal score bins of share * |mean score - base rate|
    ========== ==========================================================================

    Args:
        label: ``(n,)`` 1 for the positive class, else 0.
        prediction: ``(n,)`` the same, or ``MISSING``: such rows count for the score's metrics only.
        score: ``(n,)`` probability of the positive class, NaN where there is none: such rows count for the class's metrics only.
            Scores outside [0, 1] are ranks, not probabilities: only the AUC is defined then.
    """
    given = prediction != MISSING
    y, p = label[given] == 1, prediction[given] == 1
    tp, fp, fn = _count(y & p), _count(~y & p), _count(y & ~p)
    metrics = _ratios(
        accuracy=(len(y) - fp - fn, len(y)),
        precision=(tp, tp + fp),
        recall=(tp, tp + fn),
        f1=(2 * tp, 2 * tp + fp + fn),
        base_rate=(_count(label == 1), len(label)),
    )
    scored = np.isfinite(score)
    metrics |= _scores(label[scored] == 1, score[scored])
    return Measured(fp + fn, metrics)


def multiclass(label: Ints, prediction: Ints) -> Measured:
    """Accuracy, and precision, recall and F1 as plain means over the classes (macro).

    The classes are those of the labels and of the predictions. A class that was never predicted has precision 0, one without labels recall
    0: leaving it out would reward a model that gave a class up.

    Args:
        label: ``(n,)`` class codes, not negative.
        prediction: ``(n,)`` class codes, or ``MISSING``: such rows are left out.
    """
    given = prediction != MISSING
    label, prediction = label[given], prediction[given]
    if len(label) == 0:
        return Measured(0, {})
    wrong = _count(label != prediction)
    width = int(max(label.max(), prediction.max())) + 1
    tp = np.bincount(label[label == prediction], minlength=width)
    actual, predicted = (
        np.bincount(label, minlength=width),
        np.bincount(prediction, minlength=width),
    )
    classes = np.flatnonzero(actual + predicted)
    tp, actual, predicted = tp[classes], actual[classes], predicted[classes]
    return Measured(
        wrong,
        {
            "accuracy": (len(label) - wrong) / len(label),
            "precision": float(np.mean(tp / np.maximum(predicted, 1))),
            "recall": float(np.mean(tp / np.maximum(actual, 1))),
            "f1": float(np.mean(2 * tp / (actual + predicted))),
        },
    )


def regression(label: Floats, prediction: Floats) -> Measured:
    """``mae`` = mean |e|, ``rmse`` = sqrt(mean e^2), ``bias`` = mean e, with e = prediction - label.

    Args:
        label: ``(n,)`` true values; rows with a NaN are left out.
        prediction: ``(n,)`` the same.
    """
    error = prediction - label
    error = error[np.isfinite(error)]
    if error.size == 0:
        return Measured(0, {})
    with np.errstate(over="ignore"):
        metrics = {
            "mae": float(np.mean(np.abs(error))),
            "rmse": float(np.sqrt(np.mean(error * error))),
            "bias": float(np.mean(error)),
        }
    return Measured(0, {name: value for name, value in metrics.items() if np.isfinite(value)})


def delay_quantiles_ms(delay_ms: Ints) -> tuple[int | None, int | None]:
    """Median and 95th percentile of the time from prediction to label, in ms; each is one of the delays."""
    if delay_ms.size == 0:
        return None, None
    p50, p95 = np.quantile(delay_ms, (0.5, 0.95), method="inverted_cdf")
    return int(p50), int(p95)


def _ratios(**ratios: tuple[int, int]) -> dict[str, float]:
    return {name: above / below for name, (above, below) in ratios.items() if below}


def _scores(y: Flags, score: Floats) -> dict[str, float]:
    metrics = {}
    auc = _roc_auc(y, score)
    if auc is not None:
        metrics["roc_auc"] = auc
    if score.size == 0 or score.min() < 0.0 or score.max() > 1.0:
        return metrics
    clipped = np.clip(score, LOG_CLIP, 1.0 - LOG_CLIP)
    metrics["log_loss"] = float(-np.mean(np.log(np.where(y, clipped, 1.0 - clipped))))
    metrics["brier"] = float(np.mean(np.square(score - y)))
    bins = np.minimum((score * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=score - y, minlength=ECE_BINS)
    metrics["ece"] = float(np.abs(gaps).sum() / score.size)
    return metrics


def _roc_auc(y: Flags, score: Floats) -> float | None:
    """By ranks, ties at their mean rank. O(n log n)."""
    positives = _count(y)
    negatives = y.size - positives
    if positives == 0 or negatives == 0:
        return None
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    # Twice the mean rank of each group of ties is an integer, so the sum is exact.
    doubled = int((2 * last - counts + 1)[where[y]].sum())
    return (doubled - positives * (positives + 1)) / (2 * positives * negatives)


def _count(flags: Flags) -> int:
    return int(np.count_nonzero(flags))
