"""The ledger's rows as sums by source partition, at a cost that does not grow with the months.

A row is written for each batch, source partition and profiles partition: millions a day. Ranges that every profiles partition has
booked, without a gap before them, can change no more: ``settle`` adds them up once and for all::

    offsets of one source partition   |--- settled: one row of sums ---|--- added up at each question ---|
                                                                     until: the start of the last clean range

One thing comes back below ``until``: a jump to an earlier offset (an operator's reset, a topic that was created anew). It is seen by the
number of jumps there, and then nothing of that partition counts as settled beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from monitor import queries
from monitor.clickhouse import ClickHouse
from monitor.ledger import Booked, Hole

_MANY_JUMPS: Final = (
    48  # bits of an offset: of two rows the one with more jumps is newer, then the longer one
)


class _Settled(msgspec.Struct, frozen=True):
    """Sums of all ranges of a source partition that start below ``until``."""

    partition: int
    until: int
    jumps: int
    sums: Booked


class Bookings:
    """Questions about the ledger's rows. Stateless: what is settled is in the database."""

    def __init__(self, link: ClickHouse) -> None:
        self._link = link

    def all(self) -> list[Booked]:
        """The sums, one for each source partition."""
        settled = self._settled()
        scope, values = _after(settled)
        rest = self._rows(queries.BOOKED, scope, scope, values)
        return [_whole(settled.get(row["partition"]), row) for row in rest]

    def held(self) -> int:
        """Events in open windows."""
        scope, values = _after(self._settled())
        return int(self._rows(queries.HELD, scope, scope, values)[0]["held"])

    def settle(self) -> int:
        """Settle what can be; the number of source partitions where that was something. May be done by several at once."""
        settled = self._settled()
        scope, values = _after(settled)
        moved = {
            row["partition"]: row["until"]
            for row in self._rows(queries.BOOKED, scope, scope, values)
            if row["until"] > _from(settled.get(row["partition"]), row["start"])
        }
        if not moved:
            return 0
        below, bounds = _between(
            {p: (_from(settled.get(p), 0), until) for p, until in moved.items()}
        )
        for row in self._rows(queries.BOOKED, f"({scope}) AND ({below})", scope, values | bounds):
            partition = row["partition"]
            self._save(partition, moved[partition], _whole(settled.get(partition), row))
        return len(moved)

    def _save(self, partition: int, until: int, sums: Booked) -> None:
        self._link.execute(
            "INSERT INTO ledger_settled (partition, until_offset, jumps, revision, sums)"
            " VALUES ({partition:UInt32}, {until:UInt64}, {jumps:UInt64}, {revision:UInt64}, {sums:String})",
            {
                "partition": partition,
                "until": until,
                "jumps": sums.jumps,
                "revision": (sums.jumps << _MANY_JUMPS) + until,
                "sums": msgspec.json.encode(sums).decode(),
            },
        )

    def _settled(self) -> dict[int, _Settled]:
        """By source partition, what is settled and still true."""
        rows = self._link.rows(queries.SETTLED)
        known = [
            _Settled(**{**r, "sums": msgspec.json.decode(r["sums"], type=Booked)}) for r in rows
        ]
        if not known:
            return {}
        scope, values = _between({one.partition: (0, one.until) for one in known})
        found = {
            r["partition"]: r["jumps"] for r in self._rows(queries.JUMPS, scope, scope, values)
        }
        return {one.partition: one for one in known if found.get(one.partition, 0) == one.jumps}

    def _rows(
        self, query: str, scope: str, everything: str, values: Mapping[str, object]
    ) -> list[dict[str, Any]]:
        text = query.replace("{scope}", f"({scope})").replace("{everything}", everything)
        return self._link.rows(text, values)


def _from(settled: _Settled | None, otherwise: int) -> int:
    return otherwise if settled is None else settled.until


def _after(settled: Mapping[int, _Settled]) -> tuple[str, dict[str, object]]:
    """Condition on the rows that are not settled, and its values."""
    if not settled:
        return "1", {}
    parts, values = ["partition NOT IN {settled:Array(UInt32)}"], dict[str, object]()
    for i, one in enumerate(settled.values()):
        parts.append(f"(partition = {{p{i}:UInt32}} AND start_offset >= {{a{i}:UInt64}})")
        values |= {f"p{i}": one.partition, f"a{i}": one.until}
    return " OR ".join(parts), values | {"settled": list(settled)}


def _between(bounds: Mapping[int, tuple[int, int]]) -> tuple[str, dict[str, object]]:
    """Condition on rows by source partition: their ranges start in ``[from, below)``."""
    parts, values = list[str](), dict[str, object]()
    for i, (partition, (start, below)) in enumerate(bounds.items()):
        inside = f"start_offset >= {{f{i}:UInt64}} AND start_offset < {{b{i}:UInt64}}"
        parts.append(f"(partition = {{q{i}:UInt32}} AND {inside})")
        values |= {f"q{i}": partition, f"f{i}": start, f"b{i}": below}
    return " OR ".join(parts), values


def _whole(settled: _Settled | None, row: dict[str, Any]) -> Booked:
    fields = {name: row[name] for name in Booked.__struct_fields__}
    holes = [Hole(row["partition"], hole["1"], hole["2"], hole["3"]) for hole in row["holes"]]
    booked = Booked(**{**fields, "holes": holes})
    if settled is not None:
        booked = settled.sums + booked
    return msgspec.structs.replace(booked, holes=booked.holes[-queries.MAX_HOLES :])
