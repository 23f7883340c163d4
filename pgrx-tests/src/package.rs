//! Debian packages: the extension for one major, as a file for apt.
//!
//! Built from what `cargo pgrx package` leaves, with dpkg's own tools, so that nothing more than
//! `dpkg-dev` is needed. The libraries that it depends on are those that dpkg finds it linked with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Postgres};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds `postgresql-NN-rowsync_VERSION-1_ARCH.deb` below the target directory.
pub fn build(postgres: &Postgres) -> Result<PathBuf> {
    let major = postgres.major;
    let name = format!("postgresql-{major}-rowsync");
    let work = setup::target().join("deb").join(&name);
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let (built, root, control) = (work.join("built"), work.join("root"), work.join("debian"));
    for folder in [&built, &root, &control] {
        fs::create_dir_all(folder)?;
    }
    setup::package(postgres, &built)?;
    let libraries = root.join(format!("usr/lib/postgresql/{major}/lib"));
    let scripts = root.join(format!("usr/share/postgresql/{major}/extension"));
    let documents = root.join(format!("usr/share/doc/{name}"));
    for folder in [&libraries, &scripts, &documents] {
        fs::create_dir_all(folder)?;
    }
    let mut library = None;
    for file in files_below(&built)? {
        let file_name = file.file_name().context("a name")?.to_owned();
        let is_library = file.extension().is_some_and(|extension| extension == "so");
        let copy = if is_library { &libraries } else { &scripts }.join(file_name);
        fs::copy(&file, &copy)?;
        if is_library {
            library = Some(copy);
        }
    }
    let library = library.context("cargo pgrx package has left no library")?;
    run(Command::new("strip").arg("--strip-unneeded").arg(&library))?;
    fs::copy(setup::root().join("LICENSE"), documents.join("copyright"))?;
    fs::copy(setup::root().join("CHANGELOG.md"), documents.join("changelog"))?;
    run(Command::new("gzip").args(["-9", "--no-name"]).arg(documents.join("changelog")))?;
    run(Command::new("chmod").args(["--recursive", "u=rwX,go=rX"]).arg(&root))?;
    run(Command::new("chmod").arg("644").arg(&library))?;

    // What dpkg-shlibdeps reads of a source package.
    fs::write(
        control.join("control"),
        "Source: pg-rowsync\n\nPackage: postgresql-rowsync\nArchitecture: any\n",
    )?;
    let linked = say(Command::new("dpkg-shlibdeps").args(["-O"]).arg(&library).current_dir(&work))?;
    let linked = linked.trim().strip_prefix("shlibs:Depends=").context("no dependencies")?;
    let architecture = say(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let package = root.join("DEBIAN");
    fs::create_dir(&package)?;
    fs::write(
        package.join("control"),
        format!(
            "Package: {name}\n\
             Version: {VERSION}-1\n\
             Architecture: {architecture}\n\
             Maintainer: pg_rowsync developers <pg-rowsync@localhost>\n\
             Section: database\n\
             Priority: optional\n\
             Depends: postgresql-{major}, {linked}\n\
             Description: keeps tables of several PostgreSQL {major} databases in step\n \
             An AFTER trigger captures the changes of chosen tables; at commit they are applied\n \
             on other servers, one way or in both directions, and what cannot be delivered is\n \
             queued and replayed in order.\n"
        ),
    )?;
    let file = setup::target().join("deb").join(format!("{name}_{VERSION}-1_{architecture}.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&file))?;
    Ok(file)
}

/// Installs a package into a Debian of its own and runs the quick start of the README there: apt
/// brings PostgreSQL, and nothing of this machine is used. Needs root and debootstrap.
pub fn try_out(file: &Path, major: u32, suite: &str) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "debootstrap and chroot need root");
    let root = setup::target().join("deb").join(format!("root-{suite}"));
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let mirror = std::env::var("DEBIAN_MIRROR");
    let mirror = mirror.unwrap_or_else(|_| "http://deb.debian.org/debian".to_owned());
    run(Command::new("debootstrap").args(["--variant=minbase", suite]).arg(&root).arg(&mirror))?;
    let result = try_in(&root, file, major);
    fs::remove_dir_all(&root)?;
    result
}

fn try_in(root: &Path, file: &Path, major: u32) -> Result<()> {
    // Services are not started by their packages.
    fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
    run(Command::new("chmod").arg("755").arg(root.join("usr/sbin/policy-rc.d")))?;
    for name in ["etc/resolv.conf", "etc/apt/apt.conf.d/80proxy"] {
        let here = Path::new("/").join(name);
        if here.exists() {
            fs::copy(here, root.join(name))?;
        }
    }
    fs::copy(file, root.join("tmp/extension.deb"))?;
    let readme = fs::read_to_string(setup::root().join("README.md"))?;
    let quick_start: String = readme
        .split("```sql\n")
        .skip(1)
        .filter_map(|block| block.split_once("```"))
        .map(|(sql, _)| sql)
        .collect();
    fs::write(root.join("tmp/quick_start.sql"), quick_start)?;
    // The checks after the quick start: its rows arrived, and the worker of the preloaded library
    // drains what was queued.
    let script = format!(
        r#"set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt-get --quiet --quiet update
apt-get --quiet --quiet install --yes --no-install-recommends /tmp/extension.deb
bin=/usr/lib/postgresql/{major}/bin
su postgres -c "
set -eu
cd /tmp
echo secret >/tmp/password
$bin/initdb --auth=scram-sha-256 --pwfile=/tmp/password --no-sync --pgdata=/tmp/data >/dev/null
cat >>/tmp/data/postgresql.conf <<CONF
listen_addresses = '127.0.0.1'
port = 5433
unix_socket_directories = '/tmp'
shared_preload_libraries = 'pg_rowsync'
dynamic_shared_memory_type = mmap
CONF
$bin/pg_ctl --pgdata=/tmp/data --log=/tmp/log --wait start >/dev/null
export PGPASSWORD=secret PGHOST=127.0.0.1 PGPORT=5433 PGUSER=postgres
status=0
$bin/psql -X -q -v ON_ERROR_STOP=1 -d postgres -f /tmp/quick_start.sql || status=1
$bin/psql -X -q -At -d rowsync_there -c 'SELECT count(*), max(body) FROM note' || status=1
$bin/psql -X -q -At -d rowsync_here -c \"SELECT 'worker ' || worker FROM sync_status\" || status=1
$bin/pg_ctl --pgdata=/tmp/data --mode=immediate stop >/dev/null
exit \$status
"
"#
    );
    fs::write(root.join("tmp/try.sh"), script)?;
    let said = say(Command::new("chroot").arg(root).args(["/bin/sh", "/tmp/try.sh"]))?;
    print!("{said}");
    ensure!(
        said.contains("\n2|one\n") || said.contains("2|one"),
        "the quick start has not arrived"
    );
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn run(command: &mut Command) -> Result<()> {
    say(command).map(drop)
}

fn say(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("could not run \"{program}\""))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "\"{program}\" failed ({}):\n{said}{errors}", output.status);
    Ok(said)
}
