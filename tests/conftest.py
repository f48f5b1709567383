"""What all tests share: the brokers, hypothesis profiles, and a closing summary that says what did not run.

In CI (the environment variable ``CI``) a skipped test is a failed test.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.kafka.broker import KafkaBroker

IN_CI: Final = bool(os.environ.get("CI"))
pytest_plugins = ["pytester"]  # tests/test_project.py runs a small suite under this conftest
KINDS: Final = {"kafka": "real Kafka", "embedded": "embedded end-to-end", "unit": "unit"}
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=500, deadline=None, derandomize=True)
settings.load_profile("ci" if IN_CI else "dev")


@pytest.fixture(scope="session")
def kafka_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], KafkaBroker]]:
    """Starts a broker of the caller's own, which it may kill and restart; gone when the session ends."""
    from tests.kafka.broker import KafkaBroker, KafkaUnavailableError, fetch_jars

    try:
        jars = fetch_jars()
    except KafkaUnavailableError as err:
        pytest.skip(str(err))
    with ExitStack() as brokers:
        yield lambda: brokers.enter_context(KafkaBroker(tmp_path_factory.mktemp("kafka"), jars))


@pytest.fixture(scope="session")
def kafka(kafka_factory: Callable[[], KafkaBroker]) -> str:
    """Address of the session's Apache Kafka: shared, so tests name their own topics and groups."""
    return kafka_factory().address


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the session's embedded broker: shared, so tests name their own topics and groups."""
    from streams.embedded import broker
    from streams.supervisor import LOOPBACK, Supervisor, free_port

    directory, port = tmp_path_factory.mktemp("embedded"), free_port()
    with Supervisor(directory) as supervisor:
        supervisor.start(broker.child(port, directory))
        supervisor.wait_ready(30)
        yield f"{LOOPBACK}:{port}"


@pytest.fixture(
    params=[
        pytest.param("embedded_broker", id="embedded", marks=pytest.mark.embedded),
        pytest.param("kafka", id="kafka", marks=pytest.mark.kafka),
    ]
)
def broker_address(request: pytest.FixtureRequest) -> str:
    """Address of each broker in turn: the embedded one and Apache Kafka."""
    address: str = request.getfixturevalue(request.param)
    return address


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a broker, so that nobody can forget to."""
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        if "kafka_factory" in fixtures:
            item.add_marker(pytest.mark.kafka)
        if "embedded_broker" in fixtures:
            item.add_marker(pytest.mark.embedded)
        kind = next((name for name in KINDS if item.get_closest_marker(name)), "unit")
        item.user_properties.append(("kind", kind))  # goes with the report, from whichever process


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report: Report) -> Report:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not accept: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count each kind of test, and give every kind that was skipped a heading with the reasons."""
    counts = {kind: Counter[str]() for kind in reversed(KINDS)}
    reasons = {kind: Counter[str]() for kind in KINDS}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.stats.get(outcome, []):
            kind = dict(getattr(report, "user_properties", ())).get("kind", "unit")
            counts[kind][outcome] += 1
            if outcome == "skipped":
                reasons[kind][_reason(report)] += 1
    for kind, why in reasons.items():
        if why:
            terminalreporter.section(f"{KINDS[kind]}: {why.total()} did NOT run", yellow=True)
        for reason, times in why.items():
            terminalreporter.line(f"{times} x {reason}")
    terminalreporter.section("what ran")
    for kind, outcomes in counts.items():
        said = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()) or "none"
        terminalreporter.line(f"{KINDS[kind]}: {said}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")
