"""The largest view: a store with many models, the first of which has many features, two versions, segments, labels and open incidents."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from monitor import reference as references
from monitor.columns import Columns, from_batch
from monitor.counting import profile_groups
from monitor.profile import Layout
from monitor.spec import ModelSpec, parse_spec
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

HOUR: Final = 3_600_000
START: Final = 1_767_225_600_000  # 2026-01-01T00:00Z
WINDOWS: Final = 96
LARGE: Final = "fraud/card-present"
INCIDENT: Final = "3fa2c1d07be84e5f9a6c2d1b8e4f7053"
VERSIONS: Final = ("3.1", "3.2")  # the second begins to serve in the middle
SEGMENT: Final = "tags.region=eu"
BROKEN: Final = "amount_017"
_EVENTS: Final = 400
_BREAKS: Final = 80  # the window in which a feature breaks


def fill(store: Store, *, models: int, features: int, seed: int = 11) -> None:
    """Store ``models`` models of ``features`` features each; the first has ``WINDOWS`` windows of all that there is, the others a few counts."""
    rng = np.random.default_rng(seed)
    names = [f"amount_{i:03d}" for i in range(features)]
    # A view counts one feature, so the reference has two: calibrating 200 would take longer than all tests of the page.
    whole = [BROKEN, names[0]]
    reference = references.build(
        _spec(LARGE, whole), lambda: [_events(rng, whole, START - 99 * HOUR)]
    )
    layout = reference.layout
    others = [f"team-{i % 7}/model-{i:03d}" for i in range(1, models)]
    rows = [(m, _spec(m, names).model_dump_json(), layout.bins_id, 1) for m in [LARGE, *others]]
    store.append("models", to_table("models", rows), token="fm")
    bins = bins_rows(LARGE, reference.profiles[""], 1)
    store.append("bins", to_table("bins", bins), token="fb")
    counted = {broken: _counted(rng, layout, whole, broken=broken) for broken in (False, True)}
    windows, verdicts, performance = [], [], []
    for i in range(WINDOWS):
        for version in VERSIONS[: 1 + (i >= WINDOWS // 2)]:
            for segment in ("", SEGMENT):
                broken = version == VERSIONS[1] and i >= _BREAKS
                at = START + i * HOUR
                place = (LARGE, version, segment, HOUR, at)
                windows += [(*place, *row) for row in counted[broken]]
                judged = _judged(rng, names if not segment else names[:20], broken=broken)
                told = Verdicts("window", *place, at + HOUR, _EVENTS, 1, judged)
                verdicts += verdict_rows(told)
                if i < WINDOWS - 6 and not segment:
                    performance.append(performance_row(_performed(rng, place, late=i > _BREAKS)))
    for number, name in enumerate(others):
        at = START + (WINDOWS - 1 - number % 5) * HOUR
        windows.append((name, "1", "", HOUR, at, *counted[False][0]))
    store.append("windows", to_table("windows", windows), token="fw")
    store.append("verdicts", to_table("verdicts", verdicts), token="fv")
    store.append("performance", to_table("performance", performance), token="fp")
    stories = [incident(), *(_quiet(name, i) for i, name in enumerate(others[:12]))]
    store.append("incidents", to_table("incidents", [*map(incident_row, stories)]), token="fi")
    read = (WINDOWS * 3 // 2 + len(others)) * _EVENTS  # each is in one window of the whole model
    for partition in range(4):
        entry = LedgerEntry(
            profiles_partition=0, offset=partition, open=0, partition=partition, start=0, end=read // 4, events=read // 4,
            dead=0, on_time=read // 4, late=0, calibrating=0, jump=None,
        )  # fmt: skip
        store.append("ledger", to_table("ledger", [ledger_row(entry)]), token=f"fl{partition}")
    end = START + (_BREAKS + 1) * HOUR
    sent = [
        Delivery("f1", INCIDENT, "slack", "notify", "delivered", 1, end + 1_000),
        Delivery("f2", INCIDENT, "pagerduty", "notify", "delivered", 3, end + 31_000),
        Delivery("f3", INCIDENT, "email", "notify", "refused", 1, end + 2_000, "550 no such user"),
    ]
    store.append("deliveries", to_table("deliveries", [*map(delivery_row, sent)]), token="fd")


def incident(revision: int = 3, acknowledged_by: str | None = None) -> Incident:
    """The open incident of the large model: its new version sends one feature in another unit."""
    found = START + (_BREAKS + 1) * HOUR
    place = (VERSIONS[1], "", BROKEN)
    timeline = [
        TimelineEntry(found, "fired: values off the grid of the reference"),
        TimelineEntry(found + 1_000, "sent to slack, pagerduty"),
        TimelineEntry(found + 2 * HOUR, "score drifts as well: now a bad release"),
    ]
    if acknowledged_by is not None:
        timeline.append(TimelineEntry(found + 3 * HOUR, f"acknowledged by {acknowledged_by}"))
    return Incident(
        id=INCIDENT,
        model=LARGE,
        version=VERSIONS[1],
        cause="bad_release",
        advice="rollback",
        severity="critical",
        state="firing",
        title=f"{BROKEN} of fraud/card-present 3.2: 100 times what the reference has",
        reason="One feature left its reference in version 3.2 alone; 3.1 sees the same traffic and holds. Roll back, then fix the unit.",
        onset_ms=found - HOUR,
        opened_ms=found,
        updated_ms=found + 2 * HOUR,
        resolved_ms=None,
        revision=revision,
        rollback_to=VERSIONS[0],
        acknowledged_by=acknowledged_by,
        evidence=[
            Evidence("data_drift", *place, "psi", 4.1, 0.2, found - HOUR, found, "1000 and more"),
            Evidence("prediction_drift", VERSIONS[1], "", "$score", "psi", 0.9, 0.2, found, found + HOUR),
        ],
        timeline=timeline,
    )  # fmt: skip


def _quiet(model: str, i: int) -> Incident:
    """An older incident of another model; three of four are over."""
    opened = START + (20 + i) * HOUR
    over = i % 4 != 0
    return Incident(
        id=f"{i:032x}",
        model=model,
        version="1",
        cause="drift" if i % 2 else "benign_shift",
        advice="retrain" if i % 2 else "watch",
        severity="warning",
        state="resolved" if over else "firing",
        title=f"amount_{i:03d} drifts",
        reason="Inputs moved while performance held.",
        onset_ms=opened - HOUR,
        opened_ms=opened,
        updated_ms=opened,
        resolved_ms=opened + 9 * HOUR if over else None,
        revision=1,
    )


def _spec(model: str, names: list[str]) -> ModelSpec:
    written = {
        "model": model,
        "task": "binary",
        "features": {name: {"type": "numeric"} for name in names},
        "segments": ["tags.region"],
        "windows": {"pane": "10m", "sizes": ["1h"], "lateness": "1m"},
        "notify": [{"slack": {"url": "env:SLACK_WEBHOOK"}}],
        "actions": {
            "rollback": {
                "webhook": {"url": "https://deploy.example/rollback", "secret": "env:ROLLBACK"}
            }
        },
    }
    return parse_spec(written, origin="test")


def _events(
    rng: np.random.Generator, names: list[str], at_ms: int, broken: bool = False
) -> Columns:
    n = _EVENTS
    unit = {name: 100.0 if broken and name == BROKEN else 1.0 for name in names}
    batch = {
        "ts": pa.array(np.sort(rng.integers(at_ms, at_ms + HOUR, n)), pa.timestamp("ms", "UTC")),
        **{name: rng.gamma(2.0, 10.0, n) * unit[name] for name in names},
        "prediction": rng.integers(0, 2, n),
        "score": rng.beta(2.0, 5.0 if not broken else 2.0, n),
        "latency_ms": rng.lognormal(2.5, 0.6, n),
    }
    return from_batch(pa.record_batch(batch), origin="test")


def _counted(
    rng: np.random.Generator, layout: Layout, names: list[str], *, broken: bool
) -> list[tuple[object, ...]]:
    """Rows of ``windows`` without their place: of the whole, which comes first, and of the fields."""
    columns = _events(rng, names, START, broken)
    group = np.zeros(_EVENTS, dtype=np.int64)
    profile = profile_groups(layout, columns.encode(layout), columns.errors, group, 1)[0]
    window = Window("", "", "", HOUR, START, "", 1, layout.bins_id, _EVENTS, profile.to_bytes())
    return [row[5:] for row in window_rows(window, layout)]


def _judged(rng: np.random.Generator, names: list[str], *, broken: bool) -> list[Verdict]:
    found = []
    for name, value in zip([*names, "$score"], rng.gamma(2.0, 0.03, len(names) + 1), strict=True):
        told = float(value) + (4.0 * (name == BROKEN) + 0.5 * (name == "$score")) * broken
        kind: VerdictKind = "prediction_drift" if name == "$score" else "data_drift"
        status: VerdictStatus = "breach" if told > 0.2 else "ok"
        found.append(Verdict(kind, name, "psi", status, told, 0.2, None, _EVENTS))
    return found


def _performed(
    rng: np.random.Generator, place: tuple[str, str, str, int, int], *, late: bool
) -> Performance:
    right = 0.9 - 0.06 * (place[1] == VERSIONS[1] and late) + 0.01 * float(rng.standard_normal())
    labelled = 150 if late else 360
    half = 2 * (right * (1 - right) / labelled) ** 0.5
    return Performance(
        *place, labelled, _EVENTS, labelled, round(labelled * (1 - right)), not late,
        {"accuracy": right}, HOUR, 6 * HOUR, {"accuracy": (right - half, right + half)},
    )  # fmt: skip
