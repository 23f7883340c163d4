//! Finishes what is prepared on a server and was left there, by what the local database says of it.
//!
//! A transaction with a decision is committed. If its server has not got it prepared any more, the server is asked
//! what became of its number: what it has lost is left to a person. One without a decision is rolled back once
//! its local transaction is known to have ended, in this very history of the database and of the extension: a
//! backup that was restored to an earlier time cannot tell, nor tables that were made later; they leave it to a
//! person. What has other names than the database's own is not looked at.

use super::decision::{self, TransactionDecision, Verdict};
use super::done;
use super::gid::{Gid, own_prefix};
use crate::connect::account::{Account, server_oid};
use crate::connect::endpoint::Endpoint;
use crate::delivery::link::Link;
use crate::delivery::remote_transaction::{self, PreparedTransaction, TransactionStatus};
use crate::error::{Error, Result, SqlState};
use crate::fault::fault_point;
use crate::identity;
use crate::pg::spi::{self, Extension};
use crate::pg::wal::{self, Past};
use crate::pg::{Oid, lock, lookup, report, xact};
use crate::sql::quote::{ident, literal};
use crate::sql::triggers;
use crate::stats;

/// Names that a server is asked for, at most.
const MAX_LISTED: usize = 900;

/// What a server has prepared of the current database's.
pub struct PreparedNames {
    all: Vec<String>,
    /// It has no others.
    is_complete: bool,
}

impl PreparedNames {
    /// Whether a name is among them.
    pub fn has(&self, gid: &str) -> bool {
        self.all.iter().any(|listed| listed == gid)
    }
}

/// Asks a server what it has prepared, of what the account may finish.
///
/// # Errors
/// What the link reports.
pub fn list(link: &mut Link<'_>) -> Result<PreparedNames> {
    let prefix = own_prefix();
    let text = format!(
        "SELECT p.gid FROM pg_catalog.pg_prepared_xacts p \
         WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database() \
           AND pg_catalog.starts_with(p.gid, {}) \
           AND (p.owner OPERATOR(pg_catalog.=) CURRENT_USER OR (SELECT r.rolsuper \
             FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER)) \
         ORDER BY p.prepared LIMIT {}",
        literal(&prefix),
        MAX_LISTED + 1
    );
    let rows = remote_transaction::ask(link, &text)?;
    let is_complete = rows.len() <= MAX_LISTED;
    // Whoever answers may say anything: what is sent back as a name must be one.
    let is_own = |gid: &String| Gid::parse(gid).is_some() && gid.starts_with(&prefix);
    let all = rows.into_iter().flatten().filter(is_own).collect();
    Ok(PreparedNames { all, is_complete })
}

/// Commits or rolls back what a server has prepared. False for what is not there any more.
///
/// # Errors
/// What the link reports; a transient error while another session is at it.
pub fn finish(link: &mut Link<'_>, verdict: Verdict, gid: &str) -> Result<bool> {
    remote_transaction::finish_prepared(link, verdict.verb(), &gid);
    let result = remote_transaction::run(link);
    if result.is_ok() {
        stats::resolved(link.endpoint().account.server);
    }
    match result {
        Err(error) if error.sqlstate() == SqlState::UNDEFINED_OBJECT => Ok(false),
        // It is busy.
        Err(Error::Remote(error)) if error.sqlstate == SqlState::OBJECT_NOT_READY => {
            Err(Error::Pending {
                server: error.server,
            })
        }
        result => result.map(|()| true),
    }
}

/// A decision that a server has not carried out and cannot carry out any more, for all that is known.
pub struct LostDecision {
    pub decision: TransactionDecision,
    pub reason: Error,
}

/// What became of decisions that a server has not got prepared.
#[derive(Default)]
struct Gone {
    /// Names of those that are carried out.
    done: Vec<String>,
    lost: Vec<LostDecision>,
    /// How many have not ended there.
    under_way: u64,
}

/// Asks a server what became of decisions that it has not got prepared.
///
/// # Errors
/// What the link reports.
fn gone(link: &mut Link<'_>, decisions: &[&TransactionDecision]) -> Result<Gone> {
    let mut gone = Gone::default();
    if decisions.is_empty() {
        return Ok(gone);
    }
    // Of others, which 0.1.0 has written, nothing is known but that.
    let unknown = decisions.iter().filter(|one| one.there.is_none());
    gone.done.extend(unknown.map(|one| one.gid.clone()));
    let asked: Vec<(&TransactionDecision, &PreparedTransaction)> = decisions
        .iter()
        .filter_map(|one| Some((*one, one.there.as_ref()?)))
        .collect();
    let there: Vec<&PreparedTransaction> = asked.iter().map(|(_, there)| *there).collect();
    let statuses = remote_transaction::statuses(link, &there)?;
    let server = &link.endpoint().account.server_name;
    for ((decision, there), status) in asked.into_iter().zip(statuses) {
        let detail = match status {
            TransactionStatus::Committed => {
                gone.done.push(decision.gid.clone());
                continue;
            }
            TransactionStatus::UnderWay => {
                gone.under_way += 1;
                continue;
            }
            TransactionStatus::RolledBack => {
                format!("Transaction {} was rolled back there.", there.id)
            }
            TransactionStatus::NotBegun => format!(
                "The server was set back to a time before transaction {} was prepared.",
                there.id
            ),
            TransactionStatus::Unknown => format!(
                "Whether transaction {} was committed there cannot be told: the server has another \
                 history since it was prepared.",
                there.id
            ),
        };
        let message = if status == TransactionStatus::Unknown {
            format!("server \"{server}\" may have lost a transaction that is committed here")
        } else {
            format!("server \"{server}\" has lost a transaction that is committed here")
        };
        gone.lost.push(LostDecision {
            decision: decision.clone(),
            reason: Error::local(SqlState::OBJECT_NOT_READY, message)
                .with_detail(detail)
                .with_hint(
                    "Look on both sides. Delete its row of sync_prepared, and repair_sync() makes them equal.",
                ),
        });
    }
    Ok(gone)
}

/// Sees to it that decisions for a server are carried out, before anything newer is sent to it. Waits for
/// the sessions that have made them and are about to do so. Gives those that the server has lost.
///
/// # Errors
/// Missing objects; what the links report; 55000 where the server is another one by now.
pub fn settle(
    extension: &Extension,
    server_name: &str,
    decisions: &[TransactionDecision],
) -> Result<Vec<LostDecision>> {
    let decided: Vec<_> = decisions
        .iter()
        .filter(|one| one.verdict == Some(Verdict::Commit))
        .collect();
    decided
        .iter()
        .for_each(|one| xact::await_end(one.transaction));
    let mut owners: Vec<u32> = decided.iter().map(|one| one.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    let mut all_lost = Vec::new();
    for owner in owners {
        let account = Account::look_up(extension, server_name, Oid::from(owner))?;
        let endpoint = Endpoint::resolve(extension, &account)?;
        let own = decided.iter().filter(|one| one.owner == owner);
        let own: Vec<&&TransactionDecision> = own.collect();
        let mut link = Link::open(&endpoint)?;
        let listed = list(&mut link)?;
        let mut finished = Vec::new();
        let mut unlisted = Vec::new();
        for one in &own {
            let is_listed = listed.has(&one.gid);
            if !is_listed && one.place != endpoint.place() {
                return Err(moved(server_name, &one.place));
            }
            let may_be_there = is_listed || !listed.is_complete;
            if may_be_there && finish(&mut link, Verdict::Commit, &one.gid)? {
                finished.push(one.gid.clone());
            } else {
                unlisted.push(**one);
            }
        }
        let gone = gone(&mut link, &unlisted)?;
        done::note(finished.into_iter().chain(gone.done));
        if gone.under_way > 0 {
            return Err(Error::Pending {
                server: server_name.to_owned(),
            });
        }
        all_lost.extend(gone.lost);
        remote_transaction::release(link);
    }
    Ok(all_lost)
}

/// Sees to it that what has these names is finished on a server; keeps the names of what is not: of what the
/// sessions that have decided it are about to finish, all of them on a standby, which does not see those
/// sessions, and those that only a person can decide, which it gives with the reason.
///
/// # Errors
/// As for [`settle`].
pub fn settle_named(
    extension: &Extension,
    server_name: &str,
    names: &mut Vec<String>,
) -> Result<Vec<(String, Error)>> {
    let done = done::all();
    let rows: Vec<TransactionDecision> = decision::of_server(extension, server_name)?
        .into_iter()
        .filter(|one| names.contains(&one.gid) && !done.contains(&one.gid))
        .collect();
    names.retain(|name| rows.iter().any(|one| one.gid == *name));
    let ready: Vec<TransactionDecision> = rows
        .iter()
        .filter(|one| one.verdict == Some(Verdict::Commit) && !wal::is_in_recovery())
        .filter(|one| !xact::is_under_way(one.transaction))
        .cloned()
        .collect();
    let lost = settle(extension, server_name, &ready)?;
    let is_lost = |name: &String| lost.iter().any(|lost| lost.decision.gid == *name);
    names.retain(|name| is_lost(name) || ready.iter().all(|one| one.gid != *name));
    let undecided = rows.into_iter().filter(|one| one.verdict.is_none());
    let undecided = undecided.map(|one| {
        let reason = undecided_error(&one.gid, NOT_KNOWN_BEFORE);
        (one.gid, reason)
    });
    let lost = lost.into_iter().map(|one| (one.decision.gid, one.reason));
    Ok(undecided.chain(lost).collect())
}

/// Sees to it that an owner's decisions for a server are carried out, before that owner's records are drained,
/// and those of others that have not failed before; gives what is left of these. `stubborn`: also those that
/// have, as a person asks for it.
///
/// # Errors
/// As for [`settle`], of the owner's own.
pub fn settle_lane(
    extension: &Extension,
    server_name: &str,
    owner: Oid,
    stubborn: bool,
) -> Result<Vec<TransactionDecision>> {
    if lookup::first_with(extension, server_name, &[decision::OF_SERVER])?.is_none() {
        return Ok(Vec::new());
    }
    let done = done::all();
    let mut decisions = decision::of_server(extension, server_name)?;
    decisions.retain(|one| one.verdict == Some(Verdict::Commit) && !done.contains(&one.gid));
    let (own, others): (Vec<_>, Vec<_>) = decisions
        .into_iter()
        .partition(|one| one.owner == owner.to_u32());
    let lost = settle(extension, server_name, &own)?;
    let mut owners: Vec<u32> = others.iter().map(|one| one.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    // What does not meet them goes on.
    let mut left: Vec<TransactionDecision> = lost.into_iter().map(|lost| lost.decision).collect();
    for owner in owners {
        let theirs = || others.iter().filter(|one| one.owner == owner).cloned();
        let ready: Vec<TransactionDecision> = theirs()
            .filter(|one| !xact::is_under_way(one.transaction))
            .collect();
        let is_stuck = !stubborn && ready.iter().any(|one| one.attempts > 0);
        left.extend(theirs().filter(|one| xact::is_under_way(one.transaction)));
        if is_stuck {
            left.extend(ready);
            continue;
        }
        match settle(extension, server_name, &ready) {
            Ok(lost) => left.extend(lost.into_iter().map(|lost| lost.decision)),
            Err(Error::Canceled) => return Err(Error::Canceled),
            Err(error) => {
                // The worker tries no second time; a person's transaction is not to fail over the note.
                if !stubborn {
                    note(extension, server_name, Oid::from(owner), &error)?;
                }
                left.extend(ready);
            }
        }
    }
    Ok(left)
}

/// Accounts over which something may be prepared: server and owner.
///
/// # Errors
/// What the catalogs and the table report.
pub fn accounts(extension: &Extension) -> Result<Vec<(String, Oid)>> {
    let sql = format!(
        "SELECT a.args[1], c.relowner FROM {} \
         JOIN pg_class c ON c.oid = t.tgrelid \
         WHERE t.tgnargs > 3::int2 \
           AND strpos(a.args[4], '\"atomic\"') > 0 \
         UNION SELECT d.dst_server, d.owner::oid FROM {}.{} d",
        triggers::sending("$1"),
        ident(&extension.schema),
        decision::TABLE
    );
    spi::select(extension, &sql, &[Some(&extension.schema)])
}

/// Whether there is any row.
///
/// # Errors
/// What reading the table reports.
pub fn has_decisions(extension: &Extension) -> Result<bool> {
    let sql = format!(
        "SELECT 1 FROM {}.{} LIMIT 1",
        ident(&extension.schema),
        decision::TABLE
    );
    Ok(!spi::read(extension, &sql, &[])?.is_empty())
}

/// A link over which an account's prepared transactions are to be [resolved](resolve).
///
/// # Errors
/// Missing objects, which are noted in the rows of the account.
pub fn approach(extension: &Extension, server_name: &str, owner: Oid) -> Result<Link<'static>> {
    Account::look_up(extension, server_name, owner)
        .and_then(|account| Link::open(&Endpoint::resolve(extension, &account)?))
}

/// The account's rows cannot be looked after.
///
/// # Errors
/// What writing the table reports.
pub fn note(extension: &Extension, server_name: &str, owner: Oid, reason: &Error) -> Result<()> {
    for one in decision::of_server(extension, server_name)? {
        if one.owner == owner.to_u32() {
            let of = (server_name, one.owner, &*one.place);
            decision::note_failure(extension, of, &one.gid, one.verdict, reason)?;
        }
    }
    Ok(())
}

/// Finishes all that an account has prepared on its server, over a link that is up; how much is left.
///
/// # Errors
/// 55000 in a copy; what the link and the table report.
pub fn resolve(extension: &Extension, mut link: Link<'static>) -> Result<u64> {
    identity::check(extension)?;
    let account = link.endpoint().account.clone();
    let place = link.endpoint().place();
    let server = &*account.server_name;
    let owner = account.owner.to_u32();
    // Before the server is asked: what it then has not got is prepared no more.
    let known: Vec<TransactionDecision> = decision::of_server(extension, server)?
        .into_iter()
        .filter(|one| one.owner == owner)
        .collect();
    let listed = list(&mut link)?;
    fault_point!(Resolving);
    let mut left = 0;
    let mut finished = Vec::new();
    for gid in &listed.all {
        let finding = match known.iter().find(|one| one.gid == *gid) {
            // The session that has decided it is about to finish it.
            Some(one) if xact::is_under_way(one.transaction) => Finding::Waits,
            Some(TransactionDecision {
                verdict: Some(Verdict::Commit),
                ..
            }) => Finding::Is(Verdict::Commit),
            Some(TransactionDecision { verdict: None, .. }) => match finding_of(extension, gid)? {
                still @ Finding::Unknown(_) => still,
                _ => unknown(gid, NOT_KNOWN_BEFORE),
            },
            _ => finding_of(extension, gid)?,
        };
        let outcome = match &finding {
            Finding::Waits => Ok(false),
            // What is gone meanwhile is looked at with the next look.
            Finding::Is(verdict) => finish(&mut link, *verdict, gid),
            Finding::Unknown(reason) => Err(reason.clone()),
        };
        match outcome {
            Ok(true) => finished.push(gid.clone()),
            Ok(false) => left += 1,
            Err(reason) => {
                left += 1;
                let verdict = match finding {
                    Finding::Is(verdict) => Some(verdict),
                    _ => None,
                };
                let of = (server, owner, &*place);
                decision::note_failure(extension, of, gid, verdict, &reason)?;
                if !link.is_up() {
                    return Err(reason);
                }
            }
        }
    }
    let mut unlisted = Vec::new();
    for one in known.iter().filter(|one| !listed.has(&one.gid)) {
        if one.place != place {
            left += 1;
            let of = (server, owner, &*one.place);
            let reason = moved(server, &one.place);
            decision::note_failure(extension, of, &one.gid, one.verdict, &reason)?;
        } else if listed.is_complete && one.verdict == Some(Verdict::Commit) {
            unlisted.push(one);
        } else if listed.is_complete {
            finished.push(one.gid.clone());
        }
    }
    let gone = gone(&mut link, &unlisted)?;
    finished.extend(gone.done);
    left += gone.under_way + gone.lost.len() as u64;
    for LostDecision { decision, reason } in &gone.lost {
        let of = (server, owner, &*place);
        decision::note_failure(extension, of, &decision.gid, decision.verdict, reason)?;
    }
    decision::remove(extension, &finished)?;
    remote_transaction::release(link);
    Ok(left)
}

/// What is to become of a prepared transaction.
enum Finding {
    Is(Verdict),
    /// Its local transaction is under way.
    Waits,
    Unknown(Error),
}

/// Where the log ended when this server was stopped in order and started again: the last checkpoint, as long as
/// that is the one of the stop. `None` once there was another.
///
/// # Errors
/// What reading the control file reports.
fn stopped_at(extension: &Extension) -> Result<Option<u64>> {
    // The time of a checkpoint has no fractions.
    let sql = "SELECT (c.redo_lsn - '0/0'::pg_lsn)::int8 FROM pg_control_checkpoint() c \
         WHERE c.checkpoint_time < date_trunc('second', pg_postmaster_start_time())";
    let place: Option<i64> = spi::select_first(extension, sql, &[])?;
    Ok(place.and_then(|place| u64::try_from(place).ok()))
}

/// What is to become of one that had no decision when its server was asked.
fn finding_of(extension: &Extension, gid: &str) -> Result<Finding> {
    let Some(parsed) = Gid::parse(gid) else {
        return Ok(Finding::Waits);
    };
    let place = (parsed.timeline, parsed.position);
    match wal::past(place, parsed.started, || stopped_at(extension))? {
        Past::Known => {}
        Past::Another => {
            return Ok(unknown(
                gid,
                "It was prepared at a time that this database does not know of, after the backup \
                 from which it was restored.",
            ));
        }
        Past::Unknown => {
            return Ok(unknown(
                gid,
                "It was prepared before this server was started, and where its log ended then is not known: \
                 pg_rowsync is not preloaded.",
            ));
        }
    }
    if parsed.position < identity::since(extension)? {
        return Ok(unknown(
            gid,
            "It was prepared before the extension was created here, whose tables have decided it.",
        ));
    }
    // First whether it is over, then whether it has decided: the other way round, it might do so in between.
    if lock::is_undecided(parsed.token) {
        return Ok(Finding::Waits);
    }
    if decision::exists(extension, gid)? {
        Ok(Finding::Is(Verdict::Commit))
    } else {
        Ok(Finding::Is(Verdict::Rollback))
    }
}

/// A database that has once not known it may come to that place of its history again, on another way.
const NOT_KNOWN_BEFORE: &str = "It was found before, and nothing here says what has become of it.";

/// A person decides.
fn unknown(gid: &str, detail: &str) -> Finding {
    Finding::Unknown(undecided_error(gid, detail))
}

fn undecided_error(gid: &str, detail: &str) -> Error {
    let message = format!("transaction \"{gid}\" cannot be decided by this database");
    Error::local(SqlState::OBJECT_NOT_READY, message)
        .with_detail(detail)
        .with_hint("Look on both sides, and then COMMIT PREPARED or ROLLBACK PREPARED there.")
}

fn moved(server_name: &str, place: &str) -> Error {
    let message =
        format!("server \"{server_name}\" leads elsewhere since a transaction was prepared");
    Error::local(SqlState::OBJECT_NOT_READY, message)
        .with_detail(format!("It was prepared at: {place}."))
        .with_hint("Set the server's options back, or finish it there and delete its row of sync_prepared.")
}

/// `resolve_sync_prepared`: finishes what is prepared on a server, or on all. True when nothing is left.
///
/// # Errors
/// 55000 in a copy; 42704 for a server that neither exists nor has rows; what the tables report. Failures of
/// servers are no errors: they are noted, warned of, and make the answer false.
pub fn resolve_all(extension: &Extension, server_name: Option<&str>) -> Result<bool> {
    identity::check(extension)?;
    let mut accounts = accounts(extension)?;
    if let Some(name) = server_name {
        accounts.retain(|(server, _)| server == name);
        if accounts.is_empty() {
            server_oid(extension, name)?;
        }
    }
    let mut all = true;
    for (server, owner) in accounts {
        let resolved =
            approach(extension, &server, owner).and_then(|link| resolve(extension, link));
        match resolved {
            Ok(left) => all &= left == 0,
            Err(Error::Canceled) => return Err(Error::Canceled),
            Err(error) => {
                all = false;
                note(extension, &server, owner, &error)?;
                let message =
                    format!("what is prepared on server \"{server}\" could not be finished");
                report::warn(&message, &error, None);
            }
        }
    }
    Ok(all)
}
