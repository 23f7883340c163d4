//! Columns that a trigger's options mention.
//!
//! Options name columns, and names change. `attach_sync` makes the trigger depend on what its options mention,
//! as CREATE TRIGGER does for UPDATE OF: such a column is not dropped without CASCADE, and if it is renamed the
//! dependency tells which one it is.

use super::table::Table;
use crate::error::Result;
use crate::options::Options;
use crate::pg::spi::{self, Extension};
use crate::pg::{Oid, ddl};
use std::collections::BTreeSet;

/// All names of columns in the options.
fn names(options: &Options) -> BTreeSet<&String> {
    let lists = [&options.columns, &options.exclude, &options.key]
        .into_iter()
        .flatten()
        .flatten();
    lists
        .chain(options.rename.keys())
        .chain(&options.version_column)
        .collect()
}

/// Makes a trigger of the table depend on the columns that its options mention.
///
/// # Errors
/// What the catalogs report; PostgreSQL raises what recording does.
pub fn depend(
    extension: &Extension,
    table: &Table,
    trigger: &str,
    options: &Options,
) -> Result<()> {
    let mentioned = names(options);
    let columns = table
        .columns
        .iter()
        .filter(|column| mentioned.contains(&column.name));
    let numbers: Vec<i16> = columns.map(|column| column.attribute.number).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let triggers: Vec<Oid> = spi::select(
        extension,
        "SELECT oid FROM pg_trigger \
         WHERE tgrelid = $1::oid \
           AND tgname = $2::name",
        &[Some(&table.oid.to_u32().to_string()), Some(trigger)],
    )?;
    for trigger in triggers {
        ddl::depend_on_columns(trigger, table.oid, &numbers);
    }
    Ok(())
}

/// Writes into the options what columns are called now that were renamed since. Names that cannot be told stay.
///
/// # Errors
/// What the catalogs report.
pub fn follow_renames(
    extension: &Extension,
    table: &Table,
    trigger: Oid,
    options: &mut Options,
) -> Result<()> {
    let is_there = |name: &String| table.columns.iter().any(|column| column.name == *name);
    let missing: Vec<String> = names(options)
        .into_iter()
        .filter(|name| !is_there(name))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // A partition's trigger has been made of the table's to which it belongs, whose columns have the same
    // names.
    let known: Vec<String> = spi::select(
        extension,
        "WITH RECURSIVE made AS ( \
           SELECT t.oid, t.tgparentid FROM pg_trigger t \
             WHERE t.oid = $1::oid \
           UNION ALL SELECT t.oid, t.tgparentid FROM pg_trigger t \
             JOIN made m ON t.oid = m.tgparentid) \
         SELECT a.attname FROM made m \
         JOIN pg_depend d ON d.objid = m.oid \
          AND d.classid = 'pg_trigger'::regclass \
          AND d.refclassid = 'pg_class'::regclass \
          AND d.refobjsubid <> 0 \
         JOIN pg_attribute a ON a.attrelid = d.refobjid \
          AND a.attnum = d.refobjsubid \
         WHERE NOT a.attisdropped ORDER BY a.attnum",
        &[Some(&trigger.to_u32().to_string())],
    )?;
    let unnamed: Vec<String> = known
        .into_iter()
        .filter(|name| !names(options).contains(name))
        .collect();
    if let Some(renamed) = pairs(options, &missing, &unnamed) {
        for (from, to) in renamed {
            rename(options, &from, &to);
        }
    }
    Ok(())
}

/// Which of the names that are missing stands for which column; `None` if that cannot be told. In a list that
/// says no more than which columns are in it, their order means nothing.
fn pairs(
    options: &Options,
    missing: &[String],
    unnamed: &[String],
) -> Option<Vec<(String, String)>> {
    let listed = |list: &Option<Vec<String>>| {
        list.as_ref()
            .is_some_and(|list| missing.iter().all(|name| list.contains(name)))
    };
    let has_meaning = |name: &String| {
        options.rename.contains_key(name)
            || options.version_column.as_ref() == Some(name)
            || options.key.as_ref().is_some_and(|key| key.contains(name))
    };
    let are_alike =
        (listed(&options.exclude) || listed(&options.columns)) && !missing.iter().any(has_meaning);
    let can_be_told = missing.len() == unnamed.len() && (missing.len() == 1 || are_alike);
    can_be_told.then(|| {
        missing
            .iter()
            .cloned()
            .zip(unnamed.iter().cloned())
            .collect()
    })
}

fn rename(options: &mut Options, from: &str, to: &str) {
    let lists = [&mut options.columns, &mut options.exclude, &mut options.key];
    let names = lists
        .into_iter()
        .flatten()
        .flatten()
        .chain(&mut options.version_column);
    names
        .filter(|name| *name == from)
        .for_each(|name| *name = to.to_owned());
    if let Some(other_side) = options.rename.remove(from) {
        options.rename.insert(to.to_owned(), other_side);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        Options::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn pairs_of(text: &str, missing: &[&str], unnamed: &[&str]) -> Option<usize> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        pairs(&options(text), &owned(missing), &owned(unnamed)).map(|pairs| pairs.len())
    }

    #[test]
    fn one_name_stands_for_one_column_whatever_it_means() {
        for text in [
            r#"{"exclude": ["a"]}"#,
            r#"{"rename": {"a": "x"}}"#,
            r#"{"key": ["a"]}"#,
        ] {
            assert_eq!(pairs_of(text, &["a"], &["b"]), Some(1), "{text}");
            assert_eq!(pairs_of(text, &["a"], &[]), None, "{text}");
            assert_eq!(pairs_of(text, &["a"], &["b", "c"]), None, "{text}");
        }
    }

    #[test]
    fn several_can_be_told_where_they_all_mean_the_same() {
        let missing = ["a", "b"];
        let unnamed = ["c", "d"];
        assert_eq!(
            pairs_of(r#"{"exclude": ["a", "b"]}"#, &missing, &unnamed),
            Some(2)
        );
        assert_eq!(
            pairs_of(r#"{"columns": ["id", "a", "b"]}"#, &missing, &unnamed),
            Some(2)
        );
        for text in [
            r#"{"rename": {"a": "x", "b": "y"}}"#,
            r#"{"columns": ["a", "b"], "rename": {"a": "x"}}"#,
            r#"{"columns": ["a", "b"], "key": ["b"]}"#,
        ] {
            assert_eq!(pairs_of(text, &missing, &unnamed), None, "{text}");
        }
    }

    #[test]
    fn a_renamed_column_is_renamed_wherever_it_is_mentioned() {
        let mut own = options(r#"{"columns": ["id", "a"], "key": ["a"], "rename": {"a": "x"}}"#);
        rename(&mut own, "a", "b");
        let expected = options(r#"{"columns": ["id", "b"], "key": ["b"], "rename": {"b": "x"}}"#);
        assert_eq!(own, expected);
    }
}
