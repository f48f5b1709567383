"""The ``performance`` stage: how labelled windows did, against the reference and against their own past.

Only final windows are judged, each once and in order: the first labels of a window are the quick ones, and quick is not typical. What is remembered of a
series of windows is one value with the offset of the last message in it. A message writes one value, and messages come in order, so one at or below the
highest of these offsets (the *fence*) is known. What is no performance window goes to the dead letters.

A version that serves beside older ones is compared with the oldest of them in the windows that both have, of the smallest size
(``monitor.canary``): each window's message says what the other versions had there. It stays with that one until it was withdrawn: a window
without labels of it is no reason to begin anew with another.

A bounded number of versions is followed. Measures of two versions do not add up, so there is no ``__other__`` here: windows of further versions are stored
and shown, but not judged. A new version takes the place of the one that was silent for longest, if that is a day or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import msgspec
from typing_extensions import override

from monitor import wire
from monitor.budget import Levels
from monitor.canary import Canary, Rates
from monitor.detectors import ErrorStream, ErrorStreamConfig
from monitor.errors import IncompatibleError
from monitor.panes import MAX_VERSIONS
from monitor.reference import Reference
from monitor.rules import Place, apply
from monitor.spec import ModelSpec
from monitor.verdicts import compared, judge_performance, measures
from monitor.versions import Places, baseline, silence_ms
from streams.registry import Lookup
from streams.stage import Noted, Output, Stage, Step, dead_letter, read
from streams.topics import Topics, partition_of

T = TypeVar("T")
_SERIES: Final = b"errors/"
_NEVER: Final = -1
_BEFORE: Final = -(2**62)
SeriesKey = tuple[str, str, str, int]  # model, version, segment, window size


class _Stored(msgspec.Struct, array_like=True):
    key: SeriesKey
    offset: int
    start_ms: int
    detector: bytes
    first_ms: int = _BEFORE  # not known to the release before: older than all
    baseline: str = ""
    canary: bytes = b""
    beside_ms: int | None = None  # not known to the release before, either


@dataclass(frozen=True, slots=True)
class _Series:
    """Frozen, but for the detector and the comparison, which remember.

    ``first_ms``: start of its first window, ``baseline``: whom it is compared with,
    ``beside_ms``: start of the last window that both had.
    """

    offset: int
    start_ms: int
    detector: ErrorStream | None  # None: of another release, and so to start anew
    first_ms: int
    baseline: str = ""
    canary: Canary | None = None
    beside_ms: int = _BEFORE


class PerformanceStage(Stage):
    """Verdicts on performance, of the models whose partitions this worker holds.

    Args:
        topics: where verdicts go.
        partitions: partitions of the detector's topics.
        lookup: the models and their references.
        versions: of a model, that are followed.

    Attributes:
        overflow: windows of versions beyond that, and dead letters, since this process began: for its metrics.
    """

    def __init__(
        self, topics: Topics, partitions: int, lookup: Lookup, *, versions: int = MAX_VERSIONS
    ) -> None:
        self._topics, self._partitions, self._lookup = topics, partitions, lookup
        self._versions = versions
        self.overflow: Counter[Noted] = Counter()
        self._held: dict[int, dict[SeriesKey, _Series]] = {}
        self._fences: dict[int, int] = {}

    @override
    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        held = self._held[partition] = {}
        for key, value in table:
            if key.startswith(_SERIES):
                stored = msgspec.msgpack.decode(wire.unpack(value), type=_Stored)
                held[stored.key] = _Series(
                    stored.offset,
                    stored.start_ms,
                    _restored(ErrorStream.restore, stored.detector),
                    stored.first_ms,
                    stored.baseline,
                    _restored(Canary.restore, stored.canary),
                    stored.start_ms if stored.beside_ms is None else stored.beside_ms,
                )
        self._fences[partition] = max((series.offset for series in held.values()), default=_NEVER)

    @override
    def forget(self, partition: int) -> None:
        self._held.pop(partition, None)
        self._fences.pop(partition, None)

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        if offset <= self._fences.get(partition, _NEVER):
            return
        window = read(value)
        if not isinstance(window, wire.Performance):
            self.overflow["incompatible"] += 1
            yield dead_letter(self._topics.dlq, "performance", topic, partition, offset, value)
            return
        model = self._lookup.newest(window.model)
        if not window.final or model is None or model.reference is None:
            return
        if window.size_ms not in model.spec.windows.sizes:
            return  # from before the spec changed
        held = self._held.setdefault(partition, {})
        key = (window.model, window.version, window.segment, window.size_ms)
        given_up = self._make_place(held, key, window.start_ms, model.spec)
        if given_up is None:
            self.overflow["versions"] += window.predictions
            return
        series = held.get(key, _Series(offset, _BEFORE, None, window.start_ms))
        verdicts, detector = _judged(window, model.spec, model.reference, series)
        found, series = _compared(window, model.spec, held, series)
        verdicts += found
        if model.spec.rules:
            place = Place(window.version, window.segment, window.size_ms)
            measured = measures(window, model.reference)
            verdicts = apply(model.spec.rules, place, verdicts, measured)
        start_ms = max(window.start_ms, series.start_ms)
        for old in given_up:
            del held[old]
        held[key] = replace(series, offset=offset, start_ms=start_ms, detector=detector)
        self._fences[partition] = offset
        stored = _Stored(
            key,
            offset,
            start_ms,
            detector.snapshot(),
            series.first_ms,
            series.baseline,
            b"" if series.canary is None else series.canary.snapshot(),
            series.beside_ms,
        )
        yield Step(
            outputs=(self._output(window, model.spec, verdicts),) if verdicts else (),
            writes=(
                *((_row(old), None) for old in given_up),
                (_row(key), wire.pack(msgspec.msgpack.encode(stored))),
            ),
        )

    def _make_place(
        self, held: dict[SeriesKey, _Series], key: SeriesKey, start_ms: int, spec: ModelSpec
    ) -> list[SeriesKey] | None:
        """Series to give up so that the version in ``key`` can be followed; ``None``: it cannot be."""
        if key in held:
            return []
        ends: dict[str, int] = {}
        for (model, version, _, size), series in held.items():
            if model == spec.model:
                ends[version] = max(series.start_ms + size, ends.get(version, _BEFORE))
        if key[1] in ends or len(ends) < self._versions:
            return []
        silent = Places.of(self._versions, spec.windows.sizes).yield_ms
        oldest = min(ends, key=lambda version: (ends[version], version))
        if ends[oldest] + silent > start_ms:
            return None
        return [other for other in held if other[:2] == (spec.model, oldest)]

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


def _row(key: SeriesKey) -> bytes:
    return _SERIES + msgspec.json.encode(key)


def _judged(
    window: wire.Performance, spec: ModelSpec, reference: Reference, series: _Series
) -> tuple[list[wire.Verdict], ErrorStream]:
    """Verdicts on a window, and the detector that has seen it."""
    levels = Levels.of(spec, reference.profiles, window.segment)
    level = levels.performance[window.size_ms]
    verdicts = judge_performance(window, reference, alpha=level)
    config = _config(reference, level)
    detector = series.detector
    if detector is None or detector.config != config:  # the budget or the reference changed
        detector = ErrorStream(config)
    # A corrected window is judged anew, but the detector saw it already.
    if window.start_ms > series.start_ms:
        verdicts += _watch(detector, window)
    return verdicts, detector


def _compared(
    window: wire.Performance,
    spec: ModelSpec,
    held: Mapping[SeriesKey, _Series],
    series: _Series,
) -> tuple[list[wire.Verdict], _Series]:
    """What the comparison with an older version beside this one says, and the series with its state."""
    older = _baseline(window, spec, held, series)
    if older is None:
        return [], series
    canary = series.canary
    wanted = spec.canary.error_rate, spec.canary.margin
    if canary is None or series.baseline != older or (canary.error_rate, canary.margin) != wanted:
        canary = Canary(*wanted)
    if window.start_ms > series.start_ms:
        canary.update(Rates(*window.peers[older], window.labelled, window.errors))
    beside_ms = max(window.start_ms, series.beside_ms)
    series = replace(series, baseline=older, canary=canary, beside_ms=beside_ms)
    return [compared(canary, older)], series


def _baseline(
    window: wire.Performance,
    spec: ModelSpec,
    held: Mapping[SeriesKey, _Series],
    series: _Series,
) -> str | None:
    """The older version in this window that its version is compared with, if there is one."""
    sizes = spec.windows.sizes
    if window.segment or window.size_ms != min(sizes):
        return None
    began_ms = {window.version: series.first_ms}
    for version in window.peers:
        key = (window.model, version, "", window.size_ms)
        # One that is not followed yet has its first message here, behind this one.
        began_ms[version] = held[key].first_ms if key in held else window.start_ms
    silent_ms = window.start_ms - (series.beside_ms + window.size_ms)
    withdrawn = silent_ms >= silence_ms(sizes)
    return baseline(window.version, began_ms, series.baseline, withdrawn=withdrawn)


def _config(reference: Reference, level: float) -> ErrorStreamConfig:
    # A window is a step, whatever few values it has: the level is per window.
    return ErrorStreamConfig(
        direction="rise",
        run_length=1 / level,
        block=1,
        design_effect=reference.accuracy_deff,
    )


def _restored(restore: Callable[[bytes], T], snapshot: bytes) -> T | None:
    """What a snapshot holds; ``None`` if there is none, or of another release."""
    try:
        return restore(snapshot)
    except IncompatibleError:
        return None


def _watch(detector: ErrorStream, window: wire.Performance) -> list[wire.Verdict]:
    """Feed the error rate of a window to the detector; a rise is a concept drift."""
    if window.labelled == 0:
        return []
    rate = window.errors / window.labelled
    if not detector.update_pane(window.labelled, rate, at=window.start_ms):
        return []
    return [
        wire.Verdict(
            kind="concept_drift",
            feature="$prediction",
            statistic="error_stream",
            status="breach",
            value=rate,
            limit=None,
            p_value=None,
            n=window.labelled,
            onset_ms=detector.onset,
        )
    ]
