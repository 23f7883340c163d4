//! Which values of the server the types here can read: a key that they cannot is that of no row here, and a row
//! cannot be written here.

use super::difference::Difference;
use super::subject::Subject;
use crate::error::Result;
use crate::pg::query;
use crate::pg::subtransaction::attempt_interruptibly;

/// Values of a row there, each with its column.
pub struct Values<'d>(Vec<(usize, &'d str)>);

impl<'d> Values<'d> {
    /// All that were fetched.
    pub fn of_row(difference: &'d Difference) -> Self {
        Self::of(difference.texts.iter().flatten().enumerate())
    }

    /// Those of the key, whose columns are these.
    pub fn of_key(difference: &'d Difference, key: &[usize]) -> Self {
        Self::of(key.iter().copied().zip(&difference.key_texts))
    }

    /// That of a column, if it was fetched.
    pub fn of_column(difference: &'d Difference, column: usize) -> Self {
        let text = (difference.texts.as_ref()).and_then(|texts| texts.get(column));
        Self::of(text.map(|text| (column, text)).into_iter())
    }

    fn of(values: impl Iterator<Item = (usize, &'d Option<String>)>) -> Self {
        Self(
            values
                .filter_map(|(column, text)| Some((column, text.as_deref()?)))
                .collect(),
        )
    }
}

/// Whether the types here can read all of some values, for each of these rows. Where they cannot, that is found by
/// halves: most often they can.
///
/// # Errors
/// What reading reports that is not about a value; a request to cancel is raised.
pub fn can_be_read(subject: &Subject, rows: &[Values<'_>]) -> Result<Vec<bool>> {
    let expressions = &subject.expressions;
    let values = rows.iter().flat_map(|row| &row.0);
    let casts: Vec<String> = (values.clone())
        .map(|(column, text)| expressions.typed(*column, Some(text)))
        .collect();
    // A cast cuts what an assignment refuses.
    let is_cut = values.fold(false, |is_cut, (column, text)| {
        is_cut || !expressions.has_room(*column, text)
    });
    if casts.is_empty() {
        return Ok(vec![true; rows.len()]);
    }
    let sql = format!("SELECT WHERE {} IS NULL", casts.join(" IS NULL OR "));
    let is_read = !is_cut
        && match attempt_interruptibly(|| query::read_as(subject.table.owner, &sql)) {
            Ok(_) => true,
            Err(error) if error.is_about_value() => false,
            Err(error) => return Err(error),
        };
    if is_read || rows.len() == 1 {
        return Ok(vec![is_read; rows.len()]);
    }
    let (some, others) = rows.split_at(rows.len() / 2);
    let mut all = can_be_read(subject, some)?;
    all.extend(can_be_read(subject, others)?);
    Ok(all)
}
