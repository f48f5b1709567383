"""The one reader and writer of Driftline's tables.

Rows go in as Arrow columns (``monitor.tables``); answers come out as typed values, times in epoch milliseconds, newest
revision only. Every question is bounded: by model, by time where there is time, and by ``limit``. A ``Store`` may be
shared by threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from msgspec.structs import replace
from pydantic import ValidationError

from monitor import clickhouse, queries, retention
from monitor.bookings import Bookings
from monitor.clickhouse import ClickHouse
from monitor.errors import IncompatibleError
from monitor.gate import Comparison
from monitor.latency import CELLS, percentiles_of
from monitor.ledger import Ledger, Stored, balance
from monitor.profile import Layout
from monitor.rollups import Rollups
from monitor.settings import ClickHouseSettings
from monitor.spec import AlarmBudget, ModelSpec
from monitor.spending import Opened, Spending, spend
from monitor.tables import FOREVER_MS, TableName
from monitor.versions import OTHER_VERSION
from monitor.wire import Delivery, Incident, IncidentState, Performance, VerdictStatus

T = TypeVar("T")
MAX_OPENED: Final = 10_000
PERIOD_MS: Final = 30 * 86_400_000
_PLACE: Final = ("version", "segment", "size_ms", "start_ms")


class ModelRow(msgspec.Struct, frozen=True):
    """A model and what was seen of it. Without ``bins_id`` it is calibrating itself; times are ``None`` without windows."""

    model: str
    spec: dict[str, Any]
    bins_id: str
    versions: list[str]
    segments: list[str]
    sizes_ms: list[int]
    first_ms: int | None
    last_ms: int | None


class WindowRow(msgspec.Struct, frozen=True):
    """A stored window: its events, those with an error, and how many late batches were added.

    Where the reference changed in it, ``binnings`` is above 1 and ``bins_id`` is the newest; the events are all of them.
    The percentiles of the latency (``monitor.latency``) are in milliseconds, ``None`` where none was sent.
    """

    version: str
    segment: str
    size_ms: int
    start_ms: int
    n: int
    errors: int
    contributions: int
    bins_id: str
    binnings: int = 1
    latency_p50: float | None = None
    latency_p95: float | None = None
    latency_p99: float | None = None


class FeatureRow(msgspec.Struct, frozen=True):
    """A field in one window, late contributions included. ``n`` counts values in bins."""

    feature: str
    start_ms: int
    n: int
    missing: int
    nan: int
    pos_inf: int
    neg_inf: int
    wrong_type: int
    below: int
    above: int
    off_grid: int
    mean: float | None
    variance: float | None


class Distribution(msgspec.Struct, frozen=True):
    """A field's bins, in a window and in the reference. Bin ``i`` is ``[edges[i-1], edges[i])``, or category ``labels[i]``; the last category bin is ``other``.

    Where the reference changed in the window, these are the bins of the newest, and ``elsewhere`` values are in older ones.
    """

    feature: str
    bins_id: str
    kind: str
    edges: list[float]
    labels: list[str]
    reference: list[int]
    counts: list[int]
    n: int
    unseen: dict[str, int]
    elsewhere: int = 0


class VerdictRow(msgspec.Struct, frozen=True):
    """One statistic of one judged window."""

    version: str
    segment: str
    source: str
    size_ms: int
    start_ms: int
    end_ms: int
    kind: str
    feature: str
    statistic: str
    status: str
    value: float | None
    limit: float | None
    p_value: float | None
    n: int
    onset_ms: int | None
    evidence: dict[str, float | int | str]


class DriftRow(VerdictRow, frozen=True):
    """A verdict of a last window. ``ratio``: how far it is on the way to its limit, above 1 beyond it; ``None`` where that cannot be said."""

    ratio: float | None


class EstimateRow(msgspec.Struct, frozen=True):
    """A metric as it was estimated when a window closed, and what its labels say so far; ``final`` once they are due.

    ``error`` is ``realised`` less ``estimate``; with few of the predictions labelled it is that of the labels as well.
    """

    version: str
    size_ms: int
    start_ms: int
    metric: str
    estimate: float
    low: float
    high: float
    labelled: int
    predictions: int
    final: bool
    realised: float | None
    error: float | None


class ReferenceRow(msgspec.Struct, frozen=True):
    """A reference that a model is or was compared with: its id, how many features it has, and its place in the order of publication."""

    bins_id: str
    features: int
    revision: int
    current: bool


class ReferenceFeature(msgspec.Struct, frozen=True):
    """A field of a reference: its bins (as ``Distribution`` has them) and what was counted in them and beside them."""

    feature: str
    kind: str
    edges: list[float]
    labels: list[str]
    counts: list[int]
    missing: int
    nan: int
    pos_inf: int
    neg_inf: int
    wrong_type: int
    mean: float | None
    variance: float | None


class VersionRow(msgspec.Struct, frozen=True):
    """A version of a model: when its first window began and its last one ended, and its events in windows of the smallest size."""

    version: str
    first_ms: int
    last_ms: int
    requests: int


class Releases(msgspec.Struct, frozen=True):
    """What came of new versions, in the last ``PERIOD_MS`` of each model's event time up to the end of its last window: sums over all models.

    A deployment is a version whose first window closed then; the first version of a model is none, as nobody saw it being deployed, and a return to an
    old version is none either. So a version counts once the traffic has it, and one beyond the versions that are followed does not.

    Attributes:
        deployments: new versions.
        failed: those of which a ``bad_release`` incident was opened, then or later, and whose newest cause it is.
        rollbacks, retrains: requests that were delivered, of incidents that opened in the period. What a pipeline made of one is its own to say.
    """

    deployments: int
    failed: int
    rollbacks: int
    retrains: int

    @property
    def change_failure_rate(self) -> float | None:
        """DORA's: the part of the deployments that failed. ``None`` without deployments."""
        return self.failed / self.deployments if self.deployments else None


def connect(settings: ClickHouseSettings) -> Store:
    """A store on the database of ``settings``.

    Raises:
        TransientError: ClickHouse does not answer.
        ConfigError: it refuses user or password.
    """
    return Store(ClickHouse(_client(settings), settings.database))


def migrate(settings: ClickHouseSettings, *, dry_run: bool = False) -> list[str]:
    """Bring the tables up to this release and let them keep rows as long as the settings say; names of the migrations that were (or would be) applied.

    Raises:
        TransientError, ConfigError: as ``connect``, and ``clickhouse.migrate``.
    """
    client = _client(settings)
    applied = clickhouse.migrate(client, settings.database, dry_run=dry_run)
    if not dry_run:
        retention.apply(ClickHouse(client, settings.database), settings)
    return [f"{migration.version:04d}_{migration.name}" for migration in applied]


def _client(settings: ClickHouseSettings) -> Client:
    return clickhouse.open_client(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        secure=settings.secure,
    )


class Store:
    """Typed reads and writes. ``link`` is for SQL that only one caller needs."""

    def __init__(self, link: ClickHouse) -> None:
        self.link = link
        self.bookings = Bookings(link)
        self.rollups = Rollups(link)  # of one thread

    def append(self, name: TableName, rows: pa.Table, *, token: str) -> None:
        """Insert rows of ``tables.SCHEMAS[name]``; see ``ClickHouse.insert``. No rows is no insert."""
        if rows.num_rows:
            self.link.insert(name, rows, token=token)

    def close(self) -> None:
        """Close the connection."""
        self.link.close()

    def models(self, model: str | None = None) -> list[ModelRow]:
        """Every model, by name; or the one of this name, if there is one."""
        scope = {"model": model}
        return self._read(list[ModelRow], queries.MODELS, scope, spec=msgspec.json.decode)

    def join_keys(self) -> dict[str, list[str]]:
        """By model, what its spec says of the join key (``spec.LabelSpec``)."""
        rows = self.link.rows(
            "SELECT model, JSONExtract(spec, 'labels', 'join_key', 'Array(String)') AS names FROM models FINAL"
        )
        return {row["model"]: row["names"] for row in rows}

    def spec(self, model: str) -> ModelSpec | None:
        """What is said of a model, or ``None`` if nobody knows it.

        Raises:
            IncompatibleError: a newer release wrote it.
        """
        rows = self.link.rows(
            "SELECT spec FROM models FINAL WHERE model = {model:String}", {"model": model}
        )
        try:
            return ModelSpec.model_validate_json(rows[0]["spec"]) if rows else None
        except ValidationError:
            raise IncompatibleError(f"the spec of {model} is of another release") from None

    def layout(self, bins_id: str) -> Layout | None:
        """The binning of this id, or ``None`` if it was never stored."""
        rows = self.link.rows(
            "SELECT feature, form FROM bins FINAL WHERE bins_id = {bins_id:String}",
            {"bins_id": bins_id},
        )
        forms = {row["feature"]: msgspec.json.decode(row["form"]) for row in rows}
        return Layout.of(forms) if forms else None

    def versions(self, model: str, *, limit: int = 500) -> list[VersionRow]:
        """Versions that have windows of their own, the last to appear first."""
        scope = {"model": model, "other": OTHER_VERSION, "limit": limit}
        return self._read(list[VersionRow], queries.VERSIONS, scope)

    def windows(
        self,
        model: str,
        *,
        version: str | None = None,
        segment: str = "",
        size_ms: int | None = None,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[WindowRow]:
        """Windows that start in ``[from_ms, to_ms)``, newest first; hours and days are rolled up where the model has shorter ones only."""
        scope = _scope(model, version, segment, size_ms, from_ms, to_ms, limit, skip)
        rows = self._read(list[WindowRow], _of_size(queries.WINDOWS, size_ms), scope)
        return self._with_latency(rows, scope) if rows else []

    def feature(
        self,
        model: str,
        feature: str,
        *,
        version: str | None = None,
        segment: str = "",
        size_ms: int,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[FeatureRow]:
        """One field over time, newest first; versions added up unless one is given. Sizes as in ``windows``."""
        return self._read(
            list[FeatureRow],
            _of_size(queries.FEATURE, size_ms),
            {
                **_scope(model, version, segment, size_ms, from_ms, to_ms, limit, skip),
                "feature": feature,
            },
        )

    def distribution(
        self,
        model: str,
        feature: str,
        *,
        version: str,
        segment: str = "",
        size_ms: int,
        start_ms: int,
    ) -> Distribution | None:
        """A field's counts in one window beside the reference's, or ``None`` if there is no such window. Sizes as in ``windows``.

        The reference counts are the whole model's: a segment has its own share of them only in the detector.
        """
        scope = _scope(model, version, segment, size_ms, start_ms, start_ms + 1, 1)
        found = self._read(
            list[Distribution],
            _of_size(queries.DISTRIBUTION, size_ms),
            {**scope, "feature": feature},
            unseen=dict,
        )
        return found[0] if found else None

    def verdicts(
        self,
        model: str,
        *,
        version: str | None = None,
        segment: str | None = None,
        feature: str | None = None,
        statistic: str | None = None,
        status: VerdictStatus | None = None,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[VerdictRow]:
        """Verdicts on windows that start in ``[from_ms, to_ms)``, newest first."""
        parameters = {
            **_scope(model, version, segment, None, from_ms, to_ms, limit, skip),
            "feature": feature,
            "statistic": statistic,
            "status": status,
        }
        return self._read(
            list[VerdictRow], queries.VERDICTS, parameters, evidence=msgspec.json.decode
        )

    def drift(
        self,
        model: str,
        *,
        version: str | None = None,
        segment: str | None = "",
        size_ms: int | None = None,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
    ) -> list[DriftRow]:
        """What was said of the last window of each size that starts in ``[from_ms, to_ms)``, the worst first; of its labels, of the last that has any."""
        scope = _scope(model, version, segment, size_ms, from_ms, to_ms, limit)
        return self._read(list[DriftRow], queries.DRIFT, scope, evidence=msgspec.json.decode)

    def comparisons(
        self, model: str, *, version: str, from_ms: int = 0, limit: int = 100
    ) -> list[Comparison]:
        """What is known of a version beside an older one: the newest verdict of each statistic and feature, of windows that start from ``from_ms`` on."""
        scope = _scope(model, version, "", None, from_ms, FOREVER_MS, limit)
        return self._read(list[Comparison], queries.COMPARISONS, scope)

    def performance(
        self,
        model: str,
        *,
        version: str | None = None,
        segment: str = "",
        size_ms: int | None = None,
        final: bool = False,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[Performance]:
        """Performance windows that start in ``[from_ms, to_ms)``, newest first; with ``final`` only those whose labels were due."""
        scope = _scope(model, version, segment, size_ms, from_ms, to_ms, limit, skip)
        return self._read(
            list[Performance],
            queries.PERFORMANCE,
            {**scope, "final": int(final)},
            metrics=dict,
            intervals=dict,
        )

    def estimates(
        self,
        model: str,
        *,
        version: str | None = None,
        size_ms: int | None = None,
        metric: str | None = None,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[EstimateRow]:
        """Estimated performance of windows that start in ``[from_ms, to_ms)``, newest first, beside what labels said."""
        scope = _scope(model, version, "", size_ms, from_ms, to_ms, limit, skip)
        return self._read(list[EstimateRow], queries.ESTIMATES, {**scope, "metric": metric})

    def incidents(
        self,
        model: str | None = None,
        *,
        state: IncidentState | None = None,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 100,
        skip: int = 0,
    ) -> list[Incident]:
        """Incidents that opened in ``[from_ms, to_ms)``, the last opened first."""
        scope = {"model": model, "state": state, **_times(from_ms, to_ms, limit, skip)}
        rows = self.link.rows(queries.INCIDENTS, scope)
        return [msgspec.json.decode(row["body"], type=Incident) for row in rows]

    def incident(self, incident_id: str) -> Incident | None:
        """One incident."""
        rows = self.link.rows(
            "SELECT body FROM incidents FINAL WHERE id = {id:String}", {"id": incident_id}
        )
        return msgspec.json.decode(rows[0]["body"], type=Incident) if rows else None

    def incidents_like(self, prefix: str, *, limit: int = 2) -> list[Incident]:
        """Incidents whose id begins so."""
        rows = self.link.rows(
            "SELECT body FROM incidents FINAL WHERE startsWith(id, {prefix:String}) LIMIT {limit:UInt32}",
            {"prefix": prefix, "limit": limit},
        )
        return [msgspec.json.decode(row["body"], type=Incident) for row in rows]

    def spending(self, model: str | None = None) -> list[Spending]:
        """What became of the alarm budgets, by model; of the last ``MAX_OPENED`` incidents."""
        scope = {"model": model, "limit": MAX_OPENED}
        opened: defaultdict[str, list[Opened]] = defaultdict(list)
        for incident in self._read(list[Opened], queries.OPENED, scope):
            opened[incident.model].append(incident)
        return [
            spend(
                row.model,
                AlarmBudget.model_validate(row.spec.get("alarm_budget", {})),
                opened[row.model],
                first_ms=row.first_ms,
                last_ms=row.last_ms,
            )
            for row in self.models(model)
        ]

    def releases(self) -> Releases:
        """How new versions fared, and what was asked for. 0.3 s for two million windows: less than what ``ledger`` asks."""
        scope = {"period_ms": PERIOD_MS, "other": OTHER_VERSION}
        (released,) = self.link.rows(queries.RELEASED, scope)
        (acted,) = self.link.rows(queries.ACTED, scope)
        return msgspec.convert({**released, **acted}, Releases)

    def deliveries(
        self,
        incident_id: str | None = None,
        *,
        from_ms: int = 0,
        to_ms: int = FOREVER_MS,
        limit: int = 500,
        skip: int = 0,
    ) -> list[Delivery]:
        """What was sent in ``[from_ms, to_ms)``, newest first."""
        scope = {"incident_id": incident_id, **_times(from_ms, to_ms, limit, skip)}
        return self._read(list[Delivery], queries.DELIVERIES, scope)

    def acted_on(self, incident_ids: tuple[str, ...]) -> list[Delivery]:
        """What became of the actions of these incidents, newest first."""
        return self._read(list[Delivery], queries.ACTED_ON, {"ids": list(incident_ids)})

    def references(self, model: str, *, limit: int = 500, skip: int = 0) -> list[ReferenceRow]:
        """The references that a model has had, the last published first."""
        scope = {"model": model, "limit": limit, "skip": skip}
        return self._read(list[ReferenceRow], queries.REFERENCES, scope, current=bool)

    def reference(self, model: str, bins_id: str) -> list[ReferenceFeature]:
        """What a reference says of each field, by name; nothing if the model never had it."""
        scope = {"model": model, "bins_id": bins_id}
        return self._read(list[ReferenceFeature], queries.REFERENCE, scope)

    def ledger(self, *, drained: bool = False) -> Ledger:
        """What became of every event; see ``monitor.ledger``.

        ClickHouse adds up what is not settled: 0.6 s per million rows of the ledger.
        """
        # An event is booked, then held, then stored: asked for in this order, none is looked for where it was.
        booked = self.bookings.all()
        held = self.bookings.held()
        stored = self._read(list[Stored], queries.STORED, {})[0]
        return balance(booked, stored, held=held, drained=drained)

    def _with_latency(self, rows: list[WindowRow], scope: dict[str, Any]) -> list[WindowRow]:
        """The rows and their percentiles, of which the database reads no more than the times of these rows."""
        starts = [row.start_ms for row in rows]
        scope = {**scope, "from_ms": min(starts), "to_ms": max(starts) + 1}
        found = self.link.arrow(_of_size(queries.LATENCIES, scope["size_ms"]), scope)
        places = zip(*(found.column(name).to_pylist() for name in _PLACE), strict=True)
        counts = found.column("counts").combine_chunks().flatten().to_numpy().reshape(-1, CELLS)
        known = dict(zip(places, map(percentiles_of, counts), strict=True))
        told = []
        for row in rows:
            its = known.get((row.version, row.segment, row.size_ms, row.start_ms))
            times = (
                {} if its is None else {f"latency_{name}": ms for name, ms in its._asdict().items()}
            )
            told.append(replace(row, **times))
        return told

    def _read(
        self, kind: type[T], query: str, parameters: Mapping[str, object], **decode: Any
    ) -> T:
        rows = self.link.rows(query, parameters)
        for row in rows:
            for name, decoded in decode.items():
                row[name] = decoded(row[name])
        return msgspec.convert(rows, kind)


def _of_size(query: str, size_ms: int | None) -> str:
    return queries.rolled(query) if size_ms in queries.ROLLED_MS else query


def _scope(
    model: str,
    version: str | None,
    segment: str | None,
    size_ms: int | None,
    from_ms: int,
    to_ms: int,
    limit: int,
    skip: int = 0,
) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "segment": segment,
        "size_ms": size_ms,
        **_times(from_ms, to_ms, limit, skip),
    }


def _times(from_ms: int, to_ms: int, limit: int, skip: int) -> dict[str, object]:
    return {
        "from_ms": min(max(from_ms, 0), FOREVER_MS),
        "to_ms": min(max(to_ms, 0), FOREVER_MS),
        "limit": limit,
        "skip": skip,
    }
