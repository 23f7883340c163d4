//! The JSON object that a trigger takes as its fourth argument. Pure: parsing and checking only.

use crate::error::{Error, Result, SqlState};
use serde::de::{self, Deserialize, Visitor, value};
use serde::{Deserializer, forward_to_deserialize_any};
use std::collections::BTreeMap;

/// When a change set is delivered. Ordered by strictness: where triggers of one transaction differ
/// for a server, the largest wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Always queued at commit.
    Queue,
    /// Delivered at commit; queued if that fails.
    #[default]
    Async,
    /// Delivered at commit; if that fails, so does the local transaction.
    Sync,
    /// Prepared at commit and committed after the local one: both or neither.
    Atomic,
}

impl Mode {
    /// Whether what cannot be delivered fails the local transaction, so that it is never queued.
    pub fn is_strict(self) -> bool {
        matches!(self, Self::Sync | Self::Atomic)
    }

    /// The mode as options name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Async => "async",
            Self::Sync => "sync",
            Self::Atomic => "atomic",
        }
    }
}

/// What happens when the remote row is not what the change expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    #[default]
    Overwrite,
    Error,
    Skip,
    Newest,
}

impl OnConflict {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overwrite => "overwrite",
            Self::Error => "error",
            Self::Skip => "skip",
            Self::Newest => "newest",
        }
    }
}

/// The options of one trigger; every field has a default, unknown names are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub mode: Mode,
    pub on_conflict: OnConflict,
    /// Required by, and only allowed with, `"on_conflict": "newest"`.
    pub version_column: Option<String>,
    /// Local columns to send; all by default.
    pub columns: Option<Vec<String>>,
    /// Local columns not to send.
    pub exclude: Option<Vec<String>>,
    /// Local name to remote name.
    pub rename: BTreeMap<String, String>,
    /// Local key columns; the primary key by default, else the replica identity index.
    pub key: Option<Vec<String>>,
    /// The table's rows are inserted and never changed: it needs no key, and UPDATE and DELETE are refused.
    pub insert_only: bool,
    /// Loop-guard name of this trigger and `application_name` of what it delivers.
    pub application_name: Option<String>,
    /// Role whose members are believed when their session carries the loop guard's name; everybody by
    /// default.
    pub guard_role: Option<String>,
}

/// Longest name of anything, in bytes: PostgreSQL's NAMEDATALEN - 1.
pub const MAX_NAME: usize = 63;

impl Options {
    /// Parses and checks what does not need the table.
    ///
    /// # Errors
    /// 22023 with the offending name and a hint.
    pub fn parse(text: &str) -> Result<Self> {
        // Through a map, because serde would take an array for a struct.
        let options: Self =
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
                .and_then(|map| serde_json::from_value(map.into()))
                .map_err(|e| {
                    Error::local(SqlState::INVALID_PARAMETER, "invalid pg_rowsync options")
                        .with_detail(sentence(&e.to_string()))
                        .with_hint(format!(
                            "Options are a JSON object with {}.",
                            names().join(", ")
                        ))
                })?;
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<()> {
        let refuse = |message: &str, hint: &str| {
            Err(Error::local(SqlState::INVALID_PARAMETER, message).with_hint(hint))
        };
        match (self.on_conflict, &self.version_column) {
            (OnConflict::Newest, None) => {
                return refuse(
                    "option \"on_conflict\": \"newest\" needs \"version_column\"",
                    "Name the column whose larger value wins.",
                );
            }
            (OnConflict::Newest, Some(_)) | (_, None) => {}
            (_, Some(_)) => {
                return refuse(
                    "option \"version_column\" is only used with \"on_conflict\": \"newest\"",
                    "Set \"on_conflict\" to \"newest\" or leave \"version_column\" out.",
                );
            }
        }
        if self.columns.is_some() && self.exclude.is_some() {
            return refuse(
                "options \"columns\" and \"exclude\" cannot be combined",
                "Name either the columns to send or those to leave out.",
            );
        }
        if self.columns.as_ref().is_some_and(Vec::is_empty) {
            return refuse(
                "option \"columns\" is empty",
                "Name at least the key columns.",
            );
        }
        if self.key.as_ref().is_some_and(Vec::is_empty) {
            return refuse("option \"key\" is empty", "Name at least one column.");
        }
        if self.guard_role.as_deref() == Some("") {
            return refuse(
                "option \"guard_role\" is empty",
                "Name a role, or leave it out.",
            );
        }
        self.application_name.as_deref().map_or(Ok(()), check_guard)
    }
}

/// Checks a loop-guard name, wherever it was given. The server cuts a longer application_name and
/// replaces other characters: the guard of the other side would not recognise its own connections,
/// and changes would go round for ever. An empty one would recognise everybody's.
///
/// # Errors
/// 22023.
pub fn check_guard(name: &str) -> Result<()> {
    let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b));
    if (1..=MAX_NAME).contains(&name.len()) && printable {
        return Ok(());
    }
    Err(Error::local(
        SqlState::INVALID_PARAMETER,
        "application_name of a loop guard must have 1 to 63 printable ASCII characters",
    )
    .with_hint(
        "It is looked for in the trigger's and the server's options, then in the setting \
         pg_rowsync.application_name.",
    ))
}

/// The names of all options, in the order of [`Options`].
fn names() -> &'static [&'static str] {
    let mut names: &[&str] = &[];
    // Fails in any case: what is read is what the struct asks for.
    let _ = Options::deserialize(FieldNames(&mut names));
    names
}

/// Notes the fields of the struct that is to be read from it, and has no value.
struct FieldNames<'n>(&'n mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(
        self,
        _visitor: V,
    ) -> std::result::Result<V::Value, Self::Error> {
        Err(de::Error::custom("no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// serde's message as a DETAIL sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars
        .next()
        .map(|c| c.to_uppercase().to_string())
        .unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_gives_the_defaults() {
        let options = Options::parse("{}").expect("valid");
        assert_eq!(options, Options::default());
        assert_eq!(options.mode, Mode::Async);
        assert_eq!(options.on_conflict, OnConflict::Overwrite);
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::parse(
            r#"{"mode": "sync", "on_conflict": "newest", "version_column": "v",
                "columns": ["id", "v"], "rename": {"v": "w"}, "key": ["id"], "insert_only": true,
                "application_name": "guard", "guard_role": "peers"}"#,
        )
        .expect("valid");
        assert_eq!(options.mode, Mode::Sync);
        assert_eq!(options.version_column.as_deref(), Some("v"));
        assert_eq!(options.rename["v"], "w");
        assert!(options.insert_only);
        assert_eq!(options.guard_role.as_deref(), Some("peers"));
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (text, what) in [
            (r#"{"moed": "sync"}"#, "moed"),
            (r#"{"mode": "later"}"#, "later"),
            (r#"{"mode": "sync""#, "EOF"),
            ("[]", "invalid type"),
            (r#"{"on_conflict": "newest"}"#, "version_column"),
            (r#"{"version_column": "v"}"#, "version_column"),
            (r#"{"columns": ["a"], "exclude": ["b"]}"#, "combined"),
            (r#"{"columns": []}"#, "columns"),
            (r#"{"key": []}"#, "key"),
            (r#"{"application_name": ""}"#, "application_name"),
            (r#"{"guard_role": ""}"#, "guard_role"),
            (r#"{"application_name": "caf\u00e9"}"#, "application_name"),
        ] {
            let error = Options::parse(text).expect_err(text);
            assert_eq!(error.sqlstate(), SqlState::INVALID_PARAMETER, "{text}");
            let said = format!("{error} {}", error.detail().unwrap_or_default());
            let what = what.to_lowercase();
            assert!(said.to_lowercase().contains(&what), "{text}: {said}");
            assert!(error.hint().is_some(), "{text}");
        }
    }

    #[test]
    fn the_hint_names_every_option() {
        let error = Options::parse(r#"{"moed": "sync"}"#).expect_err("an unknown option");
        assert_eq!(
            error.hint().as_deref(),
            Some(
                "Options are a JSON object with mode, on_conflict, version_column, columns, exclude, \
                 rename, key, insert_only, application_name, guard_role."
            )
        );
    }

    #[test]
    fn the_strictest_mode_is_the_largest() {
        assert!(Mode::Sync > Mode::Async && Mode::Async > Mode::Queue);
        assert!(Mode::Atomic > Mode::Sync && Mode::Atomic.is_strict() && Mode::Sync.is_strict());
        for mode in [Mode::Queue, Mode::Async, Mode::Sync, Mode::Atomic] {
            let text = format!(r#"{{"mode": "{}"}}"#, mode.name());
            assert_eq!(Options::parse(&text).expect("valid").mode, mode);
        }
    }
}
