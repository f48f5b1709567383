"""The API's process: ``monitor.api``, given a way to the broker, of which it knows nothing itself."""

from __future__ import annotations

import threading

from monitor import api
from monitor.settings import Settings
from streams.orders import Messenger


def run(settings: Settings, stop: threading.Event) -> None:
    """Serve the API until ``stop`` is set. The broker is not asked before the first order: all else works without it.

    Raises:
        TransientError: ClickHouse does not answer at start.
        ConfigError: the address cannot be listened on, or ClickHouse refuses the user.
    """
    api.run(settings, stop, Messenger(settings).give)
