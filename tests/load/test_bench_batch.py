"""A batch of the profiler, beside decoding alone."""

from __future__ import annotations

import shutil

import pytest

from load import bench_batch
from monitor.kernel import library

# 0.7 to 0.85 on quiet cores, and 0.12 to 0.14 without a C compiler; other tests share the caches, of which ours needs more.
REGRESSION = 0.05 if library() is None and shutil.which("cc") is None else 0.4


def test_a_batch_is_counted_right_and_costs_no_more_than_it_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench_batch.main(["--short", "--bar", str(REGRESSION)]) == 0
    assert "profiler, all but Kafka" in capsys.readouterr().out


def test_below_the_bar_it_fails() -> None:
    assert bench_batch.main(["--short", "--bar", "10"]) == 1
