"""Requests and responses that come as two events: each prediction is counted once or its loss is, in any order and within any bounds."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from monitor.events import Side
from monitor.halves import Bounds, Half, Halves, Pair
from monitor.inference import About


def half(side: Side, id_: str = "a", *, model: str = "m", part: str = "", body: bytes = b"{}") -> Half:  # fmt: skip
    return Half(side, About(model, id_, 0), part, body)


def test_the_second_completes_the_first_in_either_order() -> None:
    request, response = half("request"), half("response")
    for first, second in ((request, response), (response, request)):
        halves = Halves()
        assert halves.meet(first, 0) == "held"
        assert halves.meet(second, 1) == Pair(request, response)
        assert (len(halves), halves.due(10**9)) == (0, [])


def test_halves_of_another_model_or_part_are_of_another_prediction() -> None:
    halves = Halves()
    assert halves.meet(half("request"), 0) == "held"
    assert halves.meet(half("response", model="n"), 0) == "held"
    assert halves.meet(half("response", part="transformer"), 0) == "held"


def test_a_request_whose_response_does_not_come_is_due_after_a_minute() -> None:
    halves = Halves()
    halves.meet(half("request"), 0)
    assert halves.due(59_999) == []
    assert halves.due(60_000) == [half("request")]
    assert halves.due(60_000) == []
    assert halves.meet(half("response"), 60_001) == "response_alone", "it has been counted"
    assert halves.meet(half("request"), 60_002) == "repeated"


def test_a_request_that_comes_after_its_response_was_given_up_is_still_counted() -> None:
    halves = Halves()
    halves.meet(half("response"), 0)
    assert [h.side for h in halves.due(60_000)] == ["response"]
    assert halves.meet(half("request"), 60_001) == "held"


def test_what_comes_again_is_known_before_and_after_it_was_joined() -> None:
    halves = Halves()
    for side in ("request", "response"):
        assert halves.meet(half(side, "b"), 0) in ("held", Pair(half("request", "b"), half(side, "b")))  # fmt: skip
        assert halves.meet(half(side, "b"), 0) == "repeated"
    assert halves.meet(half("request", "b"), 0) == "repeated"


def test_what_nothing_came_of_waits_on() -> None:
    halves = Halves()
    halves.meet(half("request"), 0)
    pair = halves.meet(half("response"), 1)
    assert isinstance(pair, Pair)
    halves.back(pair.request, 2)
    halves.back(pair.request, 2)
    assert len(halves) == 1
    assert halves.meet(half("response"), 3) == pair


def test_beyond_the_bounds_the_oldest_is_due() -> None:
    few = Halves(Bounds(halves=2))
    for i in range(3):
        few.meet(half("request", str(i)), i)
    assert [h.about.id for h in few.due(3)] == ["0"]
    small = Halves(Bounds(bytes=30_000))
    for i in range(3):
        small.meet(half("request", str(i), body=b" " * 10_000), i)
    assert [h.about.id for h in small.due(3)] == ["0"]
    assert small.due(3) == []


def test_what_is_remembered_of_those_that_are_through_is_bounded() -> None:
    halves = Halves(Bounds(finished=10))
    for i in range(50):
        halves.meet(half("request", str(i)), 0)
        halves.meet(half("response", str(i)), 0)
    assert len(halves._finished) == 10
    assert halves._bytes == 0


Step = tuple[Literal["request", "response", "time"], int]
STEPS = st.lists(st.tuples(st.sampled_from(["request", "response", "time"]), st.integers(0, 4)))


@given(STEPS, st.integers(1, 3))
def test_each_request_is_counted_once_and_each_half_has_a_fate(
    steps: list[Step], most: int
) -> None:
    halves, now_ms = Halves(Bounds(halves=most, hold_ms=10)), 0
    counted: Counter[str] = Counter()
    fates: Counter[str] = Counter()

    def settle(at_ms: int) -> None:
        for each in halves.due(at_ms):
            fates[f"{each.side}_alone"] += 1
            counted[each.about.id] += each.side == "request"

    for kind, number in steps:
        if kind == "time":
            now_ms += 3 * number
        else:
            met = halves.meet(half(kind, str(number)), now_ms)
            if isinstance(met, Pair):
                fates["joined"] += 2
                counted[met.request.about.id] += 1
            elif met != "held":
                fates[met] += 1
        settle(now_ms)
        assert len(halves) <= most
    settle(now_ms + 10)
    seen = {str(number) for kind, number in steps if kind == "request"}
    assert {id_ for id_, n in counted.items() if n} == seen
    assert set(counted.values()) <= {0, 1}
    assert fates.total() == sum(kind != "time" for kind, _ in steps)


AGAIN = Bounds(hold_ms=100, again_ms=100)


def test_two_of_one_id_that_are_of_two_predictions_do_not_meet() -> None:
    halves, earlier, later = Halves(AGAIN), half("request", body=b"1"), half("request", body=b"2")
    halves.meet(later, 300)
    assert halves.meet(earlier, 0) == "held"
    assert halves.due(0) == [earlier], "there is one place: it goes on at once"
    assert halves.meet(half("response"), 30) == "response_alone"
    assert halves.meet(half("response"), 310) == Pair(later, half("response"))
    first = half("response", body=b"first")
    halves.meet(first, 1_000)
    halves.meet(earlier, 1_200)
    assert halves.due(0) == [first]
    assert halves.due(1_300) == [earlier]


def test_an_id_that_is_used_again_waits_as_long_as_any() -> None:
    halves = Halves(AGAIN)
    halves.meet(half("request"), 0)
    halves.meet(half("response"), 1)
    assert halves.meet(half("request"), 102) == "held"
    assert halves.due(201) == []
    assert halves.due(202) == [half("request")]


def test_deadlines_of_what_is_held_no_longer_are_bounded() -> None:
    halves = Halves()
    for i in range(30_000):
        halves.meet(half("request", str(i)), i)
        halves.meet(half("response", str(i)), i)
    assert len(halves._deadlines) < 10_010
    halves.meet(half("request", "last"), 30_000)
    assert halves.due(90_000) == [half("request", "last")]
