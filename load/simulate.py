"""Seeded simulation of the pure core: profilers, detectors and a sink with everything that may happen to them.

``python -m load.simulate --seed S --runs N [--minutes M]`` runs schedules of crashes, aborts, rebalances, stalls, lost and repeated
messages over small worlds of events, and compares each outcome with plain counting and with an undisturbed run. It prints the
faults and the rate, and at the first failure the seed with the fewest actions that still show it; the exit code is then 1.
Worlds share nothing, so each core simulates its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import count, islice
from multiprocessing import get_context
from typing import TypeAlias

from tests.simulation.simulation import Failure, Tally, quiet, simulate

SCHEDULES = (
    8  # of one world: what is judged and counted once for all of them costs as much as a run
)
Found: TypeAlias = tuple[Tally, Failure | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an invariant does not hold."""
    options = parser().parse_args(arguments)
    tally, failures, worlds, began = Tally(), list[Failure](), 0, time.monotonic()

    def enough() -> bool:
        if options.minutes is not None:
            return bool(failures) or time.monotonic() - began >= 60 * options.minutes
        return bool(failures) or tally.runs >= options.runs

    for part, failure in _simulated(options.seed, options.schedules, options.workers, enough):
        worlds += 1
        tally.runs += part.runs
        tally.faults += part.faults
        failures += [failure] if failure else []
    failures.sort(key=lambda failure: failure.seed)
    took_s = time.monotonic() - began
    for line in report(tally, failures, took_s, range(options.seed, options.seed + worlds)):
        print(line)
    return 1 if failures else 0


def _simulated(
    first: int, schedules: int, workers: int, enough: Callable[[], bool]
) -> Iterator[Found]:
    """The worlds of all seeds from ``first`` on, as they are done, until it is enough. What has begun by then comes too."""
    seeds = count(first)
    if workers == 1:
        while not enough():
            yield _world(next(seeds), schedules)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        under_way = {pool.submit(_world, seed, schedules) for seed in islice(seeds, 2 * workers)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for world in done:
                yield world.result()
                if not enough():
                    under_way.add(pool.submit(_world, next(seeds), schedules))


def _world(seed: int, schedules: int) -> Found:
    tally = Tally()
    with quiet():
        return tally, simulate(seed, schedules, tally)


def report(tally: Tally, failures: Sequence[Failure], took_s: float, seeds: range) -> list[str]:
    """What is printed; the last line sums up."""
    lines = [f"{n:>8,}  {fault}" for fault, n in sorted(tally.faults.items())]
    lines += [str(failure) for failure in failures[:1]]
    verdict = "FAILED" if failures else "every invariant holds"
    rate = round(tally.runs / took_s * 60)
    lines.append(
        f"simulate: {tally.runs:,} runs, seeds {seeds.start} to {seeds.stop - 1}, {rate:,} a minute: {verdict}"
    )
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.simulate", description=__doc__)
    found.add_argument(
        "--seed", type=int, default=1, help="of the first world; each further one is the next"
    )
    found.add_argument("--runs", type=int, default=1_000, help="about how many")
    found.add_argument("--minutes", type=float, help="for how long, instead of --runs")
    found.add_argument("--schedules", type=int, default=SCHEDULES, help="runs of each world")
    found.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; one a core"
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
