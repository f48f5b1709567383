"""The table of realised rates: small enough to run here, and it notices limits that are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from load import false_alarms
from load.false_alarms import LEVELS, Row, Size

SMALL = Size(30, 100)


def row(**changes: object) -> Row:
    rates = tuple(LEVELS)
    base = Row("PSI", "continuous", 10, 1_000, 10_000, 1_000_000, rates, (0.0,) * 3, rates)
    return replace(base, **changes)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        pytest.param({}, [], id="exact"),
        pytest.param({"rates": (0.08, 0.01, 0.001)}, [0.05], id="too many"),
        pytest.param({"rates": (0.05, 0.004, 0.001), "next_rates": (0.05, 0.004, 0.001)}, [0.01], id="too few"),
        pytest.param({"rates": (0.05, 0.004, 0.001), "next_rates": (0.05, 0.02, 0.001)}, [], id="no step between"),
        pytest.param({"rates": (0.08, 0.01, 0.001), "stream": "AR(1) 0.9"}, [], id="dependent data has a wider bar"),
        pytest.param({"rates": (0.05, 0.01, 0.01), "trials": 10_000}, [], id="too few trials to say"),
        pytest.param({"rates": (0.02, 0.01, 0.001), "attainable": (0.03, 0.01, 0.001)}, [], id="whole counts allow less"),
        pytest.param({"rates": (0.01, 0.01, 0.001), "attainable": (0.03, 0.01, 0.001)}, [0.05], id="even less than they allow"),
    ],
)  # fmt: skip
def test_a_missed_bar_is_named(changes: dict[str, object], missed: list[float]) -> None:
    assert row(**changes).misses() == missed


def test_every_stream_keeps_its_level_in_a_small_run() -> None:
    rng = np.random.default_rng(1)
    found = [
        *false_alarms.independent(rng, 10, 200, 2_000, SMALL, 10),
        false_alarms.categories(rng, 5, 200, 2_000, SMALL, equal=False),
        false_alarms.rates(rng, 0.1, 1_000, 10_000, SMALL),
        *false_alarms.autoregressive(rng, 10, 50, 100, SMALL, 10),
        *false_alarms.seasonal(rng, 10, 500, 14 * 24, SMALL, 10),
    ]
    assert [r.statistic for r in found] == [
        "PSI",
        "KS",
        "PSI",
        "rate 0.1",
        "PSI",
        "KS",
        "PSI",
        "KS",
    ]
    for r in found:
        low, high = r.bar
        assert low * 0.05 < r.rates[0] < high * 0.05, r
    lines = false_alarms.markdown(found).splitlines()
    assert len(lines) == len(found) + 2
