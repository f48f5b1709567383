"""When a worker gives up."""

from __future__ import annotations

import pytest

from streams.liveness import Lease, StallClock


@pytest.mark.parametrize(
    ("progress", "work", "stalled_at"),
    [
        pytest.param("aaaaaaaa", "wwwwwwww", 3, id="work, and nothing moves"),
        pytest.param("abcdefgh", "wwwwwwww", None, id="a long recovery that moves"),
        pytest.param("aaaaaaaa", "........", None, id="nothing to do"),
        pytest.param("aaaaaaaa", "www.wwww", 7, id="idle in between: the clock starts anew"),
        pytest.param("aaabbbbb", "wwwwwwww", 6, id="moves once, then stops"),
        pytest.param("aaaaaaaa", ".......w", None, id="the first message after a long silence"),
    ],
)
def test_a_stall_is_work_without_progress_for_the_whole_limit(
    progress: str, work: str, stalled_at: int | None
) -> None:
    clock = StallClock(3.0)
    observations = [
        clock.stalled(float(second), moved, work=todo == "w")
        for second, (moved, todo) in enumerate(zip(progress, work, strict=True))
    ]
    assert (observations.index(True) if True in observations else None) == stalled_at


@pytest.mark.parametrize(("away_s", "ended"), [(3.9, False), (4.1, True)])
def test_a_process_that_was_away_longer_than_its_session_ends_before_it_writes(
    away_s: float, ended: bool
) -> None:
    now, reasons = [100.0], list[str]()
    lease = Lease(4.0, reasons.append, monotonic=lambda: now[0])
    now[0] += away_s
    lease.check()
    assert bool(reasons) is ended
