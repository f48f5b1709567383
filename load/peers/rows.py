"""The rows that the other libraries read: the features of the benchmark's own predictions, as Parquet, beside as many as a reference has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from load.bench_batch import columns

CURRENT: Final = "current.parquet"
REFERENCE: Final = "reference.parquet"
REFERENCE_ROWS: Final = 20_000
_AT_ONCE: Final = 50_000  # rows that are Python objects at a time


def write(folder: Path, values: Sequence[bytes], rng: np.random.Generator) -> None:
    """Write both files: a row for each prediction, in its order, and a column for each feature.

    Args:
        folder: is there already.
        values: predictions as JSON, at least one, all with the same features.
        rng: draws the reference, from what the predictions are drawn from.
    """
    schema: pa.Schema | None = None
    batches = []
    for i in range(0, len(values), _AT_ONCE):
        rows = [msgspec.json.decode(value)["features"] for value in values[i : i + _AT_ONCE]]
        batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
        schema = batches[-1].schema
    pq.write_table(pa.Table.from_batches(batches), folder / CURRENT)
    drawn = columns(rng, REFERENCE_ROWS, len(batches[0].schema))
    pq.write_table(pa.Table.from_pydict(drawn), folder / REFERENCE)
