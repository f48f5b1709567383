"""Client settings: what they refuse, what they hide, and that librdkafka takes them."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import Consumer, KafkaError, Producer

from streams.clients import (
    EMBEDDED_SESSION_MS,
    SESSION_MS,
    ErrorLog,
    KafkaSettings,
    consumer_config,
    producer_config,
    reachable,
    transaction_timeout_ms,
)

LOGGER = logging.getLogger(__name__)
NOWHERE = KafkaSettings("127.0.0.1:9")


@pytest.mark.parametrize("bootstrap", ["", "localhost", "localhost:", ":9092", "a:1,b", "a:x"])
def test_an_address_without_host_or_port_is_refused(bootstrap: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        KafkaSettings(bootstrap)


@pytest.mark.parametrize(
    "option", ["enable.ssl.certificate.verification", "bootstrap.servers", "group.id"]
)
def test_only_security_options_are_handed_on(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        KafkaSettings("a:1", security={option: "x"})


def test_secrets_are_not_in_the_repr() -> None:
    settings = KafkaSettings("a:1", security={"sasl.password": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert consumer_config(settings, "group", LOGGER)["sasl.password"] == "hunter2"


@pytest.mark.parametrize("session_ms", [3_000, EMBEDDED_SESSION_MS, SESSION_MS])
def test_a_transaction_ends_before_the_session_of_its_worker(session_ms: int) -> None:
    settings = KafkaSettings("a:1", session_timeout_ms=session_ms)
    assert 1_000 <= transaction_timeout_ms(settings) < session_ms


def test_librdkafka_accepts_every_option() -> None:
    Consumer(consumer_config(NOWHERE, "group", LOGGER, instance="worker-0")).close()
    Producer(producer_config(NOWHERE, LOGGER)).flush(0)
    Producer(producer_config(NOWHERE, LOGGER, transactional_id="id")).flush(0)


def test_nothing_answers_on_a_closed_port() -> None:
    assert not reachable(NOWHERE, timeout_s=0.2)


def test_each_kind_of_error_is_logged_once_until_it_has_been_quiet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    log = ErrorLog(LOGGER, monotonic=lambda: now[0])
    for at, code in [(0, KafkaError._TRANSPORT), (5, KafkaError._TRANSPORT)]:
        now[0] = at
        log(KafkaError(code))
    log(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    now[0] = 70
    log(KafkaError(KafkaError._TRANSPORT))
    kinds = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert kinds == ["_TRANSPORT", "_ALL_BROKERS_DOWN", "_TRANSPORT"]
