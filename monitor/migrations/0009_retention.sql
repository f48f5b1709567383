-- `driftline migrate` says how long rows are kept (monitor/retention.py). Verdicts of short windows end before their neighbours in a part.
ALTER TABLE {database}.verdicts MODIFY SETTING ttl_only_drop_parts = 0;
