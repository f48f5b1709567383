"""What an alarm budget allows, beside what was opened: the expected and the realised rate of a model.

Every opened incident counts, whether it was false or not: nobody tells Driftline which it was. So the opened ones are at least the false ones,
and a rate at or below the budget shows that the budget is kept. Time is event time, so a replay of history spends as live traffic does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import msgspec
from scipy import special

from monitor.budget import SHARES
from monitor.spec import AlarmBudget
from monitor.wire import Cause

NOT_COUNTED: Final[tuple[Cause, ...]] = ("outage",)  # silence is no statistic: nothing is spent


class Opened(msgspec.Struct, frozen=True):
    """An incident that opened, by its newest cause."""

    model: str
    cause: Cause
    opened_ms: int


class Spending(msgspec.Struct, frozen=True):
    """A model's budget and what became of it.

    Attributes:
        false_alarms: incidents that the budget allows per ``per_ms`` when nothing is wrong.
        shares: kind of test -> its part of ``false_alarms``.
        watched_ms: event time from the first stored window to the end of the last.
        expected: false alarms that the budget allows in all of that time.
        opened: cause -> incidents opened in all of that time, outages aside.
        recent_ms: length of the last period: ``per_ms``, or less if the model was not watched for so long.
        recent_expected, recent_opened: the same for the last period.
        chance: probability that false alarms alone make at least the incidents of the last period, if the budget is spent to the full (Poisson).
            Where it is small something was wrong, or the reference does not fit.
    """

    model: str
    false_alarms: float
    per_ms: int
    shares: dict[str, float]
    watched_ms: int
    expected: float
    opened: dict[str, int]
    recent_ms: int
    recent_expected: float
    recent_opened: dict[str, int]
    chance: float


def spend(
    model: str,
    budget: AlarmBudget,
    opened: Collection[Opened],
    *,
    first_ms: int | None,
    last_ms: int | None,
) -> Spending:
    """The spending of a model from the incidents it ``opened``; its windows cover ``[first_ms, last_ms)``, ``None`` before the first."""
    from_ms, to_ms = first_ms or 0, last_ms or 0
    watched_ms = to_ms - from_ms
    recent_ms = min(budget.per, watched_ms)
    counted = [o for o in opened if o.cause not in NOT_COUNTED]
    recent = Counter[str](o.cause for o in counted if o.opened_ms > to_ms - recent_ms)
    recent_expected = budget.false_alarms * recent_ms / budget.per
    return Spending(
        model=model,
        false_alarms=budget.false_alarms,
        per_ms=budget.per,
        shares={share: budget.false_alarms * weight for share, weight in SHARES.items()},
        watched_ms=watched_ms,
        expected=budget.false_alarms * watched_ms / budget.per,
        opened=dict(Counter[str](o.cause for o in counted)),
        recent_ms=recent_ms,
        recent_expected=recent_expected,
        recent_opened=dict(recent),
        chance=_at_least(recent.total(), recent_expected),
    )


def _at_least(count: int, mean: float) -> float:
    """P(Poisson(mean) >= count)."""
    return 1.0 if count == 0 else float(special.gammainc(count, mean))
