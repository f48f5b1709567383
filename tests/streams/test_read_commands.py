from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from monitor import overview, store
from monitor import reference as references
from monitor.api_answers import Page
from monitor.columns import from_events
from monitor.counting import profile_groups
from monitor.events import Event
from monitor.settings import ClickHouseSettings
from monitor.spec import ModelSpec
from monitor.store import DriftRow, Store
from monitor.tables import bins_rows, to_table, verdict_rows, window_rows
from monitor.wire import Verdict, Verdicts, VerdictStatus, Window
from streams.supervisor import LOOPBACK, free_port
from tests.monitor.stored import DAY, FIRING, MODEL, START, endpoint, fill
from tests.streams.commands import main, plain_terminal, run

__all__ = ["plain_terminal"]  # a fixture of every test here

ROOT = Path(__file__).parents[2]
DAYS = 30
LAST = START + (DAYS - 1) * DAY
EMPTY = "team/new"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseSettings]:
    with endpoint(tmp_path_factory.mktemp("read")) as settings:
        store.migrate(settings)
        link = store.connect(settings)
        fill(link, days=DAYS)
        fresh = (EMPTY, ModelSpec(model=EMPTY).model_dump_json(), "", 2)
        link.append("models", to_table("models", [fresh]), token="n")
        link.close()
        yield settings


@pytest.fixture
def link(database: ClickHouseSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store that the commands read."""
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__URL", database.url)
    opened = store.connect(database)
    yield opened
    opened.close()


def answer(rows: list[Any], most: int) -> Any:
    """What the API answers with."""
    return json.loads(msgspec.json.encode(Page(rows[:most], len(rows) > most)))


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_models_are_listed_with_what_is_wrong_first(link: Store) -> None:
    heading, first, *others = lines(run("models").output)
    assert heading[:2] == ["model", "state"]
    assert first == [MODEL, "error", "(1)", "7", "0.00231", "2013-03-03", "00:00", FIRING[:8]]
    assert [EMPTY, "calibrating"] in others
    told = json.loads(run("models", "--json").output)
    assert told == answer(overview.fleet(link, limit=10), 10)
    assert json.loads(run("models", "--json", "--limit", "1").output)["truncated"] is True
    assert run("models", "--limit", "1").output.endswith("the first 1; --limit shows more\n")


def test_windows_are_listed_as_the_api_has_them(link: Store) -> None:
    rows = lines(run("windows", MODEL, "--limit", "2").output)
    assert rows[1][:6] == ["2013-03-02", "00:00", "1d", "7", "200", "0"]
    assert len(rows) == 4
    told = json.loads(run("windows", MODEL, "--json").output)
    assert told == answer(link.windows(MODEL, limit=21), 20)
    assert told["truncated"] is True
    span = ("--from", "2013-02-03", "--to", "2013-02-05T00:00Z")
    days = json.loads(run("windows", MODEL, "--json", *span).output)["items"]
    assert [row["start_ms"] for row in days] == [START + 3 * DAY, START + 2 * DAY]
    none = json.loads(run("windows", MODEL, "--json", "--version", "8").output)
    assert none == {"items": [], "truncated": False}


def test_incidents_are_listed_of_all_models_or_of_one(link: Store) -> None:
    everything = json.loads(run("incidents", "--json").output)
    assert everything == answer(link.incidents(), 20)
    assert len(everything["items"]) == 2
    (found,) = json.loads(run("incidents", MODEL, "--open", "--json").output)["items"]
    assert found["id"] == FIRING
    assert FIRING[:8] in run("incidents", MODEL).output
    assert run("incidents", EMPTY).output.startswith(f"{EMPTY} has no windows yet: it is cal")
    assert run("incidents", "--to", "2013-01-01").output == "no incidents\n"


def test_drift_is_the_last_window_the_worst_first(link: Store) -> None:
    items = json.loads(run("drift", MODEL, "--json").output)["items"]
    last = link.verdicts(MODEL, from_ms=LAST)
    assert {row["start_ms"] for row in items} == {LAST}
    shown = [msgspec.convert(row, DriftRow) for row in items]
    assert sorted((r.feature, r.statistic, r.value, r.limit) for r in shown if r.limit) == sorted(
        (r.feature, r.statistic, r.value, r.limit) for r in last if r.limit
    )
    assert len(items) == len(last)
    assert (shown[0].feature, shown[0].status) == ("wind_speed", "breach")
    ratios = [row.ratio for row in shown]
    known = [ratio for ratio in ratios if ratio is not None]
    assert known == sorted(known, reverse=True)
    assert ratios[: len(known)] == known
    assert shown[0].value is not None
    assert shown[0].ratio == pytest.approx(shown[0].value / 0.15)
    text = lines(run("drift", MODEL).output)
    assert text[1][:3] == ["!", "wind_speed", "psi"]
    assert text[1][-3:] == ["2013-03-02", "00:00", "1d"]
    assert (
        json.loads(run("drift", MODEL, "--to", "2013-02-11", "--json").output)["items"][0][
            "start_ms"
        ]
        == START + 9 * DAY
    )


def verdict(
    feature: str, status: VerdictStatus, value: float | None, limit: float | None
) -> Verdict:
    return Verdict("data_drift", feature, "psi", status, value, limit, None, 9)


def test_a_limit_from_below_counts_the_other_way_round(link: Store) -> None:
    model = "ratios"
    spec = (model, ModelSpec(model=model).model_dump_json(), "", 3)
    link.append("models", to_table("models", [spec]), token="r1")
    found = [
        verdict("near", "ok", 0.9, 1.0),
        verdict("high", "ok", 5.0, 1.0),  # a limit that it may not fall below
        verdict("fell", "breach", 0.25, 1.0),
        verdict("none", "breach", 0.0, 1.0),
        verdict("rose", "breach", 2.0, 1.0),
        verdict("zero", "ok", 0.0, 1.0),
        verdict("free", "ok", 3.0, None),
        verdict("few", "no_data", None, None),
    ]
    old = Verdicts("window", model, "1", "", DAY, LAST - DAY, LAST, 9, 1, [found[4]])
    new = Verdicts("window", model, "1", "", DAY, LAST, LAST + DAY, 9, 1, found)
    pane = Verdicts("pane", model, "1", "", 60_000, LAST + DAY, LAST + DAY, 9, 1, [found[4]])
    part = Verdicts("window", model, "1", "plan=a", DAY, LAST, LAST + DAY, 9, 1, [found[2]])
    rows = [row for each in (old, new, pane, part) for row in verdict_rows(each)]
    link.append("verdicts", to_table("verdicts", rows), token="r2")
    items = json.loads(run("drift", model, "--json").output)["items"]
    assert [(row["feature"], row["ratio"]) for row in items] == [
        ("none", None),
        ("fell", 4.0),
        ("rose", 2.0),
        ("near", 0.9),
        ("high", 0.2),
        ("zero", 0.0),
        ("few", None),
        ("free", None),
    ]
    of_all = json.loads(run("drift", model, "--segment", "*", "--json").output)["items"]
    assert len(of_all) == len(items) + 1
    assert "plan=a" in run("drift", model, "--segment", "*").output
    (one,) = json.loads(run("drift", model, "--segment", "plan=a", "--json").output)["items"]
    assert one["segment"] == "plan=a"


@pytest.mark.parametrize("command", [["models"], ["windows", MODEL], ["incidents"], ["drift", MODEL]])  # fmt: skip
def test_a_table_fits_eighty_columns_in_a_pipe(
    link: Store, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setenv("TERM", "dumb")
    told = run(*command).output
    assert max(map(len, told.splitlines())) <= 80
    assert "\x1b" not in told
    assert told == run(*command).output


def test_where_nothing_is_the_last_window_says_where_something_is(link: Store) -> None:
    told = run("windows", MODEL, "--since", "1h")
    assert (told.exit_code, told.output) == (
        0,
        f"no such windows of {MODEL}, whose last window ended 2013-03-03 00:00\n",
    )


@pytest.mark.parametrize("command", ["windows", "incidents", "drift"])
def test_an_unknown_model_is_one_line_with_those_that_are_like_it(
    link: Store, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, error = main(capsys, command, "team/flight-delays")
    assert (code, error.count("\n")) == (2, 1)
    assert f"no model is called team/flight-delays: perhaps {MODEL}" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "2013-02-02", "--to", "2013-02-01"], "--from is not before --to"),
        (["--from", "2013-02-02", "--since", "1h"], "give --from or --since"),
        (["--since", "soon"], "--since: give a time such as"),
        (["--size", "long"], "--size: 'long' is not a duration"),
    ],
)
def test_a_wrong_time_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, error = main(capsys, "windows", MODEL, *options)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_a_database_that_is_away_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{LOOPBACK}:{free_port()}"
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__URL", url)
    code, error = main(capsys, "models")
    assert (code, error.count("\n")) == (1, 1)
    assert f"at {url}: start it, or set DRIFTLINE_CLICKHOUSE__URL" in error


def test_a_name_commands_no_terminal(link: Store) -> None:
    feature = "\x1b]0;owned\x07age\n"
    found = Verdicts(
        "window", "nasty", "1", "", DAY, LAST, LAST + DAY, 9, 1, [verdict(feature, "ok", 0.1, 0.2)]
    )
    link.append("verdicts", to_table("verdicts", verdict_rows(found)), token="x")
    told = run("drift", "nasty").output
    assert "\x1b" not in told
    assert "\x07" not in told
    assert "owned" in told
    assert json.loads(run("drift", "nasty", "--json").output)["items"][0]["feature"] == feature


def test_a_plot_is_of_the_last_window_beside_the_reference(
    link: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("plot", MODEL, "wind_speed").output.splitlines()
    assert told[0] == f"wind_speed of {MODEL} 7, 2013-03-02 00:00 1d"
    assert told[1] == "200 values beside 6,000 of the reference"
    assert told[2].split() == ["reference", "window"]
    assert any("█" in line for line in told)
    whole = json.loads(run("plot", MODEL, "wind_speed", "--json").output)
    shown = link.distribution(MODEL, "wind_speed", version="7", size_ms=DAY, start_ms=LAST)
    place = {"model": MODEL, "version": "7", "segment": "", "size_ms": DAY, "start_ms": LAST}
    assert whole == place | msgspec.to_builtins(shown)
    early = run("plot", MODEL, "carrier", "--at", "2013-02-05T12:00Z", "--json").output
    assert json.loads(early)["start_ms"] == START + 4 * DAY
    code, error = main(capsys, "plot", MODEL, "carrier", "--at", "2013-01-01")
    assert code == 1
    assert f"no such windows of {MODEL}, whose last window ended 2013-03-03" in error


def test_a_plot_is_of_the_version_with_most_of_the_traffic(link: Store) -> None:
    model, rng = "two", np.random.default_rng(7)
    spec = ModelSpec(model=model)
    values = {version: rng.normal(size=n) for version, n in (("1", 20), ("2", 60), ("3", 40))}
    columns = {version: from_events(_numbers(of), ["x"]) for version, of in values.items()}
    reference = references.build(spec, lambda: [columns["2"]])
    layout = reference.layout
    rows = []
    for version, each in columns.items():
        group = np.zeros(each.n, dtype=np.int64)
        profile = profile_groups(layout, each.encode(layout), each.errors, group, 1)[0]
        window = Window(model, version, "", DAY, LAST, "", 1, layout.bins_id, each.n, profile.to_bytes())  # fmt: skip
        rows += window_rows(window, layout)
    models = (model, spec.model_dump_json(), layout.bins_id, 4)
    link.append("models", to_table("models", [models]), token="t1")
    link.append("windows", to_table("windows", rows), token="t2")
    link.append("bins", to_table("bins", bins_rows(model, reference.profiles[""], 4)), token="t3")
    told = json.loads(run("plot", model, "x", "--json").output)
    assert (told["version"], told["n"]) == ("2", 60)
    told = json.loads(run("plot", model, "x", "--version", "3", "--json").output)
    assert (told["version"], told["n"]) == ("3", 40)


def _numbers(values: Any) -> list[Event]:
    return [Event("two", 0, features={"x": float(x)}, ts_ms=LAST + i) for i, x in enumerate(values)]


def test_a_plot_of_a_feature_that_is_not_there_names_those_that_are(
    link: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = main(capsys, "plot", MODEL, "wind_sped")
    assert (code, error) == (
        2,
        f"driftline: {MODEL} has no feature wind_sped: perhaps wind_speed?\n",
    )


def test_a_plot_in_a_terminal_that_knows_ascii_only(
    link: Store, database: ClickHouseSettings
) -> None:
    def told(**environment: str) -> bytes:
        ended = subprocess.run(
            [sys.executable, "-m", "streams", "plot", MODEL, "carrier"],
            env={**os.environ, "DRIFTLINE_CLICKHOUSE__URL": database.url, **environment},
            capture_output=True,
            check=True,
        )
        return ended.stdout

    plain = told(PYTHONIOENCODING="ascii", COLUMNS="60")
    assert plain.isascii()
    assert b"####" in plain
    assert max(map(len, plain.splitlines())) <= 60
    colours = {"FORCE_COLOR": "1", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    assert b"\x1b[36m" in told(**colours, NO_COLOR="")
    assert b"\x1b[36m" not in told(**colours, NO_COLOR="1")


def test_the_readme_shows_what_these_commands_print(
    link: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    chapter = (ROOT / "README.md").read_text().partition("\n## From the terminal\n")[2]
    block = chapter.partition("```console\n")[2].partition("```")[0]
    shown = re.findall(r"^\$ .venv/bin/driftline (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert len(shown) == 2
    for command, output in shown:
        told = [line.rstrip() for line in run(*command.split()).output.splitlines()]
        assert told == output.splitlines()
