"""The merge stage against plain counting, and against itself after a crash at every place where one can happen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from monitor import reference as references
from monitor import wire
from monitor.columns import OTHER_SEGMENT
from monitor.panes import SourceMark
from streams.calibrate import MAX_FEATURES
from streams.chain import RESTARTS
from streams.merge import Bounds, MergeStage
from streams.models import Model
from streams.profiling import SourceMessage
from streams.stage import ChainBreakError, Output, Step
from streams.topics import Topics, partition_of
from tests.monitor.builders import DAY, MINUTE, MODEL, SECOND, START, columns, event, past, spec
from tests.streams.builders import PARTITIONS, Known, Profiling, cuts, marks, message, model

TOPICS = Topics()
SECOND_MODEL = "fraud"
KNOWN = Known(
    model(MODEL),
    model(SECOND_MODEL, segments=[], windows={"pane": "5s", "sizes": ["20s"], "lateness": "1s"}),
)
NEW = "new-model"
Cell = tuple[str, str, str, int, int]  # model, version, segment, size, start
Encoded = list[list[bytes]]  # per profiles partition, the messages in order


@dataclass
class World:
    """A log, and the profiles messages that one way of cutting it into batches makes."""

    log: list[SourceMessage]
    profiles: Encoded = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])

    def cut(self, rng: np.random.Generator, parts: int, sources: int, *, idling: bool) -> World:
        """Fill ``profiles``. With ``idling``, a source partition is now and then called idle, and wakes up again."""
        run = Profiling(KNOWN.newest, marks(range(sources)))
        # The last message is a heartbeat: what a crash left to be deleted goes with the message after it.
        for part in (*cuts(rng, len(self.log), parts), slice(0)):
            idle = [p for p in range(sources) if idling and rng.random() < 0.3]
            outcome = run.batch(self.log[part], idle=idle)
            for target, profiles in enumerate(outcome.profiles):
                self.profiles[target].append(wire.encode(profiles))
        return self


def world(
    seed: int, *, n: int = 150, parts: int = 12, sources: int = 2, idling: bool = False
) -> World:
    """Events of two models and two versions, out of order by some seconds, over three minutes; some late, some bad.

    The last event of every partition lies an hour ahead and closes all that is open.
    """
    rng = np.random.default_rng(seed)
    log = []
    offsets = dict.fromkeys(range(sources), 0)
    for i in range(n):
        delay = rng.exponential(2_000) if rng.random() < 0.95 else rng.uniform(20_000, 90_000)
        partition = int(rng.integers(sources))
        lag = 40_000 * partition if idling else 0  # a slow producer, whose partition is called idle
        ts = START + i * 180_000 // n - int(delay) - lag
        log.append(
            one(
                partition,
                offsets,
                ts if rng.random() < 0.98 else 5,
                model=str(rng.choice([MODEL, SECOND_MODEL], p=[0.7, 0.3])),
                version=str(rng.choice(["7", "8"], p=[0.8, 0.2])),
                features={
                    "wind": float(rng.integers(0, 30) * 1.15),
                    "carrier": str(rng.choice(["UA", "B6", "ZZ"])),
                },
            )
        )
    log += [one(p, offsets, START + 60 * MINUTE, model=FLUSH) for p in range(sources)]
    return World(log).cut(rng, parts, sources, idling=idling)


FLUSH = "clock"  # a model of its own, so that closing everything adds nothing to the counts
KNOWN.models[FLUSH] = model(FLUSH, segments=[])


def one(partition: int, offsets: dict[int, int], ts: int, **fields: Any) -> SourceMessage:
    at = offsets[partition]
    offsets[partition] = at + 1
    return message(partition, at, event(ts, **fields))


@dataclass
class Runner:
    """Does what the runner does: outputs first, then the writes, in order. May die within them."""

    known: Known = field(default_factory=lambda: KNOWN)
    tables: list[dict[bytes, bytes]] = field(
        default_factory=lambda: [{} for _ in range(PARTITIONS)]
    )
    outputs: list[Output] = field(default_factory=list)
    sources: int = 1
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process: everything but the tables is gone."""
        self.stage = MergeStage(
            TOPICS, PARTITIONS, self.known, sources=self.sources, bounds=self.bounds
        )
        for partition, table in enumerate(self.tables):
            self.stage.restore(partition, table.items())

    def feed(self, partition: int, offset: int, value: bytes, die_after: int | None = None) -> int:
        """One message; returns how many writes it had. ``die_after`` so many of them the process is started anew."""
        writes = 0
        for step in self.stage.advance(TOPICS.profiles, partition, offset, value):
            self.outputs += step.outputs
            for key, new in step.writes:
                if writes == die_after:
                    self.start()
                    return writes
                writes += 1
                if new is None:
                    self.tables[partition].pop(key, None)
                else:
                    self.tables[partition][key] = new
        if die_after is not None:
            self.start()
        return writes

    def run(self, profiles: Encoded) -> Runner:
        for partition, values in enumerate(profiles):
            for offset, value in enumerate(values):
                self.feed(partition, offset, value)
        return self

    def messages(self) -> list[wire.Message]:
        unlike = (TOPICS.models, TOPICS.dlq)
        return [wire.decode(o.value) for o in self.outputs if o.topic not in unlike]


def windows(messages: Iterable[wire.Message]) -> dict[tuple[Cell, str], int]:
    """Events of every window and late contribution: a repeat replaces."""
    return {
        ((w.model, w.version, w.segment, w.size_ms, w.start_ms), w.contribution): w.n
        for w in messages
        if isinstance(w, wire.Window)
    }


def counted(messages: Iterable[wire.Message]) -> Counter[Cell]:
    """What the windows hold in the end: as closed, and what came late."""
    found = Counter[Cell]()
    for (cell, _), n in windows(messages).items():
        found[cell] += n
    return found


def oracle(log: Sequence[SourceMessage]) -> Counter[Cell]:
    """Plain counting of the log: no batches, no panes, no watermark."""
    found = Counter[Cell]()
    for m in log:
        e = msgspec.json.decode(m.value or b"")
        if e["ts"] == 5 or e["model"] == FLUSH:
            continue
        known = KNOWN.models[e["model"]]
        carrier = e["features"]["carrier"]
        carrier = carrier if carrier in ("UA", "B6", "EV") else OTHER_SEGMENT
        for segment in ("", f"carrier={carrier}") if known.spec.segments else ("",):
            for size in known.spec.windows.sizes:
                found[e["model"], e["version"], segment, size, e["ts"] // size * size] += 1
    return found


def ledger(messages: Iterable[wire.Message]) -> dict[tuple[int, int, int, int], wire.LedgerEntry]:
    return {
        (x.profiles_partition, x.partition, x.start, x.offset): x
        for x in messages
        if isinstance(x, wire.LedgerEntry)
    }


@settings(max_examples=25)  # a simulation each
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 3), st.booleans())
def test_every_window_holds_what_plain_counting_says(
    seed: int, parts: int, sources: int, idling: bool
) -> None:
    made = world(seed, n=100, parts=parts, sources=sources, idling=idling)
    messages = Runner().run(made.profiles).messages()
    assert counted(messages) == oracle(made.log)


@settings(max_examples=25)  # a simulation each
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 3), st.booleans())
def test_the_ledger_accounts_for_every_event(
    seed: int, parts: int, sources: int, idling: bool
) -> None:
    made = world(seed, n=100, parts=parts, sources=sources, idling=idling)
    messages = Runner().run(made.profiles).messages()
    booked = ledger(messages).values()
    events = len(made.log)
    dead = sum(x.dead for x in booked if x.profiles_partition == 0)
    on_time, late = sum(x.on_time for x in booked), sum(x.late for x in booked)
    assert sum(x.events for x in booked if x.profiles_partition == 0) == events
    assert dead + on_time + late == events
    closed = corrections = 0
    for (cell, contribution), n in windows(messages).items():
        if cell[2] == "" and cell[3] == min(KNOWN.models[cell[0]].spec.windows.sizes):
            closed, corrections = closed + (0 if contribution else n), corrections + (n if contribution else 0)  # fmt: skip
    last = {x.profiles_partition: x.open for x in booked}
    still_open = sum(last.values())
    assert still_open == sources  # the events that closed the rest
    assert closed + corrections + still_open == on_time + late
    if (
        not idling
    ):  # one that wakes up behind the others is on time by its own clock, and late by theirs
        assert closed + still_open == on_time


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 25))
def test_verdicts_do_not_depend_on_how_the_log_was_cut(seed: int, one_: int, other: int) -> None:
    said = []
    for parts in (one_, other):
        made = World(world(seed, n=100).log).cut(
            np.random.default_rng(parts), parts, 2, idling=False
        )
        verdicts = [
            m for m in Runner().run(made.profiles).messages() if isinstance(m, wire.Verdicts)
        ]
        said.append({name: [v for v in verdicts if v.model == name] for name in KNOWN.models})
    assert said[0] == said[1]
    assert len(said[0][MODEL]) > 10


def test_the_last_verdicts_of_an_end_say_so_and_only_they() -> None:
    verdicts = [
        m for m in Runner().run(world(5).profiles).messages() if isinstance(m, wire.Verdicts)
    ]
    for name in (MODEL, SECOND_MODEL):
        mine = [v for v in verdicts if v.model == name]
        ends = [v.end_ms for v in mine]
        assert ends == sorted(ends)
        assert [v.closes for v in mine] == [
            i + 1 == len(mine) or mine[i + 1].end_ms > v.end_ms for i, v in enumerate(mine)
        ]


def test_state_goes_where_its_model_lives_and_outputs_follow_their_model() -> None:
    runner = Runner().run(world(5).profiles)
    for output in runner.outputs:
        decoded = wire.decode(output.value)
        if not isinstance(decoded, wire.LedgerEntry):
            assert output.key is not None
            assert output.partition == partition_of(output.key.decode(), PARTITIONS)
    # Everything but the clock's own event is closed and deleted again.
    kinds = Counter(key.split(b"/")[0] for table in runner.tables for key in table)
    assert kinds[b"pane"] == 1
    assert kinds[b"chain"] == PARTITIONS


def judged(messages: Iterable[wire.Message]) -> dict[tuple[Any, ...], wire.Verdicts]:
    """Verdicts by what they are about; the first counts, as for whoever reads them."""
    found: dict[tuple[Any, ...], wire.Verdicts] = {}
    for v in messages:
        if isinstance(v, wire.Verdicts):
            found.setdefault((v.source, v.model, v.version, v.segment, v.size_ms, v.start_ms), v)
    return found


def assert_same(found: Runner, wanted: Runner) -> None:
    a, b = found.messages(), wanted.messages()
    assert windows(a) == windows(b)
    assert judged(a) == judged(b)
    assert ledger(a) == ledger(b)
    assert found.tables == wanted.tables


def crash_everywhere(
    partition: int, values: Sequence[bytes], bounds: Bounds | None = None, *, first: int = 0
) -> int:
    """Each message from ``first`` on killed after each of its writes, read again, and the rest after it; returns how many places that were."""
    bounds = bounds or Bounds()
    clean, before = Runner(bounds=bounds), Runner(bounds=bounds)
    for offset, value in enumerate(values):
        clean.feed(partition, offset, value)
    places = 0
    for at, value in enumerate(values):
        copies = [dict(table) for table in before.tables]
        total = Runner(tables=copies, bounds=bounds).feed(partition, at, value)
        for prefix in range(total + 1) if at >= first else ():
            tables = [dict(table) for table in before.tables]
            crashed = Runner(tables=tables, outputs=list(before.outputs), bounds=bounds)
            crashed.feed(partition, at, value, die_after=prefix)
            for offset in range(at, len(values)):
                crashed.feed(partition, offset, values[offset])
            assert_same(crashed, clean)
            places += 1
        before.feed(partition, at, value)
    return places


def test_a_crash_after_any_prefix_of_the_writes_changes_nothing() -> None:
    """Each message of a small world, killed after each of its writes, read again, and the rest after it."""
    made = world(11, n=40, parts=5)
    clean = Runner().run(made.profiles)
    places = 0
    for partition, values in enumerate(made.profiles):
        if not any(isinstance(m := wire.decode(v), wire.Profiles) and m.deltas for v in values):
            continue
        for at in range(len(values)):
            before = Runner()
            for offset in range(at):
                before.feed(partition, offset, values[offset])
            total = Runner(tables=[dict(t) for t in before.tables]).feed(partition, at, values[at])
            for prefix in range(total + 1):
                crashed = Runner(
                    tables=[dict(t) for t in before.tables], outputs=list(before.outputs)
                )
                crashed.feed(partition, at, values[at], die_after=prefix)
                for offset in range(at, len(values)):
                    crashed.feed(partition, offset, values[offset])
                other = 1 - partition
                for offset, value in enumerate(made.profiles[other]):
                    crashed.feed(other, offset, value)
                assert_same(crashed, clean)
                places += 1
    assert places > 50


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_any_number_of_crashes_changes_nothing(seed: int) -> None:
    luck = np.random.default_rng(seed)
    made = world(seed, n=80, parts=8, idling=True)
    clean = Runner().run(made.profiles)
    crashing = Runner()
    for partition, values in enumerate(made.profiles):
        for offset, value in enumerate(values):
            while offset + 1 < len(values) and luck.random() < 0.5:
                crashing.feed(partition, offset, value, die_after=int(luck.integers(12)))
            crashing.feed(partition, offset, value)
    assert_same(crashing, clean)


def three_versions(parts: int) -> World:
    """Version 7, a minute later 8, another minute later 9, which takes the wind for a hundred times as much; 7 sends nothing in the fourth minute."""
    rng, offsets = np.random.default_rng(5), {0: 0}
    log = []
    for i in range(900):
        ts = START + i * 5 * MINUTE // 900
        minute = (ts - START) // MINUTE
        live = [v for v, since in (("7", 0), ("8", 1), ("9", 2)) if since <= minute]
        version = str(rng.choice([v for v in live if v != "7" or minute != 3]))
        wind = float(rng.integers(0, 30) * 1.15) * (100 if version == "9" else 1)
        features = {"wind": wind, "carrier": str(rng.choice(["UA", "B6"]))}
        error = "timeout" if rng.random() < 0.05 else None
        log.append(one(0, offsets, ts, version=version, features=features, error=error))
    log.append(one(0, offsets, START + 60 * MINUTE, model=FLUSH))
    return World(log).cut(rng, parts, 1, idling=False)


def test_versions_are_compared_with_the_oldest_beside_them_as_their_panes_close() -> None:
    said = judged(Runner().run(three_versions(20).profiles).messages())
    found = {
        (m.version, (m.start_ms - START) // MINUTE): v
        for m in said.values()
        for v in m.verdicts
        if v.kind == "canary" and v.statistic == "more_request_errors"
    }
    # The fourth minute has no pane of 7; after it the comparison goes on where it was.
    assert sorted(found) == [("8", 1), ("8", 2), ("8", 4), ("9", 2), ("9", 4)]
    assert {v.evidence["compared_with"] for v in found.values()} == {"7"}
    assert found["8", 4].n > found["8", 2].n > found["8", 1].n > 50
    differs = {
        (m.version, v.feature)
        for m in said.values()
        for v in m.verdicts
        if v.statistic == "inputs_differ" and v.status == "breach"
    }
    assert differs == {("9", "wind")}
    assert {m.size_ms for m in said.values() for v in m.verdicts if v.kind == "canary"} == {MINUTE}
    assert judged(Runner().run(three_versions(3).profiles).messages()) == said


WEEKLY = "weekly"
GONE = 28  # the day since when nearly nobody asks
KNOWN.models[WEEKLY] = model(
    WEEKLY,
    segments=[],
    windows={"pane": "1d", "sizes": ["1d", "1w"], "lateness": "1s"},
    alarm_budget={"false_alarms": 100, "per": "30d"},
)


def weeks(parts: int) -> World:
    """Twelve requests a day of two versions, for four weeks; then a day with one, and three without any. The clock goes on through another model."""
    log, offsets = list[SourceMessage](), {0: 0}
    for day in range(36):
        requests = 1 if day == GONE else 0 if GONE < day < GONE + 4 else 12
        for i in range(requests):
            ts, version = START + day * DAY + i * MINUTE, "7" if i < 7 else "8"
            log.append(one(0, offsets, ts, model=WEEKLY, version=version))
        log.append(one(0, offsets, START + day * DAY + 30 * MINUTE, model=FLUSH))
    made = World(log).cut(np.random.default_rng(3), parts, 1, idling=False)
    mine = partition_of(WEEKLY, PARTITIONS)
    made.profiles[1 - mine].clear()
    return made


def volumes(messages: Iterable[wire.Message]) -> list[tuple[int, str, str, int, int]]:
    """Day, version, status and requests of each verdict on volume, and how many verdicts came with it."""
    return [
        ((m.start_ms - START) // DAY, m.version, v.status, v.n, len(m.verdicts) - 1)
        for m in messages
        if isinstance(m, wire.Verdicts) and m.model == WEEKLY
        for v in m.verdicts
        if v.statistic == "volume"
    ]


def test_an_outage_is_told_of_with_its_window_or_without_one_once_the_day_has_passed() -> None:
    made = weeks(parts=36)
    said = Runner().run(made.profiles).messages()
    found = volumes(said)
    assert [day for day, *_ in found] == list(range(22, 35))
    assert {it[1:4] for it in found if it[0] < GONE} == {("7", "ok", 12)}
    odd = [it for it in found if it[2] == "breach"]
    assert [day for day, *_ in odd] == [GONE + i for i in range(4)]
    assert [(n, others > 0) for *_, n, others in odd] == [(1, True), *[(0, False)] * 3]
    mine = [m for m in said if isinstance(m, wire.Verdicts) and m.model == WEEKLY]
    assert [m.end_ms for m in mine] == sorted(m.end_ms for m in mine)
    assert set(Counter(m.end_ms for m in mine if m.closes).values()) == {1}
    assert volumes(Runner().run(weeks(parts=3).profiles).messages()) == found  # in jumps


def test_a_crash_after_any_write_changes_no_verdict_on_volume() -> None:
    """In each message since the first that has one."""
    mine = partition_of(WEEKLY, PARTITIONS)
    assert crash_everywhere(mine, weeks(parts=6).profiles[mine], first=3) > 20


def test_outputs_of_a_repeat_are_the_same_bytes() -> None:
    """What was written is not said again; what is said again was said in the same words."""
    made = world(12, n=80, parts=5)
    once, twice = Runner(), Runner()
    for offset, value in enumerate(made.profiles[0]):
        once.feed(0, offset, value)
        twice.feed(0, offset, value, die_after=0)
        twice.feed(0, offset, value)
    assert set(once.outputs) == set(twice.outputs)


class TestChain:
    def fed(self, upto: int) -> tuple[Runner, list[bytes], int]:
        made = world(3, n=60, parts=8)
        partition = partition_of(MODEL, PARTITIONS)
        runner = Runner()
        for offset in range(upto):
            runner.feed(partition, offset, made.profiles[partition][offset])
        return runner, made.profiles[partition], partition

    def test_a_missing_message_stops_everything_before_any_effect(self) -> None:
        runner, values, partition = self.fed(3)
        before = len(runner.outputs), dict(runner.tables[partition])
        gap = next(
            at for at in range(4, 9) if has_events(values[at - 1]) and has_events(values[at])
        )
        with pytest.raises(ChainBreakError, match=r"partition \d: applied to \d+, next starts at"):
            runner.feed(partition, gap, values[gap])
        after = dict(runner.tables[partition])
        assert after.pop(b"break")  # counted, for the next life
        assert (len(runner.outputs), after) == before
        for offset in range(3, len(values)):
            runner.feed(partition, offset, values[offset])
        whole, _, _ = self.fed(len(values))
        assert_same(runner, whole)

    @pytest.mark.parametrize("at_old_offset", [True, False])
    def test_a_repeated_message_yields_nothing(self, at_old_offset: bool) -> None:
        runner, values, partition = self.fed(4)
        at = next(at for at in (3, 2, 1) if has_events(values[at]))
        offset = at if at_old_offset else 4
        assert list(runner.stage.advance(TOPICS.profiles, partition, offset, values[at])) == []

    def test_an_announced_jump_is_booked_and_passed(self) -> None:
        runner, _, partition = self.fed(4)
        ahead = {p: SourceMark(10_000, START + 5 * MINUTE, idle=False) for p in (0, 1)}
        run = Profiling(KNOWN.newest, ahead)
        jump = run.batch(
            [message(0, 10_000, event(START + 6 * MINUTE))], jumps={0: "reset", 1: "reset"}
        )
        runner.feed(partition, 4, wire.encode(jump.profiles[partition]))
        booked = [x for x in ledger(runner.messages()).values() if x.start == 10_000]
        assert [x.jump for x in booked] == ["reset", "reset"]
        after = run.batch([message(0, 10_001, event(START + 6 * MINUTE))])
        assert runner.feed(partition, 5, wire.encode(after.profiles[partition])) > 0

    def test_a_lost_message_is_passed_after_some_restarts_and_the_ledger_shows_the_hole(
        self,
    ) -> None:
        runner, values, partition = self.fed(3)
        gap = next(
            at for at in range(4, 9) if has_events(values[at - 1]) and has_events(values[at])
        )
        for _ in range(RESTARTS):
            with pytest.raises(ChainBreakError):
                runner.feed(partition, gap, values[gap])
            runner.start()
        for offset in range(gap, len(values)):
            runner.feed(partition, offset, values[offset])
        jumps = {x.offset: x.jump for x in ledger(runner.messages()).values() if x.jump}
        assert set(jumps) == {gap}
        assert jumps[gap].startswith("lost ")
        assert b"break" not in runner.tables[partition]
        whole, _, _ = self.fed(len(values))
        lost = sum((counted(whole.messages()) - counted(runner.messages())).values())
        assert lost > 0
        assert not counted(runner.messages()) - counted(whole.messages())

    def test_a_batch_that_is_read_again_in_other_pieces_counts_once(self) -> None:
        target = partition_of(MODEL, PARTITIONS)
        log = [message(0, i, event(START + i * SECOND)) for i in range(20)]
        flush = [
            message(p, at, event(START + 60 * MINUTE, model=FLUSH)) for p, at in ((0, 20), (1, 0))
        ]
        once, again = (Profiling(KNOWN.newest, marks((0, 1))) for _ in range(2))
        batches = [once.batch(log), *map(again.batch, (log[:15], log[15:], flush))]
        runner = Runner()
        for offset, outcome in enumerate(batches):
            runner.feed(target, offset, wire.encode(outcome.profiles[target]))
        found = counted(runner.messages())
        assert sum(n for c, n in found.items() if (c[2], c[3]) == ("", MINUTE)) == len(log)

    @pytest.mark.parametrize(
        "value",
        [wire.encode(wire.Command("approve", "m", "i", "ann", 5)), b"somebody else's", b""],
        ids=["another kind", "no envelope", "a tombstone"],
    )
    def test_a_foreign_message_goes_to_the_dead_letters_and_the_rest_goes_on(
        self, value: bytes
    ) -> None:
        runner, values, partition = self.fed(3)
        (step,) = runner.stage.advance(TOPICS.profiles, partition, 3, value)
        key = f"merge:driftline.profiles:{partition}:3:incompatible".encode()
        assert step == Step((Output(TOPICS.dlq, 0, key, value),))
        for offset in range(3, len(values)):
            runner.feed(partition, offset + 1, values[offset])
        whole, _, _ = self.fed(len(values))
        assert counted(runner.messages()) == counted(whole.messages())

    def test_nothing_closes_before_every_source_partition_was_heard_of(self) -> None:
        target = partition_of(MODEL, PARTITIONS)
        run, late = Profiling(KNOWN.newest, marks((0,))), Profiling(KNOWN.newest, marks((1,)))
        runner = Runner(sources=2)
        runner.feed(
            target, 0, wire.encode(run.batch([message(0, 0, event(START))]).profiles[target])
        )
        ahead = run.batch([message(0, 1, event(START + 9 * MINUTE))])
        runner.feed(target, 1, wire.encode(ahead.profiles[target]))
        assert windows(runner.messages()) == {}
        heard = late.batch([message(1, 0, event(START + 9 * MINUTE))], idle=[1])
        runner.feed(target, 2, wire.encode(heard.profiles[target]))
        assert windows(runner.messages()) != {}


class Compacted(Known):
    """Knows the newest models only, and counts how often it was waited for."""

    waits = 0

    @override
    def model(self, model: str, bins_id: str) -> Model:
        self.waits += not self.known(model, bins_id)
        return super().model(model, bins_id)


class TestLostReference:
    def test_its_deltas_are_left_out_after_one_wait_and_the_chain_goes_on(self) -> None:
        made = world(3, n=60, parts=8)
        gone = Compacted(*(m for name, m in KNOWN.models.items() if name != MODEL))
        runner, whole = Runner(known=gone).run(made.profiles), Runner().run(made.profiles)
        assert counted(runner.messages()) == Counter(
            {cell: n for cell, n in counted(whole.messages()).items() if cell[0] != MODEL}
        )
        assert gone.waits == 1
        given, booked = (
            {at: x.on_time for at, x in ledger(r.messages()).items()} for r in (whole, runner)
        )
        assert booked == given  # no window holds them, so the ledger calls them unaccounted

    def test_its_state_is_dropped_when_it_comes_back_and_others_stay(self) -> None:
        made, target = world(3, n=80, parts=6), partition_of(MODEL, PARTITIONS)
        values = made.profiles[target]
        runner = Runner()
        for offset in range(3):
            runner.feed(target, offset, values[offset])
        rows = set(runner.tables[target])
        assert {key.split(b"/")[0] for key in rows} >= {b"pane", b"series"}
        newer = spec(MODEL, segments=[])
        fresh = references.build(newer, lambda: [columns(past(np.random.default_rng(5), 300))])
        kept = [m for name, m in KNOWN.models.items() if name != MODEL]
        runner.known = Compacted(Model(newer, fresh), *kept)
        runner.start()
        assert runner.known.waits == 1
        again = Profiling(runner.known.newest, marks((0, 1)))
        log = [message(0, 0, event(START + 5 * MINUTE)), message(1, 0, event(START + 5 * MINUTE))]
        jump = again.batch(log, jumps={0: "reset", 1: "reset"}).profiles[target]
        runner.feed(target, 3, wire.encode(jump))
        mine = {key for key in rows if MODEL.encode() in key}
        assert mine
        assert not mine & set(runner.tables[target])
        assert any(MODEL.encode() in key for key in runner.tables[target])
        runner.start()
        assert runner.known.waits == 1


def has_events(value: bytes) -> bool:
    decoded = wire.decode(value)
    assert isinstance(decoded, wire.Profiles)
    return all(x.end > x.start for x in decoded.links)


def test_two_deltas_of_one_pane_in_one_message_both_count() -> None:
    run = Profiling(KNOWN.newest, marks((0,)))
    target = partition_of(MODEL, PARTITIONS)
    first = run.batch([message(0, 0, event(START))]).profiles[target]
    doubled = msgspec.structs.replace(first, deltas=first.deltas * 2)
    runner = Runner()
    runner.feed(target, 0, wire.encode(doubled))
    closing = run.batch([message(0, 1, event(START + MINUTE * 9, model=FLUSH))])
    runner.feed(target, 1, wire.encode(closing.profiles[target]))
    assert {n for (cell, _), n in windows(runner.messages()).items() if cell[0] == MODEL} == {2}


class TestCalibration:
    SPEC = spec(NEW, reference={"calibrate": {"events": 100}}, segments=[])

    def messages(self, n: int = 150, size: int = 30) -> list[bytes]:
        rng = np.random.default_rng(1)
        target = partition_of(NEW, PARTITIONS)
        run = Profiling(lambda _: None, marks((0,)))
        log = [
            message(0, i, event(START + i * SECOND, model=NEW, features={"wind": float(rng.normal()), "carrier": "UA"}))
            for i in range(n)
        ]  # fmt: skip
        return [
            wire.encode(run.batch(log[at : at + size]).profiles[target]) for at in range(0, n, size)
        ]

    def test_a_reference_that_cannot_be_built_is_told_of_once_and_calibrating_ends(self) -> None:
        target, runner = partition_of(NEW, PARTITIONS), Runner(known=Known(Model(self.SPEC, None)))
        for offset, value in enumerate(self.messages()):
            profiles = wire.decode(value)
            assert isinstance(profiles, wire.Profiles)
            spoiled = [msgspec.structs.replace(s, rows=b"spoiled") for s in profiles.samples]
            value = wire.encode(msgspec.structs.replace(profiles, samples=spoiled))
            runner.feed(target, offset, value)
            runner.start()
        assert self.letters(runner) == [b"no reference for new-model: damaged sample"]
        assert self.records(runner) == []
        assert set(runner.tables[target]) == {b"chain", b"sampled/new-model"}

    def test_a_model_whose_reference_is_a_files_does_not_make_one_up(self) -> None:
        """After an upgrade its record holds a spec alone: traffic of today is no substitute for what its owner chose."""
        chosen = spec(NEW, reference={"file": "january.parquet"})
        target, runner = partition_of(NEW, PARTITIONS), Runner(known=Known(Model(chosen, None)))
        for offset, value in enumerate(self.messages()):
            runner.feed(target, offset, value)
        assert self.records(runner) == []
        assert not any(key.startswith(b"sample/") for key in runner.tables[target])

    def test_a_reference_that_fits_into_no_record_is_not_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("streams.calibrate.MAX_RECORD", 500)
        monkeypatch.setattr("streams.models.MAX_RECORD", 500)
        runner = self.run()
        (letter,) = self.letters(runner)
        assert re.fullmatch(rb"no reference for new-model: the reference has [\d,]+ bytes, over 500: name fewer features or segments", letter)  # fmt: skip
        assert self.records(runner) == []
        assert not any(key.startswith(b"sample/") for table in runner.tables for key in table)

    @pytest.mark.parametrize(("named", "kept"), [(False, MAX_FEATURES), (True, 250)])
    def test_inferred_features_have_a_cap_and_named_ones_do_not(
        self, named: bool, kept: int
    ) -> None:
        features = {f"f{i:03}": float(i) for i in range(250)}
        types = {name: {"type": "numeric"} for name in features} if named else {}
        chosen = spec(NEW, reference={"calibrate": {"events": 100}}, segments=[], features=types)
        run = Profiling(lambda _: None, marks((0,)))
        log = [message(0, i, event(START + i, model=NEW, features=features)) for i in range(100)]
        target = partition_of(NEW, PARTITIONS)
        runner = Runner(known=Known(Model(chosen, None)))
        runner.feed(target, 0, wire.encode(run.batch(log).profiles[target]))
        ((_, found),) = self.records(runner)
        assert found.reference is not None
        assert sum(name.startswith("f") for name in found.reference.layout.bins) == kept

    def letters(self, runner: Runner) -> list[bytes]:
        return [
            o.value
            for o in runner.outputs
            if (o.topic, o.key) == (TOPICS.dlq, b"calibration:new-model")
        ]

    def records(self, runner: Runner) -> list[tuple[bytes | None, Model]]:
        return [
            (o.key, Model(*references.load(o.value)))
            for o in runner.outputs
            if o.topic == TOPICS.models
        ]

    def run(self, *, die_after: int | None = None, known: Known | None = None) -> Runner:
        target = partition_of(NEW, PARTITIONS)
        runner = Runner(known=known or Known(Model(self.SPEC, None)))
        for offset, value in enumerate(self.messages()):
            if die_after is not None:
                runner.feed(target, offset, value, die_after=die_after)
            runner.feed(target, offset, value)
        return runner

    def test_the_first_events_become_the_reference_once_there_are_enough(self) -> None:
        runner = self.run()
        ((key, found),) = self.records(runner)
        assert key == NEW.encode()
        assert found.spec == self.SPEC
        assert found.reference is not None
        assert found.reference.n == 120  # the fourth batch of 30 passed the 100
        assert set(found.reference.layout.bins) == {"wind", "carrier", "$prediction", "$score", "$latency_ms"}  # fmt: skip
        assert not any(key.startswith(b"sample/") for table in runner.tables for key in table)
        booked = ledger(runner.messages()).values()
        assert sum(x.calibrating for x in booked) == 150

    @pytest.mark.parametrize("die_after", range(6))
    def test_a_crash_builds_the_same_reference(self, die_after: int) -> None:
        clean, crashed = self.run(), self.run(die_after=die_after)
        assert {o.value for o in crashed.outputs if o.topic == TOPICS.models} == {
            o.value for o in clean.outputs if o.topic == TOPICS.models
        }

    def test_what_a_crash_left_behind_is_dropped_when_the_message_comes_again(self) -> None:
        target, values = partition_of(NEW, PARTITIONS), self.messages()
        runner = Runner(known=Known(Model(self.SPEC, None)))
        for offset, value in enumerate(values[:3]):
            runner.feed(target, offset, value)
        runner.feed(target, 3, values[3], die_after=1)  # it is marked as done, nothing is deleted
        assert sum(key.startswith(b"sample/") for key in runner.tables[target]) == 3
        runner.feed(target, 3, values[3])
        assert sum(key.startswith(b"sample/") for key in runner.tables[target]) == 0
        (_, found), *_ = self.records(runner)
        runner.known.models[NEW] = found
        runner.feed(target, 4, values[4])
        assert set(runner.tables[target]) == {b"chain"}
        assert len(self.records(runner)) == 1

    def test_an_unknown_model_is_described_by_what_it_sent(self) -> None:
        runner = self.run(known=Known())
        assert self.records(runner) == []  # 5,000 events by default, and here are 150
        assert sum(key.startswith(b"sample/") for table in runner.tables for key in table) == 5


def test_a_partition_that_moved_away_is_forgotten_and_comes_back_from_its_table() -> None:
    made = world(4, n=80, parts=8)
    runner, moved = Runner().run(made.profiles), Runner()
    for partition, values in enumerate(made.profiles):
        for offset, value in enumerate(values):
            moved.feed(partition, offset, value)
            if offset == 4:
                moved.stage.forget(partition)
                moved.stage.restore(partition, moved.tables[partition].items())
    assert_same(moved, runner)


def test_steps_are_what_the_runner_expects() -> None:
    made = world(4, n=80, parts=3)
    for partition in range(PARTITIONS):
        for step in Runner().stage.advance(
            TOPICS.profiles, partition, 0, made.profiles[partition][0]
        ):
            assert isinstance(step, Step)
            assert [key for key, _ in step.writes].index(b"chain") == len(step.writes) - 1
            kept = [value is not None for _, value in step.writes[:-1]]
            assert kept == sorted(kept, reverse=True)  # deletions after what replaces them
