//! PostgreSQL with its assertions, from the distribution's source package, built into a folder below the
//! target directory: a server that stops where it meets what it takes to be impossible, fills memory that
//! is freed, and tells valgrind what it does with its own.
//!
//! No release of a registry has assertions. The machine's own lists of packages are not changed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{reaper, releases};

/// How the folder of an installation ends, after its version.
const MARK: &str = "-assertions";

/// What `configure` is asked for.
const OPTIONS: [&str; 9] = [
    "--enable-cassert",
    "--enable-debug",
    "--with-openssl",
    "--with-icu",
    "--with-libxml",
    "--with-lz4",
    "--with-system-tzdata=/usr/share/zoneinfo",
    "--without-readline",
    // Frames, so that valgrind and debuggers need not guess.
    "CFLAGS=-O1 -fno-omit-frame-pointer",
];

/// Memory that is freed is overwritten in every build with assertions; valgrind is told of it by this one.
/// Not what frees catalog rows and relations as soon as nobody uses them: thirty times slower. What that
/// finds, `debug_discard_caches` does too, which is a setting.
const DEFINES: &str = "CPPFLAGS=-DUSE_VALGRIND";

/// What must be there, by package, and how it is found.
pub const NEEDED: [(&str, Needed); 9] = [
    ("make", Needed::Program("make")),
    ("perl", Needed::Program("perl")),
    ("dpkg-dev", Needed::Program("dpkg-source")),
    ("libssl-dev", Needed::Library("openssl")),
    ("libicu-dev", Needed::Library("icu-i18n")),
    ("libxml2-dev", Needed::Library("libxml-2.0")),
    ("liblz4-dev", Needed::Library("liblz4")),
    ("zlib1g-dev", Needed::Library("zlib")),
    // With the header that USE_VALGRIND includes.
    ("valgrind", Needed::Program("valgrind")),
];

/// How it is found that a package is there.
pub enum Needed {
    /// By a program.
    Program(&'static str),
    /// By a library, as pkg-config knows it.
    Library(&'static str),
}

/// The `pg_config` of the installation, if it was built.
pub fn find(target: &Path) -> Result<Option<PathBuf>> {
    let all = fs::read_dir(releases::folder(target)?)?.flatten();
    let programs = all.map(|entry| entry.path().join("bin/pg_config"));
    let mut ours: Vec<_> = programs.filter(|program| is_ours(program)).collect();
    ours.sort();
    Ok(ours.pop())
}

/// Builds it, of the first of these majors that the distribution has, and gives its `pg_config`: some minutes.
///
/// # Errors
/// Where no source package can be had, or what [`NEEDED`] names is not there.
pub fn make(target: &Path, majors: &[u32]) -> Result<PathBuf> {
    let folder = releases::folder(target)?;
    let work = folder.join(format!("building-{}", reaper::random_hex()?));
    fs::create_dir(&work)?;
    let built = build(&folder, &work, majors);
    fs::remove_dir_all(&work)?;
    Ok(built
        .context("could not build PostgreSQL with assertions")?
        .join("bin/pg_config"))
}

/// Whether an installation has come from here.
pub fn is_ours(pg_config: &Path) -> bool {
    let installation = pg_config.ancestors().nth(2).and_then(Path::file_name);
    installation.is_some_and(|name| name.to_string_lossy().ends_with(MARK))
}

/// Where the installation has what PostgreSQL's developers suppress of valgrind's findings.
pub fn suppressions(pg_config: &Path) -> Result<PathBuf> {
    let installation = pg_config.ancestors().nth(2);
    Ok(installation.context("an installation")?.join(SUPPRESSIONS))
}

const SUPPRESSIONS: &str = "share/valgrind.supp";

fn build(folder: &Path, work: &Path, majors: &[u32]) -> Result<PathBuf> {
    let (version, source) = fetch(work, majors)?;
    let there = folder.join(format!("{version}{MARK}"));
    println!("building PostgreSQL {version} with assertions: once, some minutes");
    let mut configure = Command::new("./configure");
    configure
        .arg(format!("--prefix={}", there.display()))
        .args(OPTIONS)
        .arg(DEFINES)
        .current_dir(&source);
    run(&mut configure)?;
    let jobs = std::thread::available_parallelism()?.get().to_string();
    // Installed elsewhere first: whoever finds the folder finds all of it.
    let root = work.join("root");
    for part in ["", "contrib"] {
        let mut make = Command::new("make");
        make.args(["--silent", "--jobs", &jobs, "--directory"])
            .arg(source.join(part));
        run(&mut make)?;
        let mut install = Command::new("make");
        install
            .args(["--silent", "install", "--directory"])
            .arg(source.join(part))
            .arg(format!("DESTDIR={}", root.display()));
        run(&mut install)?;
    }
    let installed = root.join(there.strip_prefix("/")?);
    fs::copy(
        source.join("src/tools/valgrind.supp"),
        installed.join(SUPPRESSIONS),
    )?;
    if !there.exists() {
        fs::rename(&installed, &there)?;
    }
    Ok(there)
}

/// The source of the first of these majors that the distribution has: its version, and where it is unpacked.
fn fetch(work: &Path, majors: &[u32]) -> Result<(String, PathBuf)> {
    let parts = work.join("sources.list.d");
    fs::create_dir_all(work.join("lists/partial"))?;
    fs::create_dir_all(&parts)?;
    write_sources(&parts)?;
    let nothing = Path::new("/dev/null");
    let settings: [(&str, &Path); 5] = [
        ("Dir::Etc::SourceList", nothing),
        ("Dir::Etc::SourceParts", &parts),
        ("Dir::State::Lists", &work.join("lists")),
        ("Dir::Cache::pkgcache", Path::new("")),
        ("Dir::Cache::srcpkgcache", Path::new("")),
    ];
    let apt = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        for (name, value) in &settings {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        command.args(arguments).current_dir(work);
        command
    };
    run(&mut apt("apt-get", &["--quiet", "update"]))?;
    for major in majors {
        let package = format!("postgresql-{major}");
        let shown = apt("apt-cache", &["showsrc", &package])
            .stderr(Stdio::null())
            .output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let versions = shown
            .lines()
            .filter_map(|line| line.strip_prefix("Version: "));
        // A list may name what its mirror has not got yet. The latest comes last.
        for version in versions.collect::<Vec<_>>().into_iter().rev() {
            let wanted = format!("{package}={version}");
            let mut get = apt(
                "apt-get",
                &["--quiet", "--download-only", "source", &wanted],
            );
            if run(&mut get).is_err() {
                continue;
            }
            let source = work.join("source");
            run(Command::new("dpkg-source")
                .args(["--no-check", "--extract"])
                .arg(only(work, ".dsc")?)
                .arg(&source)
                .current_dir(work))?;
            let upstream = version.split('-').next().unwrap_or(version);
            return Ok((upstream.to_owned(), source));
        }
    }
    bail!("apt offers no source package of PostgreSQL")
}

/// The machine's sources of packages, as sources of source packages.
fn write_sources(folder: &Path) -> Result<()> {
    let apt = Path::new("/etc/apt");
    let mut files = vec![apt.join("sources.list")];
    let parts = fs::read_dir(apt.join("sources.list.d"));
    files.extend(parts.into_iter().flatten().flatten().map(|e| e.path()));
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let name = file.file_name().context("a file")?;
        fs::write(folder.join(name), of_sources(&text))?;
    }
    Ok(())
}

/// Both forms that apt knows: lines, and paragraphs of fields.
fn of_sources(text: &str) -> String {
    let line = |line: &str| match line.split_once([' ', ':']) {
        Some(("deb", rest)) => format!("deb-src {rest}\n"),
        Some(("Types", _)) => "Types: deb-src\n".to_owned(),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn only(folder: &Path, ending: &str) -> Result<PathBuf> {
    let all = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut found = all.filter(|path| path.to_string_lossy().ends_with(ending));
    let first = found.next();
    first.with_context(|| format!("\"{}\" has no {ending}", folder.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("could not run \"{program}\""))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "\"{program} {}\" failed ({}):\n{said}",
        command
            .get_args()
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" "),
        output.status
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_packages_become_those_of_source_packages() {
        let lines = "# deb\ndeb [signed-by=/k] http://d/ stable main\n";
        assert_eq!(
            of_sources(lines),
            "# deb\ndeb-src [signed-by=/k] http://d/ stable main\n"
        );
        let fields = "Types: deb\nURIs: http://d/\nSuites: stable\n\nTypes: deb deb-src\n";
        assert_eq!(
            of_sources(fields),
            "Types: deb-src\nURIs: http://d/\nSuites: stable\n\nTypes: deb-src\n"
        );
    }

    #[test]
    fn an_installation_is_known_by_its_folder() {
        assert!(is_ours(Path::new("/t/15.1-assertions/bin/pg_config")));
        assert!(!is_ours(Path::new("/t/15.1.0/bin/pg_config")));
    }
}
