//! What is attached: the triggers that call `sync_dml`, as the catalogs have them, and what their arguments
//! say.
//!
//! Triggers of partitions that belong to one of the partitioned table are that one's and not listed.

use crate::capture::descriptor::Arguments;
use crate::error::Result;
use crate::options::Mode;
use crate::pg::Oid;
use crate::pg::columns::Json;
use crate::pg::spi::{self, Extension};
use crate::sql::triggers;

/// A trigger that calls `sync_dml`.
#[derive(Clone, Debug)]
pub struct Trigger {
    pub relation: Oid,
    pub name: String,
    /// Its arguments, which may be anything where it was made by hand.
    pub args: Vec<String>,
    /// FOR EACH ROW.
    pub is_row_level: bool,
    /// When it fires, as `pg_trigger.tgenabled` has it.
    pub fires: Fires,
    /// Made by CREATE CONSTRAINT TRIGGER.
    pub is_constraint: bool,
}

/// In which sessions a trigger fires, by `session_replication_role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fires {
    /// In all but those of role `replica`.
    Origin,
    Always,
    /// Only in those of role `replica`.
    Replica,
    Never,
}

impl Fires {
    fn of_catalog(letter: &str) -> Self {
        match letter {
            "A" => Self::Always,
            "R" => Self::Replica,
            "D" => Self::Never,
            _ => Self::Origin,
        }
    }

    /// What ALTER TABLE says before `TRIGGER` to have it so; `None` for what CREATE TRIGGER makes.
    pub fn clause(self) -> Option<&'static str> {
        match self {
            Self::Origin => None,
            Self::Always => Some("ENABLE ALWAYS"),
            Self::Replica => Some("ENABLE REPLICA"),
            Self::Never => Some("DISABLE"),
        }
    }
}

impl Trigger {
    /// The server that it names.
    pub fn server(&self) -> Option<&str> {
        self.args.first().map(String::as_str)
    }
}

/// The triggers of a table, or of all tables, in the order of tables and names.
///
/// # Errors
/// What the catalogs report.
pub fn triggers(extension: &Extension, rel: Option<Oid>) -> Result<Vec<Trigger>> {
    let rel = rel.map(|rel| rel.to_u32().to_string());
    let of = |condition: &str| {
        format!(
            "SELECT t.tgrelid, t.tgname, to_json(a.args), \
                    (t.tgtype & 1::int2) \
                      <> 0::int2, \
                    t.tgenabled, t.tgconstraint <> 0::oid \
             FROM {} WHERE {condition} \
               AND t.tgparentid = 0::oid \
             ORDER BY t.tgrelid, t.tgname",
            triggers::sending("$1")
        )
    };
    let rows = match &rel {
        Some(rel) => spi::select(
            extension,
            &of("t.tgrelid = $2::oid"),
            &[Some(&extension.schema), Some(rel)],
        ),
        None => spi::select(extension, &of("true"), &[Some(&extension.schema)]),
    };
    Ok(rows?.into_iter().map(trigger).collect())
}

type Columns = (Oid, String, Option<Json<Vec<String>>>, bool, String, bool);

fn trigger((relation, name, args, is_row_level, fires, is_constraint): Columns) -> Trigger {
    Trigger {
        relation,
        name,
        args: args.map(|args| args.0).unwrap_or_default(),
        is_row_level,
        fires: Fires::of_catalog(&fires),
        is_constraint,
    }
}

/// A table and a target that it is sent to, by one trigger or several.
pub struct Attachment {
    pub relation: Oid,
    pub server: String,
    /// What the triggers' arguments say.
    pub arguments: Result<Arguments>,
    /// The strictest of the triggers' modes.
    pub mode: Mode,
    /// The options as the trigger has them.
    pub options: String,
    /// All of its triggers fire in ordinary sessions.
    pub is_enabled: bool,
}

/// What is attached, in the order of tables. Triggers that send a table to the same target are one
/// attachment; where their options differ, those of the first for rows are told.
///
/// # Errors
/// What the catalogs report.
pub fn all(extension: &Extension) -> Result<Vec<Attachment>> {
    let mut groups: Vec<Vec<Trigger>> = Vec::new();
    let place = |trigger: &Trigger| {
        (
            trigger.relation,
            trigger.args.iter().take(3).cloned().collect::<Vec<_>>(),
        )
    };
    for trigger in triggers(extension, None)? {
        let same = |group: &&mut Vec<Trigger>| {
            group
                .first()
                .is_some_and(|first| place(first) == place(&trigger))
        };
        // Those of one table follow each other.
        match groups
            .iter_mut()
            .rev()
            .take_while(|group| group[0].relation == trigger.relation)
            .find(same)
        {
            Some(group) => group.push(trigger),
            None => groups.push(vec![trigger]),
        }
    }
    Ok(groups
        .iter()
        .filter_map(|group| attachment(group))
        .collect())
}

fn attachment(group: &[Trigger]) -> Option<Attachment> {
    let shown = group
        .iter()
        .find(|trigger| trigger.is_row_level)
        .or(group.first())?;
    let parsed: Vec<_> = group
        .iter()
        .map(|trigger| Arguments::parse(&trigger.args))
        .collect();
    let of_rows = group
        .iter()
        .zip(&parsed)
        .filter(|(trigger, _)| trigger.is_row_level);
    let modes = of_rows.filter_map(|(_, parsed)| parsed.as_ref().ok());
    let mode = modes.map(|arguments| arguments.options.mode).max();
    // One that fails fails its statement, whatever the others say.
    let arguments = match parsed.into_iter().find(Result::is_err) {
        Some(failed) => failed,
        None => Arguments::parse(&shown.args),
    };
    Some(Attachment {
        relation: shown.relation,
        server: shown.server().unwrap_or_default().to_owned(),
        mode: mode
            .or(arguments.as_ref().ok().map(|own| own.options.mode))
            .unwrap_or_default(),
        arguments,
        options: shown
            .args
            .get(3)
            .cloned()
            .unwrap_or_else(|| "{}".to_owned()),
        is_enabled: group
            .iter()
            .all(|t| matches!(t.fires, Fires::Origin | Fires::Always)),
    })
}
