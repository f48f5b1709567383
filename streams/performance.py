"""The ``performance`` stage: how labelled windows did, against the reference and against their own past.

Only final windows are judged, each once and in order: the first labels of a window are the quick ones, and quick is not typical. What is remembered of a
series of windows is one value with its *fence*, the offset of the last message in it: a message at or below it is known. What is no performance window
goes to the dead letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from typing_extensions import override

from monitor import wire
from monitor.adwin import Adwin, AdwinConfig
from monitor.budget import Levels
from monitor.detectors import ErrorStream
from monitor.reference import Reference
from monitor.spec import ModelSpec
from monitor.verdicts import judge_performance
from streams.registry import Lookup
from streams.stage import Output, Stage, Step, dead_letter, read
from streams.topics import Topics, partition_of

_SERIES: Final = b"errors/"
SeriesKey = tuple[str, str, str, int]  # model, version, segment, window size


class _Stored(msgspec.Struct, array_like=True):
    key: SeriesKey
    offset: int
    start_ms: int
    detector: bytes


@dataclass(slots=True)
class _Series:
    """Mutable: the detector remembers."""

    offset: int
    start_ms: int
    detector: ErrorStream


class PerformanceStage(Stage):
    """Verdicts on performance, of the models whose partitions this worker holds."""

    def __init__(self, topics: Topics, partitions: int, lookup: Lookup) -> None:
        self._topics, self._partitions, self._lookup = topics, partitions, lookup
        self._held: dict[int, dict[SeriesKey, _Series]] = {}

    @override
    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        held = self._held[partition] = {}
        for key, value in table:
            if key.startswith(_SERIES):
                stored = msgspec.msgpack.decode(wire.unpack(value), type=_Stored)
                held[stored.key] = _Series(
                    stored.offset, stored.start_ms, ErrorStream.restore(stored.detector)
                )

    @override
    def forget(self, partition: int) -> None:
        self._held.pop(partition, None)

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        window = read(value)
        if not isinstance(window, wire.Performance):
            yield dead_letter(self._topics.dlq, "performance", topic, partition, offset, value)
            return
        model = self._lookup.newest(window.model)
        if not window.final or model is None or model.reference is None:
            return
        if window.size_ms not in model.spec.windows.sizes:
            return  # from before the spec changed
        held = self._held.setdefault(partition, {})
        key = (window.model, window.version, window.segment, window.size_ms)
        series = held.get(key)
        if series is not None and offset <= series.offset:
            return
        levels = Levels.of(model.spec, model.reference.profiles, window.segment)
        level = levels.performance[window.size_ms]
        verdicts = judge_performance(window, model.reference, alpha=level)
        if series is None:
            series = _Series(offset, _BEFORE, _detector(model.reference, level))
        if (
            window.start_ms > series.start_ms
        ):  # a corrected window is judged anew, but the detector saw it already
            verdicts += _watch(series, window)
            series.start_ms = window.start_ms
        series.offset, held[key] = offset, series
        stored = _Stored(key, offset, series.start_ms, series.detector.snapshot())
        yield Step(
            outputs=(self._output(window, model.spec, verdicts),) if verdicts else (),
            writes=(
                (_SERIES + msgspec.json.encode(key), wire.pack(msgspec.msgpack.encode(stored))),
            ),
        )

    def _output(
        self, window: wire.Performance, spec: ModelSpec, verdicts: list[wire.Verdict]
    ) -> Output:
        message = wire.Verdicts(
            source="performance",
            model=spec.model,
            version=window.version,
            segment=window.segment,
            size_ms=window.size_ms,
            start_ms=window.start_ms,
            end_ms=window.start_ms + window.size_ms,
            n=window.labelled,
            revision=window.revision,
            verdicts=verdicts,
        )
        partition = partition_of(spec.model, self._partitions)
        return Output(self._topics.verdicts, partition, spec.model.encode(), wire.encode(message))


def _detector(reference: Reference, level: float) -> ErrorStream:
    config = AdwinConfig(delta=level, direction="rise")
    return ErrorStream(Adwin(1, config, design_effect=reference.accuracy_deff))


def _watch(series: _Series, window: wire.Performance) -> list[wire.Verdict]:
    """Feed the error rate of a window to the detector; a rise is a concept drift."""
    if window.labelled == 0:
        return []
    rate = window.errors / window.labelled
    if not series.detector.update_pane(
        window.labelled, rate, window.labelled * rate * (1.0 - rate), at=window.start_ms
    ):
        return []
    return [
        wire.Verdict(
            kind="concept_drift",
            feature="$prediction",
            statistic="adwin",
            status="breach",
            value=rate,
            limit=None,
            p_value=None,
            n=window.labelled,
            onset_ms=series.detector.onset,
        )
    ]


_BEFORE: Final = -(2**62)
