"""The detector of error streams: rises fire, recoveries do not."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import pytest

from monitor.adwin import Adwin
from monitor.detectors import ErrorStream, error_stream
from monitor.errors import IncompatibleError


def wrong(rng: np.random.Generator, *rates: float, each: int = 1_000) -> npt.NDArray[np.int64]:
    return np.concatenate([rng.random(each) < rate for rate in rates]).astype(np.int64)


def test_an_error_stream_fires_on_each_rise_and_on_no_recovery() -> None:
    errors = wrong(np.random.default_rng(6), 0.1, 0.3, 0.1, 0.4, 0.1)
    stream = error_stream()
    alarms, onsets = [], []
    for i, error in enumerate(errors):
        if stream.update(float(error)):
            alarms.append(i)
            onsets.append(stream.onset)
    assert [alarm // 1_000 for alarm in alarms] == [1, 3]
    assert all(alarm % 1_000 < 300 for alarm in alarms)
    assert onsets == [pytest.approx(1_000, abs=100), pytest.approx(3_000, abs=100)]


def test_an_error_stream_takes_panes_and_survives_a_restart() -> None:
    errors = wrong(np.random.default_rng(6), 0.1, 0.3, each=5_000).reshape(-1, 250)
    stream = error_stream()
    for day, pane in enumerate(errors):
        rate = float(pane.mean())
        fired = stream.update_pane(250, rate, 250 * rate * (1 - rate), at=day * 86_400_000)
        stream = ErrorStream.restore(stream.snapshot())
        if fired:
            break
    assert day == 20
    assert stream.onset == 20 * 86_400_000


def test_an_error_stream_is_one_feature_and_its_damage_is_noticed() -> None:
    with pytest.raises(ValueError, match="one feature"):
        ErrorStream(Adwin(2))
    with pytest.raises(IncompatibleError):
        ErrorStream.restore(zlib.compress(b"something else"))
