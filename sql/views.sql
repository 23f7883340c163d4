-- What people see of the queue. DELETE from sync_err_rec discards a change.

-- PostgreSQL's own names need no schema: nothing else is found until the end of this file. The extension's
-- are qualified.
SET LOCAL search_path = pg_catalog, pg_temp;

CREATE VIEW @extschema@.sync_err_rec AS
    SELECT q.id, q.nsp_name, q.table_name, q.dst_server,
           @extschema@.sync_change_sql(
               (SELECT r.body FROM @extschema@.sync_route r
                 WHERE r.id = q.route_id),
               q.change::text) AS dst_query,
           q.create_time, q.op, q.sqlstate, q.message, q.attempts, q.last_attempt_at, q.status,
           q.constraint_name, q.waits_for,
           CASE WHEN q.status = 'failed' THEN q.next_attempt_at END AS next_attempt_at
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
           GREATEST(e.last_attempt_at, a.last_error_at, o.last_error_at, a.last_success_at, c.last_success)
               AS last_attempt_at,
           GREATEST(a.last_success_at, c.last_success) AS last_success_at,
           LEAST(a.next_attempt_at, o.next_attempt_at, q.next_attempt_at) AS next_attempt_at,
           GREATEST(a.failures, o.failures, 0) AS consecutive_failures,
           o.blocked,
           l.sessions AS lost_sessions,
           EXISTS (SELECT FROM @extschema@.sync_connections() c
                    WHERE c.server_name = s.srvname AND c.valid) AS connected,
           c.delivered_transactions, c.delivered_changes, c.queued, c.conflicts, c.guarded, c.looped,
           CASE WHEN @extschema@.sync_is_copy() THEN 'copy' ELSE 'this database' END AS home,
           @extschema@.sync_worker_state() AS worker,
           h.paused_at AS paused_since,
           COALESCE(
               (SELECT min(x.noticed_at) FROM @extschema@.sync_crash x
                  JOIN pg_class r ON r.oid = x.relation
                 WHERE x.dst_server = s.srvname::text),
               CASE WHEN @extschema@.sync_has_crashed()
                     AND EXISTS (SELECT FROM @extschema@.sync_attachments() b
                                  WHERE b.server = s.srvname::text
                                    AND b.mode = ANY (ARRAY['async', 'sync']))
                    THEN pg_postmaster_start_time() END) AS may_be_ahead_since,
           c.prepared, c.resolved
      FROM pg_foreign_server s
      LEFT JOIN (
           SELECT q.dst_server,
                  count(*) FILTER (WHERE q.status = 'pending') AS pending,
                  count(*) FILTER (WHERE q.status = 'failed') AS failed,
                  count(*) FILTER (WHERE q.status = 'waiting') AS waiting,
                  min(q.create_time) FILTER (WHERE q.status = 'pending') AS oldest,
                  max(q.last_attempt_at) AS last_attempt_at,
                  min(q.next_attempt_at) FILTER (WHERE q.status = 'failed') AS next_attempt_at
             FROM @extschema@.sync_queue q GROUP BY q.dst_server) q
        ON q.dst_server = s.srvname::text
      LEFT JOIN @extschema@.sync_server_state a
        ON a.dst_server = s.srvname::text
      LEFT JOIN @extschema@.sync_pause h
        ON h.dst_server = s.srvname::text
      LEFT JOIN LATERAL (
           SELECT string_agg(format('owner %s: %s %s', w.owner, w.last_sqlstate, w.last_error),
                      E'\n' ORDER BY w.last_error_at) AS blocked,
                  max(w.failures) AS failures,
                  min(w.next_attempt_at) AS next_attempt_at,
                  max(w.last_error_at) AS last_error_at
             FROM @extschema@.sync_owner_state w
            WHERE w.dst_server = s.srvname::text
              AND w.failures > 0
              AND (EXISTS (SELECT FROM @extschema@.sync_queue r
                            WHERE r.dst_server = w.dst_server
                              AND r.owner::oid = w.owner::oid
                              AND r.status = 'pending')
                   OR EXISTS (SELECT FROM @extschema@.sync_lost_session r
                               WHERE r.dst_server = w.dst_server
                                 AND r.owner::oid = w.owner::oid))) o ON true
      LEFT JOIN LATERAL (
           SELECT f.message, f.sqlstate, f.last_attempt_at FROM (
             SELECT format('change %s of %s.%s: %s', r.id, r.nsp_name, r.table_name, r.message) AS message, r.sqlstate, r.last_attempt_at
               FROM @extschema@.sync_queue r
              WHERE r.dst_server = q.dst_server
                AND r.last_attempt_at = q.last_attempt_at
             UNION ALL SELECT a.last_error, a.last_sqlstate, a.last_error_at
              WHERE a.last_error_at IS NOT NULL
             UNION ALL SELECT format('owner %s: %s', w.owner, w.last_error), w.last_sqlstate, w.last_error_at
               FROM @extschema@.sync_owner_state w
              WHERE w.dst_server = s.srvname::text
                AND w.failures > 0) f
            ORDER BY f.last_attempt_at DESC LIMIT 1) e ON true
      LEFT JOIN LATERAL (
           SELECT count(*) AS sessions
             FROM @extschema@.sync_lost_session l
            WHERE l.dst_server = s.srvname::text) l ON true
      -- The row without a server stands for those that have none of their own.
      LEFT JOIN LATERAL (
           SELECT c.delivered_transactions, c.delivered_changes, c.queued, c.conflicts, c.guarded,
                  c.looped, c.last_success, c.prepared, c.resolved
             FROM @extschema@.sync_counters() c
            WHERE c.server = s.oid OR c.server IS NULL
            ORDER BY c.server LIMIT 1) c ON true
     WHERE q.dst_server IS NOT NULL OR h.dst_server IS NOT NULL
        OR l.sessions > 0
        OR EXISTS (SELECT FROM pg_trigger t
                    WHERE t.tgfoid = '@extschema@.sync_dml()'::regprocedure
                      AND NOT t.tgisinternal
                      AND pg_catalog.substring(t.tgargs, 1, octet_length(
                              convert_to(s.srvname::text, getdatabaseencoding())) + 1)
                          =
                          (convert_to(s.srvname::text, getdatabaseencoding())
                           || decode('00', 'hex')));
COMMENT ON VIEW @extschema@.sync_status IS
    'a row per server that triggers send to or changes wait for';
COMMENT ON COLUMN @extschema@.sync_status.blocked IS
    'owners whose changes wait because the server does not take theirs, and why; others'' do not wait for them';
COMMENT ON COLUMN @extschema@.sync_status.worker IS
    'the database''s worker: running; idle: started when something is queued; no slot; stopped; none: start_sync_worker()';
COMMENT ON COLUMN @extschema@.sync_status.paused_since IS 'pause_sync() holds what is for the server since then';
COMMENT ON COLUMN @extschema@.sync_status.may_be_ahead_since IS
    'since then the server may have what a crash took here: see repair_sync()';

CREATE VIEW @extschema@.sync_tables WITH (security_barrier) AS
    WITH q AS (
        SELECT r.dst_server, r.owner::oid AS owner, r.nsp_name, r.table_name,
               count(*) FILTER (WHERE r.status = 'pending') AS pending,
               count(*) FILTER (WHERE r.status = 'failed') AS failed,
               count(*) FILTER (WHERE r.status = 'waiting') AS waiting
          FROM @extschema@.sync_queue r
         GROUP BY r.dst_server, r.owner::oid, r.nsp_name, r.table_name)
    SELECT a.relation, a.server::name AS server,
           CASE WHEN a.target_table IS NOT NULL
                THEN format('%I.%I', a.target_schema, a.target_table) END AS target,
           a.mode, a.policy,
           CASE WHEN a.problem IS NOT NULL THEN 'invalid'
                WHEN NOT a.enabled THEN 'disabled'
                WHEN @extschema@.sync_is_copy() THEN 'database copy'
                WHEN EXISTS (SELECT FROM @extschema@.sync_pause h
                              WHERE h.dst_server = a.server) THEN 'paused'
                WHEN o.failed > 0 OR k.state = 'failed' THEN 'failed'
                WHEN k.state IS NOT NULL THEN 'copying'
                -- As a commit would find it: others' records count, but for owners who cannot be served.
                WHEN EXISTS (SELECT FROM q
                              WHERE q.dst_server = a.server
                                AND q.pending > 0
                                AND (q.owner = c.relowner
                                     OR NOT EXISTS (SELECT FROM @extschema@.sync_owner_state w
                                         WHERE w.dst_server = q.dst_server
                                           AND w.owner::oid = q.owner)))
                  OR EXISTS (SELECT FROM @extschema@.sync_lost_session l
                              WHERE l.dst_server = a.server
                                AND l.owner::oid = c.relowner) THEN 'queueing'
                ELSE 'live' END AS state,
           COALESCE(o.pending, 0) AS pending,
           COALESCE(o.failed, 0) AS failed,
           COALESCE(o.waiting, 0) AS waiting,
           a.options::jsonb AS options,
           a.problem,
           COALESCE(
               (SELECT x.noticed_at FROM @extschema@.sync_crash x
                 WHERE x.relation = a.relation::oid
                   AND x.dst_server = a.server),
               CASE WHEN a.mode = ANY (ARRAY['async', 'sync'])
                     AND @extschema@.sync_has_crashed()
                    THEN pg_postmaster_start_time() END) AS may_be_ahead_since
      FROM @extschema@.sync_attachments() a
      JOIN pg_class c ON c.oid = a.relation::oid
      -- The queue names partitions, not the table that they belong to.
      LEFT JOIN LATERAL (
           SELECT sum(q.pending)::int8 AS pending,
                  sum(q.failed)::int8 AS failed,
                  sum(q.waiting)::int8 AS waiting
             FROM (SELECT a.relation::oid AS id
                   UNION SELECT p.relid::oid FROM pg_partition_tree(a.relation) p) t
             JOIN pg_class r ON r.oid = t.id
             JOIN pg_namespace n ON n.oid = r.relnamespace
             JOIN q ON q.nsp_name = n.nspname
              AND q.table_name = r.relname
              AND q.dst_server = a.server) o ON true
      LEFT JOIN @extschema@.sync_copy k
        ON k.dst_server = a.server
       AND k.target_schema = a.target_schema
       AND k.target_table = a.target_table
     WHERE pg_has_role(c.relowner, 'USAGE')
        OR has_table_privilege('@extschema@.sync_status'::regclass, 'SELECT');
COMMENT ON VIEW @extschema@.sync_tables IS
    'what is attached: a row for each table and target, to its owner and to whoever may see sync_status';
COMMENT ON COLUMN @extschema@.sync_tables.may_be_ahead_since IS
    'since then the target may have what a crash took here: see repair_sync()';
COMMENT ON COLUMN @extschema@.sync_tables.state IS
    'live; queueing: behind records of the server; copying; failed: records are marked failed, or the copy has failed; paused; disabled: a trigger is; invalid: its arguments are, see problem; database copy';

CREATE VIEW @extschema@.sync_conflicts AS
    SELECT c.id, c.logged_at, c.server, c.nsp_name, c.table_name, c.type, c.decision, c.key,
           c.server_key, c.version, c.server_version, c.constraint_name
      FROM @extschema@.sync_conflict_log c;
COMMENT ON VIEW @extschema@.sync_conflicts IS
    'changes that did not find the server''s row as expected, and what became of them, oldest first by id';
COMMENT ON COLUMN @extschema@.sync_conflicts.nsp_name IS 'schema of the local table';
COMMENT ON COLUMN @extschema@.sync_conflicts.type IS
    'insert_exists, update_missing, update_exists, update_origin_differs, delete_missing, delete_origin_differs, multiple_unique_conflicts';
COMMENT ON COLUMN @extschema@.sync_conflicts.decision IS
    'applied: the server''s row is what the change says; skipped: the server keeps what it has; marked failed: the change waits in sync_err_rec';
COMMENT ON COLUMN @extschema@.sync_conflicts.key IS
    'key of the change, columns by their names on the server';
COMMENT ON COLUMN @extschema@.sync_conflicts.server_key IS 'key of the row that was met';
COMMENT ON COLUMN @extschema@.sync_conflicts.constraint_name IS
    'constraint on the server that was violated';

CREATE VIEW @extschema@.sync_conflict_counts AS
    SELECT s.srvname AS server, n.nspname AS nsp_name, r.relname AS table_name, c.type, c.conflicts
      FROM @extschema@.sync_conflict_counters() c
      JOIN pg_foreign_server s ON s.oid = c.server
      JOIN pg_class r ON r.oid = c.relation
      JOIN pg_namespace n ON n.oid = r.relnamespace;
COMMENT ON VIEW @extschema@.sync_conflict_counts IS
    'conflicts since the start of the cluster, by server, local table and type; see sync_status for the sums';

CREATE VIEW @extschema@.sync_prepared AS
    SELECT p.gid, p.dst_server AS server, p.prepared_at, p.decision, p.attempts, p.sqlstate, p.message,
           p.place, p.last_attempt_at
      FROM @extschema@.sync_prepared_transaction p;
COMMENT ON VIEW @extschema@.sync_prepared IS
    'transactions of mode atomic that are not known to be finished on their servers; deleting a row forgets one';
COMMENT ON COLUMN @extschema@.sync_prepared.decision IS
    'commit, rollback; NULL: it cannot be told here, a person decides on the server';
COMMENT ON COLUMN @extschema@.sync_prepared.place IS 'where it was prepared, and as whom';

CREATE VIEW @extschema@.sync_progress AS
    SELECT c.id, 'copy'::text AS command, c.relation::regclass AS relation,
           c.dst_server::name AS server,
           CASE WHEN c.state <> 'failed'
                     AND EXISTS (SELECT FROM @extschema@.sync_pause h
                                  WHERE h.dst_server = c.dst_server)
                THEN 'paused' ELSE c.state END AS state,
           c.rows_total, c.rows_done, c.bytes_done,
           c.started_at, NULL::timestamptz AS ended_at,
           CASE WHEN c.state = 'copying' AND c.rows_done > 0
                     AND c.rows_total >= c.rows_done
                THEN c.started_at + (
                     (clock_timestamp() - c.started_at)
                     * (c.rows_total::float8
                     / c.rows_done::float8)) END AS eta,
           (SELECT count(*)::integer FROM pg_locks l
             WHERE l.locktype = 'object'
               AND l.classid = 'pg_extension'::regclass
               AND l.database = (SELECT d.oid FROM pg_database d
                     WHERE d.datname = current_database())
               AND l.objid::int8 = c.grp
               AND l.objsubid = 2::int2 AND l.granted) AS workers,
           c.sqlstate, c.message, NULL::integer AS pid
      FROM @extschema@.sync_copy c
    UNION ALL
    SELECT v.id, v.command, v.relation::regclass, s.srvname, v.state, v.rows_total, v.rows_done,
           v.bytes_done, v.started_at, NULL,
           CASE WHEN v.state = 'comparing' AND v.rows_done > 0 AND v.rows_total >= v.rows_done
                THEN v.started_at + ((clock_timestamp() - v.started_at)
                     * (v.rows_total::float8 / v.rows_done::float8)) END,
           1, NULL,
           concat(v.ranges, ' ranges compared, ', v.differences, ' differences',
                  CASE WHEN v.state = 'repairing' THEN concat(', ', v.repaired, ' dealt with') END),
           v.pid
      FROM @extschema@.sync_comparisons() v
      JOIN pg_foreign_server s ON s.oid = v.server
    UNION ALL
    SELECT e.id, e.command, e.relation::regclass, e.dst_server::name, e.state,
           e.rows_done, e.rows_done, e.bytes_done, e.started_at, e.ended_at, NULL, 0, e.sqlstate,
           e.message, NULL
      FROM @extschema@.sync_progress_log e
     WHERE e.ended_at >
           (clock_timestamp() - '1 day'::interval);
COMMENT ON VIEW @extschema@.sync_progress IS
    'copies, comparisons and repairs that are under way or have ended within a day; rows_total is an estimate';
COMMENT ON COLUMN @extschema@.sync_progress.pid IS
    'process of the session that compares or repairs: pg_cancel_backend() ends it';

-- As CREATE EXTENSION has set it.
SET LOCAL search_path = @extschema@, pg_temp;
