"""What the command ``driftline`` writes: lines and tables for people, JSON for programs, settings in help texts."""

from __future__ import annotations

import json
import re
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand
from typing_extensions import override

from monitor import environment
from streams.processes import Process

PATIENCE_S: Final = 1.0  # without a word on a terminal
_NUMBER: Final = re.compile(r"-?[\d,.]*\d(e[-+]\d+)?( ?[%a-z]{1,2})?|")


def plain(text: str) -> str:
    """Without what a terminal would obey: names come from producers."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """One line for people."""
    sys.stdout.write(text + "\n")


@contextmanager
def working(what: str, *, patience_s: float = PATIENCE_S) -> Iterator[Callable[[str], None]]:
    """Says on a terminal what is being done once it has taken ``patience_s``; the callable changes the words. Elsewhere nothing is said. Print nothing meanwhile."""
    spinner = Spinner("dots", Text(what))
    console = Console(stderr=True, highlight=False)
    live = Live(spinner, console=console, transient=True, redirect_stdout=False)
    lock, over = threading.Lock(), threading.Event()

    def start() -> None:
        with lock:
            if not over.is_set():
                live.start()

    timer = threading.Timer(patience_s, start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda words: spinner.update(text=Text(words))
    finally:
        timer.cancel()
        with lock:
            over.set()
            live.stop()


def write_json(value: Any) -> None:
    """A document for programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def write_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Rows with the same keys, as a table, numbers to the right, or as JSON."""
    if as_json:
        write_json(rows)
        return
    lines = [[plain(str(value)) for value in row.values()] for row in rows]
    table = Table(box=None, pad_edge=False)
    for heading, cells in zip(rows[0], zip(*lines, strict=True), strict=True) if rows else ():
        to_right = any(cells) and all(map(_NUMBER.fullmatch, cells))
        table.add_column(heading, overflow="fold", justify="right" if to_right else "left")
    if not rows:
        table.add_column("nothing")
    for line in lines:
        table.add_row(*map(escape, line))
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


def write_backtest(report: Mapping[str, Any], *, as_json: bool) -> None:
    """What came of each rule; then, where incidents were labelled, what each rule made of each of them."""
    if as_json:
        write_json(report)
        return
    write_rows([_outcome_row(outcome) for outcome in report["outcomes"]], as_json=False)
    sightings = [outcome["sightings"] for outcome in report["outcomes"]]
    rules = [outcome["rule"] for outcome in report["outcomes"]]
    if report["episodes"]:
        say("")
    episodes = zip(report["episodes"], zip(*sightings, strict=True), strict=False)
    rows = [
        {
            "incident": seen[0]["name"],
            "kind": episode["kind"],
            "from": utc(episode["start_ms"]),
            **dict(zip(rules, map(_sighting, seen), strict=True)),
        }
        for episode, seen in episodes
    ]
    if rows:
        write_rows(rows, as_json=False)
    say(
        f"\n{report['model']}, {utc(report['from_ms'])} to {utc(report['to_ms'])}:"
        f" {report['windows']:,} windows judged, {report['left_out']:,} left out"
        " (of another reference or window size).\n"
        "A month has 30 days. By chance: a budget is what it says; for a fixed limit, the breaches that the reference's own"
        " scatter makes. Open: the part of the time in which an incident was."
    )


def write_replay(
    letters: Sequence[tuple[Mapping[str, Any], str]], *, dry_run: bool, as_json: bool
) -> None:
    """What became of each letter; for people, how many had each fate, and those that were not sent."""
    if as_json:
        write_json([{**letter, "fate": fate} for letter, fate in letters])
        return
    rows = [
        {name: letter[name] for name in ("time", "stage", "reason", "topic", "partition", "offset")}
        | {"not sent": fate}
        for letter, fate in letters
        if fate != "sent"
    ]
    if rows:
        write_rows(rows, as_json=False)
    sent = len(letters) - len(rows)
    say(f"{'would send' if dry_run else 'sent'} {sent:,} of {len(letters):,} messages again")


def _outcome_row(outcome: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "rule": outcome["rule"],
        "pages": len(outcome["pages"]),
        "pages/month": f"{outcome['pages_per_month']:.2f}",
        "by chance/month": f"{outcome['expected_per_month']:,.2f}",
        "open": f"{outcome['open_share']:.0%}",
        "breaches": f"{outcome['breaches']:,}",
        "no data": f"{outcome['no_data'] / max(1, outcome['verdicts']):.1%}",
    }
    if outcome["false_pages"] is None:
        return row
    found = [seen["found"] for seen in outcome["sightings"] if seen["found"] != "outside"]
    delays = [seen["delay_ms"] for seen in outcome["sightings"] if seen["delay_ms"] is not None]
    return {
        **row,
        "false pages": outcome["false_pages"],
        "found": f"{found.count('found')} of {len(found)}",
        "median delay": _hours(statistics.median(delays)) if delays else "-",
    }


def _sighting(seen: Mapping[str, Any]) -> str:
    if seen["delay_ms"] is not None:
        return f"after {_hours(seen['delay_ms'])}"
    return str(seen["found"]).replace("_", " ")


def write_spending(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """What the budgets allow beside what was opened; then how each is shared out."""
    if as_json:
        write_json(rows)
        return
    if not rows:
        say("there are no models yet")
        return
    shown = [
        {
            "model": row["model"],
            "budget": f"{row['false_alarms']:g} in {_days(row['per_ms'])}",
            "watched": _days(row["watched_ms"]),
            "allowed": f"{row['expected']:.2f}",
            "opened": sum(row["opened"].values()),
            "last": _days(row["recent_ms"]),
            "allowed then": f"{row['recent_expected']:.2f}",
            "opened then": sum(row["recent_opened"].values()),
            "chance": f"{row['chance']:.2g}",
        }
        for row in rows
    ]
    causes = [
        {
            "model": row["model"],
            "cause": cause,
            "opened": n,
            "opened then": row["recent_opened"].get(cause, 0),
        }
        for row in rows
        for cause, n in sorted(row["opened"].items())
    ]
    shares = [
        {"share of": row["model"], **{share: f"{n:.3g}" for share, n in row["shares"].items()}}
        for row in rows
    ]
    for table in (shown, causes, shares):
        if table:  # no incident, no causes
            write_rows(table, as_json=False)
            say("")
    say(
        "Allowed: false alarms. Opened: incidents, outages aside, true or false, since nobody marks them."
        " Chance: of as many in the last period if all are false."
    )


def _hours(ms: float) -> str:
    return f"{ms / 3_600_000:,.1f} h"


def _days(ms: int) -> str:
    return f"{ms / 86_400_000:,.3g} d"


def utc(at_ms: int) -> str:
    """A time to the minute."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")


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
