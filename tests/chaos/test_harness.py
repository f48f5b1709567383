"""Exactness by violence, on real Kafka with real processes: the short form passes, and each broken hop is found."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from load.chaos.__main__ import MUTANT_EVENTS, main, mutated
from load.chaos.mutants import MUTANTS
from load.chaos.trial import Arena, Verdict, arena
from tests.kafka.broker import KafkaUnavailableError, fetch_jars

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]
SEED = 11
CONTROLS = {
    "control": {"steps", "insert", "profiles"},
    "control_faust": {"write", "leave-out", "insert", "profiles"},
}
log = logging.getLogger(__name__)


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> None:
    try:
        fetch_jars()
    except KafkaUnavailableError as err:
        pytest.skip(str(err))


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


def test_nothing_is_lost_or_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--short", "--seed", str(SEED)])
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    assert code == 0, printed
    assert last.startswith(f"chaos seed={SEED} events=60000 faults=8 ")
    assert last.endswith(" PASS")


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
