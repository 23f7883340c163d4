//! `cargo package-deb [--pg MAJOR] [--try SUITE]`: a Debian package of the extension, for the
//! machine's PostgreSQL or another major; with `--try` it is installed into a clean Debian of that
//! name, and the quick start is run there.

use std::process::ExitCode;

use anyhow::{Result, bail};
use rowsync_harness::arguments::exit_code;
use rowsync_harness::package;
use rowsync_harness::setup::{self, Postgres};

fn main() -> ExitCode {
    exit_code(run())
}

fn run() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (mut major, mut suite) = (None, None);
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--pg" => major = Some(value.parse()?),
            [name, value] if name == "--try" => suite = Some(value.clone()),
            _ => bail!("usage: cargo package-deb [--pg MAJOR] [--try SUITE]"),
        }
    }
    setup::install_for_packages(suite.is_some())?;
    let postgres = match major {
        None => setup::Postgres::find()?,
        Some(major) => Postgres::release(major)?,
    };
    let file = package::build(&postgres)?;
    println!("{}", file.display());
    if let Some(suite) = suite {
        package::try_out(&file, postgres.major, &suite)?;
        println!("installed into a clean {suite}, and the quick start has run there");
    }
    Ok(())
}
