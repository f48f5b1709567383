from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import mannwhitneyu

from streams.demo.delay import (
    CATEGORICAL_INPUTS,
    NUMERIC_INPUTS,
    Categories,
    DelayModel,
    Numbers,
    Scale,
)
from streams.demo.flights import Flights


def inputs(n: int, rng: np.random.Generator) -> tuple[Numbers, Categories]:
    numbers = {name: rng.normal(size=n) for name in NUMERIC_INPUTS}
    categories = {name: rng.choice(["a", "a", "b", "b", "c"], n) for name in CATEGORICAL_INPUTS}
    return numbers, categories


def auc(score: np.ndarray, late: np.ndarray) -> float:
    """Scipy's Mann-Whitney U over the number of pairs."""
    wins = mannwhitneyu(score[late], score[~late]).statistic
    return float(wins / (late.sum() * (~late).sum()))


def test_it_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(1)
    numbers, categories = inputs(40_000, rng)
    logit = (
        -1.0 + 0.8 * numbers["hour"] - 0.5 * numbers["humid"] + 1.2 * (categories["dest"] == "c")
    )

    model = DelayModel.fit(numbers, categories, rng.random(40_000) < expit(logit))

    assert model.number_weights["hour"] == pytest.approx(0.8, abs=0.06)  # 4 standard errors
    assert model.number_weights["humid"] == pytest.approx(-0.5, abs=0.06)
    assert model.number_weights["visib"] == pytest.approx(0.0, abs=0.06)
    weights = model.category_weights["dest"]
    assert weights["c"] - weights.get("b", 0.0) == pytest.approx(1.2, abs=0.15)


def test_missing_counts_as_the_mean_and_extremes_as_the_ends_of_training() -> None:
    scale = Scale.of(np.array([0.0, 10.0, np.nan, 20.0]))

    z = scale.standardise(np.array([np.nan, 10.0, 20.0, 1745.0, -3.0]))

    np.testing.assert_allclose(z, [0.0, 0.0, np.sqrt(1.5), np.sqrt(1.5), -np.sqrt(1.5)])


def test_a_constant_number_weighs_nothing_and_breaks_nothing() -> None:
    rng = np.random.default_rng(2)
    numbers, categories = inputs(500, rng)
    numbers = {**numbers, "precip": np.zeros(500)}

    model = DelayModel.fit(numbers, categories, rng.random(500) < 0.3)

    assert model.number_weights["precip"] == 0.0
    assert np.isfinite(model.score(numbers, categories)).all()


def test_an_unknown_category_scores_as_the_baseline() -> None:
    rng = np.random.default_rng(3)
    numbers, categories = inputs(500, rng)
    model = DelayModel.fit(numbers, categories, rng.random(500) < 0.3)
    baseline = ({"a", "b", "c"} - set(model.category_weights["dest"])).pop()

    unknown = model.score(numbers, {**categories, "dest": np.full(500, "XNA")})

    expected = model.score(numbers, {**categories, "dest": np.full(500, baseline)})
    np.testing.assert_array_equal(unknown, expected)


def test_the_served_model_ranks_delays_all_year(flights: Flights, model: DelayModel) -> None:
    for month in range(1, 13):
        landed = flights.of([month])
        landed = landed.take(np.flatnonzero(landed.arrived))
        area = auc(model.score(landed.numbers, landed.categories), landed.late)
        assert area > 0.6, month  # 0.69 in January, 0.63 to 0.69 later
