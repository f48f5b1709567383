"""How often one caller may ask: token buckets, one for each caller, of which a bounded number is remembered."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

MAX_CALLERS: Final = 10_000  # about 300 B each


class Throttle:
    """Buckets of ``burst`` requests that fill at ``rate_per_s``. Mutable: it remembers each bucket; for one thread.

    Of more than ``MAX_CALLERS`` the one that asked longest ago is forgotten, and its bucket is full again: who has many
    addresses is not held back by this.
    """

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._full_at_s: OrderedDict[Hashable, float] = OrderedDict()

    def wait_s(self, caller: Hashable, now_s: float) -> float:
        """Take one request out of a caller's bucket: 0, or whole seconds after which there is one again.

        Written as the generic cell rate algorithm: a bucket is the time at which it will be full.
        """
        full_at_s = max(self._full_at_s.get(caller, now_s), now_s) + 1 / self._rate_per_s
        missing_s = full_at_s - now_s - self._burst / self._rate_per_s
        if missing_s > 1e-9:  # a rounding error of the clock's sums
            return math.ceil(missing_s)
        self._full_at_s[caller] = full_at_s
        self._full_at_s.move_to_end(caller)
        if len(self._full_at_s) > MAX_CALLERS:
            self._full_at_s.popitem(last=False)
        return 0
