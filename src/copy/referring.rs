//! Rows of other tables on the server that refer to a target: deleting its rows would delete or change them.

use super::plan::Plan;
use super::target::CopyTarget;
use crate::error::{Error, Result, SqlState};
use crate::sql::quote::{literal, relation};

/// Refuses to delete what these targets have where rows of further tables would be deleted or changed with it, which
/// are none of the copy's. The targets, `names`, are locked, so that none comes to refer to them meanwhile.
///
/// # Errors
/// 55000 where there are such rows, or where it cannot be told; what the connection reports.
pub fn check_alone(
    target: &mut CopyTarget,
    plans: &[Plan],
    which: &[usize],
    names: &[String],
) -> Result<()> {
    let own = which.iter().map(|at| {
        let name = literal(&relation(&plans[*at].route.target));
        format!(
            "SELECT t.relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree({name}) t \
             UNION SELECT {name}::pg_catalog.regclass::pg_catalog.oid"
        )
    });
    let own = own.collect::<Vec<_>>().join(" UNION ");
    let ask = format!(
        "SELECT pg_catalog.json_build_array(c.relname, pg_catalog.format( \
             'SELECT EXISTS (SELECT FROM %s%I.%I AS r WHERE %s)', \
             CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'p' THEN '' ELSE 'ONLY ' END, \
             n.nspname, c.relname, \
             (SELECT pg_catalog.string_agg(pg_catalog.format('r.%I IS NOT NULL', a.attname), ' AND ') \
                FROM pg_catalog.pg_attribute a WHERE a.attrelid OPERATOR(pg_catalog.=) f.conrelid \
                 AND a.attnum OPERATOR(pg_catalog.=) ANY (f.conkey)))) \
         FROM pg_catalog.pg_constraint f \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) f.conrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         WHERE f.contype OPERATOR(pg_catalog.=) 'f' \
           AND f.conparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
           AND f.confdeltype OPERATOR(pg_catalog.=) ANY ('{{c,n,d}}') \
           AND f.confrelid OPERATOR(pg_catalog.=) ANY (ARRAY({own})) \
           AND f.conrelid OPERATOR(pg_catalog.<>) ALL (ARRAY({own}))"
    );
    let lock = format!("LOCK TABLE {} IN EXCLUSIVE MODE", names.join(", "));
    let answers = target.run(&[&lock, &ask])?;
    for answer in answers.into_iter().flatten().flatten() {
        let (name, refers): (String, String) = serde_json::from_str(&answer)
            .map_err(|_| Error::internal("malformed description of a foreign key"))?;
        // Rows that row security hides count, too.
        let look = [
            "SET LOCAL row_security = off",
            &refers,
            "RESET row_security",
        ];
        let found = match target.run(&look) {
            Ok(answers) => answers.into_iter().flatten().flatten().any(|is| is == "t"),
            // Who may not look cannot tell that there is none.
            Err(Error::Remote(error)) if error.sqlstate == SqlState::INSUFFICIENT_PRIVILEGE => true,
            Err(error) => return Err(error),
        };
        if found {
            let tables = which.iter().map(|at| &plans[*at].route.target.table);
            let tables: Vec<String> = tables.map(|table| format!("\"{table}\"")).collect();
            let message = format!(
                "cannot empty {} of server \"{}\": rows of table \"{name}\", which refer to it, would be deleted \
                 or changed",
                tables.join(", "),
                plans[which[0]].account().server_name
            );
            return Err(Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(
                "Call copy_sync() with existing => 'merge', then repair_sync(), which deletes what only the target has.",
            ));
        }
    }
    Ok(())
}
