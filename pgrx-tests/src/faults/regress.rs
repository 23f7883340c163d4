//! PostgreSQL's own regression files, or others like them, with every table attached.
//!
//! psql runs each file against a database whose ordinary tables are given a key, where they have
//! none, and are attached as they are made; definitions go to both sides, and both are compared
//! after every statement that writes. The output of each file is compared with that of a run
//! without the extension, in which the tables have the same keys and triggers of the same names
//! that do nothing. Differences that are known are in [`explained`]; any other fails.

mod explained;
mod mirror;
mod relay;
mod statement;
mod tally;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, TEST_SETTINGS};
use crate::faults::rig::Mode;
use crate::setup::{self, Postgres};
use mirror::{DATABASE, Run, State};
use relay::{Relay, Task};
pub use tally::{Difference, Hunk, Tally};

/// How long a file may take.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);

/// Numbers that the keys of one file's tables are drawn from.
const KEYS_OF_A_FILE: i64 = 10_000_000;

/// Both sides, besides those of every cluster of tests. Plans, and the order of rows with them,
/// must not depend on when autovacuum comes by.
const SETTINGS: [(&str, &str); 4] = [
    ("autovacuum", "off"),
    ("max_connections", "40"),
    ("timezone_abbreviations", "Default"),
    ("jit", "off"),
];

/// Of the database, as pg_regress sets them.
const DATABASE_SETTINGS: [&str; 5] = [
    "lc_messages to 'C'",
    "lc_monetary to 'C'",
    "lc_numeric to 'C'",
    "lc_time to 'C'",
    "bytea_output to 'hex'",
];

const SOURCE: &str = include_str!("regress/source.sql");
const BOTH: &str = include_str!("regress/both.sql");

/// What a run without the extension has in its place.
const WITHOUT: &str = "
    create function rowsync.sync_dml() returns trigger language plpgsql as 'begin return null; end';
    create foreign data wrapper pg_rowsync;
    create server dst foreign data wrapper pg_rowsync;
    create user mapping for public server dst;
    grant usage on foreign server dst to public";

/// What is to be run.
pub struct Plan {
    /// Has `sql`, and what the files there read: `data`; the order in `parallel_schedule`, if that
    /// is there.
    pub files: PathBuf,
    /// These only, without their ending; all if empty.
    pub only: Vec<String>,
    pub modes: Vec<Mode>,
    /// Where outputs go.
    pub results: PathBuf,
    /// Outputs without the extension are those of an earlier run, if it has run the same files.
    pub keeps: bool,
}

/// Runs the files once without the extension, and once in each mode.
///
/// # Errors
/// What keeps the files from being run. Differences are in the tallies.
pub fn run(plan: &Plan, reported: &mut dyn FnMut(&str)) -> Result<Vec<(Mode, Tally)>> {
    let files = files(plan)?;
    let libraries = libraries(plan, reported)?;
    fs::create_dir_all(&plan.results)?;
    let fixture_of = |label: &str| RegressFixture {
        plan,
        files: &files,
        libraries: &libraries,
        label: label.to_owned(),
    };
    let without = fixture_of("without");
    if !(plan.keeps && without.is_done()) {
        without.run(None, None, reported)?;
    }
    let mut tallies = Vec::new();
    for mode in &plan.modes {
        let fixture = fixture_of(&mode.to_string());
        let (mut tally, open) = fixture.run(Some(*mode), Some(&without.directory()), reported)?;
        if !open.is_empty() {
            // What changes from one run to the next says nothing.
            let again = fixture_of("without-again");
            if !(plan.keeps && again.is_done()) {
                again.run(None, None, reported)?;
            }
            judge(open, &without.directory(), &again.directory(), &mut tally)?;
        }
        reported(&format!("mode {mode}: {tally}"));
        tallies.push((*mode, tally));
    }
    Ok(tallies)
}

/// The files' names without their ending, in order.
fn files(plan: &Plan) -> Result<Vec<String>> {
    let sql = plan.files.join("sql");
    let schedule = plan.files.join("parallel_schedule");
    let mut all = Vec::new();
    if schedule.exists() {
        for line in fs::read_to_string(&schedule)?.lines() {
            all.extend(
                line.strip_prefix("test:")
                    .unwrap_or("")
                    .split_whitespace()
                    .map(str::to_owned),
            );
        }
    } else {
        for entry in
            fs::read_dir(&sql).with_context(|| format!("no files in \"{}\"", sql.display()))?
        {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned());
            all.extend(stem.filter(|_| path.extension().is_some_and(|end| end == "sql")));
        }
        all.sort();
    }
    all.retain(|one| sql.join(format!("{one}.sql")).exists());
    let is_wanted =
        |one: &String| plan.only.is_empty() || plan.only.contains(one) || one == "test_setup";
    all.retain(is_wanted);
    ensure!(!all.is_empty(), "no such files in \"{}\"", sql.display());
    Ok(all)
}

/// A directory with the libraries that the files load: `regress`, built from its source if that is
/// there, and those of the installation.
fn libraries(plan: &Plan, reported: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let directory = plan.results.join("lib");
    fs::create_dir_all(&directory)?;
    let postgres = Postgres::find()?;
    let ask = |what: &str| -> Result<String> {
        let output = Command::new(&postgres.pg_config).arg(what).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let installed = PathBuf::from(ask("--pkglibdir")?);
    for name in ["autoinc.so", "refint.so"] {
        if installed.join(name).exists() {
            fs::copy(installed.join(name), directory.join(name))?;
        }
    }
    let source = plan.files.join("regress.c");
    let built = source.exists()
        && Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-O1",
                "-w",
                "-I",
                &ask("--includedir-server")?,
                "-o",
            ])
            .arg(directory.join("regress.so"))
            .arg(&source)
            .status()
            .is_ok_and(|status| status.success());
    if !built {
        reported(
            "there is no library \"regress\": what needs it fails, with the extension and without",
        );
    }
    Ok(directory)
}

/// One run of all files.
struct RegressFixture<'p> {
    plan: &'p Plan,
    files: &'p [String],
    libraries: &'p Path,
    label: String,
}

impl RegressFixture<'_> {
    fn directory(&self) -> PathBuf {
        self.plan.results.join(&self.label)
    }

    /// What says that all files were run.
    fn mark(&self) -> PathBuf {
        self.directory().join("done")
    }

    fn is_done(&self) -> bool {
        fs::read_to_string(self.mark()).is_ok_and(|done| done == self.files.join("\n"))
    }

    /// Outputs are held against those in `without`, if there are any.
    fn run(
        &self,
        mode: Option<Mode>,
        without: Option<&Path>,
        reported: &mut dyn FnMut(&str),
    ) -> Result<(Tally, Vec<Open>)> {
        let here = self.start("here")?;
        let there = match mode {
            Some(_) => self.start("there")?,
            None => here.clone(),
        };
        self.prepare(&here, &there, mode)?;
        let directory = here.dir().to_owned();
        // Both servers write and read there.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
        let exchange = directory.join("rows");
        open_directory(&exchange)?;
        // Files of SQL write and read there, under one name in all runs.
        let work = self.plan.results.join("work");
        let _ = fs::remove_dir_all(&work);
        open_directory(&work)?;
        open_directory(&work.join("results"))?;
        fs::create_dir_all(self.directory())?;
        let run = Arc::new(Run {
            here,
            there,
            directory: exchange,
            state: Mutex::new(State::default()),
        });
        let mode_name = match mode.unwrap_or(Mode::Sync) {
            Mode::Async => "async",
            Mode::Queue => "queue",
            Mode::Sync | Mode::Atomic => "sync",
        };
        let task = Task {
            run: run.clone(),
            mode: mode_name,
            is_mirrored: mode.is_some(),
        };
        let relay = Relay::start(task)?;
        let mut open = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            run.state().file.clone_from(file);
            // Keys that one file draws otherwise must not shift those of all that follow.
            let first = (number as i64 + 1) * KEYS_OF_A_FILE;
            run.here
                .superuser(DATABASE)?
                .execute("select setval('rowsync.key', $1)", &[&first])?;
            let start = Instant::now();
            let before = run.state().tally.clone();
            self.run_file(file, &run, relay.port(), &work)?;
            // Nobody else does, and every look at the catalogs would read what is dead in them.
            for cluster in [&run.here, &run.there] {
                cluster.superuser(DATABASE)?.batch_execute(
                    "vacuum pg_class, pg_attribute, pg_index, pg_trigger, pg_depend, pg_type, pg_constraint",
                )?;
            }
            let mut state = run.state();
            state.tally.files += 1;
            if let Some(without) = without {
                let found = compare_outputs(file, without, &self.directory(), &mut state.tally)?;
                for Open { part, .. } in &found {
                    reported(&format!("output of {file} differs:\n{}", part.text));
                }
                open.extend(found);
            }
            let equal = state.tally.equal - before.equal;
            let different = state.tally.different.len() - before.different.len();
            reported(&format!(
                "{} {file}: {equal} equal, {different} different, {:.1} s",
                self.label,
                start.elapsed().as_secs_f64()
            ));
        }
        drop(relay);
        fs::write(self.mark(), self.files.join("\n"))?;
        let tally = run.state().tally.clone();
        Ok((tally, open))
    }

    fn start(&self, side: &str) -> Result<Arc<Cluster>> {
        let settings = [TEST_SETTINGS, &SETTINGS].concat();
        let cluster = Cluster::start_with(&format!("{}-{side}", self.label), &settings)?;
        Ok(Arc::new(cluster))
    }

    fn prepare(&self, here: &Cluster, there: &Cluster, mode: Option<Mode>) -> Result<()> {
        for (cluster, is_source) in [(here, true), (there, false)] {
            if !is_source && mode.is_none() {
                continue;
            }
            cluster
                .superuser("postgres")?
                .batch_execute(&format!("create database {DATABASE} template template0"))?;
            for setting in DATABASE_SETTINGS {
                cluster
                    .superuser("postgres")?
                    .batch_execute(&format!("alter database {DATABASE} set {setting}"))?;
            }
            let mut client = cluster.superuser(DATABASE)?;
            client.batch_execute("create schema rowsync")?;
            client.batch_execute(BOTH)?;
            if is_source {
                match mode {
                    None => client.batch_execute(WITHOUT)?,
                    Some(_) => client.batch_execute(&format!(
                        "create extension pg_rowsync schema rowsync;
                         create server dst foreign data wrapper pg_rowsync
                           options (host '127.0.0.1', port '{}', dbname '{DATABASE}');
                         create user mapping for public server dst
                           options (user 'postgres', password '{}');
                         grant usage on foreign server dst to public",
                        there.port(),
                        there.superuser_password()
                    ))?,
                }
                client.batch_execute(SOURCE)?;
            }
        }
        // As pg_regress has it: the files' own roles have no passwords.
        here.set_authentication("trust")
    }

    fn run_file(&self, file: &str, run: &Run, port: u16, work: &Path) -> Result<()> {
        let sql = self.plan.files.join("sql").join(format!("{file}.sql"));
        let output = File::create(self.directory().join(format!("{file}.out")))?;
        let postgres = Postgres::find()?;
        let mut psql = Command::new(postgres.program("psql"));
        psql.args([
            "-X",
            "-a",
            "-q",
            "-v",
            "HIDE_TABLEAM=on",
            "-v",
            "HIDE_TOAST_COMPRESSION=on",
        ])
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port.to_string(),
            "-d",
            DATABASE,
        ])
        .env("PGPASSWORD", run.here.superuser_password())
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable")
        .env("PGTZ", "PST8PDT")
        .env("PGDATESTYLE", "Postgres, MDY")
        .env("PGOPTIONS", "-c intervalstyle=postgres_verbose")
        .env("PG_ABS_SRCDIR", &self.plan.files)
        .env("PG_ABS_BUILDDIR", work)
        .env("PG_LIBDIR", self.libraries)
        .env("PG_DLSUFFIX", ".so")
        .env("LC_ALL", "C")
        .env_remove("LANGUAGE")
        .current_dir(work)
        .stdin(File::open(&sql)?)
        .stdout(output.try_clone()?)
        .stderr(output);
        let mut child = psql.spawn().context("could not run psql")?;
        let deadline = Instant::now() + FILE_TIMEOUT;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                run.state()
                    .tally
                    .broken
                    .push(format!("{file}: not done within {FILE_TIMEOUT:?}"));
                break;
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn open_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    Ok(fs::set_permissions(
        directory,
        fs::Permissions::from_mode(0o777),
    )?)
}

/// A part of an output that is not as in another one: lines of the other one, and both texts.
struct Part {
    lines: std::ops::Range<usize>,
    text: String,
}

/// Holds a file's output against that without the extension; what nothing explains yet.
fn compare_outputs(
    file: &str,
    without: &Path,
    with: &Path,
    tally: &mut Tally,
) -> Result<Vec<Open>> {
    let name = format!("{file}.out");
    let parts = diff(&without.join(&name), &with.join(&name))?;
    tally.same_outputs += usize::from(parts.is_empty());
    let mut open = Vec::new();
    for part in parts {
        match explained::of_output(file, &part.text) {
            Some(reason) => *tally.explained_hunks.entry(reason).or_default() += 1,
            None => open.push(Open {
                file: file.to_owned(),
                part,
            }),
        }
    }
    Ok(open)
}

/// Leaves what another run without the extension has otherwise, too.
fn judge(open: Vec<Open>, without: &Path, again: &Path, tally: &mut Tally) -> Result<()> {
    for Open { file, part } in open {
        let name = format!("{file}.out");
        let varying = diff(&without.join(&name), &again.join(&name))?;
        let is_near = |other: &Part| {
            other.lines.start <= part.lines.end && part.lines.start <= other.lines.end
        };
        if varying.iter().any(is_near) {
            *tally.explained_hunks.entry(VARIES).or_default() += 1
        } else {
            tally.hunks.push(Hunk {
                file,
                lines: part.text,
            })
        }
    }
    Ok(())
}

/// A part that nothing explains so far.
struct Open {
    file: String,
    part: Part,
}

const VARIES: &str = "changes from run to run, without the extension too";

fn diff(one: &Path, other: &Path) -> Result<Vec<Part>> {
    let normal = |path: &Path| -> Result<PathBuf> {
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let text = text.replace(r#""mode":"async""#, r#""mode":"sync" "#);
        let text = text.replace(r#""mode":"queue""#, r#""mode":"sync" "#);
        let normal = path.with_extension("normal");
        fs::write(&normal, text)?;
        Ok(normal)
    };
    let output = Command::new("diff")
        .args(["--text", "-U", "3"])
        .args([normal(one)?, normal(other)?])
        .output()
        .context("could not run diff")?;
    ensure!(
        output.status.code().is_some_and(|code| code < 2),
        "diff failed"
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts: Vec<Part> = Vec::new();
    for line in text.lines().skip(2) {
        match line.strip_prefix("@@ -") {
            Some(head) => {
                let numbers = head.split(' ').next().unwrap_or_default();
                let (start, count) = numbers.split_once(',').unwrap_or((numbers, "1"));
                let (start, count): (usize, usize) = (start.parse()?, count.parse()?);
                parts.push(Part {
                    lines: start..start + count,
                    text: String::new(),
                });
            }
            None => {
                if let Some(part) = parts.last_mut() {
                    part.text.push_str(line);
                    part.text.push('\n');
                }
            }
        }
    }
    Ok(parts)
}

/// Where outputs go, unless said otherwise.
pub fn default_results() -> PathBuf {
    setup::target().join("regress")
}
