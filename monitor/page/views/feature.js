// One feature: its distribution beside the reference in one window, and each statistic with its limit over time, by version or by segment.

import { ask, askIfAny, board, modelPath } from "../api.js";
import { distribution, timeChart } from "../charts.js";
import { el, elsewhere, empty, hint, moment, number, percent, section, select, table, time } from "../dom.js";
import { choosing, to } from "../routes.js";
import { controls, releases, scopeOf, versionOf } from "./model.js";

const ROWS = 2000;
const SEGMENTS = 5; // lines in one chart: as many as there are colours

export const title = ({ model, feature }) => `${feature} · ${model}`;

export async function load({ model: name, feature, choices }) {
  const path = modelPath(name);
  const [model, versions] = await Promise.all([askIfAny(path), ask(`${path}/versions`, { limit: 50 })]);
  if (!model) return { model };
  const scope = scopeOf(model, choices);
  scope.version = versionOf(model, scope, versions.items);
  if (!scope.size) return { model, scope };
  const span = { from_ms: scope.from, to_ms: scope.until, feature };
  const bySegment = choices.by === "segment";
  const verdicts = (await ask(`${path}/verdicts`, { ...span, limit: ROWS, ...(bySegment ? { version: scope.version } : { segment: scope.segment }) })).items.filter((row) => row.size_ms === scope.size && !row.statistic.startsWith("estimated_"));
  const mine = verdicts.filter((row) => row.version === scope.version && row.segment === scope.segment);
  const start = windowOf(mine, choices);
  const where = { version: scope.version, segment: scope.segment, size_ms: scope.size };
  const series = await ask(`${path}/features/${encodeURIComponent(feature)}/series`, { ...where, from_ms: scope.from, to_ms: scope.until, limit: ROWS });
  const counted = series.items.some((row) => row.start_ms === start);
  const shown = counted ? await ask(`${path}/features/${encodeURIComponent(feature)}`, { ...where, start_ms: start }) : null;
  const { spec, ...rest } = model;
  return { model: rest, declared: spec.features?.[feature] ?? null, scope, versions: versions.items, verdicts, start, shown, series: series.items };
}

const beyond = (row) => (row.value === null || !row.limit ? -1 : row.value / row.limit);

// Which window is shown: the worst of a pressed cell, which may hold several, or else the newest.
function windowOf(rows, choices) {
  const start = choices.start;
  const [first, until] = [Number(start), Number(choices.end) || Number(start) + 1];
  const inside = start === undefined ? [] : rows.filter((row) => row.start_ms >= first && row.start_ms < until);
  const worst = inside.reduce((best, row) => (best === null || beyond(row) > beyond(best) ? row : best), null);
  if (start !== undefined) return worst?.start_ms ?? first;
  return rows.length ? Math.max(...rows.map((row) => row.start_ms)) : null;
}

export function draw(found, route, go) {
  const { model, scope, start, shown } = found;
  const crumbs = el("p", { class: "crumbs" }, el("a", { href: to.model(route.model, { version: route.choices.version, size: route.choices.size }) }, route.model), " / ");
  const head = el("div", { class: "head" }, crumbs, el("h1", {}, route.feature), found.declared && el("span", { class: "chip" }, found.declared.type ?? "feature"),
    start != null && elsewhere("Grafana", board("feature", route.model, start, start + scope.size, { "var-feature": route.feature, "var-size": scope.size, "var-version": scope.version })));
  if (!model) return [head, section(route.feature, null, empty("There is no model of this name."))];
  if (!scope.size) return [head, section("Distribution", null, empty("No window has closed yet."))];
  const choose = (name) => (value) => go(choosing(route, { [name]: value }));
  const see = (at) => go(choosing(route, { start: at, end: undefined }));
  return [
    el("div", { class: "head-row" }, head, controls(model, scope, choose, route.choices.by !== "segment")),
    distributionSection(found, see),
    statisticSection(found, route, choose, see),
    valuesSection(found, see),
    start === null ? null : judgedSection(found),
  ].filter(Boolean);
}

function distributionSection({ shown, start, scope, series }, see) {
  if (!shown) return section("Distribution", null, empty(start === null ? "Nothing was judged in this time." : `No values in the window from ${time(start)} UTC.`));
  const unseen = Object.keys(shown.unseen).slice(0, 5).join(", ");
  const starts = series.map((row) => row.start_ms).sort((a, b) => a - b);
  const [before, after] = [starts.findLast((at) => at < start), starts.find((at) => at > start)];
  const step = (words, label, at) => el("button", { "data-key": label, "aria-label": label, disabled: at === undefined, click: () => see(at) }, words);
  const words = [`${number(shown.n)} values, version ${scope.version}${scope.segment ? `, ${scope.segment}` : ""}.`,
    shown.elsewhere ? `The reference changed in it: ${number(shown.elsewhere)} values more are in the bins of the one before.` : "", unseen ? `Never seen before: ${unseen}.` : ""];
  return section(`Window of ${moment(start, scope.size)} UTC beside the reference`, el("div", { class: "bar" }, step("◀", "The window before", before), step("▶", "The window after", after)),
    hint(words.filter(Boolean).join(" ")), distribution(shown, { key: "distribution", name: "this window" }));
}

function statisticSection({ verdicts, scope, versions, model, start }, route, choose, see) {
  const statistics = [...new Set(verdicts.map((row) => row.statistic))].sort();
  if (!statistics.length) return section("Statistic and limit over time", null, empty("Nothing was judged in this time."));
  const worst = verdicts.reduce((best, row) => (beyond(row) > beyond(best) ? row : best));
  const statistic = statistics.includes(route.choices.statistic) ? route.choices.statistic : worst.statistic;
  const bySegment = route.choices.by === "segment";
  const rows = verdicts.filter((row) => row.statistic === statistic).sort((a, b) => a.start_ms - b.start_ms);
  const nameOf = (row) => (bySegment ? row.segment || "all" : `version ${row.version}`);
  const peak = (name) => Math.max(...rows.filter((row) => nameOf(row) === name).map(beyond));
  const names = [...new Set(rows.map(nameOf))].sort((a, b) => peak(b) - peak(a));
  const kept = names.slice(0, SEGMENTS).sort();
  const own = bySegment ? (scope.segment || "all") : `version ${scope.version}`;
  const note = (row) => (row.status === "breach" ? `beyond its limit of ${number(row.limit)}` : row.status === "no_data" ? "too few" : "");
  const limited = kept.includes(own) ? own : kept[0];
  const series = [
    ...kept.map((name, color) => ({ name, color, points: rows.filter((row) => nameOf(row) === name).map((row) => ({ x: row.start_ms, y: row.value, note: note(row) })) })),
    { name: kept.length > 1 ? `limit, ${limited}` : "limit", kind: "limit", dashed: true, points: rows.filter((row) => nameOf(row) === limited && row.limit !== null).map((row) => ({ x: row.start_ms, y: row.limit })) },
  ].filter((one) => one.points.length);
  const split = model.segments.length > 1 ? select("By", "by", ["version", "segment"], bySegment ? "segment" : "version", String, choose("by")) : null;
  return section("Statistic and limit over time", el("div", { class: "bar" }, select("Statistic", "statistic", statistics, statistic, String, choose("statistic")), split),
    names.length > SEGMENTS ? hint(`The ${SEGMENTS} worst of ${number(names.length)}.`) : null,
    timeChart(series, { key: `statistic ${route.feature}`, label: `${statistic} of ${route.feature} over time`, marks: releases(versions, scope.size), step: scope.size, from: scope.from, until: scope.until, zero: true, pick: see, chosen: start }));
}

function valuesSection({ series, scope, versions, start }, see) {
  const rows = [...series].sort((a, b) => a.start_ms - b.start_ms);
  if (!rows.length) return null;
  const odd = (row) => row.missing + row.nan + row.pos_inf + row.neg_inf + row.wrong_type;
  const shared = { marks: releases(versions, scope.size), step: scope.size, from: scope.from, until: scope.until, pick: see, chosen: start };
  const parts = [{ name: "not a value", color: 1, points: rows.map((row) => ({ x: row.start_ms, y: odd(row) / Math.max(1, row.n + odd(row)), note: `${number(row.missing)} missing, ${number(row.wrong_type)} of a wrong type` })) }];
  const means = rows.filter((row) => row.mean !== null);
  const spread = (row) => (row.variance === null ? 0 : Math.sqrt(Math.max(0, row.variance)));
  return el("div", { class: "two" },
    means.length ? section("Mean", hint("band: one standard deviation"), timeChart([{ name: "mean", color: 0, points: means.map((row) => ({ x: row.start_ms, y: row.mean, low: row.mean - spread(row), high: row.mean + spread(row), note: `n = ${number(row.n)}` })) }], { ...shared, key: "mean", label: "Mean over time" })) : null,
    section("Missing or unusable", hint("part of the events"), timeChart(parts, { ...shared, key: "missing", label: "Part of the events without a usable value, over time", zero: true, say: percent })));
}

function judgedSection({ verdicts, start, scope }) {
  const rows = verdicts.filter((row) => row.start_ms === start && row.version === scope.version).sort((a, b) => a.segment.localeCompare(b.segment) || beyond(b) - beyond(a));
  if (!rows.length) return null;
  return section("What was judged in this window", null, table([["Statistic", (row) => row.statistic], ["Segment", (row) => row.segment || "all"], ["Status", (row) => el("span", { class: `chip ${row.status === "breach" ? "firing" : row.status === "ok" ? "resolved" : ""}` }, row.status === "no_data" ? "too few" : row.status)],
    ["Value", (row) => number(row.value), "n"], ["Limit", (row) => number(row.limit), "n"], ["p", (row) => number(row.p_value), "n"], ["n", (row) => number(row.n), "n"]], rows, "Verdicts", true));
}
