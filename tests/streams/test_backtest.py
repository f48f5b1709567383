"""``driftline backtest`` and ``driftline budget`` on a stored clean stretch with a planted shift."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from monitor import environment, store
from monitor.settings import Settings
from monitor.tables import incident_row, to_table, window_rows
from monitor.wire import Incident, Window
from streams import __main__ as cli
from streams import models, wiring
from streams.embedded import clickhouse
from streams.models import Model
from streams.supervisor import LOOPBACK, Supervisor, free_port
from tests.alerting.past import DAY, PLANTED, START, history, reference, spec

DAYS = 40


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr("monitor.logs.configure", lambda *_args, **_kwargs: None)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error, which is one line."""
    with pytest.raises(SystemExit) as code:
        cli.main(arguments)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("driftline: ")
    assert said.err.count("\n") == 1
    return int(code.value.code or 0), said.err


@pytest.fixture(scope="module")
def stored(embedded_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker that has the model, and a database that has its windows and an incident."""
    directory, port = tmp_path_factory.mktemp("backtest"), free_port()
    with Supervisor(directory) as supervisor, pytest.MonkeyPatch.context() as patch:
        supervisor.start(clickhouse.child(port, directory / "clickhouse"))
        supervisor.wait_ready(30)
        patch.setattr("monitor.logs.configure", lambda *_args, **_kwargs: None)
        patch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", embedded_broker)
        patch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", f"backtest{port}.")
        patch.setenv("DRIFTLINE_CLICKHOUSE__URL", f"http://{LOOPBACK}:{port}")
        settings = environment.load()
        run("topics", "create")
        run("migrate")
        kafka, topics = wiring.kafka(settings), wiring.topics(settings)
        models.publish(kafka, topics, Model(spec(), reference()), logging.getLogger("test"))
        fill(settings)
        yield settings


def fill(settings: Settings) -> None:
    layout = reference().layout
    rows = []
    for i, closed in enumerate(history(DAYS)):
        # The last day was counted in other bins, as if the reference had changed since.
        bins = "another" if i == DAYS - 1 else layout.bins_id
        body = closed.profile.to_bytes()
        place = ("m", "1", "", closed.size_ms, closed.start_ms, "", 1, bins)
        rows += window_rows(Window(*place, closed.profile.n, body), layout)
    link = store.connect(settings.clickhouse)
    link.append("windows", to_table("windows", rows), token="w")
    model = ("m", spec().model_dump_json(), layout.bins_id, 1)
    link.append("models", to_table("models", [model]), token="m")
    opened = START + (PLANTED.start + 1) * DAY
    incident = Incident(
        "i", "m", "1", "drift", "watch", "info", "firing", "", "", START, opened, opened, None, 1
    )
    link.append("incidents", to_table("incidents", [incident_row(incident)]), token="i")
    link.close()


def test_a_planted_shift_is_found_and_each_rule_says_what_it_costs(
    stored: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.csv"
    known.write_text("start,end,name,feature\n2013-02-21,2013-02-26,wind farm,x0\n")
    arguments = ("backtest", "--model", "m", "--budget", "1/7d", "--incidents", str(known))
    report: dict[str, Any] = json.loads(run(*arguments, "--json"))
    assert (report["from_ms"], report["to_ms"]) == (START, START + (DAYS - 1) * DAY)
    assert (report["windows"], report["left_out"]) == (DAYS - 1, 1)
    outcomes = {outcome["rule"]: outcome for outcome in report["outcomes"]}
    assert list(outcomes) == [
        "budget 0.05/30d (in force)",
        "budget 1/1w",
        "PSI > 0.1",
        "KS p < 0.05",
        "KS p < 0.05, Bonferroni",
    ]
    mine = outcomes["budget 0.05/30d (in force)"]
    assert mine["sightings"] == [{"name": "wind farm", "found": "found", "delay_ms": DAY}]
    assert mine["false_pages"] == 0
    assert mine["expected_per_month"] == 0.05
    assert outcomes["budget 1/1w"]["expected_per_month"] == pytest.approx(30 / 7)
    assert outcomes["KS p < 0.05"]["breaches"] > mine["breaches"] / 2

    shown = run(*arguments)
    assert "wind farm" in shown
    assert "after 24.0 h" in shown
    assert "1 of 1" in shown
    assert "m, 2013-02-01 00:00 to 2013-03-12 00:00: 39 windows judged, 1 left out" in shown

    quiet = json.loads(
        run("backtest", "--model", "m", "--to", "2013-02-21", "--psi", "0", "--ks-p", "0", "--json")
    )
    assert [(o["rule"], o["pages"], o["false_pages"]) for o in quiet["outcomes"]] == [
        ("budget 0.05/30d (in force)", [], None)
    ]
    assert quiet["windows"] == PLANTED.start

    code, said = ended(capsys, "backtest", "--model", "nobody")
    assert (code, "no model is called nobody: m" in said) == (2, True)
    code, said = ended(capsys, "backtest", "--model", "m", "--from", "2014-01-01")
    assert (code, "no windows of m are stored" in said) == (1, True)
    code, said = ended(capsys, "backtest", "--model", "m", "--from", "2013-03-12")
    assert (code, "1 of another reference" in said) == (1, True)


def test_the_budget_is_shown_beside_what_was_opened(
    stored: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = json.loads(run("budget", "--json"))
    assert (row["model"], row["false_alarms"], row["per_ms"]) == ("m", 0.05, 30 * DAY)
    assert row["expected"] == pytest.approx(0.05 * DAYS / 30)
    assert row["opened"] == row["recent_opened"] == {"drift": 1}
    shown = run("budget", "--model", "m")
    assert "0.05 in 30 d" in shown
    assert re.search(r"m +drift +1 +1", shown)
    assert "distributions" in shown
    assert ended(capsys, "budget", "--model", "nobody") == (
        2,
        "driftline: no model is called nobody\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "2013-03-01", "--to", "2013-02-01"], "--from is not before --to"),
        (["--from", "soon"], "--from: give a time such as 2013-05-13"),
        (["--to", "2013-02-31"], "--to: give a time such as 2013-05-13"),
        (["--budget", "one a month"], "'one a month' is not a budget such as 1/30d"),
        (["--psi", "-1"], "--psi, --ks-p: a PSI is above 0"),
        (["--ks-p", "1.5"], "a p-value between 0 and 1"),
        (["--incidents", "/nowhere.csv"], "/nowhere.csv: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, error = ended(capsys, "backtest", "--model", "m", *arguments)
    assert (code, said in error) == (2, True), error


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "begin,end\n2013-05-13,2013-05-14\n", "incident 1: give start and end"),
        ("a.csv", "start,end\n2013-05-13,2013-05-14,extra\n", "incident 1: give start and end"),
        ("a.csv", "start,end\n", "expected a list of incidents"),
        ("a.csv", 'start,end\n"2013-05-13,2013\n', "neither CSV nor YAML"),
        ("a.yaml", "start: 2013-05-13\nend: 2013-05-14\n", "expected a list of incidents"),
        ("a.yaml", "- [2013-05-13", "neither CSV nor YAML"),
        ("a.yaml", "", "expected a list of incidents"),
        ("a.csv", "start,end\n\xff,1\n", "incident 1: start: give a time"),
    ],
)
def test_a_wrong_file_of_incidents_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    code, error = ended(capsys, "backtest", "--model", "m", "--incidents", str(tmp_path / name))
    assert (code, said in error) == (2, True), error


def test_incidents_are_read_from_csv_and_yaml_alike(tmp_path: Path) -> None:
    from streams.backtest import read_episodes

    (tmp_path / "a.csv").write_text(
        "\ufeffstart,end,name,kind\n2013-05-13,2013-05-18T12:00Z,wind,data_quality\n", "utf-8"
    )
    (tmp_path / "a.yaml").write_text(
        "- {start: 2013-05-13, end: 2013-05-18T12:00:00Z, name: wind, kind: data_quality}\n"
    )
    (episode,) = read_episodes(tmp_path / "a.csv")
    assert (episode.name, episode.kind) == ("wind", "data_quality")
    assert episode.end_ms - episode.start_ms == 5.5 * DAY
    assert read_episodes(tmp_path / "a.yaml") == (episode,)


def test_a_file_that_is_no_text_or_too_large_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xff\xfe\x00")
    assert (
        "cannot be read" in ended(capsys, "backtest", "--model", "m", "--incidents", str(file))[1]
    )
    file.write_bytes(b"#" * (9 << 20))
    assert "larger than" in ended(capsys, "backtest", "--model", "m", "--incidents", str(file))[1]
