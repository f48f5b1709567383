from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from monitor.environment import describe, environment, load
from monitor.errors import ConfigError
from monitor.keys import create, find
from monitor.settings import ApiSettings, ClickHouseSettings, KafkaSettings, Settings, is_loopback


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("DRIFTLINE_"):
            monkeypatch.delenv(name)


def test_every_setting_has_a_default_and_a_description() -> None:
    rows = list(describe())
    assert len(rows) > 40
    assert [row.variable for row in rows if not row.description.endswith((".", ")"))] == []
    assert load() == Settings()


def test_the_environment_goes_before_the_secret_file_before_yaml_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "driftline.yaml"
    config.write_text("clickhouse: {user: yaml, password: yaml, database: from_yaml}\n")
    assert load(config).clickhouse.password == SecretStr("yaml")
    secret = tmp_path / "password"
    secret.write_text("from file\n")
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PASSWORD_FILE", str(secret))
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__USER", "environment")
    found = load(config).clickhouse
    assert (found.user, found.password.get_secret_value()) == ("environment", "from file")
    assert (found.database, found.url) == ("from_yaml", "http://127.0.0.1:8123")
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PASSWORD", "environment")
    assert load(config).clickhouse.password.get_secret_value() == "environment"


def test_driftline_config_names_the_yaml_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b.yaml").write_text("sink:\n  batch_rows: 7\n")
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(tmp_path / "a b.yaml"))
    assert load().sink.batch_rows == 7


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_LIMITS__MAX_AGE_S", "")
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", "")
    assert load() == Settings()


def test_kubernetes_service_links_are_not_taken_for_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRIFTLINE_API_PORT", "tcp://10.0.0.7:8080")
    monkeypatch.setenv("DRIFTLINE_API_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("DRIFTLINE_API_PORT_8080_TCP_ADDR", "10.0.0.7")
    assert load() == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DRIFTLINE_KAFKA__BOOTSTRAPP", "x", "did you mean DRIFTLINE_KAFKA__BOOTSTRAP?"),
        ("DRIFTLINE_KAFKA_BOOTSTRAP", "x", "did you mean DRIFTLINE_KAFKA__BOOTSTRAP?"),
        ("DRIFTLINE_API__PORT", "http", "api.port (DRIFTLINE_API__PORT): Input should be"),
        ("DRIFTLINE_API__HOST", "0.0.0.0", "needs a key"),  # the refused case
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "foo", "kafka.bootstrap (DRIFTLINE_KAFKA__BOOTSTRAP): exp"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "foo:99999", "ports from 1 to 65535"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "foo:1,bar:0", "ports from 1 to 65535"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "foo:1,", "expected HOST:PORT"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "http://foo:9092", "expected HOST:PORT"),
        ("DRIFTLINE_KAFKA__BOOTSTRAP", "me:hunter2@foo:9092", "expected HOST:PORT"),
        ("DRIFTLINE_CLICKHOUSE__URL", "http://h:99999", "a port from 1 to 65535"),
        ("DRIFTLINE_CLICKHOUSE__URL", "http://h:0", "a port from 1 to 65535"),
        ("DRIFTLINE_CLICKHOUSE__URL", "http://me:hunter2@[h", "expected http://HOST:PORT"),
        ("DRIFTLINE_CLICKHOUSE__URL", "http://me:hunter2@h:1", "no user and password in"),
        ("DRIFTLINE_CLICKHOUSE__URL", "http://h:hunter2", "clickhouse.url"),
        ("DRIFTLINE_CLICKHOUSE__URL", "clickhouse:8123", "expected http://HOST:PORT"),
        ("DRIFTLINE_CLICKHOUSE__DATABASE", "a; hunter2", "clickhouse.database"),
        ("DRIFTLINE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL", "sasl_username is missing"),
        ("DRIFTLINE_DISPATCHER__ALLOWED_NETWORKS", "10.0.0.0/8,10.1", "allowed_networks"),
        ("DRIFTLINE_APPROVALS__SECRET", "hunter2", "at least 32 characters"),
        ("DRIFTLINE_API__PUBLIC_URL", "https://me:hunter2@h", "expected http(s)://HOST"),
        ("DRIFTLINE_API__PUBLIC_URL", "https://h/?hunter2", "expected http(s)://HOST"),
        ("DRIFTLINE_API__PUBLIC_URL", "https://h/a|b>", "expected http(s)://HOST"),
        ("DRIFTLINE_API__PUBLIC_URL", "javascript:x", "expected http(s)://HOST"),
        (
            "DRIFTLINE_API__KEYS",
            "ci read hunter2",
            "api.keys (DRIFTLINE_API__KEYS): line 1: a key is",
        ),
        ("DRIFTLINE_API__OIDC_ISSUER", "http://id.example", "api.oidc_issuer"),
        ("DRIFTLINE_API__OIDC_ISSUER", "https://me:hunter2@id.example", "expected https://HOST"),
        ("DRIFTLINE_API__OIDC_ISSUER", "https://id.example", "needs oidc_audience and oidc_roles"),
        ("DRIFTLINE_API__OIDC_ROLES", "sre=admin", "scopes are read, write and approve"),
        ("DRIFTLINE_API__OIDC_ROLES", "sre", "expected ROLE=SCOPE"),
        ("DRIFTLINE_API__KEY_FILE", "/nowhere/key", "/nowhere/key cannot be read: no such file"),
        ("DRIFTLINE_CONFIG", "/nowhere/d.yaml", "/nowhere/d.yaml: cannot be read: no such file"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it_and_not_its_value(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafka: {bootstrapp: x}", "kafka.bootstrapp"),
        ("kafkaa: {bootstrap: x}", "kafkaa"),
        ("kafka: 7", "expected a mapping of groups"),
        ("- kafka", "expected a mapping of groups"),
        ("kafka: {a: 1", "line 1: not YAML"),
        ("1: {bootstrap: x}", "expected a mapping of groups"),
        ("kafka: {1: x}", "kafka.1"),
        ("kafka: 2013-02-31", "a value in it cannot be read"),
        ("kafka: " + "[" * 3000, "a value in it cannot be read"),
    ],
)
def test_a_wrong_yaml_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "d.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_process_reads_the_same_settings_from_the_environment_made_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap": "10.0.0.1:9092", "ssl_ca_location": "/a b/ca.pem"},
            "clickhouse": {"password": "p'$ w"},
            "limits": {"auto_register": False, "max_age_s": 3600},
            "dispatcher": {"allowed_networks": ["127.0.0.0/8", "::1/128"]},
        }
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load() == settings


def test_keys_come_by_file_and_the_single_key_is_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, key = create("ci", ["read"], b"r" * 32)
    (tmp_path / "keys").write_text(f"# who may what\n{key.line}\n")
    monkeypatch.setenv("DRIFTLINE_API__HOST", "0.0.0.0")
    monkeypatch.setenv("DRIFTLINE_API__KEYS_FILE", str(tmp_path / "keys"))
    assert load().api.known_keys == (key,)
    monkeypatch.setenv("DRIFTLINE_API__KEY", "hunter2")
    found = load().api
    single = find(found.known_keys, "hunter2")
    assert single is not None
    assert single.name == "api.key"
    assert single.scopes == {"read", "write", "approve"}
    assert find(found.known_keys, secret) == key


def test_roles_are_a_mapping_in_yaml_and_a_list_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "driftline.yaml"
    config.write_text(
        "api:\n  host: 0.0.0.0\n  oidc_issuer: https://id.example/realms/ml\n"
        "  oidc_audience: driftline\n  oidc_roles: {sre: [read, write, approve], viewer: read}\n"
    )
    found = load(config).api
    everything = frozenset({"read", "write", "approve"})
    assert found.scopes_of_roles == {"sre": everything, "viewer": {"read"}}
    assert found.asks_who
    for name, value in environment(load(config)).items():
        monkeypatch.setenv(name, value)
    assert load().api == found


def test_settings_are_frozen_and_their_repr_hides_secrets() -> None:
    settings = Settings(api=ApiSettings(key=SecretStr("hunter2")))
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.api.port = 1


def test_security_options_carry_librdkafkas_names_and_only_what_is_set() -> None:
    assert KafkaSettings().security == {}
    secured = KafkaSettings(
        security_protocol="SASL_SSL", sasl_username="u", sasl_password=SecretStr("p")
    )
    assert secured.security == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
    }


@pytest.mark.parametrize(
    ("url", "host", "port", "secure"),
    [
        ("http://ch", "ch", 8123, False),
        ("https://ch/", "ch", 8443, True),
        ("http://[::1]:9000", "::1", 9000, False),
    ],
)
def test_the_address_of_clickhouse_falls_apart_into_host_and_port(
    url: str, host: str, port: int, secure: bool
) -> None:
    settings = ClickHouseSettings(url=url)
    assert (settings.host, settings.port, settings.secure) == (host, port, secure)


def test_addresses_of_brokers_are_kept_without_the_blanks_between_them() -> None:
    assert KafkaSettings(bootstrap="a:1, [::1]:65535 ,b.c:9092").bootstrap == (
        "a:1,[::1]:65535,b.c:9092"
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # the case that matters
        ("::", False),
        ("api.internal", False),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
