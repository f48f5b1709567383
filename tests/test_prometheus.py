"""The rules of Prometheus, tried by its own tool: each alert fires when it should, not before, and not when all is well."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.prometheus import exported, needs_prometheus, promtool

ROOT: Final = Path(__file__).parent.parent
RULES: Final = ROOT / "grafana" / "prometheus" / "rules.yml"
PROCESSES: Final = ("profiler", "detector", "sink", "evaluator", "dispatcher", "api")
UP: Final = 'up{job="driftline",process="%s"}'


def groups() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


ALERTS: Final = {r["alert"]: r for group in groups() for r in group["rules"] if "alert" in r}
RECORDED: Final = {r["record"]: r for group in groups() for r in group["rules"] if "record" in r}


@dataclass(frozen=True)
class Case:
    """What is scraped, a value a minute in promtool's notation; until when the alert is silent, from when it fires, and what it then says."""

    alert: str
    series: dict[str, str]
    quiet: str
    fires: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)
    over: str = ""  # when it is silent again, where the series end well


def ours(name: str, process: str, **labels: str) -> str:
    pairs = {"job": "driftline", "process": process, **labels}
    inside = ",".join(f'{key}="{value}"' for key, value in pairs.items())
    return f"{name}{{{inside}}}"


def driftline(name: str, process: str, **labels: str) -> str:
    return ours(f"driftline_{name}", process, **labels)


SINK: Final = {"job": "driftline", "process": "sink"}
API: Final = {"job": "driftline", "process": "api"}
CASES: Final = [
    Case(
        "DriftlineProcessDown",
        {UP % "sink": "1x5 0x5 1x9"},
        "7m",
        "9m",
        "sink does not answer",
        SINK,
        over="12m",
    ),
    Case(
        "DriftlineRestarts",
        {ours("process_start_time_seconds", "sink"): "0x5 100x2 300x2 500x2 700x60"},
        "14m",
        "16m",
        "sink started 4 times in half an hour",
        SINK,
        over="50m",
    ),
    Case(
        "DriftlineStalled",
        {driftline("last_progress_timestamp_seconds", "sink"): "0+60x5 300x20 1600+60x5"},
        "11m",
        "14m",
        "sink has finished nothing for 9m 0s",
        SINK,
        over="27m",
    ),
    Case(
        "DriftlineDependencyAway",
        {driftline("transient_errors_total", "sink"): "0x10 0+1x30 30x60"},
        "24m",
        "35m",
        "sink waits for a broker or a database",
        {"process": "sink"},
        over="50m",
    ),
    Case(
        "DriftlineFallsBehind",
        # Level at the end: the rule that records and the one that reads are of two groups, and either may come first.
        {driftline("consumer_lag_messages", "sink", topic="t", partition="0"): "0+500x38 19000x22"},
        "30m",
        "40m",
        "sink is 19k messages of t behind, and more by the minute",
        {"process": "sink", "topic": "t"},
    ),
    Case(
        "DriftlineReleasesDiffer",
        {
            driftline("build_info", "sink", version="1"): "1x90",
            driftline("build_info", "api", version="2"): "_x9 1x70",
        },
        "60m",
        "75m",
        "2 releases of Driftline run side by side",
    ),
    Case(
        "DriftlineEventsUnaccounted",
        {driftline("unaccounted_events", "api"): "0x5 3x20 0x5"},
        "14m",
        "17m",
        "3 events are neither in a window nor late nor dead-lettered",
        API,
        over="28m",
    ),
    Case(
        "DriftlineLedgerUnknown",
        {driftline("unaccounted_events", "api"): "0x5 stale _x30"},
        "20m",
        "22m",
        "Nobody knows whether events are lost",
    ),
    Case(
        "DriftlineJumped",
        {driftline("hole_offsets", "api"): "7x60 27x60"},
        "59m",
        "90m",
        "20 offsets of predictions were passed over unread",
        API,
    ),
    Case(
        "DriftlineHole",
        {driftline("chain_holes_total", "sink"): "0x20 1x20"},
        "20m",
        "22m",
        "Events are lost: a gap between profiler and detector was booked as a hole",
        SINK,
        over="38m",
    ),
    Case(
        "DriftlineWatermarkStuck",
        {
            driftline("events_consumed_total", "profiler"): "0+60x50 3000x60",
            driftline("watermark_timestamp_seconds", "profiler", partition="0"): "0+60x10 600x90",
        },
        "38m",
        "45m",
        "Predictions come, and event time stands still: no window closes",
        over="63m",
    ),
    Case(
        "DriftlineLateEvents",
        {
            driftline("events_consumed_total", "profiler"): "0+60x90",
            driftline("events_late_total", "profiler"): "0+15x90",
        },
        "29m",
        "40m",
        "25% of the predictions are late",
    ),
    Case(
        "DriftlineOverflow",
        {driftline("overflow_total", "detector", kind="versions"): "0x60 60x100"},
        "60m",
        "90m",
        "60 events were beyond the cap on versions",
        {"kind": "versions"},
        over="130m",
    ),
    Case(
        "DriftlineDeadLetters",
        {driftline("dead_letters_total", "profiler", reason="not_json"): "0x5 0+120x40"},
        "15m",
        "30m",
        "profiler sends 2 messages a second to the dead letters: not_json",
        {"process": "profiler", "reason": "not_json"},
    ),
    Case(
        "DriftlineDeadLettersDropped",
        {driftline("dead_letters_dropped_total", "profiler"): "0x20 15x40"},
        "20m",
        "30m",
        "15 dead letters of profiler were counted and not sent",
        {"process": "profiler"},
        over="40m",
    ),
    Case(
        "DriftlineTransactionsAborted",
        {driftline("transactions_aborted_total", "profiler"): "0+1x60"},
        "24m",
        "45m",
        "15 batches were rolled back in a quarter of an hour",
        {"process": "profiler"},
    ),
    Case(
        "DriftlineRowsRefused",
        {driftline("sink_refused_total", "sink", table="windows"): "0x10 1x100"},
        "10m",
        "12m",
        "ClickHouse refuses rows of windows",
        {"table": "windows"},
        over="80m",
    ),
    Case(
        "DriftlineDestinationDown",
        {driftline("destinations_open", "dispatcher"): "0x5 2x20 0x5"},
        "14m",
        "17m",
        "2 servers that notifications or actions go to do not answer",
        {"job": "driftline", "process": "dispatcher"},
        over="28m",
    ),
    Case(
        "DriftlineOutboxFills",
        {driftline("outbox_pending", "dispatcher"): "1000x5 2000x20"},
        "14m",
        "17m",
        "2k notifications and actions wait to be sent",
        {"job": "driftline", "process": "dispatcher"},
    ),
    Case(
        "DriftlineDeliveryExpired",
        {
            driftline("deliveries_total", "dispatcher", outcome="expired"): "0x10 1x100",
            driftline("deliveries_total", "dispatcher", outcome="delivered"): "0+9x110",
        },
        "10m",
        "12m",
        "A webhook was given up after a day of attempts: somebody was not told of an incident",
        {"job": "driftline"},
        over="80m",
    ),
    Case(
        "DriftlineDeliveryRefused",
        {driftline("deliveries_total", "dispatcher", outcome="refused"): "0x10 1x100"},
        "10m",
        "12m",
        "A receiver refuses what it is told: somebody was not told of an incident",
        {"job": "driftline"},
        over="80m",
    ),
    Case(
        "DriftlineApiFails",
        {
            driftline("api_requests_total", "api", status="2xx"): "0+90x60",
            driftline("api_requests_total", "api", status="5xx"): "0x5 0+10x55",
        },
        "12m",
        "30m",
        "10% of the API's answers are errors of its own",
        {"job": "driftline"},
    ),
]
# Six processes at work for three hours, a few late events and dead letters among many, and one restart.
WELL: Final = {
    **{UP % process: "1x180" for process in PROCESSES},
    **{driftline("build_info", process, version="1"): "1x180" for process in PROCESSES},
    **{driftline("last_progress_timestamp_seconds", process): "0+60x180" for process in PROCESSES},
    ours("process_start_time_seconds", "sink"): "0x90 5400x90",
    driftline("transient_errors_total", "sink"): "0x90 4x90",
    driftline("consumer_lag_messages", "profiler", topic="p", partition="0"): "900-5x180",
    driftline("consumer_lag_messages", "sink", topic="s", partition="0"): "50000-100x180",
    driftline("unaccounted_events", "api"): "0x180",
    driftline("hole_offsets", "api"): "12x180",
    driftline("chain_holes_total", "sink"): "2x180",
    driftline("events_consumed_total", "profiler"): "0+600x180",
    driftline("events_late_total", "profiler"): "0+12x180",
    driftline("watermark_timestamp_seconds", "profiler", partition="0"): "0+60x180",
    driftline("watermark_timestamp_seconds", "profiler", partition="1"): "0x180",  # idle
    driftline("overflow_total", "detector", kind="versions"): "5x180",
    driftline("dead_letters_total", "profiler", reason="not_json"): "0+3x180",
    driftline("dead_letters_dropped_total", "profiler"): "0x180",
    driftline("transactions_aborted_total", "profiler"): "0x90 3x90",
    driftline("sink_refused_total", "sink", table="windows"): "0x180",
    driftline("destinations_open", "dispatcher"): "0x90 1x8 0x80",
    driftline("outbox_pending", "dispatcher"): "20x180",
    driftline("deliveries_total", "dispatcher", outcome="delivered"): "0+1x180",
    driftline("deliveries_total", "dispatcher", outcome="expired"): "0x180",
    driftline("deliveries_total", "dispatcher", outcome="refused"): "0x180",
    driftline("api_requests_total", "api", status="2xx"): "0+90x180",
    driftline("api_requests_total", "api", status="5xx"): "0+1x180",
}


def unit(series: dict[str, str], asked: list[dict[str, Any]]) -> dict[str, Any]:
    scraped = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": scraped, "alert_rule_test": asked}


def said(case: Case) -> list[dict[str, Any]]:
    """What the tool is to compare: silence, the alert with all that it says, silence again."""
    rule = ALERTS[case.alert]
    annotations = {**rule["annotations"], "summary": case.summary}
    fired = [{"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": annotations}]
    times = [(case.quiet, []), (case.fires, fired), *([(case.over, [])] if case.over else [])]
    return [
        {"eval_time": at, "alertname": case.alert, "exp_alerts": expected} for at, expected in times
    ]


def run_rules(path: Path, *tests: dict[str, Any], code: int = 0) -> str:
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": list(tests)}
    path.write_text(yaml.safe_dump(document))
    return promtool("test", "rules", str(path), code=code)


@needs_prometheus
def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    said_of = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in said_of
    promtool("check", "config", str(RULES.parent / "prometheus.yml"))


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == set(ALERTS)


@needs_prometheus
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_in_time_says_what_is_wrong_and_is_silent_before_and_after(
    case: Case, tmp_path: Path
) -> None:
    # Beside it all is well, but for the ledger where its absence is the point.
    run_rules(tmp_path / "test.yml", unit(case.series, said(case)))


@needs_prometheus
def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    silent = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
        for alert in ALERTS
        for minute in range(5, 180, 5)
    ]
    run_rules(tmp_path / "test.yml", unit(WELL, silent))
    metrics = set(re.findall(r"\b(?:driftline_\w+|up|process_start_time_seconds)\{", str(WELL)))
    watched = "".join(str(rule["expr"]) for rule in (*ALERTS.values(), *RECORDED.values()))
    for name in metrics:
        assert name[:-1] in watched, f"{name[:-1]} is not watched by any rule"


@needs_prometheus
def test_a_rule_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    case = CASES[0]
    late = said(Case(case.alert, case.series, case.fires, "10m", case.summary, case.labels))
    assert "FAILED" in run_rules(tmp_path / "test.yml", unit(case.series, late), code=1)


@needs_prometheus
def test_what_is_recorded_is_the_sum_and_the_quantile_that_its_name_says(tmp_path: Path) -> None:
    series = {
        driftline("consumer_lag_messages", "sink", topic="t", partition="0"): "3x20",
        driftline("consumer_lag_messages", "sink", topic="t", partition="1"): "4x20",
        driftline("batch_duration_seconds_bucket", "sink", le="1"): "0+99x20",
        driftline("batch_duration_seconds_bucket", "sink", le="3"): "0+100x20",
        driftline("batch_duration_seconds_bucket", "sink", le="+Inf"): "0+100x20",
        driftline("watermark_timestamp_seconds", "profiler", partition="0"): "9x20",
        driftline("watermark_timestamp_seconds", "profiler", partition="0", instance="old"): "5x20",
    }
    expected = {
        'process_topic:driftline_consumer_lag_messages:sum{process="sink",topic="t"}': 7,
        'process:driftline_batch_duration_seconds:p99_rate5m{process="sink"}': 1,
        'partition:driftline_watermark_timestamp_seconds:max{partition="0"}': 9,
    }
    asked = [
        {
            "expr": name.partition("{")[0],
            "eval_time": "15m",
            "exp_samples": [{"labels": name, "value": value}],
        }
        for name, value in expected.items()
    ]
    run_rules(tmp_path / "test.yml", {**unit(series, []), "promql_expr_test": asked})


def test_every_metric_of_a_rule_is_exported_and_rates_are_of_counters() -> None:
    text = "\n".join(str(rule["expr"]) for rule in (*ALERTS.values(), *RECORDED.values()))
    recorded = set(re.findall(r"\w+:driftline_\w+:\w+", text))
    assert recorded <= set(RECORDED)
    for name in recorded:
        text = text.replace(name, "")
    assert set(re.findall(r"\bdriftline_\w+", text)) <= exported()
    counted = set(re.findall(r"(?:rate|increase)\((driftline_\w+)", text))
    assert counted
    assert all(name.endswith(("_total", "_bucket")) for name in counted)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_is_wrong_what_it_means_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    summary, description, runbook = (
        rule["annotations"][key] for key in ("summary", "description", "runbook_url")
    )
    assert summary
    assert summary[-1] != "."
    assert len(description) > 40
    assert description.endswith(".")
    assert "{{" not in description
    file, _, anchor = runbook.partition("#")
    readme = (ROOT / file).read_text()
    headings = re.findall(r"^#+ (.+)$", readme, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
    assert anchor in anchors
    chapter = readme.split(headings[anchors.index(anchor)] + "\n")[1].split("\n#")[0]
    (row,) = [line for line in chapter.splitlines() if line.startswith(f"| {name} |")]
    assert len(row.strip("|").split("|")) == 3
    assert set(re.findall(r"^\| (Driftline\w+) \|", chapter, re.MULTILINE)) == set(ALERTS)
