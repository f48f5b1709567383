"""The bad receiver: half of the calls fail, none for ever, and it remembers what it took in."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from load.chaos import receiver as receivers
from load.chaos.receiver import IN_A_ROW, Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(receivers, "SLOW_S", 0.1)
    with Receiver(np.random.default_rng(1)) as server:
        yield server


def answers(receiver: Receiver, path: str, calls: int) -> list[int | None]:
    """Statuses of ``calls`` calls of one message; ``None``: the connection was reset."""
    found: list[int | None] = []
    with httpx.Client(trust_env=False, timeout=5) as client:
        for _ in range(calls):
            try:
                headers = {"webhook-id": "one"}
                found.append(
                    client.post(receiver.url(path), headers=headers, content=b"{}").status_code
                )
            except httpx.HTTPError:
                found.append(None)
    return found


def test_calls_fail_in_every_way_but_never_for_ever(receiver: Receiver) -> None:
    found = answers(receiver, "storm/notify", 80)
    calls = receiver.calls("storm")
    assert {call.answer for call in calls} == {"ok", "error", "throttle", "reset", "lost", "slow"}
    assert {None, 200, 429, 500} == set(found)
    failed = "".join("." if call.answer == "ok" else "x" for call in calls)
    assert 0.3 < failed.count("x") / len(failed) < 0.7
    assert "x" * (IN_A_ROW + 1) not in failed


def test_what_was_lost_on_the_way_back_was_taken_in(receiver: Receiver) -> None:
    found = answers(receiver, "storm/notify", 40)
    calls = receiver.calls("storm")
    for call, status in zip(calls, found, strict=True):
        assert (status == 200) == (call.answer in ("ok", "slow"))
        assert call.taken == (call.answer in ("ok", "slow", "lost"))


def test_the_undisturbed_run_is_never_refused(receiver: Receiver) -> None:
    assert answers(receiver, "calm/notify", 30) == [200] * 30
