"""The sums of the ledger in plain Python, range by range: what the query that the store asks is compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from monitor.ledger import Booked, Hole, Ledger, Stored, balance
from monitor.wire import LedgerEntry

Range = tuple[tuple[int, int], list[LedgerEntry]]


def reconcile(entries: Iterable[LedgerEntry], stored: Stored, *, drained: bool = False) -> Ledger:
    """The ledger of these entries, in any order; of equal ones (a repeat) only one."""
    newest: dict[int, LedgerEntry] = {}
    by_partition: defaultdict[int, list[LedgerEntry]] = defaultdict(list)
    for entry in entries:
        by_partition[entry.partition].append(entry)
        known = newest.get(entry.profiles_partition, entry)
        newest[entry.profiles_partition] = max(known, entry, key=lambda e: e.offset)
    booked = [_booked(p, rows, len(newest)) for p, rows in sorted(by_partition.items())]
    return balance(booked, stored, held=sum(e.open for e in newest.values()), drained=drained)


def _booked(partition: int, rows: Sequence[LedgerEntry], width: int) -> Booked:
    ranges: defaultdict[tuple[int, int], list[LedgerEntry]] = defaultdict(list)
    for row in rows:
        ranges[row.start, row.end].append(row)
    ordered = sorted(ranges.items())
    broken, holes = _chain(partition, ordered)
    events = dead = pending = 0
    for _, booked in ordered:
        whole = max(row.events for row in booked)
        events += whole
        dead += max(row.dead for row in booked)
        broken += whole * (len({(row.events, row.dead) for row in booked}) > 1)
        given = sum(row.on_time + row.late + row.calibrating for row in booked)
        missing = whole - max(row.dead for row in booked) - given
        if len(booked) < width and missing >= 0:
            pending += missing
        else:
            broken += abs(missing)
    return Booked(
        partition=partition,
        start=ordered[0][0][0],
        end=max(end for (_, end), _ in ordered),
        events=events,
        on_time=sum(row.on_time for row in rows),
        late=sum(row.late for row in rows),
        dead=dead,
        calibrating=sum(row.calibrating for row in rows),
        pending=pending,
        broken=broken,
        jumps=len(holes),
        passed=sum(max(hole.end - hole.start, 0) for hole in holes),
        holes=holes,
    )


def _chain(partition: int, ordered: Sequence[Range]) -> tuple[int, list[Hole]]:
    """Offsets between ranges that no jump announced, plus offsets that two ranges claim; and the jumps."""
    errors, position, holes = 0, ordered[0][0][0], list[Hole]()
    for (start, end), booked in ordered:
        reasons = [row.jump for row in booked if row.jump is not None]
        if reasons:
            holes.append(Hole(partition, position, start, min(reasons)))
        else:
            errors += abs(start - position)
        position = max(position, end)
    return errors, holes
