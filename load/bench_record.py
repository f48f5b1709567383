"""What a record costs the app that makes it: ``python -m load.bench_record [--short]``.

Timed is the call of ``Recorder.record`` by whoever makes it, by the wall clock and with the reading of the clock (0.1 us) in it, while the recorder's thread
and librdkafka do their work in the same process, against librdkafka's mock broker. Between two calls the app computes for some 100 us, as one that serves does: up to 10,000 predictions a second, from one
thread or from four. Every record has to be delivered; and in the last row, where the broker is away and all places are taken, every one has to be counted as dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from confluent_kafka import Producer

from load.markdown import table
from streams.client import Recorder
from streams.clients import Config

P50_US: Final = 2.0
P99_US: Final = 10.0
CALLS: Final = 40_000  # of each row
WORK: Final = 8  # times that the app writes JSON between two calls, some 100 us
NOWHERE: Final = "127.0.0.1:9"
FEATURES: Final[Mapping[str, Any]] = {
    f"feature_{i:02}": "violet" if i % 5 == 0 else i * 17.25 for i in range(20)
}


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table."""

    name: str
    threads: int
    away: bool = False


CASES: Final = [
    Case("one thread", 1),
    Case("four threads", 4),
    Case("one thread, broker away, full", 1, away=True),
]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a call, and what became of the records."""

    p50_us: float
    p99_us: float
    p999_us: float
    sent: int
    dropped: int

    @property
    def holds(self) -> bool:
        """Whether it is below the bars."""
        return self.p50_us < P50_US and self.p99_us < P99_US


def with_broker(config: Config) -> Producer:
    """A producer with a broker inside."""
    return Producer(config | {"test.mock.num.brokers": 1})


def measure(case: Case, calls: int) -> Cost:
    """What the calls of a case cost.

    Raises:
        AssertionError: a record is neither sent nor dropped, or dropped below the bound.
    """
    places = 1 if case.away else calls
    connect: Callable[[Config], Producer] = Producer if case.away else with_broker
    recorder = Recorder("churn", "1", bootstrap=NOWHERE, max_records=places, max_bytes=1 << 30, connect=connect)  # fmt: skip
    first = recorder.record("first", FEATURES, 1, 0.83)  # it starts the thread
    assert case.away or recorder.flush(30)
    spent_ns = np.zeros((case.threads, calls // case.threads), dtype=np.int64)
    threads = [threading.Thread(target=_call, args=(recorder, row)) for row in spent_ns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert case.away or recorder.flush(60)
    before = recorder.stats()
    recorder.close(0.5)
    after = recorder.stats()
    assert (first, after.waiting) == (True, 0)
    assert after.sent == (0 if case.away else spent_ns.size + 1), after
    assert before.dropped["queue_full"] == (spent_ns.size if case.away else 0), before
    assert sum(after.dropped.values()) == (spent_ns.size + 1 if case.away else 0), after
    p50, p99, p999 = (np.percentile(spent_ns, [50, 99, 99.9]) / 1_000).tolist()
    return Cost(p50, p99, p999, after.sent - (not case.away), before.dropped["queue_full"])


def _call(recorder: Recorder, spent_ns: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    clock = time.perf_counter_ns
    for i in range(len(spent_ns)):
        for _ in range(WORK):
            json.dumps(FEATURES)
        id_ = f"request-{i}"
        start = clock()
        recorder.record(id_, FEATURES, 1, 0.83, latency_ms=12.4)
        spent_ns[i] = clock() - start


def report(costs: Sequence[Cost], heading: str) -> str:
    """The table as Markdown."""
    rows = [
        [
            case.name,
            f"{cost.p50_us:.1f} us",
            f"{cost.p99_us:.1f} us",
            f"{cost.p999_us:.0f} us",
            f"{cost.sent:,}",
            f"{cost.dropped:,}",
        ]
        for case, cost in zip(CASES, costs, strict=True)
    ]
    header = ["`record()` from", "p50", "p99", "p99.9", "sent", "dropped"]
    return f"{heading}\n\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row misses a bar."""
    options = parser().parse_args(arguments)
    calls = CALLS // 10 if options.short else CALLS
    costs = [measure(case, calls) for case in CASES]
    heading = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {calls:,} calls a row, 20 features each; the bars are {P50_US:g} us at p50 and {P99_US:g} us at p99."
    print(report(costs, heading))
    return int(not all(cost.holds for cost in costs))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.bench_record", description=__doc__)
    found.add_argument("--short", action="store_true", help="a tenth of the calls, for CI")
    return found


if __name__ == "__main__":
    sys.exit(main())
