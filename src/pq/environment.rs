//! What libpq sees of the process's environment while it connects.
//!
//! The variables of a server process are those of whoever started the postmaster: a container's PGTZ or
//! PGDATESTYLE, a shell's PGSSLMODE. libpq takes each connection option that is not given from one of them,
//! some settings of the session besides, and treats an option that is given as empty like one that is not. So
//! it is shown an environment of its own, without them.
//!
//! Nothing is written to the environment itself. The process's pointer to it is exchanged while libpq is
//! called, in one thread and without a wait, and put back after: whoever reads variables at any other time
//! finds all of them, and another thread that reads them meanwhile finds an array and strings that are never
//! freed.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

/// libpq reads no variable of another prefix, but for those that say where the account's files are.
const PREFIX: &[u8] = b"PG";

/// Variables that name no option's value but the place of a file of the server account's: as `REMOTE_SCHEMA`
/// does, which stays too. What is in these files is used where a superuser says so.
const PLACES: [&str; 3] = ["PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR"];

/// Ends with null.
type Environment = *const *const c_char;

unsafe extern "C" {
    /// POSIX's.
    static mut environ: Environment;
}

thread_local! {
    /// What libpq was shown last.
    static SHOWN: Cell<&'static [*const c_char]> = const { Cell::new(&[]) };
}

/// Puts the environment back, also when unwinding.
struct Restore {
    before: Environment,
    shown: Environment,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // SAFETY: a pointer that was the environment's a moment ago. One that somebody has put there since
        // stays.
        unsafe {
            if std::ptr::eq(environ, self.shown) {
                environ = self.before;
            }
        }
    }
}

/// Calls libpq without the variables that it would read options from.
pub(super) fn without_options<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: a plain read of the process's pointer.
    let before = unsafe { environ };
    let shown = shown_of(before);
    let _restore = Restore { before, shown };
    // SAFETY: an array that ends with null and is never freed, of strings of the environment.
    unsafe { environ = shown };
    call()
}

/// The environment without what is hidden. Made anew, and kept for ever, only when variables have changed.
fn shown_of(environment: Environment) -> Environment {
    let mut shown: Vec<*const c_char> = Vec::new();
    // SAFETY: null, or an array that ends with null of C strings.
    unsafe {
        let mut at = environment;
        while !at.is_null() && !(*at).is_null() {
            if !is_hidden(CStr::from_ptr(*at).to_bytes()) {
                shown.push(*at);
            }
            at = at.add(1);
        }
    }
    shown.push(std::ptr::null());
    if SHOWN.get() != shown.as_slice() {
        SHOWN.set(shown.leak());
    }
    SHOWN.get().as_ptr()
}

/// Whether libpq is not shown a variable, given as `NAME=value`.
fn is_hidden(variable: &[u8]) -> bool {
    let name = variable
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default();
    name.starts_with(PREFIX) && !PLACES.iter().any(|place| place.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pq_sys::{PQconndefaults, PQconninfoFree};
    use std::process::Command;

    const VALUE: &str = "4711";

    /// The options of the libpq that is loaded: variable and value.
    fn defaults() -> Vec<(Option<String>, Option<String>)> {
        let text = |pointer: *const c_char| {
            (!pointer.is_null()).then(|| {
                // SAFETY: a C string of libpq's.
                let value = unsafe { CStr::from_ptr(pointer) };
                value.to_string_lossy().into_owned()
            })
        };
        let mut found = Vec::new();
        // SAFETY: the array ends with a null keyword, and is freed after it was copied.
        unsafe {
            let options = PQconndefaults();
            let mut at = options;
            while !(*at).keyword.is_null() {
                found.push((text((*at).envvar), text((*at).val)));
                at = at.add(1);
            }
            PQconninfoFree(options);
        }
        found
    }

    /// Variables are set for a process, so each look is one of its own: this test again.
    #[test]
    fn no_option_of_this_libpq_comes_from_a_variable() {
        const IS_CHILD: &str = "ROWSYNC_LOOKS_AT_VARIABLES";
        if std::env::var_os(IS_CHILD).is_some() {
            return look();
        }
        let named = defaults().into_iter().filter_map(|(variable, _)| variable);
        // A service that is not there spoils the rest; it is looked at in a test with servers.
        let named: Vec<String> = named
            .filter(|name| !name.starts_with("PGSERVICE"))
            .collect();
        assert!(named.len() > 20, "{named:?}");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                concat!(
                    module_path!(),
                    "::no_option_of_this_libpq_comes_from_a_variable"
                )
                .trim_start_matches("pg_rowsync::"),
            ])
            .envs(named.iter().map(|name| (name, VALUE)))
            .env("PGTZ", "Asia/Tokyo")
            .env(IS_CHILD, "1")
            .output()
            .expect("a process");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    fn look() {
        let taken = |(variable, value): &(Option<String>, Option<String>)| {
            variable.is_some() && value.as_deref() == Some(VALUE)
        };
        assert!(defaults().iter().filter(|option| taken(option)).count() > 20);
        let mut left = without_options(defaults);
        left.retain(taken);
        let left: Vec<String> = left
            .into_iter()
            .filter_map(|(variable, _)| variable)
            .collect();
        assert_eq!(left, ["PGPASSFILE"]);
        // SAFETY: a C string; the answer is null or lives as long as the variables.
        let has = |name: &CStr| !unsafe { libc::getenv(name.as_ptr()) }.is_null();
        without_options(|| assert!(has(c"PGPASSFILE") && has(c"PATH") && !has(c"PGTZ")));
        assert!(has(c"PGTZ") && has(c"PGHOST"));
    }
}
