"""The benchmark of the whole: every way counts the same events, and a ratio that is too low fails."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from load import bench
from load.bench import BARS, PEERS, main, ratios, report
from load.peers import environments
from load.peers.environments import PeerMissingError
from load.peers.measured import Used

GOOD = {
    "profiler, JSON": Used(100, 1.0, 1.0, 1 << 20),
    "decode only": Used(100, 1.0, 0.8, 1 << 20),
    "Faust, an agent for each event": Used(5, 1.0, 1.0, 1 << 20),
    "chDB, SQL over JSON": Used(100, 1.0, 1.0, 1 << 20),
    "profiler, Arrow": Used(100, 1.0, 0.1, 1 << 20),
    "chDB, SQL over Arrow": Used(100, 1.0, 0.2, 1 << 20),
}


def test_ratios_are_of_events_a_cpu_second() -> None:
    assert ratios(GOOD) == pytest.approx(
        {
            "json_vs_decode_only": 0.8,
            "json_vs_faust": 20.0,
            "json_vs_chdb": 1.0,
            "arrow_vs_json": 10.0,
            "arrow_vs_chdb": 2.0,
        }
    )
    assert "| json_vs_faust | 20.00 | 15 |" in report(GOOD, "So:")


@pytest.mark.parametrize(("way", "code"), [("", 0), ("profiler, JSON", 1), ("profiler, Arrow", 1)])
def test_what_is_slow_fails(
    way: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {way: Used(100, 9.0, 9.0, 1 << 20)} if way else {}
    monkeypatch.setattr(bench, "measure", lambda _, peers: GOOD | slow)
    assert main([]) == code
    said = capsys.readouterr().out
    assert "json_vs_chdb" in said
    assert "whylogs" not in said


@pytest.mark.parametrize(("slow", "code"), [({}, 0), ({"whylogs, a profile": 2.0}, 1)])
def test_of_the_other_libraries_only_whylogs_has_a_bar(
    slow: dict[str, float], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {way: Used(100, 1.0, {"whylogs, a profile": 4.0, **slow}.get(way, 0.1), 1) for way in PEERS}  # fmt: skip
    asked = list[bool]()

    def measure(_: int, *, peers: bool) -> dict[str, Used]:
        asked.append(peers)
        return GOOD | found

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(environments, "python", lambda name: Path(name))
    assert main(["--peers"]) == code
    assert asked == [True]
    told = report(GOOD | found, "So:")
    assert f"| json_vs_whylogs | {2.0 if code else 4.0:.2f} | 3 |" in told
    assert "| json_vs_nannyml | 0.10 |  |" in told


def test_without_their_environments_the_peers_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "python", partial(environments.python, root=tmp_path))
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(PeerMissingError, match=r"python -m load\.peers\.environments"):
        main(["--peers"])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("kafka_factory")
def test_every_way_counts_the_same_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few to say how fast: the full run is ``python -m load.bench``."""
    told = tmp_path / "found.json"
    main(["--events", "20000", "--json", str(told)])
    printed = capsys.readouterr().out
    found = json.loads(told.read_text())
    assert found["ratios"].keys() == BARS.keys()
    assert all(f"| {name} |" in printed for name in GOOD)
    # Without the first batch, which joining the group is part of.
    assert {name for name, of in found["ways"].items() if of["events"] > 0} == GOOD.keys()
