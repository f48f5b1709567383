from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from monitor.performance import (
    ECE_BINS,
    LOG_CLIP,
    MAX_CLASSES,
    MISSING,
    Measured,
    binary,
    delay_quantiles_ms,
    gaps,
    multiclass,
    regression,
)

# Few distinct scores, so that ties are common.
ROWS = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.sampled_from([0, 1, MISSING]),
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, math.nan]),
    ),
    max_size=40,
)
CLASSES = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(-1, 3), st.sampled_from([0.2, 0.5, 0.7, 1.0, math.nan])
    ),
    max_size=40,
)
NUMBERS = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


def columns(rows: list[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64),
    )


def by_oracle(formulas: dict[str, Callable[[], float]]) -> dict[str, float]:
    """What scikit-learn says; where it only warns, the metric is not defined."""
    found = {}
    for name, formula in formulas.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                found[name] = float(formula())
            except (ValueError, UserWarning, RuntimeWarning):
                continue
    return found


def calibration_error(rows: list[tuple[int, float]]) -> float:
    """By its textbook formula: scikit-learn has none."""
    total = 0.0
    for i in range(ECE_BINS):
        # The last bin is closed above: a score of 1 is in it.
        inside = [(y, s) for y, s in rows if min(int(s * ECE_BINS), ECE_BINS - 1) == i]
        if inside:
            mean_score = sum(s for _, s in inside) / len(inside)
            share_positive = sum(y for y, _ in inside) / len(inside)
            total += len(inside) / len(rows) * abs(mean_score - share_positive)
    return total


def expected_binary(rows: list[tuple[int, int, float]]) -> dict[str, float]:
    label, prediction, score = columns(rows)
    y, p = label[prediction != MISSING], prediction[prediction != MISSING]
    z, s = label[np.isfinite(score)], score[np.isfinite(score)]
    found: dict[str, float] = {"base_rate": float(label.mean())} if rows else {}
    if len(y):
        found |= by_oracle(
            {
                "accuracy": lambda: oracle.accuracy_score(y, p),
                "precision": lambda: oracle.precision_score(y, p),
                "recall": lambda: oracle.recall_score(y, p),
                "f1": lambda: oracle.f1_score(y, p),
                "selection_rate": p.mean,
            }
        )
        if 0 in y:
            found["fpr"] = 1 - oracle.recall_score(y, p, pos_label=0)
        if len(set(y)) == 2:
            found["balanced_accuracy"] = oracle.balanced_accuracy_score(y, p)
        # Undefined for it only with neither a positive label nor a positive prediction.
        if 1 in y or 1 in p:
            found["f1"] = oracle.f1_score(y, p, zero_division=0.0)
    if 1 in z:
        found["pr_auc"] = oracle.average_precision_score(z, s)
    if len(set(z)) == 2:
        found["roc_auc"] = oracle.roc_auc_score(z, s)
    if len(z):
        clipped = np.clip(s, LOG_CLIP, 1 - LOG_CLIP)
        found["log_loss"] = oracle.log_loss(z, clipped, labels=[0, 1])
        found["brier"] = oracle.brier_score_loss(z, s)
        found["ece"] = calibration_error(list(zip(z.tolist(), s.tolist(), strict=True)))
    return found


@given(ROWS)
def test_binary_metrics_equal_scikit_learns(rows: list[tuple[int, int, float]]) -> None:
    measured = binary(*columns(rows))
    assert measured.metrics == pytest.approx(expected_binary(rows), abs=1e-9)
    known = [(y, p) for y, p, _ in rows if p != MISSING]
    assert measured.errors == sum(y != p for y, p in known)
    if known:
        label, prediction = zip(*known, strict=True)
        expected = oracle.confusion_matrix(label, prediction, labels=[0, 1])
        assert measured.confusion.tolist() == expected.tolist()


def test_an_undefined_metric_is_absent() -> None:
    no_positive = binary(*columns([(0, 0, 0.2), (0, 0, 0.4)]))
    assert set(no_positive.metrics) == {
        *("accuracy", "fpr", "selection_rate", "base_rate"),
        *("log_loss", "brier", "ece"),
    }
    nothing = np.array([], dtype=np.int64)
    assert binary(*columns([])).metrics == {}
    assert multiclass(nothing, nothing, np.array([])).metrics == {}
    assert regression(np.array([np.nan]), np.array([1.0])).metrics == {}


def test_a_score_that_is_no_probability_is_only_ranked() -> None:
    measured = binary(*columns([(1, 1, 7.5), (0, 0, -2.0), (1, 0, 0.5)]))
    assert measured.metrics["roc_auc"] == measured.metrics["pr_auc"] == 1.0
    assert not {"log_loss", "brier", "ece"} & set(measured.metrics)


def test_a_confident_and_wrong_score_costs_a_finite_log_loss() -> None:
    assert binary(*columns([(1, 0, 0.0)])).metrics["log_loss"] == pytest.approx(34.54, abs=0.01)


@given(CLASSES)
def test_multiclass_metrics_equal_scikit_learns(rows: list[tuple[int, int, float]]) -> None:
    measured = multiclass(*columns(rows))
    known = [row for row in rows if row[1] != MISSING]
    if not known:
        assert measured.metrics == {}
        return
    y, p, confidence = columns(known)
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prediction of a class without labels: it is ours, too
        expected = {
            "accuracy": oracle.accuracy_score(y, p),
            "balanced_accuracy": oracle.balanced_accuracy_score(y, p),
            "precision": oracle.precision_score(y, p, **macro),
            "recall": oracle.recall_score(y, p, **macro),
            "f1": oracle.f1_score(y, p, **macro),
        }
    scored = np.isfinite(confidence)
    if scored.any():
        right = (y == p)[scored].astype(int).tolist()
        pairs = list(zip(right, confidence[scored].tolist(), strict=True))
        expected["ece"] = calibration_error(pairs)
    assert measured.metrics == pytest.approx(expected, abs=1e-9)
    assert measured.errors == np.count_nonzero(y != p)
    classes = sorted({*y.tolist(), *p.tolist()})
    cells = Counter(zip(y.tolist(), p.tolist(), strict=True))
    assert measured.classes.tolist() == classes
    assert measured.confusion.tolist() == [[cells[a, b] for b in classes] for a in classes]


def test_of_more_classes_than_can_be_shown_the_rare_ones_are_one() -> None:
    label = np.repeat(np.arange(MAX_CLASSES + 5), [*[3] * 5, *[10] * MAX_CLASSES])
    prediction = label.copy()
    prediction[np.flatnonzero(label == 7)[:2]] = 0
    measured = multiclass(label, prediction, np.full(len(label), np.nan))
    assert measured.classes.tolist() == [*range(5, MAX_CLASSES + 5), MISSING]
    assert measured.confusion.sum() == len(label)
    assert measured.confusion[-1, -1] == 15  # five rare classes, three rows each
    assert measured.confusion[2].tolist() == [0, 0, 8, *[0] * (MAX_CLASSES - 3), 2]


@given(NUMBERS, st.floats(0, 1e6))
def test_regression_metrics_equal_scikit_learns(
    rows: list[tuple[float, float]], tolerance: float
) -> None:
    y, p = (np.array([row[i] for row in rows]) for i in (0, 1))
    found = regression(y, p, tolerance).metrics
    expected = {
        "mae": oracle.mean_absolute_error(y, p),
        "rmse": oracle.root_mean_squared_error(y, p),
        "bias": float(np.mean(p) - np.mean(y)),
        "coverage": float(np.mean(y <= p)),
        "accuracy": float(np.mean(np.abs(p - y) <= tolerance)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-6)
    if not y.all():
        assert "mape" not in found
    if np.abs(y).min() > 1e-9:
        assert found["mape"] == pytest.approx(oracle.mean_absolute_percentage_error(y, p), rel=1e-9)
    if np.ptp(y) > 1e-3:
        assert found["r2"] == pytest.approx(oracle.r2_score(y, p), rel=1e-9, abs=1e-9)


def test_a_number_within_the_tolerance_is_no_error() -> None:
    label, prediction = np.array([10.0, 10.0, 10.0]), np.array([15.0, 5.0, 15.1])
    assert regression(label, prediction, 5.0).errors == 1
    assert regression(label, prediction).errors == 0
    assert "accuracy" not in regression(label, prediction).metrics


def test_a_metric_that_overflows_is_absent() -> None:
    huge = np.array([1e300, -1e300])
    found = regression(np.zeros(2), huge)
    assert set(found.metrics) == {"mae", "bias", "coverage"}
    assert set(found.intervals) <= set(found.metrics)


def test_a_groups_gap_is_its_rate_less_that_of_everyone_else() -> None:
    inside, others = np.array([[30, 10], [5, 15]]), np.array([[60, 20], [4, 16]])
    found, of_gaps = gaps(inside, inside + others)
    assert found == pytest.approx(
        {"selection_rate_gap": 25 / 60 - 36 / 100, "recall_gap": 15 / 20 - 16 / 20, "fpr_gap": 0.0}
    )
    assert all(low < found[name] < high for name, (low, high) in of_gaps.items())


def test_a_group_without_positive_labels_has_no_gap_in_recall() -> None:
    assert set(gaps(np.array([[3, 1], [0, 0]]), np.array([[9, 2], [3, 4]]))[0]) == {
        "selection_rate_gap",
        "fpr_gap",
    }


def test_delay_quantiles_are_delays_that_occurred() -> None:
    delays = np.array([30, 10, 20, 1_000], dtype=np.int64)
    assert delay_quantiles_ms(delays) == (20, 1_000)
    assert delay_quantiles_ms(np.array([], dtype=np.int64)) == (None, None)


def drawn(n: int, rng: np.random.Generator) -> Measured:
    """A model with known truth: score uniform on (0.05, 0.95) and calibrated, prediction by 0.5."""
    score = rng.uniform(0.05, 0.95, n)
    label = (rng.random(n) < score).astype(np.int64)
    return binary(label, (score > 0.5).astype(np.int64), score)


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(20130201)
    truth = drawn(2_000_000, rng).metrics
    trials = [drawn(200, rng) for _ in range(400)]
    for name in trials[0].intervals:
        held = np.mean(
            [low <= truth[name] <= high for t in trials for low, high in [t.intervals[name]]]
        )
        # Two-sided 99.9 % around 0.95 for 400 trials, and half a point for what n = 200 takes from the asymptotic forms.
        assert 0.91 <= held <= 0.985, (name, held)
    assert {"accuracy", "f1", "balanced_accuracy", "roc_auc", "brier"} <= set(trials[0].intervals)


def test_intervals_of_numbers_and_gaps_hold_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    held: dict[str, list[bool]] = {}
    truth = {"mae": math.sqrt(2 / math.pi), "rmse": 1.0, "bias": 0.0, "coverage": 0.5}
    for _ in range(400):
        label = rng.normal(50.0, 5.0, 200)
        found = regression(label, label + rng.normal(size=200)).intervals
        inside = rng.multinomial(80, [0.3, 0.2, 0.1, 0.4]).reshape(2, 2)
        everyone = inside + rng.multinomial(300, [0.4, 0.1, 0.2, 0.3]).reshape(2, 2)
        of_gaps = gaps(inside, everyone)[1]
        expected = truth | {"selection_rate_gap": 0.2, "recall_gap": 0.2, "fpr_gap": 0.2}
        for name, (low, high) in {**{k: found[k] for k in truth}, **of_gaps}.items():
            held.setdefault(name, []).append(low <= expected[name] <= high)
    assert {name: 0.91 <= np.mean(each) <= 0.985 for name, each in held.items()} == dict.fromkeys(
        held, True
    )
