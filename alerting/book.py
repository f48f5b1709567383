"""What the incident stage remembers about one model: a frozen, bounded value that goes into a table and comes back equal.

The book holds decisions and what later decisions need, never whole history::

    Verdicts ──► held (until every verdict of the same window end is here)
                   └──► streaks (signals that broke lately) ──► open incidents ──► faults (what they explained)

Every field is a container. ``Book.copy`` copies them one level deep; a step works on that copy and returns it, so
the book that was passed in never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from monitor.errors import IncompatibleError
from monitor.versions import natural
from monitor.wire import Evidence, Incident, Verdict, Verdicts, VerdictStatus, pack, unpack

Family = Literal["outage", "quality", "release", "drift", "service"]
Stream = Literal["detector", "performance"]
FAMILIES: Final[tuple[Family, ...]] = ("outage", "quality", "release", "drift", "service")
FAULT_FAMILIES: Final[tuple[Family, ...]] = ("outage", "quality", "release")  # these explain drift
DAY_MS: Final = 86_400_000
MAX_EVIDENCE: Final = 20  # lines that an incident shows: more than a person reads
MAX_TIMELINE: Final = 50


@dataclass(frozen=True, slots=True)
class Rules:
    """How verdicts become incidents. The defaults need no tuning; each says why it is what it is.

    Attributes:
        panes_to_fire: consecutive broken panes before a pane fires. One pane is a gust; a window, or a window of
            labelled predictions, is evidence enough alone, because its limit was set for the alarm budget.
        hold_ms: least time without a breach before an incident resolves. The hold is this or the largest window that
            broke, whichever is longer: a week that broke is judged again only a week later. A day, because faults
            that follow the hour of the day would otherwise open and close every day.
        group_ms: quality breaches of other fields that start this close to an open incident's onset share its cause.
        contrast: a newer version is worse than an older, clean one only if its value, in limits, is this many times
            the older one's. Two versions just on either side of a limit are one drift, not a bad release.
        explains_share: least share of the traffic that a faulty segment needs to explain what the whole model does.
        max_open: open incidents of a model; beyond it a breach is only counted.
        max_signals: broken signals that are followed, and likewise the members of an incident.
        max_series: (source, version, segment, size) whose judged windows are known.
        remembered: judged windows of a series that a repeat is recognised by; older ones are history.
        fault_memory_ms: how long a resolved fault still explains windows that overlap it: labels come late.
        max_hold_ms: an incident that comes back within its hold is opened again, and its hold doubles, up to this: what comes and goes
            every other day is told of a few times in a month, not fifteen.
        max_closed: resolved incidents that may be opened again.
    """

    panes_to_fire: int = 2
    hold_ms: int = DAY_MS
    group_ms: int = DAY_MS
    contrast: float = 1.5
    explains_share: float = 0.05
    max_open: int = 16
    max_signals: int = 256
    max_series: int = 4096
    max_versions: int = 64
    remembered: int = 16
    fault_memory_ms: int = 90 * DAY_MS
    max_faults: int = 32
    max_hold_ms: int = 30 * DAY_MS
    max_closed: int = 16

    def __post_init__(self) -> None:
        """Refuse rules under which nothing could fire, or everything would."""
        if self.panes_to_fire < 1 or self.max_open < 1 or self.hold_ms < 0:
            raise ValueError(
                "panes_to_fire and max_open are at least 1, and hold_ms is not negative"
            )
        if self.contrast < 1.0:
            raise ValueError("contrast below 1 would call a version worse that is better")


class Version(msgspec.Struct, frozen=True):
    """When a version was first judged, and the last end of a judged window by ``stream/size``."""

    first_ms: int
    last_ms: dict[str, int]


class Streak(msgspec.Struct, frozen=True, array_like=True):
    """Adjacent broken windows of one signal in one source and size; ``no_data`` neither adds to it nor breaks it.

    ``[start_ms, certain_ms)`` is the first broken window; ``until_ms`` is where the next one has to start.
    """

    count: int
    start_ms: int
    certain_ms: int
    until_ms: int


class Member(msgspec.Struct, frozen=True):
    """A signal that belongs to an incident: its latest breach, and when it was last broken and last clean.

    ``share`` is the part of the version's traffic that the segment had, where it is known; ``strength`` orders
    evidence (1 = at the limit).
    """

    evidence: Evidence
    stream: Stream
    strength: float
    share: float | None
    broken_ms: int
    clean_ms: int | None = None


class Case(msgspec.Struct, frozen=True):
    """An open incident with what the next decision about it needs.

    ``certain_ms`` is the end of the first broken window: the onset lies before it. ``labels_clean_ms`` is the last
    end of a window whose labels showed that performance held. ``told`` are the notifications that were asked for, and ``sent`` is when each action
    was, dry runs aside; ``acted`` stays empty, and is there because books of 0.1.0 have it.
    ``windows`` counts the ends at which something broke, the last of them ``window_ms``. ``escalated``: an action did not help.
    """

    family: Family
    incident: Incident
    members: dict[str, Member]
    hold_ms: int
    certain_ms: int
    labels_clean_ms: int | None = None
    told: tuple[str, ...] = ()
    acted: tuple[str, ...] = ()
    approved: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    silenced_until_ms: int | None = None
    windows: int = 0
    window_ms: int = 0
    escalated: bool = False
    sent: dict[str, int] = {}


class Fault(msgspec.Struct, frozen=True):
    """What an incident explains: windows that overlap ``[start_ms, end_ms)`` of these versions, segments and features.

    ``segments`` maps a faulty segment to its share of the traffic. ``end_ms`` is ``None`` while the fault lasts.
    """

    family: Family
    incident_id: str
    versions: tuple[str, ...]
    features: tuple[str, ...]
    segments: dict[str, float]
    start_ms: int
    end_ms: int | None


class Acted(msgspec.Struct, frozen=True, array_like=True):
    """An action that was asked for: the memory of cooldowns and daily caps."""

    action: str
    incident_id: str
    at_ms: int


class Book(msgspec.Struct, frozen=True):
    """Everything that the incident stage knows about one model.

    ``complete_ms`` by stream: every verdict of a window that ended by then has come. ``decided_ms`` is the clock, one
    per stream: the latest end that was decided. ``offsets`` is the value fence: the last applied offset by topic.
    ``closed`` are the cases, without their members, that were resolved last and may be opened again.
    """

    model: str
    offsets: dict[str, int] = {}
    complete_ms: dict[str, int] = {}
    decided_ms: dict[str, int] = {}
    versions: dict[str, Version] = {}
    series: dict[str, tuple[tuple[int, int], ...]] = {}
    streaks: dict[str, Streak] = {}
    open: dict[str, Case] = {}
    counters: dict[str, int] = {}
    held: list[Verdicts] = []
    waiting: list[Verdicts] = []
    labelled: list[Verdicts] = []
    faults: list[Fault] = []
    acted: list[Acted] = []
    closed_ids: list[str] = []
    closed: dict[str, Case] = {}

    def copy(self) -> Book:
        """A book whose containers may be changed without changing this one."""
        return Book(
            self.model, *(getattr(self, name).copy() for name in self.__struct_fields__[1:])
        )

    @property
    def now_ms(self) -> int:
        """Event time of the latest decision, whichever stream made it; 0 before the first."""
        return max(self.decided_ms.values(), default=0)

    def cases(self, family: Family) -> list[Case]:
        """The open incidents of a family, oldest first."""
        return [entry for entry in self.open.values() if entry.family == family]


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Book)


def encode_book(book: Book) -> bytes:
    """The table value of a book."""
    return pack(_ENCODER.encode(book))


def decode_book(value: bytes) -> Book:
    """The book in a table value.

    Raises:
        IncompatibleError: not a book, or of another schema version.
    """
    try:
        return _DECODER.decode(unpack(value))
    except msgspec.MsgspecError as err:
        raise IncompatibleError(f"not an incident book of this release: {err}") from err


def stream_of(message: Verdicts) -> Stream:
    """Who orders the message: the detector closes windows in event time; labels judge them later, at their own pace."""
    return "performance" if message.source == "performance" else "detector"


def signal_of(message: Verdicts, verdict: Verdict) -> str:
    """What can break, whatever window it is seen in: the key of an incident's members."""
    return "\x1f".join(
        (message.version, message.segment, verdict.kind, verdict.feature, verdict.statistic)
    )


def age_order(book: Book, version: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    """Sort key of versions, oldest first; versions that appeared together in their natural order (9 before 10)."""
    seen = book.versions.get(version)
    return 1 << 62 if seen is None else seen.first_ms, natural(version)


def live_versions(book: Book, message: Verdicts) -> list[str]:
    """Versions with a judged window among the last two of the message's size; oldest first.

    Clean panes are not reported, so for a pane a version is live if it is by any size.
    """
    prefix = f"{stream_of(message)}/"
    exact = "" if message.source == "pane" else f"{prefix}{message.size_ms}"

    def is_live(seen: Version) -> bool:
        return any(
            last_ms >= message.end_ms - 2 * int(key.removeprefix(prefix))
            for key, last_ms in seen.last_ms.items()
            if key.startswith(prefix) and exact in ("", key)
        )

    live = [name for name, seen in book.versions.items() if is_live(seen)]
    return sorted(live, key=lambda name: age_order(book, name))


def status_in(message: Verdicts, kind: str, feature: str, statistic: str) -> VerdictStatus:
    """What a judged window says about a signal; silence means clean.

    A window names a rate only where it is not zero, and a change point only when it is found. It is ``no_data`` where
    the verdict says so, or one about the whole kind or the whole window does.
    """
    for verdict in message.verdicts:
        if (verdict.kind, verdict.feature, verdict.statistic) == (kind, feature, statistic):
            return verdict.status
    unknown = message.n <= 0 or any(
        v.status == "no_data" and v.kind in (kind, "no_data") and v.feature in ("", feature)
        for v in message.verdicts
    )
    return "no_data" if unknown else "ok"


def share_rows(first: str, second: str) -> bool:
    """Whether two segments may hold the same events: not if they are two values of one dimension."""
    if not first or not second:
        return True
    dimension, _, value = first.partition("=")
    other, _, other_value = second.partition("=")
    return dimension != other or value == other_value
