-- The tables of a side, each with what changes whenever anything of its shape does.
CREATE FUNCTION rowsync.signs() RETURNS SETOF text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT concat_ws(' ', c.oid, c.relnamespace, c.ctid, c.xmin, a.sign, i.sign, t.sign)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN (SELECT attrelid, sum(hashtextextended(ctid::text || xmin, attnum)) FROM pg_attribute
        WHERE attnum > 0 GROUP BY 1) a(rel, sign) ON a.rel = c.oid
    LEFT JOIN (SELECT indrelid, sum(hashtextextended(ctid::text || xmin, 0)) FROM pg_index
        GROUP BY 1) i(rel, sign) ON i.rel = c.oid
    LEFT JOIN (SELECT tgrelid, sum(hashtextextended(ctid::text || xmin, 0)) FROM pg_trigger
        GROUP BY 1) t(rel, sign) ON t.rel = c.oid
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence IN ('p', 'u')
        AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rowsync')
    ORDER BY c.oid
$$;

-- Such tables, each as JSON.
CREATE FUNCTION rowsync.shapes(these oid[]) RETURNS SETOF text LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT json_build_object('schema', n.nspname, 'table', c.relname, 'oid', c.oid::bigint, 'kind', c.relkind,
        'file', c.relfilenode::bigint,
        'attached', EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'rowsync_dml'),
        'columns', coalesce((SELECT json_agg(json_build_array(quote_ident(a.attname),
                format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', a.attinhcount > 0)
                ORDER BY a.attname)
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
        'key', (SELECT json_agg(quote_ident(a.attname) ORDER BY a.attname)
            FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = c.oid AND i.indisprimary),
        'keys', coalesce((SELECT json_agg((SELECT json_agg(quote_ident(a.attname) ORDER BY a.attname)
                FROM generate_series(0, i.indnkeyatts - 1) k
                JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k]))
            FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL
                AND i.indexprs IS NULL), '[]'),
        'by_key', EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'rowsync_dml'
            AND encode(t.tgargs, 'escape') LIKE '%rowsync_key%'))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = ANY (these)
$$;
