"""Evidence that two samples differ: bounded where they do not, for any distribution of any pane, and quick where they do."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import IncompatibleError
from monitor.homogeneity import Homogeneity

FIRST = np.array([0, 3])  # a field of 3 groups and one of 2
COUNT = st.integers(0, 9)
ROWS = st.integers(1, 3)


def fresh(most: float = 20.0) -> Homogeneity:
    return Homogeneity(FIRST, 5, most=most)


def outcomes(n: int, p: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Every sample of n rows of 3 groups, with its probability."""
    made = []
    for a, b in itertools.product(range(n + 1), repeat=2):
        if a + b <= n:
            x = np.array([a, b, n - a - b])
            ways = math.factorial(n) / np.prod([math.factorial(k) for k in x.tolist()])
            made.append((float(ways * np.prod(p**x)), x))
    return made


@given(
    st.tuples(COUNT, COUNT, COUNT), st.tuples(COUNT, COUNT, COUNT), ROWS, ROWS,
    st.tuples(*[st.floats(0, 1)] * 3),
)  # fmt: skip
def test_whatever_was_seen_a_pane_without_a_difference_multiplies_evidence_by_one_at_most_in_the_mean(
    old: tuple[int, ...], new: tuple[int, ...], n: int, m: int, shares: tuple[float, ...]
) -> None:
    """Over all outcomes of the next pane, one by one, for any distribution that both draw from."""
    p = np.array(shares) + 1e-3
    p /= p.sum()
    mean = 0.0
    for (px, x), (py, y) in itertools.product(outcomes(n, p), outcomes(m, p)):
        seen = Homogeneity(np.array([0]), 3, most=math.inf)
        seen.update(sum(old), np.array(old), sum(new), np.array(new))
        seen.update(n, x, m, y)
        mean += px * py * math.exp(seen.known.log_e[0])
    assert mean <= 1 + 1e-6


def sampled(rng: np.random.Generator, p: list[float], q: list[float], n: int, m: int) -> tuple[int, np.ndarray, int, np.ndarray]:  # fmt: skip
    """A pane: the first field differs as told, the second does not."""
    x, y = rng.multinomial(n, p), rng.multinomial(m, q)
    return n, np.append(x, [n // 2, n - n // 2]), m, np.append(y, [m // 2, m - m // 2])


def test_a_field_that_differs_is_found_and_the_other_is_not() -> None:
    rng, seen = np.random.default_rng(1), fresh()
    for _ in range(20):
        seen.update(*sampled(rng, [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], 300, 100))
    log_e, distance = seen.known
    assert log_e[0] > math.log(1_000)
    assert log_e[1] <= 0
    assert distance[0] == pytest.approx(0.1, abs=0.03)


def test_traffic_that_changes_while_the_new_version_gets_more_of_it_is_no_difference() -> None:
    """Pooled over time the two differ by a sixth: only within the panes do they not."""
    rng, seen, pooled = np.random.default_rng(2), fresh(), np.zeros((2, 5))
    largest = -math.inf
    for step in range(200):
        share = 0.05 + 0.9 * step / 200
        p = [0.8 - 0.6 * step / 200, 0.1, 0.1 + 0.6 * step / 200]
        n, x, m, y = sampled(rng, p, p, round(200 * (1 - share)), round(200 * share))
        seen.update(n, x, m, y)
        pooled += x, y
        largest = max(largest, float(seen.known.log_e[0]))
    shares = pooled / pooled[:, :3].sum(axis=1, keepdims=True)
    assert abs(shares[0, 0] - shares[1, 0]) > 0.15
    assert largest < math.log(100)
    assert seen.known.distance[0] < 0.05


def test_evidence_has_a_bound_so_that_a_difference_which_was_mended_is_over_soon() -> None:
    rng, seen = np.random.default_rng(3), fresh(most=math.log(1e5))
    for _ in range(500):
        seen.update(*sampled(rng, [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], 100, 100))
    assert seen.known.log_e[0] == pytest.approx(math.log(1e5))
    for _ in range(5):
        seen.update(*sampled(rng, [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], 100, 100))
    assert seen.known.log_e[0] < 0


def test_panes_of_one_version_alone_say_nothing() -> None:
    seen, counts = fresh(), np.array([5, 3, 2, 5, 5])
    before = seen.snapshot()
    seen.update(10, counts, 0, np.zeros(5, dtype=np.int64))
    seen.update(0, np.zeros(5, dtype=np.int64), 10, counts)
    assert seen.snapshot() == before


def test_a_restart_changes_nothing() -> None:
    rng, whole, cut = np.random.default_rng(4), fresh(), fresh()
    for _ in range(30):
        pane = sampled(rng, [0.5, 0.3, 0.2], [0.45, 0.3, 0.25], 70, 40)
        snapshot = cut.snapshot()
        cut = fresh()
        cut.restore(snapshot)
        for seen in (whole, cut):
            seen.update(*pane)
    assert cut.snapshot() == whole.snapshot()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        msgspec.msgpack.encode([b"x", b"", 0.0, b""]),
        Homogeneity(np.array([0, 2]), 4, most=9.0).snapshot(),
    ],
    ids=["nothing", "damaged", "other groups"],
)
def test_what_is_no_snapshot_of_these_fields_is_told(value: bytes) -> None:
    with pytest.raises(IncompatibleError):
        fresh().restore(value)
