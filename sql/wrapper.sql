-- Servers of this wrapper carry connections only; there are no foreign tables.
CREATE FOREIGN DATA WRAPPER pg_rowsync NO HANDLER VALIDATOR @extschema@.pg_rowsync_fdw_validator;
