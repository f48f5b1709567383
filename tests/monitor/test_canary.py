from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.canary import EFFECTS, Canary, Rates, SequentialResult, _log_factors, _nearest
from monitor.errors import IncompatibleError

RATE = st.floats(0.0, 1.0)
ROWS = st.integers(1, 6)
CENTER = st.floats(0.01, 0.99)


def binomial(x: int, n: int, rate: float) -> float:
    return math.comb(n, x) * rate**x * (1 - rate) ** (n - x)


def mean_factor(
    n: int, m: int, a: float, b: float, center: float, difference: float, boundary: float
) -> float:
    """Expected factor of a window of n and m rows with true error rates a and b: over all outcomes, one by one."""
    total = 0.0
    for x, y in itertools.product(range(n + 1), range(m + 1)):
        chance = binomial(x, n, a) * binomial(y, m, b)
        log = _log_factors(Rates(n, x, m, y), center, np.array([difference]), boundary)
        total += chance * math.exp(float(log[0]))
    return total


@given(ROWS, ROWS, RATE, RATE, CENTER, st.sampled_from(EFFECTS.tolist()))
def test_a_factor_against_a_version_that_is_not_worse_has_a_mean_of_at_most_one(
    n: int, m: int, a: float, b: float, center: float, effect: float
) -> None:
    assert mean_factor(n, m, max(a, b), min(a, b), center, effect, 0.0) <= 1 + 1e-9


@given(ROWS, ROWS, RATE, RATE, CENTER, st.sampled_from([*(0.1 - EFFECTS).tolist(), 0.0]))
def test_a_factor_against_a_version_that_is_worse_by_the_margin_has_a_mean_of_at_most_one(
    n: int, m: int, a: float, extra: float, center: float, difference: float
) -> None:
    a *= 0.9
    b = a + 0.1 + extra * (0.9 - a)
    assert mean_factor(n, m, a, b, center, difference, 0.1) <= 1 + 1e-9


@given(ROWS, ROWS, RATE, st.floats(-1.0, 1.0), CENTER, st.sampled_from(EFFECTS.tolist()))
def test_a_factor_against_a_version_that_is_worse_by_what_nobody_minds_has_a_mean_of_at_most_one(
    n: int, m: int, a: float, extra: float, center: float, effect: float
) -> None:
    b = min(max(0.0, a + min(extra, 0.05)), 1.0)
    assert mean_factor(n, m, a, b, center, 0.05 + effect, 0.05) <= 1 + 1e-9


@given(
    st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1e-4, 1 - 1e-4), st.floats(1e-4, 1 - 1e-4),
    st.sampled_from([0.0, 0.001, 0.005, 0.02, 0.3, 0.9]),
)  # fmt: skip
def test_the_nearest_pair_of_rates_is_where_the_slope_of_the_divergence_changes_its_sign(
    n: int, m: int, a: float, b: float, boundary: float
) -> None:
    x = float(_nearest(np.array([a]), np.array([b]), n, m, boundary)[0])

    def slope(x: float) -> float:
        y = x + boundary
        return n * (x - a) / (x * (1 - x)) + m * (y - b) / (y * (1 - y))

    step = 1e-11 + 1e-9 * x
    low, high = max(x - step, 1e-15), min(x + step, 1 - boundary - 1e-15)
    assert slope(low) <= 0 <= slope(high)


def test_what_nobody_minds_is_not_worse_however_long_it_lasts_and_more_is() -> None:
    def watch(difference: float) -> str:
        canary = Canary(0.01, 0.02, least=0.005)
        rng = np.random.default_rng(4)
        for _ in range(300):
            old, new = rng.binomial(1_000, (0.02, 0.02 + difference))
            canary.update(Rates(1_000, int(old), 1_000, int(new)))
        return canary.answer

    assert [watch(difference) for difference in (0.004, 0.01)] == ["not_worse", "worse"]


def test_a_snapshot_of_the_release_before_goes_on() -> None:
    canary = Canary(0.01, 0.02)
    for _ in range(5):
        canary.update(Rates(100, 10, 100, 30))
    before = msgspec.msgpack.encode(msgspec.msgpack.decode(canary.snapshot())[:-1])
    assert Canary.restore(before).snapshot() == canary.snapshot()


def test_the_mean_is_above_one_where_the_alternative_is_true() -> None:
    assert mean_factor(20, 20, 0.1, 0.42, 0.26, 0.32, 0.0) > 1.5
    assert mean_factor(20, 20, 0.3, 0.1, 0.2, -0.22, 0.1) > 1.5


def watched(
    rates: tuple[float, float], rng: np.random.Generator, **changes: float
) -> SequentialResult:
    """Sixty windows of 200 labels of each version; the rates of both swing together."""
    given = {"error_rate": 0.01, "margin": 0.05} | changes
    canary = Canary(**given)
    for i in range(60):
        swing = 0.08 * math.sin(i / 4)
        old, new = (int(rng.binomial(200, rate + swing)) for rate in rates)
        canary.update(Rates(200, old, 200, new))
    return canary.known


def test_a_worse_version_is_called_worse_and_an_equal_one_not_worse() -> None:
    rng = np.random.default_rng(1)
    worse, equal = watched((0.2, 0.3), rng), watched((0.2, 0.2), rng)
    assert (worse.answer, equal.answer) == ("worse", "not_worse")
    assert worse.difference == pytest.approx(0.1, abs=0.02)
    assert worse.decided_after is not None
    assert 200 < worse.decided_after < 3_000
    assert (worse.old_n, worse.new_n) == (12_000, 12_000)


def test_few_labels_are_no_answer() -> None:
    canary = Canary(0.01, 0.02)
    assert canary.update(Rates(50, 10, 50, 10)).answer == "unknown"
    assert canary.update(Rates(50, 10, 50, 14)).answer == "unknown"


def test_windows_in_which_one_of_them_has_no_labels_say_nothing() -> None:
    canary = Canary(0.01, 0.02)
    canary.update(Rates(500, 100, 500, 100))
    before = canary.known
    after = canary.update(Rates(500, 0, 0, 0))
    assert (after.log_e_worse, after.log_e_margin) == (before.log_e_worse, before.log_e_margin)
    assert after.old_n == 1_000


def test_equal_versions_are_called_worse_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(2)
    found = [watched((0.2, 0.2), rng, error_rate=0.2).answer for _ in range(60)]
    # 0.2 is a bound for endless watching: 60 trials with that chance give 21 or fewer in 998 of 1,000 cases.
    assert found.count("worse") <= 21


def test_rates_of_nothing_and_of_everything_are_no_end() -> None:
    canary = Canary(0.01, 0.02)
    for _ in range(20):
        canary.update(Rates(100, 0, 100, 100))
    found = canary.known
    assert found.answer == "worse"
    assert math.isfinite(found.log_e_worse)
    assert math.isfinite(found.log_e_margin)


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), max_size=12), st.integers(0, 12))
def test_a_restart_changes_nothing(windows: list[tuple[int, int, int, int]], at: int) -> None:
    whole, cut = Canary(0.05, 0.03), Canary(0.05, 0.03)
    for i, (a, x, b, y) in enumerate(windows):
        rates = Rates(a, min(a, x), b, min(b, y))
        whole.update(rates)
        if i == at:
            cut = Canary.restore(cut.snapshot())
        cut.update(rates)
    assert cut.snapshot() == whole.snapshot()
    assert cut.known == whole.known


@pytest.mark.parametrize("value", [b"", b"x", msgspec.msgpack.encode([2.0, 0.1, "unknown"])])
def test_what_is_no_snapshot_is_told(value: bytes) -> None:
    with pytest.raises(IncompatibleError):
        Canary.restore(value)


@pytest.mark.parametrize(("error_rate", "margin"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0)])
def test_a_promise_that_cannot_be_kept_is_refused(error_rate: float, margin: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Canary(error_rate, margin)


@pytest.mark.parametrize("least", [-0.1, 0.03])
def test_less_than_nothing_and_more_than_the_margin_are_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least"):
        Canary(0.01, 0.02, least=least)
