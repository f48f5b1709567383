"""Reference files: Parquet, CSV and Arrow, read in batches. The only part of building a reference that does I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from monitor.columns import Columns, from_batch
from monitor.errors import ConfigError
from monitor.reference import Source

BATCH_ROWS: Final = 1 << 16


def read_source(path: Path) -> Source:
    """A reference file, readable several times, in batches: Parquet, CSV or Arrow by its suffix.

    Raises:
        ConfigError: missing, or of another kind.
    """
    formats = {
        ".parquet": "parquet",
        ".pq": "parquet",
        ".csv": "csv",
        ".arrow": "ipc",
        ".feather": "ipc",
    }
    if path.suffix not in formats:
        raise ConfigError(f"{path}: expected one of {', '.join(sorted(formats))}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    kind = formats[path.suffix]

    def batches() -> Iterator[Columns]:
        try:
            for batch in _READERS[kind](path):
                yield from_batch(batch, origin=str(path))
        except (pa.ArrowException, OSError) as err:
            # The first line, and no more of it than names the trouble: Arrow may quote rows.
            said = str(err).partition("\n")[0].partition(": ")[0]
            raise ConfigError(f"{path}: cannot be read as {kind}: {said}") from err

    return batches


# Not by Arrow's datasets, which read ahead: of 4 million rows of 96 MB they held 133 MB at once, these hold 5 (Parquet) and 2 (Arrow).
def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)


def _arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            for at in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(at, BATCH_ROWS)


def _csv(path: Path) -> Iterator[pa.RecordBatch]:
    with pacsv.open_csv(path, pacsv.ReadOptions(use_threads=False)) as reader:
        yield from reader


_READERS: Final[Mapping[str, Callable[[Path], Iterator[pa.RecordBatch]]]] = {
    "parquet": _parquet,
    "ipc": _arrow,
    "csv": _csv,
}
