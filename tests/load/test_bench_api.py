"""The API's benchmark: it asks a real API while the pipeline runs, and says when that is not good enough."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from load import bench_api
from load.bench_api import Found, main, report

GOOD = Found(210.0, 4.0, 120.0, 300.0, 12_600, 0, 500.0)


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_api_answers_while_the_pipeline_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower than the real one, as tests share their machine: the full run is ``python -m load.bench_api``."""
    if shutil.which("wrk") is None:
        pytest.skip("no wrk on PATH")
    monkeypatch.setattr(bench_api, "SPARE_MS", 500)
    told = tmp_path / "found.json"
    arguments = ["--rate", "30", "--bar", "2000", "--seconds", "10", "--events", "1000"]
    # Five requests decide on p99: a neighbour may hold them up once, and not twice.
    tries = (main([*arguments, "--json", str(told)]) for _ in range(2))
    assert 0 in tries, capsys.readouterr().out
    found = json.loads(told.read_text())
    assert found["requests"] >= 300
    assert found["failed"] == 0


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (GOOD, 0),
        (replace(GOOD, p99_ms=200.0), 1),
        (replace(GOOD, rate=199.0), 1),
        (replace(GOOD, failed=1), 1),
        (replace(GOOD, events_per_s=0.0), 1),
    ],
)
def test_what_is_slow_refused_or_idle_fails(
    found: Found, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_api, "measure", lambda *_: found)
    assert main([]) == code
    assert report(found) in capsys.readouterr().out
