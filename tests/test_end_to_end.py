"""The whole way of a prediction, through real processes: on the embedded stack and on Apache Kafka."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MONTHS = "5,9"  # the months of the two staged accidents
FLIGHTS, ARRIVED = 28_796 + 27_574, 28_128 + 27_010  # of May and September, from the data set


@contextmanager
def nothing_left_behind() -> Iterator[dict[str, str]]:
    """An environment for a run; afterwards no process with this environment may live."""
    mark = f"mark-{uuid.uuid4()}"
    yield {**os.environ, "END_TO_END_MARK": mark}
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in _environ(path)]
    assert left == []


def _environ(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""  # it ended, or belongs to somebody else


def check(report: dict[str, Any]) -> None:
    assert report["problems"] == []
    assert report["events_in"] == report["events_accounted"] == FLIGHTS
    assert report["unaccounted"] == 0
    assert report["labels_joined"] == ARRIVED
    assert report["windows"] > 0
    wind, release = report["accidents"]
    assert wind["advice"] == "fix_data"
    assert wind["delay_h"] <= 24
    assert release["advice"] == "rollback"
    assert release["delay_h"] <= 24
    by_id = {incident["id"]: incident for incident in report["incidents"]}
    assert by_id[wind["incident"]]["retrain_blocked"]
    assert by_id[release["incident"]]["rollback_to"] == "7"
    assert {hook["receiver"] for hook in report["webhooks"]} >= {"slack", "pagerduty", "rollback"}
    for hook in report["webhooks"]:
        assert hook["accepted"] > 0
        assert hook["refused"] == hook["repeats"] == 0


@pytest.mark.embedded
@pytest.mark.timeout(400)
def test_make_demo_finds_both_accidents_and_accounts_for_every_event(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    arguments = f"--headless --months {MONTHS} --json '{file}'"
    with nothing_left_behind() as environ:
        done = subprocess.run(
            ["make", "demo", f"ARGS={arguments}"],
            cwd=ROOT,
            env={**environ, "DRIFTLINE_EMBEDDED__DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    check(json.loads(file.read_text()))


@pytest.mark.timeout(400)
def test_the_demo_finds_the_same_on_apache_kafka(tmp_path: Path, kafka: str) -> None:
    file = tmp_path / "r.json"
    arguments = ["--headless", "--months", MONTHS, "--json", str(file), "--broker", kafka]
    with nothing_left_behind() as environ:
        done = subprocess.run(
            [sys.executable, "-m", "streams", "demo", *arguments],
            cwd=ROOT,
            env={**environ, "DRIFTLINE_EMBEDDED__DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    check(json.loads(file.read_text()))
