from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from monitor.recent import FRESH_S, MAX_KEPT, OLD_S, STALE_S, Recent, reader
from monitor.store import Store


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Counting:
    """A store that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    def windows(self, model: str, *, limit: int = 5) -> list[Any]:
        self.asked.append(f"{model}/{limit}")
        if self.fails:
            raise OSError("away")
        return [f"{model} {len(self.asked)}"]


def test_the_same_question_is_asked_once_a_second_and_another_at_once() -> None:
    clock, counting = Clock(), Counting()
    store = reader(cast("Store", counting), Recent(clock))
    first = store.windows("a", limit=1)
    assert store.windows("a", limit=1) is first
    assert store.windows("a", limit=2) is not first
    assert store.windows("b", limit=1) is not first
    clock.now_s += FRESH_S - 0.01
    assert store.windows("a", limit=1) is first
    assert counting.asked == ["a/1", "a/2", "b/1"]


def test_an_answer_that_ages_is_given_at_once_while_one_look_is_under_way() -> None:
    clock = Clock()
    recent, gate = Recent(clock), threading.Event()
    assert recent.get("key", lambda: "old") == "old"

    def look() -> str:
        assert gate.wait(10)
        return "new"

    clock.now_s += FRESH_S
    for _ in range(3):
        assert recent.get("key", look) == "old"
    clock.now_s += OLD_S - FRESH_S - 0.01
    assert recent.get("key", look) == "old", "the look takes long, and began in time"
    gate.set()
    clock.now_s += 0.01
    assert recent.get("key", look) == "new", "and who asks later waits for it"


def test_an_answer_that_is_old_is_given_to_nobody() -> None:
    clock, counting = Clock(), Counting()
    store = reader(cast("Store", counting), Recent(clock))
    first = store.windows("a")
    clock.now_s += STALE_S
    assert store.windows("a") != first


def test_whoever_asks_meanwhile_waits_for_the_one_look() -> None:
    recent, gate, looks = Recent(Clock()), threading.Event(), 0

    def look() -> int:
        nonlocal looks
        looks += 1
        assert gate.wait(10)
        return looks

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(recent.get, "key", look) for _ in range(8)]
        assert recent.get("another", lambda: "not held up") == "not held up"
        gate.set()
        assert {answer.result() for answer in answers} == {1}


def test_a_failure_is_not_kept() -> None:
    counting = Counting()
    store = reader(cast("Store", counting), Recent(Clock()))
    counting.fails = True
    with pytest.raises(OSError, match="away"):
        store.windows("a")
    counting.fails = False
    found: list[Any] = store.windows("a")
    assert found == ["a 2"]


def test_a_look_that_fails_behind_an_answer_is_tried_again() -> None:
    clock, counting = Clock(), Counting()
    recent = Recent(clock)
    store = reader(cast("Store", counting), recent)
    first = store.windows("a")
    counting.fails = True
    clock.now_s += FRESH_S
    assert store.windows("a") is first
    clock.now_s += OLD_S
    with pytest.raises(OSError, match="away"):
        store.windows("a")
    counting.fails = False
    found: list[Any] = store.windows("a")
    assert found != first


def test_what_is_kept_is_bounded_and_goes_when_it_was_asked_for_longest_ago() -> None:
    recent, looks = Recent(Clock()), Counter[int]()

    def ask(i: int) -> None:
        recent.get(i, lambda: looks.update([i]))

    for i in range(MAX_KEPT):
        ask(i)
    ask(0)
    ask(MAX_KEPT)
    ask(0)
    ask(1)
    assert (looks[0], looks[1]) == (1, 2)


def test_what_has_changed_is_looked_up_anew_even_while_a_look_is_under_way() -> None:
    recent, begun, gate = Recent(Clock()), threading.Event(), threading.Event()
    assert recent.get("known", lambda: "old") == "old"

    def look() -> str:
        begun.set()
        assert gate.wait(10)
        return "begun before"

    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(recent.get, "key", look)
        assert begun.wait(10)
        recent.forget()
        assert recent.get("known", lambda: "new") == "new"
        assert recent.get("key", lambda: "begun after") == "begun after"
        gate.set()
        assert under_way.result() == "begun before"
    assert recent.get("key", lambda: "nobody looks") == "begun after"
