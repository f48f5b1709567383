"""The profiler as ``driftline run profiler`` runs it, until it has counted so many events: ``python -m load.peers.profiler EVENTS``, configured by environment."""

from __future__ import annotations

import sys
import threading
import time

from load.peers.measured import Meter
from monitor import metrics
from monitor.environment import load
from streams import profiler

_LOOK_S = 0.002


def main(events: int) -> None:
    """Profile so many."""
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(events, stop))
    watch.start()
    try:
        profiler.run(load(), stop)
    finally:
        stop.set()
        watch.join()


def _watch(events: int, stop: threading.Event) -> None:
    """Counted is what a committed transaction counted."""
    meter, first = Meter(), 0
    while not stop.is_set():
        done = int(_counted())
        if done >= events:
            meter.report(done - first)
            stop.set()
        elif done and not first:
            first = done
            meter.start()
        time.sleep(_LOOK_S)


def _counted() -> float:
    """Of this metric alone: to ask the whole registry every 2 ms was a quarter of the CPU time that was measured."""
    (counter,) = metrics.EVENTS.collect()
    return next(sample.value for sample in counter.samples if sample.name.endswith("_total"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
