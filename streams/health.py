"""Whether a process gets on with its work: watched from inside, told to whoever asks from outside.

::

    the loop ── reached(positions) ──► Watch ◄── ends of the partitions ── the broker, asked on a connection of its own
                waits()                  │
                                         ├──► driftline_stalled_seconds ──► driftline health, compose, Prometheus
                                         └──► EXIT_RESTART after STALLED_AFTER_S

Stalled is: what is durable is short of the end, and has not moved for that time. A consumer that died in silence, a loop
that hangs and a commit that never succeeds look alike from here, and a restart helps all three. It does not help against a
database or a receiver that is away: whoever tries such a call again says so by ``waits``, and is not stalled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from monitor import metrics
from monitor.metrics import Process
from streams.clients import KafkaSettings, consumer_config
from streams.delivery import Target
from streams.liveness import StallClock, end_process

logger = logging.getLogger(__name__)

STALLED_AFTER_S: Final = (
    120.0  # twice the longest wait for one reply of ClickHouse, and more than any session
)
_LOOK_S: Final = 5.0
_ANSWER_S: Final = 5.0


class Ends:
    """What lies between positions and the ends of their partitions; exports it as the process's lag. Its connection is its own: a fetcher that died knows of none.

    Args:
        process: whose positions they are.
        kafka: the broker to ask.
        unanswered: what there is to do while it does not answer. ``None``: nothing, for whom no restart would help.
    """

    def __init__(
        self, process: Process, kafka: KafkaSettings, *, unanswered: str | None = None
    ) -> None:
        self._process, self._unanswered = process, unanswered
        # It joins no group; ends are those of committed transactions, as for whoever reads.
        self._consumer = Consumer(consumer_config(kafka, f"{kafka.prefix}ends", logger))

    def __call__(self, positions: Mapping[Target, int]) -> str | None:
        """A partition that is not read to its end, or ``None``."""
        lags, short = dict[Target, int](), None
        for (topic, partition), position in positions.items():
            place = TopicPartition(topic, partition)
            try:
                low, end = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)
            except KafkaException:
                metrics.lag(self._process, {})
                return self._unanswered
            if position >= 0:
                lags[topic, partition] = max(0, end - max(low, position))
            if position < end and short is None:
                short = f"{topic}/{partition} is at {max(position, 0)} of {end}"
        metrics.lag(self._process, lags)
        return short

    def close(self) -> None:
        """Close the connection."""
        metrics.lag(self._process, {})
        self._consumer.close()


class Watch:
    """Looks every few seconds, from a thread. Mutable: the loop writes what it reached, the thread what it saw.

    Args:
        process: whose work it is.
        work: what is left to do beyond these positions, or ``None``.
        limit_s: for how long there may be work and no progress.
        ended: ends the process; called in the thread.
        monotonic: the clock.
    """

    def __init__(
        self,
        process: Process,
        work: Callable[[Mapping[Target, int]], str | None],
        *,
        limit_s: float = STALLED_AFTER_S,
        ended: Callable[[str], object] = end_process,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process, self._work, self._limit_s = process, work, limit_s
        self._ended, self._monotonic = ended, monotonic
        self._positions: Mapping[Target, int] = {}
        self._waits = 0
        self._clock = StallClock(limit_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        metrics.STALLED.labels(process).set(0)

    def reached(self, positions: Mapping[Target, int]) -> None:
        """What is durable now, of all partitions that are held; -1 where nothing is known yet. An end that was read counts."""
        self._positions = dict(positions)

    def waits(self) -> None:
        """A call to something that is away was tried again, a loop without positions turned, or work began or went on that has none."""
        self._waits += 1

    def look(self) -> None:
        """Take one observation."""
        positions, now_s = self._positions, self._monotonic()
        left = self._work(positions)
        progress: Hashable = (tuple(sorted(positions.items())), self._waits)
        stalled = self._clock.stalled(now_s, progress, work=left is not None)
        metrics.STALLED.labels(self._process).set(self._clock.for_s(now_s))
        if stalled:
            self._ended(f"no progress for {self._limit_s:g} s: {left}")

    def __enter__(self) -> Self:
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to look."""
        self._stop.set()
        self._thread.join()
        metrics.STALLED.labels(self._process).set(0)

    def _follow(self) -> None:
        while not self._stop.wait(min(_LOOK_S, self._limit_s / 6)):
            self.look()


@contextmanager
def watching(process: Process, kafka: KafkaSettings) -> Iterator[Watch]:
    """A watch over what lies between a process's positions and the ends of their partitions."""
    ends = Ends(process, kafka)
    try:
        with Watch(process, ends) as watch:
            yield watch
    finally:
        ends.close()
