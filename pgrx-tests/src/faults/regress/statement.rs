//! As much of SQL's syntax as is needed to know what a statement does, and to name the columns that
//! it leaves to their order.

use std::ops::Range;

/// What a text of SQL consists of, without white space and comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A keyword or a name.
    Word,
    /// A name in double quotes.
    Quoted,
    /// Strings and numbers.
    Literal,
    /// A single character.
    Mark,
}

#[derive(Clone, Debug)]
struct Token<'t> {
    kind: Kind,
    text: &'t str,
    at: usize,
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        self.kind != Kind::Quoted && self.text.eq_ignore_ascii_case(word)
    }

    fn end(&self) -> usize {
        self.at + self.text.len()
    }
}

fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let find = |from: usize, what: &str| sql[from..].find(what).map(|at| from + at + what.len());
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let rest = &sql[at..];
        let kind = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if rest.starts_with("--") => {
                at = find(at, "\n").unwrap_or(bytes.len());
                continue;
            }
            b'/' if rest.starts_with("/*") => {
                at = end_of_comment(bytes, at);
                continue;
            }
            b'\'' => {
                at = end_of_quote(bytes, at + 1, b'\'', false);
                Kind::Literal
            }
            b'e' | b'E' if bytes.get(at + 1) == Some(&b'\'') => {
                at = end_of_quote(bytes, at + 2, b'\'', true);
                Kind::Literal
            }
            b'"' => {
                at = end_of_quote(bytes, at + 1, b'"', false);
                Kind::Quoted
            }
            b'$' if dollar_tag(rest).is_some() => {
                let tag = dollar_tag(rest).unwrap_or_default();
                at = find(at + tag.len(), tag).unwrap_or(bytes.len());
                Kind::Literal
            }
            byte if byte.is_ascii_digit() => {
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at] == b'.') {
                    at += 1;
                }
                Kind::Literal
            }
            byte if is_word(byte) => {
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at] == b'$') {
                    at += 1;
                }
                Kind::Word
            }
            _ => {
                at += 1;
                Kind::Mark
            }
        };
        found.push(Token {
            kind,
            text: &sql[start..at],
            at: start,
        });
    }
    found
}

fn end_of_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_quote(bytes: &[u8], mut at: usize, quote: u8, escapes: bool) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `$tag$` at the beginning.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text[1..].find('$')? + 1;
    let tag = &text[1..end];
    let plain = tag
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (plain && !tag.starts_with(|c: char| c.is_ascii_digit())).then_some(&text[..=end])
}

/// The first words of each statement of a text, in lower case, a space between them.
pub fn beginnings(sql: &str) -> Vec<String> {
    let all = tokens(sql);
    let mut depth = 0;
    let each = all.split(|token| {
        match token.text {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        token.text == ";" && depth == 0
    });
    let words = |statement: &[Token<'_>]| {
        let few = statement
            .iter()
            .take(8)
            .map(|token| token.text.to_lowercase());
        few.collect::<Vec<_>>().join(" ")
    };
    each.filter(|statement| !statement.is_empty())
        .map(words)
        .collect()
}

/// Whether a text commits the transaction that is open.
pub fn commits(sql: &str) -> bool {
    beginnings(sql).iter().any(|one| {
        let is_end = ["commit", "end"]
            .iter()
            .any(|word| one.split(' ').next() == Some(word));
        is_end || one.starts_with("prepare transaction")
    })
}

/// A place in a statement that names a relation and leaves the columns to their order.
#[derive(Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The relation, as it is written.
    pub relation: String,
    /// Where a list of columns belongs.
    pub at: usize,
    /// How many columns are meant; `None`: all.
    pub columns: Option<usize>,
}

/// The first INSERT with VALUES, or COPY, of a text that has no list of columns.
pub fn unlisted(sql: &str) -> Option<Unlisted> {
    let all = tokens(sql);
    if all.first()?.is("copy") {
        let name = name_at(&all, 1)?;
        let next = all.get(name.end)?;
        let relation = sql[all[name.start].at..all[name.end - 1].end()].to_owned();
        let at = all[name.end - 1].end();
        let is_plain = next.is("from") || next.is("to");
        return is_plain.then_some(Unlisted {
            relation,
            at,
            columns: None,
        });
    }
    let into = all
        .windows(2)
        .position(|pair| pair[0].is("insert") && pair[1].is("into"))?;
    let name = name_at(&all, into + 2)?;
    let mut next = name.end;
    if all.get(next)?.is("as") {
        next += 2;
    }
    if all.get(next)?.is("overriding") {
        next += 3;
    }
    if !all.get(next)?.is("values") {
        return None;
    }
    let before = if all[next - 1].is("value") {
        next - 4
    } else {
        next - 1
    };
    let relation = sql[all[name.start].at..all[name.end - 1].end()].to_owned();
    let columns = Some(row_length(&all[next + 1..])?);
    Some(Unlisted {
        relation,
        at: all[before].end(),
        columns,
    })
}

/// The tokens of a name, with its schema.
fn name_at(all: &[Token<'_>], start: usize) -> Option<Range<usize>> {
    let is_name = |token: &Token<'_>| matches!(token.kind, Kind::Word | Kind::Quoted);
    let mut end = start + 1;
    all.get(start).filter(|token| is_name(token))?;
    while all.get(end).is_some_and(|dot| dot.text == ".") && all.get(end + 1).is_some_and(is_name) {
        end += 2;
    }
    Some(start..end)
}

/// How many expressions the first row has that stands in parentheses.
fn row_length(all: &[Token<'_>]) -> Option<usize> {
    let mut depth = 0;
    let mut commas = 0;
    for token in all {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 1 => commas += 1,
            _ => {}
        }
        if depth == 0 {
            return (token.text == ")").then_some(commas + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_found_in_what_only_looks_like_them() {
        let sql =
            "select ';' /* ; /* ; */ */; -- ;\nInsert into \"a;b\" values ($x$;$x$, e'\\';');";
        let expected = [
            "select ';'",
            "insert into \"a;b\" values ( $x$;$x$ , e'\\';'",
        ];
        assert_eq!(beginnings(sql), expected);
        assert!(commits("select 1; END") && commits("prepare transaction 'x'"));
        assert!(!commits("prepare x as select 1") && !commits("select 'commit'"));
    }

    #[test]
    fn columns_are_missing_where_they_are_left_to_their_order() {
        let found = |sql: &str| unlisted(sql).map(|one| (one.relation, one.at, one.columns));
        let some = |relation: &str, at, columns| Some((relation.to_owned(), at, columns));
        assert_eq!(found("copy s.\"T\" from stdin"), some("s.\"T\"", 10, None));
        assert_eq!(found("copy t (a) from stdin"), None);
        assert_eq!(found("copy (select 1) to stdout"), None);
        let insert = "insert into t as x values (1, f(2, 3), array[4, 5]), (1)";
        assert_eq!(found(insert), some("t", 18, Some(3)));
        let overriding = "insert into t overriding system value values (1)";
        assert_eq!(found(overriding), some("t", 13, Some(1)));
        assert_eq!(found("insert into t (a) values (1)"), None);
        assert_eq!(found("insert into t select 1"), None);
    }
}
