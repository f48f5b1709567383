"""The judge of one series: closed panes and windows in, verdicts out.

It owns what has to be remembered between panes: the watch over the means, and the comparison with an older version beside this one. Both are told with
the next window of the smallest size, so that verdicts come at one pace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from monitor import wire
from monitor.beside import NOBODY, Beside, Peers
from monitor.budget import Levels
from monitor.estimation import estimated
from monitor.panes import SeriesKey
from monitor.profile import Profile
from monitor.reference import Reference
from monitor.rules import Measured, Place, apply
from monitor.spec import ModelSpec
from monitor.verdicts import judge_pane, judge_window, means, requests
from monitor.versions import OTHER_VERSION
from monitor.watch import MeanWatch


class _State(msgspec.Struct, array_like=True):
    watch: bytes
    alarms: list[wire.Verdict]
    beside: bytes = b""


class Judge:
    """Verdicts of one series. Mutable: it holds the detectors' state. Without a reference it has no opinion."""

    def __init__(self, key: SeriesKey, spec: ModelSpec, reference: Reference | None) -> None:
        self._key, self._spec, self._reference = key, spec, reference
        # One alarm a field and statistic until it is told: a shift that stays fires again and again.
        self._alarms: dict[tuple[str, str], wire.Verdict] = {}
        self._watch: MeanWatch | None = None
        self._beside: Beside | None = None
        if reference is not None:
            self._levels = Levels.of(spec, reference.profiles, key.segment)
            if key.segment == "":
                self._watch = MeanWatch(reference, key.segment, self._levels)
                if key.version != OTHER_VERSION:  # which is several
                    sizes = spec.windows.sizes
                    self._beside = Beside(key.version, spec.canary, sizes, reference)

    @classmethod
    def restore(
        cls, key: SeriesKey, spec: ModelSpec, reference: Reference | None, state: bytes
    ) -> Judge:
        """The judge whose ``snapshot`` is ``state``."""
        judge = cls(key, spec, reference)
        if judge._watch is not None:
            stored = msgspec.msgpack.decode(state, type=_State)
            judge._watch.restore(stored.watch)
            judge._alarms = {(v.feature, v.statistic): v for v in stored.alarms}
            if judge._beside is not None:
                judge._beside.restore(stored.beside)
        return judge

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``."""
        if self._watch is None:
            return b"-"
        beside = b"" if self._beside is None else self._beside.snapshot()
        alarms = [*self._alarms.values()]
        return msgspec.msgpack.encode(_State(self._watch.snapshot(), alarms, beside))

    def pane(
        self, start_ms: int, size_ms: int, profile: Profile, peers: Peers = NOBODY
    ) -> wire.Verdicts | None:
        """Breaches of data quality, if there are any; the means go to the watch.

        ``peers``: all versions that have a pane of this start, this one as well.
        """
        if self._reference is None:
            return None
        if self._watch is not None:
            for alarm in self._watch.pane(start_ms, start_ms + size_ms, profile):
                self._alarms.setdefault((alarm.feature, alarm.statistic), alarm)
        if self._beside is not None:
            self._beside.pane(start_ms, peers)
        found = judge_pane(
            self._reference, self._key.segment, profile, size_ms=size_ms, levels=self._levels
        )
        found = [v for v in self._under_rules(size_ms, found) if v.status == "breach"]
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
        if self._key.segment == "" and self._reference.meaning is not None:
            verdicts += estimated(self._reference.meaning, profile)
        if size_ms == min(self._spec.windows.sizes):
            verdicts += self._alarms.values()
            self._alarms = {}
            if self._beside is not None:
                verdicts += self._beside.window(start_ms)
        measured = self._measured(self._reference, profile, size_ms, whole)
        verdicts = self._under_rules(size_ms, verdicts, measured)
        return self._verdicts("window", start_ms, size_ms, profile.n, verdicts)

    def _measured(
        self, reference: Reference, profile: Profile, size_ms: int, whole: bool
    ) -> Iterator[Measured]:
        """What only a rule asks for; nothing of it is worked out where there are no rules."""
        if whole:
            yield from means(reference, self._key.segment, profile)
        yield from requests(reference, self._key.segment, profile, size_ms=size_ms, whole=whole)

    def _under_rules(
        self, size_ms: int, verdicts: list[wire.Verdict], measured: Iterable[Measured] = ()
    ) -> list[wire.Verdict]:
        place = Place(self._key.version, self._key.segment, size_ms)
        return apply(self._spec.rules, place, verdicts, measured) if self._spec.rules else verdicts

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
