//! `attach_sync_schema`: a schema's tables, each as `attach_sync` does it.
//!
//! Each table has a subtransaction, so that one which cannot be attached keeps nothing of the attempt and
//! stops no other. Every target is looked at, in one exchange each over a connection that is kept; an account
//! over which nothing can be asked is tried once.

use super::{Look, attach_table};
use crate::capture::table::Table;
use crate::change::Relation;
use crate::check::{self, Finding, Severity};
use crate::connect::account::{AccountKey, server_oid};
use crate::copy;
use crate::error::{Error, Result, SqlState};
use crate::identity;
use crate::options::Options;
use crate::pg::Oid;
use crate::pg::spi::{self, Extension};
use crate::pg::subtransaction::attempt_interruptibly;
use std::collections::HashMap;

/// What became of a table.
pub struct TableOutcome {
    pub rel: Oid,
    pub attached: bool,
    /// Why it was not, or what will not work on the other side.
    pub reason: Option<String>,
}

/// Attaches every ordinary and partitioned table of a schema, in the order of their names; what is attached
/// already is changed. Partitions go with their table, and the extension's own tables are left out.
///
/// # Errors
/// 3F000 for a schema that is not there, 42704 for a server, 22023 for options that no table can have; 57014
/// for a request to cancel.
pub fn attach_schema(
    extension: &Extension,
    schema: &str,
    server: &str,
    target_schema: Option<&str>,
    options: &str,
    copy_data: bool,
) -> Result<Vec<TableOutcome>> {
    server_oid(extension, server)?;
    Options::parse(options)?;
    let mut refusals: HashMap<AccountKey, Option<Finding>> = HashMap::new();
    let mut outcomes = Vec::new();
    for Member { rel, partition_of } in members(extension, schema)? {
        let done = match partition_of {
            Some(root) => Err(Error::local(
                SqlState::OBJECT_NOT_READY,
                format!("it is a partition of {root}: attach that table"),
            )),
            None => attempt_interruptibly(|| {
                let table = Table::read(extension, rel)?;
                let target = Relation {
                    schema: target_schema.unwrap_or(schema).to_owned(),
                    table: table.name.table.clone(),
                };
                let look: Look<'_> = &mut |descriptor| {
                    let account = &descriptor.account;
                    let refusal = match refusals.get(&account.key()) {
                        Some(known) => known.clone(),
                        None => check::unreachable(extension, account)?,
                    };
                    refusals.insert(account.key(), refusal.clone());
                    match refusal {
                        Some(refusal) => Ok(vec![refusal]),
                        None => check::look(extension, &table.name, descriptor),
                    }
                };
                let found = attach_table(extension, &table, server, target, options, look)?;
                if copy_data {
                    copy::register(extension, rel, server, "error")?;
                }
                Ok(found)
            }),
        };
        outcomes.push(match done {
            Ok(found) => TableOutcome {
                rel,
                attached: true,
                reason: reason(&found),
            },
            Err(error) if error.sqlstate() == SqlState::QUERY_CANCELED => return Err(error),
            Err(error) => TableOutcome {
                rel,
                attached: false,
                reason: Some(in_words(&error)),
            },
        });
    }
    if copy_data && outcomes.iter().any(|outcome| outcome.attached) {
        copy::advise(extension, "the copies wait")?;
    }
    if identity::is_copy()? {
        identity::warn_again();
    }
    Ok(outcomes)
}

/// What will not work, in one text.
fn reason(found: &[Finding]) -> Option<String> {
    let errors = found
        .iter()
        .filter(|finding| finding.severity == Severity::Error);
    let words: Vec<String> = errors.map(|finding| in_words(&finding.problem)).collect();
    (!words.is_empty()).then(|| words.join("\n"))
}

/// A problem and the way out.
fn in_words(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{}. {hint}", error.one_line()),
        None => error.one_line(),
    }
}

/// A table of the schema.
struct Member {
    rel: Oid,
    /// The topmost table that it is a partition of, if that is in another schema.
    partition_of: Option<String>,
}

fn members(extension: &Extension, schema: &str) -> Result<Vec<Member>> {
    let sql = "SELECT oid FROM pg_namespace WHERE nspname = $1::name";
    let found: Option<String> = spi::select_first(extension, sql, &[Some(schema)])?;
    let Some(namespace) = found else {
        let message = format!("schema \"{schema}\" does not exist");
        return Err(Error::local(SqlState::new("3F000"), message));
    };
    let members = spi::select(
        extension,
        "SELECT c.oid, CASE WHEN c.relispartition \
                  THEN format('%I.%I', rn.nspname, r.relname) END \
         FROM pg_class c \
         LEFT JOIN pg_class r ON c.relispartition \
          AND r.oid = pg_partition_root(c.oid)::oid \
         LEFT JOIN pg_namespace rn \
           ON rn.oid = r.relnamespace \
         WHERE c.relnamespace = $1::oid \
           AND c.relkind = ANY ('{r,p}') \
           AND (NOT c.relispartition \
             OR r.relnamespace <> c.relnamespace) \
           AND NOT EXISTS (SELECT FROM pg_depend d \
             JOIN pg_extension e ON e.oid = d.refobjid \
             WHERE d.classid = 'pg_class'::regclass \
               AND d.objid = c.oid \
               AND d.refclassid = \
                   'pg_extension'::regclass \
               AND d.deptype = 'e' \
               AND e.extname = 'pg_rowsync') \
         ORDER BY c.relname",
        &[Some(&namespace)],
    )?;
    let member = |(rel, partition_of)| Member { rel, partition_of };
    Ok(members.into_iter().map(member).collect())
}
