// One model: drift by feature and time under its incidents, versions and labels; performance; traffic, latency and errors.

import { ask, askIfAny, board, modelPath } from "../api.js";
import { timeChart } from "../charts.js";
import { day, duration, el, elsewhere, empty, hint, number, pace, percent, section, select, tile, time } from "../dom.js";
import { heatMap } from "../heat.js";
import { choosing, to } from "../routes.js";
import { often } from "./fleet.js";
import { incidentList } from "./incidents.js";

const SPANS = [50, 200, 500]; // windows that are shown: of any size about as many
const JUDGED = 30; // of the newest windows, by which estimates are judged
const ROWS = 1000; // of one answer: windows of all versions

export const title = ({ model }) => model;

// What of a model is shown: its choices, or what stands for them where there are none (or none that exists).
export function scopeOf(model, choices) {
  const among = (values, wanted, otherwise) => values.find((value) => String(value) === String(wanted)) ?? otherwise;
  const sizes = [...model.sizes_ms].sort((a, b) => a - b);
  const size = among(sizes, choices.size, sizes[0] ?? null);
  const count = among(SPANS, choices.span, SPANS[1]);
  const until = Number(choices.until) || model.last_ms || 0;
  const first = Math.max(until - count * (size ?? 0), Math.min(model.first_ms ?? 0, until));
  return { sizes, size, count, until, from: size ? Math.floor(first / size) * size : 0, version: choices.version, segment: among(model.segments, choices.segment, "") };
}

export function versionOf(model, scope, versions) {
  const known = versions.map((one) => one.version);
  if (known.includes(scope.version) || model.versions.includes(scope.version)) return scope.version;
  const last = Math.max(...versions.map((one) => one.last_ms)); // a release that was rolled back serves no more
  return versions.find((one) => one.last_ms === last)?.version ?? model.versions.at(-1) ?? "";
}

export async function load({ model: name, choices }) {
  const path = modelPath(name);
  const [model, versions, incidents] = await Promise.all([
    askIfAny(path), ask(`${path}/versions`, { limit: 50 }), ask("/api/v1/incidents", { model: name, limit: 50 })]);
  if (!model) return { model };
  const scope = scopeOf(model, choices);
  scope.version = versionOf(model, scope, versions.items);
  if (!scope.size) return { model, scope, versions: versions.items, incidents: incidents.items };
  const span = { size_ms: scope.size, from_ms: scope.from, to_ms: scope.until };
  const columns = matchMedia("(max-width: 40rem)").matches ? 32 : 96;
  const [heat, windows, performance, estimates, budget] = await Promise.all([
    ask(`${path}/heat`, { ...span, version: scope.version, segment: scope.segment, statistic: choices.statistic, columns }),
    ask(`${path}/windows`, { ...span, segment: scope.segment, limit: ROWS }),
    ask(`${path}/performance`, { ...span, segment: scope.segment, limit: ROWS }),
    scope.segment ? { items: [] } : ask(`${path}/estimates`, { ...span, limit: ROWS }),
    askIfAny(`${path}/budget`),
  ]);
  return { model: { ...model, spec: { task: model.spec.task } }, scope, versions: versions.items, incidents: incidents.items, budget, heat, windows: slim(windows.items), performance: oldestFirst(performance.items), estimates: oldestFirst(estimates.items) };
}

const oldestFirst = (items) => [...items].sort((a, b) => a.start_ms - b.start_ms);
const slim = (items) => oldestFirst(items.filter((row) => row.n > 0));

export function draw(found, route, go) {
  const { model, scope, versions, incidents, budget } = found;
  if (!model) return [section(route.model, null, empty("There is no model of this name."))];
  const choose = (name) => (value) => go(choosing(route, { [name]: value }));
  const head = el("div", { class: "head" }, el("h1", {}, model.model), chip(model, incidents), scope.size && elsewhere("Grafana", board("model", model.model, scope.from, scope.until, { "var-size": scope.size })));
  if (!scope.size) return [head, section("Drift", null, empty(model.bins_id ? "No window has closed yet." : "The model calibrates itself: its first events become the reference."))];
  const marks = releases(versions, scope.size);
  const shared = { marks, step: scope.size, from: scope.from, until: scope.until };
  const open = incidents.filter((one) => one.state === "firing");
  return [
    el("div", { class: "head-row" }, head, controls(model, scope, choose)),
    tiles(found, open),
    open.length ? section(open.length === 1 ? "Open incident" : `${open.length} open incidents`, null, incidentList(open)) : null,
    driftSection(found, route, choose),
    performanceSection(found, route, choose, shared),
    ...serviceSections(found, shared),
    section("Incidents so far", null, incidents.length ? incidentList(incidents.filter((one) => one.state !== "firing"), "No other.") : empty("None. Quiet is good."), budget && hint(budgetSaid(budget))),
  ].filter(Boolean);
}

function chip(model, incidents) {
  const firing = incidents.filter((one) => one.state === "firing").length;
  if (firing) return el("span", { class: "chip firing" }, `${firing} open`);
  return el("span", { class: `chip ${model.bins_id ? "resolved" : ""}` }, model.bins_id ? "quiet" : "calibrating");
}

export function controls(model, scope, choose, withSegment = true) {
  return el("div", { class: "bar controls" },
    model.versions.length > 1 && select("Version", "version", [...model.versions].reverse(), scope.version, String, choose("version")),
    withSegment && model.segments.length > 1 && select("Segment", "segment", model.segments, scope.segment, (name) => name || "all", choose("segment")),
    scope.sizes.length > 1 && select("Window", "size", scope.sizes, scope.size, duration, choose("size")),
    select("Shown", "span", SPANS, scope.count, (count) => `last ${duration(count * scope.size)}`, choose("span")));
}

function tiles({ scope, windows, performance, estimates, model }, open) {
  const mine = windows.filter((row) => row.version === scope.version).at(-1);
  const labelled = performance.filter((row) => row.labelled > 0 && row.version === scope.version).at(-1);
  const metric = labelled && Object.keys(labelled.metrics).sort()[0];
  const estimate = estimates.filter((row) => row.version === scope.version).at(-1);
  return el("div", { class: "tiles" },
    tile("open incidents", number(open.length), open.length ? "bad" : "good"),
    tile("requests", mine ? often((1000 * mine.n) / mine.size_ms) : "–"),
    mine?.latency_p95 != null && tile("latency p95", `${number(mine.latency_p95)} ms`),
    tile("errors", mine ? percent(mine.errors / mine.n) : "–", mine?.errors ? "bad" : ""),
    metric ? tile(`${metric} by labels`, number(labelled.metrics[metric])) : estimate && tile(`${estimate.metric}, estimated`, number(estimate.estimate)),
    labelled && tile("label coverage, newest", percent(labelled.labelled / labelled.predictions)),
    tile(`last window ends, ${time(model.last_ms).slice(11)} UTC`, day(model.last_ms)));
}

function driftSection({ heat, scope, incidents, versions, performance, model }, route, choose) {
  const statistic = select("Statistic", "statistic", ["", ...heat.statistics], route.choices.statistic ?? "", (name) => name || "worst of all", choose("statistic"));
  if (!heat.features.length) return section("Drift by feature and time", null, empty("Nothing was judged in this time."));
  const lanes = {
    incidents: incidents.map((one) => ({ from: one.onset_ms, to: one.resolved_ms ?? Infinity, href: to.incident(one.id), name: one.title, state: one.state })),
    versions: releases([...versions], scope.size),
    labels: performance.filter((row) => row.predictions > 0).map((row) => ({ x: row.start_ms, share: row.labelled / row.predictions })),
  };
  const { statistic: _any, metric: _not, ...kept } = route.choices;
  const hrefOf = (feature, cell) => to.feature(model.model, feature, { ...kept, version: scope.version, size: scope.size, ...(cell ? { start: cell.start, end: cell.end, until: scope.until } : {}), ...(route.choices.statistic ? { statistic: route.choices.statistic } : {}) });
  return section("Drift by feature and time", el("div", { class: "bar" }, statistic),
    hint(`Version ${scope.version}. A cell is the worst value in its time as a multiple of its limit; press it for the distribution.`),
    heatMap(heat, { key: `heat ${model.model}`, size: scope.size, lanes, hrefOf }));
}

// When each version began to serve, for charts of windows of one size: a mark stands where the first of them begins.
export function releases(versions, size) {
  return [...versions].reverse().map(({ version, first_ms, requests }) => ({
    x: Math.floor(first_ms / size) * size, name: `version ${version}`, note: `version ${version} serves since ${time(first_ms)} UTC, ${number(requests)} requests so far`,
  }));
}

export const byVersion = (rows, point) => [...new Set(rows.map((row) => row.version))].sort().map((version, color) => ({
  name: `version ${version}`, version, color, points: rows.filter((row) => row.version === version).map((row) => ({ x: row.start_ms, ...point(row) })),
}));

const points = (share) => `${(100 * share).toFixed(1)} points`;

// How far the newest estimates were off, of windows whose labels were due; `rows` are in the order of time.
function judged(rows) {
  const known = rows.filter((row) => row.final && row.error !== null).slice(-JUDGED);
  if (!known.length) return "";
  const off = known.reduce((sum, row) => sum + Math.abs(row.error), 0) / known.length;
  const inside = known.filter((row) => row.low <= row.realised && row.realised <= row.high).length;
  return `The estimate was off by ${points(off)} on average over the last ${known.length} windows whose labels were due; in ${inside} of them the labels were in its band.`;
}

function performanceSection({ performance, estimates, scope }, route, choose, shared) {
  const metrics = [...new Set([...performance.flatMap((row) => Object.keys(row.metrics)), ...estimates.map((row) => row.metric)])].sort();
  if (!metrics.length) return section("Performance", null, empty("No labels have come yet."));
  const metric = metrics.includes(route.choices.metric) ? route.choices.metric : metrics[0];
  const rows = performance.filter((row) => row.metrics[metric] !== undefined);
  const guesses = estimates.filter((row) => row.metric === metric);
  const versions = [...new Set([...rows, ...guesses].map((row) => row.version))].sort();
  const between = (low, high) => `${number(low)} to ${number(high)}`;
  const said = (row) => `${number(row.labelled)} of ${number(row.predictions)} labelled${row.intervals[metric] ? `; 95 %: ${between(...row.intervals[metric])}` : ""}`;
  const wrong = (row) => (row.error === null ? "" : `; labels say ${number(row.realised)}, ${points(Math.abs(row.error))} ${row.error < 0 ? "less" : "more"}`);
  const of = (items, version) => items.filter((row) => row.version === version);
  // An estimate is a dashed line in the colour of its version; the band is that of what the labels say, or else that of the estimate.
  const series = versions.flatMap((version, color) => {
    const told = of(rows, version), guessed = of(guesses, version), banded = told.some((row) => row.intervals[metric]);
    return [
      { name: `version ${version}`, color, points: told.map((row) => ({ x: row.start_ms, y: row.metrics[metric], note: said(row), low: row.intervals[metric]?.[0], high: row.intervals[metric]?.[1] })) },
      { name: `version ${version}, estimated`, dashed: true, color, points: guessed.map((row) => ({ x: row.start_ms, y: row.estimate, note: `${between(row.low, row.high)}${wrong(row)}`, low: banded ? null : row.low, high: banded ? null : row.high })) },
    ];
  }).filter((one) => one.points.length);
  const off = judged(guesses);
  return section("Performance", select("Metric", "metric", metrics, metric, String, choose("metric")), off && hint(off),
    timeChart(series, { ...shared, key: `performance ${scope.segment}`, label: `${metric} by version over time` }));
}

function serviceSections({ windows, scope }, shared) {
  if (!windows.length) return [section("Traffic", null, empty("No requests in this time."))];
  const chart = (key, label, series, more = {}) => timeChart(series, { ...shared, key, label, zero: true, ...more });
  const perSecond = (row) => (1000 * row.n) / row.size_ms;
  const { unit, each } = pace(Math.max(...windows.map(perSecond)));
  const requests = byVersion(windows, (row) => ({ y: each * perSecond(row), note: `${number(row.n)} requests` }));
  const errors = byVersion(windows, (row) => ({ y: row.errors / row.n, note: `${number(row.errors)} of ${number(row.n)}` }));
  const timed = windows.filter((row) => row.version === scope.version && row.latency_p95 !== null);
  const latency = ["p50", "p95", "p99"].map((name, color) => ({ name, color, points: timed.map((row) => ({ x: row.start_ms, y: row[`latency_${name}`] })) }));
  return [el("div", { class: "three" },
    section("Traffic", hint(`requests per ${unit}`), chart("traffic", `Requests per ${unit} by version over time`, requests)),
    timed.length ? section("Latency", hint(`ms, version ${scope.version}`), chart("latency", "Latency in milliseconds over time", latency)) : null,
    section("Errors", hint("part of the requests"), chart("errors", "Part of the requests with an error, by version over time", errors, { say: percent })))];
}

function budgetSaid(budget) {
  const opened = Object.values(budget.recent_opened).reduce((a, b) => a + b, 0);
  return `The alarm budget: ${number(budget.false_alarms)} false alarm${budget.false_alarms === 1 ? "" : "s"} per ${duration(budget.per_ms)}. In the last ${duration(budget.recent_ms)} it allows ${number(budget.recent_expected)}; ${number(opened)} incident${opened === 1 ? "" : "s"} opened.`;
}
