"""Reference files: Parquet, CSV and Arrow, read in batches. The only part of building a reference that does I/O."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads

from monitor.columns import Columns, from_batch
from monitor.errors import ConfigError
from monitor.reference import Source


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

    def batches() -> Iterator[Columns]:
        try:
            if formats[path.suffix] == "csv":
                for batch in pacsv.open_csv(path):
                    yield from_batch(batch, origin=str(path))
            else:
                dataset = pads.dataset(path, format=formats[path.suffix])
                for batch in dataset.to_batches(batch_size=1 << 16):
                    yield from_batch(batch, origin=str(path))
        except (pa.ArrowException, OSError) as err:
            # The first line, and no more of it than names the trouble: Arrow may quote rows.
            said = str(err).partition("\n")[0].partition(": ")[0]
            raise ConfigError(f"{path}: cannot be read as {formats[path.suffix]}: {said}") from err

    return batches
