"""Incidents: one cause, one page. A pure state machine from verdicts and commands to changes of incidents.

Time is event time: the ends of windows. Nothing here reads a clock, so a replay of history gives the same incidents::

    signals:    ok ──breach──► pending (a streak of panes) ──► firing ──hold without a breach──► resolved
    incident:                                                 fired ───► changed cause ────────► resolved
                                                                ▲                                   │
                                                                └─────── a breach soon after ───────┘

A pending incident is a streak in the book and is not published: most never fire. ``no_data`` holds every state.
An incident's identity is model, version, family and opening time. The cause may change inside it, when labels show what a
drift meant; the identity does not. While it is open, a breach continues it; one that comes within the hold after its
end opens it again, with a hold twice as long: what flaps is told less and less.

Invariants: at most one open incident of an identity, and of each of the families outage, drift and service; one
release incident per version; a message that was seen changes nothing; messages that end together may come in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from msgspec.structs import replace

from alerting.attribution import Attribution, Finding, attribute, explains
from alerting.book import (
    FAMILIES,
    FAULT_FAMILIES,
    Book,
    Case,
    Family,
    Fault,
    Rules,
    Stream,
    stream_of,
)
from alerting.cases import (
    fault_of,
    is_over,
    mark_clean,
    may_reopen,
    noted,
    open_case,
    reopened,
    restated,
    summary_of,
    with_member,
)
from alerting.diagnosis import Diagnosis, diagnose
from monitor.wire import Command, Incident, Transition, Verdicts

DEFAULT_RULES: Final = Rules()
_EXPLAINED_BY: Final[dict[Family, tuple[Family, ...]]] = {
    "outage": (),
    "quality": ("outage",),
    "release": ("outage", "release"),
    "drift": ("outage", "quality", "release"),
    "service": ("outage",),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A case as it is now. ``transition`` is ``None`` for news that nobody is told: more evidence, an acknowledgement."""

    transition: Transition | None
    case: Case

    @property
    def incident(self) -> Incident:
        """The incident, to be published."""
        return self.case.incident


def step(
    book: Book, message: Verdicts, rules: Rules = DEFAULT_RULES
) -> tuple[Book, tuple[Change, ...]]:
    """Apply the verdicts of one window.

    Verdicts are held until every one with the same end is here: until one of the same stream ends later, or says that
    it closes its end. Labels also wait until the detector's windows of that end are decided: these may explain them.
    A window that was seen at this revision or a higher one changes nothing.
    """
    seen = _remember(book, message, rules)
    if seen is None:
        return book, ()
    book, stream = seen, stream_of(message)
    book.held.append(message)
    complete_ms = message.end_ms if message.closes else message.end_ms - 1
    book.complete_ms[stream] = max(complete_ms, book.complete_ms.get(stream, complete_ms))
    changes = _release(book, "detector", rules)
    changes += _release(book, "performance", rules)
    return book, tuple(changes)


def command(book: Book, order: Command) -> tuple[Book, tuple[Change, ...]]:
    """Apply what a person asked for. A repeat, or one about what is not open or not advised any more, changes nothing."""
    entry = book.open.get(order.incident_id)
    if entry is None or order.model != book.model:
        return book, ()
    action = entry.incident.advice
    if order.action not in (None, action):
        return book, ()
    transition: Transition | None = None
    match order.kind:
        case "acknowledge" if entry.incident.acknowledged_by is None:
            incident = replace(entry.incident, acknowledged_by=order.author)
            told, transition = replace(entry, incident=incident), "acknowledged"
        case "silence" if order.until_ms is not None and order.until_ms != entry.silenced_until_ms:
            incident = replace(entry.incident, silenced_until_ms=order.until_ms)
            told = replace(entry, incident=incident, silenced_until_ms=order.until_ms)
        case "approve" if action not in entry.approved:
            told = replace(entry, approved=(*entry.approved, action))
        case "reject" if action not in entry.rejected:
            told = replace(entry, rejected=(*entry.rejected, action))
        case _:
            return book, ()
    what = f"{order.kind} by {order.author}" + (f": {order.comment}" if order.comment else "")
    book = book.copy()
    book.open[order.incident_id] = told = noted(told, order.at_ms, what)
    return book, (Change(transition, told),)


def _remember(book: Book, message: Verdicts, rules: Rules) -> Book | None:
    """A copy of the book that knows the message, or ``None`` if it was known or is too old to matter."""
    key = "\x1f".join((message.source, message.version, message.segment, str(message.size_ms)))
    windows = dict(book.series.get(key, ()))
    if windows.get(message.start_ms, -1) >= message.revision:
        return None
    if len(windows) >= rules.remembered and message.start_ms < min(windows):
        return None
    windows[message.start_ms] = message.revision
    book = book.copy()
    book.series.pop(key, None)
    book.series[key] = tuple(sorted(windows.items())[-rules.remembered :])
    if len(book.series) > rules.max_series:
        del book.series[next(iter(book.series))]  # the series that has been quiet for longest
    return book


def _release(book: Book, stream: Stream, rules: Rules) -> list[Change]:
    """Decide what is held of a stream and complete, one window end after the other."""
    complete_ms = book.complete_ms.get(stream, -1)
    if stream == "performance":
        complete_ms = min(complete_ms, book.complete_ms.get("detector", complete_ms))
    due = [m for m in book.held if stream_of(m) == stream and m.end_ms <= complete_ms]
    if not due:
        return []
    book.held[:] = [m for m in book.held if stream_of(m) != stream or m.end_ms > complete_ms]
    changes: list[Change] = []
    due.sort(key=lambda m: m.end_ms)
    for end_ms, batch in groupby(due, key=lambda m: m.end_ms):
        book.decided_ms[stream] = max(end_ms, book.decided_ms.get(stream, end_ms))
        changes += _decide(book, stream, list(batch), rules)
    return changes


def _decide(book: Book, stream: Stream, batch: list[Verdicts], rules: Rules) -> list[Change]:
    """Decide windows that ended together, after those that waited for them and ended earlier."""
    if stream == "performance":
        batch += book.waiting
    result = attribute(book, batch, rules)
    if stream == "performance":
        book.waiting[:] = result.waiting
        _keep_labelled(book, batch)
    ends = sorted({message.end_ms for message in batch})
    return [change for end_ms in ends for change in _decide_end(book, result, end_ms, rules)]


def _decide_end(book: Book, result: Attribution, end_ms: int, rules: Rules) -> list[Change]:
    fired: list[str] = []
    grown: set[str] = set()
    found = [f for f in result.findings if f.window.end_ms == end_ms]
    for finding in sorted(found, key=lambda f: FAMILIES.index(f.family)):  # faults explain the rest
        if _explained(book, finding, rules):
            book.streaks.pop(finding.streak, None)  # a later breach of its own starts afresh
        else:
            _join(book, finding, rules, fired, grown)
    for window in result.ready:
        if window.end_ms == end_ms:
            for name, entry in book.open.items():
                book.open[name] = mark_clean(entry, window)
    return _settle(book, end_ms, fired, grown, rules)


def _keep_labelled(book: Book, batch: Iterable[Verdicts]) -> None:
    """Judgements by labels stay comparable for two windows: versions are judged one after the other."""
    now_ms = book.decided_ms["performance"]
    kept = [m for m in [*book.labelled, *batch] if m.end_ms > now_ms - 2 * m.size_ms]
    unique = {(m.version, m.segment, m.size_ms, m.start_ms): m for m in kept}
    book.labelled[:] = unique.values()


def faults_of(book: Book) -> list[Fault]:
    """What open incidents explain, and what resolved ones did explain."""
    lasting = [fault_of(e, None) for e in book.open.values() if e.family in FAULT_FAMILIES]
    return [*book.faults, *lasting]


def _explained(book: Book, finding: Finding, rules: Rules) -> bool:
    """Whether a fault that is known accounts for the breach: an outage for all, quality and release for drift.

    An open release incident takes its own breaches in; one that is over explains the labels that still come.
    """
    return any(
        fault.family in _EXPLAINED_BY[finding.family]
        and not (finding.family == fault.family and fault.end_ms is None)
        and explains(fault, finding.window, finding.verdict, rules)
        for fault in faults_of(book)
    )


def _join(book: Book, finding: Finding, rules: Rules, fired: list[str], grown: set[str]) -> None:
    """Put a breach where it belongs: into its open incident, or into a new one if it is sustained."""
    entry = _home(book, finding, rules)
    if entry is None:
        if not finding.sustained:
            return
        if len(book.open) >= rules.max_open:
            book.counters["not_opened"] = book.counters.get("not_opened", 0) + 1
            return
        entry = _opened(book, finding, rules)
        fired.append(entry.incident.id)
    elif finding.signal not in entry.members:
        if not finding.sustained:
            return
        grown.add(entry.incident.id)
    book.open[entry.incident.id] = with_member(entry, finding, rules)


def _opened(book: Book, finding: Finding, rules: Rules) -> Case:
    """A case for a breach: the last one that is over and that it continues, or a new one."""
    lately = [entry for entry in book.closed.values() if may_reopen(entry, finding)]
    if not lately:
        return open_case(book, finding)
    entry = max(lately, key=lambda e: (e.incident.resolved_ms or 0, e.incident.id))
    del book.closed[entry.incident.id]
    return reopened(entry, finding, rules)


def _home(book: Book, finding: Finding, rules: Rules) -> Case | None:
    candidates = book.cases(finding.family)
    if finding.family == "release":
        return next((e for e in candidates if e.incident.version == finding.window.version), None)
    if finding.family != "quality":
        return candidates[0] if candidates else None
    feature = finding.verdict.feature
    for entry in candidates:
        if any(member.evidence.feature == feature for member in entry.members.values()):
            return entry
    for entry in candidates:
        if abs(finding.broken_from_ms - entry.incident.onset_ms) <= rules.group_ms:
            return entry
    return None


def _settle(
    book: Book, end_ms: int, fired: list[str], grown: set[str], rules: Rules
) -> list[Change]:
    """Resolve what is over, diagnose what is open, and say what changed."""
    changes: list[Change] = []
    for name, entry in list(book.open.items()):
        if name not in fired and is_over(book, entry):
            changes.append(_resolve(book, entry, rules))
    blocked = any(book.cases(family) for family in ("quality", "outage"))
    for name, entry in book.open.items():
        summary = summary_of(book, entry)
        before = entry.incident
        found = diagnose(summary) if name in fired else _kept(diagnose(summary), before)
        if entry.escalated:
            found = dataclasses.replace(found, severity="critical")
        same = (before.cause, before.advice, before.severity, before.retrain_blocked) == (
            found.cause,
            found.advice,
            found.severity,
            blocked,
        )
        if same and name not in fired and name not in grown:
            continue
        entry = restated(entry, found, summary.evidence, end_ms, blocked=blocked)
        transition: Transition | None = None
        if name in fired:
            transition = "fired"
            again = "" if before.reopened_ms is None else " again"
            entry = noted(entry, end_ms, f"fired{again}: {found.title}")
        elif found.cause != before.cause:
            transition = "changed"
            entry = noted(entry, end_ms, f"cause changed from {before.cause} to {found.cause}")
        book.open[name] = entry
        changes.append(Change(transition, entry))
    return changes


def _kept(found: Diagnosis, before: Incident) -> Diagnosis:
    """What was known stays: performance that recovers while the hold lasts does not make its fall unknown."""
    if found.cause != "unknown" or before.cause == "unknown":
        return found
    return Diagnosis(before.cause, before.advice, before.severity, before.title, before.reason)


def _resolve(book: Book, entry: Case, rules: Rules) -> Change:
    now_ms = max(book.now_ms, entry.incident.opened_ms)
    over_ms = max(member.broken_ms for member in entry.members.values())
    entry = noted(entry, now_ms, "resolved")
    incident = replace(entry.incident, state="resolved", resolved_ms=now_ms)
    entry = replace(entry, incident=incident)
    del book.open[incident.id]
    others = [name for name in book.closed_ids if name != incident.id]
    book.closed_ids[:] = [*others, incident.id][-rules.max_faults :]
    book.closed[incident.id] = replace(entry, members={})
    if len(book.closed) > rules.max_closed:
        del book.closed[next(iter(book.closed))]
    if entry.family in FAULT_FAMILIES:
        book.faults.append(fault_of(entry, over_ms))
        horizon = book.now_ms - rules.fault_memory_ms
        recent = [fault for fault in book.faults if (fault.end_ms or horizon) >= horizon]
        book.faults[:] = recent[-rules.max_faults :]
    return Change("resolved", entry)
