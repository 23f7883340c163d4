//! The triggers that call `sync_dml`, in the catalogs, and their arguments taken apart.

/// What to select from: `t`, the triggers in `pg_trigger` that call `sync_dml`, and `a.args`, the arguments
/// of each as an array of text. `schema`: the parameter with the schema of the extension, as `$1`.
///
/// `pg_trigger` stores arguments one after the other, each with a zero byte behind it.
pub fn sending(schema: &str) -> String {
    format!(
        "pg_trigger t \
         JOIN pg_proc p ON p.oid = t.tgfoid \
          AND p.proname = 'sync_dml' \
         JOIN pg_namespace h ON h.oid = p.pronamespace \
          AND h.nspname = {schema}::name \
         CROSS JOIN LATERAL (SELECT array_agg(convert_from( \
             decode(u.piece, 'hex'), getdatabaseencoding()) ORDER BY u.n) \
           FROM unnest(string_to_array(regexp_replace( \
             encode(t.tgargs, 'hex'), '(..)', E'\\\\1 ', 'g'), '00 ')) \
             WITH ORDINALITY u(piece, n) WHERE u.n <= t.tgnargs) a(args)"
    )
}
