// Elements and words. Text goes in as text nodes only: nothing that an event says is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
export const DAY_MS = 86400000;

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Functions listen, `style` is set property by property (the page's policy forbids the attribute), the rest are attributes.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "style") Object.entries(value).forEach(([property, to]) => node.style.setProperty(property, to));
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// `columns` are [name, value of a row, class]; a value may be a node. On a phone each row of a `stacked` table is a block of its own.
export function table(columns, rows, caption, stacked = false) {
  const cell = (row, [name, value, kind]) => {
    const shown = value(row) ?? "–";
    return el("td", { class: shown === "" ? `${kind} none` : kind, "data-label": name }, shown instanceof Node ? shown : String(shown));
  };
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: stacked && "stacked" },
      el("thead", {}, el("tr", {}, columns.map(([name, , kind]) => el("th", { class: kind, scope: "col" }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((column) => cell(row, column)))))));
}

// To another tab; nothing where there is no address.
export const elsewhere = (words, address) => address && el("a", { class: "elsewhere", href: address, target: "_blank", rel: "noopener" }, words);

export const empty = (text) => el("p", { class: "empty" }, text);
export const hint = (text) => el("p", { class: "hint" }, text);

export function section(title, controls, ...children) {
  return el("section", { "aria-label": title }, el("div", { class: "bar" }, el("h2", {}, title), controls), ...children);
}

export const tile = (words, value, kind = "") => el("div", { class: `tile ${kind} ${value.length > 10 ? "long" : ""}` }, el("b", {}, value), el("span", {}, words));

// A choice whose value stands in the address; `key` finds it again after the page was drawn anew.
export function select(words, key, values, chosen, name, onChoose) {
  return el("label", {}, words, " ", el("select", { "data-key": key, change: (event) => onChoose(event.target.value) },
    values.map((value) => el("option", { value, selected: String(value) === String(chosen) }, name(value)))));
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

export const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 3 })} %`);

// How often in a unit of time that makes a number to read: {unit, each}, for `perSecond` at its highest.
export function pace(perSecond) {
  const units = [["s", 1], ["min", 60], ["h", 3600]];
  const [unit, each] = units.find(([, seconds]) => perSecond * seconds >= 1) ?? ["d", 86400];
  return { unit, each };
}

export function time(ms) {
  return ms === null || ms === undefined ? "–" : new Date(ms).toISOString().slice(0, 16).replace("T", " ");
}

export const day = (ms) => time(ms).slice(0, 10);
export const moment = (ms, sizeMs) => (sizeMs % DAY_MS ? time(ms) : day(ms)); // of a window: whole days need no hours

export function duration(ms) {
  const units = [["d", DAY_MS], ["h", 3600000], ["min", 60000], ["s", 1000]];
  const [unit, size] = units.find(([, s]) => ms >= s) ?? ["ms", 1];
  return `${Number((ms / size).toFixed(1))} ${unit}`;
}

// Where one entry of a timeline stands beside another: names of versions and the like over a chart that is `width` wide.
// `marks` are in the order of `at`; one that would cover another, or be crossed by its line, stands lower.
export function placed(marks, width, { letter = 7, lines = 4 } = {}) {
  const ends = [];
  return marks.map((mark) => {
    const room = letter * mark.name.length + 8, from = Math.max(0, Math.min(mark.at, width - room));
    const line = 1 + ends.findLastIndex((end) => end > from);
    ends[line] = from + room;
    return { ...mark, from, line: Math.min(line, lines) };
  });
}
