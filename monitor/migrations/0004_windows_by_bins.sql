-- When a model's reference changes inside a window, the window has two closed parts, one in each binning. Without bins_id
-- in the key the second part replaced the first. A sorting key takes no column that is there already: hence a new table.

CREATE TABLE IF NOT EXISTS {database}.windows_by_bins (
  model LowCardinality(String),
  version LowCardinality(String),
  segment LowCardinality(String),
  size_ms UInt64,
  start DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  feature LowCardinality(String),
  contribution String CODEC(ZSTD(1)),
  revision UInt64 CODEC(T64, ZSTD(1)),
  bins_id LowCardinality(String),
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
ORDER BY (model, feature, segment, version, size_ms, start, contribution, bins_id)
TTL stored_at + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

INSERT INTO {database}.windows_by_bins SELECT * FROM {database}.windows;
