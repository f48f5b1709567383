"""What a record costs its caller. The bars themselves are for a machine at rest; here calls are counted, and a bar can be missed."""

from __future__ import annotations

import pytest

from load import bench_record
from load.bench_record import CASES, P50_US, P99_US, Cost, measure


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_record_is_accounted_for_and_cheap(case: bench_record.Case) -> None:
    cost = measure(case, 2_000)
    assert (cost.sent, cost.dropped) == ((0, 2_000) if case.away else (2_000, 0))
    assert cost.p50_us < 10 * P50_US  # a wait, or a call to the broker's client, would cost more


@pytest.mark.parametrize(
    ("p50_us", "p99_us", "code"), [(1.0, 9.0, 0), (P50_US, 9.0, 1), (1.0, P99_US, 1)]
)
def test_a_missed_bar_fails(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    p50_us: float,
    p99_us: float,
    code: int,
) -> None:
    monkeypatch.setattr(bench_record, "measure", lambda *_: Cost(p50_us, p99_us, 30.0, 4_000, 0))
    assert bench_record.main(["--short"]) == code
    assert "| four threads |" in capsys.readouterr().out
