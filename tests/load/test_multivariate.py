"""The benchmark of the multivariate statistic prints what it says, and its clean data are clean."""

from __future__ import annotations

import numpy as np
import pytest

from load.multivariate import (
    ALPHAS,
    BLOCK,
    PHI,
    Pool,
    Series,
    Size,
    correlated,
    cost,
    level_table,
    report,
    shifted,
    unbiased,
)
from monitor.fourier import FourierSum
from monitor.mmd import mmd2

TINY = Size(pools=1, blocks=500, level_trials=100, power_trials=1, windows=(50,))


def test_a_series_has_unit_variance_and_remembers_across_calls() -> None:
    series = Series(2, PHI, np.random.default_rng(1))
    values = np.concatenate([series.take(n) for n in (1, 10, 40_000)])
    assert values.std() == pytest.approx(1.0, rel=0.05)
    assert np.mean(values[:-1, 0] * values[1:, 0]) == pytest.approx(PHI, abs=0.05)
    calm = Series(2, 0.0, np.random.default_rng(1)).take(10_000)
    assert abs(float(np.mean(calm[:-1, 0] * calm[1:, 0]))) < 0.05


def test_changes_are_what_they_are_called() -> None:
    rng = np.random.default_rng(2)
    x = correlated(4, 0.5)(rng, 20_000)
    assert np.mean(x[:, 0] * x[:, 1]) == pytest.approx(0.5, abs=0.03)
    assert x.std(axis=0) == pytest.approx(np.ones(4), abs=0.03)
    y = shifted(4, 2, 0.5)(rng, 20_000)
    assert y.mean(axis=0) == pytest.approx([0.5, 0.5, 0, 0], abs=0.03)


def test_many_windows_at_once_are_judged_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    pool = Pool.of(3, 200, rng)
    reference = FourierSum(100 * BLOCK, pool.draw(100 * BLOCK, rng)[0].sum(axis=0))
    windows = pool.draw(2 * BLOCK, rng, 5).sum(axis=1)
    each = [mmd2(FourierSum(2 * BLOCK, window), reference) for window in windows]
    assert unbiased(reference, 2 * BLOCK, windows) == pytest.approx(each, abs=1e-9)


def test_blocks_of_a_series_stay_in_order() -> None:
    pool = Pool.of(2, 200, np.random.default_rng(4), phi=PHI)
    drawn = pool.draw(3 * BLOCK, np.random.default_rng(5), 4)
    places = [np.flatnonzero((pool.sums == window[0]).all(axis=1))[0] for window in drawn]
    for at, window in zip(places, drawn, strict=True):
        assert np.array_equal(pool.sums[at : at + 3], window)


def test_the_level_table_has_a_row_per_stream_and_size_and_a_rate_per_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("load.multivariate.STREAMS", ((0.0, 2), (PHI, 2)))
    lines = level_table(TINY, 1).splitlines()
    assert len(lines) == 2 + 2 * len(TINY.windows)
    assert all(len(line.split("|")) == 5 + len(ALPHAS) for line in lines)


def test_the_cost_is_measured_with_the_clock_that_is_given() -> None:
    ticks = iter(range(100))
    took = cost(2, np.random.default_rng(6), lambda: float(next(ticks)))
    assert took == pytest.approx(1e6 / 4_096)


def test_the_report_says_when_how_and_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load.multivariate.level_table", lambda *_: "LEVEL")
    monkeypatch.setattr("load.multivariate.power_table", lambda *_: "POWER")
    monkeypatch.setattr("load.multivariate.cost_table", lambda *_: "COST")
    text = report(TINY, 9, "2026-11-22", "python -m load.multivariate")
    for part in ("2026-11-22", "`python -m load.multivariate`", "seed 9", "100 windows", "LEVEL", "POWER", "COST"):  # fmt: skip
        assert part in text
