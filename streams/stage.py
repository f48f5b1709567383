"""A stage is a pure state machine between Kafka topics; a runner gives it messages and makes its effects durable.

The runner (``streams.transactional``, or ``streams.topology`` on Faust) owns delivery; the stage owns meaning. For each
message the stage yields steps, and the runner carries them out, those of several messages together where it can. In one
transaction they are all there or none; on Faust they come in their order::

    message ──► stage.advance() ──► Step(outputs, writes) ──► 1. outputs sent and acknowledged
                                    Step(outputs, writes)     2. writes put into the changelogged table
                                    ...                       3. all acknowledged: the message is done

A crash between two steps leaves a prefix of the steps in the table. ``restore`` must accept every such prefix,
and ``advance`` must then go on from there: outputs may repeat (their ids are deterministic), writes may not be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from monitor import wire
from monitor.errors import IncompatibleError
from monitor.metrics import Overflow, StageReason

Noted = Overflow | StageReason
"""What a stage counts for the metrics of its process: what was beyond a bound, and dead letters by their reason."""

_LETTER_BYTES: Final = 900_000  # brokers take 1 MiB a record; what is cut stays where it came from


@dataclass(frozen=True, slots=True)
class Output:
    """One message for another topic. ``partition`` is explicit: no partitioner decides where state lives."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """Outputs that must be acknowledged before the writes are. A write of ``None`` deletes the key.

    A value is never empty: recovery could not tell it from a deletion. A message's last write is no deletion: compaction
    would remove the changelog's last record, and recovery would wait for it for ever.
    """

    outputs: tuple[Output, ...] = ()
    writes: tuple[tuple[bytes, bytes | None], ...] = ()


class ChainBreakError(Exception):
    """A message is missing between the last one applied and this one: nothing of this one may be applied.

    The runner makes durable what was yielded before, and reads again from the committed offset, with a state that comes
    from the log: in place, or (on Faust, whose client may be what left the message out) in a process that starts anew.
    """


class Stage(Protocol):
    """State machine of one agent, for all the partitions that this worker holds."""

    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        """Rebuild a partition's state from its table: called after recovery and before its first message."""

    def forget(self, partition: int) -> None:
        """Drop a partition's state: another worker has it now."""

    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        """Apply one message. A message that was applied before yields what is left of its effects, or nothing.

        Raises:
            ChainBreakError: a message before this one is missing.
        """


def read(value: bytes) -> wire.Message | None:
    """The message in ``value``; ``None`` where it is not one that this release can read."""
    try:
        return wire.decode(value)
    except (IncompatibleError, RecursionError):
        return None


def dead_letter(
    dlq: str, stage: str, topic: str, partition: int, offset: int, value: bytes
) -> Step:
    """What becomes of a message that will never be one for ``stage``: a dead letter, whose key says why and from where."""
    key = f"{stage}:{topic}:{partition}:{offset}:incompatible".encode()
    return Step((Output(dlq, 0, key, value[:_LETTER_BYTES]),))
