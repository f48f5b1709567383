"""Every Prometheus metric of Driftline, in one place, with bounded labels that start at 0.

Labels are closed lists (the ``Literal`` types of ``monitor.errors`` and ``monitor.wire``), topics or partitions: never a
model, a feature or a value from an event. So a process has at most ``SERIES`` series, whatever is sent to it. One process is one /metrics port and Prometheus adds up: the client's
multi-process mode has neither Info nor callbacks, and needs a directory that somebody must wipe.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Final, Literal, get_args, get_type_hints

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from monitor.errors import REJECT_REASONS, ConfigError, RejectReason
from monitor.halves import HALF_FATES
from monitor.settings import MetricsSettings
from monitor.wire import Cause, Delivery, VerdictKind, VerdictStatus

Process = Literal["profiler", "detector", "sink", "evaluator", "dispatcher", "api", "bridge"]
Table = Literal[
    "predictions",
    "labels",
    "windows",
    "verdicts",
    "performance",
    "incidents",
    "deliveries",
    "ledger",
    "models",
]
StageReason = Literal[
    "incompatible",  # not a message of this topic, or not of this release
    "damaged",  # a profile that does not fit its bins
    "no_reference",  # a profile whose reference nobody has, or samples of which none can be made
]
DeadReason = RejectReason | StageReason | Literal["refused"]  # refused: by ClickHouse
Overflow = Literal[
    "models",  # sampled, of a model beyond the number that is followed: no reference is made of them
    "versions",  # counted in the version __other__
    "open_panes",  # ahead of the watermark, with no memory to wait: counted at once, as a correction
    "incidents",  # verdicts that would have opened one more
]
LabelFate = Literal[
    "joined",  # the prediction has its first label
    "corrected",  # the prediction has one more, of which the newest counts
    "duplicate",  # the prediction has this one
    "unmatched",  # there is no such prediction, or none yet
    "found_later",  # the prediction of a label that was there before
]
STAGE_REASONS: Final[tuple[StageReason, ...]] = get_args(StageReason)
LABEL_FATES: Final[tuple[LabelFate, ...]] = get_args(LabelFate)
OVERFLOWS: Final[tuple[Overflow, ...]] = get_args(Overflow)
PROCESSES: Final[tuple[Process, ...]] = get_args(Process)
TABLES: Final[tuple[Table, ...]] = get_args(Table)
OUTCOMES: Final[tuple[str, ...]] = get_args(get_type_hints(Delivery)["outcome"])

SERIES: Final = 500  # of ours; and one for each partition that it reads, two in a profiler
_DEAD: Final[dict[Process, tuple[DeadReason, ...]]] = {
    "profiler": REJECT_REASONS,
    "bridge": REJECT_REASONS,
    "detector": STAGE_REASONS,
    "sink": (*REJECT_REASONS, "incompatible", "refused"),
    "dispatcher": ("wrong_type",),
}

disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody reads when a counter began, and that doubles the counters

# Batches run from a few ms (idle) to tens of seconds (a store that is slow): powers of about 3.
_SECONDS: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# A window is stored seconds after its end, in a replay of history years: 1 s to a day.
_DELAYS: Final = (1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0)


def _counter(name: str, help_text: str, label: str = "", values: Iterable[str] = ()) -> Counter:
    counter = Counter(f"driftline_{name}", help_text, [label] if label else [])
    for value in values:
        counter.labels(
            value
        )  # a rate over a series that appears with its first event misses that event
    return counter


def _gauge(name: str, help_text: str, *labels: str) -> Gauge:
    return Gauge(f"driftline_{name}", help_text, labels)


def _histogram(
    name: str, help_text: str, buckets: tuple[float, ...] = _SECONDS, *labels: str
) -> Histogram:
    return Histogram(f"driftline_{name}", help_text, labels, buckets=buckets)


class KnownGauge(Collector):
    """A gauge that is absent until somebody knows its value: 0 would say "none", and NaN is not equal to 0 either."""

    def __init__(self, name: str, help_text: str) -> None:
        self._name, self._help = f"driftline_{name}", help_text
        self._value: float | None = None
        REGISTRY.register(self)

    def set(self, value: float) -> None:
        """From now on it is known."""
        self._value = value

    def forget(self) -> None:
        """It is not known any more."""
        self._value = None

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What the client library asks for."""
        yield GaugeMetricFamily(self._name, self._help, self._value)


BUILD: Final = Info("driftline_build", "Version of Driftline and of Python.")
BUILD.info({"version": version("driftline"), "python": platform.python_version()})

LAST_PROGRESS: Final = _gauge(
    "last_progress_timestamp_seconds",
    "Unix time at which the process last finished a unit of work.",
    "process",
)
STALLED: Final = _gauge(
    "stalled_seconds",
    "For how long the process has had work and made no progress; restarts itself before long.",
    "process",
)
LAG: Final = _gauge(
    "consumer_lag_messages",
    "Messages of a partition that the process has still to make durable. Absent where it does not know its position.",
    "process",
    "topic",
    "partition",
)
BATCHES: Final = _counter("batches_total", "Batches that were made durable.", "process", PROCESSES)
BATCH_SECONDS: Final = _histogram(
    "batch_duration_seconds", "Duration of a batch.", _SECONDS, "process"
)
TRANSIENT_ERRORS: Final = _counter(
    "transient_errors_total",
    "Times that a broker or a database did not answer, and the process waited and tried again.",
    "process",
    PROCESSES,
)

EVENTS: Final = _counter("events_consumed_total", "Prediction events read, good and bad.")
EVENTS_REJECTED: Final = _counter(
    "events_rejected_total", "Events sent to the dead letters.", "reason", REJECT_REASONS
)
EVENTS_LATE: Final = _counter(
    "events_late_total", "Events behind the watermark of their partition."
)
DEAD_LETTERS: Final = Counter(
    "driftline_dead_letters_total", "Messages sent to the dead letters.", ["process", "reason"]
)
for _process, _reasons in _DEAD.items():
    for _reason in _reasons:
        DEAD_LETTERS.labels(_process, _reason)
DEAD_LETTERS_DROPPED: Final = _counter(
    "dead_letters_dropped_total",
    "Messages counted as dead whose letter was not sent: a flood of them is over its cap.",
    "process",
    ("profiler", "sink"),
)
TRANSACTIONS_ABORTED: Final = _counter(
    "transactions_aborted_total", "Profiler batches that were rolled back."
)

OVERFLOW: Final = _counter(
    "overflow_total",
    "Events (of incidents: verdicts) beyond a cap of the detector, by cap. Their model is less exact; no other is.",
    "kind",
    OVERFLOWS,
)

WATERMARK: Final = _gauge(
    "watermark_timestamp_seconds",
    "Event time up to which a source partition is complete.",
    "partition",
)
WINDOWS_CLOSED: Final = _counter("windows_closed_total", "Closed windows that were stored.")
WINDOWS_CORRECTED: Final = _counter(
    "windows_corrected_total", "Late contributions to closed windows."
)
NEWEST_WINDOW: Final = KnownGauge(
    "newest_window_end_timestamp_seconds",
    "Event time at which the latest window ends that this sink has stored, of any model.",
)
WINDOW_DELAY: Final = _histogram(
    "window_delay_seconds",
    "From the end of a window, in event time, until it was stored. For live traffic: a replay of history is as late as it is old.",
    _DELAYS,
)
OPEN_PANES: Final = _gauge("open_panes", "Panes that wait for their watermark, in memory.")
OPEN_PANE_BYTES: Final = _gauge(
    "open_panes_bytes", "Memory that open panes take, about: limits.open_panes_bytes is its bound."
)
CHAIN_HOLES: Final = _counter("chain_holes_total", "Gaps that were booked as a loss and passed.")
VERDICTS: Final = Counter(
    "driftline_verdicts_total",
    "Statistics of windows and panes that were judged, by what was found.",
    ["kind", "status"],
)
for _kind in get_args(VerdictKind):
    for _status in get_args(VerdictStatus):
        VERDICTS.labels(_kind, _status)

INCIDENTS_OPEN: Final = _gauge("incidents_open", "Firing incidents, by cause.", "cause")
# Sums over the models, each in its own last budget period: their quotient is how far the budgets are kept.
BUDGET_ALLOWED: Final = _gauge(
    "budget_false_alarms", "False alarms that the models' budgets allow in their last period."
)
BUDGET_OPENED: Final = _gauge(
    "budget_incidents_opened",
    "Incidents that opened in the models' last budget period, outages aside, by cause.",
    "cause",
)
for _cause in get_args(Cause):
    INCIDENTS_OPEN.labels(_cause)
    BUDGET_OPENED.labels(_cause)

SINK_ROWS: Final = _counter("sink_rows_total", "Rows that ClickHouse took.", "table", TABLES)
SINK_INSERTS: Final = _counter(
    "sink_inserts_total", "Inserts that ClickHouse took.", "table", TABLES
)
SINK_REFUSED: Final = _counter(
    "sink_refused_total",
    "Messages whose rows ClickHouse refused: they are among the dead letters.",
    "table",
    TABLES,
)
SINK_INSERT_SECONDS: Final = _histogram(
    "sink_insert_duration_seconds", "Duration of an insert, taken or not.", _SECONDS, "table"
)
LABELS_REFUSED: Final = _counter(
    "labels_refused_total",
    "Labels on the topic that are none. Their message is among the dead letters.",
    "reason",
    REJECT_REASONS,
)
EVALUATOR_WINDOWS: Final = _counter("evaluator_windows_total", "Performance windows computed.")
LABELS: Final = _counter(
    "labels_total",
    "Labels that were looked for among the predictions, by what was found: monitor/truth.py.",
    "fate",
    LABEL_FATES,
)
DELIVERIES: Final = _counter("deliveries_total", "Outbox items that are done.", "outcome", OUTCOMES)
DELIVERY_ATTEMPTS: Final = _counter("delivery_attempts_total", "Requests to webhooks.")
OUTBOX_PENDING: Final = _gauge("outbox_pending", "Outbox items that are not done.")
OUTBOX_HELD: Final = _gauge(
    "outbox_held",
    "Outbox items that wait without an attempt: their destination does not answer, or asked for a pause.",
)
DESTINATIONS_OPEN: Final = _gauge(
    "destinations_open",
    "Servers (scheme, host and port) that do not answer: their circuit is open, and they get one probe at a time.",
)

# The API's process looks them up; in every other one, and while the database does not answer, they are absent.
UNACCOUNTED: Final = KnownGauge(
    "unaccounted_events",
    "Events read that are neither in a pane nor late nor dead-lettered. Must be 0.",
)
HOLES: Final = KnownGauge(
    "hole_offsets",
    "Offsets of predictions that announced jumps passed over: what was there was not read.",
)
# Of 30 days of event time, each model's own up to its last window: sums over the models. DORA's terms.
DEPLOYMENTS: Final = KnownGauge(
    "deployments",
    "Versions that the models' traffic saw for the first time in their last 30 days of event time; a model's first version is none.",
)
DEPLOYMENTS_FAILED: Final = KnownGauge(
    "deployments_failed",
    "Of driftline_deployments, those that a bad_release incident was opened for.",
)
CHANGE_FAILURE_RATE: Final = KnownGauge(
    "change_failure_rate",
    "driftline_deployments_failed as a part of driftline_deployments; absent without deployments. 1 - this is the deployment success rate.",
)
ROLLBACKS: Final = KnownGauge(
    "rollbacks",
    "Rollbacks that were asked for and delivered, of incidents that opened in the models' last 30 days of event time.",
)
RETRAINS: Final = KnownGauge(
    "retrains",
    "Retrains that were asked for and delivered, of incidents that opened in the models' last 30 days of event time.",
)
INGESTED: Final = _counter(
    "ingest_events_total",
    "Predictions that came by HTTP, or from another server's topics, and that the broker has.",
)
INGEST_REFUSED: Final = _counter(
    "ingest_refused_total",
    "Predictions by HTTP that are none, or bodies of which none can be made. Whoever sent them was told.",
    "reason",
    REJECT_REASONS,
)
HALVES: Final = _counter(
    "ingest_halves_total",
    "Requests and responses that came as two events, by what became of them: monitor/halves.py.",
    "fate",
    HALF_FATES,
)
HALVES_HELD: Final = _gauge(
    "ingest_halves_held", "Requests and responses that wait for their other half."
)
API_SECONDS: Final = _histogram(
    "api_request_duration_seconds", "From a request to the API to its answer."
)
API_REQUESTS: Final = _counter(
    "api_requests_total",
    "Answers of the API, by class of status.",
    "status",
    ("2xx", "3xx", "4xx", "5xx"),
)


def only(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """Let ``gauge`` have these values, by its labels' values, and no others: of what another process has by now, this one knows nothing."""
    for sample in [s for family in gauge.collect() for s in family.samples]:
        if (labels := tuple(sample.labels.values())) not in values:
            gauge.remove(*labels)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)


def lag(process: Process, messages: Mapping[tuple[str, int], int]) -> None:
    """Export how many messages of each topic and partition a process has still to make durable: of these and no others."""
    series: dict[tuple[str, ...], float] = {
        (process, topic, str(p)): n for (topic, p), n in messages.items()
    }
    only(LAG, series)


def turned(process: Process) -> None:
    """Note that ``process`` found nothing to do: idle is not stalled."""
    LAST_PROGRESS.labels(process).set_to_current_time()


def finished(process: Process, seconds: float, *, batches: int = 1) -> None:
    """Note that ``process`` finished work that took ``seconds``: what a stall alert watches."""
    BATCHES.labels(process).inc(batches)
    BATCH_SECONDS.labels(process).observe(seconds)
    LAST_PROGRESS.labels(process).set_to_current_time()


def serve(settings: MetricsSettings, registry: CollectorRegistry = REGISTRY) -> int:
    """Serve /metrics from a daemon thread, unless the port is 0.

    Returns:
        The port, or 0 where metrics are off.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if not settings.port:
        return 0
    try:
        start_http_server(settings.port, addr=settings.host, registry=registry)
    except OSError as err:
        raise ConfigError(
            f"metrics.port (DRIFTLINE_METRICS__PORT): cannot listen on {settings.host}:{settings.port}: {err.strerror}"
        ) from err
    return settings.port
