"""Seeded simulation of the pure core: profilers, detectors and a sink with everything that may happen to them.

``python -m load.simulate --seed S --runs N [--minutes M]`` runs schedules of crashes, aborts, rebalances, stalls, lost and repeated
messages over small worlds of events, and compares each outcome with plain counting and with an undisturbed run. It prints the
faults and the rate, and at the first failure the seed with the fewest actions that still show it; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.simulation import Failure, Tally, quiet, simulate

SCHEDULES = (
    8  # of one world: what is judged and counted once for all of them costs as much as a run
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an invariant does not hold."""
    options = parser().parse_args(arguments)
    tally, began = Tally(), time.monotonic()
    seed, failure = options.seed, None
    with quiet():
        while failure is None and not _is_done(options, tally.runs, time.monotonic() - began):
            failure = simulate(seed, options.schedules, tally)
            seed += 1
    for line in report(tally, failure, time.monotonic() - began, range(options.seed, seed)):
        print(line)
    return 0 if failure is None else 1


def _is_done(options: argparse.Namespace, runs: int, passed_s: float) -> bool:
    if options.minutes is not None:
        return bool(passed_s >= 60 * options.minutes)
    return bool(runs >= options.runs)


def report(tally: Tally, failure: Failure | None, took_s: float, seeds: range) -> list[str]:
    """What is printed; the last line sums up."""
    lines = [f"{n:>8,}  {fault}" for fault, n in sorted(tally.faults.items())]
    if failure is not None:
        lines.append(str(failure))
    verdict = "every invariant holds" if failure is None else "FAILED"
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
    return found


if __name__ == "__main__":
    sys.exit(main())
