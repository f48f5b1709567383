-- Closed windows, the ledger, and the binning that gives counts a meaning.

-- One row per field of a window and contribution. Feature '' is the window itself: n counts its events.
-- Elsewhere n counts the values in bins. True counts are the sum over the contributions.
CREATE TABLE IF NOT EXISTS {database}.windows (
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
PARTITION BY toYYYYMM(start) ORDER BY (model, feature, segment, version, size_ms, start, contribution)
TTL stored_at + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS {database}.bins (
  bins_id String,
  feature String,
  model LowCardinality(String),
  kind LowCardinality(String),
  edges Array(Float64),
  labels Array(String),
  counts Array(UInt64),
  missing UInt64,
  nan UInt64,
  pos_inf UInt64,
  neg_inf UInt64,
  wrong_type UInt64,
  mean Nullable(Float64),
  variance Nullable(Float64),
  form String,
  revision UInt64
) ENGINE = ReplacingMergeTree(revision) ORDER BY (bins_id, feature)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS {database}.models (
  model String,
  spec String,
  bins_id String,
  revision UInt64,
  stored_at DateTime('UTC') DEFAULT now()
) ENGINE = ReplacingMergeTree(revision) ORDER BY model
SETTINGS non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS {database}.ledger (
  partition UInt32,
  start_offset UInt64 CODEC(DoubleDelta, ZSTD(1)),
  profiles_partition UInt32,
  end_offset UInt64 CODEC(DoubleDelta, ZSTD(1)),
  profiles_offset UInt64 CODEC(DoubleDelta, ZSTD(1)),
  open UInt64 CODEC(T64, ZSTD(1)),
  events UInt64 CODEC(T64, ZSTD(1)),
  dead UInt64 CODEC(T64, ZSTD(1)),
  on_time UInt64 CODEC(T64, ZSTD(1)),
  late UInt64 CODEC(T64, ZSTD(1)),
  calibrating UInt64 CODEC(T64, ZSTD(1)),
  jump Nullable(String),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1))
) ENGINE = ReplacingMergeTree(profiles_offset) ORDER BY (partition, start_offset, end_offset, profiles_partition)
TTL stored_at + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 1000;
