"""What the detector holds is bounded, whatever is sent; nothing is lost by that, and no other model notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from monitor import wire
from monitor.columns import OTHER_SEGMENT
from monitor.versions import OTHER_VERSION
from streams.merge import Bounds
from streams.profiling import SourceMessage, TooManyProfilesError
from streams.topics import partition_of
from tests.monitor.builders import DAY, MINUTE, MODEL, SECOND, START, event
from tests.streams.builders import PARTITIONS, Known, Profiling, marks, message, model
from tests.streams.test_merge import (
    FLUSH,
    KNOWN,
    TOPICS,
    Cell,
    Runner,
    World,
    counted,
    crash_everywhere,
    judged,
    ledger,
    one,
    windows,
)

TWO = Bounds(versions=2)
TARGET = partition_of(MODEL, PARTITIONS)


def churn(seed: int, *, bursts: int = 6, per_burst: int = 12, sources: int = 2) -> World:
    """Bursts of events in eight versions, hours to days apart, some late; at last an event days later closes what is open."""
    rng = np.random.default_rng(seed)
    log: list[SourceMessage] = []
    offsets = dict.fromkeys(range(sources), 0)
    at = START
    for _ in range(bursts):
        at += int(rng.choice([MINUTE, DAY // 2, DAY, 3 * DAY, 8 * DAY]))
        for _ in range(per_burst):
            ts = at + int(rng.integers(0, 90 * SECOND)) - (rng.random() < 0.1) * 5 * MINUTE
            version = str(
                rng.choice(list("abcdefgh"), p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
            )
            carrier = str(rng.choice(["UA", "ZZ"]))
            log.append(one(int(rng.integers(sources)), offsets, ts, version=version, features={"wind": 11.5, "carrier": carrier}))  # fmt: skip
    log += [one(p, offsets, at + 40 * DAY, model=FLUSH) for p in range(sources)]
    return World(log)


def totals(found: Counter[Cell]) -> Counter[tuple[str, str, int, int]]:
    """The same without versions."""
    summed = Counter[tuple[str, str, int, int]]()
    for (name, _, segment, size, start), n in found.items():
        summed[name, segment, size, start] += n
    return summed


def plain(log: Iterable[SourceMessage]) -> Counter[tuple[str, str, int, int]]:
    """Plain counting of ``MODEL``'s events, whatever their versions."""
    found = Counter[tuple[str, str, int, int]]()
    for m in log:
        e = msgspec.json.decode(m.value or b"")
        if e["model"] != MODEL:
            continue
        carrier = e["features"]["carrier"]
        carrier = carrier if carrier in ("UA", "B6", "EV") else OTHER_SEGMENT
        for segment in ("", f"carrier={carrier}"):
            for size in KNOWN.models[MODEL].spec.windows.sizes:
                found[MODEL, segment, size, e["ts"] // size * size] += 1
    return found


def closed(messages: Iterable[wire.Message]) -> dict[tuple[Cell, str], int]:
    """Windows as they closed: without contributions."""
    return {cell: n for cell, n in windows(messages).items() if cell[1] == ""}


class TestVersions:
    @settings(max_examples=15, phases=[Phase.generate])  # simulations: to shrink takes minutes
    @given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
    def test_who_is_followed_does_not_depend_on_how_the_log_was_cut(
        self, seed: int, one_: int, other: int
    ) -> None:
        made = churn(seed)
        runs = []
        for parts in (one_, other):
            cut = World(made.log).cut(np.random.default_rng(parts), parts, 2, idling=False)
            runs.append(Runner(bounds=TWO).run(cut.profiles).messages())
            assert totals(counted(runs[-1])) == plain(made.log)
        assert closed(runs[0]) == closed(runs[1])
        assert judged(runs[0]) == judged(runs[1])

    def test_a_crash_after_any_prefix_of_the_writes_changes_nothing(self) -> None:
        made = churn(2, bursts=4, per_burst=5).cut(np.random.default_rng(2), 5, 2, idling=False)
        assert crash_everywhere(TARGET, made.profiles[TARGET], TWO) > 60

    def test_there_are_never_more_series_than_places_and_silent_ones_go_with_their_rows(
        self,
    ) -> None:
        made = churn(1, bursts=12).cut(np.random.default_rng(1), 30, 2, idling=False)
        runner, most = Runner(bounds=TWO), 0
        for partition, values in enumerate(made.profiles):
            for offset, value in enumerate(values):
                runner.feed(partition, offset, value)
                versions = {
                    msgspec.json.decode(key[7:])[1]
                    for key in runner.tables[TARGET]
                    if key.startswith(b"series/") and MODEL.encode() in key
                }
                most = max(most, len(versions))
        assert most <= 2 * (TWO.versions + 1)  # those that lost their place go a message later
        left = {key for key in runner.tables[TARGET] if MODEL.encode() in key}
        assert all(key.startswith(b"versions/") for key in left)  # names of late events

    def test_a_producer_that_sends_the_reserved_name_is_counted_there(self) -> None:
        run = Profiling(KNOWN.newest, marks((0,)))
        log = [message(0, i, event(START + i, version=v)) for i, v in enumerate(("a", "b", "c", OTHER_VERSION))]  # fmt: skip
        log.append(message(0, 4, event(START + DAY, model=FLUSH)))
        runner = Runner(bounds=TWO)
        feed_all(runner, [run.batch(log).profiles[TARGET], run.batch([]).profiles[TARGET]])
        found = {c[1]: n for (c, _), n in windows(runner.messages()).items() if c[2:4] == ("", MINUTE)}  # fmt: skip
        assert found == {"a": 1, "b": 1, OTHER_VERSION: 2}


ROOM = 120_000  # bytes: about twenty of these open panes
CROWDED = Bounds(open_bytes=ROOM)
NEIGHBOUR = next(name for name in map("m{}".format, range(9)) if partition_of(name, PARTITIONS) == TARGET)  # fmt: skip
KNOWN.models[NEIGHBOUR] = model(NEIGHBOUR, segments=[])


def held_back(
    panes: int = 60, *, hostile: bool = True, lag: int | None = None
) -> list[wire.Profiles]:
    """A partition far ahead of the other, which holds the watermark back, or follows ``lag`` panes behind; and a neighbour in the same partition of profiles."""
    run = Profiling(KNOWN.newest, marks((0, 1)))
    batches = [run.batch([message(1, 0, event(START, model=FLUSH))])]
    at = dict.fromkeys((0, 1), 1)
    at[0] = 0
    for i in range(0, panes, 6):
        log = [] if lag is None else [one(1, at, START + (i - lag) * 10 * SECOND, model=FLUSH)]
        for j in range(i, i + 6):
            ts = START + j * 10 * SECOND
            if hostile:
                log.append(one(0, at, ts, version="7"))
            if j % 10 == 0:
                log.append(one(0, at, ts, model=NEIGHBOUR))
        batches.append(run.batch(log))
    end = START + DAY
    batches += [run.batch([one(p, at, end, model=FLUSH)]) for p in (1, 0)]
    batches.append(run.batch([]))
    return [outcome.profiles[TARGET] for outcome in batches]


class TestOpenPanes:
    def test_beyond_their_memory_they_are_counted_at_once_and_none_is_lost(self) -> None:
        runner = Runner(sources=2, bounds=CROWDED)
        most = 0
        for offset, profiles in enumerate(held_back()):
            runner.feed(TARGET, offset, wire.encode(profiles))
            held = runner.stage._held[TARGET].panes.values()
            most = max(most, sum(panes.open_bytes for panes in held))
        assert ROOM <= most < 2 * ROOM
        assert runner.stage.overflow["open_panes"] > 20
        roomy = feed_all(Runner(sources=2), held_back())
        assert roomy.stage.overflow["open_panes"] == 0
        assert counted(runner.messages()) == counted(roomy.messages())
        last = max(ledger(runner.messages()).values(), key=lambda x: x.offset)
        assert last.open == sum(panes.held() for panes in runner.stage._held[TARGET].panes.values())

    def test_a_model_within_its_part_does_not_notice(self) -> None:
        crowded = feed_all(Runner(sources=2, bounds=CROWDED), held_back())
        alone = feed_all(Runner(sources=2, bounds=CROWDED), held_back(hostile=False))
        assert of_model(crowded, NEIGHBOUR) == of_model(alone, NEIGHBOUR)
        assert len(of_model(alone, NEIGHBOUR)) > 10

    def test_a_crash_after_any_prefix_of_the_writes_changes_nothing(self) -> None:
        sent, bounds = held_back(36, lag=8), Bounds(open_bytes=60_000)
        assert feed_all(Runner(bounds=bounds), sent).stage.overflow["open_panes"] > 0
        assert crash_everywhere(TARGET, [wire.encode(profiles) for profiles in sent], bounds) > 50


def of_model(runner: Runner, name: str) -> list[bytes]:
    """Windows of a model in their order, then its verdicts in theirs."""
    return [
        msgspec.msgpack.encode(m)
        for kind in (wire.Window, wire.Verdicts)
        for m in runner.messages()
        if isinstance(m, kind) and m.model == name
    ]


class TestLetters:
    def test_a_damaged_profile_is_a_dead_letter_and_the_rest_of_its_message_counts(self) -> None:
        run = Profiling(KNOWN.newest, marks((0,)))
        first = run.batch([message(0, 0, event(START)), message(0, 1, event(START, model=NEIGHBOUR))]).profiles[TARGET]  # fmt: skip
        spoiled = [
            d if d.model == NEIGHBOUR else msgspec.structs.replace(d, profile=d.profile[:-9])
            for d in first.deltas
        ]
        second = run.batch([message(0, 2, event(START + DAY, model=FLUSH))]).profiles[TARGET]
        runner = feed_all(Runner(), [msgspec.structs.replace(first, deltas=spoiled), second])
        assert {cell[0] for cell in counted(runner.messages())} == {NEIGHBOUR}
        (letter,) = [o for o in runner.outputs if o.topic == TOPICS.dlq]
        assert letter.key == f"merge:{TOPICS.profiles}:{TARGET}:0:damaged".encode()
        kept = wire.decode(letter.value)
        assert isinstance(kept, wire.Profiles)
        assert [d.model for d in kept.deltas] == [MODEL] * 2  # the whole and its segment
        assert runner.stage.overflow["damaged"] == 1

    def test_deltas_without_a_reference_are_dead_letters_by_message(self) -> None:
        gone = Known(*(m for name, m in KNOWN.models.items() if name != MODEL))
        run = Profiling(KNOWN.newest, marks((0,)))
        sent = [run.batch([message(0, i, event(START + i))]).profiles[TARGET] for i in range(3)]
        runner = feed_all(Runner(known=gone), sent)
        keys = [o.key for o in runner.outputs if o.topic == TOPICS.dlq]
        assert keys == [f"merge:{TOPICS.profiles}:{TARGET}:{i}:no_reference".encode() for i in range(3)]  # fmt: skip


class TestModels:
    def flood(self, names: Iterable[str], runner: Runner) -> Runner:
        run = Profiling(lambda _: None, marks((0,)), known_models=0)
        for i, name in enumerate(names):
            sample = run.batch([message(0, i, event(START, model=name))]).profiles
            for target, profiles in enumerate(sample):
                runner.feed(target, i, wire.encode(profiles))
        return runner

    def test_names_that_are_made_up_take_the_places_that_are_left_and_no_more(self) -> None:
        runner = self.flood(map("made-up-{}".format, range(500)), Runner(known=Known(), bounds=Bounds(models=20)))  # fmt: skip
        sampled = sum(key.startswith(b"sample/") for table in runner.tables for key in table)
        assert sampled == 20 * PARTITIONS  # each partition has places of its own
        assert runner.stage.overflow["models"] == 500 - sampled
        runner.start()
        self.flood(["one-more"], runner)
        assert sampled == sum(key.startswith(b"sample/") for t in runner.tables for key in t)
        booked = ledger(runner.messages()).values()
        assert sum(x.calibrating for x in booked) == 500


def feed_all(runner: Runner, profiles: Sequence[wire.Profiles]) -> Runner:
    for offset, value in enumerate(profiles):
        runner.feed(TARGET, offset, wire.encode(value))
    return runner


NAMES = 10_000
STATE_BYTES = 1 << 20  # of all rows of a partition's table, whatever was sent


def hostile(at: dict[int, int]) -> list[SourceMessage]:
    """Events in which everything that a producer may choose is new: versions, segments, features, categories and times."""
    past = np.random.default_rng(3).integers(-400 * DAY, 0, NAMES)
    ahead = np.linspace(DAY, 30 * DAY, NAMES, dtype=np.int64)  # it never holds the watermark back
    times = START + np.where(np.arange(NAMES) % 2, past, ahead)
    return [
        one(
            2,
            at,
            int(times[i]),
            version=f"build-{i}",
            features={"carrier": f"{i:x}" * 60, "wind": 10.0 ** (i % 300), f"feature-{i}": i},
            tags={f"tag-{i}": "x" * (i % 500)},
        )
        for i in range(NAMES)
    ]


def beside(worst: Sequence[SourceMessage]) -> tuple[Runner, int]:
    """A neighbour's steady traffic, with the worst in between; the runner, and the most bytes that its table had."""
    run, runner = Profiling(KNOWN.newest, marks((0, 1, 2))), Runner(sources=3, bounds=Bounds(open_bytes=4 << 20))  # fmt: skip
    at = {0: 0, 1: 0, 2: len(worst)}
    steady = [one(i % 2, at, START + i * SECOND, model=NEIGHBOUR) for i in range(600)]
    ends = [one(p, at, START + 60 * DAY, model=FLUSH) for p in (0, 1, 2)]
    batches = [
        part
        for i in range(20)
        for part in (worst[i * NAMES // 20 :][: NAMES // 20], steady[i * 30 :][:30])
    ]
    most = 0
    for offset, batch in enumerate((*batches, ends, [])):
        profiles = run.batch(batch, idle=() if worst else (2,)).profiles[TARGET]
        runner.feed(TARGET, offset, wire.encode(profiles))
        most = max(most, sum(len(k) + len(v) for k, v in runner.tables[TARGET].items()))
    return runner, most


def test_a_hostile_producer_costs_bounded_memory_and_changes_no_number_of_its_neighbour() -> None:
    """Of what is in a source partition of its own; in a shared one its times move the watermark of both."""
    worst = hostile(dict.fromkeys((0, 1, 2), 0))
    (attacked, most), (alone, _) = beside(worst), beside([])
    assert of_model(attacked, NEIGHBOUR) == of_model(alone, NEIGHBOUR)
    assert len(of_model(alone, NEIGHBOUR)) > 20
    assert most < STATE_BYTES
    everything = counted(attacked.messages())
    assert sum(n for cell, n in everything.items() if cell[0] == MODEL and cell[2:4] == ("", MINUTE)) == NAMES  # fmt: skip
    said = [m for m in attacked.messages() if isinstance(m, wire.Window) and m.model == MODEL]
    assert {w.segment for w in said} <= {"", *(f"carrier={v}" for v in ("UA", "B6", "EV", OTHER_SEGMENT))}  # fmt: skip
    days = 31  # of event time: after each of them places may change hands
    assert len({w.version for w in said}) <= Bounds().versions * (days + 1)
    runner = attacked.stage
    assert min(runner.overflow["versions"], runner.overflow["open_panes"]) > NAMES // 4
    attacked.feed(TARGET, 99, wire.encode(wire.Profiles([], [])))  # what lost its place goes now
    rows = [key for key in attacked.tables[TARGET] if key.startswith(b"series/")]
    assert len(rows) < 10


def test_events_in_too_many_panes_are_refused_before_their_profiles_take_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.profiling.MAX_CELLS", 231 * 2 * 50)
    log = [message(0, i, event(START + i * 10 * SECOND)) for i in range(51)]
    run = Profiling(KNOWN.newest, marks((0,)))
    with pytest.raises(TooManyProfilesError):
        run.batch(log)
    assert run.at == marks((0,))  # nothing has moved: its parts can be sent
    assert run.batch(log[:50]).events == 50
