//! The other side of a session: gets its definitions, and is compared with it after what it writes.
//!
//! Definitions go there as they were written, those of a transaction at once before it commits, so
//! that its changes find them. What that does not carry over (a table made by a query or by a
//! function, a statement that fails there alone) is found by holding the catalogs of both sides
//! against each other; such tables are made there from the catalogs here, with their rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, anyhow};
use postgres::Client;
use serde::Deserialize;

use super::explained;
use super::statement::beginnings;
use super::tally::{Difference, Tally};
use crate::cluster::Cluster;
use crate::side::describe;

/// The database of both sides.
pub const DATABASE: &str = "regression";

/// Asks in the session that statements run in; the first column of what it answers.
pub type Ask<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<String>>;

/// What the sessions of a run share.
pub struct Run {
    pub here: Arc<Cluster>,
    pub there: Arc<Cluster>,
    /// Where tables' rows are put on their way. The servers must be allowed to write there.
    pub directory: PathBuf,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    pub tally: Tally,
    /// The file that is run, without its ending.
    pub file: String,
    /// The tables here, by OID, as they were last seen.
    tables: HashMap<u32, Shape>,
}

impl Run {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

/// A table as the catalogs describe it; names are quoted where SQL needs that, but for the first
/// two.
#[derive(Clone, Debug, Deserialize)]
struct Shape {
    schema: String,
    table: String,
    oid: u32,
    kind: String,
    /// Changes whenever all rows are written anew.
    file: u32,
    attached: bool,
    columns: Vec<Column>,
    /// The primary key.
    key: Option<Vec<String>>,
    /// What is unique.
    keys: Vec<Vec<String>>,
    by_key: bool,
}

/// Name, type, whether it is generated, whether it is inherited.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Column(String, String, bool, bool);

const KEY: &str = "rowsync_key";

impl Shape {
    fn name(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }

    fn key_columns(&self) -> Vec<String> {
        match &self.key {
            Some(key) if !self.by_key => key.clone(),
            _ => vec![KEY.to_owned()],
        }
    }

    /// The columns that are sent.
    fn sent(&self) -> String {
        let sent = self.columns.iter().filter(|column| !column.2);
        sent.map(|column| column.0.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.0 == name)
    }

    /// Whether what is sent from here fits there.
    fn fits(&self, there: &Shape) -> bool {
        self.columns.len() == there.columns.len()
            && self
                .columns
                .iter()
                .zip(&there.columns)
                .all(|(one, other)| (&one.0, &one.1) == (&other.0, &other.1) && (one.2 || !other.2))
    }
}

/// By schema and name.
type Tables = HashMap<(String, String), Shape>;

enum Pending {
    Definition(String),
    Savepoint(String),
}

/// See the module's head.
pub struct Mirror {
    run: Arc<Run>,
    /// Has the settings, the role and the temporary tables of the session here.
    session: Client,
    here: Client,
    there: Client,
    pending: Vec<Pending>,
    known_here: Known,
    known_there: Known,
    /// Definitions of any kind were seen since the catalogs were last looked at.
    is_stale: bool,
    /// OIDs of the tables that were written since both sides were last compared.
    written: Vec<u32>,
    /// The statements of the transaction.
    statements: Vec<String>,
}

impl Mirror {
    /// `user` and `settings` are those of the session here.
    pub fn start(
        run: &Arc<Run>,
        user: &str,
        settings: &BTreeMap<String, String>,
    ) -> Result<Mirror> {
        let admin = |cluster: &Cluster| -> Result<Client> {
            let mut client = cluster.superuser(DATABASE)?;
            client.batch_execute("set lock_timeout = '5s'; set statement_timeout = '60s'")?;
            Ok(client)
        };
        let here = admin(&run.here)?;
        let there = admin(&run.there)?;
        let password = run.there.superuser_password();
        let mut config = run.there.config(DATABASE, "postgres", password);
        config.options("-c lock_timeout=5s -c statement_timeout=60s -c client_min_messages=error");
        let mut session = config.connect(postgres::NoTls)?;
        for (name, value) in settings {
            session.execute("select set_config($1, $2, false)", &[name, value])?;
        }
        if user != "postgres" {
            // A role that is not there makes nothing there.
            let _ = session.batch_execute(&format!("set session authorization \"{user}\""));
        }
        let run = run.clone();
        let pending = Vec::new();
        let written = Vec::new();
        let statements = Vec::new();
        let known_here = Known::default();
        let known_there = Known::default();
        Ok(Mirror {
            known_here,
            known_there,
            run,
            session,
            here,
            there,
            pending,
            is_stale: false,
            written,
            statements,
        })
    }

    /// A text was executed here. `tags` are those of its statements; `is_open` whether a
    /// transaction is open now.
    pub fn executed(&mut self, sql: &str, tags: &[String], is_open: bool) {
        self.statements.push(sql.to_owned());
        let first = beginnings(sql);
        let has = |tag: &str| tags.iter().any(|one| one == tag);
        if has("ROLLBACK") {
            let to = first
                .iter()
                .rev()
                .find(|one| one.starts_with("rollback"))
                .cloned();
            let name = to
                .as_deref()
                .and_then(|text| text.split(' ').next_back())
                .unwrap_or("");
            let mark = self
                .pending
                .iter()
                .rposition(|one| matches!(one, Pending::Savepoint(other) if other == name));
            let keep = mark.filter(|_| is_open).map_or(0, |at| at + 1);
            self.pending.truncate(keep);
        } else if has("SAVEPOINT") {
            let name = first
                .last()
                .and_then(|text| text.split(' ').nth(1))
                .unwrap_or_default();
            self.pending.push(Pending::Savepoint(name.to_owned()));
        } else if !tags.is_empty() && tags.iter().all(|tag| is_definition(tag)) {
            let skipped = first.iter().any(|one| is_skipped(one));
            if !skipped {
                self.pending.push(Pending::Definition(sql.to_owned()));
            }
            self.is_stale |= tags.iter().any(|tag| changes_tables(tag));
        }
        let may_define =
            |tag: &String| ["DO", "CALL", "CREATE TABLE AS", "SELECT INTO"].contains(&tag.as_str());
        self.is_stale |= tags.iter().any(may_define);
    }

    /// What the session's own look has found; see `rowsync.after`.
    pub fn reported(&mut self, rows: &[String]) {
        for row in rows {
            let (what, rest) = row.split_once(' ').unwrap_or((row, ""));
            match what {
                "written" => {
                    self.written.extend(
                        rest.split_whitespace()
                            .filter_map(|oid| oid.parse::<u32>().ok()),
                    );
                }
                "attached" => self.is_stale = true,
                _ => {
                    let (table, why) = rest.split_once(' ').unwrap_or((rest, ""));
                    let mut state = self.run.state();
                    let table = format!("{}: {table}", state.file);
                    state.tally.refused.insert(table, why.to_owned());
                    self.is_stale = true;
                }
            }
        }
    }

    /// The transaction is about to commit: what it defines must be there before.
    pub fn before_commit(&mut self, ask: Ask<'_>) -> Result<()> {
        if !self.pending.is_empty() {
            self.session.batch_execute("begin")?;
            for one in std::mem::take(&mut self.pending) {
                let Pending::Definition(sql) = one else {
                    continue;
                };
                self.session.batch_execute("savepoint rowsync")?;
                let done = self.session.batch_execute(&sql);
                self.failed_there(done);
                // One that has ended the transaction leaves nothing to go back to.
                let _ = self
                    .session
                    .batch_execute("release savepoint rowsync")
                    .or_else(|_| self.session.batch_execute("rollback to savepoint rowsync"));
            }
            self.session.batch_execute("commit")?;
        }
        if std::mem::take(&mut self.is_stale) {
            self.reconcile(ask)
        } else {
            Ok(())
        }
    }

    /// No transaction is open: both sides must be equal.
    pub fn settle(&mut self, ask: Ask<'_>) -> Result<()> {
        for one in std::mem::take(&mut self.pending) {
            if let Pending::Definition(sql) = one {
                let done = self.session.batch_execute(&sql);
                self.failed_there(done);
            }
        }
        if std::mem::take(&mut self.is_stale) {
            self.reconcile(ask)?;
        }
        let statement = std::mem::take(&mut self.statements).join("\n");
        let written = std::mem::take(&mut self.written);
        if written.is_empty() {
            return Ok(());
        }
        let failures = self.drain()?;
        let with_children =
            "with recursive t(o) as (select unnest($1::oid[])
                union select inhrelid from pg_inherits, t where inhparent = o) select distinct o from t";
        let rows = self.here.query(with_children, &[&written])?;
        for row in rows {
            let table = self.run.state().tables.get(&row.get(0)).cloned();
            if let Some(table) = table.filter(|table| table.attached) {
                self.compare(&table, &statement, &failures)?;
            }
        }
        Ok(())
    }

    fn failed_there(&self, done: Result<(), postgres::Error>) {
        if let Err(error) = done {
            let mut state = self.run.state();
            state.tally.failed_there += 1;
            if std::env::var_os("ROWSYNC_REGRESS_VERBOSE").is_some() {
                println!("{}: there: {}", state.file, describe(&error));
            }
        }
    }

    /// Makes the tables there as they are here.
    fn reconcile(&mut self, ask: Ask<'_>) -> Result<()> {
        let here = self.known_here.read(ask)?;
        let mut there = self.shapes_there()?;
        if self.drop_there(&here, &there) | self.add_keys(&here, &there) {
            there = self.shapes_there()?;
        }
        let find = |table: &Shape| there.get(&(table.schema.clone(), table.table.clone()));
        let mut gone = Vec::new();
        for table in here.iter().filter(|table| table.attached) {
            let key = table.key_columns();
            let fits =
                find(table).is_some_and(|other| other.kind == table.kind && table.fits(other));
            let has_key = find(table).is_some_and(|other| other.keys.contains(&key));
            let done = match (fits, has_key) {
                (true, true) => continue,
                (true, false) => {
                    let unique = format!(
                        "alter table {} add unique ({})",
                        table.name(),
                        key.join(", ")
                    );
                    self.there
                        .batch_execute(&unique)
                        .or_else(|_| self.rebuild(table, ask))
                }
                (false, _) => self.rebuild(table, ask),
            };
            if let Err(error) = done {
                let why = describe(&error);
                let let_go = format!("select rowsync.let_go({}, $why${why}$why$)", table.oid);
                ask(&let_go).with_context(|| format!("{} was not let go: {why}", table.name()))?;
                let mut state = self.run.state();
                let name = format!("{}: {}", state.file, table.name());
                state.tally.refused.insert(name, why);
                gone.push(table.oid);
            }
        }
        let mut state = self.run.state();
        for mut table in here {
            table.attached &= !gone.contains(&table.oid);
            if table.attached {
                state.tally.attached.insert((table.name(), table.oid));
            }
            let before = state.tables.insert(table.oid, table.clone());
            if before.is_some_and(|before| before.file != table.file) {
                self.written.push(table.oid);
            }
        }
        Ok(())
    }

    fn shapes_there(&mut self) -> Result<Tables> {
        let there = &mut self.there;
        let shapes = self.known_there.read(&mut |sql| {
            Ok(there
                .query(sql, &[])?
                .iter()
                .map(|row| row.get(0))
                .collect())
        })?;
        Ok(shapes
            .into_iter()
            .map(|one| ((one.schema.clone(), one.table.clone()), one))
            .collect())
    }

    /// Drops what is not here any more; whether anything was.
    fn drop_there(&mut self, here: &[Shape], there: &Tables) -> bool {
        let known: HashSet<_> = here.iter().map(|one| (&one.schema, &one.table)).collect();
        let gone = there
            .values()
            .filter(|one| !known.contains(&(&one.schema, &one.table)));
        let mut any = false;
        for table in gone {
            let dropped = format!("drop table if exists {} cascade", table.name());
            let done = self.there.batch_execute(&dropped);
            self.failed_there(done);
            any = true;
        }
        any
    }

    /// Gives tables there the key that those here were given; whether any.
    fn add_keys(&mut self, here: &[Shape], there: &Tables) -> bool {
        let mut any = false;
        for table in here.iter().filter(|table| table.has(KEY)) {
            let other = there.get(&(table.schema.clone(), table.table.clone()));
            if other.is_some_and(|other| !other.has(KEY)) {
                let add = format!(
                    "alter table {} add column if not exists {KEY} bigint",
                    table.name()
                );
                // What cannot have it is made anew.
                let _ = self.there.batch_execute(&add);
                any = true;
            }
        }
        any
    }

    /// A table there that is nothing but columns and key, with the rows that are here.
    fn rebuild(&mut self, table: &Shape, ask: Ask<'_>) -> Result<(), postgres::Error> {
        let name = table.name();
        let columns = table
            .columns
            .iter()
            .map(|one| format!("{} {}", one.0, one.1));
        let columns = columns.collect::<Vec<_>>().join(", ");
        self.run.state().tally.rebuilt += 1;
        self.there.batch_execute(&format!(
            "create schema if not exists \"{}\"; drop table if exists {name} cascade;
             create table {name} ({columns}, unique ({}))",
            table.schema.replace('"', "\"\""),
            table.key_columns().join(", ")
        ))?;
        self.load(table, ask)
    }

    /// Puts the rows that are here there, instead of all that are there.
    fn load(&mut self, table: &Shape, ask: Ask<'_>) -> Result<(), postgres::Error> {
        let file = self.run.directory.join(format!("rows-{}", table.oid));
        let file = file.display();
        let name = table.name();
        let sent = table.sent();
        if sent.is_empty() {
            return Ok(());
        }
        // A failure shows by the file that is not there.
        let _ = ask(&format!(
            "select rowsync.dump({}, $c${sent}$c$, '{file}')",
            table.oid
        ));
        self.there
            .batch_execute(&format!(
                "begin; set local session_replication_role = replica; delete from only {name};
             copy {name} ({sent}) from '{file}'; commit"
            ))
            .inspect_err(|_| {
                let _ = self.there.batch_execute("rollback");
            })
    }

    /// Delivers what is queued. What failed for good, and why; it is discarded.
    fn drain(&mut self) -> Result<String> {
        let queued = "select exists (select from rowsync.sync_queue)";
        let mut failures = String::new();
        for _ in 0..20 {
            if !self.here.query_one(queued, &[])?.get::<_, bool>(0) {
                return Ok(failures);
            }
            self.here
                .query_one("select rowsync.deal_sync_err_rec(100000)", &[])?;
            let failed = self.here.query(
                "delete from rowsync.sync_err_rec where status <> 'pending'
                 returning concat_ws(' ', status, nsp_name, table_name, op, sqlstate, message)",
                &[],
            )?;
            for row in failed {
                failures.push_str("\n    ");
                failures.push_str(&row.get::<_, String>(0));
            }
        }
        let left = "select string_agg(concat_ws(' ', table_name, op, sqlstate, message), '; ')
                      from (select * from rowsync.sync_err_rec limit 3) few";
        let left: Option<String> = self.here.query_one(left, &[])?.get(0);
        let state = "select string_agg(to_jsonb(s)::text, '; ') from rowsync.sync_status s";
        let state: Option<String> = self.here.query_one(state, &[])?.get(0);
        failures.push_str(&format!("\n    not drained: {left:?} {state:?}"));
        self.here
            .batch_execute("delete from rowsync.sync_err_rec")?;
        Ok(failures)
    }

    fn compare(&mut self, table: &Shape, statement: &str, failures: &str) -> Result<()> {
        let sql = format!(
            "select count(*), md5(coalesce(string_agg(r, e'\\n' order by r collate \"C\"), ''))
               from (select row({})::text from only {}) rows(r)",
            table.sent(),
            table.name()
        );
        let rows = |client: &mut Client| -> Result<(i64, String), postgres::Error> {
            client
                .query_one(&sql, &[])
                .map(|row| (row.get(0), row.get(1)))
        };
        let here = rows(&mut self.here);
        let there = rows(&mut self.there);
        let what = match (here, there) {
            (Ok(one), Ok(other)) if one == other => {
                self.run.state().tally.equal += 1;
                return Ok(());
            }
            (Ok(one), Ok(other)) => format!("{} rows here, {} there{failures}", one.0, other.0),
            // Another transaction of the file, one that is prepared, holds it.
            (Err(error), _) | (_, Err(error)) => describe(&error),
        };
        {
            let mut state = self.run.state();
            match explained::of_rows(&state.file, &format!("{statement}\n{what}")) {
                Some(reason) => *state.tally.explained.entry(reason).or_default() += 1,
                None => {
                    let file = state.file.clone();
                    let statement = statement.to_owned();
                    let table = table.name();
                    println!(
                        "{}",
                        Difference {
                            file: file.clone(),
                            table: table.clone(),
                            statement: statement.clone(),
                            what: what.clone()
                        }
                    );
                    state.tally.different.push(Difference {
                        file,
                        table,
                        statement,
                        what,
                    });
                }
            }
        }
        let mut ask = |sql: &str| -> Result<Vec<String>> {
            self.here.batch_execute(sql)?;
            Ok(Vec::new())
        };
        // Borrowed apart: the rows come from a session of their own.
        let file = self.run.directory.join(format!("rows-{}", table.oid));
        ask(&format!(
            "select rowsync.dump({}, $c${}$c$, '{}')",
            table.oid,
            table.sent(),
            file.display()
        ))?;
        let again = format!(
            "begin; set local session_replication_role = replica; delete from only {0};
             copy {0} ({1}) from '{2}'; commit",
            table.name(),
            table.sent(),
            file.display()
        );
        if let Err(error) = self.there.batch_execute(&again) {
            let _ = self.there.batch_execute("rollback");
            println!("{} was not made equal: {}", table.name(), describe(&error));
        }
        Ok(())
    }
}

/// The tables of a side as they were last read, each with its sign; see `rowsync.signs`.
#[derive(Default)]
struct Known(BTreeMap<u32, (String, Shape)>);

impl Known {
    /// All tables, in the order in which they were made.
    fn read(&mut self, ask: Ask<'_>) -> Result<Vec<Shape>> {
        let rows = ask("select * from rowsync.signs()")?;
        let signs = rows.iter().filter_map(|row| row.split_once(' '));
        let signs: BTreeMap<u32, &str> = signs
            .map(|(oid, sign)| Ok((oid.parse()?, sign)))
            .collect::<Result<_>>()?;
        self.0
            .retain(|oid, (sign, _)| signs.get(oid) == Some(&sign.as_str()));
        let new: Vec<String> = signs
            .keys()
            .filter(|oid| !self.0.contains_key(oid))
            .map(u32::to_string)
            .collect();
        if !new.is_empty() {
            for row in ask(&format!(
                "select * from rowsync.shapes('{{{}}}')",
                new.join(",")
            ))? {
                let shape: Shape =
                    serde_json::from_str(&row).map_err(|error| anyhow!("{error}: {row}"))?;
                let sign = signs
                    .get(&shape.oid)
                    .copied()
                    .unwrap_or_default()
                    .to_owned();
                self.0.insert(shape.oid, (sign, shape));
            }
        }
        Ok(self.0.values().map(|(_, shape)| shape.clone()).collect())
    }
}

fn is_definition(tag: &str) -> bool {
    let words = [
        "CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SET", "RESET", "DISCARD",
        "REASSIGN", "IMPORT",
    ];
    let first = tag.split(' ').next().unwrap_or_default();
    words.contains(&first) && !["CREATE TABLE AS", "SET CONSTRAINTS"].contains(&tag)
}

/// Whether what has such a command tag may make, change or drop tables.
fn changes_tables(tag: &str) -> bool {
    let (verb, object) = tag.split_once(' ').unwrap_or((tag, ""));
    match verb {
        "CREATE" => ["TABLE", "SCHEMA"].contains(&object),
        "ALTER" => ["TABLE", "SCHEMA", "TYPE", "INDEX", "EXTENSION"].contains(&object),
        "DROP" => ![
            "FUNCTION",
            "PROCEDURE",
            "ROUTINE",
            "TRIGGER",
            "RULE",
            "VIEW",
            "ROLE",
        ]
        .contains(&object),
        "IMPORT" => true,
        _ => false,
    }
}

/// What would do there once more what it does here, or belongs to the whole cluster.
fn is_skipped(statement: &str) -> bool {
    let mut words = statement
        .split(' ')
        .filter(|word| !["or", "replace", "constraint", "unlogged"].contains(word));
    let verb = words.next().unwrap_or_default();
    let object = words.next().unwrap_or_default();
    let made = [
        "trigger",
        "rule",
        "event",
        "database",
        "subscription",
        "publication",
    ];
    (verb == "create" && made.contains(&object)) || (verb == "alter" && object == "system")
}
