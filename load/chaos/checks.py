"""The invariants of a chaos run, as rows: what was compared, with numbers, and whether it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from load.chaos import oracle
from load.chaos.run import Effects, Marks
from monitor import wire

MIB: Final = 1 << 20
CATCH_UP_S: Final = 300.0
_SHOWN: Final = 5

# Highest peaks of runs of 50,000 to 150,000 events were 380, 246, 291 and 186; a third more is left for larger batches.
MEMORY_MIB: Final[Mapping[str, int]] = {
    "profiler": 512,
    "detector": 400,
    "sink": 600,
    "dispatcher": 256,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One invariant. ``problems`` are sentences; none of them: it holds."""

    name: str
    checked: str
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def ledger(found: Effects, expected: oracle.Expected) -> Row:
    """Every event is accounted for, partition by partition, and as many as the file has."""
    total, problems = found.ledger.total, []
    for account in found.ledger.rows:
        wanted = expected.events_by_partition.get(account.partition, 0)
        dead = expected.dead_by_partition.get(account.partition, 0)
        end = found.sent.get(account.partition, 0)
        for what, got, right in (
            ("unaccounted", account.unaccounted, 0),
            ("pending", account.pending, 0),
            ("start", account.start, 0),
            ("end", account.end, end),
            ("events", account.events, wanted),
            ("dead", account.dead, dead),
        ):
            if got != right:
                problems.append(f"partition {account.partition}: {what} is {got:,}, not {right:,}")
    problems += [
        f"hole in partition {hole.partition}, {hole.start} to {hole.end}: {hole.reason}"
        for hole in found.ledger.holes
    ]
    if total.unaccounted:
        problems.append(f"{total.unaccounted:,} events are unaccounted in total")
    if len(found.ledger.rows) != len(found.sent):
        problems.append(f"{len(found.ledger.rows)} partitions are booked, not {len(found.sent)}")
    checked = (
        f"{total.events:,} events in {len(found.ledger.rows)} partitions = {total.closed:,} in windows + {total.corrections:,} "
        f"in corrections + {total.open:,} open + {total.dead:,} dead; unaccounted {total.unaccounted}"
    )
    return Row("ledger", checked, tuple(problems))


def clickhouse(found: Effects, expected: oracle.Expected) -> Row:
    """Every count of every bin equals the oracle's."""
    problems = oracle.compare(expected, (tuple(row) for row in found.windows))
    checked = f"{len(found.windows):,} rows of windows against a count of the file by other code"
    return Row("ClickHouse", checked, tuple(problems))


def determinism(found: Effects, calm: Effects) -> Row:
    """Verdicts and incidents are those of a run that nobody disturbed, bit for bit."""
    problems = [
        f"{len(values)} different messages say {key}"
        for key, values in found.verdicts.items()
        if len(values) > 1
    ]
    problems += _differences("verdict", found.verdicts, calm.verdicts)
    problems += _differences("incident", found.incidents, calm.incidents)
    fates = ("events", "on_time", "late", "dead", "calibrating")
    for mine, other in zip(found.ledger.rows, calm.ledger.rows, strict=False):
        problems += [
            f"partition {mine.partition}: {fate} is {getattr(mine, fate):,}, undisturbed {getattr(other, fate):,}"
            for fate in fates
            if getattr(mine, fate) != getattr(other, fate)
        ]
    repeats = found.verdict_messages - len(found.verdicts)
    checked = (
        f"{len(found.verdicts):,} verdict messages ({repeats:,} repeats, all alike) and {len(found.incidents)} incidents "
        "equal those of 1 profiler and 1 detector undisturbed"
    )
    return Row("determinism", checked, tuple(problems))


def actions(found: Effects, calm: Effects | None) -> Row:
    """What was asked for has arrived, under one key and with one body; nothing else has."""
    asked = found.outbox if calm is None else calm.outbox
    sent = {
        key
        for key in asked
        for delivery in found.deliveries.get(key, [])
        if delivery.outcome != "dry_run"
    }
    taken = Counter(call.webhook_id for call in found.calls if call.taken)
    problems = [
        f"{key} was never recorded" for key in sorted(asked.keys() - found.deliveries.keys())
    ]
    problems += [f"{key} never arrived" for key in sorted(sent - taken.keys())]
    problems += [
        f"{key} is invented" for key in sorted({c.webhook_id for c in found.calls} - asked.keys())
    ]
    problems += [
        f"{delivery.id} was {delivery.outcome}: {delivery.detail}"
        for of_one in found.deliveries.values()
        for delivery in of_one
        if delivery.outcome not in ("delivered", "dry_run")
    ]
    problems += _bodies(found)
    if not asked:
        problems.append("nothing was asked for: the run proves nothing")
    failed = sum(call.answer != "ok" for call in found.calls)
    checked = (
        f"{len(asked)} actions and notifications, {len(found.calls)} calls of which {failed} failed; "
        f"{sum(n > 1 for n in taken.values())} arrived more than once, {max(taken.values(), default=0)} times at most"
    )
    return Row("actions", checked, tuple(problems))


def _bodies(found: Effects) -> list[str]:
    """One key, one body; and in the outbox one key, one item."""
    bodies: dict[str, set[bytes]] = {}
    for call in found.calls:
        bodies.setdefault(call.webhook_id, set()).add(call.body)
    return [f"{key} arrived with {len(b)} bodies" for key, b in bodies.items() if len(b) > 1] + [
        f"the outbox has {len({wire.unpack(v) for v in values})} items under {key}"
        for key, values in found.outbox.items()
        if len({wire.unpack(v) for v in values}) > 1
    ]


def memory(marks: Marks) -> Row:
    """No process had more resident memory than it is granted."""
    problems = [
        f"{role} had {peak / MIB:.0f} MiB, more than {MEMORY_MIB[role]}"
        for role, peak in marks.peaks.items()
        if peak > MEMORY_MIB[role] * MIB
    ]
    peaks = ", ".join(
        f"{role} {peak / MIB:.0f} of {MEMORY_MIB[role]}" for role, peak in marks.peaks.items()
    )
    return Row("memory", f"peak RSS in MiB: {peaks}", tuple(problems))


def progress(marks: Marks) -> Row:
    """Everything was caught up with."""
    problems = []
    if marks.catch_up_s > CATCH_UP_S:
        problems.append(f"catching up took {marks.catch_up_s:.0f} s")
    ends = ", ".join(f"{name} ({code})" for name, code in marks.own_ends)
    checked = (
        f"caught up {marks.catch_up_s:.0f} s after the last event, waiting for idleness included; "
        f"longest gap without progress {marks.gap_s():.1f} s; {len(marks.own_ends)} processes ended by themselves"
        + (f": {ends}" if ends else "")
    )
    return Row("time", checked, tuple(problems))


def _differences(what: str, found: Mapping[Any, object], wanted: Mapping[Any, object]) -> list[str]:
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
    return [
        *_some(f"{what}s are missing", missing),
        *_some(f"{what}s are not in the undisturbed run", extra),
        *_some(f"{what}s differ from the undisturbed run", other),
    ]


def _some(sentence: str, keys: Iterable[object]) -> Sequence[str]:
    ordered = sorted(keys, key=repr)
    if not ordered:
        return ()
    shown = "; ".join(map(repr, ordered[:_SHOWN]))
    return (f"{len(ordered):,} {sentence}: {shown}",)
