//! Which columns of which table the changes of a route were read from, and what DDL of the same transaction has
//! made of them since.
//!
//! Nobody else can alter a table that the transaction has written, so this is asked once, when it commits, and
//! only if the catalogs have changed since the columns were looked up.
//!
//! A key that is another one by then no longer tells rows of that table from each other: whether the server has
//! the old key or the new one, changes made under both would not meet the rows they mean. Such a transaction is
//! refused, before anything is sent.

use super::table::{Table, own_type};
use crate::change::{Change, Column, OwnType, Route};
use crate::error::{Error, Result, SqlState};
use crate::pg::Oid;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::spi::{self, Extension};
use std::collections::HashMap;

/// The table and the columns that a route was made for, as the catalogs number them.
#[derive(Clone, Debug)]
pub struct Origin {
    pub relation: Oid,
    /// Numbers of the columns, in the order of [`Route::columns`].
    pub attributes: Vec<i16>,
    /// Types of the columns, in that order.
    pub types: Vec<Oid>,
    /// The key is the table's own, and not one that the trigger names.
    pub has_own_key: bool,
    /// When they were looked up.
    pub epoch: Epoch,
}

/// What DDL has made of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Altered {
    /// The table is not there any more.
    Dropped,
    /// Columns have other names.
    Renamed(Route),
    /// Columns are not there any more. Those at these positions are.
    Narrowed(Route, Vec<usize>),
    /// Rows are told apart otherwise: why changes cannot be sent, unless they are all TRUNCATEs.
    Rekeyed(String),
}

/// A column as it is now.
struct Current {
    name: String,
    type_oid: Oid,
    /// As [`Column::own_type`].
    own_type: Option<OwnType>,
}

impl Origin {
    /// Whether both are the same columns of the same table.
    pub fn is_same(&self, other: &Self) -> bool {
        self.relation == other.relation
            && self.attributes == other.attributes
            && self.types == other.types
            && self.has_own_key == other.has_own_key
    }

    /// Whether no table has been altered since.
    pub fn is_current(&self) -> bool {
        self.epoch == invalidation::now()
    }

    /// What has become of the route; `None` if it is as it was.
    ///
    /// # Errors
    /// What the catalogs report.
    pub fn look_again(&self, extension: &Extension, route: &Route) -> Result<Option<Altered>> {
        if self.is_current() {
            return Ok(None);
        }
        let relation = self.relation.to_u32().to_string();
        let args = [Some(relation.as_str())];
        type Columns = (i16, String, Oid, Option<String>, Option<i32>);
        let rows: Vec<Columns> = spi::select(
            extension,
            concat!(
                "SELECT a.attnum, a.attname, a.atttypid, own.name, own.modifier FROM pg_attribute a ",
                own_type!(),
                " WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped"
            ),
            &args,
        )?;
        let current = |(number, name, type_oid, own, modifier): Columns| {
            let own_type = own.zip(modifier);
            let own_type = own_type.map(|(name, modifier)| OwnType { name, modifier });
            let column = Current {
                name,
                type_oid,
                own_type,
            };
            (number, column)
        };
        let columns: HashMap<i16, Current> = rows.into_iter().map(current).collect();
        let key = if self.has_own_key && !route.is_keyless() && !columns.is_empty() {
            Some(Table::key_columns(extension, &args)?)
        } else {
            None
        };
        Ok(self.altered(route, &columns, key.as_deref()))
    }

    /// `columns`: those that the table has now, by number; without any, there is no table. `key`: the names of
    /// those that are its key now, where that is the route's.
    fn altered(
        &self,
        route: &Route,
        columns: &HashMap<i16, Current>,
        key: Option<&[String]>,
    ) -> Option<Altered> {
        if columns.is_empty() {
            return Some(Altered::Dropped);
        }
        let current: Vec<Option<&Current>> = (self.attributes.iter())
            .map(|number| columns.get(number))
            .collect();
        if let Some(why) = self.rekeyed(route, &current, key) {
            return Some(Altered::Rekeyed(why));
        }
        let kept: Vec<usize> = (0..route.columns.len())
            .filter(|at| current[*at].is_some())
            .collect();
        let columns: Vec<Column> = kept
            .iter()
            .filter_map(|at| Some(renamed(&route.columns[*at], &current[*at]?.name)))
            .collect();
        let is_narrower = columns.len() < route.columns.len();
        if columns == route.columns {
            return None;
        }
        let position = |old: usize| kept.iter().position(|at| *at == old).unwrap_or_default();
        let altered = Route {
            key: route.key.iter().map(|at| position(*at)).collect(),
            policy: route.policy.with_version(position),
            columns,
            ..route.clone()
        };
        Some(if is_narrower {
            Altered::Narrowed(altered, kept)
        } else {
            Altered::Renamed(altered)
        })
    }

    /// How rows are told apart otherwise than when the changes were made, if they are.
    fn rekeyed(
        &self,
        route: &Route,
        current: &[Option<&Current>],
        key: Option<&[String]>,
    ) -> Option<String> {
        let table = &route.source.table;
        let needed = route.key.iter().map(|at| ("key", *at));
        for (role, at) in needed.chain(route.version().map(|at| ("version", at))) {
            let column = &route.columns[at];
            let name = column.local.as_ref().unwrap_or(&column.name);
            let Some(now) = current[at] else {
                return Some(format!(
                    "{role} column \"{name}\" of table \"{table}\" was dropped"
                ));
            };
            let is_same = match (&column.own_type, &now.own_type) {
                (Some(before), Some(now)) => reads_alike(before, now),
                (None, None) => self.types[at] == now.type_oid,
                _ => false,
            };
            if !is_same {
                return Some(format!(
                    "the type of {role} column \"{name}\" of table \"{table}\" was changed"
                ));
            }
        }
        let key = key?;
        let names = route.key.iter().filter_map(|at| Some(&current[*at]?.name));
        let is_same = key.len() == route.key.len() && names.into_iter().all(|n| key.contains(n));
        (!is_same).then(|| format!("the key of table \"{table}\" was changed"))
    }
}

/// Whether a value of the one type is, read as the other, equal to exactly the values that it was equal to.
fn reads_alike(before: &OwnType, now: &OwnType) -> bool {
    const INTEGERS: [&str; 3] = ["int2", "int4", "int8"];
    const TEXTS: [&str; 2] = ["text", "varchar"];
    let both = |kind: &[&str]| kind.contains(&&*before.name) && kind.contains(&&*now.name);
    let is_wider = now.modifier == -1 || now.modifier == before.modifier;
    both(&INTEGERS) || both(&TEXTS) || before.name == now.name && is_wider
}

/// Why a transaction is refused that has written a table and made another key of its own.
pub fn refusal(why: &str) -> Error {
    let message = format!("{why} by a transaction that has written the table");
    Error::local(SqlState::OBJECT_NOT_READY, message).with_hint(
        "Changes that were captured before could not be told which rows they are for. Alter the table in a \
         transaction of its own.",
    )
}

/// The column under the name it has now. The other side's name stays where the trigger gives one.
fn renamed(column: &Column, name: &str) -> Column {
    match column.local {
        Some(_) => Column {
            local: Some(name.to_owned()),
            ..column.clone()
        },
        None => Column {
            name: name.to_owned(),
            ..column.clone()
        },
    }
}

/// The change with the columns at these positions only.
pub fn narrowed<'c>(change: &Change<&'c str>, kept: &[usize]) -> Change<&'c str> {
    let row = if change.row.is_empty() {
        Vec::new()
    } else {
        kept.iter()
            .map(|at| change.row.get(*at).copied().flatten())
            .collect()
    };
    Change {
        row,
        key: change.key.clone(),
        stamp: change.stamp.clone(),
        tombstone: change.tombstone.clone(),
        unchanged: Vec::new(),
        ..*change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Carrier, Op, Policy, Relation, RowStorage};
    use crate::path::Path;

    fn column(name: &str, local: Option<&str>) -> Column {
        Column {
            name: name.to_owned(),
            carrier: Carrier::Element,
            identity_always: false,
            own_equality: false,
            collated: false,
            local: local.map(str::to_owned),
            binary: None,
            own_type: None,
        }
    }

    /// Columns 1 `a`, 2 `id` and 3 `v`, which is `w` on the other side.
    fn route() -> Route {
        let table = Relation {
            schema: "s".to_owned(),
            table: "t".to_owned(),
        };
        Route {
            source: table.clone(),
            target: table,
            columns: vec![
                column("a", None),
                Column {
                    own_type: Some(own("int4")),
                    ..column("id", None)
                },
                Column {
                    own_type: Some(own("int4")),
                    ..column("w", Some("v"))
                },
            ],
            key: vec![1],
            key_deferrable: false,
            key_exact: true,
            policy: Policy::Newest(2),
            truncate_children: false,
            application_name: None,
            path: Path::default(),
            cascades_from: Vec::new(),
        }
    }

    /// Columns of the type `int4`, and which of them are the key.
    fn after_with(names: &[(i16, &str)], key: &[&str], id_type: &str) -> Option<Altered> {
        let current = |(number, name): &(i16, &str)| {
            let type_name = if *number == 2 { id_type } else { "int4" };
            let now = Current {
                name: (*name).to_owned(),
                type_oid: Oid::from(23),
                own_type: Some(own(type_name)),
            };
            (*number, now)
        };
        let columns = names.iter().map(current).collect();
        let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
        let origin = Origin {
            relation: Oid::from(1),
            attributes: vec![1, 2, 3],
            types: vec![Oid::from(23); 3],
            has_own_key: true,
            epoch: Epoch::default(),
        };
        origin.altered(&route(), &columns, Some(&key))
    }

    fn own(name: &str) -> OwnType {
        OwnType {
            name: name.to_owned(),
            modifier: -1,
        }
    }

    fn after(names: &[(i16, &str)]) -> Option<Altered> {
        let key = names.iter().find(|(number, _)| *number == 2);
        after_with(names, &[key.map_or("", |(_, name)| *name)], "int4")
    }

    #[test]
    fn columns_that_are_there_under_their_names_are_nothing_new() {
        assert_eq!(after(&[(1, "a"), (2, "id"), (3, "v"), (4, "new")]), None);
    }

    #[test]
    fn a_renamed_column_is_sent_under_its_name_unless_the_trigger_gives_one() {
        let Some(Altered::Renamed(now)) = after(&[(1, "b"), (2, "key"), (3, "u")]) else {
            panic!("not renamed")
        };
        let names: Vec<_> = now.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["b", "key", "w"]);
        assert_eq!(now.columns[2].local.as_deref(), Some("u"));
    }

    #[test]
    fn a_dropped_column_is_left_out_and_the_others_keep_their_parts() {
        let Some(Altered::Narrowed(now, kept)) = after(&[(2, "id"), (3, "v")]) else {
            panic!("not narrowed")
        };
        assert_eq!(
            (now.key, now.policy, &kept[..]),
            (vec![0], Policy::Newest(1), &[1, 2][..])
        );
        let change = Change {
            op: Op::Update,
            command: 3,
            key: Vec::new(),
            row: vec![Some("x"), Some("1"), None],
            stamp: None,
            tombstone: None,
            unchanged: vec![0],
            stored: RowStorage::default(),
            overtaken: false,
        };
        let narrow = narrowed(&change, &kept);
        assert_eq!(
            (narrow.row, narrow.unchanged),
            (vec![Some("1"), None], Vec::new())
        );
    }

    #[test]
    fn a_key_that_is_another_one_is_told_and_a_table_that_is_gone_nobodys_business() {
        let all = [(1, "a"), (2, "id"), (3, "v")];
        let is_told = |altered: Option<Altered>, part: &str| match altered {
            Some(Altered::Rekeyed(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        };
        is_told(after(&[(1, "a"), (3, "v")]), "key column \"id\"");
        is_told(after(&[(1, "a"), (2, "id")]), "version column \"v\"");
        is_told(after_with(&all, &["a"], "int4"), "the key of table");
        is_told(after_with(&all, &[], "int4"), "the key of table");
        is_told(after_with(&all, &["id", "a"], "int4"), "the key of table");
        is_told(
            after_with(&all, &["id"], "text"),
            "the type of key column \"id\"",
        );
        assert_eq!(after_with(&all, &["id"], "int8"), None);
        assert_eq!(after(&[]), Some(Altered::Dropped));
    }

    #[test]
    fn a_type_that_is_as_fine_or_finer_tells_rows_apart_as_before() {
        let of = |name: &str, modifier| OwnType {
            modifier,
            ..own(name)
        };
        assert!(reads_alike(&of("varchar", 9), &of("text", -1)));
        assert!(reads_alike(&of("numeric", 655366), &of("numeric", -1)));
        assert!(!reads_alike(&of("numeric", -1), &of("numeric", 655366)));
        assert!(!reads_alike(&of("timestamptz", -1), &of("date", -1)));
    }
}
