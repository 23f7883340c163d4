//! Makes the library find the libpq that belongs to the server it is built for.
//!
//! A process has one libpq. If this library brought another than dblink, postgres_fdw or a standby's
//! receiver of that server were built with, these would not load after it. Where the distribution
//! has one libpq for all, nothing is needed; a server with a libpq of its own is linked against like
//! PostgreSQL's own modules are: with its directory in the run path. Packages are for servers of the
//! distribution, whatever they are built with: they say so by `ROWSYNC_SYSTEM_LIBPQ`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=ROWSYNC_SYSTEM_LIBPQ");
    if std::env::var_os("ROWSYNC_SYSTEM_LIBPQ").is_some() {
        return;
    }
    let Some(pg_config) = std::env::var_os("PGRX_PG_CONFIG_PATH") else {
        return;
    };
    println!(
        "cargo::rerun-if-changed={}",
        Path::new(&pg_config).display()
    );
    let Ok(output) = Command::new(pg_config).arg("--libdir").output() else {
        return;
    };
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let found_anyway = ["/lib", "/usr/lib"]
        .iter()
        .any(|dir| Path::new(&directory).starts_with(dir));
    if !found_anyway && Path::new(&directory).join("libpq.so.5").exists() {
        println!("cargo::rustc-link-arg-cdylib=-Wl,-rpath,{directory}");
    }
}
