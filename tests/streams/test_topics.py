"""Topic names, widths, and their creation on both brokers."""

from __future__ import annotations

import logging
import uuid

import pytest
from confluent_kafka.cimpl import NewTopic, consistent
from hypothesis import given
from hypothesis import strategies as st

from streams import clients, topics
from streams.topics import SPECS, TopicMismatchError, Topics, Widths, partition_of

LOGGER = logging.getLogger(__name__)


def test_a_models_partition_is_by_the_standard_crc_32() -> None:
    assert (
        partition_of("123456789", 1_000) == 0xCBF43926 % 1_000
    )  # the check value of its definition


@given(st.text(min_size=1), st.integers(1, 200))
def test_librdkafkas_consistent_partitioner_agrees(model: str, partitions: int) -> None:
    assert partition_of(model, partitions) == consistent(model.encode(), partitions)


def test_the_detectors_topics_are_of_one_width() -> None:
    widths = Widths(source=7, state=3)
    detector = {"profiles", "performance", "verdicts", "commands"}
    detector |= {spec.suffix for spec in SPECS if spec.suffix.endswith(".changelog")}
    assert {widths.of(spec) for spec in SPECS if spec.suffix in detector} == {3}
    assert {widths.of(spec) for spec in SPECS if spec.suffix in {"predictions", "labels"}} == {7}


def test_every_topic_has_an_attribute_or_is_a_changelog() -> None:
    names = Topics("p.")
    for spec in SPECS:
        stage, _, kind = spec.suffix.partition(".")
        name = names.changelog(stage) if kind else getattr(names, spec.suffix)
        assert name == f"p.{spec.suffix}"


def test_an_unknown_topic_is_refused() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Topics().name("nothing")


@pytest.mark.parametrize("widths", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_no_width_is_below_one(widths: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Widths(*widths)


def test_creating_topics_is_idempotent_and_checks_what_is_there(broker_address: str) -> None:
    settings = clients.KafkaSettings(broker_address)
    admin = clients.admin(settings, LOGGER)
    names, widths = Topics(f"t{uuid.uuid4().hex[:8]}."), Widths(source=4, state=2)

    created = topics.create(admin, names, widths)
    assert set(created) == {names.name(spec.suffix) for spec in SPECS}
    assert topics.create(admin, names, widths) == []
    assert topics.check(admin, names, widths) == []
    with pytest.raises(TopicMismatchError, match="profiles has 2 partitions, wanted 3"):
        topics.create(admin, names, Widths(source=4, state=3))


def test_only_what_is_missing_is_created(broker_address: str) -> None:
    settings = clients.KafkaSettings(broker_address)
    admin = clients.admin(settings, LOGGER)
    prefix = f"t{uuid.uuid4().hex[:8]}."
    some = NewTopic(f"{prefix}profiles", num_partitions=2, replication_factor=1)
    admin.create_topics([some])[f"{prefix}profiles"].result()
    created = topics.create(admin, Topics(prefix), Widths(source=1, state=2))
    assert f"{prefix}profiles" not in created
    assert len(created) == len(SPECS) - 1
