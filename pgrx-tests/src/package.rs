//! Debian packages: the extension for one major, as a file for apt.
//!
//! Built from what `cargo pgrx package` leaves, with dpkg's own tools, so that nothing more than
//! `dpkg-dev` is needed. The libraries that it depends on are those that dpkg finds it linked with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::document::Document;
use crate::reaper;
use crate::setup::{self, Postgres};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What people read who have the package and not the repository.
const DOCUMENTS: [&str; 3] = ["README.md", "SECURITY.md", "ARCHITECTURE.md"];

/// The Debian that has PostgreSQL of each major, for a clean root. None has 16.
const SUITES: [(u32, &str); 3] = [(15, "bookworm"), (17, "trixie"), (18, "sid")];

/// After the quick start: the version, and what the worker of the preloaded library delivers by itself.
const AFTER_THE_QUICK_START: &str = r#"\connect rowsync_here
SELECT 'installed: ' || extversion FROM pg_extension WHERE extname = 'pg_rowsync';
SELECT attach_sync('note', 'there', options => '{"mode": "queue"}');
INSERT INTO note VALUES (3, 'queued');
SELECT wait_sync('there', '1 min');
\connect rowsync_there
SELECT 'arrived: ' || body FROM note WHERE id = 3;
"#;

/// Builds `postgresql-NN-rowsync_VERSION-1_ARCH.deb` below the target directory.
///
/// # Errors
/// A build that fails, or a library with the points at which tests make something go wrong.
pub fn build(postgres: &Postgres) -> Result<PathBuf> {
    let major = postgres.major;
    let name = format!("postgresql-{major}-rowsync");
    let work = folder().join(&name);
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let built = work.join("built");
    let root = work.join("root");
    for folder in [&built, &root] {
        fs::create_dir_all(folder)?;
    }
    setup::package(postgres, &built)?;
    let library = lay_out(&built, &root, major)?;
    let documents = root.join("usr/share/doc").join(&name);
    add_documents(&documents, &name)?;
    run(Command::new("chmod")
        .args(["--recursive", "u=rwX,go=rX"])
        .arg(&root))?;
    run(Command::new("chmod").arg("644").arg(&library))?;
    let architecture = say(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    add_control(&work, &root, &library, &name, major, architecture)?;
    let file = folder().join(format!("{name}_{VERSION}-1_{architecture}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&root)
        .arg(&file))?;
    Ok(file)
}

/// Where packages are put.
fn folder() -> PathBuf {
    setup::target().join("deb")
}

/// Puts the library, the control file and all scripts where Debian's PostgreSQL looks for them; where
/// the library is.
fn lay_out(built: &Path, root: &Path, major: u32) -> Result<PathBuf> {
    let libraries = root.join(format!("usr/lib/postgresql/{major}/lib"));
    let scripts = root.join(format!("usr/share/postgresql/{major}/extension"));
    for folder in [&libraries, &scripts] {
        fs::create_dir_all(folder)?;
    }
    let library = libraries.join("pg_rowsync.so");
    for file in files_below(built)? {
        let name = file.file_name().context("a name")?;
        let is_library = file.extension().is_some_and(|extension| extension == "so");
        let copy = if is_library {
            library.clone()
        } else {
            scripts.join(name)
        };
        fs::copy(&file, copy)?;
    }
    for version in setup::released_versions()? {
        let script = setup::full_script(&version);
        fs::copy(
            setup::released_scripts().join(&script),
            scripts.join(&script),
        )?;
    }
    ensure!(
        library.exists(),
        "cargo pgrx package has left no \"{}\"",
        library.display()
    );
    ensure!(
        !setup::has_faults(&library)?,
        "the library that was built is one for tests"
    );
    run(Command::new("strip").arg("--strip-unneeded").arg(&library))?;
    Ok(library)
}

/// Licence, changes and documents, with the links between them as they are in the repository.
fn add_documents(documents: &Path, name: &str) -> Result<()> {
    let repository = setup::root();
    fs::create_dir_all(documents.join("doc"))?;
    for document in DOCUMENTS {
        fs::copy(repository.join(document), documents.join(document))?;
    }
    for file in files_below(&repository.join("doc"))? {
        let file_name = file.file_name().context("a name")?;
        fs::copy(&file, documents.join("doc").join(file_name))?;
    }
    let licence = fs::read_to_string(repository.join("LICENSE"))?;
    fs::write(
        documents.join("copyright"),
        format!(
            "Upstream-Name: pg_rowsync\n\nThe licence of all files, that of PostgreSQL:\n\n{licence}"
        ),
    )?;
    fs::copy(repository.join("CHANGELOG.md"), documents.join("changelog"))?;
    let date = say(Command::new("date").args(["--utc", "--rfc-email"]))?;
    fs::write(
        documents.join("changelog.Debian"),
        format!(
            "{name} ({VERSION}-1) unstable; urgency=medium\n\n  \
             * Version {VERSION}: what changed is in changelog.gz.\n\n \
             -- {}  {}\n",
            maintainer(),
            date.trim()
        ),
    )?;
    run(Command::new("gzip")
        .args(["-9", "--no-name", "changelog", "changelog.Debian"])
        .current_dir(documents))
}

/// What dpkg is told of the package: what it is, what it needs, and the sums of its files.
fn add_control(
    work: &Path,
    root: &Path,
    library: &Path,
    name: &str,
    major: u32,
    architecture: &str,
) -> Result<()> {
    // What dpkg-shlibdeps reads of a source package.
    let source = work.join("debian");
    fs::create_dir_all(&source)?;
    fs::write(
        source.join("control"),
        "Source: pg-rowsync\n\nPackage: postgresql-rowsync\nArchitecture: any\n",
    )?;
    let linked = say(Command::new("dpkg-shlibdeps")
        .arg("-O")
        .arg(library)
        .current_dir(work))?;
    let linked = linked
        .trim()
        .strip_prefix("shlibs:Depends=")
        .context("no dependencies")?;
    ensure!(
        linked.contains("libpq5"),
        "the library is not linked with the distribution's libpq: {linked}"
    );
    let bytes: u64 = files_below(root)?
        .iter()
        .map(|file| Ok(fs::metadata(file)?.len().div_ceil(1024)))
        .sum::<Result<u64>>()?;
    let sums = files_below(root)?;
    let sums: Vec<_> = sums
        .iter()
        .map(|file| file.strip_prefix(root))
        .collect::<Result<_, _>>()?;
    let sums = say(Command::new("md5sum").args(&sums).current_dir(root))?;
    let package = root.join("DEBIAN");
    fs::create_dir(&package)?;
    fs::write(package.join("md5sums"), sums)?;
    fs::write(
        package.join("control"),
        format!(
            "Package: {name}\n\
             Source: pg-rowsync\n\
             Version: {VERSION}-1\n\
             Architecture: {architecture}\n\
             Maintainer: {}\n\
             Installed-Size: {bytes}\n\
             Section: database\n\
             Priority: optional\n\
             Depends: postgresql-{major}, {linked}\n\
             Description: keeps tables of several PostgreSQL {major} databases in step\n \
             An AFTER trigger captures the changes of chosen tables; at commit they are\n \
             applied on other servers, one way or in both directions, and what cannot be\n \
             delivered is queued and replayed in order by a background worker.\n",
            maintainer()
        ),
    )?;
    Ok(())
}

/// As Debian's own tools ask who it is.
fn maintainer() -> String {
    let variable = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    format!(
        "{} <{}>",
        variable("DEBFULLNAME", "pg_rowsync developers"),
        variable("DEBEMAIL", "pg-rowsync@localhost")
    )
}

/// Unpacks a package over a copy of the machine's PostgreSQL that has nothing else of the extension,
/// and runs the quick start of the README there, the library preloaded. Needs no root, and leaves the
/// machine's own PostgreSQL as it is.
///
/// # Errors
/// What psql says, or a quick start that ends otherwise than the README shows.
pub fn try_unpacked(file: &Path, postgres: &Postgres) -> Result<()> {
    let base = reaper::base()?.join("unpacked");
    let unpacked = base.join("package");
    let copy = base.join("postgresql");
    fs::create_dir_all(&unpacked)?;
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(file)
        .arg(&unpacked))?;
    let copy = postgres.copy_to(&copy)?;
    for folder in [copy.libraries()?, copy.extensions()?] {
        for file in files_below(&folder)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("pg_rowsync") {
                fs::remove_file(&file)?;
            }
        }
    }
    let major = postgres.major;
    for (from, to) in [
        (format!("usr/lib/postgresql/{major}/lib"), copy.libraries()?),
        (
            format!("usr/share/postgresql/{major}/extension"),
            copy.extensions()?,
        ),
    ] {
        for file in files_below(&unpacked.join(from))? {
            fs::copy(&file, to.join(file.file_name().context("a name")?))?;
        }
    }
    let settings = [("shared_preload_libraries", "pg_rowsync")];
    let cluster = Cluster::start_of(&copy, "unpacked", &settings)?;
    let mut psql = Command::new(copy.program("psql"));
    psql.args(PSQL)
        .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p"])
        .arg(cluster.port().to_string())
        .env("PGPASSWORD", cluster.superuser_password())
        .arg("-f");
    let script = base.join("quick_start.sql");
    fs::write(&script, quick_start()?)?;
    check(&say(psql.arg(&script))?)
}

const PSQL: [&str; 4] = ["-X", "-q", "-v", "ON_ERROR_STOP=1"];

/// Installs a package into a Debian of its own and runs the quick start of the README there: apt
/// brings PostgreSQL, and nothing of this machine is used.
///
/// # Errors
/// As for [`try_unpacked`]; a major that no Debian has; without root or mmdebstrap.
pub fn try_installed(file: &Path, postgres: &Postgres) -> Result<&'static str> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mmdebstrap and chroot need root"
    );
    let (_, suite) = SUITES
        .iter()
        .find(|(major, _)| *major == postgres.major)
        .with_context(|| format!("no Debian has PostgreSQL {}", postgres.major))?;
    let root = folder().join(format!("root-{suite}"));
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let mirror = std::env::var("DEBIAN_MIRROR");
    let mirror = mirror.unwrap_or_else(|_| "http://deb.debian.org/debian".to_owned());
    run(Command::new("mmdebstrap")
        .args(["--variant=apt", suite])
        .arg(&root)
        .arg(&mirror))?;
    let result = try_in(&root, file, postgres.major);
    fs::remove_dir_all(&root)?;
    result.map(|()| *suite)
}

fn try_in(root: &Path, file: &Path, major: u32) -> Result<()> {
    // Services are not started by their packages.
    let policy = root.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    run(Command::new("chmod").arg("755").arg(&policy))?;
    let names = Path::new("etc/resolv.conf");
    fs::copy(Path::new("/").join(names), root.join(names))?;
    fs::copy(file, root.join("tmp/extension.deb"))?;
    fs::write(root.join("tmp/quick_start.sql"), quick_start()?)?;
    let psql = PSQL.join(" ");
    let script = format!(
        r#"set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
{{
apt-get --quiet --quiet update
apt-get --quiet --quiet install --yes --no-install-recommends /tmp/extension.deb
dpkg --verify postgresql-{major}-rowsync
}} >&2
cat >/tmp/as_postgres.sh <<'END'
set -eu
bin=/usr/lib/postgresql/{major}/bin
cd /tmp
echo secret >password
$bin/initdb --auth=scram-sha-256 --pwfile=password --no-sync --pgdata=data >&2
cat >>data/postgresql.conf <<CONF
listen_addresses = '127.0.0.1'
port = 5433
unix_socket_directories = '/tmp'
shared_preload_libraries = 'pg_rowsync'
dynamic_shared_memory_type = mmap
CONF
$bin/pg_ctl --pgdata=data --log=log --wait start >&2
export PGPASSWORD=secret
status=0
$bin/psql {psql} -h 127.0.0.1 -p 5433 -d postgres -f quick_start.sql || status=1
$bin/pg_ctl --pgdata=data --mode=immediate stop >&2
exit $status
END
su postgres -c 'sh /tmp/as_postgres.sh'
"#
    );
    fs::write(root.join("tmp/try.sh"), script)?;
    check(&say(Command::new("chroot")
        .arg(root)
        .args(["/bin/sh", "/tmp/try.sh"]))?)
}

/// The quick start of the README, and what shows that all of the package is there.
fn quick_start() -> Result<String> {
    let readme = Document::read("README.md")?;
    let mut script = readme.blocks("sql").concat() + AFTER_THE_QUICK_START;
    for version in setup::released_versions()? {
        script += &format!(
            "CREATE DATABASE \"rowsync_{version}\";
             \\connect rowsync_{version}
             CREATE EXTENSION pg_rowsync VERSION '{version}';
             ALTER EXTENSION pg_rowsync UPDATE;
             SELECT '{version} became ' || extversion FROM pg_extension WHERE extname = 'pg_rowsync';
             "
        );
    }
    Ok(script)
}

/// psql has printed what the README shows, the version that was built, what the worker has delivered,
/// and what each older version has become.
fn check(printed: &str) -> Result<()> {
    let readme = Document::read("README.md")?;
    let shown = readme.blocks("text");
    let shown = shown.first().context("the README shows no result")?;
    let mut expected = vec![
        without_trailing_blanks(shown.trim_end()),
        format!("installed: {VERSION}"),
        "arrived: queued".to_owned(),
    ];
    for version in setup::released_versions()? {
        expected.push(format!("{version} became {VERSION}"));
    }
    let printed = without_trailing_blanks(printed);
    for expected in expected {
        ensure!(
            printed.contains(&expected),
            "{expected}\nwas expected in\n{printed}"
        );
    }
    Ok(())
}

fn without_trailing_blanks(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
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
    files.sort();
    Ok(files)
}

fn run(command: &mut Command) -> Result<()> {
    say(command).map(drop)
}

/// Runs a program; what it printed.
fn say(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("could not run \"{program}\""))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "\"{program}\" failed ({}):\n{said}{errors}",
        output.status
    );
    Ok(said)
}
