"""What a run leaves behind, and what has to be true of it. Nothing here uses the product's own arithmetic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitor import tables, wire
from monitor.binning import SPECIALS
from tests.simulation.broker import Broker
from tests.simulation.processes import PARTITIONS, TOPICS
from tests.simulation.sink import Row
from tests.simulation.world import CLOCK, Cell, models

Published = dict[tuple[Any, ...], set[bytes]]
"""What a message is about -> all the bytes that were ever sent about it."""


class MismatchError(AssertionError):
    """An invariant does not hold."""


@dataclass
class Outcome:
    """Rows of the sink and messages of the topics; repeats count once."""

    cells: Counter[Cell]
    ledger: list[str]
    dead: Counter[bytes]
    windows: Published
    verdicts: dict[str, Published]
    incidents: Published
    outbox: Published
    late: int
    faults: Counter[str]


def outcome_of(
    broker: Broker, stored: Mapping[str, Mapping[Row, Row]], sources: int, faults: Counter[str]
) -> Outcome:
    """Gather it."""
    windows: Published = {}
    verdicts: defaultdict[str, Published] = defaultdict(dict)
    incidents: Published = {}
    outbox: Published = {}
    for topic in (TOPICS.windows, TOPICS.verdicts, TOPICS.incidents, TOPICS.outbox):
        for value in broker.values(topic, range(PARTITIONS)):
            match wire.decode(value):
                case wire.Window(contribution="") as w:
                    key: tuple[Any, ...] = (w.model, w.version, w.segment, w.bins_id, w.size_ms, w.start_ms)  # fmt: skip
                    windows.setdefault(key, set()).add(value)
                case wire.Verdicts() as v:
                    key = (v.source, v.version, v.segment, v.size_ms, v.start_ms)
                    verdicts[v.model].setdefault(key, set()).add(value)
                case wire.Incident() as i:
                    incidents.setdefault((i.id, i.revision), set()).add(value)
                case wire.OutboxItem() as o:
                    outbox.setdefault((o.id,), set()).add(value)
                case _:
                    pass
    return Outcome(
        cells=_cells(stored["windows"]),
        ledger=_ledger(stored["ledger"], stored["windows"]),
        dead=Counter(broker.values(TOPICS.dlq, range(sources))),
        windows=windows,
        verdicts=dict(verdicts),
        incidents=incidents,
        outbox=outbox,
        late=sum(_Entry(*row).late for row in stored["ledger"].values()),
        faults=faults,
    )


def check(
    found: Outcome, wanted: Counter[Cell], straight: Outcome, *, crowded: bool, same: bool
) -> None:
    """Compare.

    Args:
        found: of the run.
        wanted: by plain counting.
        straight: of the undisturbed run.
        crowded: some versions may be counted as one.
        same: verdicts, and what follows from them, have to be those of the undisturbed run.

    Raises:
        MismatchError: with what is wrong.
    """
    if crowded:
        _equal("counts", _folded(found.cells), _folded(wanted))
    else:
        _equal("counts", found.cells, wanted)
    _equal("dead letters", found.dead, straight.dead)
    if found.ledger:
        raise MismatchError("ledger: " + "; ".join(found.ledger[:3]))
    _check_once(found)
    if same:
        _check_same(found, straight)


def _check_once(found: Outcome) -> None:
    """Whatever was sent again was the same, to the bit: so nothing closed twice with another content."""
    verdicts = {(model, *key): v for model, of in found.verdicts.items() for key, v in of.items()}
    for kept in (found.windows, verdicts, found.incidents, found.outbox):
        for key, values in kept.items():
            if len(values) > 1:
                raise MismatchError(f"{key} was published with {len(values)} values: {_short(values)}")  # fmt: skip


def _check_same(found: Outcome, straight: Outcome) -> None:
    _equal("closed windows", found.windows, straight.windows)
    for model in sorted(straight.verdicts.keys() | found.verdicts.keys()):
        has, must = found.verdicts.get(model, {}), straight.verdicts.get(model, {})
        _equal(f"verdicts of {model}", has, must)
        if [*has] != [*must]:
            raise MismatchError(f"verdicts of {model} come in another order")
    _equal("incidents", found.incidents, straight.incidents)
    _equal("outbox", found.outbox, straight.outbox)


def _equal(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
    if found == wanted:
        return
    keys = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    some = "; ".join(f"{k}: {_short(found.get(k))}, not {_short(wanted.get(k))}" for k in keys[:3])
    raise MismatchError(f"{what} differ in {len(keys)} places: {some}")


def _short(value: object) -> str:
    if isinstance(value, set):
        return " and ".join(str(wire.decode(v))[:300] for v in sorted(value))
    return str(value)


def _cells(windows: Mapping[Row, Row]) -> Counter[Cell]:
    """Counts of all contributions, by cell."""
    found = Counter[Cell]()
    column = {name: i for i, name in enumerate(tables.SCHEMAS["windows"].names)}
    for row in windows.values():
        model, version, segment, size, start, feature = row[:6]
        if model == CLOCK:
            continue
        head = (model, version, segment, size, start, feature)
        if feature == "":
            found[(*head, "n")] += row[column["n"]]
        for i, count in enumerate(row[column["counts"]]):
            found[(*head, str(i))] += count
        for name in SPECIALS:
            found[(*head, name)] += row[column[name]]
    return +found


def _folded(cells: Counter[Cell]) -> Counter[Cell]:
    found = Counter[Cell]()
    for (model, _, *rest), n in cells.items():
        found[(model, "", *rest)] += n  # type: ignore[index]  # mypy loses the length
    return found


class _Entry(NamedTuple):
    """A row of the ledger, in the order of its columns."""

    partition: int
    start: int
    profiles_partition: int
    end: int
    offset: int
    open: int
    events: int
    dead: int
    on_time: int
    late: int
    calibrating: int
    jump: str | None


def _ledger(ledger: Mapping[Row, Row], windows: Mapping[Row, Row]) -> list[str]:
    """What the ledger cannot account for, once all is drained."""
    found: list[str] = []
    newest: dict[int, _Entry] = {}
    ranges: defaultdict[tuple[int, int, int], list[_Entry]] = defaultdict(list)
    for row in ledger.values():
        entry = _Entry(*row)
        ranges[entry.partition, entry.start, entry.end].append(entry)
        if entry.offset >= newest.get(entry.profiles_partition, entry).offset:
            newest[entry.profiles_partition] = entry
    given, at = 0, dict[int, int]()
    for (partition, start, end), booked in sorted(ranges.items()):
        place = f"partition {partition}, {start} to {end}"
        found += [f"{place}: {entry.jump}" for entry in booked if entry.jump is not None]
        if at.get(partition, 0) != start:
            found.append(f"{place} does not begin at {at.get(partition, 0)}")
        at[partition] = max(end, at.get(partition, 0))
        whole = {(entry.events, entry.dead) for entry in booked}
        share = sum(entry.on_time + entry.late + entry.calibrating for entry in booked)
        if {share + dead for _, dead in whole} != {events for events, _ in whole}:
            found.append(f"{place}: {share} of {sorted(whole)}")
        given += share
    held = sum(entry.open for entry in newest.values())
    if given != held + (stored := _stored(windows)):
        found.append(f"{given} events were given, {held} are held and {stored} stored")
    return found


def _stored(windows: Mapping[Row, Row]) -> int:
    """Events in the smallest windows of the whole models, late ones included."""
    column = {name: i for i, name in enumerate(tables.SCHEMAS["windows"].names)}
    smallest = {n: min(m.spec.windows.sizes) for n, m in models().models.items()}
    return sum(
        row[column["n"]]
        for row in windows.values()
        if row[column["segment"]] == row[column["feature"]] == ""
        and row[column["size_ms"]] == smallest[row[0]]
    )
