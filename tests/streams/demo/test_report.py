"""The demo's report must not call a run good that was not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from monitor.errors import ConfigError
from monitor.ledger import Ledger, Stored
from monitor.settings import Settings
from monitor.wire import Delivery, Evidence, Incident, LedgerEntry
from streams.demo.receiver import Received
from streams.demo.replay import BAD_RELEASE, WIND_FAULT
from streams.demo.report import DAY_MS, HOUR_MS, STAGED, Report, build
from streams.demo.screen import closing
from streams.demo.show import demo_spec, parse_months, run
from tests.monitor.bookings import reconcile

EVENTS, LABELS = 1_000, 900


def ledger(events: int = EVENTS, stored: int = EVENTS) -> Ledger:
    entry = LedgerEntry(
        profiles_partition=0, offset=3, open=0, partition=0, start=0, end=events, events=events,
        dead=0, on_time=events, late=0, calibrating=0, jump=None,
    )  # fmt: skip
    return reconcile([entry], Stored(stored, 0), drained=True)


def incident(cause: str, feature: str, opened_ms: int, **changes: Any) -> Incident:
    line = Evidence("data_drift", "7", "", feature, "psi", 1.0, 0.1, opened_ms, opened_ms)
    made = Incident(
        id=f"{cause}-{opened_ms}", model="flight-delay", version="7", cause="unknown", advice="fix_data",
        severity="error", state="firing", title="what", reason="why", onset_ms=opened_ms,
        opened_ms=opened_ms, updated_ms=opened_ms, resolved_ms=None, revision=1, evidence=[line],
    )  # fmt: skip
    return replace(made, cause=cause, **changes)


def good() -> dict[str, Any]:
    return {
        "expected": EVENTS,
        "sent": EVENTS,
        "labels_sent": LABELS,
        "labels_joined": LABELS,
        "windows": 10,
        "ledger": ledger(),
        "incidents": [
            incident("pipeline_fault", "wind_speed", WIND_FAULT.from_ms + 2 * HOUR_MS),
            incident(
                "bad_release",
                "hour",
                BAD_RELEASE.from_ms + 10 * HOUR_MS,
                advice="rollback",
                rollback_to="7",
            ),
        ],
        "received": [Received(f"/{name}", "k", "s", None, 0) for name in ("slack", "pagerduty")],
        "deliveries": [Delivery("o", "i", "slack", "notify", "delivered", 1, 0)],
        "staged": STAGED,
        "seconds": 1.0,
    }


def made(**changes: Any) -> Report:
    return build(**{**good(), **changes})


def test_a_good_run_has_no_problem_and_says_how_long_each_accident_took() -> None:
    report = made()
    assert report.problems == []
    assert [found.delay_h for found in report.accidents] == [2.0, 10.0]
    assert report.events_in == report.events_accounted == EVENTS


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sent": 5}, "995 events were not sent"),
        ({"ledger": ledger(events=990, stored=990)}, "10 events are not in the ledger"),
        ({"ledger": ledger(stored=997)}, "3 events are unaccounted for"),
        ({"labels_joined": 899}, "1 labels are not joined"),
        ({"windows": 0}, "no window was closed"),
        ({"incidents": []}, "not found within an event-day"),
        ({"received": []}, "slack got nothing"),
        (
            {"incidents": [incident("drift", "temp", day * DAY_MS) for day in (1, 2)]},
            "2 incidents opened in 1970-01",
        ),
        (
            {"incidents": [incident("unknown", "temp", DAY_MS, state="resolved")]},
            "cause unknown: what",
        ),
        ({"received": [Received("/slack", "k", "s", "too long", 0)]}, "slack refused 1 requests"),
        ({"received": [Received("/slack", "k", "s", None, 1)]}, "slack got 1 requests again"),
        ({"deliveries": [Delivery("o", "i", "s", "notify", "expired", 9, 0)]}, "ended as expired"),
    ],
)
def test_whatever_is_missing_is_a_problem(changes: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in made(**changes).problems)


def test_seasons_may_come_once_a_month_and_be_explained_and_a_slow_server_is_no_season() -> None:
    slow = incident("unknown", "$latency_ms", 70 * DAY_MS, state="resolved")
    slow = replace(slow, evidence=[replace(slow.evidence[0], kind="service")])
    fine = [
        incident("benign_shift", "temp", DAY_MS, state="resolved"),
        incident("concept_drift", "temp", 40 * DAY_MS, state="resolved"),
        slow,
        incident("unknown", "temp", 100 * DAY_MS),  # its labels are still to come
    ]
    assert made(incidents=[*good()["incidents"], *fine]).problems == []


def test_an_incident_before_the_accident_or_of_another_feature_is_no_answer() -> None:
    early = incident("pipeline_fault", "wind_speed", WIND_FAULT.from_ms - 1)
    other = incident("pipeline_fault", "dewp", WIND_FAULT.from_ms + HOUR_MS)
    assert made(incidents=[early, other]).accidents[0].incident is None


def test_an_answer_after_more_than_a_day_is_late() -> None:
    late = incident("pipeline_fault", "wind_speed", WIND_FAULT.from_ms + 25 * HOUR_MS)
    assert not made(incidents=[late]).accidents[0].in_time


def test_the_closing_tables_show_the_accounts_the_accidents_and_the_problems() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(closing(made(labels_joined=899)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO of above
    assert "1,000" in shown
    assert "10 h" in shown
    assert "roll back to 7" in shown
    assert "1 labels are not joined" in shown


@pytest.mark.parametrize(
    ("text", "months"), [("2-12", tuple(range(2, 13))), ("5", (5,)), ("5,9-10", (5, 9, 10))]
)
def test_months_are_numbers_and_ranges(text: str, months: tuple[int, ...]) -> None:
    assert parse_months(text) == months


@pytest.mark.parametrize("text", ["", "x", "1", "13", "9-5", "2-99999999999", "-5"])
def test_other_months_are_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError, match="--months"):
        parse_months(text)


def test_a_report_that_cannot_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        run(Settings(), report=tmp_path / "missing" / "r.json")


def test_the_demo_names_its_secrets_by_reference_only() -> None:
    text = demo_spec().model_dump_json(exclude_none=True)
    assert "env:DEMO_SLACK" in text
    assert "http" not in text.replace("https://events.pagerduty.com", "")
