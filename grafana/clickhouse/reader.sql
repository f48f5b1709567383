-- A role that reads what dashboards show and nothing else, for a server of your own: run as an administrator after `driftline migrate`, and then
--   CREATE USER grafana IDENTIFIED BY '...' DEFAULT ROLE driftline_reader SETTINGS PROFILE driftline_reader;
--   GRANT driftline_reader TO grafana;
-- max_execution_time may be changed, as Grafana's data source sends it with each query: without that "Save and test" passes and panels fail.
CREATE ROLE IF NOT EXISTS driftline_reader;

CREATE SETTINGS PROFILE IF NOT EXISTS driftline_reader SETTINGS
  readonly = 1,
  max_execution_time = 60 MAX 60 CHANGEABLE_IN_READONLY,
  max_memory_usage = 1073741824,
  max_memory_usage_for_user = 2147483648,
  max_result_rows = 1000000
TO driftline_reader;

CREATE QUOTA IF NOT EXISTS driftline_reader KEYED BY user_name FOR INTERVAL 1 hour MAX execution_time = 1200 TO driftline_reader;

GRANT SELECT ON driftline.shown_models TO driftline_reader;
GRANT SELECT ON driftline.shown_series TO driftline_reader;
GRANT SELECT ON driftline.shown_windows TO driftline_reader;
GRANT SELECT ON driftline.shown_windows_rolled TO driftline_reader;
GRANT SELECT ON driftline.shown_bins TO driftline_reader;
GRANT SELECT ON driftline.shown_verdicts TO driftline_reader;
GRANT SELECT ON driftline.shown_performance TO driftline_reader;
GRANT SELECT ON driftline.shown_incidents TO driftline_reader;
GRANT SELECT ON driftline.shown_deliveries TO driftline_reader;
