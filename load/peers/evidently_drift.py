"""A drift report by Evidently, with its presets: ``python -m load.peers.evidently_drift FOLDER``, with the files of ``load.peers.rows``, in an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

from load.peers.measured import WARM, Meter


def main(folder: Path) -> None:
    """Compare the rows with the reference."""
    rows = pd.read_parquet(folder / "current.parquet")
    reference = pd.read_parquet(folder / "reference.parquet")
    numbers = list(rows.select_dtypes("number").columns)
    others = [name for name in rows.columns if name not in numbers]
    known = DataDefinition(numerical_columns=numbers, categorical_columns=others)

    def run(of: pd.DataFrame) -> int:
        current, old = (
            Dataset.from_pandas(frame, data_definition=known) for frame in (of, reference)
        )
        found = Report([DataDriftPreset()]).run(current, old).dict()
        return sum("ValueDrift" in metric["metric_name"] for metric in found["metrics"])

    run(rows[:WARM])
    meter = Meter()
    judged = run(rows)
    meter.report(len(rows))
    assert judged == len(rows.columns), judged


if __name__ == "__main__":
    main(Path(sys.argv[1]))
