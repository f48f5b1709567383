"""Client settings: what they refuse, what they hide, and that librdkafka takes them."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from monitor.errors import ConfigError
from streams.clients import (
    EMBEDDED_SESSION_MS,
    SESSION_MS,
    UNRETURNED,
    ErrorLog,
    KafkaSettings,
    Refusals,
    admin,
    bounded,
    consumer_config,
    producer_config,
    reachable,
    transaction_timeout_ms,
)
from tests.streams.flaky import FENCED

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


def test_a_broker_that_is_away_is_said_by_us_and_not_by_librdkafka(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    consumer = Consumer(consumer_config(NOWHERE, "group", LOGGER) | {"client.id": "of-this-test"})
    consumer.subscribe(["predictions"])
    consumer.poll(1.0)
    consumer.close()
    assert "kafka client: _TRANSPORT" in caplog.text
    assert "of-this-test" not in capfd.readouterr().err  # clients of other tests may live on


def test_a_client_without_a_logger_would_have_been_heard(
    capfd: pytest.CaptureFixture[str],
) -> None:
    silenced = {"logger", "error_cb", "log_level"}
    config = consumer_config(NOWHERE, "group", LOGGER) | {"client.id": "of-this-test"}
    consumer = Consumer({key: value for key, value in config.items() if key not in silenced})
    consumer.subscribe(["predictions"])
    consumer.poll(1.0)
    consumer.close()
    assert "of-this-test" in capfd.readouterr().err


def test_a_certificate_that_cannot_be_read_is_a_wrong_setting() -> None:
    wrong = KafkaSettings(
        "127.0.0.1:9",
        security={"security.protocol": "SSL", "ssl.ca.location": "/nowhere/ca.pem"},
    )
    for ask in (lambda: reachable(wrong), lambda: admin(wrong, LOGGER)):
        with pytest.raises(ConfigError, match=r"kafka: .*ssl\.ca\.location"):
            ask()


def test_a_broker_that_does_not_speak_tls_is_a_wrong_setting_and_not_one_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=_answer_in_plain_text, args=(server,))
        answering.start()
        port = server.getsockname()[1]
        settings = KafkaSettings(f"127.0.0.1:{port}", security={"security.protocol": "SSL"})
        with pytest.raises(ConfigError, match=r"kafka: .*SSL handshake failed"):
            reachable(settings, timeout_s=1)
        server.shutdown(socket.SHUT_RDWR)  # ends accept
        answering.join()


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        (KafkaError._AUTHENTICATION, "SASL authentication error", True),
        (KafkaError.SASL_AUTHENTICATION_FAILED, "invalid credentials", True),
        (KafkaError._SSL, "certificate verify failed", True),
        (KafkaError._SSL, "SSL handshake failed: Disconnected", False),  # a broker that goes away
        (KafkaError._TRANSPORT, "Connection refused", False),
        (KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down", False),
    ],
)
def test_a_refusal_is_told_from_an_outage(code: int, text: str, refused: bool) -> None:
    refusals = Refusals()
    refusals(KafkaError(code, text))
    refusals(KafkaError(KafkaError._ALL_BROKERS_DOWN))  # comes last and must not hide it
    assert bool(refusals.reason) is refused


def _answer_in_plain_text(server: socket.socket) -> None:
    with suppress(OSError):  # the server is shut down
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


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


def test_a_call_that_does_not_return_is_left_behind_and_others_give_what_they_give() -> None:
    over = threading.Event()
    with pytest.raises(KafkaException) as unreturned:
        bounded(lambda: over.wait(60), 0.05)
    over.set()
    assert unreturned.value.args[0] is UNRETURNED
    assert bounded(lambda: 7, 5) == 7
    with pytest.raises(KafkaException, match="planned"):
        bounded(fails, 5)


def fails() -> None:
    raise KafkaException(FENCED)
