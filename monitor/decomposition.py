"""Where a distribution moved: the groups of values that hold most of its divergence, in words.

The population stability index is a sum over groups, ``(q - p) ln(q / p)``, and no part of it is negative: so each group has a share of the whole,
and the largest ones say what happened. Bins of numbers are grouped as the index groups them; each category stands for itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from monitor.binning import Bins, Ints, NumericBins
from monitor.calibration import PSI_GROUPS
from monitor.distances import Starts, group_equal_mass, psi_parts

MOST: Final = 3  # groups that are named: a line on a phone
ENOUGH: Final = 0.8  # of the divergence: then no more are named
_LONGEST: Final = 40  # characters of a category


def moved(bins: Bins, before: Ints, now: Ints) -> str:
    """The groups that moved most, with their shares before and now: ``LGA 34 % → 12 %, JFK 31 % → 52 %``.

    At most ``MOST`` groups, fewer where these hold ``ENOUGH`` of the divergence; ``""`` where either side has no values.
    """
    if not before.any() or not now.any():
        return ""
    starts: Starts = np.arange(bins.bins, dtype=np.intp)
    if isinstance(bins, NumericBins):
        starts = group_equal_mass(before, PSI_GROUPS)
    of = psi_parts(before, now, starts=starts)
    shares = [np.add.reduceat(counts, starts) / counts.sum() for counts in (before, now)]
    told: list[str] = []
    held = 0.0
    for i in np.argsort(-of, kind="stable")[:MOST]:
        if of[i] <= 0 or held >= ENOUGH * of.sum():
            break
        held += of[i]
        end = int(starts[i + 1]) if i + 1 < len(starts) else bins.bins
        told.append(
            f"{_name(bins, int(starts[i]), end)} {percent(shares[0][i])} → {percent(shares[1][i])}"
        )
    return ", ".join(told)


def _name(bins: Bins, start: int, end: int) -> str:
    """What the bins ``[start, end)`` hold."""
    if not isinstance(bins, NumericBins):
        if start == len(bins.categories):
            return "other"
        name = bins.categories[start]
        return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    low = None if start == 0 else float(bins.edges[start - 1])
    high = None if end == bins.bins else float(bins.edges[end - 1])
    if low is None or high is None:
        return "all" if low is high else f"< {high:.4g}" if low is None else f"≥ {low:.4g}"
    return f"{low:.4g} to {high:.4g}"


def percent(share: float) -> str:
    """A share for people: ``12 %``, ``3.4 %``, ``0.05 %``."""
    hundredths = 100 * share
    digits = ".0f" if hundredths >= 10 or hundredths == 0 else ".2g"
    return f"{hundredths:{digits}} %"
