"""The decision table, row by row, and the words."""

from __future__ import annotations

import itertools

import pytest

from alerting.book import FAMILIES, Family
from alerting.diagnosis import TABLE, Performance, Summary, describe, diagnose
from monitor.wire import Evidence, VerdictKind
from tests.alerting.builders import DAY, MODEL, START


def evidence(
    kind: VerdictKind = "data_drift",
    feature: str = "temp",
    statistic: str = "psi",
    value: float | None = 0.5,
    limit: float | None = 0.1,
    segment: str = "",
    version: str = "8",
) -> Evidence:
    return Evidence(kind, version, segment, feature, statistic, value, limit, START, START + DAY)


def summary(
    family: Family,
    *shown: Evidence,
    moved: bool = False,
    performance: Performance = "unknown",
    rollback_to: str | None = None,
) -> Summary:
    return Summary(family, MODEL, moved, performance, rollback_to, START, shown or (evidence(),))


@pytest.mark.parametrize(
    ("case", "cause", "advice", "severity"),
    [
        (summary("outage"), "outage", "page", "critical"),
        (summary("quality"), "pipeline_fault", "fix_data", "error"),
        (
            summary("quality", moved=True, performance="falls"),
            "pipeline_fault",
            "fix_data",
            "error",
        ),
        (summary("release", rollback_to="7"), "bad_release", "rollback", "critical"),
        (summary("release"), "unknown", "investigate", "warning"),
        (summary("drift", moved=True, performance="falls"), "drift", "retrain", "error"),
        (summary("drift", performance="falls"), "concept_drift", "retrain", "error"),
        (summary("drift", moved=True, performance="holds"), "benign_shift", "watch", "info"),
        (summary("drift", moved=True), "unknown", "investigate", "warning"),
        (summary("drift", performance="holds"), "unknown", "investigate", "warning"),
        (summary("service"), "unknown", "investigate", "warning"),
    ],
)
def test_each_row_decides_its_evidence(
    case: Summary, cause: str, advice: str, severity: str
) -> None:
    found = diagnose(case)
    assert (found.cause, found.advice, found.severity) == (cause, advice, severity)


def test_no_evidence_fits_two_rows_and_retrain_is_never_advised_on_faults() -> None:
    performances: tuple[Performance, ...] = ("falls", "holds", "unknown")
    for family, moved, performance, target in itertools.product(
        FAMILIES, (True, False), performances, ("7", None)
    ):
        case = summary(family, moved=moved, performance=performance, rollback_to=target)
        assert sum(row.fits(case) for row in TABLE) <= 1
        assert ("retrain mends" in diagnose(case).reason) == (family == "service")
        found = diagnose(case)
        assert found.title
        assert found.reason
        assert "{" not in found.reason + found.title
        if found.advice == "retrain":
            assert family == "drift"
        if found.advice == "rollback":
            assert case.rollback_to is not None


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (
            evidence("data_quality", "wind_speed", "off_grid", 0.97, 0.01, "origin=EWR", "7"),
            "wind_speed of flight-delay 7 at origin=EWR: 97 % of values are not on the reference's"
            " grid since 13 May 00:00 (limit 1 %)",
        ),
        (
            evidence("data_quality", "dewp", "missing", 0.034, 0.005),
            "dewp of flight-delay 8: 3.4 % of values are missing since 13 May 00:00 (limit 0.5 %)",
        ),
        (
            evidence(),
            "temp of flight-delay 8 has moved away from the reference: psi 0.5 since 13 May 00:00"
            " (limit 0.1)",
        ),
        (
            evidence("performance", "$prediction", "accuracy", 0.71, 0.8),
            "flight-delay 8 has got worse: accuracy 0.71 since 13 May 00:00 (limit 0.8)",
        ),
        (
            evidence("prediction_drift", "$score", "adwin", 0.3, None, "", "7"),
            "the score of flight-delay 7 has moved away from the reference (adwin) since 13 May 00:00",
        ),
        (
            evidence("service", "$latency_ms", "ks", 0.3, 0.1),
            "the latency of flight-delay 8 has changed: ks 0.3 since 13 May 00:00 (limit 0.1)",
        ),
        (
            evidence("service", "", "request_error_rate", 0.125, 0.021),
            "flight-delay 8: 12 % of requests end with an error since 13 May 00:00 (limit 2.1 %)",
        ),
        (
            evidence("service", "", "requests", 12.34, 50.0),
            "flight-delay 8 has changed: requests 12.3 since 13 May 00:00 (limit 50)",
        ),
        (
            evidence("no_data", "", "silence", None, None),
            "flight-delay 8 gives no data (silence) since 13 May 00:00",
        ),
    ],
)
def test_a_title_says_what_where_how_much_and_since_when(shown: Evidence, text: str) -> None:
    assert diagnose(summary("drift", shown)).title == text


def test_a_title_leads_with_the_strongest_feature_and_counts_the_others() -> None:
    found = diagnose(summary("quality", evidence(), *[evidence(feature=f"f{i}") for i in range(5)]))
    assert found.title.startswith("temp (and 5 more) of flight-delay 8")
    assert "Fix the source of temp, f0, f1 and 3 more;" in found.reason


def test_evidence_is_described_in_words() -> None:
    assert describe(evidence()) == "has moved away from the reference: psi 0.5 (limit 0.1)"
