//! Where to connect and as whom: a foreign server and a user mapping, turned into libpq options.

use super::account::{Account, AccountKey};
use super::privileges::{NO_CERTIFICATE, OptionScope, Privileges};
use crate::connect::settings::{
    KEEPALIVES_COUNT, KEEPALIVES_IDLE, KEEPALIVES_INTERVAL, Limits, Pooled, SessionSettings,
    settings_in,
};
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::options::check_guard;
use crate::pg::invalidation;
use crate::pg::invalidation::Changed;
use crate::pg::spi::{self, Extension};
use crate::pg::text::c_string;
use crate::pq::keywords;
use crate::{fdw, guc, identity};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

/// What an endpoint was made from, besides its options: catalogs, guard setting, times.
type Moment = (u64, CString, Limits);

process_local! {
    static ENDPOINTS: RefCell<HashMap<AccountKey, (Moment, Rc<Endpoint>)>> = RefCell::default();
}

/// Everything a connection is made with. Two endpoints that are equal can share a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub account: Account,
    /// Guard name of the server's connections.
    pub application_name: String,
    /// The guard name, if the server's options give it and not the setting.
    pub own_name: Option<String>,
    /// The mapping must bring a password, and the server must ask for it.
    pub password_required: bool,
    /// The mapping brings one.
    has_password: bool,
    /// How a change of its server or mapping will be reported. Looked up here, inside a transaction:
    /// a connection may come up outside of one.
    pub identity: [Changed; 3],
    /// Whether there is a pooler in between.
    pub pooled: Pooled,
    /// Sessions are kept between transactions.
    pub keep_connections: bool,
    pub settings: SessionSettings,
    params: Vec<(CString, CString)>,
    /// The start-up parameter `options` is refused on the way.
    refuses_options: Learnt,
}

/// The options that say where a server is.
const HOST: [&str; 4] = ["service", "host", "hostaddr", "port"];

/// Options and their values, in words.
fn described(params: &[(CString, CString)], names: &[&str]) -> String {
    let value = |name: &str| {
        let of = |(known, _): &&(CString, CString)| known.to_bytes() == name.as_bytes();
        let found = params.iter().rfind(of);
        found.map(|(_, value)| value.to_string_lossy().into_owned())
    };
    let words = names
        .iter()
        .filter_map(|name| Some(format!("{name}={}", value(name)?)));
    words.collect::<Vec<_>>().join(" ")
}

/// What is learnt of an endpoint while it is used, which makes it no other.
#[derive(Clone, Default)]
struct Learnt(Cell<bool>);

impl PartialEq for Learnt {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Learnt {}

impl Endpoint {
    /// The endpoint of an account, read anew when a server, mapping, role or one of our settings
    /// has changed.
    ///
    /// # Errors
    /// 42704 when the mapping is gone; 22021 for an option that cannot be passed on.
    pub fn resolve(extension: &Extension, account: &Account) -> Result<Rc<Self>> {
        let key = account.key();
        let now = (invalidation::servers(), guc::guard(), limits());
        let known = ENDPOINTS.with_borrow(|known| known.get(&key).cloned());
        if let Some((_, endpoint)) = known.filter(|(then, e)| *then == now && e.account == *account)
        {
            return Ok(endpoint);
        }
        let endpoint = Rc::new(Self::read(extension, account)?);
        ENDPOINTS.with_borrow_mut(|known| known.insert(key, (now, endpoint.clone())));
        Ok(endpoint)
    }

    /// Reads the options of wrapper, server and mapping, the later ones winning.
    fn read(extension: &Extension, account: &Account) -> Result<Self> {
        let rows = spi::select::<(i32, String, String)>(
            extension,
            "SELECT o.place, o.name, o.value FROM ( \
               SELECT 1, o.option_name, o.option_value FROM pg_foreign_server s \
                 JOIN pg_foreign_data_wrapper f \
                   ON f.oid = s.srvfdw, \
                 pg_options_to_table(f.fdwoptions) o \
                 WHERE s.oid = $1::oid \
               UNION ALL \
               SELECT 2, o.option_name, o.option_value FROM pg_foreign_server s, \
                 pg_options_to_table(s.srvoptions) o \
                 WHERE s.oid = $1::oid \
               UNION ALL \
               SELECT 3, o.option_name, o.option_value FROM pg_user_mapping m, \
                 pg_options_to_table(m.umoptions) o \
                 WHERE m.oid = $2::oid \
             ) AS o(place, name, value) ORDER BY o.place",
            &[
                Some(&account.server.to_u32().to_string()),
                Some(&account.mapping.to_u32().to_string()),
            ],
        )?;
        let privileges = Privileges::of(extension, account)?;
        let mut options: Vec<(String, String)> = Vec::new();
        let mut waived = false;
        let mut has_password = false;
        let mut pooled = Pooled::Auto;
        let mut keep_connections = true;
        let mut schemas: Vec<String> = Vec::new();
        for (scope, name, value) in rows {
            let place = match scope {
                1 => OptionScope::Wrapper,
                2 => OptionScope::Server,
                _ => OptionScope::Mapping,
            };
            if place == OptionScope::Server && name == fdw::POOLED {
                pooled = fdw::pooled(&value)?;
            } else if place == OptionScope::Server && name == fdw::KEEP_CONNECTIONS {
                keep_connections = fdw::boolean(&name, &value)?;
            } else if place == OptionScope::Server && name == fdw::SEARCH_PATH_APPEND {
                schemas = fdw::schemas(&value)?;
            }
            if name == "password" {
                has_password = place == OptionScope::Mapping && !value.is_empty();
            }
            if name == fdw::PASSWORD_REQUIRED && place == OptionScope::Mapping {
                waived = privileges.may_waive() && fdw::boolean(&name, &value).is_ok_and(|b| !b);
            } else if keywords::find(&name).is_some_and(|k| !k.debug)
                && privileges.may_set(&name, place)
            {
                options.retain(|(n, _)| *n != name);
                options.push((name, value));
            }
        }
        let password_required = !privileges.may_omit_password() && !waived;
        if password_required && !options.iter().any(|(name, _)| name == "sslcert") {
            options.push(("sslcert".into(), NO_CERTIFICATE.into()));
        }
        let endpoint = Self::of_options(
            account.clone(),
            options,
            &schemas,
            password_required,
            has_password,
        )?;
        Ok(Self {
            pooled,
            keep_connections,
            ..endpoint
        })
    }

    fn of_options(
        account: Account,
        mut options: Vec<(String, String)>,
        schemas: &[String],
        password_required: bool,
        has_password: bool,
    ) -> Result<Self> {
        let mut take = |name: &str| {
            let at = options.iter().position(|(n, _)| n == name)?;
            Some(options.swap_remove(at).1)
        };
        let own = take("options").unwrap_or_default();
        let own_name = take("application_name").or_else(|| {
            let settings = settings_in(&own);
            settings
                .into_iter()
                .rfind(|(name, _)| name == "application_name")
                .map(|(_, v)| v)
        });
        let application_name = own_name.clone().unwrap_or_else(guc::application_name);
        check_guard(&application_name)?;
        // The server's encoding is none of the mapping's business, nor is the protocol's kind.
        for name in [
            "client_encoding",
            "replication",
            "fallback_application_name",
        ] {
            take(name);
        }
        for (name, value) in dead_peer_options() {
            if !options.iter().any(|(n, _)| n == name) {
                options.push((name.into(), value));
            }
        }
        options.push(("client_encoding".into(), "UTF8".into()));
        options.push(("application_name".into(), application_name.clone()));
        let settings = SessionSettings::new(&own, &application_name, limits())
            .with("pg_rowsync.path", identity::name())
            .with_schemas(schemas);
        options.push((OPTIONS.into(), settings.startup_options()));
        let params = options
            .into_iter()
            .map(|(n, v)| Ok((c_string(&n)?, c_string(&v)?)))
            .collect::<Result<Vec<_>>>()?;
        let [server, mapping] = Changed::of_account(account.server, account.mapping);
        let host = Changed::of_place(&described(&params, &HOST));
        Ok(Self {
            account,
            application_name,
            own_name,
            password_required,
            has_password,
            identity: [server, mapping, host],
            pooled: Pooled::Auto,
            keep_connections: true,
            settings,
            params,
            refuses_options: Learnt::default(),
        })
    }

    /// Where it leads and as whom, without secrets: in words, for people and to be compared.
    pub fn place(&self) -> String {
        described(&self.params, &[&HOST[..], &["dbname", "user"]].concat())
    }

    /// What the sessions of all databases know the same host and port by, whoever connects there.
    pub fn host(&self) -> &Changed {
        let [_, _, host] = &self.identity;
        host
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

    /// Keyword and value pairs for libpq; without `options` where a pooler is known or said to be.
    pub fn params(&self) -> impl Iterator<Item = &(CString, CString)> {
        let bare = self.is_bare();
        self.params
            .iter()
            .filter(move |(name, _)| !bare || name.to_bytes() != OPTIONS.as_bytes())
    }

    /// Whether connections are made without the start-up parameter `options`.
    pub fn is_bare(&self) -> bool {
        self.pooled == Pooled::On || self.refuses_options.0.get()
    }

    /// The start-up parameter `options` was refused: from now on it is left out.
    pub fn leave_out_options(&self) {
        self.refuses_options.0.set(true);
    }
}

/// The start-up parameter that sets settings.
const OPTIONS: &str = "options";

/// The limits that the settings say now.
fn limits() -> Limits {
    Limits {
        statement: guc::delivery_timeout(),
        lock: guc::lock_timeout(),
        idle_in_transaction: guc::idle_in_transaction_timeout(),
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
        (
            "tcp_user_timeout",
            guc::delivery_timeout().as_millis().to_string(),
        ),
    ]
}
