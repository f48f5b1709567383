// The page: one view at a time, chosen by the address, drawn anew when what the API says has changed.

import { KeyNeeded, follow, keep } from "./api.js";
import { forget } from "./charts.js";
import { el, empty, section } from "./dom.js";
import { parse } from "./routes.js";
import * as feature from "./views/feature.js";
import * as fleet from "./views/fleet.js";
import * as incident from "./views/incident.js";
import * as incidents from "./views/incidents.js";
import * as model from "./views/model.js";
import * as pipeline from "./views/pipeline.js";

const EVERY_MS = 5000, LIVE_EVERY_MS = 30000; // the ledger grows all the time, of which the stream does not tell
const unknown = { title: () => "Not found", load: async () => null, draw: () => [section("Not found", null, empty("This address shows nothing."), el("a", { href: "#/" }, "All models"))] };
const VIEWS = { feature, fleet, incident, incidents, model, pipeline, unknown };
const NAV = { models: ["fleet", "model", "feature"], incidents: ["incidents", "incident"], pipeline: ["pipeline"] };

const $ = (id) => document.getElementById(id);
let drawn = { hash: null, said: null }, drawing = false, again = false;

const placeOf = (hash) => hash?.split("?")[0];

// A choice replaces the address, so that "back" leads to the view before.
function go(hash) {
  history.replaceState(null, "", hash);
  refresh();
}

async function draw() {
  const hash = location.hash, route = parse(hash), view = VIEWS[route.view];
  const found = await view.load(route);
  if (location.hash !== hash) return; // the reader has gone on
  const said = JSON.stringify(found);
  if (drawn.hash !== hash || drawn.said !== said) show(view.draw(found, route, go), placeOf(drawn.hash) === placeOf(hash));
  drawn = { hash, said };
  document.title = `${view.title(route, found)} · Driftline`;
  for (const [name, views] of Object.entries(NAV)) {
    if (views.includes(route.view)) $(`nav-${name}`).setAttribute("aria-current", "page");
    else $(`nav-${name}`).removeAttribute("aria-current");
  }
}

// New numbers must not take the reader's place: what had the focus gets it again, and typed text stays.
function show(nodes, same) {
  const main = $("main"), active = document.activeElement?.dataset?.key;
  const typed = new Map([...main.querySelectorAll("input[data-key]")].map((input) => [input.dataset.key, input.value]));
  const [x, y] = [scrollX, scrollY];
  main.replaceChildren(...nodes);
  main.hidden = false;
  performance.mark("drawn");
  forget();
  if (!same) return void scrollTo(0, 0);
  for (const input of main.querySelectorAll("input[data-key]")) if (typed.has(input.dataset.key)) input.value = typed.get(input.dataset.key);
  if (active) main.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus({ preventScroll: true });
  scrollTo(x, y);
}

async function refresh() {
  again = drawing;
  if (drawing) return;
  drawing = true;
  try {
    await draw();
    $("status").classList.remove("bad");
    $("status").removeAttribute("role");
    $("status").title = live ? "Changes come as they happen" : "Asked every few seconds";
    $("status").textContent = `updated ${new Date().toISOString().slice(11, 19)} UTC`;
    $("login").hidden = true;
  } catch (error) {
    $("status").classList.add("bad");
    $("status").setAttribute("role", "alert");
    $("status").textContent = error instanceof KeyNeeded ? "the API asks for a key or a token" : `not updated: ${error.message}`;
    if (error instanceof KeyNeeded) $("login").hidden = false;
  } finally {
    drawing = false;
  }
  if (again) refresh();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  keep($("key").value);
  $("key").value = "";
  refresh();
});
$("skip").addEventListener("click", () => $("main").focus());
window.addEventListener("hashchange", refresh);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

let live = false, next;
function soon() {
  clearTimeout(next);
  next = setTimeout(() => { if (!document.hidden && $("login").hidden) refresh(); soon(); }, live ? LIVE_EVERY_MS : EVERY_MS);
}
soon();
await refresh(); // first, what the reader came for
follow(refresh, (hears) => {
  live = hears;
  $("status").classList.toggle("live", hears);
  soon();
});
