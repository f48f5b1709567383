"""The sink before a database that refuses, hangs, fails or dies in the middle of an insert: nothing grows, nothing is lost."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from monitor import clickhouse, metrics, store
from monitor.settings import ClickHouseSettings
from streams import sink, wiring
from streams import topics as topics_
from streams.supervisor import LOOPBACK, free_port
from tests.monitor.stored import endpoint
from tests.streams.test_sink import count, label, positions, running, setting, wait_for

Mode = Literal["pass", "refuse", "hang", "fail", "die"]
WAITING = 1_000  # labels that wait in Kafka during an outage
BATCH = 250


class Door:
    """A TCP proxy before a server, which can behave badly: close at once, never answer, answer 500, or let a request through and drop its answer."""

    def __init__(self, port: int) -> None:
        self.mode: Mode = "pass"
        self._behind = port
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def turn(self, mode: Mode) -> None:
        """From now on; connections that are open end."""
        self.mode = mode
        for one in list(self._open):
            _end(one)

    def close(self) -> None:
        self.turn("refuse")
        _end(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with suppress(OSError):
            while data := client.recv(1 << 16):
                match self.mode:
                    case "refuse":
                        break
                    case "hang":
                        continue
                    case "fail":
                        client.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")
                        break
                    case "pass" | "die":
                        self._forward(client, data)
                        break
        self._open.discard(client)
        _end(client)

    def _forward(self, client: socket.socket, data: bytes) -> None:
        with socket.create_connection((LOOPBACK, self._behind)) as server:
            server.sendall(data)
            answers = threading.Thread(target=self._answers, args=(server, client), daemon=True)
            answers.start()
            while data := client.recv(1 << 16):
                server.sendall(data)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if self.mode == "die":
                    break
                client.sendall(data)
        _end(client)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class SeenSink(sink.Sink):
    """The sink, so that a test can look into it."""

    made: ClassVar[list[SeenSink]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        SeenSink.made.append(self)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[ClickHouseSettings, Door]]:
    port = free_port()
    with endpoint(tmp_path, port) as behind:
        store.migrate(behind)
        door = Door(port)
        yield behind, door
        door.close()


def test_whatever_the_database_does_the_batch_stays_one_and_everything_arrives_once(
    kafka: str, database: tuple[ClickHouseSettings, Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    behind, door = database
    monkeypatch.setattr(clickhouse, "REPLY_TIMEOUT_S", 1)
    monkeypatch.setattr(sink, "_LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(sink, "Sink", SeenSink)
    SeenSink.made.clear()
    settings = setting(
        kafka, ClickHouseSettings(url=f"http://{LOOPBACK}:{door.port}"), f"outage{door.port}."
    )
    settings = settings.model_copy(
        update={"sink": settings.sink.model_copy(update={"batch_rows": BATCH})}
    )
    topics = wiring.topics(settings)
    admin = AdminClient({"bootstrap.servers": kafka})
    topics_.create(admin, topics, wiring.widths(settings))
    producer = Producer({"bootstrap.servers": kafka})
    target = store.connect(behind)

    def send(first: int, n: int) -> None:
        for i in range(first, first + n):
            producer.produce(topics.labels, json.dumps(label(id=f"p{i}")), key=f"p{i}")
        assert producer.flush(10) == 0

    sent = 10
    send(0, sent)
    with running(settings) as ended:
        wait_for(lambda: positions(settings) >= sent)
        (seen,) = SeenSink.made
        generation = seen._generation
        for mode in ("refuse", "hang", "fail", "die"):
            failed = metrics.TRANSIENT_ERRORS.labels("sink")._value.get()
            door.turn(mode)
            send(sent, WAITING)
            sent += WAITING
            wait_for(lambda: metrics.TRANSIENT_ERRORS.labels("sink")._value.get() >= failed + 2)  # noqa: B023
            held = {(p.message.partition(), p.message.offset()) for p in seen._parcels}
            assert 0 < len(held) <= BATCH + sink._CONSUME, mode
            assert positions(settings) <= sent - WAITING + BATCH + sink._CONSUME, "nothing unsaid"
            time.sleep(1.0)
            again = {(p.message.partition(), p.message.offset()) for p in seen._parcels}
            assert again == held, "a batch that waits does not grow"
            door.turn("pass")
            wait_for(lambda: positions(settings) >= sent)  # noqa: B023
            assert count(target, "labels") == sent
        assert seen._generation == generation, "it stayed in its group all the time"
        assert SeenSink.made == [seen], "and was never started again"
        assert not ended
    target.close()
