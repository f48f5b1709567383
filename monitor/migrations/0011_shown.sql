-- What dashboards may read: the newest revision of each row, without asking for it, and nothing of single predictions, labels, specs or Kafka's offsets.
-- A reader needs SELECT on these and on no table: they read as the user that made them, who has to stay.
CREATE VIEW IF NOT EXISTS {database}.shown_models SQL SECURITY DEFINER AS SELECT model, bins_id, stored_at FROM {database}.models FINAL;

-- Which windows there are, and when the first and the last of them begin. It does not depend on revisions, so it is read without FINAL.
CREATE VIEW IF NOT EXISTS {database}.shown_series SQL SECURITY DEFINER AS
SELECT model, version, segment, size_ms, min(start) AS first, max(start) AS last
FROM {database}.windows WHERE feature = '' GROUP BY model, version, segment, size_ms;

CREATE VIEW IF NOT EXISTS {database}.shown_windows SQL SECURITY DEFINER AS SELECT * FROM {database}.windows FINAL;

-- Hours and days of models that have shorter windows only.
CREATE VIEW IF NOT EXISTS {database}.shown_windows_rolled SQL SECURITY DEFINER AS SELECT * FROM {database}.windows_rolled FINAL;

CREATE VIEW IF NOT EXISTS {database}.shown_bins SQL SECURITY DEFINER AS SELECT * FROM {database}.bins FINAL;

CREATE VIEW IF NOT EXISTS {database}.shown_verdicts SQL SECURITY DEFINER AS SELECT * FROM {database}.verdicts FINAL;

CREATE VIEW IF NOT EXISTS {database}.shown_performance SQL SECURITY DEFINER AS SELECT * FROM {database}.performance FINAL;

CREATE VIEW IF NOT EXISTS {database}.shown_incidents SQL SECURITY DEFINER AS SELECT * FROM {database}.incidents FINAL;

CREATE VIEW IF NOT EXISTS {database}.shown_deliveries SQL SECURITY DEFINER AS SELECT * FROM {database}.deliveries FINAL;
