"""What a prediction costs each process, in CPU, memory and disk: ``python -m load.sizing [--rate 1000] [--seconds 90] [--readme]``.

All processes run beside Apache Kafka and the embedded ClickHouse, and one model with 20 features is served at a steady rate, as of now. Once its reference is
there, CPU time is counted over the rest, so that what a process takes at rest is in it. Disk is what Kafka's segments and ClickHouse's merged parts hold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Producer

from load.bench_batch import columns
from load.markdown import README, table, write_block
from load.proc import cpu_s, peak_rss_bytes
from monitor import store as stores
from monitor.environment import load
from monitor.spec import parse_spec
from monitor.store import Store
from streams import authoring, wiring
from streams.clients import enqueue, producer_config
from streams.embedded.stack import Stack, embedded_stack
from streams.processes import EMBEDDED
from tests.kafka.broker import KafkaBroker, fetch_jars

ROLES: Final = (*EMBEDDED, "clickhouse")
CALIBRATE: Final = 5_000
MODEL: Final = "sized"
_TURN_S: Final = 0.1
_DISK: Final = """
SELECT table, sum(bytes_on_disk) AS bytes FROM system.parts
WHERE database = currentDatabase() AND active GROUP BY table ORDER BY bytes DESC"""
_SETTLE_S: Final = 120.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process: CPU seconds for a thousand predictions, and the most resident memory."""

    role: str
    cpu_s: float
    peak_bytes: int


def topic_bytes(data: Path) -> dict[str, int]:
    """Bytes of each topic's segments."""
    found: dict[str, int] = {}
    for segment in data.rglob("*.log"):
        topic = segment.parent.name.rpartition("-")[0]
        found[topic] = found.get(topic, 0) + segment.stat().st_size
    return found


def serve(stack: Stack, rng: np.random.Generator, *, rate: int, events: int) -> None:
    """Predictions of now, at a rate."""
    topic = wiring.topics(stack.settings).predictions
    producer = Producer(producer_config(wiring.kafka(stack.settings), logger))
    drawn = columns(rng, events)
    names, cells = list(drawn), zip(*drawn.values(), strict=True)
    since_s = time.monotonic()
    for i, values in enumerate(cells):
        if (ahead_s := i / rate - (time.monotonic() - since_s)) > _TURN_S:
            producer.poll(0)
            time.sleep(ahead_s)
            stack.poll()
        event = {
            "id": f"{time.time_ns():x}-{i}",
            "ts": time.time_ns() // 1_000_000,
            "model": MODEL,
            "version": "1",
            "features": dict(zip(names, values, strict=True)),
            "prediction": i % 2,
            "score": float(rng.random()),
            "latency_ms": float(rng.lognormal(3, 0.4)),
        }
        enqueue(producer, {"topic": topic, "value": msgspec.json.encode(event)})
    producer.flush(30)


def accounted(stack: Stack, store: Store, events: int) -> None:
    """Wait until the ledger has so many events."""
    deadline = time.monotonic() + _SETTLE_S
    while store.ledger().total.events < events:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{events} events were not accounted for within {_SETTLE_S:g} s")
        stack.poll()
        time.sleep(0.5)


def measure(folder: Path, *, rate: int, seconds: int) -> tuple[list[Use], dict[str, float], dict[str, float]]:  # fmt: skip
    """What processes use, and bytes of a prediction by topic and by table."""
    rng = np.random.default_rng(1)
    (folder / "kafka").mkdir()
    with (
        KafkaBroker(folder / "kafka", fetch_jars()) as broker,
        embedded_stack(load(), data_dir=folder / "up", broker=broker.address, fresh=True) as stack,
    ):
        spec = parse_spec({"model": MODEL, "reference": {"calibrate": {"events": CALIBRATE}}}, origin="sizing")  # fmt: skip
        authoring.apply(stack.settings, spec, origin=folder, recalibrate=False)
        store = stores.connect(stack.settings.clickhouse)
        serve(stack, rng, rate=rate, events=2 * CALIBRATE)
        accounted(stack, store, 2 * CALIBRATE)
        pids = {role: stack.supervisor.pid(role) for role in ROLES}
        before = {role: cpu_s(pid) for role, pid in pids.items()}
        events = rate * seconds
        serve(stack, rng, rate=rate, events=events)
        accounted(stack, store, 2 * CALIBRATE + events)
        used = [
            Use(role, 1_000 * (cpu_s(pid) - before[role]) / events, peak_rss_bytes(pid))
            for role, pid in pids.items()
        ]
        for row in store.link.rows(_DISK):
            store.link.execute(f"OPTIMIZE TABLE {row['table']} FINAL")
        served = 2 * CALIBRATE + events
        tables = {row["table"]: int(row["bytes"]) / served for row in store.link.rows(_DISK)}
        prefix = stack.settings.kafka.topic_prefix
        topics = {
            name.removeprefix(prefix): size / served
            for name, size in topic_bytes(folder / "kafka" / "data").items()
            if name.startswith(prefix)
        }
        store.close()
    return used, topics, tables


def report(used: Sequence[Use], topics: dict[str, float], tables: dict[str, float], heading: str) -> str:  # fmt: skip
    """Tables."""
    rows = [[u.role, f"{u.cpu_s:.2f}", f"{u.peak_bytes / 2**20:.0f} MiB"] for u in used]
    total = ["together", f"{sum(u.cpu_s for u in used):.2f}", f"{sum(u.peak_bytes for u in used) / 2**20:.0f} MiB"]  # fmt: skip
    kept = {**{f"topic {n}": b for n, b in topics.items()}, **{f"table {n}": b for n, b in tables.items()}}  # fmt: skip
    large = sorted(((name, size) for name, size in kept.items() if size >= 1), key=lambda row: -row[1])  # fmt: skip
    return (
        f"{heading}\n\n{table(['process', 'cores at 1,000 predictions a second', 'memory, at most'], [*rows, total])}\n\n"
        f"{table(['on disk', 'bytes a prediction'], [[name, f'{size:,.0f}'] for name, size in large])}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = " ".join(["python -m load.sizing", *(a for a in arguments if a != "--readme")])
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rate=options.rate, seconds=options.seconds)
    heading = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`: one model, 20 features, {options.rate:,} predictions a second, no segments, no labels;"
        " two cores that also carry Apache Kafka."
    )
    text = report(*found, heading)
    print(text)
    if options.readme:
        write_block(README, "sizing", text)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.sizing", description=__doc__)
    found.add_argument("--readme", action="store_true", help="write the README's block")
    found.add_argument("--rate", type=int, default=1_000, help="predictions a second")
    found.add_argument("--seconds", type=int, default=90, help="how long it is measured")
    return found


if __name__ == "__main__":
    sys.exit(main())
