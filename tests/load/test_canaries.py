"""The measured promises of the comparison of versions, in short."""

from __future__ import annotations

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
    assert [cell.strip() for cell in rows["worse by 10 points"][2:5]] == ["15", "15", "0"]


def test_a_promise_that_is_not_kept_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_worse(name: str, *_: object) -> canaries.Row:
        return canaries.Row(name, 60, 60, 0, 200.0, 200.0)

    monkeypatch.setattr(canaries, "run", always_worse)
    assert canaries.main(["--short"]) == 1
