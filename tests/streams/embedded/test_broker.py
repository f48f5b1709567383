from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from monitor.errors import ConfigError
from streams.embedded import broker
from streams.supervisor import ChildFailedError, Supervisor, free_port

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("embedded broker")
    with Supervisor(directory) as supervisor:
        port = free_port()
        supervisor.start(broker.child(port, directory))
        supervisor.wait_ready(20)
        yield f"127.0.0.1:{port}"


def create(address: str, name: str, partitions: int, **config: str) -> str:
    admin = AdminClient({"bootstrap.servers": address})
    topic = NewTopic(
        name, partitions, 1, config={k.replace("_", "."): v for k, v in config.items()}
    )
    for done in admin.create_topics([topic]).values():
        done.result(10)
    return name


def read(address: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    messages = consumer.consume(count, 10)
    consumer.close()
    return messages


def test_a_topic_has_the_partitions_and_the_policy_it_was_created_with(address: str) -> None:
    create(address, "compacted", 5, cleanup_policy="compact")
    topics = AdminClient({"bootstrap.servers": address}).list_topics(timeout=5).topics
    assert len(topics["compacted"].partitions) == 5


def test_a_record_comes_back_as_it_was_sent(address: str) -> None:
    create(address, "records", 1)
    producer = Producer(
        {"bootstrap.servers": address, "enable.idempotence": True, "compression.type": "zstd"}
    )
    headers: list[tuple[str, str | bytes | None]] = [("content-type", b"json")]
    producer.produce(
        "records", b"\x00value", b"key", partition=0, timestamp=1_359_695_820_000, headers=headers
    )
    assert producer.flush(10) == 0
    (message,) = read(address, "records", 1)
    assert (message.key(), message.value(), message.headers()) == (b"key", b"\x00value", headers)
    assert message.timestamp()[1] == 1_359_695_820_000


def test_a_transaction_commits_records_and_offsets_together(address: str) -> None:
    create(address, "in", 1)
    create(address, "out", 1)
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "copier", "session.timeout.ms": 6000}
    )
    producer = Producer({"bootstrap.servers": address, "transactional.id": "copier-0"})
    producer.init_transactions(20)
    for number in range(20):
        producer.begin_transaction()
        producer.produce("out", str(number).encode(), partition=0)
        offsets = [TopicPartition("in", 0, number + 1)]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10)
        producer.commit_transaction(10)
    committed = consumer.committed([TopicPartition("in", 0)], timeout=10)
    consumer.close()
    assert committed[0].offset == 20
    assert [message.value() for message in read(address, "out", 20)] == [
        b"%d" % n for n in range(20)
    ]


def test_an_aborted_transaction_moves_no_offset(address: str) -> None:
    create(address, "aborted", 1)
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "aborter", "session.timeout.ms": 6000}
    )
    producer = Producer({"bootstrap.servers": address, "transactional.id": "aborter-0"})
    producer.init_transactions(20)
    for number, end in ((1, producer.commit_transaction), (2, producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce("aborted", b"x", partition=0)
        offsets = [TopicPartition("aborted", 0, number)]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 10)
        end(10)
    committed = consumer.committed([TopicPartition("aborted", 0)], timeout=10)
    consumer.close()
    assert committed[0].offset == 1


def test_the_end_of_a_partition_is_exact_only_behind_a_batch_of_one_record(address: str) -> None:
    """The trap of the module's docstring. When the second number becomes 50, the workarounds can go."""
    ends = []
    for batch in (1, 50):
        topic = create(address, f"ends-{batch}", 1)
        producer = Producer(
            {"bootstrap.servers": address, "linger.ms": 100, "batch.num.messages": batch}
        )
        for _ in range(50):
            producer.produce(topic, b"x", partition=0)
        assert producer.flush(10) == 0
        consumer = Consumer({"bootstrap.servers": address, "group.id": "ends"})
        ends.append(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=5)[1])
        consumer.close()
    assert ends == [50, 1]


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="is in use"):
            broker.child(taken.getsockname()[1], tmp_path)


def test_a_broker_that_cannot_start_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    child = broker.child(free_port(), tmp_path)
    with Supervisor(tmp_path) as supervisor:
        broken = tuple(
            "mars://nowhere" if word.startswith("memory") else word for word in child.argv
        )
        supervisor.start(replace(child, argv=broken))
        with pytest.raises(ChildFailedError, match=r"broker ended with code(.|\n)*mars"):
            supervisor.wait_ready(10)


def test_without_any_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "BUNDLE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="run `make install`"):
        broker.find_program(tmp_path)


def test_tansu_on_the_path_is_taken_if_there_is_no_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tansu"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(broker, "BUNDLE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker.find_program(tmp_path / "work") == program


def test_a_program_without_its_executable_bit_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "bundle_without_bit"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "bin" / "tansu").write_bytes(b"program")
    (package / "bin" / "tansu").chmod(0o644)
    (tmp_path / "work").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(broker, "BUNDLE", "bundle_without_bit")
    if os.geteuid() == 0:  # access() grants root what any bit grants: 0o644 grants nobody
        assert not os.access(package / "bin" / "tansu", os.X_OK)
    found = broker.find_program(tmp_path / "work")
    assert found == tmp_path / "work" / "tansu"
    assert found.read_bytes() == b"program"
    assert found.stat().st_mode & stat.S_IXUSR
