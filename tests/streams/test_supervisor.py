from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.supervisor import (
    MARK,
    Child,
    ChildConfigError,
    ChildFailedError,
    Ended,
    OnEnd,
    Supervisor,
    free_port,
)
from tests.streams.waiting import wait_until

FOREVER = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
# A grandchild in a session of its own, which ignores SIGTERM: nothing but its mark leads to it.
WITH_GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"


def python(name: str, code: str, on_end: OnEnd = OnEnd.RESTART) -> Child:
    return Child(name, (sys.executable, "-c", code), on_end=on_end)


def poll_until_end(supervisor: Supervisor) -> Ended:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        if ends := supervisor.poll():
            return ends[0]
        time.sleep(0.01)
    raise AssertionError("no child ended")


def alive_with(text: str) -> list[int]:
    """Processes whose environment holds the text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for_word(log: Path, word: str) -> None:
    wait_until(lambda: log.exists() and word in log.read_text())


def test_output_goes_to_a_log_of_the_child_s_name(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "a b" / "logs") as supervisor:
        supervisor.start(
            python("talker", "import sys; print('out'); print('err', file=sys.stderr)", OnEnd.DONE)
        )
        assert poll_until_end(supervisor) == Ended("talker", 0, None)
        assert set(supervisor.log("talker").read_text().split()) == {"out", "err"}
        assert supervisor.poll() == []


def test_a_child_sees_the_environment_it_was_given(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        code = "import os; print(os.environ['GIVEN'], os.environ['PATH'] != '')"
        supervisor.start(
            Child("env", (sys.executable, "-c", code), {"GIVEN": "x y"}, on_end=OnEnd.DONE)
        )
        poll_until_end(supervisor)
        assert supervisor.log("env").read_text() == "x y True\n"


def test_a_child_that_was_killed_starts_again_after_a_growing_wait(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(python("worker", FOREVER))
        first = supervisor.pid("worker")
        os.kill(first, signal.SIGKILL)
        assert poll_until_end(supervisor) == Ended("worker", -signal.SIGKILL, 0.5)
        wait_until(lambda: supervisor.poll() == [] and supervisor.pid("worker") != first)
        os.kill(supervisor.pid("worker"), signal.SIGKILL)
        assert poll_until_end(supervisor) == Ended("worker", -signal.SIGKILL, 1.0)


def test_exit_code_2_is_a_configuration_error_with_the_line_that_was_said(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(
            python(
                "api",
                "import sys; print('noise'); sys.exit(sys.stderr.write('port: 0 is wrong') and 2)",
            )
        )
        with pytest.raises(ChildConfigError, match=r"^api: .*port: 0 is wrong$"):
            poll_until_end(supervisor)


@pytest.mark.parametrize(("on_end", "code"), [(OnEnd.FAIL, 0), (OnEnd.FAIL, 7), (OnEnd.DONE, 7)])
def test_the_end_of_a_child_that_must_not_end_is_a_failure_with_its_last_words(
    tmp_path: Path, on_end: OnEnd, code: int
) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(
            python("broker", f"import sys; print('disk on fire'); sys.exit({code})", on_end)
        )
        with pytest.raises(
            ChildFailedError, match=rf"broker ended with code {code}(.|\n)*disk on fire"
        ):
            poll_until_end(supervisor)


def test_last_words_are_those_of_this_run_only(tmp_path: Path) -> None:
    (tmp_path / "broker.log").write_text("words of an earlier run\n")
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(python("broker", "print('now')", OnEnd.FAIL))
        with pytest.raises(ChildFailedError, match="now") as failure:
            poll_until_end(supervisor)
    assert "earlier" not in str(failure.value)
    assert "earlier" in (tmp_path / "broker.log").read_text()


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with (
        Supervisor(tmp_path) as supervisor,
        pytest.raises(ChildFailedError, match=r"cannot run x \(/no/such\)"),
    ):
        supervisor.start(Child("x", ("/no/such",)))


def test_waiting_ends_when_the_child_is_ready(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import time, pathlib; time.sleep(0.1); pathlib.Path({str(flag)!r}).touch(); time.sleep(600)"
    with Supervisor(tmp_path) as supervisor:
        supervisor.start(Child("slow", (sys.executable, "-c", code), ready=flag.exists))
        supervisor.wait_ready(10)
        assert flag.exists()


def test_a_child_that_never_gets_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        code = f"print('waiting for Godot', flush=True); {FOREVER}"
        supervisor.start(Child("slow", (sys.executable, "-c", code), ready=lambda: False))
        wait_for_word(supervisor.log("slow"), "Godot")
        with pytest.raises(ChildFailedError, match=r"slow was not ready within 0.1 s(.|\n)*Godot"):
            supervisor.wait_ready(0.1)


def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = (
        "import signal, sys, time\n"
        f"def stop(*_): open({str(trace)!r}, 'a').write(sys.argv[1] + ' '); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(600)"
    )
    with Supervisor(tmp_path) as supervisor:
        for name in ("broker", "profiler", "api"):
            supervisor.start(Child(name, (sys.executable, "-c", code, name)))
            wait_for_word(supervisor.log(name), "up")
    assert trace.read_text() == "api profiler broker "


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    with Supervisor(tmp_path, grace_s=0.3) as supervisor:
        for name in ("a", "b", "c", "d"):
            supervisor.start(python(name, STUBBORN))
            wait_for_word(supervisor.log(name), "up")
        pids = [supervisor.pid(name) for name in "abcd"]
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_grandchildren_are_gone_when_stop_returns(tmp_path: Path) -> None:
    with Supervisor(tmp_path, grace_s=0.3) as supervisor:
        supervisor.start(
            Child("parent", (sys.executable, "-c", WITH_GRANDCHILD), {"TEST_RUN": str(tmp_path)})
        )
        wait_for_word(supervisor.log("parent"), "up")
        assert len(alive_with(str(tmp_path))) == 2
    assert alive_with(str(tmp_path)) == []


SUPERVISED = f"""
import sys, time
from pathlib import Path
from streams.supervisor import Child, Supervisor
from tests.streams.waiting import wait_until
with Supervisor(Path(sys.argv[1]), grace_s=float(sys.argv[2])) as supervisor:
    for name, code in (("plain", {FOREVER!r}), ("parent", {WITH_GRANDCHILD!r}), ("stubborn", {STUBBORN!r})):
        supervisor.start(Child(name, (sys.executable, "-c", code)))
    print("started", flush=True)
    try:
        while True:
            supervisor.poll()
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        raise
"""


def supervised(tmp_path: Path, grace_s: float) -> subprocess.Popen[str]:
    """A supervisor in a process of its own, with a child, a grandchild and a stubborn one."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(tmp_path), str(grace_s)],
        env={**os.environ, "TEST_RUN": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    wait_for_word(tmp_path / "parent.log", "up")
    wait_for_word(tmp_path / "stubborn.log", "up")
    return process


def test_kill_9_of_the_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    process = supervised(tmp_path, 10)
    assert len(alive_with(str(tmp_path))) == 6  # supervisor, guard, three children, a grandchild
    process.kill()
    process.communicate()
    wait_until(lambda: alive_with(str(tmp_path)) == [], 3)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_in_order(tmp_path: Path, name: signal.Signals) -> None:
    process = supervised(tmp_path, 0.3)
    process.send_signal(name)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT  # Python's own answer to KeyboardInterrupt
    assert alive_with(str(tmp_path)) == []


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    process = supervised(tmp_path, 30)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    time.sleep(0.2)
    assert process.poll() is None  # it waits for the stubborn child
    started_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert time.monotonic() - started_s < 3
    assert alive_with(str(tmp_path)) == []


def test_the_guard_is_not_among_those_that_an_outer_supervisor_s_guard_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, f"outer of {tmp_path}")
    with Supervisor(tmp_path):
        assert alive_with(f"outer of {tmp_path}") == []


def test_free_ports_are_free_and_the_mark_is_no_setting() -> None:
    assert 1024 <= free_port() <= 65535
    assert not MARK.startswith("DRIFTLINE_")


def test_children_without_logs_of_their_own_are_told_once_and_all_at_once(tmp_path: Path) -> None:
    """A second signal means "at once" to our processes: who is still committing must not get it."""
    code = """
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if told else told.append(1))
pathlib.Path(sys.argv[1], "up").touch()
while not told:
    time.sleep(0.01)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    time.sleep(0.05)
pathlib.Path(sys.argv[1], "stopped").touch()
"""
    places = {3.0: tmp_path / "slow", 2.5: tmp_path / "quick", 2.0: tmp_path / "quickest"}
    with Supervisor(None) as supervisor:
        for lasts_s, place in places.items():
            place.mkdir()
            argv = (sys.executable, "-c", code, str(place), str(lasts_s))
            supervisor.start(Child(place.name, argv))
        wait_until(lambda: all((place / "up").exists() for place in places.values()))
        with pytest.raises(ValueError, match="write where their supervisor does"):
            supervisor.log("slow")
        began_s = time.monotonic()
    assert all((place / "stopped").exists() for place in places.values())
    assert time.monotonic() - began_s < 6, "one after the other: 7.5 s"
