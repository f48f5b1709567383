"""Each part of the protocol taken out by itself. A simulation that does not notice proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from monitor.panes import LinkFate, SourceMark
from streams import profiling
from streams.chain import ChainFence
from streams.merge import MergeStage
from tests.simulation.processes import Profiler
from tests.simulation.system import Twist


@dataclass(frozen=True)
class Mutation:
    """What is taken out: of the product while ``patched`` lasts, of what is around it by ``twist``.

    ``world`` is the seed of a world that shows it soon: the search begins there.
    """

    name: str
    patched: Callable[[], AbstractContextManager[object]] = nullcontext
    twist: Twist | None = None
    world: int = 0


def _without_value_fence() -> AbstractContextManager[object]:
    restore = MergeStage.restore

    def forgetful(self: MergeStage, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        restore(self, partition, table)
        self._held[partition].fences.clear()

    return patch.object(MergeStage, "restore", forgetful)


def _without_chain_fence() -> AbstractContextManager[object]:
    return patch("streams.chain.check_link", lambda *_, **__: LinkFate.APPLY)


def _chain_first() -> AbstractContextManager[object]:
    writes = MergeStage._writes

    def turned(self: MergeStage, *of: Any) -> Iterator[tuple[bytes, bytes | None]]:
        *values, chain = writes(self, *of)
        yield chain
        yield from values

    return patch.object(MergeStage, "_writes", turned)


def _profiler_forgets_watermark() -> AbstractContextManager[object]:
    assign = Profiler.assign

    def forgetful(self: Profiler, partitions: Iterable[int]) -> None:
        assign(self, partitions)
        self.marks = {p: SourceMark(m.position, None, m.idle) for p, m in self.marks.items()}

    return patch.object(Profiler, "assign", forgetful)


@contextmanager
def _detector_forgets_watermark() -> Iterator[None]:
    restore = ChainFence.restore

    def forgetful(self: ChainFence, rows: Mapping[bytes, bytes]) -> None:
        restore(self, rows)
        self.watermark_ms = None

    with patch.object(ChainFence, "restore", forgetful):
        yield


def _late_by_batch() -> AbstractContextManager[object]:
    lateness = profiling._lateness

    def by_batch(
        accepted: Any, marks: Mapping[int, SourceMark], newest: Callable[..., Any]
    ) -> tuple[Any, dict[int, int]]:
        first = np.zeros(1, dtype=np.intp)
        late = np.zeros(len(accepted.ts_ms), dtype=bool)
        for name, places in accepted.of_model():
            for i in places.tolist():
                row = accepted.ts_ms[i : i + 1], accepted.source[i : i + 1]
                alone = profiling._Accepted(*row, {}, {name: ((), first)})
                late[i] = lateness(alone, marks, newest)[0][0]
        return late, lateness(accepted, marks, newest)[1]

    return patch("streams.profiling._lateness", by_batch)


MUTATIONS: Final = (
    Mutation("no value fence", _without_value_fence),
    Mutation("no chain fence", _without_chain_fence, world=11),
    Mutation("chain written first", _chain_first),
    Mutation("the profiler forgets the watermark", _profiler_forgets_watermark, world=28),
    Mutation("the detector forgets the watermark", _detector_forgets_watermark, world=23),
    Mutation("late decided by batch", _late_by_batch),
    Mutation("the sink commits before it inserts", twist=Twist(sink_commits_first=True)),
    Mutation("a busy partition is called idle", twist=Twist(idle_wrongly=True)),
    Mutation("aborted transactions are read", twist=Twist(read_committed=False)),
    Mutation("zombies are not fenced", twist=Twist(fencing=False)),
)
