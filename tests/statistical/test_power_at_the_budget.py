"""What a fault costs until it is found, on one stream: what the table of ``python -m load.power`` says of the clear faults."""

from __future__ import annotations

import pytest

from load.power import BONFERRONI, KS, OURS, PSI, Trial, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_clear_faults_are_named_within_hours_without_a_false_page() -> None:
    found = run(Trial(seed=1, hours=36))
    ours = found[OURS]
    assert ours.pages <= 1  # 0.05 are allowed in 36 hours: two happen in 0.1 % of all streams
    assert ours.delays["1 sigma"] == 1
    assert ours.delays["0.5 sigma"] == 1
    assert (ours.delays["new category 1 %"] or 99) <= 6
    assert (ours.delays["0.25 sigma"] or 99) <= 12
    assert found[KS].pages > 18  # 92 % of all hours have p < 0.05 in one of 50 features
    assert found[PSI].delays["0.1 sigma"] is None
    assert found[BONFERRONI].delays["1 sigma"] == 1
