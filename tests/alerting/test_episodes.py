from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from alerting.episodes import (
    MAX_EPISODES,
    Episode,
    Page,
    false_pages,
    parse_episodes,
    parse_time,
    sight,
)
from monitor.errors import ConfigError

HOUR = 3_600_000
MAY_13 = 1_368_403_200_000


def page(
    opened: int, *, onset: int | None = None, resolved: int | None = None, feature: str = "wind"
) -> Page:
    """A page, in hours."""
    begun = opened - 1 if onset is None else onset
    resolved_ms = None if resolved is None else resolved * HOUR
    return Page("id", "drift", "unknown", "", begun * HOUR, opened * HOUR, resolved_ms, [feature])


@pytest.mark.parametrize(
    ("episode", "pages", "expected"),
    [
        ((10, 20), [page(12)], ("found", 2)),
        ((10, 20), [page(15), page(12)], ("found", 2)),
        ((10, 20), [page(24, onset=0)], ("found", 14)),  # a long window ends after the episode
        ((10, 20), [page(10, resolved=11)], ("open_already", None)),  # nobody was paged anew
        ((10, 20), [page(3)], ("open_already", None)),  # and it never ended
        ((10, 20), [page(3, resolved=10)], ("missed", None)),
        ((10, 20), [page(21, onset=20)], ("missed", None)),
        ((10, 20), [], ("missed", None)),
        ((10, 20, "wind"), [page(12)], ("found", 2)),
        ((10, 20, "temp"), [page(12)], ("missed", None)),
        ((10, 20, "temp"), [page(3), page(12)], ("open_already", None)),
        ((90, 101), [], ("missed", None)),
        ((100, 110), [page(12)], ("outside", None)),  # of a replay of 100 hours
    ],
)
def test_an_episode_is_found_by_a_page_that_opens_for_it(
    episode: tuple[int, int] | tuple[int, int, str],
    pages: list[Page],
    expected: tuple[str, int | None],
) -> None:
    feature = episode[2] if len(episode) == 3 else ""
    known = Episode(episode[0] * HOUR, episode[1] * HOUR, "it", feature)
    (seen,) = sight([known], pages, from_ms=0, to_ms=100 * HOUR)
    delay = None if expected[1] is None else expected[1] * HOUR
    assert (seen.name, seen.found, seen.delay_ms) == ("it", expected[0], delay)


def test_a_page_is_false_if_it_belongs_to_no_episode() -> None:
    known = [Episode(10 * HOUR, 20 * HOUR), Episode(40 * HOUR, 50 * HOUR, feature="temp")]
    pages = [page(12), page(30), page(41), page(42, feature="temp")]
    assert false_pages(known, pages) == 2
    assert false_pages([], pages) == 4


@pytest.mark.parametrize(
    "value",
    [
        "2013-05-13",
        "20130513",
        " 2013-05-13T00:00Z ",
        "2013-05-13T02:00:00+02:00",
        "2013-05-13T00:00:00",
        MAY_13,
        str(MAY_13),
        date(2013, 5, 13),
        datetime(2013, 5, 13, tzinfo=UTC),
        datetime(2013, 5, 13),  # noqa: DTZ001 - YAML gives such
        datetime(2013, 5, 13, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(value: object) -> None:
    assert parse_time(value) == MAY_13


@pytest.mark.parametrize(
    "value", [None, True, "", "yesterday", "13.05.2013", 1.5, -1, "1913-05-13", [], "2013-02-31"]
)
def test_what_is_no_time_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="2013-05-13"):
        parse_time(value)


def test_episodes_come_by_start_and_empty_cells_are_nothing() -> None:
    rows = [
        {"start": "2013-09-01", "end": "2013-09-05", "name": "release", "kind": None},
        {"start": "2013-05-13", "end": "2013-05-18", "feature": "wind_speed", "name": ""},
    ]
    first, second = parse_episodes(rows, origin="x.csv")
    assert first == Episode(MAY_13, MAY_13 + 120 * HOUR, feature="wind_speed")
    assert (second.name, second.kind) == ("release", "")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "expected a list"),
        ([], "expected a list"),
        ({"start": 1, "end": 2}, "expected a list"),
        ([{"start": "2013-05-13"}], "incident 1: give start and end"),
        ([{"start": 1, "end": 2}, {"from": 1, "to": 2}], "incident 2: give start and end"),
        ([{"start": 1, "end": 2, None: ["x"]}], "incident 1: give start and end"),  # a CSV row
        ([["2013-05-13", "2013-05-14"]], "incident 1: give start and end"),
        ([{"start": "soon", "end": 2}], "incident 1: start: give a time"),
        ([{"start": 1, "end": None}], "incident 1: end: give a time"),
        ([{"start": 2, "end": 2}], "incident 1: start is not before end"),
        ([{"start": 1, "end": 2}] * (MAX_EPISODES + 1), "more than 10,000"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_the_row(rows: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_episodes(rows, origin="x.csv")
    assert str(caught.value).startswith("x.csv: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "soon" not in str(caught.value)
