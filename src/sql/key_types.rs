//! Asks whether the key and the version can be told apart by their columns on the server.

use super::marks::COARSER_MARK;
use super::quote::literal;
use super::statement::Statement;
use crate::change::Route;
use crate::check::types::{CITEXT, measure, needed};

/// Fails if a key or version column is coarser there, since rows that differ here could be one
/// there, or not be found again. `None`: there is nothing to ask.
pub fn ask_types(route: &Route) -> Option<Statement> {
    let mut wanted = Vec::new();
    for at in route.key.iter().copied().chain(route.version()) {
        let column = &route.columns[at];
        let Some(own) = &column.own_type else {
            continue;
        };
        for one in needed(&own.name, own.modifier) {
            let least = one
                .least
                .map_or("NULL".to_owned(), |least| least.to_string());
            let name = literal(&column.name);
            let of = literal(one.name);
            wanted.push(format!("({name}, {of}, {least}::pg_catalog.int4)"));
        }
    }
    if wanted.is_empty() {
        return None;
    }
    let schema = literal(&route.target.schema);
    let table = literal(&route.target.table);
    let wanted = wanted.join(", ");
    let measure = measure("b.name", "b.modifier");
    let mark = literal(COARSER_MARK);
    Some(Statement::plain(format!(
        "SELECT CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) 0 THEN true \
           ELSE ({mark} OPERATOR(pg_catalog.||) pg_catalog.string_agg( \
             pg_catalog.format('%I %s', f.name, f.shown), ', '))::pg_catalog.bool END \
         FROM (SELECT DISTINCT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) \
           FROM pg_catalog.pg_namespace n \
           JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid \
           JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
            AND a.attnum OPERATOR(pg_catalog.>) 0 \
           CROSS JOIN LATERAL (WITH RECURSIVE base(id, modifier) AS ( \
               SELECT a.atttypid, a.atttypmod \
               UNION ALL SELECT d.typbasetype, d.typtypmod FROM base JOIN pg_catalog.pg_type d \
                 ON d.oid OPERATOR(pg_catalog.=) base.id \
                 WHERE d.typtype OPERATOR(pg_catalog.=) 'd') \
             SELECT d.typname, base.modifier FROM base JOIN pg_catalog.pg_type d \
               ON d.oid OPERATOR(pg_catalog.=) base.id \
              AND d.typtype OPERATOR(pg_catalog.=) 'b' \
              AND (d.typnamespace OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.regnamespace \
                OR d.typname OPERATOR(pg_catalog.=) '{CITEXT}')) \
             AS b(name, modifier) \
           JOIN (VALUES {wanted}) AS w(name, of, least) \
             ON w.name OPERATOR(pg_catalog.=) a.attname::pg_catalog.text \
            AND w.of OPERATOR(pg_catalog.=) b.name::pg_catalog.text \
           WHERE n.nspname OPERATOR(pg_catalog.=) {schema}::pg_catalog.name \
             AND c.relname OPERATOR(pg_catalog.=) {table}::pg_catalog.name \
             AND (w.least IS NULL OR w.least OPERATOR(pg_catalog.>) {measure})) f(name, shown)"
    )))
}
