"""Every query of every dashboard runs on ClickHouse's engine after our migrations; no Grafana is needed.

The macros are expanded here as the data source does (docs/sources/query-editor.md of grafana/clickhouse-datasource). PromQL is read
by promtool, and answered by a real Prometheus in tests/streams/embedded/test_stack.py.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

import monitor.metrics  # noqa: F401 - declares what the registry holds
from grafana import make
from monitor import store
from monitor.clickhouse import Migration, migrations
from monitor.settings import ClickHouseSettings
from monitor.store import Store
from monitor.tables import SCHEMAS, Row, to_table, verdict_rows
from monitor.versions import OTHER_VERSION
from monitor.wire import Verdict, Verdicts
from tests.monitor.stored import DAY, EVENTS, FIRING, MODEL, START, endpoint, fill
from tests.prometheus import exported, needs_prometheus, promtool

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
    "incident": FIRING,
}
CATEGORICAL: Final = {"feature": "carrier"}
UNITS: Final = {"none", "short", "percentunit", "s", "ms", "bytes", "eps", "ops", "reqps"}
# Addresses of the page: monitor/page/routes.js; and what it reads of them besides.
PAGE_PLACES: Final = re.compile(
    r"|#/|#/models/x|#/models/x/features/x|#/incidents|#/incidents/x|#/pipeline"
)
PAGE_READS: Final = {"by", "end", "metric", "segment", "size", "span", "start", "state", "statistic", "until", "version"}  # fmt: skip
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


def expand(
    query: str,
    *,
    everything: bool = False,
    until: int = DAYS,
    chosen: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The query as ClickHouse gets it: first the macros, then the variables."""
    from_ms = f"fromUnixTimestamp64Milli({START})"
    to_ms = f"fromUnixTimestamp64Milli({START + until * DAY})"
    condition = r"1=1" if everything else r"\1"
    query = re.sub(r"\$__conditionalAll\((.+?\)), \$\w+\)", condition, query)
    query = re.sub(r"\$__timeFilter_ms\((\w+)\)", rf"\1 >= {from_ms} AND \1 <= {to_ms}", query)
    query = query.replace("$__fromTime_ms", from_ms).replace("$__toTime_ms", to_ms)
    for name, value in (CHOSEN | dict(chosen)).items():
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
        if "rawSql" in annotation["target"]:
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
    pytest.param(target["expr"], id=f"{path.stem}: {name} {target['refId']}")
    for path in DASHBOARDS
    for name, target in [
        *((panel["title"], target) for panel in panels(path) for target in panel["targets"]),
        *((a["name"], a["target"]) for a in dashboard(path)["annotations"]["list"]),
    ]
    if "expr" in target
]
TABLES: Final = [
    pytest.param(panel, id=f"{path.stem}: {panel['title']}")
    for path in DASHBOARDS
    for panel in panels(path)
    if panel["targets"][0].get("format") == 1
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
            _window(size_ms=7 * DAY, start=START - 7 * DAY),
            _window(feature="carrier", contribution="late", n=3, unseen=[("ZZ", 2), ("QQ", 1)]),
        ]
        link.append("windows", to_table("windows", more), token="more")
        # What the incident's evidence names: of the last five days.
        off = Verdict("data_quality", "wind_speed", "off_grid", "breach", 0.97, 0.01, 0.0, EVENTS)
        for day in range(DAYS - 5, DAYS):
            at = START + day * DAY
            judged = Verdicts("window", MODEL, "7", "", DAY, at, at + DAY, EVENTS, 1, [off])
            link.append("verdicts", to_table("verdicts", verdict_rows(judged)), token=f"off {day}")
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


@pytest.mark.parametrize("everything", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("query", QUERIES)
def test_every_query_runs_and_finds_something(filled: Store, query: str, everything: bool) -> None:
    """A panel is of numbers or of categories: it finds something of one of the two features."""
    numeric = rows(filled, expand(query, everything=everything))
    categorical = rows(filled, expand(query, everything=everything, chosen=CATEGORICAL))
    assert any(set(row.values()) - {None} for row in (*numeric, *categorical))


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
    (panel,) = [p for p in panels(named("model")) if p["title"] == "How close to the limit"]
    over = {
        row["feature"]
        for row in rows(filled, expand(panel["targets"][0]["rawSql"]))
        if row["ratio"] > 1
    }
    assert "wind_speed" in over


def test_how_far_an_estimate_was_off_is_its_distance_from_what_labels_say(filled: Store) -> None:
    (panel,) = [p for p in panels(named("model")) if "how far off" in p["title"]]
    measured, estimated, off = (
        [(row["series"], row["value"]) for row in rows(filled, expand(target["rawSql"]))]
        for target in panel["targets"]
    )
    said = [row.metrics["accuracy"] for row in reversed(filled.performance(MODEL))]
    assert measured == [("version 7, measured", value) for value in said]
    assert estimated == [("version 7, estimated", 0.8)] * DAYS
    assert off == [("version 7, off by", pytest.approx(abs(value - 0.8))) for value in said]


def test_a_release_is_told_where_the_first_window_of_the_chosen_size_begins(filled: Store) -> None:
    (query,) = [sql for name, sql in sql_of(named("model")) if name == "annotation Releases"]
    (row,) = rows(filled, expand(query))
    assert (row["time"].timestamp() * 1000, row["text"]) == (START, "version 7 appears")


def test_an_empty_range_is_an_empty_answer_and_no_error(filled: Store) -> None:
    for parameters in SERIES:
        (target,) = parameters.values
        assert isinstance(target, dict)
        found = rows(filled, expand(target["rawSql"], until=-1))
        assert all(row.get("series") == "reference" for row in found), "it has no time of its own"


def column_types(link: Store, query: str) -> dict[str, str]:
    return {row["name"]: row["type"] for row in rows(link, f"DESCRIBE TABLE ({query})")}


@pytest.mark.parametrize("panel", TABLES)
def test_a_table_has_the_columns_that_the_panel_names(filled: Store, panel: dict[str, Any]) -> None:
    (target,) = panel["targets"]
    types = column_types(filled, expand(target["rawSql"]))
    text = json.dumps(panel["fieldConfig"]["overrides"])
    assert set(re.findall(r"__data\.fields\.(\w+)", text)) <= types.keys()
    for override in panel["fieldConfig"]["overrides"]:
        name, options = override["matcher"]["id"], override["matcher"]["options"]
        wanted = options.split("|") if name == "byRegexp" else [options]
        assert set(wanted) <= types.keys()
    if panel["type"] == "stat":
        assert [bool(re.search(r"Int|Float", type_)) for type_ in types.values()] == [True]
    if panel["type"] == "barchart":
        assert panel["options"]["xField"] == next(iter(types))


def overlay(filled: Store, title: str, **chosen: str) -> list[dict[str, Any]]:
    (panel,) = [p for p in panels(named("feature")) if p["title"].startswith(title)]
    return rows(filled, expand(panel["targets"][0]["rawSql"], chosen=chosen))


def test_the_histogram_is_binned_in_bars_of_one_width_that_hold_all_values(filled: Store) -> None:
    """What Grafana's histogram takes as it is: columns xMin and xMax, and a number for each series."""
    bars = overlay(filled, "$feature")
    assert list(bars[0]) == ["xMin", "xMax", "reference", "current"]
    widths = {round(bar["xMax"] - bar["xMin"], 9) for bar in bars}
    assert len(widths) == 1
    for left, right in pairwise(bars):
        assert left["xMax"] == pytest.approx(right["xMin"])
    for series in ("reference", "current"):
        assert sum(bar[series] for bar in bars) == pytest.approx(1)
    # The mean of the bars is that of the values, but for a bar's width and for what is beyond the edges.
    (mean,) = [
        row["mean"]
        for row in rows(filled, "SELECT mean FROM bins FINAL WHERE feature = 'wind_speed'")
    ]
    of_bars = sum(bar["reference"] * (bar["xMin"] + bar["xMax"]) / 2 for bar in bars)
    assert of_bars == pytest.approx(mean, abs=widths.pop())
    assert overlay(filled, "$feature", feature="carrier") == []


def test_the_histogram_shows_the_fault_of_the_days_that_have_it(filled: Store) -> None:
    def mean(bars: list[dict[str, Any]]) -> float:
        return float(sum(bar["current"] * bar["xMin"] for bar in bars))

    (panel,) = [p for p in panels(named("feature")) if p["type"] == "histogram"]
    query = panel["targets"][0]["rawSql"]
    before = mean(rows(filled, expand(query, until=DAYS - 6)))
    everything = expand(query)
    faulty = everything.replace(
        f">= fromUnixTimestamp64Milli({START})",
        f">= fromUnixTimestamp64Milli({START + (DAYS - 5) * DAY})",
    )
    assert faulty != everything
    assert mean(rows(filled, faulty)) > 1.3 * before  # the wind is in km/h


def test_categories_are_shares_beside_those_of_the_reference(filled: Store) -> None:
    found = overlay(filled, "Categories", feature="carrier")
    shares = {row["category"]: (row["reference"], row["current"]) for row in found}
    for category, share in {"UA": 0.4, "B6": 0.3, "EV": 0.2, "DL": 0.1}.items():
        assert shares[category] == pytest.approx((share, share), abs=0.03)
    assert sum(now for _, now in shares.values()) == pytest.approx(1)
    assert overlay(filled, "Categories") == []


def test_mean_and_deviation_are_those_of_the_stored_windows(filled: Store) -> None:
    (panel,) = [p for p in panels(named("feature")) if p["title"].startswith("Mean and standard")]
    found = rows(filled, expand(panel["targets"][0]["rawSql"]))
    stored = filled.feature(MODEL, "wind_speed", version="7", size_ms=DAY)
    assert [(row["average"], row["deviation"]) for row in found] == [
        (pytest.approx(window.mean), pytest.approx((window.variance or 0.0) ** 0.5))
        for window in reversed(stored)
    ]


def test_the_fleet_says_of_each_model_what_it_is_worst_at(filled: Store) -> None:
    (panel,) = [p for p in panels(named("fleet")) if p["type"] == "table" and "worst" in p["title"]]
    (one,) = rows(filled, expand(panel["targets"][0]["rawSql"], everything=True))
    assert (one["model"], one["feature"], one["firing"]) == (MODEL, "wind_speed", 1)
    assert one["worst"] == pytest.approx(97)
    assert one["events"] == DAYS * EVENTS
    assert one["labelled"] == 190 / EVENTS


def test_an_incident_has_its_evidence_its_timeline_and_what_was_sent(filled: Store) -> None:
    found = {
        panel["title"]: rows(filled, expand(panel["targets"][0]["rawSql"]))
        for panel in panels(named("incident"))
        if panel["type"] == "table"
    }
    (what,) = found["The incident"]
    assert (what["state"], what["cause"], what["retrain_blocked"]) == (
        "firing",
        "pipeline_fault",
        1,
    )
    assert what["reason"].startswith("The values of one feature left the grid")
    (evidence,) = found["Evidence"]
    assert (evidence["feature"], evidence["statistic"]) == ("wind_speed", "off_grid")
    assert (evidence["value"], evidence["limit"]) == (0.97, 0.01)
    assert [entry["what"] for entry in found["Timeline"]] == ["fired", "sent to slack"]
    assert [sent["target"] for sent in found["Deliveries"]] == ["slack"]


def test_there_are_five_dashboards_and_they_are_what_the_code_makes() -> None:
    made = {f"{one['uid'].removeprefix('driftline-')}.json": one for one in make.ALL}
    assert [path.name for path in DASHBOARDS] == sorted(made)
    assert sorted(made) == [
        "feature.json",
        "fleet.json",
        "incident.json",
        "model.json",
        "pipeline.json",
    ]
    for path in DASHBOARDS:
        assert path.read_text() == make.written(made[path.name]), "run python -m grafana.make"


def lost(ours: object, theirs: object, at: str = "") -> Iterator[str]:
    """Where ``theirs`` is not what ``ours`` is; what it has beside that are defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{at}[{i}]")
    elif ours != theirs:
        yield at


def round_trip(document: dict[str, Any]) -> list[str]:
    """Keys that Grafana's own library does not know."""
    encoded = JSONEncoder().encode(Dashboard.from_json(document))
    return list(lost(document, json.loads(encoded)))


@each_dashboard
def test_the_dashboard_survives_grafanas_own_library(path: Path) -> None:
    assert round_trip(dashboard(path)) == []


def test_that_library_notices_a_key_that_is_misspelt() -> None:
    wrong = json.loads(json.dumps(dashboard(named("model"))))
    wrong["panels"][0]["discription"] = "x"
    wrong["templating"]["list"][0]["lable"] = "x"
    wrong["panels"][5]["fieldConfig"]["defaults"]["units"] = "x"
    assert len(round_trip(wrong)) == 3


def named(name: str) -> Path:
    (found,) = [path for path in DASHBOARDS if path.stem == name]
    return found


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
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
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
    known = {
        "datasource": "grafana-clickhouse-datasource",
        "prometheus_datasource": "prometheus",
    }
    assert sources.items() <= known.items()
    types = {f"${{{name}}}": type_ for name, type_ in sources.items()}
    used = [
        *(panel["datasource"] for panel in panels(path)),
        *(target["datasource"] for panel in panels(path) for target in panel["targets"]),
        *(v["datasource"] for v in variables(path) if v["type"] == "query"),
        *(annotation["datasource"] for annotation in dashboard(path)["annotations"]["list"]),
    ]
    for source in used:
        assert types[source["uid"]] == source["type"]
    assert {source["uid"] for source in used} == types.keys()


@each_dashboard
def test_variables_are_used_declared_quoted_and_read_anew_when_the_time_changes(path: Path) -> None:
    declared = [variable["name"] for variable in variables(path)]
    assert len(set(declared)) == len(declared)
    asked = {v["name"] for v in variables(path) if v["type"] == "query"}
    assert asked <= set(CHOSEN)
    text = "".join(sql for _, sql in sql_of(path))
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == asked
    unquoted = set(re.findall(r"\$\{(\w+)\}", text))
    assert unquoted <= {"size"}, "a text goes into SQL as ${name:singlequote}"
    several = {v["name"] for v in variables(path) if v.get("multi")}
    assert several == set(
        re.findall(r"\$__conditionalAll\([^$]+\$\{\w+:singlequote\}\), \$(\w+)\)", text)
    )
    for name in several:
        assert not re.search(rf"= \$\{{{name}\b", text), f"{name} may be many, or all"
    for variable in variables(path):
        if variable["type"] == "query":
            assert variable["refresh"] == 2, variable["name"]


def shown() -> dict[str, str]:
    """By view that the migrations make, what it reads."""
    made = [s for m in migrations() for s in m.statements("d") if s.startswith("CREATE VIEW")]
    found = [re.search(r"`d`\.(\w+) SQL SECURITY DEFINER AS\s(.*)", s, re.DOTALL) for s in made]
    return {match[1]: match[2] for match in found if match is not None}


def asked(query: str) -> set[str]:
    """Tables and views of a query."""
    return set(re.findall(r"(?:FROM|(?<!ARRAY )JOIN) (?!\()(\w+)", query))


def test_dashboards_and_alerts_ask_views_which_show_the_newest_revisions() -> None:
    alerts = (GRAFANA / "provisioning" / "alerting" / "driftline.yml").read_text()
    queries = [query for path in DASHBOARDS for _, query in sql_of(path)]
    queries += re.findall(r"rawSql: (.+)", alerts)
    views = shown()
    assert set.union(*map(asked, queries)) == set(views) - {"shown_windows_rolled"}
    for name, query in views.items():
        assert query.endswith(" FINAL") != (name == "shown_series"), name


def test_the_reader_may_read_the_views_and_no_table(filled: Store) -> None:
    folder = GRAFANA / "clickhouse"
    views = set(shown())
    assert not any(re.search(r"predictions|labels|outcomes|arrivals", q) for q in shown().values())
    users = ET.parse(folder / "users.xml").getroot().find("users/grafana")
    assert users is not None
    granted = [grant.text or "" for grant in users.iter("query")]
    assert granted == [f"GRANT SELECT ON driftline.{view}" for view in shown()]
    script = Migration(1, "reader", (folder / "reader.sql").read_text()).statements("driftline")
    for statement in script:
        assert rows(filled, f"EXPLAIN AST {statement}")
    given = [s for s in script if s.startswith("GRANT")]
    assert given == [f"{grant} TO driftline_reader" for grant in granted]
    known = {row["name"] for row in rows(filled, "SHOW TABLES")}
    assert views < known


def test_the_two_ways_to_make_the_reader_bound_it_alike() -> None:
    folder = GRAFANA / "clickhouse"
    script = (folder / "reader.sql").read_text()
    root = ET.parse(folder / "users.xml").getroot()
    profile, quota = root.find("profiles/grafana"), root.find("quotas/grafana/interval")
    assert profile is not None
    assert quota is not None
    bounds = {each.tag: each.text for each in profile if each.tag != "constraints"}
    assert bounds["readonly"] == "1"
    for name, value in bounds.items():
        assert re.search(rf"\b{name} = {value}\b", script), name
    assert quota.findtext("duration") == "3600"
    assert f"INTERVAL 1 hour MAX execution_time = {quota.findtext('execution_time')} " in script
    assert "max_execution_time = 60 MAX 60 CHANGEABLE_IN_READONLY" in script
    constraint = profile.find("constraints/max_execution_time")
    assert constraint is not None
    assert [each.tag for each in constraint] == ["changeable_in_readonly", "max"]


def test_a_view_is_read_by_who_may_only_read(filled: Store) -> None:
    for view in shown():
        assert rows(filled, f"SELECT count() AS n FROM {view} SETTINGS readonly = 1")


def test_what_is_asked_of_a_view_is_looked_up_by_the_key_of_its_table(filled: Store) -> None:
    plan = rows(
        filled,
        "EXPLAIN indexes = 1 SELECT sum(n) FROM shown_windows WHERE model = 'a' AND feature = 'b' AND start > now()",
    )
    text = " ".join(row["explain"].strip() for row in plan)
    assert "Keys: model feature" in text, text


@each_dashboard
def test_links_lead_to_dashboards_variables_and_choices_that_exist(path: Path) -> None:
    text = json.dumps(dashboard(path))
    there = {dashboard(other)["uid"]: {v["name"] for v in variables(other)} for other in DASHBOARDS}
    own = {v["name"] for v in variables(path)}
    for uid, query in re.findall(r"/d/([\w-]+)\?([^\"]+)", text):
        assert set(re.findall(r"var-(\w+)=", query)) <= there[uid]
        assert set(re.findall(r"\$\{(\w+)", query)) <= own | {"__data", "__url_time_range"}
    to_page = re.findall(r"\$\{page\}/([^\"]*)\"", text)
    assert to_page
    for address in to_page:
        place, _, choices = address.partition("?")
        assert PAGE_PLACES.fullmatch(re.sub(r"\$\{[^}]+\}", "x", place)), place
        assert set(re.findall(r"(?:^|&)(\w+)=", choices)) <= PAGE_READS
        assert set(re.findall(r"\$\{(\w+)", address)) <= own | {"__data"}
    (page,) = [v for v in variables(path) if v["name"] == "page"]
    published = yaml.safe_load((GRAFANA.parent / "docker-compose.yml").read_text())
    assert page["query"] == "http://" + published["services"]["api"]["ports"][0].rpartition(":")[0]
    everything, to_the_page = dashboard(path)["links"]
    assert everything["tags"] == dashboard(path)["tags"]
    assert to_the_page["url"].startswith("${page}/")


def of_page() -> str:
    """All of its scripts."""
    page = GRAFANA.parent / "monitor" / "page"
    return "".join(path.read_text() for path in [page / "api.js", *(page / "views").glob("*.js")])


def test_the_page_reads_from_its_address_what_links_say() -> None:
    assert set(re.findall(r"choices\.(\w+)", of_page())) == PAGE_READS


def test_links_of_the_page_lead_to_dashboards_and_variables_that_exist() -> None:
    script = of_page()
    there = {path.stem: {v["name"] for v in variables(path)} for path in DASHBOARDS}
    assert "/d/driftline-${name}?" in script
    calls = re.findall(r'board\("(\w+)", ([^\n]+)', script)
    assert {name for name, _ in calls} == {"model", "feature", "incident"}
    for name, rest in calls:
        assert {"model", *re.findall(r'"var-(\w+)"', rest)} <= there[name]
    compose = yaml.safe_load((GRAFANA.parent / "docker-compose.yml").read_text())["services"]
    told = compose["api"]["environment"]["DRIFTLINE_API__GRAFANA_URL"]
    assert told == "http://" + compose["grafana"]["ports"][0].rpartition(":")[0]


WORDS: Final = {"or", "and", "on"}


def promql_metrics(text: str) -> set[str]:
    """Names of series in an expression: what is no function, no label, no value and no word of the language."""
    text = re.sub(r"\"[^\"]*\"", "", text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]| by \([^)]*\) ", "", text)
    return set(re.findall(r"\b[a-zA-Z_][\w:]*(?![\w:(])", text)) - WORDS


def recorded() -> set[str]:
    document = yaml.safe_load((GRAFANA / "prometheus" / "rules.yml").read_text())
    return {
        rule["record"]
        for group in document["groups"]
        for rule in group["rules"]
        if "record" in rule
    }


@pytest.mark.parametrize("query", PROMQL)
def test_every_metric_of_a_panel_is_exported_or_recorded(query: str) -> None:
    named = promql_metrics(query)
    assert named
    assert named <= exported() | recorded() | {"up", "ALERTS"}


@needs_prometheus
def test_promtool_reads_every_expression_of_a_panel(tmp_path: Path) -> None:
    texts = [str(p.values[0]).replace("$__rate_interval", "1m") for p in PROMQL]
    assert len(texts) > 40
    assert not any("$" in text for text in texts)
    rules = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(texts)]
    (tmp_path / "panels.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "p", "rules": rules}]})
    )
    said = promtool("check", "rules", str(tmp_path / "panels.yml"))
    assert f"{len(texts)} rules found" in said


def test_rates_are_taken_of_counters_only_and_over_the_interval_that_grafana_gives() -> None:
    text = "".join(str(p.values[0]) for p in PROMQL)
    counted = set(re.findall(r"(?:rate|increase)\((\w+)", text))
    assert counted
    assert all(name.endswith(("_total", "_bucket")) for name in counted)
    assert set(re.findall(r"rate\(\w+(?:\{[^}]*\})?\[(.+?)\]", text)) == {"$__rate_interval"}


ALERTING: Final[list[dict[str, Any]]] = yaml.safe_load(
    (GRAFANA / "provisioning" / "alerting" / "driftline.yml").read_text()
)["groups"][0]["rules"]


@pytest.mark.parametrize("rule", ALERTING, ids=lambda rule: rule["uid"])
def test_a_rule_of_grafana_asks_compares_and_shows_a_panel(
    filled: Store, rule: dict[str, Any]
) -> None:
    asked, compared = rule["data"]
    assert (asked["refId"], compared["refId"]) == ("A", rule["condition"])
    assert compared["datasourceUid"] == "__expr__"
    assert compared["model"]["expression"] == asked["refId"]
    assert compared["model"]["type"] == "threshold"
    (uid,) = [path for path in DASHBOARDS if dashboard(path)["uid"] == rule["dashboardUid"]]
    (shown,) = [panel for panel in panels(uid) if panel["id"] == rule["panelId"]]
    named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert "$" not in json.dumps(rule["labels"]), "Grafana would take it for its environment"
    if asked["datasourceUid"] == "prometheus":
        metrics = promql_metrics(asked["model"]["expr"])
        assert metrics <= exported()
        assert metrics <= set().union(*(promql_metrics(t["expr"]) for t in shown["targets"]))
        assert named <= {"process"}
    else:
        assert asked["datasourceUid"] == "clickhouse"
        (row,) = rows(filled, expand(asked["model"]["rawSql"]))
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert numbers == [1.0]
        assert named <= {name for name, value in row.items() if isinstance(value, str)}
        assert "firing" in shown["targets"][0]["rawSql"]


def test_rules_of_grafana_have_names_of_their_own_and_states_that_it_knows() -> None:
    for key in ("uid", "title"):
        assert len({rule[key] for rule in ALERTING}) == len(ALERTING)
    for rule in ALERTING:
        assert rule["noDataState"] in {"OK", "Alerting", "NoData", "KeepLast"}
        assert rule["execErrState"] in {"OK", "Alerting", "Error", "KeepLast"}
        assert len(rule["uid"]) <= 40
        assert set(rule["annotations"]) == {"summary", "description"}


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
