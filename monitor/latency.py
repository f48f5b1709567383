"""Latency: bins that are spaced evenly in the logarithm, and the percentiles that they give.

The edges are the same for every model and every reference, so counts of any windows, versions and segments add up, and the percentiles of the sum are as
good as those of its parts: the sketch of DDSketch (Masson, Rim and Lee 2019, section 2) over a fixed range, which makes its merges exact::

    edge i = 0.01 ms * 10 ** (i / 58)        0.01 ms ... 10.4 minutes: 452 bins, and one beyond each end

A bin is 4.05 % wide, and its middle in the sense of the relative error, ``2 a b / (a + b)``, is within 1.985 % of all that it holds. Shifts by less than a bin
are not seen in the distribution; the mean is watched as well, from exact sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from monitor.binning import Floats, Ints, NumericBins, cut_numeric
from monitor.profile import LATENCY, Profile

RELATIVE_ERROR: Final = 0.02
_LEAST_MS: Final = 0.01
_PER_DECADE: Final = 58
_BINS: Final = 452  # up to the first edge beyond ten minutes
# Six digits: every processor rounds a power to the same ones, and a stored form is half as long.
EDGES_MS: Final[Floats] = np.array(
    [float(f"{_LEAST_MS * 10 ** (i / _PER_DECADE):.6g}") for i in range(_BINS + 1)]
)
_MIDDLES_MS: Final = 2 * EDGES_MS[:-1] * EDGES_MS[1:] / (EDGES_MS[:-1] + EDGES_MS[1:])
# What lies beyond either end counts as at that end, as in any sketch of a bounded range.
_SHOWN_MS: Final = np.concatenate((EDGES_MS[:1], _MIDDLES_MS, EDGES_MS[-1:]))
CELLS: Final = len(_SHOWN_MS)  # no other bins of a number are as many, so counts are known by it
PERCENTS: Final = (50, 95, 99)


class Percentiles(NamedTuple):
    """Latency that 50, 95 and 99 % of the requests do not exceed, in milliseconds."""

    p50: float
    p95: float
    p99: float


def cut_latency(values: Floats) -> NumericBins:
    """Bins of a reference's finite latencies: the edges are fixed; range, lattice and unit of the moments are the reference's own.

    Without any values one bin: who sends no latency pays for none.
    """
    own = cut_numeric(values)
    return own if values.size == 0 else replace(own, edges=EDGES_MS.copy(), grid=None)


def percentiles(profile: Profile) -> Percentiles | None:
    """Percentiles of the latencies of any profile: a pane, a window, a sum of them.

    Each is within ``RELATIVE_ERROR`` of ``numpy.quantile(values, q, method="inverted_cdf")``, the smallest value that at least the share ``q`` does not exceed.
    Below 0.01 ms it is told as 0.01, above 10.4 minutes as that. ``None`` without values, and under a reference of a release that cut the latency
    at quantiles: those bins promise no error.
    """
    f = profile.layout.by_name.get(LATENCY)
    if (
        f is None
        or not isinstance(f.bins, NumericBins)
        or not np.array_equal(f.bins.edges, EDGES_MS)
    ):
        return None
    return percentiles_of(profile.vector[f.counts])


def percentiles_of(counts: Ints) -> Percentiles | None:
    """The same of ``(CELLS,)`` counts in the bins of ``EDGES_MS``; ``None`` where all are 0."""
    reached = np.cumsum(counts)
    n = int(reached[-1])
    if n == 0:
        return None
    ranks = [-(-n * percent // 100) for percent in PERCENTS]
    return Percentiles(*_SHOWN_MS[np.searchsorted(reached, ranks)].tolist())
