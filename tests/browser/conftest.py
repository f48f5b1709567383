"""One database, one API and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from selenium.webdriver import Chrome

from monitor import store
from monitor.store import Store
from monitor.wire import Command
from tests.browser import fleet, window
from tests.monitor.stored import endpoint

MODELS: Final = 100
FEATURES: Final = 200


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The largest view that is promised: 100 models of 200 features."""
    directory: Path = tmp_path_factory.mktemp("browser")
    with endpoint(directory) as settings:
        store.migrate(settings)
        link = store.connect(settings)
        fleet.fill(link, models=MODELS, features=FEATURES)
        yield link
        link.close()


@pytest.fixture(scope="session")
def orders() -> list[Command]:
    """What the page asked the detector for."""
    return []


@pytest.fixture(scope="session")
def address(stored: Store, orders: list[Command]) -> Iterator[str]:
    """Where the API answers."""
    with window.serving(stored, orders.append) as found:
        yield found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    """The browser."""
    try:
        with window.chromium() as browser:
            yield browser
    except window.NoBrowserError as err:
        pytest.skip(str(err))
