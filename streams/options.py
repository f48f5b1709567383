"""Options that many commands of ``driftline`` have, and what each of them begins with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer

from monitor import environment
from monitor.errors import ConfigError
from monitor.settings import Settings

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file of settings; the environment goes before it."),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="Windows from here on; UTC.")
]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Windows up to here; UTC.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


def load(config: Path | None, process: str) -> Settings:
    """The settings, with logs set up as they say.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = environment.load(config)
    from monitor import logs

    logs.configure(settings.log, process=process)
    return settings


def now_ms() -> int:
    """The wall clock: commands are where it enters."""
    return round(time.time() * 1_000)  # noqa: TID251


def time_of(option: str, text: str | None) -> int | None:
    """Epoch milliseconds of an option that may be left out.

    Raises:
        ConfigError: it is no time.
    """
    from alerting.episodes import parse_time

    return _parsed(option, text, parse_time)


def since(text: str | None, now_ms: int) -> int | None:
    """Epoch milliseconds of ``2h`` (ago) or ``2026-01-31T12:00:00Z``.

    Raises:
        ConfigError: it is neither.
    """
    from monitor.spec import parse_duration_ms

    if text is not None:
        with suppress(ValueError):
            return max(0, now_ms - parse_duration_ms(text))
    try:
        return time_of("--since", text)
    except ConfigError as err:
        raise ConfigError(f"{err}, or a duration such as 2h") from None


def duration_of(option: str, text: str | None) -> int | None:
    """Milliseconds of an option that may be left out.

    Raises:
        ConfigError: it is no duration.
    """
    from monitor.spec import parse_duration_ms

    return _parsed(option, text, parse_duration_ms)


def _parsed(option: str, text: str | None, parse: Callable[[str], int]) -> int | None:
    try:
        return None if text is None else parse(text)
    except ValueError as err:
        raise ConfigError(f"{option}: {err}") from None
