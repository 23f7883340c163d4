//! The directory of this process's clusters, and the promise that neither it nor any server in it
//! outlives this process.
//!
//! A destructor cannot keep that promise: statics are never dropped, and SIGKILL runs nothing. So a
//! small shell in a process group of its own waits on a pipe that only this process holds; when the
//! pipe closes, for whatever reason, it ends every process that works inside the directory and
//! removes it. Processes are recognised by their working directory, which PostgreSQL sets to the data
//! directory in the postmaster and all its children: unlike a pid in a file it is never stale, and
//! stopped processes are found as well.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Pid, User, geteuid};

/// Ends all servers below `$1`, then removes it. SIGQUIT first, which lets a postmaster release its
/// System V segment; of one that died without doing so, the segment is removed by number.
const REAP: &str = r#"
cd /; dir=$1
pids() { ls -l /proc/[0-9]*/cwd 2>/dev/null | sed -n "s#.* /proc/\([0-9]*\)/cwd -> $dir\(/.*\)\{0,1\}\$#\1#p"; }
signal() { for pid in $(pids); do kill -s "$1" "$pid" 2>/dev/null; done; }
signal QUIT; signal CONT
round=0
while [ -n "$(pids)" ]; do
  round=$((round + 1))
  [ $round -gt 60 ] && signal KILL
  [ $round -gt 200 ] && exit 1
  sleep 0.05
done
for file in $(find "$dir" -maxdepth 3 -name postmaster.pid); do
  set -- $(sed -n 7p "$file")
  [ -n "$2" ] && ipcrm -m "$2" 2>/dev/null
done
rm -rf "$dir"
"#;

struct Base {
    dir: PathBuf,
    /// Its standard input is the pipe: dropping it would end all clusters.
    _watchdog: Child,
}

static BASE: Mutex<Option<Base>> = Mutex::new(None);

/// The directory under which every cluster of this process lives, owned by [`server_user`].
pub fn base() -> Result<PathBuf> {
    let mut base = BASE.lock().unwrap_or_else(|broken| broken.into_inner());
    if let Some(base) = &*base {
        return Ok(base.dir.clone());
    }
    let name = format!("pg_rowsync-{}-{}", std::process::id(), &random_hex()?[..8]);
    let dir = std::env::temp_dir().canonicalize()?.join(name);
    fs::create_dir(&dir).with_context(|| format!("could not create \"{}\"", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
    let watchdog = Command::new("sh")
        .arg("-c")
        .arg(format!("trap '' INT TERM HUP; cat >/dev/null\n{REAP}"))
        .arg("reaper")
        .arg(&dir)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("could not start the watchdog shell")?;
    hand_over(&dir)?;
    *base = Some(Base {
        dir: dir.clone(),
        _watchdog: watchdog,
    });
    Ok(dir)
}

/// Ends all servers in `dir`, stopped ones too, and removes it.
pub fn reap(dir: &Path) -> Result<()> {
    let status = Command::new("sh")
        .arg("-c")
        .arg(REAP)
        .arg("reaper")
        .arg(dir)
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "could not clean up \"{}\"", dir.display());
    Ok(())
}

/// The processes that work in exactly this directory.
pub fn processes_in(dir: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir))
        .map(Pid::from_raw)
        .collect()
}

/// Who runs the servers: PostgreSQL refuses root, so root hands them to the user `postgres`.
pub fn server_user() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user =
        User::from_name("postgres")?.context("there is no user \"postgres\" to run servers as")?;
    Ok(Some(user))
}

/// A command run as [`server_user`], in a process group of its own (a Ctrl-C must not reach it) and
/// with an environment that does not depend on the caller's.
pub fn server_command(program: impl AsRef<Path>) -> Result<Command> {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    command.process_group(0).stdin(Stdio::null());
    if let Some(user) = server_user()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// Gives a file or directory to [`server_user`].
pub fn hand_over(path: &Path) -> Result<()> {
    if let Some(user) = server_user()? {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// 32 random hexadecimal digits.
pub fn random_hex() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
