"""``driftline labels``: what became of predictions, handed in by hand."""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from monitor.errors import ConfigError, TransientError
from streams.console import say, working, write_json, write_rows
from streams.options import EXIT_FAILED, Config, Json, load, now_ms

if TYPE_CHECKING:
    from monitor.events import Aliases
    from monitor.labels import Receipt
    from monitor.settings import Settings

SHOWN: Final = 20  # refused rows, for people

app = typer.Typer(help="Load labels from a file.", no_args_is_help=True)


class Format(Enum):
    """The values of ``--format``."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def _column(name: str, of: str) -> Any:
    return typer.Option(f"--{name}-column", metavar="NAME", help=f"Column (or field) of {of}.")


@app.command("load")
def load_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, JSON lines or Parquet; - is standard input.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of every row; by default each row names its own.")] = None,
    id_column: Annotated[str | None, _column("id", "the prediction's id, by default id, prediction_id or the model's labels.join_key")] = None,
    label_column: Annotated[str | None, _column("label", "the label, by default label")] = None,
    ts_column: Annotated[str | None, _column("ts", "the time at which it became known, by default ts; without one, now")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="By default as the suffix says; of standard input, what it begins with.")] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Load labels: rows of id, model, label and ts (RFC 3339 or epoch milliseconds), of any number.

    Each row is accepted or refused on its own; accepted is what the broker has. To load a file again does no harm: rows of one id and ts are one
    label. Exit code 1 if a row was refused. The first row has the number 1, a header none.
    """
    settings = load(config, "labels")
    from monitor.labels import Receipt
    from streams import labels
    from streams.orders import Messenger

    receipt = Receipt()
    columns = labels.Columns(model, id_column, label_column, ts_column)
    try:
        with (
            labels.read(source, sys.stdin.buffer, columns, format_ and format_.value) as rows,
            working("loading labels") as told,
        ):
            labels.load(
                rows,
                Messenger(settings).take,
                receipt,
                aliases=_aliases(settings),
                now_ms=now_ms,
                progress=lambda receipt: told(_so_far(receipt)),
            )
    except (ConfigError, TransientError) as err:
        if not receipt.accepted:
            raise
        raise type(err)(f"{err} ({receipt.accepted:,} labels were accepted before)") from err
    _write(receipt, as_json=as_json)
    if receipt.refused:
        raise typer.Exit(EXIT_FAILED)


def _so_far(receipt: Receipt) -> str:
    refused = f", {receipt.refused:,} refused" if receipt.refused else ""
    return f"{receipt.accepted:,} labels accepted{refused}"


def _aliases(settings: Settings) -> Aliases:
    """Of the models as they are now; the broker is asked once, and only if a row has no id."""
    from streams import models, registry, wiring

    kafka, topics = wiring.kafka(settings), wiring.topics(settings)
    known = cache(lambda: registry.read(kafka, topics))
    return models.aliases_of(lambda name: known().get(name))


def _write(receipt: Receipt, *, as_json: bool) -> None:
    if as_json:
        write_json(receipt.to_dict())
        return
    total = receipt.accepted + receipt.refused
    say(f"accepted {receipt.accepted:,} of {total:,} labels")
    if receipt.refused:
        rows = [{"row": x.row, "reason": x.reason, "detail": x.detail} for x in receipt.shown]
        write_rows(rows[:SHOWN], as_json=False)
    if receipt.refused > SHOWN:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in receipt.reasons.most_common())
        say(f"the first {SHOWN} of them; in all {reasons}")
