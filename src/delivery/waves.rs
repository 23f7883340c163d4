//! The order in which rows that move at once are moved. Pure; tested through `plan`.

use crate::change::{Change, Route};
use crate::sql::BatchKind;
use std::collections::{HashMap, HashSet};

/// Orders the moves of one command: each wave's new keys are free once the waves before it are
/// done. Chains (1 to 2, 2 to 3) go from their end; a cycle (1 to 2, 2 to 1) cannot be ordered, so
/// its rows are written in place, each over the row that holds its new key.
pub fn waves(route: &Route, moves: &[Change<String>]) -> Vec<(BatchKind, Vec<usize>)> {
    let Order { cycles, waves } = Order::of(route, moves);
    let cyclic = cycles.concat();
    let in_place = (!cyclic.is_empty()).then_some((BatchKind::Update, cyclic));
    in_place
        .into_iter()
        .chain(waves.into_iter().map(|wave| (BatchKind::Move, wave)))
        .collect()
}

/// The rows that take each other's places, those of one circle after the other.
pub fn circles(route: &Route, moves: &[Change<String>]) -> Vec<Vec<usize>> {
    Order::of(route, moves).cycles
}

/// The moves of one command in groups of which each may be one statement, where the server checks keys at the
/// end of the transaction: the keys that a group gives up are held by no row that a group before it has
/// moved.
pub fn groups(route: &Route, moves: &[Change<String>]) -> Vec<Vec<usize>> {
    let Order { mut cycles, waves } = Order::of(route, moves);
    cycles.extend(waves.into_iter().flatten().map(|at| vec![at]));
    cycles
}

/// Moves, as positions.
struct Order {
    /// Rows of which each takes the place of another of them.
    cycles: Vec<Vec<usize>>,
    /// The others; see [`waves`].
    waves: Vec<Vec<usize>>,
}

impl Order {
    fn of(route: &Route, moves: &[Change<String>]) -> Self {
        const OPEN: usize = usize::MAX;
        let holder: HashMap<_, usize> = moves
            .iter()
            .enumerate()
            .map(|(i, m)| (m.old_key(route), i))
            .collect();
        // The move that must go before move i, because it vacates i's new key.
        let before: Vec<Option<usize>> = moves
            .iter()
            .enumerate()
            .map(|(i, m)| holder.get(&m.new_key(route)).copied().filter(|j| *j != i))
            .collect();
        let mut depth = vec![OPEN; moves.len()];
        let mut cycles: Vec<Vec<usize>> = Vec::new();
        for start in 0..moves.len() {
            let mut path = Vec::new();
            let mut on_path = HashSet::new();
            let mut at = Some(start);
            while let Some(i) = at.filter(|i| depth[*i] == OPEN) {
                if !on_path.insert(i) {
                    let from = path.iter().position(|p| *p == i).unwrap_or(0);
                    let cycle: Vec<usize> = path.drain(from..).collect();
                    // Every new key in a cycle is taken over, none is vacated for others: depth 0.
                    cycle.iter().for_each(|member| depth[*member] = 0);
                    cycles.push(cycle);
                    at = None;
                    break;
                }
                path.push(i);
                at = before[i];
            }
            let first = at.map_or(0, |i| depth[i] + 1);
            for (next, i) in (first..).zip(path.into_iter().rev()) {
                depth[i] = next;
            }
        }
        let cycle: HashSet<usize> = cycles.iter().flatten().copied().collect();
        let mut by_depth: Vec<Vec<usize>> = Vec::new();
        for (i, depth) in depth.iter().enumerate().filter(|(i, _)| !cycle.contains(i)) {
            if by_depth.len() <= *depth {
                by_depth.resize(*depth + 1, Vec::new());
            }
            by_depth[*depth].push(i);
        }
        let waves = by_depth
            .into_iter()
            .filter(|wave| !wave.is_empty())
            .collect();
        Self { cycles, waves }
    }
}
