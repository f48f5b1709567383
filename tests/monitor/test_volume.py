"""Volume against the hour of the week: what is an anomaly, what is none, how often chance makes one, and that the way of asking does not matter.

Rates are measured at a level of 1 %, where there is something to count: of 4,500 slots 45 alarms are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import IncompatibleError
from monitor.panes import ClosedWindow, SeriesKey
from monitor.profile import Profile
from monitor.spec import ModelSpec
from monitor.volume import Told, Volume, is_collapse, slot_of
from monitor.wire import Verdict, Verdicts
from tests.monitor.builders import DAY, HOUR, MODEL, START, reference, spec

WEEK = 168
Counts = Sequence[int] | np.ndarray
LAYOUT = reference().layout
HOURS = np.arange(60 * WEEK)
DAYTIME = (1 + 0.9 * np.sin(2 * np.pi * HOURS / 24)) * np.where(HOURS // 24 % 7 >= 5, 0.4, 1.0)


def hourly(level: float | None = None, **changes: object) -> ModelSpec:
    """Windows of an hour; with the level of a slot, or else under one false alarm in 30 days."""
    alarms = 1.0 if level is None else level * 720 / 0.02
    document: dict[str, Any] = {
        "segments": [],
        "windows": {"pane": "1h", "sizes": ["1h"], "lateness": "1s"},
        "alarm_budget": {"false_alarms": alarms, "per": "30d"},
    }
    return spec(**{**document, **changes})


def window(start_ms: int, n: int, *, size_ms: int = HOUR, version: str = "7") -> ClosedWindow:
    vector = np.zeros(LAYOUT.size, dtype=np.int64)
    vector[0] = n
    key = SeriesKey(MODEL, version, "", LAYOUT.bins_id)
    return ClosedWindow(key, start_ms, size_ms, Profile(LAYOUT, vector), whole=True)


def feed(volume: Volume, counts: Iterable[int], *, first: int = 0) -> dict[int, Verdict]:
    """Verdicts by number of the slot; slots without requests have no window."""
    size, found = volume.slot_ms, dict[int, Verdict]()
    for slot, n in enumerate(counts, first):
        start_ms = START + slot * size
        if n:
            volume.take(window(start_ms, int(n), size_ms=size))
        found |= {(t.start_ms - START) // size: t.verdict for t in volume.close(start_ms + size)}
    return found


def run(counts: Counts, model: ModelSpec | None = None) -> dict[int, Verdict]:
    return feed(Volume(model or hourly()), counts)


def broken(found: Mapping[int, Verdict], since: int = 0) -> list[int]:
    return [slot for slot, verdict in found.items() if verdict.status == "breach" and slot >= since]


def poisson(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    return rng.poisson(mean)


def scattered(rng: np.random.Generator, mean: np.ndarray, phi: float = 0.03) -> np.ndarray:
    """Negative binomial."""
    return rng.poisson(mean * rng.gamma(1 / phi, phi, len(mean)))


def busy_days(rng: np.random.Generator, mean: np.ndarray, phi: float = 0.02) -> np.ndarray:
    """A day is busy as a whole."""
    of_day = rng.gamma(1 / phi, phi, len(mean) // 24 + 1)
    return rng.poisson(mean * np.repeat(of_day, 24)[: len(mean)])


Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


@pytest.mark.parametrize("weekly", [0.95, 1.0, 1.05], ids=["shrinks", "stays", "grows"])
@pytest.mark.parametrize("rate", [30, 1_000])
@pytest.mark.parametrize("draw", [poisson, scattered, busy_days])
def test_clean_traffic_with_a_week_and_a_trend_alarms_no_more_often_than_its_level(
    draw: Draw, rate: int, weekly: float
) -> None:
    hours = 30 * WEEK
    mean = rate * DAYTIME[:hours] * weekly ** (HOURS[:hours] / WEEK)
    found = run(draw(np.random.default_rng(rate), mean), hourly(level=0.01))
    assert len(found) >= 26 * WEEK
    assert len(broken(found)) <= 0.01 * len(found)


def test_days_are_judged_as_hours_are() -> None:
    days = hourly(0.01, windows={"pane": "1h", "sizes": ["1d", "1w"], "lateness": "1s"})
    days = days.model_copy(update={"alarm_budget": hourly(0.01 / 24).alarm_budget})
    mean = np.where(np.arange(1_400) % 7 >= 5, 200.0, 900.0)
    found = run(scattered(np.random.default_rng(2), mean), days)
    assert 1_370 <= len(found) <= 1_380
    assert len(broken(found)) <= 0.01 * len(found)


def test_half_of_a_window_of_400_is_seen_at_a_budget_of_one_alarm_a_month() -> None:
    seen, weeks = 0, 5
    for seed in range(40):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(400, weeks * WEEK + 1)
        counts[-1] = rng.poisson(200)
        last = run(counts)[weeks * WEEK]
        seen += last.status == "breach"
        assert not is_collapse(last)
    assert seen >= 39


@pytest.mark.parametrize("hour", [3 * WEEK + 1, 3 * WEEK + 100, 6 * WEEK])
@pytest.mark.parametrize("rate", [40, 400])
def test_an_outage_is_seen_in_its_first_window(hour: int, rate: int) -> None:
    """Of 40 requests once there are four weeks; of 400 from the first hour that is judged."""
    if rate == 40 and hour < 4 * WEEK:
        return
    counts = np.random.default_rng(hour).poisson(rate, hour + 1)
    counts[-1] = 0
    found = run(counts)
    assert broken(found) == [hour]
    assert found[hour].value == 0
    assert is_collapse(found[hour])


def test_a_surge_is_seen_and_is_no_outage_and_says_what_was_expected() -> None:
    counts = np.random.default_rng(5).poisson(100 * DAYTIME[: 6 * WEEK + 31])
    counts[-1] *= 3
    found = run(counts)
    last = found[6 * WEEK + 30]
    assert broken(found) == [6 * WEEK + 30]
    assert not is_collapse(last)
    expected = 100 * DAYTIME[6 * WEEK + 30]
    assert last.value == pytest.approx(3, rel=0.2)
    assert last.evidence["expected"] == pytest.approx(expected, rel=0.15)
    assert float(last.evidence["low"]) < expected < float(last.evidence["high"]) < last.n
    assert last.limit is not None
    assert 1.5 <= last.limit < 3


@pytest.mark.parametrize("level", [None, 0.05])
def test_a_quiet_slot_without_requests_is_no_outage(level: float | None) -> None:
    night = np.where(HOURS[: 8 * WEEK] % 24 < 6, 3.0, 300.0)
    counts = np.random.default_rng(6).poisson(night)
    counts[6 * WEEK : 6 * WEEK + 6] = 0
    found = run(counts, hourly(level))
    assert not [slot for slot in broken(found) if slot % 24 < 6 and found[slot].value == 0]


def test_a_few_requests_where_there_were_none_are_no_surge() -> None:
    counts = np.where(HOURS[: 6 * WEEK] % 24 < 6, 0, 300)
    counts[5 * WEEK + 3] = 5
    assert broken(run(counts)) == []
    counts[5 * WEEK + 3] = 100
    assert broken(run(counts)) == [5 * WEEK + 3]


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0], ids=["outage", "holidays", "sale"])
@pytest.mark.parametrize("week", [4, 5, 6])
def test_an_odd_week_does_not_make_the_weeks_after_it_odd(week: int, factor: float) -> None:
    rng = np.random.default_rng(7)
    mean = 200 * DAYTIME[: 12 * WEEK]
    mean[week * WEEK : (week + 1) * WEEK] *= factor
    counts = rng.poisson(mean)
    after = (week + 1) * WEEK
    found = run(counts)
    assert broken(found, since=after) == []
    if week == 4:
        return  # of the three weeks before it only one had an expectation: too few to see less than an outage
    counts[after + 100 :] = rng.poisson(mean[after + 100 :] * 0.3)
    fewer = [s for s in range(after + 100, after + 124) if mean[s] > 250]
    assert len(fewer) >= 5
    assert set(fewer) <= set(broken(run(counts[: after + 124])))


def test_an_outage_is_not_learnt_so_its_second_week_is_as_odd_as_its_first() -> None:
    counts = np.random.default_rng(8).poisson(300, 7 * WEEK)
    counts[5 * WEEK :] = 0
    found = run(counts)
    assert broken(found) == list(range(5 * WEEK, 7 * WEEK))


def test_a_change_for_good_is_usual_after_two_weeks() -> None:
    mean = np.full(14 * WEEK, 300.0)
    mean[6 * WEEK :] = 600
    odd = broken(run(np.random.default_rng(9).poisson(mean)))
    assert odd[0] == 6 * WEEK
    assert set(range(6 * WEEK, 8 * WEEK - 1)) <= set(odd)
    assert odd[-1] < 8 * WEEK


def test_clocks_that_go_forward_make_no_anomaly() -> None:
    mean = 2_000 * DAYTIME[: 8 * WEEK]
    mean[5 * WEEK :] = 2_000 * DAYTIME[5 * WEEK + 1 : 8 * WEEK + 1]
    rng = np.random.default_rng(10)
    assert broken(run(rng.poisson(mean))) == []
    unlike = np.roll(mean[5 * WEEK :], 5)
    assert len(broken(run(rng.poisson(np.concatenate((mean[: 5 * WEEK], unlike)))))) > 50


def test_a_batch_that_starts_a_little_later_on_some_days_makes_no_anomaly() -> None:
    rng = np.random.default_rng(11)
    counts = rng.poisson(20, 12 * WEEK)
    for day in range(12 * 7):
        late = rng.random()  # of the hour: the rest of its 50,000 requests come in the next
        counts[24 * day + 2] += int(50_000 * (1 - late))
        counts[24 * day + 3] += int(50_000 * late)
    found = run(counts, hourly(0.01))
    assert len(broken(found)) <= 0.01 * len(found)


def test_nothing_is_said_before_three_whole_weeks_are_known() -> None:
    found = run(np.full(4 * WEEK, 100))
    assert min(found) == 3 * WEEK + 1  # the very first window began somewhere inside itself
    assert len(found) == WEEK - 1


def test_too_few_requests_to_say_are_not_judged() -> None:
    assert run(np.random.default_rng(12).poisson(2.0, 8 * WEEK)) == {}


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6 * WEEK - 1), max_size=6))
def test_the_same_is_said_after_restarts_and_in_jumps(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(60 * DAYTIME[: 6 * WEEK])
    counts[5 * WEEK : 5 * WEEK + 30] = 0
    wanted = run(counts)
    found, volume = dict[int, Verdict](), Volume(hourly())
    bounds = [0, *sorted(set(cuts)), 6 * WEEK]
    for first, stop in pairwise(bounds):
        for slot in range(first, stop):
            if counts[slot]:
                volume.take(window(START + slot * HOUR, int(counts[slot])))
        told = volume.close(START + stop * HOUR)  # all at once
        found |= {(t.start_ms - START) // HOUR: t.verdict for t in told}
        again = Volume(hourly())
        again.restore(volume.snapshot())
        assert again.snapshot() == volume.snapshot()
        volume = again
    assert found == wanted


def test_versions_count_together_and_the_busiest_speaks() -> None:
    volume, found = Volume(hourly()), list[Told]()
    for slot in range(5 * WEEK):
        start_ms, new = START + slot * HOUR, 0 if slot < 4 * WEEK else min(300, slot - 4 * WEEK)
        volume.take(window(start_ms, 300 - new, version="7"))
        volume.take(window(start_ms, new, version="8"))
        volume.take(window(start_ms - start_ms % DAY, 9, size_ms=DAY))  # not a slot
        found += volume.close(start_ms + HOUR)
    assert {t.verdict.status for t in found} == {"ok"}
    assert {t.verdict.n for t in found} == {300}
    assert (found[0].version, found[-1].version) == ("7", "8")
    (silent,) = volume.close(START + (5 * WEEK + 1) * HOUR)
    assert silent.version == "8"
    assert is_collapse(silent.verdict)


def test_after_silence_for_longer_than_is_remembered_it_begins_anew() -> None:
    volume = Volume(hourly())
    feed(volume, np.full(4 * WEEK, 100))
    later = 9 * WEEK
    silent = volume.close(START + later * HOUR)
    assert {is_collapse(told.verdict) for told in silent} == {True}
    assert [told.start_ms for told in silent[:1]] == [START + 4 * WEEK * HOUR]
    assert not volume.is_due(START + (later + 1) * HOUR)
    found = feed(volume, np.full(4 * WEEK, 20), first=later)
    assert min(found) == later + 3 * WEEK + 1
    assert broken(found) == []


def test_a_snapshot_is_small_and_one_of_other_windows_says_nothing() -> None:
    volume = Volume(hourly())
    feed(volume, np.full(5 * WEEK, 100))
    assert len(volume.snapshot()) < 12_000
    days = Volume(hourly(windows={"pane": "1h", "sizes": ["1d"], "lateness": "1s"}))
    newborn = days.snapshot()
    days.restore(volume.snapshot())
    assert days.snapshot() == newborn
    with pytest.raises(IncompatibleError, match="not the volume"):
        days.restore(b"-")


def test_a_rule_by_hand_decides_and_nothing_else_is_learnt() -> None:
    counts = np.random.default_rng(13).poisson(300, 6 * WEEK)
    counts[5 * WEEK] = 200
    strict = hourly(rules=[{"statistic": "volume", "below": 0.9, "window": "1h"}])
    mute = hourly(rules=[{"statistic": "volume", "ignore": True}])
    assert 5 * WEEK in broken(run(counts, strict))
    assert broken(run(counts, mute)) == []
    free, ruled, muted = Volume(hourly()), Volume(strict), Volume(mute)
    for volume in (free, ruled, muted):
        feed(volume, counts)
    assert free.snapshot() == ruled.snapshot() == muted.snapshot()


def test_a_verdict_goes_with_its_window_and_a_silent_slot_has_a_message_in_the_order_of_ends() -> (
    None
):
    volume = Volume(hourly(windows={"pane": "1h", "sizes": ["1h", "1d"], "lateness": "1s"}))

    def said(end: int, size: int = 1, version: str = "7", source: str = "window") -> Verdicts:
        start_ms, end_ms = (end - size) * HOUR, end * HOUR
        place = (MODEL, version, "", size * HOUR, start_ms, end_ms)
        return Verdicts(source, *place, n=9, revision=0, verdicts=[])  # type: ignore[arg-type]  # a literal

    verdict = Verdict("service", "", "volume", "ok", 1.0, 2.0, 0.5, 9)
    told = [Told(h * HOUR, "7", verdict) for h in (22, 23, 24)]
    found = [said(23, version="6"), said(23), said(23, source="pane"), said(24, 24), said(25)]
    told_of = [
        (m.end_ms // HOUR, m.size_ms // HOUR, m.version, m.source, len(m.verdicts), m.n)
        for m in volume.messages(found, told)
    ]
    assert told_of == [
        (23, 1, "6", "window", 0, 9),
        (23, 1, "7", "window", 1, 9),
        (23, 1, "7", "pane", 0, 9),
        (24, 1, "7", "window", 1, 0),
        (24, 24, "7", "window", 0, 9),
        (25, 1, "7", "window", 1, 9),
    ]
    assert len(volume.messages(found, told, empty=False)) == len(found)


@pytest.mark.parametrize(
    ("sizes", "slot"),
    [
        (["1m"], 0),
        (["1m", "1h", "1d"], HOUR),
        (["5h", "1d", "1w"], DAY),
        (["90m", "6h"], 90 * 60_000),
        (["1w"], 0),
    ],
)
def test_the_smallest_window_from_an_hour_to_a_day_is_judged(sizes: list[str], slot: int) -> None:
    windows = {"pane": "1m", "sizes": sizes, "lateness": "1s"}
    assert slot_of(spec(windows=windows).windows.sizes) == slot


def test_a_model_without_such_windows_is_never_told_of() -> None:
    volume = Volume(spec())
    volume.take(window(START, 9, size_ms=60_000))
    assert not volume.is_due(START + 60_000)
    assert volume.close(START + 60_000) == []
