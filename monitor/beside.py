"""A version beside an older one, pane by pane: what can be known of it before any label is there.

::

    panes of 7   [ 09:00:00 ][ 09:00:10 ][ 09:00:20 ]         Of each pane that both have, the two profiles are compared, and only with
    panes of 8               [ 09:00:10 ][ 09:00:20 ]         each other: a trend that both follow cancels.

===================  ==========================================================  ==============================================================
question             asked of                                                    answer
===================  ==========================================================  ==============================================================
more_request_errors  the share of requests that end with an error                worse: an **alarm**, roll back
more_slow_requests   the share slower than 95 % of the older version's were      worse: an **alarm**, roll back
inputs_differ        each feature's distribution                                 differs: a breach that is **evidence** and opens no incident
scores_differ        the distributions of the prediction and of the score        differs: **information**, a new version is meant to score
                                                                                 differently
===================  ==========================================================  ==============================================================

**Why so.** A worse share is bad whatever its cause. Inputs that differ have two causes, and no number tells them apart: the split is not random, so
that the other answers compare unlike traffic, or the new version prepares its features otherwise. The first is nobody's page, and a bad case of the second is found
against the reference at once. So the gate does not let such a version go on, an incident of that release shows it, and nobody is woken for it alone.

**Slow.** Latencies have no rate, but every threshold makes one: with the older version's 95th percentile, of the panes *before* this one, the two shares are a
pair of proportions in every pane, whatever the load does to both, and the test for labels applies as it stands (``monitor.canary``). A slower release is worse once
the share is higher by more than the margin: at 2 points on top of 5 the latency is about 9 % higher if it is log-normal with a spread of 0.5, and no two builds
are equally fast to the last percent. Blind to what happens among the slowest 5 % alone.

**Errors.** Worse by more than half a point (``LEAST_RATE``), as for the limit of a window.

**Error rates.** Each of the two alarms is false with a chance of at most ``canary.error_rate`` over all panes, and so is any feature's difference, all features
together (level / features each, a union bound), and any of the outputs'. What was worse stays so until, counted anew, it is "not worse within margin": a service
recovers, as a model does not. From there the promise begins anew.

**Assumption** of all of them: requests are split at random, one by one. See ``monitor.homogeneity`` for what else a split shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
import numpy as np

from monitor.binning import SPECIALS, Floats, Ints, digest
from monitor.calibration import PSI_GROUPS
from monitor.canary import Canary, Rates
from monitor.distances import group_equal_mass
from monitor.errors import IncompatibleError
from monitor.homogeneity import Homogeneity
from monitor.latency import CELLS
from monitor.panes import Closed, ClosedPane, SeriesKey
from monitor.profile import LATENCY, PREDICTION, SCORE, Profile
from monitor.reference import Reference
from monitor.spec import CanarySpec
from monitor.verdicts import INPUTS_DIFFER, LEAST_RATE, compared, shown_e
from monitor.versions import OTHER_VERSION, baseline, silence_ms
from monitor.wire import Verdict, VerdictStatus

LEAST_DISTANCE: Final = 0.05  # of 20 values one: less is found among millions, and changes no score
SLOW: Final = 0.95
MEMORY: Final = 20_000  # latencies: the threshold follows the load of the day
SPARE: Final = 1_000.0  # times the e-value that is enough: kept, so that a difference which was mended is over soon
_BEFORE: Final = -(2**62)


class Peer(NamedTuple):
    """A version in a pane. ``began_ms``: start of the first pane of its series."""

    began_ms: int
    profile: Profile


Peers = Mapping[str, Peer]
"""The versions that have a pane of one start, by name."""
NOBODY: Final[Peers] = MappingProxyType({})


def with_peers(closed: Iterable[Closed]) -> Iterator[tuple[Closed, Peers]]:
    """Each pane of a whole model with all versions that have one of its start and bins; nothing with any other. Panes of one start come together."""
    for _, group in groupby(closed, key=_pane_start):
        together = list(group)
        live: dict[str, dict[str, Peer]] = {}
        for pane in together:
            if isinstance(pane, ClosedPane) and _is_version(pane.key):
                peer = Peer(pane.began_ms, pane.profile)
                live.setdefault(pane.key.bins_id, {})[pane.key.version] = peer
        for one in together:
            yield one, live.get(one.key.bins_id, {}) if _is_version(one.key) else {}


def _pane_start(closed: Closed) -> int | None:
    return closed.start_ms if isinstance(closed, ClosedPane) else None


def _is_version(key: SeriesKey) -> bool:
    return key.segment == "" and key.version != OTHER_VERSION


class _State(msgspec.Struct, array_like=True):
    settings: str
    baseline: str
    beside_ms: int
    errors: tuple[bytes, bytes]
    slow: tuple[bytes, bytes]
    latencies: list[int]
    fields: bytes


class Recovering:
    """A comparison whose "worse" ends once later windows say "not worse". Mutable: it takes windows in.

    They are counted in rounds, each of which ends with an answer; each is wrong at most as often as stated.

    Attributes:
        canary: what is known.
    """

    def __init__(self, error_rate: float, margin: float, least: float) -> None:
        self._settings = error_rate, margin, least
        self.canary, self._since = self._fresh(), self._fresh()

    def update(self, rates: Rates) -> None:
        """Take in a window."""
        was_worse = self.canary.answer == "worse"
        self.canary.update(rates)
        if was_worse:
            answer = self._since.update(rates).answer
            if answer == "not_worse":
                self.canary = self._since
            if answer != "unknown":  # worse once more: what comes is not to be outweighed by it
                self._since = self._fresh()

    def snapshot(self) -> tuple[bytes, bytes]:
        """Everything that is remembered, for ``restore``."""
        return self.canary.snapshot(), self._since.snapshot()

    def restore(self, state: tuple[bytes, bytes]) -> None:
        """Go on from a ``snapshot``.

        Raises:
            IncompatibleError: of another release, or damaged.
        """
        self.canary, self._since = map(Canary.restore, state)

    def _fresh(self) -> Canary:
        error_rate, margin, least = self._settings
        return Canary(error_rate, margin, least=least)


class Beside:
    """The comparison of one version with an older one. Mutable: it takes panes in, in order.

    Args:
        version: the one that is compared.
        spec: error rate and margin.
        sizes_ms: of the model's windows.
        reference: its layout and counts give the groups of bins.
    """

    _baseline: str
    _beside_ms: int  # start of the last pane that both had
    _errors: Recovering
    _slow: Recovering
    _latencies: Ints  # of the older version, lately
    _differences: Homogeneity

    def __init__(
        self, version: str, spec: CanarySpec, sizes_ms: tuple[int, ...], reference: Reference
    ) -> None:
        self._version, self._spec, self._silence_ms = version, spec, silence_ms(sizes_ms)
        layout, usual = reference.layout, reference.profiles[""]
        self._fields = [f for f in layout.fields if f.name != LATENCY]
        starts: list[Ints] = []
        for f in self._fields:
            groups = f.counts.start + group_equal_mass(usual.vector[f.counts], PSI_GROUPS)
            starts.append(np.append(groups, f.specials.start + np.arange(len(SPECIALS))))
        self._first = np.cumsum([0, *map(len, starts)], dtype=np.intp)
        # Where each group begins and ends in a profile's vector, in turn.
        ends = [
            np.append(s[1:], f.specials.stop) for s, f in zip(starts, self._fields, strict=True)
        ]
        self._ranges = (
            np.stack((np.concatenate(starts), np.concatenate(ends)), axis=1).ravel()
            if starts
            else np.zeros(0, dtype=np.intp)
        )
        latency = layout.by_name.get(LATENCY)
        # No other bins are as many: those of a reference without latencies give no threshold.
        self._latency = latency if latency is not None and latency.bins.bins == CELLS else None
        self._is_output = np.array([f.name in (PREDICTION, SCORE) for f in self._fields], bool)
        families = np.where(self._is_output, self._is_output.sum(), (~self._is_output).sum())
        self._enough: Floats = np.log(np.maximum(families, 1) / spec.error_rate)
        wanted = f"{spec.error_rate} {spec.margin} {self._ranges.tobytes().hex()}"
        self._settings = digest(wanted)
        self._begin("", _BEFORE)

    def pane(self, start_ms: int, peers: Peers) -> None:
        """Take in a pane with all versions that have one of this start, its own as well."""
        if len(peers) < 2:
            return
        began_ms = {name: peer.began_ms for name, peer in peers.items()}
        withdrawn = start_ms - self._beside_ms >= self._silence_ms
        older = baseline(self._version, began_ms, self._baseline, withdrawn=withdrawn)
        if older is None:
            return
        if older != self._baseline:
            self._begin(older, start_ms)
        self._beside_ms = start_ms
        mine, other = peers[self._version].profile, peers[older].profile
        self._errors.update(Rates(other.n, other.errors, mine.n, mine.errors))
        self._take_latencies(other, mine)
        if self._fields:
            self._differences.update(other.n, self._grouped(other), mine.n, self._grouped(mine))

    def window(self, start_ms: int) -> list[Verdict]:
        """What is known at the end of a window: nothing, if it had no pane of both versions."""
        if self._beside_ms < start_ms:
            return []
        return [*self._rates(), *self._distributions()]

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``; empty before the first pane of two versions."""
        if not self._baseline:
            return b""
        return msgspec.msgpack.encode(
            _State(
                self._settings,
                self._baseline,
                self._beside_ms,
                self._errors.snapshot(),
                self._slow.snapshot(),
                self._latencies.tolist(),
                self._differences.snapshot(),
            )
        )

    def restore(self, snapshot: bytes) -> None:
        """Go on from a ``snapshot``; of another release, or with other settings or groups, it starts anew instead."""
        try:
            state = msgspec.msgpack.decode(snapshot, type=_State)
            if state.settings != self._settings:
                return
            self._errors.restore(state.errors)
            self._slow.restore(state.slow)
            self._differences.restore(state.fields)
        except (msgspec.MsgspecError, IncompatibleError):
            self._begin("", _BEFORE)
            return
        self._baseline, self._beside_ms = state.baseline, state.beside_ms
        self._latencies = np.array(state.latencies, dtype=np.int64)

    def _begin(self, older: str, at_ms: int) -> None:
        self._baseline, self._beside_ms = older, at_ms
        rate, margin = self._spec.error_rate, self._spec.margin
        self._errors = Recovering(rate, margin, min(LEAST_RATE, margin))
        self._slow = Recovering(rate, margin, margin)
        self._latencies = np.zeros(CELLS if self._latency is not None else 0, dtype=np.int64)
        most = float(self._enough.max(initial=0.0)) + math.log(SPARE)
        self._differences = Homogeneity(self._first[:-1], int(self._first[-1]), most=most)

    def _take_latencies(self, other: Profile, mine: Profile) -> None:
        if self._latency is None:
            return
        old, new = (p.vector[self._latency.counts] for p in (other, mine))
        reached = np.cumsum(self._latencies)
        if reached[-1]:
            beyond = int(np.searchsorted(reached, SLOW * reached[-1])) + 1
            counts = (int(n) for c in (old, new) for n in (c.sum(), c[beyond:].sum()))
            self._slow.update(Rates(*counts))
        self._latencies = self._latencies + old
        while self._latencies.sum() > MEMORY:
            self._latencies //= 2

    def _grouped(self, profile: Profile) -> Ints:
        return np.add.reduceat(np.append(profile.vector, 0), self._ranges)[::2]

    def _rates(self) -> Iterator[Verdict]:
        """Nothing is told of what neither version has had: who sends no errors hears nothing of them."""
        older, errors, slow = self._baseline, self._errors.canary, self._slow.canary
        if errors.saw_errors:
            yield compared(
                errors, older, feature="", statistic="more_request_errors", rows="requests"
            )
        if slow.saw_errors:
            yield compared(
                slow, older, feature=LATENCY, statistic="more_slow_requests", rows="requests"
            )

    def _distributions(self) -> Iterator[Verdict]:
        """Outputs, every input that differs, and where none does the one that is nearest to it."""
        log_e, distance = self._differences.known
        differs = log_e >= self._enough
        inputs = np.flatnonzero(~self._is_output)
        told = self._is_output | (differs & ~self._is_output)
        if len(inputs) and not differs[inputs].any():
            told[inputs[np.argmax(log_e[inputs])]] = True
        for i in np.flatnonzero(told):
            output, far = bool(self._is_output[i]), bool(distance[i] >= LEAST_DISTANCE)
            status: VerdictStatus = "ok" if differs[i] else "no_data"
            yield Verdict(
                kind="canary",
                feature=self._fields[i].name,
                statistic="scores_differ" if output else INPUTS_DIFFER,
                status="breach" if differs[i] and far and not output else status,
                value=float(distance[i]),
                limit=None,
                p_value=None,
                n=self._errors.canary.known.new_n,
                evidence={
                    "answer": "differs" if differs[i] else "not yet known",
                    "compared_with": self._baseline,
                    "e_value": shown_e(float(log_e[i])),
                    **({} if output else {"least": LEAST_DISTANCE}),
                },
            )
