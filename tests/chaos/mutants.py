"""Each hop of the protocol broken on purpose: the chaos harness has to find it, and both controls have to pass.

Eight minutes on two cores, and the machine should have nothing else to do; so a run of the whole suite leaves it out (its name is not
``test_*``): ``make test ARGS="-n 0 tests/chaos/mutants.py"``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from load.chaos.__main__ import MUTANT_EVENTS, mutated
from load.chaos.mutants import MUTANTS
from load.chaos.trial import Arena, Verdict, arena

pytestmark = [pytest.mark.usefixtures("kafka_factory"), pytest.mark.timeout(900)]
SEED = 11
CONTROLS = {
    "control": {"steps", "insert", "profiles"},
    "control_faust": {"write", "leave-out", "insert", "profiles"},
}
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Servers and a file for all mutants."""
    directory = tmp_path_factory.mktemp("chaos")
    with arena(SEED, MUTANT_EVENTS, directory, log.info, few=True) as made:
        yield made


def broken(place: Arena, name: str) -> tuple[Verdict, set[str]]:
    """A run of a mutant, and the kinds of what was made to happen in it. What it says goes to the test's log."""
    verdict = place.run(mutated(name), log.info)
    strikes = place.strikes(MUTANTS[name]).iterdir()
    return verdict, {path.name.rpartition("-")[0] for path in strikes}


@pytest.mark.parametrize("name", CONTROLS)
def test_with_every_guard_in_place_what_mutants_suffer_does_no_harm(
    place: Arena, name: str
) -> None:
    verdict, strikes = broken(place, name)
    assert verdict.holds, verdict
    assert strikes == CONTROLS[name]


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - CONTROLS.keys()))
def test_a_broken_hop_is_found(place: Arena, name: str) -> None:
    verdict, strikes = broken(place, name)
    assert not verdict.holds
    assert strikes
    # Without its value fence a detector may also see that its state is impossible, and go no further.
    assert "left, and had so for" in verdict.failed or not verdict.failed
