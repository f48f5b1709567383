"""The questions that ``monitor.store`` asks ClickHouse.

``{name:Type}`` is bound by the server, never pasted. ``FINAL`` gives the newest revision of each key. A parameter of ``NULL`` means "any".
"""

from __future__ import annotations

from typing import Final

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
_NEWEST: Final = "ORDER BY start_ms DESC, version, segment, size_ms LIMIT {limit:UInt32}"
_START: Final = "toUnixTimestamp64Milli(start) AS start_ms"

MODELS: Final = """
SELECT model, spec, bins_id, versions, segments, sizes_ms,
  if(empty(versions), NULL, first_ms) AS first_ms, if(empty(versions), NULL, last_ms) AS last_ms
FROM (SELECT model, spec, bins_id FROM models FINAL) AS m
LEFT JOIN (
  SELECT model, arraySort(groupUniqArray(version)) AS versions,
    arraySort(groupUniqArray(segment)) AS segments, arraySort(groupUniqArray(size_ms)) AS sizes_ms,
    toUnixTimestamp64Milli(min(start)) AS first_ms, max(toUnixTimestamp64Milli(start) + size_ms) AS last_ms
  FROM windows WHERE feature = '' GROUP BY model
) AS w USING (model) ORDER BY model"""
WINDOWS: Final = f"""
SELECT version, segment, size_ms, {_START}, sum(n) AS n, sum(errors) AS errors,
  countIf(contribution != '') AS contributions, any(bins_id) AS bins_id
FROM windows FINAL WHERE feature = '' AND {_WHERE}
GROUP BY version, segment, size_ms, start {_NEWEST}"""  # noqa: S608 - constants
FEATURE: Final = f"""
SELECT {{feature:String}} AS feature, {_START}, sum(w.n) AS n, sum(w.missing) AS missing, sum(w.nan) AS nan,
  sum(w.pos_inf) AS pos_inf, sum(w.neg_inf) AS neg_inf, sum(w.wrong_type) AS wrong_type,
  sum(w.below) AS below, sum(w.above) AS above, sum(w.off_grid) AS off_grid,
  sum(w.mean * w.n) / nullIf(sumIf(w.n, w.mean IS NOT NULL), 0) AS mean,
  sum((w.variance + w.mean * w.mean) * w.n) / nullIf(sumIf(w.n, w.mean IS NOT NULL), 0) - mean * mean AS variance
FROM windows AS w FINAL WHERE w.feature = {{feature:String}} AND {_WHERE}
GROUP BY start ORDER BY start_ms DESC LIMIT {{limit:UInt32}}"""  # noqa: S608 - constants
DISTRIBUTION: Final = f"""
SELECT feature, bins_id, b.kind AS kind, b.edges AS edges, b.labels AS labels, b.counts AS reference, w.counts AS counts, w.n AS n,
  w.unseen AS unseen
FROM (
  SELECT feature, bins_id, sumForEach(windows.counts) AS counts, sum(windows.n) AS n, any(windows.unseen) AS unseen
  FROM windows FINAL WHERE feature = {{feature:String}} AND {_WHERE} GROUP BY feature, bins_id
) AS w
INNER JOIN (SELECT * FROM bins FINAL WHERE feature = {{feature:String}}) AS b USING (bins_id, feature)
ORDER BY n DESC LIMIT 1"""  # noqa: S608 - constants
VERDICTS: Final = f"""
SELECT version, segment, source, size_ms, {_START}, toUnixTimestamp64Milli(end) AS end_ms, kind, feature, statistic, status,
  value, `limit`, p_value, n, toUnixTimestamp64Milli(onset) AS onset_ms, evidence
FROM verdicts FINAL WHERE {_WHERE}
  AND ({{feature:Nullable(String)}} IS NULL OR feature = {{feature:Nullable(String)}})
  AND ({{statistic:Nullable(String)}} IS NULL OR statistic = {{statistic:Nullable(String)}})
  AND ({{status:Nullable(String)}} IS NULL OR status = {{status:Nullable(String)}})
ORDER BY end_ms DESC, start_ms DESC, version, segment, size_ms, feature, statistic LIMIT {{limit:UInt32}}"""  # noqa: S608 - constants
PERFORMANCE: Final = f"""
SELECT model, version, segment, size_ms, {_START}, revision, predictions, labelled, errors, final, metrics,
  label_delay_p50_ms, label_delay_p95_ms
FROM performance FINAL WHERE {_WHERE} AND final >= {{final:UInt8}} {_NEWEST}"""  # noqa: S608 - constants
INCIDENTS: Final = """
SELECT body FROM incidents FINAL
WHERE ({model:Nullable(String)} IS NULL OR model = {model:Nullable(String)})
  AND ({state:Nullable(String)} IS NULL OR state = {state:Nullable(String)})
ORDER BY opened DESC, id LIMIT {limit:UInt32}"""
DELIVERIES: Final = """
SELECT id, incident_id, target, action, outcome, attempts, toUnixTimestamp64Milli(at) AS at_ms, detail
FROM deliveries FINAL
WHERE ({incident_id:Nullable(String)} IS NULL OR incident_id = {incident_id:Nullable(String)})
ORDER BY at DESC, id LIMIT {limit:UInt32}"""
LEDGER: Final = """
SELECT profiles_partition, profiles_offset AS offset, open, partition, start_offset AS start, end_offset AS end, events, dead, on_time, late,
  calibrating, jump
FROM ledger FINAL"""
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
EXTENT: Final = f"""
SELECT countIf(here) AS windows, countIf(NOT here) AS left_out,
  minIf(start_ms, here) AS first_ms, maxIf(start_ms + size_ms, here) AS last_ms
FROM (
  SELECT {_START}, size_ms, bins_id = {{bins_id:String}} AND size_ms IN {{sizes:Array(UInt64)}} AS here
  FROM windows FINAL WHERE feature = '' AND contribution = '' AND {_WITHIN}
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
OPENED: Final = """
SELECT model, cause, toUnixTimestamp64Milli(opened) AS opened_ms FROM incidents FINAL
WHERE ({model:Nullable(String)} IS NULL OR model = {model:Nullable(String)})
ORDER BY opened DESC, id LIMIT {limit:UInt32}"""
