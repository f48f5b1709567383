"""The README's chapters on operations do what they say: a backup restores, and a lost database is made again from Kafka."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from monitor import store as stores
from monitor.environment import load
from monitor.spec import parse_spec
from monitor.store import Store
from streams import authoring, wiring
from streams.clients import put
from streams.embedded.stack import Stack, embedded_stack
from tests.kafka.broker import KafkaBroker, fetch_jars

README: Final = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CHAPTER: Final = README.split("\n### Backup")[1].split("\n### ")[0]
BATCH: Final = 3_000
LOADING: Final = (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
SINCE_MS: Final = 1_764_000_000_000
COUNTS: Final = """
SELECT feature, version, segment, size_ms, start, sum(n) AS n, sumForEach(counts) AS counts, sum(missing) AS missing
FROM windows FINAL GROUP BY ALL ORDER BY ALL"""
SPEC: Final[dict[str, Any]] = {
    "model": "churn",
    "reference": {"calibrate": {"events": 1_000}},
    "windows": {"pane": "10s", "sizes": ["1m"], "lateness": "5s"},
}


def said(pattern: str) -> re.Match[str]:
    """What the chapter says, once."""
    (found,) = re.finditer(pattern, CHAPTER, re.MULTILINE)
    return found


def tar(folder: Path, archive: Path, pattern: str) -> None:
    """A tar of the chapter, with the folder of the volumes and the archive where they are here."""
    words = shlex.split(said(pattern)[0])
    moved = {"/": str(folder), "/backup/driftline.tgz": str(archive)}
    subprocess.run([moved.get(word, word) for word in words], check=True, timeout=60)


@contextmanager
def up(broker: KafkaBroker) -> Iterator[None]:
    """The broker, stopped in order at the end, as ``docker compose stop`` does."""
    with broker:
        yield
        broker.stop()


@contextmanager
def running(home: Path, broker: KafkaBroker) -> Iterator[tuple[Stack, Store]]:
    """All processes, on a Kafka and a ClickHouse that keep what they have."""
    with up(broker), embedded_stack(load(), data_dir=home, broker=broker.address) as stack:
        store = stores.connect(stack.settings.clickhouse)
        yield stack, store
        store.close()


def feed(stack: Stack, part: int) -> None:
    """Five minutes of events, in one message a partition: the same whenever it is asked for."""
    rng = np.random.default_rng(part)
    events = [
        {
            "id": f"{part}-{i}",
            "ts": SINCE_MS + 300_000 * part + 100 * i,
            "model": "churn",
            "version": "1",
            "features": {
                "age": int(rng.integers(18, 90)),
                "country": str(rng.choice(["DE", "FR"])),
            },
            "prediction": int(rng.random() < 0.2),
        }
        for i in range(BATCH)
    ]
    kafka, names = wiring.kafka(stack.settings), wiring.topics(stack.settings)
    for partition in range(stack.settings.kafka.predictions_partitions):
        mine = json.dumps(events[partition :: stack.settings.kafka.predictions_partitions]).encode()
        put(kafka, logging.getLogger(__name__), names.predictions, "", mine, partition=partition)


def referenced(stack: Stack, store: Store) -> None:
    """Wait until the model has a reference: what comes before belongs to no window."""
    deadline = time.monotonic() + 60
    while not any(model.bins_id for model in store.models()):
        assert time.monotonic() < deadline, "no reference"
        stack.poll()
        time.sleep(0.5)
    time.sleep(3)  # the profiler follows the models by itself


def settled(stack: Stack, store: Store, events: int) -> dict[str, Any]:
    """What the database answers once it accounts for so many events and nothing moves any more."""
    before: dict[str, Any] = {}
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        stack.poll()
        now = answers(store)
        if now == before and now["total"]["events"] == events and now["windows"]:
            return now
        before = now
        time.sleep(3)
    raise AssertionError(f"{events} events were not accounted for: {before.get('total')}")


def answers(store: Store) -> dict[str, Any]:
    total = store.ledger().total  # what is late is so by the batches that it came in
    return {
        "total": {
            name: getattr(total, name)
            for name in ("events", "dead", "calibrating", "unaccounted", "open", "holes")
        },
        "models": [(m.model, m.bins_id) for m in store.models()],
        "windows": store.link.rows(COUNTS),
        "predictions": store.link.rows(
            "SELECT * EXCEPT stored_at FROM predictions FINAL ORDER BY ALL"
        ),
    }


def forget(address: str, group: str) -> None:
    """Delete a consumer group; a broker that was just started does not know yet that it keeps it."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    deadline = time.monotonic() + 30
    while True:
        try:
            admin.delete_consumer_groups([group])[group].result(30)
        except KafkaException as err:
            if err.args[0].code() not in LOADING or time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("kafka_factory")
def test_a_backup_restores_and_goes_on_to_the_same_numbers_and_a_lost_database_is_made_again(
    tmp_path: Path,
) -> None:
    volumes, archive = tmp_path / "volumes", tmp_path / "driftline.tgz"
    for name in ("kafka", "clickhouse"):
        (volumes / name).mkdir(parents=True)
    broker = KafkaBroker(volumes / "kafka", fetch_jars())
    home = volumes / "clickhouse"
    with running(home, broker) as (stack, store):
        spec = parse_spec(SPEC, origin="test")
        authoring.apply(stack.settings, spec, origin=home, recalibrate=False)
        feed(stack, 0)
        referenced(stack, store)
        feed(stack, 1)
        first = settled(stack, store, 2 * BATCH)
    tar(volumes, archive, r"tar -cz.*$")

    with running(home, broker) as (stack, store):
        feed(stack, 2)
        whole = settled(stack, store, 3 * BATCH)
    assert len(whole["windows"]) > len(first["windows"]) > 10

    shutil.rmtree(volumes)
    volumes.mkdir()
    tar(volumes, archive, r"tar -xz.*$")
    with running(home, broker) as (stack, store):
        assert settled(stack, store, 2 * BATCH) == first
        feed(stack, 2)
        assert settled(stack, store, 3 * BATCH) == whole, "as if nothing had happened"

    shutil.rmtree(home)  # the database alone is lost
    with up(broker):
        group = said(r"--delete --group (\S+)$")[1]  # the tool's own jar is not among the tests'
        forget(broker.address, group)
    with running(home, broker) as (stack, store):
        assert settled(stack, store, 3 * BATCH) == whole
