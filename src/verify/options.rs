//! The JSON options of `verify_sync` and `repair_sync`. Pure.

use crate::error::{Error, Result, SqlState};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Differences that are told unless the options say otherwise.
const MAX_DIFFERENCES: usize = 1_000;
/// Differences that are repaired in one call unless the options say otherwise.
const MAX_REPAIRS: usize = 10_000;

/// The options of `verify_sync`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyOptions {
    /// The comparison ends when it has found so many.
    pub max_differences: usize,
    /// Rows that are compared: a condition in local names.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Rows are told with their values.
    pub values: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            max_differences: MAX_DIFFERENCES,
            condition: None,
            values: true,
        }
    }
}

impl VerifyOptions {
    /// Parses and checks.
    ///
    /// # Errors
    /// 22023 with the offending name and a hint.
    pub fn parse(text: &str) -> Result<Self> {
        let options: Self = object(
            text,
            "invalid verify_sync options",
            "Options are a JSON object with max_differences, where, values.",
        )?;
        check_limit(options.max_differences)?;
        check_condition(options.condition.as_deref())?;
        Ok(options)
    }
}

/// Which side is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    ToServer,
    FromServer,
    /// The row with the larger version, each for itself.
    Newest,
}

/// The options of `repair_sync`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairOptions {
    /// `None`: to the server, or by the trigger's policy.
    pub direction: Option<Direction>,
    /// Nothing is written.
    pub dry_run: bool,
    /// Rows are deleted that only the side has which is not right.
    pub delete_extra: bool,
    /// So many rows are repaired at most.
    pub max_differences: usize,
    /// See [`VerifyOptions::condition`].
    #[serde(rename = "where")]
    pub condition: Option<String>,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self {
            direction: None,
            dry_run: false,
            delete_extra: true,
            max_differences: MAX_REPAIRS,
            condition: None,
        }
    }
}

impl RepairOptions {
    /// Parses and checks.
    ///
    /// # Errors
    /// 22023 with the offending name and a hint.
    pub fn parse(text: &str) -> Result<Self> {
        let options: Self = object(
            text,
            "invalid repair_sync options",
            "Options are a JSON object with direction (to_server, from_server, newest), dry_run, delete_extra, \
             max_differences, where.",
        )?;
        check_limit(options.max_differences)?;
        check_condition(options.condition.as_deref())?;
        Ok(options)
    }
}

/// Reads a JSON object; serde would take an array for a struct.
fn object<T: DeserializeOwned>(text: &str, refusal: &str, hint: &str) -> Result<T> {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
        .and_then(|map| serde_json::from_value(map.into()))
        .map_err(|error| {
            Error::local(SqlState::INVALID_PARAMETER, refusal)
                .with_detail(error.to_string())
                .with_hint(hint)
        })
}

fn check_limit(limit: usize) -> Result<()> {
    if limit == 0 {
        let message = "option \"max_differences\" must be positive";
        return Err(Error::local(SqlState::INVALID_PARAMETER, message));
    }
    Ok(())
}

fn check_condition(condition: Option<&str>) -> Result<()> {
    if condition.is_some_and(|condition| condition.trim().is_empty()) {
        let message = "option \"where\" is empty";
        return Err(Error::local(SqlState::INVALID_PARAMETER, message)
            .with_hint("Name a condition on the table's columns, or leave it out."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_unknown_names_are_refused() {
        let parsed = VerifyOptions::parse("{}");
        assert_eq!(parsed.ok(), Some(VerifyOptions::default()));
        let text = r#"{"max_differences": 5, "where": "a > 1", "values": false}"#;
        let options = VerifyOptions::parse(text).unwrap_or_default();
        assert_eq!((options.max_differences, options.values), (5, false));
        assert_eq!(options.condition.as_deref(), Some("a > 1"));
        for text in [
            "[]",
            r#"{"wher": "a"}"#,
            r#"{"max_differences": 0}"#,
            r#"{"where": " "}"#,
        ] {
            let state = VerifyOptions::parse(text)
                .err()
                .map(|error| error.sqlstate());
            assert_eq!(state, Some(SqlState::INVALID_PARAMETER), "{text}");
        }
        let text = r#"{"direction": "from_server", "dry_run": true}"#;
        let options = RepairOptions::parse(text).unwrap_or_default();
        assert_eq!(
            (options.direction, options.dry_run),
            (Some(Direction::FromServer), true)
        );
        assert!(RepairOptions::parse(r#"{"direction": "up"}"#).is_err());
    }
}
