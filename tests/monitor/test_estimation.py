from __future__ import annotations

import numpy as np
import pytest

from monitor import reference as references
from monitor.errors import IncompatibleError
from monitor.estimation import MIN_LABELLED, MIN_SCORED, PREFIX, Meaning, estimated
from monitor.judge import Judge
from monitor.panes import SeriesKey
from monitor.reference import Reference
from tests.monitor.builders import START, columns, past, profile_of, spec

BINS = 20
MIDDLES = (np.arange(BINS) + 0.5) / BINS


def drawn(rng: np.random.Generator, share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Score bins of ``n`` rows with these shares, and labels that the scores are right about."""
    bins = rng.choice(BINS, n, p=share / share.sum())
    return bins, rng.random(n) < MIDDLES[bins]


def meaning(bins: np.ndarray, label: np.ndarray) -> Meaning:
    cells = np.zeros((BINS, 4), dtype=np.int64)
    np.add.at(cells, (bins, 2 * label + (MIDDLES[bins] > 0.5)), 1)
    return Meaning(cells)


def test_where_harder_cases_come_the_estimate_follows_and_its_band_holds() -> None:
    rng = np.random.default_rng(1)
    usual = np.abs(MIDDLES - 0.5) + 0.05
    past_bins, past_label = drawn(rng, usual, 20_000)
    known = meaning(past_bins, past_label)
    before = float(((MIDDLES[past_bins] > 0.5) == past_label).mean())
    errors, guesses, inside = [], [], []
    for _ in range(300):
        bins, label = drawn(rng, usual[::-1] ** rng.uniform(-2, 2), 1_000)
        accuracy = float(((MIDDLES[bins] > 0.5) == label).mean())
        found = known.estimate(np.bincount(bins, minlength=BINS))["accuracy"]
        errors.append(abs(found.value - accuracy))
        guesses.append(abs(before - accuracy))
        inside.append(found.low <= accuracy <= found.high)
    assert np.mean(errors) < np.mean(guesses) / 3
    assert 0.91 <= np.mean(inside) <= 0.985  # 99.9 % of what 300 trials at 0.95 give


def test_concept_drift_is_not_seen() -> None:
    rng = np.random.default_rng(2)
    known = meaning(*drawn(rng, np.ones(BINS), 20_000))
    bins, label = drawn(rng, np.ones(BINS), 5_000)
    before = known.estimate(np.bincount(bins, minlength=BINS))["accuracy"].value
    flipped = ~label
    assert abs(before - ((MIDDLES[bins] > 0.5) == label).mean()) < 0.03
    assert abs(before - ((MIDDLES[bins] > 0.5) == flipped).mean()) > 0.4


def test_all_metrics_are_ratios_of_the_expected_cells() -> None:
    cells = np.zeros((2, 4), dtype=np.int64)
    cells[0], cells[1] = (600, 0, 200, 0), (0, 100, 0, 300)  # TN, FP, FN, TP
    found = Meaning(cells).estimate(np.array([0, 400]))
    assert found["precision"].value == pytest.approx(0.75, abs=0.01)
    assert found["recall"].value == pytest.approx(1.0, abs=0.01)
    assert found["base_rate"].value == pytest.approx(0.75, abs=0.01)
    assert found["f1"].value == pytest.approx(600 / 700, abs=0.01)
    several = Meaning(np.array([[10, 90], [150, 150]])).estimate(np.array([300, 100]))
    assert set(several) == {"accuracy"}
    assert several["accuracy"].value == pytest.approx((0.9 * 300 + 0.5 * 100) / 400, abs=0.01)


def test_a_bin_that_the_reference_never_saw_is_taken_for_an_average_one() -> None:
    cells = np.array([[100, 300], [0, 0]])
    assert Meaning(cells).estimate(np.array([0, 100]))["accuracy"].value == pytest.approx(0.75)


def test_dependent_errors_widen_the_band_and_move_nothing() -> None:
    cells, scores = np.array([[100, 300], [50, 50]]), np.array([100, 100])
    one, four = (Meaning(cells, effect).estimate(scores)["accuracy"] for effect in (1.0, 4.0))
    assert one.value == four.value
    assert four.high - four.value == pytest.approx(2 * (one.high - one.value))


def test_too_few_rows_are_no_estimate() -> None:
    enough = np.array([[0, MIN_LABELLED]])
    assert Meaning(enough).estimate(np.array([MIN_SCORED])) != {}
    assert Meaning(enough - [[0, 1]]).estimate(np.array([MIN_SCORED])) == {}
    assert Meaning(enough).estimate(np.array([MIN_SCORED - 1])) == {}


REFERENCE = references.build(spec(), lambda: [columns(past(np.random.default_rng(7)))])


def test_a_window_of_the_whole_model_is_told_with_its_estimates_and_they_are_no_alarm() -> None:
    rows = columns(past(np.random.default_rng(8), 500))
    key = SeriesKey(spec().model, "7", "", REFERENCE.layout.bins_id)
    told = Judge(key, spec(), REFERENCE).window(START, 60_000, profile_of(REFERENCE, rows))
    assert told is not None
    found = {v.statistic: v for v in told.verdicts if v.statistic.startswith(PREFIX)}
    assert {v.status for v in found.values()} == {"ok"}
    accuracy = found["estimated_accuracy"]
    low, high = (float(accuracy.evidence[end]) for end in ("low", "high"))
    assert accuracy.value == pytest.approx(0.8, abs=0.05)
    assert low < 0.8 < high
    of_segment = Judge(key._replace(segment="carrier=UA"), spec(), REFERENCE)
    segment = of_segment.window(START, 60_000, profile_of(REFERENCE, rows))
    assert segment is not None
    assert not any(v.statistic.startswith(PREFIX) for v in segment.verdicts)


def test_a_rule_by_hand_makes_an_estimate_an_alarm() -> None:
    chosen = spec(rules=[{"statistic": "estimated_accuracy", "below": 0.9}])
    rows = columns(past(np.random.default_rng(8), 500))
    key = SeriesKey(chosen.model, "7", "", REFERENCE.layout.bins_id)
    told = Judge(key, chosen, REFERENCE).window(START, 60_000, profile_of(REFERENCE, rows))
    assert told is not None
    status = {v.statistic: v.status for v in told.verdicts}
    assert (status["estimated_accuracy"], status["estimated_f1"]) == ("breach", "ok")


def test_what_scores_meant_comes_back_from_json_and_damage_is_told() -> None:
    form = REFERENCE.to_dict()
    assert REFERENCE.meaning is not None
    again = Reference.from_dict(form).meaning
    assert again is not None
    assert again.cells.tolist() == REFERENCE.meaning.cells.tolist()
    assert again.design_effect == REFERENCE.accuracy_deff
    with pytest.raises(IncompatibleError, match="what scores meant"):
        Reference.from_dict({**form, "score_cells": form["score_cells"][1:]})
    del form["score_cells"]
    assert Reference.from_dict(form).meaning is None  # of the release before


def test_a_profile_without_a_score_has_no_estimate() -> None:
    rows = past(np.random.default_rng(7)).drop_columns(["score"])
    bare = references.build(spec(), lambda: [columns(rows)])
    assert bare.meaning is None
    assert REFERENCE.meaning is not None
    assert estimated(REFERENCE.meaning, profile_of(bare, columns(rows))) == []
