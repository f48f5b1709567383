"""What happened and what to do: a decision table from the evidence of one incident to a cause, an advice and words.

The table is data, read from the top; the first row that fits decides, and what fits no row is ``unknown``. The words
are for an engineer who was just woken: what, where, how much, since when, against which limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from alerting.book import Family
from monitor.decomposition import percent
from monitor.volume import HOUR_MS, VOLUME
from monitor.wire import Advice, Cause, Evidence, Severity

Performance = Literal["falls", "holds", "unknown"]
CORNER: Final = 0.05
_EASED: Final[dict[Severity, Severity]] = {
    "critical": "error",
    "error": "warning",
    "warning": "info",
    "info": "info",
}
_NAMES: Final = {
    "$prediction": "the prediction",
    "$score": "the score",
    "$latency_ms": "the latency",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known about an incident.

    ``evidence`` is ordered, strongest first, and not empty. ``moved``: inputs or predictions drift. ``performance`` is
    what labels say about the windows since the onset. ``share`` is the part of the traffic that is concerned.
    """

    family: Family
    model: str
    moved: bool
    performance: Performance
    rollback_to: str | None
    onset_ms: int
    evidence: Sequence[Evidence]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause, what to do about it, how urgent it is, and the words for it."""

    cause: Cause
    advice: Advice
    severity: Severity
    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; ``None`` fits anything."""

    family: Family
    moved: bool | None
    performance: Performance | None
    rollback: bool | None
    cause: Cause
    advice: Advice
    severity: Severity
    reason: str

    def fits(self, summary: Summary) -> bool:
        """Whether the row decides this incident."""
        rollback = summary.rollback_to is not None
        return (
            self.family == summary.family
            and self.moved in (None, summary.moved)
            and self.performance in (None, summary.performance)
            and self.rollback in (None, rollback)
        )


# fmt: off
TABLE: Final[tuple[Row, ...]] = (
    Row("outage", None, None, None, "outage", "page", "critical",
        "Predictions have stopped or collapsed, in every live version. Look at the serving application and its "
        "producer first: drift of this model is not judged while it lasts."),
    Row("quality", None, None, None, "pipeline_fault", "fix_data", "error",
        "The values themselves are broken, which is a fault upstream and not a change of the world. Fix the source of "
        "{features}; a retrain is blocked, because it would learn from broken data."),
    Row("release", None, None, True, "bad_release", "rollback", "critical",
        "Only version {version} breaks. Version {rollback_to} saw the same traffic in the same windows and is clean, "
        "so it is the release and not the data: roll back to version {rollback_to}."),
    Row("drift", True, "falls", None, "drift", "retrain", "error",
        "The inputs have moved, the data are clean, and the labels show that performance has fallen: retrain on "
        "recent data."),
    Row("drift", False, "falls", None, "concept_drift", "retrain", "error",
        "Performance has fallen while the inputs look as in the reference: what they mean has changed. Retrain on "
        "recent labels."),
    Row("drift", True, "holds", None, "benign_shift", "watch", "info",
        "The inputs have moved, but the labels since then show that performance holds: nothing has to be done. If "
        "this is the new normal, take it as the reference."),
    Row("drift", True, "unknown", None, "unknown", "investigate", "warning",
        "The inputs have moved and the data are clean. No labels of these windows have come yet, so whether it hurts "
        "is not known; the diagnosis follows when they do."),
    Row("service", None, None, None, "unknown", "investigate", "warning",
        "What has changed is how the model is served, in every live version: look at the serving application, its "
        "machines and its callers. No retrain mends that."),
)
# fmt: on
_UNKNOWN: Final = Row(
    "service",
    None,
    None,
    None,
    "unknown",
    "investigate",
    "warning",
    "This fits no known pattern: look at the evidence.",
)  # fmt: skip

# Statistics that are a share, as the end of "97 % of ...".
_RATES: Final = {
    "missing": "values are missing",
    "non_finite": "values are NaN or infinite",
    "wrong_type": "values have the wrong type",
    "unseen": "values are categories that the reference does not have",
    "out_of_range": "values are outside the reference's range",
    "off_grid": "values are not on the reference's grid",
    "request_error_rate": "requests end with an error",
}
# What a version does more often than the one beside it, by how many points.
_WORSE: Final = {
    "more_errors": "errs {:.1f} points more often",
    "more_request_errors": "fails {:.1f} points more often",
    "more_slow_requests": "is slow {:.1f} points more often",
}
_KINDS: Final = {
    "data_quality": "breaks its limit",
    "data_drift": "has moved away from the reference",
    "prediction_drift": "has moved away from the reference",
    "concept_drift": "errs more often than before",
    "performance": "has got worse",
    "service": "has changed",
    "no_data": "gives no data",
    "canary": "differs from the version beside it",
}


def diagnose(summary: Summary) -> Diagnosis:
    """The first row of ``TABLE`` that fits, in words; ``unknown`` and ``investigate`` where none does.

    What concerns less than ``CORNER`` of the traffic is one step less severe.
    """
    row = next((row for row in TABLE if row.fits(summary)), _UNKNOWN)
    strongest = summary.evidence[0]
    features = dict.fromkeys(
        _NAMES.get(e.feature, e.feature) for e in summary.evidence if e.feature
    )
    corner = summary.share < CORNER
    return Diagnosis(
        cause=row.cause,
        advice=row.advice,
        severity=_EASED[row.severity] if corner else row.severity,
        title=_title(summary, strongest, len(features)),
        reason=row.reason.format(
            features=_listed(list(features)) or "the data",
            version=strongest.version,
            rollback_to=summary.rollback_to,
        )
        + (f" It concerns {percent(summary.share)} of the traffic." if summary.share < 1 else ""),
    )


def describe(evidence: Evidence) -> str:
    """What one piece of evidence says, such as ``97 % of values are missing (limit 1 %)``."""
    rate = _RATES.get(evidence.statistic)
    if rate is not None and evidence.value is not None:
        return f"{percent(evidence.value)} of {rate}{_limit(evidence)}"
    worse = _WORSE.get(evidence.statistic)
    if worse is not None and evidence.kind == "canary" and evidence.value is not None:
        return f"{worse.format(100 * evidence.value)} than the version beside it"
    if evidence.statistic == VOLUME and evidence.value is not None:
        of = " of" if evidence.value < 1 else ""
        slot = "hour" if evidence.end_ms - evidence.start_ms == HOUR_MS else "time"
        usual = f"what this {slot} of the week usually has"
        return f"requests are {_times(evidence.value)}{of} {usual}{_limit(evidence)}"
    if evidence.limit is None or evidence.value is None:
        return f"{_KINDS[evidence.kind]} ({evidence.statistic})"
    return f"{_KINDS[evidence.kind]}: {evidence.statistic} {evidence.value:.3g}{_limit(evidence)}"


def explain(evidence: Evidence) -> str:
    """``describe``, and which values it is about, where that is known."""
    return describe(evidence) + (f": {evidence.note}" if evidence.note else "")


def _title(summary: Summary, evidence: Evidence, features: int) -> str:
    where = f" at {evidence.segment}" if evidence.segment else ""
    of_all = evidence.statistic == VOLUME  # versions
    subject = summary.model if of_all else f"{summary.model} {evidence.version}{where}"
    if evidence.feature and evidence.kind not in ("performance", "concept_drift", "canary"):
        more = f" (and {features - 1} more)" if features > 1 else ""
        subject = f"{_NAMES.get(evidence.feature, evidence.feature)}{more} of {subject}"
    said = describe(evidence).removesuffix(_limit(evidence))
    colon = ":" if of_all or evidence.statistic in _RATES else ""
    return f"{subject}{colon} {said} since {clock(summary.onset_ms)}{_limit(evidence)}"


def _limit(evidence: Evidence) -> str:
    if evidence.limit is None:
        return ""
    if evidence.statistic == VOLUME:
        return f" (limit {_times(evidence.limit)})"
    is_rate = evidence.statistic in _RATES
    return f" (limit {percent(evidence.limit) if is_rate else f'{evidence.limit:.3g}'})"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio >= 1 else percent(ratio)


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:3]) + ([f"{len(names) - 3} more"] if len(names) > 3 else [])
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def clock(at_ms: int) -> str:
    """Event time for people, in UTC and without the year: ``13 May 09:00``."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{at.day} {at:%b %H:%M}"
