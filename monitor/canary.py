"""Is the new version worse than the one beside it? Asked after every window, and still wrong at most as often as stated.

Two versions serve the same windows; of each window the labelled predictions of both and their errors are known. Two e-processes grow with
them, one against "its error rate is not higher" (or higher by no more than ``least``, where a smaller difference is nobody's concern) and one
against "it is higher by the margin or more". Under its hypothesis an e-process reaches ``1 / error_rate`` with a probability of at most ``error_rate``, however often one looks and whenever one stops (Ville's inequality).

**One window.** With ``a`` and ``b`` for the alternative's error rates, and ``a0`` and ``b0`` for those rates of the hypothesis that are next to them (in
Kullback-Leibler divergence, weighted by the rows), the factor is the likelihood ratio ``L(a, b) / L(a0, b0)`` of the window. Its mean is at most 1 for
*every* pair of rates that the hypothesis allows, whatever the sizes (Turner, Ly and Grunwald 2024, "Generic E-variables for exact sequential k-sample
tests that allow for optional stopping", theorems 1 and 2). So the rates may be others in each window: seasons, bursts and hard days hit both
versions alike, and cancel. No variance is estimated, and small counts are no special case.

**Which alternative.** Nobody knows the true difference: a mixture of several is bet on, from half a point to 32 points, around the rate that earlier windows
had. A mean of e-processes is one.

**Assumption.** Traffic is split at random, so that both versions get the same kind of cases. Errors within a window may depend on each
other as long as they do so across the versions too; a router that sends one carrier to the new version compares carriers.

**How soon.** At an accuracy of 0.8 and an error rate of 1 %, a version that is 3 points worse is called within 12,000 labels of each version in nine
cases of ten (half of them within 6,000), one that is 10 points worse within 1,200: ``python -m load.canaries`` measures it.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from monitor.binning import Floats
from monitor.errors import IncompatibleError

Answer = Literal["worse", "not_worse", "unknown"]

EFFECTS: Final = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
MEMORY: Final = 20_000.0  # rows: what is known of the rate follows the seasons
_LEAST: Final = 1e-4  # rates are kept off 0 and 1: one surprise must not cost everything
_STEPS: Final = 3  # of Newton: near a double root the cosine leaves an error of 1e-8
_TINY: Final = 1e-12


class Rates(NamedTuple):
    """Labelled rows of a window and the errors among them, of the older version and of the newer one."""

    old_n: int
    old_errors: int
    new_n: int
    new_errors: int


class SequentialResult(NamedTuple):
    """What is known by now. ``difference`` is newer less older error rate over all windows; the logarithms of the two e-processes are the evidence."""

    answer: Answer
    difference: float
    log_e_worse: float
    log_e_margin: float
    old_n: int
    new_n: int
    decided_after: int | None  # labels of the newer version when the answer was first known


class _State(msgspec.Struct, array_like=True):
    error_rate: float
    margin: float
    answer: Answer
    decided_after: int | None
    totals: list[int]
    recent: list[float]
    worse: list[float]
    margins: list[float]
    least: float = 0.0


class Canary:
    """The comparison of two versions. Mutable: it takes windows in, in order.

    Args:
        error_rate: chance of "worse" for a version that is not, and of "not worse" for one that is worse by the margin.
        margin: of the error rate, that nobody minds.
        least: difference of the rates from which on a version is worse. 0 where each error counts; of millions of requests
            a tenth of a percent is significant, and nobody's night.
    """

    def __init__(self, error_rate: float, margin: float, *, least: float = 0.0) -> None:
        if not (0 < error_rate < 1 and 0 < margin < 1):
            raise ValueError("error_rate and margin lie between 0 and 1")
        if not 0 <= least <= margin:
            raise ValueError("least lies between 0 and the margin")
        self.error_rate, self.margin, self.least = error_rate, margin, least
        better = np.append(margin - EFFECTS, 0.0)
        self._differences = np.concatenate((least + EFFECTS, better))
        self._boundaries = np.repeat([least, margin], [len(EFFECTS), len(better)])
        self._answer: Answer = "unknown"
        self._decided_after: int | None = None
        self._totals = np.zeros(4, dtype=np.int64)
        self._recent = np.zeros(2)  # rows and errors of both, older ones forgotten
        self._worse = np.zeros(len(EFFECTS))
        self._margins = np.zeros(len(EFFECTS) + 1)

    def update(self, rates: Rates) -> SequentialResult:
        """Take in a window. O(effects).

        An answer stays: what was worse at one time is not made well by luck. "Not worse" gives way to "worse", since evidence may still come.
        """
        self._totals += rates
        if rates.old_n and rates.new_n:
            n, errors = rates.old_n + rates.new_n, rates.old_errors + rates.new_errors
            center = (self._recent[1] + 0.5) / (self._recent[0] + 1.0)
            # The first window has no earlier ones to bet with: its own are not to be used, so it only teaches.
            if self._recent[0] > 0:
                logs = _log_factors(rates, center, self._differences, self._boundaries)
                self._worse += logs[: len(EFFECTS)]
                self._margins += logs[len(EFFECTS) :]
            keep = min(1.0, MEMORY / (self._recent[0] + n))
            self._recent = keep * (self._recent + np.array([n, errors]))
            self._decide()
        return self.known

    @property
    def known(self) -> SequentialResult:
        """What the windows so far say."""
        old_n, old_errors, new_n, new_errors = self._totals.tolist()
        difference = new_errors / max(new_n, 1) - old_errors / max(old_n, 1)
        evidence = _log_mean(self._worse), _log_mean(self._margins)
        return SequentialResult(
            self._answer, difference, *evidence, old_n, new_n, self._decided_after
        )

    @property
    def answer(self) -> Answer:
        """The answer by now."""
        return self._answer

    @property
    def saw_errors(self) -> bool:
        """Whether either version had any."""
        return bool(self._totals[1] or self._totals[3])

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``."""
        state = _State(
            self.error_rate,
            self.margin,
            self._answer,
            self._decided_after,
            self._totals.tolist(),
            self._recent.tolist(),
            self._worse.tolist(),
            self._margins.tolist(),
            self.least,
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def restore(cls, snapshot: bytes) -> Canary:
        """The comparison whose ``snapshot`` this is.

        Raises:
            IncompatibleError: of another release, or damaged.
        """
        try:
            state = msgspec.msgpack.decode(snapshot, type=_State)
            canary = cls(state.error_rate, state.margin, least=state.least)
        except (msgspec.MsgspecError, ValueError) as err:
            raise IncompatibleError("no comparison of this release") from err
        sizes = len(state.totals), len(state.recent), len(state.worse), len(state.margins)
        if sizes != (4, 2, len(EFFECTS), len(EFFECTS) + 1):
            raise IncompatibleError("a comparison of another release")
        canary._answer, canary._decided_after = state.answer, state.decided_after
        canary._totals = np.array(state.totals, dtype=np.int64)
        canary._recent = np.array(state.recent)
        canary._worse, canary._margins = np.array(state.worse), np.array(state.margins)
        return canary

    def _decide(self) -> None:
        enough = -math.log(self.error_rate)
        if self._answer == "worse":
            return
        found: Answer = "worse" if _log_mean(self._worse) >= enough else self._answer
        if found == "unknown" and _log_mean(self._margins) >= enough:
            found = "not_worse"
        if found != self._answer:
            self._answer, self._decided_after = found, int(self._totals[2])


def _log_factors(
    rates: Rates, center: float, differences: Floats, boundary: Floats | float
) -> Floats:
    """Logarithms of the factors of one window, ``(k,)``, for alternatives with these differences of the rates.

    The hypothesis is "the difference is at most the boundary" for alternatives above it, and "at least" for those below.
    """
    n, m = rates.old_n, rates.new_n
    share = m / (n + m)
    a = np.clip(center - share * differences, _LEAST, 1 - _LEAST)
    b = np.clip(center + (1 - share) * differences, _LEAST, 1 - _LEAST)
    a0 = _nearest(a, b, n, m, boundary)
    b0 = a0 + boundary
    old_right, new_right = n - rates.old_errors, m - rates.new_errors
    logs: Floats = (
        rates.old_errors * np.log(a / a0)
        + old_right * np.log((1 - a) / (1 - a0))
        + rates.new_errors * np.log(b / b0)
        + new_right * np.log((1 - b) / (1 - b0))
    )
    # Clipping may have put an alternative on the wrong side, where it is no alternative: it bets nothing.
    return np.where(np.sign(b - a - boundary) == np.sign(differences - boundary), logs, 0.0)


def _nearest(a: Floats, b: Floats, n: int, m: int, boundary: Floats | float) -> Floats:
    """The rate ``x`` for which ``(x, y = x + boundary)`` is nearest to ``(a, b)``: the root of the divergence's slope.

    Without its denominators that is the cubic ``n (x - a) y (1 - y) + m (y - b) x (1 - x)``. Its other roots lie beyond both ends of the rates, so
    all three are real and the cosine finds them.
    """
    equal = (n * a + m * b) / (n + m)
    if not np.any(boundary):
        return equal
    room = 1 - boundary
    c2 = -(n * (a + room - boundary) + m * (b + room)) / (n + m)
    c1 = (n * (a * (room - boundary) - boundary * room) + m * (b - boundary)) / (n + m)
    c0 = n * a * boundary * room / (n + m)
    p, q = c1 - c2 * c2 / 3, 2 * c2**3 / 27 - c2 * c1 / 3 + c0
    radius = np.sqrt(np.maximum(-p / 3, _TINY))
    angle = np.arccos(np.clip(-q / (2 * radius**3), -1, 1)) / 3
    x = 2 * radius * np.cos(angle - 2 * np.pi / 3) - c2 / 3
    for _ in range(_STEPS):
        slope = (3 * x + 2 * c2) * x + c1
        x = np.clip(x - (((x + c2) * x + c1) * x + c0) / np.minimum(slope, -_TINY), _TINY, room)
    return np.where(boundary == 0.0, equal, x)


def _log_mean(logs: Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).mean()))
