"""How fresh performance windows are, and what a label costs: ``python -m load.bench_truth [--short] [--json FILE]``.

Predictions are stored, a million at a time, and after each million its share of the labels comes at a fixed rate, as the sink stores it (two
inserts a second). The evaluator, a process of its own, joins them and emits the windows that they touch. Two orders:

- *delayed*: in the order of their times, each label log-normally late, 6 hours in the median (95 % within 31 hours)
- *random*: all predictions are there, and the labels come in no order at all, so every step touches every window

An age is the time from when labels were due at the sink, which is when they are if nothing is slow, until every window that they touch was emitted.
CPU time is the evaluator's and the database's (the inserts of the feed and all merges are in it). At the end the last message of each window must say what numpy
counts from the labels that were sent.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from load.markdown import README, table, write_block
from load.proc import peak_rss_bytes
from monitor import store
from monitor.settings import ClickHouseSettings
from monitor.spec import ModelSpec, parse_spec
from monitor.tables import SCHEMAS, TableName, arrivals, to_table
from monitor.truth import Topic, Truth
from monitor.wire import Performance
from streams.embedded import clickhouse
from streams.evaluator import TOPICS, Evaluator, Progress, State, rest_s
from streams.supervisor import LOOPBACK, Supervisor, free_port

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Ints = npt.NDArray[np.int64]
Order = Literal["delayed", "random"]

HOUR_MS: Final = 3_600_000
START_MS: Final = 1_735_689_600_000  # 2025-01-01
PER_WINDOW: Final = 16_667
PARTITIONS: Final = 4  # of the topic labels
RATE: Final = 5_000  # labels a second
TICK_S: Final = 0.5  # between two inserts
BARS_S: Final[Mapping[Order, float]] = {"delayed": 30.0, "random": 60.0}
FLAT: Final = 1.25
_PATIENCE_S: Final = 300.0
DELAY_MS: Final = 6 * HOUR_MS
SIGMA: Final = 1.0
MODEL: Final = "orders"
SPEC: Final = {
    "model": MODEL,
    "task": "binary",
    "windows": {"pane": "1h", "sizes": ["1h"]},
    "labels": {"expected_delay": "2d"},
}


@dataclass(frozen=True, slots=True)
class World:
    """What was predicted and what is true, all of it from the number of a prediction: ``n`` of them, ``per_window`` an hour."""

    n: int
    per_window: int
    seed: int

    def ids(self, rows: Ints) -> list[str]:
        """32 hexadecimal digits, as of a UUID: they do not compress and have no order."""
        words = np.stack([_mixed(rows, self.seed), _mixed(rows, self.seed + 1)], axis=1)
        text = words.astype(">u8").tobytes().hex()
        return [text[i : i + 32] for i in range(0, len(text), 32)]

    def ts_ms(self, rows: Ints) -> Ints:
        """Event times."""
        return START_MS + rows * HOUR_MS // self.per_window

    def score(self, rows: Ints) -> npt.NDArray[np.float64]:
        """Calibrated."""
        return _uniform(rows, self.seed + 2)

    def label(self, rows: Ints) -> Ints:
        """0 or 1."""
        return (_uniform(rows, self.seed + 3) < self.score(rows)).astype(np.int64)

    def predictions(self, first: int, stop: int) -> Iterator[pa.Table]:
        """Rows of the table, some at a time."""
        for at in range(first, stop, 100_000):
            rows = np.arange(at, min(at + 100_000, stop))
            said = self.score(rows)
            yield _table(
                "predictions",
                model=_same(MODEL, rows),
                ts=self.ts_ms(rows),
                id=self.ids(rows),
                version=_same("1", rows),
                segments=[["country=DE"]] * len(rows),
                prediction=np.where(said >= 0.5, "1", "0"),
                score=said,
            )


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels in the order of coming: the predictions they belong to, and their own times."""

    rows: Ints
    ts_ms: Ints


def delayed(world: World, n: int, seed: int) -> Labels:
    """``n`` labels of predictions drawn evenly, in the order of their times; those that come when the last prediction is long past are left out."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(world.n, n, replace=False))
    ts_ms = world.ts_ms(rows) + rng.lognormal(np.log(DELAY_MS), SIGMA, n).astype(np.int64)
    order = np.argsort(ts_ms, kind="stable")
    return Labels(rows[order], ts_ms[order])


def shuffled(world: World, n: int, seed: int) -> Labels:
    """The same labels in no order."""
    known = delayed(world, n, seed)
    order = np.random.default_rng(seed + 1).permutation(n)
    return Labels(known.rows[order], known.ts_ms[order])


@dataclass(frozen=True, slots=True)
class Phase:
    """A row of the table.

    Attributes:
        stored: predictions in the database.
        labels: that came in this phase.
        age_p50_s: of the labels' windows, see the module.
        evaluator_us: CPU time of the evaluator for each label.
        database_us: CPU time of the database for each label.
        rss_mib: largest resident memory of the evaluator so far.
        windows: messages that were emitted.
    """

    order: Order
    stored: int
    labels: int
    age_p50_s: float
    age_max_s: float
    evaluator_us: float
    database_us: float
    rss_mib: float
    windows: int

    @property
    def cpu_us(self) -> float:
        """CPU time of both for each label."""
        return self.evaluator_us + self.database_us


class Step(msgspec.Struct, array_like=True):
    """What the evaluator's process says after each step: where it stands, and its last words on the windows that it emitted."""

    at_s: float
    cursor: dict[str, int]
    cpu_s: float
    rss_bytes: int
    said: dict[int, tuple[int, int, int]]  # start -> predictions, labelled, errors
    emitted: int


def evaluate(url: str, pipe: Connection, stored: Sequence[int]) -> None:
    """The evaluator's process: steps as ``streams.evaluator.run`` does, until it is terminated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    truth = Truth(store.connect(ClickHouseSettings(url=url)).link, versions=20)
    spec: ModelSpec = parse_spec(SPEC, origin="load")
    said: dict[int, tuple[int, int, int]] = {}
    emitted = 0

    def emit(messages: Sequence[Performance]) -> None:
        nonlocal emitted
        emitted += len(messages)
        for m in messages:
            if m.segment == "":
                said[m.start_ms] = (m.predictions, m.labelled, m.errors)

    def progress() -> Progress:
        places: dict[tuple[Topic, int], int] = {("labels", p): stored[p] for p in range(PARTITIONS)}
        places["scored", 0] = stored[PARTITIONS]
        return Progress("here", places, places, {topic: topic for topic in TOPICS})

    evaluator = Evaluator(truth, lambda: {MODEL: spec}, progress, emit)
    pipe.send_bytes(
        msgspec.msgpack.encode(Step(time.monotonic(), {}, time.process_time(), 0, {}, 0))
    )
    never = threading.Event()
    while True:
        began = time.monotonic()
        if evaluator.step():
            saved = truth.state()[1]
            cursor = msgspec.json.decode(saved or "{}", type=State).cursor
            step = Step(
                time.monotonic(),
                cursor,
                time.process_time(),
                peak_rss_bytes(os.getpid()),
                said,
                emitted,
            )
            pipe.send_bytes(msgspec.msgpack.encode(step))
            said.clear()
        took_s = time.monotonic() - began
        never.wait(rest_s(took_s, 1.0, behind=evaluator.behind))


class Bench:
    """One database with an evaluator beside it, and the labels that they are sent."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world = world
        self._stack = ExitStack()
        supervisor = self._stack.enter_context(Supervisor(directory / "logs"))
        port = free_port()
        supervisor.start(clickhouse.child(port, directory / "data"))
        supervisor.wait_ready(30)
        self._database_pid = supervisor.pid("clickhouse")
        settings = ClickHouseSettings(url=f"http://{LOOPBACK}:{port}")
        store.migrate(settings)
        self._store = self._stack.enter_context(closing(store.connect(settings)))
        context = multiprocessing.get_context("spawn")
        self._stored = context.Array("q", PARTITIONS + 1, lock=False)  # the last: of `scored`
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=evaluate, args=(settings.url, theirs, self._stored))
        self._process.start()
        self._stack.callback(self._end)
        theirs.close()
        self._sent = 0
        self.said: dict[int, tuple[int, int, int]] = {}
        self._last = msgspec.msgpack.decode(self._pipe.recv_bytes(), type=Step)  # it is ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def predict(self, first: int, stop: int) -> None:
        """Store predictions, and see them looked through for labels and merged: what that costs is no matter of labels."""
        for rows in self._world.predictions(first, stop):
            token = f"{self._stored[-1]}"
            self._store.append("predictions", rows, token=token)
            places = arrivals("scored", 0, self._stored[-1], rows)
            self._store.append("arrivals", places, token=f"scored{token}")
            self._stored[-1] += 1
        while self._last.cursor.get("scored/0", 0) < self._stored[-1]:
            self._read(_PATIENCE_S, [], [])
        closed_ms = int(self._world.ts_ms(np.array([stop]))[0])
        empty = ((), *(0,) * 8, None, None, ())
        window = (MODEL, "1", "", HOUR_MS, closed_ms - HOUR_MS, "", "", 1, "b", 1, 0, *empty)
        self._store.append("windows", to_table("windows", [window]), token=f"closed{stop}")
        while self._store.link.rows("SELECT count() AS n FROM system.merges")[0]["n"]:
            time.sleep(0.2)

    def send(self, order: Order, stored: int, labels: Labels) -> Phase:
        """Send labels at ``RATE``; the ages are known when all their windows are."""
        before, database_s = self._last, cpu_s(self._database_pid)
        began = time.monotonic()
        due: list[tuple[float, list[int]]] = []
        ages: list[float] = []
        per_tick = round(RATE * TICK_S)
        for at in range(0, len(labels.rows), per_tick):
            due_s = began + at / RATE
            while (left_s := due_s - time.monotonic()) > 0:
                self._read(left_s, due, ages)
            self._insert(labels, at, min(at + per_tick, len(labels.rows)))
            due.append((due_s, list(self._stored[:PARTITIONS])))
        while due:
            self._read(_PATIENCE_S, due, ages)
        n = len(labels.rows)
        return Phase(
            order,
            stored,
            n,
            float(np.median(ages)),
            max(ages),
            (self._last.cpu_s - before.cpu_s) / n * 1e6,
            (cpu_s(self._database_pid) - database_s) / n * 1e6,
            self._last.rss_bytes / 2**20,
            self._last.emitted - before.emitted,
        )

    def _insert(self, labels: Labels, first: int, stop: int) -> None:
        """As the sink does: rows first, then where they came from."""
        rows, ts_ms = labels.rows[first:stop], labels.ts_ms[first:stop]
        partition = np.arange(first, stop) % PARTITIONS
        positions = np.empty(len(rows), dtype=np.int64)
        for p in range(PARTITIONS):
            here = partition == p
            positions[here] = self._stored[p] + np.arange(here.sum())
        common = {"model": _same(MODEL, rows), "ts": ts_ms, "id": self._world.ids(rows)}
        label = np.where(self._world.label(rows) == 1, "1", "0")
        token = f"{self._sent}"
        self._store.append(
            "labels", _table("labels", **common, label=label, position=positions), token=token
        )
        places = {"topic": _same("labels", rows), "partition": partition, "position": positions}
        self._store.append("arrivals", _table("arrivals", **places, **common), token=token)
        self._sent += len(rows)
        for p in range(PARTITIONS):
            self._stored[p] += int((partition == p).sum())

    def _read(
        self, timeout_s: float, due: list[tuple[float, list[int]]], ages: list[float]
    ) -> None:
        """Wait for a step; the ticks that it covers have their ages."""
        if not self._pipe.poll(timeout_s):
            if timeout_s == _PATIENCE_S:
                raise TimeoutError("the evaluator stands still")
            return
        step = self._last = msgspec.msgpack.decode(self._pipe.recv_bytes(), type=Step)
        self.said |= step.said
        reached = [step.cursor.get(f"labels/{p}", 0) for p in range(PARTITIONS)]
        while due and all(r >= n for r, n in zip(reached, due[0][1], strict=True)):
            ages.append(step.at_s - due.pop(0)[0])

    def _end(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def check(world: World, labels: Labels, said: Mapping[int, tuple[int, int, int]]) -> None:
    """The last message of every window against the labels that were sent.

    Raises:
        AssertionError: they differ.
    """
    rows = labels.rows
    hours = (world.ts_ms(rows) - START_MS) // HOUR_MS
    wrong = (world.score(rows) >= 0.5) != (world.label(rows) == 1)
    every = (world.ts_ms(np.arange(world.n)) - START_MS) // HOUR_MS
    counts = [np.bincount(of, minlength=every[-1] + 1) for of in (every, hours, hours[wrong])]
    wanted = {
        START_MS + hour * HOUR_MS: tuple(int(of[hour]) for of in counts)
        for hour in range(every[-1] + 1)
        if counts[1][hour]
    }
    differing = [start for start in wanted if said.get(start) != wanted[start]]
    assert not differing, f"{len(differing)} of {len(wanted)} windows, the first at {differing[0]}"
    assert said.keys() >= wanted.keys()


def run(order: Order, millions: int, scale: float, seed: int, directory: Path) -> Iterator[Phase]:
    """All phases of an order; checked at the end."""
    n = round(millions * 1e6 * scale)
    world = World(n, round(PER_WINDOW * scale), seed)
    labels = (delayed if order == "delayed" else shuffled)(world, round(0.4 * n), seed)
    parts = millions if order == "delayed" else 1
    with Bench(world, directory) as bench:
        done = 0
        for part in range(parts):
            first, stop = n * part // parts, n * (part + 1) // parts
            bench.predict(first, stop)
            until = len(labels.rows)
            if part < parts - 1:
                until = int(np.searchsorted(labels.ts_ms, world.ts_ms(np.array([stop]))[0]))
            yield bench.send(order, stop, Labels(labels.rows[done:until], labels.ts_ms[done:until]))
            done = until
        check(world, labels, bench.said)


def report(phases: Sequence[Phase]) -> str:
    """The table as Markdown."""
    header = ("order", "predictions", "labels", "age: median", "age: most", "CPU a label: evaluator", "database", "evaluator's RSS", "windows emitted")  # fmt: skip
    rows = [
        (
            p.order,
            f"{p.stored:,}",
            f"{p.labels:,}",
            f"{p.age_p50_s:.1f} s",
            f"{p.age_max_s:.1f} s",
            f"{p.evaluator_us:.0f} us",
            f"{p.database_us:.0f} us",
            f"{p.rss_mib:.0f} MiB",
            f"{p.windows:,}",
        )
        for p in phases
    ]
    return table(header, rows)


def missed(phases: Sequence[Phase]) -> list[str]:
    """The bars that do not hold."""
    found = [
        f"{p.order} at {p.stored:,}: {p.age_max_s:.1f} s old, not {BARS_S[p.order]:.0f}"
        for p in phases
        if p.age_max_s > BARS_S[p.order]
    ]
    ordered = [p for p in phases if p.order == "delayed"]
    if ordered and ordered[-1].cpu_us > FLAT * ordered[0].cpu_us:
        grown = ordered[-1].cpu_us / ordered[0].cpu_us
        found.append(f"CPU a label grew {grown:.2f} times, not at most {FLAT}")
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mixed(rows: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """SplitMix64: as good as random, from a number."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _uniform(rows: Ints, salt: int) -> npt.NDArray[np.float64]:
    return np.asarray((_mixed(rows, salt) >> np.uint64(11)) / 2**53)


def _same(word: str, rows: Ints) -> list[str]:
    return [word] * len(rows)


def _table(name: TableName, **columns: object) -> pa.Table:
    schema = SCHEMAS[name]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a bar is missed."""
    options = parser().parse_args(arguments)
    scale = 1 / 50 if options.short else options.scale
    phases: list[Phase] = []
    for order in options.orders:
        with tempfile.TemporaryDirectory() as directory:
            for phase in run(order, options.millions, scale, options.seed, Path(directory)):
                phases.append(phase)
                print(report([phase]).splitlines()[-1], flush=True)
    print(f"\n{report(phases)}")
    for line in missed(phases):
        print(line)
    if options.json:
        text = json.dumps([asdict(phase) for phase in phases], indent=2)
        options.json.write_text(text, encoding="utf-8")
    if options.readme:
        write_block(README, "truth", report(phases))
    return int(bool(missed(phases)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench_truth", description=__doc__)
    found.add_argument("--short", action="store_true", help="a fiftieth of everything, for CI")
    found.add_argument("--scale", type=float, default=1.0)
    found.add_argument("--millions", type=int, default=5, help="of predictions")
    found.add_argument("--orders", nargs="+", choices=tuple(BARS_S), default=[*BARS_S])
    found.add_argument("--seed", type=int, default=2026)
    found.add_argument("--json", type=Path, help="write the rows to this file")
    found.add_argument("--readme", action="store_true", help="write the block of the README, too")
    return found


if __name__ == "__main__":
    sys.exit(main())
