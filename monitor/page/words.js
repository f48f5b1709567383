// What the API's terms are called on the page.

export const CAUSES = {
  pipeline_fault: "Pipeline fault", benign_shift: "Benign shift", drift: "Drift", concept_drift: "Concept drift",
  bad_release: "Bad release", outage: "Outage", unknown: "Unknown cause",
};
const ADVICE = {
  fix_data: "Fix the data", watch: "Watch", retrain: "Retrain", rollback: "Roll back", page: "Call someone", investigate: "Investigate",
};

export const causeOf = (incident) => CAUSES[incident.cause] ?? incident.cause;

export function adviceOf(incident) {
  const advice = ADVICE[incident.advice] ?? incident.advice;
  return `${advice}${incident.rollback_to ? ` to version ${incident.rollback_to}` : ""}${incident.retrain_blocked ? "; retrain is blocked" : ""}`;
}
