//! What is known of a server, and settings of a remote transaction: the guard name that changes carry, and the search_path for keys
//! whose types bring their own operators.

use super::conflicts::Conflicts;
use super::quote::{ident, relation};
use super::statement::{Param, Statement};
use crate::change::Route;

/// Asks a server for the schema of its extension: one whose functions can be called, or must be
/// because it sends changes of its own; see [`crate::versions`].
pub const HOME: &str = "SELECT n.nspname FROM pg_catalog.pg_extension e \
     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace \
     WHERE e.extname OPERATOR(pg_catalog.=) 'pg_rowsync' \
       AND (pg_catalog.has_schema_privilege(n.oid, 'USAGE') OR EXISTS ( \
         SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
         WHERE p.proname OPERATOR(pg_catalog.=) 'sync_dml' \
           AND p.pronamespace OPERATOR(pg_catalog.=) n.oid))";

/// Gives the remote transaction another `application_name`.
pub fn named(application_name: &str) -> Statement {
    let text = "SELECT pg_catalog.set_config('application_name', $1, true)";
    Statement::query(
        text.to_owned(),
        vec![Param::Text(application_name.to_owned())],
        Conflicts::Never,
    )
}

/// Sets the remote transaction's search_path back to what the session has.
pub const OWN_SCHEMAS: &str = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)";

/// For a route whose keys are compared with operators that are not PostgreSQL's own: adds the schemas
/// in which the remote has the types of those columns to the transaction's search_path. Everything
/// else in our statements is qualified, so that these schemas can offer nothing but operators.
pub fn with_type_schemas(route: &Route) -> String {
    let types: Vec<String> = route
        .compared()
        .map(|at| ident(&route.columns[at].name))
        .map(|name| format!("pg_catalog.pg_typeof((NULL::{}).{name})", relation(&route.target)))
        .collect();
    format!(
        "SELECT pg_catalog.set_config('search_path', 'pg_catalog' OPERATOR(pg_catalog.||) \
         COALESCE(pg_catalog.string_agg(DISTINCT ', ' OPERATOR(pg_catalog.||) \
         pg_catalog.quote_ident(n.nspname), ''), ''), true) \
         FROM (WITH RECURSIVE base(id) AS (SELECT pg_catalog.unnest(ARRAY[{}]::pg_catalog.oid[]) \
           UNION ALL SELECT d.typbasetype FROM base JOIN pg_catalog.pg_type d \
             ON d.oid OPERATOR(pg_catalog.=) base.id \
             WHERE d.typbasetype OPERATOR(pg_catalog.<>) 0::pg_catalog.oid) \
           SELECT id FROM base) b \
         JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.id \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
         WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'",
        types.join(", ")
    )
}
