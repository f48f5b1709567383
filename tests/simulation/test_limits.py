"""What the chain fence cannot show, or not heal: the gap that is known. Each test is to fail once it is closed."""

from __future__ import annotations

import pytest

from monitor import wire
from streams.chain import RESTARTS, ChainFence
from streams.stage import ChainBreakError
from tests.simulation.broker import CrashError


def link(partition: int, start: int, end: int) -> wire.Link:
    """Every event of it was given to this partition of ``profiles``."""
    n = end - start
    return wire.Link(partition, start, end, n, 0, n, 0, 0, 1_000 * end, idle=False)


class Worker:
    """A chain fence and its rows, as the stage uses them; a break starts it anew."""

    def __init__(self, sources: int) -> None:
        self.sources, self.rows = sources, dict[bytes, bytes]()
        self.applied: list[tuple[int, int]] = []
        self.start()

    def start(self) -> None:
        """Take up the rows."""
        self.fence = ChainFence(self.sources)
        self.fence.restore(self.rows)

    def take(self, offset: int, *links: wire.Link) -> None:
        """A message."""
        if offset <= self.fence.offset:
            return
        try:
            admitted = self.fence.admit(offset, links)
        except ChainBreakError as gap:
            self.rows |= [self.fence.break_row()]
            raise CrashError from gap
        if admitted is None:
            return
        assert all(x.jump is None for x in admitted.links), "events were given up as lost"
        self.fence.advance(offset, admitted)
        self.applied += [(x.partition, x.end) for x in admitted.links]
        self.rows |= {key: value for key, value in self.fence.rows() if value is not None}


@pytest.mark.xfail(strict=True, reason="another profiler's message carries the offset past the gap")
def test_a_message_that_was_left_out_is_taken_when_it_comes_again() -> None:
    """Two profilers write in turn. The gap shows with the next message of the same one, when the other's was applied."""
    log = [link(0, 0, 5), link(1, 0, 5), link(0, 5, 9), link(1, 5, 9), link(0, 9, 12)]
    worker = Worker(2)
    for offset in (0, 1, 3):  # 2 is left out
        worker.take(offset, log[offset])
    for _ in range(RESTARTS + 1):
        try:
            for offset in range(2, len(log)) if worker.rows.get(b"break") else [4]:
                worker.take(offset, log[offset])
        except CrashError:
            worker.start()
    assert sorted(worker.applied) == [(0, 5), (0, 9), (0, 12), (1, 5), (1, 9)]


@pytest.mark.xfail(strict=True, reason="the first link of a source partition follows anything")
def test_a_first_message_that_was_left_out_is_noticed() -> None:
    """``from`` is not 0, and no jump is announced: so there was something before."""
    worker = Worker(1)
    with pytest.raises(CrashError):
        worker.take(1, link(0, 5, 9))
