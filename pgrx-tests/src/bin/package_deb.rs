//! `cargo package-deb [--pg MAJORS] [--install]`: a Debian package of the extension for the machine's
//! PostgreSQL, or for other majors. The one for the machine's is unpacked and tried with the quick start of
//! the README; with `--install` each is installed into a clean Debian that has its major, and tried there.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rowsync_harness::arguments::exit_code;
use rowsync_harness::package;
use rowsync_harness::setup::{self, Postgres};

const USAGE: &str = "usage: cargo package-deb [--pg MAJORS|all] [--install]";

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<()> {
    let mut majors = Vec::new();
    let mut installs = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--install" => installs = true,
            "--pg" => majors = setup::majors(&arguments.next().context(USAGE)?)?,
            _ => bail!(USAGE),
        }
    }
    setup::install_for_packages(installs)?;
    let own = Postgres::find()?;
    if majors.is_empty() {
        majors.push(own.major);
    }
    for major in majors {
        let is_own = major == own.major;
        let postgres = if is_own {
            own.clone()
        } else {
            Postgres::release(major)?
        };
        let file = package::build(&postgres)?;
        println!("{}", file.display());
        if is_own {
            package::try_unpacked(&file, &own)?;
            println!("unpacked, and the quick start has run");
        }
        if installs {
            let suite = package::try_installed(&file, &postgres)?;
            println!("installed into a clean {suite}, and the quick start has run there");
        }
    }
    Ok(())
}
