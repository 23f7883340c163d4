//! Where a TRUNCATE goes among the changes before it. Pure.
//!
//! Constraints of the target that can wait do so to the end, and a server refuses to empty a table of which
//! something is still to be checked (55006), though the source was right to. But what a TRUNCATE takes away
//! need not be sent: it is sent where the first change of its tables would be, and those before it are left
//! out. Tables that are emptied together stay together, since foreign keys may tie them.
//!
//! Under `newest` deletions leave something behind, so those tables stay as they are where rows are deleted or
//! moved before.

use crate::change::{Change, Op, Policy, Relation, Route};
use crate::error::Result;
use crate::path::Path;
use std::collections::HashMap;
use std::rc::Rc;

/// Where the TRUNCATEs of a source are sent. Changes are numbered from 0 in the order of their source.
#[derive(Debug, Default)]
pub struct Truncations {
    /// The last TRUNCATE of a table, of those that are sent earlier.
    last: HashMap<Table, usize>,
    /// What is sent before a change: one route of each table.
    at: HashMap<usize, Vec<Rc<Route>>>,
}

/// Takes a change.
pub type Take<'t> = dyn FnMut(&Rc<Route>, &Change<&str>) + 't;

/// A target, for changes that came the same way: those may be left out as a whole.
type Table = (Relation, Path);

/// What is known of a table while changes are looked through.
struct Found {
    first: usize,
    /// The last TRUNCATE, and one's route.
    truncated: Option<(usize, Rc<Route>)>,
    /// Under `newest`: the first change that leaves something behind.
    lasts: Option<usize>,
    /// Tables with the same number are emptied together.
    group: usize,
}

impl Truncations {
    /// Looks through changes, which `next` hands out as a source does.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn of(mut next: impl FnMut(&mut Take<'_>) -> Result<bool>) -> Result<Self> {
        let mut tables: HashMap<Table, Found> = HashMap::new();
        let mut at = 0;
        let mut run = None;
        while next(&mut |route: &Rc<Route>, change: &Change<&str>| {
            let group = tables.len();
            let table = tables.entry(table_of(route)).or_insert_with(|| Found {
                first: at,
                truncated: None,
                lasts: None,
                group,
            });
            if change.op != Op::Truncate {
                run = None;
                let lasts = matches!(route.policy, Policy::Newest(_))
                    && (change.op == Op::Delete || change.moves());
                table.lasts = table.lasts.or(lasts.then_some(at));
            } else {
                table.truncated = Some((at, route.clone()));
                let own = table.group;
                let others = *run.get_or_insert(table.group);
                let joined = tables.values_mut().filter(|table| table.group == own);
                joined.for_each(|table| table.group = others);
            }
            at += 1;
        })? {}
        Ok(Self::from_found(tables))
    }

    fn from_found(tables: HashMap<Table, Found>) -> Self {
        let mut groups: HashMap<usize, Vec<(Table, Found)>> = HashMap::new();
        for (name, table) in tables
            .into_iter()
            .filter(|(_, table)| table.truncated.is_some())
        {
            groups.entry(table.group).or_default().push((name, table));
        }
        let mut truncations = Self::default();
        for mut group in groups.into_values() {
            group.sort_by_key(|(_, table)| table.first);
            let stays = |table: &Found| {
                let truncated = table.truncated.as_ref().map(|(at, _)| *at);
                table.lasts.is_some_and(|lasts| Some(lasts) < truncated)
            };
            let Some(first) = group.first().map(|(_, table)| table.first) else {
                continue;
            };
            if group.iter().any(|(_, table)| stays(table)) {
                continue;
            }
            for (name, table) in group {
                let Some((last, route)) = table.truncated else {
                    continue;
                };
                truncations.last.insert(name, last);
                truncations.at.entry(first).or_default().push(route);
            }
        }
        truncations
    }

    /// The tables that are emptied before a change.
    pub fn before(&self, at: usize) -> &[Rc<Route>] {
        self.at.get(&at).map_or(&[], Vec::as_slice)
    }

    /// Whether a change is not sent: it is taken away, or sent earlier.
    pub fn includes(&self, at: usize, route: &Route) -> bool {
        !self.last.is_empty()
            && self
                .last
                .get(&table_of(route))
                .is_some_and(|last| at <= *last)
    }
}

fn table_of(route: &Route) -> Table {
    (route.target.clone(), route.path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(table: char, policy: Policy) -> Rc<Route> {
        let name = |table: String| Relation {
            schema: "s".into(),
            table,
        };
        Rc::new(Route {
            source: name("l".into()),
            target: name(table.into()),
            columns: Vec::new(),
            key: vec![0],
            key_deferrable: false,
            key_exact: true,
            policy,
            truncate_children: false,
            cascades_from: Vec::new(),
            application_name: None,
            path: Path::default(),
        })
    }

    /// What is sent of these: `+a` inserts into table a, `-a` deletes, `0a` truncates.
    fn sent_under(policy: Policy, changes: &str) -> String {
        let changes: Vec<(Rc<Route>, Op)> = changes
            .split(' ')
            .map(|one| {
                let mut letters = one.chars();
                let op = match letters.next() {
                    Some('+') => Op::Insert,
                    Some('-') => Op::Delete,
                    _ => Op::Truncate,
                };
                (route(letters.next().unwrap_or('?'), policy), op)
            })
            .collect();
        let mut rest = changes.iter();
        let truncations = Truncations::of(|take| {
            let Some((route, op)) = rest.next() else {
                return Ok(false);
            };
            take(
                route,
                &Change {
                    op: *op,
                    ..Change::truncation()
                },
            );
            Ok(true)
        });
        let truncations = truncations.expect("readable");
        let mut sent = Vec::new();
        for (at, (route, op)) in changes.iter().enumerate() {
            let mut emptied: Vec<String> = truncations
                .before(at)
                .iter()
                .map(|r| format!("0{}", r.target.table))
                .collect();
            emptied.sort();
            sent.extend(emptied);
            if !truncations.includes(at, route) {
                let what = match op {
                    Op::Insert => '+',
                    Op::Delete => '-',
                    _ => '0',
                };
                sent.push(format!("{what}{}", route.target.table));
            }
        }
        sent.join(" ")
    }

    fn sent(changes: &str) -> String {
        sent_under(Policy::Overwrite, changes)
    }

    #[test]
    fn what_a_truncate_takes_away_is_not_sent() {
        assert_eq!(sent("+a +b +a 0a +a"), "0a +b +a");
        assert_eq!(sent("0a +a 0a +a +a 0a"), "0a");
        assert_eq!(sent("+b -b +a"), "+b -b +a");
    }

    #[test]
    fn tables_emptied_together_stay_together() {
        assert_eq!(sent("+c +a 0a 0b +b 0b +b"), "+c 0a 0b +b");
        assert_eq!(sent("+c 0a 0b +a 0b 0c"), "0a 0b 0c +a");
    }

    #[test]
    fn each_is_sent_where_the_first_change_of_its_tables_was() {
        assert_eq!(sent("-a -b 0a +a"), "0a -b +a");
        assert_eq!(sent("+a +b 0a +c 0b"), "0a 0b +c");
    }

    #[test]
    fn deletions_of_which_something_remains_are_sent() {
        let newest = |changes| sent_under(Policy::Newest(0), changes);
        assert_eq!(newest("+a -a +a 0a +a"), "+a -a +a 0a +a");
        assert_eq!(newest("+a +a 0a -a"), "0a -a");
    }
}
