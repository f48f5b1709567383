"""A profile by whylogs, of a data frame at once: ``python -m load.peers.whylogs_profile FOLDER``, with the files of ``load.peers.rows``, in an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import whylogs as why

from load.peers.measured import WARM, Meter


def main(folder: Path) -> None:
    """Profile the rows."""
    rows = pd.read_parquet(folder / "current.parquet")
    why.log(rows[:WARM])
    meter = Meter()
    view = why.log(rows).view()
    meter.report(len(rows))
    for name in rows.columns:
        column = view.get_column(name)
        assert column is not None
        assert column.get_metric("counts").n.value == len(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
