"""Univariate drift by NannyML, with its own choice of methods: ``python -m load.peers.nannyml_drift FOLDER``, with the files of ``load.peers.rows``, in an environment of its own.

A chunk has 6,000 rows, as a minute of the benchmark has. What it learns from the reference is not measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import nannyml as nml
import pandas as pd

from load.peers.measured import WARM, Meter

CHUNK = 6_000


def main(folder: Path) -> None:
    """Compare each chunk of the rows with the reference."""
    rows = pd.read_parquet(folder / "current.parquet")
    reference = pd.read_parquet(folder / "reference.parquet")
    names = list(rows.columns)
    others = list(rows.select_dtypes(exclude="number").columns)
    calculator = nml.UnivariateDriftCalculator(
        column_names=names, treat_as_categorical=others, chunk_size=CHUNK
    )
    calculator.fit(reference)
    calculator.calculate(rows[:WARM])
    meter = Meter()
    found = calculator.calculate(rows).filter(period="analysis").to_df()
    meter.report(len(rows))
    assert len(found) == -(-len(rows) // CHUNK) or len(found) == len(rows) // CHUNK, len(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
