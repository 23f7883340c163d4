//! SQL text as PostgreSQL cuts it into tokens: what holds whatever names and values are in it.

/// A token, of which names, texts and words are told apart from what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A quoted name.
    Name(String),
    /// A string constant.
    Text(String),
    /// A number, a keyword, a parameter or an unquoted name.
    Word(String),
    Sign(char),
}

/// The tokens; `None` if the text ends within one, or has a comment. `conforming`: the setting
/// `standard_conforming_strings`.
pub fn tokens(sql: &str, conforming: bool) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let taken = match first {
            c if c.is_whitespace() => c.len_utf8(),
            '"' => quoted(rest, '"', false).map(|(name, length)| {
                found.push(Token::Name(name));
                length
            })?,
            '\'' => quoted(rest, '\'', !conforming).map(|(text, length)| {
                found.push(Token::Text(text));
                length
            })?,
            'E' | 'e' if rest[1..].starts_with('\'') => {
                let (text, length) = quoted(&rest[1..], '\'', true)?;
                found.push(Token::Text(text));
                1 + length
            }
            _ if rest.starts_with("--") || rest.starts_with("/*") => return None,
            c if is_word(c) => {
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                found.push(Token::Word(rest[..length].to_owned()));
                length
            }
            c => {
                found.push(Token::Sign(c));
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    Some(found)
}

/// What stands in the quotes that the text begins with, and how long it is with them.
fn quoted(text: &str, quote: char, escapes: bool) -> Option<(String, usize)> {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if escapes => match chars.next()?.1 {
                // Ours never write another escape.
                escaped @ ('\\' | '\'') => inside.push(escaped),
                _ => return None,
            },
            c if c == quote => match chars.next_if(|(_, next)| *next == quote) {
                Some(_) => inside.push(quote),
                None => return Some((inside, at + 1)),
            },
            c => inside.push(c),
        }
    }
    None
}
