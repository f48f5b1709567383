"""Whether a profiler stays as it is: ``python -m load.soak [--events 10000000] [--json FILE]``.

One process on Apache Kafka counts predictions of 20 features that arrive without a pause, while this process makes them. After each million: the resident memory of
the process, the most it ever had, and CPU time of an event. The broker keeps a few hundred megabytes of the predictions, so that the disk does not fill. In the
end what the profiler sent is read back: each event is counted once, and a histogram is numpy's.

::

    millions   1 │ 2 .. 4 │ 5 .. 7 │ 8 .. 10
                 │ first  │        │ last third: their median memory within 10 % of each other
    CPU time of each million within 15 % of the median of all
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from load.markdown import table
from load.measuring import BATCH, Site, Traffic
from load.proc import cpu_s, peak_rss_bytes, rss_bytes
from tests.kafka.broker import KafkaBroker, fetch_jars

STEPS: Final = 10
MEMORY_BAR: Final = 0.10
CPU_BAR: Final = 0.15
_KEPT_BYTES: Final = 256 << 20  # of a partition: some 400,000 events
_AT_ONCE: Final = 4 * BATCH  # far less than is kept: nothing unread is dropped


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many events; CPU time is of an event since the sample before."""

    events: int
    rss_bytes: int
    peak_bytes: int
    cpu_us: float
    per_s: float


@dataclass(frozen=True, slots=True)
class Judged:
    """Parts of what they are compared with: the last third's memory over the first's, and the CPU time that lies farthest from the median."""

    memory: float
    cpu: float

    @property
    def holds(self) -> bool:
        """Whether both are within their bars."""
        return abs(self.memory) <= MEMORY_BAR and abs(self.cpu) <= CPU_BAR


def judge(samples: Sequence[Sample]) -> Judged:
    """The first sample's memory is left out: what a process needs at all it takes then.

    Raises:
        ValueError: fewer than four samples have no thirds.
    """
    if len(samples) < 4:
        raise ValueError("fewer than four samples have no thirds")
    grown = [sample.rss_bytes for sample in samples[1:]]
    third = len(grown) // 3
    middle = median(sample.cpu_us for sample in samples)
    return Judged(
        memory=median(grown[-third:]) / median(grown[:third]) - 1,
        cpu=max((sample.cpu_us / middle - 1 for sample in samples), key=abs),
    )


def measure(folder: Path, bootstrap: str, name: str = "soak", *, events: int, steps: int) -> Iterator[Sample]:  # fmt: skip
    """A sample a step.

    Raises:
        AssertionError: an event was not counted, or twice, or a histogram is not numpy's.
    """
    with Site(folder, bootstrap, name, Traffic()) as site:
        site.bound(_KEPT_BYTES)
        site.start_profilers(1)
        site.send(2 * BATCH)  # its start is not what is measured
        site.settle()
        (pid,) = site.pids
        for _ in range(steps):
            first, before_s, since_s = site.sent, cpu_s(pid), time.monotonic()
            while (left := first + events // steps - site.sent) > 0:
                site.send(min(left, _AT_ONCE))
                # The queue's length is bounded, and what is in it is counted while the next is made.
                site.wait(lambda: site.sent - site.committed() <= _AT_ONCE, "it keeps up")
            site.settle()
            done = site.sent - first
            yield Sample(
                site.sent,
                rss_bytes(pid),
                peak_rss_bytes(pid),
                1e6 * (cpu_s(pid) - before_s) / done,
                done / (time.monotonic() - since_s),
            )
        site.assert_right()


def report(samples: Sequence[Sample], heading: str) -> str:
    """The table, and what it says."""
    rows = [
        [
            f"{of.events:,}",
            f"{of.rss_bytes / 2**20:.0f} MiB",
            f"{of.peak_bytes / 2**20:.0f} MiB",
            f"{of.cpu_us:.2f}",
            f"{of.per_s:,.0f}",
        ]
        for of in samples
    ]
    header = ["events", "memory", "memory, at most", "CPU us an event", "events a second"]
    found = judge(samples)
    verdict = "holds" if found.holds else "falls short"
    return (
        f"{heading}\n\n{table(header, rows)}\n\n{verdict}: the last third's memory is {found.memory:+.1%} of the first's (bar {MEMORY_BAR:.0%}),"
        f" and the CPU time farthest from the median {found.cpu:+.1%} (bar {CPU_BAR:.0%})."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if memory or CPU time is not flat."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    samples = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with KafkaBroker(folder / "kafka", fetch_jars()) as broker:
            for sample in measure(folder, broker.address, events=options.events, steps=STEPS):
                print(sample, file=sys.stderr, flush=True)
                samples.append(sample)
    command = " ".join(["python -m load.soak", *arguments])
    heading = f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`: 20 features, one profiler, Apache Kafka on the same two cores."
    print(report(samples, heading))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(samples))
    return int(not judge(samples).holds)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.soak", description=__doc__)
    found.add_argument("--events", type=int, default=10_000_000)
    found.add_argument("--json", type=Path, help="write the samples to this file")
    return found


if __name__ == "__main__":
    sys.exit(main())
