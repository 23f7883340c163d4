//! `attach_sync`, `attach_sync_schema`, `detach_sync`, `sync_connections`, `sync_disconnect`.

mod schema;

pub use self::schema::attach_schema;

use crate::attached::{self, Trigger};
use crate::capture::descriptor::{Arguments, Descriptor};
use crate::capture::mentioned;
use crate::capture::table::Table;
use crate::change::Relation;
use crate::check::{self, Finding, Severity};
use crate::connect::account::server_oid;
use crate::connect::endpoint::Endpoint;
use crate::connect::session;
use crate::error::{Error, Result, SqlState};
use crate::identity;
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, context, ddl, report};
use crate::sql::quote::{ident, literal, relation};
use crate::sql::triggers;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The longest name PostgreSQL keeps.
const MAX_NAME: usize = 63;

/// Checks everything that can be checked here, then makes both triggers as the caller, who needs what CREATE
/// TRIGGER asks for; those that it has made before for the table and the server it replaces in place, so that
/// target and options change between two transactions of the table's writers. Tells what will not work on the
/// other side, or may surprise, see [`check::look`], and that the database is a copy.
///
/// # Errors
/// As a trigger's first fire, but before anything is changed; 22023 for a malformed target; 42710 for a
/// trigger of another kind under a name that it takes; 42804 for a key or version column that is coarser
/// there.
pub fn attach(
    extension: &Extension,
    rel: Oid,
    server: &str,
    target: Option<&str>,
    options: &str,
) -> Result<()> {
    let table = Table::read(extension, rel)?;
    let target = match target {
        Some(target) => parse_target(extension, &table.name, target)?,
        None => table.name.clone(),
    };
    let found = attach_table(
        extension,
        &table,
        server,
        target,
        options,
        &mut |descriptor| check::look(extension, &table.name, descriptor),
    )?;
    for Finding {
        severity, problem, ..
    } in &found
    {
        match severity {
            Severity::Error | Severity::Warning => report::caution(problem),
            Severity::Notice => {
                report::advise(&problem.to_string(), &problem.hint().unwrap_or_default());
            }
        }
    }
    if identity::is_copy()? {
        identity::warn_again();
    }
    Ok(())
}

/// What looks at a target.
type Look<'l> = &'l mut dyn FnMut(&Descriptor) -> Result<Vec<Finding>>;

/// Makes the triggers of a table, and gives the notices that are due.
fn attach_table(
    extension: &Extension,
    table: &Table,
    server: &str,
    target: Relation,
    options: &str,
    look: Look<'_>,
) -> Result<Vec<Finding>> {
    let mut args = vec![server.to_owned(), target.schema, target.table];
    if options != "{}" {
        args.push(options.to_owned());
    }
    let arguments = Arguments::parse(&args)?;
    let descriptor = Descriptor::new(extension.clone(), table, &arguments)?;
    // Before the triggers are made: writers must not wait behind their lock for another server. Only for
    // who may make them: it connects with the owner's mapping.
    let found = if may_attach(extension, table.oid)? {
        look(&descriptor)?
    } else {
        Vec::new()
    };
    if let Some(refused) = found.iter().find(|finding| finding.refuses) {
        return Err(refused.problem.clone());
    }
    let twice = already_sent_by(extension, table, &arguments)?;
    let existing = attached::triggers(extension, Some(table.oid))?;
    let args: Vec<String> = args.iter().map(|arg| literal(arg)).collect();
    let on = relation(&table.name);
    let function = format!("{}.sync_dml", ident(&extension.schema));
    let args = args.join(", ");
    for (suffix, events) in TRIGGERS {
        let name = trigger_name(server, suffix);
        let events = events.replace("{}", &on);
        let own = existing.iter().find(|trigger| trigger.name == name);
        let own = own.filter(|trigger| !trigger.is_constraint && trigger.server() == Some(server));
        // Anything else of the name is left alone: CREATE TRIGGER refuses it.
        let create = if own.is_some() {
            "CREATE OR REPLACE"
        } else {
            "CREATE"
        };
        let name_there = ident(&name);
        ddl::run(&format!(
            "{create} TRIGGER {name_there} {events} EXECUTE FUNCTION {function}({args})"
        ))?;
        if let Some(clause) = own.and_then(|trigger| trigger.fires.clause()) {
            ddl::run(&format!("ALTER TABLE {on} {clause} TRIGGER {name_there}"))?;
        }
        mentioned::depend(extension, table, &name, &arguments.options)?;
    }
    let twice = twice.map(|trigger| {
        let problem = format!(
            "table \"{}\" is already sent to the same target by trigger \"{trigger}\"",
            table.name.table
        );
        Finding::error(
            SqlState::new("42710"),
            problem,
            "Every change is delivered twice. Drop one of the triggers.",
        )
    });
    Ok(twice.into_iter().chain(found).collect())
}

/// The triggers that are made: how their names end, and when they fire.
const TRIGGERS: [(&str, &str); 2] = [
    ("dml", "AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW"),
    ("truncate", "AFTER TRUNCATE ON {} FOR EACH STATEMENT"),
];

/// Another trigger that sends the table to the same target, not one that is to be replaced: over the same
/// server, or one that by its options leads to the same place. Hosts are compared by name only.
fn already_sent_by(
    extension: &Extension,
    table: &Table,
    arguments: &Arguments,
) -> Result<Option<String>> {
    let place = |server: &str| {
        format!(
            "(SELECT array_agg(o.option_name || '=' || \
                o.option_value ORDER BY o.option_name) \
              FROM pg_foreign_server f, pg_options_to_table(f.srvoptions) o \
              WHERE f.srvname::text = {server} \
                AND o.option_name = ANY ('{{host,hostaddr,port,dbname,service}}'))"
        )
    };
    let theirs = place("a.args[1]");
    let ours = place("$3");
    let Relation {
        schema,
        table: name,
    } = &arguments.target;
    spi::select_first(
        extension,
        &format!(
            "SELECT t.tgname FROM {} \
             WHERE t.tgrelid = $1::oid \
               AND (t.tgtype & 28::int2) \
                     <> 0::int2 \
               AND t.tgname::text <> $6 \
               AND a.args[2] = $4 AND a.args[3] = $5 \
               AND (a.args[1] = $3 OR {theirs} = {ours}) \
             ORDER BY t.tgname LIMIT 1",
            triggers::sending("$2")
        ),
        &[
            Some(&table.oid.to_u32().to_string()),
            Some(&extension.schema),
            Some(&arguments.server),
            Some(schema),
            Some(name),
            Some(&trigger_name(&arguments.server, "dml")),
        ],
    )
}

/// Whether the current user may make triggers on the table.
fn may_attach(extension: &Extension, rel: Oid) -> Result<bool> {
    let rows = spi::read(
        extension,
        "SELECT has_table_privilege($1::oid, $2::oid, 'TRIGGER')",
        &[
            Some(&context::user().to_u32().to_string()),
            Some(&rel.to_u32().to_string()),
        ],
    )?;
    Ok(rows
        .first()
        .and_then(|row| row.first())
        .is_some_and(|may| may.as_deref() == Some("t")))
}

/// Drops, as the caller, every trigger that sends the table to the server, whatever its name.
///
/// # Errors
/// 42704 when there is none.
pub fn detach(extension: &Extension, rel: Oid, server: &str) -> Result<()> {
    let table = Table::read(extension, rel)?;
    let triggers = attached::triggers(extension, Some(rel))?;
    let of_server: Vec<&Trigger> = triggers
        .iter()
        .filter(|trigger| trigger.server() == Some(server))
        .collect();
    if of_server.is_empty() {
        return Err(Error::local(
            SqlState::UNDEFINED_OBJECT,
            format!(
                "table \"{}\" has no trigger that sends to server \"{server}\"",
                table.name.table
            ),
        ));
    }
    for Trigger { name, .. } in of_server {
        ddl::run(&format!(
            "DROP TRIGGER {} ON {}",
            ident(name),
            relation(&table.name)
        ))?;
    }
    Ok(())
}

/// `00_pg_rowsync_<server>_<suffix>`, with a hash in the place of what does not fit. Triggers fire in
/// the order of their names: this one should see a row before other triggers change it again.
fn trigger_name(server: &str, suffix: &str) -> String {
    let name = format!("00_pg_rowsync_{server}_{suffix}");
    if name.len() <= MAX_NAME {
        return name;
    }
    // As the names of what is attached were always made.
    const END_OF_TEXT: u8 = 0xff;
    let mut hasher = SipHasher13::new();
    hasher.write(server.as_bytes());
    hasher.write_u8(END_OF_TEXT);
    format!("00_pg_rowsync_{:016x}_{suffix}", hasher.finish())
}

/// `table` or `schema.table`, quoted where needed; without a schema, that of the local table.
fn parse_target(extension: &Extension, local: &Relation, target: &str) -> Result<Relation> {
    let sql = "SELECT p FROM unnest(parse_ident($1)) p";
    let mut parts: Vec<String> = spi::select(extension, sql, &[Some(target)])?;
    match (parts.pop(), parts.pop(), parts.is_empty()) {
        (Some(table), schema, true) => Ok(Relation {
            schema: schema.unwrap_or_else(|| local.schema.clone()),
            table,
        }),
        _ => Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!("invalid target \"{target}\""),
        )
        .with_hint("Use table or schema.table.")),
    }
}

/// One of the current session's idle connections.
pub struct ConnectionRow {
    pub server: String,
    /// The local user whose mapping it was made with.
    pub user: Option<String>,
    /// The server's process that has served it last.
    pub pid: i32,
    /// Whether it will be used again as it is.
    pub valid: bool,
    /// Whether it leads through a pooler; `None` before the first exchange.
    pub pooled: Option<bool>,
    /// Since when it has not been used, as PostgreSQL counts time.
    pub idle_since: i64,
}

/// The current session's idle connections.
///
/// # Errors
/// What the catalogs report.
pub fn connections(extension: &Extension) -> Result<Vec<ConnectionRow>> {
    session::list()
        .into_iter()
        .map(|listed| {
            let account = &listed.endpoint.account;
            let role = account.owner.to_u32().to_string();
            let sql = "SELECT rolname FROM pg_roles WHERE oid = $1::oid";
            let user = spi::select_first(extension, sql, &[Some(&role)])?;
            // Its mapping may be gone, which is not the caller's fault.
            let current = Endpoint::resolve(extension, account);
            let valid = listed.alive && current.is_ok_and(|current| current == listed.endpoint);
            Ok(ConnectionRow {
                server: account.server_name.clone(),
                user,
                pid: listed.pid,
                valid,
                pooled: listed.pooled,
                idle_since: context::now() - listed.idle.as_micros() as i64,
            })
        })
        .collect()
}

/// Closes the current session's idle connections to a server, or all of them. True when there were any.
///
/// # Errors
/// 42704 when there is no such server.
pub fn disconnect(extension: &Extension, server: Option<&str>) -> Result<bool> {
    let Some(name) = server else {
        return Ok(session::close(None) > 0);
    };
    Ok(session::close(Some(server_oid(extension, name)?)) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trigger_names_fit_and_stay_apart() {
        assert_eq!(trigger_name("dst", "dml"), "00_pg_rowsync_dst_dml");
        let one = "x".repeat(62) + "1";
        let two = "x".repeat(62) + "2";
        assert!(trigger_name(&one, "truncate").len() <= MAX_NAME);
        assert_ne!(trigger_name(&one, "dml"), trigger_name(&two, "dml"));
        // What is attached must be found again by every version.
        assert_eq!(
            trigger_name(&"x".repeat(63), "dml"),
            "00_pg_rowsync_f67e21935a5e13a4_dml"
        );
    }
}
