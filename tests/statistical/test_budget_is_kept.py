"""A month of each kind of clean stream, at twenty false alarms a month: as many incidents as were allowed, within what chance explains.

What chance explains has a failure probability of 0.1 % a kind if the true ratio is in the bar, and less if it is inside. All of
``python -m load.budget`` takes hours of CPU; its table is in the README.
"""

from __future__ import annotations

import pytest

from load import budget
from load.clean import KINDS, Kind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_stream_has_the_false_incidents_that_its_owner_allowed(kind: Kind) -> None:
    todo = [t for t in budget.short_trials(seed=1) if t.plan.kind == kind]
    rate = budget.rate(todo, [budget.run(trial) for trial in todo])
    assert rate.allowed == 20.0
    assert not rate.contradicts(*budget.BAR), f"{rate.fired} of {rate.allowed:.0f} allowed"
