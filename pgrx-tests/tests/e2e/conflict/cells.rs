//! Runs the cells of the table policy x conflict: what is on the server afterwards, what is counted,
//! logged and marked failed. Each for one row and for 1,000 of which ten conflict, delivered at commit, at
//! commit over a session that trusts the server, and by the worker.

use postgres::Client;
use rowsync_harness::Fixture;

use crate::conflict::view::{counted, fixture, logged, total};
use crate::support::common::{attach, queued, rows, run, table};
use crate::support::failed::ever_queued;
use crate::support::preloaded::await_drained;

/// By how much a key moves.
pub const MOVED: i64 = 10_000;

/// A row of the server: what is added to its ID, and the other columns.
pub type Row = (i64, &'static str, i32);

/// What is to be logged of each row that conflicts.
#[derive(Clone, Copy)]
pub struct Seen {
    pub kind: &'static str,
    pub decision: &'static str,
    /// What the ID of the row met is above that of the change, if one was met.
    pub server_key: Option<i64>,
    pub version: Option<&'static str>,
    pub server_version: Option<&'static str>,
    /// The SQLSTATE of the failed record.
    pub sqlstate: &'static str,
}

impl Seen {
    const fn of(kind: &'static str, decision: &'static str) -> Seen {
        let server_key = None;
        let version = None;
        let server_version = None;
        Seen {
            kind,
            decision,
            server_key,
            version,
            server_version,
            sqlstate: "",
        }
    }

    pub const fn applied(kind: &'static str) -> Option<Seen> {
        Some(Seen::of(kind, "applied"))
    }

    pub const fn skipped(kind: &'static str) -> Option<Seen> {
        Some(Seen::of(kind, "skipped"))
    }

    pub const fn failed(kind: &'static str, sqlstate: &'static str) -> Option<Seen> {
        Some(Seen {
            sqlstate,
            ..Seen::of(kind, "failed")
        })
    }

    /// The log's line for a row, as [`logged`] gives it.
    fn line(&self, id: i64, table: &str) -> String {
        let text = |value: Option<String>| value.unwrap_or_else(|| "~".to_owned());
        let constraint = (self.sqlstate == "23505").then(|| format!("{table}_pkey"));
        let of_row = |value: Option<&str>| text(value.map(str::to_owned));
        [
            self.kind.to_owned(),
            self.decision.to_owned(),
            id.to_string(),
            text(self.server_key.map(|above| (id + above).to_string())),
            of_row(self.version),
            of_row(self.server_version),
            text(constraint),
        ]
        .join("|")
    }
}

/// One way to meet a conflict. In the statements, `{t}` is the table, `{n}` the number of rows, `{bad}`
/// the condition for those that conflict.
pub struct Cell {
    /// What the server is made to look like. Both sides begin with `id`, `'l'`, `5` for every row,
    /// unless the change is an INSERT.
    pub there: &'static str,
    pub here: &'static str,
    /// What becomes of each row, here everywhere and there where nothing conflicts.
    pub good: &'static [Row],
    /// What becomes there of a row that conflicts.
    pub bad: &'static [Row],
    pub seen: Option<Seen>,
}

pub const INSERT: &str = "insert into {t} select id, 'n', 6 from generate_series(1, {n}) id";
pub const UPDATE: &str = "update {t} set v = 'n', ver = 6";
pub const MOVE: &str = "update {t} set id = id + 10000, v = 'n', ver = 6";
/// As `MOVE`, a command for each row: one that fails takes no other with it.
pub const MOVE_EACH: &str = "do $$ begin for i in 1..{n} loop
    update {t} set id = i + 10000, v = 'n', ver = 6 where id = i; end loop; end $$";
pub const DELETE: &str = "delete from {t}";

/// Rows are there under the same key.
pub const PRESENT: &str =
    "insert into {t} select id, 'r', 1 from generate_series(1, {n}) id where {bad}";
pub const MISSING: &str = "delete from {t} where {bad}";
pub const CHANGED: &str = "update {t} set v = 'r', ver = 9 where {bad}";
/// Another row is there under the key that a row moves to.
pub const TAKEN: &str =
    "insert into {t} select id + 10000, 'r', 1 from generate_series(1, {n}) id where {bad}";
/// Nothing under the old key, and a row under the new one.
pub const GONE_AHEAD: &str = "update {t} set id = id + 10000, v = 'r', ver = 1 where {bad}";

pub const NEW: &[Row] = &[(0, "n", 6)];
pub const NEW_MOVED: &[Row] = &[(MOVED, "n", 6)];
pub const NONE: &[Row] = &[];

/// How changes reach the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Direct,
    /// Over a session that has written to the table before.
    Trusting,
    Queue,
}

/// What the tables are on either side: the statements that make them, with `{t}` for the name.
#[derive(Clone, Copy)]
pub struct Shape {
    pub here: &'static str,
    pub there: &'static str,
}

pub const PLAIN: &str = "create table {t} (id int primary key, v text, ver int)";
const PLAIN_TABLES: Shape = Shape {
    here: PLAIN,
    there: PLAIN,
};

/// Runs all cells under a policy: the trigger's options but for the mode.
pub fn run_cells(policy: &str, cells: &[Cell]) {
    let sizes = [(1, "id = 1"), BATCH];
    run_over(
        policy,
        PLAIN_TABLES,
        cells,
        &sizes,
        &[Way::Direct, Way::Trusting, Way::Queue],
    );
}

/// As `run_cells`, for batches between other tables.
pub fn run_batches(policy: &str, shape: Shape, cells: &[Cell]) {
    run_over(policy, shape, cells, &[BATCH], &[Way::Direct, Way::Queue]);
}

/// Rows, and which of them conflict.
const BATCH: (i64, &str) = (1000, "id % 100 = 50");

fn run_over(policy: &str, shape: Shape, cells: &[Cell], sizes: &[(i64, &str)], ways: &[Way]) {
    let fixture = fixture();
    // Where the remote tables have triggers of their own, what these queue stays.
    fixture.right.exec(
        "create server back foreign data wrapper pg_rowsync options (host '127.0.0.1', port '1');
         create user mapping for current_user server back options (user 'x', password 'x')",
    );
    let mut number = 0;
    for cell in cells {
        for &(rows, bad) in sizes {
            for &way in ways {
                number += 1;
                println!(
                    "{policy}, {rows} rows, {way:?}: {} / {}",
                    cell.there, cell.here
                );
                let table = format!("t{number}");
                Run {
                    fixture: &fixture,
                    policy,
                    shape,
                    cell,
                    way,
                    table,
                    rows,
                    bad,
                }
                .run();
            }
        }
    }
}

/// A cell, run with so many rows in a certain way.
struct Run<'a> {
    fixture: &'a Fixture,
    policy: &'a str,
    shape: Shape,
    cell: &'a Cell,
    way: Way,
    table: String,
    rows: i64,
    bad: &'a str,
}

impl Run<'_> {
    fn run(&self) {
        let Run { fixture, cell, .. } = self;
        let mut client = self.begin();
        let before = total(fixture);
        let queued_before = ever_queued(fixture);
        run(&mut client, &self.fill(cell.here));
        let is_failed = cell.seen.is_some_and(|seen| seen.decision == "failed");
        if self.way != Way::Queue && !is_failed {
            assert_eq!(
                ever_queued(fixture),
                queued_before,
                "queued: {:?}",
                rows(&fixture.left, QUEUED)
            );
        }
        await_drained(fixture);
        let here = (1..=self.rows).map(|id| (id, cell.good));
        assert_eq!(table(&fixture.left, &self.table), expected(here));
        let of = |id| if self.is_bad(id) { cell.bad } else { cell.good };
        assert_eq!(
            table(&fixture.right, &self.table),
            expected((1..=self.rows).map(|id| (id, of(id))))
        );
        self.look(total(fixture) - before);
        fixture.left.exec_superuser("delete from sync_err_rec");
    }

    /// Makes the tables what they are before the change, and gives the session that makes it.
    fn begin(&self) -> Client {
        let Run {
            fixture,
            policy,
            table,
            ..
        } = self;
        let mode = if self.way == Way::Queue {
            "queue"
        } else {
            "async"
        };
        fixture.left.exec(&self.fill(self.shape.here));
        fixture.right.exec(&self.fill(self.shape.there));
        attach(
            fixture,
            table,
            &format!(r#"{{"mode": "{mode}", {policy}}}"#),
        );
        let mut client = fixture.left.client();
        if self.way == Way::Trusting {
            run(
                &mut client,
                &self.fill("insert into {t} values (0, 'w', 0)"),
            );
            run(&mut client, &self.fill("update {t} set v = 'x'"));
            run(&mut client, &self.fill("delete from {t}"));
        }
        if self.cell.here != INSERT {
            let base = "insert into {t} select id, 'l', 5 from generate_series(1, {n}) id";
            run(
                &mut fixture.left.client_named("pg_rowsync"),
                &self.fill(base),
            );
            fixture.right.exec(&self.fill(base));
        }
        fixture.right.exec(&self.fill(self.cell.there));
        client
    }

    /// Checks what is counted, logged and queued; `counted_now` of all conflicts are new.
    fn look(&self, counted_now: i64) {
        let Run { fixture, table, .. } = self;
        let Some(seen) = self.cell.seen else {
            assert_eq!(counted_now, 0);
            assert_eq!(logged(fixture, table), [""; 0]);
            assert_eq!(queued(fixture), 0);
            return;
        };
        let bad: Vec<i64> = (1..=self.rows).filter(|id| self.is_bad(*id)).collect();
        let number = bad.len();
        assert_eq!(counted_now, number as i64);
        assert_eq!(counted(fixture, table), [format!("{}|{number}", seen.kind)]);
        let log: Vec<String> = bad.iter().map(|id| seen.line(*id, table)).collect();
        assert_eq!(logged(fixture, table), log);
        let failed = format!("{}|failed|{number}", seen.sqlstate);
        let is_failed = seen.decision == "failed";
        assert_eq!(
            rows(&fixture.left, QUEUED),
            if is_failed { vec![failed] } else { vec![] }
        );
    }

    fn fill(&self, sql: &str) -> String {
        let rows = self.rows.to_string();
        sql.replace("{t}", &self.table)
            .replace("{n}", &rows)
            .replace("{bad}", self.bad)
    }

    fn is_bad(&self, id: i64) -> bool {
        if self.rows == 1 {
            id == 1
        } else {
            id % 100 == 50
        }
    }
}

/// What is queued, in short.
const QUEUED: &str =
    "select sqlstate, status, count(*) from sync_err_rec group by 1, 2 order by 1, 2";

/// Rows as [`table`] gives them.
fn expected(all: impl Iterator<Item = (i64, &'static [Row])>) -> Vec<String> {
    let mut rows: Vec<[String; 3]> = all
        .flat_map(|(id, rows)| rows.iter().map(move |(above, v, ver)| (id + above, v, ver)))
        .map(|(id, v, ver)| [id.to_string(), (*v).to_owned(), ver.to_string()])
        .collect();
    // As the text of a whole row sorts.
    rows.sort_by_key(|row| format!("({})", row.join(",")));
    rows.iter().map(|row| row.join("|")).collect()
}
