"""Ends a worker that has work and gets nowhere, whatever hangs in it.

It is a thread with a client of its own, as a client that is stuck cannot say so. What it knows of the worker is a value
that the worker replaces; what it knows of the work, it asks the broker.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from streams.clients import KafkaSettings, consumer_config
from streams.delivery import Target
from streams.liveness import StallClock

_ANSWER_S: Final = 10.0  # at most
_LOOK_S: Final = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """Where a worker stands.

    ``busy`` is what it does beside reading its inputs. ``recovered`` is the highest number of records that one recovery of
    this assignment has read: a recovery that repeats itself is no progress. ``reached`` is where each input is committed,
    or was seen to end.
    """

    busy: str | None
    assignments: int = 0
    recovered: int = 0
    reached: Mapping[Target, int] = field(default_factory=dict)


class Watchdog:
    """Looks at a worker every few seconds. Mutable: it owns a thread.

    Args:
        kafka: the broker to ask.
        group: the worker's group; the watchdog does not join it.
        stall_s: for so long there may be work without progress.
        status: where the worker stands now.
        stalled: called with a reason, in the watchdog's thread; need not return.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        *,
        stall_s: float,
        status: Callable[[], Status],
        stalled: Callable[[str], object],
        monotonic: Callable[[], float],
    ) -> None:
        self._stall_s, self._status, self._stalled = stall_s, status, stalled
        self._monotonic = monotonic
        self._consumer = Consumer(consumer_config(kafka, group, logger))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Returns at once."""
        self._stopped.set()

    def _watch(self) -> None:
        clock = StallClock(self._stall_s)
        while not self._stopped.wait(min(_LOOK_S, self._stall_s / 6)):
            status = self._status()
            work = self._work(status)
            moved = status.assignments, status.recovered, tuple(sorted(status.reached.items()))
            if clock.stalled(self._monotonic(), moved, work=work is not None):
                self._stalled(f"no progress for {self._stall_s:g} s: {work}")

    def _work(self, status: Status) -> str | None:
        """What there is to do, or ``None``."""
        if status.busy is not None or not status.reached:
            return status.busy
        latest = [TopicPartition(*target, OFFSET_END) for target in status.reached]
        try:
            ends = self._consumer.offsets_for_times(
                latest, timeout=min(_ANSWER_S, self._stall_s / 2)
            )
        except KafkaException:
            return "the broker does not answer"
        for end in ends:
            at = status.reached[end.topic, end.partition]
            if end.error is not None or at < end.offset:
                return f"{end.topic}/{end.partition} is applied to {at} of {end.offset}"
        return None
