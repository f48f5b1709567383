"""The ledger: what became of every event, checked against what was stored.

Three counts are made independently of one another. The profiler counts the events of a range of offsets; the detector books what each of its
partitions was given of that range, and what it still holds in open windows; ClickHouse has what was counted in closed windows. Then::

    offsets     |--- range ---|--- range ---|~~ hole ~~|--- range ---|     ranges touch; a hole is announced by a jump
    each range  events = dead + sum over profiles partitions (on_time + late + calibrating)
    all         on_time + late = closed + corrections + open

Whatever breaks one of these is ``unaccounted``. The ranges are added up where they are (``queries.BOOKED``); this is about the sums. While the stream runs, ranges that not every partition has booked yet are ``pending``, and
windows may be stored ahead of the entries that book them. Once it is drained, neither may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Stored(msgspec.Struct, frozen=True):
    """Events found in the stored windows: one size per model, the whole model.

    ``closed`` counts windows as they closed; ``corrections`` counts late contributions.
    """

    closed: int
    corrections: int


class Hole(msgspec.Struct, frozen=True):
    """Offsets that were passed on purpose: ``reason`` was announced by the profiler. An operator's way back has ``end`` below ``start``."""

    partition: int
    start: int
    end: int
    reason: str


class Booked(msgspec.Struct, frozen=True):
    """The ranges of one source partition, added up.

    ``pending`` events are in ranges that not every profiles partition has booked. ``broken`` counts what is wrong
    already: events between ranges or in two of them, and ranges whose events do not add up or are told differently.
    ``jumps`` counts the announced jumps, ``passed`` the offsets that they passed; ``holes`` are the last of them.
    """

    partition: int
    start: int
    end: int
    events: int
    on_time: int
    late: int
    dead: int
    calibrating: int
    pending: int
    broken: int
    jumps: int = 0
    passed: int = 0
    holes: list[Hole] = []

    def __add__(self, after: Booked) -> Booked:
        """The same of ranges that come after these; holes are all of both."""
        return Booked(
            self.partition,
            min(self.start, after.start),
            max(self.end, after.end),
            self.events + after.events,
            self.on_time + after.on_time,
            self.late + after.late,
            self.dead + after.dead,
            self.calibrating + after.calibrating,
            self.pending + after.pending,
            self.broken + after.broken,
            self.jumps + after.jumps,
            self.passed + after.passed,
            self.holes + after.holes,
        )


class Account(msgspec.Struct, frozen=True):
    """What became of the events of one source partition. ``pending`` events were not yet booked by every profiles partition."""

    partition: int
    start: int
    end: int
    events: int
    on_time: int
    late: int
    dead: int
    calibrating: int
    pending: int
    unaccounted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return msgspec.structs.asdict(self)


class Total(msgspec.Struct, frozen=True):
    """The sum of all accounts against what was stored.

    ``open`` events are in windows that the detector holds. ``accounted`` events are found where they belong:
    in windows, open or closed, among the dead letters, or in a calibration. ``unaccounted`` must be 0. ``holes`` counts
    announced jumps and ``passed`` the offsets that they passed: what was in them is not among ``events``.
    """

    events: int
    on_time: int
    late: int
    dead: int
    calibrating: int
    pending: int
    closed: int
    corrections: int
    open: int
    holes: int
    accounted: int
    unaccounted: int
    passed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return msgspec.structs.asdict(self)


class Ledger(msgspec.Struct, frozen=True):
    """All accounts by source partition, the last holes of each, and the total, which counts all holes."""

    rows: list[Account]
    holes: list[Hole]
    total: Total


def balance(
    booked: Sequence[Booked], stored: Stored, *, held: int, drained: bool = False
) -> Ledger:
    """Check every identity.

    Args:
        booked: the sums, one for each source partition.
        stored: what the windows hold, as of then or later.
        held: events in open windows, as of then or later.
        drained: the stream has ended, and what was sent was stored.
    """
    accounts = [_account(one, drained=drained) for one in booked]
    on_time, late = sum(a.on_time for a in accounts), sum(a.late for a in accounts)
    dead, calibrating = sum(a.dead for a in accounts), sum(a.calibrating for a in accounts)
    missing = on_time + late - held - stored.closed - stored.corrections
    total = Total(
        events=sum(a.events for a in accounts),
        on_time=on_time,
        late=late,
        dead=dead,
        calibrating=calibrating,
        pending=sum(a.pending for a in accounts),
        closed=stored.closed,
        corrections=stored.corrections,
        open=held,
        holes=sum(one.jumps for one in booked),
        accounted=stored.closed + stored.corrections + held + dead + calibrating,
        unaccounted=sum(a.unaccounted for a in accounts)
        + (abs(missing) if drained else max(missing, 0)),
        passed=sum(one.passed for one in booked),
    )
    return Ledger(accounts, [hole for one in booked for hole in one.holes], total)


def _account(booked: Booked, *, drained: bool) -> Account:
    return Account(
        partition=booked.partition,
        start=booked.start,
        end=booked.end,
        events=booked.events,
        on_time=booked.on_time,
        late=booked.late,
        dead=booked.dead,
        calibrating=booked.calibrating,
        pending=0 if drained else booked.pending,
        unaccounted=booked.broken + (booked.pending if drained else 0),
    )
