"""A seed gives a world and schedules; each schedule is run, and what comes out is compared with plain counting and with an undisturbed run.

In an *honest* run verdicts and incidents are a function of the log alone, bit for bit. Where a partition may be called idle and then go on, its events are late
by the clock of the others: counts and ledger hold all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from typing_extensions import override

from monitor import verdicts, wire
from monitor.profile import Profile
from monitor.reference import Reference
from streams import delivery, runner
from tests.simulation.outcome import MismatchError, Outcome, check
from tests.simulation.system import Action, Kind, Schedule, System, Twist
from tests.simulation.world import World, make_world, oracle

_WEIGHTS: Final[dict[Kind, int]] = {
    "produce": 8,
    "profile": 14,
    "detect": 16,
    "commit": 3,
    "fuse": 5,
    "kill": 1,
    "stall": 1,
    "zombie": 1,
    "move profilers": 2,
    "move detectors": 2,
    "sink": 5,
}
_KINDS: Final = tuple(_WEIGHTS)
_SLEEPY_RUNS: Final = 0.3
Judging = Callable[..., list[wire.Verdict]]


def make_schedule(seed: int, index: int) -> Schedule:
    """The ``index``-th schedule of a seed."""
    rng = np.random.default_rng((seed, 1, index))
    weights = np.array([*_WEIGHTS.values()], dtype=float)
    count = int(rng.integers(6, 40))
    kinds = rng.choice(len(_KINDS), count, p=weights / weights.sum())
    numbers = rng.integers(0, 1 << 16, (count, 3)).tolist()
    return Schedule(
        tuple(Action(_KINDS[kind], *abc) for kind, abc in zip(kinds, numbers, strict=True)),
        honest=bool(rng.random() >= _SLEEPY_RUNS),
        atomic=bool(rng.random() < 0.3),
    )


def execute(world: World, schedule: Schedule, twist: Twist | None = None) -> Outcome:
    """Run one schedule.

    Raises:
        MismatchError: the system does not come to rest, or writes when it may not.
    """
    bound = delivery.BATCH_BYTES if schedule.atomic else 0
    with patch.object(delivery, "BATCH_BYTES", bound), patch.object(runner, "BATCH_BYTES", bound):

        async def whole() -> Outcome:
            system = System(world, schedule, twist or Twist())
            try:
                await system.run()
                return system.outcome()
            finally:
                for detector in system.detectors:
                    await detector.kill()

        return asyncio.run(whole())


class _Uncompressed:
    """In place of zstd, which takes half of the time of these small messages."""

    @staticmethod
    def compress(body: bytes, **_: object) -> bytes:
        return body

    decompress = compress


@contextmanager
def cheaply() -> Iterator[None]:
    """Without what costs most and decides nothing here: judging is pure, so that the runs of one world share its answers."""
    known: dict[tuple[Any, ...], list[wire.Verdict]] = {}

    def shared(judge_it: Judging) -> Judging:
        def once(
            reference: Reference, segment: str, profile: Profile, **how: Any
        ) -> list[wire.Verdict]:
            size, whole = how["size_ms"], how.get("whole")
            key = (judge_it, id(reference), segment, profile.to_bytes(), size, whole)
            if key not in known:
                known[key] = judge_it(reference, segment, profile, **how)
            return list(known[key])

        return once

    with (
        patch("monitor.wire._ZSTD", _Uncompressed),
        patch("monitor.judge.judge_window", shared(verdicts.judge_window)),
        patch("monitor.judge.judge_pane", shared(verdicts.judge_pane)),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without what dying processes log."""
    loggers = [logging.getLogger(name) for name in ("streams.runner", "streams.worker")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@dataclass
class Failure:
    """A schedule that breaks an invariant, and the least of it that still does."""

    seed: int
    index: int
    error: str
    schedule: Schedule
    least: Sequence[Action] = ()

    @override
    def __str__(self) -> str:
        honest = "honest" if self.schedule.honest else "sleepy"
        atomic = "atomic" if self.schedule.atomic else "torn"
        lines = [f"seed {self.seed}, schedule {self.index} ({honest}, {atomic}): {self.error}"]
        lines += [f"  {action.kind} {action.a} {action.b} {action.c}" for action in self.least]
        return "\n".join(lines)


@dataclass
class Tally:
    """What was run."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def simulate(
    seed: int,
    schedules: int,
    tally: Tally,
    twist: Twist | None = None,
    *,
    shrinking: bool = True,
) -> Failure | None:
    """Run a world under some schedules; the first failure, shrunk."""
    world = make_world(seed)
    wanted = oracle(world)
    with cheaply():
        straight = execute(world, Schedule(()))
        for index in range(schedules):
            schedule = make_schedule(seed, index)

            def broken(actions: Sequence[Action], schedule: Schedule = schedule) -> str | None:
                tried = Schedule(tuple(actions), schedule.honest, schedule.atomic)
                try:
                    outcome = execute(world, tried, twist)
                    same = schedule.honest and not world.cramped
                    check(outcome, wanted, straight, crowded=world.crowded, same=same)
                except MismatchError as err:
                    return str(err)
                tally.faults += outcome.faults
                return None

            tally.runs += 1
            if error := broken(schedule.actions):
                failure = Failure(seed, index, error, schedule)
                if shrinking:
                    failure.least = shrink(schedule.actions, lambda some: broken(some) is not None)
                return failure
    return None


def shrink(
    actions: Sequence[Action], fails: Callable[[Sequence[Action]], bool], tries: int = 200
) -> Sequence[Action]:
    """A part of ``actions`` that still fails, from which nothing of any tried length can be left out."""
    width = max(1, len(actions) // 2)
    while width:
        at = 0
        while at < len(actions) and tries > 0:
            tries -= 1
            less = [*actions[:at], *actions[at + width :]]
            if fails(less):
                actions = less
            else:
                at += width
        width //= 2
    return actions
