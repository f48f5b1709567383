-- Hours and days of models that have shorter windows only: sums of what `windows` says last, one row of them for each size of window that they were made of.
-- A row that is made again has a higher revision if anything it sums has changed: see monitor/rollups.py.
CREATE TABLE IF NOT EXISTS {database}.windows_rolled (
  model LowCardinality(String),
  version LowCardinality(String),
  segment LowCardinality(String),
  size_ms UInt64,
  start DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  feature LowCardinality(String),
  source_ms UInt64,
  bins_id LowCardinality(String),
  revision UInt64 CODEC(T64, ZSTD(1)),
  contributions UInt64 CODEC(T64, ZSTD(1)),
  n UInt64 CODEC(T64, ZSTD(1)),
  errors UInt64 CODEC(T64, ZSTD(1)),
  counts Array(UInt64) CODEC(T64, ZSTD(1)),
  missing UInt64 CODEC(T64, ZSTD(1)),
  nan UInt64 CODEC(T64, ZSTD(1)),
  pos_inf UInt64 CODEC(T64, ZSTD(1)),
  neg_inf UInt64 CODEC(T64, ZSTD(1)),
  wrong_type UInt64 CODEC(T64, ZSTD(1)),
  below UInt64 CODEC(T64, ZSTD(1)),
  above UInt64 CODEC(T64, ZSTD(1)),
  off_grid UInt64 CODEC(T64, ZSTD(1)),
  mean Nullable(Float64) CODEC(ZSTD(1)),
  variance Nullable(Float64) CODEC(ZSTD(1)),
  unseen Map(String, UInt64) CODEC(ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1))
) ENGINE = ReplacingMergeTree(revision)
PARTITION BY toYYYYMM(start)
ORDER BY (model, feature, segment, version, size_ms, start, source_ms, bins_id);

-- Up to when what was stored is in them.
CREATE TABLE IF NOT EXISTS {database}.rollup_state (
  name LowCardinality(String),
  until DateTime('UTC')
) ENGINE = ReplacingMergeTree(until) ORDER BY name;

-- What was stored since then, without reading all that was stored before.
ALTER TABLE {database}.windows ADD INDEX IF NOT EXISTS stored stored_at TYPE minmax GRANULARITY 1;
