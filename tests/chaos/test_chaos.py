"""Exactness by violence, on real Kafka with real processes: the short form passes, and each broken hop is found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from load.chaos.__main__ import main, mutated
from load.chaos.mutants import MUTANTS
from load.chaos.trial import Verdict, run
from tests.kafka.broker import KafkaUnavailableError, fetch_jars

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]
SEED = 11
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


def test_nothing_is_lost_or_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--short", "--seed", str(SEED)])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert code == 0
    assert last.startswith(f"chaos seed={SEED} events=150000 faults=12 ")
    assert last.endswith(" PASS")


def test_with_every_guard_in_place_what_mutants_suffer_does_no_harm(tmp_path: Path) -> None:
    verdict = broken("control", tmp_path)
    assert verdict.holds, verdict
    struck = {path.name.rpartition("-")[0] for path in tmp_path.glob("*-[0-9]")}
    assert struck == {"write", "leave-out", "insert", "transaction"}


@pytest.mark.parametrize("name", sorted(set(MUTANTS) - {"control"}))
def test_a_broken_hop_is_found(name: str, tmp_path: Path) -> None:
    verdict = broken(name, tmp_path)
    assert not verdict.failed, verdict.failed
    assert any(not row.holds for row in verdict.rows)
