"""``driftline keys``: make keys for the API. Nothing is stored: what is printed goes into the settings, and to who will use it."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from monitor.errors import ConfigError
from monitor.keys import SECRET_BYTES
from monitor.keys import create as create_key
from streams.console import say, write_json
from streams.options import Json, now_ms

app = typer.Typer(help="Make keys for the API.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is: it stands in orders and refusals.")],
    scope: Annotated[
        list[str], typer.Option("--scope", help="read, write or approve; give it once for each.")
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=3_650, help="It is good for so long; else for ever."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key, and show it this once: the settings get a hash of it.

    read is every GET. write is labels, acknowledging and silencing. approve is approving and rejecting actions. None holds another.
    The line goes into the file that DRIFTLINE_API__KEYS_FILE names; the API reads it when it starts.
    """
    random = secrets.token_bytes(SECRET_BYTES)
    try:
        secret, key = create_key(name, scope, random, now_ms=now_ms(), lasts_days=days)
    except ValueError as err:
        raise ConfigError(str(err)) from None
    if as_json:
        write_json({"key": secret, "line": key.line})
        return
    say(f"key, shown this once:  {secret}")
    say(f"line of the settings:  {key.line}")
