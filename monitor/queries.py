"""The questions that ``monitor.store`` asks ClickHouse.

``{name:Type}`` is bound by the server, never pasted. ``FINAL`` gives the newest revision of each key. A parameter of ``NULL`` means "any".
"""

from __future__ import annotations

from typing import Final

from monitor.estimation import PREFIX
from monitor.latency import CELLS
from monitor.profile import LATENCY, UNSEEN_KEPT

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
ROLLED_MS: Final = (HOUR_MS, DAY_MS)
MAX_HOLES: Final = 100  # of one source partition

# {x:Nullable(T)} IS NULL OR ...: "any" without a second form of each query.
_ANY_VERSION: Final = "({version:Nullable(String)} IS NULL OR version = {version:Nullable(String)})"
_ANY_SEGMENT: Final = "({segment:Nullable(String)} IS NULL OR segment = {segment:Nullable(String)})"
_ANY_SIZE: Final = "({size_ms:Nullable(UInt64)} IS NULL OR size_ms = {size_ms:Nullable(UInt64)})"
_TIME: Final = (
    "start >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')"
    " AND start < fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')"
)
_WHERE: Final = (
    f"model = {{model:String}} AND {_ANY_VERSION} AND {_ANY_SEGMENT} AND {_ANY_SIZE} AND {_TIME}"
)
_NEWEST: Final = (
    "ORDER BY start_ms DESC, version, segment, size_ms LIMIT {limit:UInt32} OFFSET {skip:UInt32}"
)
_START: Final = "toUnixTimestamp64Milli(start) AS start_ms"

_ONE_MODEL: Final = "({model:Nullable(String)} IS NULL OR model = {model:Nullable(String)})"
MODELS: Final = f"""
SELECT model, spec, bins_id, versions, segments, sizes_ms,
  if(empty(versions), NULL, first_ms) AS first_ms, if(empty(versions), NULL, last_ms) AS last_ms
FROM (SELECT model, spec, bins_id FROM models FINAL WHERE {_ONE_MODEL}) AS m
LEFT JOIN (
  SELECT model, arraySort(groupUniqArray(version)) AS versions,
    arraySort(groupUniqArray(segment)) AS segments, arraySort(groupUniqArray(size_ms)) AS sizes_ms,
    toUnixTimestamp64Milli(min(start)) AS first_ms, max(toUnixTimestamp64Milli(start) + size_ms) AS last_ms
  FROM windows WHERE feature = '' AND {_ONE_MODEL} GROUP BY model
) AS w USING (model) ORDER BY model"""  # noqa: S608 - constants
# The window that ends first is of the smallest size that there was then. Requests: of the smallest size there is, as in STORED.
VERSIONS: Final = """
SELECT version, argMin(start_ms, (end_ms, -toInt64(size_ms))) AS first_ms, max(end_ms) AS last_ms, sumIf(n, size_ms = smallest) AS requests
FROM (
  SELECT version, size_ms, toUnixTimestamp64Milli(start) AS start_ms, start_ms + size_ms AS end_ms, n,
    (SELECT min(size_ms) FROM windows WHERE model = {model:String} AND feature = '' AND segment = '') AS smallest
  FROM windows FINAL WHERE model = {model:String} AND feature = '' AND segment = '' AND version != {other:String}
)
GROUP BY version ORDER BY first_ms DESC, version LIMIT {limit:UInt32}"""
# When each binning was last published: `models` is one partition, so its offsets are an order.
_PUBLISHED: Final = "SELECT bins_id, max(revision) AS published FROM bins WHERE model = {model:String} GROUP BY bins_id"
# A window in which the reference changed has a closed part in each binning: `bins_id` is the newest of them.
WINDOWS: Final = f"""
SELECT version, segment, size_ms, {_START}, sum(w.n) AS n, sum(w.errors) AS errors,
  countIf(contribution != '') AS contributions, argMax(bins_id, (published, bins_id)) AS bins_id,
  toUInt32(uniqExact(w.bins_id)) AS binnings
FROM windows AS w FINAL LEFT JOIN ({_PUBLISHED}) AS p USING (bins_id)
WHERE feature = '' AND {_WHERE}
GROUP BY version, segment, size_ms, start {_NEWEST}"""  # noqa: S608 - constants
# Counts of the latency, late contributions included. The bins of all references are the same, so they add up, but for those of older releases.
LATENCIES: Final = f"""
SELECT version, segment, size_ms, {_START}, sumForEach(w.counts) AS counts
FROM windows AS w FINAL WHERE feature = '{LATENCY}' AND length(w.counts) = {CELLS} AND {_WHERE}
GROUP BY version, segment, size_ms, start"""  # noqa: S608 - constants
FEATURE: Final = f"""
SELECT {{feature:String}} AS feature, {_START}, sum(w.n) AS n, sum(w.missing) AS missing, sum(w.nan) AS nan,
  sum(w.pos_inf) AS pos_inf, sum(w.neg_inf) AS neg_inf, sum(w.wrong_type) AS wrong_type,
  sum(w.below) AS below, sum(w.above) AS above, sum(w.off_grid) AS off_grid,
  sum(w.mean * w.n) / nullIf(sumIf(w.n, w.mean IS NOT NULL), 0) AS mean,
  sum((w.variance + w.mean * w.mean) * w.n) / nullIf(sumIf(w.n, w.mean IS NOT NULL), 0) - mean * mean AS variance
FROM windows AS w FINAL WHERE w.feature = {{feature:String}} AND {_WHERE}
GROUP BY start ORDER BY start_ms DESC LIMIT {{limit:UInt32}} OFFSET {{skip:UInt32}}"""  # noqa: S608 - constants
DISTRIBUTION: Final = f"""
SELECT feature, bins_id, b.kind AS kind, b.edges AS edges, b.labels AS labels, b.counts AS reference, w.counts AS counts, w.n AS n,
  w.unseen AS unseen, toUInt64(sum(w.n) OVER () - w.n) AS elsewhere
FROM (
  SELECT feature, bins_id, sumForEach(w.counts) AS counts, sum(w.n) AS n, any(w.unseen) AS unseen
  FROM windows AS w FINAL WHERE feature = {{feature:String}} AND {_WHERE} GROUP BY feature, bins_id
) AS w
INNER JOIN (SELECT * FROM bins FINAL WHERE feature = {{feature:String}}) AS b USING (bins_id, feature)
ORDER BY b.revision DESC, bins_id LIMIT 1"""  # noqa: S608 - constants
_WINDOWS: Final = "windows AS w FINAL"
_LATE: Final = "countIf(contribution != '')"
_SUMMED: Final = (
    "n, errors, counts, missing, `nan`, pos_inf, neg_inf, wrong_type, below, above, off_grid"
)
_KEPT: Final = f"model, version, segment, size_ms, start, feature, bins_id, {_SUMMED}, mean, variance, unseen"  # fmt: skip
_EVENTS: Final = f"feature = '' AND segment = '' AND model = {{model:String}} AND {_ANY_SIZE} AND {_TIME}"  # fmt: skip
# Of each hour or day what it is best known from: its own window, or one of the sizes that it was rolled up from.
_BEST: Final = f"""
SELECT start, argMax(source_ms, (events, source_ms)) FROM (
  SELECT start, size_ms AS source_ms, sum(n) AS events FROM windows FINAL WHERE {_EVENTS} GROUP BY start, source_ms
  UNION ALL SELECT start, source_ms, sum(n) AS events FROM windows_rolled FINAL WHERE {_EVENTS} GROUP BY start, source_ms
) GROUP BY start"""  # noqa: S608 - constants
_WITH_ROLLED: Final = f"""(
  SELECT * FROM (
    SELECT {_KEPT}, size_ms AS source_ms, toUInt64(contribution != '') AS contributions FROM windows FINAL WHERE {_WHERE}
    UNION ALL SELECT {_KEPT}, source_ms, contributions FROM windows_rolled FINAL WHERE {_WHERE}
  ) WHERE (start, source_ms) IN ({_BEST})
) AS w"""  # noqa: S608 - constants


def rolled(query: str) -> str:
    """A question about windows of one size, asked of what was rolled up to that size as well (``monitor.rollups``)."""
    return query.replace(_WINDOWS, _WITH_ROLLED).replace(_LATE, "sum(w.contributions)")


ROLL_STATE: Final = """
SELECT toUInt32(now()) AS now_s, toUInt32(max(until)) AS until_s FROM rollup_state"""
ROLLED_UNTIL: Final = "INSERT INTO rollup_state (name, until) VALUES ('windows', {until:UInt32})"  # monotone: the later one wins
OWN_SIZES: Final = "SELECT model, JSONExtract(spec, 'windows', 'sizes', 'Array(UInt64)') AS sizes FROM models FINAL"
# Every window has a row of its own, so that the features need not be read.
TOUCHED: Final = f"""
SELECT model, intDiv(start_ms, {DAY_MS}) AS day, min(start_ms) AS first_ms, max(start_ms) AS last_ms, groupUniqArray(size_ms) AS sizes
FROM (SELECT model, size_ms, {_START} FROM windows WHERE feature = '' AND stored_at >= toDateTime({{since_s:UInt32}}, 'UTC'))
GROUP BY model, day ORDER BY day, model"""  # noqa: S608 - constants


def _roll(table: str, source: str, contributions: str, which: str) -> str:
    """Sums of the rows of ``table`` that ``which`` names, in windows of ``size_ms``.

    Moments are added up about one of the means: sums of squares would lose a small variance far from zero. Texts of unseen categories are cut as ``profile.keep_hints`` does.
    """
    of_span = f"model = {{model:String}} AND {_TIME} AND {which}"
    place = (
        "version, segment, intDiv(toUnixTimestamp64Milli(start), {size_ms:UInt64}) AS at, bins_id"
    )
    summed = ", ".join(
        f"sum(w.{name}) AS {name}" for name in _SUMMED.split(", ") if name != "counts"
    )
    return f"""
INSERT INTO windows_rolled (model, size_ms, start, source_ms, revision, contributions, version, segment, feature, bins_id, {_SUMMED}, unseen, mean, variance)
SELECT {{model:String}}, {{size_ms:UInt64}}, fromUnixTimestamp64Milli(toInt64(at * {{size_ms:UInt64}}), 'UTC'), source, revision, late,
  version, segment, feature, bins_id, {_SUMMED},
  CAST(arraySlice(arraySort(x -> (CRC32(x.1), x.1), CAST(texts, 'Array(Tuple(String, UInt64))')), 1, {UNSEEN_KEPT}), 'Map(String, UInt64)'),
  if(empty(ns), NULL, ms[1] + arraySum((k, m) -> k * (m - ms[1]), ns, ms) / arraySum(ns)) AS middle,
  if(empty(ns), NULL, arraySum((k, m, v) -> k * (v + (m - assumeNotNull(middle)) * (m - assumeNotNull(middle))), ns, ms, vs) / arraySum(ns))
FROM (
  SELECT {place}, feature, {source} AS source, count() AS parts, sum(w.revision + 1) AS revision, {contributions} AS late,
    {summed}, sumForEach(w.counts) AS counts, sumMap(w.unseen) AS texts,
    groupArrayIf(w.n, w.n > 0 AND w.mean IS NOT NULL) AS ns, groupArrayIf(assumeNotNull(w.mean), w.n > 0 AND w.mean IS NOT NULL) AS ms,
    groupArrayIf(assumeNotNull(w.variance), w.n > 0 AND w.mean IS NOT NULL) AS vs
  FROM {table} AS w FINAL WHERE {of_span}
  GROUP BY version, segment, at, bins_id, feature, source
)
WHERE (version, segment, at, bins_id, source, parts) IN (
  SELECT {place}, {source} AS source, count() FROM {table} AS w FINAL WHERE feature = '' AND {of_span} GROUP BY version, segment, at, bins_id, source
)
SETTINGS do_not_merge_across_partitions_select_final = 1"""  # noqa: S608 - constants


_OF_HOUR: Final = f"w.size_ms < {HOUR_MS} AND {HOUR_MS} % w.size_ms = 0"
_COUNTED: Final = ("w.size_ms", "countIf(w.contribution != '')")
ROLL_HOURS: Final = _roll("windows", *_COUNTED, _OF_HOUR)
ROLL_DAYS_OF_HOURS: Final = _roll(
    "windows_rolled", "w.source_ms", "sum(w.contributions)", f"w.size_ms = {HOUR_MS}"
)
ROLL_DAYS: Final = _roll(
    "windows",
    *_COUNTED,
    f"w.size_ms < {DAY_MS} AND {DAY_MS} % w.size_ms = 0 AND NOT ({_OF_HOUR})",
)
VERDICTS: Final = f"""
SELECT version, segment, source, size_ms, {_START}, toUnixTimestamp64Milli(end) AS end_ms, kind, feature, statistic, status,
  value, `limit`, p_value, n, toUnixTimestamp64Milli(onset) AS onset_ms, evidence
FROM verdicts FINAL WHERE {_WHERE}
  AND ({{feature:Nullable(String)}} IS NULL OR feature = {{feature:Nullable(String)}})
  AND ({{statistic:Nullable(String)}} IS NULL OR statistic = {{statistic:Nullable(String)}})
  AND ({{status:Nullable(String)}} IS NULL OR status = {{status:Nullable(String)}})
ORDER BY start_ms DESC, end_ms DESC, version, segment, feature, statistic, source LIMIT {{limit:UInt32}} OFFSET {{skip:UInt32}}"""  # noqa: S608 - constants
# Of each size the last window that was judged, by itself and by its labels; panes tell only what breaks. `ratio`: 1 is at the limit, whichever side of it is
# the good one; a breach of which it cannot be said, such as no requests at all, is the worst.
DRIFT: Final = f"""
SELECT version, segment, source, size_ms, {_START}, toUnixTimestamp64Milli(end) AS end_ms, kind, feature, statistic, status,
  value, `limit`, p_value, n, toUnixTimestamp64Milli(onset) AS onset_ms, evidence,
  if(value > 0 AND `limit` > 0, value / `limit`, if(value = 0 AND `limit` > 0 AND status != 'breach', 0, NULL)) AS times,
  if(status = 'breach', greatest(times, 1 / times), least(times, 1 / times)) AS ratio
FROM verdicts FINAL WHERE {_WHERE} AND (source, size_ms, end) IN (
  SELECT source, size_ms, max(end) FROM verdicts WHERE {_WHERE} AND source != 'pane' GROUP BY source, size_ms)
ORDER BY status = 'breach' DESC, if(status = 'breach', ifNull(ratio, inf), ifNull(ratio, -1)) DESC,
  status, feature, statistic, version, segment, size_ms, source LIMIT {{limit:UInt32}}"""  # noqa: S608 - constants
# The newest of each, and those first that ask whether the version is worse: they are few.
COMPARISONS: Final = f"""
SELECT statistic, feature, argMax(v.status, v.end) AS status, JSONExtractString(argMax(v.evidence, v.end) AS newest, 'answer') AS answer,
  JSONExtractString(newest, 'compared_with') AS compared_with, toUnixTimestamp64Milli(max(v.end)) AS end_ms
FROM (SELECT * FROM verdicts FINAL WHERE kind = 'canary' AND {_WHERE}) AS v
GROUP BY statistic, feature ORDER BY startsWith(statistic, 'more_') DESC, end_ms DESC, feature LIMIT {{limit:UInt32}}"""  # noqa: S608 - constants
PERFORMANCE: Final = f"""
SELECT model, version, segment, size_ms, {_START}, revision, predictions, labelled, errors, final, metrics,
  label_delay_p50_ms, label_delay_p95_ms, intervals, classes, confusion
FROM performance FINAL WHERE {_WHERE} AND final >= {{final:UInt8}} {_NEWEST}"""  # noqa: S608 - constants
ESTIMATES: Final = f"""
SELECT version, size_ms, {_START}, metric, estimate, low, high, labelled, predictions, final,
  if(labelled > 0 AND mapContains(metrics, metric), metrics[metric], NULL) AS realised, realised - estimate AS error
FROM (
  SELECT version, size_ms, start, substring(statistic, {len(PREFIX) + 1}) AS metric, value AS estimate,
    JSONExtractFloat(evidence, 'low') AS low, JSONExtractFloat(evidence, 'high') AS high
  FROM verdicts FINAL WHERE startsWith(statistic, '{PREFIX}') AND {_WHERE}
    AND ({{metric:Nullable(String)}} IS NULL OR metric = {{metric:Nullable(String)}})
) AS v
LEFT JOIN (
  SELECT version, size_ms, start, labelled, predictions, final, metrics FROM performance FINAL WHERE {_WHERE}
) AS p USING (version, size_ms, start)
ORDER BY start_ms DESC, version, size_ms, metric LIMIT {{limit:UInt32}} OFFSET {{skip:UInt32}}"""  # noqa: S608 - constants
INCIDENTS: Final = """
SELECT body FROM incidents FINAL
WHERE ({model:Nullable(String)} IS NULL OR model = {model:Nullable(String)})
  AND ({state:Nullable(String)} IS NULL OR state = {state:Nullable(String)})
  AND opened >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC') AND opened < fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
ORDER BY opened DESC, id LIMIT {limit:UInt32} OFFSET {skip:UInt32}"""
DELIVERIES: Final = """
SELECT id, incident_id, target, action, outcome, attempts, toUnixTimestamp64Milli(at) AS at_ms, detail
FROM deliveries FINAL
WHERE ({incident_id:Nullable(String)} IS NULL OR incident_id = {incident_id:Nullable(String)})
  AND at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC') AND at < fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
ORDER BY at DESC, id LIMIT {limit:UInt32} OFFSET {skip:UInt32}"""
# Of some incidents, what became of the actions that were asked for.
ACTED_ON: Final = """
SELECT id, incident_id, target, action, outcome, attempts, toUnixTimestamp64Milli(at) AS at_ms, detail
FROM deliveries FINAL WHERE incident_id IN {ids:Array(String)} AND action IN ('rollback', 'retrain') ORDER BY at DESC, id"""
REFERENCES: Final = """
SELECT bins_id, toUInt32(countIf(NOT startsWith(feature, '$'))) AS features, max(revision) AS revision,
  bins_id = (SELECT bins_id FROM models FINAL WHERE model = {model:String} LIMIT 1) AS current
FROM bins FINAL WHERE model = {model:String} GROUP BY bins_id ORDER BY revision DESC, bins_id LIMIT {limit:UInt32} OFFSET {skip:UInt32}"""
REFERENCE: Final = """
SELECT feature, kind, edges, labels, counts, missing, b.nan AS nan, pos_inf, neg_inf, wrong_type, mean, variance
FROM bins AS b FINAL WHERE model = {model:String} AND bins_id = {bins_id:String} ORDER BY feature"""
# The ledger's rows, added up by source partition: ranges first, and the windows find what lies between two. A range that
# not all profiles partitions have booked may be on its way. Up to `until` all is clean: nothing that comes later changes it.
# {scope}: which ranges; of each partition its last ones are always among them, and with them all profiles partitions.
BOOKED: Final = """
WITH (SELECT uniqExact(profiles_partition) FROM ledger WHERE {everything}) AS width
SELECT partition, min(start_offset) AS start, max(end_offset) AS end, sum(whole) AS events, sum(timely) AS on_time, sum(behind) AS late,
  sum(buried) AS dead, sum(kept) AS calibrating, sumIf(missing, waits) AS pending,
  sum(differ * whole + if(waits, 0, abs(missing)) + if(jump IS NULL, abs(toInt64(start_offset) - position), 0)) AS broken,
  countIf(jump IS NOT NULL) AS jumps, sumIf(greatest(toInt64(start_offset) - position, 0), jump IS NOT NULL) AS passed,
  arraySort(groupArrayLastIf({holes})((toInt64(position), start_offset, assumeNotNull(jump)), jump IS NOT NULL)) AS holes,
  maxIf(start_offset, clean) AS until
FROM (
  SELECT *, sum(booked < width OR missing != 0 OR differ OR start_offset < position OR (jump IS NULL AND start_offset != position))
    OVER (PARTITION BY partition ORDER BY start_offset, end_offset ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) = 0 AS clean
  FROM (
    SELECT *, toInt64(whole) - toInt64(buried + timely + behind + kept) AS missing, booked < width AND missing >= 0 AS waits,
      toInt64(if(row_number() OVER rising = 1, start_offset, max(end_offset) OVER before)) AS position
    FROM (
      SELECT partition, start_offset, end_offset, max(events) AS whole, max(dead) AS buried, sum(on_time) AS timely, sum(late) AS behind,
        sum(calibrating) AS kept, count() AS booked, min(events) != whole OR min(dead) != buried AS differ, min(jump) AS jump
      FROM ledger FINAL WHERE {scope} GROUP BY partition, start_offset, end_offset
    )
    WINDOW rising AS (PARTITION BY partition ORDER BY start_offset, end_offset),
      before AS (PARTITION BY partition ORDER BY start_offset, end_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
  )
)
GROUP BY partition ORDER BY partition""".replace("{holes}", str(MAX_HOLES))
# What the detector said last of the events that it holds.
HELD: Final = """
SELECT sum(held) AS held FROM (
  SELECT argMax(open, profiles_offset) AS held FROM ledger WHERE {everything} GROUP BY profiles_partition
)"""
SETTLED: Final = "SELECT partition, until_offset AS until, jumps, sums FROM ledger_settled FINAL ORDER BY partition"
# Jumps that lie below what is settled, or went back there since.
JUMPS: Final = """
SELECT partition, uniqExact(start_offset, end_offset) AS jumps FROM ledger
WHERE jump IS NOT NULL AND {scope} GROUP BY partition"""
# Windows of the smallest size a model has: each event is in exactly one of them.
STORED: Final = """
SELECT sumIf(n, contribution = '') AS closed, sumIf(n, contribution != '') AS corrections
FROM windows FINAL
WHERE feature = '' AND segment = ''
  AND (model, size_ms) IN (SELECT model, min(size_ms) FROM windows WHERE feature = '' AND segment = '' GROUP BY model)"""
# Windows that lie in the time as a whole.
_WITHIN: Final = (
    "model = {model:String} AND start >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')"
    " AND toUnixTimestamp64Milli(start) + size_ms <= {to_ms:Int64}"
)
# {field}: of the binning; '' where it has none. A window whose features were kept no longer has only its numbers left.
EXTENT: Final = f"""
SELECT countIf(here) AS windows, countIf(feature = '') - windows AS left_out,
  minIf(start_ms, here) AS first_ms, maxIf(start_ms + size_ms, here) AS last_ms
FROM (
  SELECT feature, {_START}, size_ms, feature = {{field:String}} AND bins_id = {{bins_id:String}} AND size_ms IN {{sizes:Array(UInt64)}} AS here
  FROM windows FINAL WHERE feature IN ('', {{field:String}}) AND contribution = '' AND {_WITHIN}
)"""  # noqa: S608 - constants
HISTORY: Final = f"""
SELECT version, segment, size_ms, {_START}, contribution, feature, n, errors, counts,
  missing, w.nan AS nan, pos_inf, neg_inf, wrong_type, below, above, off_grid, mean, variance
FROM windows AS w FINAL
WHERE {_WITHIN} AND bins_id = {{bins_id:String}} AND size_ms IN {{sizes:Array(UInt64)}}
  AND start >= fromUnixTimestamp64Milli({{earliest_ms:Int64}}, 'UTC')
  AND start < fromUnixTimestamp64Milli({{through_ms:Int64}}, 'UTC')
  AND toUnixTimestamp64Milli(start) + size_ms > {{after_ms:Int64}}
  AND toUnixTimestamp64Milli(start) + size_ms <= {{through_ms:Int64}}
ORDER BY toUnixTimestamp64Milli(w.start) + size_ms, version, segment, size_ms, start_ms, contribution, feature"""  # noqa: S608 - constants
# What the detector said of a window that began before its series did.
PARTIAL: Final = f"""
SELECT version, segment, size_ms, {_START} FROM verdicts FINAL
WHERE {_WITHIN} AND source = 'window' AND feature = '' AND statistic = 'distribution' AND status = 'no_data'"""  # noqa: S608 - constants
# Both below: event time, each model's own, up to the end of its last window, as a budget's last period is. Which windows there are
# does not depend on revisions, so the windows are read without FINAL: of each size the key columns of one feature and one segment.
_ENDS: Final = "toUnixTimestamp64Milli(start) + size_ms"
_CLOSED: Final = "FROM windows WHERE feature = '' AND segment = '' AND contribution = ''"
_ASKED: Final = "SELECT incident_id, action FROM deliveries FINAL WHERE action IN ('rollback', 'retrain') AND outcome = 'delivered'"
RELEASED: Final = f"""
SELECT count() AS deployments, countIf((model, version) IN (
    SELECT model, version FROM incidents FINAL WHERE cause = 'bad_release')) AS failed
FROM (
  SELECT model, version, first_ms, min(first_ms) OVER of_model AS model_first_ms, max(last_ms) OVER of_model AS until_ms
  FROM (SELECT model, version, min({_ENDS}) AS first_ms, max({_ENDS}) AS last_ms {_CLOSED} GROUP BY model, version)
  WINDOW of_model AS (PARTITION BY model)
)
WHERE version != {{other:String}} AND first_ms > model_first_ms AND first_ms > until_ms - {{period_ms:Int64}}"""  # noqa: S608 - constants
ACTED: Final = f"""
SELECT countIf(action = 'rollback') AS rollbacks, countIf(action = 'retrain') AS retrains
FROM ({_ASKED}) AS d
INNER JOIN (SELECT id, model, toUnixTimestamp64Milli(opened) AS opened_ms FROM incidents FINAL) AS i ON d.incident_id = i.id
INNER JOIN (
  SELECT model, max({_ENDS}) AS until_ms {_CLOSED}
    AND model IN (SELECT model FROM incidents WHERE id IN (SELECT incident_id FROM ({_ASKED})))
  GROUP BY model
) AS w ON i.model = w.model
WHERE opened_ms > until_ms - {{period_ms:Int64}}"""  # noqa: S608 - constants
OPENED: Final = """
SELECT model, cause, toUnixTimestamp64Milli(opened) AS opened_ms FROM incidents FINAL
WHERE ({model:Nullable(String)} IS NULL OR model = {model:Nullable(String)})
ORDER BY opened DESC, id LIMIT {limit:UInt32}"""
