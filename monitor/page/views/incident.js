// One incident: cause, advice, evidence, what happened and what was sent, and the orders that a person may give.

import { ask, askIfAny, board, modelPath, order } from "../api.js";
import { distribution } from "../charts.js";
import { DAY_MS, duration, el, elsewhere, empty, hint, moment, number, section, table, time } from "../dom.js";
import { to } from "../routes.js";
import { adviceOf, causeOf } from "../words.js";
import { stateChip, when } from "./incidents.js";

const SILENCES = ["1h", "4h", "1d", "7d"];
const AFTER = 20; // windows that a link to a feature shows beyond the evidence
const AUTHOR = "driftline-author";

export const title = (_route, found) => found?.incident?.title ?? "Incident";

export async function load({ id }) {
  const incident = await askIfAny(`/api/v1/incidents/${encodeURIComponent(id)}`);
  if (!incident) return { incident };
  const [deliveries, model] = await Promise.all([ask("/api/v1/deliveries", { incident_id: id, limit: 100 }), askIfAny(modelPath(incident.model))]);
  return { incident, deliveries: deliveries.items, sizes: model?.sizes_ms ?? [], actions: model?.spec.actions ?? {}, picture: model && await pictureOf(incident, model) };
}

// The picture of the story: what the first named feature looked like when it was found. The evidence of an online detector
// is of panes: then the window that they are in is shown.
async function pictureOf(incident, model) {
  const first = incident.evidence.find((one) => one.feature);
  if (!first) return null;
  const size = sizeOf(first, model.sizes_ms), path = `${modelPath(incident.model)}/features/${encodeURIComponent(first.feature)}`;
  const where = { version: first.version, segment: first.segment, size_ms: size };
  const { items } = await ask(`${path}/series`, { ...where, from_ms: Math.max(0, first.start_ms - size + 1), to_ms: first.start_ms + 1, limit: 1 });
  if (!items.length) return null;
  const start_ms = items[0].start_ms;
  return { feature: first.feature, start_ms, size, shown: await ask(path, { ...where, start_ms }) };
}

const sizeOf = (evidence, sizes) => sizes.find((size) => size === evidence.end_ms - evidence.start_ms) ?? Math.min(...sizes, DAY_MS);

export function draw({ incident, deliveries, sizes, actions, picture }) {
  if (!incident) return [section("Incident", null, empty("There is no incident of this number."))];
  const facts = [["Cause", causeOf(incident)], ["Advice", adviceOf(incident)], ["Model", el("a", { href: to.model(incident.model, { version: incident.version }) }, incident.model)], ["Version", incident.version],
    ["When", when(incident)], ...(incident.acknowledged_by ? [["Acknowledged by", incident.acknowledged_by]] : [])];
  return [
    el("section", { class: `story ${incident.state}`, "aria-label": "What happened" },
      el("p", { class: "meta" }, stateChip(incident), `incident ${incident.id} `,
        elsewhere("Grafana", board("incident", incident.model, incident.onset_ms - DAY_MS, (incident.resolved_ms ?? incident.updated_ms) + DAY_MS, { "var-incident": incident.id }))),
      el("h1", {}, incident.title), el("p", { class: "reason" }, incident.reason),
      el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      incident.state === "firing" ? orders(incident, actions) : null),
    section("Evidence", null, evidence(incident, sizes)),
    picture && section(`${picture.feature} when it was found`, null, hint(`${number(picture.shown.n)} values of the window of ${moment(picture.start_ms, picture.size)} UTC, beside the reference.`), distribution(picture.shown, { key: "story", name: "this window" })),
    section("Timeline", null, el("ol", { class: "timeline" }, incident.timeline.map((entry) => el("li", {}, el("time", { datetime: new Date(entry.at_ms).toISOString() }, `${time(entry.at_ms)} UTC`), " ", entry.what)))),
    section("Deliveries", null, deliveries.length ? table([["Target", (d) => d.target], ["Action", (d) => d.action], ["Outcome", (d) => el("span", { class: `chip ${d.outcome === "delivered" ? "resolved" : d.outcome === "refused" || d.outcome === "expired" ? "firing" : ""}` }, d.outcome.replace("_", " "))], ["Attempts", (d) => d.attempts, "n"], ["At (UTC)", (d) => time(d.at_ms)], ["Detail", (d) => d.detail, "text"]], deliveries, "Deliveries", true) : empty("Nothing was sent.")),
  ].filter(Boolean);
}

function evidence(incident, sizes) {
  if (!incident.evidence.length) return empty("None is kept.");
  const span = (e) => e.end_ms - e.start_ms;
  const link = (e) => (e.feature ? el("a", { href: to.feature(incident.model, e.feature, { version: e.version, segment: e.segment, size: sizeOf(e, sizes), start: e.start_ms - (e.start_ms % sizeOf(e, sizes)), until: e.end_ms + AFTER * sizeOf(e, sizes), statistic: e.statistic }) }, e.feature) : "–");
  const beyond = (e) => (e.value === null || !e.limit ? "–" : `${number(e.value / e.limit)} ×`);
  return table([["Feature", link, "name"], ["Statistic", (e) => e.statistic], ["Value", (e) => number(e.value), "n"], ["Limit", (e) => number(e.limit), "n"], ["Beyond", beyond, "n"], ["Which values", (e) => e.note, "text"],
    ["Version", (e) => e.version], ["Segment", (e) => e.segment || "all"], ["From (UTC)", (e) => time(e.start_ms)], ["Window", (e) => (span(e) ? duration(span(e)) : "–")]], incident.evidence, "Evidence", true);
}

function orders(incident, actions) {
  const said = el("p", { class: "hint", role: "status" });
  const author = el("input", { id: "author", "data-key": "author", required: true, maxlength: 128, autocomplete: "name", value: localStorage.getItem(AUTHOR) ?? "" });
  const comment = el("input", { "data-key": "comment", maxlength: 500 });
  const lasts = el("select", { "aria-label": "How long to be silent", "data-key": "lasts" }, SILENCES.map((one) => el("option", { value: one, selected: one === "4h" }, one)));
  const give = (kind, more = () => ({})) => async () => {
    if (!author.reportValidity()) return;
    localStorage.setItem(AUTHOR, author.value);
    said.className = "hint";
    const buttons = said.parentElement.querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; }); // one order after the other
    try {
      await order(incident.id, kind, { author: author.value, comment: comment.value, ...more() });
      said.textContent = `Asked to ${kind}. The detector decides; the timeline will tell.`;
      comment.value = "";
    } catch (error) {
      said.textContent = error.message;
      said.className = "hint bad";
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  };
  const action = ["retrain", "rollback"].includes(incident.advice) ? incident.advice : null;
  const decidable = action && actions[action] && actions[action].approval !== "auto";
  return el("form", { class: "orders", "aria-label": "Orders", submit: (event) => event.preventDefault() },
    el("label", {}, "Your name ", author), el("label", {}, "Comment ", comment),
    el("div", { class: "bar" },
      incident.acknowledged_by ? null : el("button", { type: "button", class: "first", "data-key": "acknowledge", click: give("acknowledge") }, "Acknowledge"),
      el("span", { class: "pair" }, el("button", { type: "button", "data-key": "silence", click: give("silence", () => ({ for: lasts.value })) }, "Silence for"), lasts),
      decidable ? el("button", { type: "button", "data-key": "approve", click: give("approve") }, `Approve ${action}`) : null,
      decidable ? el("button", { type: "button", "data-key": "reject", click: give("reject") }, `Reject ${action}`) : null),
    said);
}
