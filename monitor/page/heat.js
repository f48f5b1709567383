// The heat map, feature by time, under lanes on the same time axis: incidents, versions, labels. A handful of SVG paths, however many cells there are.

import { el, moment, number, percent, placed, svg } from "./dom.js";

const ROW = 22, SHOWN = 40; // features at first: the worst; the rest is one press away

// How far beyond its limit a value is: the colours of the map and their words.
export const BANDS = [
  [0.5, "c0", "below half its limit"], [1, "c1", "below its limit"],
  [3, "c2", "up to 3 × the limit"], [10, "c3", "up to 10 ×"], [Infinity, "c4", "more"],
];
const bandOf = (ratio) => BANDS.findIndex(([top]) => ratio <= top);

const opened = new Set(); // maps of which all features are shown
const filters = new Map();

// `found` as /heat tells it; `lanes`: {incidents: [{from, to, href, name, state}], versions: [{x, name, note}], labels: [{x, share}]}; `size`: of a window.
export function heatMap(found, { key, size, lanes, hrefOf }) {
  const holder = el("div", { class: "heat" });
  const draw = () => holder.replaceChildren(...parts(found, { key, size, lanes, hrefOf, draw }));
  draw();
  return holder;
}

function parts(found, { key, size, lanes, hrefOf, draw }) {
  const wanted = (filters.get(key) ?? "").toLowerCase();
  const matching = found.features.filter((row) => row.feature.toLowerCase().includes(wanted));
  const rows = opened.has(key) ? matching : matching.slice(0, SHOWN);
  const hidden = matching.length - rows.length;
  const many = found.features.length > SHOWN;
  const search = many && el("input", {
    type: "search", class: "find", placeholder: `Find one of ${number(found.features.length)} features`, "aria-label": "Find a feature", value: filters.get(key) ?? "", "data-key": `${key}-find`,
    input: (event) => { filters.set(key, event.target.value); draw(); const field = document.querySelector(`[data-key="${CSS.escape(`${key}-find`)}"]`); field.focus(); field.setSelectionRange(field.value.length, field.value.length); },
  });
  return [
    search || null,
    el("div", { class: "heat-grid" }, ...laneRows(found, lanes, size), ...cellRows(found, rows, size, hrefOf, key), el("span"), axis(found, size)),
    hidden > 0 || opened.has(key) ? el("button", { "data-key": `${key}-all`, click: () => { opened[opened.has(key) ? "delete" : "add"](key); draw(); } }, opened.has(key) ? `Show the worst ${SHOWN} only` : `Show ${number(hidden)} more`) : null,
    legend(),
  ].filter(Boolean);
}

const untilOf = (found) => found.from_ms + found.columns * found.column_ms;
const shareOf = (found, ms) => (100 * (ms - found.from_ms)) / (untilOf(found) - found.from_ms);
const at = (found, ms) => `${Math.max(0, Math.min(100, shareOf(found, ms)))}%`;

function laneRows(found, { incidents, versions, labels }, size) {
  const until = untilOf(found);
  const inside = incidents.filter((one) => one.from < until && one.to > found.from_ms).sort((a, b) => a.from - b.from);
  // Incidents at the same time stand below each other.
  const ends = [];
  const bars = inside.map((one) => {
    const free = ends.findIndex((end) => end <= one.from), line = free < 0 ? ends.length : free;
    ends[line] = one.to;
    const width = Math.max(0, shareOf(found, Math.min(one.to, until)) - shareOf(found, Math.max(one.from, found.from_ms)));
    return el("a", { class: `span ${one.state}`, href: one.href, title: one.name, "aria-label": one.name, style: { left: at(found, one.from), width: `max(6px, ${width}%)`, top: `${line * 16 + 3}px` } });
  });
  const began = versions.filter((one) => one.x >= found.from_ms && one.x < until);
  const flags = placed(began.map((one) => ({ ...one, at: (shareOf(found, one.x) / 100) * 600 })), 600, { letter: 11, lines: 3 });
  const rows = [];
  if (inside.length) rows.push(el("span", { class: "lane-name" }, "incidents"), el("div", { class: "lane", style: { height: `${Math.max(1, ends.length) * 16 + 4}px` } }, bars));
  if (flags.length) {
    const high = 1 + Math.max(...flags.map((one) => one.line));
    rows.push(el("span", { class: "lane-name" }, "deployed"), el("div", { class: "lane", style: { height: `${Math.min(3, high) * 16 + 4}px` } },
      flags.map((one) => el("span", { class: shareOf(found, one.x) > 80 ? "flag left" : "flag", title: one.note, style: { left: at(found, one.x), top: `${Math.min(one.line, 2) * 16 + 2}px` } }, one.name))));
  }
  const known = labels.filter((one) => one.x >= found.from_ms && one.x < until);
  if (known.length) {
    const coverage = Array(found.columns).fill(null);
    for (const one of known) { const i = Math.floor((one.x - found.from_ms) / found.column_ms); coverage[i] = Math.min(coverage[i] ?? 1, one.share); }
    const picture = svg("svg", { class: "coverage", viewBox: `0 0 ${found.columns} 1`, preserveAspectRatio: "none", role: "img", "aria-label": `Label coverage, last ${percent(known.at(-1).share)}` },
      coverage.map((share, i) => share === null ? null : svg("rect", { x: i + 0.05, width: 0.9, y: 1 - Math.max(0.04, share), height: Math.max(0.04, share) }, svg("title", {}, `${moment(found.from_ms + i * found.column_ms, size)}: ${percent(share)} of predictions labelled`))));
    rows.push(el("span", { class: "lane-name" }, "labelled"), el("div", { class: "lane" }, picture));
  }
  return rows;
}

function cellRows(found, rows, size, hrefOf, key) {
  const names = el("ul", { class: "names" }, rows.map((row) => el("li", {}, el("a", { href: hrefOf(row.feature), title: `${row.feature}: worst ${row.worst === null ? "not known" : `${number(row.worst)} × its limit`}` }, row.feature))));
  const cells = BANDS.map(() => "");
  let silent = "";
  rows.forEach((row, y) => row.ratios.forEach((ratio, x) => {
    const path = `M${x} ${y * ROW}h.92v${ROW - 1}h-.92z`;
    if (ratio === null) silent += path;
    else cells[bandOf(ratio)] += path;
  }));
  const focus = svg("rect", { class: "focus", width: 0.92, height: ROW - 1, visibility: "hidden" });
  const map = svg("svg", { viewBox: `0 0 ${found.columns} ${rows.length * ROW}`, preserveAspectRatio: "none", height: rows.length * ROW, "aria-hidden": "true" },
    svg("path", { class: "cn", d: silent }), ...cells.map((d, i) => svg("path", { class: BANDS[i][1], d })), focus);
  const tip = el("p", { class: "tip", role: "status", hidden: true });
  let [x, y] = [found.columns - 1, 0];
  const go = (toX, toY) => {
    [x, y] = [Math.max(0, Math.min(found.columns - 1, toX)), Math.max(0, Math.min(rows.length - 1, toY))];
    const row = rows[y], ratio = row.ratios[x];
    for (const [name, value] of Object.entries({ x, y: y * ROW, visibility: "visible" })) focus.setAttribute(name, value);
    const from = found.from_ms + x * found.column_ms;
    const when = found.column_ms > size ? `${moment(from, size)} to ${moment(from + found.column_ms - size, size)}` : moment(from, size);
    tip.textContent = `${row.feature}, ${when} UTC: ${ratio === null ? "too few events, or none" : `${found.statistics[row.which[x]]} at ${number(ratio)} × its limit`}`;
    tip.hidden = false;
    const share = (x + 0.5) / found.columns;
    tip.style.setProperty("left", `${share * 100}%`);
    tip.style.setProperty("top", `${(y + 1) * ROW + 4}px`);
    tip.style.setProperty("transform", `translateX(${-share * 100}%)`);
  };
  const rest = () => { tip.hidden = true; focus.setAttribute("visibility", "hidden"); };
  const under = (event) => { const box = map.getBoundingClientRect(); go(Math.floor(((event.clientX - box.left) / box.width) * found.columns), Math.floor((event.clientY - box.top) / ROW)); };
  const open = () => { location.hash = hrefOf(rows[y].feature, { start: found.from_ms + x * found.column_ms, end: found.from_ms + (x + 1) * found.column_ms }); };
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const board = el("div", {
    class: "cells", tabindex: 0, role: "application", "aria-label": "Heat map of drift by feature and time. Arrow keys go from cell to cell, Enter opens the feature.", "data-key": `${key}-cells`,
    pointermove: under, pointerleave: rest, blur: rest, click: (event) => { under(event); open(); },
    keydown: (event) => {
      if (event.key === "Enter") open();
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      go(x + step[0], y + step[1]);
    },
  }, map, tip);
  return rows.length ? [names, board] : [el("span"), el("p", { class: "empty" }, "No feature has that in its name.")];
}

function axis(found, size) {
  const count = matchMedia("(max-width: 40rem)").matches ? 2 : 5;
  const labels = [...Array(count).keys()].map((i) => {
    const ms = found.from_ms + Math.floor((i / count) * found.columns) * found.column_ms;
    return el("span", { style: { left: at(found, ms) } }, moment(ms, size));
  });
  return el("div", { class: "times", "aria-hidden": "true" }, labels);
}

function legend() {
  const swatch = (band) => svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { class: band, width: 12, height: 12, rx: 2 }));
  return el("ul", { class: "legend" }, BANDS.map(([, band, words]) => el("li", {}, swatch(band), words)), el("li", {}, swatch("cn"), "nothing to say"));
}
