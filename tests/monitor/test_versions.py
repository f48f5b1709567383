"""Places for versions: a table of who has one when."""

from __future__ import annotations

from monitor.versions import DAY_MS, OTHER_VERSION, Places, Roster

PLACES = Places.of(2, (60_000, 180_000))
WEEK = 7 * DAY_MS


def roster(*panes: tuple[int, dict[str, int]]) -> Roster:
    """Closed panes: start and events by version; each pane has 10 ms."""
    held = Roster(PLACES)
    for start, due in panes:
        held.decide(start, due)
        for version in due:
            held.note(held.owner(version, start), start + 10)
    return held


def test_places_go_to_the_versions_with_most_events_and_then_by_name() -> None:
    assert roster((0, {"a": 1, "b": 5, "c": 3})).live == {"b": 0, "c": 0, OTHER_VERSION: 0}
    assert roster((0, {"b": 1, "c": 1, "a": 1})).live == {"a": 0, "b": 0, OTHER_VERSION: 0}


def test_a_version_with_a_place_keeps_it_whatever_comes() -> None:
    held = roster((0, {"a": 1, "b": 1}), (10, {"b": 1, "c": 99}))
    assert held.live == {"a": 0, "b": 0, OTHER_VERSION: 10}
    assert held.owner("c", 10) == OTHER_VERSION
    assert held.owner("a", 10) == "a"


def test_the_version_that_was_silent_for_longest_gives_way_but_not_within_a_day() -> None:
    first = [(0, {"a": 1}), (20, {"b": 1})]
    early, late = DAY_MS + 9, DAY_MS + 10
    assert "c" not in roster(*first, (early, {"c": 1})).live
    held = roster(*first, (late, {"c": 1}))
    assert held.live == {"b": 20, "c": late}
    assert [held.owner("a", at) for at in (0, late - 1, late)] == ["a", "a", OTHER_VERSION]


def test_after_a_week_of_silence_a_version_starts_anew() -> None:
    assert roster((0, {"a": 1}), (WEEK + 9, {"a": 1})).live == {"a": 0}
    assert roster((0, {"a": 1}), (WEEK + 10, {"a": 1})).live == {"a": WEEK + 10}
    held = roster((0, {"a": 1}))
    held.forget(WEEK + 9)
    assert held.live == {"a": 0}
    held.forget(WEEK + 10)
    assert held.live == {}


def test_silence_is_measured_in_the_largest_window_where_that_is_longer_than_a_day() -> None:
    places = Places.of(2, (60_000, 3 * DAY_MS))
    assert (places.yield_ms, places.forget_ms) == (3 * DAY_MS, 21 * DAY_MS)


def test_what_was_recorded_is_not_decided_anew() -> None:
    held = roster((0, {"a": 1, "b": 1}), (10, {"c": 1}))
    again = Roster(PLACES)
    again.steps, again.recorded = list(held.steps), True
    again.decide(0, {"c": 9})
    again.forget(9 * WEEK)
    assert again.steps == held.steps
    assert [again.owner("c", 0), again.owner("a", 0)] == [OTHER_VERSION, "a"]


def test_late_events_are_counted_under_as_many_names_as_there_are_places() -> None:
    held = roster((0, {"a": 1}))
    held.settle()
    said = [held.owner_of_late(v) for v in ("a", "x", "y", "x", OTHER_VERSION)]
    assert said == ["a", "x", OTHER_VERSION, "x", OTHER_VERSION]
    assert held.changed  # a repeat must say the same
    held.settle()
    assert held.guests == ["x"]
