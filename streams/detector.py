"""The detector process: the stages ``merge``, ``performance`` and ``incidents`` in one Faust worker."""

from __future__ import annotations

from threading import Event

from typing_extensions import override

from monitor import metrics
from monitor.settings import Settings
from streams import wiring
from streams.incidents import IncidentStage
from streams.merge import MergeStage
from streams.performance import PerformanceStage
from streams.registry import Registry
from streams.runner import Binding, Observer
from streams.topology import WorkerSettings
from streams.topology import run as run_worker


class _Progress(Observer):
    """Metrics of the worker."""

    @override
    def applied(self, stage: str, messages: int, outputs: int, writes: int) -> None:
        metrics.BATCHES.labels("detector").inc()
        metrics.turned("detector")


def run(settings: Settings, stop: Event) -> None:
    """Detect until ``stop`` is set.

    Raises:
        TransientError: the broker does not answer, or a topic is not there.
    """
    kafka = wiring.require_broker(settings)
    topics, partitions = wiring.topics(settings), settings.kafka.detector_partitions
    registry = Registry(kafka, topics)
    registry.start(stop)
    bindings = [
        Binding(
            "merge",
            (topics.profiles,),
            topics.changelog("merge"),
            MergeStage(topics, partitions, registry, sources=settings.kafka.predictions_partitions),
        ),
        Binding(
            "performance",
            (topics.performance,),
            topics.changelog("performance"),
            PerformanceStage(topics, partitions, registry),
        ),
        Binding(
            "incidents",
            (topics.verdicts, topics.commands),
            topics.changelog("incidents"),
            IncidentStage(topics, registry),
        ),
    ]
    worker = WorkerSettings(
        kafka=kafka,
        group=f"{topics.prefix}detector",
        instance=settings.detector.instance,
        stall_s=settings.detector.stalled_after_s,
    )
    try:
        run_worker(bindings, worker, stop, _Progress())
    finally:
        registry.stop()
