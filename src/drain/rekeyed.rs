//! Records that were captured under another key than the rows of their table are told by now.
//!
//! A record that was marked failed, or waited behind one, may be delivered after newer changes of its row: these
//! waited for it only as long as both named the row by the same key. It would set the row back.

use crate::attached;
use crate::capture::descriptor::Arguments;
use crate::capture::table::Table;
use crate::change::Route;
use crate::error::{Error, Result, SqlState};
use crate::local::{ProcessLocal, process_local};
use crate::pg::Oid;
use crate::pg::invalidation::{self, Epoch};
use crate::pg::spi::{self, Extension};
use std::cell::RefCell;
use std::rc::Rc;

/// What was found of a route.
struct Known {
    server: String,
    route: Rc<Route>,
    at: Epoch,
    found: Option<Error>,
}

process_local! {
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

/// So many routes are remembered at most.
const MOST_KNOWN: usize = 256;

/// Why records that take this route are refused, if they are.
///
/// # Errors
/// What the catalogs report.
pub fn refusal(
    extension: &Extension,
    server_name: &str,
    route: &Rc<Route>,
) -> Result<Option<Error>> {
    if route.is_keyless() {
        return Ok(None);
    }
    let now = invalidation::now();
    let known = KNOWN.with_borrow(|all| {
        let is = |known: &&Known| {
            known.at == now && known.server == server_name && known.route == *route
        };
        all.iter().find(is).map(|known| known.found.clone())
    });
    if let Some(found) = known {
        return Ok(found);
    }
    let found = look(extension, server_name, route)?;
    // As of before: what was not watched yet may have changed meanwhile.
    KNOWN.with_borrow_mut(|all| {
        all.retain(|known| known.at == now);
        all.truncate(MOST_KNOWN - 1);
        all.push(Known {
            server: server_name.to_owned(),
            route: route.clone(),
            at: now,
            found: found.clone(),
        });
    });
    Ok(found)
}

fn look(extension: &Extension, server_name: &str, route: &Route) -> Result<Option<Error>> {
    let (source, target) = (&route.source, &route.target);
    let sql = "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE n.nspname = $1::name AND c.relname = $2::name AND c.relkind = ANY ('{r,p}')";
    let args = [Some(source.schema.as_str()), Some(source.table.as_str())];
    let Some(relation) = spi::select_first::<Oid>(extension, sql, &args)? else {
        return Ok(None);
    };
    invalidation::watch(relation);
    let place = [server_name, target.schema.as_str(), target.table.as_str()];
    let triggers = attached::triggers(extension, Some(relation))?;
    let sends = |trigger: &&attached::Trigger| {
        trigger.is_row_level && trigger.args.iter().take(3).eq(place)
    };
    let arguments = triggers.iter().find(sends);
    let Some(Ok(Arguments { options, .. })) = arguments.map(|one| Arguments::parse(&one.args))
    else {
        return Ok(None);
    };
    let table = Table::read(extension, relation)?;
    let key = options.key.as_ref().unwrap_or(&table.key);
    let mut before = route.key.iter().map(|at| {
        let column = &route.columns[*at];
        column.local.as_ref().unwrap_or(&column.name)
    });
    let is_there = |name: &String| table.columns.iter().any(|column| column.name == *name);
    // A column that has another name, or is gone: the server has the last word.
    if key.is_empty() || !key.iter().all(is_there) || !before.clone().all(is_there) {
        return Ok(None);
    }
    let is_same = key.len() == route.key.len() && before.clone().all(|name| key.contains(name));
    if is_same {
        return Ok(None);
    }
    let listed = |names: &mut dyn Iterator<Item = &String>| {
        names.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    let message = format!(
        "the change was captured when the key of table \"{}\" was ({}), which is ({}) now",
        source.table,
        listed(&mut before),
        listed(&mut key.iter())
    );
    let error = Error::local(SqlState::new(NO_ARBITER), message).with_hint(
        "Newer changes of its row may have arrived. Discard the record, and write the row again here.",
    );
    Ok(Some(error))
}

/// `invalid_column_reference`: a failure of the table's, behind which its other records wait.
const NO_ARBITER: &str = "42P10";
