// The ledger and the health of the pipeline: what became of every event, how fresh each model is, what was sent.

import { ask } from "../api.js";
import { el, empty, hint, number, section, table, tile, time } from "../dom.js";
import { to } from "../routes.js";

const BEHIND = 20; // models, of which the stalest are shown

export const title = () => "Pipeline";

export async function load() {
  const [ledger, deliveries, fleet] = await Promise.all([ask("/api/v1/ledger"), ask("/api/v1/deliveries", { limit: 50 }), ask("/api/v1/fleet")]);
  return { ledger, deliveries: deliveries.items, fleet: fleet.items };
}

export function draw({ ledger, deliveries, fleet }) {
  const { total } = ledger;
  const failed = deliveries.filter((one) => ["refused", "expired"].includes(one.outcome)).length;
  return [
    el("div", { class: "tiles" },
      tile("events read", number(total.events)),
      tile("unaccounted", number(total.unaccounted), total.unaccounted ? "bad" : "good"),
      tile("pending", number(total.pending)),
      tile("in open windows", number(total.open)),
      tile("late", number(total.late)),
      tile("dead letters", number(total.dead), total.dead ? "bad" : "good"),
      tile("offsets passed", number(total.passed), total.passed ? "bad" : "good"),
      tile(`of the last ${number(deliveries.length)} deliveries failed`, number(failed), failed ? "bad" : "good")),
    section("Ledger", null, hint("Every event read is in a window, late, calibrating, pending or a dead letter; the rest would be unaccounted."), accounts(ledger),
      ...ledger.holes.map((hole) => hint(`Partition ${hole.partition}: offsets ${hole.start} to ${hole.end} were passed: ${hole.reason}`))),
    section("Deliveries", null, deliveries.length ? table([["At (UTC)", (d) => time(d.at_ms)], ["Target", (d) => d.target], ["Action", (d) => d.action], ["Outcome", (d) => d.outcome.replace("_", " ")], ["Attempts", (d) => d.attempts, "n"], ["Incident", (d) => el("a", { href: to.incident(d.incident_id) }, d.incident_id.slice(0, 8))], ["Detail", (d) => d.detail, "text"]], deliveries, "Deliveries", true) : empty("Nothing was sent yet.")),
    section("Freshness", null, hint(`When the last window of each model ended, in event time, which a replay of history may leave far behind the clock.${fleet.length > BEHIND ? ` The ${BEHIND} that are furthest behind.` : ""}`), fleet.length ? freshness(fleet) : empty("No model yet.")),
  ];
}

function freshness(fleet) {
  const behind = [...fleet].sort((a, b) => (a.last_ms ?? 0) - (b.last_ms ?? 0)).slice(0, BEHIND);
  return table([["Model", (row) => el("a", { href: to.model(row.model) }, row.model), "name"], ["Last window ends (UTC)", (row) => time(row.last_ms)], ["Serving", (row) => row.serving.join(", ") || "–"],
    ["Reference", (row) => row.bins_id || "calibrating"]], behind, "Freshness of models", true);
}

function accounts(report) {
  if (!report.rows.length) return empty("No events yet.");
  const count = (name, words = name) => [words, (row) => number(row[name]), "n"];
  return table([["Partition", (row) => row.partition], ["Offsets", (row) => (row.end === undefined ? "" : `${number(row.start)} – ${number(row.end)}`)], count("events"), count("on_time", "on time"), count("late"),
    count("dead", "dead letters"), count("calibrating"), count("pending"), count("unaccounted")], [...report.rows, { ...report.total, partition: "total" }], "Ledger");
}
