from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rich.console import Console

from monitor.settings import ClickHouseSettings, EmbeddedSettings, KafkaSettings, Settings
from streams import doctor
from streams.doctor import Finding
from streams.supervisor import LOOPBACK, free_port
from tests.monitor.stored import endpoint


def _settings(tmp_path: Path, **kafka: object) -> Settings:
    away = f"{LOOPBACK}:{free_port()}"
    return Settings(
        kafka=KafkaSettings.model_validate({"bootstrap": away, **kafka}),
        clickhouse=ClickHouseSettings(url=f"http://{LOOPBACK}:{free_port()}"),
        embedded=EmbeddedSettings(data_dir=tmp_path / "none"),
    )


def _examined(settings: Settings, ahead_s: float = 0.0) -> list[Finding]:
    return doctor.examine(settings, now_s=lambda: time.time() + ahead_s, timeout_s=1.0)


def _by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_with_nothing_there_every_line_fails_and_says_what_to_do(tmp_path: Path) -> None:
    findings = _examined(_settings(tmp_path))
    assert [(f.check, f.status) for f in findings] == [("broker", "fail"), ("clickhouse", "fail")]
    assert "DRIFTLINE_KAFKA__BOOTSTRAP" in findings[0].advice
    assert "DRIFTLINE_CLICKHOUSE__URL" in findings[1].advice


def test_topics_of_the_wrong_width_fail(tmp_path: Path, embedded_broker: str) -> None:
    prefix = f"doctor{tmp_path.name[-4:]}."
    admin = AdminClient({"bootstrap.servers": embedded_broker})
    topic = f"{prefix}predictions"
    admin.create_topics([NewTopic(topic, num_partitions=3)])[topic].result(10)
    settings = _settings(tmp_path, bootstrap=embedded_broker, topic_prefix=prefix)
    found = _by_check(_examined(settings))
    assert (found["broker"].status, found["topics"].status) == ("ok", "fail")
    assert "has 3 partitions" in found["topics"].found
    assert "PARTITIONS" in found["topics"].advice


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("doctor")) as settings:
        yield settings


@pytest.mark.parametrize(("ahead_s", "status"), [(0.0, "ok"), (60.0, "warn"), (-900.0, "fail")])
def test_clocks_that_differ_are_told(
    ahead_s: float, status: str, database: ClickHouseSettings, tmp_path: Path
) -> None:
    settings = _settings(tmp_path).model_copy(update={"clickhouse": database})
    found = _by_check(_examined(settings, ahead_s))
    assert found["clock"].status == status
    assert bool(found["clock"].advice) == (status != "ok")
    assert found["clickhouse"].status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [("24.3.1.1", "warn"), ("24.8.2.1", "ok"), ("26.9.2.1", "ok"), ("unknown", "warn")],
)
def test_an_old_clickhouse_is_told(version: str, status: str) -> None:
    assert doctor.version_finding(version, "http://ch").status == status


def test_free_disk_space_is_told_where_data_is_kept(tmp_path: Path) -> None:
    settings = _settings(tmp_path).model_copy(
        update={"embedded": EmbeddedSettings(data_dir=tmp_path)}
    )
    found = _by_check(_examined(settings))
    assert "GiB free for" in found["disk"].found


def test_the_report_has_a_line_for_each_finding_and_one_for_what_to_do() -> None:
    out = io.StringIO()
    findings = [Finding("broker", "ok", "answers"), Finding("topics", "fail", "[x]", "create them")]
    doctor.write(findings, Console(file=out, width=100))
    assert out.getvalue() == (
        "ok   broker  answers\nFAIL topics  [x]\n             -> create them\n"
    )
