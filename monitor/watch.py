"""The means of a series, watched from pane to pane: against the reference, and against their own past.

Two questions, two detectors. *Has the mean left the reference?* (``monitor.sequential``) keeps its promise however often it looks, and finds small shifts
that no single window shows. *Has the mean changed since its window began?* (``monitor.adwin``) also speaks where everything has long drifted from
the reference, as in another season, and says when the change began.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from monitor.adwin import Adwin, AdwinConfig, Changes
from monitor.binning import Floats, NumericBins, digest
from monitor.budget import Levels
from monitor.errors import IncompatibleError
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.sequential import EDetector, EDetectorConfig, Shifts, mean_tolerance
from monitor.verdicts import kind_of, shown_e
from monitor.wire import Verdict

# Events: the mean of fewer says nothing, and their weight is lost with little harm.
MIN_PANE: Final = 5


class _State(msgspec.Struct, array_like=True):
    settings: str
    shift: bytes
    change: bytes


class MeanWatch:
    """Watches all numeric fields of one series. Mutable: it owns the detectors' states.

    Args:
        reference: where center, variance, dependence and size of each field come from.
        segment: the series' segment; the reference has it.
        levels: what the alarm budget leaves.
    """

    def __init__(self, reference: Reference, segment: str, levels: Levels) -> None:
        layout = reference.layout
        self._numeric = layout.numeric
        self._fields = [layout.fields[i] for i in np.flatnonzero(self._numeric)]
        n, mean, m2 = reference.profiles[segment].all_scaled_moments()[:, self._numeric]
        effect = self._design_effect(reference, segment)
        k = len(self._fields)
        self._shift = EDetector(
            k,
            EDetectorConfig(average_run_length=levels.run_length),
            center=mean,
            variance=m2 / np.maximum(n, 1.0),
            design_effect=effect,
            tolerance=mean_tolerance(n, effect),
        )
        config = AdwinConfig(delta=levels.change / max(1, k))
        self._change = Adwin(k, config, design_effect=effect)
        newborn = self._shift.snapshot() + self._change.snapshot()
        self._settings = digest(newborn.hex())

    def pane(self, start_ms: int, end_ms: int, profile: Profile) -> list[Verdict]:
        """Take in a closed pane; the alarms that it raised."""
        if not self._fields:
            return []
        moments = profile.all_scaled_moments()[:, self._numeric]
        n, mean, m2 = np.where(moments[0] >= MIN_PANE, moments, 0.0)
        shifts = self._shift.update(start_ms, n, mean, m2)
        changes = self._change.update(start_ms, n, mean, m2)
        shifted = [self._alarm("mean_shift", int(i), shifts, end_ms) for i in _fired(shifts)]
        return shifted + [self._alarm("adwin", int(i), changes, end_ms) for i in _fired(changes)]

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``."""
        shift, change = self._shift.snapshot(), self._change.snapshot()
        return msgspec.msgpack.encode(_State(self._settings, shift, change))

    def restore(self, state: bytes) -> None:
        """Go on from a ``snapshot``; of another release, or under another budget or reference, it starts anew instead."""
        try:
            saved = msgspec.msgpack.decode(state, type=_State)
            shift, change = EDetector.restore(saved.shift), Adwin.restore(saved.change)
        except (msgspec.MsgspecError, IncompatibleError):
            return
        if saved.settings == self._settings:
            self._shift, self._change = shift, change

    def _design_effect(self, reference: Reference, segment: str) -> Floats:
        """The largest of any window size: what the detectors' sums must be wider than."""
        found = [null.mean_deff for null in reference.nulls.get(segment, {}).values()]
        effects = np.max(found, axis=0) if found else np.ones(len(reference.layout.fields))
        return np.asarray(effects[reference.layout.numeric])

    def _alarm(self, statistic: str, i: int, found: Shifts | Changes, end_ms: int) -> Verdict:
        name, bins = self._fields[i].name, self._fields[i].bins
        unit, zero = (bins.scale, bins.center) if isinstance(bins, NumericBins) else (1.0, 0.0)
        evidence: dict[str, float | int | str] = {
            "found_ms": end_ms,
            "reference_mean": float(found.before[i]) * unit + zero,
        }
        if isinstance(found, Shifts):
            evidence["e_value"] = shown_e(float(found.log_e[i]))
        return Verdict(
            kind=kind_of(name),
            feature=name,
            statistic=statistic,
            status="breach",
            value=float(found.after[i]) * unit + zero,
            limit=None,
            p_value=None,
            n=int(found.n_after[i]),
            onset_ms=int(found.onset[i]),
            evidence=evidence,
        )


def _fired(found: Shifts | Changes) -> list[int]:
    return np.flatnonzero(found.fired).tolist()
