//! `cargo freeze NEXT`: what the SQL of the current version is, is released from now on.
//!
//! Keeps the full script in `sql/released`, with its hash and those of the scripts that lead to it,
//! begins the script that leads from it to version NEXT, gives what is unreleased in the changelog its
//! version, and makes NEXT the current version.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use rowsync_harness::setup;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let next = std::env::args()
        .nth(1)
        .context("usage: cargo freeze NEXT-VERSION")?;
    let released = setup::released_scripts();
    let name = format!("pg_rowsync--{VERSION}.sql");
    ensure!(
        !released.join(&name).exists(),
        "version {VERSION} is released already"
    );
    let postgres = setup::prepare()?;
    fs::create_dir_all(&released)?;
    fs::copy(postgres.extensions()?.join(&name), released.join(&name))?;
    let mut scripts = vec![name];
    for entry in fs::read_dir(setup::root().join("sql"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("pg_rowsync--") && name.ends_with(&format!("--{VERSION}.sql")) {
            scripts.push(format!("../{name}"));
        }
    }
    let sums = Command::new("sha256sum")
        .args(&scripts)
        .current_dir(&released)
        .output()?;
    ensure!(sums.status.success(), "sha256sum failed");
    let file = File::options()
        .create(true)
        .append(true)
        .open(released.join(setup::SUMS))?;
    (&file).write_all(&sums.stdout)?;
    let update = setup::root().join(format!("sql/pg_rowsync--{VERSION}--{next}.sql"));
    fs::write(update, begun(&next))?;
    replace("Cargo.toml", "version = \"VERSION\"", &next, 1)?;
    replace("META.json", "\"version\": \"VERSION\"", &next, 2)?;
    release_changes()?;
    let updated = setup::cargo()
        .args(["update", "--workspace", "--offline"])
        .status()?;
    ensure!(updated.success(), "could not bring Cargo.lock up to date");
    println!("{VERSION} is released; the current version is {next}");
    Ok(())
}

/// The script that leads to the next version, before anything differs.
fn begun(next: &str) -> String {
    format!(
        "-- What differs in {next} from {VERSION}: an update must equal a fresh installation.\n\
         \n\
         -- As in sql/tables.sql: what is created is qualified with @extschema@, functions too.\n\
         SET LOCAL search_path = pg_catalog, pg_temp;\n\
         \n\
         -- As ALTER EXTENSION has set it.\n\
         SET LOCAL search_path = @extschema@, pg_temp;\n"
    )
}

/// What is unreleased in the changelog becomes the current version's, as of today.
fn release_changes() -> Result<()> {
    let today = Command::new("date").args(["--utc", "+%F"]).output()?;
    ensure!(today.status.success(), "date failed");
    let today = String::from_utf8(today.stdout)?;
    let file = setup::root().join("CHANGELOG.md");
    let text = fs::read_to_string(&file)?;
    let open = "## [Unreleased]\n";
    ensure!(
        text.matches(open).count() == 1,
        "{} has no section \"Unreleased\"",
        file.display()
    );
    let released = format!("{open}\n## [{VERSION}] - {}\n", today.trim());
    Ok(fs::write(&file, text.replacen(open, &released, 1))?)
}

/// Makes the version the next one, in so many places that look like this.
fn replace(file: &str, pattern: &str, next: &str, places: usize) -> Result<()> {
    let file = setup::root().join(file);
    let text = fs::read_to_string(&file)?;
    let old = pattern.replace("VERSION", VERSION);
    let found = text.matches(&old).count();
    ensure!(
        found >= places,
        "{} has {old} in {found} places",
        file.display()
    );
    Ok(fs::write(
        &file,
        text.replacen(&old, &pattern.replace("VERSION", next), places),
    )?)
}
