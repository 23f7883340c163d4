//! The steps of a transaction on a server, each over a [`Link`]: begin, savepoints, prepare, commit, roll
//! back; running links to their end; giving a session back.
//!
//! A delivery at commit, a drain, a copy and what finishes prepared transactions go by these steps.

use super::event_loop::{self, LoopEnd};
use super::feed::{Fixed, Statements};
use super::link::{Ending, Link};
use crate::connect::peer::ServerRun;
use crate::connect::session;
use crate::error::{Error, Result};
use crate::fault::fault_point;
use crate::pg::{interrupt, memory, wal};
use crate::sql::quote::{ArrayLiteral, literal};
use crate::sql::{BEGIN_ON_PRIMARY, Statement};
use std::fmt::{self, Display, Formatter};

/// Begins a remote transaction. Constraints that can wait do: what was true at the local commit need
/// not be true after each batch.
pub const BEGIN: [&str; 2] = [
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    DEFER_CONSTRAINTS,
];

/// Lets constraints wait that can.
pub const DEFER_CONSTRAINTS: &str = "SET CONSTRAINTS ALL DEFERRED";

/// Checks what was deferred, before COMMIT, where it would be too late to tell what is to blame.
pub const CHECK_CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";

pub const COMMIT: &str = "COMMIT";

pub const ROLLBACK: &str = "ROLLBACK";

/// The statements about one savepoint.
pub struct Savepoint {
    pub set: &'static str,
    /// Keeps what was done since.
    pub release: &'static str,
    /// Undoes it. The savepoint stays.
    pub roll_back: &'static str,
}

macro_rules! savepoint {
    ($name:literal) => {
        Savepoint {
            set: concat!("SAVEPOINT ", $name),
            release: concat!("RELEASE SAVEPOINT ", $name),
            roll_back: concat!("ROLLBACK TO SAVEPOINT ", $name),
        }
    };
}

impl Savepoint {
    /// Before a batch of records.
    pub const BATCH: Self = savepoint!("drain");
    /// Before the part of a batch that is being tried.
    pub const PART: Self = savepoint!("unit");
    /// Before changes that a copy applies.
    pub const COPY: Self = savepoint!("copy");
}

/// What a transaction begins with over a link: after the end of one that is open. One whose COMMIT failed
/// is rolled back already.
pub fn begin(link: &Link<'_>) -> Vec<&'static str> {
    [ended(link), &BEGIN].concat()
}

/// What ends the transaction that is open over a link, if one is.
pub fn ended(link: &Link<'_>) -> &'static [&'static str] {
    if link.is_up() && !link.is_idle() {
        &[ROLLBACK]
    } else {
        &[]
    }
}

/// The first phase of a commit in two.
pub fn prepared(gid: &impl Display) -> String {
    format!("PREPARE TRANSACTION '{gid}'")
}

/// Prepares the transaction that is open.
pub fn prepare(link: &mut Link<'_>, gid: &impl Display) {
    let mut statements = describe(link);
    statements.push(Statement::plain(prepared(gid)));
    link.run(Statements::new(statements), Ending::Prepares);
}

/// What tells a server's history: its system identifier, its timeline, how far its log is, and when it was started.
macro_rules! history {
    () => {
        "pg_catalog.concat_ws(' ', \
           (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c), \
           pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8), \
           pg_catalog.pg_current_wal_insert_lsn(), \
           pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.pg_postmaster_start_time()), \
             'YYMMDDHH24MISSUS'))"
    };
}

/// Asks for what makes a [`PreparedTransaction`], last before the transaction is prepared: its number and what it has
/// written are in the log by then.
const DESCRIBE: &str = concat!(
    "SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_current_xact_id(), ",
    history!(),
    ")"
);

/// As [`DESCRIBE`], without what stays as it is for as long as a session is served by one process.
const DESCRIBE_AGAIN: &str = "SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_current_xact_id(), \
     pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8), \
     pg_catalog.pg_current_wal_insert_lsn())";

/// Asks as much of [`DESCRIBE`] as a session does not know, which may have prepared the question.
pub fn describe(link: &mut Link<'_>) -> Vec<Statement> {
    match link.session() {
        // Where another process may serve the next transaction, a name of the session's own means nothing.
        Some(session) if !session.peer.must_introduce() => {
            let question = match session.server_run {
                Some(_) => DESCRIBE_AGAIN,
                None => DESCRIBE,
            };
            session.prepared.question(question)
        }
        _ => vec![Statement::plain(DESCRIBE)],
    }
}

/// The answer to what [`describe`] has asked, if the server has given it last.
pub fn described(link: &mut Link<'_>) -> Option<PreparedTransaction> {
    let (id, history) = link.last_value()?.split_once(' ')?;
    let id = id.parse().ok()?;
    let again = history.split_once(' ').filter(|(_, at)| !at.contains(' '));
    let at = match again {
        Some((timeline, at)) => History {
            timeline: u32::from_str_radix(timeline, 16).ok()?,
            position: position(at)?,
            run: link.session()?.server_run?,
        },
        None => History::parse(history)?,
    };
    if let Some(session) = link.session()
        && !session.peer.must_introduce()
    {
        session.server_run = Some(at.run);
    }
    Some(PreparedTransaction { id, at })
}

/// A transaction that a server has prepared, as it can be asked for when it is prepared no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedTransaction {
    /// Its full id there.
    pub id: i64,
    pub at: History,
}

/// A moment in the history of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    run: ServerRun,
    timeline: u32,
    /// In bytes, from the beginning of the log.
    position: u64,
}

/// A position of the log as PostgreSQL writes it, in bytes from its beginning.
fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let high = u64::from(u32::from_str_radix(high, 16).ok()?);
    Some(high << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

impl History {
    /// As `history!` gives it, and as it is written here.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let system = words.next()?.parse().ok()?;
        let timeline = u32::from_str_radix(words.next()?, 16).ok()?;
        let position = position(words.next()?)?;
        let started = words.next()?.parse().ok()?;
        words.next().is_none().then_some(Self {
            run: ServerRun { system, started },
            timeline,
            position,
        })
    }
}

/// Where a server is now.
struct Now {
    at: History,
    /// How far the log went that it has recovered from, if it had to.
    recovered: Option<u64>,
}

impl Now {
    /// As `history!` gives it, and behind it where the server has recovered from.
    fn parse(text: &str) -> Option<Self> {
        let (history, recovered) = text.rsplit_once(' ')?;
        Some(Self {
            at: History::parse(history)?,
            recovered: match recovered {
                "-" => None,
                recovered => Some(position(recovered)?),
            },
        })
    }

    /// Whether the server has come by `earlier`. One that has taken the files of an earlier time under the same
    /// timeline shows by where it has recovered from; where it had not to, until it has come as far again.
    fn has_passed(&self, earlier: &History) -> bool {
        let now = &self.at;
        let is_same_run = now.run.started == earlier.run.started;
        (now.run.system, now.timeline) == (earlier.run.system, earlier.timeline)
            && now.position >= earlier.position
            && (is_same_run || self.recovered.is_none_or(|end| end >= earlier.position))
    }
}

impl Display for History {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ServerRun { system, started } = self.run;
        let timeline = self.timeline;
        let (high, low) = (self.position >> 32, self.position as u32);
        write!(f, "{system} {timeline:08X} {high:X}/{low:X} {started}")
    }
}

/// What became of a transaction that was prepared and is so no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    Committed,
    /// It has not ended.
    UnderWay,
    RolledBack,
    /// The server has not come to it: it has been set back.
    NotBegun,
    /// It cannot be told: the server has another history by now, or has forgotten.
    Unknown,
}

impl TransactionStatus {
    /// From what a server says of the number.
    fn of(one: &PreparedTransaction, now: &Now, status: &str) -> Self {
        match (status, now.has_passed(&one.at)) {
            (_, false) if now.at.run.system != one.at.run.system => Self::Unknown,
            ("committed", true) => Self::Committed,
            ("aborted", _) => Self::RolledBack,
            ("in progress", _) | ("ahead", true) => Self::UnderWay,
            ("ahead", false) => Self::NotBegun,
            _ => Self::Unknown,
        }
    }
}

/// Transactions that are asked for at once.
const ASKED: usize = 500;

/// What became of transactions that a server has prepared no more, in their order.
///
/// # Errors
/// As for [`ask`]; XX000 for an answer that is none.
pub fn statuses(
    link: &mut Link<'_>,
    all: &[&PreparedTransaction],
) -> Result<Vec<TransactionStatus>> {
    let mut statuses = Vec::with_capacity(all.len());
    for some in all.chunks(ASKED) {
        let mut ids = ArrayLiteral::default();
        some.iter()
            .for_each(|one| ids.push(Some(&one.id.to_string())));
        let sql = format!(
            "SELECT r.said FROM (SELECT 0::pg_catalog.int8 AS n, pg_catalog.concat_ws(' ', {}, \
                 COALESCE(pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text, '-')) AS said \
             UNION ALL SELECT x.n, COALESCE(CASE WHEN x.id OPERATOR(pg_catalog.<) \
                 pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
               THEN pg_catalog.pg_xact_status(x.id) ELSE 'ahead' END, 'forgotten') \
             FROM pg_catalog.unnest({}::pg_catalog.xid8[]) WITH ORDINALITY AS x(id, n)) AS r \
             ORDER BY r.n",
            history!(),
            literal(&ids.into_text())
        );
        let answer = ask(link, &sql)?;
        let malformed = || {
            let server = &link.endpoint().account.server_name;
            Error::internal(format!("unexpected answer of server \"{server}\""))
        };
        let mut said = answer.into_iter().flatten();
        let now = said.next().and_then(|text| Now::parse(&text));
        let now = now.ok_or_else(malformed)?;
        let said = said.collect::<Vec<_>>();
        if said.len() != some.len() {
            return Err(malformed());
        }
        let of =
            |(one, said): (&&PreparedTransaction, &String)| TransactionStatus::of(one, &now, said);
        statuses.extend(some.iter().zip(&said).map(of));
    }
    Ok(statuses)
}

/// Ends a prepared transaction; `verb`: COMMIT or ROLLBACK.
pub fn finish_prepared(link: &mut Link<'_>, verb: &str, gid: &impl Display) {
    let text = format!("{verb} PREPARED '{gid}'");
    link.run(Fixed::new([text]), Ending::Resolves);
}

/// Commits the transaction that is open.
pub fn commit(link: &mut Link<'_>) {
    link.run(Fixed::new([COMMIT]), Ending::Commits);
}

/// Rolls back the transaction that is open, if one is, and [releases](release) the link. If a request to
/// cancel comes first its connection is closed, which does the same.
pub fn roll_back(mut link: Link<'_>) {
    if link.is_up() && !link.is_idle() {
        link.run(Fixed::new([ROLLBACK]), Ending::Open);
        if event_loop::run(std::slice::from_mut(&mut link)) == LoopEnd::Interrupted {
            return;
        }
    }
    release(link);
}

/// Keeps the session of a link for what uses it next.
pub fn release(link: Link<'_>) {
    link.into_session().into_iter().for_each(session::put_back);
}

/// Runs a link that commits nothing to its end.
///
/// # Errors
/// What the link reports; a request to cancel is raised.
pub fn run(link: &mut Link<'_>) -> Result<()> {
    if event_loop::run(std::slice::from_mut(link)) == LoopEnd::Interrupted {
        interrupt::check();
        return Err(Error::Canceled);
    }
    link.result()
}

/// Runs plain statements that commit nothing to their end.
///
/// # Errors
/// As for [`run`].
pub fn execute<T: Into<String>>(
    link: &mut Link<'_>,
    texts: impl IntoIterator<Item = T>,
) -> Result<()> {
    link.run(Fixed::new(texts), Ending::Open);
    run(link)
}

/// Asks the primary one question, in a transaction of its own: what the answer's rows have in their first column.
///
/// # Errors
/// As for [`run`].
pub fn ask(link: &mut Link<'_>, question: &str) -> Result<Vec<Option<String>>> {
    execute(link, [BEGIN_ON_PRIMARY, question, COMMIT])?;
    Ok(link.answers().first().cloned().unwrap_or_default())
}

/// How links came to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    Answered,
    /// A request to cancel came first. The servers that may commit were asked to cancel, and their answers
    /// followed.
    Canceled,
    /// A request to cancel came before anything was sent that commits.
    Abandoned,
}

/// Runs links to their end. A request to cancel is passed on to the servers that may commit.
pub fn follow(links: &mut [Link<'_>]) -> RunEnd {
    if event_loop::run(links) == LoopEnd::Done {
        return RunEnd::Answered;
    }
    if !links.iter().any(Link::commit_sent) {
        return RunEnd::Abandoned;
    }
    event_loop::cancel(links);
    RunEnd::Canceled
}

/// Runs the links of a local transaction to their end, and says whether they were asked to cancel. Once a
/// server has committed, no request counts any more, see [`interrupt::committed`].
///
/// # Errors
/// A request to cancel is raised if nothing can have been committed.
pub fn finish(links: &mut [Link<'_>]) -> Result<bool> {
    if event_loop::send(links) == LoopEnd::Done && !links.iter().all(Link::is_done) {
        // The servers have their work: time for some of ours.
        wal::flush_ahead();
    }
    let end = follow(links);
    if end == RunEnd::Abandoned {
        interrupt::check();
        return Err(Error::Canceled);
    }
    let has_committed = |link: &Link<'_>| link.commit_sent() && link.result().is_ok();
    if links.iter().any(has_committed) {
        interrupt::committed();
        fault_point!(Answered);
        memory::answered();
    } else if !links.iter().any(may_have_committed) {
        interrupt::nothing_committed();
    }
    Ok(end == RunEnd::Canceled)
}

/// Whether what a link has run took effect, for all that is known.
pub fn may_have_committed(link: &Link<'_>) -> bool {
    link.commit_sent() && matches!(link.result(), Ok(()) | Err(Error::InDoubt { .. }))
}

/// The first value that a link was answered, in its answer number `at`.
pub fn value<'l>(link: &'l Link<'_>, at: usize) -> Option<&'l str> {
    link.answers().get(at)?.first()?.as_deref()
}

/// Asks for the full id of the transaction that is open, before it is committed: [`outcome`] goes by it.
pub const CURRENT_ID: &str = "SELECT pg_catalog.pg_current_xact_id()";

/// The answer to [`CURRENT_ID`], if the server has given it.
pub fn current_id(link: &Link<'_>) -> Option<i64> {
    value(link, 0)?.parse().ok()
}

/// A transaction of a server, as it can be asked for later.
#[derive(Clone, Debug)]
pub struct RemoteTransaction {
    /// Its full id.
    pub id: i64,
    /// Where the server was found.
    pub place: String,
    /// When it was started: ids may be given again by one that has taken its place.
    pub started: String,
}

/// Asks for what makes a [`RemoteTransaction`].
pub const IDENTIFY: &str = "SELECT pg_catalog.concat(pg_catalog.pg_current_xact_id(), ' ', \
     pg_catalog.pg_postmaster_start_time())";

/// The answer to [`IDENTIFY`], if the server has given it first.
pub fn identity(link: &Link<'_>) -> Option<RemoteTransaction> {
    let (id, started) = value(link, 0)?.split_once(' ')?;
    Some(RemoteTransaction {
        id: id.parse().ok()?,
        place: link.endpoint().place(),
        started: started.to_owned(),
    })
}

/// [`outcome`] of a transaction of a server that `is_same` knows by when it was started; `None` if it does not.
///
/// # Errors
/// As for [`outcome`].
pub fn outcome_at(
    link: &mut Link<'_>,
    xact: i64,
    is_same: impl FnOnce(&str) -> bool,
) -> Result<Option<bool>> {
    execute(link, ["SELECT pg_catalog.pg_postmaster_start_time()"])?;
    if value(link, 0).is_some_and(is_same) {
        outcome(link, xact)
    } else {
        Ok(None)
    }
}

/// Whether a transaction was committed there; `None` where the server does not know any more.
///
/// # Errors
/// A transient error while it is under way; what the link reports, where it cannot go on.
pub fn outcome(link: &mut Link<'_>, xact: i64) -> Result<Option<bool>> {
    let sql = format!("SELECT pg_catalog.pg_xact_status('{xact}'::pg_catalog.xid8)");
    match execute(link, [sql]) {
        Ok(()) => {}
        // Of a transaction that it has not come to: it has lost what it had.
        Err(Error::Remote(_)) if link.is_up() => return Ok(None),
        Err(error) => return Err(error),
    }
    match value(link, 0) {
        Some("committed") => Ok(Some(true)),
        Some("aborted") => Ok(Some(false)),
        Some("in progress") => Err(Error::Lingering {
            server: link.endpoint().account.server_name.clone(),
            reason: format!("There, transaction {xact} has not ended yet."),
            hint: "It is waited for.",
        }),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "7576543210987654321 00000001 1/A000028 261128081612123456";

    fn history(text: &str) -> History {
        History::parse(text).unwrap_or_else(|| unreachable!("{text}"))
    }

    #[test]
    fn a_history_is_read_back_and_nothing_else_is_read() {
        assert_eq!(history(THEN).to_string(), THEN);
        for other in [
            "",
            "1 1 1/1",
            "1 1 1 1",
            "1 1 1/1 1 1",
            "x 1 1/1 1",
            "1 x 1/1 1",
            "1 1 1/1 x",
        ] {
            assert_eq!(History::parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_server_that_was_there_is_believed_to_have_committed() {
        let one = PreparedTransaction {
            id: 7,
            at: history(THEN),
        };
        let status = |now: &str, said| {
            let now = Now::parse(now).unwrap_or_else(|| unreachable!("{now}"));
            TransactionStatus::of(&one, &now, said)
        };
        let same_run = format!("{THEN} 1/0");
        for now in [
            &*same_run,
            "7576543210987654321 00000001 2/0 261128091612123456 -",
            "7576543210987654321 00000001 2/0 261128091612123456 1/A000028",
        ] {
            for (said, expected) in [
                ("committed", TransactionStatus::Committed),
                ("aborted", TransactionStatus::RolledBack),
                ("in progress", TransactionStatus::UnderWay),
                ("ahead", TransactionStatus::UnderWay),
                ("forgotten", TransactionStatus::Unknown),
            ] {
                assert_eq!(status(now, said), expected, "{now}");
            }
        }
        for now in [
            "7576543210987654321 00000002 2/0 261128091612123456 -",
            "7576543210987654321 00000001 1/A000027 261128091612123456 -",
            "7576543210987654321 00000001 2/0 261128091612123456 1/A000027",
        ] {
            for (said, expected) in [
                ("committed", TransactionStatus::Unknown),
                ("aborted", TransactionStatus::RolledBack),
                ("in progress", TransactionStatus::UnderWay),
                ("ahead", TransactionStatus::NotBegun),
                ("forgotten", TransactionStatus::Unknown),
            ] {
                assert_eq!(status(now, said), expected, "{now}");
            }
        }
        for said in ["committed", "aborted", "ahead"] {
            let now = "1 00000001 2/0 261128081612123456 -";
            assert_eq!(status(now, said), TransactionStatus::Unknown);
        }
    }
}
