//! Statements under `newest`: what a row or its deletion counts as, its [`Stamp`](crate::change::Stamp),
//! decides, the same way on every node.
//!
//! The version column does not show every stamp: not that of a deletion, nor that of a row whose version did
//! not grow. A server with triggers of its own keeps those (see [`crate::conflict::versions`]); the functions with
//! which its extension tells and takes them are called there for every row. A server without compares
//! versions only, which is enough where nobody else writes.
//!
//! One statement looks, changes what is older, notes stamps, and answers with the conflicts.

use super::batch::BatchKind;
use super::conflicts::{
    ConflictReport, Conflicts, decision, existing_column, existing_columns, text,
};
use super::dml::{
    assignments, exists_new, failing_with, insert_from, is_shared, same_key, taken, update, with_v,
};
use super::marks::{RACE_MARK, TWICE_MARK};
use super::quote::{ident, literal, operator, relation};
use super::values::{StampOf, Values, key_of};
use crate::change::Route;
use crate::conflict::{ConflictType, Decision};
use std::rc::Rc;

/// The version of a row as it is stored, in what the changes return. A name beside those of the key's columns.
const STORED: &str = "\"pg_rowsync stored\"";

/// The statements for a batch, or for people. `extension`: the schema of the server's own extension, if it
/// keeps stamps.
pub(super) fn statements(
    route: &Rc<Route>,
    kind: BatchKind,
    values: &Values,
    extension: Option<&str>,
) -> Vec<(String, Conflicts)> {
    let newest = Newest {
        route,
        kind,
        values,
        extension,
        new_key: key_of(route, &values.new),
    };
    let mut changes = newest.changes();
    // People are shown what is done; the last of it needs no name.
    let last = if values.literal { changes.pop() } else { None };
    let named = changes
        .into_iter()
        .map(|(name, text)| format!("{name} AS ({text})"));
    match last {
        Some((_, last)) => {
            let items: Vec<String> = std::iter::once("v AS (SELECT 1 AS ord)".to_owned())
                .chain(named)
                .collect();
            vec![(
                format!("WITH {} {last}", items.join(", ")),
                Conflicts::Never,
            )]
        }
        None => {
            let items: Vec<String> = newest.looks().into_iter().chain(named).collect();
            let text = format!(
                "WITH {}{} {}",
                with_v(route, values),
                items.join(", "),
                newest.outcome()
            );
            let reported = (text, Conflicts::Rows(route.clone()));
            std::iter::once(reported)
                .chain(newest.once_more())
                .collect()
        }
    }
}

/// A batch as a part of one statement with others: items of its WITH after `v`, the SELECT that notes the
/// stamps and must be read to its end, and what is to follow in a statement of its own.
pub(super) fn parts(
    route: &Rc<Route>,
    kind: BatchKind,
    values: &Values,
    extension: Option<&str>,
) -> (Vec<String>, String, Option<(String, Conflicts)>) {
    let newest = Newest {
        route,
        kind,
        values,
        extension,
        new_key: key_of(route, &values.new),
    };
    let named = newest
        .changes()
        .into_iter()
        .map(|(name, text)| format!("{name} AS ({text})"));
    let items = newest.looks().into_iter().chain(named).collect();
    (items, newest.outcome(), newest.once_more())
}

struct Newest<'a> {
    route: &'a Route,
    kind: BatchKind,
    values: &'a Values,
    extension: Option<&'a str>,
    new_key: Vec<String>,
}

impl Newest<'_> {
    fn writes(&self) -> bool {
        self.kind != BatchKind::Delete
    }

    fn has_old(&self) -> bool {
        matches!(self.kind, BatchKind::Move | BatchKind::Delete)
    }

    fn target(&self) -> String {
        relation(&self.route.target)
    }

    /// What is there before: `p` with the key that the change is for, `q` with the one that it moves to.
    fn looks(&self) -> Vec<String> {
        let route = self.route;
        let mut at = route.key.clone();
        at.extend(
            route
                .version()
                .filter(|version| !route.key.contains(version)),
        );
        let columns = existing_columns(route, &at);
        let look = |name: &str, condition: String| {
            format!(
                "{name} AS MATERIALIZED (SELECT v.ord, {columns} FROM v JOIN {} AS t ON {condition})",
                self.target()
            )
        };
        let old = same_key(route, "t", &self.values.old);
        let new = same_key(route, "t", &self.new_key);
        match self.kind {
            BatchKind::Move => {
                vec![
                    look("p", old.clone()),
                    look("q", format!("{new} AND NOT ({old})")),
                ]
            }
            BatchKind::Delete => vec![look("p", old)],
            BatchKind::Swap => vec![look("p", new), self.losers()],
            _ => vec![look("p", new)],
        }
    }

    /// The rows that lose to those that swapped rows become at their keys, by the number of these. They are locked:
    /// none becomes newer before it is moved away.
    fn losers(&self) -> String {
        format!(
            "losers AS MATERIALIZED (SELECT v.ord FROM v JOIN {} AS t ON {} WHERE {} FOR UPDATE OF t)",
            self.target(),
            same_key(self.route, "t", &self.new_key),
            self.wins(self.values.stamp.as_ref(), &self.new_key, true)
        )
    }

    /// The changes to the table, by name: `u` moves rows in place, `d` removes them, `n` updates them, `i`
    /// inserts them. A row that is there and newer stays: on the node that wrote it, this change finds it
    /// newer too.
    fn changes(&self) -> Vec<(&'static str, String)> {
        let route = self.route;
        let values = self.values;
        let target = self.target();
        let can_update = route.can_update();
        let deferrable = route.key_deferrable;
        let tombstone = || self.wins(values.tombstone.as_ref(), &values.old, false);
        let mut changes = Vec::new();
        let mut not_done = String::new();
        let done = |name: &str, not_done: &mut String| {
            not_done.push_str(&format!(
                " AND NOT EXISTS (SELECT FROM {name} WHERE {name}.ord OPERATOR(pg_catalog.=) v.ord)"
            ));
        };
        let stored = self.stored();
        if self.kind == BatchKind::Move && can_update {
            let free = format!(
                " AND {} AND NOT {} AND NOT {} RETURNING v.ord{stored}",
                tombstone(),
                taken(route, values),
                self.beaten()
            );
            changes.push((
                "u",
                update(route, BatchKind::Move, values, " FROM v".into(), &free),
            ));
            done("u", &mut not_done);
        }
        if self.kind == BatchKind::Swap && can_update {
            let all = format!(
                " AND (SELECT pg_catalog.count(*) FROM losers) OPERATOR(pg_catalog.=) \
                 (SELECT pg_catalog.count(*) FROM v) RETURNING v.ord{stored}"
            );
            changes.push((
                "u",
                update(route, BatchKind::Move, values, " FROM v".into(), &all),
            ));
            done("u", &mut not_done);
        }
        if self.has_old() {
            changes.push(("d", self.deletion(&format!("{not_done} RETURNING v.ord"))));
        }
        if !self.writes() {
            return changes;
        }
        if can_update {
            let wins = self.wins(values.stamp.as_ref(), &self.new_key, true);
            changes.push((
                "n",
                format!(
                    "UPDATE {target} AS t SET {} FROM v WHERE {} AND {wins}{not_done} \
                     RETURNING v.ord{stored}",
                    assignments(route, BatchKind::Update, values),
                    same_key(route, "t", &self.new_key)
                ),
            ));
            done("n", &mut not_done);
        }
        let keys = |table: &str| -> String {
            let name = |at: &usize| format!("{table}{}", ident(&route.columns[*at].name));
            route.key.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        // Without ON CONFLICT a row that is there and newer must be left out here.
        let (there, on_conflict) = if deferrable {
            (
                format!(" AND NOT {}", exists_new(route, values)),
                String::new(),
            )
        } else {
            (
                String::new(),
                format!(" ON CONFLICT ({}) DO NOTHING", keys("")),
            )
        };
        let from = format!(" FROM v WHERE NOT {}{not_done}{there}", self.beaten());
        let insert = insert_from(route, values, &from);
        changes.push((
            "i",
            format!("{insert}{on_conflict} RETURNING {}{stored}", keys("t.")),
        ));
        changes
    }

    /// The version of the row as it is stored now, for RETURNING: a trigger of the table's own may have
    /// replaced it.
    fn stored(&self) -> String {
        match (self.extension, self.route.version()) {
            (Some(_), Some(at)) => {
                format!(", t.{} AS {STORED}", ident(&self.route.columns[at].name))
            }
            _ => String::new(),
        }
    }

    /// Deletes again: a row may have been inserted unseen, by a session that keeping the deletion then waited
    /// for.
    fn once_more(&self) -> Option<(String, Conflicts)> {
        self.extension.filter(|_| self.has_old())?;
        let with = with_v(self.route, self.values);
        let delete = self.deletion("");
        let with = with.trim_end_matches(", ");
        Some((format!("WITH {with} {delete}"), Conflicts::Never))
    }

    /// DELETE of the rows at the old keys that are older.
    fn deletion(&self, tail: &str) -> String {
        let route = self.route;
        let values = self.values;
        let stays = match self.kind {
            BatchKind::Move => format!(" AND NOT ({})", same_key(route, "t", &self.new_key)),
            _ => String::new(),
        };
        format!(
            "DELETE FROM {} AS t USING v WHERE {}{stays} AND {}{tail}",
            self.target(),
            same_key(route, "t", &values.old),
            self.wins(values.tombstone.as_ref(), &values.old, false)
        )
    }

    /// Notes the stamps and answers with the conflicts.
    fn outcome(&self) -> String {
        let won = self.won();
        let report = self.report(&won);
        let kept = self.kept(&won);
        let columns: String = kept
            .iter()
            .enumerate()
            .map(|(at, text)| format!(", {text} AS kept{at}"))
            .collect();
        let or_kept: String = (0..kept.len())
            .map(|at| format!(" OR o.kept{at}"))
            .collect();
        // OFFSET keeps the functions from being left out.
        format!(
            "SELECT o.report FROM (SELECT CASE {report} END AS report{columns} FROM {} OFFSET 0) AS o \
             WHERE o.report IS NOT NULL{or_kept}",
            self.changed()
        )
    }

    /// Whether the changes move rows that are there, in place.
    fn moves_rows(&self) -> bool {
        matches!(self.kind, BatchKind::Move | BatchKind::Swap) && self.route.can_update()
    }

    /// What to select from: the changes `v`, each beside the rows that were seen and those that were changed.
    fn changed(&self) -> String {
        let mut from = "v LEFT JOIN p ON p.ord OPERATOR(pg_catalog.=) v.ord".to_owned();
        let mut join = |name: &str| {
            from.push_str(&format!(
                " LEFT JOIN {name} ON {name}.ord OPERATOR(pg_catalog.=) v.ord"
            ))
        };
        if self.kind == BatchKind::Move {
            join("q");
        }
        if self.moves_rows() {
            join("u");
        }
        if self.has_old() {
            join("d");
        }
        if self.writes() && self.route.can_update() {
            join("n");
        }
        if self.writes() {
            from.push_str(&format!(
                " LEFT JOIN i ON {}",
                same_key(self.route, "i", &self.new_key)
            ));
        }
        from
    }

    /// Whether the change has written its row.
    fn won(&self) -> String {
        let route = self.route;
        let inserted = format!("i.{} IS NOT NULL", ident(&route.columns[route.key[0]].name));
        if self.kind == BatchKind::Swap && route.can_update() {
            format!("(u.ord IS NOT NULL OR n.ord IS NOT NULL OR {inserted})")
        } else if route.can_update() {
            format!("(n.ord IS NOT NULL OR {inserted})")
        } else {
            format!("({inserted})")
        }
    }

    /// Fails on purpose: another session, or another change of the statement, has written the key meanwhile, so
    /// the change is to be tried again.
    fn race(&self) -> String {
        // Another session's row; where none has come, a trigger of the table's own keeps this one from being
        // written.
        let raced = match self.extension {
            Some(extension) => format!(
                "CASE WHEN {}.sync_row_has_come({}, {}) THEN {} END",
                ident(extension),
                self.regclass(),
                self.record(&self.new_key),
                failing_with(RACE_MARK)
            ),
            None => failing_with(RACE_MARK),
        };
        // Or that of another change in the same statement.
        format!(
            "CASE WHEN {} THEN {} ELSE {raced} END",
            self.meets_itself(),
            failing_with(TWICE_MARK)
        )
    }

    /// The branches of the CASE that reports a conflict.
    fn report(&self, won: &str) -> String {
        let route = self.route;
        let values = self.values;
        let by = |existing: Option<&'static str>,
                  key: &[String],
                  stamp: Option<&StampOf>,
                  kind: ConflictType,
                  decided: &str| {
            ConflictReport {
                route,
                key,
                existing,
                stamp,
            }
            .answer(kind, decided)
        };
        let applied = decision(Decision::Applied);
        let skipped = decision(Decision::Skipped);
        let either = format!("CASE WHEN {won} THEN {applied} ELSE {skipped} END");
        let stamp = values.stamp.as_ref();
        let tombstone = values.tombstone.as_ref();
        let new = &self.new_key[..];
        let old = &values.old[..];
        let race = self.race();
        // The change would have won over the row that it saw; another row has taken that one's place since.
        let replaced = |existing: &str| {
            format!(
                "WHEN {existing}.ord IS NOT NULL AND NOT {won} AND {} THEN {race}",
                self.wins_over_seen(existing)
            )
        };
        match self.kind {
            BatchKind::Insert => format!(
                "{} WHEN p.ord IS NOT NULL THEN {} WHEN {won} THEN NULL WHEN {} THEN {} ELSE {race}",
                replaced("p"),
                by(Some("p"), new, stamp, ConflictType::InsertExists, &either),
                self.beaten(),
                by(None, new, stamp, ConflictType::UpdateMissing, &skipped),
            ),
            BatchKind::Delete => format!(
                "WHEN p.ord IS NULL THEN {} WHEN d.ord IS NULL THEN {}",
                by(None, old, tombstone, ConflictType::DeleteMissing, &skipped),
                by(
                    Some("p"),
                    old,
                    tombstone,
                    ConflictType::DeleteOriginDiffers,
                    &skipped
                ),
            ),
            BatchKind::Move => format!(
                "{}{} WHEN NOT {won} AND q.ord IS NULL AND NOT {} THEN {race} \
                 WHEN p.ord IS NULL THEN {} WHEN q.ord IS NOT NULL THEN {} ELSE {}",
                if self.moves_rows() {
                    "WHEN u.ord IS NOT NULL THEN NULL "
                } else {
                    ""
                },
                replaced("q"),
                self.beaten(),
                by(Some("q"), old, stamp, ConflictType::UpdateMissing, &either),
                by(Some("q"), old, stamp, ConflictType::UpdateExists, &either),
                by(
                    Some("p"),
                    old,
                    stamp,
                    ConflictType::UpdateOriginDiffers,
                    &either
                ),
            ),
            BatchKind::Update | BatchKind::Swap | BatchKind::Truncate => format!(
                "WHEN p.ord IS NOT NULL AND {won} THEN NULL {} WHEN p.ord IS NOT NULL THEN {} \
                 WHEN {won} THEN {} WHEN {} THEN {} ELSE {race}",
                replaced("p"),
                by(
                    Some("p"),
                    new,
                    stamp,
                    ConflictType::UpdateOriginDiffers,
                    &skipped
                ),
                by(None, new, stamp, ConflictType::UpdateMissing, &applied),
                self.beaten(),
                by(None, new, stamp, ConflictType::UpdateMissing, &skipped),
            ),
        }
    }

    /// Calls that keep the stamps of what was deleted and written, each a condition that is true if one was kept.
    fn kept(&self, won: &str) -> Vec<String> {
        let values = self.values;
        let stamp = values.stamp.as_ref();
        let tombstone = values.tombstone.as_ref();
        let new = &self.new_key[..];
        let old = &values.old[..];
        let can_update = self.route.can_update();
        let swaps = self.kind == BatchKind::Swap && can_update;
        let moved = self.moves_rows();
        let done = if moved { "u.ord IS NOT NULL OR " } else { "" };
        let mut kept = Vec::new();
        let hashes = |operator: &str| {
            format!(
                "{} OPERATOR(pg_catalog.{operator}) {}",
                self.hash(old),
                self.hash(new)
            )
        };
        if self.has_old() {
            // Also where the row there is newer: that counts for more, and so does its deletion.
            let condition = if self.kind == BatchKind::Move {
                hashes("<>")
            } else {
                "true".to_owned()
            };
            let existing = format!("({done}d.ord IS NOT NULL OR p.ord IS NOT NULL)");
            kept.extend(self.keep(tombstone, old, (true, &existing, "NULL"), &condition));
        }
        if self.writes() {
            // A row that was moved here was not here before: its lock has kept nobody from keeping a deletion
            // of this key, unless it is the same key in another spelling.
            let moved_from_here = if swaps {
                // But the row that this one took the place of was locked.
                "u.ord IS NOT NULL OR ".to_owned()
            } else if moved {
                format!("u.ord IS NOT NULL AND {} OR ", hashes("="))
            } else {
                String::new()
            };
            let existing = if can_update {
                format!("({moved_from_here}n.ord IS NOT NULL)")
            } else {
                "false".to_owned()
            };
            let items = [("u", moved), ("n", can_update), ("i", true)].into_iter();
            let items = items.filter(|(_, is_there)| *is_there);
            let stored: Vec<String> = items.map(|(item, _)| format!("{item}.{STORED}")).collect();
            let shown = text(&format!("COALESCE({})", stored.join(", ")));
            kept.extend(self.keep(
                stamp,
                new,
                (false, &existing, &shown),
                &format!("({done}{won})"),
            ));
        }
        kept
    }

    /// Whether a change wins over the row `t`. Of equal stamps a row wins over a deletion, and of two rows
    /// the larger as text: in UTF-8, byte by byte, its columns in an order that both sides share, the version
    /// last: that may differ where a trigger replaces it.
    fn wins(&self, stamp: Option<&StampOf>, key: &[String], alive: bool) -> String {
        let Some(at) = self.route.version() else {
            return "true".to_owned();
        };
        let there = format!("t.{}", ident(&self.route.columns[at].name));
        let larger = if alive {
            self.larger()
        } else {
            "false".to_owned()
        };
        self.compared(stamp, key, &there, &larger)
    }

    /// Whether the new row wins by its stamp over the existing row that was seen before.
    fn wins_over_seen(&self, existing: &str) -> String {
        let Some(at) = self.route.version() else {
            return "false".to_owned();
        };
        let there = format!("{existing}.{}", existing_column(at));
        self.compared(self.values.stamp.as_ref(), &self.new_key, &there, "false")
    }

    /// Whether a stamp is larger than that of a row whose version is `there`; `equal` if it is the same.
    fn compared(
        &self,
        stamp: Option<&StampOf>,
        key: &[String],
        there: &str,
        equal: &str,
    ) -> String {
        let (Some(at), Some(stamp)) = (self.route.version(), stamp) else {
            return "true".to_owned();
        };
        let collate = if self.route.columns[at].collated {
            " COLLATE pg_catalog.\"C\""
        } else {
            ""
        };
        let StampOf { version, rank } = stamp;
        match self.extension {
            Some(extension) => format!(
                "CASE {}.sync_compare_versions({}, {}, {}, {}, {rank}, {}) \
                 WHEN 1 THEN true WHEN 0 THEN {equal} ELSE false END",
                ident(extension),
                self.regclass(),
                self.hash(key),
                self.version_type(at),
                text(version),
                text(there)
            ),
            None => {
                let column = &self.route.columns[at];
                let larger = operator(column, ">");
                let same = operator(column, "=");
                format!(
                    "CASE WHEN {version} {larger} {there}{collate} \
                     OR ({there} IS NULL AND {version} IS NOT NULL) THEN true \
                     WHEN {version} {same} {there}{collate} OR ({there} IS NULL AND {version} IS NULL) \
                     THEN {rank} OPERATOR(pg_catalog.>) 0 OR {equal} ELSE false END"
                )
            }
        }
    }

    /// Whether the new row is larger than `t` as text.
    fn larger(&self) -> String {
        let mut order = self.route.common_order();
        order.sort_by_key(|at| self.route.version() == Some(*at));
        let row = |value: &dyn Fn(usize) -> String| {
            let values: Vec<String> = order.iter().map(|at| value(*at)).collect();
            format!(
                "pg_catalog.convert_to(ROW({})::pg_catalog.text, \
                 CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)",
                values.join(", ")
            )
        };
        let columns = &self.route.columns;
        format!(
            "{} OPERATOR(pg_catalog.>) {}",
            row(&|at| self.typed(at)),
            row(&|at| format!("t.{}", ident(&columns[at].name)))
        )
    }

    /// A new value as one of the column's type; literals have none of their own.
    fn typed(&self, at: usize) -> String {
        let value = &self.values.new[at];
        if self.values.literal {
            format!(
                "(COALESCE({value}, (NULL::{}).{}))",
                self.target(),
                ident(&self.route.columns[at].name)
            )
        } else {
            value.clone()
        }
    }

    /// Whether another change of the same statement is, or was, of the row with the new key.
    fn meets_itself(&self) -> String {
        let route = self.route;
        let values = self.values;
        let shared = |others: &[String]| is_shared(route, &self.new_key, others);
        match self.kind {
            _ if values.any_new.is_empty() => "false".to_owned(),
            BatchKind::Move => {
                format!(
                    "({} OR {})",
                    shared(&values.any_new),
                    shared(&values.any_old)
                )
            }
            _ => shared(&values.any_new),
        }
    }

    /// Whether the new key was deleted by something newer.
    fn beaten(&self) -> String {
        match (self.extension, self.route.version(), &self.values.stamp) {
            (Some(extension), Some(at), Some(StampOf { version, rank })) => format!(
                "{}.sync_deleted_later({}, {}, {}, {}, {rank})",
                ident(extension),
                self.regclass(),
                self.hash(&self.new_key),
                self.version_type(at),
                text(version)
            ),
            _ => "false".to_owned(),
        }
    }

    /// An expression that hands a stamp to the server's extension, with whether it is that of a deletion,
    /// whether a row was existing, and the version of the row as it is stored; false.
    fn keep(
        &self,
        stamp: Option<&StampOf>,
        key: &[String],
        (deleted, existing, shown): (bool, &str, &str),
        condition: &str,
    ) -> Option<String> {
        let extension = self.extension?;
        let at = self.route.version()?;
        let StampOf { version, rank } = stamp?;
        Some(format!(
            "CASE WHEN {condition} THEN {}.sync_keep_version({}, {}, {}, {}, {rank}, {deleted}, {existing}, \
             {shown}) ELSE false END",
            ident(extension),
            self.regclass(),
            self.record(key),
            self.version_type(at),
            text(version)
        ))
    }

    fn regclass(&self) -> String {
        format!("{}::pg_catalog.regclass", literal(&self.target()))
    }

    fn version_type(&self, at: usize) -> String {
        format!(
            "pg_catalog.pg_typeof((NULL::{}).{})",
            self.target(),
            ident(&self.route.columns[at].name)
        )
    }

    /// The hash by which stamps are kept.
    fn hash(&self, key: &[String]) -> String {
        format!("pg_catalog.hash_record_extended({}, 0)", self.record(key))
    }

    /// The key's columns, in the order of their names.
    fn record(&self, key: &[String]) -> String {
        let named = self.route.named_key();
        let place = |at: &usize| self.route.key.iter().position(|k| k == at);
        let values: Vec<&str> = named
            .iter()
            .filter_map(|at| key.get(place(at)?))
            .map(String::as_str)
            .collect();
        format!("ROW({})", values.join(", "))
    }
}
