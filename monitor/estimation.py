"""Performance that nobody has labels for yet: expected from the scores of a window and from what such scores meant in the reference.

For each bin of the score, the reference's labels say how often a prediction with such a score was right. A window's estimate is the mean of
that over its scores (confidence-based performance estimation, calibrated by histogram binning: Guo et al. 2017, section 4). It needs
no event a second time: a profile has the counts.

**What it can and cannot see.** It is right, up to noise, while a score means what it meant: also when other inputs come than before
(covariate shift), since more of the hard cases is more of the low scores. It cannot see *concept drift*: where the same inputs have other
labels than before, scores do not know it, and the estimate stays where it was. Nor a broken input that moves scores without reason. That is
what labels are for, and once they are here the estimate's own error is measured (``monitor.store``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from monitor.binning import Ints
from monitor.intervals import Z
from monitor.profile import PREDICTION, SCORE, Profile
from monitor.wire import Verdict

MIN_LABELLED: Final = 200  # of the reference: with fewer the shares of the bins are noise
MIN_SCORED: Final = 50
_PRIOR: Final = 1.0  # rows with the shares of all bins that each bin is given: a bin of the reference may be empty
PREFIX: Final = "estimated_"

# A metric is a ratio of two sums of cells. Of yes/no models the cells are TN, FP, FN, TP; of others wrong and right.
_BINARY: Final[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "accuracy": ((1, 0, 0, 1), (1, 1, 1, 1)),
    "precision": ((0, 0, 0, 1), (0, 1, 0, 1)),
    "recall": ((0, 0, 0, 1), (0, 0, 1, 1)),
    "f1": ((0, 0, 0, 2), (0, 1, 1, 2)),
    "base_rate": ((0, 0, 1, 1), (1, 1, 1, 1)),
}
_OTHER: Final[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "accuracy": ((0, 1), (1, 1)),
}
_FORMULAS: Final = {4: _BINARY, 2: _OTHER}


class Estimate(NamedTuple):
    """A metric that labels would have, and the band that 95 in 100 such windows stay in, while scores mean what they meant."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Meaning:
    """What scores meant in the reference.

    Attributes:
        cells: ``(bins, 4)`` for a yes/no model: labelled rows by bin of the score, as TN, FP, FN, TP; ``(bins, 2)`` for others: wrong and right.
        design_effect: by how much errors scatter more than those of independent rows.
    """

    cells: Ints
    design_effect: float = 1.0

    @property
    def labelled(self) -> int:
        """Rows that it is made of."""
        return int(self.cells.sum())

    def estimate(self, scores: Ints) -> dict[str, Estimate]:
        """What a window's labels will say; empty with too few scores, or too few labels in the reference. O(bins).

        The band is that of a sum over bins (multinomial cells, in the window and in the reference), taken to the metric by the delta method.

        Args:
            scores: ``(bins,)`` counts of the window's scores.
        """
        n = int(scores.sum())
        if n < MIN_SCORED or self.labelled < MIN_LABELLED:
            return {}
        total = self.cells.sum(axis=0)
        rows = self.cells.sum(axis=1) + _PRIOR
        share = (self.cells + _PRIOR * total / total.sum()) / rows[:, None]
        expected = scores @ share
        # Of each bin: its labels are drawn n_b times in the window, and its shares are known from m_b rows.
        weight = scores + np.square(scores, dtype=np.float64) / rows
        found = {}
        for name, (part, whole) in _FORMULAS[self.cells.shape[1]].items():
            below = float(expected @ whole)
            if below <= 0:
                continue
            value = float(expected @ part) / below
            slope = (np.array(part) - value * np.array(whole)) / below
            mean = share @ slope
            variance = float(weight @ (share @ np.square(slope) - np.square(mean)))
            half = Z * math.sqrt(max(variance, 0.0) * self.design_effect)
            found[name] = Estimate(value, max(value - half, 0.0), min(value + half, 1.0))
        return found


def estimated(meaning: Meaning, profile: Profile) -> list[Verdict]:
    """The estimates of a window, to be shown: no alarm by themselves, though a rule by hand may make them one."""
    if SCORE not in profile.layout.by_name:
        return []
    scores = profile.counts(SCORE)
    return [
        Verdict(
            kind="performance",
            feature=PREDICTION,
            statistic=PREFIX + name,
            status="ok",
            value=found.value,
            limit=None,
            p_value=None,
            n=int(scores.sum()),
            evidence={"low": found.low, "high": found.high},
        )
        for name, found in meaning.estimate(scores).items()
    ]
