-- What a metric may truly be, and which class was taken for which.
ALTER TABLE {database}.performance
  ADD COLUMN IF NOT EXISTS intervals Map(LowCardinality(String), Array(Float64)),
  ADD COLUMN IF NOT EXISTS classes Array(LowCardinality(String)),
  ADD COLUMN IF NOT EXISTS confusion Array(UInt64) CODEC(T64, ZSTD(1));
