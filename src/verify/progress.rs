//! How far comparisons and repairs are, as `sync_progress` shows it: while they run, from what their sessions
//! show; for a day after their end, from the table `sync_progress_log`.

use crate::error::Result;
use crate::pg::progress::{self, Numbers, Reported};
use crate::pg::spi::{self, Extension};
use crate::pg::subtransaction::remove_beside_others;
use crate::pg::{Oid, context, sequence};
use crate::sql::quote::ident;

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Verify,
    Repair,
}

impl Command {
    const ALL: [Self; 2] = [Self::Verify, Self::Repair];

    fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Repair => "repair",
        }
    }
}

/// What a comparison is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Sums and hashes of all rows are compared.
    Comparing,
    /// What differed at first sight is looked at again when what was under way has arrived.
    Rechecking,
    Repairing,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Comparing, Self::Rechecking, Self::Repairing];

    fn name(self) -> &'static str {
        match self {
            Self::Comparing => "comparing",
            Self::Rechecking => "rechecking",
            Self::Repairing => "repairing",
        }
    }
}

/// How far a call is. What it says of itself ends with it.
pub struct Progress {
    reported: Reported,
    /// Its number; none in a transaction that may not write.
    id: Option<i64>,
    command: Command,
    server: Oid,
    phase: Phase,
    /// As the catalogs estimate it.
    rows_total: i64,
    rows_done: u64,
    /// Exchanged with the server.
    bytes_done: u64,
    ranges: u64,
    differences: usize,
    repaired: usize,
    started_at: i64,
}

impl Progress {
    /// A call that begins.
    ///
    /// # Errors
    /// What reading the catalogs and drawing a number report.
    pub fn begin(
        extension: &Extension,
        command: Command,
        relation: Oid,
        server: Oid,
    ) -> Result<Self> {
        let sql = "SELECT COALESCE(sum(GREATEST(c.reltuples, 0::float4))::int8, 0::int8) FROM pg_class c \
                    WHERE c.relkind <> 'p' AND c.oid = ANY (ARRAY(SELECT $1::oid UNION \
                          SELECT p.relid::oid FROM pg_partition_tree($1::oid::regclass) p))";
        let rows_total = spi::select_one(extension, sql, &[Some(&relation.to_u32().to_string())])?;
        let id = if context::is_read_only() {
            None
        } else {
            Some(sequence::draw(extension, "sync_copy_id_seq", 1)?)
        };
        let mut progress = Self {
            reported: Reported::begin(relation),
            id,
            command,
            server,
            phase: Phase::Comparing,
            rows_total,
            rows_done: 0,
            bytes_done: 0,
            ranges: 0,
            differences: 0,
            repaired: 0,
            started_at: context::now(),
        };
        progress.enter(Phase::Comparing);
        Ok(progress)
    }

    fn show(&self) {
        self.reported.set(&[
            self.id.unwrap_or(0),
            self.command as i64,
            i64::from(self.server.to_u32()),
            self.phase as i64,
            self.rows_total,
            self.rows_done as i64,
            self.bytes_done as i64,
            self.ranges as i64,
            self.differences as i64,
            self.repaired as i64,
            self.started_at,
        ]);
    }

    /// Another phase begins.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        let (command, name) = (self.command.name(), phase.name());
        self.reported
            .set_phase(&format!("pg_rowsync: {command} ({name})"));
        self.show();
    }

    /// So many bytes were exchanged with the server.
    pub fn exchanged(&mut self, bytes: usize) {
        self.bytes_done += bytes as u64;
        self.show();
    }

    /// So many ranges were compared, and so many rows for the first time.
    pub fn compared(&mut self, ranges: usize, rows: u64) {
        self.ranges += ranges as u64;
        self.rows_done += rows;
        self.show();
    }

    /// So many differences are known.
    pub fn found(&mut self, differences: usize) {
        self.differences = differences;
        self.show();
    }

    /// So many more of them were dealt with.
    pub fn repaired(&mut self, differences: usize) {
        self.repaired += differences;
        self.show();
    }

    /// The call has done its work: written down with what it came to, unless the transaction may not write.
    ///
    /// # Errors
    /// What writing the table reports.
    pub fn end(
        self,
        extension: &Extension,
        relation: Oid,
        server: &str,
        message: &str,
    ) -> Result<()> {
        let Some(id) = self.id else {
            return Ok(());
        };
        let schema = ident(&extension.schema);
        // Who removes old rows waits for nobody who does so too, and fails for nobody.
        remove_beside_others(|| {
            let sql = format!(
                "DELETE FROM {schema}.sync_progress_log WHERE id IN ( \
                   SELECT e.id FROM {schema}.sync_progress_log e \
                    WHERE e.ended_at < (clock_timestamp() - '1 day'::interval) FOR UPDATE SKIP LOCKED)"
            );
            spi::write(extension, &sql, &[]).map(|_| ())
        })?;
        let sql = format!(
            "INSERT INTO {schema}.sync_progress_log \
               (id, command, relation, dst_server, state, rows_done, bytes_done, started_at, message) \
             VALUES ($1::int8, $2, $3::oid, $4, 'done', $5::int8, $6::int8, \
               timestamptz '2000-01-01 00:00:00+00' + ($7::int8 * interval '1 microsecond'), $8)"
        );
        let numbers = [
            id.to_string(),
            relation.to_u32().to_string(),
            self.rows_done.to_string(),
            self.bytes_done.to_string(),
            self.started_at.to_string(),
        ];
        let [id, relation, rows, bytes, started_at] = numbers.each_ref().map(String::as_str);
        let command = self.command.name();
        let args = [
            id, command, relation, server, rows, bytes, started_at, message,
        ];
        spi::write(extension, &sql, &args.map(Some))?;
        Ok(())
    }
}

/// What a comparison has found, in words.
pub fn summary(differences: usize, is_cut_short: bool) -> String {
    let stopped = if is_cut_short { ", stopped there" } else { "" };
    match differences {
        0 => "no difference".to_owned(),
        1 => format!("1 difference{stopped}"),
        many => format!("{many} differences{stopped}"),
    }
}

/// A call under way, as `sync_comparisons()` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: i32,
    pub id: Option<i64>,
    pub command: &'static str,
    pub relation: Oid,
    pub server: Oid,
    pub state: &'static str,
    pub rows_total: i64,
    pub rows_done: i64,
    pub bytes_done: i64,
    pub ranges: i64,
    pub differences: i64,
    pub repaired: i64,
    /// As PostgreSQL keeps time.
    pub started_at: i64,
}

/// All comparisons and repairs that are under way in this database.
pub fn running() -> Vec<Running> {
    progress::running()
        .into_iter()
        .filter_map(|one| read(one.pid, one.table, one.numbers))
        .collect()
}

fn read(pid: i32, relation: Oid, numbers: Numbers) -> Option<Running> {
    let [
        id,
        command,
        server,
        phase,
        rows_total,
        rows_done,
        bytes_done,
        ranges,
        differences,
        repaired,
        started_at,
    ] = numbers;
    let named = |number: i64| usize::try_from(number).ok();
    Some(Running {
        pid,
        id: Some(id).filter(|id| *id != 0),
        command: Command::ALL.get(named(command)?)?.name(),
        relation,
        server: Oid::from(u32::try_from(server).ok()?),
        state: Phase::ALL.get(named(phase)?)?.name(),
        rows_total,
        rows_done,
        bytes_done,
        ranges,
        differences,
        repaired,
        started_at,
    })
}
