"""A store with one model's history in it: what the API and the page are tested against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from monitor import reference as references
from monitor.columns import Columns, from_batch
from monitor.counting import profile_groups
from monitor.reference import Reference
from monitor.settings import ClickHouseSettings
from monitor.spec import parse_spec
from monitor.store import Store
from monitor.tables import (
    bins_rows,
    delivery_row,
    incident_row,
    ledger_row,
    performance_row,
    to_table,
    verdict_rows,
    window_rows,
)
from monitor.wire import (
    Delivery,
    Evidence,
    Incident,
    LedgerEntry,
    Performance,
    TimelineEntry,
    Verdict,
    VerdictKind,
    Verdicts,
    VerdictStatus,
    Window,
)
from streams.embedded import clickhouse
from streams.supervisor import LOOPBACK, Supervisor, free_port

DAY = 86_400_000
START = 1_359_676_800_000  # 2013-02-01T00:00Z
MODEL = "team/flight-delay"
FIRING = "a" * 32
RESOLVED = "b" * 32
EVENTS = 200


def fill(store: Store, *, days: int = 30, seed: int = 7) -> Reference:
    """Store ``days`` daily windows of ``EVENTS`` events; on the last five the wind is in km/h."""
    rng = np.random.default_rng(seed)
    spec = parse_spec(
        {
            "model": MODEL,
            "task": "binary",
            "features": {
                "carrier": {"type": "categorical"},
                "wind_speed": {"type": "numeric"},
                "temp": {"type": "numeric"},
            },
            "windows": {"pane": "1h", "sizes": ["1d"], "lateness": "1h"},
            "notify": [{"slack": {"url": "env:SLACK_WEBHOOK"}}],
        },
        origin="test",
    )
    reference = references.build(spec, lambda: [_events(rng, START - 30 * DAY, 6000)])
    layout = reference.layout
    models = (MODEL, spec.model_dump_json(), layout.bins_id, 1)
    store.append("models", to_table("models", [models]), token="m")
    store.append("bins", to_table("bins", bins_rows(MODEL, reference.profiles[""], 1)), token="b")
    windows, verdicts, performance = [], [], []
    for day in range(days):
        faulty = day >= days - 5
        at = START + day * DAY
        columns = _events(rng, at, EVENTS, wind=1.609 if faulty else 1.0)
        group = np.zeros(EVENTS, dtype=np.int64)
        profile = profile_groups(layout, columns.encode(layout), columns.errors, group, 1)[0]
        window = Window(MODEL, "7", "", DAY, at, "", 1, layout.bins_id, EVENTS, profile.to_bytes())
        windows += window_rows(window, layout)
        verdicts += verdict_rows(_judged(rng, at, faulty=faulty))
        performance.append(performance_row(_performed(rng, at)))
    store.append("windows", to_table("windows", windows), token="w")
    store.append("verdicts", to_table("verdicts", verdicts), token="v")
    store.append("performance", to_table("performance", performance), token="p")
    incidents = [_incident(FIRING, days), _incident(RESOLVED, days)]
    store.append("incidents", to_table("incidents", [*map(incident_row, incidents)]), token="i")
    sent = Delivery("d1", FIRING, "slack", "notify", "delivered", 2, START + days * DAY)
    store.append("deliveries", to_table("deliveries", [delivery_row(sent)]), token="d")
    entry = LedgerEntry(
        profiles_partition=0,
        offset=1,
        open=0,
        partition=0,
        start=0,
        end=days * EVENTS + 3,
        events=days * EVENTS + 3,
        dead=3,
        on_time=days * EVENTS,
        late=0,
        calibrating=0,
        jump=None,
    )
    store.append("ledger", to_table("ledger", [ledger_row(entry)]), token="l")
    return reference


def _events(rng: np.random.Generator, at_ms: int, n: int, wind: float = 1.0) -> Columns:
    batch = pa.record_batch(
        {
            "ts": pa.array(np.sort(rng.integers(at_ms, at_ms + DAY, n)), pa.timestamp("ms", "UTC")),
            "carrier": rng.choice(["UA", "B6", "EV", "DL"], n, p=[0.4, 0.3, 0.2, 0.1]),
            "wind_speed": np.round(rng.gamma(3, 4, n)) * wind,
            "temp": rng.normal(45, 12, n),
            "prediction": rng.integers(0, 2, n),
            "score": rng.random(n),
        }
    )
    return from_batch(batch, origin="test")


def _judged(rng: np.random.Generator, at_ms: int, *, faulty: bool) -> Verdicts:
    found = []
    for name in ("carrier", "temp", "wind_speed", "$score"):
        value = float(rng.gamma(2, 0.02)) * (12 if faulty and name == "wind_speed" else 1)
        status: VerdictStatus = "breach" if value > 0.15 else "ok"
        kind: VerdictKind = "prediction_drift" if name == "$score" else "data_drift"
        found.append(Verdict(kind, name, "psi", status, value, 0.15, 0.01, EVENTS))
    found.append(Verdict("data_drift", "temp", "ks", "no_data", None, None, None, 3))
    band: dict[str, float | int | str] = {"low": 0.75, "high": 0.85}
    found.append(
        Verdict(
            "performance",
            "$prediction",
            "estimated_accuracy",
            "ok",
            value=0.8,
            limit=None,
            p_value=None,
            n=EVENTS,
            evidence=band,
        )
    )
    end = at_ms + DAY
    return Verdicts("window", MODEL, "7", "", DAY, at_ms, end, EVENTS, 1, found)


def _performed(rng: np.random.Generator, at_ms: int) -> Performance:
    metrics = {"accuracy": 0.78 + 0.05 * float(rng.random()), "roc_auc": 0.7}
    return Performance(MODEL, "7", "", DAY, at_ms, 190, EVENTS, 190, 38, True, metrics, 3_600_000)


def _incident(name: str, days: int) -> Incident:
    opened = START + (days - 4) * DAY
    return Incident(
        id=name,
        model=MODEL,
        version="7",
        cause="pipeline_fault",
        advice="fix_data",
        severity="error",
        state="firing" if name == FIRING else "resolved",
        title="wind_speed of flight-delay 7: 97 % of values are <b>not</b> on the reference's grid",
        reason="The values of one feature left the grid of the reference while the others held.",
        onset_ms=opened - DAY,
        opened_ms=opened if name == FIRING else opened - DAY,
        updated_ms=opened,
        resolved_ms=None if name == FIRING else opened + DAY,
        revision=2,
        retrain_blocked=True,
        evidence=[
            Evidence("data_quality", "7", "", "wind_speed", "off_grid", 0.97, 0.01, opened, opened)
        ],
        timeline=[TimelineEntry(opened, "fired"), TimelineEntry(opened + 1, "sent to slack")],
    )


@contextmanager
def endpoint(directory: Path, port: int | None = None) -> Iterator[ClickHouseSettings]:
    """An embedded ClickHouse with its data in ``directory``, up while the context lasts."""
    port = port or free_port()
    with Supervisor(directory / "logs") as supervisor:
        supervisor.start(clickhouse.child(port, directory / "data"))
        supervisor.wait_ready(30)
        yield ClickHouseSettings(url=f"http://{LOOPBACK}:{port}")
