"""The detector process: the stages ``merge``, ``performance`` and ``incidents`` in one worker."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Event
from typing import Final

from typing_extensions import override

from monitor import metrics
from monitor.settings import Settings
from streams import wiring
from streams.incidents import IncidentStage
from streams.merge import Bounds, MergeStage
from streams.performance import PerformanceStage
from streams.registry import Registry
from streams.stage import Noted
from streams.worker import Binding, Observer, WorkerSettings

_RUNNERS: Final = {"faust": "streams.topology", "transactional": "streams.transactional"}
# A transaction takes about 25 ms, whatever it holds; the Faust worker's acknowledgements come sooner.
_BATCH_MESSAGES: Final = {"faust": 128, "transactional": 1_000}


class _Progress(Observer):
    """Metrics of the worker, and of what its stages count. Mutable: it empties their counters."""

    def __init__(
        self, overflows: Sequence[Counter[Noted]], open_panes: Callable[[], tuple[int, int]]
    ) -> None:
        self._overflows, self._open_panes = overflows, open_panes

    @override
    def batch(self, seconds: float) -> None:
        metrics.BATCH_SECONDS.labels("detector").observe(seconds)

    @override
    def applied(self, stage: str, messages: int, outputs: int, writes: int) -> None:
        metrics.BATCHES.labels("detector").inc()
        metrics.turned("detector")
        panes, size = self._open_panes()
        metrics.OPEN_PANES.set(panes)
        metrics.OPEN_PANE_BYTES.set(size)
        for overflow in self._overflows:
            for reason in metrics.STAGE_REASONS:
                metrics.DEAD_LETTERS.labels("detector", reason).inc(overflow.pop(reason, 0))
            for kind in metrics.OVERFLOWS:
                metrics.OVERFLOW.labels(kind).inc(overflow.pop(kind, 0))


def run(settings: Settings, stop: Event) -> None:
    """Detect until ``stop`` is set.

    Raises:
        TransientError: the broker does not answer, or a topic is not there.
    """
    kafka = wiring.require_broker(settings)
    topics, partitions = wiring.topics(settings), settings.kafka.detector_partitions
    registry = Registry(kafka, topics)
    registry.start(stop)
    limits = settings.limits
    merge = MergeStage(
        topics,
        partitions,
        registry,
        sources=settings.kafka.predictions_partitions,
        bounds=Bounds(limits.versions, limits.models, limits.open_panes_bytes),
    )
    performance = PerformanceStage(topics, partitions, registry, versions=limits.versions)
    incidents = IncidentStage(topics, registry)
    bindings = [
        Binding("merge", (topics.profiles,), topics.changelog("merge"), merge),
        Binding("performance", (topics.performance,), topics.changelog("performance"), performance),
        Binding(
            "incidents",
            (topics.verdicts, topics.commands),
            topics.changelog("incidents"),
            incidents,
        ),
    ]
    progress = _Progress(
        [merge.overflow, performance.overflow, incidents.overflow], merge.open_panes
    )
    worker = WorkerSettings(
        kafka=kafka,
        group=f"{topics.prefix}detector",
        instance=settings.detector.instance,
        stall_s=settings.detector.stalled_after_s,
        batch_messages=_BATCH_MESSAGES[settings.detector.runner],
    )
    try:
        # Imported only now: Faust alone takes half a second.
        runner = importlib.import_module(_RUNNERS[settings.detector.runner])
        runner.run(bindings, worker, stop, progress)
    finally:
        registry.stop()
