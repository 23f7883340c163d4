//! `cargo bench-peers`: what pg_rowsync costs next to its peers, on the same two clusters, with fsync on.
//! Sets the machine up first, as the other commands do.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use rowsync_harness::arguments::{Arguments, exit_code};
use rowsync_harness::bench::contender::Contender;
use rowsync_harness::bench::machine::Machine;
use rowsync_harness::bench::plan::Plan;
use rowsync_harness::bench::report::Report;
use rowsync_harness::bench::run::Run;
use rowsync_harness::bench::{chart, groups};
use rowsync_harness::setup;

fn usage() -> String {
    format!(
        "usage:
  cargo bench-peers [--rounds 5] [--seconds 2] [--contenders none,recipe,fdw,native,async,sync,queue]
                    [--bucardo] [--only GROUP] [--quick] [--slow] [--flush MILLISECONDS]
                    [--json FILE] [--svg FILE]
      --seconds is for each run of pgbench; --quick: small sizes, to see that all works; --slow: those
      too that take more than a minute for one statement, and 10,000,000 rows compared; --bucardo: with
      Bucardo, which apt installs; --flush: every flush takes so much longer, as on disks of a network
      groups: {}
  cargo bench-peers --from FILE [--svg FILE]
      prints, and draws, what a run has written with --json",
        groups::group_names().join(", ")
    )
}

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<()> {
    let mut arguments = Arguments::new(std::env::args().skip(1));
    let svg: Option<PathBuf> = arguments.take("svg")?;
    let from: Option<PathBuf> = arguments.take("from")?;
    let report = match from {
        Some(file) => {
            arguments.end(&usage())?;
            Report::read(&file)?
        }
        None => measure(&mut arguments)?,
    };
    println!("\n{}", report.text()?);
    if let Some(file) = svg {
        chart::write(&report, &file)?;
    }
    Ok(())
}

fn measure(arguments: &mut Arguments) -> Result<Report> {
    let mut plan = if arguments.flag("quick") {
        Plan::quick()
    } else {
        Plan::full()
    };
    plan.rounds = arguments.take("rounds")?.unwrap_or(plan.rounds);
    plan.seconds = arguments.take("seconds")?.unwrap_or(plan.seconds);
    plan.slow = arguments.flag("slow");
    plan.flush = (arguments.take::<f64>("flush")?.unwrap_or(0.0) * 1000.0) as u64;
    plan.only = arguments.take("only")?;
    if let Some(names) = arguments.take::<String>("contenders")? {
        plan.contenders = names
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<Contender>>>()?;
    }
    if arguments.flag("bucardo") {
        plan.contenders.push(Contender::Bucardo);
    }
    plan.contenders.sort();
    plan.contenders.dedup();
    let json: Option<PathBuf> = arguments.take("json")?;
    arguments.end(&usage())?;
    ensure!(
        plan.rounds > 0 && plan.seconds > 0,
        "--rounds and --seconds: at least 1"
    );

    setup::prepare()?;
    let mut run = Run::start(plan)?;
    let machine = Machine::look(&run.rig)?;
    groups::all(&mut run, &mut |line| println!("{line}"))?;
    let report = Report::new(machine, run.plan, run.figures);
    if let Some(file) = json {
        report.write_json(&file)?;
    }
    Ok(report)
}
