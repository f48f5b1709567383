"""A source whose broker answers as the test says, without clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from typing_extensions import override

from streams.positions import Committed, Positions
from streams.source import Source


class Standing(Source):
    """Partitions at offset 0, some of them silent. ``ends`` is what the broker says of them; one that is absent gets no answer."""

    def __init__(
        self,
        partitions: int,
        monotonic: Callable[[], float],
        *,
        silent: Mapping[int, float],
        idle_after_s: float = 0.5,
    ) -> None:
        self._monotonic, self._idle_after_s = monotonic, idle_after_s
        self.positions = Positions()
        self.ends = dict.fromkeys(silent, 0)
        self.asked = 0
        for partition in range(partitions):
            self.positions.take_up(Committed(partition, 0, None), 0)
        for partition, since_s in silent.items():
            self.positions.ended(partition, 0, since_s)

    @override
    def _ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        self.asked += 1
        return {p: self.ends[p] for p in partitions if p in self.ends}
