//! The SQL functions: the edges, where an [`Error`](crate::error::Error) is raised.

use crate::pg::report::or_raise;
use crate::pg::spi::Home;
use crate::pg::trigger::with_event;
use crate::{admin, drain, fdw, queue, trigger};
use pgrx::JsonB;
use pgrx::prelude::*;

/// The trigger function: captures row changes and TRUNCATE. See [`trigger::fire`]. Not pgrx's
/// `#[pg_trigger]`, which panics when it is called as an ordinary function.
#[pg_extern(sql = r#"
CREATE FUNCTION sync_dml() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'sync_dml_wrapper';
"#)]
fn sync_dml(fcinfo: pg_sys::FunctionCallInfo) -> i64 {
    or_raise(with_event(fcinfo, trigger::fire));
    // By the trigger protocol: a null pointer for "no row", which is not SQL NULL.
    0
}

/// Replays queued changes. See [`drain::deal`].
#[pg_extern(volatile, parallel_unsafe)]
fn deal_sync_err_rec(i_limit: Option<i32>, i_server: default!(Option<&str>, "NULL")) -> bool {
    or_raise(Home::find().and_then(|home| drain::deal(&home, i_limit, i_server)))
}

/// The SQL that delivers a queued change, for `sync_err_rec.dst_query`. See [`queue::describe`].
#[pg_extern(immutable, strict, parallel_safe)]
fn sync_change_sql(route: &str, change: &str) -> String {
    or_raise(queue::describe(route, change))
}

/// This session's cached connections. See [`admin::connections`].
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::type_complexity)] // the shape pgrx asks for in a set-returning function
fn sync_connections() -> TableIterator<
    'static,
    (
        name!(server_name, String),
        name!(user_name, Option<String>),
        name!(backend_pid, i32),
        name!(valid, bool),
    ),
> {
    TableIterator::new(or_raise(Home::find().and_then(|home| admin::connections(&home))))
}

/// Closes this session's cached connections to a server, or all. See [`admin::disconnect`].
#[pg_extern(volatile, parallel_restricted)]
fn sync_disconnect(server: default!(Option<&str>, "NULL")) -> bool {
    or_raise(Home::find().and_then(|home| admin::disconnect(&home, server)))
}

/// Makes both triggers on a table. See [`admin::attach`].
#[pg_extern(sql = r#"
CREATE FUNCTION attach_sync(
    rel regclass, server text, target text DEFAULT NULL, options jsonb DEFAULT '{}'
) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'attach_sync_wrapper';
"#)]
fn attach_sync(
    rel: Option<pg_sys::Oid>,
    server: Option<&str>,
    target: Option<&str>,
    options: Option<JsonB>,
) {
    let options = options.map_or_else(|| "{}".to_owned(), |json| json.0.to_string());
    or_raise(Home::find().and_then(|home| {
        let (rel, server) = admin::both(rel, server)?;
        admin::attach(&home, rel, server, target, &options)
    }));
}

/// Drops the triggers that send a table to a server. See [`admin::detach`].
#[pg_extern(sql = r#"
CREATE FUNCTION detach_sync(rel regclass, server text) RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'detach_sync_wrapper';
"#)]
fn detach_sync(rel: Option<pg_sys::Oid>, server: Option<&str>) {
    or_raise(Home::find().and_then(|home| {
        let (rel, server) = admin::both(rel, server)?;
        admin::detach(&home, rel, server)
    }));
}

/// Checks the options of CREATE and ALTER SERVER and USER MAPPING. See [`fdw::validate`].
#[pg_extern(volatile, strict)]
fn pg_rowsync_fdw_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
    or_raise(fdw::validate(&options.into_iter().flatten().collect::<Vec<_>>(), catalog));
}
