"""What a serving app records its predictions with: they go to the topic behind its back, and never at its cost.

::

    threads of the app ──► record() ──► queue ──► one thread: encode, check, pack ──► librdkafka ──► broker
                              └ no place             └ invalid, too large, no room                     └ refused

``record`` takes a place, copies the features and appends them: no lock, no encoding, no I/O, and no exception. Whatever does not arrive is
counted by its reason, so that at rest calls = sent + dropped + waiting. What is good is decided by the profiler's own rule (``monitor.events``).

A fork gives the child a recorder that is empty: what waits is sent by the parent, once. Of what an app has to load, confluent-kafka is the largest.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args
from weakref import WeakSet

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from typing_extensions import override

from monitor.errors import ConfigError, InvalidEventError
from monitor.events import MAX_BODY, Limits, decode_messages, is_name, parts, record_of
from streams.clients import Config, KafkaSettings, is_fatal, producer_config

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

DropReason = Literal[
    "queue_full",  # as many as may wait are waiting
    "bytes_full",  # as many bytes as may wait for the broker are waiting
    "too_large",  # larger than a message, or with more features than an event may have
    "invalid",  # no prediction, or not to be written as JSON: the profiler would not take it
    "broker",  # the broker refused it, or was away for five minutes
    "closed",  # after close(), or not sent when its time was over
]
DROP_REASONS: Final[tuple[DropReason, ...]] = get_args(DropReason)

EXIT_S: Final = 2.0  # for what waits when the process ends
_LINGER_S: Final = 0.05  # what comes meanwhile is one message
_AT_ONCE: Final = 64  # records encoded in a row, some 200 us
_TOGETHER: Final = 1_024  # records after which a message goes before its time
# Between them the app has the interpreter: a thread that only computes would keep it for 5 ms each time.
_BREATH_S: Final = 0.0001
_PURGE_S: Final = 0.2  # of the time at the end, to hear what became of what is given up
_QUIET_S: Final = 60.0  # between two warnings
_FIELDS: Final = ("id", "ts", "model", "version", "features", "prediction", "score", "latency_ms", "error", "tags")  # fmt: skip
# A record may stand in an array, which is one level of nesting.
_LIMITS: Final = Limits(message_bytes=MAX_BODY, json_depth=Limits().json_depth - 1)

Row: TypeAlias = tuple[Any, ...]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the records of this process so far. While records come, the three are not of one moment."""

    sent: int
    dropped: Mapping[DropReason, int]
    waiting: int


class _Tally:
    """A counter that any thread adds to without a lock: ``add`` is one call into C, which no other thread divides."""

    def __init__(self) -> None:
        self._calls = itertools.count()
        self.add = self._calls.__next__
        self._lock = threading.Lock()
        self._looks = 0

    def value(self) -> int:
        """How often ``add`` was called. To look counts, too, and is subtracted."""
        with self._lock:
            found = next(self._calls) - self._looks
            self._looks += 1
            return found


class Recorder:
    """Takes predictions from any thread. One for each app; models and versions may be told with each record.

    Args:
        model: of records that name no other.
        version: likewise.
        bootstrap: ``host:port[,host:port...]`` of the broker.
        security: librdkafka's options ``security.*``, ``sasl.*`` and ``ssl.*``.
        topic: of predictions.
        max_records: that may wait; more are dropped, the newest first.
        max_bytes: of JSON that may wait for the broker; likewise.

    Raises:
        ConfigError: an option is wrong.
        ValueError: an argument is.
    """

    def __init__(
        self,
        model: str,
        version: str | int | None = None,
        *,
        bootstrap: str,
        security: Mapping[str, str] | None = None,
        topic: str = "driftline.predictions",
        max_records: int = 10_000,
        max_bytes: int = 16 << 20,
        connect: Callable[[Config], Producer] = Producer,
        clock_ns: Callable[[], int] = time.time_ns,  # noqa: TID251  # an edge: the app predicts now
    ) -> None:
        if not is_name(model):
            raise ValueError("model is not a name of 1 to 128 letters, digits and ._/-")
        if max_records < 1 or max_bytes < 1:
            raise ValueError("max_records and max_bytes are at least 1")
        settings = KafkaSettings(bootstrap, client_id="driftline-recorder", security=security or {})
        self._config = producer_config(settings, logger) | {
            "queue.buffering.max.messages": 0,  # the bounds are ours
            "queue.buffering.max.kbytes": 2_147_483_647,
        }
        self._connect, self._clock_ns, self._topic = connect, clock_ns, topic
        self._model, self._version = model, version
        self._max_records, self._max_bytes = max_records, max_bytes
        self._begin()
        _RECORDERS.add(self)
        try:
            connect(
                self._config
            )  # and gone before anybody forks: now is when a wrong option is told
        except KafkaException as err:
            raise ConfigError(f"kafka: {err.args[0].str()}") from None

    def _begin(self) -> None:
        """As new, in this process."""
        self._queue: deque[Row] = deque()
        self._places = deque(itertools.repeat(None, self._max_records))
        self._sent = 0
        self._dropped: Mapping[DropReason, _Tally] = {reason: _Tally() for reason in DROP_REASONS}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = self._ended = False
        self._deadline_s = 0.0
        self._wake, self._done = threading.Event(), threading.Event()
        self._at_exit: util.Finalize[None] | None = None

    def record(
        self,
        id: str | int | None,  # noqa: A002  # its name in the event
        features: Mapping[str, Any] | None = None,
        prediction: Any = None,
        score: float | None = None,
        *,
        latency_ms: float | None = None,
        error: Any = None,
        tags: Mapping[str, Any] | None = None,
        ts: datetime | int | str | None = None,
        model: str | None = None,
        version: str | int | None = None,
    ) -> bool:
        """Record a prediction. Never blocks, and never raises.

        Args:
            id: what its label will be joined by.
            features: as the model saw them. The dictionary is copied, its values are not: do not change an array afterwards.
            prediction: what the model answered.
            score: of it.
            latency_ms: what it took.
            error: instead of an answer.
            tags: whatever else belongs to it.
            ts: when; by default now. RFC 3339, a datetime with an offset, or epoch milliseconds.
            model: if it is not the recorder's.
            version: likewise.

        Returns:
            Whether it waits to be sent. ``False``: it is counted in ``stats().dropped``.
        """
        if self._closing:
            self._dropped["closed"].add()
            return False
        if self._thread is None:
            self._start()
        if not self._places:  # so far: no need to copy first
            self._dropped["queue_full"].add()
            return False
        try:
            row = (
                id,
                self._clock_ns() // 1_000_000 if ts is None else ts,
                self._model if model is None else model,
                self._version if version is None else version,
                None if features is None else dict(features),
                prediction,
                score,
                latency_ms,
                error,
                None if tags is None else dict(tags),
            )
        except Exception:  # noqa: BLE001  # whatever an app hands over: it has a request to answer
            self._dropped["invalid"].add()
            return False
        try:
            self._places.pop()  # of several threads, one gets the last
        except IndexError:
            self._dropped["queue_full"].add()
            return False
        self._queue.append(row)
        if self._ended:  # since the look at the top: nobody else comes for it
            self._give_up()
            return False
        return True

    def stats(self) -> Stats:
        """What became of the records so far, in this process."""
        dropped = {reason: tally.value() for reason, tally in self._dropped.items()}
        return Stats(self._sent, dropped, self._max_records - len(self._places))

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits any more; whether that came."""
        until = time.monotonic() + timeout_s
        self._wake.set()
        while len(self._places) < self._max_records and time.monotonic() < until:
            time.sleep(0.002)
        return len(self._places) == self._max_records

    def close(self, timeout_s: float = EXIT_S) -> None:
        """Take no more records, and send what waits, for ``timeout_s`` at most; the rest is counted as ``closed``. The end of the process does it, too."""
        if not self._closing:
            self._deadline_s = time.monotonic() + timeout_s
            self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._done.wait(max(0.0, self._deadline_s - time.monotonic()))
        self._ended = True
        self._give_up()
        if self._at_exit is not None:
            self._at_exit.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expose(self, registry: CollectorRegistry | None = None) -> None:
        """Add the counters to a registry of prometheus-client, by default its own."""
        from prometheus_client import REGISTRY
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.registry import Collector

        recorder = self

        class Exposed(Collector):
            @override
            def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
                stats = recorder.stats()
                sent = "Predictions that the broker has."
                dropped = CounterMetricFamily(
                    "driftline_recorder_dropped",
                    "Predictions that were not sent, by reason: streams/client.py.",
                    labels=["reason"],
                )
                for reason, n in stats.dropped.items():
                    dropped.add_metric([reason], n)
                waiting = "Predictions that wait to be sent."
                return [
                    CounterMetricFamily("driftline_recorder_sent", sent, stats.sent),
                    dropped,
                    GaugeMetricFamily("driftline_recorder_waiting", waiting, stats.waiting),
                ]

        (REGISTRY if registry is None else registry).register(Exposed())

    def _start(self) -> None:
        """Start the thread, in whichever process the first record is. If another thread is about to, it will."""
        if self._closing or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None and not self._closing:
                # Not atexit: a process of multiprocessing ends without it. This one comes in both.
                self._at_exit = util.Finalize(None, self.close, exitpriority=100)
                thread = threading.Thread(target=self._run, name="driftline-recorder", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:  # no more threads now: the next record tries again
            pass
        finally:
            self._starting.release()

    def _run(self) -> None:
        """The thread. The producer lives in its frame and nowhere else, so that a forked child never destroys it, which would wait for threads that are not there."""
        try:
            sender = _Sender(self)
            while not self._closing:
                sender.turn()
                self._wake.wait(_LINGER_S)
                self._wake.clear()
            sender.finish()
        except Exception:
            logger.exception("predictions are not recorded any more")
        finally:
            self._closing = self._ended = True
            self._give_up()
            self._done.set()

    def _give_up(self) -> None:
        """Count what is in the queue as not sent."""
        while True:
            try:
                self._queue.popleft()
            except IndexError:
                return
            self._drop("closed")

    def _drop(self, reason: DropReason, n: int = 1) -> None:
        """Count records that had a place, and free it."""
        for _ in range(n):
            self._dropped[reason].add()
        self._places.extend(itertools.repeat(None, n))


class _Sender:
    """What the thread does. It alone owns the producer and the bytes that wait."""

    def __init__(self, recorder: Recorder) -> None:
        self._of = recorder
        self._producer = recorder._connect(recorder._config)
        self._bytes = 0
        self._late = False
        self._detail = ""
        self._told: Counter[str] = Counter()
        self._quiet_until_s = 0.0

    def turn(self) -> None:
        """Send what is in the queue, and hear what became of what was sent."""
        events: list[tuple[str | None, bytes]] = []
        more = True
        while more:
            rows = self._rows()
            more = len(rows) == _AT_ONCE
            events += self._encoded(rows)
            if not more or len(events) >= _TOGETHER:
                for part in parts(events):
                    self._send(part)
                events = []
                self._producer.poll(0)
            if more and not self._of._closing:
                time.sleep(_BREATH_S)
        self._tell()

    def finish(self) -> None:
        """Send the rest until the deadline, and give up what is left."""
        self.turn()
        left_s = self._of._deadline_s - _PURGE_S - time.monotonic()
        self._producer.flush(max(0.0, left_s))
        self._late = True
        if len(self._producer):
            self._producer.purge()
            self._producer.flush(_PURGE_S / 2)
        self._quiet_until_s = 0.0
        self._tell()

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < _AT_ONCE:
            try:
                rows.append(self._of._queue.popleft())
            except IndexError:
                break
        return rows

    def _encoded(self, rows: Sequence[Row]) -> list[tuple[str | None, bytes]]:
        """Key and JSON of the good ones."""
        values = []
        for row in rows:
            try:
                values.append(_encoded(row))
            except Exception as err:  # noqa: BLE001  # a value of the app, and whatever its methods raise
                self._drop("invalid", f"not to be written as JSON: {type(err).__name__}")
        now_ms = self._of._clock_ns() // 1_000_000
        good = []
        outcomes = decode_messages([(value, {}) for value in values], _LIMITS, now_ms=now_ms)
        for value, (outcome,) in zip(values, outcomes, strict=True):
            if isinstance(outcome, InvalidEventError):
                reason: DropReason = "too_large" if outcome.reason == "too_large" else "invalid"
                self._drop(reason, outcome.detail)
            elif self._bytes + len(value) > self._of._max_bytes:
                self._drop("bytes_full", "")
            else:
                self._bytes += len(value)
                good.append((None if outcome.id is None else str(outcome.id), value))
        return good

    def _send(self, part: Sequence[tuple[str | None, bytes]]) -> None:
        n, size = len(part), sum(len(value) for _, value in part)
        record = record_of(part)
        try:
            self._producer.produce(
                self._of._topic,
                record.value,
                record.key,
                headers=dict(record.headers),
                on_delivery=partial(self._delivered, n, size),
            )
        except (BufferError, KafkaException) as err:
            self._bytes -= size
            self._drop("broker", str(err), n)
            if isinstance(err, KafkaException) and is_fatal(err.args[0]):
                self._producer.flush(_PURGE_S)  # all that it has fails now, and is counted
                self._producer = self._of._connect(self._of._config)

    def _delivered(self, n: int, size: int, error: KafkaError | None, _: Message) -> None:
        self._bytes -= size
        if error is None:
            self._of._sent += n
            self._of._places.extend(itertools.repeat(None, n))
        else:
            self._drop("closed" if self._late else "broker", error.str(), n)

    def _drop(self, reason: DropReason, detail: str, n: int = 1) -> None:
        self._detail = detail or self._detail
        self._of._drop(reason, n)

    def _tell(self) -> None:
        """Say what was dropped since the last time, once a minute at most."""
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:
            return
        dropped: Counter[str] = Counter(self._of.stats().dropped)
        if new := dropped - self._told:
            said = ", ".join(f"{reason} {n}" for reason, n in new.items())
            logger.warning("predictions were not recorded: %s. %s", said, self._detail)
            self._told, self._quiet_until_s = dropped, now_s + _QUIET_S


def _encoded(row: Row) -> bytes:
    event = {name: value for name, value in zip(_FIELDS, row, strict=True) if value is not None}
    return msgspec.json.encode(event, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """A number or an array of numpy, or of what works alike, as Python's own."""
    try:
        return value.tolist()
    except AttributeError:
        raise TypeError(f"{type(value).__name__} has no form in JSON") from None


_RECORDERS: WeakSet[Recorder] = WeakSet()


def _begin_anew() -> None:
    for recorder in _RECORDERS:
        recorder._begin()


os.register_at_fork(after_in_child=_begin_anew)
