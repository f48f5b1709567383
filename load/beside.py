"""Pairs of made-up versions for ``load.canaries``: what requests alone say of a new version beside an old one.

Panes of 200 requests of each version, of 20 features, a score and a latency. The share of requests that fail, the latency and all features swing through a season of
50 panes together, by 40 %, by 20 % and by half of each bin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from scipy import stats

from monitor.beside import Beside, Peer
from monitor.binning import Ints, cut_numeric
from monitor.latency import EDGES_MS, cut_latency
from monitor.profile import LATENCY, SCORE, Layout, Profile
from monitor.reference import Reference
from monitor.spec import CanarySpec

PER_PANE: Final = 200
PANES: Final = 200  # 40,000 requests of each version
FEATURES: Final = 20
_HOURS: Final = np.arange(5, 24, dtype=np.float64)  # each feature has these values
_FAILING: Final = 0.02
_MEDIAN_MS: Final = 20.0
_SPREAD: Final = 0.5  # of the latency's logarithm
_SEASON: Final = np.sin(np.arange(PANES) * 2 * np.pi / 50)
_PANE_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Release:
    """What a version does.

    Attributes:
        failing: share of its requests, beside the 2 % that fail anyway.
        times: its latency, in those of the other.
        lost: share of the first feature's values that do not arrive.
        raw: it reads the first feature as HHMM: every value is beyond the largest known.
    """

    failing: float = 0.0
    times: float = 1.0
    lost: float = 0.0
    raw: bool = False


def watch(old: Release, new: Release, spec: CanarySpec, rng: np.random.Generator, *, until: str = "") -> dict[str, int]:  # fmt: skip
    """Requests of the new version after which each statistic was first told as worse or different: to the last pane, or to the first that tells ``until``."""
    beside = Beside("8", spec, (_PANE_MS,), _reference())
    after: dict[str, int] = {}
    panes = zip(_panes(old, rng), _panes(new, rng), strict=True)
    for i, (theirs, mine) in enumerate(panes):
        beside.pane(i * _PANE_MS, {"7": Peer(0, theirs), "8": Peer(1, mine)})
        for verdict in beside.window(i * _PANE_MS):
            if verdict.status == "breach" or verdict.evidence["answer"] == "differs":
                after.setdefault(verdict.statistic, (i + 1) * PER_PANE)
        if until in after:
            break
    return after


def _panes(of: Release, rng: np.random.Generator) -> Iterator[Profile]:
    """All panes of a version, drawn field by field and not request by request."""
    layout = _reference().layout
    vectors = np.zeros((PANES, layout.size), dtype=np.int64)
    vectors[:, 0] = PER_PANE
    vectors[:, 1] = rng.binomial(PER_PANE, _FAILING * (1 + 0.4 * _SEASON) + of.failing)
    for i, f in enumerate(layout.fields):
        lost = of.lost if i == 0 else 0.0
        cells = np.zeros((PANES, f.bins.bins + 1))
        cells[:, -1] = lost  # the first of the specials: missing
        if f.name == LATENCY:
            middles = _MEDIAN_MS * of.times * (1 + 0.2 * _SEASON)
            below = stats.norm.cdf(np.log(EDGES_MS / middles[:, None]) / _SPREAD)
            cells[:, :-1] = np.diff(below, axis=1, prepend=0.0, append=1.0)
        elif of.raw and i == 0:
            cells[:, -2] = 1.0
        else:
            wave = np.sin(np.arange(f.bins.bins) + i)
            shares = 1 + 0.5 * _SEASON[:, None] * wave
            cells[:, :-1] = (1 - lost) * shares / shares.sum(axis=1, keepdims=True)
        drawn = rng.multinomial(PER_PANE, cells)
        vectors[:, f.counts], vectors[:, f.specials.start] = drawn[:, :-1], drawn[:, -1]
    return (Profile(layout, vector) for vector in vectors)


@cache
def _reference() -> Reference:
    """Only what a comparison reads: the bins, and what they held."""
    usual = cut_numeric(np.repeat(_HOURS, 100))
    names = [f"f{i:02d}" for i in range(FEATURES)] + [SCORE]
    bins = dict.fromkeys(names, usual) | {LATENCY: cut_latency(np.array([_MEDIAN_MS]))}
    layout = Layout(bins)
    vector: Ints = np.zeros(layout.size, dtype=np.int64)
    for f in layout.fields:
        vector[f.counts] = 100
    vector[0] = 100 * len(_HOURS)
    return Reference("m", layout, {}, {"": Profile(layout, vector)}, {}, 0, 1)
