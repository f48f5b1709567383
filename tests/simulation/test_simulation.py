"""A thousand seeded runs of the pure core with everything that may happen to it, and proof that they would notice."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from load.simulate import main
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.simulation import (
    Tally,
    cheaply,
    execute,
    quiet,
    shrink,
    simulate,
)
from tests.simulation.sink import FOLLOWED, keys
from tests.simulation.system import Action, Schedule
from tests.simulation.world import make_world

WORLDS, SCHEDULES = 125, 8
EVERY_FAULT = {
    "detector died",
    "detector killed",
    "detector stalled",
    "detectors rebalanced",
    "message left out",
    "message not fetched",
    "message repeated",
    "profilers rebalanced",
    "sink died within a batch",
    "transaction: abort",
    "transaction: die after",
    "transaction: die before",
    "transaction: unknown",
    "transaction: unknown, aborted",
    "zombie profiler",
}
# Worlds in which the mutations show that are hard to see. One that finds a defect is added here.
REGRESSIONS = (11, 23, 28, 136)
MOST_WORLDS = 60  # until a mutation has to be caught


@pytest.fixture(autouse=True)
def without_log() -> Iterator[None]:
    """Processes that die say so, thousands of times."""
    with quiet():
        yield


@pytest.mark.timeout(300)
def test_a_thousand_disturbed_runs_count_as_an_undisturbed_one_and_as_plain_python() -> None:
    tally = Tally()
    for seed in (*REGRESSIONS, *range(1_000, 1_000 + WORLDS)):
        failure = simulate(seed, SCHEDULES, tally)
        assert failure is None, str(failure)
    assert tally.runs >= WORLDS * SCHEDULES
    assert {fault for fault, n in tally.faults.items() if n >= 10} >= EVERY_FAULT


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_part_of_the_protocol_that_is_missing_is_noticed(mutation: Mutation) -> None:
    tally = Tally()
    with mutation.patched():
        for seed in range(mutation.world, mutation.world + MOST_WORLDS):
            if simulate(seed, SCHEDULES, tally, mutation.twist, shrinking=False) is not None:
                return
    pytest.fail(f"{mutation.name}: not noticed in {tally.runs} runs")


def test_a_run_is_a_function_of_its_seed() -> None:
    first, second = Tally(), Tally()
    for tally in (first, second):
        assert simulate(5, 3, tally) is None
    assert first == second


def test_worlds_have_late_and_dead_events_and_incidents_to_get_wrong() -> None:
    late = dead = incidents = outbox = 0
    with cheaply():
        for seed in range(0, 80, 8):
            straight = execute(make_world(seed), Schedule(()))
            late += straight.late > 0
            dead += bool(straight.dead)
            incidents += bool(straight.incidents)
            outbox += bool(straight.outbox)
    assert min(late, dead, incidents, outbox) >= 2


def test_a_failing_schedule_shrinks_to_what_is_needed() -> None:
    actions = [Action("sink", i, 0, 0) for i in range(40)]
    needed = {7, 23}
    least = shrink(actions, lambda some: needed <= {action.a for action in some})
    assert {action.a for action in least} == needed


def test_the_sink_replaces_by_the_keys_of_the_migrations() -> None:
    for name in FOLLOWED:
        key, revision = keys()[name]
        assert len(key) > 1
        assert revision is not None


def test_the_command_says_what_it_ran_and_fails_with_the_least_that_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seed", "5", "--runs", "2", "--schedules", "2", "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("simulate: 2 runs, seeds 5 to 5, ")
    assert main(["--seed", "5", "--runs", "3", "--schedules", "1", "--workers", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    matched = re.match(r"simulate: (\d+) runs, seeds 5 to (\d+), ", last)
    assert matched, last
    assert 3 <= int(matched[1]) == int(matched[2]) - 4 <= 3 + 2 * 2  # what had begun came too
    (mutation,) = (m for m in MUTATIONS if m.name == "late decided by batch")
    with mutation.patched():
        assert main(["--seed", "1", "--runs", "400", "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith("FAILED")
    assert "seed 1, schedule " in said
