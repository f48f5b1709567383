// Elements and charts. Text goes in as text nodes only: nothing that an event says is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function table(columns, rows) {
  const cell = (row, [, value, kind]) => el("td", { class: kind }, String(value(row) ?? "–"));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map(([name, , kind]) => el("th", { class: kind, scope: "col" }, name)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...columns.map((column) => cell(row, column))))));
}

export const empty = (text) => el("p", { class: "empty" }, text);

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

export function time(ms) {
  return ms === null || ms === undefined ? "–" : new Date(ms).toISOString().slice(0, 16).replace("T", " ");
}

export const day = (ms) => time(ms).slice(0, 10);

export function duration(ms) {
  const units = [["d", 86400000], ["h", 3600000], ["min", 60000], ["s", 1000]];
  const [unit, size] = units.find(([, s]) => ms >= s) ?? ["ms", 1];
  return `${Number((ms / size).toFixed(1))} ${unit}`;
}

// How far beyond its limit a value is: the colours of the heat map and their words.
export const BANDS = [
  [0.5, "c0", "below half the limit"], [1, "c1", "below the limit"],
  [3, "c2", "up to 3 × the limit"], [10, "c3", "up to 10 ×"], [Infinity, "c4", "more"],
];
const DAY_MS = 86400000;
const COLUMNS = 96; // more would be thinner than a finger; neighbours share a cell, and the worst of them shows

const MARK_LINE = 13, MARK_LINES = 4; // of the names over a chart: their height in pixels, and how many lines they get at most

// Where the names of `marks` go, which are in the order of `at`: one that would cover another, or be crossed by its line, stands lower.
function placed(marks, width) {
  const ends = [];
  return marks.map((mark) => {
    const room = 7 * mark.name.length + 8, from = Math.min(mark.at, width - room);
    const line = 1 + ends.findLastIndex((end) => end > from);
    ends[line] = from + room;
    return { ...mark, from, line: Math.min(line, MARK_LINES) };
  });
}

// Vertical lines through a chart, each under its name; where there is no room for a name, only its line tells it.
function flags(marks, bottom) {
  return marks.map(({ at, from, line, name, note }) => svg("g", { class: "mark" }, svg("title", {}, note),
    svg("line", { x1: at, x2: at, y1: Math.min(line + 1, MARK_LINES) * MARK_LINE, y2: bottom }),
    line < MARK_LINES ? svg("text", { x: from, y: 10 + line * MARK_LINE }, name) : null));
}

const linesOf = (marks) => Math.min(MARK_LINES, 1 + Math.max(-1, ...marks.map((mark) => mark.line)));

// `marks` are events of which the charts show when they came: {x, name, note}, in the order of x.
export function heatMap(cells, onChoose, marks = []) {
  const features = [...new Set(cells.map((cell) => cell.feature))].sort();
  const starts = [...new Set(cells.map((cell) => cell.start_ms))].sort((a, b) => a - b);
  const share = Math.ceil(starts.length / COLUMNS);
  const columnOf = new Map(starts.map((start, i) => [start, Math.floor(i / share)]));
  const worst = new Map();
  for (const cell of cells) {
    const place = `${cell.feature}\n${columnOf.get(cell.start_ms)}`;
    const known = worst.get(place);
    if (!known || (cell.ratio ?? -1) > (known.ratio ?? -1)) worst.set(place, cell);
  }
  const columns = Math.ceil(starts.length / share);
  const left = 8 + 7 * Math.max(...features.map((name) => name.length));
  const width = Math.max(7, Math.min(24, Math.floor((1060 - left) / columns))), height = 18;
  const right = left + columns * width + 8;
  const columnAt = (ms) => columnOf.get(starts.find((start) => start + cells[0].size_ms > ms));
  const shown = placed(marks.filter((mark) => mark.x >= starts[0] && columnAt(mark.x) !== undefined)
    .map((mark) => ({ ...mark, at: left + columnAt(mark.x) * width - 0.5 })), right);
  const top = linesOf(shown) * MARK_LINE;
  const bottom = top + features.length * height;
  const chart = svg("svg", { width: right, height: bottom + 26, role: "img", "aria-label": "Heat map of drift by feature and time" });
  features.forEach((name, row) => {
    chart.append(svg("text", { x: left - 6, y: top + row * height + 13, "text-anchor": "end" }, name));
    for (let column = 0; column < columns; column++) {
      const cell = worst.get(`${name}\n${column}`);
      const band = cell?.ratio == null ? "cn" : BANDS.find(([top]) => cell.ratio <= top)[1];
      const choose = cell && (() => onChoose(cell));
      const words = cell && `${name}, ${time(cell.start_ms)} UTC: ${cell.ratio == null ? "too few events" : `${number(cell.value)}, limit ${number(cell.limit)}`}, n = ${number(cell.n)}`;
      const place = { x: left + column * width, y: top + row * height, width: width - 1, height: height - 1, rx: 2 };
      chart.append(svg("rect", { ...place, class: `${band}${cell ? " cell" : ""}`, ...(cell && { click: choose }) }, words ? svg("title", {}, words) : null));
    }
  });
  const says = cells[0].size_ms < DAY_MS ? time : day;
  const room = cells[0].size_ms < DAY_MS ? 110 : 76; // of a label, in pixels
  for (let column = 0; column === 0 || (columns - column) * width >= room; column += Math.ceil(room / width)) {
    chart.append(svg("text", { x: left + column * width, y: bottom + 16 }, says(starts[column * share])));
  }
  chart.append(...flags(shown, bottom));
  return chart;
}

export function heatLegend() {
  const swatch = (band) => svg("svg", { width: 12, height: 12 }, svg("rect", { class: band, width: 12, height: 12, rx: 2 }));
  return el("ul", { class: "legend" },
    ...BANDS.map(([, band, words]) => el("li", {}, swatch(band), words)), el("li", {}, swatch("cn"), "no data"));
}

export function lines(series, { label, marks = [] }) {
  const points = series.flatMap((one) => one.points);
  const [x0, x1] = range(points.map((p) => p.x)), [y0, y1] = range(points.map((p) => p.y));
  const width = 1060, left = 56, bottom = 24;
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - 10);
  const shown = placed(marks.filter((mark) => mark.x >= x0 && mark.x <= x1).map((mark) => ({ ...mark, at: x(mark.x) })), width);
  const top = 10 + linesOf(shown) * MARK_LINE, height = 210 + top;
  const y = (v) => top + (1 - (v - y0) / (y1 - y0)) * (height - top - bottom);
  const chart = svg("svg", { width, height, role: "img", "aria-label": label });
  for (let i = 0; i <= 4; i++) {
    const value = y0 + (i / 4) * (y1 - y0);
    chart.append(svg("line", { class: "grid", x1: left, x2: width - 10, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(Number(value.toPrecision(3)))));
  }
  for (let i = 0; i < 6; i++) {
    const at = x0 + (i / 6) * (x1 - x0);
    chart.append(svg("text", { x: x(at), y: height - 6 }, x1 - x0 < 6 * DAY_MS ? time(at) : day(at)));
  }
  chart.append(...flags(shown, height - bottom));
  const colorOf = (one, i) => `v${(one.color ?? i) % 5}`;
  series.forEach((one, i) => {
    const path = one.points.map((p, j) => `${j ? "L" : "M"}${x(p.x).toFixed(1)},${y(p.y).toFixed(1)}`).join("");
    const color = colorOf(one, i);
    chart.append(svg("path", { class: `line ${color}${one.dashed ? " dashed" : ""}`, d: path }));
    for (const p of one.points) {
      chart.append(svg("circle", { class: color, cx: x(p.x), cy: y(p.y), r: 2 }, svg("title", {}, `${one.name}, ${time(p.x)} UTC: ${number(p.y)} (${p.note})`)));
    }
  });
  return el("div", {}, chart, el("ul", { class: "legend" }, ...series.map((one, i) =>
    el("li", {}, svg("svg", { width: 12, height: 12 }, svg("rect", { class: colorOf(one, i), ...(one.dashed ? { y: 5, width: 12, height: 3 } : { width: 12, height: 12, rx: 2 }) })), one.name))));
}

function range(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

// Two shares per bin, window over reference.
export function bins(shown) {
  const share = (counts) => { const sum = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((c) => c / sum); };
  const now = share(shown.counts), then = share(shown.reference);
  const top = Math.max(...now, ...then) || 1;
  // Those of a latency reach from microseconds to minutes: what is empty at both ends is left out.
  const filled = [...Array(Math.max(now.length, then.length)).keys()].filter((i) => now[i] || then[i]);
  const first = filled[0] ?? 0, count = (filled.at(-1) ?? 0) + 1 - first;
  const width = Math.max(6, Math.min(40, Math.floor(1040 / count))), height = 150;
  const chart = svg("svg", { width: count * width + 10, height: height + 6, role: "img", "aria-label": `Distribution of ${shown.feature}` });
  for (let i = first; i < first + count; i++) {
    const says = `${binName(shown, i)}: ${((now[i] ?? 0) * 100).toFixed(1)} %, reference ${((then[i] ?? 0) * 100).toFixed(1)} %`;
    const bar = (value, place, wide, kind) => svg("rect", { class: kind, x: (i - first) * width + place, width: wide, y: height - (value / top) * height, height: (value / top) * height }, svg("title", {}, says));
    chart.append(bar(then[i] ?? 0, 0, width - 2, "c1"), bar(now[i] ?? 0, width * 0.25, Math.max(2, width * 0.5 - 2), "v1"));
  }
  return chart;
}

function binName(shown, i) {
  if (shown.kind === "categorical") return shown.labels[i] ?? "other";
  const [low, high] = [shown.edges[i - 1], shown.edges[i]];
  return `${low === undefined ? "below" : number(low)}${low === undefined || high === undefined ? " " : " to "}${high === undefined ? "and more" : number(high)}`;
}
