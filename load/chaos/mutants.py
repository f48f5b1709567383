"""Driftline with one hop broken, to see that the harness finds it: ``python -m load.chaos.mutants NAME run PROCESS``.

Each hop guards against something rare. A mutant takes the guard away and makes the rare thing happen; the controls make
all of these things happen with every guard in its place, and have to pass.

==================== ============= ========================================= =============================================
mutant               runner        what is taken away                        what happens
==================== ============= ========================================= =============================================
``offsets_first``    transactional the detector's offsets are committed in a it is killed before the second
                                   transaction before that of its effects
``read_uncommitted`` transactional the detector reads what was aborted       a profiler is killed before it commits
``commit_first``     transactional the sink commits before it inserts        it is killed between the two
``value_fence``      faust         offsets beside values are ignored         a detector is killed between two record
                                                                             batches of one changelog write
``chain_fence``      faust         every link is admitted                    a message is left out on its way, as bare
                                                                             Faust was seen to do
==================== ============= ========================================= =============================================
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from typing_extensions import override

if TYPE_CHECKING:
    from load.chaos.cluster import Runner

Patched: TypeAlias = Any
"""A class of Driftline whose method is replaced: what mypy is there to forbid."""

SCRATCH: Final = "CHAOS_SCRATCH"  # where strikes are counted; not DRIFTLINE_*, which are settings


@dataclass(frozen=True, slots=True)
class Patch:
    """A change to the processes of one role."""

    role: str
    apply: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A hop that may be broken. ``breaks`` takes the guard away; ``strikes`` make happen what it guards against."""

    name: str
    runner: Runner
    strikes: tuple[Patch, ...]
    breaks: Patch | None = None

    def patch(self, role: str) -> None:
        """Change this process. The break is around the strikes: a sink that commits first is killed after that."""
        for patch in (*self.strikes, *([self.breaks] if self.breaks else [])):
            if patch.role == role:
                patch.apply()


class _Turn:
    """Says at which opportunity of this life to strike: at another one in each, and once. Mutable: it counts down.

    Args:
        kind: of strike.
        first: earliest opportunity.
        last: latest opportunity.
        times: how often in a run: the supervisor's backoff doubles.
    """

    def __init__(self, kind: str, first: int, last: int, *, times: int) -> None:
        self._kind, self._times = kind, times
        self.rng = np.random.default_rng(os.getpid())
        self._left = int(self.rng.integers(first, last + 1))

    def __call__(self) -> bool:
        """Whether it is now, and there is a strike left in this run."""
        self._left -= 1
        return self._left == 0 and self._may()

    def _may(self) -> bool:
        for number in range(self._times):
            try:
                Path(os.environ[SCRATCH], f"{self._kind}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_between_record_batches() -> None:
    """Kill the detector in the middle of a changelog write; every write is then taken for one that exceeds a record batch."""
    from streams import delivery, topology

    worker: Patched = topology.Worker
    append, turn = worker._append, _Turn("write", 5, 20, times=2)
    delivery.BATCH_BYTES = delivery._SPARE_BYTES

    async def struck(self: Patched, target: delivery.Target, records: list[Patched]) -> None:
        if target[0].endswith("merge.changelog") and len(records) > 2 and turn():
            await append(self, target, records[: int(turn.rng.integers(1, len(records) - 1))])
            _die()
        await append(self, target, records)

    worker._append = struck


def _leave_out_messages() -> None:
    """Leave one message out in each life, and hide it from whoever compares deliveries with fetches."""
    from streams import runner

    stage: Patched = runner.StageRunner
    take, turn = stage.take, _Turn("leave-out", 8, 25, times=1)

    async def struck(self: Patched, incoming: runner.Incoming) -> None:
        if self.binding.name == "merge" and turn():
            place = incoming.topic, incoming.partition
            self._effects.fetch_log.delivered(place, incoming.offset)
            return
        await take(self, incoming)

    stage.take = struck


def _kill_before_insert() -> None:
    from streams import sink

    loop: Patched = sink.Sink
    write, turn = loop._write, _Turn("insert", 3, 6, times=2)

    def struck(self: Patched, stop: Patched) -> Patched:
        if len(self._parcels) > 10 and turn():
            _die()
        return write(self, stop)

    loop._write = struck


def _kill_before_commit(kind: str, least: int) -> Callable[[], None]:
    """Kill when the broker has all of a transaction of ``least`` records or more, but its end."""

    def apply() -> None:
        from streams import transactions

        owner: Patched = transactions.Transactions
        commit, turn = owner.commit, _Turn(kind, 5, 10, times=1)

        def struck(self: Patched, records: Patched, offsets: Patched, ticket: Patched) -> None:
            def all_then_none() -> Iterator[Patched]:
                sent = list(records)
                yield from sent
                if len(sent) >= least and turn():
                    self._producer.flush(5)
                    _die()

            commit(self, all_then_none(), offsets, ticket)

        owner.commit = struck

    return apply


def _ignore_values_offsets() -> None:
    from streams import merge

    class Unfenced(dict[Any, int]):
        @override
        def get(self, _key: object, default: Any = None) -> Any:
            return default

    made = merge._Partition

    def unfenced(chain: Patched) -> Patched:
        state = made(chain)
        state.fences = Unfenced()
        return state

    module: Patched = merge
    module._Partition = unfenced


def _admit_every_link() -> None:
    from monitor.panes import LinkFate
    from streams import chain

    module: Patched = chain
    module.check_link = lambda *_, **__: LinkFate.APPLY


def _commit_before_insert() -> None:
    from streams import sink

    loop: Patched = sink.Sink
    write = loop._write

    def late(self: Patched, stop: Patched) -> Patched:
        self._commit()
        return write(self, stop)

    loop._write = late


def _commit_offsets_first() -> None:
    from streams import transactions

    owner: Patched = transactions.Transactions
    commit = owner.commit

    def twice(self: Patched, records: Patched, offsets: Patched, ticket: Patched) -> None:
        commit(self, [], offsets, ticket)
        commit(self, records, offsets, ticket)

    owner.commit = twice


def _read_aborted() -> None:
    from streams import transactional

    module: Patched = transactional
    made = module.consumer_config

    def uncommitted(*args: Patched, **options: Patched) -> Patched:
        return {**made(*args, **options), "isolation.level": "read_uncommitted"}

    module.consumer_config = uncommitted


_WRITE: Final = Patch("detector", _kill_between_record_batches)
_LEAVE_OUT: Final = Patch("detector", _leave_out_messages)
_INSERT: Final = Patch("sink", _kill_before_insert)
_PROFILES: Final = Patch("profiler", _kill_before_commit("profiles", least=3))  # no heartbeat
_STEPS: Final = Patch("detector", _kill_before_commit("steps", least=5))
MUTANTS: Final = {
    mutant.name: mutant
    for mutant in (
        Mutant("control", "transactional", (_STEPS, _INSERT, _PROFILES)),
        Mutant("control_faust", "faust", (_WRITE, _LEAVE_OUT, _INSERT, _PROFILES)),
        Mutant(
            "offsets_first", "transactional", (_STEPS,), Patch("detector", _commit_offsets_first)
        ),
        Mutant("read_uncommitted", "transactional", (_PROFILES,), Patch("detector", _read_aborted)),
        Mutant("commit_first", "transactional", (_INSERT,), Patch("sink", _commit_before_insert)),
        Mutant("value_fence", "faust", (_WRITE,), Patch("detector", _ignore_values_offsets)),
        Mutant("chain_fence", "faust", (_LEAVE_OUT,), Patch("detector", _admit_every_link)),
    )
}


def main() -> None:
    """Patch this process and run it as it would have run."""
    name, *arguments = sys.argv[1:]
    MUTANTS[name].patch(role=arguments[-1])
    from streams.__main__ import main as run

    run(arguments)


if __name__ == "__main__":
    main()
