//! Bucardo: triggers that note which rows have changed, and a daemon that copies them later. It keeps
//! a database of its own, on the local cluster, and needs PL/Perl there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::contender::Contender;
use super::schema;
use super::shape::Shape;
use crate::reaper;
use crate::setup::{self, Postgres};
use crate::side::Side;

/// Its daemon ends with this process: it works in a directory that the reaper looks after.
pub fn start(local: &Side, remote: &Side) -> Result<()> {
    let postgres = Postgres::find()?;
    setup::install_bucardo(&postgres)?;
    let program = setup::on_path("bucardo").context("found no bucardo")?;
    let dir = reaper::base()?.join("bucardo");
    fs::create_dir(&dir)?;
    let cluster = &local.cluster;
    let modules = std::env::var("PERL5LIB").ok();
    if let Some(modules) = &modules {
        // The server looks for the same modules.
        cluster.set_environment(&[("PERL5LIB", modules)]);
        cluster.restart()?;
    }
    let password = cluster.superuser_password();
    cluster.superuser("postgres")?.batch_execute(&format!(
        "create role bucardo superuser login password '{password}'"
    ))?;
    cluster
        .superuser("postgres")?
        .batch_execute("create database bucardo owner bucardo")?;

    let command = |program: &Path| {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("HOME", &dir);
        command
            .env("PGPASSWORD", password)
            .current_dir(&dir)
            .stdin(Stdio::null());
        command.envs(modules.iter().map(|modules| ("PERL5LIB", modules)));
        command
    };
    let port = cluster.port().to_string();
    run(command(&postgres.program("psql"))
        .args([
            "--no-psqlrc",
            "--quiet",
            "--host=127.0.0.1",
            "--username=postgres",
        ])
        .args(["--dbname=bucardo", "--port", &port, "--file"])
        .arg(schema_file(&program)?))?;
    let bucardo = |words: &[&str]| {
        run(command(&program)
            .args(["--no-bucardorc", "--db-host=127.0.0.1", "--db-name=bucardo"])
            .arg(format!("--db-port={port}"))
            .arg("--db-user=bucardo")
            .args(words))
    };
    for (name, side) in [("src", local), ("dst", remote)] {
        bucardo(&[
            "add",
            "database",
            name,
            &format!("dbname={}", side.db),
            "host=127.0.0.1",
            &format!("port={}", side.cluster.port()),
            "user=postgres",
            &format!("pass={}", side.cluster.superuser_password()),
        ])?;
    }
    for shape in Shape::ALL {
        let table = schema::table(shape, Contender::Bucardo);
        bucardo(&["add", "table", &table, "db=src", "relgroup=bench"])?;
    }
    bucardo(&[
        "add",
        "sync",
        "bench",
        "relgroup=bench",
        "dbs=src:source,dst:target",
    ])?;
    let at = dir.to_string_lossy();
    bucardo(&[
        "set",
        &format!("piddir={at}"),
        &format!("reason_file={at}/reason"),
        &format!("warning_file={at}/warning"),
    ])?;
    bucardo(&["start", &format!("--log-destination={at}")])
}

/// `../share/bucardo/bucardo.schema`, seen from where the program is.
fn schema_file(program: &Path) -> Result<PathBuf> {
    let prefix = program
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/usr"));
    let file = prefix.join("share/bucardo/bucardo.schema");
    ensure!(file.exists(), "\"{}\" is missing", file.display());
    Ok(file)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("could not run \"{program}\""))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "\"{program}\" failed ({}):\n{told}{said}",
        output.status
    );
    Ok(())
}
