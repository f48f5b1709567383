"""An ADWIN of river for each feature, given every value; a category is given as its number: ``python -m load.peers.river_adwin FOLDER``, with the files of ``load.peers.rows``.

It profiles nothing: it is what one detector, value by value, costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from river.drift import ADWIN

from load.peers.measured import WARM, Meter


def main(folder: Path) -> None:
    """Watch the rows."""
    rows = pd.read_parquet(folder / "current.parquet")
    for name in rows.select_dtypes(exclude="number").columns:
        rows[name] = pd.factorize(rows[name], sort=True)[0]
    values = rows.to_numpy("float64")

    def run(count: int) -> list[ADWIN]:
        found = [ADWIN() for _ in rows.columns]  # type: ignore[no-untyped-call]  # it has no types
        for row in values[:count].tolist():
            for one, value in zip(found, row, strict=True):
                one.update(value)  # type: ignore[no-untyped-call]  # nor this
        return found

    run(WARM)
    meter = Meter()
    detectors = run(len(rows))
    meter.report(len(rows))
    assert len(detectors) == len(rows.columns)
    assert all(0 < one.width <= len(rows) for one in detectors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
