from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from monitor.errors import ConfigError, TransientError
from monitor.settings import Settings
from streams.processes import PROCESSES, Run, named, resolve, run_patiently


class NeverWaits(threading.Event):
    """A stop event that notes how long it was asked to wait for, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    @override
    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


def _fails(times: int, error: Exception, spend: Callable[[], None] = lambda: None) -> Run:
    left = iter(range(times))

    def run(_settings: Settings, _stop: threading.Event) -> None:
        spend()
        if next(left, None) is not None:
            raise error

    return run


def test_a_process_waits_with_backoff_for_what_is_away_and_goes_on() -> None:
    stop, failed = NeverWaits(), itertools.count()
    run = _fails(7, TransientError("no broker"))
    run_patiently(run, Settings(), stop, clock=lambda: 0.0, failed=lambda: next(failed))
    assert stop.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert next(failed) == 7


def test_it_says_what_it_waits_for_once_a_minute() -> None:
    now = [0.0]

    def spend() -> None:
        now[0] += 25.0

    with capture_logs() as logs:
        run = _fails(6, TransientError("no broker"), spend)
        run_patiently(run, Settings(), NeverWaits(), clock=lambda: now[0])
    assert [(log["event"], log["error"]) for log in logs] == [
        ("waiting for a dependency", "no broker")
    ] * 2  # at 25 s and at 100 s of 150 s


def test_an_outage_after_a_long_run_starts_with_a_short_wait() -> None:
    now, stop = [0.0], NeverWaits()
    lives = iter([1.0, 1.0, 1.0, 3600.0, 1.0])

    def run(_settings: Settings, _stop: threading.Event) -> None:
        lived = next(lives, None)
        if lived is not None:
            now[0] += lived
            raise TransientError("away")

    run_patiently(run, Settings(), stop, clock=lambda: now[0])
    assert stop.waits == [0.5, 1.0, 2.0, 0.5, 1.0]


@pytest.mark.parametrize("error", [ConfigError("wrong"), ZeroDivisionError()])
def test_no_other_error_is_waited_for(error: Exception) -> None:
    stop = NeverWaits()
    with pytest.raises(type(error)):
        run_patiently(_fails(1, error), Settings(), stop)
    assert stop.waits == []


def test_a_process_that_was_told_to_stop_is_not_started_again() -> None:
    stop = threading.Event()

    def run(_settings: Settings, stop: threading.Event) -> None:
        stop.set()
        raise TransientError("away")

    run_patiently(run, Settings(), stop)
    assert stop.is_set()


def test_every_process_is_a_module_with_a_run_of_settings_and_stop() -> None:
    for process in PROCESSES:
        assert callable(resolve(process)), process.name
        assert named(process.name) is process
    with pytest.raises(ConfigError, match="no process is called sinc"):
        named("sinc")


SCRIPT = """
    import threading, time
    from streams.processes import stop_on_signals
    stop = threading.Event()
    stop_on_signals(stop, within_s={within_s})
    print("ready", flush=True)
    stop.wait()
    time.sleep({then_s})
"""


@pytest.mark.parametrize(
    ("within_s", "then_s", "signals", "code"),
    [
        (5.0, 0.0, [signal.SIGTERM], 0),
        (5.0, 0.0, [signal.SIGINT], 0),
        (0.2, 30.0, [signal.SIGTERM], 1),  # it did not stop in time
        (30.0, 30.0, [signal.SIGINT, signal.SIGINT], 128 + signal.SIGINT),  # twice: at once
    ],
)
def test_a_signal_stops_a_process_within_a_bound(
    within_s: float, then_s: float, signals: list[signal.Signals], code: int
) -> None:
    script = textwrap.dedent(SCRIPT.format(within_s=within_s, then_s=then_s))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        assert process.wait(10) == code
