-- The queue. Written by the trigger's delivery as the extension's owner, whoever commits.

-- PostgreSQL's own names need no schema: nothing else is found until the end of this file. The extension's
-- are qualified.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Indexes and keys are named here: a name that PostgreSQL chose would step aside for one that is taken.

CREATE TABLE @extschema@.sync_route (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT sync_route_pkey PRIMARY KEY,
    owner regrole NOT NULL,
    body text NOT NULL
);
COMMENT ON TABLE @extschema@.sync_route IS
    'where and how queued changes go: target, columns, key and policy, as JSON';
CREATE INDEX sync_route_body ON @extschema@.sync_route (md5(body));

CREATE TABLE @extschema@.sync_queue (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT sync_queue_pkey PRIMARY KEY,
    dst_server text NOT NULL,
    owner regrole NOT NULL,
    route_id bigint NOT NULL,
    nsp_name name NOT NULL,
    table_name name NOT NULL,
    op text NOT NULL,
    change json NOT NULL,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    sqlstate text,
    message text,
    constraint_name text,
    attempts integer NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status = ANY (ARRAY['pending', 'failed', 'waiting'])),
    waits_for bigint,
    blocks bigint[],
    times_failed integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz
);
-- Emptied by a crash recovery, and empty on a standby that is promoted.
CREATE UNLOGGED TABLE @extschema@.sync_alive (
    alive boolean CONSTRAINT sync_alive_pkey PRIMARY KEY
);
COMMENT ON TABLE @extschema@.sync_alive IS
    'has a row unless the server has crashed and nobody has noted it in sync_crash yet';
INSERT INTO @extschema@.sync_alive VALUES (true);

CREATE TABLE @extschema@.sync_crash (
    relation oid,
    dst_server text,
    noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT sync_crash_pkey PRIMARY KEY (relation, dst_server)
);
COMMENT ON TABLE @extschema@.sync_crash IS
    'tables whose targets may be ahead by what a crash took here; a comparison that ends equal removes them';

-- Looked at by every commit that delivers, like the queue.
CREATE TABLE @extschema@.sync_pause (
    dst_server text CONSTRAINT sync_pause_pkey PRIMARY KEY,
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    paused_by name NOT NULL
);
COMMENT ON TABLE @extschema@.sync_pause IS
    'servers that nothing is sent to before resume_sync(); what is for them stays in the queue';

-- Not rolled back with a drain: what it was about to commit on a server is known to the next one. Not of a
-- dump, which was not taken between the two commits.
CREATE SEQUENCE @extschema@.sync_replay_seq;
COMMENT ON SEQUENCE @extschema@.sync_replay_seq IS
    'last record of sync_queue that a drain was about to commit on its server';
COMMENT ON TABLE @extschema@.sync_queue IS 'changes not yet delivered; see the view sync_err_rec';
COMMENT ON COLUMN @extschema@.sync_queue.status IS
    'pending; failed: refused as things are; waiting: behind the record that waits_for names';
COMMENT ON COLUMN @extschema@.sync_queue.blocks IS
    'hashes of what a failed record or waits has touched: later changes that meet one wait';
COMMENT ON COLUMN @extschema@.sync_queue.next_attempt_at IS
    'failed over something that may pass by itself: when it is tried again';
CREATE INDEX sync_queue_pending ON @extschema@.sync_queue (dst_server, owner, id)
    WHERE status = 'pending';
CREATE INDEX sync_queue_failed ON @extschema@.sync_queue (dst_server, status, id)
    WHERE status <> 'pending';
CREATE INDEX sync_queue_retries ON @extschema@.sync_queue (dst_server, next_attempt_at)
    WHERE status = 'failed' AND next_attempt_at IS NOT NULL;
CREATE INDEX sync_queue_waiting ON @extschema@.sync_queue (dst_server, waits_for, id)
    WHERE status = 'waiting';
CREATE INDEX sync_queue_blocks ON @extschema@.sync_queue USING gin (blocks) WITH (fastupdate = off)
    WHERE status <> 'pending';

CREATE TRIGGER sync_queue_discarded AFTER DELETE ON @extschema@.sync_queue
    FOR EACH ROW WHEN (OLD.status = 'failed')
    EXECUTE FUNCTION @extschema@.sync_queue_discarded();

CREATE TABLE @extschema@.sync_queue_floor (
    dst_server text CONSTRAINT sync_queue_floor_pkey PRIMARY KEY,
    id bigint NOT NULL,
    clear_id bigint NOT NULL
);
COMMENT ON TABLE @extschema@.sync_queue_floor IS
    'ids of sync_queue up to which a server has no record that is pending, or failed or waiting (clear_id): looks begin behind them';

-- The note is overwritten in place, so its length stays as it is. No key but the id: who makes a row waits for
-- nobody.
CREATE TABLE @extschema@.sync_drain (
    id bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME @extschema@.sync_drain_id_seq)
        CONSTRAINT sync_drain_pkey PRIMARY KEY,
    dst_server text NOT NULL,
    owner regrole NOT NULL,
    note bytea NOT NULL DEFAULT decode(repeat('00', 7000), 'hex')
);
ALTER TABLE @extschema@.sync_drain ALTER COLUMN note SET STORAGE PLAIN;
COMMENT ON TABLE @extschema@.sync_drain IS
    'what the last drain was about to commit on a server, whatever became of the local transaction';
CREATE INDEX sync_drain_server ON @extschema@.sync_drain (dst_server);

-- Copies under way. What goes to such a table waits in the queue: waits_for is the copy's number, negative.
CREATE TABLE @extschema@.sync_copy (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT sync_copy_pkey PRIMARY KEY,
    dst_server text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    writes bigint[] NOT NULL,
    grp bigint NOT NULL,
    relation oid NOT NULL,
    owner oid NOT NULL,
    existing text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    prepared boolean NOT NULL DEFAULT false,
    "position" text,
    complete boolean NOT NULL DEFAULT false,
    step_xact text,
    step_snapshot text,
    step_position text,
    step_complete boolean NOT NULL DEFAULT false,
    step_emptied boolean NOT NULL DEFAULT false,
    step_rows bigint NOT NULL DEFAULT 0,
    step_bytes bigint NOT NULL DEFAULT 0,
    rows_total bigint,
    rows_done bigint NOT NULL DEFAULT 0,
    bytes_done bigint NOT NULL DEFAULT 0,
    registered_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    sqlstate text,
    message text,
    CONSTRAINT sync_copy_target UNIQUE (dst_server, target_schema, target_table)
);
COMMENT ON TABLE @extschema@.sync_copy IS
    'tables that are being copied to servers, and how far; see the view sync_progress';
COMMENT ON COLUMN @extschema@.sync_copy.grp IS
    'copies that foreign keys tie together: they reach the server as of the same moments, and end together';
COMMENT ON COLUMN @extschema@.sync_copy."position" IS 'key of the last row that the server has, as JSON';
COMMENT ON COLUMN @extschema@.sync_copy.step_xact IS
    'transaction on the server that was about to be committed: its fate tells whether the step was done';
COMMENT ON COLUMN @extschema@.sync_copy.step_snapshot IS
    'what that step has seen: records of the queue that it has seen are done with it';

CREATE TABLE @extschema@.sync_progress_log (
    id bigint CONSTRAINT sync_progress_log_pkey PRIMARY KEY,
    command text NOT NULL DEFAULT 'copy',
    relation oid NOT NULL,
    dst_server text NOT NULL,
    state text NOT NULL,
    rows_done bigint NOT NULL,
    bytes_done bigint NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sqlstate text,
    message text
);
COMMENT ON TABLE @extschema@.sync_progress_log IS
    'copies, and comparisons and repairs that were committed, for a day after their end';

CREATE TABLE @extschema@.sync_server_state (
    dst_server text CONSTRAINT sync_server_state_pkey PRIMARY KEY,
    failures integer NOT NULL DEFAULT 0,
    unreachable boolean NOT NULL DEFAULT false,
    last_error text,
    last_sqlstate text,
    last_error_at timestamptz,
    last_success_at timestamptz,
    next_attempt_at timestamptz
);
COMMENT ON TABLE @extschema@.sync_server_state IS
    'what the attempts to replay changes came to, by server; failures are those since the last success';

CREATE TABLE @extschema@.sync_owner_state (
    dst_server text NOT NULL,
    owner regrole NOT NULL,
    failures integer NOT NULL DEFAULT 0,
    last_error text,
    last_sqlstate text,
    last_error_at timestamptz,
    next_attempt_at timestamptz,
    CONSTRAINT sync_owner_state_pkey PRIMARY KEY (dst_server, owner)
);
COMMENT ON TABLE @extschema@.sync_owner_state IS
    'owners whose records a server does not take while it takes others'', until all of theirs are there';

CREATE TABLE @extschema@.sync_lost_session (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT sync_lost_session_pkey PRIMARY KEY,
    dst_server text NOT NULL,
    owner regrole NOT NULL,
    backend_pid integer,
    backend_start timestamptz,
    token bigint,
    not_after timestamptz,
    lost_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    remote_xact bigint,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id()
);
COMMENT ON TABLE @extschema@.sync_lost_session IS
    'server sessions of connections lost with a COMMIT on its way; nothing is applied before they are gone';
COMMENT ON COLUMN @extschema@.sync_lost_session.token IS
    'where the process was not known for certain: the advisory lock that the lost transaction takes first';
COMMENT ON COLUMN @extschema@.sync_lost_session.not_after IS
    'by the server''s clock: a transaction that has not begun by then never will';
COMMENT ON COLUMN @extschema@.sync_lost_session.remote_xact IS
    'the transaction there, where it was asked for: it tells whether it was committed';
CREATE INDEX sync_lost_session_server ON @extschema@.sync_lost_session (dst_server);

CREATE TABLE @extschema@.sync_prepared_transaction (
    gid text CONSTRAINT sync_prepared_transaction_pkey PRIMARY KEY,
    dst_server text NOT NULL,
    owner regrole NOT NULL,
    place text NOT NULL,
    decision text CHECK (decision = ANY (ARRAY['commit', 'rollback'])),
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    prepared_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    writes bigint[],
    attempts integer NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    sqlstate text,
    message text,
    remote_xact xid8,
    remote_history text
);
COMMENT ON TABLE @extschema@.sync_prepared_transaction IS
    'what was prepared on servers in mode atomic, until it is known to be finished there; see the view sync_prepared';
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.decision IS
    'commit: written by the transaction that decides it; NULL: a person decides';
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.writes IS
    'hashes of what it has touched, NULL for all: later changes that meet one wait';
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.remote_xact IS
    'the transaction there: it tells whether it was committed, once it is prepared no more';
COMMENT ON COLUMN @extschema@.sync_prepared_transaction.remote_history IS
    'system identifier, timeline, position of the log and start of the server when it was prepared';
CREATE INDEX sync_prepared_transaction_server ON @extschema@.sync_prepared_transaction (dst_server);

-- No foreign key to the tables: what is kept of a dropped one does no harm until it is removed.
CREATE TABLE @extschema@.sync_row_version (
    relation oid NOT NULL,
    key_hash bigint NOT NULL,
    version text,
    rank bigint NOT NULL,
    deleted boolean NOT NULL,
    shown text,
    stored bigint NOT NULL,
    written_by xid8 NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT sync_row_version_pkey PRIMARY KEY (relation, key_hash)
);
COMMENT ON TABLE @extschema@.sync_row_version IS
    'what deletions and rows count as, where the newest wins and the version column does not show it';
COMMENT ON COLUMN @extschema@.sync_row_version.shown IS
    'the version in the column of the row as it was stored: a trigger may have replaced the one that was sent';
COMMENT ON COLUMN @extschema@.sync_row_version.stored IS
    'place of the row version whose event wrote it, 0 for one that arrived: the event''s other triggers know it by this and written_by';
CREATE INDEX sync_row_version_deleted ON @extschema@.sync_row_version (changed_at) WHERE deleted;

-- VACUUM does not give pages back: for that it locks the table for a moment, and who writes a conflict
-- does not wait for locks. The pages that old rows leave are used again.
CREATE TABLE @extschema@.sync_conflict_log (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT sync_conflict_log_pkey PRIMARY KEY,
    logged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    server text NOT NULL,
    nsp_name name NOT NULL,
    table_name name NOT NULL,
    type text NOT NULL,
    decision text NOT NULL,
    key json,
    server_key json,
    version text,
    server_version text,
    constraint_name text
) WITH (vacuum_truncate = false);
COMMENT ON TABLE @extschema@.sync_conflict_log IS
    'conflicts met on servers, the latest of them; see the view sync_conflicts';

-- Which database this is. A copy of the database brings at least one thing that is not its own: a dump the row
-- of sync_node or the extension's comment, a template another database's oid, a clone that became a cluster of
-- its own another system identifier.
CREATE TABLE @extschema@.sync_home (
    database oid CONSTRAINT sync_home_pkey PRIMARY KEY,
    system_identifier bigint NOT NULL,
    node uuid NOT NULL DEFAULT gen_random_uuid(),
    server_major integer NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What was prepared before that is not decided by what stands in these tables.
    since_position pg_lsn NOT NULL DEFAULT pg_current_wal_insert_lsn()
);
COMMENT ON TABLE @extschema@.sync_home IS
    'the database that captures and delivers; where it is not the current one, that is a copy, see adopt_sync()';
CREATE TABLE @extschema@.sync_node (
    node uuid CONSTRAINT sync_node_pkey PRIMARY KEY
);
COMMENT ON TABLE @extschema@.sync_node IS
    'node of sync_home, for dumps to carry, as in the extension''s comment';

-- Every session must see at once that a database has become a copy, or has ceased to be one.
CREATE TRIGGER sync_identity_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.sync_home
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.sync_identity_changed();
CREATE TRIGGER sync_identity_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.sync_node
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.sync_identity_changed();
ALTER TABLE @extschema@.sync_home ENABLE ALWAYS TRIGGER sync_identity_changed;
ALTER TABLE @extschema@.sync_node ENABLE ALWAYS TRIGGER sync_identity_changed;

-- A publication FOR ALL TABLES carries these tables too: what arrives of them is another database's.
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_route
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_route ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_queue
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_queue ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_alive
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_alive ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_crash
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_crash ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_pause
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_pause ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_queue_floor
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_queue_floor ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_copy
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_copy ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_progress_log
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_progress_log ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_server_state
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_server_state ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_drain
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_drain ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_owner_state
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_owner_state ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_lost_session
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_lost_session ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_prepared_transaction
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_prepared_transaction ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_row_version
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_row_version ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_conflict_log
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_conflict_log ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_home
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_home ENABLE REPLICA TRIGGER sync_not_replicated;
CREATE TRIGGER sync_not_replicated BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.sync_node
    FOR EACH ROW EXECUTE FUNCTION @extschema@.sync_not_replicated();
ALTER TABLE @extschema@.sync_node ENABLE REPLICA TRIGGER sync_not_replicated;

-- What a restored database must know. Not how attempts went and which conflicts there were: that is the
-- past of the database that was dumped, and its rows of conflicts show keys to whoever has the dump.
SELECT pg_extension_config_dump('@extschema@.sync_route', '');
SELECT pg_extension_config_dump('@extschema@.sync_route_id_seq', '');
SELECT pg_extension_config_dump('@extschema@.sync_queue', '');
SELECT pg_extension_config_dump('@extschema@.sync_queue_id_seq', '');
SELECT pg_extension_config_dump('@extschema@.sync_pause', '');
SELECT pg_extension_config_dump('@extschema@.sync_lost_session', '');
SELECT pg_extension_config_dump('@extschema@.sync_lost_session_id_seq', '');
SELECT pg_extension_config_dump('@extschema@.sync_node', '');

-- As CREATE EXTENSION has set it.
SET LOCAL search_path = @extschema@, pg_temp;
