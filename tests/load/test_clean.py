from __future__ import annotations

import numpy as np
import pytest

from load.clean import (
    DAY_MS,
    FEATURES,
    HOUR_MS,
    KINDS,
    START_MS,
    Clean,
    Counter,
    Draw,
    Fault,
    Kind,
    Plan,
    columns,
    faulty,
    learn,
    spec,
)
from monitor.binning import Floats, Ints
from monitor.counting import profile_groups
from monitor.profile import Layout


@pytest.fixture(scope="module")
def layout() -> Layout:
    plan = Plan("iid", seed=1, per_hour=60)
    return learn(spec(plan), Clean(plan).days(1), plan).layout


def counted_one_by_one(layout: Layout, draw: Draw, plan: Plan) -> Ints:
    """What the product counts in the raw values."""
    rows = columns(draw, plan, START_MS)
    pane = ((rows.ts_ms - START_MS) // plan.pane_ms).astype(np.intp)
    profiles = profile_groups(layout, rows.encode(layout), rows.errors, pane, len(draw.n))
    return np.array([profile.vector for profile in profiles])


def latent(kind: Kind, feature: int = 3, days: int = 20) -> tuple[Floats, Ints]:
    """Values of a normal feature in standard deviations, and the events of each pane."""
    draw = Clean(Plan(kind, seed=5, per_hour=600)).draw(days * 144)
    assert FEATURES[feature].shape == "normal"
    return (FEATURES[feature].values()[draw.atoms[feature]] - 10) / np.pi, draw.n


@pytest.mark.parametrize("kind", KINDS)
def test_tables_count_what_the_values_would(layout: Layout, kind: Kind) -> None:
    plan = Plan(kind, seed=2, per_hour=90)
    draw = Clean(plan).draw(144)
    counted = Counter(layout).vectors(draw)
    assert counted[:, 0].sum() == draw.n.sum() > 1_000
    np.testing.assert_array_equal(counted, counted_one_by_one(layout, draw, plan))


@pytest.mark.parametrize(
    "fault",
    [Fault("f03", shift=4.0), Fault("f09", new_category=0.1), Fault("f00", missing=0.2)],
    ids=lambda fault: fault.feature,
)
def test_tables_count_faults_as_the_values_would(layout: Layout, fault: Fault) -> None:
    plan = Plan("iid", seed=3, per_hour=300)
    calm = Clean(plan).draw(36)
    struck = faulty(calm, fault, np.random.default_rng(1))
    counted = Counter(layout).vectors(struck)
    np.testing.assert_array_equal(counted, counted_one_by_one(layout, struck, plan))
    here = layout.by_name[fault.feature]
    changed = (counted != Counter(layout).vectors(calm)).any(axis=0)
    assert changed.any()
    assert not changed[: here.start].any()
    assert not changed[here.moments.stop :].any()


def test_a_pane_without_events_counts_nothing(layout: Layout) -> None:
    calm = Clean(Plan("iid", seed=4, per_hour=6)).draw(144)
    assert (calm.n == 0).any()
    assert not Counter(layout).vectors(calm)[calm.n == 0].any()


def test_independent_values_are_standard_normal_and_forget_each_other() -> None:
    z, _ = latent("iid")
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert z.std() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 4 / np.sqrt(len(z))


def test_an_ar1_remembers_nine_tenths_of_the_value_before_it_also_across_draws() -> None:
    z, _ = latent("ar1")
    assert z.std() == pytest.approx(1, abs=0.03)
    assert np.corrcoef(z[1:], z[:-1])[0, 1] == pytest.approx(0.9, abs=0.01)
    clean = Clean(Plan("ar1", seed=6, per_hour=600))
    ends = [FEATURES[3].values()[clean.draw(1).atoms[3]] for _ in range(400)]
    last, first = [e[-1] for e in ends[:-1]], [e[0] for e in ends[1:]]
    assert np.corrcoef(last, first)[0, 1] > 0.85


def test_a_season_moves_mean_and_traffic_with_the_hour_and_repeats_every_day() -> None:
    z, n = latent("season")
    hours = np.repeat(np.arange(len(n)) // 6 % 24, n)
    mean = np.array([z[hours == hour].mean() for hour in range(24)])
    assert (mean.max() - mean.min()) / 2 == pytest.approx(0.5, abs=0.03)
    traffic = np.bincount(hours)
    assert traffic.max() / traffic.min() == pytest.approx(3, abs=0.3)


def test_the_same_plan_makes_the_same_stream_and_another_seed_another() -> None:
    first, again, other = (Clean(Plan("ar1", seed)).draw(6) for seed in (1, 1, 2))
    assert first.n.tolist() == again.n.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(first.atoms, again.atoms, strict=True))
    assert not np.array_equal(first.atoms[0], other.atoms[0])


def test_a_draw_goes_on_where_the_last_one_ended() -> None:
    clean = Clean(Plan("iid", seed=1))
    assert clean.now_ms == START_MS
    assert [len(day.n) for day in clean.days(2)] == [48, 48]
    clean.draw(2)
    assert clean.now_ms == START_MS + 2 * DAY_MS + HOUR_MS
