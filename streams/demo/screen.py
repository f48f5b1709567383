"""The demo's screen: progress, incidents as they open and close, what the receivers got, and the closing table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from monitor.wire import Incident
from streams.demo.receiver import Received
from streams.demo.report import Report, utc

_INCIDENTS_SHOWN: Final = 8
_DAY: Final = len("2013-")  # all is one year
_STATE: Final = {
    "firing": ("● open", "bold red"),
    "resolved": ("○ closed", "green"),
    "pending": ("· pending", "dim"),
}
_ADVICE: Final = {
    "fix_data": "fix the data",
    "rollback": "roll back",
    "retrain": "retrain",
    "watch": "watch",
    "page": "page",
    "investigate": "investigate",
}


@dataclass(frozen=True, slots=True)
class View:
    """The pipeline at one moment."""

    at_ms: int | None
    sent: int
    expected: int
    accounted: int
    unaccounted: int
    joined: int
    windows: int
    incidents: Sequence[Incident]
    received: Sequence[Received]

    @property
    def progress(self) -> tuple[int, ...]:
        """What grows while the pipeline works."""
        revisions = sum(incident.revision for incident in self.incidents)
        return self.sent, self.accounted, self.joined, self.windows, revisions, len(self.received)


class Screen:
    """Live on a terminal; a line now and then without one. Mutable: it draws. Use it as a context manager."""

    def __init__(self, console: Console, addresses: Mapping[str, str], *, headless: bool) -> None:
        self._console, self._addresses = console, addresses
        self._live = (
            None
            if headless or not console.is_terminal
            else Live(console=console, refresh_per_second=4)
        )
        self._said: set[tuple[str, str, str]] = set()
        self._events_said = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: View) -> None:
        """Draw the pipeline as it is."""
        if self._live is not None:
            self._live.update(_drawn(view, self._addresses))
            return
        for incident in view.incidents:
            key = (incident.id, incident.state, incident.cause)
            if key not in self._said:
                self._said.add(key)
                self._console.print(
                    f"{utc(incident.updated_ms)}  {incident.state:8}  {incident.title}"
                )
        step = max(1, view.expected // 10)
        if view.accounted // step > self._events_said:
            self._events_said = view.accounted // step
            self._console.print(
                f"{view.accounted:,} of {view.expected:,} events accounted for", style="dim"
            )

    def close(self, report: Report) -> None:
        """Stop drawing and print the closing tables."""
        if self._live is not None:
            self._live.stop()
        self._console.print(closing(report))


def closing(report: Report) -> RenderableType:
    """The closing tables of a report."""
    totals = Table(
        title="Accounts", title_justify="left", show_header=False, box=None, padding=(0, 2)
    )
    totals.add_column(justify="right", style="bold")
    totals.add_column()
    for number, what in (
        (report.events_in, "events in"),
        (report.events_accounted, "accounted for, each in a window, late, or a dead letter"),
        (report.unaccounted, "unaccounted"),
        (report.labels_joined, f"labels joined, of {report.labels_expected:,}"),
        (report.windows, "windows closed and judged"),
    ):
        totals.add_row(f"{number:,}", what)
    found = Table(title="Staged accidents", title_justify="left", box=None, padding=(0, 2))
    for heading in ("what", "began (event time)", "incident opened", "delay", "advice"):
        found.add_column(heading)
    for accident in report.accidents:
        delay = "not found" if accident.delay_h is None else f"{accident.delay_h:g} h"
        style = "green" if accident.in_time else "bold red"
        advice = _ADVICE.get(accident.advice or "", "-")
        found.add_row(
            accident.what, accident.onset, accident.opened or "-", Text(delay, style=style), advice
        )
    hooks = Table(title="Webhooks", title_justify="left", box=None, padding=(0, 2))
    for heading in ("receiver", "accepted", "refused", "repeated"):
        hooks.add_column(heading, justify="left" if heading == "receiver" else "right")
    for hook in report.webhooks:
        hooks.add_row(hook.receiver, str(hook.accepted), str(hook.refused), str(hook.repeats))
    verdict = Text("All is as it should be.", style="bold green")
    if report.problems:
        verdict = Text("\n".join(f"✗ {problem}" for problem in report.problems), style="bold red")
    return Group(
        "",
        totals,
        "",
        found,
        "",
        _incident_rows(report),
        "",
        hooks,
        "",
        verdict,
        f"{report.seconds:g} s",
    )


def _incident_rows(report: Report) -> Table:
    table = Table(title="Incidents (event time)", title_justify="left", box=None, padding=(0, 2))
    for heading in ("opened", "closed", "cause", "advice", "what"):
        table.add_column(heading, no_wrap=heading != "what")
    for row in report.incidents:
        advice = _ADVICE.get(row["advice"], row["advice"])
        if row["rollback_to"]:
            advice += f" to {row['rollback_to']}"
        table.add_row(
            row["opened"][_DAY:],
            row["resolved"][_DAY:] if row["resolved"] else "open",
            row["cause"].replace("_", " "),
            advice,
            row["title"],
        )
    return table


def _drawn(view: View, addresses: Mapping[str, str]) -> RenderableType:
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right")
    head.add_row(
        ProgressBar(total=max(1, view.expected), completed=min(view.accounted, view.expected)),
        f"{view.accounted:,} / {view.expected:,} events",
    )
    ok = (
        Text("0 unaccounted", style="green")
        if view.unaccounted == 0
        else Text(f"{view.unaccounted:,} unaccounted", "red")
    )
    facts = Text.assemble(
        "served to ", (utc(view.at_ms) or "-", "bold"), "   ", ok,
        f"   {view.joined:,} labels joined   {view.windows:,} windows",
    )  # fmt: skip
    return Panel(
        Group(
            head,
            facts,
            "",
            _incidents(view.incidents),
            "",
            _receivers(view.received),
            _where(addresses),
        ),
        title="Driftline: eleven months of flights from New York",
        border_style="blue",
    )


def _incidents(incidents: Sequence[Incident]) -> RenderableType:
    if not incidents:
        return Text("no incident yet", style="dim")
    table = Table(box=None, padding=(0, 1), expand=True)
    for heading in ("", "since (event time)", "advice", "what"):
        table.add_column(heading, no_wrap=heading != "what")
    newest = sorted(incidents, key=lambda i: (i.state == "firing", i.opened_ms))[-_INCIDENTS_SHOWN:]
    for incident in sorted(newest, key=lambda i: i.opened_ms):
        word, style = _STATE[incident.state]
        advice = _ADVICE[incident.advice]
        table.add_row(Text(word, style=style), utc(incident.onset_ms), advice, incident.title)
    return table


def _receivers(received: Sequence[Received]) -> RenderableType:
    accepted = Counter(request.path.strip("/") for request in received if request.problem is None)
    refused = sum(request.problem is not None for request in received)
    text = Text("webhooks  ", style="dim")
    for name in ("slack", "pagerduty", "retrain", "rollback"):
        text.append(f"{name} {accepted[name]}   ", style="" if accepted[name] else "dim")
    if refused:
        text.append(f"{refused} refused", style="bold red")
    return text


def _where(addresses: Mapping[str, str]) -> RenderableType:
    shown = [f"{what} {addresses[what]}" for what in ("page", "API") if what in addresses]
    return Text("   ".join(shown), style="dim")
