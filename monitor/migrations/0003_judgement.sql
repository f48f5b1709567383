-- Verdicts, incidents and deliveries.

CREATE TABLE IF NOT EXISTS {database}.verdicts (
  model LowCardinality(String),
  version LowCardinality(String),
  segment LowCardinality(String),
  source LowCardinality(String),
  size_ms UInt64,
  start DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  end DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  kind LowCardinality(String),
  feature LowCardinality(String),
  statistic LowCardinality(String),
  revision UInt64 CODEC(T64, ZSTD(1)),
  status LowCardinality(String),
  value Nullable(Float64) CODEC(ZSTD(1)),
  limit Nullable(Float64) CODEC(ZSTD(1)),
  p_value Nullable(Float64) CODEC(ZSTD(1)),
  n UInt64 CODEC(T64, ZSTD(1)),
  onset Nullable(DateTime64(3, 'UTC')),
  evidence String CODEC(ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1))
) ENGINE = ReplacingMergeTree(revision)
PARTITION BY toYYYYMM(start)
ORDER BY (model, feature, statistic, segment, version, kind, source, size_ms, start)
TTL stored_at + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

-- `body` is the whole incident as JSON; the columns beside it are for queries and dashboards.
CREATE TABLE IF NOT EXISTS {database}.incidents (
  model LowCardinality(String),
  id String,
  revision UInt64,
  version LowCardinality(String),
  cause LowCardinality(String),
  advice LowCardinality(String),
  severity LowCardinality(String),
  state LowCardinality(String),
  title String,
  onset DateTime64(3, 'UTC'),
  opened DateTime64(3, 'UTC'),
  updated DateTime64(3, 'UTC'),
  resolved Nullable(DateTime64(3, 'UTC')),
  body String CODEC(ZSTD(3))
) ENGINE = ReplacingMergeTree(revision) ORDER BY (model, id)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS {database}.deliveries (
  incident_id String,
  id String,
  at DateTime64(3, 'UTC'),
  target LowCardinality(String),
  action LowCardinality(String),
  outcome LowCardinality(String),
  attempts UInt32,
  detail String
) ENGINE = ReplacingMergeTree(at) ORDER BY (incident_id, id)
SETTINGS non_replicated_deduplication_window = 1000;
