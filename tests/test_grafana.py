"""Every query of every dashboard runs on ClickHouse's engine after our migrations; no Grafana is needed.

The macros are expanded here as the data source does (docs/sources/query-editor.md of grafana/clickhouse-datasource).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import monitor.metrics  # noqa: F401 - declares what the registry holds
from monitor import store
from monitor.settings import ClickHouseSettings
from monitor.store import Store
from monitor.tables import SCHEMAS, Row, to_table
from monitor.versions import OTHER_VERSION
from tests.monitor.stored import DAY, MODEL, START, endpoint, fill
from tests.prometheus import exported

GRAFANA: Final = Path(__file__).parent.parent / "grafana"
DASHBOARDS: Final = sorted((GRAFANA / "dashboards").glob("*.json"))
DAYS: Final = 30
CHOSEN: Final = {
    "model": MODEL,
    "version": "7",
    "segment": "(whole model)",
    "size": str(DAY),
    "feature": "wind_speed",
    "statistic": "psi",
    "metric": "accuracy",
}
TIME, TEXT, NUMBER = "DateTime", "String", "number"


@cache
def dashboard(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def variables(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard(path)["templating"]["list"]
    return found


def expand(query: str, *, all_versions: bool = False, until: int = DAYS) -> str:
    """The query as ClickHouse gets it: first the macros, then the variables."""
    from_ms = f"fromUnixTimestamp64Milli({START})"
    to_ms = f"fromUnixTimestamp64Milli({START + until * DAY})"
    condition = r"1=1" if all_versions else r"\1"
    query = re.sub(r"\$__conditionalAll\((.+?\)), \$version\)", condition, query)
    query = re.sub(r"\$__timeFilter_ms\((\w+)\)", rf"\1 >= {from_ms} AND \1 <= {to_ms}", query)
    query = query.replace("$__fromTime_ms", from_ms).replace("$__toTime_ms", to_ms)
    for name, value in CHOSEN.items():
        query = query.replace(f"${{{name}:singlequote}}", f"'{value}'").replace(
            f"${{{name}}}", value
        )
    assert "$" not in query, query
    return query


def sql_of(path: Path) -> Iterator[tuple[str, str]]:
    """Every SQL text of a dashboard with a name for it."""
    for panel in panels(path):
        for target in panel["targets"]:
            if "rawSql" in target:
                yield f"{panel['title']} {target['refId']}", target["rawSql"]
    for variable in variables(path):
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]["rawSql"]
    for annotation in dashboard(path)["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["target"]["rawSql"]


QUERIES: Final = [
    pytest.param(text, id=f"{path.stem}: {name}")
    for path in DASHBOARDS
    for name, text in sql_of(path)
]
SERIES: Final = [
    pytest.param(target, id=f"{path.stem}: {panel['title']} {target['refId']}")
    for path in DASHBOARDS
    for panel in panels(path)
    for target in panel["targets"]
    if target.get("format") == 0
]
PROMQL: Final = [
    pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")
    for path in DASHBOARDS
    for panel in panels(path)
    for target in panel["targets"]
    if "expr" in target
]
each_dashboard: Final = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with endpoint(tmp_path_factory.mktemp("grafana")) as settings:
        store.migrate(settings)
        link = store.connect(settings)
        fill(link, days=DAYS)
        more = [
            _window(feature="humid", n=100, missing=100),
            _window(version=OTHER_VERSION),
            _window(size_ms=DAY // 24, start=START - DAY),
        ]
        link.append("windows", to_table("windows", more), token="more")
        yield link
        link.close()


def _window(**changes: object) -> Row:
    values = {
        "model": MODEL,
        "version": "7",
        "segment": "",
        "size_ms": DAY,
        "start": START,
        "feature": "",
        "contribution": "",
        "counts": [],
        "unseen": [],
        "mean": None,
        "variance": None,
        "bins_id": "",
        **changes,
    }
    return tuple(values.get(name, 0) for name in SCHEMAS["windows"].names)


def rows(link: Store, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in link.link.rows(query)]


@pytest.mark.parametrize("all_versions", [False, True], ids=["one version", "all versions"])
@pytest.mark.parametrize("query", QUERIES)
def test_every_query_runs_and_finds_something(
    filled: Store, query: str, all_versions: bool
) -> None:
    assert rows(filled, expand(query, all_versions=all_versions))


@pytest.mark.parametrize("target", SERIES)
def test_a_series_is_a_time_labels_and_numbers_one_row_for_each_time_and_label(
    filled: Store, target: dict[str, Any]
) -> None:
    query = expand(target["rawSql"])
    types = {row["name"]: row["type"] for row in rows(filled, f"DESCRIBE TABLE ({query})")}
    assert next(iter(types)) == "time"
    assert types["time"].startswith(TIME)
    labels = [name for name, type_ in types.items() if TEXT in type_]
    values = [name for name in types if name != "time" and name not in labels]
    assert values
    assert all(re.search(r"Int|Float", types[name]) for name in values)
    keys = [(row["time"], *(row[name] for name in labels)) for row in rows(filled, query)]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)


def test_the_first_panel_shows_the_fault_that_was_staged(filled: Store) -> None:
    (panel,) = [p for p in panels(DASHBOARDS[0]) if p["title"] == "How close to the limit"]
    over = {
        row["feature"]
        for row in rows(filled, expand(panel["targets"][0]["rawSql"]))
        if row["ratio"] > 1
    }
    assert "wind_speed" in over


def test_how_far_an_estimate_was_off_is_its_distance_from_what_labels_say(filled: Store) -> None:
    (panel,) = [p for p in panels(DASHBOARDS[0]) if "how far off" in p["title"]]
    measured, estimated, off = (
        [(row["series"], row["value"]) for row in rows(filled, expand(target["rawSql"]))]
        for target in panel["targets"]
    )
    said = [row.metrics["accuracy"] for row in reversed(filled.performance(MODEL))]
    assert measured == [("version 7, measured", value) for value in said]
    assert estimated == [("version 7, estimated", 0.8)] * DAYS
    assert off == [("version 7, off by", pytest.approx(abs(value - 0.8))) for value in said]


def test_a_release_is_told_where_the_first_window_of_the_chosen_size_begins(filled: Store) -> None:
    (query,) = [sql for name, sql in sql_of(DASHBOARDS[0]) if name == "annotation Releases"]
    (row,) = rows(filled, expand(query))
    assert (row["time"].timestamp() * 1000, row["text"]) == (START, "version 7 appears")


def test_an_empty_range_is_an_empty_answer_and_no_error(filled: Store) -> None:
    for parameters in SERIES:
        (target,) = parameters.values
        assert isinstance(target, dict)
        assert rows(filled, expand(target["rawSql"], until=-1)) == []


def test_there_is_a_dashboard() -> None:
    assert [path.name for path in DASHBOARDS] == ["model.json"]


def test_uids_and_titles_are_unique() -> None:
    for key in ("uid", "title"):
        names = [dashboard(path)[key] for path in DASHBOARDS]
        assert len(set(names)) == len(names)
        assert all(names)


@each_dashboard
def test_the_dashboard_is_provisioned_not_exported(path: Path) -> None:
    found = dashboard(path)
    assert found["editable"] is False
    assert not {"id", "__inputs", "__requires", "iteration"} & set(found)
    assert found["time"]["from"].startswith("now-")


@each_dashboard
def test_every_panel_has_an_id_a_title_a_description_a_unit_and_a_query(path: Path) -> None:
    ids = [panel["id"] for panel in dashboard(path)["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(path):
        assert panel["title"], panel["id"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)


@each_dashboard
def test_panels_lie_on_the_grid_and_do_not_overlap(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(path)["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@each_dashboard
def test_data_sources_are_variables_that_can_be_chosen(path: Path) -> None:
    sources = {v["name"]: v["query"] for v in variables(path) if v["type"] == "datasource"}
    assert sources == {
        "datasource": "grafana-clickhouse-datasource",
        "prometheus_datasource": "prometheus",
    }
    named = {f"${{{name}}}": type_ for name, type_ in sources.items()}
    used = [
        *(panel["datasource"] for panel in panels(path)),
        *(target["datasource"] for panel in panels(path) for target in panel["targets"]),
        *(v["datasource"] for v in variables(path) if v["type"] == "query"),
        *(annotation["datasource"] for annotation in dashboard(path)["annotations"]["list"]),
    ]
    for source in used:
        assert named[source["uid"]] == source["type"]


@each_dashboard
def test_variables_are_used_declared_quoted_and_read_anew_when_the_time_changes(path: Path) -> None:
    declared = [variable["name"] for variable in variables(path)]
    assert len(set(declared)) == len(declared)
    assert set(CHOSEN) == {v["name"] for v in variables(path) if v["type"] == "query"}
    text = "".join(sql for _, sql in sql_of(path))
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == set(CHOSEN)
    unquoted = set(re.findall(r"\$\{(\w+)\}", text))
    assert unquoted == {"size"}, "a text goes into SQL as ${name:singlequote}"
    for variable in variables(path):
        if variable["type"] == "query":
            assert variable["refresh"] == 2, variable["name"]


@each_dashboard
def test_tables_are_asked_with_final_where_numbers_are_added_up(path: Path) -> None:
    for name, query in sql_of(path):
        if name.startswith("variable") or name == "annotation Releases":
            continue  # which values there are does not depend on revisions
        for table in re.findall(r"FROM (?!\()(\w+(?: FINAL)?)", query):
            nested = f"max(end) FROM {table}" in query
            assert table.endswith("FINAL") or nested, f"{name}: {table}"


def promql_metrics(text: str) -> set[str]:
    return set(re.findall(r"\bdriftline_\w+", text))


@pytest.mark.parametrize("query", PROMQL)
def test_every_metric_of_a_panel_is_exported(query: str) -> None:
    assert promql_metrics(query)
    assert promql_metrics(query) <= exported()


def test_the_data_sources_are_those_that_the_dashboards_want() -> None:
    document = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "driftline.yml").read_text()
    )
    sources = {source["uid"]: source for source in document["datasources"]}
    wanted = {
        v["query"] for path in DASHBOARDS for v in variables(path) if v["type"] == "datasource"
    }
    assert {source["type"] for source in sources.values()} == wanted
    assert all(source["editable"] is False for source in sources.values())
    assert sources["clickhouse"]["jsonData"]["defaultDatabase"] == ClickHouseSettings().database


def test_users_xml_names_settings_and_privileges_that_the_engine_knows(filled: Store) -> None:
    users = (GRAFANA / "clickhouse" / "users.xml").read_text()
    named = set(re.findall(r"<((?:max_|readonly)\w*)>", users)) - {"max"}
    known = {row["name"] for row in rows(filled, "SELECT name FROM system.settings")}
    assert named
    assert named <= known
    for grant in re.findall(r"<query>(GRANT .+?)</query>", users):
        assert rows(filled, f"EXPLAIN AST {grant} TO somebody")


def test_config_xml_names_settings_that_the_engine_knows(filled: Store) -> None:
    config = (GRAFANA / "clickhouse" / "config.xml").read_text()
    known = {row["name"] for row in rows(filled, "SELECT name FROM system.server_settings")}
    assert set(re.findall(r"<((?:max|mark)_\w+)>", config)) <= known
