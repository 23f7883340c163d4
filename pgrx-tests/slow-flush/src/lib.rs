//! Loaded into a server with `LD_PRELOAD`: every `fdatasync`, which is how the write-ahead log is
//! flushed, takes so many microseconds longer as the variable [`VARIABLE`] says. For disks that are
//! further away than those of the machine on which the benchmark runs.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

const VARIABLE: &str = "SLOW_FLUSH_MICROSECONDS";

fn delay() -> Duration {
    static DELAY: OnceLock<Duration> = OnceLock::new();
    *DELAY.get_or_init(|| {
        let reported = std::env::var(VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok());
        Duration::from_micros(reported.unwrap_or(0))
    })
}

/// As that of the C library, after a delay.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: libc::c_int) -> libc::c_int {
    sleep(delay());
    // SAFETY: the system call that the C library makes; any number is allowed.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as libc::c_int }
}
