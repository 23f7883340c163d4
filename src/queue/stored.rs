//! How records are stored: routes and changes as JSON, numbers as array literals.

use crate::change::{Change, Route};
use crate::error::{Error, Result};
use crate::sql::quote::ArrayLiteral;

/// Records handed to the database in one statement.
pub const CHUNK_ROWS: usize = 5_000;

/// Numbers as an array literal.
pub fn to_ids(ids: &[i64]) -> String {
    let mut array = ArrayLiteral::default();
    ids.iter().for_each(|id| array.push(Some(&id.to_string())));
    array.into_text()
}

pub fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("could not write JSON: {e}")))
}

/// A route from its JSON, which anyone may hand to [`super::describe`].
pub fn to_route(text: &str) -> Result<Route> {
    from_json(text, Route::is_sound)
}

/// A change by this route from its JSON. Its row is whole, whatever else it may say.
pub fn to_change(route: &Route, text: &str) -> Result<Change<String>> {
    let change = from_json(text, |change: &Change<String>| change.fits(route))?;
    Ok(Change {
        unchanged: Vec::new(),
        ..change
    })
}

pub fn from_json<T: serde::de::DeserializeOwned>(
    text: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<T> {
    let unreadable = |why: &str| Error::internal(format!("could not read a queued change: {why}"));
    // Not the parser's own words, which quote what it has met.
    let value = serde_json::from_str(text)
        .map_err(|e| unreadable(&format!("{:?} error at byte {}", e.classify(), e.column())))?;
    if fits(&value) {
        Ok(value)
    } else {
        Err(unreadable("it does not fit its route"))
    }
}
