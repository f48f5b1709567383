"""The judge of one series: closed panes and windows in, verdicts out.

It owns what has to be remembered between panes: the change detector on the means of the numeric fields. Its alarms wait for the next window of
the smallest size, so that verdicts come at one pace.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from monitor import wire
from monitor.adwin import Adwin, AdwinConfig
from monitor.binning import Floats, NumericBins
from monitor.budget import Levels
from monitor.panes import SeriesKey
from monitor.profile import Field, Profile
from monitor.reference import Reference
from monitor.spec import ModelSpec
from monitor.verdicts import judge_pane, judge_window, kind_of

MIN_PANE: Final = (
    5  # events: the mean of fewer says nothing, and their weight is lost with little harm
)


class _State(msgspec.Struct, array_like=True):
    detector: bytes
    alarms: list[wire.Verdict]


class Judge:
    """Verdicts of one series. Mutable: it holds the detector's state. Without a reference it has no opinion."""

    def __init__(self, key: SeriesKey, spec: ModelSpec, reference: Reference | None) -> None:
        self._key, self._spec, self._reference = key, spec, reference
        self._alarms: list[wire.Verdict] = []
        if reference is not None:
            self._levels = Levels.of(spec, reference.profiles, key.segment)
            self._fields = tuple(
                f for f in reference.layout.fields if isinstance(f.bins, NumericBins)
            )
            self._detector = Adwin(
                len(self._fields),
                AdwinConfig(delta=self._levels.change / max(1, len(self._fields))),
                design_effect=self._design_effect(reference),
            )

    @classmethod
    def restore(
        cls, key: SeriesKey, spec: ModelSpec, reference: Reference | None, state: bytes
    ) -> Judge:
        """The judge whose ``snapshot`` is ``state``."""
        judge = cls(key, spec, reference)
        if reference is not None:
            stored = msgspec.msgpack.decode(state, type=_State)
            detector = Adwin.restore(stored.detector)
            if detector.features == len(judge._fields):
                judge._detector = detector
            judge._alarms = stored.alarms
        return judge

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``."""
        if self._reference is None:
            return b"-"
        return msgspec.msgpack.encode(_State(self._detector.snapshot(), self._alarms))

    def pane(self, start_ms: int, size_ms: int, profile: Profile) -> wire.Verdicts | None:
        """Breaches of data quality, if there are any; the means go to the detector."""
        if self._reference is None:
            return None
        if self._key.segment == "" and self._fields:
            self._watch(start_ms, start_ms + size_ms, profile)
        found = judge_pane(
            self._reference, self._key.segment, profile, size_ms=size_ms, levels=self._levels
        )
        return self._verdicts("pane", start_ms, size_ms, profile.n, found) if found else None

    def window(
        self, start_ms: int, size_ms: int, profile: Profile, *, whole: bool = True
    ) -> wire.Verdicts | None:
        """All statistics of a window; clean windows are reported too, so that incidents can end."""
        if self._reference is None:
            return None
        verdicts = judge_window(
            self._reference,
            self._key.segment,
            profile,
            size_ms=size_ms,
            levels=self._levels,
            whole=whole,
        )
        if size_ms == min(self._spec.windows.sizes):
            verdicts += self._alarms
            self._alarms = []
        return self._verdicts("window", start_ms, size_ms, profile.n, verdicts)

    def _watch(self, start_ms: int, end_ms: int, profile: Profile) -> None:
        moments = [_scaled(profile, f) for f in self._fields]
        n, mean, m2 = (np.array(column, dtype=np.float64) for column in zip(*moments, strict=True))
        changes = self._detector.update(start_ms, n, mean, m2)
        for i in np.flatnonzero(changes.fired):
            name, bins = self._fields[i].name, self._fields[i].bins
            unit, zero = (bins.scale, bins.center) if isinstance(bins, NumericBins) else (1.0, 0.0)
            self._alarms.append(
                wire.Verdict(
                    kind=kind_of(name),
                    feature=name,
                    statistic="adwin",
                    status="breach",
                    value=float(changes.after[i]) * unit + zero,
                    limit=None,
                    p_value=None,
                    n=profile.n,
                    onset_ms=int(changes.onset[i]),
                    evidence={
                        "found_ms": end_ms,
                        "reference_mean": float(changes.before[i]) * unit + zero,
                    },
                )
            )

    def _design_effect(self, reference: Reference) -> Floats:
        """The largest design effect of any window size: what the detector's cuts must be wider than."""
        nulls = reference.nulls.get(self._key.segment, {}).values()
        names = [f.name for f in reference.layout.fields]
        worst = np.max([null.mean_deff for null in nulls], axis=0) if nulls else np.ones(len(names))
        return np.array([worst[names.index(f.name)] for f in self._fields], dtype=np.float64)

    def _verdicts(
        self,
        source: wire.VerdictSource,
        start_ms: int,
        size_ms: int,
        n: int,
        verdicts: list[wire.Verdict],
    ) -> wire.Verdicts:
        return wire.Verdicts(
            source=source,
            model=self._key.model,
            version=self._key.version,
            segment=self._key.segment,
            size_ms=size_ms,
            start_ms=start_ms,
            end_ms=start_ms + size_ms,
            n=n,
            revision=0,
            verdicts=verdicts,
        )


def _scaled(profile: Profile, f: Field) -> tuple[float, float, float]:
    """``(n, mean, M2)`` as the detector expects, or nothing of a pane that is too small."""
    n, mean, m2 = profile.scaled_moments(f.name)
    return (float(n), mean, m2) if n >= MIN_PANE else (0.0, 0.0, 0.0)
