//! What libpq knows of connection options.

use super::environment::without_options;
use pq_sys::{PQconndefaults, PQconninfoFree};
use std::ffi::CStr;
use std::sync::OnceLock;

/// A connection option of the libpq that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyword {
    pub name: String,
    /// A password or the like: belongs in a user mapping and never in a message.
    pub secret: bool,
    /// For debugging libpq, not for users.
    pub debug: bool,
}

/// libpq's OAuth flow fetches whatever URL it is given and talks to the user on stderr: nothing for a
/// server process. postgres_fdw leaves these out as well.
const NOT_FOR_SERVERS: &str = "oauth_";

/// All options that a server process may use, read from libpq once. Empty only when memory is out.
pub fn all() -> &'static [Keyword] {
    static ALL: OnceLock<Vec<Keyword>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut found = Vec::new();
        // SAFETY: the array ends with a null keyword, and is freed after it was copied.
        unsafe {
            let options = without_options(|| PQconndefaults());
            let mut at = options;
            while !at.is_null() && !(*at).keyword.is_null() {
                let name = CStr::from_ptr((*at).keyword).to_string_lossy().into_owned();
                let display = CStr::from_ptr((*at).dispchar).to_bytes();
                if !name.starts_with(NOT_FOR_SERVERS) {
                    found.push(Keyword {
                        name,
                        secret: display.contains(&b'*'),
                        debug: display.contains(&b'D'),
                    });
                }
                at = at.add(1);
            }
            if !options.is_null() {
                PQconninfoFree(options);
            }
        }
        found
    })
}

/// The option of that name.
pub fn find(name: &str) -> Option<&'static Keyword> {
    all().iter().find(|k| k.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpq_says_which_options_are_secret() {
        assert!(find("password").is_some_and(|k| k.secret));
        assert!(find("host").is_some_and(|k| !k.secret && !k.debug));
        assert!(find("no_such_option").is_none());
    }
}
