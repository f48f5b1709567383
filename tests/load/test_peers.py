"""What other libraries are given, and what their environments hold."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from load.bench import PEERS
from load.bench_batch import messages
from load.peers import environments, rows
from load.peers.environments import NAMES, ROOT, WANTED, PeerMissingError, make, pins, python


def test_the_rows_are_the_predictions_features_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_AT_ONCE", 40)  # more than one part, and the last one shorter
    rng = np.random.default_rng(3)
    values = [message.value or b"" for message in messages(rng, 0, 100)]
    rows.write(tmp_path, values, rng)
    current = pq.read_table(tmp_path / rows.CURRENT)
    assert current.to_pylist() == [msgspec.json.decode(value)["features"] for value in values]
    reference = pq.read_table(tmp_path / rows.REFERENCE)
    assert reference.num_rows == rows.REFERENCE_ROWS
    assert reference.schema.remove_metadata() == current.schema.remove_metadata()


@pytest.mark.parametrize("name", NAMES)
def test_every_version_is_exact_and_no_line_says_where_from(name: str) -> None:
    lines = pins(name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line)] == []
    for wanted in WANTED[name]:
        project = re.split("[<=]", wanted)[0]
        (line,) = [line for line in lines if line.startswith(f"{project}==")]
        if (exact := re.search(r"==([\d.]+)", wanted)) is not None:
            assert line.startswith(f"{project}=={exact[1]}")


def test_every_peer_has_a_script_and_an_environment() -> None:
    assert {name for _, name in PEERS.values()} == set(NAMES)
    assert all((ROOT / "load/peers" / f"{module}.py").is_file() for module, _ in PEERS.values())


def test_what_the_peers_import_of_the_project_needs_the_standard_library_only() -> None:
    """Their environments hold nothing of ours."""
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); import load.peers.measured"]  # fmt: skip
    subprocess.run(bare, check=True)
    for module, _ in PEERS.values():
        script = (ROOT / "load/peers" / f"{module}.py").read_text()
        ours = re.findall(r"^(?:from|import) ((?:load|monitor|streams|alerting|tests)\b\S*)", script, re.MULTILINE)  # fmt: skip
        assert ours == ["load.peers.measured"]


def test_an_environment_is_made_once_and_anew_when_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = list[Sequence[str]]()

    def run(command: Sequence[str]) -> None:
        ran.append(command)
        (tmp_path / ".peers" / "river" / "bin").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(PeerMissingError):
        python("river", tmp_path)
    assert [make("river", tmp_path), make("river", tmp_path)] == [True, False]
    assert len(ran) == 2
    assert python("river", tmp_path) == tmp_path / ".peers/river/bin/python"
    changed = tmp_path / "river.txt"
    changed.write_text("river==0.24.0\n")
    monkeypatch.setattr(environments, "pins", lambda _: changed)
    with pytest.raises(PeerMissingError):
        python("river", tmp_path)
    assert make("river", tmp_path)


def test_an_environment_that_was_half_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: Sequence[str]) -> None:
        (tmp_path / ".peers" / "river" / "bin").mkdir(parents=True, exist_ok=True)
        if "install" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(environments, "_run", fails)
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            make("river", tmp_path)
    with pytest.raises(PeerMissingError):
        python("river", tmp_path)
