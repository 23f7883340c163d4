//! TRUNCATE.

use super::quote::{literal, relation};
use crate::change::Route;
use std::rc::Rc;

/// TRUNCATE of the routes' targets, each once.
pub(super) fn truncate(routes: &[Rc<Route>]) -> String {
    let mut tables: Vec<String> = Vec::new();
    for route in routes {
        let only = if route.truncate_children { "" } else { "ONLY " };
        let table = format!("{only}{}", relation(&route.target));
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    format!("TRUNCATE TABLE {}", tables.join(", "))
}

/// TRUNCATE of the routes' targets, each once, where some may be partitioned and refuse ONLY. The statement
/// locks each table, and asks then whether it is partitioned.
pub fn truncate_by_kind(routes: &[Rc<Route>]) -> String {
    let mut tables: Vec<(String, String)> = Vec::new();
    for route in routes {
        let table = relation(&route.target);
        let only = if route.truncate_children {
            "''".to_owned()
        } else {
            format!(
                "CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c \
             WHERE c.oid OPERATOR(pg_catalog.=) {}::pg_catalog.regclass::pg_catalog.oid \
               AND c.relkind OPERATOR(pg_catalog.=) 'p') THEN '' ELSE 'ONLY ' END",
                literal(&table)
            )
        };
        if !tables.iter().any(|(known, _)| *known == table) {
            tables.push((table, only));
        }
    }
    let locked: Vec<String> = tables
        .iter()
        .map(|(table, _)| format!("ONLY {table}"))
        .collect();
    let concat = " OPERATOR(pg_catalog.||) ";
    let named: Vec<String> = (tables.iter())
        .map(|(table, only)| format!("{only}{concat}{}", literal(table)))
        .collect();
    let body = format!(
        "BEGIN LOCK TABLE {} IN ACCESS EXCLUSIVE MODE; EXECUTE 'TRUNCATE TABLE '{concat}{}; END",
        locked.join(", "),
        named.join(&format!("{concat}', '{concat}"))
    );
    format!("DO LANGUAGE plpgsql {}", literal(&body))
}
