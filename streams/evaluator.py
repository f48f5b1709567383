"""The evaluator: labels come in, performance windows go out.

One step, in this order; a crash between two of them repeats work, and never skips any::

    1. closed windows, then ends of the topics, then positions of the sink      (a round, see below)
    2. for the positions that the sink has passed since the cursor: join predictions and labels in ClickHouse
    3. recompute the windows that were touched, and those whose labels are due now
    4. produce them, and wait until the broker has them
    5. save the cursor, the watermarks and the finality as one row

**Final.** A window is final once the label watermark has passed its end by the model's expected delay, *and* the detector closed it, *and* the
predictions of that time are joined. That the latter two belong together is known by rounds: a round begins with a look at
the closed windows, then at the ends of ``labels`` and ``scored``, and it is over when all that was there is joined. Then these windows count as closed,
and the label watermark is the smallest of what each partition had as its largest label time in the round; a partition without a label of the model has nothing to
say. So a window is final with the labels that were due, however far sink, detector and evaluator are apart. A label that
comes later emits the window again, final, with a higher revision.

The cost of a step grows with the labels and with the windows they touch, not with history.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from monitor import metrics, store, wire
from monitor.errors import TransientError
from monitor.scoring import Place, measure
from monitor.settings import Settings
from monitor.spec import ModelSpec
from monitor.truth import Arrived, Joined, Range, Topic, Truth
from monitor.wire import Performance
from streams import clients, wiring
from streams.clients import consumer_config, producer_config
from streams.health import Watch
from streams.registry import Registry
from streams.sink import sink_group
from streams.topics import partition_of

logger = logging.getLogger(__name__)

Offsets = Mapping[tuple[Topic, int], int]
Specs = Callable[[], Mapping[str, ModelSpec]]
TOPICS: Final[tuple[Topic, ...]] = ("labels", "scored")
ROWS_PER_STEP: Final = 100_000  # joined, of each topic: bounds its memory and its time
ROWS_PER_PULL: Final = 100_000  # about 20 MB; a single window may be larger
GAP: Final = 8  # windows between two touched ones that are cheaper to read than to leave out
CATCH_UP_MS: Final = 31 * 86_400_000  # of finality in one step
HOUR_MS: Final = 3_600_000
MAX_COUNTS: Final = 50_000  # places whose predictions are remembered: about 10 MB
MAX_REST_S: Final = 8.0
_TIMEOUT_S: Final = 10.0
_STEP_S: Final = (
    900.0  # each question to ClickHouse ends after 60 s; the first step after an outage asks many
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the topics end, and up to which position the sink has stored them; both by topic and partition.

    ``cluster`` is the broker's id: another broker counts its positions anew. ``names`` are those of the topics there.
    """

    cluster: str
    ends: Offsets
    stored: Offsets
    names: Mapping[Topic, str]


class State(msgspec.Struct):
    """What survives a restart. Mutable: it is the evaluator's own, and saved as a whole.

    Attributes:
        cursor: ``"labels/0"`` -> position up to which rows were joined.
        marks: model -> labels partition (as text) -> largest label time that was joined in this round.
        watermarks: model -> its labels are complete up to this label time.
        final_ms: model -> every window that ends by then is final, and was emitted so.
    """

    cluster: str = ""
    cursor: dict[str, int] = {}
    marks: dict[str, dict[str, int]] = {}
    watermarks: dict[str, int] = {}
    final_ms: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class _Round:
    """Windows that were seen closed, and where the topics ended after that."""

    closed_ms: Mapping[str, int]
    ends: Offsets


class _Counts:
    """Predictions by place, of windows that were asked for before and got none since."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._known: dict[tuple[str, int], dict[int, dict[Place, int]]] = {}
        self._places = 0

    def of(self, model: str, size: int, starts: Sequence[int]) -> dict[Place, int]:
        """Predictions in windows, their starts ascending."""
        if self._places > MAX_COUNTS:
            self._known, self._places = {}, 0
        known = self._known.setdefault((model, size), {})
        for run in _runs([start for start in starts if start not in known], size):
            known |= {start: {} for start in run}
            found = self._truth.predictions(model, size, run[0], run[-1] + size)
            for place, n in found.items():
                if place[2] in known:
                    known[place[2]][place] = n
            self._places += len(found)
        return {place: n for start in starts for place, n in known[start].items()}

    def forget(self, arrived: Iterable[Arrived]) -> None:
        """There are new predictions."""
        for a in arrived:
            for (model, size), known in self._known.items():
                if model == a.model:
                    for start in [s for s in known if a.first_ms - size < s <= a.last_ms]:
                        del known[start]


class Evaluator:
    """The steps. ``emit`` returns when its messages are durable; ``progress`` asks the broker.

    Attributes:
        behind: the last step left rows for the next one, as they were too many.
    """

    def __init__(
        self,
        truth: Truth,
        specs: Specs,
        progress: Callable[[], Progress],
        emit: Callable[[Sequence[Performance]], None],
    ) -> None:
        self._truth, self._specs, self._progress, self._emit = truth, specs, progress, emit
        self._revision, saved = truth.state()
        self._state = State() if saved is None else msgspec.json.decode(saved, type=State)
        self._round: _Round | None = None
        self._closed_ms: Mapping[str, int] = {}
        self._counts = _Counts(truth)
        self.behind = False

    def step(self) -> int:
        """Do what can be done now; returns how many rows were joined and windows emitted: 0 means "nothing to do"."""
        before = msgspec.json.encode(self._state)
        closed_ms = self._truth.closed_until_ms()  # 1
        progress = self._progress()
        if progress.cluster != self._state.cluster:
            self._state.cluster, self._state.cursor = progress.cluster, {}
        if self._round is None:
            self._round = _Round(closed_ms, progress.ends)
        specs = self._specs()
        touched, joined = self._join(progress, specs)  # 2
        self._end_round()
        windows = 0
        for model, spec in specs.items():  # 3
            if spec.task == "none":
                continue
            final_ms = self._final_ms(model, spec)
            for batch in self._windows(spec, touched.get(model, ()), final_ms):
                self._emit(batch)  # 4
                windows += len(batch)
            if final_ms is not None:
                self._state.final_ms[model] = final_ms
        after = msgspec.json.encode(self._state)
        if after != before:
            self._revision += 1
            self._truth.save(self._revision, after.decode())  # 5
        metrics.EVALUATOR_WINDOWS.inc(windows)
        lags = {
            (progress.names[topic], p): max(0, end - self._state.cursor.get(_key(topic, p), 0))
            for (topic, p), end in progress.ends.items()
        }
        metrics.lag("evaluator", lags)
        return joined + windows

    def _join(
        self, progress: Progress, specs: Mapping[str, ModelSpec]
    ) -> tuple[dict[str, set[int]], int]:
        """Join what arrived; event times of the touched predictions by model, and how many rows there were."""
        touched: dict[str, set[int]] = {}
        joined = 0
        self.behind = False
        for topic in TOPICS:
            waiting = list(self._new(topic, progress.stored))
            ranges = [self._truth.bounded(r, ROWS_PER_STEP // len(waiting)) for r in waiting]
            self.behind = self.behind or ranges != waiting
            arrived = self._truth.arrived(ranges)
            for model in sorted({a.model for a in arrived}):
                rows = [a for a in arrived if a.model == model]
                unit = gcd(*_sizes(specs[model])) if model in specs else HOUR_MS
                found = self._truth.join(ranges, rows, unit_ms=unit)
                touched.setdefault(model, set()).update(found.starts)
                joined += sum(a.n for a in rows)
                _count(topic, rows, found)
            if topic == "labels":
                self._note(arrived)
            else:
                self._counts.forget(arrived)
            for done in ranges:
                self._state.cursor[_key(topic, done.partition)] = done.stop
        return touched, joined

    def _new(self, topic: Topic, stored: Offsets) -> Iterator[Range]:
        for (name, partition), stop in sorted(stored.items()):
            start = self._state.cursor.get(_key(name, partition), 0)
            if name != topic or start == stop:
                continue
            if start > stop:
                start = 0  # the topic was created anew: everything in it is new
            if start < stop:
                yield Range(topic, partition, start, stop)

    def _note(self, arrived: Iterable[Arrived]) -> None:
        for a in arrived:
            marks = self._state.marks.setdefault(a.model, {})
            marks[str(a.partition)] = max(a.last_ms, marks.get(str(a.partition), a.last_ms))

    def _end_round(self) -> None:
        """If all that the round began with is joined, what it saw counts."""
        ended, cursor = self._round, self._state.cursor
        if ended is None or any(
            cursor.get(_key(topic, partition), 0) < end
            for (topic, partition), end in ended.ends.items()
        ):
            return
        self._closed_ms, self._round = ended.closed_ms, None
        for model, marks in self._state.marks.items():
            mark = min(marks.values())
            self._state.watermarks[model] = max(mark, self._state.watermarks.get(model, mark))
        self._state.marks = {}

    def _final_ms(self, model: str, spec: ModelSpec) -> int | None:
        """Every window of the model that ends by then is final; never goes back, and goes at most ``CATCH_UP_MS`` ahead."""
        known = self._state.final_ms.get(model)
        watermark = self._state.watermarks.get(model)
        if watermark is None or model not in self._closed_ms:
            return known
        due = min(watermark - spec.labels.expected_delay, self._closed_ms[model])
        if known is None:
            known = self._truth.first_prediction_ms(model)
            if known is None:
                return None
        return max(known, min(due, known + CATCH_UP_MS))

    def _windows(
        self, spec: ModelSpec, touched: Iterable[int], final_ms: int | None
    ) -> Iterator[list[Performance]]:
        """Messages for the touched windows and for those that became final, each size in the order of start."""
        was_ms = self._state.final_ms.get(spec.model)
        for size in _sizes(spec):
            starts = {at // size * size for at in touched}
            if size not in spec.windows.sizes:  # the pane: detectors want it once, when it is final
                starts = {s for s in starts if final_ms is not None and s + size <= final_ms}
            if final_ms is not None:
                starts |= self._became_final(spec.model, size, was_ms, final_ms)
            for run in _runs(sorted(starts), size):
                yield from self._measured(spec, size, run, final_ms)

    def _became_final(self, model: str, size: int, was_ms: int | None, final_ms: int) -> set[int]:
        """Starts of windows with predictions whose end is in ``(was_ms, final_ms]``."""
        if was_ms is not None and was_ms // size == final_ms // size:
            return set()
        from_ms = 0 if was_ms is None else was_ms // size * size
        to_ms = final_ms // size * size
        if to_ms <= from_ms:
            return set()
        return {start for _, _, start in self._truth.predictions(model, size, from_ms, to_ms)}

    def _measured(
        self, spec: ModelSpec, size: int, starts: Sequence[int], final_ms: int | None
    ) -> Iterator[list[Performance]]:
        """Messages for windows without long gaps between them, some windows at a time."""
        counts = self._counts.of(spec.model, size, starts)
        for pull in _pulls(starts, counts):
            wanted = set(pull)
            places = {place: n for place, n in counts.items() if place[2] in wanted}
            outcomes = self._truth.outcomes(spec.model, pull[0], pull[-1] + size)
            messages = measure(spec, size, places, outcomes, final_ms=final_ms)
            yield [message for message in messages if message.final or message.labelled]


def _count(topic: Topic, arrived: Iterable[Arrived], found: Joined) -> None:
    """What became of labels: see ``monitor.truth``."""
    if topic == "scored":
        metrics.LABELS.labels("found_later").inc(max(0, found.first))
        return
    fates = {
        "joined": found.first,
        "corrected": found.more,
        "duplicate": found.matched - found.first - found.more,
        "unmatched": sum(a.n for a in arrived) - found.matched,
    }
    for fate, n in fates.items():
        metrics.LABELS.labels(fate).inc(max(0, n))  # an id may be of two predictions


def _runs(starts: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut ascending window starts where more than ``GAP`` windows lie between two."""
    first = 0
    for i in range(1, len(starts) + 1):
        if i == len(starts) or starts[i] - starts[i - 1] > GAP * size:
            yield starts[first:i]
            first = i


def _pulls(starts: Sequence[int], counts: Mapping[Place, int]) -> Iterator[Sequence[int]]:
    """Cut ascending window starts so that each part has at most ``ROWS_PER_PULL`` predictions, or is one window."""
    totals: dict[int, int] = {}
    for (_, segment, start), n in counts.items():
        if segment == "":
            totals[start] = totals.get(start, 0) + n
    part: list[int] = []
    rows = 0
    for start in starts:
        n = totals.get(start, 0)
        if part and rows + n > ROWS_PER_PULL:
            yield part
            part, rows = [], 0
        part.append(start)
        rows += n
    if part:
        yield part


def _sizes(spec: ModelSpec) -> tuple[int, ...]:
    """Window sizes that are measured, smallest first: the declared ones, and the pane if it is an hour or longer.

    Detectors of error series want a long series of small windows; below an hour most panes would hold too few labels.
    """
    pane = (spec.windows.pane,) if spec.windows.pane >= HOUR_MS else ()
    return tuple(sorted({*spec.windows.sizes, *pane}))


def _key(topic: Topic, partition: int) -> str:
    return f"{topic}/{partition}"


class Broker:
    """The evaluator's side of Kafka: where topics end, what the sink has stored, and messages out."""

    def __init__(self, settings: Settings) -> None:
        kafka, self._topics = wiring.kafka(settings), wiring.topics(settings)
        # It only asks for offsets. Ends are asked for uncommitted: the embedded broker answers 0 while a transaction is
        # open, and on Kafka that end is merely further away, which is safe.
        config = consumer_config(kafka, sink_group(self._topics), logger)
        self._consumer = Consumer({**config, "isolation.level": "read_uncommitted"})
        self._producer = Producer(producer_config(kafka, logger))
        self._widths = wiring.widths(settings)
        self._bootstrap = kafka.bootstrap

    def progress(self) -> Progress:
        """Ends first, then what is stored: so what is stored may be past an end, never short of what it was.

        Raises:
            TransientError: the broker did not answer.
        """
        names = {topic: self._topics.name(topic) for topic in TOPICS}
        try:
            places = [
                TopicPartition(name, partition)
                for name in names.values()
                for partition in self._partitions(name)
            ]
            ends = {
                (p.topic, p.partition): self._consumer.get_watermark_offsets(p, timeout=_TIMEOUT_S)
                for p in places
            }
            stored = self._consumer.committed(places, timeout=_TIMEOUT_S)
            cluster = self._consumer.list_topics(names["labels"], timeout=_TIMEOUT_S).cluster_id
        except KafkaException as err:
            raise TransientError(f"the broker at {self._bootstrap} did not answer") from err
        suffixes = {name: topic for topic, name in names.items()}
        return Progress(
            cluster=cluster or "",
            ends={(suffixes[name], p): end for (name, p), (_, end) in ends.items()},
            stored={(suffixes[p.topic], p.partition): max(p.offset, 0) for p in stored},
            names=names,
        )

    def emit(self, messages: Sequence[Performance]) -> None:
        """Produce messages and wait until the broker has them.

        Raises:
            TransientError: it did not take all of them.
        """
        topic, width = self._topics.performance, self._widths.state
        records = (
            {
                "topic": topic,
                "key": message.model,
                "value": wire.encode(message),
                "partition": partition_of(message.model, width),
            }
            for message in messages
        )
        clients.write(self._producer, self._bootstrap, "performance", records)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()

    def _partitions(self, name: str) -> list[int]:
        found = self._consumer.list_topics(name, timeout=_TIMEOUT_S).topics[name]
        if found.error is not None:
            raise TransientError(f"topic {name} is not there: run `driftline topics create`")
        return sorted(found.partitions)


def rest_s(took_s: float, interval_s: float, *, behind: bool) -> float:
    """How long to wait after a step.

    A step reads whole windows, whether one of their labels is new or thousands are. So labels gather for three times as long as it took, and cost
    a fraction of what they would in steps without a rest. Who is behind does not rest.
    """
    return 0.0 if behind else max(interval_s - took_s, min(3 * took_s, MAX_REST_S))


def run(settings: Settings, stop: threading.Event) -> None:
    """Evaluate until ``stop`` is set.

    Raises:
        TransientError: broker or database are away: start again later, nothing is lost.
        ConfigError: the settings will never work.
    """
    kafka = wiring.require_broker(settings)
    link = store.connect(settings.clickhouse).link
    registry = Registry(kafka, wiring.topics(settings))
    broker = Broker(settings)
    try:
        registry.start(stop)
        evaluator = Evaluator(
            Truth(link, versions=settings.limits.versions),
            registry.specs,
            broker.progress,
            broker.emit,
        )
        with Watch("evaluator", lambda _: "a step does not end", limit_s=_STEP_S) as watch:
            while not stop.is_set():
                began = time.monotonic()
                evaluator.step()
                took_s = time.monotonic() - began
                metrics.finished("evaluator", took_s)
                until = (
                    began
                    + took_s
                    + rest_s(took_s, settings.evaluator.interval_s, behind=evaluator.behind)
                )
                while not stop.is_set():
                    watch.waits()
                    left_s = until - time.monotonic()
                    if left_s <= 0:
                        break
                    stop.wait(min(left_s, _TIMEOUT_S))
    finally:
        registry.stop()
        broker.close()
        link.close()
