"""The toy detector on Faust, which stops itself (SIGSTOP) when a state row is on its way to the socket, past the check of its lease."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from aiokafka.conn import AIOKafkaConnection

from streams import topology
from streams.liveness import Lease
from tests.streams import toy

FROM_OFFSET = 700  # of the chain row: some rows are written before


def freeze_before_the_socket() -> None:
    """Patch the worker and aiokafka's connection. It happens once."""
    worker: Any = topology.Worker
    connection: Any = AIOKafkaConnection
    lease: Any = Lease
    append, send, armed = worker._append, connection.send, [False]

    async def arming(self: Any, target: Any, records: Any) -> None:
        rows = [value for key, value in records if key == b"0/chain" and value]
        armed[0] |= target[0].endswith("changelog") and any(int(v) > FROM_OFFSET for v in rows)
        await append(self, target, records)

    def freezing(self: Any, request: Any, expect_response: bool = True) -> Any:
        if armed[0] and "Produce" in type(request).__name__:
            armed[0] = False
            connection.send = send
            worker._append = append
            os.kill(os.getpid(), signal.SIGSTOP)
            # Of the two threads that wake up, this one is the first in two of three trials; here, always.
            lease.check = lambda _self: None
        return send(self, request, expect_response)

    worker._append, connection.send = arming, freezing


if __name__ == "__main__":
    freeze_before_the_socket()
    _, address, prefix, instance = sys.argv
    toy.main("topology", "Adder", address, prefix, instance, "60")
