"""How long until it is said: ``python -m load.latency [--seconds 120] [--json FILE]``.

A profiler and a detector on Apache Kafka on this machine, which also carries who makes the predictions. First so many are sent as it can take: what is committed in a second is
the rate of saturation. Then 10, 50 and 90 % of that rate, of four models with panes and windows of a second, each prediction at its own time::

    first event      last event                         verdict, as a consumer gets it
        │ pane (1 s) │ lateness (5 s) │ profiler, detector │
        ├──────────────── of any event, at most ───────────┤  bar: pane + lateness + 3 s, of 99 % of panes at 50 %
                     ├──────── of the last event ──────────┤

Every pane that was closed has to have its verdicts.

And how long a detector is away: with the state of 1,000 keys of models and segments in its changelog it is killed, predictions go on, and it is started again: seconds to
the first of the verdicts on windows that ended meanwhile, and to those of all keys.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Producer

from load.bench_batch import START_MS
from load.markdown import table
from load.measuring import Site, Traffic, consumer, logger, records
from monitor import wire
from streams.clients import KafkaSettings, enqueue, producer_config
from streams.merge_table import PANE
from streams.supervisor import Supervisor
from tests.kafka.broker import KafkaBroker, fetch_jars

SHARES: Final = (0.1, 0.5, 0.9)
MODELS: Final = 4
PANE_MS: Final = 1_000
SLACK_S: Final = 3.0
_SATURATE_S: Final = 10.0
_BEHIND_S: Final = 60.0  # for what is under way when the last prediction is sent
_TURN_S: Final = 0.01

DIMENSIONS: Final = ("colour_00", "colour_01", "colour_02", "colour_03")  # four values each
KEYS: Final = 4 * len(DIMENSIONS) + 1  # of a model: its segments, and the whole of it
_AHEAD: Final = 10  # minutes that the second half is later than the first

# Of a model, where its window starts: when the verdicts on it came, in milliseconds of the clock.
Came = dict[tuple[str, str, int], int]


@dataclass(frozen=True, slots=True)
class Served:
    """What was sent, second by second.

    Attributes:
        events: how many.
        seconds: that took.
        last_ms: model and start of a pane -> its last event.
    """

    events: int
    seconds: float
    last_ms: dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Load:
    """At one rate: seconds to the verdict on each pane, from its last event and from its first."""

    share: float
    per_s: float
    since_last_s: list[float]
    since_first_s: list[float]


@dataclass(frozen=True, slots=True)
class Back:
    """A detector that was killed: seconds from its start to the first and to all verdicts of so many keys. ``rows`` were in its changelog."""

    keys: int
    rows: int
    first_s: float
    all_s: float


def serve(kafka: KafkaSettings, topic: str, first: int, per_s: float, seconds: float) -> Served:
    """Predictions of now, on four partitions, at a rate or as many as the client takes; in a process of its own.

    Args:
        kafka: the broker.
        topic: of predictions.
        first: number of the first event.
        per_s: events a second; infinity for as many as can be.
        seconds: for how long.
    """
    traffic, producer = live_traffic(), Producer(producer_config(kafka, logger))
    partitions = len(producer.list_topics(topic, timeout=10).topics[topic].partitions)
    last_ms: dict[tuple[str, int], int] = {}
    i, since_s = first, time.monotonic()
    while (gone_s := time.monotonic() - since_s) < seconds:
        if i - first > gone_s * per_s:
            producer.poll(_TURN_S)
            continue
        for _ in range(100):  # a clock for each would cost as much as the event
            now_ms = time.time_ns() // 1_000_000
            value = traffic.value(i, now_ms, partitions)
            enqueue(producer, {"topic": topic, "partition": i % partitions, "value": value})
            last_ms[traffic.name(i, partitions), now_ms // PANE_MS * PANE_MS] = now_ms
            i += 1
        producer.poll(0)
    spent_s = time.monotonic() - since_s
    producer.flush(30)
    return Served(i - first, spent_s, last_ms)


def live_traffic() -> Traffic:
    """Four models with panes and windows of a second."""
    return Traffic(models=MODELS, pane="1s", window="1s")


@contextmanager
def heard(kafka: KafkaSettings, topic: str) -> Iterator[Came]:
    """When the verdicts on each window came; it is filled while the context lasts."""
    came: Came = {}
    stop = Event()

    def listen() -> None:
        with consumer(kafka, topic) as reader:
            while not stop.is_set():
                for message in reader.consume(1_000, timeout=0.1):
                    now_ms = time.time_ns() // 1_000_000
                    if message.error() is not None:
                        continue
                    said = wire.decode(message.value() or b"")
                    assert isinstance(said, wire.Verdicts)
                    if said.source == "window":
                        came.setdefault((said.model, said.segment, said.start_ms), now_ms)

    thread = Thread(target=listen)
    thread.start()
    try:
        yield came
    finally:
        stop.set()
        thread.join()


class Live:
    """A profiler and a detector that are sent predictions of now. Mutable: it counts them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        site.processes.start(site.child("detector"))
        site.start_profilers(1)

    def saturation(self, seconds: float) -> float:
        """Events a second that are committed while more are sent than can be."""
        before = self._site.committed()
        _, committed = self._served(np.inf, seconds)
        self._site.settle()
        return (committed - before) / seconds

    def at(self, share: float, per_s: float, seconds: float) -> Load:
        """Seconds to the verdicts at a part of a rate.

        Raises:
            TimeoutError: a pane that was closed has no verdict.
        """
        site = self._site
        lateness_ms = site.traffic.models[0].spec.windows.lateness
        with heard(site.kafka, site.topics.verdicts) as came:
            served, _ = self._served(share * per_s, seconds)
            starts = sorted({start for _, start in served.last_ms})
            end_ms = max(served.last_ms.values())
            # The first is a part of a second, and of the last ones nothing later tells that they are over.
            closed = [s for s in starts[1:] if s + 2 * PANE_MS + lateness_ms < end_ms]
            wanted = [(name, start) for name in site.traffic.names for start in closed]
            site.wait(
                lambda: all((name, "", start) in came for name, start in wanted),
                f"{len(wanted)} panes have verdicts",
                _BEHIND_S,
            )
        last, first = [], []
        for name, start in wanted:
            last.append((came[name, "", start] - served.last_ms[name, start]) / 1_000)
            first.append((came[name, "", start] - start) / 1_000)
        return Load(share, served.events / served.seconds, last, first)

    def _served(self, per_s: float, seconds: float) -> tuple[Served, int]:
        """What was sent, and how many events were committed by then."""
        site = self._site
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            pool.submit(live_traffic).result()  # its reference is made before the first event
            doing = pool.submit(serve, site.kafka, site.topics.predictions, site.sent, per_s, seconds)  # fmt: skip
            committed = 0
            while not doing.done():
                site.processes.poll()
                committed = site.committed()
                time.sleep(_TURN_S)
            served = doing.result()
        site.sent += served.events
        return served, committed


def latencies(
    folder: Path,
    bootstrap: str,
    name: str = "latency",
    *,
    seconds: float,
    saturate_s: float,
    shares: Sequence[float],
) -> tuple[float, list[Load]]:
    """The rate of saturation, and each share of it.

    Raises:
        AssertionError: an event was not counted, or twice.
    """
    with Site(folder, bootstrap, name, live_traffic()) as site:
        live = Live(site)
        now_ms = time.time_ns() // 1_000_000
        site.send(20_000, lambda _: now_ms)  # the start is not what is measured
        site.settle()
        per_s = live.saturation(saturate_s)
        found = []
        for share in shares:
            found.append(live.at(share, per_s, seconds))
            print(f"{share:.0%}: {found[-1].per_s:,.0f} events a second", file=sys.stderr, flush=True)  # fmt: skip
        site.settle()
        site.assert_right()
    return per_s, found


def recovery(
    folder: Path, bootstrap: str, name: str = "recovery", *, keys: int, events: int
) -> Back:
    """Kill a detector that holds the open windows of so many keys, at least, and start it again.

    Raises:
        TimeoutError: a key has no verdict.
    """
    models = -(-keys // KEYS)
    traffic = Traffic(models=models, window="1m", segments=DIMENSIONS)
    with Site(folder, bootstrap, name, traffic) as site:
        site.start_profilers(1)

        def spread(from_ms: int) -> Callable[[int], int]:
            first = site.sent
            return lambda i: from_ms + (i - first) * 60_000 // events

        with Supervisor(folder / "first life") as killed:
            killed.start(site.child("detector"))
            site.send(events, spread(START_MS))
            site.settle()
            site.wait(lambda: open_panes(site) >= models * KEYS, "all keys are in the changelog")
            os.kill(killed.pid("detector"), signal.SIGKILL)
        rows = open_panes(site)
        site.send(events, spread(START_MS + _AHEAD * 60_000))
        site.settle()
        with heard(site.kafka, site.topics.verdicts) as came:
            since_ms = time.time_ns() // 1_000_000
            site.processes.start(site.child("detector"))

            def said() -> list[int]:
                return [at for (_, _, start), at in came.copy().items() if start == START_MS]

            site.wait(lambda: len(said()) >= models * KEYS, "all keys have verdicts")
            at_ms = said()
    return Back(len(at_ms), rows, (min(at_ms) - since_ms) / 1_000, (max(at_ms) - since_ms) / 1_000)


def open_panes(site: Site) -> int:
    """Series of models and segments whose open panes are in the detector's changelog."""
    found = {
        key: message.value() is not None
        for message in records(site.kafka, site.topics.changelog("merge"))
        if (key := message.key() or b"").partition(b"/")[2].startswith(PANE)
    }
    return sum(found.values())


def percentile(seconds: Sequence[float], of: float) -> float:
    """So many in a hundred are no longer than this; one of them."""
    return float(np.percentile(seconds, of, method="higher"))


def bar_s() -> float:
    """The longest that the slowest event of a pane may take."""
    return (PANE_MS + live_traffic().models[0].spec.windows.lateness) / 1_000 + SLACK_S


def holds(loads: Sequence[Load]) -> bool:
    """Whether 99 % of panes are in time at half of what the machine takes."""
    return all(percentile(of.since_first_s, 99) <= bar_s() for of in loads if of.share == 0.5)


def report(per_s: float, loads: Sequence[Load], back: Back, heading: str) -> str:
    """Tables, and what they say."""
    rows = [
        [
            f"{of.share:.0%}",
            f"{of.per_s:,.0f}",
            f"{len(of.since_last_s)}",
            *(f"{percentile(of.since_last_s, q):.2f}" for q in (50, 99)),
            *(f"{percentile(of.since_first_s, q):.2f}" for q in (50, 99)),
        ]
        for of in loads
    ]
    header = ["load", "events a second", "verdicts", "last event, p50 s", "p99 s", "first event, p50 s", "p99 s"]  # fmt: skip
    verdict = "holds" if holds(loads) else "falls short"
    return (
        f"{heading}\n\nSaturation: {per_s:,.0f} events a second.\n\n{table(header, rows)}\n\n"
        f"{verdict}: p99 from the first event at most {bar_s():g} s at 50 %.\n\n"
        f"A detector with {back.keys:,} keys of models and segments ({back.rows:,} open panes in its changelog), killed and started again: the first verdict after"
        f" {back.first_s:.1f} s, all after {back.all_s:.1f} s."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if verdicts come late at half of what the machine takes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with KafkaBroker(folder / "kafka", fetch_jars()) as broker:
            back = recovery(folder, broker.address, keys=options.keys, events=40_000)
            per_s, loads = latencies(folder, broker.address, seconds=options.seconds, saturate_s=_SATURATE_S, shares=SHARES)  # fmt: skip
    command = " ".join(["python -m load.latency", *arguments])
    heading = f"{time.strftime('%Y-%m-%d', time.gmtime())}, `{command}`: {MODELS} models of 20 features, panes of a second, {options.seconds:g} s at each load, Apache Kafka and the sender on the same two cores."
    print(report(per_s, loads, back, heading))
    if options.json is not None:
        found = {"saturation": per_s, "loads": loads, "recovery": back}
        options.json.write_bytes(msgspec.json.encode(found))
    return int(not holds(loads))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m load.latency", description=__doc__)
    found.add_argument("--seconds", type=float, default=120.0, help="at each load")
    found.add_argument("--keys", type=int, default=1_000, help="of the detector that is killed")
    found.add_argument("--json", type=Path, help="write what was found to this file")
    return found


if __name__ == "__main__":
    sys.exit(main())
