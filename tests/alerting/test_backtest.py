from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from alerting.backtest import Backtest, Budget, Fixed, Outcome, Rule, parse_budget
from alerting.book import Book
from alerting.episodes import Episode
from alerting.incidents import Change, step
from monitor.errors import ConfigError
from monitor.judge import Judge
from monitor.panes import ClosedWindow
from monitor.spec import AlarmBudget
from tests.alerting.past import DAY, PLANTED, START, history, reference, spec, window

FIXED: list[Rule] = [Fixed("psi", 0.1), Fixed("ks", 0.05), Fixed("ks", 0.05, bonferroni=True)]


def replay(
    windows: list[ClosedWindow], rules: list[Rule], episodes: list[Episode] | None = None
) -> list[Outcome]:
    backtest = Backtest(spec(), reference(), rules)
    for one in windows:
        backtest.take([one])
    return backtest.outcomes(episodes or [])


def planted(feature: str = "x0") -> Episode:
    return Episode(START + PLANTED.start * DAY, START + PLANTED.stop * DAY, "planted", feature)


def test_the_budget_in_force_pages_as_the_judge_and_the_incident_machine_do() -> None:
    key = window(0).key
    judge, book = Judge(key, spec(), reference()), Book("m")
    changes: tuple[Change, ...] = ()
    breaches = 0
    for one in history():
        judge.pane(one.start_ms, one.size_ms, one.profile)
        found = judge.window(one.start_ms, one.size_ms, one.profile)
        assert found is not None
        breaches += sum(v.status == "breach" for v in found.verdicts)
        book, more = step(book, found)
        changes += more
    fired = [c.incident for c in changes if c.transition == "fired"]
    (outcome,) = replay(history(), [Budget(spec().alarm_budget, in_force=True)])
    assert [page.opened_ms for page in outcome.pages] == [i.opened_ms for i in fired]
    assert outcome.breaches == breaches  # of the detectors on means, too
    assert outcome.pages[0].features == ["x0"]
    assert outcome.pages[0].family == "drift"
    assert outcome.rule == "budget 0.05/30d (in force)"


def test_a_planted_shift_is_found_by_every_rule_after_one_window() -> None:
    rules: list[Rule] = [Budget(spec().alarm_budget), *FIXED]
    for outcome in replay(history(), rules, [planted()]):
        (seen,) = outcome.sightings
        if seen.found != "open_already":  # uncorrected KS is never silent for long
            assert (seen.found, seen.delay_ms) == ("found", DAY), outcome.rule
        assert outcome.breaches >= 5


def test_what_is_false_and_what_stays_open_is_counted() -> None:
    budget, psi, ks, bonferroni = replay(
        history(), [Budget(spec().alarm_budget), *FIXED], [planted()]
    )
    assert (budget.false_pages, psi.false_pages) == (0, 0)
    assert ks.false_pages is not None
    assert bonferroni.breaches < ks.breaches
    assert ks.breaches > 5 + 40 * 6 * 0.05 * 0.3  # six fields, five in a hundred
    assert ks.open_share > psi.open_share > 0
    # From the end of day 20 until a day after the last broken window.
    assert psi.open_share == pytest.approx(5 / 40)


def test_the_last_window_of_the_history_counts() -> None:
    (outcome,) = replay([window(0), window(1), window(2, shift=0.6)], [Fixed("psi", 0.1)])
    assert [page.opened_ms for page in outcome.pages] == [START + 3 * DAY]


def test_without_episodes_no_page_is_called_false() -> None:
    (outcome,) = replay(history(), [Budget(spec().alarm_budget)])
    assert (outcome.false_pages, outcome.sightings) == (None, [])


def test_pages_a_month_go_by_the_time_that_was_replayed() -> None:
    (outcome,) = replay(history(), [Fixed("psi", 0.1)])
    assert outcome.pages_per_month == pytest.approx(len(outcome.pages) * 30 / 40)
    assert len(outcome.pages) == 1


def test_a_wider_budget_pages_no_later_and_expects_what_it_says() -> None:
    slight = [window(day, shift=0.18 if day in PLANTED else 0.0) for day in range(40)]
    rules: list[Rule] = [Budget(AlarmBudget(false_alarms=x, per=30 * DAY)) for x in (0.01, 1, 60)]
    outcomes = replay(slight, rules)
    assert [o.expected_per_month for o in outcomes] == [0.01, 1.0, 60.0]
    assert outcomes[0].breaches <= outcomes[1].breaches <= outcomes[2].breaches
    assert outcomes[0].breaches < outcomes[2].breaches


def test_fixed_ks_breaks_where_the_textbook_p_value_is_below_it() -> None:
    first = window(0)
    (outcome,) = replay([first], [Fixed("ks", 0.3)])
    expected = 0
    for f in reference().layout.fields:
        ours, theirs = reference().profiles[""].counts(f.name), first.profile.counts(f.name)
        if not f.name.startswith("x"):
            continue
        below = np.cumsum(ours) / ours.sum() - np.cumsum(theirs) / theirs.sum()
        root = np.sqrt(1 / ours.sum() + 1 / theirs.sum())
        expected += stats.kstwobign.sf(np.abs(below).max() / root) < 0.3
    assert outcome.breaches == expected
    assert outcome.verdicts == 6


def test_limits_of_ks_widen_where_window_or_reference_is_small() -> None:
    n, m = np.array([50.0, 1000.0, 1000.0]), np.array([1e6, 1e6, 500.0])
    plain = Fixed("ks", 0.05).limits(n, m, 8)
    assert plain == pytest.approx(stats.kstwobign.isf(0.05) * np.sqrt((n + m) / (n * m)))
    divided = Fixed("ks", 0.05, bonferroni=True).limits(n, m, 8)
    assert divided == pytest.approx(plain * stats.kstwobign.isf(0.05 / 8) / 1.3580986)


def test_the_false_alarms_of_a_fixed_limit_come_from_the_learnt_null() -> None:
    windows = [window(day) for day in range(5)]
    limit = 0.012
    (outcome,) = replay(windows, [Fixed("psi", limit)])
    null = reference().nulls[""][DAY]
    chance = 0.0
    for one in windows:
        n = np.array([one.profile.counts(f.name).sum() for f in reference().layout.fields])
        p = null.psi_p_values(np.maximum(n, 1.0), np.full(len(n), limit))
        chance += p[n > 0].sum()
    assert outcome.expected_per_month == pytest.approx(chance * 30 / 5)
    assert 0 < chance < outcome.verdicts


def test_a_statistic_with_too_few_values_is_no_data_under_every_rule() -> None:
    few = [window(day, n=20) for day in range(3)]
    for outcome in replay(few, [Budget(spec().alarm_budget), *FIXED]):
        assert outcome.pages == []
        assert outcome.no_data == outcome.verdicts > 0 or outcome.rule.startswith("budget")
        assert outcome.no_data >= 3 * 6


def test_a_window_that_is_not_whole_is_no_data_for_distributions() -> None:
    partial = replay([window(0, whole=False)], FIXED)
    assert {(o.verdicts, o.no_data) for o in partial} == {(1, 1)}


def test_only_a_budget_sees_what_is_in_no_bin() -> None:
    lost = [window(day, missing=0.4 if day in PLANTED else 0.0) for day in range(30)]
    budget, psi = replay(
        lost, [Budget(spec().alarm_budget), Fixed("psi", 0.1)], [planted(feature="x1")]
    )
    assert [(p.family, p.features) for p in budget.pages] == [("quality", ["x1"])]
    assert budget.sightings[0].found == "found"
    assert psi.sightings[0].found == "missed"


def test_windows_that_end_together_are_decided_together() -> None:
    """Of two versions the newer one breaks alone: a release, which needs both of its window."""
    backtest = Backtest(spec(), reference(), [Fixed("psi", 0.1)])
    for day in range(6):
        backtest.take([window(day, version="1"), window(day, version="2", shift=0.8 * (day > 2))])
    (outcome,) = backtest.outcomes()
    assert [(p.family, p.cause) for p in outcome.pages] == [("release", "bad_release")]
    assert (backtest.windows, backtest.from_ms, backtest.to_ms) == (12, START, START + 6 * DAY)


@pytest.mark.parametrize(
    ("text", "budget"),
    [("1/30d", (1.0, 30 * DAY)), (" 0.5 / 1w ", (0.5, 7 * DAY)), ("12/90d", (12.0, 90 * DAY))],
)
def test_a_budget_is_a_number_per_duration(text: str, budget: tuple[float, int]) -> None:
    found = parse_budget(text)
    assert (found.false_alarms, found.per) == budget


@pytest.mark.parametrize(
    "text", ["", "1", "1/", "/30d", "1/month", "0/30d", "-1/30d", "1.2.3/1d", "1/30d/2", "1/0d"]
)
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a budget such as 1/30d") as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [("psi", 0.0), ("psi", -1.0), ("psi", float("nan")), ("ks", 1.0), ("ks", 0.0), ("ks", 2.0)],
)
def test_a_threshold_that_could_never_break_or_always_is_refused(wrong: tuple[Any, float]) -> None:
    with pytest.raises(ValueError, match="PSI is above 0"):
        Fixed(*wrong)
    with pytest.raises(ValueError, match="no p-value"):
        Fixed("psi", 0.1, bonferroni=True)
