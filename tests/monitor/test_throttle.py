from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitor.throttle import MAX_CALLERS, Throttle


def test_a_burst_is_taken_at_once_and_then_the_rate_holds() -> None:
    throttle = Throttle(10, 20)
    assert [throttle.wait_s("a", 5.0) for _ in range(20)] == [0] * 20
    assert throttle.wait_s("a", 5.0) == 1
    assert throttle.wait_s("b", 5.0) == 0, "each caller has a bucket of their own"
    assert throttle.wait_s("a", 5.1) == 0
    assert throttle.wait_s("a", 5.1) == 1, "who was refused has not paid"


def test_a_wait_that_is_kept_is_enough() -> None:
    throttle = Throttle(0.25, 1)
    assert throttle.wait_s("a", 0.0) == 0
    wait_s = throttle.wait_s("a", 0.5)
    assert wait_s == 4
    assert throttle.wait_s("a", 0.5 + wait_s) == 0


@given(
    st.floats(0.1, 1_000),
    st.integers(1, 50),
    st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_never_more_than_the_burst_and_what_the_rate_adds(
    rate_per_s: float, burst: int, pauses_s: list[float]
) -> None:
    throttle, now_s, taken = Throttle(rate_per_s, burst), 0.0, 0
    for pause_s in pauses_s:
        now_s += pause_s
        taken += throttle.wait_s("a", now_s) == 0
        assert taken <= burst + rate_per_s * now_s + 1e-3


def test_the_table_is_bounded_and_forgets_who_asked_longest_ago() -> None:
    throttle = Throttle(0.001, 1)
    for i in range(MAX_CALLERS):
        assert throttle.wait_s(i, 0.0) == 0
    assert throttle.wait_s("one more", 0.0) == 0
    assert throttle.wait_s(1, 0.0) > 0, "known still"
    assert throttle.wait_s(0, 0.0) == 0, "forgotten"
