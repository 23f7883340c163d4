-- What differs in 0.2.0 from 0.1.0: an update must equal a fresh installation.

-- As in sql/tables.sql: what is created is qualified with @extschema@, functions too.
SET LOCAL search_path = pg_catalog, pg_temp;

-- As ALTER EXTENSION has set it.
SET LOCAL search_path = @extschema@, pg_temp;
