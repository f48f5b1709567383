"""The burst's benchmark: it counts what arrives, and says when that is not all or too late."""

from __future__ import annotations

import numpy as np
import pytest

from load import bench_alerts
from load.bench_alerts import Found, main, report


@pytest.mark.timeout(180)
def test_a_small_burst_arrives_once_and_is_timed(
    kafka: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--incidents", "10", "--bar", "60"]) == 0
    row = capsys.readouterr().out.strip().splitlines()[-1].split("|")
    assert [cell.strip() for cell in (row[1], *row[5:7])] == ["10", "0", "0"]


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Found(np.full(100, 0.5), 0, 0), 0),
        (Found(np.array([0.5] * 98 + [1.5] * 2), 0, 0), 1),
        (Found(np.full(99, 0.5), 1, 0), 1),
        (Found(np.full(100, 0.5), 0, 1), 1),
        (Found(np.array([]), 100, 0), 1),
    ],
)
def test_what_is_late_missing_or_repeated_fails(
    found: Found, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_alerts, "measure", lambda *_: found)
    assert main([]) == code


def test_nothing_is_reported_as_nothing() -> None:
    assert report(Found(np.array([]), 5, 0), 5) == "nothing arrived"
