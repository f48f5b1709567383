"""How fast predictions become histograms, beside others at the same work: ``python -m load.bench [--events 300000] [--peers] [--json FILE] [--readme]``.

A topic of Apache Kafka on this machine is filled with predictions of 20 features, as JSON, one a message, and once more as Arrow, 2,000 a message. Then, one after
the other and each in a process of its own:

- the profiler, as it runs in production: transactions, lateness, profiles of each minute, rows for the labels;
- a loop that reads the same messages and makes an ``Event`` of each by ``msgspec``, and drops it: the ceiling for JSON read this way;
- an agent of Faust that adds to a table for each event, of fewer events: twenty updates, each a message to the table's changelog;
- ClickHouse's engine (chDB, one thread) in SQL, from a file on disk: no Kafka, no lateness, no rows for the labels.

With ``--peers`` four libraries are given the features of the same predictions, as a data frame, in environments of their own (``load.peers.environments``): a profile by
whylogs, drift reports by Evidently and NannyML, and an ADWIN of river for each feature, given every value. Reading the file is not counted, and none of them reads Kafka.

Compared is CPU time of the process, its client's threads included, from its first batch to its last: the broker shares these cores, so wall time says less. What
the profiler sent is read back: each event is counted once, and a histogram is numpy's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa

from load.bench_batch import BATCH, messages, model
from load.markdown import README, table, write_block
from load.measuring import fill, place, profiles
from load.peers import environments, rows
from load.peers.measured import Used
from monitor.binning import NumericBins
from monitor.events import ARROW_TYPE
from monitor.profile import Profile
from streams.clients import KafkaSettings
from streams.models import Model
from tests.kafka.broker import KafkaBroker, fetch_jars

BARS: Final[Mapping[str, float]] = {
    "json_vs_decode_only": 0.6,
    "json_vs_faust": 15.0,
    "json_vs_chdb": 0.8,
    "arrow_vs_json": 8.0,
    "arrow_vs_chdb": 1.0,
}
PEERS: Final[Mapping[str, tuple[str, str]]] = {  # way -> its module, and the environment's name
    "whylogs, a profile": ("whylogs_profile", "whylogs"),
    "Evidently, a drift report": ("evidently_drift", "evidently"),
    "NannyML, univariate drift": ("nannyml_drift", "nannyml"),
    "river, ADWIN of each value": ("river_adwin", "river"),
}
PEER_BARS: Final[Mapping[str, float]] = {"json_vs_whylogs": 3.0}  # the others are told only
FAUST_SHARE: Final = 20  # a Faust agent gets a twentieth of the events
_A_MESSAGE: Final = 2_000  # events of Arrow in a message
_PATIENCE_S: Final = 300.0


def measured(
    module: str,
    *arguments: object,
    said: str = "",
    env: Mapping[str, str] | None = None,
    python: Path | str = sys.executable,
) -> Used:
    """What a process of ``load.peers`` used.

    Raises:
        RuntimeError: it did not end well.
    """
    done = subprocess.run(
        [str(python), "-m", f"load.peers.{module}", *map(str, arguments)],
        input=said,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"events"')]
    if done.returncode or not lines:
        raise RuntimeError(f"load.peers.{module}: exit code {done.returncode}: {done.stderr[-2_000:]}")  # fmt: skip
    return Used(**json.loads(lines[0]))


class Bench:
    """A broker, its topics and what is in them. One of each way at a time."""

    def __init__(self, folder: Path, bootstrap: str, events: int) -> None:
        rng = np.random.default_rng(2026)
        self.folder, self.bootstrap, self.events = folder, bootstrap, events
        self.known: Model = model(rng)
        self.values: list[bytes] = []
        for first in range(0, events, BATCH):
            drawn = messages(rng, first, min(BATCH, events - first))
            self.values += [message.value or b"" for message in drawn]

    @property
    def bins(self) -> str:
        """The edges and categories of the features, as JSON, for others."""
        assert self.known.reference is not None
        layout = self.known.reference.layout
        bins = {name: layout.bins[name] for name in layout.features}
        return json.dumps({n: b.edges.tolist() if isinstance(b, NumericBins) else b.categories for n, b in bins.items()})  # fmt: skip

    def messages(self, *, arrow: bool) -> list[dict[str, object]]:
        """The predictions, as Kafka takes them."""
        if not arrow:
            return [{"value": value} for value in self.values]
        return [
            {"value": stream(self.values[i : i + _A_MESSAGE]), "headers": {"content-type": ARROW_TYPE}}
            for i in range(0, self.events, _A_MESSAGE)
        ]  # fmt: skip

    def ours(self, *, arrow: bool = False) -> Used:
        """The profiler's way, and that it counted right."""
        way = "arrow" if arrow else "json"
        _, kafka, names = place(self.bootstrap, way, [self.known])
        fill(kafka, names.predictions, self.messages(arrow=arrow))
        env = {"DRIFTLINE_KAFKA__BOOTSTRAP": self.bootstrap, "DRIFTLINE_KAFKA__TOPIC_PREFIX": f"{way}."}  # fmt: skip
        used = measured("profiler", self.events, env=env)
        self._assert_right(kafka, names.profiles)
        return used

    def decode_only(self) -> Used:
        """The ceiling: from the topic that the profiler read."""
        return measured("decode_only", self.bootstrap, "json.predictions", self.events)

    def faust(self) -> Used:
        """The agent."""
        events = self.events // FAUST_SHARE
        return measured("faust_app", self.bootstrap, "json.predictions", events, said=self.bins)

    def chdb(self, *, arrow: bool = False) -> Used:
        """The engine, from a file."""
        file = self.folder / ("events.arrow" if arrow else "events.jsonl")
        file.write_bytes(stream(self.values) if arrow else b"\n".join(self.values))
        of_format = "ArrowStream" if arrow else "JSONEachRow"
        return measured("chdb_sql", file, of_format, self.events, said=self.bins)

    def peers(self) -> dict[str, Used]:
        """Other libraries, from a file.

        Raises:
            PeerMissingError: the environment of one is not there.
        """
        rows.write(self.folder, self.values, np.random.default_rng(2025))
        return {
            way: measured(module, self.folder, python=environments.python(name))
            for way, (module, name) in PEERS.items()
        }

    def _assert_right(self, kafka: KafkaSettings, topic: str) -> None:
        assert self.known.reference is not None
        layout = self.known.reference.layout
        parts = [
            Profile.from_bytes(layout, delta.profile)
            for sent in profiles(kafka, topic)
            for delta in sent.deltas
            if delta.segment == ""
        ]
        assert sum(part.n for part in parts) == self.events
        bins = layout.bins["amount_01"]
        assert isinstance(bins, NumericBins)
        values = [msgspec.json.decode(value)["features"]["amount_01"] for value in self.values]
        expected = np.bincount(np.searchsorted(bins.edges, values, side="right"), minlength=bins.bins)  # fmt: skip
        assert np.array_equal(sum(part.counts("amount_01") for part in parts), expected)


def stream(values: Sequence[bytes]) -> bytes:
    """The events as an Arrow stream."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_pylist([msgspec.json.decode(value) for value in values])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def measure(events: int, *, peers: bool = False) -> dict[str, Used]:
    """Every way, in one broker's life."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with KafkaBroker(folder / "kafka", fetch_jars()) as broker:
            bench = Bench(folder, broker.address, events)
            found = {
                "profiler, JSON": bench.ours(),
                "decode only": bench.decode_only(),
                "Faust, an agent for each event": bench.faust(),
                "chDB, SQL over JSON": bench.chdb(),
                "profiler, Arrow": bench.ours(arrow=True),
                "chDB, SQL over Arrow": bench.chdb(arrow=True),
            }
            return found | (bench.peers() if peers else {})


def ratios(used: Mapping[str, Used]) -> dict[str, float]:
    """Events a CPU second, of one way to another."""
    rate = {name: of.events / of.cpu_s for name, of in used.items()}
    ours, arrow = rate["profiler, JSON"], rate["profiler, Arrow"]
    beside = {
        f"json_vs_{name}": ours / rate[way] for way, (_, name) in PEERS.items() if way in rate
    }
    return beside | {
        "json_vs_decode_only": ours / rate["decode only"],
        "json_vs_faust": ours / rate["Faust, an agent for each event"],
        "json_vs_chdb": ours / rate["chDB, SQL over JSON"],
        "arrow_vs_json": arrow / ours,
        "arrow_vs_chdb": arrow / rate["chDB, SQL over Arrow"],
    }


def report(used: Mapping[str, Used], heading: str) -> str:
    """Ratios first."""
    bars = {**BARS, **PEER_BARS}
    found = [
        [name, f"{ratio:.2f}", f"{bars[name]:g}" if name in bars else ""]
        for name, ratio in ratios(used).items()
    ]
    ways = [
        [
            name,
            f"{of.events:,}",
            f"{of.events / of.cpu_s:,.0f}",
            f"{of.events / of.wall_s:,.0f}",
            f"{1e6 * of.cpu_s / of.events:.1f}",
            f"{of.peak_bytes / 2**20:.0f} MiB",
        ]
        for name, of in used.items()
    ]
    header = ["way", "events", "events a CPU second", "events a second", "CPU seconds a million", "memory, at most"]  # fmt: skip
    return f"{heading}\n\n{table(['ratio of events a CPU second', 'measured', 'wanted'], found)}\n\n{table(header, ways)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if a ratio is below what is wanted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    if options.peers:
        for _, name in PEERS.values():
            environments.python(name)  # before minutes of measuring, not after
    used = measure(options.events, peers=options.peers)
    found = ratios(used)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    heading = f"{date}, `{' '.join(['python -m load.bench', *(a for a in arguments if a != '--readme')])}`: 20 features, Apache Kafka on the same two cores."
    print(report(used, heading))
    if options.json is not None:
        ways = {name: msgspec.to_builtins(of) for name, of in used.items()}
        options.json.write_bytes(msgspec.json.encode({"ratios": found, "ways": ways}))
    if options.readme:
        write_block(README, "bench", report(used, heading))
    bars = {**BARS, **PEER_BARS}
    return int(any(ratio < bars.get(name, 0.0) for name, ratio in found.items()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench", description=__doc__)
    found.add_argument("--events", type=int, default=300_000)
    found.add_argument(
        "--peers",
        action="store_true",
        help="other libraries, too: load.peers.environments makes them",
    )
    found.add_argument("--json", type=Path, help="write ratios and rows to this file")
    found.add_argument("--readme", action="store_true", help="write the README's block")
    return found


if __name__ == "__main__":
    sys.exit(main())
