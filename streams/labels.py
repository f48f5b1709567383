"""Labels from a file to their topic: CSV, JSON lines or Parquet, a stretch at a time, so that a file of any size takes the memory of one stretch.

What is accepted is with the broker before the next stretch is read. So whatever ends a load, it may be repeated: a row twice is one label.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from monitor.arrow import in_utc
from monitor.errors import ConfigError, InvalidEventError
from monitor.events import Aliases
from monitor.labels import LIMITS, Receipt, Row, Rows, Take, csv_rows, json_row, require, sift

File: TypeAlias = "io.BufferedReader[Any]"
Format: TypeAlias = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[Mapping[str, Format]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
STDIN: Final = Path("-")
STRETCH: Final = (
    5_000  # rows: some megabytes, and a quarter of a second between two words of progress
)
MAX_LINE: Final = LIMITS.message_bytes


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a row the parts of a label are, if not under their own names; ``model`` is the model of every row.

    With ``id`` no other name of the join key is looked at.
    """

    model: str | None = None
    id: str | None = None
    label: str | None = None
    ts: str | None = None

    @property
    def wanted(self) -> set[str]:
        """Columns that a table has to have."""
        named = {name for name in (self.id, self.ts) if name is not None}
        return named | {self.label or "label"} | (set() if self.model is not None else {"model"})

    def of(self, row: Row) -> Row:
        """The row under the names that a label has."""
        chosen: dict[str, Any] = {
            name: row.get(column)
            for name, column in (("id", self.id), ("label", self.label), ("ts", self.ts))
            if column is not None
        }
        if self.model is not None:
            chosen["model"] = self.model
        if self.id is None:
            return {**row, **chosen}
        return {**{name: row.get(name) for name in ("model", "label", "ts")}, **chosen}


def load(
    rows: Rows,
    take: Take,
    receipt: Receipt,
    *,
    aliases: Aliases,
    now_ms: Callable[[], int],
    progress: Callable[[Receipt], None],
) -> None:
    """Send rows to their topic, and keep ``receipt`` up to date: also where this raises, it says what was done.

    Args:
        rows: of ``read``.
        take: takes labels to the topic.
        receipt: of this load.
        aliases: of the models' specs.
        now_ms: the clock, for rows without a time.
        progress: is told after each stretch.

    Raises:
        TransientError: the broker does not answer.
        ConfigError: the rest of the file cannot be read, or the broker refuses who we are.
    """
    first = 1
    while stretch := list(islice(rows, STRETCH)):
        labels = list(sift(stretch, receipt, arrival_ms=now_ms(), aliases=aliases, first=first))
        first += len(stretch)
        take(labels)
        receipt.accepted += len(labels)
        progress(receipt)


@contextmanager
def read(
    path: Path, stdin: IO[bytes], columns: Columns, format_: Format | None = None
) -> Iterator[Rows]:
    """The rows of a file, or of ``stdin`` where the path is ``-``.

    Args:
        path: its suffix says the format, unless ``format_`` does.
        stdin: JSON lines where it begins with ``{``, else CSV.
        columns: where the parts of a label are.
        format_: of the file.

    Raises:
        ConfigError: it is not there or of another kind, or has not the columns; from the rows: the rest of it cannot be read.
    """
    try:
        with _opened(path, stdin) as file:
            chosen = format_ or _format(path, file)
            if chosen == "parquet" and path == STDIN:
                raise ConfigError("Parquet is read from its end: give a file, not -")
            rows = _READERS[chosen](file, columns)
            yield (row if isinstance(row, InvalidEventError) else columns.of(row) for row in rows)
    except InvalidEventError as err:
        raise ConfigError(f"{_shown(path)}: {err.detail}") from None
    except (OSError, pa.ArrowException) as err:
        # Arrow may quote rows: no more of it than names the trouble.
        said = err.strerror if isinstance(err, OSError) and err.strerror else type(err).__name__
        raise ConfigError(f"{_shown(path)}: cannot be read: {said}") from err


def _shown(path: Path) -> str:
    return "standard input" if path == STDIN else str(path)


@contextmanager
def _opened(path: Path, stdin: IO[bytes]) -> Iterator[File]:
    if path != STDIN:
        with path.open("rb") as file:
            yield file
        return
    buffered = io.BufferedReader(cast("io.RawIOBase", stdin))
    try:
        yield buffered
    finally:
        buffered.detach()  # or its end would close what is not ours


def _format(path: Path, file: io.BufferedReader) -> Format:
    if path == STDIN:
        start = file.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()
        return "jsonl" if start.startswith(b"{") else "csv"
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: expected one of {', '.join(sorted(FORMATS))}, or say --format")
    return FORMATS[path.suffix.lower()]


def _csv(file: File, columns: Columns) -> Rows:
    # A line that is too long is cut: then it has a cell that is too large, or one that is missing.
    texts = (line[:MAX_LINE].decode("utf-8", "surrogateescape") for line in _lines(file))
    return csv_rows(texts, columns.wanted)


def _jsonl(file: File, _columns: Columns) -> Rows:
    for line in _lines(file):
        if len(line) > MAX_LINE:
            yield InvalidEventError("too_large", f"a line of more than {MAX_LINE} bytes")
        elif line.strip():
            yield json_row(line)


def _parquet(file: File, columns: Columns) -> Rows:
    table = pq.ParquetFile(file, pre_buffer=False)
    names = table.schema_arrow.names
    require(columns.wanted, names)
    # Any column may have to stand for the id, unless one is named.
    few = columns.wanted | {"model", "ts"} if columns.id else names
    batches = table.iter_batches(
        STRETCH, columns=[name for name in names if name in few], use_threads=False
    )
    return (row for batch in batches for row in in_utc(batch, columns.ts or "ts").to_pylist())


def _lines(file: File) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long, its beginning."""
    first = True
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line.removeprefix(codecs.BOM_UTF8) if first else line
        first = False


_READERS: Final[Mapping[Format, Callable[[File, Columns], Rows]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
