//! What a database says of itself and of its tables: the shape of the answers to `question`. Pure.

use super::types::Types;
use crate::options::{MAX_NAME, Options};
use serde::Deserialize;
use std::collections::HashMap;

/// What a server says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServerFacts {
    /// The role that the session was authenticated as.
    pub role: String,
    /// The role and the roles that it is a member of.
    pub roles: Vec<String>,
    pub in_recovery: bool,
    /// The name by which triggers there know their own connections where they name nothing themselves.
    pub guard: String,
    /// Of the database.
    pub encoding: String,
    /// In microseconds since 1970.
    pub clock: i64,
    pub max_prepared_transactions: i64,
    /// `session_replication_role` of a session like this one.
    pub replication_role: String,
    /// The role whose rights count, if a setting there makes it another one.
    pub acts_as: Option<String>,
    /// `log_statement` of a session like this one.
    pub log_statement: String,
    /// The fewest connections that role and database are limited to.
    pub connection_limit: Option<i64>,
    /// Seconds for which the role's password is still good.
    pub password_expires: Option<i64>,
    /// Version of the extension there.
    pub extension: Option<String>,
}

/// What a database says of a relation that changes are sent to, or come from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TargetFacts {
    /// Whether the schema may be used; `None` if there is none.
    pub usage: Option<bool>,
    pub table: Option<RelationFacts>,
}

/// A relation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RelationFacts {
    /// `pg_class.relkind`.
    pub kind: String,
    /// `pg_class.relpersistence`.
    pub persistence: String,
    /// A policy hides rows from the role.
    pub row_security: bool,
    pub delete: bool,
    pub truncate: bool,
    /// BEFORE or INSTEAD OF triggers for each row see what is inserted.
    pub changes_rows: bool,
    /// BEFORE triggers for each row speak of the version column, whoever is at work.
    pub sets_version: bool,
    /// Rules rewrite what is written.
    pub rules: bool,
    /// Partitioned, without a partition for rows that fit none.
    pub no_default_partition: bool,
    /// Tables inherit from it that are not its partitions.
    pub has_children: bool,
    /// Triggers of foreign keys are disabled.
    pub unchecked_foreign_keys: bool,
    pub columns: Vec<TargetColumn>,
    pub types: Types,
    /// Unique indexes that ON CONFLICT may rely on: columns, and whether each is checked at once.
    pub unique: Vec<(Vec<String>, bool)>,
    /// Exclusion constraints.
    pub exclusions: Vec<String>,
    /// Tables that foreign keys refer to.
    pub parents: Vec<(String, String)>,
    /// Enabled row triggers, but for those of the extension and of constraints.
    pub row_triggers: Vec<String>,
    /// Row triggers that fire only for what replication applies, but for those of the extension and of
    /// constraints.
    pub replica_triggers: Vec<String>,
    /// Triggers of the extension that send the relation's rows.
    pub triggers: Vec<TriggerFacts>,
}

impl RelationFacts {
    /// A column.
    pub fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.0 == name)
    }

    /// Whether unique indexes cover exactly these columns.
    pub fn is_unique(&self, columns: &[&str]) -> bool {
        self.unique.iter().any(|(own, _)| is_same_set(own, columns))
    }

    /// Triggers of the extension that fire for what people write.
    pub fn active_triggers(&self) -> impl Iterator<Item = &TriggerFacts> {
        self.triggers.iter().filter(|trigger| trigger.is_active())
    }
}

/// Name, [`Flags`], type, its modifier, and both as people write them.
pub type TargetColumn = (String, Flags, u32, i32, String);

/// Whether two lists name the same columns.
pub fn is_same_set<S: AsRef<str>>(one: &[S], other: &[&str]) -> bool {
    one.len() == other.len() && one.iter().all(|name| other.contains(&name.as_ref()))
}

/// Letters of what holds for a column: `n` NOT NULL, `d` has a default, `g` generated, `a` identity that is
/// always generated, `c` compared by a collation for which other texts may be equal; `i`, `u`, `s`: the role
/// may insert, update, select.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Flags(String);

impl Flags {
    /// Whether it holds.
    pub fn has(&self, letter: char) -> bool {
        self.0.contains(letter)
    }
}

/// A trigger of the other side's extension.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TriggerFacts {
    pub name: String,
    /// `pg_trigger.tgenabled`.
    pub enabled: String,
    /// Server, schema, table and, if there are any, options.
    pub args: Vec<String>,
    /// Options of wrapper and server that matter here.
    pub server: HashMap<String, String>,
}

impl TriggerFacts {
    /// Whether it fires for what people write.
    pub fn is_active(&self) -> bool {
        matches!(self.enabled.as_str(), "O" | "A")
    }

    /// Its options, if they are any that are known here.
    pub fn options(&self) -> Option<Options> {
        self.args.get(3).map_or_else(
            || Some(Options::default()),
            |text| Options::parse(text).ok(),
        )
    }
}

/// Schema, name and modifier of a type.
const MAX_SHOWN_TYPE: usize = 3 * MAX_NAME;

/// Whether names are as long as names are: the server may be anyone's, and they are shown and logged.
fn is_name(name: &str) -> bool {
    name.chars().count() <= MAX_NAME
}

impl ServerFacts {
    /// Whether an honest server may have said so.
    pub fn is_sound(&self) -> bool {
        let names = [
            &self.role,
            &self.guard,
            &self.encoding,
            &self.replication_role,
        ];
        let more = [&self.log_statement]
            .into_iter()
            .chain(&self.acts_as)
            .chain(&self.extension);
        names.into_iter().chain(more).all(|name| is_name(name))
    }
}

impl TargetFacts {
    /// Whether an honest server may have said so.
    pub fn is_sound(&self) -> bool {
        self.table.iter().all(|target| {
            let args = target
                .triggers
                .iter()
                .flat_map(|trigger| trigger.args.iter().take(3));
            let triggers = target
                .triggers
                .iter()
                .map(|trigger| &trigger.name)
                .chain(args);
            let columns = target.columns.iter().map(|column| &column.0);
            let is_shown = |column: &TargetColumn| column.4.chars().count() <= MAX_SHOWN_TYPE;
            let unique = target.unique.iter().flat_map(|(columns, _)| columns);
            let parents = target
                .parents
                .iter()
                .flat_map(|(schema, table)| [schema, table]);
            let named = target.row_triggers.iter().chain(&target.replica_triggers);
            let mut all = triggers
                .chain(columns)
                .chain(unique)
                .chain(parents)
                .chain(named);
            all.all(|name| is_name(name))
                && target.columns.iter().all(is_shown)
                && target.exclusions.iter().all(|name| is_name(name))
                && target.types.is_sound(is_name)
        })
    }
}
