"""The same histograms in SQL, by ClickHouse's engine in one thread: ``python -m load.peers.chdb_sql FILE FORMAT EVENTS``, the bins as for ``faust_app``."""

from __future__ import annotations

import json
import sys
from typing import Any

import chdb

from load.peers.measured import Meter


def query(bins: dict[str, list[Any]], file: str, of_format: str) -> str:
    """One pass over the file: by minute and version, the counts of each feature's bins."""
    kinds = {
        name: "String" if cuts and isinstance(cuts[0], str) else "Float64"
        for name, cuts in bins.items()
    }
    inner = ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())
    schema = f"id String, ts Int64, model String, version String, features Tuple({inner}), prediction String, score Float64, latency_ms Float64"
    counted = ", ".join(
        f"countResample(0, {len(cuts) + 1}, 1)(transform({_edge(name, kinds[name], cuts)}, {cuts}, {[*range(1, len(cuts) + 1)]}, 0))"
        for name, cuts in bins.items()
    )
    return (  # made of names that the bench made
        f"SELECT count(), intDiv(ts, 60000) AS minute, version, {counted} FROM file('{file}', '{of_format}', '{schema}')"  # noqa: S608
        " GROUP BY minute, version SETTINGS max_threads = 1, max_parsing_threads = 1, input_format_parallel_parsing = 0"
    )


def _edge(name: str, kind: str, cuts: list[Any]) -> str:
    return f"features.`{name}`" if kind == "String" else f"roundDown(features.`{name}`, {cuts})"


def main(file: str, of_format: str, events: int) -> None:
    """Count the file."""
    bins: dict[str, list[Any]] = json.load(sys.stdin)
    chdb.query("SELECT 1")  # type: ignore[no-untyped-call]  # the engine\'s start is not measured
    meter = Meter()
    found = chdb.query(query(bins, file, of_format), "JSONCompact").data()  # type: ignore[no-untyped-call]
    meter.report(events)
    assert sum(int(row[0]) for row in json.loads(str(found))["data"]) == events


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
