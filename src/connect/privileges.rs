//! What a connection may use of the server account's own: whether it must show a password of the
//! mapping's, and whose options count that open files as the operating-system user.

use super::account::Account;
use crate::error::{Error, Result, SqlState};
use crate::fdw::SUPERUSER_ONLY;
use crate::pg::spi::{self, Extension};

/// A path that cannot be there. Without one, libpq looks for a certificate in the account's home.
pub const NO_CERTIFICATE: &str = "/dev/null/none";

/// Where an option comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OptionScope {
    Wrapper,
    Server,
    Mapping,
}

/// The validators that are known to watch what is set, by the extension they belong to. A wrapper without
/// one takes any option from anybody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validator {
    /// Lets none but superusers waive the password, or set a certificate anywhere.
    Ours,
    /// postgres_fdw's: does so for mappings, and leaves servers to their owners.
    PostgresFdw,
    Unknown,
}

/// What is known of those behind an account.
pub struct Privileges {
    owner_is_superuser: bool,
    server_is_superusers: bool,
    validator: Validator,
}

impl Privileges {
    /// Looks them up.
    ///
    /// # Errors
    /// 42704 when the mapping is gone.
    pub fn of(extension: &Extension, account: &Account) -> Result<Self> {
        let rows = spi::read(
            extension,
            "SELECT (SELECT r.rolsuper FROM pg_roles r \
                      WHERE r.oid = $3::oid), \
                    (SELECT r.rolsuper FROM pg_roles r \
                      WHERE r.oid = s.srvowner), \
                    (SELECT e.extname FROM pg_foreign_data_wrapper f \
                      JOIN pg_depend d \
                        ON d.classid = 'pg_proc'::regclass \
                       AND d.objid = f.fdwvalidator \
                       AND d.deptype = 'e' \
                      JOIN pg_extension e \
                        ON d.refclassid \
                             = 'pg_extension'::regclass \
                       AND e.oid = d.refobjid \
                      WHERE f.oid = s.srvfdw) \
             FROM pg_user_mapping m \
             JOIN pg_foreign_server s ON s.oid = m.umserver \
             WHERE m.oid = $2::oid \
               AND s.oid = $1::oid",
            &[
                Some(&account.server.to_u32().to_string()),
                Some(&account.mapping.to_u32().to_string()),
                Some(&account.owner.to_u32().to_string()),
            ],
        )?;
        // Dropped since the changes were captured: libpq would make up a user of its own.
        let Some(mut row) = rows.into_iter().next() else {
            return Err(Error::local(
                SqlState::UNDEFINED_OBJECT,
                format!(
                    "user mapping for server \"{}\" was dropped",
                    account.server_name
                ),
            ));
        };
        let is = |column: Option<String>| column.as_deref() == Some("t");
        let mut take = |at: usize| row.get_mut(at).and_then(Option::take);
        Ok(Self {
            owner_is_superuser: is(take(0)),
            server_is_superusers: is(take(1)),
            validator: match take(2).as_deref() {
                Some("pg_rowsync") => Validator::Ours,
                Some("postgres_fdw") => Validator::PostgresFdw,
                _ => Validator::Unknown,
            },
        })
    }

    /// Whether no password is required: of a superuser's table, over a superuser's server. Whose the
    /// server is says where it leads, and who else may have made the mapping.
    pub fn may_omit_password(&self) -> bool {
        self.owner_is_superuser && self.server_is_superusers
    }

    /// Whether the mapping may say that no password is required.
    pub fn may_waive(&self) -> bool {
        self.validator != Validator::Unknown
    }

    /// Whether an option counts that was set there: one that uses a file of the server account only if a
    /// superuser must have set it. Only superusers own wrappers.
    pub fn may_set(&self, option: &str, scope: OptionScope) -> bool {
        let watched = match scope {
            OptionScope::Wrapper => true,
            OptionScope::Server => self.server_is_superusers || self.validator == Validator::Ours,
            OptionScope::Mapping => self.validator != Validator::Unknown,
        };
        watched || self.may_omit_password() || !SUPERUSER_ONLY.contains(&option)
    }
}
