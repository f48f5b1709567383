"""The same histograms by an agent for each event, in a table: what a first version with Faust looks like. ``python -m load.peers.faust_app BOOTSTRAP TOPIC EVENTS``

Each of the twenty counts of an event is an update of the table, and so a message to its changelog: some six thousand updates a second are what Faust does,
and three hundred events.

The bins come from standard input, as JSON: feature -> edges or categories.
"""

from __future__ import annotations

import bisect
import json
import os
import sys
import tempfile
from typing import Any

import faust

from load.peers.measured import Meter


def main(bootstrap: str, topic: str, events: int) -> None:
    """Count so many events, and end."""
    bins: dict[str, list[Any]] = json.load(sys.stdin)
    app = faust.App(
        "bench-faust",
        broker=f"kafka://{bootstrap}",
        store="memory://",
        datadir=tempfile.mkdtemp(),
        web_enabled=False,
        topic_partitions=4,
        consumer_auto_offset_reset="earliest",
    )
    predictions = app.topic(topic, value_type=bytes, value_serializer="raw", key_serializer="raw")
    counts = app.Table("counts", default=int)
    meter, done = Meter(), 0

    @app.agent(predictions)
    async def count(stream: Any) -> None:
        nonlocal done
        async for value in stream:
            if not done:
                meter.start()
            event = json.loads(value)
            for name, found in event["features"].items():
                which = found if isinstance(found, str) else bisect.bisect_right(bins[name], found)
                counts[f"{name}:{which}"] += 1
            done += 1
            if done == events:
                meter.report(events)
                os._exit(0)  # it is measured: what it still would write is nobody's

    app.finalize()
    faust.Worker(app, loglevel="ERROR", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
