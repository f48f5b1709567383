"""Do two versions get the same values? Asked after every pane for all fields at once, and wrong at most as often as stated.

Of each pane the counts of both versions in fixed groups of bins are known. A field has an e-process against "both draw from one distribution",
which may be another in each pane: a season, a burst or a drift hits both versions and is no difference.

**One pane.** With ``n`` and ``m`` rows of the two versions, ``a = n / (n + m)`` and ``b = m / (n + m)``, and a guess ``r_k`` of how much more frequent group ``k``
is in the newer version, the factor is::

    prod_k  g_k ** x_k * (r_k * g_k) ** y_k        g_k = 1 / (a + b * r_k)

This is the likelihood ratio of Turner, Ly and Grunwald (2024, "Generic E-variables for exact sequential k-sample tests that allow for optional
stopping", theorem 1) for two samples of any kind. Its mean is at most 1 whatever the common distribution ``p``: rows are independent, so it is ``s ** n * t ** m``
with ``s = sum_k p_k * g_k`` and ``t = sum_k p_k * r_k * g_k``; and ``a * s + b * t = sum_k p_k = 1``, so by the inequality of the means ``s ** a * t ** b <= 1``.
Any ``r_k`` known before the pane will do: no variance is estimated, and small counts are no special case.

**Which guess.** The ratio of the shares in earlier panes, each pane weighted by ``n * m / (n + m)``: within a pane both versions see the same hour, so a
canary that gets more and more traffic while the traffic changes shows no false difference. It is drawn towards 1 by some pseudo-rows; nobody knows how many, so a
mixture bets on all of ``PSEUDO``.

**Assumption.** The router draws for each request anew. A split by user, session or carrier, or by slices of time within a pane, gives each version rows that
belong together: those differ without any fault, and that is then what is found. A difference is therefore told and is evidence; it is no alarm by itself.

**Blind** to differences inside a group of bins, such as all values beyond the reference's range. **Slow** to see what begins after a long time without a difference: evidence was spent by then, and
the windows' own limits are there for it. Evidence has an upper bound, so a difference that was mended is not told for ever.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.binning import Floats, Ints
from monitor.errors import IncompatibleError

PSEUDO: Final[Floats] = np.array([30.0, 300.0, 3_000.0])
MEMORY: Final = 20_000.0  # effective rows: which groups differ may change

Positions = npt.NDArray[np.intp]


class _State(msgspec.Struct, array_like=True):
    old: bytes
    new: bytes
    weight: float
    evidence: bytes


class Differences(NamedTuple):
    """``(fields,)`` each: logarithm of the e-value by now, and total variation distance of the two versions in the rows remembered."""

    log_e: Floats
    distance: Floats


class Homogeneity:
    """The e-processes of all fields. Mutable: it takes panes in, in order.

    Args:
        first: ``(fields,)`` strictly increasing from 0: where the groups of each field begin among all groups.
        groups: of all fields.
        most: logarithm of the e-value, beyond which evidence is not kept.
    """

    def __init__(self, first: Positions, groups: int, *, most: float) -> None:
        self._first, self._most = first, most
        self._sizes = np.diff(np.append(first, groups))
        # Single precision, as it is stored: so a restart changes nothing.
        self._old = np.zeros(groups, dtype=np.float32)
        self._new = np.zeros(groups, dtype=np.float32)
        self._weight = 0.0
        self._log_e = np.zeros((len(PSEUDO), len(first)))

    def update(self, n: int, old: Ints, m: int, new: Ints) -> None:
        """Take in a pane: rows of each version and their counts in all groups, of which every field counts each row once. O(groups)."""
        if not (n and m):
            return
        x, y = old.astype(np.float64), new.astype(np.float64)
        if self._weight > 0:  # the first pane teaches: its own rows are not to be bet with
            for i, pseudo in enumerate(PSEUDO):
                self._log_e[i] += self._log_factors(float(pseudo), n, x, m, y)
            np.minimum(self._log_e, self._most, out=self._log_e)
        weight = n * m / (n + m)
        keep = min(1.0, MEMORY / (self._weight + weight))
        self._old = (keep * (self._old + x * (weight / n))).astype(np.float32)
        self._new = (keep * (self._new + y * (weight / m))).astype(np.float32)
        self._weight = keep * (self._weight + weight)

    @property
    def known(self) -> Differences:
        """What the panes so far say."""
        most = self._log_e.max(axis=0)
        log_e = most + np.log(np.exp(self._log_e - most).mean(axis=0))
        gaps = np.abs(self._new.astype(np.float64) - self._old)
        distance = np.add.reduceat(gaps, self._first) / max(2 * self._weight, 1e-9)
        return Differences(log_e, np.minimum(distance, 1.0))  # single precision may pass it

    def snapshot(self) -> bytes:
        """Everything that is remembered, for ``restore``."""
        parts = self._old.tobytes(), self._new.tobytes(), self._weight, self._log_e.tobytes()
        return msgspec.msgpack.encode(_State(*parts))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a ``snapshot`` of the same fields and groups.

        Raises:
            IncompatibleError: of another release or of other groups, or damaged.
        """
        try:
            state = msgspec.msgpack.decode(snapshot, type=_State)
            old, new = (np.frombuffer(part, np.float32) for part in (state.old, state.new))
            log_e = np.frombuffer(state.evidence).reshape(self._log_e.shape)
        except (msgspec.MsgspecError, ValueError) as err:
            raise IncompatibleError("no evidence of this release") from err
        if not (len(old) == len(new) == len(self._old)):
            raise IncompatibleError("evidence about other groups")
        self._old, self._new, self._weight = old.copy(), new.copy(), state.weight
        self._log_e = log_e.copy()

    def _log_factors(self, pseudo: float, n: int, x: Floats, m: int, y: Floats) -> Floats:
        """``(fields,)`` logarithms of the factors of one pane."""
        old, new = self._old.astype(np.float64), self._new.astype(np.float64)
        drawn = pseudo * (old + new) / (2 * self._weight)
        seen = drawn > 0  # nothing is known of a group that nobody has had
        ratio = np.divide(new + drawn, old + drawn, out=np.ones_like(drawn), where=seen)
        log_g = -np.log((n + m * ratio) / (n + m))
        return np.asarray(np.add.reduceat((x + y) * log_g + y * np.log(ratio), self._first))
