//! Where a link takes its statements from, a batch at a time, so that encoding overlaps with the
//! server's work and memory holds one batch.

use super::plan::{InWaves, Planner};
use super::truncations::Truncations;
use super::whole::{Span, Whole};
use crate::change::{Change, Policy, Relation, Route, Source};
use crate::connect::session::Session;
use crate::error::Result;
use crate::identity;
use crate::path::Path;
use crate::sql::{self, Batch, BatchKind, Statement, prepared};
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

/// A source of statements.
pub trait Feed {
    /// The next statements, to be sent together over this session; `None` at the end.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn next(&mut self, session: &mut Session) -> Result<Option<Vec<Statement>>>;

    /// Whether the statements depend on [`Session::remote_schema`].
    fn needs_remote_schema(&self) -> bool {
        false
    }

    /// Whether they depend on [`Session::node`].
    fn needs_node(&self) -> bool {
        false
    }
}

/// Statements known beforehand.
pub struct Fixed(Option<Vec<Statement>>);

impl Fixed {
    /// From SQL texts without parameters.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self(Some(plain(texts)))
    }
}

/// Statements without parameters.
fn plain<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Vec<Statement> {
    texts.into_iter().map(Statement::plain).collect()
}

impl Feed for Fixed {
    fn next(&mut self, _session: &mut Session) -> Result<Option<Vec<Statement>>> {
        Ok(self.0.take())
    }
}

/// Statements that may have parameters or be prepared.
pub struct Statements(Option<Vec<Statement>>);

impl Statements {
    /// From these, to be sent together.
    pub fn new(statements: Vec<Statement>) -> Self {
        Self(Some(statements))
    }
}

impl Feed for Statements {
    fn next(&mut self, _session: &mut Session) -> Result<Option<Vec<Statement>>> {
        Ok(self.0.take())
    }
}

/// Bytes of changes that are put together, at most: as far as they go, they are held in memory.
const MAX_SPAN_BYTES: usize = 64 * 1024 * 1024;

/// Changes, planned into batches as they are asked for.
pub struct Changes<S> {
    source: S,
    planner: Planner,
    /// Where TRUNCATEs go, or why that is not known.
    truncations: Result<Truncations>,
    /// Changes that have been taken from the source.
    taken: usize,
    /// Rows move in waves wherever their keys may have to be checked with each.
    in_waves: bool,
    /// See [`Changes::following`].
    vanished: HashSet<Relation>,
    done: bool,
    /// See [`Batch::optimistic`].
    optimistic: bool,
    /// The `application_name` the session has, and the one it has now inside the transaction.
    name: String,
    current: String,
    /// Routes of which the server has said in the transaction that the key is unique: it is to the end.
    asked: Vec<Rc<Route>>,
    /// The routes whose types' schemas are in the search_path now.
    schemas: Vec<Rc<Route>>,
    before: Vec<Statement>,
    after: Vec<Statement>,
    /// What begins and ends a transaction block, until it is known whether one is needed.
    block: Option<[Vec<Statement>; 2]>,
    /// The changes are all of a transaction that commits at their end, and none has been sent.
    is_transaction: bool,
    /// See [`Changes::after_answer`].
    urgent: Option<Statement>,
    /// See [`Changes::before_truncates`].
    before_truncates: Vec<Statement>,
    needs_remote_schema: bool,
    /// Some of it has come from other nodes.
    is_forwarded: bool,
    /// The path that the session has inside the transaction, but for the own name at its end.
    path: Path,
    /// Changes left out because the server is on their path.
    held_back: u64,
    /// What is put together in one statement, where that is so.
    span: Option<Span>,
    /// What comes first after the last span.
    ahead: Vec<Owned>,
    /// Batches of a span that are statements of their own.
    ready: VecDeque<Batch>,
}

type Owned = (Rc<Route>, Change<String>);

impl<S> Changes<S> {
    /// A feed of these changes, for a session named `application_name`.
    pub fn new(source: S, application_name: &str) -> Self {
        Self {
            source,
            planner: Planner::default(),
            truncations: Ok(Truncations::default()),
            taken: 0,
            in_waves: false,
            vanished: HashSet::new(),
            done: false,
            optimistic: false,
            name: application_name.to_owned(),
            current: application_name.to_owned(),
            asked: Vec::new(),
            schemas: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            block: None,
            is_transaction: false,
            urgent: None,
            before_truncates: Vec::new(),
            needs_remote_schema: false,
            is_forwarded: false,
            path: Path::default(),
            held_back: 0,
            span: None,
            ahead: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Sends the changes of each `span` in one statement, see [`Whole`]. Holds them in memory.
    pub fn whole(mut self, span: Option<Span>) -> Self {
        self.span = span;
        self
    }

    /// `optimistic`: takes the server's rows to be as expected, and sends batches that grow.
    pub fn optimistic(mut self, optimistic: bool) -> Self {
        self.optimistic = optimistic;
        if optimistic {
            self.planner = Planner::growing();
        }
        self
    }

    /// `one_by_one`: sends each change in a statement of its own.
    pub fn one_by_one(mut self, one_by_one: bool) -> Self {
        if one_by_one {
            self.planner = Planner::singly();
        }
        self
    }

    /// `binary`: sends values in binary form where that is possible.
    pub fn in_binary(mut self, binary: bool) -> Self {
        if binary {
            self.planner.in_binary();
        }
        self
    }

    /// Sends TRUNCATEs at these places.
    pub fn truncating(mut self, truncations: Result<Truncations>) -> Self {
        self.truncations = truncations;
        self
    }

    /// `all`: moves rows in waves also where the server's key is not known to need that.
    pub fn in_waves(mut self, all: bool) -> Self {
        self.in_waves = all;
        self
    }

    /// What was sent before of the same transaction has deleted or moved rows of these tables: cascades have taken
    /// others along.
    pub fn following(mut self, vanished: &HashSet<Relation>) -> Self {
        self.vanished.clone_from(vanished);
        self
    }

    /// Sends these statements before and after the changes.
    pub fn between(mut self, before: &[&str], after: &[&str]) -> Self {
        self.before = plain(before.iter().copied());
        self.after = plain(after.iter().copied());
        self
    }

    /// Sends these statements after the changes.
    pub fn ending(mut self, after: Vec<Statement>) -> Self {
        self.after = after;
        self
    }

    /// Sends these statements before the changes, in a transaction that is open, and ends that.
    pub fn in_open_block(mut self, before: Vec<Statement>, commit: &str) -> Self {
        self.before = before;
        self.after = plain([commit]);
        self.is_transaction = true;
        self
    }

    /// Sends the changes in a transaction block, unless they are one statement about rows: the end of the
    /// pipeline commits that as well.
    pub fn in_block(mut self, begin: &[&str], commit: &[&str]) -> Self {
        self.block = Some([begin, commit].map(|texts| plain(texts.iter().copied())));
        self.is_transaction = true;
        self
    }

    /// Sends this question first. The server answers it before it executes the changes, so that the answer is
    /// known should the connection be lost later.
    pub fn after_answer(mut self, question: Option<&str>) -> Self {
        self.urgent = question.map(Statement::urgent);
        self
    }

    /// Sends these statements before each TRUNCATE.
    pub fn before_truncates(mut self, statements: &[&str]) -> Self {
        self.before_truncates = plain(statements.iter().copied());
        self
    }

    /// `newest`: some changes are under [`Policy::Newest`].
    pub fn newest(mut self, newest: bool) -> Self {
        self.needs_remote_schema = newest;
        self
    }

    /// `forwarded`: some changes have come from other nodes.
    pub fn forwarded(mut self, forwarded: bool) -> Self {
        self.is_forwarded = forwarded;
        self
    }

    fn render(&mut self, mut batch: Batch, session: &mut Session) -> Vec<Statement> {
        tolerate_cascades(&mut batch);
        // Where no ON CONFLICT can be, nothing tells that there is a unique index: the rows are looked for.
        // Rows that a cascade has taken are not as expected.
        batch.optimistic = self.optimistic
            && !batch.after_cascade
            && !(batch.kind == BatchKind::Insert && batch.route.key_deferrable);
        let asks = sql::needs_key(&batch) && !self.asked.contains(&batch.route);
        if asks {
            self.asked.push(batch.route.clone());
        }
        let route = batch.route.clone();
        let after_cascade = batch.after_cascade;
        let is_truncate = batch.kind == BatchKind::Truncate;
        batch.alone = std::mem::take(&mut self.is_transaction) && !self.planner.holds_more();
        // Where another process may serve the next transaction, a name of the session's own means nothing.
        let named = if session.peer.must_introduce() {
            let name = session.shared.name_for(&mut batch);
            name.map(|name| (None, name))
        } else {
            session.prepared.name_for(&mut batch)
        };
        let mut about_rows: Vec<Statement> = match named {
            Some((prepare, name)) => prepare
                .into_iter()
                .chain([prepared::execute(batch, &name)])
                .collect(),
            None if batch.kind == BatchKind::Truncate && session.asks_kinds => {
                plain([sql::truncate_by_kind(&batch.truncated)])
            }
            None => sql::of_batch(batch, session.remote_schema()),
        };
        if is_truncate {
            about_rows.splice(0..0, self.before_truncates.iter().cloned());
        }
        if after_cascade {
            for statement in &mut about_rows {
                statement.conflicts = std::mem::take(&mut statement.conflicts).after_cascade();
            }
        }
        if let Some([begin, commit]) = self.block.take()
            && (session.must_begin
                || about_rows.iter().filter(|one| one.is_executed()).count() > 1
                || self.planner.holds_more())
        {
            self.before.extend(begin);
            self.after = commit;
        }
        let ask = asks.then(|| sql::ask_key(&route));
        let types = session
            .asks_types(&route)
            .then(|| sql::ask_types(&route))
            .flatten();
        let asked = types.into_iter().chain(ask);
        let routes = [route];
        self.framed(&routes, asked.chain(about_rows).collect(), session)
    }

    /// Statements about rows of routes, after what they need. The routes have the same name and path.
    fn framed(
        &mut self,
        routes: &[Rc<Route>],
        about_rows: Vec<Statement>,
        session: &Session,
    ) -> Vec<Statement> {
        let mut statements = std::mem::take(&mut self.before);
        statements.extend(self.urgent.take());
        if let Some(route) = routes.first() {
            let wanted = route.application_name.as_ref().unwrap_or(&self.name);
            if *wanted != self.current {
                statements.push(sql::named(wanted));
                self.current = wanted.clone();
            }
            if route.path != self.path {
                statements.push(sql::on_path(&route.path.onward(&identity::name())));
                self.path = route.path.clone();
            }
        }
        let compared = |route: &&Rc<Route>| route.compared().next().is_some();
        let wanted: Vec<Rc<Route>> = routes.iter().filter(compared).cloned().collect();
        if wanted != self.schemas {
            let own = session.endpoint.settings.search_path();
            let text = if wanted.is_empty() {
                sql::own_schemas(own)
            } else {
                sql::with_type_schemas(wanted.iter().map(|route| &**route), own)
            };
            statements.extend(plain([text]));
            self.schemas = wanted;
        }
        statements.extend(about_rows);
        statements
    }
}

/// A row that a cascade has deleted there is as it is to be.
fn tolerate_cascades(batch: &mut Batch) {
    if batch.after_cascade && batch.kind == BatchKind::Delete && batch.route.policy == Policy::Error
    {
        batch.route = Rc::new(Route {
            policy: Policy::Skip,
            ..(*batch.route).clone()
        });
    }
}

impl<S: Source> Changes<S> {
    /// Hands the planner another change, or says that there is none. What has been at the server before is
    /// left out.
    fn pull(&mut self, session: &mut Session) -> Result<()> {
        let planner = &mut self.planner;
        let held_back = &mut self.held_back;
        let truncations = self.truncations.as_ref().map_err(Clone::clone)?;
        let at = self.taken;
        self.taken += 1;
        if at == 0 {
            planner.in_waves(in_waves(self.in_waves, session));
            planner.follow(&self.vanished);
        }
        let mut pushed = Ok(());
        let more = self.source.next(&mut |route, change| {
            let emptied = truncations
                .before(at)
                .iter()
                .filter(|route| !has_been(route, session));
            let truncation = Change::truncation();
            pushed = emptied
                .into_iter()
                .try_for_each(|route| planner.push(route, &truncation));
            match has_been(route, session) {
                true => *held_back += 1,
                false if pushed.is_err() || truncations.includes(at, route) => {}
                false => pushed = planner.push(route, change),
            }
        })?;
        pushed?;
        if !more {
            self.planner.finish();
            self.done = true;
            session.held_back = self.held_back;
        }
        Ok(())
    }
}

/// Of which tables rows move in waves on this server; `all`: of all tables.
fn in_waves(all: bool, session: &Session) -> InWaves {
    match &*session.moves_in_waves {
        _ if all => InWaves::All,
        [] => InWaves::None,
        some => InWaves::Of(some.to_vec()),
    }
}

/// Whether what takes this route has been at the session's server.
fn has_been(route: &Route, session: &Session) -> bool {
    session.node().is_some_and(|node| route.path.contains(node))
}

impl<S: Source> Changes<S> {
    /// The changes of the next span; none at the end.
    fn next_span(&mut self, session: &mut Session, span: Span) -> Result<Vec<Owned>> {
        let mut changes: Vec<Owned> = std::mem::take(&mut self.ahead);
        let mut bytes = 0;
        while !self.done {
            let next = self.next_owned(session)?;
            let Some((_, first)) = next.first() else {
                continue;
            };
            let ends = |last: &Owned| span == Span::Command && last.1.command != first.command;
            bytes += next
                .iter()
                .map(|(_, change)| change.encoded_size())
                .sum::<usize>();
            if changes
                .last()
                .is_some_and(|last| ends(last) || bytes > MAX_SPAN_BYTES)
            {
                self.ahead = next;
                break;
            }
            changes.extend(next);
        }
        Ok(changes)
    }

    /// The next change, after the TRUNCATEs that go before it and count as of its command; none where it is not
    /// sent.
    fn next_owned(&mut self, session: &mut Session) -> Result<Vec<Owned>> {
        let truncations = self.truncations.as_ref().map_err(Clone::clone)?;
        let at = self.taken;
        let held_back = &mut self.held_back;
        let mut next = Vec::new();
        self.taken += 1;
        let more = self.source.next(&mut |route, change| {
            let emptied = truncations
                .before(at)
                .iter()
                .filter(|route| !has_been(route, session));
            let truncation = Change {
                command: change.command,
                ..Change::truncation()
            };
            next.extend(emptied.map(|route| (route.clone(), truncation.clone())));
            match has_been(route, session) {
                true => *held_back += 1,
                false if truncations.includes(at, route) => {}
                false => next.push((route.clone(), change.owned())),
            }
        })?;
        if !more {
            self.done = true;
            session.held_back = self.held_back;
        }
        Ok(next)
    }

    /// Statements for the next span: one for all of it where it can be one, after a TRUNCATE if there is one;
    /// else one a batch.
    fn next_whole(&mut self, session: &mut Session, span: Span) -> Result<Option<Vec<Statement>>> {
        self.is_transaction = false;
        loop {
            if let Some([begin, commit]) = self.block.take() {
                self.before.extend(begin);
                self.after = commit;
            }
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(self.render(batch, session)));
            }
            let changes = self.next_span(session, span)?;
            let Some((first, _)) = changes.first() else {
                let mut last = std::mem::take(&mut self.before);
                last.append(&mut self.after);
                return Ok(Some(last).filter(|statements| !statements.is_empty()));
            };
            let mut planner = Planner::default();
            planner.in_waves(in_waves(self.in_waves, session));
            planner.follow(&self.vanished);
            let planned = changes
                .iter()
                .try_for_each(|(r, c)| planner.push(r, &c.borrowed()));
            planner.finish();
            self.ready = std::iter::from_fn(|| planner.pop()).collect();
            if planned.is_ok() && self.ready.len() < 2 {
                continue;
            }
            let mut whole = Whole::default();
            let alike = |(route, _): &Owned| {
                route.application_name == first.application_name && route.path == first.path
            };
            if changes.iter().all(alike) {
                changes
                    .iter()
                    .for_each(|(route, change)| whole.push(route, &change.borrowed()));
                let mut routes = vec![first.clone()];
                for (route, _) in &changes {
                    if !routes.contains(route) {
                        routes.push(route.clone());
                    }
                }
                let is_overtaken = changes.iter().any(|(_, change)| change.overtaken);
                match whole.finish() {
                    // They come to nothing else.
                    Some((truncated, batches)) if batches.is_empty() => {
                        self.ready = truncated.into_iter().collect();
                        continue;
                    }
                    Some((truncated, mut batches)) => {
                        for batch in &mut batches {
                            let from = &batch.route.cascades_from;
                            let follows = from
                                .iter()
                                .any(|table| is_overtaken || self.vanished.contains(table));
                            batch.after_cascade |= follows;
                            tolerate_cascades(batch);
                        }
                        if let Some(joined) = sql::joined(batches, session.remote_schema()) {
                            self.ready.clear();
                            let emptied = truncated.map(|batch| self.render(batch, session));
                            let mut statements = emptied.unwrap_or_default();
                            statements.extend(self.framed(&routes, joined, session));
                            return Ok(Some(statements));
                        }
                    }
                    None => {}
                }
            }
            planned?;
        }
    }
}

impl<S: Source> Feed for Changes<S> {
    fn needs_remote_schema(&self) -> bool {
        self.needs_remote_schema
    }

    fn needs_node(&self) -> bool {
        self.is_forwarded
    }

    fn next(&mut self, session: &mut Session) -> Result<Option<Vec<Statement>>> {
        if let Some(span) = self.span {
            return self.next_whole(session, span);
        }
        loop {
            if let Some(batch) = self.planner.pop() {
                while self.is_transaction && !self.done && !self.planner.holds_more() {
                    self.pull(session)?;
                }
                return Ok(Some(self.render(batch, session)));
            }
            if self.done {
                // There was nothing in between if all changes were left out.
                let mut last = std::mem::take(&mut self.before);
                last.append(&mut self.after);
                return Ok(Some(last).filter(|statements| !statements.is_empty()));
            }
            self.pull(session)?;
        }
    }
}
