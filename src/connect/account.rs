//! A server and the user mapping that is used for the owner of a table: who connects where.

use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::spi::{self, Extension};

/// A server and the mapping used for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    pub server: Oid,
    pub server_name: String,
    pub mapping: Oid,
    /// The role whose mapping it is looked up for: the table's owner.
    pub owner: Oid,
}

/// What tells accounts apart: user mapping and owner.
pub type AccountKey = (u32, u32);

impl Account {
    /// Not the mapping alone: PUBLIC's serves several owners, of whom some need no password.
    pub fn key(&self) -> AccountKey {
        (self.mapping.to_u32(), self.owner.to_u32())
    }

    /// Looks up the server by name, the owner's USAGE on it and the owner's mapping, else PUBLIC's.
    ///
    /// # Errors
    /// 42704 for a missing server or mapping, 42501 for missing USAGE.
    pub fn look_up(extension: &Extension, server_name: &str, owner: Oid) -> Result<Self> {
        let owner_text = owner.to_u32().to_string();
        let found = spi::select_first::<(Oid, bool, String, Option<Oid>)>(
            extension,
            "SELECT s.oid, has_server_privilege($2::oid, s.oid, 'USAGE'), \
                    pg_get_userbyid($2::oid), m.oid \
             FROM pg_foreign_server s \
             LEFT JOIN LATERAL (SELECT u.oid FROM pg_user_mapping u \
                  WHERE u.umserver = s.oid \
                    AND u.umuser = \
                        ANY (ARRAY[$2::oid, 0::oid]) \
                  ORDER BY u.umuser DESC LIMIT 1) m ON true \
             WHERE s.srvname = $1::name",
            &[Some(server_name), Some(&owner_text)],
        )?;
        let Some((server, is_usable, role, mapping)) = found else {
            return Err(no_server(server_name));
        };
        if !is_usable {
            return Err(Error::local(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for foreign server {server_name}"),
            )
            .with_hint(format!(
                "The table's owner \"{role}\" needs USAGE on the server: GRANT USAGE ON FOREIGN \
                 SERVER."
            )));
        }
        let Some(mapping) = mapping else {
            return Err(Error::local(
                SqlState::UNDEFINED_OBJECT,
                format!("user mapping not found for user \"{role}\", server \"{server_name}\""),
            )
            .with_hint(
                "The mapping of the table's owner is used: CREATE USER MAPPING FOR that role.",
            ));
        };
        Ok(Self {
            server,
            server_name: server_name.to_owned(),
            mapping,
            owner,
        })
    }
}

/// The OID of a server.
///
/// # Errors
/// 42704 when there is none of that name.
pub fn server_oid(extension: &Extension, name: &str) -> Result<Oid> {
    let sql = "SELECT oid FROM pg_foreign_server WHERE srvname = $1::name";
    let server = spi::select_first(extension, sql, &[Some(name)])?;
    server.ok_or_else(|| no_server(name))
}

fn no_server(name: &str) -> Error {
    Error::local(
        SqlState::UNDEFINED_OBJECT,
        format!("server \"{name}\" does not exist"),
    )
    .with_hint("Create it with CREATE SERVER ... FOREIGN DATA WRAPPER pg_rowsync.")
}

/// An OID from its text.
///
/// # Errors
/// When it is none.
pub fn oid(text: &str) -> Result<Oid> {
    text.parse::<u32>()
        .map(Oid::from)
        .map_err(|_| Error::internal("malformed oid"))
}
