from __future__ import annotations

import copy
from collections import Counter as Counts

import numpy as np
import pytest

from load import budget
from load.budget import BAR, Rate, Tally, Trial, Watch, report, run, trials
from load.clean import HOUR_MS, Clean, Counter, Fault, Plan, faulty, learn, spec
from load.markdown import replace_block
from monitor.reference import Reference
from monitor.spec import ModelSpec

PLAN = Plan("iid", seed=11, per_hour=400, pane_ms=HOUR_MS // 2)
MODEL = spec(PLAN)


@pytest.fixture(scope="module")
def learnt() -> tuple[ModelSpec, Reference, Clean]:
    clean = Clean(PLAN)
    return MODEL, learn(MODEL, clean.days(3), PLAN), clean


def fired(learnt: tuple[ModelSpec, Reference, Clean], fault: Fault | None) -> Tally:
    """Twelve hours of the stream after its reference."""
    model, reference, clean = learnt
    clean = copy.deepcopy(clean)
    start_ms, draw = clean.now_ms, clean.draw(24)
    if fault is not None:
        draw = faulty(draw, fault, np.random.default_rng(1))
    watch, tally = Watch(model, reference), Tally(allowed=1.0)
    for i, vector in enumerate(Counter(reference.layout).vectors(draw)):
        for verdicts, changes in watch.take(start_ms + i * PLAN.pane_ms, vector):
            budget.note(tally, verdicts, changes)
    return tally


def test_a_fault_is_one_incident_with_the_sources_that_saw_it(
    learnt: tuple[ModelSpec, Reference, Clean],
) -> None:
    tally = fired(learnt, Fault("f03", shift=2.0))
    assert tally.fired == 1
    assert tally.breaches["psi"] >= 11
    assert {"psi", "ks"} & tally.founders.keys()


def test_an_incident_opens_with_the_window_that_shows_it(
    learnt: tuple[ModelSpec, Reference, Clean],
) -> None:
    model, reference, clean = learnt
    clean = copy.deepcopy(clean)
    start_ms, watch = clean.now_ms, Watch(model, reference)
    draw = faulty(clean.draw(2), Fault("f03", shift=2.0), np.random.default_rng(1))
    first, second = Counter(reference.layout).vectors(draw)
    assert [changes for _, changes in watch.take(start_ms, first)] == []
    ((verdicts, changes),) = watch.take(start_ms + PLAN.pane_ms, second)
    assert (verdicts.size_ms, [change.transition for change in changes]) == (HOUR_MS, ["fired"])


def test_only_the_opening_of_an_incident_is_counted(
    learnt: tuple[ModelSpec, Reference, Clean],
) -> None:
    model, reference, clean = learnt
    clean = copy.deepcopy(clean)
    start_ms, watch, tally = clean.now_ms, Watch(model, reference), Tally(allowed=1.0)
    struck = faulty(clean.draw(4), Fault("f03", shift=2.0), np.random.default_rng(1))
    transitions = []
    for draw in (struck, clean.draw(60)):
        for vector in Counter(reference.layout).vectors(draw):
            for verdicts, changes in watch.take(start_ms, vector):
                budget.note(tally, verdicts, changes)
                transitions += [change.transition for change in changes]
            start_ms += PLAN.pane_ms
    assert transitions.count("fired") == transitions.count("resolved") == 1
    assert tally.fired == 1


def test_broken_data_is_seen_in_the_panes(learnt: tuple[ModelSpec, Reference, Clean]) -> None:
    tally = fired(learnt, Fault("f00", missing=0.5))
    assert tally.breaches["panes"] > 1
    assert tally.breaches["rates"] > 1


def test_hours_without_a_fault_are_quiet(learnt: tuple[ModelSpec, Reference, Clean]) -> None:
    assert fired(learnt, None).fired == 0


def test_a_trial_allows_what_the_budget_allows_in_its_time() -> None:
    tally = run(Trial(Plan("iid", 1, per_hour=120, pane_ms=HOUR_MS), windows=36, budget=10.0))
    assert tally.allowed == pytest.approx(10 * 36 / 720)
    assert sum(tally.founders.values()) >= tally.fired


@pytest.mark.parametrize(
    ("fired", "allowed", "contradicts"),
    [
        (100, 100.0, False),
        (30, 100.0, False),  # on the bar
        (20, 100.0, False),  # below it, but a rate of 0.3 gives so few in 3 % of all runs
        (10, 100.0, True),
        (180, 100.0, False),
        (200, 100.0, True),
        (0, 10.0, False),  # too little was seen to say
        (0, 40.0, True),
    ],
)
def test_a_count_contradicts_the_bar_only_where_chance_cannot_explain_it(
    fired: int, allowed: float, contradicts: bool
) -> None:
    assert Rate(1, 1, allowed, fired, 0.0).contradicts(*BAR) is contradicts


def test_the_error_of_a_rate_is_the_spread_between_references_where_that_is_larger() -> None:
    todo = [Trial(Plan("iid", seed), 720, 1.0) for seed in range(4)]
    even = budget.rate(todo, [Tally(10.0, fired=10) for _ in todo])
    uneven = budget.rate(todo, [Tally(10.0, fired=n) for n in (0, 0, 0, 40)])
    assert (even.ratio, uneven.ratio) == (1.0, 1.0)
    assert even.error == pytest.approx(np.sqrt(40) / 40)
    assert uneven.error == pytest.approx(1.0)
    assert (even.windows, even.references) == (4 * 720, 4)


def test_the_table_has_a_row_for_each_kind_and_fits_the_readme() -> None:
    todo = trials(references=2, windows=720, budget=1.0, seed=5)
    tallies = [Tally(1.0, fired=1) for _ in todo]
    text, rates = report(todo, tallies, "heading")
    assert [(r.fired, r.allowed) for r in rates] == [(2, 2.0)] * 3
    rows = text.splitlines()[4:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(budget.NAMES.values())
    assert all(row.endswith("| 1.00 ± 1.41 |") for row in rows)
    page = replace_block("<!-- budget: x -->\nold\n<!-- /budget -->\n", "budget", text)
    assert text in page


def test_sources_are_counted_by_kind_of_stream() -> None:
    todo = trials(references=2, windows=720, budget=1.0, seed=5)
    seen = {"iid": ["psi"], "ar1": ["psi", "rates"], "season": []}
    tallies = [
        Tally(1.0, 1, Counts(seen[t.plan.kind] * 3), Counts(seen[t.plan.kind])) for t in todo
    ]
    rows = [row.strip("| ").split(" | ") for row in budget.by_source(todo, tallies).splitlines()]
    assert rows[0][1:] == ["psi", "rates"]
    assert [row[1:] for row in rows[2:]] == [["2 / 6", "0 / 0"], ["2 / 6", "2 / 6"], ["0 / 0", "0 / 0"]]  # fmt: skip
