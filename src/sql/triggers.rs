//! The triggers that call `sync_dml`, in the catalogs, and their arguments taken apart.

/// What to select from: `t`, the triggers in `pg_trigger` that call `sync_dml`, and `a.args`, the arguments
/// of each as an array of text. `schema`: the parameter with the schema of the extension, as `$1`.
///
/// `pg_trigger` stores arguments one after the other, each with a zero byte behind it.
pub fn sending(schema: &str) -> String {
    format!(
        "pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
          AND p.proname OPERATOR(pg_catalog.=) 'sync_dml' \
         JOIN pg_catalog.pg_namespace h ON h.oid OPERATOR(pg_catalog.=) p.pronamespace \
          AND h.nspname OPERATOR(pg_catalog.=) {schema}::pg_catalog.name \
         CROSS JOIN LATERAL (SELECT pg_catalog.array_agg(pg_catalog.convert_from( \
             pg_catalog.decode(u.piece, 'hex'), pg_catalog.getdatabaseencoding()) ORDER BY u.n) \
           FROM pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.regexp_replace( \
             pg_catalog.encode(t.tgargs, 'hex'), '(..)', E'\\\\1 ', 'g'), '00 ')) \
             WITH ORDINALITY u(piece, n) WHERE u.n OPERATOR(pg_catalog.<=) t.tgnargs) a(args)"
    )
}
