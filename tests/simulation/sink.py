"""The sink of the simulation: rows of the real intake in dictionaries that replace as ClickHouse does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

from confluent_kafka import Message

from monitor import tables
from monitor.profile import Layout
from monitor.tables import TableName
from streams.delivery import Target
from streams.intake import Intake
from tests.simulation.broker import Broker
from tests.simulation.processes import PARTITIONS, SINK, TOPICS
from tests.simulation.world import models

FOLLOWED: Final[tuple[TableName, ...]] = ("windows", "ledger", "verdicts", "incidents")
Row = tuple[Any, ...]
_STATEMENT: Final = re.compile(
    r"CREATE TABLE IF NOT EXISTS \{database\}\.(?P<created>\w+) \(.*?"
    r"ReplacingMergeTree(?:\((?P<revision>\w+)\))?.*?ORDER BY (?:\((?P<key>[^)]*)\)|(?P<one>\w+))"
    r"|\{database\}\.(?P<old>\w+) TO \{database\}\.(?P<new>\w+)",
    re.DOTALL,
)


@cache
def keys() -> Mapping[str, tuple[tuple[str, ...], str | None]]:
    """Of each table its sorting key and its revision, as the migrations have them."""
    found: dict[str, tuple[tuple[str, ...], str | None]] = {}
    folder = resources.files("monitor") / "migrations"
    for migration in sorted(folder.iterdir(), key=lambda file: file.name):
        for m in _STATEMENT.finditer(migration.read_text()):
            if m["created"]:
                found[m["created"]] = (tuple(re.findall(r"\w+", m["key"] or m["one"])), m["revision"])  # fmt: skip
            elif m["old"] in found and m["new"] not in found:
                found[m["new"]] = found.pop(m["old"])
    return found


def _layout(model: str, bins_id: str) -> Layout | None:
    known = models().newest(model)
    reference = None if known is None else known.reference
    if reference is None or reference.layout.bins_id != bins_id:
        return None
    return reference.layout


@dataclass
class Sink:
    """Inserts, then commits. Mutable: the tables are durable, the rest is nothing that a crash could take."""

    broker: Broker
    commit_first: bool = False
    tables: dict[str, dict[Row, Row]] = field(
        default_factory=lambda: {name: {} for name in FOLLOWED}
    )

    def __post_init__(self) -> None:
        self._intake = Intake(TOPICS, _layout)
        self._places: dict[str, tuple[list[int], int]] = {}
        for name in FOLLOWED:
            key, revision = keys()[name]
            columns = tables.SCHEMAS[name].names
            assert revision is not None
            self._places[name] = ([columns.index(c) for c in key], columns.index(revision))

    def batch(self, most: int, die_at: int = -1) -> None:
        """At most ``most`` messages of each partition. It dies after ``die_at`` inserted messages, -1: not at all."""
        followed = (TOPICS.windows, TOPICS.verdicts, TOPICS.incidents)
        read = [
            ((topic, partition), offset, value or b"")
            for topic in followed
            for partition in range(PARTITIONS)
            for offset, (_, value) in self.broker.read(
                (topic, partition), self.broker.position(SINK, (topic, partition)), most
            )
        ]
        after = {target: (offset + 1, None) for target, offset, _ in read}
        if self.commit_first:
            self.broker.committed[SINK] |= after
        for i, message in enumerate(read):
            if i == die_at:
                return
            self._insert(*message)
        self.broker.committed[SINK] |= after

    def _insert(self, target: Target, offset: int, value: bytes) -> None:
        parcel = self._intake.read(Message(*target, offset, value=value))
        assert parcel.reason is None, f"{parcel.reason}: {parcel.detail}"
        for name, rows in parcel.rows.items():
            key, revision = self._places[name]
            table = self.tables[name]
            for row in rows:
                place = tuple(row[i] for i in key)
                if place not in table or table[place][revision] <= row[revision]:
                    table[place] = row
