-- The ledger's ranges below until_offset, added up: booked by every profiles partition, without a gap, and so final.
-- Sums, not the last word: what jumps back below until_offset makes a row with more jumps, which wins.

CREATE TABLE IF NOT EXISTS {database}.ledger_settled (
  partition UInt32,
  until_offset UInt64,
  jumps UInt64,
  revision UInt64,
  sums String,
  stored_at DateTime('UTC') DEFAULT now()
) ENGINE = ReplacingMergeTree(revision) ORDER BY partition;
