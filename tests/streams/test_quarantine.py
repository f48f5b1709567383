"""What ends the process that decodes it is found, one start of a process or two for each; what is innocent passes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from monitor.errors import TransientError
from streams.profiling import SourceMessage
from streams.quarantine import GROUP, Bench, Finding, examine
from tests.monitor.builders import MODEL, NOW, SECOND, START, event
from tests.streams.builders import POLICY, marks, message, model

DEADLY = (sys.executable, "-m", "tests.streams.deadly")
BENCH = Bench(marks([0]), {MODEL: model(MODEL)}, POLICY, NOW)
pytestmark = pytest.mark.timeout(120)


def log(n: int, **deadly: str) -> list[SourceMessage]:
    """Messages of one partition; ``m7="abort"`` makes the seventh a deadly one."""
    killers = {int(name[1:]): f"deadly:{how}".encode() for name, how in deadly.items()}
    return [
        SourceMessage(0, i, killers[i], {})
        if i in killers
        else message(0, i, event(START + i * SECOND, id=f"e{i}"))
        for i in range(n)
    ]


def look(messages: Sequence[SourceMessage], **more: Any) -> Finding:
    return examine(messages, BENCH, monotonic=time.monotonic, **{"command": DEADLY, **more})


def test_an_innocent_batch_passes_as_a_whole_and_bad_events_do_no_harm() -> None:
    messages = [*log(GROUP + 5), SourceMessage(0, 999, b"\xffnot json", {})]
    assert examine(messages, BENCH, monotonic=time.monotonic) == Finding(GROUP + 6, {})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segfault", "signal 11 (SIGSEGV)"),
        ("abort", "signal 6 (SIGABRT)"),
        ("exit", "exit code 9"),
        ("raise", "RuntimeError"),
        ("memory", "MemoryError"),
    ],
)
def test_a_message_that_ends_its_process_is_found_with_its_manner(how: str, said: str) -> None:
    # Each child loads for seconds on a busy machine, and the search takes several.
    assert look(log(9, m4=how), total_s=100) == Finding(9, {4: said})


def test_several_are_found_and_one_that_never_ends_is_one() -> None:
    found = look(log(GROUP + 9, m0="abort", m7="hang", m254="exit"), patience_s=1.0, total_s=90)
    assert found == Finding(
        GROUP + 9, {0: "signal 6 (SIGABRT)", 7: "no end after 1 s", 254: "exit code 9"}
    )


def test_what_there_was_no_time_for_is_not_vetted() -> None:
    began = time.monotonic()

    def stopping() -> bool:
        return time.monotonic() - began > 2.5

    found = look(log(9, m4="hang"), patience_s=60.0, stopping=stopping)
    assert found == Finding(0, {})  # nobody knows yet which of the group it was


def test_a_child_that_does_not_begin_is_no_verdict_on_the_messages() -> None:
    with pytest.raises(TransientError, match="does not begin: exit code 1"):
        look(log(3), command=(sys.executable, "-c", "raise SystemExit(1)"))


def test_a_child_sees_no_setting_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PASSWORD", "secret")
    assert look(log(2, m1="environment")) == Finding(2, {})
