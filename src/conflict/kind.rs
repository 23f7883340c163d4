//! What a conflict is, what was decided, and what is known of it.

use serde::{Deserialize, Serialize};

/// The type of a conflict, named as PostgreSQL names the conflicts of logical replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictType {
    /// A row with the key of an INSERT is there.
    InsertExists,
    /// The row of an UPDATE is not there.
    UpdateMissing,
    /// The key that an UPDATE gives its row is another row's.
    UpdateExists,
    /// The row there is newer than the UPDATE.
    UpdateOriginDiffers,
    /// The row of a DELETE is not there.
    DeleteMissing,
    /// The row there is newer than the one that was deleted.
    DeleteOriginDiffers,
    /// A row with the key of an INSERT is there, and another violates a further unique constraint.
    MultipleUniqueConflicts,
}

impl ConflictType {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::InsertExists,
        Self::UpdateMissing,
        Self::UpdateExists,
        Self::UpdateOriginDiffers,
        Self::DeleteMissing,
        Self::DeleteOriginDiffers,
        Self::MultipleUniqueConflicts,
    ];

    /// The name that SQL shows; also the one in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateMissing => "update_missing",
            Self::UpdateExists => "update_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::DeleteMissing => "delete_missing",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
        }
    }
}

/// What became of a change that was in conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The server's row is now what the change says.
    Applied,
    /// The change was dropped; the server keeps what it has.
    Skipped,
    /// The change cannot be applied; its record waits in the queue for someone.
    #[serde(rename = "failed")]
    Failed,
}

impl Decision {
    /// The name that SQL shows; also the one in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// One conflict, with what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    pub kind: ConflictType,
    pub decision: Decision,
    /// The key of the change: an object of the columns' names on the server and their values as text.
    pub key: Option<serde_json::Value>,
    /// The key of the existing row, likewise.
    pub server_key: Option<serde_json::Value>,
    /// The change's value of the version column.
    pub version: Option<String>,
    /// The value in the existing row.
    pub server_version: Option<String>,
    /// The server's constraint that was violated.
    pub constraint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_sql_and_in_json() {
        for (at, kind) in ConflictType::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(serde_json::to_value(kind).expect("JSON"), kind.name());
        }
        for decision in [Decision::Applied, Decision::Skipped, Decision::Failed] {
            assert_eq!(
                serde_json::to_value(decision).expect("JSON"),
                decision.name()
            );
        }
    }

    #[test]
    fn a_conflict_is_read_without_what_is_not_known() {
        let text = r#"{"kind": "update_exists", "decision": "failed", "constraint": "t_pkey"}"#;
        let read: Conflict = serde_json::from_str(text).expect("a conflict");
        assert_eq!(
            (read.kind, read.decision),
            (ConflictType::UpdateExists, Decision::Failed)
        );
        assert_eq!(
            (read.constraint.as_deref(), read.key),
            (Some("t_pkey"), None)
        );
    }
}
