"""What consecutive messages do to several stages: everything that one transaction has to hold.

Pure bookkeeping without a client. The stages advance here, in memory; from then on they are ahead of the log, until the
batch is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streams.delivery import Pending, Record, Target
from streams.stage import ChainBreakError
from streams.worker import Binding


class Batch:
    """Effects by stage, and where the inputs then stand. Mutable: it grows with each message.

    Args:
        stages: the stage of each input topic.
    """

    def __init__(self, stages: Mapping[str, Binding]) -> None:
        self.offsets: dict[Target, int] = {}
        """The next ones to read, to be committed."""
        self.reached: dict[Target, int] = {}
        """The same, or behind it where an end was seen: markers of transactions take offsets, too."""
        self.broken: ChainBreakError | None = None
        self._stages = stages
        self._effects: dict[str, Pending] = {}

    @property
    def size(self) -> int:
        """Bytes of the effects."""
        return sum(pending.size for pending in self._effects.values())

    def apply(self, target: Target, offset: int, value: bytes) -> None:
        """Let the topic's stage advance by a message.

        Where its chain breaks, ``broken`` says so, and the batch takes no more: what the stage yielded before that belongs
        to it, and the message's own offset is then the next one to read.
        """
        self.offsets[target] = self.reached[target] = offset
        binding = self._stages[target[0]]
        pending = self._effects.setdefault(binding.name, Pending())
        try:
            for step in binding.stage.advance(target[0], target[1], offset, value):
                pending.add(target[1], step)
        except ChainBreakError as broken:
            self.broken = broken
            return
        pending.messages += 1
        self.offsets[target] = self.reached[target] = offset + 1

    def records(self) -> Iterator[tuple[Target, Record]]:
        """Outputs and changes of the tables, each partition's in its order."""
        for binding in dict.fromkeys(self._stages.values()):
            pending = self._effects.get(binding.name, Pending())
            for target, outputs in pending.outputs.items():
                yield from ((target, record) for record in outputs)
            for partition in pending.writes:
                target = binding.changelog, partition
                yield from ((target, record) for record in pending.changelog(partition))

    def counts(self) -> Iterator[tuple[str, int, int, int]]:
        """Stage, messages, outputs and writes."""
        for name, pending in self._effects.items():
            outputs = sum(map(len, pending.outputs.values()))
            writes = sum(map(len, pending.writes.values()))
            yield name, pending.messages, outputs, writes
