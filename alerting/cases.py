"""One open incident: how it opens, takes in breaches, is summed up, and when it is over.

A case is a frozen value: every function returns a new one. The book decides which breach goes to which case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from alerting.attribution import Finding
from alerting.book import (
    MAX_EVIDENCE,
    MAX_TIMELINE,
    Book,
    Case,
    Family,
    Fault,
    Member,
    Rules,
    status_in,
    stream_of,
)
from alerting.diagnosis import Diagnosis, Performance, Summary
from monitor.wire import Evidence, Incident, TimelineEntry, Verdict, Verdicts, VerdictStatus

LABEL_KINDS: Final = ("performance", "concept_drift")
_INPUT_KINDS: Final = ("data_drift", "prediction_drift")


def incident_id(model: str, version: str, family: Family, opened_ms: int) -> str:
    """Identity of an incident: 32 hexadecimal digits, the same in every replay. No score and no severity is in it."""
    text = "\x1f".join((model, version, family, str(opened_ms)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_case(book: Book, finding: Finding) -> Case:
    """A new case, still without members: found at the end of the window that fired."""
    window = finding.window
    opened_ms = window.end_ms
    version = finding.version
    while (name := incident_id(book.model, version, finding.family, opened_ms)) in (
        *book.closed_ids,
        *book.open,
    ):
        opened_ms += 1  # late labels of a window that opened an incident before
    incident = Incident(
        id=name,
        model=book.model,
        version=version,
        cause="unknown",
        advice="investigate",
        severity="warning",
        state="firing",
        title="",
        reason="",
        onset_ms=finding.broken_from_ms,
        opened_ms=opened_ms,
        updated_ms=opened_ms,
        resolved_ms=None,
        revision=0,
        rollback_to=finding.rollback_to,
    )
    return Case(finding.family, incident, {}, 0, finding.certain_ms)


def reopened(entry: Case, finding: Finding, rules: Rules) -> Case:
    """A resolved case that is open again: the same incident with fresh evidence, told anew, and watched twice as long before it is over.

    It is somebody's again only when somebody says so, and an action may be asked for once more, in a decision of its own.
    """
    incident = entry.incident
    incident = replace(
        incident,
        state="firing",
        onset_ms=finding.broken_from_ms,
        resolved_ms=None,
        reopened_ms=max(finding.window.end_ms, incident.resolved_ms or 0),
        rollback_to=finding.rollback_to,
        acknowledged_by=None,
    )
    hold_ms = max(entry.hold_ms, min(2 * entry.hold_ms, rules.max_hold_ms))
    return Case(
        entry.family,
        incident,
        {},
        hold_ms,
        finding.certain_ms,
        silenced_until_ms=entry.silenced_until_ms,
    )


def may_reopen(entry: Case, finding: Finding) -> bool:
    """Whether a breach continues a resolved case: it came within its hold, and is of the same release, or of a field that was broken."""
    incident = entry.incident
    if entry.family != finding.family or incident.resolved_ms is None:
        return False
    if finding.window.end_ms - incident.resolved_ms > entry.hold_ms:
        return False
    if entry.family == "release":
        return incident.version == finding.window.version
    if entry.family == "quality":
        return any(e.feature == finding.verdict.feature for e in incident.evidence)
    return True


def with_member(entry: Case, finding: Finding, rules: Rules) -> Case:
    """The case with one more breach: the latest of each signal counts, and the weakest signal goes when it is full."""
    window, verdict = finding.window, finding.verdict
    old = entry.members.get(finding.signal)
    member = Member(
        evidence=Evidence(
            kind=verdict.kind,
            version=window.version,
            segment=window.segment,
            feature=verdict.feature,
            statistic=verdict.statistic,
            value=verdict.value,
            limit=verdict.limit,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            note=str(verdict.evidence.get("moved") or verdict.evidence.get("examples") or ""),
        ),
        stream=stream_of(window),
        strength=_strength(verdict),
        share=old.share if old and finding.share is None else finding.share,
        broken_ms=max(window.end_ms, old.broken_ms if old else window.end_ms),
        clean_ms=old.clean_ms if old else None,
    )
    if old is not None and old.evidence.end_ms > window.end_ms:
        member = replace(member, evidence=old.evidence, strength=old.strength)
    members = {**entry.members, finding.signal: member}
    if len(members) > rules.max_signals:
        members.pop(min(members, key=lambda key: (members[key].strength, key)))
    incident = entry.incident
    certain_ms = entry.certain_ms
    if finding.certain_ms < certain_ms:  # a finer window or a change point places it better
        certain_ms = finding.certain_ms
        incident = replace(incident, onset_ms=finding.broken_from_ms)
    if finding.rollback_to is not None:
        incident = replace(incident, rollback_to=finding.rollback_to)
    return replace(
        entry,
        incident=incident,
        members=members,
        windows=entry.windows + (window.end_ms > entry.window_ms),
        window_ms=max(window.end_ms, entry.window_ms),
        hold_ms=max(entry.hold_ms, window.size_ms, rules.hold_ms),
        certain_ms=certain_ms,
    )


def _strength(verdict: Verdict) -> float:
    """How far beyond its limit: 1 is at the limit. Smaller-is-worse statistics count by their inverse ratio."""
    if verdict.value is None or not verdict.limit or verdict.value <= 0 or verdict.limit <= 0:
        return 1.0
    ratio = verdict.value / verdict.limit
    return max(ratio, 1 / ratio)


def mark_clean(entry: Case, window: Verdicts) -> Case:
    """The case after a window was judged: which of its signals are clean there, and whether labels show no harm.

    A signal counts in any version: the next one may be the cure. A bad release is judged by its own version only.
    """
    stream = stream_of(window)
    if entry.family == "release" and window.version != entry.incident.version:
        return entry
    members = {
        key: replace(member, clean_ms=max(window.end_ms, member.clean_ms or 0))
        for key, member in entry.members.items()
        if member.stream == stream
        and member.evidence.segment == window.segment
        and _status(window, member.evidence) == "ok"
    }
    if members:
        entry = replace(entry, members={**entry.members, **members})
    # An estimate, which comes with the window itself, is not what the labels say.
    harmless = window.source == "performance" and any(
        v.kind in LABEL_KINDS and v.status == "ok" for v in window.verdicts
    )
    if harmless and window.end_ms > entry.incident.onset_ms:
        entry = replace(entry, labels_clean_ms=max(window.end_ms, entry.labels_clean_ms or 0))
    return entry


def _status(window: Verdicts, evidence: Evidence) -> VerdictStatus:
    return status_in(window, evidence.kind, evidence.feature, evidence.statistic)


def fault_of(entry: Case, end_ms: int | None) -> Fault:
    """What the case explains, from its onset to ``end_ms``; ``None`` while it is open."""
    evidence = [member.evidence for member in entry.members.values()]
    shares: dict[str, list[float]] = {}
    for member in entry.members.values():
        known = shares.setdefault(member.evidence.segment, [])
        known += [] if member.share is None else [member.share]
    return Fault(
        family=entry.family,
        incident_id=entry.incident.id,
        versions=tuple(sorted({e.version for e in evidence})),
        features=tuple(sorted({e.feature for e in evidence})),
        segments={name: max(known, default=1.0) for name, known in shares.items()},
        start_ms=entry.incident.onset_ms,
        end_ms=end_ms,
    )


def is_over(book: Book, entry: Case) -> bool:
    """No breach for the hold and a clean judgement since, by the clock of each stream that broke.

    A release that takes no more traffic is over too: nothing will ever judge it clean.
    """
    if entry.family == "release" and _withdrawn(book, entry):
        return True
    for stream in {member.stream for member in entry.members.values()}:
        members = [m for m in entry.members.values() if m.stream == stream]
        broken_ms = max(member.broken_ms for member in members)
        if book.decided_ms.get(stream, 0) - broken_ms < entry.hold_ms:
            return False
        if all((member.clean_ms or 0) <= broken_ms for member in members):
            return False
    return True


def _withdrawn(book: Book, entry: Case) -> bool:
    seen = book.versions.get(entry.incident.version)
    last = [at for key, at in seen.last_ms.items() if key.startswith("detector/")] if seen else []
    return book.decided_ms.get("detector", 0) - max(last, default=0) >= entry.hold_ms


def summary_of(book: Book, entry: Case) -> Summary:
    """What the diagnosis needs to know; inputs count as moved if they broke within the hold."""
    ordered = sorted(entry.members.items(), key=lambda item: (-item[1].strength, item[0]))
    moved = any(
        member.evidence.kind in _INPUT_KINDS
        and member.broken_ms >= book.decided_ms.get(member.stream, 0) - entry.hold_ms
        for member in entry.members.values()
    )
    return Summary(
        family=entry.family,
        model=book.model,
        moved=moved,
        performance=_performance(entry),
        rollback_to=entry.incident.rollback_to,
        onset_ms=entry.incident.onset_ms,
        evidence=[member.evidence for _, member in ordered[:MAX_EVIDENCE]],
        share=max(1.0 if m.share is None else m.share for m in entry.members.values()),
    )


def _performance(entry: Case) -> Performance:
    judged = [m for m in entry.members.values() if m.evidence.kind in LABEL_KINDS]
    if any(member.broken_ms > (member.clean_ms or -1) for member in judged):
        return "falls"
    return "holds" if entry.labels_clean_ms is not None else "unknown"


def restated(
    entry: Case, found: Diagnosis, evidence: Iterable[Evidence], now_ms: int, *, blocked: bool
) -> Case:
    """The case with a new diagnosis, as the next revision of its incident."""
    incident = replace(
        entry.incident,
        cause=found.cause,
        advice=found.advice,
        severity=found.severity,
        title=found.title,
        reason=found.reason,
        retrain_blocked=blocked,
        evidence=list(evidence),
        updated_ms=max(now_ms, entry.incident.updated_ms),
        revision=entry.incident.revision + 1,
    )
    return replace(entry, incident=incident)


def noted(entry: Case, at_ms: int, what: str) -> Case:
    """Add a line to the timeline; when it is full, the first line stays and the oldest of the others goes."""
    timeline = [*entry.incident.timeline, TimelineEntry(at_ms, what)]
    if len(timeline) > MAX_TIMELINE:
        del timeline[1]
    incident = replace(
        entry.incident,
        timeline=timeline,
        updated_ms=max(at_ms, entry.incident.updated_ms),
        revision=entry.incident.revision + 1,
    )
    return replace(entry, incident=incident)
