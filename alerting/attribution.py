"""Whose breach is it? From the verdicts of windows that ended together to findings, each of one family.

The order in which the verdicts arrived does not matter: a batch holds all that end together, and it is sorted here.
Versions are compared on the **same** window (source, segment, size, start) and the same (kind, feature, statistic):

====================  ==========================================  ==================================
newer version         older live versions                         the breach belongs to
====================  ==========================================  ==================================
broken                one is clean, and clearly better            ``release`` of the newer version
broken                broken too, or close to its limit           the model: its drift or its quality
broken                no data, or not live                        the model
broken (labels)       labels of the same window still to come     nobody yet: the message waits
broken (a pane)       clean panes are not reported                the model, once a window has compared them
broken (no limit)     a change point compares a version with      the model
                      its own past
clean                 broken                                      the model: the newer one is no cause
worse (a comparison)  the one that it was compared with           ``release`` of the newer version
inputs differ         an incident of that release is open         that incident, as evidence; else nobody
volume                (it is of all versions together)            the model: ``outage`` if next to nothing is left,
                                                                  ``service`` for a surge or a partial drop
====================  ==========================================  ==================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from alerting.book import (
    Book,
    Family,
    Fault,
    Rules,
    Streak,
    Version,
    age_order,
    live_versions,
    share_rows,
    signal_of,
    status_in,
    stream_of,
)
from monitor.verdicts import INPUTS_DIFFER
from monitor.volume import VOLUME, is_collapse
from monitor.wire import Verdict, VerdictKind, Verdicts, VerdictStatus

_Place: TypeAlias = tuple[str, str, int, int]  # source, segment, size, start
_Peers: TypeAlias = dict[str, Verdicts]  # by version, for one place
_Judged: TypeAlias = dict[_Place, _Peers]
_OUTCOMES = ("prediction_drift", "concept_drift", "performance")  # what a broken input drags along
_OF_THE_MODEL: dict[VerdictKind, Family] = {
    "data_quality": "quality",
    "data_drift": "drift",
    "prediction_drift": "drift",
    "concept_drift": "drift",
    "performance": "drift",
    "service": "service",
    "no_data": "outage",
    "canary": "service",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach with its owner.

    ``sustained`` breaches may open an incident, of ``version``; others only keep one open. ``broken_from_ms`` is the start of the
    first window of the streak and ``certain_ms`` its end: the onset lies between them. ``share`` is the segment's
    part of its version's traffic, where it is known.
    """

    family: Family
    window: Verdicts
    verdict: Verdict
    sustained: bool
    broken_from_ms: int
    certain_ms: int
    share: float | None
    version: str
    rollback_to: str | None = None

    @property
    def signal(self) -> str:
        """Key of the incident member that this breach belongs to."""
        return signal_of(self.window, self.verdict)

    @property
    def streak(self) -> str:
        """Key of the streak that this breach belongs to."""
        return _streak_key(self.window, self.verdict)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a batch says: breaches with their owners, the messages that were judged, and those that have to wait."""

    findings: tuple[Finding, ...]
    ready: tuple[Verdicts, ...]
    waiting: tuple[Verdicts, ...]


def attribute(book: Book, batch: Iterable[Verdicts], rules: Rules) -> Attribution:
    """Find the owner of each breach in ``batch``; updates the versions and streaks of ``book`` in place.

    ``batch`` holds messages of one stream. Cost: linear in its verdicts times the live versions.
    """
    messages = sorted(batch, key=_arrival)
    for message in messages:
        _see_version(book, message, rules)
    messages.sort(key=lambda m: (m.end_ms, age_order(book, m.version), *_arrival(m)))
    judged = _index([*book.labelled, *messages])
    older = {id(message): _older(book, message) for message in messages}
    waiting = [m for m in messages if _must_wait(book, m, older[id(m)], judged)]
    ready = [m for m in messages if m not in waiting]
    findings = [
        finding
        for message in ready
        for finding in _findings(book, message, older[id(message)], judged, rules)
    ]
    return Attribution(tuple(findings), tuple(ready), tuple(waiting))


def _findings(
    book: Book, message: Verdicts, older: Sequence[str], judged: _Judged, rules: Rules
) -> Iterator[Finding]:
    peers = judged[_place(message)]
    comparable = message.source != "pane" or all(version in peers for version in older)
    for verdict in message.verdicts:
        key = _streak_key(message, verdict)
        match verdict.status:
            case "ok":
                book.streaks.pop(key, None)
            case "no_data":
                _bridge(book, key, message)
            case "breach":
                streak = _extend(book, key, message, rules)
                owner = _owner(book, message, verdict, older, peers, rules)
                if owner is None:
                    continue
                onset = verdict.onset_ms
                lasting = message.source != "pane" or streak.count >= rules.panes_to_fire
                yield Finding(
                    family=owner[0],
                    window=message,
                    verdict=verdict,
                    sustained=lasting and (comparable or owner[0] == "release"),
                    broken_from_ms=streak.start_ms if onset is None else onset,
                    certain_ms=streak.certain_ms if onset is None else onset,
                    share=_share(message, judged),
                    version=_blamed(message, verdict, older, peers, owner[0]),
                    rollback_to=owner[1],
                )


def explains(fault: Fault, message: Verdicts, verdict: Verdict, rules: Rules) -> bool:
    """Whether a known fault accounts for a drift breach, so that it is no evidence of its own.

    A broken feature explains its own drift wherever its rows are, and the drift of predictions and performance where
    it had enough of the traffic; a bad release explains all that its version did meanwhile, and an outage all that any did.
    """
    if fault.family != "outage" and message.version not in fault.versions:
        return False
    if message.end_ms <= fault.start_ms:
        return False
    if fault.end_ms is not None and message.start_ms >= fault.end_ms:
        return False
    if fault.family != "quality":
        return True
    if verdict.kind not in _OUTCOMES:
        named = verdict.feature in fault.features
        return named and any(share_rows(segment, message.segment) for segment in fault.segments)
    return any(
        segment == message.segment
        or (share_rows(segment, message.segment) and share >= rules.explains_share)
        for segment, share in fault.segments.items()
    )


def _arrival(message: Verdicts) -> tuple[int, str, int, str, str, int]:
    return (
        message.start_ms,
        message.source,
        message.size_ms,
        message.segment,
        message.version,
        message.revision,
    )


def _see_version(book: Book, message: Verdicts, rules: Rules) -> None:
    if message.n <= 0:
        return
    seen = book.versions.get(message.version, Version(message.end_ms, {}))
    key = f"{stream_of(message)}/{message.size_ms}"
    last = {**seen.last_ms, key: max(message.end_ms, seen.last_ms.get(key, message.end_ms))}
    book.versions[message.version] = Version(min(seen.first_ms, message.end_ms), last)
    if len(book.versions) > rules.max_versions:
        stale = min(book.versions, key=lambda v: (max(book.versions[v].last_ms.values()), v))
        del book.versions[stale]


def _place(message: Verdicts) -> _Place:
    return message.source, message.segment, message.size_ms, message.start_ms


def _index(messages: Iterable[Verdicts]) -> _Judged:
    judged: _Judged = {}
    for message in messages:
        judged.setdefault(_place(message), {})[message.version] = message
    return judged


def _older(book: Book, message: Verdicts) -> list[str]:
    live = live_versions(book, message)
    mine = age_order(book, message.version)
    return [version for version in live if age_order(book, version) < mine]


def _must_wait(book: Book, message: Verdicts, older: Sequence[str], judged: _Judged) -> bool:
    """Labels are judged version by version: a newer version's breach waits for the older ones' judgement."""
    if message.source != "performance" or all(v.status != "breach" for v in message.verdicts):
        return False
    if book.decided_ms.get("performance", 0) >= message.end_ms + 2 * message.size_ms:
        return False  # the older version is not live any more, or was never judged there
    known = judged[_place(message)]
    return any(version not in known for version in older)


def _share(message: Verdicts, judged: _Judged) -> float | None:
    """The segment's part of its version's traffic in this window; ``None`` where the whole was not judged."""
    if not message.segment:
        return 1.0
    place = (message.source, "", message.size_ms, message.start_ms)
    whole = judged.get(place, {}).get(message.version)
    return min(1.0, message.n / whole.n) if whole is not None and whole.n > 0 else None


def _streak_key(message: Verdicts, verdict: Verdict) -> str:
    return f"{signal_of(message, verdict)}\x1f{message.source}\x1f{message.size_ms}"


def _extend(book: Book, key: str, message: Verdicts, rules: Rules) -> Streak:
    last = book.streaks.pop(key, None)
    if last is None or message.start_ms > last.until_ms:
        last = Streak(0, message.start_ms, message.end_ms, message.end_ms)
    until_ms = max(last.until_ms, message.end_ms)
    streak = msgspec.structs.replace(last, count=last.count + 1, until_ms=until_ms)
    book.streaks[key] = streak  # now the youngest: the oldest goes first when there are too many
    if len(book.streaks) > rules.max_signals:
        del book.streaks[next(iter(book.streaks))]
    return streak


def _bridge(book: Book, key: str, message: Verdicts) -> None:
    last = book.streaks.get(key)
    if last is not None and message.start_ms <= last.until_ms:
        until_ms = max(last.until_ms, message.end_ms)
        book.streaks[key] = msgspec.structs.replace(last, until_ms=until_ms)


def _owner(
    book: Book,
    message: Verdicts,
    verdict: Verdict,
    older: Sequence[str],
    peers: _Peers,
    rules: Rules,
) -> tuple[Family, str | None] | None:
    """Family of a breach, and the version to roll back to; ``None`` where it is no fault at all."""
    if verdict.kind == "service" and verdict.statistic == VOLUME:  # of all versions together
        return ("outage" if is_collapse(verdict) else "service"), None
    if verdict.kind == "canary":
        return _of_comparison(book, message, verdict, older)
    elders = {version: peers[version] for version in older if version in peers}
    better = [v for v, peer in elders.items() if _clearly_better(peer, verdict, rules)]
    if better:
        return "release", better[-1]
    broken = any(_status(peer, verdict) == "breach" for peer in elders.values())
    if not broken and _continues_release(book, message, verdict):
        return "release", None
    return _OF_THE_MODEL[verdict.kind], None


def _of_comparison(
    book: Book, message: Verdicts, verdict: Verdict, older: Sequence[str]
) -> tuple[Family, str | None] | None:
    """Worse than an older version is the release's fault. Unlike inputs may be the router's doing: evidence of a release that is known to be bad, and no fault."""
    if verdict.statistic == INPUTS_DIFFER:
        bad = any(e.incident.version == message.version for e in book.cases("release"))
        return ("release", None) if bad else None
    if not older:
        return _OF_THE_MODEL["canary"], None
    better = str(verdict.evidence.get("compared_with", ""))
    return "release", better if better in older else older[-1]


def _blamed(
    message: Verdicts, verdict: Verdict, older: Sequence[str], peers: _Peers, family: Family
) -> str:
    """The version whose incident it is: what is common to several is the oldest one's."""
    if family == "release":
        return message.version
    broken = (v for v in older if v in peers and _status(peers[v], verdict) == "breach")
    return next(broken, message.version)


def _status(peer: Verdicts, verdict: Verdict) -> VerdictStatus:
    return status_in(peer, verdict.kind, verdict.feature, verdict.statistic)


def _continues_release(book: Book, message: Verdicts, verdict: Verdict) -> bool:
    signal = signal_of(message, verdict)
    return any(signal in entry.members for entry in book.cases("release"))


def _clearly_better(peer: Verdicts, verdict: Verdict, rules: Rules) -> bool:
    if verdict.limit is None or _status(peer, verdict) != "ok":
        return False
    mine, other = _in_limits(verdict), None
    for theirs in peer.verdicts:
        if (theirs.kind, theirs.feature, theirs.statistic) == (
            verdict.kind,
            verdict.feature,
            verdict.statistic,
        ):
            other = _in_limits(theirs)
    if mine is None or other is None or mine < 1.0:
        return True  # nothing to compare, or smaller is worse (accuracy): the limits decide alone
    return mine >= rules.contrast * other


def _in_limits(verdict: Verdict) -> float | None:
    if verdict.value is None or verdict.limit is None or verdict.limit <= 0:
        return None
    return verdict.value / verdict.limit
