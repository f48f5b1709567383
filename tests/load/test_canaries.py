"""The measured promises of the comparison of versions, in short."""

from __future__ import annotations

from dataclasses import replace

import pytest

from load import canaries


@pytest.mark.timeout(300)
def test_the_promises_are_kept_and_the_bad_release_is_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert canaries.main(["--short"]) == 0
    said = capsys.readouterr().out
    assert "bad release: worse after" in said
    rows = {row.split("|")[1].strip(): row.split("|") for row in said.splitlines() if "|" in row}
    told = {name: [cell.strip() for cell in cells[2:]] for name, cells in rows.items()}
    assert told["worse by 10 points"][:3] == ["15", "15", "0"]
    assert told["five times as many errors"][:4] == ["20", "20", "0", "0"]
    assert told["latency + 50 %"][:4] == ["20", "0", "20", "0"]
    assert told["one feature of 20 is read as HHMM"][:4] == ["20", "0", "0", "20"]


def of_labels(name: str, rate: float, difference: float, *_: object) -> canaries.Row:
    """As promised, in no time."""
    return canaries.Row(name, 60, 60 * (difference > 0.02), 0, 200.0, 200.0)


def of_requests(
    name: str, old: object, new: object, pairs: int, seed: int, expected: str = ""
) -> canaries.Told:
    told = {statistic: pairs * (statistic == expected) for statistic in canaries.TOLD}
    return canaries.Told(name, pairs, told, expected, 200.0, 400.0)


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("nothing", 0),
        ("equal versions are called worse", 1),
        ("equal versions are told to differ", 1),
        ("a fault is not found", 1),
    ],
)
def test_a_promise_that_is_not_kept_fails(
    broken: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, rate: float, difference: float, *more: object) -> canaries.Row:
        row = of_labels(name, rate, difference, *more)
        return replace(row, worse=60) if broken == "equal versions are called worse" else row

    def requests(
        name: str, old: object, new: object, pairs: int, seed: int, expected: str = ""
    ) -> canaries.Told:
        row = of_requests(name, old, new, pairs, seed, expected)
        if broken == "equal versions are told to differ" and not expected:
            return replace(row, told=row.told | {"inputs_differ": 10})
        if broken == "a fault is not found" and expected == "more_slow_requests":
            return replace(row, nine_in_ten=float("inf"))
        return row

    monkeypatch.setattr(canaries, "run", run)
    monkeypatch.setattr(canaries, "requests", requests)
    assert canaries.main(["--short"]) == code
