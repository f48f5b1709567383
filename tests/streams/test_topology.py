"""What only the Faust worker has to prove. The rest is the contract of both runners: tests/contracts/test_runners.py."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, NoReturn

import aiokafka
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder

from streams import topology
from streams.clients import KafkaSettings
from streams.delivery import BATCH_BYTES
from streams.worker import Observer, WorkerSettings


async def test_a_worker_that_gets_no_acknowledgement_within_its_session_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off for longer, its record batch might arrive behind those of the partition's next owner."""

    class Unanswered:
        def create_batch(self) -> BatchBuilder:
            return BatchBuilder(BATCH_BYTES, 0)

        async def send_batch(self, *_: object, **__: object) -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()

    def end(reason: str, _observer: Observer) -> NoReturn:
        raise SystemExit(reason)

    monkeypatch.setattr(topology, "end_process", end)
    kafka = KafkaSettings("127.0.0.1:9", session_timeout_ms=3_000)
    worker = topology.Worker([], WorkerSettings(kafka, "group"), Observer())
    producer: Any = SimpleNamespace(_ensure_producer=Unanswered)
    worker._app.producer = producer
    began = time.monotonic()
    with pytest.raises(SystemExit, match="changelog/1: not acknowledged within the session"):
        await worker._append(("changelog", 1), [(b"key", b"value")])
    assert time.monotonic() - began < 3.0
    assert worker._app.conf.table_standby_replicas == 0


def test_the_private_attributes_that_the_worker_sets_are_those_of_this_aiokafka() -> None:
    """That they also arrive is what the aborted messages above show."""
    names = aiokafka.AIOKafkaConsumer.start.__code__.co_names
    assert {"_isolation_level", "_fetch_max_wait_ms"} <= set(names)
