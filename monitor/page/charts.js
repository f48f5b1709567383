// Charts over time and over bins, drawn by uPlot (vendor/). What uPlot lacks is added as elements: marks with names, a table of the numbers, arrow keys.

import { DAY_MS, day, el, moment, number, percent, placed, table, time } from "./dom.js";

const uPlot = globalThis.uPlot;
const HEIGHT = 190, MARK_LINE = 15, COLOURS = 5;
const utc = (ms) => uPlot.tzDate(new Date(ms), "Etc/UTC");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const zooms = new Map(); // of charts by their key: drawn anew with newer numbers, they show what the reader had chosen
const shown = new Set(); // [chart, holder]; those that left the page are dropped

const narrow = () => matchMedia("(max-width: 40rem)").matches;

const widths = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    for (const [chart, holder] of shown) if (holder === target && contentRect.width > 0) chart.setSize({ width: contentRect.width, height: chart.height });
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown.forEach(([chart]) => chart.redraw(false)));

export function forget() {
  for (const pair of shown) {
    if (pair[1].isConnected) continue;
    widths.unobserve(pair[1]);
    pair[0].destroy();
    shown.delete(pair);
  }
}

// Labels of a time axis: dates where days are apart, hours between them, and a year wherever it is not plain which.
function timeLabels(_chart, splits, _axis, _space, step) {
  let last = "";
  return splits.map((ms) => {
    const date = day(ms), first = last === "" || date.slice(0, 4) !== last.slice(0, 4);
    const label = step >= 28 * DAY_MS ? date.slice(0, 7)
      : step >= DAY_MS ? (first ? date : date.slice(5))
        : date === last ? time(ms).slice(11) : `${first ? date : date.slice(5)} ${time(ms).slice(11)}`;
    last = date;
    return label;
  });
}

// {x: [...], of: Map of x -> index}: all the times of the series, and one in each hole that is longer than `step`, where lines break.
function times(series, step) {
  const known = [...new Set(series.flatMap((one) => one.points.map((p) => p.x)))].sort((a, b) => a - b);
  const x = step ? known.flatMap((at, i) => (i + 1 < known.length && known[i + 1] - at > 1.5 * step ? [at, at + step] : [at])) : known;
  return { x, of: new Map(x.map((at, i) => [at, i])) };
}

const axisLook = { stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };

// Marks with names over a chart: {x, name, note, kind, href}, in the order of x. Elements, so they can be read and pressed.
function marksOf(marks) {
  const nodes = [];
  const place = (chart) => {
    nodes.splice(0).forEach((node) => node.remove());
    const { min, max } = chart.scales.x, width = chart.over.clientWidth;
    const inside = marks.filter((mark) => mark.x >= min && mark.x <= max).map((mark) => ({ ...mark, at: chart.valToPos(mark.x, "x") }));
    for (const mark of placed(inside, width, { lines: 2 })) {
      const line = el("i", { class: "mark", style: { left: `${mark.at}px` } });
      const name = mark.line < 2 ? el("span", { class: "mark-name", title: mark.note, style: { left: `${mark.from}px`, top: `${-(2 - mark.line) * MARK_LINE}px` } }, mark.name) : null;
      nodes.push(line, ...(name ? [name] : []));
    }
    chart.over.append(...nodes);
  };
  return { hooks: { ready: place, setSize: place, setScale: (chart, key) => key === "x" && chart.over && place(chart) } };
}

// A chart over time. `series`: {name, points: [{x, y, note, low, high}], color (a number), dashed, kind: "limit"}. `marks`: see marksOf.
// `pick` is called with the time of a point that is pressed.
export function timeChart(series, { key, label, marks = [], step = 0, say = number, from, until, zero = false, pick, chosen }) {
  const { x, of } = times(series, step);
  const columns = [x], options = [{ label: "Time (UTC)", value: (_c, at) => (at === null ? "–" : moment(at, step || 1)) }], bands = [];
  series.forEach((one, i) => {
    const spread = (pickOne) => { const column = Array(x.length).fill(null); for (const p of one.points) column[of.get(p.x)] = pickOne(p) ?? null; return column; };
    const colour = one.kind === "limit" ? "--limit" : `--v${(one.color ?? i) % COLOURS}`;
    const notes = spread((p) => p.note);
    columns.push(spread((p) => p.y));
    options.push({
      label: one.name, stroke: () => css(colour), width: one.dashed ? 1.4 : 2, dash: one.dashed ? [6, 5] : undefined,
      points: { size: 5, ...(one.dashed ? { show: false } : {}), fill: () => css(colour) },
      value: (_c, value, _s, index) => (value === null ? "–" : `${say(value)}${index !== null && notes[index] ? ` (${notes[index]})` : ""}`),
    });
    if (one.points.some((p) => p.low !== undefined && p.low !== null)) {
      columns.push(spread((p) => p.high), spread((p) => p.low));
      for (const edge of ["upper", "lower"]) options.push({ label: `${one.name}, ${edge}`, class: "unseen", points: { show: false }, width: 0, stroke: "transparent" });
      bands.push({ series: [columns.length - 2, columns.length - 1], fill: () => `${css(colour)}38` });
    }
  });
  const holder = el("div", { class: "chart", role: "img", tabindex: 0, "aria-label": `${label}. Left and right arrow keys go through the points.`, "data-key": key });
  const names = marks.length ? 2 * MARK_LINE + 6 : 8;
  const setup = (width) => ({
    width, height: HEIGHT + names, ms: 1, tzDate: utc, series: options, bands, padding: [names, 34, 0, 0],
    cursor: { points: { size: 8 }, drag: { x: true, y: false, setScale: true }, y: false },
    legend: { live: true, markers: { width: 2, fill: (c, i) => (c.series[i].dash ? "transparent" : c.series[i].stroke(c, i)) } },
    scales: { x: { time: true, range: (_c, low, high) => zooms.get(key) ?? [from ?? low, Math.max(until ?? high, (from ?? low) + 1)] }, y: { range: (_c, low, high) => room(low, high, zero) } },
    axes: [
      { ...axisLook, values: timeLabels, space: narrow() ? 80 : 110, size: 28 },
      { ...axisLook, values: (_c, splits) => splits.map(say), size: narrow() ? 48 : 58, space: 36 },
    ],
    plugins: [marksOf(marks), chosen ? spot(chosen) : {}],
    hooks: {
      ready: [(chart) => last(chart)],
      setSelect: [(chart) => { if (chart.select.width > 4) zooms.set(key, [chart.posToVal(chart.select.left, "x"), chart.posToVal(chart.select.left + chart.select.width, "x")]); }],
    },
  });
  mount(holder, setup, columns, (chart) => {
    chart.over.addEventListener("mouseleave", () => last(chart));
    chart.over.addEventListener("dblclick", () => { zooms.delete(key); chart.setData(columns); });
    if (pick) { holder.classList.add("pick"); chart.over.addEventListener("click", () => chart.cursor.idx !== null && chart.cursor.idx !== undefined && pick(x[chart.cursor.idx])); }
  });
  let at = x.length - 1;
  holder.addEventListener("keydown", (event) => {
    const chart = [...shown].find(([, its]) => its === holder)?.[0];
    if (event.key === "Enter" && pick) pick(x[at]);
    if (!chart || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    at = Math.max(0, Math.min(x.length - 1, at + (event.key === "ArrowLeft" ? -1 : 1)));
    chart.setCursor({ left: chart.valToPos(x[at], "x"), top: 10 });
  });
  return el("div", {}, holder, numbers(key, label, () => ({
    columns: [["Time (UTC)", (i) => moment(x[i], step || 1)], ...series.map((one) => [one.name, (i) => { const p = one.points.find((point) => point.x === x[i]); return p && p.y !== null ? `${say(p.y)}${p.note ? ` (${p.note})` : ""}` : null; }, "n"])],
    rows: x.map((_at, i) => x.length - 1 - i),
  })));
}

// At rest the legend tells the newest point.
function last(chart) {
  const filled = chart.data[0].findLastIndex((_x, i) => chart.data.slice(1).some((column) => column[i] !== null));
  if (filled >= 0) chart.setLegend({ idx: filled });
}

function room(low, high, zero) {
  if (low === null || high === null) return [0, 1];
  const least = zero ? Math.min(0, low) : low, span = high - least || Math.abs(high) || 1;
  return [zero && low >= 0 ? 0 : least - 0.08 * span, high + 0.08 * span];
}

const spot = (at) => ({ hooks: { ready: (chart) => placeSpot(chart, at), setSize: (chart) => placeSpot(chart, at), setScale: (chart, key) => key === "x" && chart.over && placeSpot(chart, at) } });

function placeSpot(chart, at) {
  chart.over.querySelector(".spot")?.remove();
  if (at >= chart.scales.x.min && at <= chart.scales.x.max) chart.over.append(el("i", { class: "spot", style: { left: `${chart.valToPos(at, "x")}px` } }));
}

function mount(holder, setup, columns, ready) {
  // The width is known once the holder is on the page.
  requestAnimationFrame(() => {
    if (!holder.isConnected) return;
    const chart = new uPlot(setup(holder.clientWidth), columns, holder);
    shown.add([chart, holder]);
    widths.observe(holder);
    ready(chart);
  });
}

// The numbers behind a chart, made when somebody wants them.
const opened = new Set();

function numbers(key, label, rows) {
  const fill = (details) => { if (details.childElementCount === 1) { const { columns, rows: its } = rows(); details.append(table(columns, its, `Numbers: ${label}`)); } };
  const details = el("details", { class: "numbers", toggle: () => { opened[details.open ? "add" : "delete"](key); if (details.open) fill(details); } }, el("summary", {}, "Numbers"));
  if (opened.has(key)) { details.open = true; fill(details); }
  return details;
}

const MOST_BARS = 32; // beyond, neighbouring bins share one: 128 of a hundredth each would show nothing but noise

// Neighbouring numeric bins added up. Open ends stay open.
function merged(found) {
  const bins = found.edges.length + 1, share = Math.ceil(bins / MOST_BARS);
  if (found.kind === "categorical" || share === 1) return found;
  const sums = (counts) => counts.reduce((sum, count, i) => { sum[Math.floor(i / share)] = (sum[Math.floor(i / share)] ?? 0) + count; return sum; }, []);
  return { ...found, edges: found.edges.filter((_edge, i) => (i + 1) % share === 0), counts: sums(found.counts), reference: sums(found.reference) };
}

// Two shares for each bin: the reference wide and pale, the window narrow and strong.
export function distribution(whole, { key, name }) {
  const found = merged(whole);
  const share = (counts) => { const sum = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((c) => c / sum); };
  const now = share(found.counts), then = share(found.reference);
  // Those of a latency reach from microseconds to minutes: what is empty at both ends is left out.
  const filled = [...Array(Math.max(now.length, then.length)).keys()].filter((i) => now[i] || then[i]);
  const first = filled[0] ?? 0, bins = [...Array((filled.at(-1) ?? 0) + 1 - first).keys()].map((i) => i + first);
  const label = `Distribution of ${found.feature}: reference and ${name}`;
  const columns = [bins, bins.map((i) => then[i] ?? 0), bins.map((i) => now[i] ?? 0)];
  const bars = (part) => uPlot.paths.bars({ size: [part, 90], radius: 0.06 });
  const look = (colour, part) => ({ paths: bars(part), points: { show: false }, fill: () => css(colour), stroke: () => css(colour), width: 0, value: (_c, value) => (value === null ? "" : percent(value)) });
  const holder = el("div", { class: "chart bins", role: "img", "aria-label": label, "data-key": key });
  const setup = (width) => ({
    width, height: 200, padding: [8, 12, 0, 0], cursor: { points: { show: false }, drag: { x: false, y: false }, y: false }, legend: { markers: { width: 3 } },
    series: [{ label: "Bin", value: (_c, at) => (at === null ? "" : binName(found, at)) }, { label: "reference", ...look("--reference", 0.92) }, { label: name, ...look("--current", 0.5) }],
    scales: { x: { time: false, range: () => [first - 0.6, bins.at(-1) + 0.6] }, y: { range: (_c, _low, high) => [0, high * 1.06 || 1] } },
    axes: [
      { ...axisLook, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100], space: Math.min(110, 14 + 7 * Math.max(...bins.map((i) => tickName(found, i).length))), size: 28, values: (_c, splits) => splits.map((at) => (Number.isInteger(at) && at >= first && at <= bins.at(-1) ? tickName(found, at) : "")) },
      { ...axisLook, size: narrow() ? 48 : 58, space: 36, values: (_c, splits) => splits.map(percent) },
    ],
  });
  mount(holder, setup, columns, () => {});
  return el("div", {}, holder, numbers(key, label, () => ({
    columns: [["Bin", (i) => binName(found, i)], ["Reference", (i) => percent(then[i] ?? 0), "n"], ["Window", (i) => percent(now[i] ?? 0), "n"], ["Values", (i) => number(found.counts[i] ?? 0), "n"]],
    rows: bins,
  })));
}

function binName(found, i) {
  if (found.kind === "categorical") return found.labels[i] ?? "other";
  const [low, high] = [found.edges[i - 1], found.edges[i]];
  return `${low === undefined ? "below" : number(low)}${low === undefined || high === undefined ? " " : " to "}${high === undefined ? "and more" : number(high)}`;
}

function tickName(found, i) {
  if (found.kind === "categorical") { const name = found.labels[i] ?? "other"; return name.length > 12 ? `${name.slice(0, 11)}…` : name; }
  const low = found.edges[i - 1];
  return low === undefined ? `< ${number(found.edges[i])}` : number(low);
}

