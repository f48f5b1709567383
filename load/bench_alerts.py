"""``python -m load.bench_alerts``: how long from a verdict to the first byte at the receiver, when many incidents open at once.

On real Kafka, with the processes that a user runs: a detector (its ``incidents`` stage) and a dispatcher. Verdicts of ``--incidents`` models
are written within one moment; each opens an incident, and each incident is a signed webhook at a receiver on loopback. Timed is from the broker's
acknowledgement of the verdict to the receiver's first byte. A warm-up of other models goes before, so that no process still starts.

Exit codes: 0 every notification arrived once, and p99 is below ``--bar``; 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Final, Self

import numpy as np
from confluent_kafka import Message, Producer
from typing_extensions import override

from load.chaos.cluster import SECRET
from load.chaos.workload import SECRET_VARIABLE, START_MS
from load.markdown import table
from monitor import wire
from monitor.environment import environment
from monitor.settings import DetectorSettings, DispatcherSettings, KafkaSettings, Settings
from monitor.spec import parse_spec
from monitor.wire import Verdict, Verdicts
from streams import clients, models, topics, wiring
from streams.models import Model
from streams.supervisor import Child, Supervisor
from streams.topics import partition_of
from tests.kafka.broker import KafkaBroker, fetch_jars

HOUR_MS: Final = 3_600_000
_WIDTH: Final = 4
_PATIENCE_S: Final = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds from each verdict to its notification's first byte, and how often one arrived too often or not at all."""

    delays_s: np.ndarray
    missing: int
    repeated: int


class Receiver:
    """Notes when each notification's first byte came. Mutable; use it as a context."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.at_s: dict[str, float] = {}
        self.times = Counter[str]()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            @override
            def handle_one_request(self) -> None:
                self.rfile.peek(1)  # type: ignore[attr-defined]  # a BufferedReader
                self.came_s = time.monotonic()
                super().handle_one_request()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.note(json.loads(body)["data"]["incident"]["model"], self.came_s)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Calls are counted, not printed."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 1_024  # a burst is what this is about
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def note(self, model: str, at_s: float) -> None:
        with self._lock:
            self.at_s.setdefault(model, at_s)
            self.times[model] += 1

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, name="receiver", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def measure(incidents: int, directory: Path) -> Found:
    """One burst."""
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        kafka = stack.enter_context(KafkaBroker(directory, fetch_jars()))
        settings = Settings(
            kafka=KafkaSettings(
                bootstrap=kafka.address, session_timeout_s=6, detector_partitions=_WIDTH
            ),
            detector=DetectorSettings(instance="detector-0"),
            dispatcher=DispatcherSettings(allowed_networks=("127.0.0.0/8",)),
        )
        names = [f"model-{i:03}" for i in range(incidents)]
        warm = [f"warm-{i:03}" for i in range(2 * _WIDTH)]
        _prepare(settings, [*names, *warm], receiver.url)
        supervisor = stack.enter_context(Supervisor(directory / "logs"))
        for role in ("detector", "dispatcher"):
            variables = environment(settings) | {SECRET_VARIABLE: SECRET, "DRIFTLINE_CONFIG": ""}
            argv = (sys.executable, "-m", "streams", "run", role)
            supervisor.start(Child(role, argv, variables))
        _write(settings, warm)
        _wait(receiver, warm)
        written = _write(settings, names)
        _wait(receiver, names)
        time.sleep(1.0)  # for what should not come
        delays = [receiver.at_s[name] - written[name] for name in names if name in receiver.at_s]
        repeated = sum(times > 1 for name, times in receiver.times.items() if name in written)
        return Found(np.array(delays), incidents - len(delays), repeated)


def _prepare(settings: Settings, names: Sequence[str], url: str) -> None:
    kafka, places = wiring.kafka(settings), wiring.topics(settings)
    topics.create(clients.admin(kafka, logger), places, wiring.widths(settings))
    hook = {"webhook": {"url": url, "secret": f"env:{SECRET_VARIABLE}"}}
    for name in names:
        spec = parse_spec({"model": name, "notify": [hook]}, origin="bench")
        models.publish(kafka, places, Model(spec, None), logger)


def _write(settings: Settings, names: Sequence[str]) -> dict[str, float]:
    """Write a verdict of each model that opens an incident; gives when the broker had it."""
    producer = Producer(clients.producer_config(wiring.kafka(settings), logger) | {"linger.ms": 0})
    written: dict[str, float] = {}
    for name in names:

        def done(error: object, _: Message, name: str = name) -> None:
            assert error is None
            written[name] = time.monotonic()

        producer.produce(
            wiring.topics(settings).verdicts,
            wire.encode(_verdicts(name)),
            partition=partition_of(name, _WIDTH),
            on_delivery=done,
        )
    assert producer.flush(20) == 0
    return written


def _verdicts(model: str) -> Verdicts:
    broken = Verdict("data_drift", "x", "psi", "breach", 0.5, 0.1, None, 1_000, None)
    return Verdicts(
        source="window",
        model=model,
        version="1",
        segment="",
        size_ms=HOUR_MS,
        start_ms=START_MS,
        end_ms=START_MS + HOUR_MS,
        n=1_000,
        revision=0,
        verdicts=[broken],
        closes=True,
    )


def _wait(receiver: Receiver, names: Sequence[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not receiver.at_s.keys() >= set(names) and time.monotonic() < deadline:
        time.sleep(0.05)


def report(found: Found, incidents: int) -> str:
    """The delays as a table."""
    if not len(found.delays_s):
        return "nothing arrived"
    p50, p99 = np.quantile(found.delays_s, [0.5, 0.99])
    row = [str(incidents), f"{p50:.3f} s", f"{p99:.3f} s", f"{found.delays_s.max():.3f} s"]
    counts = [str(found.missing), str(found.repeated)]
    heads = ["incidents at once", "p50", "p99", "max", "missing", "repeated"]
    return table(heads, [[*row, *counts]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m load.bench_alerts", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--incidents", type=int, default=100, help="how many open at once")
    parser.add_argument("--bar", type=float, default=1.0, metavar="S", help="most seconds at p99")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="driftline-alerts-") as scratch:
        found = measure(options.incidents, Path(scratch))
    print(report(found, options.incidents))
    well = not found.missing and not found.repeated
    return 0 if well and np.quantile(found.delays_s, 0.99) <= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
