//! Random tables, in which differences of every kind are planted: what `verify_sync` tells is exactly what was
//! planted, whatever the key, the types, the filter, the list of columns and what is in between, while others
//! write other rows. `repair_sync` then leaves none.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};

use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::fixture::{Fixture, clusters};
use crate::pooler::{IGNORE_OPTIONS, PoolMode, Pooler};
use crate::rng::Rng;
use crate::setup::Postgres;
use crate::side::{Side, describe};

/// Which rounds are played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// The first round's number.
    pub from: u64,
    pub rounds: u64,
    /// Nothing about a round is left to chance but who writes what beside: every column of [`KINDS`], spoiled in
    /// every way, with a key, a place and so on by the round's number; [`SWEEP`]
    /// rounds have every key.
    pub sweeps: bool,
}

/// Rounds of a sweep: as many as there are keys.
pub const SWEEP: u64 = KEYS.len() as u64;

/// Sessions that write beside.
const WRITERS: u64 = 8;

/// Where the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Alike,
    /// A database of another encoding, whose texts are sorted otherwise.
    Latin,
    /// A server of this major, without the extension.
    Major(u32),
}

const PLACES: [Place; 6] = [
    Place::Alike,
    Place::Latin,
    Place::Major(14),
    Place::Major(16),
    Place::Major(17),
    Place::Major(18),
];

impl Place {
    fn side(self, name: &str) -> Result<Side> {
        match self {
            Self::Alike => Side::create(clusters().1, name),
            Self::Latin => Side::create_as(
                clusters().1,
                name,
                "template template0 encoding 'LATIN1' locale 'C'",
            ),
            Self::Major(major) => Side::create_without_extension(&cluster_of(major)?, name),
        }
    }
}

/// A cluster of a major, which stays for all rounds.
fn cluster_of(major: u32) -> Result<Arc<Cluster>> {
    static RUNNING: Mutex<Vec<(u32, Arc<Cluster>)>> = Mutex::new(Vec::new());
    let mut running = RUNNING.lock().map_err(|_| anyhow!("a panic before"))?;
    if let Some((_, cluster)) = running.iter().find(|(of, _)| *of == major) {
        return Ok(cluster.clone());
    }
    let postgres = Postgres::release(major)?;
    let name = format!("verify-{major}");
    let cluster = Arc::new(Cluster::start_of(&postgres, &name, TEST_SETTINGS)?);
    running.push((major, cluster.clone()));
    Ok(cluster)
}

/// How long it may take until everything has arrived once nobody writes any more.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// A key: its columns, their names, and the values of row `n`.
struct Key {
    columns: &'static str,
    names: &'static str,
    values: &'static str,
    /// The type of its first column can be hashed.
    hashes: bool,
}

const fn key(columns: &'static str, names: &'static str, values: &'static str) -> Key {
    Key {
        columns,
        names,
        values,
        hashes: true,
    }
}

const KEYS: [Key; 22] = [
    key("k int", "k", "n"),
    key("k bigint, l smallint", "k, l", "n / 7, n % 7"),
    key("k smallint, l int", "k, l", "n % 5, -n"),
    key("k text collate \"C\"", "k", "'k' || n"),
    key("k text", "k", "'K ' || n"),
    key("k text, l int", "k, l", "'k ''\\' || n % 3, n"),
    key("k varchar(20)", "k", "chr(224 + n % 20) || n"),
    key("k char(12)", "k", "'k' || n"),
    key("k uuid", "k", "md5(n::text)::uuid"),
    key("k numeric", "k", "n / 10.0"),
    key("k float8", "k", "n / 3.0 - 100"),
    key(
        "k date, l bool, m int",
        "k, l, m",
        "date '2024-01-01' + n % 400, n % 2 = 0, n",
    ),
    key(
        "k timestamptz",
        "k",
        "timestamptz '2024-01-01' + n * interval '1 s'",
    ),
    key(
        "k timestamp, l text",
        "k, l",
        "timestamp '2024-01-01' + n * interval '1 us', 'l'",
    ),
    key("k interval", "k", "n * interval '1 minute'"),
    key("k bytea", "k", "int4send(n)"),
    key("k inet", "k", "inet '10.0.0.0' + n"),
    key("k jsonb", "k", "jsonb_build_object('k', n)"),
    key("k int[]", "k", "array[n % 10, n]"),
    key(
        "k mood, l int",
        "k, l",
        "case when n % 2 = 0 then 'good'::mood else 'bad' end, n",
    ),
    key("k int4range", "k", "int4range(n, n + 2)"),
    Key {
        hashes: false,
        ..key("k bit(32)", "k", "n::bit(32)")
    },
];

/// A column: its types here and there, a value here, how that stands there once it was delivered, and values
/// there that are not the same.
type Kind = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const KINDS: [Kind; 39] = [
    ("text", "text", "'a'", "'a'", &["'a '", "'A'", "''", "'á'"]),
    ("text", "text", "''", "''", &["' '"]),
    (
        "text",
        "text",
        "repeat('long ', 2000)",
        "repeat('long ', 2000)",
        &["repeat('long ', 1999)"],
    ),
    (
        "text",
        "varchar(6)",
        "'ab          '",
        "'ab    '",
        &["'ab'", "'ab   '"],
    ),
    ("varchar(5)", "text", "'a'", "'a'", &["'a '", "''"]),
    ("char(3)", "char(3)", "'a'", "'a'", &["'b'", "''"]),
    ("char(3)", "char(5)", "'a'", "'a'", &["'ab'"]),
    ("numeric", "numeric", "1.0", "1.0", &["1.00", "1", "'nan'"]),
    (
        "numeric(20,10)",
        "numeric(20,10)",
        "0",
        "0",
        &["0.0000000001"],
    ),
    ("numeric", "numeric(10,1)", "1.25", "1.3", &["1.2", "1.4"]),
    ("int", "numeric(10,2)", "5", "5.00", &["5.01"]),
    ("int", "bigint", "7", "7", &["8", "-7"]),
    ("int", "text", "7", "'7'", &["'07'", "' 7'"]),
    ("float8", "float8", "0", "0", &["'-0'", "1e-300"]),
    (
        "float8",
        "float8",
        "0.1",
        "0.1",
        &["0.10000000000000002", "'nan'"],
    ),
    ("float8", "float8", "'nan'", "'nan'", &["'inf'"]),
    ("float4", "float4", "1", "1", &["1.0000001"]),
    ("float4", "float8", "0.1", "0.1", &["0.10000000149011612"]),
    (
        "json",
        "json",
        r#"'{"a":1,"b":2}'"#,
        r#"'{"a":1,"b":2}'"#,
        &[r#"'{"b":2,"a":1}'"#],
    ),
    (
        "jsonb",
        "jsonb",
        r#"'{"b":1,"a":1}'"#,
        r#"'{"a":1, "b":1}'"#,
        &[r#"'{"a":1,"b":1.0}'"#],
    ),
    (
        "timestamptz",
        "timestamptz",
        "'2024-01-01 00:00:00.000001+00'",
        "'2024-01-01 01:00:00.000001+01'",
        &["'2024-01-01 00:00:00+00'", "'infinity'"],
    ),
    (
        "timestamp",
        "timestamp",
        "'infinity'",
        "'infinity'",
        &["'-infinity'"],
    ),
    (
        "timestamp",
        "date",
        "'2024-05-06 07:08:09'",
        "'2024-05-06'",
        &["'2024-05-07'"],
    ),
    (
        "date",
        "date",
        "'2024-02-29'",
        "'2024-02-29'",
        &["'2024-03-01'"],
    ),
    (
        "timetz",
        "timetz",
        "'12:00+00'",
        "'12:00+00'",
        &["'13:00+01'"],
    ),
    (
        "interval",
        "interval",
        "'1 month'",
        "'1 month'",
        &["'30 days'"],
    ),
    (
        "int[]",
        "int[]",
        "'{1,2}'",
        "'{1,2}'",
        &["'[0:1]={1,2}'", "'{1,2,null}'"],
    ),
    (
        "text[]",
        "text[]",
        "'{NULL}'",
        "'{NULL}'",
        &[r#"'{"NULL"}'"#, "'{}'"],
    ),
    (
        "bytea",
        "bytea",
        r"'\x00'",
        r"'\x00'",
        &[r"'\x0000'", r"'\x'"],
    ),
    ("bit(3)", "bit(3)", "'101'", "'101'", &["'100'"]),
    ("varbit", "varbit", "'1'", "'1'", &["'10'"]),
    (
        "inet",
        "inet",
        "'10.0.0.1'",
        "'10.0.0.1/32'",
        &["'10.0.0.1/24'"],
    ),
    (
        "uuid",
        "text",
        "'a0eebc999c0b4ef8bb6d6bb9bd380a11'",
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        &["''"],
    ),
    (
        "int4range",
        "int4range",
        "'[1,2]'",
        "'[1,3)'",
        &["'[1,4)'", "'empty'"],
    ),
    ("bool", "bool", "true", "true", &["false"]),
    ("mood", "mood", "'good'", "'good'", &["'bad'"]),
    ("mood", "text", "'good'", "'good'", &["'Good'"]),
    (
        "pair",
        "pair",
        "'(1,x)'",
        "'(1,x)'",
        &["'(1,)'", "'(1,\"\")'"],
    ),
    ("point", "point", "'(0,0)'", "'(0,0)'", &["'(-0,0)'"]),
];

/// Whether every value there can be written here, and is the same there again.
fn comes_back((here, there, ..): &Kind) -> bool {
    const WIDER: [(&str, &str); 6] = [
        ("text", "varchar(6)"),
        ("varchar(5)", "text"),
        ("char(3)", "char(5)"),
        ("numeric", "numeric(10,1)"),
        ("int", "bigint"),
        ("timestamp", "date"),
    ];
    here == there || WIDER.contains(&(*here, *there))
}

/// Plays the rounds.
///
/// # Errors
/// A round in which something else is told than what was planted, or in which differences are left; with what
/// it was about.
pub fn run(plan: Plan, tell: &mut dyn FnMut(String)) -> Result<()> {
    for number in plan.from..plan.from + plan.rounds {
        let began = Instant::now();
        let mut round = Round::begin(plan, number)?;
        let played = round.play();
        let line = format!("round {number}: {}", round.history.join("; "));
        played.with_context(|| format!("seed {}, {line}", plan.seed))?;
        tell(format!("{line}; {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(())
}

struct Round {
    rng: Rng,
    fixture: Fixture,
    /// What is in between; it ends with the round.
    _pooler: Option<Pooler>,
    mode: &'static str,
    policy: &'static str,
    key: &'static Key,
    columns: Vec<&'static Kind>,
    rows: u64,
    /// Rows whose `n` is no multiple are left as they are; others may be spoiled.
    every: u64,
    /// So many are spoiled at most.
    most_spoiled: u64,
    /// See [`Plan::sweeps`].
    sweeps: bool,
    /// Triggers have a condition: one row in four is not sent.
    is_filtered: bool,
    /// Has a column here that is not sent, one of another name there, and one there that comes from nowhere.
    is_mapped: bool,
    history: Vec<String>,
}

fn reported(error: postgres::Error) -> anyhow::Error {
    anyhow!(describe(&error))
}

/// Rows as text, columns parted by `|`.
fn query(client: &mut Client, sql: &str) -> Result<Vec<String>, postgres::Error> {
    let messages = client.simple_query(sql)?;
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("~"));
            Some(values.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

fn execute(side: &Side, sql: &str) -> Result<()> {
    let mut client = side.connect().map_err(reported)?;
    client
        .batch_execute(sql)
        .map_err(|error| reported(error).context(sql.chars().take(2_000).collect::<String>()))
}

/// As what arrives is written, so that it is not captured.
fn unseen(side: &Side, sql: &str) -> Result<()> {
    execute(side, &format!("set application_name = 'pg_rowsync'; {sql}"))
}

impl Round {
    fn begin(plan: Plan, number: u64) -> Result<Round> {
        let mut rng = Rng::new(plan.seed, number);
        let mut fixture = Fixture::new("verify");
        // One of several: by chance, or by the round's number.
        let mut choose = |several: u64| {
            let chance = rng.roll(several);
            if plan.sweeps {
                number % several
            } else {
                chance
            }
        };
        let place = PLACES[choose(2 * PLACES.len() as u64) as usize % PLACES.len()];
        let place = if plan.sweeps || choose(2) == 0 {
            place
        } else {
            Place::Alike
        };
        let pool_mode = [
            None,
            Some(PoolMode::Session),
            None,
            Some(PoolMode::Transaction),
        ][choose(4) as usize];
        let key = &KEYS[choose(SWEEP) as usize];
        let policy = ["overwrite", "newest", "overwrite", "skip", "error"][choose(5) as usize];
        // Keys that cannot be hashed are refused under `newest`.
        let policy = if key.hashes { policy } else { "overwrite" };
        let mode = ["async", "sync", "async", "queue"][choose(4) as usize];
        let is_filtered = policy != "newest" && choose(10) < 3;
        let is_mapped = choose(5) < 2;
        if place != Place::Alike {
            let there = place.side(&fixture.right.user.replace("remote", "elsewhere"))?;
            std::mem::replace(&mut fixture.right, there).drop()?;
        }
        let pooler = pool_mode
            .map(|mode| Pooler::start(&[&fixture.right], mode, &[IGNORE_OPTIONS]))
            .transpose()?;
        let port = pooler
            .as_ref()
            .map_or(fixture.right.cluster.port(), Pooler::port);
        fixture.left.link(&fixture.right, port, "dst", &[])?;
        let columns = if plan.sweeps {
            KINDS.iter().collect()
        } else {
            (0..1 + rng.roll(8)).map(|_| rng.pick(&KINDS)).collect()
        };
        let mut round = Round {
            mode,
            policy,
            key,
            columns,
            rows: if plan.sweeps {
                3_000
            } else {
                *rng.pick(&[0, 1, 40, 700, 3_000, 12_000])
            },
            every: if plan.sweeps { 3 } else { 2 + rng.roll(60) },
            most_spoiled: if plan.sweeps { 1_000 } else { 400 },
            sweeps: plan.sweeps,
            is_filtered,
            is_mapped,
            rng,
            fixture,
            _pooler: pooler,
            history: Vec::new(),
        };
        let kinds: Vec<String> = (round.columns.iter())
            .map(|kind| format!("{} to {}", kind.0, kind.1))
            .collect();
        round.history.push(format!(
            "{} rows, target {place:?}, key {}, {}, mode {}, policy {policy}{}{}{}",
            round.rows,
            round.key.columns,
            if plan.sweeps {
                "every column".to_owned()
            } else {
                kinds.join(", ")
            },
            round.mode,
            pool_mode.map_or(String::new(), |mode| format!(", pooled by {mode:?}")),
            if round.is_filtered { ", filtered" } else { "" },
            if round.is_mapped { ", mapped" } else { "" },
        ));
        round.build()?;
        Ok(round)
    }

    /// The name there of a column here.
    fn name_there(&self, at: usize) -> String {
        if self.is_mapped && at == 0 {
            "renamed".to_owned()
        } else {
            format!("c{at}")
        }
    }

    fn build(&mut self) -> Result<()> {
        let mut here = format!("{}, n int, w int, ver bigint, f bool", self.key.columns);
        let mut there = here.clone();
        for (at, (kind_here, kind_there, ..)) in self.columns.iter().enumerate() {
            write!(here, ", c{at} {kind_here}")?;
            write!(there, ", {} {kind_there}", self.name_there(at))?;
        }
        if self.is_mapped {
            here.push_str(", secret text default 's', g int generated always as (w * 2) stored");
            there.push_str(", own text default 'own', g int");
        }
        let types =
            "create type mood as enum ('good', 'bad'); create type pair as (a int, b text);";
        for (side, columns) in [(&self.fixture.left, here), (&self.fixture.right, there)] {
            let primary = format!("primary key ({})", self.key.names);
            let is_parted = self.key.hashes && self.rng.chance(25);
            let table = if is_parted {
                let first = self.key.names.split(',').next().unwrap_or_default();
                let parts: String = (0..3)
                    .map(|part| {
                        format!(
                            "create table t{part} partition of t
                               for values with (modulus 3, remainder {part});"
                        )
                    })
                    .collect();
                self.history.push(format!("partitioned {}", side.user));
                format!(
                    "create table t ({columns}, {primary}) partition by hash ({first}); {parts}"
                )
            } else {
                format!("create table t ({columns}, {primary});")
            };
            execute(side, &format!("{types} {table} create index on t (n)"))?;
        }
        self.attach()?;
        let rows = self.rows;
        unseen(
            &self.fixture.left,
            &self.fill_here(&format!("generate_series(1, {rows}) n")),
        )?;
        let those = if self.is_filtered {
            "where n % 4 <> 0"
        } else {
            ""
        };
        let rows_there = format!("generate_series(1, {rows}) n {those}");
        execute(&self.fixture.right, &self.fill_there(&rows_there))?;
        if self.is_mapped {
            execute(&self.fixture.right, "update t set own = n, g = n")?;
        }
        if self.is_filtered {
            // Rows there that the condition leaves out, whatever they are.
            let noise =
                format!("generate_series(1, {rows}, 12) m, lateral (select m / 4 * 4 + 4 as n) x");
            let noise = self.fill_there(&noise);
            execute(
                &self.fixture.right,
                &format!("{noise}; update t set w = -1 where not f"),
            )?;
        }
        execute(&self.fixture.left, "analyze t")
    }

    fn attach(&self) -> Result<()> {
        let mut options = format!(
            r#""mode": "{}", "on_conflict": "{}""#,
            self.mode, self.policy
        );
        if self.policy == "newest" {
            options.push_str(r#", "version_column": "ver""#);
        }
        if self.is_mapped {
            options.push_str(r#", "exclude": ["secret"], "rename": {"c0": "renamed"}"#);
        }
        let schema = &self.fixture.right.user;
        if !self.is_filtered {
            let call = format!("select attach_sync('t', 'dst', '{schema}.t', '{{{options}}}')");
            return execute(&self.fixture.left, &call);
        }
        for (event, row) in [("insert", "new"), ("update", "new"), ("delete", "old")] {
            let trigger = format!(
                "create trigger s_{event} after {event} on t for each row when ({row}.f)
                   execute function sync_dml('dst', '{schema}', 't', '{{{options}}}')"
            );
            execute(&self.fixture.left, &trigger)?;
        }
        Ok(())
    }

    /// Rows as they are here at first: those of the numbers `n` of a FROM clause.
    fn fill_here(&self, from: &str) -> String {
        self.fill(from, |at| {
            (format!("c{at}"), self.columns[at].0, self.columns[at].2)
        })
    }

    /// The same rows as they are there.
    fn fill_there(&self, from: &str) -> String {
        self.fill(from, |at| {
            (self.name_there(at), self.columns[at].1, self.columns[at].3)
        })
    }

    fn fill(
        &self,
        from: &str,
        column: impl Fn(usize) -> (String, &'static str, &'static str),
    ) -> String {
        let mut names = String::new();
        let mut values = String::new();
        for (name, kind, value) in (0..self.columns.len()).map(column) {
            let _ = write!(names, ", {name}");
            let _ = write!(values, ", case when n % 7 <> 0 then ({value})::{kind} end");
        }
        format!(
            "insert into t ({}, n, w, ver, f{names}) select {}, n, 0, 1, n % 4 <> 0{values} from {from}
               on conflict do nothing",
            self.key.names, self.key.values
        )
    }

    /// Spoils rows on both sides; what `verify_sync` has to tell of it.
    fn plant(&mut self) -> Result<BTreeSet<String>> {
        let mut here = String::new();
        let mut there = String::new();
        let mut expected = BTreeSet::new();
        let mut spoiled = 0;
        for n in (1..=self.rows).filter(|n| n % self.every == 0) {
            if self.is_filtered && n % 4 == 0 || spoiled == self.most_spoiled {
                continue;
            }
            let all = self.columns.len() as u64;
            let mut at = self.rng.roll(all) as usize;
            let mut way = self.rng.roll(6);
            let mut which = self.rng.roll(60);
            if self.sweeps {
                at = (spoiled % all) as usize;
                (way, which) = (spoiled / all % 6, spoiled / all / 6 + spoiled / all % 2);
            }
            spoiled += 1;
            let (kind_here, kind_there, value, alike, others) = self.columns[at];
            let name = self.name_there(at);
            let is_null = n % 7 == 0;
            let other = others[which as usize % others.len()];
            match way {
                0 => {
                    writeln!(there, "delete from t where n = {n};")?;
                    expected.insert(format!("missing|{n}|{{}}"));
                }
                1 => {
                    writeln!(here, "delete from t where n = {n};")?;
                    expected.insert(format!("extra|{n}|{{}}"));
                }
                2 => {
                    // The row has another key there.
                    let names = self.key.names;
                    let values = self.moved_key();
                    writeln!(there, "update t set ({names}) = ({values}) where n = {n};")?;
                    expected.insert(format!("missing|{n}|{{}}"));
                    expected.insert(format!("extra|{n}|{{}}"));
                }
                3 if kind_here == kind_there => {
                    let to = if is_null { value } else { other };
                    writeln!(
                        here,
                        "update t set c{at} = ({to})::{kind_here} where n = {n};"
                    )?;
                    expected.insert(format!("differs|{n}|{{c{at}}}"));
                }
                4 if !is_null => {
                    writeln!(there, "update t set {name} = null where n = {n};")?;
                    expected.insert(format!("differs|{n}|{{c{at}}}"));
                }
                _ => {
                    let to = if is_null { alike } else { other };
                    writeln!(
                        there,
                        "update t set {name} = ({to})::{kind_there} where n = {n};"
                    )?;
                    expected.insert(format!("differs|{n}|{{c{at}}}"));
                }
            }
        }
        for n in self.rows + 1..self.rows + 1 + self.rng.roll(8) {
            if self.is_filtered && n % 4 == 0 {
                continue;
            }
            let one = format!("generate_series({n}, {n}) n");
            if self.rng.chance(50) {
                writeln!(here, "{};", self.fill_here(&one))?;
                expected.insert(format!("missing|{n}|{{}}"));
            } else {
                writeln!(there, "{};", self.fill_there(&one))?;
                expected.insert(format!("extra|{n}|{{}}"));
            }
        }
        unseen(&self.fixture.left, &here)?;
        execute(&self.fixture.right, &there)?;
        self.history.push(format!("{} differences", expected.len()));
        Ok(expected)
    }

    /// The key of a row that has moved: that of a row of a number that no row has.
    fn moved_key(&self) -> String {
        format!(
            "select {} from (select t.n + 100000 as n) x",
            self.key.values
        )
    }

    fn play(&mut self) -> Result<()> {
        let expected = self.plant()?;
        let writes = self.rows >= 40 && (self.sweeps || self.rng.chance(50));
        if self.mode == "queue" {
            self.superuser("select start_sync_worker()")?;
        }
        let stop = AtomicBool::new(false);
        let seed = self.rng.roll(1 << 40);
        let writer = self.writer();
        let side = self.fixture.left.clone();
        let played = thread::scope(|scope| {
            let writers: Vec<_> = (0..if writes { WRITERS } else { 0 })
                .map(|number| {
                    let side = &side;
                    let stop = &stop;
                    let writer = &writer;
                    scope.spawn(move || writer.write(side, stop, Rng::new(seed, number)))
                })
                .collect();
            let checked = self.check_and_repair(&expected);
            stop.store(true, Ordering::Relaxed);
            let mut done = 0;
            for writer in writers {
                done += writer.join().map_err(|_| anyhow!("a writer panicked"))??;
            }
            if writes {
                self.history.push(format!("{done} transactions beside"));
            }
            checked
        });
        played?;
        self.settle()?;
        // What the writers' and the repair's deadlocks have left.
        let mut client = self.fixture.left.connect().map_err(reported)?;
        self.repair(&mut client, r#"{"direction": "to_server"}"#)?;
        self.settle()?;
        let left = self.verify(&mut client, "")?;
        ensure!(left.is_empty(), "left after the repair: {left:?}");
        self.ensure_equal()?;
        if self.mode == "queue" {
            self.superuser("select stop_sync_worker()")?;
        }
        Ok(())
    }

    fn superuser(&self, sql: &str) -> Result<()> {
        let mut client = self.fixture.left.connect_superuser().map_err(reported)?;
        client.batch_execute(sql).map_err(reported)
    }

    fn writer(&self) -> Writer {
        Writer {
            rows: self.rows,
            every: self.every,
            insert: self.fill_here("generate_series(1, 1) m, lateral (select $N as n) x"),
        }
    }

    fn check_and_repair(&mut self, expected: &BTreeSet<String>) -> Result<()> {
        let mut client = self.fixture.left.connect().map_err(reported)?;
        self.expect(&mut client, "", expected)?;
        let of = |expected: &BTreeSet<String>, wanted: fn(u64) -> bool| -> BTreeSet<String> {
            let n = |line: &String| line.split('|').nth(1).and_then(|n| n.parse().ok());
            (expected
                .iter()
                .filter(|line| n(line).is_some_and(wanted))
                .cloned())
            .collect()
        };
        if self.rng.chance(50) {
            let filter = if self.is_filtered { " and f" } else { "" };
            let options = format!(r#", "where": "n % 3 = 0{filter} -- every third""#);
            let third = of(expected, |n| n % 3 == 0);
            self.expect(&mut client, &options, &third)?;
            self.expect(&mut client, r#", "values": false"#, expected)?;
        }
        let mut directions = vec!["to_server"];
        if self.columns.iter().all(|kind| comes_back(kind)) {
            directions.push("from_server");
            if self.policy == "newest" {
                directions.push("newest");
            }
        }
        let direction = *self.rng.pick(&directions);
        // Each call reads the table.
        let least = 1 + expected.len() / 12;
        let batch = *self.rng.pick(&[least, 10 + least, 10_000]);
        self.history
            .push(format!("repaired {direction}, {batch} at a time"));
        let options = format!(r#""direction": "{direction}", "max_differences": {batch}"#);
        let dry = self.repair_once(&mut client, &format!(r#"{{{options}, "dry_run": true}}"#))?;
        ensure!(
            dry == expected.len().min(batch),
            "{dry} of {} would be repaired",
            expected.len()
        );
        self.expect(&mut client, "", expected)?;
        self.repair(&mut client, &format!("{{{options}}}"))
    }

    /// Repairs until there is nothing to do.
    fn repair(&self, client: &mut Client, options: &str) -> Result<()> {
        let end = Instant::now() + MAX_WAIT;
        while self.repair_once(client, options)? > 0 {
            ensure!(
                Instant::now() < end,
                "the repair comes to no end: {options}"
            );
        }
        Ok(())
    }

    /// The number of differences that were dealt with.
    fn repair_once(&self, client: &mut Client, options: &str) -> Result<usize> {
        let call = format!(
            "select difference, key, action from repair_sync('t', 'dst', '{options}') where action <> 'left'"
        );
        loop {
            match query(client, &call) {
                Ok(rows) => return Ok(rows.len()),
                // Two that lock each other's rows are told so; it is tried again.
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                Err(error) => return Err(reported(error).context(call)),
            }
        }
    }

    fn verify(&self, client: &mut Client, options: &str) -> Result<Vec<String>> {
        // Without values, the row is found by its key here or there.
        let call = format!(
            r#"select difference, coalesce(local_row, remote_row) ->> 'n', columns
                 from verify_sync('t', 'dst', '{{"max_differences": 100000{options}}}')"#
        );
        query(client, &call).map_err(reported).context(call)
    }

    fn expect(
        &self,
        client: &mut Client,
        options: &str,
        expected: &BTreeSet<String>,
    ) -> Result<()> {
        let mut seen = self.verify(client, options)?;
        let mut expected: Vec<String> = expected.iter().cloned().collect();
        if options.contains("values") {
            let without_number = |line: String| {
                let mut parts = line.split('|');
                let kind = parts.next();
                let columns = parts.next_back();
                format!(
                    "{}|~|{}",
                    kind.unwrap_or_default(),
                    columns.unwrap_or_default()
                )
            };
            expected = expected.into_iter().map(without_number).collect();
        }
        expected.sort();
        seen.sort();
        let missed: Vec<_> = expected.iter().filter(|one| !seen.contains(one)).collect();
        let false_ones: Vec<_> = seen.iter().filter(|one| !expected.contains(one)).collect();
        ensure!(
            seen == expected,
            "{} told, {} planted; not told: {missed:?}; told and not planted: {false_ones:?}; options {options}",
            seen.len(),
            expected.len()
        );
        Ok(())
    }

    /// Waits until all that was captured has arrived.
    fn settle(&self) -> Result<()> {
        let end = Instant::now() + MAX_WAIT;
        while self.fixture.left.queued().map_err(reported)? > 0 {
            ensure!(Instant::now() < end, "the queue does not get empty");
            self.superuser("select deal_sync_err_rec(1000)")?;
        }
        Ok(())
    }

    /// Compares all columns that have one type on both sides, by means of its own.
    fn ensure_equal(&self) -> Result<()> {
        let mut names = [format!("{}, n, w, ver", self.key.names), String::new()];
        names[1] = names[0].clone();
        for (at, kind) in self.columns.iter().enumerate() {
            if kind.0 == kind.1 {
                write!(names[0], ", c{at}")?;
                write!(names[1], ", {}", self.name_there(at))?;
            }
        }
        let those = if self.is_filtered { "where f" } else { "" };
        let look = |side: &Side, names: &str| -> Result<Vec<String>> {
            let sql = format!("select row({names})::text from t {those} order by n, 1");
            query(&mut side.connect().map_err(reported)?, &sql).map_err(reported)
        };
        let here = look(&self.fixture.left, &names[0])?;
        let there = look(&self.fixture.right, &names[1])?;
        let first = here.iter().zip(&there).find(|(here, there)| here != there);
        ensure!(
            here == there,
            "{} rows here, {} there, first different: {first:?}",
            here.len(),
            there.len()
        );
        Ok(())
    }
}

/// Changes rows that are not spoiled.
struct Writer {
    rows: u64,
    every: u64,
    /// Inserts row `$N`.
    insert: String,
}

impl Writer {
    /// Until it is told to stop; the number of transactions.
    fn write(&self, side: &Side, stop: &AtomicBool, mut rng: Rng) -> Result<u64> {
        let mut client = side.connect().map_err(reported)?;
        let clock = "(extract(epoch from clock_timestamp()) * 1000000)::bigint";
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            let n = 1 + rng.roll(self.rows);
            if n.is_multiple_of(self.every) {
                continue;
            }
            let sql = match rng.roll(5) {
                0 => format!("delete from t where n = {n}"),
                1 => {
                    let insert = self.insert.replace("$N", &n.to_string());
                    insert.replace("n, 0, 1, n % 4", &format!("n, 0, {clock}, n % 4"))
                }
                _ => format!("update t set w = w + 1, ver = {clock} where n = {n}"),
            };
            match client.batch_execute(&sql) {
                Ok(()) => done += 1,
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                Err(error) => return Err(reported(error).context(sql)),
            }
            rng.pause(15, 55);
        }
        Ok(done)
    }
}
