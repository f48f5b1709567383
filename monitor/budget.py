"""The alarm budget: what the user accepts, shared out over everything that could cry wolf.

A budget of one false alarm in 30 days is a rate of alarms when nothing is wrong. It is split three times:

1. over the kinds of test (``SHARES``), so that many tests of one kind leave room for another;
2. over the segments: half for the model as a whole, half for all of its segments together;
3. over time: a window size gets its share for each of its windows in the period, a detector as an average run length.

What is left is the level of one *family*: all fields of one window. Inside it Benjamini and Hochberg (1995) decide which fields to name:
with nothing wrong at all, the chance to name any is the level (if fields depend positively, as they do in practice; Benjamini & Yekutieli 2001), and with
much wrong the threshold widens, so the evidence is fuller than Bonferroni's. The parts add up to the budget whatever the dependence
between them (the expected number of alarms is a sum), so the realised rate is at or below it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from monitor.binning import Floats
from monitor.spec import AlarmBudget, ModelSpec

Share = Literal["distributions", "rates", "panes", "shift", "change", "performance", "volume"]
# Most to what finds most. Broken data is found by a hundred times its limit, so its share may be small.
SHARES: Final[Mapping[Share, float]] = {
    "distributions": 0.50,  # PSI and KS of closed windows
    "rates": 0.10,  # missing, wrong type, off the grid, unseen, out of range, of closed windows
    "panes": 0.09,  # the same of each pane: broken data should not wait
    "shift": 0.15,  # the mean of a field against the reference, watched from pane to pane
    "change": 0.02,  # the mean of a field against its own past
    "performance": 0.12,  # accuracy of labelled windows, and the error stream
    "volume": 0.02,  # the requests of a slot of the week: an outage is far beyond any limit
}
MAX_LEVEL: Final = 0.05  # a generous budget over few windows is no reason to believe anything
WHOLE_MODEL: Final = 0.5


@dataclass(frozen=True, slots=True)
class Levels:
    """Probability of a false alarm that each family of tests may use, for one segment (or the whole) of one version.

    Attributes:
        distributions: window size in ms -> level of PSI and KS of all fields of one window.
        rates: window size in ms -> level of the rates of all fields of one window.
        pane: level of the quality rates of all fields of one pane.
        change: level of one check of the change detector over all fields.
        run_length: panes that the shift detector runs on average, at least, before it cries wolf.
        performance: window size in ms -> level of one labelled window, for accuracy and for the error stream each.
    """

    distributions: Mapping[int, float]
    rates: Mapping[int, float]
    pane: float
    change: float
    run_length: float
    performance: Mapping[int, float]

    @staticmethod
    def of(spec: ModelSpec, segments: Collection[str], segment: str) -> Levels:
        """The levels of one of a model's ``segments``, of which ``""`` is the model as a whole."""
        budget, windows, parts = spec.alarm_budget, spec.windows, len(segments) - 1
        part = 1.0 if parts < 1 else WHOLE_MODEL if segment == "" else (1 - WHOLE_MODEL) / parts
        alarms = {share: budget.false_alarms * part * weight for share, weight in SHARES.items()}

        def each(share: Share) -> dict[int, float]:
            of_one_size = alarms[share] / len(windows.sizes)
            return {size: _level(of_one_size * size / budget.per) for size in windows.sizes}

        panes = budget.per / windows.pane
        return Levels(
            distributions=each("distributions"),
            rates=each("rates"),
            pane=_level(alarms["panes"] / panes),
            change=_level(alarms["change"] / panes),
            run_length=max(panes / alarms["shift"], 1 / MAX_LEVEL),
            performance={size: level / 2 for size, level in each("performance").items()},
        )


def volume_level(budget: AlarmBudget, slot_ms: int) -> float:
    """Probability of a false alarm that one slot's volume may have: it is judged once for a model, whatever versions and segments it has."""
    return _level(budget.false_alarms * SHARES["volume"] * slot_ms / budget.per)


def benjamini_hochberg(p_values: Floats, level: float) -> float:
    """Threshold for the p-values of a family: those at or below it are discoveries, at a false discovery rate of ``level``.

    At least Bonferroni's ``level / k``; 0 for an empty family. NaN is a test that was not made, and does not count. O(k log k).
    """
    made = np.sort(p_values[~np.isnan(p_values)], axis=None)
    k = len(made)
    if k == 0:
        return 0.0
    passing = np.flatnonzero(made <= level * np.arange(1, k + 1) / k)
    return level * (int(passing[-1]) + 1 if len(passing) else 1) / k


def _level(probability: float) -> float:
    return min(MAX_LEVEL, probability)
