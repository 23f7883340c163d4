//! What all servers of a run of tests have logged, in one folder, read at the end for what no test may bring
//! about, whether its test has noticed or not: a failed assertion, a crash of the server's own, a leak that
//! the server has found.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::reaper;

/// The variable that names the folder.
const FOLDER: &str = "ROWSYNC_SERVER_LOGS";

/// The variable that has every server run under valgrind: it names what is not to be told.
const VALGRIND: &str = "ROWSYNC_VALGRIND";

/// How the names of valgrind's own logs end, after a process's number.
const OF_VALGRIND: &str = ".valgrind";

/// Signals by which no test ends a process: a process that ends so has done it itself.
const CRASHES: [&str; 5] = ["4", "6", "7", "8", "11"];

/// What the server finds when a transaction ends, or memory is checked or freed.
const LEAKS: [&str; 5] = [
    "reference leak: ",
    "refcount leak: ",
    "temporary file leak: ",
    "WARNING:  problem in alloc set",
    "WARNING:  detected write past chunk end",
];

/// Where the log of a cluster of this process goes, if they are kept together.
pub fn place(cluster: &Path) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let names = cluster
        .iter()
        .rev()
        .take(2)
        .map(|name| name.to_string_lossy());
    let names: Vec<_> = names.collect();
    Some(folder.join(format!("{}.log", names.join("-"))))
}

/// The program that runs a server of this process, with its arguments, if servers are watched.
pub fn watcher() -> Vec<OsString> {
    let Some((suppressions, folder)) = std::env::var_os(VALGRIND).zip(std::env::var_os(FOLDER))
    else {
        return Vec::new();
    };
    let with = |option: &str, value: OsString| {
        let mut argument = OsString::from(option);
        argument.push(value);
        argument
    };
    let log = PathBuf::from(folder).join(format!("%p{OF_VALGRIND}"));
    let mut all: Vec<OsString> = ["valgrind"].map(OsString::from).to_vec();
    all.extend(
        [
            "--quiet",
            "--leak-check=no",
            "--error-limit=no",
            "--num-callers=40",
            "--trace-children=yes",
            "--error-markers=BEGIN,END",
        ]
        .map(OsString::from),
    );
    all.push(with("--suppressions=", suppressions));
    all.push(with("--log-file=", log.into_os_string()));
    all
}

/// The folder of one run. It goes with the value, unless there was something to be found.
pub struct ServerLogs {
    folder: PathBuf,
    valgrind: Option<PathBuf>,
}

impl ServerLogs {
    /// A new folder below this one.
    pub fn begin(below: &Path) -> Result<ServerLogs> {
        let folder = below.join(format!("server-logs-{}", &reaper::random_hex()?[..8]));
        fs::create_dir_all(&folder)?;
        let valgrind = None;
        Ok(ServerLogs { folder, valgrind })
    }

    /// Has the servers run under valgrind, which is not to tell what this file describes.
    pub fn with_valgrind(mut self, suppressions: PathBuf) -> Result<ServerLogs> {
        reaper::hand_over(&self.folder)?;
        self.valgrind = Some(suppressions);
        Ok(self)
    }

    /// What the tests must have in their environment.
    pub fn env(&self) -> Vec<(&'static str, &Path)> {
        let valgrind = self.valgrind.as_deref().map(|file| (VALGRIND, file));
        let folder = Some((FOLDER, &*self.folder));
        folder.into_iter().chain(valgrind).collect()
    }

    /// The lines that tell of what may not be, each with the file that it is in. Files without any go.
    pub fn findings(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log);
            let name = path.display();
            let found = if name.to_string().ends_with(OF_VALGRIND) {
                errors_of_valgrind(&log)
            } else {
                let found = log.lines().filter(|line| is_finding(line));
                found.map(str::to_owned).collect()
            };
            if found.is_empty() {
                fs::remove_file(&path)?;
            }
            all.extend(found.iter().map(|what| format!("{name}: {what}")));
        }
        Ok(all)
    }
}

impl Drop for ServerLogs {
    fn drop(&mut self) {
        // Only if nothing was left in it.
        let _ = fs::remove_dir(&self.folder);
    }
}

fn is_finding(line: &str) -> bool {
    let crash = || {
        let (_, rest) = line.split_once(" was terminated by signal ")?;
        let (signal, _) = rest.split_once(':')?;
        Some(CRASHES.contains(&signal))
    };
    // A statement that quotes such a line is none.
    line.starts_with("TRAP: ")
        || line.contains(" PANIC:  ") && !line.contains(" STATEMENT:  ")
        || crash() == Some(true)
        || LEAKS.iter().any(|leak| line.contains(leak))
}

/// What is between the marks, without the number of the process.
fn errors_of_valgrind(log: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut current: Option<Vec<&str>> = None;
    for line in log.lines() {
        let text = line.splitn(3, "==").last().unwrap_or(line).trim();
        match (text, &mut current) {
            ("BEGIN", _) => current = Some(Vec::new()),
            ("END", Some(lines)) => {
                all.push(lines.join("\n    "));
                current = None;
            }
            (_, Some(lines)) => lines.push(text),
            (_, None) => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_test_may_bring_about_is_found() {
        let at = "2026-11-27 08:00:00.000 UTC [71]";
        for line in [
            "TRAP: FailedAssertion(\"x\", File: \"xact.c\", Line: 1, PID: 7)".to_owned(),
            format!("{at} PANIC:  cannot abort transaction 7, it was already committed"),
            format!("{at} psql u@d PANIC:  cannot abort transaction 7"),
            format!(
                "{at} LOG:  server process (PID 7) was terminated by signal 11: Segmentation fault"
            ),
            format!("{at} psql u@d WARNING:  relcache reference leak: relation \"t\" not closed"),
        ] {
            assert!(is_finding(&line), "{line}");
        }
        for line in [
            format!("{at} LOG:  server process (PID 7) was terminated by signal 9: Killed"),
            format!("{at} psql u@d STATEMENT:  select ' PANIC:  '"),
            format!("{at} psql u@d LOG:  statement: select 1"),
        ] {
            assert!(!is_finding(&line), "{line}");
        }
    }

    #[test]
    fn errors_of_valgrind_are_told_apart() {
        let log = "==7== BEGIN\n==7== Invalid read of size 8\n==7==    at 0x1: f (x.c:1)\n==7== END\n\
                   ==7== other words\n==7== BEGIN\n==7== Invalid write\n==7== END\n";
        let errors = errors_of_valgrind(log);
        assert_eq!(
            errors,
            [
                "Invalid read of size 8\n    at 0x1: f (x.c:1)",
                "Invalid write"
            ]
        );
    }

    #[test]
    fn logs_without_findings_go() {
        let below = std::env::temp_dir();
        let logs = ServerLogs::begin(&below).expect("a folder");
        fs::write(logs.folder.join("well.log"), "all is well\n").expect("a log");
        fs::write(logs.folder.join("ill.log"), "TRAP: x\n").expect("a log");
        let found = logs.findings().expect("findings");
        assert!(
            found.len() == 1 && found[0].contains("ill.log: TRAP: x"),
            "{found:?}"
        );
        assert!(!logs.folder.join("well.log").exists());
        fs::remove_file(logs.folder.join("ill.log")).expect("a log");
        let folder = logs.folder.clone();
        drop(logs);
        assert!(!folder.exists());
    }
}
