//! The settings that a remote session must have, whatever its server, database or role say. Pure.
//!
//! They are sent at start-up, where they cost no round trip. What an intermediary drops of them, or a
//! logon trigger changes, is found out in the first exchange (see [`super::peer`]) and set again with
//! every transaction.

use crate::canonical::TEXT_SETTINGS;
use crate::sql::quote::ident;
use std::ffi::CStr;
use std::time::Duration;

/// How long a server bears what a delivery does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// `statement_timeout`.
    pub statement: Duration,
    /// `lock_timeout`.
    pub lock: Duration,
    /// `idle_in_transaction_session_timeout`.
    pub idle_in_transaction: Duration,
}

/// Seconds without traffic after which the first probe is sent, on both sides.
pub const KEEPALIVES_IDLE: u32 = 30;
/// Seconds between probes.
pub const KEEPALIVES_INTERVAL: u32 = 10;
/// Probes without an answer after which the peer is dead.
pub const KEEPALIVES_COUNT: u32 = 3;

/// The server option `pooled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooled {
    /// Whatever is found.
    #[default]
    Auto,
    /// Taken to be so.
    On,
    /// Refused.
    Off,
}

/// A setting and its value, as SHOW writes it.
pub type Setting = (&'static str, String);

/// The settings of a remote session: the user's own and those that a delivery needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// The server's option `options`, as it was given.
    own: String,
    pinned: Vec<Setting>,
}

impl SessionSettings {
    /// `own`: the server's option `options`; `application_name`: the name of the loop guard.
    pub fn new(own: &str, application_name: &str, limits: Limits) -> Self {
        let fixed = [
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("default_transaction_deferrable", "off"),
            // A policy that hides a row would make it look missing: an error instead.
            ("row_security", "off"),
            ("jit", "off"),
            ("client_connection_check_interval", "1s"),
            // An idle connection that the server ends costs the next commit a new one.
            ("idle_session_timeout", "0"),
            // What the server has answered must outlast its crash.
            ("synchronous_commit", flushing(own)),
        ];
        let text = |text: &'static CStr| text.to_str().unwrap_or_default();
        let of_text = TEXT_SETTINGS
            .iter()
            .map(|(name, value)| (text(name), text(value)));
        let mut pinned: Vec<Setting> = of_text
            .chain(fixed)
            .map(|(name, value)| (name, value.to_owned()))
            .collect();
        pinned.push(("statement_timeout", shown(limits.statement)));
        pinned.push(("lock_timeout", shown(limits.lock)));
        // A transaction whose other end has vanished must not hold its row locks for hours.
        let idle = shown(limits.idle_in_transaction);
        pinned.push(("idle_in_transaction_session_timeout", idle));
        pinned.push(("client_encoding", "UTF8".to_owned()));
        pinned.push(("application_name", application_name.to_owned()));
        Self {
            own: own.to_owned(),
            pinned,
        }
    }

    /// These settings and another one.
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.pinned.push((name, value));
        self
    }

    /// The value of the start-up parameter `options`. Ours come after the user's own and win. Two are
    /// start-up parameters of their own.
    pub fn startup_options(&self) -> String {
        let mut options = self.own.clone();
        let probes = [
            ("tcp_keepalives_idle", KEEPALIVES_IDLE.to_string()),
            ("tcp_keepalives_interval", KEEPALIVES_INTERVAL.to_string()),
            ("tcp_keepalives_count", KEEPALIVES_COUNT.to_string()),
        ];
        let parameters = ["client_encoding", "application_name"];
        let pinned = self
            .pinned
            .iter()
            .filter(|(name, _)| !parameters.contains(name));
        for (name, value) in pinned.chain(&probes) {
            options.push_str(&format!(
                " -c {name}={}",
                value.replace('\\', "\\\\").replace(' ', "\\ ")
            ));
        }
        options.trim().to_owned()
    }

    /// These settings with these schemas after PostgreSQL's own in the search path.
    pub fn with_schemas(mut self, schemas: &[String]) -> Self {
        for (name, value) in &mut self.pinned {
            if *name == "search_path" {
                schemas
                    .iter()
                    .for_each(|schema| value.push_str(&format!(", {}", ident(schema))));
            }
        }
        self
    }

    /// The search path of a session.
    pub fn search_path(&self) -> &str {
        let path = self.pinned.iter().find(|(name, _)| *name == "search_path");
        path.map_or("pg_catalog", |(_, value)| value)
    }

    /// What a session must be found to have.
    pub fn pinned(&self) -> &[Setting] {
        &self.pinned
    }

    /// The user's own: what is pinned wins over them.
    pub fn own(&self) -> Vec<(String, String)> {
        settings_in(&self.own)
    }
}

/// The user's own choice of `synchronous_commit`, unless it lets the server answer before it has flushed.
fn flushing(own: &str) -> &'static str {
    let chosen = settings_in(own)
        .into_iter()
        .rfind(|(name, _)| name == "synchronous_commit");
    let chosen = chosen.map(|(_, value)| value.to_ascii_lowercase());
    let safe = ["local", "remote_write", "remote_apply"];
    safe.into_iter()
        .find(|safe| chosen.as_deref() == Some(*safe))
        .unwrap_or("on")
}

/// A time as SHOW writes it: in the largest unit that leaves no rest.
fn shown(time: Duration) -> String {
    let millis = time.as_millis();
    if millis == 0 {
        return "0".to_owned();
    }
    let units = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("min", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let unit = units
        .into_iter()
        .find(|(_, size)| millis.is_multiple_of(*size));
    let (unit, size) = unit.unwrap_or(("ms", 1));
    format!("{}{unit}", millis / size)
}

/// The settings inside an `options` string, written `-c name=value`, `-cname=value` or `--name=value`,
/// with backslashes before spaces, as the server reads it; names in lower case, in their order.
pub fn settings_in(options: &str) -> Vec<(String, String)> {
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
    let mut found = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().unwrap_or_default(),
            Some(setting) => setting.to_owned(),
            None => continue,
        };
        if let Some((name, value)) = setting.split_once('=') {
            found.push((
                name.replace('-', "_").to_ascii_lowercase(),
                value.to_owned(),
            ));
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

    const LIMITS: Limits = Limits {
        statement: Duration::from_secs(10),
        lock: Duration::from_millis(1_500),
        idle_in_transaction: Duration::from_secs(60),
    };

    fn setting(settings: &SessionSettings, name: &str) -> String {
        let found = settings.pinned().iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }

    #[test]
    fn times_are_written_as_show_writes_them() {
        let settings = SessionSettings::new("", "guard", LIMITS);
        assert_eq!(setting(&settings, "statement_timeout"), "10s");
        assert_eq!(setting(&settings, "lock_timeout"), "1500ms");
        assert_eq!(
            setting(&settings, "idle_in_transaction_session_timeout"),
            "1min"
        );
        assert_eq!(shown(Duration::ZERO), "0");
        assert_eq!(shown(Duration::from_secs(7_200)), "2h");
        assert_eq!(shown(Duration::from_secs(172_800)), "2d");
    }

    #[test]
    fn start_up_options_read_back_as_they_were_meant() {
        let settings = SessionSettings::new("-c geqo=off", "guard", LIMITS);
        let read = settings_in(&settings.startup_options());
        assert_eq!(read[0], ("geqo".to_owned(), "off".to_owned()));
        for (name, value) in settings.pinned() {
            let sent = read
                .iter()
                .rfind(|(own, _)| own == name)
                .map(|(_, value)| value);
            match *name {
                "client_encoding" | "application_name" => assert_eq!(sent, None),
                _ => assert_eq!(sent, Some(value), "{name}"),
            }
        }
        assert_eq!(settings.own(), [("geqo".to_owned(), "off".to_owned())]);
    }

    #[test]
    fn a_server_may_wait_for_more_than_its_own_flush_but_not_for_less() {
        for (own, expected) in [
            ("", "on"),
            ("-c synchronous_commit=off", "on"),
            ("-c synchronous_commit=remote_apply", "remote_apply"),
            ("--synchronous-commit=LOCAL", "local"),
            (
                "-c synchronous_commit=local -c synchronous_commit=off",
                "on",
            ),
        ] {
            let settings = SessionSettings::new(own, "guard", LIMITS);
            assert_eq!(setting(&settings, "synchronous_commit"), expected, "{own}");
        }
    }

    fn guard_in(options: &str) -> Option<String> {
        let settings = settings_in(options);
        settings
            .into_iter()
            .rfind(|(name, _)| name == "application_name")
            .map(|(_, value)| value)
    }

    #[test]
    fn the_guard_name_is_found_in_the_options_of_the_recipe() {
        assert_eq!(guard_in("-c application_name=aaa").as_deref(), Some("aaa"));
        assert_eq!(guard_in("-capplication_name=aaa").as_deref(), Some("aaa"));
        assert_eq!(guard_in("--application-name=a\\ b").as_deref(), Some("a b"));
        assert_eq!(
            guard_in("-c geqo=off -c application_name=a -c application_name=b").as_deref(),
            Some("b")
        );
        assert_eq!(guard_in("-c geqo=off"), None);
        assert_eq!(guard_in(""), None);
    }

    #[test]
    fn the_guard_name_in_any_options_is_the_last_that_the_server_would_read() {
        let name = select(vec![
            "application_name",
            "Application-Name",
            "geqo",
            "application",
        ]);
        let setting = (
            select(vec!["-c ", "-c", "--", "-c\t ", "-c\u{b}"]),
            name,
            fuzz::text(),
        );
        fuzz::check(2_000, &vec(setting, 0..4), |settings| {
            let mut options = String::new();
            let mut expected = None;
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
            prop_assert_eq!(guard_in(&options), expected, "{:?}", options);
            Ok(())
        });
    }
}
