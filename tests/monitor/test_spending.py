from __future__ import annotations

import pytest
from scipy import stats

from monitor.spec import AlarmBudget
from monitor.spending import Opened, spend
from monitor.wire import Cause

DAY = 86_400_000
BUDGET = AlarmBudget(false_alarms=2, per=30 * DAY)


def opened(*at: tuple[int, Cause]) -> list[Opened]:
    """Incidents, in days."""
    return [Opened("m", cause, day * DAY) for day, cause in at]


def test_expected_and_opened_are_counted_for_all_time_and_for_the_last_period() -> None:
    incidents = opened((105, "drift"), (110, "drift"), (170, "pipeline_fault"), (189, "drift"))
    spent = spend("m", BUDGET, incidents, first_ms=100 * DAY, last_ms=190 * DAY)
    assert (spent.watched_ms, spent.expected) == (90 * DAY, 6.0)
    assert spent.opened == {"drift": 3, "pipeline_fault": 1}
    assert (spent.recent_ms, spent.recent_expected) == (30 * DAY, 2.0)
    assert spent.recent_opened == {"pipeline_fault": 1, "drift": 1}


def test_an_outage_spends_nothing() -> None:
    spent = spend("m", BUDGET, opened((5, "outage")), first_ms=0, last_ms=30 * DAY)
    assert (spent.opened, spent.recent_opened, spent.chance) == ({}, {}, 1.0)


def test_the_period_begins_after_its_first_moment() -> None:
    edge = opened((60, "drift"), (61, "drift"))
    assert spend("m", BUDGET, edge, first_ms=0, last_ms=90 * DAY).recent_opened == {"drift": 1}


def test_the_shares_add_up_to_the_budget() -> None:
    spent = spend("m", BUDGET, [], first_ms=0, last_ms=DAY)
    assert sum(spent.shares.values()) == pytest.approx(2.0)
    assert min(spent.shares.values()) > 0


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_chance_is_the_upper_tail_of_a_poisson(count: int) -> None:
    incidents = [Opened("m", "drift", 20 * DAY)] * count
    spent = spend("m", BUDGET, incidents, first_ms=0, last_ms=30 * DAY)
    assert spent.chance == pytest.approx(stats.poisson.sf(count - 1, 2.0))


def test_a_model_without_windows_has_spent_nothing_and_one_that_is_young_is_allowed_little() -> (
    None
):
    nothing = spend("m", BUDGET, [], first_ms=None, last_ms=None)
    assert (nothing.watched_ms, nothing.expected, nothing.recent_expected) == (0, 0.0, 0.0)
    young = spend("m", BUDGET, opened((2, "drift")), first_ms=0, last_ms=3 * DAY)
    assert young.recent_ms == 3 * DAY
    assert young.recent_expected == pytest.approx(0.2)
    assert young.recent_opened == {"drift": 1}
    # An incident of a model whose windows have expired: chance has no part in it.
    assert spend("m", BUDGET, opened((2, "drift")), first_ms=None, last_ms=None).chance == 0.0
