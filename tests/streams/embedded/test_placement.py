from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import ConfigError
from monitor.settings import ApiSettings, ClickHouseSettings, KafkaSettings, Settings
from streams.embedded.placement import place
from streams.supervisor import LOOPBACK, free_port

HOME = Path("home")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("broker", "url", "message"),
    [
        ("foo", None, "--broker: expected HOST:PORT"),
        ("http://foo:9092", None, "--broker: expected HOST:PORT"),
        (None, "foo", "--clickhouse: expected http://HOST:PORT"),
        (None, "http://u:hunter2@h:1", "--clickhouse: no user and password in the address"),
    ],
)
def test_a_wrong_address_is_one_line_that_names_the_option(
    broker: str | None, url: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        place(Settings(), HOME, broker, url, fresh=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_of_servers_elsewhere_are_not_replaced_by_embedded_ones_without_a_word() -> None:
    kafka = Settings(kafka=KafkaSettings(bootstrap="127.0.0.1:9092,kafka.example:9092"))
    with pytest.raises(ConfigError, match="KAFKA__BOOTSTRAP is set: give --broker"):
        place(kafka, HOME, None, None, fresh=True)
    assert place(kafka, HOME, "b:1", None, fresh=True).kafka.bootstrap == "b:1"
    database = Settings(clickhouse=ClickHouseSettings(url="https://ch.example"))
    with pytest.raises(ConfigError, match="CLICKHOUSE__URL is set: give --clickhouse"):
        place(database, HOME, None, None, fresh=True)
    given = place(database, HOME, None, "http://ch:1", fresh=True).clickhouse
    assert given.url == "http://ch:1"


def test_a_port_that_was_given_for_the_api_is_the_port_or_an_error(taken: int) -> None:
    free = free_port()
    for fresh in (False, True):
        given = Settings(api=ApiSettings(port=free))
        assert place(given, HOME, None, None, fresh=fresh).api.port == free
        with pytest.raises(ConfigError, match=f"port {taken} for the API is in use"):
            place(Settings(api=ApiSettings(port=taken)), HOME, None, None, fresh=fresh)


def test_ports_that_were_not_given_are_free(taken: int) -> None:
    settings = Settings(
        kafka=KafkaSettings(bootstrap=f"{LOOPBACK}:{taken}"),
        clickhouse=ClickHouseSettings(url=f"http://{LOOPBACK}:{taken}"),
        api=ApiSettings(port=0),
    )
    placed = place(settings, HOME, None, None, fresh=False)
    assert 0 < placed.api.port != taken
    assert placed.clickhouse.port != taken
    assert placed.kafka.bootstrap != settings.kafka.bootstrap
