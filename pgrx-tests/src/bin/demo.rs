//! `cargo demo`: sets the machine up, starts two clusters with password authentication and runs the
//! recipe's scenario at full size, printing rows and checksums of both sides after every step.
//!
//! `cargo demo --keep` then leaves the clusters running until Enter or Ctrl-C.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use rowsync_harness::arguments::exit_code;
use rowsync_harness::scenario::{Checksum, Event, Scenario};
use rowsync_harness::{Cluster, Side, setup, side};

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let keep = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => bail!("usage: cargo demo [--keep]"),
    };
    let postgres = setup::prepare()?;

    println!(
        "\ntwo clusters of PostgreSQL {}, fsync on, password authentication",
        postgres.major
    );
    let cluster = |name| Cluster::start_with(name, &[]).map(Arc::new);
    let local = Side::create(&cluster("local")?, "local")?;
    let remote = Side::create(&cluster("remote")?, "remote")?;
    side::create_recipe_tables(&local, &remote)?;
    local.link(&remote, remote.cluster.port(), "dst", &[])?;
    remote.link(&local, local.cluster.port(), "dst", &[])?;
    side::create_recipe_triggers(&local, &remote, "dst")?;
    println!("local.loc_test <-> remote.rmt_test, primary key (pk1, pk2), each side a master\n");

    print_line([
        "step",
        "local rows",
        "checksum",
        "remote rows",
        "checksum",
        "equal",
        "queued",
        "time",
    ]);
    let scenario = Scenario {
        left: &local,
        right: &remote,
        rows: 10_000,
    };
    let outcome = scenario
        .run(&mut print)
        .and_then(|()| scenario.copy(100_000, &mut print));
    if outcome.is_ok() {
        println!("\nevery step left what it should, and both sides are equal");
    }
    if keep {
        println!("\nboth clusters are running; to look at them:\n");
        for side in [&local, &remote] {
            let port = side.cluster.port();
            let password = side.cluster.superuser_password();
            let psql = |user: &str, password: &str| {
                println!(
                    "  PGPASSWORD={password} psql -h 127.0.0.1 -p {port} -U {user} {}",
                    side.db
                );
            };
            psql(&side.user, &side.password);
            psql("postgres", password);
        }
        println!("\nEnter or Ctrl-C ends them");
        std::io::stdin().read_line(&mut String::new())?;
    }
    outcome
}

fn print(event: Event) {
    match event {
        Event::Step {
            name,
            left,
            right,
            queued,
            took,
        } => {
            let show = |sum: Checksum| [sum.1.to_string(), sum.0.to_string()];
            let ([rows, sum], [other_rows, other_sum]) = (show(left), show(right));
            let equal = if left == right { "yes" } else { "no" };
            let queued = queued.to_string();
            let time = format!("{:.1} ms", took.as_secs_f64() * 1000.0);
            print_line([
                name,
                &rows,
                &sum,
                &other_rows,
                &other_sum,
                equal,
                &queued,
                &time,
            ]);
        }
        Event::Progress {
            rows,
            of,
            bytes,
            state,
        } => {
            let of = of.map(|of| format!(" of about {of}")).unwrap_or_default();
            let line = format!("    copy: {state}, {rows}{of} rows, {} kB", bytes / 1024);
            if std::io::stdout().is_terminal() {
                // One line, written over and over.
                print!("{line:<80}\r")
            } else {
                println!("{line}")
            }
        }
        Event::Note(text) => println!("    {text}"),
    }
}

fn print_line(cells: [&str; 8]) {
    let [step, rows, sum, other_rows, other_sum, equal, queued, time] = cells;
    println!(
        "{step:<44} {rows:>10} {sum:>15} {other_rows:>12} {other_sum:>15} {equal:>6} {queued:>7} {time:>12}"
    );
}
