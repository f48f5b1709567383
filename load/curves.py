"""How the cost of an event grows: ``python -m load.curves [--short] [--events 200000] [--rounds 3] [--json FILE]``.

CPU time of the profiler's processes for an event, on Apache Kafka on this machine, over the number of features, of models (mixed in every batch), the length of
panes, and one or two processes. Each curve changes one of them from the same middle: 20 features, one model, panes of a minute, one process. A second of event
time has 1,000 predictions of all models together.

A point has topics and processes of its own. They count two batches first; then they stand still while the topic is filled, so that all batches are full, and
go on: counted is CPU time from there to the last commit, without their start. What they sent is read back: each event is counted once, and a histogram is numpy's.
All points take turns, the second time in the opposite order; told is the median. Where an event is large, fewer of them are sent, and never fewer than two batches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from load.bench_batch import FEATURES
from load.markdown import table
from load.measuring import BATCH, Site, Spent, Traffic
from tests.kafka.broker import KafkaBroker, fetch_jars

FLAT: Final = 0.15  # how far a point may lie from what its curve promises


@dataclass(frozen=True, slots=True)
class Point:
    """Where it is measured."""

    features: int = FEATURES
    models: int = 1
    pane: str = "1m"
    workers: int = 1


MIDDLE: Final = Point()
FEATURE_CURVE: Final = "features"
CURVES: Final[Mapping[str, Sequence[Point]]] = {
    FEATURE_CURVE: [replace(MIDDLE, features=n) for n in (5, 20, 100, 500)],
    "models": [replace(MIDDLE, models=n) for n in (1, 3, 10, 30, 100)],
    "pane": [replace(MIDDLE, pane=size) for size in ("1s", "10s", "1m")],
    "workers": [replace(MIDDLE, workers=n) for n in (1, 2)],
}
SHORT: Final[Mapping[str, Sequence[Point]]] = {
    FEATURE_CURVE: [replace(MIDDLE, features=n) for n in (5, 20, 50)],
    "models": [replace(MIDDLE, models=n) for n in (1, 10)],
    "pane": [replace(MIDDLE, pane=size) for size in ("1s", "1m")],
    "workers": [replace(MIDDLE, workers=n) for n in (1, 2)],
}


@dataclass(frozen=True, slots=True)
class Found:
    """One curve.

    Attributes:
        points: of the curve, by what changes.
        cpu_us: CPU time of an event.
        per_s: events in a second of wall time, which the broker shares.
        off: how far each lies from what is promised, as a part of it.
    """

    points: list[str]
    cpu_us: list[float]
    per_s: list[float]
    off: list[float]

    @property
    def holds(self) -> bool:
        """Whether every point is as promised."""
        return all(abs(part) <= FLAT for part in self.off)


def events_of(point: Point, events: int) -> int:
    """How many are sent: as many values as with 20 features, at least two batches."""
    return max(2 * BATCH, events * FEATURES // max(FEATURES, point.features))


def measure(points: Sequence[Point], *, events: int, rounds: int) -> dict[Point, list[Spent]]:
    """Every point once a round, in one broker's life.

    Raises:
        AssertionError: an event was not counted, or twice, or a histogram is not numpy's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with KafkaBroker(folder / "kafka", fetch_jars()) as broker:
            return rounds_of(folder, broker.address, points, events=events, rounds=rounds)


def rounds_of(
    folder: Path, bootstrap: str, points: Sequence[Point], *, events: int, rounds: int
) -> dict[Point, list[Spent]]:
    """The same on a broker that is there: the points in turns, every second round backwards."""
    found: dict[Point, list[Spent]] = {point: [] for point in points}
    for turn in range(rounds):
        order = points if turn % 2 == 0 else points[::-1]
        for i, point in enumerate(order):
            spent = measured(folder, bootstrap, f"t{turn}p{i}", point, events)
            found[point].append(spent)
            print(f"{point}: {spent.cpu_us:.2f} us", file=sys.stderr, flush=True)
    return found


def measured(folder: Path, bootstrap: str, name: str, point: Point, events: int) -> Spent:
    """One point, once."""
    traffic = Traffic(point.features, point.models, point.pane)
    with Site(folder, bootstrap, name, traffic) as site:
        site.start_profilers(point.workers)
        site.send(2 * BATCH)
        site.settle()
        spent = site.backlog(events_of(point, events))
        site.assert_right()
    return spent


def curve(name: str, points: Sequence[Point], spent: Mapping[Point, Sequence[Spent]]) -> Found:
    """Flat means: as the point in the middle of all curves. Linear: as the line through both ends."""
    cpu_us = [median(one.cpu_us for one in spent[point]) for point in points]
    per_s = [median(one.events / one.wall_s for one in spent[point]) for point in points]
    if name == FEATURE_CURVE:
        low, high = points[0].features, points[-1].features
        slope = (cpu_us[-1] - cpu_us[0]) / (high - low)
        wanted = [cpu_us[0] + slope * (point.features - low) for point in points]
    else:
        wanted = [cpu_us[points.index(MIDDLE)]] * len(points)
    off = [got / promised - 1 for got, promised in zip(cpu_us, wanted, strict=True)]
    return Found([str(getattr(point, name)) for point in points], cpu_us, per_s, off)


def report(found: Mapping[str, Found], heading: str) -> str:
    """A table a curve, and whether it holds."""
    parts = [heading]
    for name, of in found.items():
        promised = "the line through both ends" if name == FEATURE_CURVE else "one model, 20 features, panes of a minute, one process"  # fmt: skip
        rows = [
            [point, f"{us:.2f}", f"{per_s:,.0f}", f"{off:+.0%}"]
            for point, us, per_s, off in zip(of.points, of.cpu_us, of.per_s, of.off, strict=True)
        ]
        verdict = "holds" if of.holds else "falls short"
        parts += [
            table([name, "CPU us an event", "events a second", "off"], rows),
            f"{name}: {verdict} (within {FLAT:.0%} of {promised}).",
        ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if a curve falls short."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    curves, events, rounds = (SHORT, 2 * BATCH, 1) if options.short else (CURVES, options.events, options.rounds)  # fmt: skip
    points = list(dict.fromkeys(point for each in curves.values() for point in each))
    spent = measure(points, events=events, rounds=rounds)
    found = {name: curve(name, each, spent) for name, each in curves.items()}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    command = " ".join(["python -m load.curves", *arguments])
    print(report(found, f"{date}, `{command}`: {rounds} rounds, Apache Kafka on the same two cores."))  # fmt: skip
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(found))
    return int(not all(each.holds for each in found.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.curves", description=__doc__)
    found.add_argument(
        "--short", action="store_true", help="few points, once: to see that it works"
    )
    found.add_argument("--events", type=int, default=200_000, help="of 20 features, at a point")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--json", type=Path, help="write the curves to this file")
    return found


if __name__ == "__main__":
    sys.exit(main())
