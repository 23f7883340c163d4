//! Where to connect and as whom: a foreign server and a user mapping, turned into libpq options.

use super::standing::{NO_CERTIFICATE, Place, Standing};
use crate::error::{Error, Result, SqlState};
use crate::fdw;
use crate::guc;
use crate::options::check_guard;
use crate::pg::invalidation::Changed;
use crate::pg::spi::{self, Home, required};
use crate::pg::text::c_string;
use crate::pg::{Oid, invalidation};
use crate::pq::keywords;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;
use std::time::Duration;

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
    pub fn look_up(home: &Home, server_name: &str, owner: Oid) -> Result<Self> {
        let owner_text = owner.to_u32().to_string();
        let rows = spi::read(
            home,
            "SELECT s.oid, pg_catalog.has_server_privilege($2::pg_catalog.oid, s.oid, 'USAGE'), \
                    pg_catalog.pg_get_userbyid($2::pg_catalog.oid), m.oid \
             FROM pg_catalog.pg_foreign_server s \
             LEFT JOIN LATERAL (SELECT u.oid FROM pg_catalog.pg_user_mapping u \
                  WHERE u.umserver OPERATOR(pg_catalog.=) s.oid \
                    AND u.umuser OPERATOR(pg_catalog.=) \
                        ANY (ARRAY[$2::pg_catalog.oid, 0::pg_catalog.oid]) \
                  ORDER BY u.umuser DESC LIMIT 1) m ON true \
             WHERE s.srvname OPERATOR(pg_catalog.=) $1::pg_catalog.name",
            &[Some(server_name), Some(&owner_text)],
        )?;
        let Some(mut row) = rows.into_iter().next() else {
            return Err(no_server(server_name));
        };
        let role = required(&mut row, 2)?;
        if required(&mut row, 1)? != "t" {
            return Err(Error::local(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for foreign server {server_name}"),
            )
            .with_hint(format!(
                "The table's owner \"{role}\" needs USAGE on the server: GRANT USAGE ON FOREIGN \
                 SERVER."
            )));
        }
        let server = oid(&required(&mut row, 0)?)?;
        let Some(mapping) = row.get_mut(3).and_then(Option::take) else {
            return Err(Error::local(
                SqlState::UNDEFINED_OBJECT,
                format!("user mapping not found for user \"{role}\", server \"{server_name}\""),
            )
            .with_hint(
                "The mapping of the table's owner is used: CREATE USER MAPPING FOR that role.",
            ));
        };
        Ok(Self { server, server_name: server_name.to_owned(), mapping: oid(&mapping)?, owner })
    }
}

/// The OID of a server.
///
/// # Errors
/// 42704 when there is none of that name.
pub fn server_oid(home: &Home, name: &str) -> Result<Oid> {
    let rows = spi::read(
        home,
        "SELECT oid FROM pg_catalog.pg_foreign_server \
         WHERE srvname OPERATOR(pg_catalog.=) $1::pg_catalog.name",
        &[Some(name)],
    )?;
    let mut row = rows.into_iter().next().ok_or_else(|| no_server(name))?;
    oid(&required(&mut row, 0)?)
}

fn no_server(name: &str) -> Error {
    Error::local(SqlState::UNDEFINED_OBJECT, format!("server \"{name}\" does not exist"))
        .with_hint("Create it with CREATE SERVER ... FOREIGN DATA WRAPPER pg_rowsync.")
}

/// An OID from its text.
///
/// # Errors
/// When it is none.
pub fn oid(text: &str) -> Result<Oid> {
    text.parse::<u32>().map(Oid::from).map_err(|_| Error::internal("malformed oid"))
}

/// What an endpoint was made from, besides its options: catalogs, guard setting, times.
type Moment = (u64, CString, [Duration; 3]);

thread_local! {
    static KNOWN: RefCell<HashMap<AccountKey, (Moment, Rc<Endpoint>)>> = RefCell::default();
}

/// Everything a connection is made with. Two endpoints that are equal can share a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub account: Account,
    /// Guard name of the server's connections.
    pub application_name: String,
    /// The same, if the server's options give it and not the setting.
    pub own_name: Option<String>,
    /// The mapping must bring a password, and the server must ask for it.
    pub password_required: bool,
    /// The mapping brings one.
    has_password: bool,
    /// How a change of its server or mapping will be reported. Looked up here, inside a transaction:
    /// a connection may come up outside of one.
    pub identity: [Changed; 2],
    params: Vec<(CString, CString)>,
}

impl Endpoint {
    /// The endpoint of an account, read anew when a server, mapping, role or one of our settings
    /// has changed.
    ///
    /// # Errors
    /// 42704 when the mapping is gone; 22021 for an option that cannot be passed on.
    pub fn resolve(home: &Home, account: &Account) -> Result<Rc<Self>> {
        let key = account.key();
        let times =
            [guc::delivery_timeout(), guc::lock_timeout(), guc::idle_in_transaction_timeout()];
        let now = (invalidation::servers(), guc::guard(), times);
        let known = KNOWN.with_borrow(|known| known.get(&key).cloned());
        if let Some((_, endpoint)) = known.filter(|(then, e)| *then == now && e.account == *account)
        {
            return Ok(endpoint);
        }
        let endpoint = Rc::new(Self::read(home, account)?);
        KNOWN.with_borrow_mut(|known| known.insert(key, (now, endpoint.clone())));
        Ok(endpoint)
    }

    /// Reads the options of wrapper, server and mapping, the later ones winning.
    fn read(home: &Home, account: &Account) -> Result<Self> {
        let rows = spi::read(
            home,
            "SELECT o.place, o.name, o.value FROM ( \
               SELECT 1, o.option_name, o.option_value FROM pg_catalog.pg_foreign_server s \
                 JOIN pg_catalog.pg_foreign_data_wrapper f \
                   ON f.oid OPERATOR(pg_catalog.=) s.srvfdw, \
                 pg_catalog.pg_options_to_table(f.fdwoptions) o \
                 WHERE s.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               UNION ALL \
               SELECT 2, o.option_name, o.option_value FROM pg_catalog.pg_foreign_server s, \
                 pg_catalog.pg_options_to_table(s.srvoptions) o \
                 WHERE s.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid \
               UNION ALL \
               SELECT 3, o.option_name, o.option_value FROM pg_catalog.pg_user_mapping m, \
                 pg_catalog.pg_options_to_table(m.umoptions) o \
                 WHERE m.oid OPERATOR(pg_catalog.=) $2::pg_catalog.oid \
             ) AS o(place, name, value) ORDER BY o.place",
            &[
                Some(&account.server.to_u32().to_string()),
                Some(&account.mapping.to_u32().to_string()),
            ],
        )?;
        let standing = Standing::of(home, account)?;
        let mut options: Vec<(String, String)> = Vec::new();
        let mut waived = false;
        let mut has_password = false;
        for mut row in rows {
            let place = match required(&mut row, 0)?.as_str() {
                "1" => Place::Wrapper,
                "2" => Place::Server,
                _ => Place::Mapping,
            };
            let (name, value) = (required(&mut row, 1)?, required(&mut row, 2)?);
            if name == "password" {
                has_password = place == Place::Mapping && !value.is_empty();
            }
            if name == fdw::PASSWORD_REQUIRED && place == Place::Mapping {
                waived = standing.may_waive() && fdw::boolean(&name, &value).is_ok_and(|b| !b);
            } else if keywords::find(&name).is_some_and(|k| !k.debug)
                && standing.may_set(&name, place)
            {
                options.retain(|(n, _)| *n != name);
                options.push((name, value));
            }
        }
        let password_required = !standing.is_trusted() && !waived;
        if password_required && !options.iter().any(|(name, _)| name == "sslcert") {
            options.push(("sslcert".into(), NO_CERTIFICATE.into()));
        }
        Self::of_options(account.clone(), options, password_required, has_password)
    }

    fn of_options(
        account: Account,
        mut options: Vec<(String, String)>,
        password_required: bool,
        has_password: bool,
    ) -> Result<Self> {
        let mut take = |name: &str| {
            let at = options.iter().position(|(n, _)| n == name)?;
            Some(options.swap_remove(at).1)
        };
        let own = take("options").unwrap_or_default();
        let own_name = take("application_name").or_else(|| name_in_options(&own));
        let application_name = own_name.clone().unwrap_or_else(guc::application_name);
        check_guard(&application_name)?;
        // The server's encoding is none of the mapping's business, nor is the protocol's kind.
        for name in ["client_encoding", "replication", "fallback_application_name"] {
            take(name);
        }
        for (name, value) in dead_peer_options() {
            if !options.iter().any(|(n, _)| n == name) {
                options.push((name.into(), value));
            }
        }
        options.push(("client_encoding".into(), "UTF8".into()));
        options.push(("application_name".into(), application_name.clone()));
        options.push(("options".into(), format!("{own} {}", session_options()).trim().into()));
        let params = options
            .into_iter()
            .map(|(n, v)| Ok((c_string(&n)?, c_string(&v)?)))
            .collect::<Result<Vec<_>>>()?;
        let identity = Changed::of_account(account.server, account.mapping);
        Ok(Self {
            account,
            application_name,
            own_name,
            password_required,
            has_password,
            identity,
            params,
        })
    }

    /// Refuses to connect without a password of the mapping's own, so that no one gets in as the
    /// server's operating-system user or with its password file.
    ///
    /// # Errors
    /// 2F003, as postgres_fdw raises it.
    pub fn check_before(&self) -> Result<()> {
        if self.password_required && !self.has_password {
            return Err(self.refused("Non-superusers must provide a password in the user mapping."));
        }
        Ok(())
    }

    /// Refuses a connection that was let in without the password.
    ///
    /// # Errors
    /// 2F003, as postgres_fdw raises it.
    pub fn check_after(&self, used_password: bool) -> Result<()> {
        if self.password_required && !used_password {
            return Err(self.refused(
                "Non-superuser cannot connect if the server does not request a password.",
            ));
        }
        Ok(())
    }

    fn refused(&self, detail: &str) -> Error {
        Error::local(SqlState::PASSWORD_REQUIRED, "password is required")
            .with_detail(detail)
            .with_hint(
                "Target server's authentication method must be changed or password_required=false \
                 set in the user mapping attributes.",
            )
    }

    /// Keyword and value pairs for libpq.
    pub fn params(&self) -> &[(CString, CString)] {
        &self.params
    }
}

/// How a dead peer is noticed, where the server's own options do not say: left to the kernel, an idle
/// connection is probed after two hours, and data that no one acknowledges is sent again for a quarter
/// of an hour, in which a delivery given up long ago might still arrive.
fn dead_peer_options() -> [(&'static str, String); 4] {
    [
        ("keepalives_idle", KEEPALIVES_IDLE.to_string()),
        ("keepalives_interval", KEEPALIVES_INTERVAL.to_string()),
        ("keepalives_count", KEEPALIVES_COUNT.to_string()),
        ("tcp_user_timeout", guc::delivery_timeout().as_millis().to_string()),
    ]
}

/// Seconds without traffic after which the first probe is sent, on both sides.
const KEEPALIVES_IDLE: u32 = 30;
/// Seconds between probes.
const KEEPALIVES_INTERVAL: u32 = 10;
/// Probes without an answer after which the peer is dead.
const KEEPALIVES_COUNT: u32 = 3;

/// What pins a remote session, as start-up options: everything in the first packet, so that it
/// costs no round trip. They come after the user's own and win.
fn session_options() -> String {
    let timeout = guc::delivery_timeout().as_millis();
    let lock = guc::lock_timeout().as_millis();
    let idle = guc::idle_in_transaction_timeout().as_millis();
    [
        "search_path=pg_catalog".to_owned(),
        "datestyle=ISO".to_owned(),
        "intervalstyle=postgres".to_owned(),
        "extra_float_digits=3".to_owned(),
        "timezone=UTC".to_owned(),
        "lc_monetary=C".to_owned(),
        "array_nulls=on".to_owned(),
        "default_transaction_isolation=read\\ committed".to_owned(),
        "default_transaction_read_only=off".to_owned(),
        // A policy that hides a row would make it look missing: an error instead.
        "row_security=off".to_owned(),
        "jit=off".to_owned(),
        "client_connection_check_interval=1000".to_owned(),
        format!("statement_timeout={timeout}"),
        format!("lock_timeout={lock}"),
        // A transaction whose other end has vanished must not hold its row locks for hours.
        format!("idle_in_transaction_session_timeout={idle}"),
        format!("tcp_keepalives_idle={KEEPALIVES_IDLE}"),
        format!("tcp_keepalives_interval={KEEPALIVES_INTERVAL}"),
        format!("tcp_keepalives_count={KEEPALIVES_COUNT}"),
    ]
    .map(|setting| format!("-c {setting}"))
    .join(" ")
}

/// The `application_name` inside an `options` string, written `-c name=value`, `-cname=value` or
/// `--name=value`, with backslashes before spaces, as the server reads it; the last one counts.
fn name_in_options(options: &str) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            // The server's isspace() knows one more.
            c if c.is_ascii_whitespace() || c == '\u{b}' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let mut found = None;
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().unwrap_or_default(),
            Some(setting) => setting.to_owned(),
            None => continue,
        };
        if let Some((name, value)) = setting.split_once('=')
            && name.replace('-', "_").eq_ignore_ascii_case("application_name")
        {
            found = Some(value.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[test]
    fn the_guard_name_is_found_in_the_options_of_the_recipe() {
        assert_eq!(name_in_options("-c application_name=aaa").as_deref(), Some("aaa"));
        assert_eq!(name_in_options("-capplication_name=aaa").as_deref(), Some("aaa"));
        assert_eq!(name_in_options("--application-name=a\\ b").as_deref(), Some("a b"));
        assert_eq!(
            name_in_options("-c geqo=off -c application_name=a -c application_name=b").as_deref(),
            Some("b")
        );
        assert_eq!(name_in_options("-c geqo=off"), None);
        assert_eq!(name_in_options(""), None);
    }

    #[test]
    fn the_guard_name_in_any_options_is_the_last_that_the_server_would_read() {
        let name = select(vec!["application_name", "Application-Name", "geqo", "application"]);
        let setting = (select(vec!["-c ", "-c", "--", "-c\t ", "-c\u{b}"]), name, fuzz::text());
        fuzz::check(2_000, &vec(setting, 0..4), |settings| {
            let (mut options, mut expected) = (String::new(), None);
            for (prefix, name, value) in settings {
                options.push_str(&format!(" {prefix}{name}="));
                for c in value.chars() {
                    // As isspace() of the C locale has it.
                    if c == '\\' || c.is_ascii_whitespace() || c == '\u{b}' {
                        options.push('\\');
                    }
                    options.push(c);
                }
                if name.len() == "application_name".len() {
                    expected = Some(value);
                }
            }
            prop_assert_eq!(name_in_options(&options), expected, "{:?}", options);
            Ok(())
        });
    }
}
