//! The tables that are written, and the statements that write them.

use serde::{Deserialize, Serialize};

use super::number::grouped;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Shape {
    /// The recipe's five columns.
    Narrow,
    /// Forty columns of four types.
    Wide,
    /// The five columns and one whose 100,000 bytes are stored out of line, uncompressed.
    Toast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

impl Operation {
    pub const ALL: [Operation; 3] = [Operation::Insert, Operation::Update, Operation::Delete];
}

/// The key of the row that warms a connection up; the timed rows count from 1.
const WARM: i64 = -1;

impl Shape {
    pub const ALL: [Shape; 3] = [Shape::Narrow, Shape::Wide, Shape::Toast];

    pub fn name(self) -> &'static str {
        match self {
            Shape::Narrow => "narrow",
            Shape::Wide => "wide",
            Shape::Toast => "toast",
        }
    }

    /// Name, type and content of the columns; `g` in the content is the row's number.
    pub fn columns(self) -> Vec<(String, &'static str, String)> {
        let mut columns = vec![
            ("pk1".to_owned(), "int", "g".to_owned()),
            ("pk2".to_owned(), "text", "'digoal' || g".to_owned()),
            ("info".to_owned(), "text", "'test' || g".to_owned()),
            ("crt_time".to_owned(), "timestamp", "now()".to_owned()),
            (
                "mod_time".to_owned(),
                "timestamp",
                "clock_timestamp()".to_owned(),
            ),
        ];
        match self {
            Shape::Narrow => {}
            Shape::Wide => columns.extend((columns.len()..40).map(|at| {
                let (kind, content) = match at % 4 {
                    0 => ("int", format!("g + {at}")),
                    1 => ("text", format!("'text {at} of ' || g")),
                    2 => ("numeric(14,2)", format!("g + {at}.25")),
                    _ => (
                        "timestamp",
                        format!("timestamp '2024-01-01' + g * interval '{at} s'"),
                    ),
                };
                (format!("c{at}"), kind, content)
            })),
            Shape::Toast => {
                columns.push((
                    "big".to_owned(),
                    "text",
                    "repeat(md5(g::text), 3125)".to_owned(),
                ));
            }
        }
        columns
    }

    pub fn definition(self) -> String {
        let columns = self.columns();
        columns
            .iter()
            .map(|(name, kind, _)| format!("{name} {kind}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// What CREATE TABLE cannot say.
    pub fn adjust(self, table: &str) -> String {
        match self {
            Shape::Toast => format!("alter table {table} alter column big set storage external"),
            Shape::Narrow | Shape::Wide => String::new(),
        }
    }

    pub fn insert(self, table: &str, rows: std::ops::RangeInclusive<i64>) -> String {
        self.insert_from(
            table,
            &format!("generate_series({}, {}) g", rows.start(), rows.end()),
        )
    }

    /// What [`Shape::insert`] writes, so many rows under numbers that nobody has had.
    pub fn insert_new(self, table: &str, rows: u32) -> String {
        let source =
            format!("select nextval('bench.key')::int as g from generate_series(1, {rows})");
        self.insert_from(table, &format!("({source}) n"))
    }

    fn insert_from(self, table: &str, source: &str) -> String {
        let columns = self.columns();
        let contents: Vec<_> = columns
            .iter()
            .map(|(_, _, content)| content.as_str())
            .collect();
        format!(
            "insert into {table} select {} from {source}",
            contents.join(", ")
        )
    }

    /// All rows, as one statement. Inserts `rows`, updates and deletes what is there.
    pub fn statement(self, operation: Operation, table: &str, rows: u32) -> String {
        match operation {
            Operation::Insert => self.insert(table, 1..=rows.into()),
            Operation::Update => format!("update {table} set info = pk2"),
            Operation::Delete => format!("delete from {table}"),
        }
    }

    /// An UPDATE of the row with this number.
    pub fn update_one(self, table: &str, row: &str) -> String {
        format!(
            "update {table} set info = 'at ' || clock_timestamp()
              where pk1 = {row} and pk2 = 'digoal' || {row}"
        )
        .replace('\n', " ")
    }

    /// Two small transactions that leave nothing behind: a row written, and deleted again.
    pub fn warm(self, table: &str) -> [String; 2] {
        [
            self.insert(table, WARM..=WARM),
            format!("delete from {table} where pk1 = {WARM}"),
        ]
    }

    /// What the report calls such a statement.
    pub fn title(self, operation: Operation, rows: u32) -> String {
        let rows = grouped(rows.into());
        let verb = match operation {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
        };
        match self {
            Shape::Narrow => format!("{verb} {rows} rows"),
            Shape::Wide => format!("{verb} {rows} rows of 40 columns"),
            Shape::Toast if operation == Operation::Update => {
                format!("update {rows} rows, 100 kB untouched")
            }
            Shape::Toast => format!("{verb} {rows} rows of 100 kB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_has_forty_columns() {
        assert_eq!(Shape::Wide.columns().len(), 40);
    }

    #[test]
    fn a_title_says_what_was_written() {
        assert_eq!(
            Shape::Narrow.title(Operation::Insert, 10_000),
            "insert 10,000 rows"
        );
        assert_eq!(
            Shape::Toast.title(Operation::Update, 500),
            "update 500 rows, 100 kB untouched"
        );
    }
}
