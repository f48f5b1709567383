"""The dashboards as code: ``python -m grafana.make`` writes ``grafana/dashboards/*.json``, which are what Grafana is given.

Classic JSON, as every Grafana from 11.6 on reads it. ``tests/test_grafana.py`` runs each query, and finds files that are not what this module makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

FOLDER: Final = Path(__file__).parent / "dashboards"
PAGE: Final = "http://127.0.0.1:8080"  # as docker-compose.yml publishes it; &var-page= in the address is another
CLICKHOUSE: Final = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
PROMETHEUS: Final = {"type": "prometheus", "uid": "${prometheus_datasource}"}
PLUGIN: Final = "4.20.0"
BARS: Final = 30  # of a histogram: Grafana draws bars of one width

WHOLE: Final = "(whole model)"
SEGMENT: Final = f"segment = replaceOne(${{segment:singlequote}}, '{WHOLE}', '')"
MODEL: Final = "model = ${model:singlequote}"
MODELS: Final = "$__conditionalAll(model IN (${model:singlequote}), $model)"
VERSION: Final = "$__conditionalAll(version IN (${version:singlequote}), $version)"
PLACE: Final = f"{MODEL} AND {SEGMENT} AND size_ms = ${{size}} AND {VERSION}"
FEATURE: Final = "feature = ${feature:singlequote}"
# Of each model the windows that say most often how it is.
SMALLEST: Final = "segment = '' AND (model, size_ms) IN (SELECT model, min(size_ms) FROM shown_series GROUP BY model)"
JUDGED: Final = (
    "kind IN ('data_quality', 'data_drift', 'prediction_drift', 'service') AND status != 'no_data'"
)
RATIO: Final = "max(value / nullIf(`limit`, 0)) AS ratio"
VALUES: Final = "n + missing + `nan` + pos_inf + neg_inf + wrong_type"
VERSIONED: Final = "concat('version ', version)"

RED_AT_1: Final = [("green", None), ("red", 1)]
NEAR: Final = [("green", None), ("yellow", 0.5), ("red", 1)]


def sql(text: str, *, series: bool = True) -> Json:
    """A query of ClickHouse: of series (time, labels, numbers), or a table."""
    return {
        "datasource": CLICKHOUSE,
        "editorType": "sql",
        "queryType": "timeseries" if series else "table",
        "format": 0 if series else 1,
        "pluginVersion": PLUGIN,
        "rawSql": text,
    }


def rows(text: str) -> Json:
    """A query of ClickHouse for a table."""
    return sql(text, series=False)


def promql(expr: str, legend: str = "", *, now: bool = False) -> Json:
    """A query of Prometheus, over the range or as it is now."""
    asked: Json = {"instant": True, "format": "table"} if now else {"range": True}
    return {
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend,
        **asked,
    }


def steps(thresholds: Sequence[tuple[str, float | None]]) -> Json:
    """Colours from values on."""
    found = [{"color": color, "value": value} for color, value in thresholds]
    return {"mode": "absolute", "steps": found}


def override(field: str, properties: Mapping[str, Any], *, like: bool = False) -> Json:
    """Properties of the field of this name, or of those that are like it."""
    return {
        "matcher": {"id": "byRegexp" if like else "byName", "options": field},
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def dashed(field: str) -> Json:
    """Lines like this one are dashed."""
    return override(field, {"custom.lineStyle": {"fill": "dash", "dash": [8, 6]}}, like=True)


def linked(field: str, *links: tuple[str, str]) -> Json:
    """Links from each value of a column."""
    found = [{"title": title, "url": url, "targetBlank": False} for title, url in links]
    return override(field, {"links": found})


def panel(
    kind: str,
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    width: int,
    height: int,
    unit: str,
    options: Json,
    defaults: Json,
    overrides: Sequence[Json] = (),
) -> Json:
    """Any panel; ``dashboard`` gives it its place and its number."""
    source = targets[0]["datasource"]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": source,
        "gridPos": {"w": width, "h": height},
        "targets": [{"refId": chr(ord("A") + i), **target} for i, target in enumerate(targets)],
        "fieldConfig": {
            "defaults": {
                "color": {"mode": "palette-classic"},
                "custom": {},
                "unit": unit,
                **defaults,
            },
            "overrides": list(overrides),
        },
        "options": options,
    }


def stat(
    title: str,
    description: str,
    target: Json,
    unit: str = "short",
    thresholds: Sequence[tuple[str, float | None]] = (),
    width: int = 6,
) -> Json:
    """One number."""
    colored: Json = {"color": {"mode": "thresholds"}, "thresholds": steps(thresholds)}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    }
    return panel(
        "stat",
        title,
        description,
        [target],
        width=width,
        height=4,
        unit=unit,
        options=options,
        defaults=colored if thresholds else {},
    )


def lines(
    title: str,
    description: str,
    *targets: Json,
    unit: str = "none",
    width: int = 12,
    height: int = 9,
    calcs: Sequence[str] = ("lastNotNull", "max"),
    bars: bool = False,
    overrides: Sequence[Json] = (),
    **defaults: Any,
) -> Json:
    """Values over time, as lines or as stacked bars."""
    style: Json = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 0, "spanNulls": False}
    if bars:
        stacking = {"mode": "normal", "group": "A"}
        style = {"drawStyle": "bars", "lineWidth": 0, "fillOpacity": 80, "stacking": stacking}
    if "thresholds" in defaults:
        style["thresholdsStyle"] = {"mode": "line"}
    legend = {
        "displayMode": "table",
        "placement": "right",
        "calcs": list(calcs),
        "showLegend": True,
    }
    return panel(
        "timeseries",
        title,
        description,
        targets,
        width=width,
        height=height,
        unit=unit,
        options={"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        defaults={"custom": {"showPoints": "auto", **style}, **defaults},
        overrides=overrides,
    )


def history(title: str, description: str, target: Json, height: int = 9) -> Json:
    """A row for each series and a coloured cell for each time."""
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []}
    return panel(
        "status-history",
        title,
        description,
        [target],
        width=24,
        height=height,
        unit="percentunit",
        options={
            "showValue": "never",
            "rowHeight": 0.9,
            "legend": legend,
            "tooltip": {"mode": "single", "sort": "none"},
        },
        defaults={
            "color": {"mode": "thresholds"},
            "custom": {"fillOpacity": 80, "lineWidth": 0},
            "thresholds": steps(NEAR),
        },
    )


def table(
    title: str,
    description: str,
    target: Json,
    *,
    width: int = 24,
    height: int = 9,
    overrides: Sequence[Json] = (),
) -> Json:
    """Rows."""
    options = {"showHeader": True, "cellHeight": "sm"}
    return panel(
        "table",
        title,
        description,
        [target],
        width=width,
        height=height,
        unit="none",
        options=options,
        defaults={},
        overrides=overrides,
    )


def row(title: str) -> Json:
    """A heading."""
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"w": 24, "h": 1},
        "panels": [],
    }


def source_variable(name: str, label: str, kind: str) -> Json:
    """A choice among the data sources of a kind."""
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": kind,
        "refresh": 1,
        **_variable(),
    }


def variable(name: str, label: str, query: str, *, multi: bool = False, hide: bool = False) -> Json:
    """A choice among what a query finds, anew whenever the time changes; ``multi`` with all of them at first."""
    everything = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": CLICKHOUSE,
        "definition": query,
        "query": {"editorType": "sql", "rawSql": query},
        "refresh": 2,
        "sort": 0,
        **_variable(multi=multi, hide=hide),
        "current": everything if multi else {},
    }


def _variable(*, multi: bool = False, hide: bool = False) -> Json:
    return {
        "hide": 2 if hide else 0,
        "multi": multi,
        "includeAll": multi,
        "options": [],
        "current": {},
        "regex": "",
        "skipUrlSync": False,
    }


def annotation(name: str, color: str, target: Json) -> Json:
    """Marks on each chart."""
    return {
        "name": name,
        "datasource": target["datasource"],
        "enable": True,
        "hide": False,
        "iconColor": color,
        "target": {"refId": "Anno", **target},
    }


DATASOURCE: Final = source_variable("datasource", "Data source", CLICKHOUSE["type"])
METRICS_SOURCE: Final = source_variable(
    "prometheus_datasource", "Prometheus data source", PROMETHEUS["type"]
)
PAGE_VARIABLE: Final[Json] = {
    "type": "textbox",
    "name": "page",
    "label": "Address of the page",
    "query": PAGE,
    "hide": 2,
    "options": [{"selected": True, "text": PAGE, "value": PAGE}],
    "current": {"selected": True, "text": PAGE, "value": PAGE},
    "skipUrlSync": False,
}
MODEL_VARIABLE: Final = variable(
    "model", "Model", "SELECT DISTINCT model FROM shown_models ORDER BY model"
)
OF_WINDOWS: Final = f"FROM shown_series WHERE {MODEL}"
PLACE_VARIABLES: Final = [
    MODEL_VARIABLE,
    variable(
        "version", "Version", f"SELECT DISTINCT version {OF_WINDOWS} ORDER BY version", multi=True
    ),
    variable(
        "segment",
        "Segment",
        f"SELECT DISTINCT if(segment = '', '{WHOLE}', segment) AS name {OF_WINDOWS} ORDER BY name",
    ),
    variable(
        "size",
        "Window",
        "SELECT DISTINCT size_ms AS value, multiIf(size_ms % 86400000 = 0, concat(toString(intDiv(size_ms, 86400000)), ' d'), "
        "size_ms % 3600000 = 0, concat(toString(intDiv(size_ms, 3600000)), ' h'), size_ms % 60000 = 0, "
        f"concat(toString(intDiv(size_ms, 60000)), ' min'), concat(toString(size_ms / 1000), ' s')) AS text {OF_WINDOWS} ORDER BY value",
    ),
]
FEATURE_VARIABLE: Final = variable(
    "feature",
    "Feature",
    f"SELECT DISTINCT feature FROM shown_bins WHERE {MODEL} AND kind != 'vector' ORDER BY feature",
)
STATISTIC_VARIABLE: Final = variable(
    "statistic",
    "Statistic",
    f"SELECT DISTINCT statistic FROM shown_verdicts WHERE {MODEL} AND {FEATURE} ORDER BY statistic = 'psi' DESC, statistic",
)
METRIC_VARIABLE: Final = variable(
    "metric",
    "Metric",
    f"SELECT DISTINCT arrayJoin(mapKeys(metrics)) AS name FROM shown_performance WHERE {MODEL} ORDER BY name",
)


def incidents_marked(of: str, name: str = "title") -> Json:
    """Incidents as regions."""
    return annotation(
        "Incidents",
        "red",
        rows(
            f"SELECT opened AS time, coalesce(resolved, updated) AS timeEnd, {name} AS text, concat(cause, ',', severity) AS tags "
            f"FROM shown_incidents WHERE {of} AND $__timeFilter_ms(opened)"
        ),
    )


def releases_marked(of: str, name: str = "'version '") -> Json:
    """Where the first window of a version begins."""
    return annotation(
        "Releases",
        "blue",
        rows(
            f"SELECT min(first) AS time, concat({name}, version, ' appears') AS text FROM shown_series "
            f"WHERE {of} AND version != '__other__' GROUP BY model, version HAVING $__timeFilter_ms(time)"
        ),
    )


OF_MODEL: Final = [
    incidents_marked(MODEL),
    releases_marked(f"{MODEL} AND segment = '' AND size_ms = ${{size}}"),
]


def dashboard(
    name: str,
    title: str,
    description: str,
    panels: Sequence[Json],
    *,
    variables: Sequence[Json],
    annotations: Sequence[Json],
    page: str,
) -> Json:
    """The whole of it: panels are laid from left to right, and below where there is no more room."""
    links = [
        _link("Dashboards", type="dashboards", tags=["driftline"], asDropdown=True, url=""),
        _link("Page", type="link", tags=[], asDropdown=False, url=f"${{page}}/{page}"),
    ]
    return {
        "uid": f"driftline-{name}",
        "title": f"Driftline: {title}",
        "description": description,
        "tags": ["driftline"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "fiscalYearStartMonth": 0,
        "links": links,
        "annotations": {"list": list(annotations)},
        "templating": {"list": [*variables, PAGE_VARIABLE]},
        "panels": list(_laid(panels)),
    }


def _link(title: str, **more: Any) -> Json:
    common = {
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
    }
    if more["type"] == "link":  # the page knows nothing of Grafana's variables and times
        common |= {"includeVars": False, "keepTime": False, "targetBlank": True}
    return {"title": title, **common, **more}


def _laid(panels: Sequence[Json]) -> Iterator[Json]:
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        width, height = one["gridPos"]["w"], one["gridPos"]["h"]
        if x + width > 24:
            x, y, tallest = 0, y + tallest, 0
        yield {"id": number, **one, "gridPos": {"x": x, "y": y, "w": width, "h": height}}
        x, tallest = x + width, max(tallest, height)


TO_MODEL: Final = (
    "Model",
    "/d/driftline-model?var-model=${__data.fields.model:percentencode}&${__url_time_range}",
)
TO_PAGE: Final = ("Page", "${page}/#/models/${__data.fields.model:percentencode}")
TO_INCIDENT: Final = (
    "Incident",
    "/d/driftline-incident?var-model=${__data.fields.model:percentencode}&var-incident=${__data.fields.id}&${__url_time_range}",
)
TO_FEATURE: Final = (
    "Feature",
    "/d/driftline-feature?var-model=${model:percentencode}&var-feature=${__data.fields.feature:percentencode}&var-size=${size}&${__url_time_range}",
)
HIDDEN: Final = {"custom.hidden": True}
PERCENT: Final = {"unit": "percentunit"}
FIRING: Final = "SELECT count() AS firing FROM shown_incidents WHERE {} AND state = 'firing'"
IN_RANGE: Final = "opened <= $__toTime_ms AND coalesce(resolved, $__toTime_ms) >= $__fromTime_ms"


def fleet() -> Json:
    """All models beside each other."""
    windows = f"FROM shown_windows WHERE {MODELS} AND {SMALLEST} AND feature = '' AND $__timeFilter_ms(start)"
    verdicts = (
        f"FROM shown_verdicts WHERE {MODELS} AND {SMALLEST} AND {JUDGED} AND $__timeFilter_ms(end)"
    )
    performance = (
        f"FROM shown_performance WHERE {MODELS} AND {SMALLEST} AND $__timeFilter_ms(start)"
    )
    worst = (
        f"SELECT end AS time, model, {RATIO} {verdicts} GROUP BY time, model ORDER BY time, model"
    )
    overview = (
        "SELECT model, worst, feature, firing, events, labelled, versions, last_window FROM "
        f"(SELECT model, sum(n) AS events, uniqExact(version) AS versions, max(start) AS last_window {windows} GROUP BY model) AS w "
        f"LEFT JOIN (SELECT model, max(value / nullIf(`limit`, 0)) AS worst, argMax(feature, value / nullIf(`limit`, 0)) AS feature {verdicts} GROUP BY model) AS v USING model "
        f"LEFT JOIN (SELECT model, count() AS firing FROM shown_incidents WHERE {MODELS} AND state = 'firing' GROUP BY model) AS i USING model "
        f"LEFT JOIN (SELECT model, sum(labelled) / nullIf(sum(predictions), 0) AS labelled {performance} GROUP BY model) AS p USING model "
        "ORDER BY firing DESC, worst DESC, model LIMIT 500"
    )
    colored = {"custom.cellOptions": {"type": "color-text"}, "thresholds": steps(NEAR), **PERCENT}
    return dashboard(
        "fleet",
        "all models",
        "Every model on one page: which of them drift, how much they are asked, which incidents are open.",
        [
            stat(
                "Models",
                "Models that are known, whatever the time range.",
                rows(f"SELECT uniqExact(model) AS models FROM shown_models WHERE {MODELS}"),
            ),
            stat(
                "Firing incidents",
                "Incidents that are open now, whatever the time range.",
                rows(FIRING.format(MODELS)),
                thresholds=RED_AT_1,
            ),
            stat(
                "Predictions",
                "Events in the closed windows of the range, late ones included.",
                rows(f"SELECT sum(n) AS events {windows}"),
            ),
            stat(
                "Labelled",
                "Share of the range's predictions whose truth is known.",
                rows(
                    f"SELECT sum(labelled) / nullIf(sum(predictions), 0) AS labelled {performance}"
                ),
                "percentunit",
            ),
            table(
                "Models, worst first",
                "Each model in the range: its worst statistic as a share of the limit, and of which feature; incidents that fire now; predictions; the share that is labelled. A name leads on.",
                rows(overview),
                overrides=[
                    linked("model", TO_MODEL, TO_PAGE),
                    override("worst", {**colored, "displayName": "worst, of its limit"}),
                    override(
                        "firing",
                        {
                            "custom.cellOptions": {"type": "color-text"},
                            "thresholds": steps(RED_AT_1),
                        },
                    ),
                    override("labelled", PERCENT),
                ],
            ),
            history(
                "Models over time",
                "A row a model: green while its worst statistic is below half of its limit, yellow near it, red over it.",
                sql(worst),
            ),
            row("Over time"),
            lines(
                "How close to the limit",
                "The worst statistic of each model as a share of its limit. Above the line at 1 it counts as drift.",
                sql(worst),
                unit="percentunit",
                min=0,
                thresholds=steps([("transparent", None), ("red", 1)]),
            ),
            lines(
                "Predictions a window",
                "Events of each closed window of a model's smallest size; late ones are added to their window.",
                sql(
                    f"SELECT start AS time, model, sum(n) AS events {windows} GROUP BY time, model ORDER BY time, model"
                ),
                unit="short",
                min=0,
            ),
            lines(
                "Requests with an error",
                "Share of each window's predictions that came with an error.",
                sql(
                    f"SELECT start AS time, model, sum(errors) / nullIf(sum(n), 0) AS share {windows} GROUP BY time, model ORDER BY time, model"
                ),
                unit="percentunit",
                min=0,
            ),
            lines(
                "Labelled",
                "Share of each window's predictions that are labelled, by model.",
                sql(
                    f"SELECT start AS time, model, sum(labelled) / nullIf(sum(predictions), 0) AS labelled {performance} GROUP BY time, model ORDER BY time, model"
                ),
                unit="percentunit",
                min=0,
                max=1,
            ),
            row("Incidents"),
            lines(
                "Incidents opened a day",
                "By cause, on the day (UTC) that they opened.",
                sql(
                    f"SELECT toStartOfDay(opened) AS time, cause, count() AS incidents FROM shown_incidents WHERE {MODELS} AND $__timeFilter_ms(opened) GROUP BY time, cause ORDER BY time, cause"
                ),
                unit="short",
                bars=True,
                min=0,
                calcs=["sum"],
            ),
            table(
                "Open in the range",
                "Incidents that were open within the range, newest first. A title leads on.",
                rows(
                    f"SELECT opened, state, severity, cause, model, title, id FROM shown_incidents WHERE {MODELS} AND {IN_RANGE} ORDER BY opened DESC, id LIMIT 200"
                ),
                width=12,
                overrides=[
                    linked("title", TO_INCIDENT),
                    linked("model", TO_MODEL, TO_PAGE),
                    override("id", HIDDEN),
                ],
            ),
        ],
        variables=[
            DATASOURCE,
            variable("model", "Model", MODEL_VARIABLE["definition"], multi=True),
        ],
        annotations=[
            incidents_marked(MODELS, "concat(model, ': ', title)"),
            releases_marked(f"{MODELS} AND {SMALLEST}", "model, ': version '"),
        ],
        page="",
    )


def model() -> Json:
    """One model, from its drift to its incidents."""
    scope = f"FROM shown_verdicts WHERE {PLACE}"
    newest = f"{scope} AND source = 'window' AND end = (SELECT max(end) FROM shown_verdicts WHERE {PLACE} AND source = 'window' AND $__timeFilter_ms(end))"
    windows = f"FROM shown_windows WHERE {PLACE}"
    performance = f"FROM shown_performance WHERE {PLACE}"
    ratios = sql(
        f"SELECT end AS time, feature, {RATIO} {scope} AND {JUDGED} AND $__timeFilter_ms(end) GROUP BY time, feature ORDER BY time, feature"
    )
    has = "mapContains(metrics, ${metric:singlequote}) AND $__timeFilter_ms(start)"
    measured = f"max(metrics[${{metric:singlequote}}]) AS value {performance} AND {has} GROUP BY time, series ORDER BY time, series"
    guessed = "source = 'window' AND statistic = concat('estimated_', ${metric:singlequote}) AND $__timeFilter_ms(start)"
    return dashboard(
        "model",
        "a model",
        "Drift against its limits, performance, traffic and incidents of one model.",
        [
            stat(
                "Firing incidents",
                "Incidents of the model that are open now, whatever the time range.",
                rows(FIRING.format(MODEL)),
                thresholds=RED_AT_1,
            ),
            stat(
                "Over their limit",
                "Statistics over their limit in the newest window of the range.",
                rows(f"SELECT countIf(status = 'breach') AS breaches {newest}"),
                thresholds=[("green", None), ("orange", 1)],
            ),
            stat(
                "Predictions",
                "Events in the closed windows of the range, late ones included.",
                rows(
                    f"SELECT sum(n) AS events {windows} AND feature = '' AND $__timeFilter_ms(start)"
                ),
            ),
            stat(
                "Labelled",
                "Share of the range's predictions whose truth is known.",
                rows(
                    f"SELECT sum(labelled) / nullIf(sum(predictions), 0) AS labelled {performance} AND $__timeFilter_ms(start)"
                ),
                "percentunit",
            ),
            row("Drift"),
            lines(
                "How close to the limit",
                "The worst statistic of each feature as a share of its limit. Above the line at 1 it counts as drift.",
                ratios,
                unit="percentunit",
                width=24,
                min=0,
                thresholds=steps([("transparent", None), ("red", 1)]),
            ),
            history(
                "Features over time",
                "A row a feature: green below half of its limit, yellow near it, red over it.",
                ratios,
            ),
            _statistic(),
            table(
                "Newest window, worst first",
                "Every statistic of the newest window of the range. A feature leads on.",
                rows(
                    f"SELECT feature, statistic, kind, status, value, `limit`, value / nullIf(`limit`, 0) AS ratio, n, end {newest} ORDER BY status = 'breach' DESC, ratio DESC LIMIT 200"
                ),
                width=12,
                overrides=[override("ratio", PERCENT), linked("feature", TO_FEATURE)],
            ),
            lines(
                "Missing and malformed values",
                "Share of each feature's values that are missing, not finite or of a wrong type; features without any are left out.",
                sql(
                    f"SELECT start AS time, feature, sum(missing + `nan` + pos_inf + neg_inf + wrong_type) / nullIf(sum({VALUES}), 0) AS share {windows} AND feature != '' AND $__timeFilter_ms(start) GROUP BY time, feature HAVING share > 0 ORDER BY time, feature"
                ),
                unit="percentunit",
                min=0,
                max=1,
            ),
            lines(
                "Mean of $feature",
                "Mean of the feature's values, by version. Empty for categories.",
                sql(
                    f"SELECT start AS time, {VERSIONED} AS series, sum(mean * n) / nullIf(sumIf(n, mean IS NOT NULL), 0) AS value {windows} AND {FEATURE} AND $__timeFilter_ms(start) GROUP BY time, series ORDER BY time, series"
                ),
            ),
            row("Performance"),
            lines(
                "$metric",
                "Performance on the labelled predictions of each window, by version. Windows whose labels are not all there yet are shown as they stand.",
                sql(f"SELECT start AS time, {VERSIONED} AS series, {measured}"),
            ),
            lines(
                "Labels: share and delay",
                "Share of each window's predictions that are labelled (left), and how long their labels took (right).",
                sql(
                    f"SELECT start AS time, sum(labelled) / nullIf(sum(predictions), 0) AS labelled {performance} AND $__timeFilter_ms(start) GROUP BY time ORDER BY time"
                ),
                sql(
                    f"SELECT start AS time, max(label_delay_p50_ms) AS median, max(label_delay_p95_ms) AS p95 {performance} AND $__timeFilter_ms(start) GROUP BY time ORDER BY time"
                ),
                unit="ms",
                overrides=[
                    override(
                        "labelled", {**PERCENT, "custom.axisPlacement": "left", "min": 0, "max": 1}
                    ),
                    override("median|p95", {"custom.axisPlacement": "right"}, like=True),
                ],
            ),
            lines(
                "$metric: measured, estimated, and how far off the estimate was",
                "What labels say of each window, and, dashed, what was expected from its scores when it closed. Bars, on the right: how far the two are apart, once the labels were due; their mean is the estimate's error. Accuracy, precision, recall, F1 and the base rate are estimated.",
                sql(
                    f"SELECT start AS time, concat('version ', version, ', measured') AS series, {measured}"
                ),
                sql(
                    f"SELECT start AS time, concat('version ', version, ', estimated') AS series, max(value) AS value {scope} AND {guessed} GROUP BY time, series ORDER BY time, series"
                ),
                sql(
                    "SELECT start AS time, concat('version ', version, ', off by') AS series, abs(measured - estimate) AS value FROM "
                    f"(SELECT version, start, metrics[${{metric:singlequote}}] AS measured {performance} AND {has} AND final) AS p INNER JOIN "
                    f"(SELECT version, start, value AS estimate {scope} AND {guessed}) AS v USING (version, start) ORDER BY time, series"
                ),
                width=24,
                calcs=["lastNotNull", "mean"],
                overrides=[
                    dashed("estimated"),
                    override(
                        "off by",
                        {
                            "custom.drawStyle": "bars",
                            "custom.fillOpacity": 30,
                            "custom.axisPlacement": "right",
                            "min": 0,
                        },
                        like=True,
                    ),
                ],
            ),
            row("Traffic and incidents"),
            lines(
                "Predictions a window",
                "Events of each closed window, by version; late ones are added to their window.",
                sql(
                    f"SELECT start AS time, {VERSIONED} AS series, sum(n) AS events {windows} AND feature = '' AND $__timeFilter_ms(start) GROUP BY time, series ORDER BY time, series"
                ),
                unit="short",
                bars=True,
                min=0,
            ),
            table(
                "Incidents",
                "Incidents that were open within the range, newest first. A title leads on.",
                rows(
                    f"SELECT opened, resolved, state, severity, cause, advice, version, title, model, id FROM shown_incidents WHERE {MODEL} AND {IN_RANGE} ORDER BY opened DESC, id LIMIT 200"
                ),
                width=12,
                overrides=[linked("title", TO_INCIDENT), override("id|model", HIDDEN, like=True)],
            ),
        ],
        variables=[
            DATASOURCE,
            *PLACE_VARIABLES,
            FEATURE_VARIABLE,
            STATISTIC_VARIABLE,
            METRIC_VARIABLE,
        ],
        annotations=OF_MODEL,
        page="#/models/${model:percentencode}?size=${size}&statistic=${statistic:percentencode}&metric=${metric:percentencode}",
    )


def _statistic() -> Json:
    of = f"FROM shown_verdicts WHERE {PLACE} AND {FEATURE} AND statistic = ${{statistic:singlequote}} AND $__timeFilter_ms(end) GROUP BY time, series ORDER BY time, series"
    red = {
        "color": {"mode": "fixed", "fixedColor": "red"},
        "custom.lineStyle": {"fill": "dash", "dash": [8, 8]},
    }
    return lines(
        "$statistic of $feature",
        "One statistic against its limit, by version. The limit moves with the number of events.",
        sql(f"SELECT end AS time, {VERSIONED} AS series, max(value) AS value {of}"),
        sql(f"SELECT end AS time, 'limit' AS series, min(`limit`) AS value {of}"),
        overrides=[override("limit", red, like=True)],
    )


def feature() -> Json:
    """One feature: what it is now beside what it was in the reference."""
    windows = f"FROM shown_windows WHERE {PLACE} AND {FEATURE} AND $__timeFilter_ms(start)"
    verdicts = f"FROM shown_verdicts WHERE {PLACE} AND {FEATURE}"

    def beside(kind: str) -> str:
        """Counts of the newest binning that the range has, and the reference's."""
        return (
            "(SELECT b.edges AS edges, b.labels AS labels, b.counts AS expected, w.counts AS seen "
            f"FROM (SELECT bins_id, sumForEach(counts) AS counts {windows} GROUP BY bins_id) AS w "
            f"INNER JOIN (SELECT bins_id, edges, labels, counts, revision FROM shown_bins WHERE {MODEL} AND {FEATURE} AND kind = '{kind}') AS b USING bins_id "
            "ORDER BY b.revision DESC LIMIT 1)"
        )

    def share(counts: str) -> str:
        """Fine bins are of equal mass and a bar of equal width: each gives it the part of itself that lies there. What is open at an end stands beside it."""
        part = "greatest(0, least(xMax, edges[i + 1]) - greatest(xMin, edges[i])) / (edges[i + 1] - edges[i])"
        inside = f"arraySum(i -> {counts}[i + 1] * {part}, range(1, length(edges)))"
        return f"multiIf(bar = 0, {counts}[1], bar = {BARS + 1}, {counts}[-1], {inside}) / nullIf(arraySum({counts}), 0)"

    histogram = (
        f"SELECT edges[1] + (bar - 1) * width AS xMin, edges[1] + bar * width AS xMax, {share('expected')} AS reference, {share('seen')} AS current "
        f"FROM (SELECT *, if(edges[-1] > edges[1], (edges[-1] - edges[1]) / {BARS}, 1) AS width FROM {beside('numeric')}) ARRAY JOIN range(0, {BARS + 2}) AS bar ORDER BY bar"
    )
    categories = (
        "SELECT each.1 AS category, each.2 / nullIf(sum(each.2) OVER (), 0) AS reference, each.3 / nullIf(sum(each.3) OVER (), 0) AS current "
        f"FROM (SELECT arrayJoin(arrayZip(arrayPushBack(labels, 'other'), expected, seen)) AS each FROM {beside('categorical')}) "
        "ORDER BY greatest(reference, current) DESC, category LIMIT 40"
    )
    reference = f"FROM shown_bins WHERE {MODEL} AND {FEATURE} AND mean IS NOT NULL"
    kinds = ("missing", "nan", "pos_inf", "neg_inf", "wrong_type", "below", "above", "off_grid")
    sums = ", ".join(f"sum(`{kind}`) AS {kind}_n" for kind in kinds)
    shares = ", ".join(f"{kind}_n / nullIf(total, 0) AS `{kind}`" for kind in kinds)
    legend = {"displayMode": "list", "placement": "bottom", "calcs": [], "showLegend": True}
    tooltip = {"mode": "multi", "sort": "none"}
    return dashboard(
        "feature",
        "a feature",
        "How one feature, or the prediction or score, is distributed now and was in the reference, and what was judged of it.",
        [
            stat(
                "Values",
                "Values in the closed windows of the range.",
                rows(f"SELECT sum(n) AS events {windows}"),
            ),
            stat(
                "Worst, of its limit",
                "The worst statistic of the feature in the range, as a share of its limit.",
                rows(f"SELECT {RATIO} {verdicts} AND {JUDGED} AND $__timeFilter_ms(end)"),
                "percentunit",
                NEAR,
            ),
            stat(
                "Missing",
                "Share of the range's values that are missing.",
                rows(f"SELECT sum(missing) / nullIf(sum({VALUES}), 0) AS share {windows}"),
                "percentunit",
            ),
            stat(
                "New categories",
                "Different values that the reference does not have, as far as they were noted: a hint, and no count.",
                rows(f"SELECT uniqExactArray(mapKeys(unseen)) AS unseen {windows}"),
            ),
            row("Distribution in the range, and in the reference"),
            panel(
                "histogram",
                "$feature: the range and the reference",
                f"Share of values in {BARS} bars of equal width; what is beyond the reference's outer edges stands in a bar beside them. Empty for categories.",
                [rows(histogram)],
                width=12,
                height=10,
                unit="percentunit",
                options={"combine": False, "legend": legend, "tooltip": tooltip},
                defaults={"custom": {"lineWidth": 1, "fillOpacity": 40}},
            ),
            panel(
                "barchart",
                "Categories of $feature: the range and the reference",
                "Share of values in each category, the most frequent first; other is what the reference does not name. Empty for numbers.",
                [rows(categories)],
                width=12,
                height=10,
                unit="percentunit",
                options={
                    "xField": "category",
                    "orientation": "horizontal",
                    "showValue": "never",
                    "stacking": "none",
                    "groupWidth": 0.7,
                    "barWidth": 0.9,
                    "barRadius": 0,
                    "fullHighlight": False,
                    "xTickLabelRotation": 0,
                    "xTickLabelSpacing": 0,
                    "legend": legend,
                    "tooltip": tooltip,
                },
                defaults={"custom": {"lineWidth": 0, "fillOpacity": 80}, "min": 0},
            ),
            row("Over time"),
            lines(
                "Statistics of $feature",
                "Each statistic as a share of its limit. Above the line at 1 it counts as drift.",
                sql(
                    f"SELECT end AS time, statistic, {RATIO} {verdicts} AND {JUDGED} AND $__timeFilter_ms(end) GROUP BY time, statistic ORDER BY time, statistic"
                ),
                unit="percentunit",
                min=0,
                thresholds=steps([("transparent", None), ("red", 1)]),
            ),
            _statistic(),
            lines(
                "Mean and standard deviation of $feature",
                "Of each window, by version; dashed, those of the reference. Empty for categories.",
                sql(
                    f"SELECT start AS time, {VERSIONED} AS series, sum(m * n) / sum(n) AS average, sqrt(greatest(0, sum((v + m * m) * n) / sum(n) - average * average)) AS deviation FROM (SELECT start, version, n, assumeNotNull(mean) AS m, assumeNotNull(variance) AS v {windows} AND mean IS NOT NULL AND n > 0) GROUP BY time, series ORDER BY time, series"
                ),
                sql(
                    f"SELECT arrayJoin([$__fromTime_ms, $__toTime_ms]) AS time, 'reference' AS series, argMax(mean, revision) AS average, sqrt(argMax(variance, revision)) AS deviation {reference} GROUP BY time, series ORDER BY time, series"
                ),
                overrides=[dashed("reference")],
            ),
            lines(
                "What is not in a bin, and what is outside",
                "Shares of the values: missing, not finite, of a wrong type; below and above the reference's range, and off its grid.",
                sql(
                    f"SELECT time, {shares} FROM (SELECT start AS time, sum({VALUES}) AS total, {sums} {windows} GROUP BY time) ORDER BY time"
                ),
                unit="percentunit",
                min=0,
            ),
            table(
                "Verdicts, newest first",
                "What was judged of the feature within the range.",
                rows(
                    f"SELECT end, version, statistic, kind, status, value, `limit`, value / nullIf(`limit`, 0) AS ratio, p_value, n {verdicts} AND $__timeFilter_ms(end) ORDER BY end DESC, status = 'breach' DESC, ratio DESC LIMIT 200"
                ),
                width=16,
                overrides=[override("ratio", PERCENT)],
            ),
            table(
                "New categories",
                "Values that the reference does not have, as far as they were noted: a hint, and no count.",
                rows(
                    f"SELECT each.1 AS category, sum(each.2) AS events, min(start) AS first, max(start) AS last FROM (SELECT start, arrayJoin(CAST(unseen, 'Array(Tuple(String, UInt64))')) AS each {windows}) GROUP BY category ORDER BY events DESC, category LIMIT 50"
                ),
                width=8,
            ),
        ],
        variables=[DATASOURCE, *PLACE_VARIABLES, FEATURE_VARIABLE, STATISTIC_VARIABLE],
        annotations=OF_MODEL,
        page="#/models/${model:percentencode}/features/${feature:percentencode}?size=${size}&statistic=${statistic:percentencode}",
    )


def incident() -> Json:
    """One incident: what it is, on what evidence, and who was told."""
    this = f"FROM shown_incidents WHERE {MODEL} AND id = ${{incident:singlequote}}"
    evidence = f"(SELECT arrayJoin(JSONExtract(body, 'evidence', 'Array(Tuple(kind String, version String, segment String, feature String, statistic String, value Nullable(Float64), `limit` Nullable(Float64), start_ms Int64, end_ms Int64, note String))')) AS e {this})"
    named = f"(SELECT e.feature, e.statistic, e.segment FROM {evidence})"
    series = f"FROM shown_verdicts WHERE {MODEL} AND (feature, statistic, segment) IN {named} AND status != 'no_data' AND $__timeFilter_ms(end)"
    return dashboard(
        "incident",
        "an incident",
        "What an incident is about, its evidence and how that went on, and what was sent to whom.",
        [
            table(
                "The incident",
                "Cause and advice, in words.",
                rows(
                    f"SELECT state, severity, cause, advice, version, nullIf(JSONExtractString(body, 'rollback_to'), '') AS rollback_to, JSONExtractBool(body, 'retrain_blocked') AS retrain_blocked, onset, opened, resolved, title, JSONExtractString(body, 'reason') AS reason, model {this}"
                ),
                height=5,
                overrides=[linked("title", TO_MODEL, TO_PAGE), override("model", HIDDEN)],
            ),
            row("Evidence"),
            table(
                "Evidence",
                "Which statistic of which feature moved, where, and by how much, when the incident last changed. A feature leads on.",
                rows(
                    f"SELECT e.feature AS feature, e.statistic AS statistic, e.kind AS kind, e.version AS version, e.segment AS segment, e.value AS value, e.limit AS `limit`, e.value / nullIf(e.limit, 0) AS ratio, fromUnixTimestamp64Milli(e.start_ms) AS since, fromUnixTimestamp64Milli(e.end_ms) AS until, e.note AS note FROM {evidence} ORDER BY ratio DESC, feature, statistic"
                ),
                overrides=[
                    override("ratio", PERCENT),
                    linked(
                        "feature", (TO_FEATURE[0], TO_FEATURE[1].replace("&var-size=${size}", ""))
                    ),
                ],
            ),
            lines(
                "The evidence over time",
                "The statistics that the incident names, each as a share of its limit, in windows of all sizes. Above the line at 1 it counts as drift.",
                sql(
                    f"SELECT end AS time, concat(feature, ' ', statistic) AS series, {RATIO} {series} GROUP BY time, series ORDER BY time, series"
                ),
                unit="percentunit",
                width=24,
                min=0,
                thresholds=steps([("transparent", None), ("red", 1)]),
            ),
            row("What was done"),
            table(
                "Timeline",
                "What happened to the incident, in event time.",
                rows(
                    f"SELECT fromUnixTimestamp64Milli(t.at_ms) AS at, t.what AS what FROM (SELECT arrayJoin(JSONExtract(body, 'timeline', 'Array(Tuple(at_ms Int64, what String))')) AS t {this}) ORDER BY at"
                ),
                width=12,
            ),
            table(
                "Deliveries",
                "Notifications and actions that were sent, or were to be.",
                rows(
                    "SELECT at, target, action, outcome, attempts, detail FROM shown_deliveries WHERE incident_id = ${incident:singlequote} ORDER BY at, id"
                ),
                width=12,
            ),
            row("Its model"),
            lines(
                "How close to the limit",
                "The worst statistic of each feature of the model, as a share of its limit, in its smallest windows.",
                sql(
                    f"SELECT end AS time, feature, {RATIO} FROM shown_verdicts WHERE {MODEL} AND {SMALLEST} AND {JUDGED} AND $__timeFilter_ms(end) GROUP BY time, feature ORDER BY time, feature"
                ),
                unit="percentunit",
                min=0,
                thresholds=steps([("transparent", None), ("red", 1)]),
            ),
            lines(
                "Predictions a window",
                "Events of each closed window of the model's smallest size, by version.",
                sql(
                    f"SELECT start AS time, {VERSIONED} AS series, sum(n) AS events FROM shown_windows WHERE {MODEL} AND {SMALLEST} AND feature = '' AND $__timeFilter_ms(start) GROUP BY time, series ORDER BY time, series"
                ),
                unit="short",
                bars=True,
                min=0,
            ),
        ],
        variables=[
            DATASOURCE,
            MODEL_VARIABLE,
            variable(
                "incident",
                "Incident",
                f"SELECT id AS value, concat(formatDateTime(opened, '%Y-%m-%d %H:%i'), ' ', state, ': ', title) AS text FROM shown_incidents WHERE {MODEL} ORDER BY opened DESC, id LIMIT 200",
            ),
        ],
        annotations=[incidents_marked(MODEL), releases_marked(f"{MODEL} AND {SMALLEST}")],
        page="#/incidents/${incident:percentencode}",
    )


def pipeline() -> Json:
    """Driftline itself: how much comes, how far behind it is, what fails."""

    def rate(name: str, by: str = "") -> str:
        grouped = f"sum by ({by}) " if by else "sum"
        return f"{grouped}(rate(driftline_{name}_total[$__rate_interval]))"

    def quantile(name: str, q: float, by: str = "") -> str:
        labels = f"{by}, le" if by else "le"
        return f"histogram_quantile({q}, sum by ({labels}) (rate(driftline_{name}_bucket[$__rate_interval])))"

    restarts = promql('changes(process_start_time_seconds{job="driftline"}[2m]) > 0', "{{process}}")
    return dashboard(
        "pipeline",
        "the pipeline",
        "Driftline's own processes: what comes in, how far behind they are, what fails. What is wrong with models is on the other dashboards.",
        [
            stat(
                "Processes up",
                "Processes that answer Prometheus. Six make one deployment.",
                promql('sum(up{job="driftline"})'),
                thresholds=[("red", None), ("green", 6)],
            ),
            stat(
                "Alerts firing",
                "Alerts on Driftline itself; the README says what each means.",
                promql('count(ALERTS{alertstate="firing", alertname=~"Driftline.+"}) or vector(0)'),
                thresholds=RED_AT_1,
            ),
            stat(
                "Events unaccounted",
                "Events that are neither in a window nor late nor dead letters. Has to be 0; absent while nobody knows.",
                promql("max(driftline_unaccounted_events)"),
                thresholds=RED_AT_1,
            ),
            stat(
                "Messages behind",
                "Messages between the processes' positions and the ends of their partitions.",
                promql("sum(driftline_consumer_lag_messages)"),
            ),
            table(
                "Alerts",
                "What fires now, or is about to.",
                promql('ALERTS{alertname=~"Driftline.+"}', now=True),
                height=6,
                overrides=[override("Time|Value|__name__|job|instance", HIDDEN, like=True)],
            ),
            row("What comes"),
            lines(
                "Events",
                "Predictions read, and those of them that came after their watermark.",
                promql(rate("events_consumed"), "read"),
                promql(rate("events_late"), "late"),
                unit="eps",
                width=8,
                min=0,
            ),
            lines(
                "Dead letters",
                "Messages sent to the dead letters, by who refused them and why.",
                promql(f"{rate('dead_letters', 'process, reason')} > 0", "{{process}}: {{reason}}"),
                promql(
                    f"{rate('dead_letters_dropped', 'process')} > 0", "{{process}}: beyond the cap"
                ),
                unit="eps",
                width=8,
                min=0,
            ),
            lines(
                "Labels",
                "Labels that were looked for among the predictions, by what was found, and those that were none.",
                promql(rate("labels", "fate"), "{{fate}}"),
                promql(f"{rate('labels_refused', 'reason')} > 0", "refused: {{reason}}"),
                unit="eps",
                width=8,
                min=0,
            ),
            row("How far behind"),
            lines(
                "Messages behind",
                "Messages that a process has still to make durable, by topic.",
                promql(
                    "process_topic:driftline_consumer_lag_messages:sum", "{{process}}: {{topic}}"
                ),
                unit="short",
                width=8,
                min=0,
            ),
            lines(
                "Event time behind the clock",
                "Of each partition of predictions, and of the newest window that was stored. A replay of history is as far behind as it is old.",
                promql(
                    "time() - partition:driftline_watermark_timestamp_seconds:max",
                    "partition {{partition}}",
                ),
                promql(
                    "time() - max(driftline_newest_window_end_timestamp_seconds)", "newest window"
                ),
                unit="s",
                width=8,
            ),
            lines(
                "From a window's end until it is stored",
                "Half of the windows, and all but one in twenty, were stored within this time.",
                promql(quantile("window_delay_seconds", 0.5), "median"),
                promql(quantile("window_delay_seconds", 0.95), "p95"),
                unit="s",
                width=8,
                min=0,
            ),
            row("Processes"),
            lines(
                "Since the last progress",
                "Time since each process finished its last unit of work; dashed, for how long it has had work and made none.",
                promql("time() - driftline_last_progress_timestamp_seconds > 0", "{{process}}"),
                promql("driftline_stalled_seconds > 0", "{{process}} stalled"),
                unit="s",
                width=8,
                min=0,
                overrides=[dashed(".* stalled")],
            ),
            lines(
                "Batches: p99",
                "All but one in a hundred batches took no longer.",
                promql("process:driftline_batch_duration_seconds:p99_rate5m", "{{process}}"),
                unit="s",
                width=8,
                min=0,
            ),
            lines(
                "Tried again",
                "Times that a broker or a database did not answer, and transactions that were rolled back.",
                promql(f"{rate('transient_errors', 'process')} > 0", "{{process}}"),
                promql(
                    f"{rate('transactions_aborted', 'process')} > 0", "{{process}}: rolled back"
                ),
                unit="eps",
                width=8,
                min=0,
            ),
            lines(
                "Memory",
                "Resident memory of each process.",
                promql('process_resident_memory_bytes{job="driftline"}', "{{process}}"),
                unit="bytes",
                width=8,
                min=0,
            ),
            lines(
                "CPU",
                "Cores that each process keeps busy.",
                promql(
                    'rate(process_cpu_seconds_total{job="driftline"}[$__rate_interval])',
                    "{{process}}",
                ),
                unit="short",
                width=8,
                min=0,
            ),
            lines(
                "Open panes",
                "Panes that wait for their watermark (left) and the memory that they take (right).",
                promql("sum(driftline_open_panes)", "panes"),
                promql("sum(driftline_open_panes_bytes)", "memory"),
                unit="short",
                width=8,
                min=0,
                overrides=[override("memory", {"unit": "bytes", "custom.axisPlacement": "right"})],
            ),
            row("What comes out"),
            lines(
                "Windows and verdicts",
                "Windows that closed, late corrections of closed ones, and statistics that were judged, by what was found.",
                promql(rate("windows_closed"), "windows"),
                promql(rate("windows_corrected"), "corrections"),
                promql(rate("verdicts", "status"), "verdicts: {{status}}"),
                unit="ops",
                width=8,
                min=0,
            ),
            lines(
                "Beyond a cap",
                "Events (of incidents: verdicts) beyond a cap of the detector, by cap.",
                promql(f"{rate('overflow', 'kind')} > 0", "{{kind}}"),
                unit="eps",
                width=8,
                min=0,
            ),
            lines(
                "Rows stored",
                "Rows that ClickHouse took, by table, and messages that it refused.",
                promql(rate("sink_rows", "table"), "{{table}}"),
                promql(f"{rate('sink_refused', 'table')} > 0", "refused: {{table}}"),
                unit="ops",
                width=8,
                min=0,
            ),
            lines(
                "Inserts: p99",
                "All but one in a hundred inserts took no longer.",
                promql("table:driftline_sink_insert_duration_seconds:p99_rate5m", "{{table}}"),
                unit="s",
                width=8,
                min=0,
            ),
            lines(
                "Notifications and actions that wait",
                "In the outbox, held back for a destination that does not answer, and how many of these there are.",
                promql("sum(driftline_outbox_pending)", "pending"),
                promql("sum(driftline_outbox_held)", "held"),
                promql("sum(driftline_destinations_open)", "destinations away"),
                unit="short",
                width=8,
                min=0,
            ),
            lines(
                "Deliveries",
                "Notifications and actions that are done, by what became of them.",
                promql(f"{rate('deliveries', 'outcome')} > 0", "{{outcome}}"),
                promql(rate("delivery_attempts"), "attempts"),
                unit="ops",
                width=8,
                min=0,
            ),
            lines(
                "Answers of the API",
                "Requests a second, by the class of their status.",
                promql(rate("api_requests", "status"), "{{status}}"),
                unit="reqps",
                min=0,
            ),
            lines(
                "Answers of the API: duration",
                "Half of the requests, and all but one in a hundred, took no longer.",
                promql(quantile("api_request_duration_seconds", 0.5), "median"),
                promql(quantile("api_request_duration_seconds", 0.99), "p99"),
                unit="s",
                min=0,
            ),
            row("Incidents and releases, over all models"),
            lines(
                "Firing incidents",
                "Incidents that are open now, by cause.",
                promql("max by (cause) (driftline_incidents_open) > 0", "{{cause}}"),
                unit="short",
                width=8,
                bars=True,
                min=0,
            ),
            lines(
                "Alarm budget",
                "False alarms that the budgets allow in the models' last period, and incidents that opened in it.",
                promql("max(driftline_budget_false_alarms)", "allowed"),
                promql("sum(max by (cause) (driftline_budget_incidents_opened))", "opened"),
                unit="short",
                width=8,
                min=0,
            ),
            lines(
                "Releases",
                "New versions of the models' last 30 days, those that failed, and what was asked for.",
                promql("max(driftline_deployments)", "releases"),
                promql("max(driftline_deployments_failed)", "failed"),
                promql("max(driftline_rollbacks)", "rollbacks"),
                promql("max(driftline_retrains)", "retrains"),
                unit="short",
                width=8,
                min=0,
            ),
        ],
        variables=[METRICS_SOURCE],
        annotations=[
            annotation("Restarts", "orange", {**restarts, "titleFormat": "{{process}} started"})
        ],
        page="#/pipeline",
    )


ALL: Final = (fleet(), model(), feature(), incident(), pipeline())


def written(one: Json) -> str:
    """A dashboard as its file has it."""
    return json.dumps(one, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in ALL:
        (FOLDER / f"{each['uid'].removeprefix('driftline-')}.json").write_text(written(each))
