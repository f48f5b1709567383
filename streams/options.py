"""Options that many commands of ``driftline`` have, and what each of them begins with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from monitor import environment
from monitor.settings import Settings

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file of settings; the environment goes before it."),
]
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
