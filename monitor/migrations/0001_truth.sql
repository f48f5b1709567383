-- Predictions, labels and their join.
-- TTLs count from the day of storing, not from event time: a replay of last year's events is to be kept.
-- A repeated insert is replaced by key; the insert token is the second line only.

CREATE TABLE IF NOT EXISTS {database}.predictions (
  model LowCardinality(String),
  ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  id String CODEC(ZSTD(1)),
  version LowCardinality(String),
  segments Array(LowCardinality(String)) CODEC(ZSTD(1)),
  prediction Nullable(String) CODEC(ZSTD(1)),
  score Nullable(Float64) CODEC(ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1)),
  -- 1e-5: a look-up asks for thousands of ids at once, and with the usual 1e-2 some id hits every granule.
  INDEX ids id TYPE bloom_filter(0.00001) GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(ts) ORDER BY (model, ts, id)
TTL stored_at + INTERVAL 180 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS {database}.labels (
  model LowCardinality(String),
  ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  id String CODEC(ZSTD(1)),
  label String CODEC(ZSTD(1)),
  position UInt64 CODEC(ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1)),
  INDEX ids id TYPE bloom_filter(0.00001) GRANULARITY 1
) ENGINE = ReplacingMergeTree(position)
PARTITION BY toYYYYMM(ts) ORDER BY (model, ts, id)
TTL stored_at + INTERVAL 180 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;

-- What was stored at which Kafka position: the evaluator's work list. A prediction and its label come in any order.
CREATE TABLE IF NOT EXISTS {database}.arrivals (
  topic LowCardinality(String),
  partition UInt32,
  position UInt64 CODEC(DoubleDelta, ZSTD(1)),
  model LowCardinality(String),
  id String CODEC(ZSTD(1)),
  ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1))
) ENGINE = ReplacingMergeTree
PARTITION BY topic ORDER BY (topic, partition, position, model, id)
TTL stored_at + INTERVAL 30 DAY
SETTINGS non_replicated_deduplication_window = 1000;

-- A prediction and the newest of its labels. `labels` counts the labels that the prediction had so far.
-- No deduplication window: the join may repeat an older block after a newer one, and `labels` decides.
CREATE TABLE IF NOT EXISTS {database}.outcomes (
  model LowCardinality(String),
  ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  id String CODEC(ZSTD(1)),
  version LowCardinality(String),
  segments Array(LowCardinality(String)) CODEC(ZSTD(1)),
  prediction Nullable(String) CODEC(ZSTD(1)),
  score Nullable(Float64) CODEC(ZSTD(1)),
  label String CODEC(ZSTD(1)),
  label_ts DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
  labels UInt32 CODEC(T64, ZSTD(1)),
  stored_at DateTime('UTC') DEFAULT now() CODEC(DoubleDelta, ZSTD(1)),
  INDEX ids id TYPE bloom_filter(0.00001) GRANULARITY 1
) ENGINE = ReplacingMergeTree(labels)
PARTITION BY toYYYYMM(ts) ORDER BY (model, ts, id)
TTL stored_at + INTERVAL 180 DAY
SETTINGS ttl_only_drop_parts = 1;

-- Where the evaluator stands: one row, so that it changes as a whole.
CREATE TABLE IF NOT EXISTS {database}.evaluator_state (
  name LowCardinality(String),
  revision UInt64,
  state String
) ENGINE = ReplacingMergeTree(revision) ORDER BY name;

CREATE TABLE IF NOT EXISTS {database}.performance (
  model LowCardinality(String),
  version LowCardinality(String),
  segment LowCardinality(String),
  size_ms UInt64,
  start DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
  revision UInt64 CODEC(T64, ZSTD(1)),
  final Bool,
  rank UInt64 CODEC(T64, ZSTD(1)),
  predictions UInt64 CODEC(T64, ZSTD(1)),
  labelled UInt64 CODEC(T64, ZSTD(1)),
  errors UInt64 CODEC(T64, ZSTD(1)),
  metrics Map(LowCardinality(String), Float64),
  label_delay_p50_ms Nullable(Int64),
  label_delay_p95_ms Nullable(Int64),
  stored_at DateTime('UTC') DEFAULT now()
) ENGINE = ReplacingMergeTree(rank)
PARTITION BY toYYYYMM(start) ORDER BY (model, version, segment, size_ms, start)
TTL stored_at + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = 1000;
