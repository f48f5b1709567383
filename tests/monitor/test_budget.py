from __future__ import annotations

import pytest

from monitor.budget import Levels
from monitor.calibration import RATES
from monitor.spec import AlarmBudget, WindowSpec
from tests.monitor.builders import DAY, HOUR


def test_the_levels_share_the_budget_among_everything_that_is_tested() -> None:
    windows = WindowSpec(pane=HOUR, sizes=(DAY,))
    levels = Levels.of(AlarmBudget(false_alarms=1.0, per=30 * DAY), windows, segments=3, fields=5)
    assert levels.window * 30 * 3 * 5 * (2 + len(RATES)) == pytest.approx(0.5)
    assert levels.pane * 720 * 3 * 5 * 5 == pytest.approx(0.5)
    generous = Levels.of(AlarmBudget(false_alarms=1e9, per=DAY), windows, segments=1, fields=1)
    assert (generous.window, generous.pane) == (0.05, 0.05)
