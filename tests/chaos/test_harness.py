"""Exactness by violence, on real Kafka with real processes: the short form passes, and each broken hop is found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from load.chaos.__main__ import main, mutated
from load.chaos.mutants import MUTANTS
from load.chaos.trial import Verdict, run
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


def broken(name: str, directory: Path) -> Verdict:
    """A run of a mutant. What it says goes to the test's log."""
    return run(SEED, mutated(name), directory, log.info)


def strikes(directory: Path) -> set[str]:
    """The kinds of what was made to happen in a run."""
    return {path.name.rpartition("-")[0] for path in directory.glob("*-[0-9]")}


def test_nothing_is_lost_or_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--short", "--seed", str(SEED)])
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    assert code == 0, printed
    assert last.startswith(f"chaos seed={SEED} events=60000 faults=8 ")
    assert last.endswith(" PASS")


@pytest.mark.parametrize("name", CONTROLS)
def test_with_every_guard_in_place_what_mutants_suffer_does_no_harm(
    name: str, tmp_path: Path
) -> None:
    verdict = broken(name, tmp_path)
    assert verdict.holds, verdict
    assert strikes(tmp_path) == CONTROLS[name]


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - CONTROLS.keys()))
def test_a_broken_hop_is_found(name: str, tmp_path: Path) -> None:
    verdict = broken(name, tmp_path)
    assert not verdict.holds
    assert strikes(tmp_path)
    # Without its value fence a detector may also see that its state is impossible, and go no further.
    assert "left, and had so for" in verdict.failed or not verdict.failed
