from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from load.proc import cpu_s, peak_rss_bytes, rss_bytes


def test_cpu_time_is_that_of_the_process() -> None:
    before, own = cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    assert cpu_s(os.getpid()) - before == pytest.approx(0.3, abs=0.1)


def test_memory_that_was_given_back_counts_in_the_peak_only() -> None:
    script = "import sys; b = bytearray(1 << 27); del b; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0 < rss_bytes(process.pid) < 1 << 27 < peak_rss_bytes(process.pid)
        process.communicate()
    assert rss_bytes(process.pid) == 0
