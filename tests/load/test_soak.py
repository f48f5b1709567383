"""The soak: what flat means, and a small one that counts right."""

from __future__ import annotations

from pathlib import Path

import pytest

from load.soak import Sample, judge, measure, report

MIB = 1 << 20


def samples(memory: list[int], cpu_us: float = 10.0, odd_us: float = 10.0) -> list[Sample]:
    costs = [odd_us, *[cpu_us] * (len(memory) - 1)]
    return [
        Sample(1_000 * (i + 1), mib * MIB, mib * MIB, us, 1.0)
        for i, (mib, us) in enumerate(zip(memory, costs, strict=True))
    ]


@pytest.mark.parametrize(
    ("memory", "odd_us", "holds"),
    [
        ([50, 100, *[109] * 6, 111, 111], 10.0, True),  # the first is the start's
        ([100, 100, 100, 100, 104, 104, 104, 109, 109, 109], 10.0, True),
        ([100, 100, 100, 100, 105, 105, 105, 111, 111, 111], 10.0, False),
        ([100] * 10, 11.4, True),
        ([100] * 10, 11.6, False),
        ([100] * 10, 8.4, False),
    ],
)
def test_flat_is_memory_by_thirds_and_cpu_time_by_the_median(
    memory: list[int], odd_us: float, holds: bool
) -> None:
    found = samples(memory, odd_us=odd_us)
    assert judge(found).holds == holds
    assert ("\n\nholds: " in report(found, "So:")) == holds


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than four"):
        judge(samples([1, 1, 1]))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_step_is_measured_and_every_event_counted(kafka: str, tmp_path: Path) -> None:
    """Too few to say whether it is flat: the full run is ``python -m load.soak``."""
    name = f"soak-{tmp_path.name}"
    found = list(measure(tmp_path, kafka, name, events=40_000, steps=4))
    assert [sample.events for sample in found] == [30_000, 40_000, 50_000, 60_000]
    for sample in found:
        assert 50 * MIB < sample.rss_bytes <= sample.peak_bytes < 2_000 * MIB
        assert 0.1 < sample.cpu_us < 1_000
    assert found[0].peak_bytes <= found[-1].peak_bytes
