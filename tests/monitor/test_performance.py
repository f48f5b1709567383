from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.performance import (
    ECE_BINS,
    MISSING,
    binary,
    delay_quantiles_ms,
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


def columns(rows: list[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64),
    )


def auc_by_pairs(rows: list[tuple[int, float]]) -> float | None:
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for y, a in rows
        if y == 1
        for z, b in rows
        if z == 0
    ]
    return sum(wins) / len(wins) if wins else None


def calibration_error(rows: list[tuple[int, float]]) -> float:
    total = 0.0
    for i in range(ECE_BINS):
        # The last bin is closed above: a score of 1 is in it.
        inside = [(y, s) for y, s in rows if min(int(s * ECE_BINS), ECE_BINS - 1) == i]
        if inside:
            mean_score = sum(s for _, s in inside) / len(inside)
            share_positive = sum(y for y, _ in inside) / len(inside)
            total += len(inside) / len(rows) * abs(mean_score - share_positive)
    return total


@given(ROWS)
def test_binary_metrics_equal_their_textbook_formulas_row_by_row(
    rows: list[tuple[int, int, float]],
) -> None:
    measured = binary(*columns(rows))
    pairs = [(y, p) for y, p, _ in rows if p != MISSING]
    scored = [(y, s) for y, _, s in rows if not math.isnan(s)]
    cells = Counter(pairs)
    expected: dict[str, float | None] = {
        "accuracy": (cells[0, 0] + cells[1, 1]) / len(pairs) if pairs else None,
        "base_rate": sum(y for y, _, _ in rows) / len(rows) if rows else None,
        "roc_auc": auc_by_pairs(scored),
    }
    precision = cells[1, 1] / (cells[1, 1] + cells[0, 1]) if cells[1, 1] + cells[0, 1] else None
    recall = cells[1, 1] / (cells[1, 1] + cells[1, 0]) if cells[1, 1] + cells[1, 0] else None
    expected |= {"precision": precision, "recall": recall}
    if precision is not None and recall is not None and precision + recall > 0:
        expected["f1"] = 2 * precision * recall / (precision + recall)
    else:
        expected["f1"] = None if not any(y or p for y, p in pairs) else 0.0
    if scored:
        clipped = [(y, min(max(s, 1e-15), 1 - 1e-15)) for y, s in scored]
        expected["log_loss"] = -math.fsum(
            math.log(s) if y else math.log(1 - s) for y, s in clipped
        ) / len(scored)
        expected["brier"] = math.fsum((s - y) ** 2 for y, s in scored) / len(scored)
        expected["ece"] = calibration_error(scored)
    defined = {name: value for name, value in expected.items() if value is not None}
    assert measured.metrics == pytest.approx(defined, abs=1e-12)
    assert measured.errors == cells[0, 1] + cells[1, 0]


def test_an_undefined_metric_is_absent() -> None:
    no_positive = binary(*columns([(0, 0, 0.2), (0, 0, 0.4)]))
    assert set(no_positive.metrics) == {"accuracy", "base_rate", "log_loss", "brier", "ece"}
    assert binary(*columns([])).metrics == {}
    assert multiclass(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).metrics == {}
    assert regression(np.array([np.nan]), np.array([1.0])).metrics == {}


def test_a_score_that_is_no_probability_is_only_ranked() -> None:
    measured = binary(*columns([(1, 1, 7.5), (0, 0, -2.0), (1, 0, 0.5)]))
    assert measured.metrics["roc_auc"] == 1.0
    assert not {"log_loss", "brier", "ece"} & set(measured.metrics)


def test_a_confident_and_wrong_score_costs_a_finite_log_loss() -> None:
    assert binary(*columns([(1, 0, 0.0)])).metrics["log_loss"] == pytest.approx(34.54, abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=40))
def test_multiclass_metrics_are_means_over_one_against_the_rest(
    rows: list[tuple[int, int]],
) -> None:
    label, prediction = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    measured = multiclass(label, prediction)
    known = [(y, p) for y, p in rows if p != MISSING]
    if not known:
        assert measured.metrics == {}
        return
    classes = sorted({value for pair in known for value in pair})
    precisions, recalls, f1s = [], [], []
    for c in classes:
        hits = sum(y == p == c for y, p in known)
        predicted, actual = sum(p == c for _, p in known), sum(y == c for y, _ in known)
        precisions.append(hits / predicted if predicted else 0.0)
        recalls.append(hits / actual if actual else 0.0)
        f1s.append(2 * hits / (predicted + actual))
    assert measured.metrics == pytest.approx(
        {
            "accuracy": sum(y == p for y, p in known) / len(known),
            "precision": sum(precisions) / len(classes),
            "recall": sum(recalls) / len(classes),
            "f1": sum(f1s) / len(classes),
        }
    )
    assert measured.errors == sum(y != p for y, p in known)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_regression_metrics_equal_their_formulas(rows: list[tuple[float, float]]) -> None:
    label, prediction = (np.array([row[i] for row in rows]) for i in (0, 1))
    metrics = regression(label, prediction).metrics
    errors = [p - y for y, p in rows]
    assert metrics == pytest.approx(
        {
            "mae": math.fsum(map(abs, errors)) / len(errors),
            "rmse": math.sqrt(math.fsum(e * e for e in errors) / len(errors)),
            "bias": math.fsum(errors) / len(errors),
        },
        rel=1e-9,
        abs=1e-6,
    )


def test_a_metric_that_overflows_is_absent() -> None:
    huge = np.array([1e300, -1e300])
    assert set(regression(np.zeros(2), huge).metrics) == {"mae", "bias"}


def test_delay_quantiles_are_delays_that_occurred() -> None:
    delays = np.array([30, 10, 20, 1_000], dtype=np.int64)
    assert delay_quantiles_ms(delays) == (20, 1_000)
    assert delay_quantiles_ms(np.array([], dtype=np.int64)) == (None, None)
