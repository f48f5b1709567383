"""Exactness by violence, on real Kafka with real processes: the short form passes. ``mutants.py`` is what it finds out."""

from __future__ import annotations

import pytest

from load.chaos.__main__ import main
from tests.kafka.broker import KafkaUnavailableError, fetch_jars

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]
SEED = 11


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> None:
    try:
        fetch_jars()
    except KafkaUnavailableError as err:
        pytest.skip(str(err))


def test_nothing_is_lost_or_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--short", "--seed", str(SEED)])
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    assert code == 0, printed
    assert last.startswith(f"chaos seed={SEED} events=60000 faults=8 ")
    assert last.endswith(" PASS")
