//! From what a server says of a target to what will not work there: what `attach_sync` says too. Pure.

use super::facts::{Flags, RelationFacts, ServerFacts, TargetFacts, TriggerFacts, is_same_set};
use super::finding::{Finding, quoted};
use super::types::{self, Conversion, Fidelity};
use crate::change::{Column, Policy, Relation, Route};
use crate::connect::settings::settings_in;
use crate::error::{Error, SqlState};
use crate::options::{MAX_NAME, OnConflict, Options};

/// What is looked at.
pub struct CheckSubject<'s> {
    pub server: &'s str,
    /// The current database.
    pub database: &'s str,
    pub local: &'s Relation,
    pub route: &'s Route,
    /// The `application_name` under which changes arrive there.
    pub guard: &'s str,
    /// What the current database says of the local table, if it was asked.
    pub here: Option<&'s RelationFacts>,
}

const CONVERGE: &str = "Use \"on_conflict\": \"newest\" with a \"version_column\" on both sides, or let \
                        each row be written on one side only.";
const NO_ARBITER: &str = "42P10";
const READ_ONLY: &str = "25006";
const WRONG_KIND: &str = "42809";
const GENERATED: &str = "428C9";

/// Kinds of relations that rows can be sent to, if need be: tables, partitioned ones, views, foreign tables.
const TABLE_LIKE: [&str; 4] = ["r", "p", "v", "f"];

/// The server could not be asked.
pub fn not_asked(server: &str, error: &Error) -> Finding {
    let problem = format!(
        "server \"{server}\" could not be asked about the target: {}",
        error.one_line()
    );
    let hint = error.hint().unwrap_or_else(|| {
        "Until changes can be delivered they are queued, or in mode \"sync\" fail the transaction.".to_owned()
    });
    Finding::error(error.sqlstate(), problem, hint)
}

/// The server takes no changes.
pub fn in_recovery(server: &str, facts: &ServerFacts) -> Option<Finding> {
    let problem = format!("server \"{server}\" is in recovery and takes no changes");
    let hint =
        "Changes are queued until it is promoted; or let the server's options lead to its primary.";
    facts
        .in_recovery
        .then(|| Finding::error(SqlState::new(READ_ONLY), problem, hint))
}

/// What keeps changes from arriving, or makes them go round.
pub fn findings(
    subject: &CheckSubject<'_>,
    server_facts: &ServerFacts,
    facts: &TargetFacts,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let server = subject.server;
    let Relation { schema, table } = &subject.route.target;
    let Some(target) = &facts.table else {
        let (problem, hint) = match facts.usage {
            Some(_) => (
                format!("relation \"{schema}.{table}\" does not exist on server \"{server}\""),
                "Create it there, or attach with another \"target\".",
            ),
            None => (
                format!("schema \"{schema}\" does not exist on server \"{server}\""),
                "Without \"target\" it is the table of the same schema and name.",
            ),
        };
        let state = if facts.usage.is_some() {
            SqlState::UNDEFINED_TABLE
        } else {
            SqlState::new("3F000")
        };
        found.push(Finding::error(state, problem, hint));
        return found;
    };
    let of_target = OfTarget {
        subject,
        facts: server_facts,
        usage: facts.usage,
        target,
    };
    found.extend(of_target.kind());
    if !TABLE_LIKE.contains(&target.kind.as_str()) {
        return found;
    }
    found.extend(of_target.privileges());
    found.extend(of_target.columns());
    found.extend(of_target.types());
    found.extend(of_target.arbiter());
    found.extend(of_target.way_back());
    found.extend(of_target.replaced_versions());
    found
}

impl CheckSubject<'_> {
    /// The target, for messages.
    pub fn target_name(&self) -> String {
        let Relation { schema, table } = &self.route.target;
        format!("\"{schema}.{table}\" on server \"{}\"", self.server)
    }

    /// Whether a trigger there sends to the local table. Hosts are not compared: the same server goes by many
    /// names.
    pub fn is_back(&self, trigger: &TriggerFacts) -> bool {
        let [_, schema, table, ..] = trigger.args.as_slice() else {
            return false;
        };
        let dbname = trigger
            .server
            .get("dbname")
            .map_or(self.database, String::as_str);
        (schema, table) == (&self.local.schema, &self.local.table) && dbname == self.database
    }
}

struct OfTarget<'s> {
    subject: &'s CheckSubject<'s>,
    facts: &'s ServerFacts,
    usage: Option<bool>,
    target: &'s RelationFacts,
}

impl OfTarget<'_> {
    fn name(&self) -> String {
        self.subject.target_name()
    }

    fn is_view(&self) -> bool {
        self.target.kind == "v"
    }

    /// Whether changes are sent with ON CONFLICT.
    fn needs_arbiter(&self) -> bool {
        let route = self.subject.route;
        route.policy != Policy::Error && !route.key_deferrable
    }

    fn kind(&self) -> Option<Finding> {
        let name = self.name();
        let no_arbiter = |what: &str| {
            Finding::error(
                SqlState::new(NO_ARBITER),
                format!("{name} is {what}, where ON CONFLICT cannot be used"),
                "Use \"on_conflict\": \"error\", or send to a table.",
            )
        };
        match self.target.kind.as_str() {
            "r" | "p" => None,
            "v" if self.target.changes_rows && self.needs_arbiter() => {
                Some(no_arbiter("a view with INSTEAD OF triggers"))
            }
            "v" => None,
            "f" if self.needs_arbiter() => Some(no_arbiter("a foreign table")),
            "f" => None,
            _ => Some(Finding::error(
                SqlState::new(WRONG_KIND),
                format!("{name} is not a table"),
                "Send to a table, or to a view that can be updated.",
            )),
        }
    }

    fn privileges(&self) -> Vec<Finding> {
        let route = self.subject.route;
        let target = self.target;
        let role = &self.facts.role;
        let server = self.subject.server;
        let denied = |problem: String, hint: String| {
            Finding::error(SqlState::INSUFFICIENT_PRIVILEGE, problem, hint)
        };
        let mut found = Vec::new();
        if self.usage == Some(false) {
            let schema = &route.target.schema;
            found.push(denied(
                format!("role \"{role}\" may not use schema \"{schema}\" on server \"{server}\""),
                format!("GRANT USAGE ON SCHEMA {schema} TO {role} there."),
            ));
        }
        // Of the columns that are there; those that are not are another finding.
        let all = |letter: char, positions: Vec<usize>| {
            positions.into_iter().all(|at| {
                let name = &route.columns[at].name;
                target
                    .column(name)
                    .is_none_or(|column| column.1.has(letter))
            })
        };
        let every: Vec<usize> = (0..route.columns.len()).collect();
        let read = match route.policy {
            Policy::Overwrite | Policy::Newest(_) => every.clone(),
            Policy::Skip | Policy::Error => route.key.clone(),
        };
        let missing: Vec<&str> = [
            ("SELECT", all('s', read)),
            ("INSERT", all('i', every)),
            (
                "UPDATE",
                route.is_keyless() || all('u', route.settable().collect()),
            ),
            ("DELETE", route.is_keyless() || target.delete),
            ("TRUNCATE", target.truncate || self.is_view()),
        ]
        .into_iter()
        .filter_map(|(privilege, has)| (!has).then_some(privilege))
        .collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let Relation { schema, table } = &route.target;
            found.push(denied(
                format!("role \"{role}\" lacks {missing} on {}", self.name()),
                format!("GRANT {missing} ON {schema}.{table} TO {role} there, unless such changes are never made."),
            ));
        }
        if target.row_security {
            found.push(denied(
                format!("row security of {} applies to role \"{role}\"", self.name()),
                "Give the role BYPASSRLS, or send to a table without policies.".to_owned(),
            ));
        }
        found
    }

    fn columns(&self) -> Vec<Finding> {
        let route = self.subject.route;
        let target = self.target;
        let mut found = Vec::new();
        let sent = |name: &str| route.columns.iter().any(|column| column.name == name);
        let missing: Vec<&str> = route
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .filter(|name| target.column(name).is_none())
            .collect();
        if !missing.is_empty() {
            found.push(Finding::error(
                SqlState::UNDEFINED_COLUMN,
                format!("{} has no column {}", self.name(), quoted(&missing)),
                "Add it there, or leave it out with \"exclude\", or name it otherwise with \"rename\".",
            ));
        }
        let named = |test: &dyn Fn(&str, &Flags) -> bool| -> Vec<&str> {
            let columns = target
                .columns
                .iter()
                .filter(|column| test(&column.0, &column.1));
            columns.map(|column| column.0.as_str()).collect()
        };
        let generated = named(&|name, flags| sent(name) && flags.has('g'));
        if !generated.is_empty() {
            found.push(Finding::error(
                SqlState::new(GENERATED),
                format!(
                    "{} generates column {} itself",
                    self.name(),
                    quoted(&generated)
                ),
                "Leave it out with \"exclude\".",
            ));
        }
        let unfilled = named(&|name, flags| !sent(name) && flags.has('n') && !flags.has('d'));
        if !unfilled.is_empty() && !target.changes_rows && !self.is_view() {
            found.push(Finding::error(
                SqlState::NOT_NULL_VIOLATION,
                format!(
                    "{} needs a value for column {}, which is not sent",
                    self.name(),
                    quoted(&unfilled)
                ),
                "Give it a default there, or let it be null.",
            ));
        }
        found
    }

    /// Columns whose values do not arrive as they are.
    fn types(&self) -> Vec<Finding> {
        let (route, Some(here)) = (self.subject.route, self.subject.here) else {
            return Vec::new();
        };
        let converted = |(at, column): (usize, &Column)| {
            let name = column.local.as_ref().unwrap_or(&column.name);
            let local = here.column(name)?;
            let remote = self.target.column(&column.name)?;
            let from = (local.2, local.3);
            let to = (remote.2, remote.3);
            let mut verdict = types::compare(&here.types, from, &self.target.types, to);
            if verdict.fidelity == Fidelity::Equal && remote.1.has('c') && !local.1.has('c') {
                let why = "other texts are equal there by the column's collation".to_owned();
                verdict = Conversion {
                    fidelity: Fidelity::Collating,
                    why,
                };
            }
            self.converted(at, name, [&local.4, &remote.4], &verdict)
        };
        route
            .columns
            .iter()
            .enumerate()
            .filter_map(converted)
            .collect()
    }

    /// What there is to be said of a column with such types.
    fn converted(
        &self,
        at: usize,
        name: &str,
        shown: [&str; 2],
        verdict: &Conversion,
    ) -> Option<Finding> {
        let route = self.subject.route;
        let is_key = route.key.contains(&at);
        let is_version = route.version() == Some(at);
        let [here, there] = shown;
        let Conversion { fidelity, why } = verdict;
        let types = format!(
            "column \"{name}\" is of type {here} here and of type {there} in {}",
            self.name()
        );
        let state = SqlState::DATATYPE_MISMATCH;
        let as_here = format!("Give it the type {here} there, or a wider one.");
        if (is_key || is_version) && fidelity.is_coarser_key() {
            let role = if is_key { "key" } else { "version" };
            let harm = if is_key {
                "rows that differ here may be one there, and changes miss their row"
            } else {
                "newer changes may be taken for older ones"
            };
            let problem = format!("{role} {types}: {why}, so that {harm}");
            return Some(Finding::error(state, problem, as_here).refusing());
        }
        if (is_key || is_version) && *fidelity == Fidelity::Folding {
            let role = if is_key { "key" } else { "version" };
            let problem = format!("{role} {types}: {why}, so that deliveries are refused");
            return Some(Finding::error(state, problem, as_here));
        }
        if is_key && *fidelity == Fidelity::Collating {
            let problem =
                format!("key {types}: {why}, so that rows that differ here may be one there");
            return Some(Finding::warning(state, problem, as_here));
        }
        let problem = format!("{types}: {why}");
        let or_leave_out = format!("{as_here} Or leave it out with \"exclude\".");
        match fidelity {
            Fidelity::Equal | Fidelity::Collating | Fidelity::Folding | Fidelity::Merging => None,
            Fidelity::Never => Some(Finding::error(state, problem, or_leave_out)),
            Fidelity::Narrower | Fidelity::Rewritten | Fidelity::Coarser => {
                Some(Finding::warning(state, problem, or_leave_out))
            }
            Fidelity::Unknown if is_key || is_version => {
                Some(Finding::warning(state, problem, as_here))
            }
            Fidelity::Unknown => Some(Finding::notice(
                problem,
                "Values travel as text. Try some of each kind before relying on it.",
            )),
        }
    }

    /// Whether there is what ON CONFLICT needs.
    fn arbiter(&self) -> Option<Finding> {
        let route = self.subject.route;
        if !self.needs_arbiter() || !matches!(self.target.kind.as_str(), "r" | "p") {
            return None;
        }
        let mut key: Vec<&str> = route
            .key
            .iter()
            .map(|at| route.columns[*at].name.as_str())
            .collect();
        key.sort_unstable();
        let fitting: Vec<_> = self
            .target
            .unique
            .iter()
            .filter(|(columns, _)| is_same_set(columns, &key))
            .collect();
        let columns = key.join(", ");
        if fitting.is_empty() {
            return Some(Finding::error(
                SqlState::new(NO_ARBITER),
                format!(
                    "{} has no unique index on exactly the key columns ({columns})",
                    self.name()
                ),
                "Add a primary key or a unique index there, or use \"on_conflict\": \"error\".",
            ));
        }
        let at_once = fitting.iter().any(|(_, immediate)| *immediate);
        (!at_once).then(|| {
            Finding::error(
                SqlState::OBJECT_NOT_READY,
                format!(
                    "the unique constraint of {} on ({columns}) is deferrable",
                    self.name()
                ),
                "Let it be NOT DEFERRABLE there, or use \"on_conflict\": \"error\".",
            )
        })
    }

    /// Whether rows may count there as newer than they were sent. Where the table is sent on by a trigger that
    /// decides by the newest as well, what was sent is kept there.
    fn replaced_versions(&self) -> Option<Finding> {
        let Policy::Newest(at) = self.subject.route.policy else {
            return None;
        };
        let keeps = self.target.active_triggers().any(|trigger| {
            trigger
                .options()
                .is_some_and(|options| options.on_conflict == OnConflict::Newest)
        });
        if keeps || !self.target.sets_version {
            return None;
        }
        let version = &self.subject.route.columns[at].name;
        let guard = self.subject.guard;
        let problem = format!(
            "a trigger of {} may replace column \"{version}\" of rows that arrive, which then count as newer than \
             they are",
            self.name()
        );
        let guard = crate::sql::quote::literal(guard);
        let hint = format!(
            "Create the trigger there with WHEN (current_setting('application_name') <> {guard}), or attach the \
             table there too, with \"on_conflict\": \"newest\"."
        );
        Some(Finding::notice(problem, hint))
    }

    /// What the triggers on the target do with changes that arrive.
    fn way_back(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut diverges = false;
        for trigger in self.target.active_triggers() {
            let [server, ..] = trigger.args.as_slice() else {
                continue;
            };
            let Some(options) = trigger.options() else {
                continue;
            };
            let leads_back = self.subject.is_back(trigger);
            if leads_back {
                let policy = self.subject.route.policy;
                diverges |= !matches!(policy, Policy::Newest(_))
                    || options.on_conflict != OnConflict::Newest
                    || !self.is_same_version(&options);
            }
            found.extend(self.guard(trigger, &options, server, leads_back));
        }
        if diverges {
            let table = &self.subject.local.table;
            let server = self.subject.server;
            let problem = format!(
                "table \"{table}\" is also sent back from server \"{server}\": concurrent changes may not \
                 converge"
            );
            found.push(Finding::notice(problem, CONVERGE));
        }
        found
    }

    /// Whether both sides decide by the same column.
    fn is_same_version(&self, theirs: &Options) -> bool {
        let ours = self
            .subject
            .route
            .version()
            .map(|at| &self.subject.route.columns[at].name);
        ours == theirs.version_column.as_ref()
    }

    /// Whether a trigger there takes what arrives from here for its own changes.
    fn guard(
        &self,
        trigger: &TriggerFacts,
        options: &Options,
        server: &str,
        leads_back: bool,
    ) -> Option<Finding> {
        let CheckSubject {
            server: here,
            guard,
            ..
        } = self.subject;
        let of_options = || {
            let settings = settings_in(trigger.server.get("options")?).into_iter();
            settings
                .rev()
                .find(|(name, _)| name == "application_name")
                .map(|(_, value)| value)
        };
        let theirs = options.application_name.clone();
        let theirs = theirs.or_else(|| trigger.server.get("application_name").cloned());
        let theirs = theirs
            .or_else(of_options)
            .unwrap_or_else(|| self.facts.guard.clone());
        // A longer one is none.
        let theirs: String = theirs.chars().take(MAX_NAME).collect();
        let doubted = options
            .guard_role
            .as_ref()
            .filter(|role| !self.facts.roles.contains(role));
        let (problem, hint) = if theirs != *guard {
            (
                format!(
                    "changes arrive on server \"{here}\" as application_name \"{guard}\", but the loop guard of \
                     its trigger that sends to server \"{server}\" is \"{theirs}\""
                ),
                "Give the servers, or the triggers, on both sides the same application_name."
                    .to_owned(),
            )
        } else if let Some(role) = doubted {
            let mapped = &self.facts.role;
            let role: String = role.chars().take(MAX_NAME).collect();
            (
                format!(
                    "the loop guard on server \"{here}\" believes members of role \"{role}\" only, which role \
                     \"{mapped}\" of the user mapping is not"
                ),
                format!("GRANT {role} TO {mapped} there, or use another user mapping here."),
            )
        } else {
            return None;
        };
        Some(if leads_back {
            let table = &self.subject.local.table;
            let problem = format!("changes of table \"{table}\" would come back: {problem}");
            Finding::error(SqlState::OBJECT_NOT_READY, problem, hint)
        } else {
            let problem = format!("changes are sent on from there: {problem}");
            Finding::notice(problem, format!("Unless that is meant: {hint}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Column};

    fn route(policy: Policy) -> Route {
        let column = |name: &str| Column {
            name: name.to_owned(),
            carrier: Carrier::Element,
            identity_always: false,
            own_equality: false,
            collated: false,
            local: None,
            binary: None,
            own_type: None,
        };
        let relation = || Relation {
            schema: "s".into(),
            table: "t".into(),
        };
        Route {
            source: relation(),
            target: relation(),
            columns: vec![column("id"), column("v")],
            key: vec![0],
            key_deferrable: false,
            key_exact: true,
            policy,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Default::default(),
        }
    }

    fn states(policy: Policy, facts: &str) -> Vec<String> {
        let server_facts: ServerFacts = serde_json::from_str(SERVER).expect("facts");
        let facts: TargetFacts = serde_json::from_str(facts).expect("facts");
        let route = route(policy);
        let server = "dst";
        let database = "db";
        let guard = "pg_rowsync";
        let local = &route.source;
        let here = None;
        let subject = CheckSubject {
            server,
            database,
            local,
            route: &route,
            guard,
            here,
        };
        let found = findings(&subject, &server_facts, &facts).into_iter();
        found
            .map(|finding| finding.problem.sqlstate().to_string())
            .collect()
    }

    const SERVER: &str =
        r#"{"role": "r", "roles": ["r"], "in_recovery": false, "guard": "pg_rowsync"}"#;
    const TABLE: &str = r#""kind": "r", "row_security": false, "delete": true, "truncate": true,
        "changes_rows": false, "columns": [["id", "nius", 1, -1, ""], ["v", "ius", 1, -1, ""]],
        "unique": [[["id"], true]]"#;

    #[test]
    fn an_answer_with_nothing_wrong_gives_no_finding() {
        let facts = format!(r#"{{"usage": true, "table": {{{TABLE}, "triggers": []}}}}"#);
        assert_eq!(states(Policy::Overwrite, &facts), [""; 0]);
        let none = r#"{"usage": null, "table": null}"#;
        assert_eq!(states(Policy::Overwrite, none), ["3F000"]);
    }

    #[test]
    fn a_trigger_there_is_held_against_the_name_that_changes_carry() {
        let with = |options: &str, server: &str| {
            let trigger = format!(
                r#"{{"enabled": "O", "args": ["back", "s", "t", {options}], "server": {{{server}}}}}"#
            );
            format!(r#"{{"usage": true, "table": {{{TABLE}, "triggers": [{trigger}]}}}}"#)
        };
        // That the policies may diverge is noted of both.
        assert_eq!(states(Policy::Overwrite, &with(r#""{}""#, "")), ["00000"]);
        let named = r#""application_name": "other""#;
        assert_eq!(
            states(Policy::Overwrite, &with(r#""{}""#, named)),
            ["55000", "00000"]
        );
        let elsewhere = r#""application_name": "other", "dbname": "elsewhere""#;
        assert_eq!(
            states(Policy::Overwrite, &with(r#""{}""#, elsewhere)),
            ["00000"]
        );
        let own = r#""{\"application_name\": \"pg_rowsync\"}""#;
        assert_eq!(states(Policy::Overwrite, &with(own, named)), ["00000"]);
    }
}
