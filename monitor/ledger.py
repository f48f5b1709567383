"""The ledger: what became of every event, checked against what was stored.

Three counts are made independently of one another. The profiler counts the events of a range of offsets; the detector books what each of its
partitions was given of that range, and what it still holds in open windows; ClickHouse has what was counted in closed windows. Then::

    offsets     |--- range ---|--- range ---|~~ hole ~~|--- range ---|     ranges touch; a hole is announced by a jump
    each range  events = dead + sum over profiles partitions (on_time + late + calibrating)
    all         on_time + late = closed + corrections + open

Whatever breaks one of these is ``unaccounted``. While the stream runs, ranges that not every partition has booked yet are ``pending``, and
windows may be stored ahead of the entries that book them. Once it is drained, neither may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from monitor.wire import LedgerEntry


class Stored(msgspec.Struct, frozen=True):
    """Events found in the stored windows: one size per model, the whole model.

    ``closed`` counts windows as they closed; ``corrections`` counts late contributions.
    """

    closed: int
    corrections: int


class Hole(msgspec.Struct, frozen=True):
    """Offsets that were passed on purpose: ``reason`` was announced by the profiler."""

    partition: int
    start: int
    end: int
    reason: str


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
    in windows, open or closed, among the dead letters, or in a calibration. ``unaccounted`` must be 0.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return msgspec.structs.asdict(self)


class Ledger(msgspec.Struct, frozen=True):
    """All accounts by source partition, the holes, and the total."""

    rows: list[Account]
    holes: list[Hole]
    total: Total


def reconcile(entries: Iterable[LedgerEntry], stored: Stored, *, drained: bool = False) -> Ledger:
    """Check every identity.

    Args:
        entries: all rows of the ledger, in any order; of equal ones (a repeat) only one.
        stored: what the windows hold, as of then or later.
        drained: the stream has ended, and what was sent was stored.
    """
    entries = list(entries)
    newest: dict[int, LedgerEntry] = {}
    by_partition: defaultdict[int, list[LedgerEntry]] = defaultdict(list)
    for entry in entries:
        by_partition[entry.partition].append(entry)
        known = newest.get(entry.profiles_partition, entry)
        newest[entry.profiles_partition] = max(known, entry, key=lambda e: e.offset)
    holes: list[Hole] = []
    accounts = [
        _account(partition, rows, len(newest), holes, drained=drained)
        for partition, rows in sorted(by_partition.items())
    ]
    held = sum(entry.open for entry in newest.values())
    booked = sum(a.on_time + a.late for a in accounts)
    dead, calibrating = sum(a.dead for a in accounts), sum(a.calibrating for a in accounts)
    missing = booked - held - stored.closed - stored.corrections
    total = Total(
        events=sum(a.events for a in accounts),
        on_time=sum(a.on_time for a in accounts),
        late=sum(a.late for a in accounts),
        dead=dead,
        calibrating=calibrating,
        pending=sum(a.pending for a in accounts),
        closed=stored.closed,
        corrections=stored.corrections,
        open=held,
        holes=len(holes),
        accounted=stored.closed + stored.corrections + held + dead + calibrating,
        unaccounted=sum(a.unaccounted for a in accounts)
        + (abs(missing) if drained else max(missing, 0)),
    )
    return Ledger(accounts, holes, total)


def _account(
    partition: int, rows: Sequence[LedgerEntry], width: int, holes: list[Hole], *, drained: bool
) -> Account:
    ranges: defaultdict[tuple[int, int], list[LedgerEntry]] = defaultdict(list)
    for row in rows:
        ranges[row.start, row.end].append(row)
    ordered = sorted(ranges.items())
    broken = _chain_errors(partition, ordered, holes)
    events = dead = pending = 0
    for _, booked in ordered:
        whole = max(row.events for row in booked)
        events += whole
        dead += max(row.dead for row in booked)
        broken += whole * _disagree(booked)
        missing = whole - max(row.dead for row in booked) - sum(map(_given, booked))
        if len(booked) < width and missing >= 0 and not drained:
            pending += missing
        else:
            broken += abs(missing)
    return Account(
        partition=partition,
        start=ordered[0][0][0],
        end=max(end for (_, end), _ in ordered),
        events=events,
        on_time=sum(row.on_time for row in rows),
        late=sum(row.late for row in rows),
        dead=dead,
        calibrating=sum(row.calibrating for row in rows),
        pending=pending,
        unaccounted=broken,
    )


def _chain_errors(
    partition: int,
    ordered: Sequence[tuple[tuple[int, int], list[LedgerEntry]]],
    holes: list[Hole],
) -> int:
    """Offsets between ranges that no jump announced, plus offsets that two ranges claim; jumps go to ``holes``."""
    errors, position = 0, ordered[0][0][0]
    for (start, end), booked in ordered:
        reason = next((row.jump for row in booked if row.jump is not None), None)
        if reason is not None:
            holes.append(Hole(partition, position, start, reason))
        else:
            errors += abs(start - position)
        position = max(position, end)
    return errors


def _given(row: LedgerEntry) -> int:
    return row.on_time + row.late + row.calibrating


def _disagree(booked: Sequence[LedgerEntry]) -> bool:
    """Whether the partitions were told different things about one batch."""
    return len({(row.events, row.dead) for row in booked}) > 1
