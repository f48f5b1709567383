"""The rules of the table of detectors, on alarms by hand; and a short form of the table."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from river import drift

from load.detection import (
    KSWIN,
    OURS,
    ROWS,
    TWO_SIDED,
    River,
    Row,
    Score,
    alarms_of,
    by_stream,
    caption,
    main,
    mean_f1,
    misses,
    run,
    score,
    scored,
    summary,
)
from load.error_streams import KINDS, SOURCES, Plan, Source, error_stream_of

ABRUPT = [(10_000, 10_000), (20_000, 20_000)]
GRADUAL = [(10_000, 12_000), (20_000, 22_000)]
SHORT = [Plan("STAGGER", kind, seed=1, drifts=8, spacing=5_000) for kind in KINDS]


@pytest.mark.parametrize(
    ("episodes", "alarms", "found", "false", "delay", "f1"),
    [
        pytest.param(ABRUPT, [], 0, 0, math.nan, 0.0, id="silence finds nothing"),
        pytest.param(ABRUPT, [10_000, 20_000], 2, 0, 0, 1.0, id="an alarm at the start"),
        pytest.param(ABRUPT, [11_000, 20_500], 2, 0, 750, 1.0, id="an alarm at the last moment"),
        pytest.param(ABRUPT, [11_001], 0, 1, math.nan, 0.0, id="an alarm too late is false"),
        pytest.param(ABRUPT, [9_999], 0, 1, math.nan, 0.0, id="an alarm too early is false"),
        pytest.param(
            ABRUPT, [10_100, 10_200, 10_900], 1, 0, 100, 2 / 3, id="more count neither way"
        ),
        pytest.param(ABRUPT, [5, 10_100, 15_000], 1, 2, 100, 2 / 5, id="each false one counts"),
        pytest.param(GRADUAL, [12_500, 20_001], 2, 0, 1_250.5, 1.0, id="until after a drift's end"),
        pytest.param(GRADUAL, [13_001], 0, 1, math.nan, 0.0, id="and no longer"),
        pytest.param(ABRUPT, range(30_000), 2, 30_000 - 2 * 1_001, 0, 4 / 28_002, id="always"),
    ],
)
def test_a_drift_is_found_once_and_every_alarm_outside_is_false(
    episodes: list[tuple[int, int]],
    alarms: list[int],
    found: int,
    false: int,
    delay: float,
    f1: float,
) -> None:
    worth = score(alarms, episodes)
    assert (worth.drifts, worth.found, worth.false) == (2, found, false)
    assert worth.delay == pytest.approx(delay, nan_ok=True)
    assert worth.f1 == pytest.approx(f1)
    assert worth.recall == found / 2


def test_a_plan_says_where_its_drifts_are() -> None:
    plans = [Plan("SEA", kind, seed=1) for kind in KINDS]
    assert [plan.length for plan in plans] == [310_000, 310_000]
    assert [len(plan.episodes) for plan in plans] == [30, 30]
    assert plans[0].episodes[-1] == (300_000, 300_000)
    assert plans[1].episodes[0] == (10_000, 12_000)


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_is_its_plan_and_nothing_else(source: Source, tmp_path: Path) -> None:
    plan = Plan(source, "gradual", seed=3, drifts=1, spacing=300, width=100)
    made = error_stream_of(plan, tmp_path / "one")
    assert made.tolist() == error_stream_of(plan, tmp_path / "one").tolist()
    assert made.tolist() == error_stream_of(plan, tmp_path / "other").tolist()
    assert len(made) == 600
    assert set(made.tolist()) <= {0, 1}
    assert [file.name for file in (tmp_path / "one").iterdir()] == [f"{plan.name}.npz"]


def test_a_drift_in_the_concept_is_a_rise_of_the_errors_when_the_plan_says(kept: Path) -> None:
    errors = error_stream_of(SHORT[0], kept)
    (start, _), *_ = SHORT[0].episodes
    assert errors[start - 1_000 : start].mean() < 0.05
    assert errors[start : start + 200].mean() > 0.2


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


def test_on_a_short_table_ours_beats_the_two_sided_window_by_more_than_the_lead(kept: Path) -> None:
    rows = (OURS, TWO_SIDED, *ROWS[-2:])
    scores = scored(rows, SHORT, kept)
    assert misses(scores, rows) == []
    for kind in KINDS:
        assert mean_f1(scores, OURS.name, kind) > 0.8
        assert mean_f1(scores, "never fires", kind) == 0
    printed = summary(scores, rows, {OURS.name: 3.25}).splitlines()
    assert printed[2].startswith("| Driftline | 3.2 |")
    assert "16 drifts" not in caption(date(2026, 1, 2), "x", [1], SHORT)
    assert "8 drifts each" in caption(date(2026, 1, 2), "x", [1], SHORT)
    assert [line.split(" | ")[0] for line in by_stream(scores, rows).splitlines()[2:]] == [
        "| STAGGER, abrupt",
        "| STAGGER, gradual",
    ]


def test_a_lead_too_small_and_too_many_false_alarms_are_said() -> None:
    rows = (OURS, TWO_SIDED)
    good, near = Score(30, 20, 5, 100.0), Score(30, 20, 6, 100.0)
    scores = {(row.name, plan): good if row.ours else near for row in rows for plan in SHORT}
    said = misses(scores, rows)
    assert [line.split(":")[0] for line in said] == ["abrupt", "gradual", "abrupt"]
    assert "5.0 false alarms" in said[-1]


def test_what_a_river_detector_found_is_kept_and_ours_is_asked_anew(tmp_path: Path) -> None:
    plan = Plan("STAGGER", "abrupt", seed=2, drifts=1, spacing=500)
    errors = error_stream_of(plan, tmp_path)
    silent = Row(TWO_SIDED.name, ROWS[-1].make)
    fired = alarms_of(TWO_SIDED, plan, errors, tmp_path)
    assert len(fired) > 0
    assert alarms_of(silent, plan, errors, tmp_path).tolist() == fired.tolist()
    assert len(alarms_of(Row(OURS.name, ROWS[-1].make, ours=True), plan, errors, tmp_path)) == 0


def test_kswin_tests_by_counts_as_it_tests_by_samples(tmp_path: Path) -> None:
    plan = Plan("STAGGER", "abrupt", seed=2, drifts=2, spacing=400)
    errors = error_stream_of(plan, tmp_path)
    fired = run(KSWIN.make(), errors)
    assert len(fired) > 0
    assert alarms_of(KSWIN, plan, errors, tmp_path).tolist() == fired.tolist()


def test_rises_only_is_the_two_sided_window_without_its_falls() -> None:
    rng = np.random.default_rng(1)
    rates = np.repeat([0.1, 0.4, 0.1], 1_000)
    errors = (rng.random(3_000) < rates).astype(np.uint8)
    both, rises = (run(River(drift.ADWIN, rises_only=only), errors) for only in (False, True))
    assert [at // 1_000 for at in both] == [1, 2]
    assert rises.tolist() == both.tolist()[:1]


def test_the_streams_that_ours_was_set_on_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "101"])
    assert "choose others" in capsys.readouterr().err
