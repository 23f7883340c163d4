//! Random schemas with constraints between rows, random transactions over them, and faults where they
//! hurt: answers lost, drains whose second commit fails, rows refused for a while, small limits and
//! buffers. Afterwards both sides are equal, and nothing was marked failed that the target would have taken
//! if it had come with its statement.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;

use crate::fixture::{Fixture, clusters};
use crate::proxy::{Direction, Proxy};
use crate::rng::Rng;
use crate::side::{Side, describe};

/// Which rounds are played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// The first round's number.
    pub from: u64,
    pub rounds: u64,
}

/// Settings of every session that delivers.
const QUICK: &str = "set pg_rowsync.connect_timeout = '1s'; set pg_rowsync.delivery_timeout = '3s'; \
     set pg_rowsync.lock_timeout = '500ms'; set client_min_messages = error; ";

/// As `QUICK`, once nothing hinders, however busy the machine is.
const CALM: &str = "set pg_rowsync.connect_timeout = '20s'; set pg_rowsync.delivery_timeout = '60s'; \
     set client_min_messages = error; ";

/// How long everything may take to arrive once nothing hinders it.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Ends of foreign keys.
const ENDINGS: [&str; 6] = [
    "",
    "deferrable",
    "deferrable initially deferred",
    "on delete cascade",
    "on delete set null",
    "on delete cascade deferrable initially deferred",
];

/// Plays the rounds.
///
/// # Errors
/// A round after which the sides differ, or that needs someone; with what it did.
pub fn run(plan: Plan, tell: &mut dyn FnMut(String)) -> Result<()> {
    for number in plan.from..plan.from + plan.rounds {
        let mut round = Round::begin(plan.seed, number)?;
        let played = round.play();
        let line = format!("round {number}: {}", round.summary());
        played
            .with_context(|| format!("seed {}, {line}\n{}", plan.seed, round.history.join("\n")))?;
        tell(line);
    }
    Ok(())
}

/// A table `t` with its number: `id`, `u` (perhaps unique), `d` (perhaps exclusive), `up` (perhaps to
/// itself), `r` (perhaps to another table).
struct Table {
    name: String,
    columns: String,
    /// The number of the table that `r` refers to.
    parent: Option<usize>,
    is_tree: bool,
    /// Ids given out.
    last: u64,
}

struct Round {
    rng: Rng,
    fixture: Fixture,
    proxy: Proxy,
    mode: &'static str,
    policy: &'static str,
    tables: Vec<Table>,
    /// The names of those that are another role's.
    others: Vec<String>,
    /// A row is refused by the target.
    is_gated: bool,
    was_gated: bool,
    /// Tables of which the gate has refused something, or may have, as long as anything is queued.
    gated: Vec<String>,
    doubts: u32,
    committed: u32,
    history: Vec<String>,
}

impl Drop for Round {
    fn drop(&mut self) {
        if !self.others.is_empty()
            && let Ok(mut client) = self.fixture.left.connect_superuser()
        {
            let role = self.other_role();
            let _ = client.batch_execute(&format!("drop owned by {role}; drop role {role}"));
        }
    }
}

impl Round {
    fn begin(seed: u64, number: u64) -> Result<Round> {
        let mut rng = Rng::new(seed, number);
        let proxy = Proxy::start(clusters().1.port())?;
        let fixture = Fixture::new("whole");
        fixture.link_via(&proxy, &fixture.left, &fixture.right, "dst", &[]);
        let mode = *rng.pick(&["async", "async", "queue", "queue", "sync"]);
        let policy = *rng.pick(&["overwrite", "overwrite", "error", "skip"]);
        let count = 2 + rng.roll(4) as usize;
        let mut tables: Vec<Table> = Vec::new();
        for number in 0..count {
            let table = Table::random(&mut rng, number, &tables);
            tables.push(table);
        }
        let history = Vec::new();
        let others = Vec::new();
        let is_gated = false;
        let was_gated = false;
        let doubts = 0;
        let committed = 0;
        let mut round = Round {
            rng,
            fixture,
            proxy,
            mode,
            policy,
            tables,
            others,
            is_gated,
            was_gated,
            gated: Vec::new(),
            doubts,
            committed,
            history,
        };
        round.build()?;
        Ok(round)
    }

    fn build(&mut self) -> Result<()> {
        let options = format!(
            r#"{{"mode": "{}", "on_conflict": "{}"}}"#,
            self.mode, self.policy
        );
        let schema = self.fixture.right.user.clone();
        for table in &self.tables {
            let name = &table.name;
            let create = format!(
                "create table {name} ({}); create index on {name} (up); create index on {name} (r)",
                table.columns
            );
            self.history.push(create.clone());
            for side in [&self.fixture.left, &self.fixture.right] {
                side.connect()?.batch_execute(&create).map_err(reported)?;
            }
        }
        let mut right = self.fixture.right.connect()?;
        let guard = format!(
            "create table gate (id int); create function guard() returns trigger language plpgsql as $$
             begin
               if exists (select from {schema}.gate g where g.id = coalesce(new.id, old.id)) then
                 raise check_violation using message = 'the gate is closed';
               end if;
               return coalesce(new, old);
             end $$"
        );
        right.batch_execute(&guard).map_err(reported)?;
        for Table { name, .. } in &self.tables {
            right.batch_execute(&format!(
                "create trigger guard before insert or update or delete on {name}
                   for each row execute function guard()"
            ))?;
            self.fixture.left.connect()?.batch_execute(&format!(
                "select attach_sync('{name}', 'dst', '{schema}.{name}', '{options}')"
            ))?;
        }
        if self.rng.chance(40) {
            self.share()
        } else {
            Ok(())
        }
    }

    /// Gives tables that no foreign key ties to others to another role, whose changes have a connection of
    /// their own.
    fn share(&mut self) -> Result<()> {
        let is_tied = |at: usize| {
            self.tables[at].parent.is_some()
                || self.tables.iter().any(|other| other.parent == Some(at))
        };
        let all = self.tables.iter().enumerate();
        self.others = all
            .filter(|(at, _)| !is_tied(*at))
            .map(|(_, table)| table.name.clone())
            .collect();
        if self.others.is_empty() {
            return Ok(());
        }
        let role = self.other_role();
        let right = &self.fixture.right;
        let own = &self.fixture.left.user;
        let mut sql = format!(
            "create role {role}; grant usage, create on schema {own} to {role};
             grant usage on foreign server dst to {role};
             create user mapping for {role} server dst options (user '{}', password '{}');",
            right.user, right.password
        );
        for name in &self.others {
            sql.push_str(&format!(
                "alter table {own}.{name} owner to {role}; grant all on {own}.{name} to {own};"
            ));
        }
        self.history
            .push(format!("-- another role's: {}", self.others.join(", ")));
        self.fixture
            .left
            .superuser()
            .batch_execute(&sql)
            .map_err(reported)
    }

    fn other_role(&self) -> String {
        format!("{}_other", self.fixture.left.user)
    }

    fn summary(&self) -> String {
        format!(
            "{} tables, {} of another role, mode {}, policy {}, {} committed, {} in doubt{}",
            self.tables.len(),
            self.others.len(),
            self.mode,
            self.policy,
            self.committed,
            self.doubts,
            if self.was_gated { ", gated" } else { "" }
        )
    }

    fn play(&mut self) -> Result<()> {
        let mut client = self.fixture.left.connect()?;
        client.batch_execute(QUICK)?;
        for _ in 0..8 + self.rng.roll(12) {
            self.transact(&mut client)?;
            if self.rng.chance(15) {
                self.turn_gate()?;
            }
            if self.rng.chance(30) {
                self.drain()?;
            }
        }
        self.settle()
    }

    /// A transaction, perhaps with a fault when it commits.
    fn transact(&mut self, client: &mut Client) -> Result<()> {
        let mut statements = Vec::new();
        for _ in 0..1 + self.rng.roll(4) {
            let statement = self.statement();
            match self.rng.roll(10) {
                0 => statements.push(format!("savepoint s; {statement}; rollback to s")),
                1 => statements.push(format!("savepoint s; {statement}; release s")),
                _ => statements.push(statement),
            }
        }
        let sql = statements.join("; ");
        if let Err(error) = client.batch_execute(&format!("begin; {sql}")) {
            self.history
                .push(format!("-- refused here: {}: {sql}", describe(&error)));
            client.batch_execute("rollback")?;
            return Ok(());
        }
        let fault = self.fault();
        self.history
            .push(format!("begin; {sql}; commit -- {}", fault.unwrap_or("")));
        let result = client.batch_execute("commit");
        self.proxy.accept()?;
        match result {
            Ok(()) => self.committed += 1,
            Err(error) => {
                client.batch_execute("rollback")?;
                self.history
                    .push(format!("-- failed: {}", describe(&error)));
                let local = self.fails_here(client, &sql);
                let pending = error.code().is_some_and(|code| code.code() == "55000");
                ensure!(
                    local || fault.is_some() || self.is_gated || pending,
                    "a transaction that holds here cannot be committed: {}",
                    describe(&error)
                );
            }
        }
        Ok(())
    }

    /// Whether a transaction fails without being captured.
    fn fails_here(&self, client: &mut Client, sql: &str) -> bool {
        let guarded = format!(
            "begin; set local application_name = 'pg_rowsync'; {sql}; set constraints all immediate"
        );
        let fails = client.batch_execute(&guarded).is_err();
        drop(client.batch_execute("rollback"));
        fails
    }

    /// Something that happens when a transaction commits.
    fn fault(&mut self) -> Option<&'static str> {
        match (self.rng.roll(12), self.mode) {
            (0 | 1, "async") => {
                self.proxy.cut_after(0, Direction::ToClient);
                self.doubts += 1;
                Some("answer lost")
            }
            (2, "async") => {
                self.proxy
                    .cut_after(self.rng.roll(3_000), Direction::ToServer);
                Some("cut on the way")
            }
            (3, "async" | "sync") => {
                self.proxy.refuse();
                self.proxy.cut();
                Some("away")
            }
            _ => None,
        }
    }

    fn turn_gate(&mut self) -> Result<()> {
        let mut right = self.fixture.right.superuser();
        let reject_values = format!("{}.gate", self.fixture.right.user);
        if self.is_gated || self.mode == "sync" {
            right.batch_execute(&format!("delete from {reject_values}"))?;
            self.is_gated = false;
            self.history.push("-- gate opened".to_owned());
        } else {
            let id = 1 + self.rng.roll(60);
            right.batch_execute(&format!("insert into {reject_values} values ({id})"))?;
            (self.is_gated, self.was_gated) = (true, true);
            self.history.push(format!("-- gate closed for {id}"));
        }
        Ok(())
    }

    /// Drains a part, perhaps so that the second commit fails.
    fn drain(&mut self) -> Result<()> {
        let mut session = self.fixture.left.superuser();
        let limit = *self.rng.pick(&[1, 7, 100, 1_000, 100_000]);
        let buffer = *self.rng.pick(&["64kB", "256kB", "16MB"]);
        session.batch_execute(QUICK)?;
        session.batch_execute(&format!("set pg_rowsync.buffer_size = '{buffer}'; begin"))?;
        let drained = session.query_one(&format!("select deal_sync_err_rec({limit})"), &[]);
        let is_cut = self.rng.chance(40);
        if is_cut {
            self.proxy.cut_after(0, Direction::ToClient);
        }
        let ended = session.batch_execute("commit");
        self.proxy.cut();
        // Used up, if nothing was to be committed.
        self.proxy.cut_after(u64::MAX, Direction::ToClient);
        let is_lost = is_cut && ended.is_err();
        self.doubts += u32::from(is_lost);
        if is_lost && self.is_gated {
            // What it marked failed was not kept here, and what went past that was kept there.
            self.gated
                .extend(self.tables.iter().map(|table| table.name.clone()));
        }
        self.history.push(format!(
            "-- drained {limit} with {buffer}: {:?}, {:?}",
            drained
                .as_ref()
                .map(|row| row.get::<_, bool>(0))
                .map_err(describe),
            ended.as_ref().map_err(describe)
        ));
        let queue = self.queue()?;
        self.history.push(queue);
        drained.map_err(reported)?;
        ensure!(is_cut || ended.is_ok(), "a drain could not be committed");
        self.nobody_is_blamed()
    }

    /// What is queued, in a line.
    fn queue(&self) -> Result<String> {
        let sql = "select format('--   queued: %s; may be replayed until %s',
                     (select string_agg(format('%s %s of %s to %s', n, status, first, last), ', ')
                        from (select status, count(*) n, min(id) first, max(id) last
                                from sync_err_rec group by status order by 3) q),
                     (select last_value from sync_replay_seq))";
        Ok(self.fixture.left.superuser().query_one(sql, &[])?.get(0))
    }

    /// Nothing is marked failed but what the gate has refused, and what is refused over other rows where a table
    /// that foreign keys tie to its own has something that the gate has refused.
    fn nobody_is_blamed(&mut self) -> Result<()> {
        let refused =
            "status = 'failed' and sqlstate = '23514' and message like '%the gate is closed%'";
        let sql = format!("select distinct table_name::text from sync_err_rec where {refused}");
        let gated = self.fixture.left.superuser().query(&sql, &[])?;
        self.gated
            .extend(gated.iter().map(|row| row.get::<_, String>(0)));
        ensure!(
            self.was_gated || self.gated.is_empty(),
            "refused by a gate that was never closed"
        );
        // What the gate has led to may be left where not all that has failed is tried again, and may come up only
        // once the rest is.
        if self.failed("true")?.is_empty() {
            self.gated.clear();
        }
        let tied: Vec<String> = (self.tied_to(&self.gated).iter())
            .map(|name| format!("'{name}'"))
            .collect();
        let tied = if tied.is_empty() {
            "false".to_owned()
        } else {
            format!(
                "sqlstate in ('23503', '23505', '23P01', '23001', 'P0002') and table_name in ({})",
                tied.join(", ")
            )
        };
        let failed = self.failed(&format!(
            "status = 'failed' and not ({refused}) and not ({tied})"
        ))?;
        ensure!(failed.is_empty(), "marked failed:\n{}", failed.join("\n"));
        Ok(())
    }

    /// These tables, and those that foreign keys tie to them, by way of others too.
    fn tied_to(&self, names: &[String]) -> Vec<String> {
        let mut tied: Vec<usize> = (0..self.tables.len())
            .filter(|at| names.contains(&self.tables[*at].name))
            .collect();
        loop {
            let is_tied = |at: &usize| {
                let own = self.tables[*at].parent;
                !tied.contains(at)
                    && (own.is_some_and(|parent| tied.contains(&parent))
                        || tied
                            .iter()
                            .any(|other| self.tables[*other].parent == Some(*at)))
            };
            let more: Vec<usize> = (0..self.tables.len()).filter(is_tied).collect();
            if more.is_empty() {
                break;
            }
            tied.extend(more);
        }
        tied.iter()
            .map(|at| self.tables[*at].name.clone())
            .collect()
    }

    fn failed(&self, condition: &str) -> Result<Vec<String>> {
        let sql = format!(
            "select concat_ws(' ', id, table_name, op, status, sqlstate, message, left(dst_query, 200))
               from sync_err_rec where {condition} order by id limit 20"
        );
        let rows = self.fixture.left.superuser().query(&sql, &[])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Nothing hinders any more: everything arrives, and both sides are equal.
    fn settle(&mut self) -> Result<()> {
        self.proxy.accept()?;
        self.fixture
            .right
            .superuser()
            .batch_execute(&format!("delete from {}.gate", self.fixture.right.user))?;
        let mut session = self.fixture.left.superuser();
        session.batch_execute(CALM)?;
        let end = Instant::now() + MAX_WAIT;
        while Instant::now() < end {
            let done: bool = session
                .query_one("select deal_sync_err_rec(100000)", &[])?
                .get(0);
            let left: i64 = session
                .query_one(
                    "select (select count(*) from sync_queue) + (select count(*) from sync_lost_session)",
                    &[],
                )?
                .get(0);
            self.nobody_is_blamed()?;
            if done && left == 0 {
                return self.compare();
            }
            sleep(Duration::from_millis(50));
        }
        let why =
            "select string_agg(concat_ws(' ', last_sqlstate, last_error), '; ') from sync_status";
        let why: Option<String> = session.query_one(why, &[])?.get(0);
        let records = self.failed("true")?.join("\n");
        bail!("still queued, {}:\n{records}", why.unwrap_or_default())
    }

    fn compare(&self) -> Result<()> {
        for Table { name, .. } in &self.tables {
            let rows = |side: &Side| -> Result<Vec<String>> {
                let sql = format!("select t::text from {name} t order by id, t::text");
                Ok(side
                    .connect()?
                    .query(&sql, &[])?
                    .iter()
                    .map(|row| row.get(0))
                    .collect())
            };
            let left = rows(&self.fixture.left)?;
            let right = rows(&self.fixture.right)?;
            let differ: Vec<_> = left
                .iter()
                .zip(&right)
                .filter(|(left, right)| left != right)
                .take(5)
                .collect();
            ensure!(
                left == right,
                "{name} differs: {} rows here, {} there, {differ:?}",
                left.len(),
                right.len()
            );
        }
        Ok(())
    }

    fn statement(&mut self) -> String {
        let at = self.rng.roll(self.tables.len() as u64) as usize;
        let rows = match self.rng.roll(40) {
            0 => 6_000 + self.rng.roll(2) * 14_000,
            1..4 => 600,
            4..12 => 40,
            _ => 1 + self.rng.roll(4),
        };
        let some = self.some_ids(at);
        let name = self.tables[at].name.clone();
        match self.rng.roll(12) {
            0..4 => self.insert(at, rows),
            4 => self.insert_family(at, rows),
            5 => format!("update {name} set u = u + 1000000 where id in ({some})"),
            6 => self.pass_on(at),
            7 => format!("update {name} set up = null, r = null where id in ({some})"),
            8 => format!("update {name} set id = id + 5000000 where id in ({some})"),
            9 => format!("delete from {name} where id in ({some})"),
            10 if self.rng.chance(30) => format!("delete from {name}"),
            10 => self.delete_family(at),
            _ => self.replace(at),
        }
    }

    /// Ids that are there, or were.
    fn some_ids(&mut self, at: usize) -> String {
        let last = self.tables[at].last.max(1);
        let ids: Vec<String> = (0..1 + self.rng.roll(6))
            .map(|_| (1 + self.rng.roll(last.min(80))).to_string())
            .collect();
        ids.join(", ")
    }

    /// New rows that refer to each other, in a chain or a circle.
    fn insert(&mut self, at: usize, rows: u64) -> String {
        let shape = self.rng.roll(3);
        let table = &mut self.tables[at];
        let first = table.last + 1;
        table.last += rows;
        let next = match shape {
            0 => format!("{first} + (i + 1) % {rows}"),
            1 => format!("case when i + 1 < {rows} then {first} + i + 1 end"),
            _ => "null".to_owned(),
        };
        let up = if table.is_tree {
            next
        } else {
            "null".to_owned()
        };
        let parent = table.parent.map(|parent| self.tables[parent].name.clone());
        let r = parent.map_or("null".to_owned(), |parent| {
            format!("(select min(id) from {parent} where id > i % 7)")
        });
        let name = &self.tables[at].name;
        format!(
            "insert into {name} select {first} + i, {first} + i, \
             int4range(({first} + i)::int * 10, ({first} + i)::int * 10 + 5), {up}, {r} \
             from generate_series(0, {rows} - 1) i"
        )
    }

    /// A parent and its children in one statement.
    fn insert_family(&mut self, at: usize, rows: u64) -> String {
        let Some(parent) = self.tables[at].parent else {
            return self.insert(at, rows);
        };
        self.tables[parent].last += 1;
        let id = self.tables[parent].last;
        let other = self.tables[parent].name.clone();
        let first = self.tables[at].last + 1;
        self.tables[at].last += rows;
        let name = &self.tables[at].name;
        format!(
            "with p as (insert into {other} values ({id}, {id}, int4range({id} * 10, {id} * 10 + 5), \
             null, null)) insert into {name} select {first} + i, {first} + i, \
             int4range(({first} + i)::int * 10, ({first} + i)::int * 10 + 5), null, {id} \
             from generate_series(0, {rows} - 1) i"
        )
    }

    fn delete_family(&mut self, at: usize) -> String {
        let some = self.some_ids(at);
        let name = &self.tables[at].name;
        match self.tables[at].parent {
            None => format!("delete from {name} where id in ({some})"),
            Some(parent) => format!(
                "with c as (delete from {name} where r in ({some})) delete from {} where id in ({some})",
                self.tables[parent].name
            ),
        }
    }

    /// A row gives up its unique value and its range, a new one takes them.
    fn pass_on(&mut self, at: usize) -> String {
        let id = 1 + self.rng.roll(self.tables[at].last.clamp(1, 80));
        self.tables[at].last += 1;
        let new = self.tables[at].last;
        let name = &self.tables[at].name;
        format!(
            "update {name} set u = -{new}, d = int4range(-{new} * 10, -{new} * 10 + 5) where id = {id}; \
             insert into {name} select {new}, {id}, int4range({id} * 10, {id} * 10 + 5), null, null \
             where not exists (select from {name} where u = {id} or d && int4range({id} * 10, {id} * 10 + 5))"
        )
    }

    /// A row is deleted and there again.
    fn replace(&mut self, at: usize) -> String {
        let id = 1 + self.rng.roll(self.tables[at].last.clamp(1, 80));
        let name = &self.tables[at].name;
        format!(
            "delete from {name} where id = {id}; insert into {name} \
             select {id}, {id}, int4range({id} * 10, {id} * 10 + 5), null, null \
             where not exists (select from {name} where u = {id} or d && int4range({id} * 10, {id} * 10 + 5))"
        )
    }
}

impl Table {
    fn random(rng: &mut Rng, number: usize, others: &[Table]) -> Table {
        let name = format!("t{number}");
        let is_unique = rng.chance(50);
        let is_exclusive = rng.chance(20);
        let is_tree = rng.chance(50);
        let referable = |table: &Table| !table.columns.contains("primary key deferrable");
        let parents: Vec<usize> = (0..others.len())
            .filter(|at| referable(&others[*at]))
            .collect();
        let parent = (!parents.is_empty() && rng.chance(75)).then(|| *rng.pick(&parents));
        let key = if !is_tree {
            *rng.pick(&["primary key", "primary key", "primary key deferrable"])
        } else {
            "primary key"
        };
        let unique = if is_unique {
            *rng.pick(&[
                " unique",
                " unique",
                " unique deferrable initially deferred",
            ])
        } else {
            ""
        };
        let up = if is_tree {
            format!(" references {name} {}", rng.pick(&ENDINGS))
        } else {
            String::new()
        };
        let r = parent.map_or(String::new(), |parent| {
            format!(" references {} {}", others[parent].name, rng.pick(&ENDINGS))
        });
        let exclusion = if is_exclusive {
            ", exclude using gist (d with &&)"
        } else {
            ""
        };
        let columns =
            format!("id int {key}, u int{unique}, d int4range, up int{up}, r int{r}{exclusion}");
        Table {
            name,
            columns,
            parent,
            is_tree,
            last: 0,
        }
    }
}

fn reported(error: postgres::Error) -> anyhow::Error {
    anyhow::anyhow!(describe(&error))
}
