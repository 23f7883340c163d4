//! A row that is not the same on both sides.

use super::expressions::KeyText;

/// How the two sides of a row differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The server has no such row.
    Missing,
    /// Only the server has it.
    Extra,
    /// Both have it, with other values.
    Differs,
}

impl Kind {
    /// As users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differs => "differs",
        }
    }
}

/// A row that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    pub kind: Kind,
    /// The key as a JSON object, columns by their local names.
    pub key: String,
    /// Of a row that both have: local names of the columns that differ.
    pub columns: Vec<String>,
    /// The row here and the row there as JSON objects, columns by their local names.
    pub here: Option<String>,
    pub there: Option<String>,
    /// The key's values as text.
    pub key_texts: KeyText,
    /// Texts that are the same for equal keys, where those are others.
    pub other_matched: Option<KeyText>,
    /// The types there can hold the row here.
    pub fits: bool,
    /// The hash of the row here.
    pub hash: Option<String>,
    /// The values of the row there, as text, where they were asked for.
    pub texts: Option<KeyText>,
}

impl Difference {
    /// Texts of the key that are the same for equal keys.
    pub fn matched(&self) -> &KeyText {
        self.other_matched.as_ref().unwrap_or(&self.key_texts)
    }
}
