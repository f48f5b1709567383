// The page: asks the API every few seconds and draws what it says. Choices live in the address, so a link shows what was seen.

import { bins, duration, el, empty, heatLegend, heatMap, lines, number, table, time } from "./draw.js";

const EVERY_MS = 5000;
const DAY_MS = 86_400_000;
const STATISTICS = ["psi", "ks", "missing", "wrong_type", "non_finite", "off_grid", "unseen", "out_of_range"];
// What a window says of its requests: words, and the value of a row.
const JUDGED = 30; // of the newest windows, by which estimates are judged
const SERVICE = {
  latency_p50: ["latency p50, ms", (row) => row.latency_p50],
  latency_p95: ["latency p95, ms", (row) => row.latency_p95],
  latency_p99: ["latency p99, ms", (row) => row.latency_p99],
  requests: ["requests per second", (row) => (1000 * row.n) / row.size_ms],
  request_error_rate: ["request error rate", (row) => row.errors / row.n],
};
const CAUSES = {
  pipeline_fault: "Pipeline fault", benign_shift: "Benign shift", drift: "Drift", concept_drift: "Concept drift",
  bad_release: "Bad release", outage: "Outage", unknown: "Unknown cause",
};
const ADVICE = {
  fix_data: "Fix the data", watch: "Watch", retrain: "Retrain", rollback: "Roll back", page: "Call someone", investigate: "Investigate",
};

const $ = (id) => document.getElementById(id);
const choices = new URLSearchParams(location.hash.slice(1));
const opened = new Set(); // incidents that the reader has open: a refresh must not close them
let shownCell = null;
let grafana = null; // where the dashboards are, if the API says so with the models

class KeyNeeded extends Error {}

// A token of an issuer has three parts. A key goes beside what a proxy may ask for in Authorization.
const credential = (key) => (!key ? {} : key.split(".").length === 3 ? { Authorization: `Bearer ${key}` } : { "X-API-Key": key });

async function ask(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  const key = sessionStorage.getItem("driftline-key");
  const answer = await fetch(`${path}?${query}`, { headers: credential(key) });
  if (answer.status === 401) throw new KeyNeeded();
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail ?? answer.statusText);
  grafana = /^<([^>]+)>; rel="related"; title="Grafana"$/.exec(answer.headers.get("Link") ?? "")?.[1] ?? grafana;
  return body;
}

// A link to one of grafana/dashboards, or nothing; times in epoch milliseconds.
function board(name, model, from, to, variables = {}) {
  const query = new URLSearchParams({ "var-model": model, ...variables, from, to });
  return grafana && el("a", { href: `${grafana}/d/driftline-${name}?${query}`, target: "_blank", rel: "noopener" }, "Grafana");
}

const modelPath = (model) => `/api/v1/models/${encodeURIComponent(model)}`;

function options(id, values, words = String) {
  const select = $(id);
  const wanted = choices.get(id);
  const chosen = values.some((value) => String(value) === wanted) ? wanted : String(values[0] ?? "");
  const now = [...select.options].map((option) => option.value).join("\n");
  if (now !== values.join("\n")) {
    select.replaceChildren(...values.map((value) => el("option", { value }, words(value))));
  }
  select.value = chosen;
  return chosen;
}

function choose(id, value) {
  choices.set(id, value);
  history.replaceState(null, "", `#${choices}`);
  refresh();
}

function tiles(model, incidents, ledger) {
  const firing = incidents.filter((incident) => incident.state === "firing").length;
  const tile = (words, value, kind = "") => el("div", { class: `tile ${kind}` }, el("b", {}, value), el("span", {}, words));
  $("tiles").replaceChildren(
    tile("incidents open", number(firing), firing ? "bad" : "good"),
    tile("events read", number(ledger.total.events)),
    tile("events unaccounted", number(ledger.total.unaccounted), ledger.total.unaccounted ? "bad" : "good"),
    tile(model.versions.length === 1 ? "version" : "versions", model.versions.join(", ") || "–"),
    tile(model.bins_id ? "last window ends (UTC)" : "calibrating itself", model.bins_id ? time(model.last_ms) : "no reference yet"),
  );
}

function incidentCard(incident, deliveries) {
  const mine = deliveries.filter((delivery) => delivery.incident_id === incident.id);
  const until = (incident.reopened_ms ? `, again ${time(incident.reopened_ms)}` : "") + (incident.resolved_ms ? `, resolved ${time(incident.resolved_ms)}` : "");
  const advice = `${ADVICE[incident.advice] ?? incident.advice}${incident.rollback_to ? ` to version ${incident.rollback_to}` : ""}${incident.retrain_blocked ? "; retrain is blocked" : ""}`;
  const evidence = [["Feature", (e) => e.feature || "–"], ["Statistic", (e) => e.statistic], ["Version", (e) => e.version], ["Segment", (e) => e.segment || "all"],
    ["Value", (e) => number(e.value), "n"], ["Limit", (e) => number(e.limit), "n"], ["Which values", (e) => e.note, "text"], ["From (UTC)", (e) => time(e.start_ms)]];
  const sent = [["Target", (d) => d.target], ["Action", (d) => d.action], ["Outcome", (d) => d.outcome], ["Attempts", (d) => d.attempts, "n"], ["At (UTC)", (d) => time(d.at_ms)]];
  return el("details", { class: incident.state, open: opened.has(incident.id) ? "" : null, toggle: (event) => opened[event.target.open ? "add" : "delete"](incident.id) },
    el("summary", {}, el("span", { class: `chip ${incident.state}` }, incident.state), el("strong", {}, incident.title),
      el("span", { class: "meta" }, `${CAUSES[incident.cause] ?? incident.cause} · ${advice} · since ${time(incident.onset_ms)}, found ${time(incident.opened_ms)}${until} (UTC)`)),
    el("p", {}, incident.reason, " ", board("incident", incident.model, incident.onset_ms - DAY_MS, (incident.resolved_ms ?? incident.updated_ms) + DAY_MS, { "var-incident": incident.id })),
    el("h3", {}, "Timeline"), table([["At (UTC)", (t) => time(t.at_ms)], ["What", (t) => t.what, "text"]], incident.timeline),
    el("h3", {}, "Evidence"), el("div", { class: "scroll" }, table(evidence, incident.evidence)),
    el("h3", {}, "Deliveries"), mine.length ? el("div", { class: "scroll" }, table(sent, mine)) : empty("Nothing was sent."));
}

function incidents(found, deliveries) {
  const order = { firing: 0, pending: 1, resolved: 2 };
  const sorted = [...found].sort((a, b) => order[a.state] - order[b.state] || b.opened_ms - a.opened_ms);
  $("incidents").replaceChildren(...(sorted.length ? sorted.map((incident) => incidentCard(incident, deliveries)) : [empty("None. Quiet is good.")]));
}

// When each version began to serve, for charts of windows of one size: a mark stands where the first of them begins.
function releases(versions, size) {
  return [...versions].reverse().map(({ version, first_ms, requests }) => ({
    x: Math.floor(first_ms / size) * size, name: `version ${version}`, note: `version ${version} serves since ${time(first_ms)} UTC, ${number(requests)} requests so far`,
  }));
}

async function drift(model, versions) {
  const statistic = options("statistic", STATISTICS);
  const size = Number(options("size", [...model.sizes_ms].sort((a, b) => a - b), (ms) => duration(Number(ms))));
  const version = options("version", model.versions);
  const { items } = await ask(`${modelPath(model.model)}/verdicts`, { statistic, version });
  const cells = items.filter((v) => v.segment === "" && v.size_ms === size && v.feature)
    .map((v) => ({ ...v, ratio: v.value === null || !v.limit ? null : v.value / v.limit }));
  if (!cells.length) {
    $("legend").replaceChildren();
    $("heat").replaceChildren(empty(model.bins_id ? "Nothing was judged yet." : "The model calibrates itself: its first events become the reference."));
    return;
  }
  const first = $("heat").querySelector("rect") === null;
  const scrolled = $("heat").scrollLeft;
  $("heat").replaceChildren(heatMap(cells, (cell) => { shownCell = { model: model.model, cell }; distribution(); }, releases(versions, size)));
  $("heat").scrollLeft = first ? $("heat").scrollWidth : scrolled; // on a phone the latest windows are the first thing to see
  $("legend").replaceChildren(heatLegend());
}

async function distribution() {
  if (!shownCell) return;
  const { model, cell } = shownCell;
  const title = el("h3", {}, `${cell.feature}, window of ${duration(cell.size_ms)} from ${time(cell.start_ms)} UTC, version ${cell.version}`);
  try {
    const shown = await ask(`${modelPath(model)}/features/${encodeURIComponent(cell.feature)}`, { version: cell.version, size_ms: cell.size_ms, start_ms: cell.start_ms });
    const unseen = Object.keys(shown.unseen).slice(0, 5).join(", ");
    const beside = board("feature", model, cell.start_ms, cell.start_ms + cell.size_ms, { "var-feature": cell.feature, "var-size": cell.size_ms, "var-version": cell.version });
    $("distribution").replaceChildren(title, el("p", { class: "hint" }, `Wide bars: reference. Narrow bars: this window, ${number(shown.n)} values.${shown.elsewhere ? ` The reference changed in it: ${number(shown.elsewhere)} values more are in the bins of the one before.` : ""}${unseen ? ` Never seen before: ${unseen}.` : ""} `, beside), el("div", { class: "scroll" }, bins(shown)));
  } catch (error) {
    $("distribution").replaceChildren(title, empty(error.message));
  }
}

// Of the windows of a version, in the order given; `point` says what is shown of one.
const pointsOf = (rows, version, point) => rows.filter((row) => row.version === version).map((row) => ({ x: row.start_ms, ...point(row) }));

// How far the newest estimates were off, of windows whose labels were due; `rows` are in the order of time.
function judged(rows) {
  const known = rows.filter((row) => row.final && row.error !== null).slice(-JUDGED);
  if (!known.length) return "";
  const off = known.reduce((sum, row) => sum + Math.abs(row.error), 0) / known.length;
  const inside = known.filter((row) => row.low <= row.realised && row.realised <= row.high).length;
  return `The estimate was off by ${points(off)} on average over the last ${known.length} windows whose labels were due; in ${inside} of them the labels were in its band.`;
}

const points = (share) => `${(100 * share).toFixed(1)} points`;

async function performance(model, served) {
  const { items } = await ask(`${modelPath(model.model)}/performance`);
  const metrics = [...new Set(items.flatMap((row) => Object.keys(row.metrics)))].sort();
  const metric = options("metric", metrics);
  const sizes = [...new Set(items.map((row) => row.size_ms))];
  const size = sizes.includes(Number($("size").value)) ? Number($("size").value) : Math.max(...sizes, 0);
  const rows = items.filter((row) => row.size_ms === size && row.segment === "" && row.metrics[metric] !== undefined).sort((a, b) => a.start_ms - b.start_ms);
  const estimated = (await ask(`${modelPath(model.model)}/estimates`, { metric, ...(size ? { size_ms: size } : {}) })).items.sort((a, b) => a.start_ms - b.start_ms);
  const versions = [...new Set([...rows, ...estimated].map((row) => row.version))].sort();
  const between = (low, high) => `${number(low)} to ${number(high)}`;
  const said = (row) => `${number(row.labelled)} of ${number(row.predictions)} labelled${row.intervals[metric] ? `; 95 %: ${between(...row.intervals[metric])}` : ""}`;
  // An estimate is a dashed line behind what the labels say, in the colour of its version.
  const series = versions.flatMap((version, color) => [
    { name: `version ${version}, estimated`, dashed: true, color, points: pointsOf(estimated, version, (row) => ({ y: row.estimate, note: `estimate; ${between(row.low, row.high)}${row.error === null ? "" : `; labels say ${number(row.realised)}, ${points(Math.abs(row.error))} ${row.error < 0 ? "less" : "more"}`}` })) },
    { name: `version ${version}`, color, points: pointsOf(rows, version, (row) => ({ y: row.metrics[metric], note: said(row) })) },
  ]).filter((one) => one.points.length);
  $("estimated").textContent = judged(estimated);
  $("performance").replaceChildren(series.length ? lines(series, { label: `${metric} by version over time`, marks: releases(served, size) }) : empty("No labels have come yet."));
}

async function service(model, versions) {
  const [words, value] = SERVICE[options("service", Object.keys(SERVICE), (name) => SERVICE[name][0])];
  const { items } = await ask(`${modelPath(model.model)}/windows`, { size_ms: $("size").value });
  const rows = items.filter((row) => row.n > 0 && value(row) !== null).sort((a, b) => a.start_ms - b.start_ms);
  const series = [...new Set(rows.map((row) => row.version))].sort().map((version) => ({
    name: `version ${version}`,
    points: pointsOf(rows, version, (row) => ({ y: value(row), note: `${number(row.n)} requests` })),
  }));
  $("requests").replaceChildren(series.length ? lines(series, { label: `${words} by version over time`, marks: releases(versions, Number($("size").value)) }) : empty("No window has it yet."));
}

function ledger(report) {
  const count = (name, words = name) => [words, (row) => number(row[name]), "n"];
  const columns = [["Partition", (row) => row.partition], ["Offsets", (row) => (row.end === undefined ? "" : `${number(row.start)} – ${number(row.end)}`)], count("events"), count("on_time", "on time"), count("late"),
    count("dead", "dead letters"), count("calibrating"), count("pending"), count("unaccounted")];
  const total = { ...report.total, partition: "total" };
  $("ledger").replaceChildren(report.rows.length ? table(columns, [...report.rows, total]) : empty("No events yet."),
    ...report.holes.map((hole) => el("p", { class: "hint" }, `Partition ${hole.partition}: offsets ${hole.start} to ${hole.end} were passed: ${hole.reason}`)));
}

async function draw() {
  const [{ items: models }, report] = await Promise.all([ask("/api/v1/models"), ask("/api/v1/ledger")]);
  const name = options("model", models.map((model) => model.model));
  const model = models.find((one) => one.model === name);
  if (!model) {
    $("status").textContent = report.total.calibrating > 0
      ? `${number(report.total.events)} events read; a new model appears after its first 5,000`
      : "no model yet: write a prediction to Kafka, or run driftline apply";
    return;
  }
  const [found, sent] = await Promise.all([ask("/api/v1/incidents", { model: name, limit: 100 }), ask("/api/v1/deliveries")]);
  $("main").hidden = false;
  tiles(model, found.items, report);
  incidents(found.items, sent.items);
  ledger(report);
  const { items: versions } = await ask(`${modelPath(name)}/versions`);
  await drift(model, versions);
  await performance(model, versions);
  await service(model, versions);
  const size = Number($("size").value);
  const here = model.last_ms && board("model", name, model.last_ms - 100 * size, model.last_ms, { "var-size": size });
  $("elsewhere").replaceChildren(...(here ? [here] : []));
  $("status").textContent = `updated ${new Date().toISOString().slice(11, 19)} UTC`;
}

let drawing = false, again = false;

async function refresh() {
  again = drawing;
  if (drawing) return;
  drawing = true;
  try {
    await draw();
    $("status").className = "";
    $("login").hidden = true;
  } catch (error) {
    $("status").className = "bad";
    $("status").textContent = error instanceof KeyNeeded ? "the API asks for a key or a token" : `not updated: ${error.message}`;
    if (error instanceof KeyNeeded) $("login").hidden = false;
  } finally {
    drawing = false;
  }
  if (again) refresh();
}

for (const id of ["model", "statistic", "size", "version", "metric", "service"]) {
  $(id).addEventListener("change", (event) => choose(id, event.target.value));
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("driftline-key", $("key").value);
  $("key").value = "";
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(() => document.hidden || refresh(), EVERY_MS);
refresh();
