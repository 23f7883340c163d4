-- What the side that statements run on has besides the extension: a key for each table that has
-- none, the triggers that send it, and one that notes which tables were written.

CREATE SEQUENCE rowsync.key;
GRANT USAGE ON SCHEMA rowsync TO PUBLIC;
GRANT ALL ON SEQUENCE rowsync.key TO PUBLIC;

-- Tables that can be given no key, and why.
CREATE TABLE rowsync.refused (rel oid PRIMARY KEY, reason text);

CREATE FUNCTION rowsync.note() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    known text := coalesce(current_setting('rowsync_seen.written', true), '');
BEGIN
    IF position(' ' || TG_RELID || ' ' IN known) = 0 THEN
        PERFORM set_config('rowsync_seen.written', known || ' ' || TG_RELID || ' ', false);
    END IF;
    RETURN NULL;
END $$;

-- Attaches what can be attached. Rows begin with what they tell: `written`, with the tables,
-- `attached` or `refused`, with one. Not thorough, it is content if each table has a trigger.
CREATE FUNCTION rowsync.after(mode text, thorough boolean) RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog SET client_min_messages = error SET default_tablespace = ''
    SET lock_timeout = '2s'
AS $$
DECLARE
    written text := current_setting('rowsync_seen.written', true);
    by_key text := format('{"mode":"%s"%s, "key": ["rowsync_key"]}', mode, repeat(' ', 5 - length(mode)));
    by_primary text := format('{"mode":"%s"%s}', mode, repeat(' ', 5 - length(mode)));
    one record;
    options text;
BEGIN
    IF written <> '' THEN
        RETURN NEXT 'written ' || written;
        PERFORM set_config('rowsync_seen.written', '', false);
    END IF;
    IF NOT thorough AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relkind = 'r' AND NOT c.relhastriggers
        AND c.relpersistence IN ('p', 'u') AND c.oid >= 16384
        AND c.relnamespace <> 'rowsync'::regnamespace AND c.relnamespace <> 'pg_toast'::regnamespace
        AND NOT EXISTS (SELECT FROM rowsync.refused r WHERE r.rel = c.oid))
    THEN
        RETURN;
    END IF;
    FOR one IN
        SELECT * FROM (
            SELECT c.oid, c.oid::regclass::text AS rel, n.nspname, c.relname, c.relkind, a.attnum AS key_at,
                t.oid IS NOT NULL AS attached,
                EXISTS (SELECT FROM pg_trigger w WHERE w.tgrelid = c.oid AND w.tgname = 'rowsync_note') AS noted,
                EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_primary,
                a.attnotnull AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique
                    AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
                    AND i.indkey[0] = a.attnum) AS has_key,
                string_to_array(encode(t.tgargs, 'escape'), '\000') AS args
            FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'rowsync_key' AND a.attnum > 0
            LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'rowsync_dml'
            WHERE c.relkind IN ('r', 'p') AND c.relpersistence IN ('p', 'u')
                AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rowsync')
                AND NOT EXISTS (SELECT FROM rowsync.refused r WHERE r.rel = c.oid)
        ) all_tables
        WHERE CASE relkind
            WHEN 'p' THEN NOT noted OR key_at IS NULL AND NOT has_primary
            ELSE NOT attached OR args[3] IS DISTINCT FROM encode(convert_to(relname, 'UTF8'), 'escape')
                OR args[2] IS DISTINCT FROM encode(convert_to(nspname, 'UTF8'), 'escape')
                OR CASE WHEN args[4] LIKE '%rowsync_key%' THEN has_key IS NOT TRUE ELSE NOT has_primary END
        END
        ORDER BY relkind = 'r', oid
    LOOP
        BEGIN
            IF NOT one.has_primary AND one.key_at IS NULL THEN
                EXECUTE format('ALTER TABLE %s ADD COLUMN rowsync_key bigint NOT NULL DEFAULT nextval(%L)',
                    one.rel, 'rowsync.key');
            ELSIF NOT one.has_primary AND one.has_key IS NOT TRUE THEN
                EXECUTE format('ALTER TABLE %s ALTER COLUMN rowsync_key SET NOT NULL, '
                    'ALTER COLUMN rowsync_key SET DEFAULT nextval(%L)', one.rel, 'rowsync.key');
            END IF;
            IF NOT one.noted THEN
                EXECUTE format('CREATE TRIGGER rowsync_note AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                    'FOR EACH STATEMENT EXECUTE FUNCTION rowsync.note()', one.rel);
                -- Whatever the session's role in replication: what the extension does not see is compared too.
                EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER rowsync_note', one.rel);
            END IF;
            CONTINUE WHEN one.relkind = 'p';
            IF NOT one.has_primary AND one.has_key IS NOT TRUE THEN
                EXECUTE format('ALTER TABLE %s ADD UNIQUE (rowsync_key)', one.rel);
            END IF;
            options := CASE WHEN one.has_primary AND one.has_key IS NOT TRUE THEN by_primary ELSE by_key END;
            IF one.attached THEN
                EXECUTE format('DROP TRIGGER rowsync_dml ON %s', one.rel);
                EXECUTE format('DROP TRIGGER rowsync_truncate ON %s', one.rel);
            END IF;
            EXECUTE format('CREATE TRIGGER rowsync_dml AFTER INSERT OR UPDATE OR DELETE ON %s '
                'FOR EACH ROW EXECUTE FUNCTION rowsync.sync_dml(%L, %L, %L, %L)',
                one.rel, 'dst', one.nspname, one.relname, options);
            EXECUTE format('CREATE TRIGGER rowsync_truncate AFTER TRUNCATE ON %s '
                'FOR EACH STATEMENT EXECUTE FUNCTION rowsync.sync_dml(%L, %L, %L, %L)',
                one.rel, 'dst', one.nspname, one.relname, options);
            RETURN NEXT 'attached ' || one.oid;
        EXCEPTION WHEN OTHERS THEN
            -- Used by the statement that has called, or locked: later.
            IF SQLSTATE NOT IN ('55006', '55P03') THEN
                RETURN NEXT format('refused %s %s', one.rel, SQLERRM);
                BEGIN
                    INSERT INTO rowsync.refused VALUES (one.oid, SQLERRM);
                EXCEPTION WHEN OTHERS THEN
                    NULL;
                END;
            END IF;
        END;
    END LOOP;
END $$;

-- The columns that a statement means which names none: all but the key that was added.
CREATE FUNCTION rowsync.columns(relation text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    rel oid := pg_catalog.to_regclass(relation);
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = rel AND attname = 'rowsync_key') THEN
        RETURN QUERY SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute
            WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped AND attname <> 'rowsync_key'
                AND attgenerated = ''
            ORDER BY attnum;
    END IF;
EXCEPTION WHEN OTHERS THEN
    RETURN;
END $$;

-- A table that is not sent any more, since it cannot be made there.
CREATE FUNCTION rowsync.let_go(rel oid, reason text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog SET client_min_messages = error
AS $$
BEGIN
    EXECUTE format('DROP TRIGGER rowsync_dml ON %s', rel::regclass);
    EXECUTE format('DROP TRIGGER rowsync_truncate ON %s', rel::regclass);
    INSERT INTO rowsync.refused VALUES (rel, reason);
END $$;

-- The rows of a table into a file of the server's.
CREATE FUNCTION rowsync.dump(rel oid, columns text, file text) RETURNS void LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog
AS $$
BEGIN
    EXECUTE format('COPY (SELECT %s FROM ONLY %s) TO %L', columns, rel::regclass, file);
END $$;
