"""The API's process: ``monitor.api``, given a way to the broker, of which it knows nothing itself."""

from __future__ import annotations

import logging
import threading

from monitor import api
from monitor.settings import Settings
from streams import clients, wiring
from streams.orders import Messenger

logger = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event) -> None:
    """Serve the API until ``stop`` is set. The broker is not asked before the first order, label or prediction: all else works without it.

    Raises:
        TransientError: ClickHouse does not answer at start.
        ConfigError: the address cannot be listened on, ClickHouse refuses the user, or an option of Kafka is wrong.
    """
    clients.admin(wiring.kafka(settings), logger)  # now, and not at night when somebody approves
    messenger = Messenger(settings)
    limits = wiring.limits(settings)
    api.run(settings, stop, messenger.give, messenger.take, messenger.post, limits)
