"""Latency: what is held against the bar, and small runs in which every pane and every key gets its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from load.latency import KEYS, Back, Load, bar_s, holds, latencies, percentile, recovery, report


def test_a_percentile_is_one_of_those_that_were_measured_and_not_below() -> None:
    assert percentile([float(i) for i in range(1, 101)], 99) == 100.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_the_bar_is_for_the_first_event_at_half_the_load() -> None:
    assert bar_s() == 1 + 5 + 3
    slow, quick = [9.1] * 3, [8.9] * 3
    loads = [Load(share, 10.0, quick, quick) for share in (0.1, 0.5, 0.9)]
    assert holds(loads)
    assert holds([*loads[:2], Load(0.9, 10.0, slow, slow)])
    assert not holds([loads[0], Load(0.5, 10.0, quick, slow), loads[2]])
    said = report(20.0, loads, Back(1_003, 1_003, 4.0, 6.0), "So:")
    assert "| 50% | 10 | 3 | 8.90 | 8.90 | 8.90 | 8.90 |" in said
    assert "the first verdict after 4.0 s, all after 6.0 s" in said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_pane_gets_its_verdicts_once_it_is_over(kafka: str, tmp_path: Path) -> None:
    """Too short to say how quick: the full run is ``python -m load.latency``."""
    name = f"latency-{tmp_path.name}"
    per_s, (found,) = latencies(tmp_path, kafka, name, seconds=9.5, saturate_s=2.0, shares=(0.1,))
    assert per_s > 0
    assert found.per_s == pytest.approx(0.1 * per_s, rel=0.2)
    assert len(found.since_last_s) == len(found.since_first_s) >= 4
    for last, first in zip(found.since_last_s, found.since_first_s, strict=True):
        assert 4.9 < last <= first  # the lateness has to pass
        assert first - last <= 1.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_detector_that_was_killed_says_what_it_held(kafka: str, tmp_path: Path) -> None:
    name = f"recovery-{tmp_path.name}"
    found = recovery(tmp_path, kafka, name, keys=KEYS, events=1_000)
    assert (found.keys, found.rows) == (KEYS, KEYS)
    assert 0 < found.first_s <= found.all_s
