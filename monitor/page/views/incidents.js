// Incidents in a list, the open ones first.

import { ask } from "../api.js";
import { el, empty, section, select, time } from "../dom.js";
import { choosing, to } from "../routes.js";
import { adviceOf, causeOf } from "../words.js";

export const title = () => "Incidents";

export const load = ({ choices }) => ask("/api/v1/incidents", { limit: 200, state: choices.state });

export function draw({ items, truncated }, route, go) {
  const choose = select("State", "state", ["", "firing", "resolved"], route.choices.state ?? "", (name) => name || "all", (value) => go(choosing(route, { state: value })));
  return [section("Incidents", choose, incidentList(items, "None. Quiet is good.", true), truncated ? empty("The last 200 are shown.") : null)];
}

const PLACE = { firing: 0, pending: 1, resolved: 2 };

export function incidentList(incidents, none = "None.", withModel = false) {
  if (!incidents.length) return empty(none);
  const sorted = [...incidents].sort((a, b) => PLACE[a.state] - PLACE[b.state] || b.opened_ms - a.opened_ms);
  return el("ul", { class: "cards" }, sorted.map((incident) => el("li", { class: incident.state },
    el("a", { href: to.incident(incident.id) }, incident.title),
    el("p", { class: "meta" }, stateChip(incident), `${withModel ? `${incident.model} · ` : ""}${causeOf(incident)} · ${adviceOf(incident)} · ${when(incident)}`))));
}

export const stateChip = (incident) => el("span", { class: `chip ${incident.state}` }, incident.state === "firing" ? incident.severity : incident.state);

export function when(incident) {
  const again = incident.reopened_ms ? `, again ${time(incident.reopened_ms)}` : "";
  const over = incident.resolved_ms ? `, resolved ${time(incident.resolved_ms)}` : "";
  return `since ${time(incident.onset_ms)}, found ${time(incident.opened_ms)}${again}${over} UTC`;
}
