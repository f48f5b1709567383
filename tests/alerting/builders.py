"""Builders of the incident tests: verdicts of a window, and a timeline that is read like a score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from alerting.book import Book
from alerting.incidents import Change, step
from monitor.spec import ModelSpec, parse_spec
from monitor.wire import Incident, Verdict, VerdictKind, Verdicts, VerdictStatus

HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_368_403_200_000  # 2013-05-13T00:00:00Z
MODEL = "flight-delay"


def verdict(
    kind: VerdictKind = "data_drift",
    status: VerdictStatus = "breach",
    *,
    feature: str = "wind_speed",
    statistic: str = "psi",
    value: float | None = None,
    limit: float | None = 0.1,
    onset_ms: int | None = None,
) -> Verdict:
    """One verdict; its value is five limits if it broke, and a fifth of the limit if it is clean."""
    if value is None and limit is not None and status != "no_data":
        value = limit * (5 if status == "breach" else 0.2)
    return Verdict(kind, feature, statistic, status, value, limit, None, 1000, onset_ms)


def fault(
    status: VerdictStatus = "breach", feature: str = "wind_speed", value: float | None = None
) -> Verdict:
    """A data-quality verdict: values off the reference's grid."""
    return verdict(
        "data_quality", status, feature=feature, statistic="off_grid", value=value, limit=0.01
    )


def labels(status: VerdictStatus = "breach") -> Verdict:
    """A performance verdict: the accuracy, where smaller is worse."""
    value = 0.7 if status == "breach" else 0.9
    return verdict("performance", status, feature="", statistic="accuracy", value=value, limit=0.85)


def judged(
    *verdicts: Verdict,
    day: int = 0,
    version: str = "7",
    segment: str = "",
    source: Literal["window", "pane", "performance"] = "window",
    size_ms: int = DAY,
    start_ms: int | None = None,
    n: int = 1000,
    revision: int = 0,
    closes: bool = False,
) -> Verdicts:
    """The verdicts of one window: a day of the whole model, unless told otherwise."""
    start = START + day * DAY if start_ms is None else start_ms
    return Verdicts(
        source=source,
        model=MODEL,
        version=version,
        segment=segment,
        size_ms=size_ms,
        start_ms=start,
        end_ms=start + size_ms,
        n=n,
        revision=revision,
        verdicts=list(verdicts),
        closes=closes,
    )


def run(messages: Iterable[Verdicts], book: Book | None = None) -> tuple[Book, list[Change]]:
    """The book and the changes after all messages."""
    book = Book(MODEL) if book is None else book
    changes: list[Change] = []
    for message in messages:
        book, more = step(book, message)
        changes += more
    return book, changes


def told(changes: Sequence[Change]) -> list[tuple[str, str, str]]:
    """Transition, version and cause of the changes that have a transition."""
    return [
        (c.transition, c.incident.version, c.incident.cause)
        for c in changes
        if c.transition is not None
    ]


def last(changes: Sequence[Change]) -> Incident:
    """The incident as it was published last."""
    return changes[-1].incident


def spec(**changes: object) -> ModelSpec:
    """A model with two notify targets and both actions."""
    action = {
        "webhook": {"url": "https://ci.example/hook", "secret": "env:HOOK_SECRET"},
        "approval": "auto",
    }
    document: dict[str, object] = {
        "model": MODEL,
        "notify": [
            {"slack": {"url": "env:SLACK_URL"}},
            {"pagerduty": {"routing_key": "env:PD_KEY"}},
        ],
        "actions": {"retrain": action, "rollback": action},
    }
    return parse_spec({**document, **changes}, origin="test")
