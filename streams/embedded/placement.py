"""Which addresses a stack has: those that were given, else the usual ones where they are free, else any that are."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from monitor.environment import problem_of
from monitor.errors import ConfigError
from monitor.settings import Settings, is_loopback
from streams import clients
from streams.supervisor import LOOPBACK, free_port, is_free

EMBEDDED_SESSION_S: Final = clients.EMBEDDED_SESSION_MS / 1_000
_Group = TypeVar("_Group", bound=BaseModel)


def place(
    settings: Settings, home: Path, broker: str | None, url: str | None, *, fresh: bool
) -> Settings:
    """The settings with the addresses of this run.

    Args:
        settings: what the user set.
        home: the data directory.
        broker: a Kafka to use instead of the embedded one.
        url: a ClickHouse to use instead of the embedded one.
        fresh: share nothing with other runs.

    Raises:
        ConfigError: an address is wrong, would be ignored, or is taken.
    """
    _refuse_elsewhere(settings, broker, url)
    run = secrets.token_hex(3)
    kafka: dict[str, Any] = {"bootstrap": broker}
    if broker is None:
        wanted = port_of(settings.kafka.bootstrap)
        kafka = {
            "bootstrap": f"{LOOPBACK}:{_port(wanted, fresh=fresh)}",
            "session_timeout_s": EMBEDDED_SESSION_S,
            "security_protocol": "PLAINTEXT",
        }
    elif fresh:
        kafka["topic_prefix"] = f"{settings.kafka.topic_prefix}{run}."
    database: dict[str, Any] = {"url": url}
    if url is None:
        port = _port(settings.clickhouse.port, fresh=fresh)
        database = {"url": f"http://{LOOPBACK}:{port}", "user": "default"}
    elif fresh or broker is None:
        database["database"] = f"{settings.clickhouse.database}_{run}"
    return settings.model_copy(
        update={
            "kafka": _changed(settings.kafka, kafka, "--broker"),
            "clickhouse": _changed(settings.clickhouse, database, "--clickhouse"),
            "api": settings.api.model_copy(update={"port": _api_port(settings, fresh=fresh)}),
            "detector": settings.detector.model_copy(update={"data_dir": home / "detector"}),
        }
    )


def _refuse_elsewhere(settings: Settings, broker: str | None, url: str | None) -> None:
    """An address of another machine is not to be replaced by an embedded server without a word."""
    hosts = [address.rpartition(":")[0] for address in settings.kafka.bootstrap.split(",")]
    if broker is None and not all(map(is_loopback, hosts)):
        raise ConfigError("DRIFTLINE_KAFKA__BOOTSTRAP is set: give --broker to use it, or unset it")
    if url is None and not is_loopback(settings.clickhouse.host):
        raise ConfigError(
            "DRIFTLINE_CLICKHOUSE__URL is set: give --clickhouse to use it, or unset it"
        )


def _changed(group: _Group, changes: dict[str, Any], option: str) -> _Group:
    try:
        return type(group).model_validate(group.model_dump() | changes)
    except ValidationError as err:
        raise ConfigError(f"{option}: {problem_of(err)}") from err


def _api_port(settings: Settings, *, fresh: bool) -> int:
    """The port that was given, or else a free one."""
    port = settings.api.port
    if not port or "port" not in settings.api.model_fields_set:
        return _port(port, fresh=fresh)
    if not is_free(port):
        raise ConfigError(
            f"port {port} for the API is in use: set DRIFTLINE_API__PORT to another, or unset it"
        )
    return port


def port_of(bootstrap: str) -> int:
    """Port of the first broker."""
    return int(bootstrap.split(",")[0].rpartition(":")[2])


def _port(preferred: int, *, fresh: bool) -> int:
    """The usual port where it is free: an address that stays the same is worth a try."""
    return preferred if preferred and not fresh and is_free(preferred) else free_port()
