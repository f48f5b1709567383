// All models with their state: what is wrong first.

import { ask } from "../api.js";
import { el, empty, number, pace, section, table, tile, time } from "../dom.js";
import { to } from "../routes.js";

export const title = () => "Models";

export async function load() {
  const [fleet, ledger] = await Promise.all([ask("/api/v1/fleet"), ask("/api/v1/ledger")]);
  return { fleet, ledger };
}

let wanted = "";

export function draw({ fleet, ledger }) {
  if (!fleet.items.length) return [section("Models", null, empty(nobody(ledger.total)))];
  const firing = fleet.items.filter((row) => row.firing);
  const tiles = el("div", { class: "tiles" },
    tile(firing.length === 1 ? "model with an open incident" : "models with open incidents", number(firing.length), firing.length ? "bad" : "good"),
    tile("models", number(fleet.items.length)),
    tile("events read", number(ledger.total.events)),
    tile("events unaccounted", number(ledger.total.unaccounted), ledger.total.unaccounted ? "bad" : "good"));
  const list = el("div", {});
  const show = () => list.replaceChildren(models(fleet.items.filter((row) => row.model.toLowerCase().includes(wanted.toLowerCase()))));
  show();
  const find = el("input", { type: "search", class: "find", placeholder: "Find a model", "aria-label": "Find a model", value: wanted, "data-key": "find-model", input: (event) => { wanted = event.target.value; show(); } });
  return [tiles, section("Models", fleet.items.length > 8 && find, list)];
}

function nobody(total) {
  return total.calibrating > 0
    ? `${number(total.events)} events read; a new model appears after its first 5,000.`
    : "No model yet: write a prediction to Kafka, or run driftline apply.";
}

export function stateOf(row) {
  if (row.firing) return el("span", { class: `chip ${row.severity === "info" || row.severity === "warning" ? "warning" : "firing"}` }, row.severity);
  return row.bins_id ? el("span", { class: "chip resolved" }, "quiet") : el("span", { class: "chip" }, "calibrating");
}

export function often(perSecond) {
  const { unit, each } = pace(perSecond);
  return `${number(Number((perSecond * each).toPrecision(3)))} / ${unit}`;
}

function models(rows) {
  if (!rows.length) return empty("No model has that in its name.");
  const more = (row) => (row.firing > 1 ? el("span", { class: "soft" }, ` and ${number(row.firing - 1)} more`) : null);
  return table([
    ["Model", (row) => el("a", { href: to.model(row.model) }, row.model), "name"],
    ["State", stateOf],
    ["Worst open incident", (row) => (row.firing ? el("span", {}, el("a", { href: to.incident(row.incident_id) }, row.title), more(row)) : ""), "text"],
    ["Versions", (row) => (row.serving.length ? row.serving.join(", ") : "–"), "narrow"],
    ["Requests", (row) => (row.last_ms === null ? "–" : often(row.rate)), "n"],
    ["Features", (row) => number(row.features), "n"],
    ["Last window (UTC)", (row) => time(row.last_ms)],
  ], rows, "Models", true);
}
