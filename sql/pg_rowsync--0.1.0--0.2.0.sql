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

-- As ALTER EXTENSION has set it.
SET LOCAL search_path = @extschema@, pg_temp;
