"""The chain fence of one ``profiles`` partition: which message follows what was applied, and what becomes of one that does not.

A message says for each source partition from where to where it goes. Only links that move decide: an empty one says where a partition stands, and
stands there again in every repetition::

    applied to 20     5 ─► 20  known: skip        20 ─► 30  follows: apply        25 ─► 30  20 to 25 are missing: break

A break ends the process, which then reads again from its committed offset. It is counted in the table, under a key of its own, before that. One that
is still there after ``RESTARTS`` restarts is a real loss: the message is applied, with a jump in its link that the ledger books as a hole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from monitor import wire
from monitor.panes import LinkFate, SourceMark, check_link, combined_watermark
from streams.stage import ChainBreakError

RESTARTS: Final = 3
_CHAIN: Final = b"chain"
_BREAK: Final = b"break"
_NEVER: Final = -1


class _ChainState(msgspec.Struct, array_like=True):
    offset: int
    watermark_ms: int | None
    marks: dict[int, tuple[int, int | None, bool]]


class _Break(msgspec.Struct, array_like=True, frozen=True):
    offset: int
    times: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A message that follows: its links, as they are to be booked, and where they leave their partitions."""

    links: Sequence[wire.Link]
    marks: Mapping[int, SourceMark]


class ChainFence:
    """Offset, marks and watermark of what was applied. Mutable: it moves with each message.

    Args:
        sources: partitions of ``predictions``. Before all of them were heard of there is no watermark.
    """

    def __init__(self, sources: int) -> None:
        self.offset = _NEVER
        self.watermark_ms: int | None = None
        self._sources = sources
        self._marks: dict[int, SourceMark] = {}
        self._broken: _Break | None = None

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Take up what ``rows`` wrote into a table."""
        if _CHAIN in rows:
            chain = msgspec.msgpack.decode(wire.unpack(rows[_CHAIN]), type=_ChainState)
            self.offset, self.watermark_ms = chain.offset, chain.watermark_ms
            self._marks = {p: SourceMark(*mark) for p, mark in chain.marks.items()}
        if _BREAK in rows:
            self._broken = msgspec.msgpack.decode(wire.unpack(rows[_BREAK]), type=_Break)

    def admit(self, offset: int, links: Sequence[wire.Link]) -> Admitted | None:
        """What to apply of a message, or ``None`` if it is known.

        Raises:
            ChainBreakError: something before it is missing; ``break_row`` is to be written before the process ends.
        """
        fates = [(link, self._fate(link)) for link in links]
        moving = {fate for link, fate in fates if _moves(link)}
        deciding = moving or {fate for _, fate in fates} or {LinkFate.APPLY}
        # A message with known and new events cannot be taken apart: whatever is done with it is wrong.
        broken = any(fate is LinkFate.BREAK for _, fate in fates) or len(moving) > 1
        if not broken and LinkFate.APPLY not in deciding:
            return None
        if broken:
            self._count_break(offset, fates)
            fates = [(self._forced(link, fate), fate) for link, fate in fates]
        return Admitted(
            [link for link, fate in fates if fate is not LinkFate.SKIP or _moves(link)],
            {
                x.partition: SourceMark(x.end, x.watermark_ms, x.idle)
                for x, fate in fates
                if fate is not LinkFate.SKIP
            },
        )

    def break_row(self) -> tuple[bytes, bytes]:
        """The table row that counts the break."""
        return _BREAK, wire.pack(msgspec.msgpack.encode(self._broken))

    def advance(self, offset: int, admitted: Admitted) -> None:
        """Note that a message is applied."""
        self.offset = offset
        self._marks |= admitted.marks
        now = combined_watermark(self._marks.values(), self._sources)
        # Never back: a partition that wakes up behind it has late events, not an older watermark.
        if now is not None and (self.watermark_ms is None or now > self.watermark_ms):
            self.watermark_ms = now

    def rows(self) -> Iterator[tuple[bytes, bytes | None]]:
        """What the table is to hold after ``advance``. The chain is the last of it, and no deletion."""
        if self._broken is not None:
            self._broken = None
            yield _BREAK, None
        marks = {p: (m.position, m.watermark_ms, m.idle) for p, m in self._marks.items()}
        chain = _ChainState(self.offset, self.watermark_ms, marks)
        yield _CHAIN, wire.pack(msgspec.msgpack.encode(chain))

    def _fate(self, link: wire.Link) -> LinkFate:
        mark = self._marks.get(link.partition)
        return check_link(mark, link.start, link.end, announced=link.jump is not None)

    def _count_break(self, offset: int, fates: Sequence[tuple[wire.Link, LinkFate]]) -> None:
        seen = self._broken
        times = seen.times if seen is not None and seen.offset == offset else 0
        if times >= RESTARTS:
            return
        self._broken = _Break(offset, times + 1)
        gaps = [
            f"partition {x.partition}: applied to {self._marks[x.partition].position}, next starts at {x.start}"
            for x, fate in fates
            if fate is LinkFate.BREAK or (fate is LinkFate.SKIP and _moves(x))
        ]
        raise ChainBreakError("; ".join(gaps))

    def _forced(self, link: wire.Link, fate: LinkFate) -> wire.Link:
        if fate is LinkFate.APPLY or not (fate is LinkFate.BREAK or _moves(link)):
            return link
        position = self._marks[link.partition].position
        if link.start > position:
            return replace(link, jump=f"lost {position} to {link.start}")
        return replace(link, jump=f"repeated {link.start} to {min(link.end, position)}")


def _moves(link: wire.Link) -> bool:
    return link.end > link.start or link.jump is not None
