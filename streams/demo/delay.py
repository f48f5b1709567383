"""The model that the demo serves: will a flight arrive more than fifteen minutes late?

A logistic regression in plain numpy: Newton steps on a ridge-penalised likelihood, standardised numbers and one
indicator per frequent category. It draws no random numbers, so the same January gives the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# One January cannot tell a warm day from a summer: weighed, temp and dewp take the share of flights that are
# predicted late from 36 % in January to 4 % in July (41 % without them). Both are still logged.
NUMERIC_INPUTS: Final = (
    "hour",
    "day_of_week",
    "distance",
    "humid",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
)
CATEGORICAL_INPUTS: Final = ("carrier", "origin", "dest")
TOP_CATEGORIES: Final = 20  # destinations below the 20 busiest share one weight
RIDGE: Final = 1.0
NEWTON_STEPS: Final = 8  # January's log loss moves by less than 1e-12 after the sixth

Numbers = Mapping[str, NDArray[np.float64]]
Categories = Mapping[str, NDArray[np.str_]]


@dataclass(frozen=True, slots=True)
class Scale:
    """A number's range and moments in training. Outside the range it is taken as the nearest end."""

    low: float
    high: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Scale:
        """Scale of the values that are not NaN; a constant keeps deviation 1."""
        return cls(
            low=float(np.nanmin(values)),
            high=float(np.nanmax(values)),
            mean=float(np.nanmean(values)),
            deviation=float(np.nanstd(values)) or 1.0,
        )

    def standardise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Z-scores; a missing value (NaN) counts as the mean."""
        z = (np.clip(values, self.low, self.high) - self.mean) / self.deviation
        return np.nan_to_num(z, nan=0.0)


@dataclass(frozen=True, slots=True)
class DelayModel:
    """Weights of the regression: an intercept, one per number, one per known category."""

    intercept: float
    scales: Mapping[str, Scale]
    number_weights: Mapping[str, float]
    category_weights: Mapping[str, Mapping[str, float]]

    @classmethod
    def fit(cls, numbers: Numbers, categories: Categories, late: NDArray[np.bool_]) -> DelayModel:
        """Fit on rows whose outcome is known.

        Args:
            numbers: a column for each of ``NUMERIC_INPUTS``, NaN where missing; others are ignored.
            categories: a column for each of ``CATEGORICAL_INPUTS``.
            late: the outcome.
        """
        scales = {name: Scale.of(numbers[name]) for name in NUMERIC_INPUTS}
        known = {name: _frequent(categories[name]) for name in CATEGORICAL_INPUTS}
        columns = [scales[name].standardise(numbers[name]) for name in NUMERIC_INPUTS]
        columns += [categories[name] == value for name in known for value in known[name]]
        weights = _newton(np.column_stack([np.ones(len(late)), *columns]), late.astype(np.float64))
        rest = iter(weights[1:].tolist())
        return cls(
            intercept=float(weights[0]),
            scales=scales,
            number_weights={name: next(rest) for name in NUMERIC_INPUTS},
            category_weights={name: {v: next(rest) for v in known[name]} for name in known},
        )

    def score(self, numbers: Numbers, categories: Categories) -> NDArray[np.float64]:
        """Probability of a late arrival, a row each. Unknown categories weigh nothing."""
        logit = np.full(len(numbers["hour"]), self.intercept)
        for name, weight in self.number_weights.items():
            logit += weight * self.scales[name].standardise(numbers[name])
        for name, weights in self.category_weights.items():
            values, codes = np.unique(categories[name], return_inverse=True)
            logit += np.array([weights.get(value, 0.0) for value in values.tolist()])[codes]
        return _sigmoid(logit)


def _frequent(values: NDArray[np.str_]) -> list[str]:
    """The busiest categories but the first, which is the baseline of the others. Ties go by name."""
    names, counts = np.unique(values, return_counts=True)
    ranked = names[np.argsort(-counts, kind="stable")]
    return [str(name) for name in ranked[1:TOP_CATEGORIES]]


def _newton(design: NDArray[np.float64], late: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximise the penalised likelihood; the first column is the intercept and is not penalised."""
    penalty = np.full(design.shape[1], RIDGE)
    penalty[0] = 0.0
    weights = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        score = _sigmoid(design @ weights)
        curvature = (design * (score * (1 - score))[:, None]).T @ design + np.diag(penalty)
        weights += np.linalg.solve(curvature, design.T @ (late - score) - penalty * weights)
    return weights


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-logit)), dtype=np.float64)
