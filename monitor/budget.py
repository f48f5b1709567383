"""The alarm budget: what the user accepts, turned into the level of each single test."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.calibration import QUALITY_RATES, RATES
from monitor.spec import AlarmBudget, WindowSpec


@dataclass(frozen=True, slots=True)
class Levels:
    """Probability of a false breach that each single test may use so that the whole model keeps its budget.

    Half of the budget goes to the panes, which look at quality alone and often, half to the windows. Bonferroni over everything
    that is tested in the budget's period: valid whatever the dependence, and so on the quiet side.
    """

    window: float
    pane: float

    @staticmethod
    def of(budget: AlarmBudget, windows: WindowSpec, *, segments: int, fields: int) -> Levels:
        """The levels of a model with that many segments (the whole model counts as one) and fields."""
        per_window = fields * (2 + len(RATES))
        tests = sum(budget.per / size for size in windows.sizes) * segments * per_window
        pane_tests = budget.per / windows.pane * segments * fields * len(QUALITY_RATES)
        half = budget.false_alarms / 2
        return Levels(window=min(0.05, half / tests), pane=min(0.05, half / pane_tests))
