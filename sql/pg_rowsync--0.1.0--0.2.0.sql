-- What differs in 0.2.0 from 0.1.0: an update must equal a fresh installation.

-- As in sql/tables.sql: what is created is qualified with @extschema@, functions too.
SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE @extschema@.sync_prepared_transaction
    ADD COLUMN remote_xact xid8,
    ADD COLUMN remote_history text;
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.remote_xact IS
    'the transaction there: it tells whether it was committed, once it is prepared no more';
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.remote_history IS
    'system identifier, timeline, position of the log and start of the server when it was prepared';

CREATE FUNCTION @extschema@.sync_holds(value text, type regtype, modifier integer) RETURNS boolean
    STABLE STRICT PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'sync_holds_wrapper';

CREATE OR REPLACE VIEW @extschema@.sync_progress AS
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

-- As ALTER EXTENSION has set it.
SET LOCAL search_path = @extschema@, pg_temp;
