//! Parameters of statements.

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    Null,
    /// The type is inferred by the server.
    Text(String),
    /// An array of that type.
    Binary {
        array: u32,
        bytes: Vec<u8>,
    },
}

impl From<Option<String>> for Param {
    fn from(value: Option<String>) -> Self {
        value.map_or(Self::Null, Self::Text)
    }
}

impl Param {
    /// How many bytes it takes to send.
    pub fn len(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Text(text) => text.len(),
            Self::Binary { bytes, .. } => bytes.len(),
        }
    }
}
