from __future__ import annotations

from pathlib import Path

import pytest

from load.markdown import README, replace_block
from load.sizing import ROLES, Use, main, report, topic_bytes


def test_a_topic_weighs_what_its_segments_do(tmp_path: Path) -> None:
    for partition, size in (("a.b-0", 3), ("a.b-1", 4), ("a-c-0", 5)):
        (tmp_path / partition).mkdir()
        (tmp_path / partition / "0.log").write_bytes(b"x" * size)
        (tmp_path / partition / "0.index").write_bytes(b"x" * 100)
    assert topic_bytes(tmp_path) == {"a.b": 7, "a-c": 5}


def test_the_report_adds_up_and_leaves_out_what_weighs_nothing() -> None:
    used = [Use("profiler", 0.05, 200 << 20), Use("sink", 0.02, 100 << 20)]
    text = report(used, {"predictions": 602.4}, {"predictions": 32.0, "bins": 0.2}, "So:")
    assert "| together | 0.07 | 300 MiB |" in text
    assert text.index("| topic predictions | 602 |") < text.index("| table predictions | 32 |")
    assert "bins" not in text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kafka_factory")
def test_every_process_is_measured_and_the_readme_has_a_place_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--rate", "500", "--seconds", "4"]) == 0
    printed = capsys.readouterr().out
    assert [role for role in ROLES if f"| {role} | " not in printed] == []
    assert "| topic predictions | " in printed
    assert "| table predictions | " in printed
    replace_block(README.read_text(), "sizing", printed)
