"""From the settings tree to what each part takes: the one place where the two vocabularies meet."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from monitor import clickhouse
from monitor.approvals import Links
from monitor.errors import TransientError
from monitor.events import Limits
from monitor.settings import Settings
from streams import clients
from streams.clients import KafkaSettings
from streams.topics import Topics, Widths


def kafka(settings: Settings) -> KafkaSettings:
    """How to reach the broker."""
    chosen = settings.kafka
    return KafkaSettings(
        bootstrap=chosen.bootstrap,
        prefix=chosen.topic_prefix,
        client_id=chosen.client_id,
        session_timeout_ms=round(chosen.session_timeout_s * 1_000),
        security=chosen.security,
    )


def topics(settings: Settings) -> Topics:
    """The full names of the topics."""
    return Topics(settings.kafka.topic_prefix)


def widths(settings: Settings) -> Widths:
    """Partitions and copies of the topics."""
    return Widths(
        source=settings.kafka.predictions_partitions,
        state=settings.kafka.detector_partitions,
        replication=settings.kafka.replication_factor,
    )


def limits(settings: Settings) -> Limits:
    """Bounds on what a producer may send."""
    chosen = settings.limits
    return Limits(
        message_bytes=chosen.message_bytes,
        features=chosen.features,
        json_depth=chosen.json_depth,
        max_future_ms=round(chosen.max_future_s * 1_000),
        max_age_ms=None if chosen.max_age_s is None else round(chosen.max_age_s * 1_000),
    )


def links(settings: Settings) -> Links | None:
    """What makes signed links; ``None`` unless both the secret and the address are set."""
    public_url, chosen = settings.api.public_url, settings.approvals
    secret = chosen.secret.get_secret_value()
    return Links(public_url, secret, chosen.lasts_s) if public_url and secret else None


def clickhouse_client(settings: Settings) -> Client:
    """A client of the database's server; the database need not exist yet.

    Raises:
        TransientError: nobody answers there.
        ConfigError: the server refuses user or password.
    """
    chosen = settings.clickhouse
    return clickhouse.open_client(
        host=chosen.host,
        port=chosen.port,
        user=chosen.user,
        password=chosen.password.get_secret_value(),
        secure=chosen.secure,
    )


def require_broker(settings: Settings, *, timeout_s: float = 5.0) -> KafkaSettings:
    """How to reach the broker, once it has answered.

    Raises:
        TransientError: it does not answer.
        ConfigError: a security option is wrong, or the broker refuses who we are.
    """
    chosen = kafka(settings)
    if not clients.reachable(chosen, timeout_s=timeout_s):
        raise TransientError(f"no Kafka broker answers at {chosen.bootstrap}")
    return chosen
