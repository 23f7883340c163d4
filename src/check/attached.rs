//! What is attached: the triggers of the extension, table by table, and what can be said of them without
//! asking anybody.

use super::finding::{Finding, quoted};
use crate::change::Relation;
use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::columns::Json;
use crate::pg::spi::{self, Extension};
use crate::sql::quote::ident;
use crate::sql::triggers;

/// One of the triggers.
#[derive(Clone, Debug)]
pub struct AttachedTrigger {
    pub oid: Oid,
    name: String,
    /// `pg_trigger.tgenabled`.
    enabled: String,
    /// `pg_trigger.tgtype`.
    kind: u16,
    deferrable: bool,
    /// Columns of UPDATE OF.
    columns: Vec<String>,
}

/// A table and a target: the triggers that send the one to the other.
#[derive(Clone, Debug)]
pub struct Attached {
    pub table: Oid,
    pub name: Relation,
    /// Arguments of the triggers: server, schema, table and, if there are any, options.
    pub args: Vec<String>,
    /// Partitioned or with a trigger that its partitions share.
    persistence: String,
    pub triggers: Vec<AttachedTrigger>,
}

/// Whom the caller may look at: as `user` what he owns, and everything where `everything` is so.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub user: Oid,
    pub everything: bool,
}

impl Caller {
    /// The current user. Superusers and members of `pg_monitor` see everything.
    ///
    /// # Errors
    /// What the catalogs report.
    pub fn current(extension: &Extension, user: Oid) -> Result<Self> {
        let sql = "SELECT r.rolsuper OR pg_has_role(r.oid, 'pg_monitor'::name, 'USAGE') \
             FROM pg_roles r WHERE r.oid = $1::oid";
        let rows = spi::read(extension, sql, &[Some(&user.to_u32().to_string())])?;
        let everything = rows.into_iter().flatten().flatten().next().as_deref() == Some("t");
        Ok(Self { user, everything })
    }

    /// As arguments of SQL.
    pub fn args(&self) -> [String; 2] {
        [self.user.to_u32().to_string(), self.everything.to_string()]
    }
}

/// Bits of `pg_trigger.tgtype`.
mod bit {
    pub const ROW: u16 = 1;
    pub const BEFORE: u16 = 2;
    pub const INSERT: u16 = 4;
    pub const DELETE: u16 = 8;
    pub const UPDATE: u16 = 16;
    pub const TRUNCATE: u16 = 32;
    pub const INSTEAD: u16 = 64;
}

/// What the caller may see of what is attached, of one table or all, to one server or all, in the order of
/// their names.
///
/// # Errors
/// 42501 for a table that is named and is not the caller's.
pub fn list(
    extension: &Extension,
    caller: &Caller,
    table: Option<Oid>,
    server: Option<&str>,
) -> Result<Vec<Attached>> {
    if let Some(table) = table {
        check_owner(extension, caller, table)?;
    }
    let table = table.map(|oid| oid.to_u32().to_string());
    let [user, everything] = caller.args();
    // A partition's triggers are those of the table to which it belongs, unless it is asked for itself.
    let sql = format!(
        "SELECT t.oid, t.tgname, t.tgenabled, t.tgtype, t.tgdeferrable, \
            to_json(ARRAY(SELECT a.attname FROM pg_attribute a \
              WHERE a.attrelid = t.tgrelid \
                AND a.attnum = ANY (t.tgattr::int2[]))), \
            to_json(a.args), c.oid, n.nspname, c.relname, c.relpersistence \
         FROM {} \
         JOIN pg_class c ON c.oid = t.tgrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE ($2::oid IS NULL \
                AND t.tgparentid = 0::oid \
             OR t.tgrelid = $2::oid) \
           AND ($3 IS NULL OR a.args[1] = $3) \
           AND ($5::bool OR pg_has_role($4::oid, c.relowner, 'USAGE')) \
         ORDER BY n.nspname, c.relname, a.args, t.tgname",
        triggers::sending("$1")
    );
    let args = [
        Some(extension.schema.as_str()),
        table.as_deref(),
        server,
        Some(&user),
        Some(&everything),
    ];
    let mut found: Vec<Attached> = Vec::new();
    type Columns = (
        Oid,
        String,
        String,
        u16,
        bool,
        Json<Vec<String>>,
        String,
        Oid,
        String,
        String,
        String,
    );
    for row in spi::select::<Columns>(extension, &sql, &args)? {
        let (
            oid,
            name,
            enabled,
            kind,
            deferrable,
            columns,
            args,
            table,
            schema,
            relation,
            persistence,
        ) = row;
        let trigger = AttachedTrigger {
            oid,
            name,
            enabled,
            kind,
            deferrable,
            columns: columns.0,
        };
        // One of somebody's own making may have arguments that are none of ours.
        let args: Vec<String> = serde_json::from_str(&args).unwrap_or_default();
        match found
            .last_mut()
            .filter(|last| last.table == table && last.args == args)
        {
            Some(last) => last.triggers.push(trigger),
            None => found.push(Attached {
                table,
                args,
                name: Relation {
                    schema,
                    table: relation,
                },
                persistence,
                triggers: vec![trigger],
            }),
        }
    }
    Ok(joined(found))
}

/// A TRUNCATE trigger that is given no options goes with the trigger that has some.
fn joined(found: Vec<Attached>) -> Vec<Attached> {
    let (mut whole, parts): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|one| one.triggers.iter().any(AttachedTrigger::is_of_rows));
    for part in parts {
        let same = |one: &&mut Attached| {
            one.table == part.table && one.args.iter().take(3).eq(part.args.iter().take(3))
        };
        match whole.iter_mut().find(same) {
            Some(one) => one.triggers.extend(part.triggers),
            None => whole.push(part),
        }
    }
    whole
}

fn check_owner(extension: &Extension, caller: &Caller, table: Oid) -> Result<()> {
    let [user, everything] = caller.args();
    let sql = "SELECT c.relname, $3::bool \
            OR pg_has_role($2::oid, c.relowner, 'USAGE') \
         FROM pg_class c WHERE c.oid = $1::oid";
    let args = [
        Some(table.to_u32().to_string()),
        Some(user),
        Some(everything),
    ];
    let args: Vec<Option<&str>> = args.iter().map(Option::as_deref).collect();
    match spi::select_first::<(String, bool)>(extension, sql, &args)? {
        None => Err(Error::local(
            SqlState::UNDEFINED_TABLE,
            "relation does not exist",
        )),
        Some((_, true)) => Ok(()),
        Some((name, false)) => Err(Error::local(
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("must be owner of table {name}"),
        )
        .with_hint("Superusers and members of pg_monitor may check every table.")),
    }
}

impl AttachedTrigger {
    fn has(&self, bits: u16) -> bool {
        self.kind & bits != 0
    }

    fn is_of_rows(&self) -> bool {
        self.has(bit::INSERT | bit::UPDATE | bit::DELETE)
    }

    /// Whether the trigger function takes it, and it fires for what people write.
    fn is_active(&self) -> bool {
        self.is_well_formed() && matches!(self.enabled.as_str(), "O" | "A")
    }

    fn is_well_formed(&self) -> bool {
        let level = self.has(bit::ROW) == self.is_of_rows()
            && !(self.is_of_rows() && self.has(bit::TRUNCATE));
        level && !self.has(bit::BEFORE | bit::INSTEAD) && !self.deferrable
    }

    /// What is wrong with it.
    fn finding(&self, table: &str) -> Option<Finding> {
        let name = &self.name;
        let enable = format!(
            "ALTER TABLE {} ENABLE TRIGGER {}.",
            ident(table),
            ident(name)
        );
        let state = SqlState::OBJECT_NOT_READY;
        if !self.is_well_formed() {
            let problem = format!("trigger \"{name}\" has a timing or level that sync_dml refuses");
            let hint = "Use AFTER, FOR EACH ROW for INSERT, UPDATE and DELETE, FOR EACH STATEMENT for \
                        TRUNCATE, and not DEFERRABLE; attach_sync makes such triggers.";
            return Some(Finding::error(SqlState::TRIGGER_PROTOCOL, problem, hint));
        }
        match self.enabled.as_str() {
            "D" => {
                let problem =
                    format!("trigger \"{name}\" is disabled: what it should capture is not sent");
                Some(Finding::error(state, problem, enable))
            }
            "R" => {
                let problem = format!(
                    "trigger \"{name}\" fires only for what replication applies: what people write is not sent"
                );
                Some(Finding::error(state, problem, enable))
            }
            "A" => Some(Finding::notice(
                format!("trigger \"{name}\" also fires for what replication applies"),
                format!("Unless that is meant: {enable}"),
            )),
            _ if !self.columns.is_empty() => {
                let columns = quoted(&self.columns);
                let problem = format!(
                    "trigger \"{name}\" fires only for updates that name column {columns}: others are not sent"
                );
                let hint = "Make it without a list of columns, as attach_sync does.";
                Some(Finding::warning(state, problem, hint))
            }
            _ => None,
        }
    }
}

impl Attached {
    /// The server's name.
    pub fn server(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }

    /// The trigger that captures rows.
    pub fn row_trigger(&self) -> Option<&AttachedTrigger> {
        self.triggers.iter().find(|trigger| trigger.is_of_rows())
    }

    /// What is wrong with the triggers, and with the table as far as that matters everywhere.
    pub fn findings(&self) -> Vec<Finding> {
        let table = &self.name.table;
        let of_each = self
            .triggers
            .iter()
            .filter_map(|trigger| trigger.finding(table));
        let mut found: Vec<Finding> = of_each.collect();
        let captured = |event: u16| {
            self.triggers
                .iter()
                .any(|trigger| trigger.is_active() && trigger.has(event))
        };
        let events = [
            ("INSERT", bit::INSERT),
            ("UPDATE", bit::UPDATE),
            ("DELETE", bit::DELETE),
            ("TRUNCATE", bit::TRUNCATE),
        ];
        let missing: Vec<&str> = events
            .into_iter()
            .filter(|(_, event)| !captured(*event))
            .map(|(name, _)| name)
            .collect();
        // Those that are disabled have been named.
        if !missing.is_empty() && self.triggers.iter().all(AttachedTrigger::is_active) {
            let missing = missing.join(", ");
            found.push(Finding::warning(
                SqlState::OBJECT_NOT_READY,
                format!(
                    "no trigger sends {missing} of table \"{table}\" to server \"{}\"",
                    self.server()
                ),
                "Unless that is meant: detach_sync, then attach_sync, which makes triggers for all.",
            ));
        }
        if self.persistence == "u" {
            found.push(Finding::warning(
                SqlState::OBJECT_NOT_READY,
                format!("table \"{table}\" is unlogged: a crash empties it here and not there"),
                format!("ALTER TABLE {} SET LOGGED.", ident(table)),
            ));
        }
        found
    }
}
