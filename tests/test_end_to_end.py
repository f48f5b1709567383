"""The whole way of a prediction, through real processes: on the embedded stack and on Apache Kafka."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from tests.browser.window import DESK, chromium, show

ROOT = Path(__file__).parents[1]
# Flights of May and September, and how many of them arrived, from the data set. A month has one of the two staged accidents.
FLIGHTS = {5: 28_796, 9: 27_574}
ARRIVED = {5: 28_128, 9: 27_010}


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


def check(report: dict[str, Any], *months: int) -> None:
    assert report["problems"] == []
    assert report["events_in"] == report["events_accounted"] == sum(FLIGHTS[m] for m in months)
    assert report["unaccounted"] == 0
    assert report["labels_joined"] == sum(ARRIVED[m] for m in months)
    assert report["windows"] > 0
    found = dict(zip(months, report["accidents"], strict=True))
    assert all(accident["delay_h"] <= 24 for accident in found.values())
    by_id = {incident["id"]: incident for incident in report["incidents"]}
    if 5 in months:
        assert found[5]["advice"] == "fix_data"
        assert by_id[found[5]["incident"]]["retrain_blocked"]
    assert found[9]["advice"] == "rollback"
    assert by_id[found[9]["incident"]]["rollback_to"] == "7"
    assert {hook["receiver"] for hook in report["webhooks"]} >= {"slack", "pagerduty", "rollback"}
    for hook in report["webhooks"]:
        assert hook["accepted"] > 0
        assert hook["refused"] == hook["repeats"] == 0


def look(address: str, report: dict[str, Any]) -> None:
    """What a browser shows of the demo: every view, and the story of the bad release."""
    _, release = report["accidents"]
    views = {
        "": ["Models", "flight-delay"],
        "#/models/flight-delay": ["Drift by feature and time", "Version 7.", "version 8", "hour", "Performance", "Traffic", "Latency", "Errors", "Incidents so far"],
        "#/models/flight-delay/features/hour?version=8": ["hour", "beside the reference", "Statistic and limit over time", "What was judged"],
        "#/incidents": ["Bad release", "Roll back to version 7", "Pipeline fault"],
        f"#/incidents/{release['incident']}": ["hour", "Bad release", "Roll back to version 7", "Evidence", "when it was found", "Timeline", "Deliveries", "delivered"],
        "#/pipeline": ["Ledger", "56,370", "Deliveries", "Freshness"],
    }  # fmt: skip
    with chromium() as browser:
        for place, expected in views.items():
            show(browser, f"{address}{place}", DESK)
            words = browser.find_element(By.ID, "main").text
            missing = [text for text in expected if text not in words]
            assert missing == [], f"{place}: {words}"
        assert list(browser.get_log("browser")) == []  # type: ignore[no-untyped-call]  # of selenium


@pytest.mark.embedded
@pytest.mark.timeout(400)
def test_make_demo_finds_both_accidents_accounts_for_every_event_and_shows_them(
    tmp_path: Path,
) -> None:
    file, said = tmp_path / "r.json", tmp_path / "said"
    arguments = f"--headless --keep --months 5,9 --json '{file}'"
    with nothing_left_behind() as environ, said.open("wb") as out:
        demo = subprocess.Popen(
            ["make", "demo", f"ARGS={arguments}"],
            cwd=ROOT,
            env={**environ, "DRIFTLINE_EMBEDDED__DATA_DIR": str(tmp_path / "data")},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while (up := re.search(r"Still up: (\S+/);", said.read_text())) is None:
                assert demo.poll() is None, said.read_text()
                time.sleep(0.5)
            report = json.loads(file.read_text())
            check(report, 5, 9)
            look(up[1], report)
        finally:
            os.killpg(demo.pid, signal.SIGINT)  # as Ctrl-C does
            demo.wait(60)
    # A make that was called by another ends itself by the signal.
    assert demo.returncode in (0, -signal.SIGINT), said.read_text()
    assert "Traceback" not in said.read_text()


@pytest.mark.timeout(400)
def test_the_demo_finds_the_bad_release_on_apache_kafka_too(tmp_path: Path, kafka: str) -> None:
    file = tmp_path / "r.json"
    arguments = ["--headless", "--months", "9", "--json", str(file), "--broker", kafka]
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
    check(json.loads(file.read_text()), 9)
