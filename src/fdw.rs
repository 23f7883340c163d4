//! The validator of the foreign data wrapper `pg_rowsync`.

use crate::connect::settings::Pooled;
use crate::error::{Error, Result, SqlState};
use crate::options::MAX_NAME;
use crate::pg::{Oid, context};
use crate::pq::keywords;

/// OIDs of the catalogs that carry options, fixed in PostgreSQL.
const SERVER_CATALOG: u32 = 1417;
const MAPPING_CATALOG: u32 = 1418;

/// libpq options that are not users' to set: text always crosses as UTF-8, and a replication
/// connection takes no SQL.
const NOT_OURS: [&str; 3] = [
    "client_encoding",
    "replication",
    "fallback_application_name",
];
/// Options that open files which only the server account can read, and show who it is.
pub const SUPERUSER_ONLY: [&str; 2] = ["sslcert", "sslkey"];
/// The server's option that says whether there is a pooler in between.
pub const POOLED: &str = "pooled";
/// The server's option that says whether connections are kept between transactions, as in postgres_fdw.
pub const KEEP_CONNECTIONS: &str = "keep_connections";
/// The server's option that names schemas for what functions there leave to the search path.
pub const SEARCH_PATH_APPEND: &str = "search_path_append";
/// The mapping's option that may say that none is required.
pub const PASSWORD_REQUIRED: &str = "password_required";

/// Checks options, given as `name=value` texts, for the catalog they belong to.
///
/// # Errors
/// HV00D for an option that is unknown or in the wrong place, with a hint; 42501 for one that only
/// a superuser may set; 22023 for a value that is not a boolean where one is asked for.
pub fn validate(options: &[String], catalog: Oid) -> Result<()> {
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        check(name, value, catalog.to_u32())?;
    }
    Ok(())
}

fn check(name: &str, value: &str, catalog: u32) -> Result<()> {
    let allowed = allowed(catalog);
    if !allowed.contains(&name) {
        return Err(refused(name, catalog, &allowed));
    }
    match name {
        POOLED => drop(pooled(value)?),
        KEEP_CONNECTIONS => drop(boolean(name, value)?),
        SEARCH_PATH_APPEND => drop(schemas(value)?),
        _ => {}
    }
    let waives = name == PASSWORD_REQUIRED && !boolean(name, value)?;
    if (waives || SUPERUSER_ONLY.contains(&name)) && !context::is_superuser() {
        let message = if waives {
            "password_required=false is superuser-only".to_owned()
        } else {
            format!("option \"{name}\" is superuser-only")
        };
        return Err(Error::local(SqlState::INSUFFICIENT_PRIVILEGE, message)
            .with_hint("User mappings with it can only be created or modified by a superuser."));
    }
    Ok(())
}

/// The options of a catalog, in libpq's order.
fn allowed(catalog: u32) -> Vec<&'static str> {
    let ours = keywords::all()
        .iter()
        .filter(|k| !k.debug && !NOT_OURS.contains(&k.name.as_str()));
    let personal = |k: &keywords::Keyword| k.secret || k.name == "user";
    match catalog {
        SERVER_CATALOG => ours
            .filter(|k| !personal(k))
            .map(|k| k.name.as_str())
            .chain([POOLED, KEEP_CONNECTIONS, SEARCH_PATH_APPEND])
            .collect(),
        MAPPING_CATALOG => ours
            .filter(|k| personal(k) || SUPERUSER_ONLY.contains(&k.name.as_str()))
            .map(|k| k.name.as_str())
            .chain([PASSWORD_REQUIRED])
            .collect(),
        _ => Vec::new(),
    }
}

fn refused(name: &str, catalog: u32, allowed: &[&str]) -> Error {
    let error = Error::local(
        SqlState::FDW_INVALID_OPTION,
        format!("invalid option \"{name}\""),
    );
    let elsewhere = match catalog {
        SERVER_CATALOG => self::allowed(MAPPING_CATALOG).contains(&name),
        _ => self::allowed(SERVER_CATALOG).contains(&name),
    };
    if elsewhere {
        return error.with_hint(match catalog {
            SERVER_CATALOG => format!("\"{name}\" belongs in the user mapping."),
            _ => format!("\"{name}\" belongs in the server."),
        });
    }
    // No name in a catalog is longer; what anyone hands to the validator may be, by far.
    let comparable = if name.len() <= MAX_NAME { allowed } else { &[] };
    let nearest = comparable
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= 3 && distance < name.len() => {
            error.with_hint(format!("Perhaps you meant the option \"{candidate}\"."))
        }
        _ if allowed.is_empty() => error.with_hint("There are no valid options in this context."),
        _ => error.with_hint(format!("Valid options are: {}.", allowed.join(", "))),
    }
}

/// The value of the option `pooled`.
///
/// # Errors
/// 22023 for what is none.
pub fn pooled(value: &str) -> Result<Pooled> {
    if value.eq_ignore_ascii_case("auto") {
        return Ok(Pooled::Auto);
    }
    match boolean(POOLED, value) {
        Ok(true) => Ok(Pooled::On),
        Ok(false) => Ok(Pooled::Off),
        Err(_) => {
            let message = format!("option \"{POOLED}\" requires auto, on or off");
            Err(Error::local(SqlState::INVALID_PARAMETER, message)
                .with_hint("With auto, a pooler is found out in the first exchange."))
        }
    }
}

/// The value of the option `search_path_append`: names of schemas, in lower case unless quoted.
///
/// # Errors
/// 22023 for what is no list of names, and for a schema that is each session's own.
pub fn schemas(value: &str) -> Result<Vec<String>> {
    let refuse = |why: &str| {
        Error::local(
            SqlState::INVALID_PARAMETER,
            format!("option \"{SEARCH_PATH_APPEND}\" requires a list of schemas"),
        )
        .with_hint(why)
    };
    let mut names = Vec::new();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut name = String::new();
                let mut chars = quoted.char_indices().peekable();
                let end = loop {
                    match chars.next() {
                        Some((_, '"')) if chars.next_if(|(_, c)| *c == '"').is_some() => {
                            name.push('"')
                        }
                        Some((at, '"')) => break at + 1,
                        Some((_, c)) => name.push(c),
                        None => return Err(refuse("A quote is not closed.")),
                    }
                };
                (name, &quoted[end..])
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let name = rest[..end].trim_end().to_ascii_lowercase();
                if name.contains(|c: char| c.is_whitespace() || c == '"') {
                    return Err(refuse("Part names with commas."));
                }
                (name, &rest[end..])
            }
        };
        if name.is_empty() || name == "$user" || name.starts_with("pg_temp") {
            return Err(refuse("Name schemas that are the same for everybody."));
        }
        names.push(name);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) if !after.trim().is_empty() => after.trim_start(),
            None if after.is_empty() => "",
            _ => return Err(refuse("Part names with commas.")),
        };
    }
    Ok(names)
}

/// The value of a boolean option.
///
/// # Errors
/// 22023 for what is none.
pub fn boolean(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(Error::local(
            SqlState::INVALID_PARAMETER,
            format!("option \"{name}\" requires a boolean value"),
        )
        .with_hint("Use true or false.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[test]
    fn secrets_and_user_belong_in_the_mapping() {
        let server = allowed(SERVER_CATALOG);
        let mapping = allowed(MAPPING_CATALOG);
        assert!(server.contains(&"host") && server.contains(&"options"));
        assert!(!server.contains(&"user") && !server.contains(&"password"));
        assert!(mapping.contains(&"user") && mapping.contains(&"password"));
        assert!(!mapping.contains(&"host") && !server.contains(&"client_encoding"));
        let error = refused("password", SERVER_CATALOG, &server);
        assert!(error.hint().is_some_and(|h| h.contains("user mapping")));
    }

    #[test]
    fn an_unknown_option_is_answered_with_the_nearest() {
        let error = refused("hots", SERVER_CATALOG, &allowed(SERVER_CATALOG));
        assert_eq!(error.sqlstate(), SqlState::FDW_INVALID_OPTION);
        assert!(
            error.hint().is_some_and(|h| h.contains("\"host\"")),
            "{:?}",
            error.hint()
        );
    }

    #[test]
    fn schemas_are_read_as_a_search_path_is() {
        let read = |text: &str| schemas(text).map_err(|error| error.sqlstate());
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(
            read(" App , \"My \"\"own\"\", s\" "),
            Ok(vec!["app".into(), "My \"own\", s".into()])
        );
        for text in [
            "$user", "a,,b", "a,", "\"a", "a b", "pg_temp", "\"a\" b", ",",
        ] {
            assert_eq!(read(text), Err(SqlState::INVALID_PARAMETER), "{text}");
        }
    }

    #[test]
    fn booleans_are_read_as_postgres_writes_them() {
        assert!(boolean("password_required", "TRUE").is_ok_and(|b| b));
        assert!(boolean("password_required", "maybe").is_err());
    }
    #[test]
    fn any_option_is_taken_or_refused_with_a_hint() {
        let known: Vec<&str> = keywords::all()
            .iter()
            .map(|keyword| keyword.name.as_str())
            .collect();
        let name = prop_oneof![
            select(known.clone()).prop_map(str::to_owned),
            (select(known), fuzz::edits()).prop_map(|(name, edits)| fuzz::edited(name, &edits)),
            fuzz::text(),
            (1..3_000usize).prop_map(|length| "h".repeat(length)),
        ];
        // Among others those of wrappers and of tables.
        let catalog = select(vec![2328, SERVER_CATALOG, MAPPING_CATALOG, 1259]);
        fuzz::check(
            1_500,
            &(name, fuzz::text(), catalog),
            |(name, value, catalog)| {
                let allowed = allowed(catalog);
                if !allowed.contains(&name.as_str()) {
                    let error = refused(&name, catalog, &allowed);
                    prop_assert_eq!(error.sqlstate(), SqlState::FDW_INVALID_OPTION);
                    prop_assert!(
                        error.hint().is_some_and(|hint| !hint.is_empty()),
                        "{}",
                        error
                    );
                }
                let is_one = |word: &&str| word.eq_ignore_ascii_case(&value);
                match boolean(&name, &value) {
                    Ok(value) => {
                        prop_assert_eq!(value, ["true", "on", "yes", "1"].iter().any(is_one))
                    }
                    Err(error) => prop_assert_eq!(error.sqlstate(), SqlState::INVALID_PARAMETER),
                }
                Ok(())
            },
        );
    }
}
