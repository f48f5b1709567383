"""State machines: panes and the chain with its watermark, against bookkeeping that a reader can check in his head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.binning import NumericBins
from monitor.panes import (
    ClosedPane,
    ClosedWindow,
    Panes,
    SeriesKey,
    SourceMark,
    late_contributions,
)
from monitor.profile import Layout, Profile
from monitor.wire import Link
from streams.chain import ChainFence
from streams.stage import ChainBreakError

LAYOUT = Layout({"x": NumericBins(np.empty(0), 0.0, 0.0, 0.0, 1.0)})
PANE, SIZES, LATENESS = 10, (20, 60), 5
SOURCES = 3


def events(n: int) -> Profile:
    vector = np.zeros(LAYOUT.size, dtype=np.int64)
    vector[0] = n
    return Profile(LAYOUT, vector)


class PanesMachine(RuleBasedStateMachine):
    """Deltas come in any order, the watermark goes up, and now and then the process starts anew."""

    def __init__(self) -> None:
        super().__init__()
        self.panes = self.fresh()
        self.watermark_ms = 0
        self.added = self.late = self.closed = 0
        self.windowed: Counter[int] = Counter()
        self.corrected: Counter[int] = Counter()
        self.seen: set[tuple[SeriesKey, int]] = set()
        self.ended: set[tuple[SeriesKey, int, int]] = set()

    @staticmethod
    def fresh() -> Panes:
        """More versions come than places are."""
        return Panes(PANE, SIZES, LATENESS, versions=2)

    @rule(
        version=st.sampled_from("1234"),
        segment=st.sampled_from(["", "c=UA"]),
        pane=st.integers(-3, 12),
        n=st.integers(1, 5),
    )
    def add(self, version: str, segment: str, pane: int, n: int) -> None:
        """As the stage does: what is passed is late, and changes no pane."""
        key, start = (
            SeriesKey("m", version, segment, "b"),
            (self.watermark_ms // PANE + pane) * PANE,
        )
        self.panes.settle()
        if self.panes.is_passed(start, self.watermark_ms):
            self.late += n
            for window in late_contributions(key, start, events(n), SIZES):
                assert window.start_ms <= start < window.start_ms + window.size_ms
                self.corrected[window.size_ms] += n
        else:
            assert (self.panes.owner(key, start), start) not in self.seen
            self.added += n
            self.panes.add(key, start, events(n))

    @rule(by=st.integers(0, 90))
    def advance(self, by: int) -> None:
        """Time passes."""
        self.panes.settle()
        self.watermark_ms += by
        passed = self.watermark_ms - LATENESS
        last_start = last_end = -(2**62)
        for closed in self.panes.advance(self.watermark_ms):
            match closed:
                case ClosedPane(key, start, profile):
                    assert (key, start) not in self.seen, "a pane closed twice"
                    self.seen.add((key, start))
                    assert start + PANE <= passed
                    assert start >= max(last_start, last_end), "out of order"
                    last_start = start
                    self.closed += profile.n
                case ClosedWindow(key, start, size, profile):
                    assert (key, start, size) not in self.ended, "a window closed twice"
                    self.ended.add((key, start, size))
                    assert start + size <= passed
                    assert start + size >= last_end, "out of order"
                    last_end = start + size
                    assert last_start < last_end, "a pane of the next window came before"
                    self.windowed[size] += profile.n

    @rule()
    def restart(self) -> None:
        """The state is taken up by a new process."""
        self.panes.settle()
        before, self.panes = self.panes, self.fresh()
        self.panes.rosters = deepcopy(before.rosters)
        self.panes.windows = deepcopy(before.windows)
        self.panes.adopt()
        for (key, start), profile in before.open.items():
            self.panes.add(key, start, profile)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Of what was added, all is in open or in closed panes, and in windows of each size."""
        held = sum(profile.n for profile in self.panes.open.values())
        assert held + self.closed == self.added
        for size in SIZES:
            running = sum(w.open[size][1].n for w in self.panes.windows.values() if size in w.open)
            assert self.windowed[size] + running == self.closed
            assert self.corrected[size] == self.late

    @invariant()
    def what_passed_is_closed(self) -> None:
        """No open pane is one that the watermark has passed."""
        assert (
            not any(
                self.panes.is_passed(start, self.watermark_ms - 1) for _, start in self.panes.open
            )
            or self.watermark_ms == 0
        )


class ChainMachine(RuleBasedStateMachine):
    """Messages of profilers reach a detector that dies, and to which messages come twice, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[list[Link]] = []
        self.ends: dict[int, SourceMark] = {}
        self.rows: dict[bytes, bytes] = {}
        self.fence = ChainFence(SOURCES)
        self.next = 0
        self.applied: Counter[int] = Counter()
        self.highest: int | None = None

    @rule(
        moves=st.dictionaries(
            st.integers(0, SOURCES - 1),
            st.tuples(st.integers(0, 3), st.integers(0, 50), st.booleans()),
            min_size=1,
        )
    )
    def profile(self, moves: Mapping[int, tuple[int, int, bool]]) -> None:
        """A batch: some events of some partitions, none of which ever has an older largest time."""
        links = []
        for partition, (count, later, idle) in sorted(moves.items()):
            before = self.ends.get(partition, SourceMark(0, None, idle=False))
            watermark = before.watermark_ms
            if count:
                watermark = (watermark or 0) + later
            after = SourceMark(before.position + count, watermark, idle)
            self.ends[partition] = after
            links.append(
                Link(partition, before.position, after.position, count, 0, count, 0, 0, watermark, idle)
            )  # fmt: skip
        self.log.append(links)

    @precondition(lambda self: self.next < len(self.log))
    @rule()
    def deliver(self) -> None:
        """The next message."""
        self.take(self.next)
        self.next += 1

    @precondition(lambda self: self.next > 0)
    @rule(back=st.integers(1, 5))
    def read_again(self, back: int) -> None:
        """The worker starts anew, and reads from a committed offset that is behind."""
        self.fence = ChainFence(SOURCES)
        self.fence.restore(self.rows)
        for offset in range(max(0, self.next - back), self.next):
            self.take(offset)

    @precondition(lambda self: self.next + 1 < len(self.log))
    @rule()
    def lose_one(self) -> None:
        """A message is left out: where the next one speaks of its partitions, that is a break, and nothing is applied."""
        missing, following = self.log[self.next], self.log[self.next + 1]
        moved = {x.partition for x in missing if x.end > x.start}
        heard = {x.partition for links in self.log[: self.next] for x in links}
        if not moved & {x.partition for x in following} & heard:
            return
        before = self.fence.watermark_ms, dict(self.applied)
        try:
            self.take(self.next + 1)
        except ChainBreakError:
            self.rows |= [self.fence.break_row()]
        else:
            raise AssertionError("a gap was passed")
        assert before == (self.fence.watermark_ms, dict(self.applied))
        self.fence = ChainFence(SOURCES)
        self.fence.restore(self.rows)
        self.deliver()
        self.deliver()

    def take(self, offset: int) -> None:
        """What the stage does with a message."""
        if offset <= self.fence.offset:
            return
        admitted = self.fence.admit(offset, self.log[offset])
        if admitted is None:
            return
        assert all(link.jump is None for link in admitted.links), "a hole was made up"
        self.applied[offset] += 1
        self.fence.advance(offset, admitted)
        for key, value in self.fence.rows():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    @invariant()
    def each_message_is_applied_once(self) -> None:
        """And none before its turn."""
        assert self.applied == Counter(range(self.next))

    @invariant()
    def the_watermark_is_that_of_the_slowest_and_never_falls(self) -> None:
        """Against the definition, from the messages themselves."""
        marks: dict[int, Link] = {}
        best: int | None = None
        for links in self.log[: self.next]:
            marks |= {link.partition: link for link in links}
            now = expected(marks)
            best = now if best is None else max(best, now if now is not None else best)
        assert self.fence.watermark_ms == best
        assert self.highest is None or (best is not None and best >= self.highest)
        self.highest = best


def expected(marks: Mapping[int, Link]) -> int | None:
    """The watermark, as DESIGN has it."""
    if len(marks) < SOURCES:
        return None
    if any(x.watermark_ms is None and not x.idle for x in marks.values()):
        return None
    busy = [x.watermark_ms for x in marks.values() if not x.idle and x.watermark_ms is not None]
    known = [x.watermark_ms for x in marks.values() if x.watermark_ms is not None]
    return min(busy) if busy else max(known, default=None)


TestPanes = PanesMachine.TestCase
TestPanes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestChain = ChainMachine.TestCase
TestChain.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
