//! Copies under way, as far as the queue has to know of them: what goes to a table that is being copied to a
//! server waits in the queue, behind the copy.
//!
//! A copy counts as a record that is older than all others: its number there is that of the copy, negative.

use super::writeset::Writeset;
use crate::change::{Relation, Route};
use crate::error::Result;
use crate::pg::lookup::{IndexRef, Is, Status, View};
use crate::pg::spi::Extension;
use std::rc::Rc;

/// The table of copies under way.
pub const TABLE: &str = "sync_copy";

/// Numbers of its columns.
pub const ID: i16 = 1;
const SERVER: i16 = 2;
const TARGET_SCHEMA: i16 = 3;
const TARGET_TABLE: i16 = 4;
pub const WRITES: i16 = 5;

/// Copies to a server.
pub const OF_SERVER: IndexRef = IndexRef {
    table: TABLE,
    column: SERVER,
    status: Status::Any,
};

/// Whether a copy goes on to the target of one of these routes.
///
/// # Errors
/// What reading the table reports.
pub fn concern<'r>(
    extension: &Extension,
    server_name: &str,
    routes: impl IntoIterator<Item = &'r Rc<Route>>,
) -> Result<bool> {
    View::look(extension, &[TABLE], |view| {
        for route in routes {
            if is_copied(view, server_name, &route.target)? {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

fn is_copied(view: &View<'_>, server_name: &str, target: &Relation) -> Result<bool> {
    let keys = [
        (SERVER, Is::Text(server_name)),
        (TARGET_SCHEMA, Is::Text(&target.schema)),
        (TARGET_TABLE, Is::Text(&target.table)),
    ];
    view.has(TABLE, &keys, Status::Any)
}

/// What waits behind a copy that takes this route leaves these writes.
pub fn writes(route: &Rc<Route>) -> Vec<i64> {
    Writeset::of_table(route).writes
}

/// Whether a record of this number is a copy.
pub fn is_copy(root: i64) -> bool {
    root < 0
}
