//! `cargo test-all [arguments]`: sets the machine up, runs the unit tests of the extension and all
//! tests of this crate, and ends with one line, `N passed, N failed`.
//!
//! Arguments go to both `cargo test` commands: a name to filter by, or `-- --nocapture`.
//! `cargo test-all --env` only prints, for a shell, what other cargo commands need.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use rowsync_harness::setup;

#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        println!("0 passed, 1 failed");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments == ["--env"] {
        let postgres = setup::Postgres::find()?;
        println!("export PGRX_PG_CONFIG_PATH='{}'", postgres.pg_config.display());
        println!("FEATURES='{}'", postgres.features().join(" "));
        return Ok(ExitCode::SUCCESS);
    }
    let postgres = setup::prepare_with_faults()?;
    let mut count = Count::default();
    let mut extension = setup::cargo();
    extension.args(["test", "--package", "pg_rowsync", "--lib", "--no-fail-fast"]);
    extension.args(postgres.features());
    let mut harness = setup::cargo();
    harness.args(["test", "--package", "pg_rowsync-tests", "--no-fail-fast"]);
    for mut command in [extension, harness] {
        count.add(command.args(&arguments).envs(postgres.env()))?;
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Count {
    /// Runs one `cargo test`, passing its output on. A run that fails without a failed test (it did
    /// not build, or it crashed) counts as one failure.
    fn add(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("could not run cargo")?;
        let output = child.stdout.take().context("no output of cargo")?;
        let before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            let Some(result) = line.strip_prefix("test result: ") else { continue };
            for part in result.split(['.', ';']) {
                match part.split_whitespace().collect::<Vec<_>>()[..] {
                    [number, "passed"] => self.passed += number.parse::<u64>()?,
                    [number, "failed"] => self.failed += number.parse::<u64>()?,
                    _ => {}
                }
            }
        }
        if !child.wait()?.success() && self.failed == before {
            self.failed += 1;
        }
        Ok(())
    }
}
