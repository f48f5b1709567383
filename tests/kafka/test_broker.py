"""What the other tests take for granted of Apache Kafka: transactions, their offsets, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.kafka import broker as broker_module
from tests.kafka.broker import KafkaBroker, KafkaUnavailableError, fetch_jars


def new_topic(address: str, name: str) -> str:
    admin = AdminClient({"bootstrap.servers": address})  # named: its futures fail when it goes
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(timeout=20)
    return name


def produce(address: str, topic: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": address})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(20) == 0


def reader(address: str, topic: str, group: str = "reader") -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "session.timeout.ms": 6000,  # the embedded broker lets a first join wait for half of it
        }
    )
    consumer.subscribe([topic])
    return consumer


def values_of(address: str, topic: str, n: int) -> list[bytes | None]:
    """The first n values, and any more that come within half a second."""
    consumer = reader(address, topic, group=f"values-of-{topic}-{time.monotonic_ns()}")
    got = [message.value() for message in consumer.consume(n, timeout=20)]
    got += [message.value() for message in consumer.consume(1, timeout=0.5)]
    consumer.close()
    return got


def transactional(address: str, name: str) -> Producer:
    producer = Producer({"bootstrap.servers": address, "transactional.id": name})
    producer.init_transactions(20)
    return producer


def test_what_was_produced_is_read_in_order(kafka: str) -> None:
    topic = new_topic(kafka, "in-order")
    produce(kafka, topic, b"1", b"2", b"3")
    assert values_of(kafka, topic, 3) == [b"1", b"2", b"3"]


def test_a_transaction_commits_outputs_offsets_and_their_metadata_together(kafka: str) -> None:
    source, out = new_topic(kafka, "source"), new_topic(kafka, "out")
    produce(kafka, source, b"in")
    consumer = reader(kafka, source, group="in-transaction")
    assert len(consumer.consume(1, timeout=20)) == 1

    producer = transactional(kafka, "committed")
    producer.begin_transaction()
    producer.produce(out, b"result")
    position = TopicPartition(source, 0, 1, metadata="watermark=1359694800000")
    producer.send_offsets_to_transaction([position], consumer.consumer_group_metadata())
    producer.commit_transaction(20)
    consumer.close()

    asked = ConsumerGroupTopicPartitions("in-transaction", [TopicPartition(source, 0)])
    admin = AdminClient({"bootstrap.servers": kafka})
    futures = admin.list_consumer_group_offsets([asked])
    (committed,) = futures["in-transaction"].result(timeout=20).topic_partitions
    assert (committed.offset, committed.metadata) == (1, "watermark=1359694800000")
    assert values_of(kafka, out, 1) == [b"result"]


def test_aborted_records_are_invisible_to_read_committed(kafka: str) -> None:
    topic = new_topic(kafka, "aborted")
    producer = transactional(kafka, "aborting")
    for value, end in (
        (b"dropped", producer.abort_transaction),
        (b"kept", producer.commit_transaction),
    ):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush(20)
        end(20)
    assert values_of(kafka, topic, 1) == [b"kept"]


def test_a_topic_is_never_created_by_a_producer(kafka: str) -> None:
    metadata = AdminClient({"bootstrap.servers": kafka}).list_topics("never-created", timeout=20)
    assert metadata.topics["never-created"].error is not None


@pytest.mark.slow
def test_data_outlives_a_restart_and_a_kill(kafka_factory: Callable[[], KafkaBroker]) -> None:
    own = kafka_factory()
    topic = new_topic(own.address, "kept")
    produce(own.address, topic, b"1")
    own.restart()
    produce(own.address, topic, b"2")
    own.kill()
    own.start()
    assert values_of(own.address, topic, 2) == [b"1", b"2"]
    own.stop()


def test_the_broker_dies_with_the_tests_even_when_they_are_killed(tmp_path: Path) -> None:
    guarded = tmp_path / "guarded.py"
    guarded.write_text(
        textwrap.dedent(f"""\
        import subprocess, sys, time
        guard = [sys.executable, {str(Path(broker_module.__file__).parent / "guard.py")!r}]
        subprocess.Popen([*guard, "sh", "-c", "echo $$; exec sleep 60"], stdin=subprocess.PIPE)
        time.sleep(60)
        """)
    )
    tests = subprocess.Popen([sys.executable, str(guarded)], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    broker_pid = int(tests.stdout.readline())
    tests.send_signal(signal.SIGKILL)
    tests.communicate(timeout=20)  # its stdout ends when the last of its children has gone
    with pytest.raises(ProcessLookupError):
        os.kill(broker_pid, 0)


def test_a_machine_without_java_or_maven_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match="no java on PATH"):
        fetch_jars()
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    fake.chmod(0o755)
    with pytest.raises(KafkaUnavailableError, match="not 17 or later"):
        fetch_jars()
    fake.write_text("#!/bin/sh\necho 'openjdk version \"17.0.2\"' >&2\n")
    with pytest.raises(KafkaUnavailableError, match="no mvn on PATH"):
        fetch_jars(tmp_path / "cache")


def test_a_maven_that_cannot_fetch_is_reported_and_leaves_no_half_filled_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java, maven = tmp_path / "java", tmp_path / "mvn"
    java.write_text("#!/bin/sh\necho 'openjdk version \"17.0.2\"' >&2\n")
    maven.write_text("#!/bin/sh\necho '[ERROR] Unknown host'; exit 1\n")
    for program in (java, maven):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    cache = tmp_path / "cache"
    with pytest.raises(KafkaUnavailableError, match="Unknown host"):
        fetch_jars(cache)
    assert list(cache.iterdir()) == []

    maven.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(broker_module, "_FIRST_ANSWER_S", 0.3)
    with pytest.raises(KafkaUnavailableError, match="no answer"):
        fetch_jars(cache)
    assert list(cache.iterdir()) == []


def test_both_brokers_of_the_suite_take_and_give_records(broker_address: str) -> None:
    topic = new_topic(broker_address, "on-both")
    produce(broker_address, topic, b"1", b"2")
    assert values_of(broker_address, topic, 2) == [b"1", b"2"]
