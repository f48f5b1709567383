// The API as the page asks it: with the key or token of this tab, if there is one.

const KEY = "driftline-key";

export class KeyNeeded extends Error {}

let tellOfKey = () => {};

export function keep(key) {
  sessionStorage.setItem(KEY, key);
  tellOfKey();
}

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  // A token of an issuer has three parts. A key goes beside what a proxy may ask for in Authorization.
  return !key ? {} : key.split(".").length === 3 ? { Authorization: `Bearer ${key}` } : { "X-API-Key": key };
};

let grafana = null; // where the dashboards are, if the API says so with its models

// The address of one of grafana/dashboards, or null; times in epoch milliseconds.
export function board(name, model, from, to, variables = {}) {
  const query = new URLSearchParams({ "var-model": model, ...variables, from, to });
  return grafana && `${grafana}/d/driftline-${name}?${query}`;
}

export const modelPath = (model) => `/api/v1/models/${encodeURIComponent(model)}`;

// Relative to the page, which a proxy may serve below a path of its own.
const at = (path) => new URL(path.slice(1), document.baseURI);

async function told(answer) {
  if (answer.status === 401) throw new KeyNeeded();
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.detail ?? answer.statusText), { status: answer.status });
  grafana = /^<([^>]+)>; rel="related"; title="Grafana"$/.exec(answer.headers.get("Link") ?? "")?.[1] ?? grafana;
  return body;
}

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return told(await fetch(at(query.size ? `${path}?${query}` : path), { headers: headers() }));
}

// What was not found is null.
export const askIfAny = (path, parameters) => ask(path, parameters).catch((error) => {
  if (error.status === 404) return null;
  throw error;
});

const RETRY_MS = 3000;

// Calls `changed` whenever something was stored, and `live` with whether we hear of it. A stream by fetch, since an EventSource cannot send the key.
export async function follow(changed, live) {
  for (let first = true; ;) {
    try {
      await visible();
      const leave = new AbortController();
      const hidden = () => document.hidden && leave.abort();
      document.addEventListener("visibilitychange", hidden);
      try {
        const answer = await fetch(at("/api/v1/changes"), { headers: headers(), signal: leave.signal });
        if (answer.status === 401) await new Promise((resolve) => { tellOfKey = resolve; });
        if (answer.ok) {
          live(true);
          const words = answer.body.pipeThrough(new TextDecoderStream()).getReader();
          for (let rest = "", part = await words.read(); !part.done; part = await words.read()) {
            const events = (rest + part.value).split("\n\n");
            rest = events.pop();
            const news = events.some((event) => event.startsWith("event: changed"));
            if (news && !first) changed();
            first &&= !news; // the very first only says what the page, just opened, has asked for itself
          }
        }
      } finally {
        document.removeEventListener("visibilitychange", hidden);
      }
    } catch {
      // The stream broke, or the tab was left: the next round tells.
    }
    live(false);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

const visible = () => new Promise((resolve) => {
  const look = () => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", look);
    resolve();
  };
  document.addEventListener("visibilitychange", look);
  look();
});

export async function order(incident, kind, body) {
  const path = `/api/v1/incidents/${encodeURIComponent(incident)}/${kind}`;
  return told(await fetch(at(path), { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}
