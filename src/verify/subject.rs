//! What is compared: a table, the trigger that sends it, and its target, as both sides' catalogs describe them.

use super::expressions::Expressions;
use super::facts::{Facts, about};
use super::progress::{Command, Progress};
use super::sides::{Side, Sides};
use crate::capture::condition;
use crate::capture::descriptor::{Arguments, Descriptor};
use crate::capture::mentioned;
use crate::capture::table::Table;
use crate::change::Relation;
use crate::connect::account::oid;
use crate::connect::endpoint::Endpoint;
use crate::error::{Error, Result, SqlState};
use crate::pg::query;
use crate::pg::report;
use crate::pg::spi::{self, Extension, required};
use crate::pg::{Oid, context};
use crate::sql::quote::{ident, literal, relation};

/// The table that is compared and its target, as both sides' catalogs describe them.
pub struct Subject {
    pub extension: Extension,
    pub table: Table,
    pub descriptor: Descriptor,
    pub expressions: Expressions,
}

/// A trigger that sends the table to the server.
struct Sender {
    oid: Oid,
    args: Vec<String>,
    /// Fires for INSERT.
    inserts: bool,
    /// Its WHEN condition.
    condition: Option<String>,
}

impl Subject {
    /// Looks everything up, and asks the server for its part.
    ///
    /// # Errors
    /// See [`super::verify`].
    pub fn look_up(
        extension: &Extension,
        rel: Oid,
        server: &str,
        condition: Option<&str>,
        command: Command,
    ) -> Result<(Self, Sides)> {
        let table = Table::read(extension, rel)?;
        let senders = senders(extension, &table, server)?;
        let Some(first) = senders.first() else {
            return Err(Error::local(
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "table \"{}\" has no trigger that sends to server \"{server}\"",
                    table.name.table
                ),
            )
            .with_hint("Attach it with attach_sync()."));
        };
        if senders
            .iter()
            .any(|other| other.args.get(1..3) != first.args.get(1..3))
        {
            return Err(Error::local(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!(
                    "table \"{}\" is sent to several targets on server \"{server}\"",
                    table.name.table
                ),
            )
            .with_hint("Use a server of its own for each target."));
        }
        let mut arguments = Arguments::parse(&first.args)?;
        mentioned::follow_renames(extension, &table, first.oid, &mut arguments.options)?;
        let descriptor = Descriptor::new(extension.clone(), &table, &arguments)?;
        let sent: Vec<&str> = (descriptor.route.columns.iter())
            .map(|column| column.local.as_deref().unwrap_or(&column.name))
            .collect();
        check_rights(extension, &table, &sent, condition.is_some())?;
        let endpoint = Endpoint::resolve(extension, &descriptor.account)?;
        let progress = Progress::begin(extension, command, rel, descriptor.account.server)?;
        let mut sides = Sides::new(table.owner, endpoint, progress);
        let there = literal(&relation(&descriptor.route.target));
        let [here, there] = sides.ask(
            &about(&table.oid.to_u32().to_string()),
            &about(&format!("pg_catalog.to_regclass({there})")),
        )?;
        let [here, there] = [facts(here)?, facts(there)?];
        check_target(server, &descriptor.route.target, &there, &descriptor)?;
        let filter = match condition {
            Some(condition) => Some(condition.to_owned()),
            None => condition::of_rows(
                (senders.iter())
                    .filter(|one| one.inserts)
                    .map(|one| one.condition.as_deref()),
            ),
        };
        let holds = holds(extension)?;
        let mut expressions =
            Expressions::new(&table, &descriptor.route, [&here, &there], filter, holds);
        if condition.is_none() && expressions.has_filter() {
            expressions = usable_there(expressions, &mut sides)?;
        }
        Ok((
            Self {
                extension: extension.clone(),
                table,
                descriptor,
                expressions,
            },
            sides,
        ))
    }
}

impl Subject {
    /// Whether the caller may write the table, and so have rows sent.
    ///
    /// # Errors
    /// 42501.
    pub fn check_may_write(&self) -> Result<()> {
        let rows = spi::read(
            &self.extension,
            "SELECT pg_catalog.bool_and(pg_catalog.has_table_privilege($1::pg_catalog.oid, $2::pg_catalog.oid, p)) \
             FROM pg_catalog.unnest('{INSERT,UPDATE,DELETE}'::pg_catalog.text[]) p",
            &[
                Some(&context::user().to_u32().to_string()),
                Some(&self.table.oid.to_u32().to_string()),
            ],
        )?;
        if required(&mut rows.into_iter().next().unwrap_or_default(), 0)? == "t" {
            Ok(())
        } else {
            Err(Error::local(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for table {}", self.table.name.table),
            )
            .with_hint("Repairing needs INSERT, UPDATE and DELETE on it."))
        }
    }
}

/// The function that says whether a type can hold a text; not in a database that 0.1.0 was installed in.
fn holds(extension: &Extension) -> Result<Option<String>> {
    let name = format!("{}.sync_holds", ident(&extension.schema));
    let sql = "SELECT pg_catalog.to_regprocedure($1) IS NOT NULL";
    let signature = format!("{name}(pg_catalog.text, pg_catalog.regtype, pg_catalog.int4)");
    let exists: bool = spi::select_one(extension, sql, &[Some(&signature)])?;
    Ok(exists.then_some(name))
}

/// A WHEN condition may speak of columns or functions that only this side has.
fn usable_there(expressions: Expressions, sides: &mut Sides) -> Result<Expressions> {
    match sides.ask_one(Side::There, &expressions.try_filter()) {
        Ok(_) => Ok(expressions),
        Err(error @ Error::Remote(_)) => {
            let about_names = [SqlState::UNDEFINED_COLUMN, SqlState::UNDEFINED_FUNCTION];
            if !about_names.contains(&error.sqlstate()) {
                return Err(error);
            }
            report::advise(
                "the trigger's WHEN condition cannot be used on the server: all rows of the target count",
                "Give a condition that both sides know in the option \"where\".",
            );
            Ok(expressions.filtered_here_only())
        }
        Err(error) => Err(error),
    }
}

fn facts(value: serde_json::Value) -> Result<Facts> {
    serde_json::from_value(value).map_err(|_| Error::internal("malformed answer about a table"))
}

fn check_target(
    server: &str,
    target: &Relation,
    there: &Facts,
    descriptor: &Descriptor,
) -> Result<()> {
    let Relation { schema, table } = target;
    if there.kind.is_none() {
        return Err(Error::local(
            SqlState::UNDEFINED_TABLE,
            format!("relation \"{schema}.{table}\" does not exist on server \"{server}\""),
        ));
    }
    let missing = descriptor
        .route
        .columns
        .iter()
        .find(|c| there.column(&c.name).is_none());
    match missing {
        None => Ok(()),
        Some(column) => Err(Error::local(
            SqlState::UNDEFINED_COLUMN,
            format!(
                "\"{schema}.{table}\" on server \"{server}\" has no column \"{}\"",
                column.name
            ),
        )
        .with_hint("Add it there, or leave it out with \"exclude\".")),
    }
}

/// The caller's rights: to read all that is compared, and to have a condition carried out on the server under
/// the mapping of the table's owner.
fn check_rights(
    extension: &Extension,
    table: &Table,
    sent: &[&str],
    own_condition: bool,
) -> Result<()> {
    let user = context::user().to_u32().to_string();
    let columns: Vec<String> = sent
        .iter()
        .map(|name| {
            let name = literal(name);
            format!(
                "pg_catalog.has_column_privilege($1::pg_catalog.oid, $2::pg_catalog.oid, {name}, 'SELECT')"
            )
        })
        .collect();
    let rows = spi::read(
        extension,
        &format!(
            "SELECT pg_catalog.has_table_privilege($1::pg_catalog.oid, $2::pg_catalog.oid, 'SELECT') \
                    OR ({}), \
                    pg_catalog.pg_has_role($1::pg_catalog.oid, $3::pg_catalog.oid, 'USAGE')",
            columns.join(" AND ")
        ),
        &[
            Some(&user),
            Some(&table.oid.to_u32().to_string()),
            Some(&table.owner.to_u32().to_string()),
        ],
    )?;
    let mut row = rows.into_iter().next().unwrap_or_default();
    let (may_read, is_owner) = (required(&mut row, 0)? == "t", required(&mut row, 1)? == "t");
    let name = &table.name.table;
    let denied = |message: String| Error::local(SqlState::INSUFFICIENT_PRIVILEGE, message);
    if !may_read {
        return Err(denied(format!("permission denied for table {name}"))
            .with_hint("Comparing needs SELECT on every column that is sent."));
    }
    if own_condition && !is_owner {
        return Err(denied(format!("must be owner of table {name} to give a condition"))
            .with_hint("It is carried out on the server, too, with the rights of the owner's user mapping."));
    }
    let is_hidden = format!(
        "SELECT pg_catalog.row_security_active({}::pg_catalog.oid)",
        table.oid.to_u32()
    );
    let rows = query::read_as(context::user(), &is_hidden)?;
    if required(&mut rows.into_iter().next().unwrap_or_default(), 0)? == "t" {
        return Err(denied(format!(
            "row security of table {name} applies to the current user"
        ))
        .with_hint("Rows that are hidden would look missing."));
    }
    Ok(())
}

/// Triggers for rows of the table that send to the server.
fn senders(extension: &Extension, table: &Table, server: &str) -> Result<Vec<Sender>> {
    const EQ: &str = "OPERATOR(pg_catalog.=)";
    let rows = spi::read(
        extension,
        &format!(
            "SELECT t.oid, pg_catalog.array_to_json(a.args), \
                    (t.tgtype OPERATOR(pg_catalog.&) 4::pg_catalog.int2) \
                       OPERATOR(pg_catalog.<>) 0::pg_catalog.int2, \
                    CASE WHEN t.tgqual IS NOT NULL THEN pg_catalog.pg_get_triggerdef(t.oid) END \
             FROM pg_catalog.pg_trigger t \
             JOIN pg_catalog.pg_proc p ON p.oid {EQ} t.tgfoid \
             JOIN pg_catalog.pg_namespace n ON n.oid {EQ} p.pronamespace \
             CROSS JOIN LATERAL (SELECT pg_catalog.array_agg(pg_catalog.convert_from( \
                 pg_catalog.decode(u.piece, 'hex'), pg_catalog.getdatabaseencoding()) ORDER BY u.n) \
               FROM pg_catalog.unnest(pg_catalog.string_to_array(pg_catalog.regexp_replace( \
                 pg_catalog.encode(t.tgargs, 'hex'), '(..)', E'\\\\1 ', 'g'), '00 ')) \
                 WITH ORDINALITY u(piece, n) WHERE u.n OPERATOR(pg_catalog.<=) t.tgnargs) a(args) \
             WHERE t.tgrelid {EQ} $1::pg_catalog.oid \
               AND p.proname {EQ} 'sync_dml' \
               AND n.nspname {EQ} $2::pg_catalog.name \
               AND (t.tgtype OPERATOR(pg_catalog.&) 28::pg_catalog.int2) \
                     OPERATOR(pg_catalog.<>) 0::pg_catalog.int2 \
               AND t.tgenabled OPERATOR(pg_catalog.<>) 'D' \
               AND a.args[1] {EQ} $3 ORDER BY t.tgname"
        ),
        &[
            Some(&table.oid.to_u32().to_string()),
            Some(&extension.schema),
            Some(server),
        ],
    )?;
    rows.into_iter()
        .map(|mut row| {
            let args = serde_json::from_str(&required(&mut row, 1)?);
            let definition = row.get_mut(3).and_then(Option::take);
            Ok(Sender {
                oid: oid(&required(&mut row, 0)?)?,
                args: args.map_err(|_| Error::internal("malformed trigger arguments"))?,
                inserts: required(&mut row, 2)? == "t",
                condition: definition.as_deref().and_then(condition::in_definition),
            })
        })
        .collect()
}
