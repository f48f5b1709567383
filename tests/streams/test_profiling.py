"""One batch is a function of the log and the marks: however the log is cut, the sums and the late events are the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.columns import OTHER_SEGMENT, decode_sample
from monitor.events import Limits
from monitor.panes import SourceMark
from monitor.profile import Profile
from streams.models import Model
from streams.profiling import (
    SAMPLE_BYTES,
    SAMPLE_EVENTS,
    SCORED_BYTES,
    SCORED_ROWS,
    SCORED_SCHEMA,
    Outcome,
    SourceMessage,
    profile_batch,
)
from streams.topics import partition_of
from tests.monitor.builders import MODEL, NOW, SECOND, START, event, spec
from tests.streams.builders import PARTITIONS, POLICY, Known, Profiling, cuts, marks, message, model

FIRST, SECOND_MODEL, NEW = MODEL, "fraud", "new-model"
KNOWN = Known(
    model(FIRST), model(SECOND_MODEL, segments=[], windows={"pane": "5s", "sizes": ["1m"]})
)
REFERENCE = KNOWN.models[FIRST].reference
assert REFERENCE is not None
LAYOUT = REFERENCE.layout


def log(seed: int, n: int = 300, partitions: int = 2) -> list[SourceMessage]:
    """A log of two known models and an unknown one, out of order by up to half a minute, with bad events in it."""
    rng = np.random.default_rng(seed)
    position, messages = dict.fromkeys(range(partitions), 0), []
    for i in range(n):
        partition = int(rng.integers(partitions))
        found = []
        for _ in range(rng.choice([1, 1, 1, 3])):
            ts = START + i * 300 - int(rng.exponential(4_000))
            found.append(
                event(
                    ts if rng.random() < 0.95 else 5,
                    id=f"{seed}-{i}",
                    model=str(rng.choice([FIRST, SECOND_MODEL, NEW], p=[0.6, 0.3, 0.1])),
                    version=str(rng.choice(["7", "8"])),
                    features={"wind": float(rng.integers(0, 30)), "carrier": str(rng.choice(["UA", "B6", "ZZ"]))},
                )
            )  # fmt: skip
        position[partition] += int(rng.integers(0, 2))  # a transaction marker takes an offset
        messages.append(message(partition, position[partition], *found))
        position[partition] += 1
    return messages


def as_arrow(given: SourceMessage) -> SourceMessage:
    """The same events as a stream."""
    said = msgspec.json.decode(given.value or b"")
    rows = pa.RecordBatch.from_pylist(said if isinstance(said, list) else [said])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return SourceMessage(given.partition, given.offset, bytes(sink.getvalue()), {})


Sums = dict[tuple[str, str, str, int, bool], Profile]


def sums(outcomes: list[Outcome]) -> Sums:
    """What all deltas add up to."""
    added: Sums = {}
    for outcome in outcomes:
        for partition, profiles in enumerate(outcome.profiles):
            for d in profiles.deltas:
                assert partition_of(d.model, PARTITIONS) == partition
                known = KNOWN.models[d.model].reference
                assert known is not None
                profile = Profile.from_bytes(known.layout, d.profile)
                key = (d.model, d.version, d.segment, d.pane_ms, d.late)
                added[key] = added[key] + profile if key in added else profile
    return added


def plain(found: Sums) -> dict[tuple[str, str, str, int, bool], list[int]]:
    return {key: profile.vector.tolist() for key, profile in found.items()}


@settings(max_examples=40)  # a log each
@given(st.integers(0, 50), st.integers(1, 12))
def test_any_cut_of_a_log_gives_the_same_sums_the_same_late_events_and_the_same_marks(
    seed: int, parts: int
) -> None:
    messages = log(seed, 80)
    whole = Profiling(KNOWN.newest, marks((0, 1)))
    whole.batch(messages)
    cut = Profiling(KNOWN.newest, marks((0, 1)))
    for part in cuts(np.random.default_rng(seed), len(messages), parts):
        cut.batch(messages[part])
    assert plain(sums(cut.outcomes)) == plain(sums(whole.outcomes))
    assert cut.at == whole.at
    assert [d.message.offset for o in cut.outcomes for d in o.dead] == [
        d.message.offset for d in whole.outcomes[0].dead
    ]
    for name in ("events", "late"):
        assert sum(getattr(o, name) for o in cut.outcomes) == getattr(whole.outcomes[0], name)


@settings(max_examples=40)
@given(st.integers(0, 50))
def test_who_reads_the_other_partition_does_not_matter(seed: int) -> None:
    messages = log(seed, 60)
    together = Profiling(KNOWN.newest, marks((0, 1)))
    together.batch(messages)
    alone = [Profiling(KNOWN.newest, marks((p,))) for p in (0, 1)]
    for p, worker in enumerate(alone):
        worker.batch([m for m in messages if m.partition == p])
    assert plain(sums([w.outcomes[0] for w in alone])) == plain(sums(together.outcomes))
    assert alone[0].at | alone[1].at == together.at


def test_late_is_what_a_plain_reading_of_the_log_calls_late() -> None:
    messages = log(3)
    run = Profiling(KNOWN.newest, marks((0, 1)))
    for part in cuts(np.random.default_rng(1), len(messages), 9):
        run.batch(messages[part])
    wanted = Counter[tuple[str, bool]]()
    newest: dict[int, int] = {}
    for m in messages:
        raw = msgspec.json.decode(m.value or b"")
        for e in raw if isinstance(raw, list) else [raw]:
            if e["ts"] == 5:
                continue
            if e["model"] != NEW:
                windows = KNOWN.models[e["model"]].spec.windows
                end = e["ts"] // windows.pane * windows.pane + windows.pane
                late = end <= newest.get(m.partition, 0) - windows.lateness
                wanted[e["model"], late] += 1
            newest[m.partition] = max(newest.get(m.partition, 0), e["ts"])
    found = Counter[tuple[str, bool]]()
    for (name, _, segment, _, late), profile in sums(run.outcomes).items():
        if segment == "":
            found[name, late] += profile.n
    assert found == wanted
    assert wanted[FIRST, True] > 5
    assert sum(o.late for o in run.outcomes) == wanted[FIRST, True] + wanted[SECOND_MODEL, True]


@settings(max_examples=40)
@given(st.integers(0, 50), st.integers(1, 8))
def test_the_links_account_for_every_event_and_form_a_chain(seed: int, parts: int) -> None:
    messages = log(seed, 60)
    run = Profiling(KNOWN.newest, marks((0, 1), 0))
    for part in cuts(np.random.default_rng(seed), len(messages), parts):
        outcome = run.batch(messages[part])
        assert len(outcome.profiles) == PARTITIONS
        for p in (0, 1):
            links = [x for profiles in outcome.profiles for x in profiles.links if x.partition == p]
            assert len({(x.start, x.end, x.events, x.dead, x.watermark_ms) for x in links}) == 1
            fates = sum(x.on_time + x.late + x.calibrating for x in links)
            assert links[0].events == links[0].dead + fates
    position: defaultdict[tuple[int, int], int] = defaultdict(int)
    for outcome in run.outcomes:
        for target, profiles in enumerate(outcome.profiles):
            for x in profiles.links:
                assert x.start == position[target, x.partition]
                position[target, x.partition] = x.end


def test_segments_add_up_to_the_whole_and_unknown_values_are_other() -> None:
    run = Profiling(KNOWN.newest, marks((0, 1)))
    run.batch(log(1))
    whole, parts = Counter[tuple[str, int, bool]](), Counter[tuple[str, int, bool]]()
    names = set()
    for (name, version, segment, pane, late), profile in sums(run.outcomes).items():
        if name == FIRST:
            (parts if segment else whole)[version, pane, late] += profile.n
            names.add(segment)
    assert parts == whole
    assert names == {"", "carrier=UA", "carrier=B6", f"carrier={OTHER_SEGMENT}"}


def test_a_message_with_several_bad_events_is_one_dead_letter_and_its_good_events_count() -> None:
    bad = {"ts": 5, "model": FIRST}
    run = Profiling(KNOWN.newest, marks((0,)))
    outcome = run.batch([message(0, 0, event(START), bad, bad, event(START)), message(0, 1, bad)])
    assert [(d.message.offset, d.error.reason, d.events) for d in outcome.dead] == [
        (0, "bad_timestamp", 2),
        (1, "bad_timestamp", 1),
    ]
    assert outcome.events == 5
    assert sum(p.n for key, p in sums([outcome]).items() if key[2] == "") == 2


def test_a_tombstone_is_counted_and_moves_the_position() -> None:
    run = Profiling(KNOWN.newest, marks((0,)))
    outcome = run.batch([SourceMessage(0, 4, None, {})])
    assert [d.error.reason for d in outcome.dead] == ["not_json"]
    assert outcome.marks[0] == SourceMark(5, None, idle=False)


def test_a_heartbeat_says_where_everything_stands() -> None:
    run = Profiling(KNOWN.newest, {0: SourceMark(7, START, idle=False), 1: SourceMark(3, None, idle=False)})  # fmt: skip
    outcome = run.batch([], idle=[1], jumps={0: "retention"})
    for profiles in outcome.profiles:
        assert (profiles.deltas, profiles.samples) == ([], [])
        assert [(x.start, x.end, x.watermark_ms, x.idle, x.jump) for x in profiles.links] == [
            (7, 7, START, False, "retention"),
            (3, 3, None, True, None),
        ]


class TestUnknownModels:
    def test_their_events_are_sampled_and_never_late(self) -> None:
        many = SAMPLE_EVENTS + 500
        events = [event(START - i * SECOND, model=NEW, id=str(i)) for i in range(many)]
        run = Profiling(KNOWN.newest, marks((0,)))
        outcome = run.batch([message(0, 0, *events)])
        target = outcome.profiles[partition_of(NEW, PARTITIONS)]
        (sample,) = target.samples
        # What is said to be in a sample is in it: calibration waits for that many.
        assert sample.events == len(decode_sample(NEW, sample.rows)) == SAMPLE_EVENTS
        assert [x.calibrating for x in target.links] == [many]
        assert outcome.late == 0
        assert outcome.dead == []

    def test_wide_events_are_sampled_as_far_as_they_fit(self) -> None:
        rng = np.random.default_rng(1)
        wide = [event(START, model=NEW, features={f"f{i}": float(x) for i, x in enumerate(rng.random(200))}) for _ in range(1_500)]  # fmt: skip
        messages = [message(0, i, e) for i, e in enumerate(wide)]
        outcome = Profiling(KNOWN.newest, marks((0,))).batch(messages)
        (sample,) = outcome.profiles[partition_of(NEW, PARTITIONS)].samples
        assert len(sample.rows) <= SAMPLE_BYTES
        assert 100 < sample.events == len(decode_sample(NEW, sample.rows)) < 1_500

    def test_a_model_with_a_spec_and_no_reference_is_calibrating_too(self) -> None:
        known = Known(Model(spec(NEW), None))
        outcome = Profiling(known.newest, marks((0,))).batch(
            [message(0, 0, event(START, model=NEW))]
        )
        assert sum(len(p.samples) for p in outcome.profiles) == 1

    def test_they_are_refused_where_registration_is_off(self) -> None:
        run = Profiling(KNOWN.newest, marks((0,)), replace(POLICY, auto_register=False))
        outcome = run.batch([message(0, 0, event(START, model=NEW), event(START))])
        assert [(d.error.reason, d.events) for d in outcome.dead] == [("unknown_model", 1)]
        assert outcome.profiles[partition_of(NEW, PARTITIONS)].samples == []

    def test_only_so_many_are_taken(self) -> None:
        run = Profiling(KNOWN.newest, marks((0,)), replace(POLICY, max_models=4), known_models=2)
        events = [event(START, model=f"new-{i % 5}") for i in range(10)]
        outcome = run.batch([message(0, 0, *events)])
        assert sorted(s.model for p in outcome.profiles for s in p.samples) == ["new-0", "new-1"]
        assert [(d.error.reason, d.events) for d in outcome.dead] == [("unknown_model", 6)]

    def test_a_model_that_gets_its_reference_while_a_batch_is_made_is_seen_in_one_way(self) -> None:
        answers = iter([None, KNOWN.models[FIRST], KNOWN.models[FIRST]])
        run = Profiling(
            lambda _: next(answers), {0: SourceMark(0, START + 60 * SECOND, idle=False)}
        )
        outcome = run.batch([message(0, 0, event(START))])
        assert sum(len(p.samples) for p in outcome.profiles) == 1
        assert all(p.deltas == [] for p in outcome.profiles)


def scored(outcome: Outcome, name: str = FIRST) -> list[pa.Table]:
    tables = [pa.ipc.open_stream(rows).read_all() for key, rows in outcome.scored if key == name]
    assert all(table.schema == SCORED_SCHEMA for table in tables)
    return tables


class TestScored:
    def test_rows_say_what_a_label_needs_to_join(self) -> None:
        events = [
            event(START, id="a", prediction=1.0, score=0.25),
            event(START + 1, id=5, prediction=True, features={"carrier": "ZZ"}, version=None),
            event(START + 2, prediction=1),  # without an id no label can find it
            event(START + 3, id="c", prediction=[0.1, 0.9], features=None),
        ]
        outcome = Profiling(KNOWN.newest, marks((0,))).batch([message(0, 0, *events)])
        (table,) = scored(outcome)
        assert table.to_pylist() == [
            {"id": "a", "ts": START, "model": FIRST, "version": "7", "segments": [("carrier", "UA")], "prediction": "1", "score": 0.25},
            {"id": "5", "ts": START + 1, "model": FIRST, "version": "", "segments": [("carrier", OTHER_SEGMENT)], "prediction": "1", "score": None},
            {"id": "c", "ts": START + 3, "model": FIRST, "version": "7", "segments": [("carrier", OTHER_SEGMENT)], "prediction": None, "score": None},
        ]  # fmt: skip

    def test_what_has_no_id_is_scored_under_the_join_key_of_its_model(self) -> None:
        keyed = Known(Model(spec(NEW, labels={"join_key": ["tags.call"]}), None))
        tagged = [event(START, model=name, tags={"call": 7}) for name in (NEW, FIRST)]
        outcome = Profiling(keyed.newest, marks((0,))).batch([message(0, 0, *tagged)])
        assert [table.column("id").to_pylist() for table in scored(outcome, NEW)] == [["7"]]
        assert scored(outcome, FIRST) == []

    def test_a_model_that_is_calibrating_is_scored_without_segments(self) -> None:
        run = Profiling(KNOWN.newest, marks((0,)))
        outcome = run.batch([message(0, 0, event(START, id="a", model=NEW))])
        (table,) = scored(outcome, NEW)
        assert table["segments"].to_pylist() == [[]]

    def test_events_without_ids_make_no_rows(self) -> None:
        assert (
            Profiling(KNOWN.newest, marks((0,))).batch([message(0, 0, event(START))]).scored == []
        )

    def test_rows_are_cut_into_messages_that_a_broker_takes(self) -> None:
        n = SCORED_ROWS + 100
        long = [event(START, id=f"{i:0256}", prediction="x" * 200, features={}) for i in range(n)]
        messages = [message(0, i, e) for i, e in enumerate(long)]
        outcome = Profiling(KNOWN.newest, marks((0,))).batch(messages)
        tables = scored(outcome)
        assert sum(table.num_rows for table in tables) == n
        assert [row for table in tables for row in table["id"].to_pylist()] == [f"{i:0256}" for i in range(n)]  # fmt: skip
        assert max(len(rows) for _, rows in outcome.scored) < SCORED_BYTES * 1.1
        short = [message(0, i, event(START, id=str(i))) for i in range(n)]
        tables = scored(Profiling(KNOWN.newest, marks((0,))).batch(short))
        assert [table.num_rows for table in tables] == [n // 2, n // 2]

    @pytest.mark.parametrize("order", [1, -1])
    def test_rows_of_unequal_size_are_cut_where_the_bytes_are(self, order: int) -> None:
        thin = [event(START, id=f"t{i}", features={}) for i in range(4_000)]
        wide = [
            event(START, id=f"{i:0256}", version="v" * 256, prediction="p" * 256, features={})
            for i in range(2_000)
        ]
        messages = [message(0, i, e) for i, e in enumerate((thin + wide)[::order])]
        outcome = Profiling(KNOWN.newest, marks((0,))).batch(messages)
        assert max(len(rows) for _, rows in outcome.scored) < SCORED_BYTES * 1.1
        assert sum(table.num_rows for table in scored(outcome)) == 6_000


@pytest.mark.parametrize("in_form", [lambda m: m, as_arrow], ids=["JSON", "Arrow"])
def test_a_refusal_makes_dead_letters_of_everything_and_still_moves_on(
    in_form: Callable[[SourceMessage], SourceMessage],
) -> None:
    outcome = profile_batch(
        [in_form(message(0, 4, event(START), event(START)))],
        {0: SourceMark(4, START, idle=False)},
        KNOWN.newest,
        POLICY,
        now_ms=NOW,
        known_models=2,
        refusal="does not fit",
    )
    assert [(d.error.reason, d.error.detail, d.events) for d in outcome.dead] == [
        ("too_large", "does not fit", 2)
    ]
    assert outcome.marks == {0: SourceMark(5, START, idle=False)}
    assert all(p.deltas == [] for p in outcome.profiles)


@pytest.mark.parametrize("seed", range(3))
def test_a_log_in_arrow_or_in_both_forms_becomes_what_it_becomes_in_json(seed: int) -> None:
    messages = log(seed)
    arrow = [as_arrow(m) for m in messages]
    mixed = [a if i % 2 else m for i, (m, a) in enumerate(zip(messages, arrow, strict=True))]
    outcomes = [Profiling(KNOWN.newest, marks(range(2))).batch(m) for m in (messages, arrow, mixed)]
    expected = outcomes[0]
    assert expected.events > 300
    assert len(expected.dead) > 3
    for outcome in outcomes[1:]:
        assert plain(sums([outcome])) == plain(sums([expected]))
        assert [p.links for p in outcome.profiles] == [p.links for p in expected.profiles]
        assert [p.samples for p in outcome.profiles] == [p.samples for p in expected.profiles]
        assert scored(outcome) == scored(expected)
        assert [(d.message.offset, d.events, d.error.reason) for d in outcome.dead] == [(d.message.offset, d.events, d.error.reason) for d in expected.dead]  # fmt: skip
        assert (outcome.marks, outcome.late) == (expected.marks, expected.late)


@pytest.mark.parametrize("limit", [10, 1 << 20])
def test_limits_reach_the_events(limit: int) -> None:
    policy = replace(POLICY, limits=Limits(message_bytes=limit))
    outcome = Profiling(KNOWN.newest, marks((0,)), policy).batch([message(0, 0, event(START))])
    assert [d.error.reason for d in outcome.dead] == (["too_large"] if limit == 10 else [])
