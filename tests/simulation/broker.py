"""Kafka in memory: logs, transactions that are appended as a whole or not at all, and committed offsets that outlive every process.

Offsets have gaps, as behind a transactional producer: a marker takes one, and so does what was aborted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from streams.delivery import Record, Target


class CrashError(BaseException):
    """The process is gone. Not an Exception, so that nothing can go on after it."""


@dataclass
class Broker:
    """Mutable: it is the world outside of the processes. ``read_committed`` hides what was aborted."""

    read_committed: bool = True
    fencing: bool = True
    logs: defaultdict[Target, list[Record | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    committed: dict[str, dict[Target, tuple[int, int | None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    owners: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def append(self, target: Target, records: Iterable[Record]) -> None:
        """Append outside of a transaction."""
        self.logs[target].extend(records)

    def transact(
        self,
        records: Sequence[tuple[Target, Record]],
        group: str,
        member: int,
        offsets: Mapping[Target, tuple[int, int | None]],
        *,
        commit: bool,
    ) -> bool:
        """Records and offsets together, or neither. A member that lost one of its partitions is refused."""
        owned = self.owners[group]
        commit &= not self.fencing or all(owned.get(p) == member for _, p in offsets)
        for target, record in records:
            self.logs[target].append(record if commit or not self.read_committed else None)
        for target in {target for target, _ in records}:
            self.logs[target].append(None)
        if commit:
            self.committed[group] |= offsets
        return commit

    def commit(self, group: str, member: int, offsets: Mapping[Target, int]) -> bool:
        """Next offsets to read; refused where a partition has another owner."""
        if any(self.owners[group].get(p) != member for _, p in offsets):
            return False
        self.committed[group] |= {target: (offset, None) for target, offset in offsets.items()}
        return True

    def position(self, group: str, target: Target) -> int:
        """Where a new owner goes on."""
        return self.committed[group].get(target, (0, None))[0]

    def read(self, target: Target, start: int, most: int) -> list[tuple[int, Record]]:
        """Up to ``most`` records with their offsets."""
        found: list[tuple[int, Record]] = []
        for offset in range(start, len(self.logs[target])):
            if len(found) == most:
                break
            record = self.logs[target][offset]
            if record is not None:
                found.append((offset, record))
        return found

    def values(self, topic: str, partitions: Iterable[int]) -> Iterator[bytes]:
        """All that is in a topic, partition by partition."""
        for partition in partitions:
            for _, (_, value) in self.read((topic, partition), 0, len(self.logs[topic, partition])):
                if value is not None:
                    yield value
