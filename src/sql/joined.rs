//! One statement for changes that are true only together: rows of several tables, or of one table that
//! refer to each other, written by one command.
//!
//! The server checks what cannot be deferred at the end of each statement, so the batches become items
//! of one WITH. All of them see the rows as they were before the statement. They are executed in the
//! order in which the outer SELECT asks for their counts. Conflicts are not reported: they were when the
//! changes were tried one batch after the other.

use super::batch::{Batch, BatchKind};
use super::conflicts::Conflicts;
use super::dml::{delete, exists_new, insert_from, on_conflict, update};
use super::marks::MISSING_MARK;
use super::newest;
use super::quote::literal;
use super::render::params;
use super::statement::Statement;
use super::values::Values;
use crate::change::{Policy, Route};

/// The statement that applies batches at once, and what is to follow it. `None` where that cannot be one:
/// TRUNCATE. `extension`: see [`super::newest`].
pub fn joined(batches: Vec<Batch>, extension: Option<&str>) -> Option<Vec<Statement>> {
    let is_simple = |batch: &Batch| batch.kind != BatchKind::Truncate;
    if !batches.iter().all(is_simple) {
        return None;
    }
    let mut with = Vec::new();
    let mut checks = Vec::new();
    let mut all = Vec::new();
    let mut following = Vec::new();
    for (at, batch) in batches.into_iter().enumerate() {
        if matches!(batch.route.policy, Policy::Newest(_)) {
            let values = Values::of_arrays_as(&batch, "v", all.len());
            let (items, outcome, _) = newest::parts(&batch.route, batch.kind, &values, extension);
            let changes = format!(
                "v AS MATERIALIZED (SELECT * FROM {})",
                values.from.as_ref()?
            );
            with.extend(
                [changes]
                    .into_iter()
                    .chain(items)
                    .map(|item| numbered(&item, at)),
            );
            with.push(format!(
                "c{at} AS MATERIALIZED ({})",
                numbered(&outcome, at)
            ));
            checks.push(format!(
                "(SELECT pg_catalog.count(*) FROM c{at}) OPERATOR(pg_catalog.>=) 0"
            ));
            let own = Values::of_arrays(&batch);
            let (_, _, once_more) = newest::parts(&batch.route, batch.kind, &own, extension);
            let params = params(batch);
            following.extend(
                once_more
                    .map(|(text, conflicts)| Statement::query(text, params.clone(), conflicts)),
            );
            all.extend(params);
            continue;
        }
        let item = format!("v{at}");
        let values = Values::of_arrays_as(&batch, &item, all.len());
        with.push(format!(
            "{item} AS MATERIALIZED (SELECT * FROM {})",
            values.from.as_ref()?
        ));
        let (text, is_counted) = text(&batch.route, batch.kind, &values, at, &mut with);
        with.push(format!("c{at} AS ({text} RETURNING 1)"));
        let count = format!("(SELECT pg_catalog.count(*) FROM c{at})");
        checks.push(if is_counted {
            format!("{count} OPERATOR(pg_catalog.=) {}", values.rows)
        } else {
            format!("{count} OPERATOR(pg_catalog.>=) 0")
        });
        all.extend(params(batch));
    }
    let text = format!(
        "WITH {} SELECT CASE WHEN {} THEN 0 ELSE ({} OPERATOR(pg_catalog.||) \
         (SELECT pg_catalog.count(*) FROM c0))::pg_catalog.int4 END",
        with.join(", "),
        checks.join(" AND "),
        literal(MISSING_MARK)
    );
    let statement = Statement::query(text, all, Conflicts::Never);
    Some([statement].into_iter().chain(following).collect())
}

/// The items of a statement under `newest`.
const ITEMS: [&str; 7] = ["v", "p", "q", "u", "d", "n", "i"];

/// A text of which these items have a number more in their names: as words that are neither quoted nor a
/// column's.
fn numbered(text: &str, at: usize) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut quote = None;
    let mut word = String::new();
    let mut is_column = false;
    let end = |word: &mut String, out: &mut String, is_column: bool| {
        out.push_str(word);
        if !is_column && ITEMS.contains(&word.as_str()) {
            out.push_str(&at.to_string());
        }
        word.clear();
    };
    for letter in text.chars() {
        let is_word = letter.is_ascii_alphanumeric() || matches!(letter, '_' | '$');
        if quote.is_none() && is_word {
            if word.is_empty() {
                is_column = out.ends_with('.');
            }
            word.push(letter);
            continue;
        }
        end(&mut word, &mut out, is_column);
        match quote {
            // One that is doubled opens at once again what it has closed.
            Some(open) if open == letter => quote = None,
            None if matches!(letter, '\'' | '"') => quote = Some(letter),
            _ => {}
        }
        out.push(letter);
    }
    end(&mut word, &mut out, is_column);
    out
}

/// What a batch does, and whether it must find all its rows. Items that it needs go to `with`.
fn text(
    route: &Route,
    kind: BatchKind,
    values: &Values,
    at: usize,
    with: &mut Vec<String>,
) -> (String, bool) {
    let item = format!("v{at}");
    let from = format!(" FROM {item}");
    let is_error = route.policy == Policy::Error;
    let updates = matches!(kind, BatchKind::Update | BatchKind::Move);
    match kind {
        BatchKind::Delete | BatchKind::Truncate => (
            delete(route, values, format!(" USING {item}"), ""),
            is_error,
        ),
        _ if updates && route.policy != Policy::Overwrite => {
            (update(route, kind, values, from, ""), is_error)
        }
        // Rows that are looked for before: by their old key, or by one that may be deferrable.
        _ if route.can_update()
            && route.policy == Policy::Overwrite
            && (updates || route.key_deferrable) =>
        {
            let kind = if kind == BatchKind::Move {
                BatchKind::Move
            } else {
                BatchKind::Update
            };
            let found = update(route, kind, values, from, &format!(" RETURNING {item}.ord"));
            with.push(format!("u{at} AS ({found})"));
            let missing = format!(
                " FROM {item} WHERE NOT EXISTS (SELECT FROM u{at} \
                 WHERE u{at}.ord OPERATOR(pg_catalog.=) {item}.ord)"
            );
            (
                format!(
                    "{}{}",
                    insert_from(route, values, &missing),
                    on_conflict(route)
                ),
                false,
            )
        }
        _ if route.key_deferrable && !is_error => {
            let free = format!("{from} WHERE NOT {}", exists_new(route, values));
            (insert_from(route, values, &free), false)
        }
        _ => (
            format!(
                "{}{}",
                insert_from(route, values, &from),
                on_conflict(route)
            ),
            false,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_numbered_and_nothing_else_is() {
        assert_eq!(
            numbered(
                r#"SELECT v.ord, t."v", 'v '' v', v.n0, i."p" FROM v JOIN p ON $1 = t.v"#,
                7
            ),
            r#"SELECT v7.ord, t."v", 'v '' v', v7.n0, i7."p" FROM v7 JOIN p7 ON $1 = t.v"#
        );
    }
}
