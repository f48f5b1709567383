"""The plan of faults and what is read from samples: pure, so without a broker."""

from __future__ import annotations

import numpy as np
import pytest

from load.chaos.faults import KINDS, ON_PROCESSES, ROLES, SERVER, Fault, Struck, plan
from load.chaos.progress import Sample, longest_gap, recoveries

PROCESSES = {
    "profiler-0": "profiler",
    "profiler-1": "profiler",
    "detector-0": "detector",
    "detector-1": "detector",
    "sink": "sink",
    "dispatcher": "dispatcher",
}


def planned(seed: int, count: int) -> list[Fault]:
    return plan(np.random.default_rng(seed), count, PROCESSES, session_s=6, database_s=60)


@pytest.mark.parametrize("seed", range(20))
def test_forty_faults_strike_every_kind_of_process_in_every_way(seed: int) -> None:
    struck = {
        (fault.kind, PROCESSES.get(fault.target, fault.target)) for fault in planned(seed, 40)
    }
    assert struck >= {(kind, role) for kind in ON_PROCESSES for role in ROLES} | set(SERVER.items())


@pytest.mark.parametrize("seed", range(20))
def test_twelve_faults_are_of_every_kind(seed: int) -> None:
    assert {fault.kind for fault in planned(seed, 12)} == set(KINDS)


def test_a_seed_gives_the_same_faults_again_and_another_seed_others() -> None:
    assert planned(7, 40) == planned(7, 40)
    assert planned(7, 40) != planned(8, 40)


def test_faults_are_in_order_inside_the_feed_and_a_freeze_outlasts_the_session() -> None:
    faults = planned(3, 40)
    places = [fault.at for fault in faults]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] < 1
    assert all(fault.last_s > 6 for fault in faults if fault.kind == "freeze")


def test_no_faults_are_an_empty_plan() -> None:
    assert planned(1, 0) == []


def timeline(committed: list[tuple[int, int]], *, end: int) -> list[Sample]:
    """A sample a second of a detector group with two partitions of profiles."""
    places = [("profiles", 0), ("profiles", 1)]
    return [
        Sample(
            float(at),
            {
                "detector": {
                    **dict(zip(places, offsets, strict=True)),
                    ("verdicts", 0): sum(offsets),
                }
            },
            {**dict.fromkeys(places, end), ("verdicts", 0): sum(offsets)},
        )
        for at, offsets in enumerate(committed)
    ]


def test_a_recovery_lasts_until_every_partition_has_moved_on() -> None:
    samples = timeline([(0, 0), (5, 5), (6, 5), (7, 5), (7, 9)], end=100)
    (found,) = recoveries(samples, [Struck(Fault(0.5, "kill", "detector-1"), 1.0, 1.0)])
    assert (found.kind, found.target) == ("kill", "detector")
    assert found.committed_s == 3.0
    assert found.verdict_s == 1.0


def test_nothing_after_a_fault_is_no_recovery() -> None:
    samples = timeline([(0, 0), (5, 5), (5, 5)], end=100)
    (found,) = recoveries(samples, [Struck(Fault(0.5, "kill", "detector-1"), 1.0, 1.0)])
    assert found.committed_s is None


def test_a_gap_is_time_with_lag_and_without_progress() -> None:
    stuck = [(0, 0), (5, 5), (5, 5), (5, 5), (5, 5), (9, 9)]
    assert longest_gap(timeline(stuck, end=100), "detector") == 3.0
    assert longest_gap(timeline(stuck, end=6), "detector") == 0.0  # there was nothing to do
