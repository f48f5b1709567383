-- The new table takes the name; the old one stays beside it until an operator drops it or its TTL has emptied it.
-- A server that ended between the two renames of the first statement is helped by the second; else that one finds its
-- target there, and nothing is done.

RENAME TABLE {database}.windows TO {database}.windows_until_0005, {database}.windows_by_bins TO {database}.windows;

RENAME TABLE {database}.windows_by_bins TO {database}.windows;

-- What a sink of the release before has stored since the copy; what was copied already replaces itself.
INSERT INTO {database}.windows SELECT * FROM {database}.windows_until_0005 WHERE stored_at > now() - INTERVAL 1 DAY;
