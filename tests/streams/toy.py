"""A toy detector for the runner's tests: adds up numbers, fenced by a chain, and emits each total. Also a process."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from streams.clients import KafkaSettings
from streams.runner import Binding, Observer
from streams.stage import ChainBreakError, Output, Step
from streams.topology import WorkerSettings, run


class Adder:
    """Totals by key. A message is ``{"at": n, "key": k, "add": x}`` with n = 0, 1, 2... in each partition.

    State in the table: a total under each key, and under ``chain`` the next n. A total is written before the chain,
    with the n that it includes: a crash between the two must not count a message twice.
    """

    def __init__(self, outputs: str, *, split: bool = True) -> None:
        self._outputs = outputs
        self._split = split
        self._totals: dict[int, dict[str, tuple[int, int]]] = {}
        self._next: dict[int, int] = {}

    def restore(self, partition: int, table: Iterable[tuple[bytes, bytes]]) -> None:
        rows = {key.decode(): json.loads(value) for key, value in table}
        self._next[partition] = rows.pop("chain", 0)
        self._totals[partition] = {key: (at, total) for key, (at, total) in rows.items()}

    def forget(self, partition: int) -> None:
        del self._totals[partition], self._next[partition]

    def advance(self, _topic: str, partition: int, _offset: int, value: bytes) -> Iterator[Step]:
        message: dict[str, Any] = json.loads(value)
        at, key = message["at"], message["key"]
        if at < self._next[partition]:
            return
        if at > self._next[partition]:
            raise ChainBreakError(f"{at} follows {self._next[partition]}")
        seen, total = self._totals[partition].get(key, (-1, 0))
        if at > seen:
            total += message["add"]
            self._totals[partition][key] = (at, total)
        row = json.dumps([at, total]).encode()
        writes = (key.encode(), row), (b"chain", str(at + 1).encode())
        output = Output(self._outputs, partition, key.encode(), row)
        if self._split:  # a crash may then fall between a message's own steps
            yield Step((output,), writes[:1])
            yield Step((), writes[1:])
        else:
            yield Step((output,), writes)
        self._next[partition] = at + 1


class Printer(Observer):
    """Prints what happens, one JSON object a line."""

    @override
    def restored(self, stage: str, partition: int, keys: int) -> None:
        _say(restored=partition, keys=keys)

    @override
    def committed(self, topic: str, partition: int, offset: int) -> None:
        _say(committed=offset, partition=partition)

    @override
    def repeated(self, stage: str, partition: int) -> None:
        _say(repeated=partition)

    @override
    def exiting(self, reason: str) -> None:
        _say(exiting=reason)


def _say(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main(bootstrap: str, prefix: str, instance: str = "", stall_s: str = "60") -> None:
    """Run the adder on ``<prefix>in``, with ``<prefix>changelog`` and ``<prefix>out``, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stage = Adder(f"{prefix}out")
    binding = Binding("adder", (f"{prefix}in",), f"{prefix}changelog", stage)
    settings = WorkerSettings(
        KafkaSettings(bootstrap),
        group=f"{prefix}group",
        instance=instance or None,
        stall_s=float(stall_s),
    )
    run([binding], settings, stop, Printer())
    _say(stopped=Path(sys.argv[0]).name)


if __name__ == "__main__":
    main(*sys.argv[1:])
