"""Exactness by violence, on real Kafka with real processes: the short form passes. ``mutants.py`` is what it finds out."""

from __future__ import annotations

import pytest

from load.chaos.__main__ import main

# The factory says where there is no Kafka; the run starts a broker of its own.
pytestmark = [pytest.mark.usefixtures("kafka_factory"), pytest.mark.timeout(900)]
SEED = 11


def test_nothing_is_lost_or_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--short", "--seed", str(SEED)])
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    assert code == 0, printed
    assert last.startswith(f"chaos seed={SEED} events=60000 faults=8 ")
    assert last.endswith(" PASS")
