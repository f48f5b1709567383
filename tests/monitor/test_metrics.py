from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import httpx
import pytest
from prometheus_client import REGISTRY, Gauge, Metric, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families as parse

from monitor import metrics
from monitor.errors import REJECT_REASONS, ConfigError
from monitor.halves import HALF_FATES
from monitor.metrics import (
    LABEL_FATES,
    OUTCOMES,
    OVERFLOWS,
    PROCESSES,
    STAGE_REASONS,
    TABLES,
    KnownGauge,
)
from monitor.settings import MetricsSettings
from monitor.wire import Cause, VerdictKind, VerdictStatus
from tests.prometheus import needs_prometheus, promtool

PER_PARTITION = {"topic", "partition"}  # as many as there are, whatever is sent


def families() -> list[Metric]:
    """All that is ours in the registry, declared anywhere."""
    found = [f for f in REGISTRY.collect() if f.name.startswith("driftline_")]
    assert len(found) > 40
    return found


def test_every_metric_is_declared_in_the_one_list() -> None:
    declared = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase | KnownGauge)]
    names = [family.name for metric in declared for family in metric.collect()]
    assert sorted(names) == sorted(family.name for family in families())
    ours = Path(metrics.__file__).parents[1]
    made = re.compile(r"\b(Counter|Gauge|Histogram|Summary|Info|KnownGauge)\(\s*\"")
    elsewhere = [
        path
        for package in ("monitor", "streams", "alerting")
        for path in (ours / package).rglob("*.py")
        if path != Path(metrics.__file__) and made.search(path.read_text())
    ]
    assert elsewhere == []


def test_names_say_the_unit_and_help_is_a_sentence() -> None:
    for family in families():
        assert family.documentation.endswith("."), family.name
        assert len(family.documentation) > 15, family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
        if "timestamp" in family.name:
            assert family.name.endswith("_timestamp_seconds"), family.name
        assert not family.name.endswith(("_ms", "_s", "_count", "_percent")), family.name


@needs_prometheus
def test_promtool_finds_nothing_to_say_of_names_and_help_texts() -> None:
    metrics.LAG.labels("sink", "driftline.windows", "0").set(1)
    assert promtool("check", "metrics", text=generate_latest().decode()) == ""
    wrong = "# TYPE driftline_wait_ms gauge\ndriftline_wait_ms 1\n"
    assert "no help text" in promtool("check", "metrics", text=wrong, code=3)


def test_labels_are_closed_lists_topics_or_partitions() -> None:
    code = "import prometheus_client, monitor.metrics; print(prometheus_client.generate_latest().decode())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [family for family in parse(fresh.stdout) if family.name.startswith("driftline_")]
    started = sum(len(family.samples) for family in ours)
    # What starts at its first value: batches and inserts, and what has a partition.
    later = (len(PROCESSES) * 2 + len(TABLES)) * (len(metrics._SECONDS) + 3)
    assert started + later <= metrics.SERIES < 2 * (started + later)
    closed = {
        "process": PROCESSES,
        "reason": (*REJECT_REASONS, *STAGE_REASONS, "refused"),
        "kind": (*get_args(VerdictKind), *OVERFLOWS),
        "status": (*get_args(VerdictStatus), "2xx", "3xx", "4xx", "5xx"),
        "cause": get_args(Cause),
        "table": TABLES,
        "outcome": OUTCOMES,
        "fate": (*LABEL_FATES, *HALF_FATES),
    }
    declared = {
        label
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for label in metric._labelnames
    }
    assert declared == closed.keys() | PER_PARTITION
    for family in ours:
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in ("le", "version", "python"):
                    assert value in closed[label], family.name


def test_series_of_what_another_process_has_by_now_are_taken_away() -> None:
    gauge = Gauge("driftline_test", "Of this test.", ["a", "b"], registry=None)
    metrics.only(gauge, {("x", "0"): 1, ("x", "1"): 2})
    metrics.only(gauge, {("x", "1"): 3, ("y", "0"): 4})
    (family,) = gauge.collect()
    assert {tuple(s.labels.values()): s.value for s in family.samples} == {
        ("x", "1"): 3,
        ("y", "0"): 4,
    }


def test_every_label_value_starts_at_zero() -> None:
    code = "import prometheus_client, monitor.metrics; print(prometheus_client.generate_latest().decode())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for reason in REJECT_REASONS:
        assert f'driftline_events_rejected_total{{reason="{reason}"}} 0.0' in fresh.stdout
    for kind in get_args(VerdictKind):
        for status in get_args(VerdictStatus):
            assert (
                f'driftline_verdicts_total{{kind="{kind}",status="{status}"}} 0.0' in fresh.stdout
            )
    finals = {"delivered", "refused", "expired", "superseded", "disabled", "unknown", "dry_run"}
    assert set(metrics.OUTCOMES) == finals


def test_metrics_are_served_on_the_port_and_off_at_zero() -> None:
    assert metrics.serve(MetricsSettings()) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = metrics.serve(MetricsSettings(port=port))
    metrics.UNACCOUNTED.forget()
    began = time.time()
    metrics.finished("sink", 0.5)
    body = httpx.get(f"http://127.0.0.1:{server}/metrics", trust_env=False).text
    progress = re.search(r'driftline_last_progress_timestamp_seconds{process="sink"} (\S+)', body)
    assert progress is not None
    assert began <= float(progress[1]) <= time.time()
    assert 'driftline_batches_total{process="sink"}' in body
    assert "driftline_build_info{" in body
    assert "# TYPE driftline_unaccounted_events gauge" in body
    assert not re.search(r"^driftline_unaccounted_events ", body, re.MULTILINE), (
        "a sink cannot know"
    )


def test_a_taken_port_is_a_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="DRIFTLINE_METRICS__PORT"):
            metrics.serve(MetricsSettings(port=taken.getsockname()[1]))
