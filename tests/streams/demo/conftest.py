from __future__ import annotations

import numpy as np
import pytest

from streams.demo.delay import DelayModel
from streams.demo.flights import Flights, load
from streams.demo.replay import train


@pytest.fixture(scope="session")
def flights() -> Flights:
    """The whole year: loaded once, because it takes a second or two."""
    return load(np.random.default_rng(2013))


@pytest.fixture(scope="session")
def model(flights: Flights) -> DelayModel:
    return train(flights)
