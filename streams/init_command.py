"""``driftline init``: a first spec from a sample of events."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from monitor.errors import ConfigError, InvalidEventError
from streams.console import plain, working
from streams.options import now_ms

if TYPE_CHECKING:
    from monitor.events import Event, Outcome

MOST_BYTES: Final = 64 << 20  # of a line, an array or an Arrow stream, which are read as a whole
EVENTS: Final = 20_000
_NAMED: Final = 10  # models, in an error

app = typer.Typer()


@app.command()
def init(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines, a JSON array or an Arrow stream; - is standard input."
        ),
    ] = Path("-"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Which, if there are events of several.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="SPEC.yaml", help="By default standard output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
    most: Annotated[
        int, typer.Option("--events", min=1, max=1_000_000, help="Read at most so many.")
    ] = EVENTS,
) -> None:
    """Draft a model's spec from a sample of its events, as your app sends them.

    Kinds of features and the task are guessed as Driftline would guess them; (?) marks what a person should decide. No value of a feature is written down.
    """
    from monitor import draft

    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output} is there already: --force writes over it")
    events: list[Event] = []
    refused: list[InvalidEventError] = []
    with working(f"reading {source}"):
        for outcome in _outcomes(source):
            if isinstance(outcome, InvalidEventError):
                refused.append(outcome)
            else:
                events.append(outcome)
                if len(events) == most:
                    break
        name = _chosen(events, refused, model, source)
        chosen = [event for event in events if event.model == name]
        text = draft.draft(name, chosen)
        draft.read_draft(text)  # what could not be applied is not handed out
    if output is None:
        sys.stdout.write(text)
    else:
        _save(output, text, force=force)
    _tell(f"{len(chosen):,} events of {name}" + (f": {output}" if output else ""))
    if len(chosen) < len(events):
        _tell(f"{len(events) - len(chosen):,} events of other models are left out")
    if refused:
        reasons = Counter(each.reason for each in refused).most_common()
        said = ", ".join(f"{n:,} {reason}" for reason, n in reasons)
        _tell(f"{len(refused):,} are no events: {said}; the first: {refused[0].detail}")


def _outcomes(source: Path) -> Iterator[Outcome]:
    with ExitStack() as opened:
        try:
            stream: BinaryIO = (
                sys.stdin.buffer if str(source) == "-" else opened.enter_context(source.open("rb"))
            )
            yield from _decoded(stream, str(source))
        except OSError as err:
            raise ConfigError(f"{source}: cannot be read: {err.strerror}") from err


def _decoded(stream: BinaryIO, origin: str) -> Iterator[Outcome]:
    """Events of a stream: a message a line, or one message, if it is Arrow or an array of several lines."""
    import msgspec

    from monitor.events import ARROW_START, Limits, decode_message

    limits = Limits(message_bytes=MOST_BYTES)
    first = stream.readline(MOST_BYTES + 1)
    whole = first.startswith(ARROW_START)
    if first.lstrip().startswith(b"["):
        try:
            msgspec.json.decode(first, type=msgspec.Raw)
        except msgspec.DecodeError:
            whole = True
    if whole:
        first += stream.read(MOST_BYTES + 1 - len(first))
    for line in chain([first], iter(lambda: stream.readline(MOST_BYTES + 1), b"")):
        if len(line) > MOST_BYTES:
            raise ConfigError(f"{origin}: over {MOST_BYTES >> 20} MiB in one: a sample will do")
        if line.strip():
            yield from decode_message(line, {}, limits, now_ms=now_ms())


def _chosen(
    events: list[Event], refused: list[InvalidEventError], model: str | None, source: Path
) -> str:
    names = Counter(event.model for event in events)
    if not names:
        why = f": {refused[0]}" if refused else ""
        raise ConfigError(f"{source}: there is no event in it{why}")
    said = ", ".join(name for name, _ in names.most_common(_NAMED))
    if model is None and len(names) > 1:
        raise ConfigError(f"{source}: events of {said}: choose one with --model")
    if model is not None and model not in names:
        raise ConfigError(f"{source}: no event of {model}, but of {said}")
    return model or next(iter(names))


def _save(output: Path, text: str, *, force: bool) -> None:
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as err:
        raise ConfigError(f"{output}: cannot be written: {err.strerror}") from err


def _tell(text: str) -> None:
    sys.stderr.write(f"{plain(text)}\n")
