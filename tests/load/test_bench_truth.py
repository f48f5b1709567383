from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from load import bench_truth


def test_windows_are_up_to_date_soon_and_right_in_both_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is right is asserted in there; flat is not to be expected of so little, on a machine that is shared."""
    file = tmp_path / "rows.json"
    bench_truth.main(["--scale", "0.005", "--millions", "2", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [(row["order"], row["stored"]) for row in rows] == [
        ("delayed", 5_000),
        ("delayed", 10_000),
        ("random", 10_000),
    ]
    assert sum(row["labels"] for row in rows) == 2 * 4_000
    for row in rows:
        assert 0 < row["age_p50_s"] <= row["age_max_s"] < bench_truth.BARS_S[row["order"]]
        assert row["evaluator_us"] > 0
        assert row["windows"] > 0
    assert "| delayed | 5,000 |" in capsys.readouterr().out


def test_the_check_sees_one_label_that_is_counted_twice() -> None:
    world = bench_truth.World(2_000, 1_000, seed=3)
    labels = bench_truth.delayed(world, 800, seed=3)
    rows = labels.rows
    wrong = (world.score(rows) >= 0.5) != (world.label(rows) == 1)
    said = {
        bench_truth.START_MS + hour * bench_truth.HOUR_MS: (
            1_000,
            int((rows // 1_000 == hour).sum()),
            int((wrong & (rows // 1_000 == hour)).sum()),
        )
        for hour in (0, 1)
    }
    bench_truth.check(world, labels, said)
    first = min(said)
    said[first] = (said[first][0], said[first][1] + 1, said[first][2])
    with pytest.raises(AssertionError, match="1 of 2 windows"):
        bench_truth.check(world, labels, said)


def test_labels_are_late_by_what_is_said_and_scores_are_calibrated() -> None:
    world = bench_truth.World(50_000, 16_667, seed=1)
    labels = bench_truth.delayed(world, 20_000, seed=1)
    late = labels.ts_ms - world.ts_ms(labels.rows)
    assert np.median(late) == pytest.approx(bench_truth.DELAY_MS, rel=0.05)
    assert (np.diff(labels.ts_ms) >= 0).all()
    every = np.arange(world.n)
    assert world.label(every).mean() == pytest.approx(world.score(every).mean(), abs=0.01)
    assert len(set(world.ids(every))) == world.n
    mixed = bench_truth.shuffled(world, 20_000, seed=1)
    assert sorted(mixed.rows) == sorted(labels.rows)
    assert (np.diff(mixed.ts_ms) < 0).mean() == pytest.approx(0.5, abs=0.02)


def test_a_bar_that_is_missed_is_said() -> None:
    slow = bench_truth.Phase("delayed", 10, 5, 1.0, 31.0, 10.0, 90.0, 200.0, 3)
    dear = bench_truth.Phase("delayed", 20, 5, 1.0, 2.0, 10.0, 120.0, 200.0, 3)
    assert len(bench_truth.missed([slow, dear])) == 2
    assert bench_truth.missed([dear]) == []
