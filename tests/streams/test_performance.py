"""Labelled windows are judged once each and in order, whatever is repeated and whoever takes over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitor import wire
from monitor.panes import MAX_VERSIONS
from monitor.wire import Performance, Verdicts
from streams.models import Model
from streams.performance import PerformanceStage
from streams.stage import Output, Step
from streams.topics import Topics, partition_of
from tests.monitor.builders import HOUR, MODEL, START, spec
from tests.streams.builders import PARTITIONS, Known, model

TOPICS = Topics()
SIZES = {"pane": "10s", "sizes": ["1m", "1h"]}
KNOWN = Known(model(MODEL, windows=SIZES), Model(spec("bare"), None))
REFERENCE = KNOWN.models[MODEL].reference
assert REFERENCE is not None
assert REFERENCE.accuracy is not None
USUAL = REFERENCE.accuracy


def window(hour: int, accuracy: float = USUAL, **changes: Any) -> bytes:
    labelled = 400
    errors = round(labelled * (1 - accuracy))
    given: dict[str, Any] = {
        "model": MODEL,
        "version": "7",
        "segment": "",
        "size_ms": HOUR,
        "start_ms": START + hour * HOUR,
        "revision": labelled,
        "predictions": 500,
        "labelled": labelled,
        "errors": errors,
        "final": True,
        "metrics": {"accuracy": 1 - errors / labelled},
    }
    return wire.encode(Performance(**{**given, **changes}))


class Runner:
    """The stage with its table."""

    def __init__(self, known: Known = KNOWN) -> None:
        self.known = known
        self.table: dict[bytes, bytes] = {}
        self.said: list[Verdicts] = []
        self.start()

    def start(self) -> None:
        self.stage = PerformanceStage(TOPICS, PARTITIONS, self.known)
        self.stage.restore(0, self.table.items())

    def feed(self, offset: int, value: bytes, *, written: bool = True) -> list[Step]:
        steps = list(self.stage.advance(TOPICS.performance, 0, offset, value))
        for step in steps:
            for output in step.outputs:
                assert output.topic == TOPICS.verdicts
                assert output.partition == partition_of(MODEL, PARTITIONS)
                message = wire.decode(output.value)
                assert isinstance(message, Verdicts)
                self.said.append(message)
            if written:
                self.table.update({k: v for k, v in step.writes if v is not None})
                for key in (k for k, v in step.writes if v is None):
                    del self.table[key]
        return steps

    def found(self) -> list[tuple[int, str, str]]:
        return [
            ((m.start_ms - START) // HOUR, v.statistic, v.kind)
            for m in self.said
            for v in m.verdicts
            if v.status == "breach"
        ]


def stream(hours: int = 60, falls_at: int = 40) -> list[bytes]:
    """Hourly windows, 5 points worse from ``falls_at`` on: too little for one window, enough for the detector."""
    return [window(h, USUAL + 0.01 * (h % 3 - 1) - (0.05 if h >= falls_at else 0)) for h in range(hours)]  # fmt: skip


def test_a_slow_fall_is_a_concept_drift_with_its_onset() -> None:
    runner = Runner()
    for offset, value in enumerate(stream()):
        runner.feed(offset, value)
    ((hour, statistic, kind), *_) = runner.found()
    assert (statistic, kind) == ("error_stream", "concept_drift")
    assert 40 <= hour < 60
    onsets = [v.onset_ms for m in runner.said for v in m.verdicts if v.kind == "concept_drift"]
    assert onsets[0] is not None
    assert abs(onsets[0] - (START + 40 * HOUR)) <= 3 * HOUR


def test_a_rise_is_no_bad_news() -> None:
    runner = Runner()
    for offset in range(60):
        runner.feed(offset, window(offset, USUAL + (0.15 if offset > 30 else 0)))
    assert runner.found() == []
    assert len(runner.said) == 60


def test_limits_by_hand_hold_for_the_windows_that_they_name() -> None:
    rules = [
        {"statistic": "accuracy", "falls_by": 0.03, "window": "1h"},
        {"statistic": "error_rate", "times": 1.5, "window": "1h"},
        {"statistic": "f1", "below": 0.5},
    ]
    runner = Runner(Known(model(MODEL, windows=SIZES, rules=rules)))
    for offset, worse in enumerate((0.02, 0.04, 0.02)):
        accuracy = round(400 * (USUAL - worse)) / 400
        runner.feed(offset, window(offset, accuracy, metrics={"accuracy": accuracy, "f1": 0.45}))
    by_hand = [(h, s) for h, s, _ in runner.found() if s != "error_stream"]
    assert by_hand == [(0, "f1"), (1, "accuracy"), (1, "f1"), (2, "f1")]
    limits = {v.statistic: v.limit for v in runner.said[0].verdicts}
    assert limits == {
        "accuracy": pytest.approx(USUAL - 0.03),
        "error_rate": pytest.approx(1.5 * (1 - USUAL)),
        "f1": 0.5,
    }


def test_a_deep_fall_breaks_its_own_window() -> None:
    runner = Runner()
    runner.feed(0, window(0, USUAL - 0.3))
    assert ("accuracy", "performance") in [found[1:] for found in runner.found()]


def test_a_restart_after_any_message_and_a_crash_before_any_write_change_nothing() -> None:
    steady, shaken = Runner(), Runner()
    for offset, value in enumerate(stream()):
        steady.feed(offset, value)
        if offset % 3 == 0:
            shaken.feed(offset, value, written=False)
            shaken.start()
        shaken.feed(offset, value)
        assert shaken.feed(offset, value) == []  # known
        shaken.start()
        assert shaken.feed(offset, value) == []
    assert shaken.table == steady.table
    unique = list({m.start_ms: m for m in shaken.said}.values())
    assert unique == steady.said


def test_a_corrected_window_is_judged_anew_and_the_detector_has_seen_it_already() -> None:
    corrected, plain = Runner(), Runner()
    for offset, value in enumerate(stream(30)):
        plain.feed(2 * offset, value)
        corrected.feed(2 * offset, value)
        corrected.feed(2 * offset + 1, window(offset, 0.5, revision=500))
    assert [m.revision for m in corrected.said] == [400, 500] * 30
    assert [f for f in corrected.found() if f[1] == "error_stream"] == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"final": False}, id="labels are still to come"),
        pytest.param({"model": "unknown"}, id="an unknown model"),
        pytest.param({"model": "bare"}, id="a model without a reference"),
    ],
)
def test_what_cannot_be_judged_yet_has_no_effect(changes: dict[str, Any]) -> None:
    assert Runner().feed(0, window(0, **changes)) == []


def test_a_window_without_labels_says_nothing_and_is_remembered() -> None:
    (step,) = Runner().feed(0, window(0, labelled=0, errors=0, metrics={}))
    assert step.outputs == ()
    assert len(step.writes) == 1


def beside(runner: Runner, hours: range, *, of_new: float, restart: bool = False) -> None:
    """Versions 7 and 8 side by side, with 400 labels an hour each: 7 as accurate as ever, 8 by ``of_new``."""
    offset = 2 * hours.start
    for hour in hours:
        old, new = (round(400 * (1 - accuracy)) for accuracy in (USUAL, of_new))
        feeds = [("7", USUAL, {"8": (400, new)}), ("8", of_new, {"7": (400, old)})]
        for version, accuracy, peers in feeds:
            size = {"size_ms": 60_000, "start_ms": START + hour * 60_000}
            runner.feed(offset, window(hour, accuracy, version=version, peers=peers, **size))
            offset += 1
            if restart:
                runner.start()


def answers(runner: Runner) -> list[tuple[str, str]]:
    return [
        (m.version, str(v.evidence["answer"]))
        for m in runner.said
        for v in m.verdicts
        if v.kind == "canary"
    ]


def test_a_newer_version_is_compared_with_the_older_one_beside_it() -> None:
    runner = Runner()
    runner.feed(0, window(0, size_ms=60_000, start_ms=START - 60_000))  # 7 was there before
    beside(runner, range(1, 40), of_new=USUAL - 0.1)
    said = answers(runner)
    assert {version for version, _ in said} == {"8"}
    assert (said[0][1], said[-1][1]) == ("not yet known", "worse")
    (verdict,) = [v for v in runner.said[-1].verdicts if v.kind == "canary"]
    assert verdict.status == "breach"
    assert verdict.evidence["compared_with"] == "7"
    assert verdict.value == pytest.approx(0.1, abs=0.01)
    equal = Runner()
    beside(equal, range(1, 60), of_new=USUAL)
    assert answers(equal)[-1] == ("8", "not worse within margin")


def test_a_comparison_survives_restarts_and_is_of_the_smallest_windows() -> None:
    whole, cut = Runner(), Runner()
    for runner in (whole, cut):
        beside(runner, range(1, 20), of_new=USUAL - 0.1, restart=runner is cut)
    assert cut.said == whole.said
    before = len(answers(whole))
    whole.feed(1_000, window(500, version="8", peers={"7": (400, 80)}))  # of an hour
    assert len(answers(whole)) == before


def test_a_row_of_the_release_before_goes_on_with_its_comparison() -> None:
    whole, upgraded = Runner(), Runner()
    for runner in (whole, upgraded):
        beside(runner, range(1, 10), of_new=USUAL - 0.05)
    for key, value in upgraded.table.items():
        stored = msgspec.msgpack.decode(wire.unpack(value))
        upgraded.table[key] = wire.pack(msgspec.msgpack.encode(stored[:-1]))
    upgraded.start()
    for runner in (whole, upgraded):
        beside(runner, range(10, 20), of_new=USUAL - 0.05)
    assert upgraded.said == whole.said


def among_three(runner: Runner, minutes: range, *, absent: range = range(0)) -> None:
    """Version 9 beside 7, which is older than 8; 7 has no labels in the windows ``absent``."""
    for minute in minutes:
        at = {"size_ms": 60_000, "start_ms": START + minute * 60_000}
        live = [version for version in ("7", "8", "9") if version != "7" or minute not in absent]
        for version in live:
            peers = {other: (400, 80) for other in live if other != version}
            runner.feed(10 * minute + int(version), window(0, version=version, peers=peers, **at))


def compared_with(runner: Runner) -> dict[str, list[tuple[str, int]]]:
    """By version, whom it was compared with in each window, and how many labels of that one were known."""
    found: dict[str, list[tuple[str, int]]] = {}
    for message in runner.said:
        for v in message.verdicts:
            if v.kind == "canary":
                evidence = str(v.evidence["compared_with"]), int(v.evidence["its_labels"])
                found.setdefault(message.version, []).append(evidence)
    return found


def test_a_comparison_outlasts_a_window_that_the_oldest_of_three_versions_missed() -> None:
    runner = Runner()
    for i, version in enumerate(("7", "8")):  # they were there before 9
        runner.feed(i, window(0, version=version, size_ms=60_000, start_ms=START + i * 60_000))
    among_three(runner, range(2, 12), absent=range(5, 7))
    found = compared_with(runner)
    steady = [("7", 400 * n) for n in range(1, 9)]
    assert found == {"8": steady, "9": steady}


def test_another_baseline_is_chosen_once_the_old_one_was_silent_for_a_day() -> None:
    runner = Runner()
    for i, version in enumerate(("7", "8")):
        runner.feed(i, window(0, version=version, size_ms=60_000, start_ms=START + i * 60_000))
    among_three(runner, range(2, 4))
    last, day = 3, 24 * 60
    gone = range(last + 1, last + day + 5)
    among_three(runner, range(last + day - 1, last + day + 5), absent=gone)
    found = compared_with(runner)
    assert found["9"] == [("7", 400), ("7", 800), *(("8", 400 * n) for n in range(1, 5))]
    assert found["8"] == [("7", 400), ("7", 800)]  # and now nobody is older


def test_series_do_not_see_each_other() -> None:
    runner = Runner()
    places = [(segment, version) for segment in ("", "carrier=UA") for version in ("7", "8")]
    for offset, (segment, version) in enumerate(places):
        assert runner.feed(offset, window(0, segment=segment, version=version)) != []
    assert len(runner.table) == 4


@pytest.mark.parametrize(
    "value",
    [wire.encode(wire.Command("approve", "m", "i", "ann", 5)), b"somebody else's", b""],
    ids=["another kind", "no envelope", "a tombstone"],
)
def test_a_foreign_message_goes_to_the_dead_letters_and_the_next_is_judged(value: bytes) -> None:
    runner = Runner()
    (step,) = runner.stage.advance(TOPICS.performance, 0, 4, value)
    key = b"performance:driftline.performance:0:4:incompatible"
    assert step == Step((Output(TOPICS.dlq, 0, key, value),))
    assert runner.feed(5, window(0)) != []


def test_a_partition_that_moved_away_is_forgotten() -> None:
    runner = Runner()
    runner.feed(3, window(0))
    runner.stage.forget(0)
    assert runner.feed(3, window(0)) != []


def test_a_window_of_a_size_that_the_spec_no_longer_has_is_not_judged() -> None:
    runner = Runner()
    assert runner.feed(0, window(0, 0.1, size_ms=7 * HOUR)) == []


def test_a_detector_of_another_release_starts_anew_and_forgets_no_window() -> None:
    runner = Runner()
    for hour in range(3):
        runner.feed(hour, window(hour))
    ((key, value),) = runner.table.items()
    stored = msgspec.msgpack.decode(wire.unpack(value))
    stored[3] = stored[6] = b"\x01 as an older release wrote it"
    runner.table[key] = wire.pack(msgspec.msgpack.encode(stored))
    runner.start()
    assert runner.feed(2, window(2)) == []
    assert runner.feed(3, window(3)) != []


def test_a_new_version_is_judged_once_an_old_one_was_silent_for_a_day() -> None:
    runner = Runner()
    versions = [f"v{i:02}" for i in range(MAX_VERSIONS + 1)]
    judged = [runner.feed(i, window(0, version=v)) != [] for i, v in enumerate(versions)]
    assert judged == [True] * MAX_VERSIONS + [False]
    assert runner.stage.overflow["versions"] == 500  # predictions
    assert runner.feed(50, window(24, version="new")) == []
    runner.start()  # the places are in the table
    assert runner.feed(51, window(25, version="new")) != []
    assert {msgspec.json.decode(key[7:])[1] for key in runner.table} == {*versions[1:-1], "new"}
