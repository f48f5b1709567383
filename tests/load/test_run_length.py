"""The table of run lengths: streams that are what they say, counts that are counted right, and an error when a promise breaks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from load import run_length
from load.run_length import RunLength, Stream, autoregressive, delays, run_lengths, season, streams


@pytest.mark.parametrize("stream", streams(), ids=lambda s: f"{s.name}-{s.n}")
def test_a_clean_stream_has_mean_0_and_variance_1(stream: Stream) -> None:
    """Over whole days, so that the season's mean is 0; 400 columns, as far apart in phase as they can be."""
    rng = np.random.default_rng(1)
    runs, panes = 400, 72
    drawn = [stream.draw(rng, runs, pane) for pane in range(1, panes + 1)]
    means, squares = (np.array(column) for column in zip(*drawn, strict=True))
    values = runs * panes * stream.n
    spread = stream.design_effect if stream.name.startswith("AR") else 1.0
    assert abs(means.mean()) < 4 * math.sqrt(spread / values)
    second = (squares / stream.n + means**2).mean()
    kurtosis = 111 if stream.name.startswith("log") else 100 if "0.01" in stream.name else 3
    assert second == pytest.approx(1.0, abs=4 * math.sqrt(kurtosis * spread / values))


@pytest.mark.parametrize("stream", [autoregressive(50, 0.9), season(100)], ids=["ar1", "season"])
def test_no_sum_of_a_dependent_stream_scatters_more_than_its_design_effect_says(
    stream: Stream,
) -> None:
    rng = np.random.default_rng(2)
    runs, panes = 1_000, 144
    means = np.array([stream.draw(rng, runs, pane)[0] for pane in range(1, panes + 1)])
    for length in (1, 12, 48, 72, 144):
        window = means[:length].mean(axis=0)
        effect = float((window**2).mean()) * stream.n * length
        assert effect <= stream.design_effect * (1 + 4 * math.sqrt(2 / runs))


def test_the_short_table_keeps_the_promise_and_says_what_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_length, "streams", lambda: streams()[:2])
    assert run_length.main(["--short"]) == 0
    printed = capsys.readouterr().out
    for part in ("python -m load.run_length --short --seed 2026", "60 runs", "A = 60", "us of CPU"):
        assert part in printed
    assert (
        printed.count("\n| ") == 2 + 2 + 2 + 2 + 4
    )  # two heads and rules, two streams, two families, four detectors


def test_a_stream_that_is_not_clean_breaks_the_promise_and_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(rng: np.random.Generator, runs: int, _: int) -> run_length.Moments:
        return rng.normal(0.5, 0.1, runs), np.full(runs, 100.0)

    monkeypatch.setattr(run_length, "streams", lambda: [Stream("shifted", 100, shifted)])
    monkeypatch.setattr(run_length, "delays", lambda *_: {})
    assert run_length.main(["--short"]) == 1
    assert "the promise is broken: shifted" in capsys.readouterr().err


def test_run_lengths_count_the_panes_that_were_watched() -> None:
    assert str(RunLength(1_000, 4)) == "250 ± 125"
    assert str(RunLength(1_000, 0)) == "over 1,000"
    found = run_lengths(streams()[0], 20.0, 50, np.random.default_rng(3))
    assert {name: 0 < length.panes <= 3 * 20 * 50 for name, length in found.items()} == {
        "e-detector": True,
        "CUSUM": True,
        "ADWIN": True,
    }


def test_a_larger_shift_is_found_sooner_by_every_detector() -> None:
    rng = np.random.default_rng(4)
    small, large = delays(0.1, 20, rng), delays(0.5, 20, rng)
    for name, delay in large.items():
        assert delay.missed == 0
        assert delay.panes.mean() < small[name].panes.mean() / 2
