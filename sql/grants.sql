-- Least privilege: only the extension's owner sees and replays the queue; widen it with GRANT.
REVOKE ALL ON @extschema@.sync_route, @extschema@.sync_queue, @extschema@.sync_queue_floor, @extschema@.sync_drain,
    @extschema@.sync_alive, @extschema@.sync_crash, @extschema@.sync_pause, @extschema@.sync_lost_session,
    @extschema@.sync_server_state, @extschema@.sync_owner_state, @extschema@.sync_row_version,
    @extschema@.sync_conflict_log, @extschema@.sync_home, @extschema@.sync_node,
    @extschema@.sync_prepared_transaction, @extschema@.sync_prepared,
    @extschema@.sync_copy, @extschema@.sync_progress_log, @extschema@.sync_progress,
    @extschema@.sync_err_rec, @extschema@.sync_status, @extschema@.sync_conflicts,
    @extschema@.sync_conflict_counts FROM PUBLIC;
-- Everybody sees of it what concerns the tables that are theirs.
GRANT SELECT ON @extschema@.sync_tables TO PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.deal_sync_err_rec(integer, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.sync_queue_discarded() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.retry_sync_err_rec(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.start_sync_worker(), @extschema@.stop_sync_worker() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.adopt_sync() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.resolve_sync_prepared(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.sync_identity_changed(), @extschema@.sync_not_replicated() FROM PUBLIC;
-- The database is the first of its node.
SELECT @extschema@.adopt_sync();
