//! Differences that are known, and why they are none of the extension's faults. Whatever is not
//! listed here fails the command.

/// What explains a difference.
pub struct Explained {
    /// The file's name without its ending; `*` for all.
    pub file: &'static str,
    /// A part of the statement or of why it failed there, or of the output around the difference, in
    /// lower case.
    pub part: &'static str,
    pub reason: &'static str,
}

const fn known(file: &'static str, part: &'static str, reason: &'static str) -> Explained {
    Explained { file, part, reason }
}

const REFERENCED: &str = "cannot truncate a table referenced in a foreign key constraint";
const ONE_BY_ONE: &str = "partitions are attached one by one: the partitioned table that refers to \
                          another is not among those that are emptied together";

const VOLATILE: &str = "a definition is carried out on each side, and so is a volatile default that fills a column \
                        for the rows that are there";

/// Rows that differ after a statement.
const ROWS: &[Explained] = &[
    known("fast_default", "add column", VOLATILE),
    known("fast_default", "add col4", VOLATILE),
    known("alter_table", "default random()", VOLATILE),
    known(
        "alter_table",
        "new_system_table",
        "a table of the schema pg_catalog, which the other side does not get",
    ),
    known(
        "*",
        "session_replication_role",
        "no trigger of the usual kind fires in a session that replicates",
    ),
    known("truncate", REFERENCED, ONE_BY_ONE),
    known(
        "*",
        "disable trigger",
        "a trigger that is disabled sees nothing",
    ),
];

/// Outputs that differ from those without the extension.
const OUTPUTS: &[Explained] = &[
    known(
        "foreign_data",
        "pg_rowsync",
        "the wrapper has a validator, and its server options that lead to the other side",
    ),
    known("truncate", REFERENCED, ONE_BY_ONE),
    known(
        "alter_table",
        "new_system_table",
        "a table of the schema pg_catalog, which the other side does not get",
    ),
    known(
        "triggers",
        "| rowsync.sync_dml",
        "the file lists pg_trigger by the table's name only: those of one table come in any order",
    ),
];

fn find(list: &[Explained], file: &str, text: &str) -> Option<&'static str> {
    let text = text.to_lowercase();
    let found = list
        .iter()
        .find(|one| (one.file == "*" || one.file == file) && text.contains(one.part));
    found.map(|one| one.reason)
}

/// Why rows may differ, if that is known. `text` has the statement and what failed.
pub fn of_rows(file: &str, text: &str) -> Option<&'static str> {
    find(ROWS, file, text)
}

/// Why a part of an output may differ, if that is known.
pub fn of_output(file: &str, lines: &str) -> Option<&'static str> {
    find(OUTPUTS, file, lines)
}
