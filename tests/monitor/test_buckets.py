"""Windows of panes: two forms that agree to the last bit, and a bound that never lets a change pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import buckets
from monitor.adwin import Adwin, AdwinConfig
from monitor.binning import cut_numeric
from monitor.bucket_arrays import Arrays
from monitor.buckets import Floats, Loops, Rule, Windows
from monitor.counting import profile_groups
from monitor.profile import Layout

RULE = Rule(0.002, 32, 10, 5, np.ones(1))
FEW, MANY = 3, 11


def told(windows: Windows, k: int) -> list[Any]:
    used = np.trim_zeros(windows.filled().sum(axis=0), "f").tolist()
    each = [windows.buckets(row).tolist() for row in range(k)]
    return [windows.sums().tolist(), used, each, windows.all_buckets().tolist()]


def pane(rng: np.random.Generator, k: int, least: int, most: int) -> Floats:
    n = rng.integers(least, most, k).astype(np.float64)
    filled = n > 0
    return np.array((n, rng.normal(0, 3, k) * filled, rng.exponential(9, k) * filled))


@settings(max_examples=20)
@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(2, 7),
    st.sampled_from([(0, 2), (0, 40), (1, 40)]),
)
def test_both_forms_hold_the_same_to_the_last_bit(
    seed: int, k: int, room: int, span: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    rule = replace(RULE, max_buckets=room, design_effect=np.ones(k))
    forms: list[Windows] = [Loops(rule), Arrays(rule)]
    for at in range(90):
        given_pane = pane(rng, k, *span)
        fewer, more = [set(form.add(at, given_pane)) for form in forms]
        assert fewer <= more  # one margin for all is a wider one
        if rng.random() < 0.02:
            row = int(rng.integers(k))
            for form in forms:
                form.restart(row)
        assert told(forms[0], k) == told(forms[1], k)


@pytest.mark.parametrize("form", [Loops, Arrays])
def test_what_was_told_is_what_is_loaded(form: type[Loops | Arrays]) -> None:
    rng = np.random.default_rng(3)
    rule = replace(RULE, design_effect=np.ones(4))
    whole, loaded = form(rule), form(rule)
    for at in range(77):
        whole.add(at, pane(rng, 4, 0, 9))
    loaded.load(whole.sums(), whole.filled(), [whole.buckets(row) for row in range(4)])
    for at in range(200):
        following = pane(rng, 4, 0, 9)
        assert list(whole.add(at, following)) == list(loaded.add(at, following))
    assert told(whole, 4) == told(loaded, 4)


@pytest.mark.parametrize("form", [Loops, Arrays])
def test_a_bucket_holds_twice_as_many_panes_as_one_of_the_level_below(
    form: type[Loops | Arrays],
) -> None:
    windows = form(RULE)
    for at in range(100):
        windows.add(at, np.array([[10.0], [1.0], [0.0]]))
    n, total, starts = windows.buckets(0)
    assert n.tolist() == total.tolist()
    assert (n / 10).tolist() == [16] * 2 + [8] * 5 + [4] * 4 + [2] * 4 + [1] * 4
    assert starts.tolist() == [0, *np.cumsum(n / 10)[:-1]]


def alarms(
    streams: Floats, config: AdwinConfig, n: int, m2: float, effect: float, tolerance: float
) -> Any:
    """All that is told about the changes of ``(panes, k)`` means."""
    k = streams.shape[1]
    adwin = Adwin(k, config, design_effect=effect, tolerance=tolerance)
    changes = [adwin.update(i, [n] * k, means, [m2] * k) for i, means in enumerate(streams)]
    columns = [(c.fired, c.onset, c.before, c.after, c.n_after) for c in changes]
    return [[column.tolist() for column in row] for row in columns]


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from([FEW, MANY]),
    st.sampled_from([1e-9, 0.002, 0.3, 0.99]),
    st.sampled_from([1, 7, 1000]),
    st.sampled_from([0.0, 1.0, 1e3, 1e6, 1e9, 1e14]),  # where the mean lies, in standard deviations
    st.sampled_from([1.0, 4.0]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([(1.0, 1.0), (0.01, 1e-4)]),  # in the second the limit is all 2/3 q e d
)
def test_the_bound_never_lets_a_change_pass(
    seed: int,
    k: int,
    delta: float,
    n: int,
    offset: float,
    effect: float,
    tolerance: float,
    size: tuple[float, float],
) -> None:
    """Against the exact rule at every check: a bound that trusts no sum suspects every window."""
    rng, (jump, noise) = np.random.default_rng(seed), size
    jumps = jump * rng.normal(0, 1, (4, k)).repeat(25, axis=0)
    streams = offset + jumps + rng.normal(0, noise / np.sqrt(n), (100, k))
    m2 = (n - 1) * noise**2
    config = AdwinConfig(delta, clock=min(n, 32))
    quick = alarms(streams, config, n, m2, effect, tolerance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_ROUNDING", 1e30)
        assert alarms(streams, config, n, m2, effect, tolerance) == quick


@pytest.mark.parametrize("k", [FEW, MANY])
def test_on_clean_panes_hardly_any_window_is_suspect(k: int) -> None:
    """What makes it fast. The bound is passed at 2 d = 19 of a chi-square of 1: 1e-5 a cut, some 10 free cuts a window."""
    rng = np.random.default_rng(12)
    rule = replace(RULE, design_effect=np.ones(k))
    windows: Windows = Loops(rule) if k == FEW else Arrays(rule)
    n = np.full(k, 1_000.0)
    suspects = 0
    for at in range(500):
        suspects += len(
            windows.add(at, np.array((n, rng.normal(0, 1, k) / np.sqrt(n), rng.chisquare(999, k))))
        )
    assert suspects <= 0.005 * 500 * k


def scaled(reference: Floats, values: Floats, size: int) -> Floats:
    """``(panes, 3)`` moments of consecutive panes, in the reference's scale, as a profile tells them."""
    layout = Layout({"x": cut_numeric(reference)})
    group = np.arange(len(values)) // size
    columns = {"x": layout.bins["x"].encode(values.tolist())}
    profiles = profile_groups(
        layout, columns, np.zeros(len(values), dtype=bool), group, int(group[-1]) + 1
    )
    return np.array([profile.scaled_moments("x") for profile in profiles])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(1e-6, 1e6),
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    st.sampled_from([1, 10, 50]),
)
def test_scaling_and_shifting_data_with_its_reference_changes_no_alarm(
    seed: int, unit: float, zero: float, shift: float, size: int
) -> None:
    """``zero`` in units: degrees as kelvin, metres as feet. A profile's quantum is 1.5e-5 scales, so what may differ is the rounding."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(0, 1, 500)
    values = rng.normal(shift * (np.arange(1_500) >= 700), 1)
    found = []
    for ours in (1.0, unit):
        origin = zero * unit if ours == unit else 0.0
        adwin = Adwin(1, AdwinConfig(delta=0.05))
        panes = scaled(ours * reference + origin, ours * values + origin, size)
        found.append(
            [i for i, (n, mean, m2) in enumerate(panes) if adwin.update(i, [n], [mean], [m2]).fired]
        )
    assert found[0] == found[1]
    assert found[0] or shift < 1
