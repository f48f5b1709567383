"""A toy detector for the runner's tests: adds up numbers, fenced by a chain, and emits each total. Also a process."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from streams.clients import KafkaSettings
from streams.stage import ChainBreakError, Output, Step
from streams.worker import Binding, Observer, WorkerSettings


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


class Unfenced(Adder):
    """Adds whatever comes. Only a runner that applies each message once makes it right."""

    @override
    def advance(self, _topic: str, partition: int, _offset: int, value: bytes) -> Iterator[Step]:
        message: dict[str, Any] = json.loads(value)
        at, key = message["at"], message["key"]
        _, total = self._totals[partition].get(key, (-1, 0))
        self._totals[partition][key] = at, total + message["add"]
        row = json.dumps([at, total + message["add"]]).encode()
        yield Step((Output(self._outputs, partition, key.encode(), row),))
        yield Step((), ((key.encode(), row),))


class Stopping(Unfenced):
    """Stops its process for a while (SIGSTOP) when it has applied message ``AT`` of a partition, and before that is durable."""

    AT = 700

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        yield from super().advance(topic, partition, offset, value)
        if json.loads(value)["at"] == self.AT:
            os.kill(os.getpid(), signal.SIGSTOP)


class Counting(Adder):
    """Writes down how often its chain broke, and gives in at the third time, as ``streams.chain`` does."""

    @override
    def advance(self, topic: str, partition: int, offset: int, value: bytes) -> Iterator[Step]:
        breaks = self._totals[partition].get("break", (0, 0))[1]
        try:
            yield from super().advance(topic, partition, offset, value)
        except ChainBreakError:
            if breaks == 2:
                self._next[partition] = json.loads(value)["at"]
                yield from super().advance(topic, partition, offset, value)
                return
            yield Step(writes=((b"break", json.dumps([0, breaks + 1]).encode()),))
            raise


STAGES = {stage.__name__: stage for stage in (Adder, Unfenced, Stopping, Counting)}


class Printer(Observer):
    """Prints what happens, one JSON object a line."""

    @override
    def restored(self, stage: str, partition: int, keys: int) -> None:
        _say(restored=partition, keys=keys)

    @override
    def applied(self, stage: str, messages: int, outputs: int, writes: int) -> None:
        _say(applied=messages)

    @override
    def committed(self, topic: str, partition: int, offset: int) -> None:
        _say(committed=offset, partition=partition)

    @override
    def repeated(self, stage: str, partition: int) -> None:
        _say(repeated=partition)

    @override
    def rewound(self, reason: str) -> None:
        _say(rewound=reason)

    @override
    def exiting(self, reason: str) -> None:
        _say(exiting=reason)


def _say(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main(runner: str, stage: str, bootstrap: str, prefix: str, instance: str, stall_s: str) -> None:
    """Run a stage on ``<prefix>in``, with ``<prefix>changelog`` and ``<prefix>out``, until SIGTERM.

    ``runner`` is the module of ``streams`` that does it.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    binding = Binding(
        "adder", (f"{prefix}in",), f"{prefix}changelog", STAGES[stage](f"{prefix}out")
    )
    settings = WorkerSettings(
        KafkaSettings(bootstrap),
        group=f"{prefix}group",
        instance=instance or None,
        stall_s=float(stall_s),
    )
    importlib.import_module(f"streams.{runner}").run([binding], settings, stop, Printer())
    _say(stopped=Path(sys.argv[0]).name)


if __name__ == "__main__":
    main(*sys.argv[1:])
