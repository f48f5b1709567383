// Addresses of views. They stand behind the #, so that any proxy may serve the page, and are permanent: what is linked once must open always.
//
//   #/                                    all models
//   #/models/NAME                         one model        ?version=&segment=&size=&statistic=&span=&until=&metric=
//   #/models/NAME/features/FEATURE        one feature      the same, and &start= of a window and &by=version|segment
//   #/incidents  #/incidents/ID           all incidents, one
//   #/pipeline                            the ledger and the health of the pipeline

export const to = {
  fleet: () => "#/",
  model: (name, choices) => address(["models", name], choices),
  feature: (name, feature, choices) => address(["models", name, "features", feature], choices),
  incidents: () => "#/incidents",
  incident: (id) => address(["incidents", id]),
  pipeline: () => "#/pipeline",
};

function address(parts, choices = {}) {
  const known = Object.entries(choices).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = known.length ? `?${new URLSearchParams(known)}` : "";
  return `#/${parts.map(encodeURIComponent).join("/")}${query}`;
}

// What an address shows: {view, model, feature, id, choices}.
export function parse(hash) {
  if (hash.startsWith("#model=")) { // of releases before there were paths
    const { model, ...choices } = Object.fromEntries(new URLSearchParams(hash.slice(1)));
    return { view: "model", model, choices };
  }
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const choices = Object.fromEntries(new URLSearchParams(query));
  const [kind, name, more, feature] = path.split("/").filter(Boolean).map(decoded);
  if (kind === undefined) return { view: "fleet", choices };
  if (kind === "models" && name && more === undefined) return { view: "model", model: name, choices };
  if (kind === "models" && more === "features" && feature) return { view: "feature", model: name, feature, choices };
  if (kind === "incidents") return name ? { view: "incident", id: name, choices } : { view: "incidents", choices };
  if (kind === "pipeline") return { view: "pipeline", choices };
  return { view: "unknown", choices };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a link that was cut off in the middle of a %2F
  }
}

// The same view under another choice.
export function choosing({ view, model, feature, id, choices }, more) {
  const merged = { ...choices, ...more };
  if (view === "model") return to.model(model, merged);
  if (view === "feature") return to.feature(model, feature, merged);
  if (view === "incident") return address(["incidents", id], merged);
  return address(view === "fleet" ? [] : [view], merged);
}
