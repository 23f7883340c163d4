//! Which columns of which table the changes of a route were read from, and what DDL of the same transaction has
//! made of them since.
//!
//! Nobody else can alter a table that the transaction has written, so this is asked once, when it commits, and
//! only if the catalogs have changed since the columns were looked up.

use crate::change::{Change, Column, Route};
use crate::error::{Error, Result};
use crate::pg::Oid;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::spi::{self, Extension, required};
use std::collections::HashMap;

/// The table and the columns that a route was made for, as the catalogs number them.
#[derive(Clone, Debug)]
pub struct Origin {
    pub relation: Oid,
    /// Numbers of the columns, in the order of [`Route::columns`].
    pub attributes: Vec<i16>,
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
}

impl Origin {
    /// Whether both are the same columns of the same table.
    pub fn is_same(&self, other: &Self) -> bool {
        self.relation == other.relation && self.attributes == other.attributes
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
        let rows = spi::read(
            extension,
            "SELECT a.attnum, a.attname FROM pg_attribute a \
             WHERE a.attrelid = $1::oid \
               AND a.attnum > 0 AND NOT a.attisdropped",
            &[Some(&self.relation.to_u32().to_string())],
        )?;
        let mut names = HashMap::with_capacity(rows.len());
        for mut row in rows {
            let number: i16 = required(&mut row, 0)?
                .parse()
                .map_err(|_| Error::internal("malformed attnum"))?;
            names.insert(number, required(&mut row, 1)?);
        }
        Ok(altered(route, &self.attributes, &names))
    }
}

/// `names`: those of the table's columns, by number; without any, there is no table.
fn altered(route: &Route, attributes: &[i16], names: &HashMap<i16, String>) -> Option<Altered> {
    if names.is_empty() {
        return Some(Altered::Dropped);
    }
    let current: Vec<Option<&String>> = attributes.iter().map(|number| names.get(number)).collect();
    // Its changes can be found by their keys only. If these are gone, the server has the last word.
    let needed = route.key.iter().copied().chain(route.version());
    if needed
        .into_iter()
        .any(|at| current.get(at).is_none_or(Option::is_none))
    {
        return None;
    }
    let kept: Vec<usize> = (0..route.columns.len())
        .filter(|at| current[*at].is_some())
        .collect();
    let columns: Vec<Column> = kept
        .iter()
        .filter_map(|at| Some(renamed(&route.columns[*at], current[*at]?)))
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
            fixed: false,
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
                column("id", None),
                column("w", Some("v")),
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

    fn after(names: &[(i16, &str)]) -> Option<Altered> {
        let names = names
            .iter()
            .map(|(number, name)| (*number, (*name).to_owned()))
            .collect();
        altered(&route(), &[1, 2, 3], &names)
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
    fn a_key_that_is_gone_is_the_servers_business_and_a_table_that_is_gone_nobodys() {
        assert_eq!(after(&[(1, "a"), (3, "v")]), None);
        assert_eq!(after(&[(1, "a"), (2, "id")]), None);
        assert_eq!(after(&[]), Some(Altered::Dropped));
    }
}
