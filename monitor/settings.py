"""What an operator can set: one frozen tree. ``monitor.environment`` fills it.

Each field has a default and a description; help texts and the README's table are made from these, so there is nothing
to keep in step. Seconds are ``_s``, sizes are ``_bytes``, and secrets are ``SecretStr``: their ``repr`` is stars.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import override

from monitor.approvals import MIN_SECRET
from monitor.keys import SCOPES, Key, Scope, digest_of, scopes_of
from monitor.keys import parse as parse_keys

PREFIX: Final = "DRIFTLINE_"
_BROKER: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(\d{1,5})")
_SERVER: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:@\[\]]+)(?::(\d{1,5}))?")

# No character that could end a link in a message, or an attribute of HTML.
_PUBLIC: Final = re.compile(
    r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?(?:/[A-Za-z0-9._~-]+)*/?"
)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


def is_safe_address(url: str) -> bool:
    """Whether nobody on the way can read or change what is asked there: https, or this machine."""
    try:
        parts = urlsplit(url)
        host, user = parts.hostname, parts.username
        parts.port  # noqa: B018  # raises where it is none
    except ValueError:
        return False
    if not host or user is not None or parts.query or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _is_port(digits: str) -> bool:
    return 0 < int(digits) < 65_536


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _split_roles(value: object) -> object:
    if not isinstance(value, Mapping):
        return _split(value)
    given = {role: [may] if isinstance(may, str) else may for role, may in value.items()}
    return [f"{role}={'+'.join(map(str, may))}" for role, may in given.items()]


def _role(entry: str) -> tuple[str, frozenset[Scope]]:
    role, _, scopes = entry.rpartition("=")
    if not role:
        raise ValueError("expected ROLE=SCOPE[+SCOPE...]")
    return role, scopes_of(scopes.split("+"))


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Roles = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_roles)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class KafkaSettings(_Group):
    """The broker, and how topics are laid out on it."""

    bootstrap: str = Field(
        default="127.0.0.1:9092",
        min_length=3,
        description="HOST:PORT[,HOST:PORT...] of the brokers.",
    )
    topic_prefix: str = Field(
        default="driftline.",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Prefix of every topic and consumer group.",
    )
    client_id: str = Field(default="driftline", description="Client id that the brokers see.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="Transport security. Certificates and host names are always verified.",
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism, where the protocol is SASL_*."
    )
    sasl_username: str = Field(default="", description="SASL user.")
    sasl_password: SecretStr = Field(default=SecretStr(""), description="SASL password.")
    ssl_ca_location: Path | None = Field(
        default=None, description="CA certificates (PEM); the system's if empty."
    )
    ssl_certificate_location: Path | None = Field(
        default=None, description="Client certificate (PEM) for mutual TLS."
    )
    ssl_key_location: Path | None = Field(
        default=None, description="Private key (PEM) of the client certificate."
    )
    ssl_key_password: SecretStr = Field(
        default=SecretStr(""), description="Password of the private key."
    )
    session_timeout_s: float = Field(
        default=45.0, ge=3, le=1800, description="A worker silent for this long loses its work."
    )
    predictions_partitions: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Partitions of predictions, labels and scored, when they are created.",
    )
    detector_partitions: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Partitions of the detector's topics. Fixed for life: state lives by partition.",
    )
    replication_factor: int = Field(
        default=1, ge=1, le=15, description="Copies of every topic that is created."
    )

    @field_validator("bootstrap")
    @classmethod
    def _addresses(cls, value: str) -> str:
        addresses = [address.strip() for address in value.split(",")]
        for address in addresses:
            match = _BROKER.fullmatch(address)
            if match is None or not _is_port(match[1]):
                raise ValueError("expected HOST:PORT[,HOST:PORT...], ports from 1 to 65535")
        return ",".join(addresses)

    @model_validator(mode="after")
    def _user_for_sasl(self) -> Self:
        if self.security_protocol.startswith("SASL") and not self.sasl_username:
            raise ValueError("security_protocol is SASL_*: sasl_username is missing")
        return self

    @property
    def security(self) -> dict[str, str]:
        """The security options under librdkafka's names. Holds secrets."""
        if self.security_protocol == "PLAINTEXT":
            return {}
        options: dict[str, object] = {
            "security.protocol": self.security_protocol,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": self.ssl_key_password.get_secret_value(),
        }
        if self.security_protocol.startswith("SASL"):
            options["sasl.mechanism"] = self.sasl_mechanism
            options["sasl.username"] = self.sasl_username
            options["sasl.password"] = self.sasl_password.get_secret_value()
        return {name: str(value) for name, value in options.items() if value}


class ClickHouseSettings(_Group):
    """The database, over ClickHouse's HTTP interface."""

    url: str = Field(
        default="http://127.0.0.1:8123",
        description="http(s)://HOST:PORT, without user and password.",
    )
    user: str = Field(default="default", description="User.")
    password: SecretStr = Field(default=SecretStr(""), description="Password.")
    database: str = Field(
        default="driftline",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$",
        description="Database; created by the migrations.",
    )
    keep_short_days: int = Field(
        default=30,
        ge=2,
        le=36_500,
        description="Days that features and verdicts of windows below an hour are kept, from when they were stored; `driftline migrate` applies it.",
    )
    keep_hours_days: int = Field(
        default=180, ge=2, le=36_500, description="The same of windows from an hour to below a day."
    )
    keep_days: int = Field(
        default=400,
        ge=2,
        le=36_500,
        description="The same of windows of a day and more, of performance, and of the segments' numbers of events.",
    )
    keep_events_days: int = Field(
        default=180, ge=2, le=36_500, description="Days that predictions and their labels are kept."
    )

    @model_validator(mode="after")
    def _longer_for_longer(self) -> Self:
        if not self.keep_short_days <= self.keep_hours_days <= self.keep_days:
            raise ValueError(
                "keep_short_days must not be above keep_hours_days, nor that above keep_days:"
                " days are rolled up from hours, and those from shorter windows"
            )
        return self

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
        except ValueError:  # its message quotes the address, and so perhaps a password
            raise ValueError("expected http://HOST:PORT or https://HOST:PORT") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("no user and password in the address: set user and password")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("only http(s)://HOST:PORT: the database is a setting of its own")
        match = _SERVER.fullmatch(parts.netloc)
        if match is None or not _is_port(match[1] or "1"):
            raise ValueError(
                "expected http://HOST:PORT or https://HOST:PORT, a port from 1 to 65535"
            )
        return value.rstrip("/")

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        """Host name or address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Port; ClickHouse's own default where the address has none."""
        return urlsplit(self.url).port or (8443 if self.secure else 8123)


class LimitSettings(_Group):
    """What an event may cost. Beyond a limit an event goes to the dead letters, with the reason."""

    message_bytes: int = Field(
        default=1 << 20, ge=1024, le=64 << 20, description="Largest message."
    )
    features: int = Field(default=2_000, ge=1, le=10_000, description="Features of one event.")
    json_depth: int = Field(default=8, ge=3, le=64, description="Deepest nesting of a JSON event.")
    max_future_s: float = Field(
        default=300.0, ge=0, description="How far an event's ts may be ahead of the clock."
    )
    max_age_s: float | None = Field(
        default=None,
        gt=0,
        description="How far ts may be behind the clock; off if empty, since replays of history are normal.",
    )
    models: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Models that are followed; further ones are refused.",
    )
    versions: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Versions of a model that are followed one by one; further ones are counted together, as __other__.",
    )
    open_panes_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        le=64 << 30,
        description="Memory of one detector partition for panes ahead of the watermark; beyond it they are counted at once, as corrections.",
    )
    dead_letters_per_minute: int = Field(
        default=1_000,
        ge=1,
        le=1_000_000,
        description="Dead letters that one process sends; more are only counted, but for one of each reason a minute.",
    )
    auto_register: bool = Field(
        default=True, description="Follow an unknown model; otherwise its events are dead letters."
    )


class ProfilerSettings(_Group):
    """From predictions to profiles."""

    batch_events: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Messages of one batch, and so of one transaction.",
    )
    batch_wait_s: float = Field(
        default=0.5, gt=0, le=60, description="A batch that is not full is closed after this time."
    )
    idle_after_s: float = Field(
        default=15.0,
        gt=0,
        description="A partition read to its end for this long no longer holds the watermark back.",
    )
    heartbeat_s: float = Field(
        default=10.0, gt=0, le=60, description="Watermarks are sent at least this often."
    )
    instance: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=128,
        description="Lasting name of this profiler, distinct among those of one host; the host's name if not set.",
    )


class BridgeSettings(_Group):
    """From the topics of another server to predictions."""

    topics: str = Field(
        default=r"seldon\.(?P<namespace>[^.]+)\.model\.(?P<model>[^.]+)\.(?P<side>inputs|outputs)",
        min_length=1,
        max_length=500,
        description="Regular expression for names of topics. Group `side` tells requests (`inputs`) from responses (`outputs`); without it, messages are CloudEvents, whose type tells. `model` names the model; any other group becomes a tag.",
    )
    name: str = Field(
        default="bridge",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Lasting name, one for each set of topics. A second process of the same name takes over from the first.",
    )
    hold_s: float = Field(
        default=60.0, ge=1, le=3_600, description="A request waits so long for its response."
    )
    held_bytes: int = Field(
        default=64 << 20,
        ge=1 << 20,
        le=16 << 30,
        description="Memory for requests and responses that wait; beyond it the oldest waits no longer.",
    )
    batch_messages: int = Field(
        default=2_000, ge=1, le=100_000, description="Messages of one transaction."
    )

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as err:
            raise ValueError(f"it is no regular expression: {err}") from None
        return value


class DetectorSettings(_Group):
    """From profiles to verdicts and incidents."""

    runner: Literal["transactional", "faust"] = Field(
        default="transactional",
        description="What runs the stages; both keep their state in the same changelogs. Change it for all workers at once.",
    )
    data_dir: Path = Field(
        default=Path(".driftline/detector"),
        description="Scratch directory of the worker; may be lost.",
    )
    instance: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        max_length=128,
        description="Lasting name of this worker, distinct among those of one host; the host's name if not set.",
    )
    stalled_after_s: float = Field(
        default=60.0,
        ge=10,
        description="With lag and no progress for this long, the worker ends to be restarted.",
    )


class SinkSettings(_Group):
    """From Kafka to ClickHouse."""

    batch_rows: int = Field(default=50_000, ge=1, le=1_000_000, description="Rows of one insert.")
    batch_wait_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="A batch that is not full is inserted after this time.",
    )


class EvaluatorSettings(_Group):
    """From labels to performance."""

    interval_s: float = Field(
        default=1.0, gt=0, le=3600, description="Pause between two looks for new labels."
    )


class DispatcherSettings(_Group):
    """From the outbox to webhooks."""

    allowed_networks: Names = Field(
        default=(),
        description="Networks (CIDR, comma-separated) that webhooks may reach although they are not public.",
    )
    ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) that are trusted beside the public ones, as of a cluster's API.",
    )
    timeout_s: float = Field(default=10.0, gt=0, le=120, description="One delivery attempt.")
    max_age_s: float = Field(
        default=86_400.0,
        gt=0,
        description="Delivery is retried for this long, then given up as expired.",
    )
    heartbeat_url: SecretStr = Field(
        default=SecretStr(""),
        description="Address that is called while the dispatcher works: who hears nothing raises the alarm.",
    )
    heartbeat_s: float = Field(
        default=60.0, ge=1, le=3_600, description="Between two of its calls."
    )

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)  # its message names the network and what is wrong
        return value


class EmailSettings(_Group):
    """The server that takes mail for the dispatcher."""

    server: str = Field(
        default="", description="SMTP server as `host:port`; without one no mail is sent."
    )
    sender: str = Field(
        default="driftline@localhost",
        description="Address that mail comes from.",
        pattern=r"^[^\s@<>]+@[^\s@<>]+$",
    )
    tls: Literal["starttls", "implicit", "none"] = Field(
        default="starttls", description="`starttls` (587), `implicit` (465), or `none` on loopback."
    )
    username: str = Field(default="", description="User at the server; no log-in if empty.")
    password: SecretStr = Field(default=SecretStr(""), description="Password at the server.")

    @model_validator(mode="after")
    def _server(self) -> Self:
        if not self.server:
            return self
        match = _BROKER.fullmatch(self.server)
        if match is None or not _is_port(match[1]):
            raise ValueError("server: give it as host:port")
        host = self.server.rpartition(":")[0]
        if self.tls == "none" and not is_loopback(host):
            raise ValueError("tls: none is for a server on this machine; use starttls or implicit")
        return self


class ApprovalSettings(_Group):
    """Signed links in notifications, by which an action is approved without a terminal."""

    secret: SecretStr = Field(
        default=SecretStr(""),
        description=f"Signs them, the same for dispatcher and API, at least {MIN_SECRET} characters; without it, or without api.public_url, there are none.",
    )
    lasts_s: int = Field(
        default=86_400, ge=60, le=30 * 86_400, description="A link is good for this long."
    )

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < MIN_SECRET:
            raise ValueError(
                f"give at least {MIN_SECRET} characters, as `openssl rand -hex 24` makes them"
            )
        return value


class ApiSettings(_Group):
    """The HTTP API and the page."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; beyond loopback only with a key."
    )
    port: int = Field(default=8080, ge=0, le=65_535, description="Port to listen on.")
    key: SecretStr = Field(
        default=SecretStr(""),
        description="One key that may do all, sent as X-API-Key; for several, use keys.",
    )
    keys: SecretStr = Field(
        default=SecretStr(""),
        description="Keys, a line each, as `driftline keys create` writes them; without any, and without OIDC, all is open.",
    )
    oidc_issuer: str = Field(
        default="",
        max_length=500,
        description="https://... of the issuer whose tokens (JWT) are taken as Authorization: Bearer; none if empty.",
    )
    oidc_audience: str = Field(default="", description="What a token's aud has to hold.")
    oidc_roles_claim: str = Field(
        default="roles",
        min_length=1,
        description="Claim that holds the roles, with dots where it is nested: realm_access.roles.",
    )
    oidc_roles: Roles = Field(
        default=(), description="What a role may do: ROLE=SCOPE[+SCOPE...], comma-separated."
    )
    oidc_name_claim: str = Field(
        default="sub", min_length=1, description="Claim that names who asks, in orders."
    )
    oidc_leeway_s: float = Field(
        default=30.0, ge=0, le=300, description="How far the issuer's clock may be off."
    )
    oidc_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) that are trusted beside the public ones."
    )
    rate_per_s: float = Field(
        default=300.0,
        ge=0,
        le=1_000_000,
        description="Requests a second of one key, person or address, beyond the burst; 0 is without limit.",
    )
    burst: int = Field(
        default=600, ge=1, le=1_000_000, description="Requests that one of them may send at once."
    )
    page_size: int = Field(default=5_000, ge=1, le=10_000, description="Most rows of one answer.")
    public_url: str = Field(
        default="",
        max_length=200,
        description="http(s)://HOST[:PORT][/PATH] where people reach the API, for links in notifications; no links if empty.",
    )

    grafana_url: str = Field(
        default="",
        max_length=200,
        description="http(s)://HOST[:PORT][/PATH] of the Grafana that has our dashboards, for links on the page; no links if empty.",
    )

    @field_validator("public_url", "grafana_url")
    @classmethod
    def _public_address(cls, value: str) -> str:
        if value and not _PUBLIC.fullmatch(value):
            raise ValueError("expected http(s)://HOST[:PORT][/PATH], without user and query")
        return value.rstrip("/")

    @field_validator("keys")
    @classmethod
    def _key_lines(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if value and not is_safe_address(value):
            raise ValueError("expected https://HOST[:PORT][/PATH], or http:// on loopback")
        return value

    @field_validator("oidc_roles")
    @classmethod
    def _roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            _role(entry)
        return value

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.oidc_issuer and not (self.oidc_audience and self.oidc_roles):
            raise ValueError(
                "oidc_issuer needs oidc_audience and oidc_roles: whose tokens are taken, and what they may do"
            )
        if not is_loopback(self.host) and not self.asks_who:
            raise ValueError(
                f"listening on {self.host} needs a key: set DRIFTLINE_API__KEYS_FILE or DRIFTLINE_API__KEY_FILE, or OIDC"
            )
        return self

    @property
    def asks_who(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self.oidc_issuer or self.known_keys)

    @property
    def known_keys(self) -> tuple[Key, ...]:
        """All keys, without their secrets."""
        keys, single = parse_keys(self.keys.get_secret_value()), self.key.get_secret_value()
        if not single:
            return keys
        return (*keys, Key("api.key", digest_of(single), frozenset(SCOPES)))

    @property
    def scopes_of_roles(self) -> dict[str, frozenset[Scope]]:
        """By role of the issuer, what it may do."""
        return dict(_role(entry) for entry in self.oidc_roles)


class MetricsSettings(_Group):
    """Prometheus metrics, one port per process."""

    host: str = Field(
        default="127.0.0.1",
        description="Address of /metrics. It has no key: keep it in your own network.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Port of /metrics; 0 is off. The API serves its own as well.",
    )


class LogSettings(_Group):
    """Logs, on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least level that is written."
    )
    format: Literal["auto", "console", "logfmt", "json"] = Field(
        default="auto", description="auto is console on a terminal and logfmt elsewhere."
    )


class EmbeddedSettings(_Group):
    """The broker and the database that `driftline up` brings along."""

    data_dir: Path = Field(
        default=Path(".driftline"),
        description="Where they keep their data and the processes their logs.",
    )


class Settings(BaseSettings):
    """All settings. Build it with ``monitor.environment.load``: the constructor's errors are pydantic's."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,  # compose files write ${NAME:-}
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    limits: LimitSettings = LimitSettings()
    profiler: ProfilerSettings = ProfilerSettings()
    bridge: BridgeSettings = BridgeSettings()
    detector: DetectorSettings = DetectorSettings()
    sink: SinkSettings = SinkSettings()
    evaluator: EvaluatorSettings = EvaluatorSettings()
    dispatcher: DispatcherSettings = DispatcherSettings()
    email: EmailSettings = EmailSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    api: ApiSettings = ApiSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before what ``load`` passes in: secret files and the YAML file."""
        if isinstance(env_settings, EnvSettingsSource):
            # NAME_FILE is not a field: monitor.environment reads the file and passes in its content.
            env_settings.env_vars = {
                name: value
                for name, value in env_settings.env_vars.items()
                if not name.endswith("_file")
            }
        return env_settings, init_settings
