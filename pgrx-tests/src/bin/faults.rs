//! `cargo faults rounds|atomic|whole|copy|verify|converge|outage|crowd|flapping|leaks|points|regress|types`: breaks
//! things on purpose, at a size that is too large for every run of the tests. Sets the machine up first, as the other
//! commands do.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rowsync_harness::arguments::{Arguments, exit_code};
use rowsync_harness::faults::rig::{Drain, Mode, Rig};
use rowsync_harness::faults::{
    convergence, copy, crowd, flapping, leaks, outage, points, regress, rounds, verify, whole,
};
use rowsync_harness::{Fixture, setup, type_pairs};

const USAGE: &str = "usage:
  cargo faults rounds [--rounds 200] [--seed S] [--from 0] [--mode async|queue|sync|atomic|all]
                      [--drain worker|calls|both] [--fault NAME] [--pooler session|transaction]
                      [--servers 1]
      random faults under load, a row by row comparison after each; --rounds counts per mode;
      with several servers the same is sent to all, and a fault meets one of them
  cargo faults atomic [--rounds 300] [--seed S] [--from 0] [--drain worker|calls|both] [--fault NAME]
                      [--servers 1] [--against sync]
      rounds of mode atomic, half of them with a fault exactly at a step of its protocol; both sides must
      have the same transactions after each, and nothing prepared; --against sync runs those of mode sync
      instead, and fails unless some transaction is on one side only: so the rounds can see it
  cargo faults whole [--rounds 100] [--seed S] [--from 0]
      random schemas with constraints between rows, random transactions and faults; compared after
      each round, in which nothing may be marked failed that the target would take
  cargo faults copy [--rounds 20] [--seed S] [--from 0]
      tables copied while eight clients write them, with faults on the way; compared after each round,
      in which nothing may fail
  cargo faults verify [--rounds 100] [--seed S] [--from 0] [--sweep]
      random tables with planted differences, while others write them: what is told must be exactly what
      was planted, and a repair must leave none; --sweep: one round for each kind of key, with every type
      spoiled in every way, and the rest by the round's number: targets of other majors and encodings,
      poolers, filters, modes, policies
  cargo faults converge [--masters 2] [--version clock|frozen|skewed|null|all] [--rounds 10]
                        [--seconds 5] [--seed S] [--mode async|queue] [--drain worker|calls|both]
      two or three masters under policy newest, eight clients on each, trouble on every link; the
      masters compared row by row after each round; --rounds counts per kind of version
  cargo faults outage [--seconds 60] [--clients 8] [--away refused|silent|stopped]
                      [--rate TPS] [--scale 8] [--after SECONDS] [--drain worker|calls|both]
      pgbench while the other side is away for so long
  cargo faults crowd [--clients 200] [--connections 50] [--seconds 20] [--pause MILLISECONDS]
      more clients than the other side grants connections, who all stay: what was delivered directly, what
      was queued, and how long that took to drain
  cargo faults flapping [--seconds 60] [--seed S]
      eight clients on twenty rows, two callers and the worker draining, the other side coming and
      going
  cargo faults leaks [--transactions 100000]
      one backend, a fifth of its transactions failing
  cargo faults points [--case NAME,NAME|all] [--point NAME,NAME] [--what NAME,NAME] [--write]
      everything that can go wrong at every named point of the extension, in every mode and by drains;
      --write puts what was seen into doc/failures.md
  cargo faults regress --files PATH [--mode async|sync|queue|all] [--results PATH] [--keep]
                       [--installed] [FILE...]
      PostgreSQL's regression files (src/test/regress of its source), every table attached; both sides
      compared after each statement that writes, outputs with those of a run without the extension
  cargo faults types [--write]
      what becomes of values between every pair of types; --write puts it into doc/types.md";

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let mut options = Arguments::new(words);
    match command.as_str() {
        "rounds" => run_rounds(&mut options, None),
        "atomic" => run_rounds(&mut options, Some(Mode::Atomic)),
        "whole" => run_whole(&mut options),
        "copy" => run_copy(&mut options),
        "verify" => run_verify(&mut options),
        "converge" => run_converge(&mut options),
        "outage" => run_outage(&mut options),
        "crowd" => run_crowd(&mut options),
        "flapping" => run_flapping(&mut options),
        "leaks" => run_leaks(&mut options),
        "points" => run_points(&mut options),
        "regress" => run_regress(&mut options),
        "types" => run_types(&mut options),
        _ => bail!("{USAGE}"),
    }
}

/// The seed that is asked for, or else one that nobody has had.
fn seed(options: &mut Arguments) -> Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(options.take("seed")?.unwrap_or(now.as_micros() as u64))
}

fn run_rounds(options: &mut Arguments, only: Option<Mode>) -> Result<()> {
    let rounds = options
        .take("rounds")?
        .unwrap_or(if only.is_some() { 300 } else { 200 });
    let from = options.take("from")?.unwrap_or(0);
    let seed = seed(options)?;
    let against: Option<Mode> = match only {
        Some(_) => options.take("against")?,
        None => None,
    };
    ensure!(
        against.is_none_or(|mode| mode == Mode::Sync),
        "--against: sync"
    );
    let modes = match only {
        Some(mode) => vec![against.unwrap_or(mode)],
        None => match options.take::<String>("mode")?.as_deref() {
            None | Some("all") => Mode::ALL.to_vec(),
            Some(mode) => vec![mode.parse()?],
        },
    };
    let drain = options.take("drain")?.unwrap_or(Drain::Worker);
    let fault = options.take("fault")?;
    let pooler = options.take("pooler")?;
    let servers = options.take("servers")?.unwrap_or(1);
    ensure!((1..=9).contains(&servers), "--servers: from 1 to 9");
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    println!("seed {seed}");
    for mode in modes {
        let start = Instant::now();
        let plan = rounds::Plan {
            mode,
            drain,
            seed,
            from,
            rounds,
            fault,
            pooler,
            servers,
        };
        let summary = rounds::run(plan, &mut |line| println!("{line}"))?;
        let apart: usize = summary.0.values().map(|line| line.ghosts).sum();
        let outcome = match against {
            Some(_) => format!("{apart} transactions on the right side only"),
            None => "both sides equal after each".to_owned(),
        };
        println!(
            "\nmode {mode}: {rounds} rounds in {:.0} s, {outcome}\n{summary}",
            start.elapsed().as_secs_f64()
        );
        ensure!(
            against.is_none() || apart > 0,
            "mode {mode} has shown no difference: more rounds, or the rounds are blind"
        );
    }
    Ok(())
}

fn run_whole(options: &mut Arguments) -> Result<()> {
    let rounds = options.take("rounds")?.unwrap_or(100);
    let from = options.take("from")?.unwrap_or(0);
    let seed = seed(options)?;
    options.end(USAGE)?;
    setup::prepare()?;
    println!("seed {seed}");
    let start = Instant::now();
    whole::run(whole::Plan { seed, from, rounds }, &mut |line| {
        println!("{line}")
    })?;
    println!(
        "{rounds} rounds in {:.0} s, both sides equal after each",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn run_copy(options: &mut Arguments) -> Result<()> {
    let rounds = options.take("rounds")?.unwrap_or(20);
    let from = options.take("from")?.unwrap_or(0);
    let seed = seed(options)?;
    options.end(USAGE)?;
    setup::prepare()?;
    println!("seed {seed}");
    let start = Instant::now();
    copy::run(copy::Plan { seed, from, rounds }, &mut |line| {
        println!("{line}")
    })?;
    println!(
        "{rounds} rounds in {:.0} s, both sides equal after each",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn run_verify(options: &mut Arguments) -> Result<()> {
    let sweeps = options.flag("sweep");
    let all = if sweeps { verify::SWEEP } else { 100 };
    let rounds = options.take("rounds")?.unwrap_or(all);
    let from = options.take("from")?.unwrap_or(0);
    let seed = seed(options)?;
    options.end(USAGE)?;
    setup::prepare()?;
    println!("seed {seed}");
    let start = Instant::now();
    let plan = verify::Plan {
        seed,
        from,
        rounds,
        sweeps,
    };
    verify::run(plan, &mut |line| println!("{line}"))?;
    println!(
        "{rounds} rounds in {:.0} s: told was what was planted, and none was left",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn run_converge(options: &mut Arguments) -> Result<()> {
    let masters: usize = options.take("masters")?.unwrap_or(2);
    if !(2..=3).contains(&masters) {
        bail!("--masters: 2 or 3");
    }
    let version: String = options.take("version")?.unwrap_or_else(|| "all".to_owned());
    let versions = match version.as_str() {
        "all" => convergence::Version::ALL.to_vec(),
        one => vec![one.parse()?],
    };
    let mode = options.take("mode")?.unwrap_or(Mode::Async);
    let drain = options.take("drain")?.unwrap_or(Drain::Worker);
    let rounds = options.take("rounds")?.unwrap_or(10);
    let time = Duration::from_secs(options.take("seconds")?.unwrap_or(5));
    let seed = seed(options)?;
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    println!("seed {seed}");
    for version in versions {
        let plan = convergence::Plan {
            masters,
            version,
            mode,
            drain,
            seed,
            rounds,
            time,
        };
        let report = convergence::run(plan, &mut |line| println!("{line}"))?;
        println!("version {version}, {rounds} rounds: {report}; all masters equal after each");
    }
    Ok(())
}

fn run_outage(options: &mut Arguments) -> Result<()> {
    let seconds: u64 = options.take("seconds")?.unwrap_or(60);
    let plan = outage::Plan {
        away: options.take("away")?.unwrap_or(outage::Away::Refused),
        drain: options.take("drain")?.unwrap_or(Drain::Worker),
        clients: options.take("clients")?.unwrap_or(8),
        scale: options.take("scale")?.unwrap_or(8),
        rate: options.take("rate")?,
        before: Duration::from_secs(10),
        outage: Duration::from_secs(seconds),
        after: Duration::from_secs(options.take("after")?.unwrap_or(20 + seconds)),
    };
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    println!("pgbench with {} clients, {plan:?}", plan.clients);
    println!("{}\nno client error; both sides equal", outage::run(plan)?);
    Ok(())
}

fn run_crowd(options: &mut Arguments) -> Result<()> {
    let plan = crowd::Plan {
        clients: options.take("clients")?.unwrap_or(200),
        connections: options.take("connections")?.unwrap_or(50),
        time: Duration::from_secs(options.take("seconds")?.unwrap_or(20)),
        pause: Duration::from_millis(options.take("pause")?.unwrap_or(200)),
    };
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    println!("{plan:?}");
    println!("{}\nno client error; both sides equal", crowd::run(&plan)?);
    Ok(())
}

fn run_flapping(options: &mut Arguments) -> Result<()> {
    let seconds = options.take("seconds")?.unwrap_or(60);
    let seed = seed(options)?;
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    println!("seed {seed}");
    let rig = Rig::start("flapping", Mode::Async, Drain::Both)?;
    let report = flapping::run(&rig, seed, Duration::from_secs(seconds))?;
    let flapping::Report {
        committed,
        outages,
        queued,
    } = report;
    println!("{committed} committed, {outages} outages, {queued} queued; both sides equal");
    Ok(())
}

fn run_leaks(options: &mut Arguments) -> Result<()> {
    let transactions = options.take("transactions")?.unwrap_or(100_000);
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    let start = Instant::now();
    leaks::run(transactions, &mut |holdings| println!("{holdings}"))?;
    println!("flat, in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn run_points(options: &mut Arguments) -> Result<()> {
    let only: String = options.take("case")?.unwrap_or_else(|| "all".to_owned());
    let only = only.to_lowercase();
    let selected = points::Selection {
        points: options.take("point")?,
        whats: options.take("what")?,
    };
    let writes = options.flag("write");
    options.end(USAGE)?;
    if let Some(unknown) = only.split(',').find(|name| {
        *name != "all"
            && !points::Case::ALL
                .iter()
                .any(|case| case.to_string() == *name)
    }) {
        bail!("there is no case \"{unknown}\"");
    }
    setup::prepare_with_faults()?;
    let mut table = points::Table::default();
    for drain in [Drain::Calls, Drain::Worker] {
        let cases = points::Case::ALL
            .into_iter()
            .filter(|case| case.drain() == drain);
        let is_asked = |case: &points::Case| {
            only == "all" || only.split(',').any(|name| name == case.to_string())
        };
        let cases: Vec<_> = cases.filter(is_asked).collect();
        if cases.is_empty() {
            continue;
        }
        let mut fixture = points::PointsFixture::start(drain)?;
        for case in cases {
            table.extend(points::run(
                &mut fixture,
                case,
                &selected,
                &mut |trial, seen| println!("{trial}: {seen:?}"),
            )?);
        }
    }
    println!("{}", table.render());
    if writes {
        let file = setup::root().join(points::DOCUMENT);
        let document = std::fs::read_to_string(&file)?;
        let mut whole = points::Table::of(&document);
        whole.extend(table);
        std::fs::write(&file, whole.put_into(&document)?)?;
    }
    Ok(())
}

fn run_regress(options: &mut Arguments) -> Result<()> {
    let files: PathBuf = options
        .take("files")?
        .with_context(|| format!("--files PATH\n{USAGE}"))?;
    let mode: Option<String> = options.take("mode")?;
    let modes = match mode.as_deref() {
        None | Some("all") => vec![Mode::Sync, Mode::Async, Mode::Queue],
        Some(one) => vec![one.parse()?],
    };
    let results = options
        .take("results")?
        .unwrap_or_else(regress::default_results);
    let keeps = options.flag("keep");
    let is_installed = options.flag("installed");
    let only = options.rest();
    options.end(USAGE)?;
    if !is_installed {
        setup::prepare_with_faults()?;
    }
    let plan = regress::Plan {
        files: files.canonicalize()?,
        only,
        modes,
        results,
        keeps,
    };
    let tallies = regress::run(&plan, &mut |line| println!("{line}"))?;
    let mut is_clean = true;
    for (mode, tally) in &tallies {
        println!("\nmode {mode}: {tally}");
        for one in &tally.different {
            println!("different: {one}");
        }
        for regress::Hunk { file, lines } in &tally.hunks {
            println!("output of {file}:\n{lines}");
        }
        for (table, why) in &tally.refused {
            println!("not attached: {table}: {why}");
        }
        is_clean &= tally.is_clean();
    }
    ensure!(is_clean, "there are differences that nothing explains");
    Ok(())
}

fn run_types(options: &mut Arguments) -> Result<()> {
    let writes = options.flag("write");
    options.end(USAGE)?;
    setup::prepare_with_faults()?;
    let fixture = Fixture::new("types");
    fixture.link(&fixture.left, &fixture.right, "dst", &[]);
    let rows = type_pairs::observe(&fixture)?;
    println!("{}", type_pairs::render(&rows));
    if writes {
        let file = setup::root().join(type_pairs::DOCUMENT);
        let document = std::fs::read_to_string(&file)?;
        std::fs::write(&file, type_pairs::put_into(&document, &rows)?)?;
    }
    Ok(())
}
