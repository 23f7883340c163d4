//! A document of the repository: what people are told to type, and what they are told to see.

use std::fs;

use anyhow::{Context, Result};

use crate::setup;

/// A document, cut into what its fences hold.
pub struct Document(String);

impl Document {
    /// # Errors
    /// A file that is not there.
    pub fn read(name: &str) -> Result<Document> {
        let text = fs::read_to_string(setup::root().join(name));
        Ok(Document(text.with_context(|| name.to_owned())?))
    }

    /// The blocks in a language, in their order.
    pub fn blocks(&self, language: &str) -> Vec<&str> {
        let fence = format!("```{language}\n");
        let rest = self.0.split(fence.as_str()).skip(1);
        rest.map(|block| block.split("```").next().unwrap_or_default())
            .collect()
    }

    /// The roles that it makes, with their passwords.
    pub fn passwords(&self) -> Vec<(&str, &str)> {
        let roles = self.0.split("CREATE ROLE ").skip(1);
        let login = roles.filter_map(|role| role.split_once(" LOGIN PASSWORD '"));
        login
            .filter_map(|(role, rest)| Some((role, rest.split_once('\'')?.0)))
            .collect()
    }
}
