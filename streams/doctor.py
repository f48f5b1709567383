"""``driftline doctor``: looks at everything that a deployment needs, and says what to do about what is wrong.

Each check is independent and bounded in time; a check whose ground is missing (no broker, no database) is left out.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.markup import escape

from monitor import clickhouse
from monitor.errors import ConfigError, DriftlineError, TransientError
from monitor.settings import Settings
from streams import clients, topics, wiring

Status = Literal["ok", "warn", "fail"]

OLDEST_CLICKHOUSE: Final = (24, 8)  # the oldest release line that the migrations were written for
SKEW_WARN_S: Final = 5.0  # about the default allowed lateness of a model
SKEW_FAIL_S: Final = 300.0  # the default bound of timestamps in the future
LAG_WARN: Final = 1_000_000  # messages: a few seconds of one profiler
DISK_WARN_BYTES: Final = 5 << 30
DISK_FAIL_BYTES: Final = 1 << 30
_TIMEOUT_S: Final = 5.0
_MARKS: Final[dict[Status, str]] = {
    "ok": "[green]ok  [/]",
    "warn": "[yellow]warn[/]",
    "fail": "[red]FAIL[/]",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``advice`` is empty where nothing is to be done."""

    check: str
    status: Status
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def examine(
    settings: Settings, *, now_s: Callable[[], float], timeout_s: float = 5.0
) -> list[Finding]:
    """Run every check.

    Args:
        settings: what is to be examined.
        now_s: this machine's clock, Unix time.
        timeout_s: how long the broker has for each answer.
    """
    return [
        *_broker_findings(settings, timeout_s),
        *_clickhouse_findings(settings, now_s),
        *_disk_findings(settings),
    ]


def write(findings: Sequence[Finding], console: Console) -> None:
    """Print findings for people: one line each, and below it what to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        mark = _MARKS[finding.status]
        console.print(f"{mark} {finding.check:<{width}}  {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            console.print(f"     {'':<{width}}  -> {escape(finding.advice)}", soft_wrap=True)


def _broker_findings(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    address = settings.kafka.bootstrap
    try:
        kafka = wiring.require_broker(settings, timeout_s=timeout_s)
    except (DriftlineError, ValueError) as err:
        yield Finding(
            "broker",
            "fail",
            str(err),
            "start Kafka, or set DRIFTLINE_KAFKA__BOOTSTRAP (and DRIFTLINE_KAFKA__SECURITY_PROTOCOL)",
        )
        return
    yield Finding("broker", "ok", f"answers at {address}")
    admin = clients.admin(kafka, logger)
    found = _topics_finding(admin, settings, timeout_s)
    yield found
    if found.status == "ok":
        yield from _lag_findings(admin, kafka, settings)


def _topics_finding(admin: AdminClient, settings: Settings, timeout_s: float) -> Finding:
    names, widths = wiring.topics(settings), wiring.widths(settings)
    try:
        missing = topics.check(admin, names, widths, timeout_s=timeout_s)
    except (ConfigError, topics.TopicMismatchError) as err:
        advice = "set DRIFTLINE_KAFKA__*_PARTITIONS to what the broker has, or use another prefix"
        return Finding("topics", "fail", str(err), advice)
    except (TransientError, KafkaException) as err:
        return Finding("topics", "fail", f"not listed: {err}", "look at the broker's log")
    if missing:
        return Finding(
            "topics", "fail", f"missing: {', '.join(missing)}", "run `driftline topics create`"
        )
    return Finding("topics", "ok", f"{len(topics.SPECS)} with the right partitions")


def _lag_findings(
    admin: AdminClient, kafka: clients.KafkaSettings, settings: Settings
) -> Iterator[Finding]:
    """Per consumer group of ours: messages between its committed offsets and the ends."""
    prefix = settings.kafka.topic_prefix
    try:
        listing = admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result()
    except KafkaException as err:
        yield Finding("lag", "warn", f"groups not listed: {err.args[0].str()}", "check the ACLs")
        return
    groups = sorted(g.group_id for g in listing.valid if g.group_id.startswith(prefix))
    if not groups:
        yield Finding(
            "lag", "warn", "no process has read anything yet", "start `driftline run profiler`, ..."
        )
    for group in groups:
        yield _lag_finding(admin, kafka, group)


def _lag_finding(admin: AdminClient, kafka: clients.KafkaSettings, group: str) -> Finding:
    from confluent_kafka import ConsumerGroupTopicPartitions

    consumer = Consumer(clients.consumer_config(kafka, group, logger))
    try:
        request = [ConsumerGroupTopicPartitions(group)]
        answer = admin.list_consumer_group_offsets(request)[group].result(_TIMEOUT_S)
        lag = sum(_lag(consumer, at) for at in answer.topic_partitions or [] if at.offset >= 0)
    except KafkaException as err:
        return Finding(f"lag {group}", "warn", f"unknown: {err.args[0].str()}", "check the ACLs")
    finally:
        consumer.close()
    if lag > LAG_WARN:
        return Finding(
            f"lag {group}", "warn", f"{lag:,} messages", "is it running? Start another worker of it"
        )
    return Finding(f"lag {group}", "ok", f"{lag:,} messages")


def _lag(consumer: Consumer, committed: TopicPartition) -> int:
    _, end = consumer.get_watermark_offsets(committed, timeout=_TIMEOUT_S)
    return int(max(0, end - committed.offset))


def _clickhouse_findings(settings: Settings, now_s: Callable[[], float]) -> Iterator[Finding]:
    address = settings.clickhouse.url
    try:
        client = wiring.clickhouse_client(settings)
    except DriftlineError as err:
        advice = "start ClickHouse, or set DRIFTLINE_CLICKHOUSE__URL, __USER and __PASSWORD"
        yield Finding("clickhouse", "fail", f"{address}: {err}", advice)
        return
    try:
        yield version_finding(client.server_version or "unknown", address)
        yield _migrations_finding(client, settings.clickhouse.database)
        yield _skew_finding(client, now_s)
    except DriftlineError as err:
        yield Finding("clickhouse", "fail", f"{address}: {err}", "look at ClickHouse's log")
    finally:
        client.close()


def version_finding(version: str, address: str) -> Finding:
    """Whether ClickHouse is of a release that the migrations were written for."""
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if parts < OLDEST_CLICKHOUSE:
        wanted = ".".join(map(str, OLDEST_CLICKHOUSE))
        advice = f"upgrade to {wanted} or newer"
        return Finding("clickhouse", "warn", f"{version} at {address}", advice)
    return Finding("clickhouse", "ok", f"{version} at {address}")


def _migrations_finding(client: Client, database: str) -> Finding:
    try:
        missing = clickhouse.migrate(client, database, dry_run=True)
    except ConfigError as err:
        return Finding("migrations", "fail", str(err), "install the release that wrote them")
    if missing:
        names = ", ".join(f"{m.version:04d}_{m.name}" for m in missing)
        return Finding("migrations", "fail", f"missing: {names}", "run `driftline migrate`")
    return Finding("migrations", "ok", f"database {database} is current")


def _skew_finding(client: Client, now_s: Callable[[], float]) -> Finding:
    before = now_s()
    with clickhouse.translated():
        answer = client.command("SELECT toUnixTimestamp64Milli(now64(3))")
    theirs, after = float(str(answer)) / 1e3, now_s()
    # The answer was written somewhere between the two readings: only what lies outside is skew.
    skew = max(0.0, before - theirs, theirs - after)
    found = f"{skew:.1f} s apart from ClickHouse"
    advice = "let both machines follow one time source (chrony, NTP)"
    if skew > SKEW_FAIL_S:
        return Finding("clock", "fail", found, advice)
    return Finding(
        "clock", "warn" if skew > SKEW_WARN_S else "ok", found, advice * (skew > SKEW_WARN_S)
    )


def _disk_findings(settings: Settings) -> Iterator[Finding]:
    home = settings.embedded.data_dir
    if not home.is_dir():
        return  # nothing embedded was ever started here
    free = shutil.disk_usage(home).free
    found = f"{free / (1 << 30):.1f} GiB free for {home}"
    if free < DISK_WARN_BYTES:
        status: Status = "fail" if free < DISK_FAIL_BYTES else "warn"
        yield Finding("disk", status, found, "free some, or set DRIFTLINE_EMBEDDED__DATA_DIR")
    else:
        yield Finding("disk", "ok", found)
