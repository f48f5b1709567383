"""The judge of a series: its detector sees every pane once, and a restart changes nothing that it says."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from monitor import reference as references
from monitor.judge import Judge
from monitor.panes import SeriesKey
from monitor.profile import Profile
from monitor.wire import Verdicts
from tests.monitor.builders import DAY, HOUR, MODEL, START, columns, past, profile_of, spec

SPEC = spec(windows={"pane": "1h", "sizes": ["1d", "7d"]})
REFERENCE = references.build(
    SPEC, lambda: [columns(past(np.random.default_rng(1), 20_000, span_ms=30 * DAY))]
)
WHOLE = SeriesKey(MODEL, "7", "", REFERENCE.layout.bins_id)


def panes(hours: int, *, shift_after: int, factor: float = 2.0) -> list[Profile]:
    """Hourly panes; from ``shift_after`` on the wind is ``factor`` times as strong, in whole knots still."""
    made = []
    for hour in range(hours):
        rows = past(np.random.default_rng(hour), 40, start_ms=START, span_ms=HOUR)
        if hour >= shift_after:
            wind = np.round(rows.column("wind").to_numpy() / 1.15 * factor) * 1.15
            rows = rows.set_column(rows.schema.get_field_index("wind"), "wind", pa.array(wind))
        made.append(profile_of(REFERENCE, columns(rows)))
    return made


def run(profiles: list[Profile], *, restart_every: int | None = None) -> list[Verdicts]:
    """What a judge says about panes and days, restarted from its snapshot every so many panes."""
    judge, said = Judge(WHOLE, SPEC, REFERENCE), []
    day: Profile | None = None
    for hour, profile in enumerate(profiles):
        if restart_every is not None and hour % restart_every == 0:
            judge = Judge.restore(WHOLE, SPEC, REFERENCE, judge.snapshot())
        at = START + hour * HOUR
        said.append(judge.pane(at, HOUR, profile))
        day = profile if day is None else day + profile
        if hour % 24 == 23:
            said.append(judge.window(at + HOUR - DAY, DAY, day))
            day = None
    return [verdicts for verdicts in said if verdicts is not None]


STATISTICS = ("adwin", "mean_shift")


def alarms(
    said: list[Verdicts], statistics: tuple[str, ...] = STATISTICS
) -> list[tuple[int, str, int | None]]:
    """Day, feature and onset of the detectors' alarms."""
    return [
        ((verdicts.start_ms - START) // DAY, v.feature, v.onset_ms)
        for verdicts in said
        for v in verdicts.verdicts
        if v.statistic in statistics
    ]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_shift_is_found_with_its_onset_and_told_with_the_next_smallest_window(
    statistic: str,
) -> None:
    found = alarms(run(panes(96, shift_after=50)), (statistic,))
    assert [(day, feature) for day, feature, _ in found][:1] == [(2, "wind")]
    onset = found[0][2]
    assert onset is not None
    assert abs(onset - (START + 50 * HOUR)) <= 2 * HOUR


def test_the_change_is_news_once_and_the_distance_from_the_reference_as_long_as_it_lasts() -> None:
    said = run(panes(144, shift_after=50))
    assert [day for day, _, _ in alarms(said, ("adwin",))] == [2]
    assert [day for day, _, _ in alarms(said, ("mean_shift",))] == [2, 3, 4, 5]


def test_an_alarm_says_from_where_to_where_in_the_features_own_unit() -> None:
    said = run(panes(96, shift_after=50))
    (first, *_) = [v for w in said for v in w.verdicts if v.statistic == "mean_shift"]
    usual = REFERENCE.profiles[""].moments("wind")[1]
    assert first.evidence["reference_mean"] == pytest.approx(usual)
    assert first.value == pytest.approx(2 * usual, rel=0.1)
    assert isinstance(first.evidence["e_value"], float)
    assert first.evidence["e_value"] > 720


def test_a_calm_stream_raises_no_alarm() -> None:
    assert alarms(run(panes(96, shift_after=96))) == []


@pytest.mark.parametrize("restart_every", [1, 7, 24])
def test_a_restart_changes_nothing_that_is_said(restart_every: int) -> None:
    stream = panes(96, shift_after=50)
    assert run(stream, restart_every=restart_every) == run(stream)


@pytest.mark.parametrize(
    "state",
    [
        Judge(WHOLE, spec(windows={"pane": "1h", "sizes": ["1d", "7d"]}, alarm_budget={"false_alarms": 9}), REFERENCE).snapshot(),
        msgspec.msgpack.encode((b"\x01 as the first release wrote it", [])),
    ],
    ids=["another budget", "another release"],
)  # fmt: skip
def test_detectors_of_other_settings_start_anew(state: bytes) -> None:
    fresh = Judge(WHOLE, SPEC, REFERENCE)
    assert Judge.restore(WHOLE, SPEC, REFERENCE, state).snapshot() == fresh.snapshot()


def test_only_the_smallest_window_carries_the_alarms_and_only_the_whole_model_has_a_detector() -> (
    None
):
    judge = Judge(WHOLE, SPEC, REFERENCE)
    segment = Judge(WHOLE._replace(segment="carrier=UA"), SPEC, REFERENCE)
    stream = panes(60, shift_after=30, factor=3.0)
    for hour, profile in enumerate(stream):
        judge.pane(START + hour * HOUR, HOUR, profile)
        segment.pane(START + hour * HOUR, HOUR, profile)
    said = [j.window(START, size, stream[0]) for j, size in ((judge, 7 * DAY), (segment, DAY), (judge, DAY), (judge, DAY))]  # fmt: skip
    assert [len(alarms([v])) > 0 for v in said if v is not None] == [False, False, True, False]


def test_broken_data_is_said_with_the_pane_it_is_in() -> None:
    rows = past(np.random.default_rng(1), 40, span_ms=HOUR)
    wind = pa.array(rows.column("wind").to_numpy() * 1.609)
    rows = rows.set_column(rows.schema.get_field_index("wind"), "wind", wind)
    verdicts = Judge(WHOLE, SPEC, REFERENCE).pane(START, HOUR, profile_of(REFERENCE, columns(rows)))
    assert verdicts is not None
    assert (verdicts.source, verdicts.start_ms, verdicts.end_ms) == ("pane", START, START + HOUR)
    assert [(v.kind, v.statistic) for v in verdicts.verdicts] == [("data_quality", "off_grid")]


def test_without_a_reference_there_is_no_opinion() -> None:
    judge = Judge.restore(WHOLE, SPEC, None, Judge(WHOLE, SPEC, None).snapshot())
    profile = panes(1, shift_after=1)[0]
    assert judge.pane(START, HOUR, profile) is None
    assert judge.window(START, DAY, profile) is None
