//! How the answers to statements tell of conflicts, rows that are not as a change expects.
//!
//! A statement over arrays answers with a row per conflict: a JSON array, see [`ConflictReport::answer`].
//! What it finds before it changes anything decides, as of its beginning. For a single row over plain
//! parameters the command tag does.

use super::batch::BatchKind;
use super::quote::{ident, literal};
use super::values::StampOf;
use crate::change::Route;
use crate::conflict::{Conflict, ConflictType, Decision, Tally};
use serde_json::Value;
use std::rc::Rc;

/// How a statement's answer tells the conflicts.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Conflicts {
    /// There are none: it is not about rows, or it fails instead, or another statement tells.
    #[default]
    Never,
    /// There are none: that it has affected no row is its failure.
    NoneFound,
    /// A row for each.
    Rows(Rc<Route>),
    /// A row for each; those of rows that a cascade there has deleted, or moved, before are none.
    RowsAfterCascade(Rc<Route>),
    /// This one, if whether any row was affected is as said.
    Single(Rc<Route>, Box<Conflict>, bool),
}

impl Conflicts {
    /// Adds the conflict that a row of the answer, its only column, tells of. Says whether the row was
    /// meant for this.
    pub fn take_row(&self, row: Option<&str>, tally: &mut Tally) -> bool {
        match self {
            Self::Never | Self::NoneFound => false,
            Self::Rows(route) => {
                row.and_then(read)
                    .into_iter()
                    .for_each(|conflict| tally.add(route, conflict));
                true
            }
            Self::RowsAfterCascade(route) => {
                let conflict = row
                    .and_then(read)
                    .filter(|conflict| !is_by_cascade(conflict.kind));
                conflict
                    .into_iter()
                    .for_each(|conflict| tally.add(route, conflict));
                true
            }
            Self::Single(..) => true,
        }
    }

    /// How a statement reports conflicts whose rows a cascade may have deleted or moved there before.
    pub fn after_cascade(self) -> Self {
        match self {
            Self::Rows(route) => Self::RowsAfterCascade(route),
            Self::Single(_, conflict, _) if is_by_cascade(conflict.kind) => Self::Never,
            other => other,
        }
    }

    /// Adds the conflict that the command tag tells of, which says that so many rows were `affected`.
    pub fn take_tag(&self, affected: u64, tally: &mut Tally) {
        if let Self::Single(route, conflict, if_affected) = self
            && (affected > 0) == *if_affected
        {
            tally.add(route, (**conflict).clone());
        }
    }
}

/// Whether a conflict is what a change finds that a cascade has made there already.
fn is_by_cascade(kind: ConflictType) -> bool {
    matches!(
        kind,
        ConflictType::DeleteMissing | ConflictType::UpdateMissing | ConflictType::UpdateExists
    )
}

/// A conflict from an answer.
fn read(answer: &str) -> Option<Conflict> {
    type Answer = (
        ConflictType,
        Decision,
        Option<Value>,
        Option<Value>,
        Option<String>,
        Option<String>,
    );
    let (kind, decision, key, server_key, version, server_version): Answer =
        serde_json::from_str(answer).ok()?;
    let constraint = None;
    Some(Conflict {
        kind,
        decision,
        key,
        server_key,
        version,
        server_version,
        constraint,
    })
}

/// A conflict of which the change's key is known.
pub fn conflict_of(
    route: &Route,
    kind: ConflictType,
    decision: Decision,
    key: &[Option<&str>],
) -> Conflict {
    let named = route.key.iter().zip(key);
    let key = named.map(|(at, value)| (route.columns[*at].name.clone(), (*value).into()));
    Conflict {
        kind,
        decision,
        key: Some(Value::Object(key.collect())),
        server_key: None,
        version: None,
        server_version: None,
        constraint: None,
    }
}

/// What a change of this kind meets if it finds no row, or for an INSERT if it finds one.
pub fn single(kind: BatchKind) -> ConflictType {
    match kind {
        BatchKind::Insert => ConflictType::InsertExists,
        BatchKind::Update | BatchKind::Move | BatchKind::Swap => ConflictType::UpdateMissing,
        BatchKind::Delete | BatchKind::Truncate => ConflictType::DeleteMissing,
    }
}

/// The parts of an answer, as expressions.
pub struct ConflictReport<'a> {
    pub route: &'a Route,
    /// The change's key.
    pub key: &'a [String],
    /// Where the columns of the existing row are, if there was one; see [`existing_column`].
    pub existing: Option<&'a str>,
    pub stamp: Option<&'a StampOf>,
}

impl ConflictReport<'_> {
    /// An expression for the answer: kind, decision, the change's key, the key of the row it existing, and
    /// the versions of both. Its reader is [`Conflicts::take_row`].
    pub fn answer(&self, kind: ConflictType, decision: &str) -> String {
        let route = self.route;
        let object = |values: Vec<String>| {
            let columns = route.key.iter().map(|at| literal(&route.columns[*at].name));
            let pairs = columns
                .zip(values)
                .map(|(name, value)| format!("{name}, pg_catalog.concat({value})"));
            format!(
                "pg_catalog.json_build_object({})",
                pairs.collect::<Vec<_>>().join(", ")
            )
        };
        let column = |table: &str, at: usize| format!("{table}.{}", existing_column(at));
        let existing = self.existing.map_or_else(
            || "NULL".to_owned(),
            |table| {
                let key: Vec<String> = route.key.iter().map(|at| column(table, *at)).collect();
                format!(
                    "CASE WHEN {} IS NOT NULL THEN {} END",
                    key[0],
                    object(key.clone())
                )
            },
        );
        let version = self
            .stamp
            .map_or("NULL".to_owned(), |stamp| text(&stamp.version));
        let existing_version = match (self.existing, route.version()) {
            (Some(table), Some(at)) => text(&column(table, at)),
            _ => "NULL".to_owned(),
        };
        format!(
            "pg_catalog.json_build_array({}, {decision}, {}, {existing}, {version}, {existing_version})\
             ::pg_catalog.text",
            literal(kind.name()),
            object(self.key.to_vec()),
        )
    }
}

/// The name of a column of a row that was existing: the table's own may be anything.
pub fn existing_column(at: usize) -> String {
    format!("c{at}")
}

/// Columns of the row `t` under those names, for SELECT and RETURNING.
pub fn existing_columns(route: &Route, at: &[usize]) -> String {
    let column = |at: &usize| {
        format!(
            "t.{} AS {}",
            ident(&route.columns[*at].name),
            existing_column(*at)
        )
    };
    at.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// A value as its type writes it, or NULL. Not by a cast, which may be a function of whoever owns the type.
pub fn text(expression: &str) -> String {
    format!(
        "CASE WHEN ({expression}) IS DISTINCT FROM NULL THEN pg_catalog.concat({expression}) END"
    )
}

/// A decision as a literal.
pub fn decision(decision: Decision) -> String {
    literal(decision.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Policy;
    use crate::sql::tests::route;

    #[test]
    fn an_answer_is_read_as_its_statement_says() {
        let route = route(Policy::Overwrite);
        let mut tally = Tally::default();
        let conflict = conflict_of(
            &route,
            ConflictType::DeleteMissing,
            Decision::Skipped,
            &[Some("7")],
        );
        let single = Conflicts::Single(route.clone(), Box::new(conflict), false);
        single.take_tag(1, &mut tally);
        assert_eq!(tally.total(), 0);
        single.take_tag(0, &mut tally);
        let rows = Conflicts::Rows(route);
        rows.take_tag(0, &mut tally);
        let answer = r#"["update_missing", "applied", {"id":"1"}, null, null, null]"#;
        for row in [Some(answer), None, Some("not for us")] {
            assert!(rows.take_row(row, &mut tally));
            assert!(!Conflicts::Never.take_row(row, &mut tally));
        }
        // The row that is missing after a cascade is not.
        let mut quiet = Tally::default();
        let after = rows.clone().after_cascade();
        assert!(after.take_row(Some(answer), &mut quiet));
        let other = answer.replace("update_missing", "update_origin_differs");
        assert!(after.take_row(Some(&other), &mut quiet) && quiet.total() == 1);
        assert_eq!(single.after_cascade(), Conflicts::Never);
        let kinds: Vec<ConflictType> = tally.details().map(|(_, conflict)| conflict.kind).collect();
        assert_eq!(
            kinds,
            [ConflictType::DeleteMissing, ConflictType::UpdateMissing]
        );
        assert_eq!(tally.total(), 2);
    }
}
