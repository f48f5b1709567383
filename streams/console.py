"""What the command ``driftline`` writes: lines and tables for people, JSON for programs, settings in help texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from typer.core import TyperCommand
from typing_extensions import override

from monitor import environment
from streams.processes import Process


def say(text: str) -> None:
    """One line for people."""
    sys.stdout.write(text + "\n")


def write_json(value: Any) -> None:
    """A document for programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def write_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Rows with the same keys, as a table or as JSON."""
    if as_json:
        write_json(rows)
        return
    headings = rows[0] if rows else ("nothing",)
    columns = (Column(heading, overflow="fold") for heading in headings)  # never cut short
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console(highlight=False).print(table)


def write_reference(summary: Mapping[str, Any], *, as_json: bool) -> None:
    """A reference's summary: what it covers, then a row per field."""
    if as_json:
        write_json(summary)
        return
    for name, value in summary.items():
        if name != "fields":
            say(f"{name:<12} {value}")
    write_rows(summary["fields"], as_json=False)


def write_addresses(addresses: Mapping[str, str]) -> None:
    """Where the parts of a running stack are."""
    table = Table("what", "where", title="Driftline is up; Ctrl-C stops it")
    for what, where in addresses.items():
        table.add_row(what, escape(where))
    Console(highlight=False).print(table)


def with_settings(process: Process) -> type[TyperCommand]:
    """A command whose help ends with every setting that the process reads."""

    class WithSettings(TyperCommand):
        @override
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            write_settings(process, Console(highlight=False))

    return WithSettings


def write_settings(process: Process, console: Console) -> None:
    """List the settings of a process: variable, default, meaning."""
    console.print("[bold]Settings[/] (environment variable, default)\n")
    for row in environment.describe(*process.groups):
        default = f" = {escape(row.default)}" if row.default else ""
        console.print(f"  [cyan]{row.variable}[/]{default}", soft_wrap=True)
        file = f" Or {row.variable_file}: a file with it." if row.variable_file else ""
        console.print(f"      {escape(row.description)}{file}", style="dim", soft_wrap=True)
    console.print(
        "\nIn the YAML file (--config or DRIFTLINE_CONFIG), DRIFTLINE_KAFKA__BOOTSTRAP is "
        "bootstrap under kafka.\n",
        soft_wrap=True,
    )
