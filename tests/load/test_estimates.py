"""The comparison of estimates with labels, in short."""

from __future__ import annotations

import numpy as np
import pytest

from load import estimates
from load.estimates import Row


@pytest.mark.timeout(300)
def test_an_estimate_beats_the_guess_where_scores_mean_what_they_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert estimates.main(["--short"]) == 0
    rows = [row.split("|")[1].strip() for row in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        "flights, by day",
        "flights, by week",
        "covariate shift",
        "concept drift (cannot be seen)",
    ]


def test_concept_drift_is_shown_and_held_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    known, served = estimates.made_up(np.random.default_rng(1), drift=True, windows=6)
    blind = estimates.compare("concept drift (cannot be seen)", known, served)
    assert blind.estimate > 0.02
    good = Row("covariate shift", 6, 0.01, 0.02, 0.95)
    monkeypatch.setattr(estimates, "report", lambda **_: [good, blind])
    assert estimates.main([]) == 0
    bad = Row("covariate shift", 6, 0.02, 0.01, 0.95)
    monkeypatch.setattr(estimates, "report", lambda **_: [bad, blind])
    assert estimates.main([]) == 1
