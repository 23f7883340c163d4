-- What people see of the queue. DELETE from sync_err_rec discards a change.

CREATE VIEW @extschema@.sync_err_rec AS
    SELECT q.id, q.nsp_name, q.table_name, q.dst_server,
           @extschema@.sync_change_sql(
               (SELECT r.body FROM @extschema@.sync_route r
                 WHERE r.id OPERATOR(pg_catalog.=) q.route_id),
               q.change::pg_catalog.text) AS dst_query,
           q.create_time, q.op, q.sqlstate, q.message, q.attempts, q.last_attempt_at, q.status,
           q.constraint_name, q.waits_for
      FROM @extschema@.sync_queue q;
COMMENT ON VIEW @extschema@.sync_err_rec IS
    'changes not yet delivered, oldest first by id; deleting a row discards the change';

CREATE VIEW @extschema@.sync_status AS
    SELECT s.srvname AS server,
           COALESCE(q.pending, 0) AS pending,
           COALESCE(q.failed, 0) AS failed,
           COALESCE(q.waiting, 0) AS waiting,
           q.oldest,
           e.message AS last_error,
           e.sqlstate AS last_sqlstate,
           GREATEST(e.last_attempt_at, a.last_error_at, a.last_success_at, c.last_success)
               AS last_attempt_at,
           GREATEST(a.last_success_at, c.last_success) AS last_success_at,
           a.next_attempt_at,
           COALESCE(a.failures, 0) AS consecutive_failures,
           l.sessions AS lost_sessions,
           EXISTS (SELECT FROM @extschema@.sync_connections() c
                    WHERE c.server_name OPERATOR(pg_catalog.=) s.srvname AND c.valid) AS connected,
           c.delivered_transactions, c.delivered_changes, c.queued, c.conflicts, c.guarded
      FROM pg_catalog.pg_foreign_server s
      LEFT JOIN (
           SELECT q.dst_server,
                  pg_catalog.count(*) FILTER (WHERE q.status OPERATOR(pg_catalog.=) 'pending') AS pending,
                  pg_catalog.count(*) FILTER (WHERE q.status OPERATOR(pg_catalog.=) 'failed') AS failed,
                  pg_catalog.count(*) FILTER (WHERE q.status OPERATOR(pg_catalog.=) 'waiting') AS waiting,
                  pg_catalog.min(q.create_time) FILTER (WHERE q.status OPERATOR(pg_catalog.=) 'pending') AS oldest,
                  pg_catalog.max(q.last_attempt_at) AS last_attempt_at
             FROM @extschema@.sync_queue q GROUP BY q.dst_server) q
        ON q.dst_server OPERATOR(pg_catalog.=) s.srvname::pg_catalog.text
      LEFT JOIN @extschema@.sync_server_state a
        ON a.dst_server OPERATOR(pg_catalog.=) s.srvname::pg_catalog.text
      LEFT JOIN LATERAL (
           SELECT f.message, f.sqlstate, f.last_attempt_at FROM (
             SELECT r.message, r.sqlstate, r.last_attempt_at
               FROM @extschema@.sync_queue r
              WHERE r.dst_server OPERATOR(pg_catalog.=) q.dst_server
                AND r.last_attempt_at OPERATOR(pg_catalog.=) q.last_attempt_at
             UNION ALL SELECT a.last_error, a.last_sqlstate, a.last_error_at
              WHERE a.last_error_at IS NOT NULL) f
            ORDER BY f.last_attempt_at DESC LIMIT 1) e ON true
      LEFT JOIN LATERAL (
           SELECT pg_catalog.count(*) AS sessions
             FROM @extschema@.sync_lost_session l
            WHERE l.dst_server OPERATOR(pg_catalog.=) s.srvname::pg_catalog.text) l ON true
      -- The row without a server stands for those that have none of their own.
      LEFT JOIN LATERAL (
           SELECT c.delivered_transactions, c.delivered_changes, c.queued, c.conflicts, c.guarded,
                  c.last_success
             FROM @extschema@.sync_counters() c
            WHERE c.server OPERATOR(pg_catalog.=) s.oid OR c.server IS NULL
            ORDER BY c.server LIMIT 1) c ON true
     WHERE q.dst_server IS NOT NULL OR l.sessions OPERATOR(pg_catalog.>) 0
        OR EXISTS (SELECT FROM pg_catalog.pg_trigger t
                    WHERE t.tgfoid OPERATOR(pg_catalog.=) '@extschema@.sync_dml()'::pg_catalog.regprocedure
                      AND NOT t.tgisinternal
                      AND pg_catalog.substring(t.tgargs, 1, pg_catalog.octet_length(
                              pg_catalog.convert_to(s.srvname::pg_catalog.text, pg_catalog.getdatabaseencoding())) OPERATOR(pg_catalog.+) 1)
                          OPERATOR(pg_catalog.=)
                          (pg_catalog.convert_to(s.srvname::pg_catalog.text, pg_catalog.getdatabaseencoding())
                           OPERATOR(pg_catalog.||) '\x00'::pg_catalog.bytea));
COMMENT ON VIEW @extschema@.sync_status IS
    'a row per server that triggers send to or changes wait for';
