"""The command ``driftline`` in this process, on a plain terminal of 200 columns."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner, Result

from streams import __main__ as cli


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("DRIFTLINE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    # Logging is set up per process, not per command: the test's own capture stays.
    monkeypatch.setattr("monitor.logs.configure", lambda *_args, **_kwargs: None)


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, arguments, input=stdin, catch_exceptions=False)


def main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the whole command, errors turned into lines."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0), capsys.readouterr().err
