from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from typing import get_args

import httpx
import pytest
from prometheus_client.metrics import MetricWrapperBase

from monitor import metrics
from monitor.errors import REJECT_REASONS, ConfigError
from monitor.settings import MetricsSettings
from monitor.wire import VerdictKind, VerdictStatus


def _all() -> dict[str, MetricWrapperBase]:
    found = {n: m for n, m in vars(metrics).items() if isinstance(m, MetricWrapperBase)}
    assert len(found) > 25
    return found


def test_every_metric_has_our_prefix_and_a_sentence() -> None:
    for name, metric in _all().items():
        family = next(iter(metric.describe()))
        assert family.name.startswith("driftline_"), name
        assert family.documentation.endswith("."), name


def test_labels_are_closed_lists_topics_or_partitions() -> None:
    bounded = {
        "process",
        "topic",
        "partition",
        "reason",
        "kind",
        "status",
        "cause",
        "table",
        "outcome",
        "fate",
    }
    used = {label for metric in _all().values() for label in metric._labelnames}
    assert used == bounded


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
