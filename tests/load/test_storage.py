from __future__ import annotations

import numpy as np
import pytest

from load import storage
from load.clean import HOUR_MS, MINUTE_MS, Clean, Plan, learn, spec
from load.markdown import README, replace_block
from load.storage import CODECS, Weight, report, rows_of, vectors, weigh
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec

PLAN = Plan("iid", seed=3, per_hour=300, pane_ms=HOUR_MS // 2)


@pytest.fixture(scope="module")
def learnt() -> tuple[ModelSpec, Reference]:
    model = spec(PLAN)
    return model, learn(model, Clean(PLAN).days(1), PLAN)


def test_windows_are_drawn_as_the_reference_is(learnt: tuple[ModelSpec, Reference]) -> None:
    _, reference = learnt
    whole, rng = reference.profiles[""], np.random.default_rng(1)
    drawn = vectors(reference, 5, 100_000, rng)
    for each in (Profile(reference.layout, vector) for vector in drawn):
        assert each.n == 100_000
        for name in ("f00", "f03", "f04"):
            counts, missing = each.counts(name), each.special(name, "missing")
            assert counts.sum() + missing == each.n
            expected = whole.counts(name) / whole.counts(name).sum()
            assert np.abs(counts / counts.sum() - expected).max() < 0.01
            assert missing / each.n == pytest.approx(
                whole.special(name, "missing") / whole.n, abs=2e-3
            )
        n, mean, m2 = each.moments("f03")
        assert n == 100_000
        assert mean == pytest.approx(10, abs=0.2)
        assert np.sqrt(m2 / n) == pytest.approx(np.pi, rel=0.1)


def test_more_bins_weigh_more_and_whole_numbers_least_as_we_store_them(
    learnt: tuple[ModelSpec, Reference],
) -> None:
    model, reference = learnt
    drawn = vectors(reference, 30, 600, np.random.default_rng(2))
    windows, verdicts = rows_of(model, reference, HOUR_MS, drawn)
    assert len(windows) == 30 * (1 + len(reference.layout.fields))
    with storage.database() as target:
        found = weigh(target, HOUR_MS, windows, verdicts)
    few, many = found.slices
    assert 5 < few < many < 500
    assert 0 < found.own < 200
    assert found.verdicts > 5
    assert min(found.codecs) == dict(zip(CODECS, found.codecs, strict=True))["T64, ZSTD(1)"]


def test_the_table_tells_bytes_a_day() -> None:
    text = report([Weight(MINUTE_MS, (10.0, 100.0), 5.0, 1.0, (4.0, 3.0, 2.0, 1.0))], "Once.")
    assert "| 1m | 14,400 | 144,000 | 7,200 | 1,440 |" in text
    assert "| 1m | 4 | 3 | 2 | 1 |" in text
    assert replace_block(README.read_text(), "storage", text)
