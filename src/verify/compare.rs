//! From the whole table to rows that differ.

use super::difference::{Difference, Kind};
use super::expressions::KeyText;
use super::in_flight::{self, UnderWay};
use super::parts::{self, Full, Listed, Part, State, Sum, Wanted};
use super::progress::{Phase, Progress};
use super::sides::{Side, Sides};
use super::subject::Subject;
use crate::error::{Error, Result, SqlState};
use crate::pg::report;
use std::collections::BTreeMap;

/// Parts that are summed up in one question.
const PARTS: usize = 16;
/// Rows of each when a table is walked through in the order of its key.
const ROWS: u64 = 8_192;
/// Parts with more rows than this on a side are cut. The places where that is done are known before: local rows
/// are counted so finely.
const LIST: u64 = 512;
/// Places where a range can be cut.
const CUTS: usize = (ROWS / LIST) as usize - 1;
/// Buckets with more rows than this on a side are cut. Each cut costs a scan: as many as an answer holds with
/// ease.
const LIST_OF_BUCKETS: u64 = 16_384;
/// Bits of the hash by which a table without an order is cut, at first and then each time.
const BITS: [u32; 2] = [8, 4];
/// Bits of the hash that are looked at at most.
const MAX_BITS: u32 = 40;
/// A range that was cut so often has rows that cannot be told apart by their key.
const MAX_DEPTH: usize = 24;
/// Rows that are looked at again together.
const CANDIDATES: usize = 1_000;
/// Rows that are fetched together with all that is told of them: of short ones, and of others or such with many
/// columns.
const LOOKED_UP: [usize; 2] = [256, 64];
/// Columns of a row of which there are not many.
const FEW_COLUMNS: usize = 64;
/// Bytes of text of rows that are fetched together, or of one that is fetched alone.
const MAX_BYTES: usize = 1_500 * 1024;
/// How often a row is looked at that another write has changed in between each time.
const MAX_LOOKS: usize = 8;

/// A part, and keys that cut it into smaller ones.
struct Range {
    part: Part,
    cuts: Vec<KeyText>,
}

impl Range {
    /// The rows above `after`, as far as the last bound; `to_the_end`: and those behind.
    fn new(after: &Option<KeyText>, bounds: &[KeyText], to_the_end: bool) -> Self {
        let (upto, cuts) = match bounds.split_last() {
            Some((last, before)) if !to_the_end => (Some(last.clone()), before),
            _ => (None, bounds),
        };
        Self {
            part: Part::Range {
                after: after.clone(),
                upto,
            },
            cuts: cuts.to_vec(),
        }
    }

    /// What the cuts make of it.
    fn into_small(self) -> Vec<Self> {
        let Part::Range { after, upto } = self.part else {
            return vec![self];
        };
        let mut after = after;
        let mut small = Vec::with_capacity(self.cuts.len() + 1);
        for cut in self.cuts.into_iter().map(Some).chain([upto]) {
            let part = Part::Range {
                after: std::mem::replace(&mut after, cut.clone()),
                upto: cut,
            };
            small.push(Self {
                part,
                cuts: Vec::new(),
            });
        }
        small
    }
}

/// A range whose sums differ, with what they are here and there.
type Unequal = (Range, Sum, Sum);

/// A row that differs at first sight.
#[derive(Clone, Debug)]
struct Candidate {
    listed: Listed,
    here: Option<State>,
    there: Option<State>,
}

impl Candidate {
    fn new((here, there): (Option<Listed>, Option<Listed>)) -> Option<Self> {
        let listed = here.as_ref().or(there.as_ref())?.clone();
        let state = |row: Option<Listed>| row.map(|row| row.state);
        Some(Self {
            listed,
            here: state(here),
            there: state(there),
        })
    }

    fn kind(&self) -> Kind {
        match (&self.here, &self.there) {
            (Some(_), None) => Kind::Missing,
            (None, _) => Kind::Extra,
            (Some(_), Some(_)) => Kind::Differs,
        }
    }
}

/// A comparison under way.
pub struct Comparison<'s> {
    subject: &'s Subject,
    sides: Sides,
    /// The comparison ends when it has found so many.
    max_differences: usize,
    wanted: fn(usize) -> Wanted,
    candidates: Vec<Candidate>,
    found: Vec<Difference>,
    /// Rows of which it could not be told.
    undecided: usize,
    cut_short: bool,
    /// Most small ranges of the last large one have differed: those of the next are listed at once.
    is_dense: bool,
    /// Rows were too long to be fetched with as many others as short ones.
    has_long_rows: bool,
}

impl<'s> Comparison<'s> {
    /// Of a subject, whose sides are connected. `wanted`: what is asked of rows that differ, which are no
    /// longer than that.
    pub fn new(
        subject: &'s Subject,
        sides: Sides,
        max_differences: usize,
        wanted: fn(usize) -> Wanted,
    ) -> Self {
        Self {
            subject,
            sides,
            max_differences,
            wanted,
            candidates: Vec::new(),
            found: Vec::new(),
            undecided: 0,
            cut_short: false,
            is_dense: false,
            has_long_rows: false,
        }
    }

    /// Whether it ended before all was compared.
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Whether it has told of every row whether it differs.
    pub fn is_whole(&self) -> bool {
        !self.cut_short && self.undecided == 0
    }

    /// What was found, and how far it is.
    pub fn into_differences(self) -> (Vec<Difference>, Progress) {
        (self.found, self.sides.close())
    }

    /// Compares. Where a value here turns out to be one that its type there cannot hold, once more and asking for
    /// each: that costs too much where it need not be.
    ///
    /// # Errors
    /// What either side reports.
    pub fn run(&mut self) -> Result<()> {
        match self.run_once() {
            Err(error) if error.is_about_value() && self.subject.expressions.take_care() => {
                self.candidates.clear();
                self.found.clear();
                (self.undecided, self.cut_short) = (0, false);
                self.run_once()
            }
            result => result,
        }
    }

    fn run_once(&mut self) -> Result<()> {
        if self.subject.expressions.is_ordered() {
            self.walk()?
        } else {
            let whole = Part::Buckets {
                bits: 0,
                values: Vec::new(),
            };
            self.compare_buckets(&whole, BITS[0])?;
        }
        if !self.is_full() {
            self.look_again()?;
        }
        if self.undecided > 0 {
            report::advise(
                &format!(
                    "{} rows are left out: changes of them are under way",
                    self.undecided
                ),
                "They wait in the queue, or are written all the time. Compare again later.",
            );
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.cut_short
    }

    /// Goes through the local table in the order of its key, many ranges at a time.
    fn walk(&mut self) -> Result<()> {
        let mut after = None;
        let mut differing = Vec::new();
        loop {
            let rest = Part::Range {
                after: after.clone(),
                upto: None,
            };
            let limit = Some(ROWS * PARTS as u64);
            let question = parts::bounds(&self.subject.expressions, &rest, Side::Here, LIST, limit);
            let bounds = parts::read_bounds(&self.sides.ask_one(Side::Here, &question)?)?;
            let is_last = bounds.len() < PARTS * (CUTS + 1);
            let mut ranges = Vec::with_capacity(PARTS);
            let mut whole = bounds.chunks_exact(CUTS + 1);
            for bounds in &mut whole {
                ranges.push(Range::new(&after, bounds, false));
                after = bounds.last().cloned();
            }
            if is_last {
                ranges.push(Range::new(&after, whole.remainder(), true));
            }
            differing.extend(self.unequal_ranges(ranges)?);
            if is_last || differing.len() >= self.cut_together() {
                self.resolve_large(std::mem::take(&mut differing))?;
            }
            if is_last || self.is_full() {
                return Ok(());
            }
        }
    }

    /// How many large ranges are cut together. The question becomes long with many columns.
    fn cut_together(&self) -> usize {
        if self.has_many_columns() {
            1
        } else {
            PARTS / 2
        }
    }

    /// Cuts large ranges that differ where they were counted, all at once.
    fn resolve_large(&mut self, ranges: Vec<Unequal>) -> Result<()> {
        let mut to_cut = Vec::new();
        for (range, here, there) in ranges {
            if self.is_full() {
                return Ok(());
            }
            let rows = here.rows.max(there.rows);
            if range.cuts.is_empty() || rows <= LIST || rows > 2 * ROWS {
                self.resolve_range(range, &here, &there, 0)?;
            } else if self.is_dense && there.rows <= ROWS + LIST {
                // Each has as many rows here as are listed together; there, not many more.
                let (mut all, mut differ) = (0, 0);
                for range in range.into_small() {
                    if self.is_full() {
                        return Ok(());
                    }
                    all += 1;
                    differ += usize::from(self.list(&range.part)?);
                }
                self.is_dense = 2 * differ > all;
            } else {
                to_cut.push(range);
            }
        }
        if to_cut.is_empty() {
            return Ok(());
        }
        let (differing, all) = self.unequal_cuts(to_cut)?;
        self.is_dense = 2 * differing.len() > all;
        self.resolve_ranges(differing, 1)
    }

    fn resolve_ranges(&mut self, ranges: Vec<Unequal>, depth: usize) -> Result<()> {
        for (range, here, there) in ranges {
            if self.is_full() {
                break;
            }
            self.resolve_range(range, &here, &there, depth)?;
        }
        Ok(())
    }

    /// Those of some ranges that differ, with their sums. Their rows are compared for the first time.
    fn unequal_ranges(&mut self, ranges: Vec<Range>) -> Result<Vec<Unequal>> {
        let expressions = &self.subject.expressions;
        let parts: Vec<&Part> = ranges.iter().map(|range| &range.part).collect();
        let question = |side| parts::sums_of_ranges(expressions, &parts, side);
        let [here, there] = self
            .sides
            .ask(&question(Side::Here), &question(Side::There))?;
        let here = parts::read_sums(&here, ranges.len())?;
        let there = parts::read_sums(&there, ranges.len())?;
        let rows = here
            .iter()
            .zip(&there)
            .map(|(here, there)| here.rows.max(there.rows));
        self.sides.progress.compared(ranges.len(), rows.sum());
        Ok(unequal_sums(ranges, here, there))
    }

    /// Those that differ of what cuts make of some ranges, with their sums; and how many they make.
    fn unequal_cuts(&mut self, ranges: Vec<Range>) -> Result<(Vec<Unequal>, usize)> {
        let expressions = &self.subject.expressions;
        let parts: Vec<_> = (ranges.iter())
            .map(|range| (&range.part, range.cuts.as_slice()))
            .collect();
        let question = |side| parts::sums_of_cut_ranges(expressions, &parts, side);
        let [here, there] = self
            .sides
            .ask(&question(Side::Here), &question(Side::There))?;
        let small: Vec<Range> = ranges.into_iter().flat_map(Range::into_small).collect();
        let all = small.len();
        let here = parts::read_cut_sums(&here, all)?;
        let there = parts::read_cut_sums(&there, all)?;
        self.sides.progress.compared(all, 0);
        Ok((unequal_sums(small, here, there), all))
    }

    /// Cuts a range that differs, or lists its rows.
    fn resolve_range(&mut self, range: Range, here: &Sum, there: &Sum, depth: usize) -> Result<()> {
        let rows = here.rows.max(there.rows);
        if rows <= LIST || depth >= MAX_DEPTH {
            return self.list(&range.part).map(|_| ());
        }
        let step = rows.div_ceil(PARTS as u64).max(LIST / 2);
        self.cut(range, here, there, step, depth)
    }

    /// Cuts a range that differs at every `step`th row of the side that has more.
    fn cut(
        &mut self,
        range: Range,
        here: &Sum,
        there: &Sum,
        step: u64,
        depth: usize,
    ) -> Result<()> {
        let side = if here.rows >= there.rows {
            Side::Here
        } else {
            Side::There
        };
        let question = parts::bounds(&self.subject.expressions, &range.part, side, step, None);
        let cuts = parts::read_bounds(&self.sides.ask_one(side, &question)?)?;
        let part = range.part;
        let (differing, _) = self.unequal_cuts(vec![Range { part, cuts }])?;
        self.resolve_ranges(differing, depth + 1)
    }

    /// Compares the buckets of `bits` bits within a part; lists small ones that differ together, and cuts
    /// others.
    fn compare_buckets(&mut self, within: &Part, bits: u32) -> Result<()> {
        let expressions = &self.subject.expressions;
        let question = |side| parts::sums_of_buckets(expressions, within, bits, side);
        let [here, there] = self
            .sides
            .ask(&question(Side::Here), &question(Side::There))?;
        let mut sums: BTreeMap<u64, [Sum; 2]> = BTreeMap::new();
        for (at, answer) in [here, there].iter().enumerate() {
            for (bucket, sum) in parts::read_buckets(answer)? {
                sums.entry(bucket).or_default()[at] = sum;
            }
        }
        let is_equal = |[here, there]: &[Sum; 2]| here == there;
        let size = |[here, there]: &[Sum; 2]| here.rows.max(there.rows);
        let is_whole = matches!(within, Part::Buckets { bits: 0, .. });
        let rows = if is_whole {
            sums.values().map(size).sum()
        } else {
            0
        };
        self.sides.progress.compared(sums.len(), rows);
        let differing: Vec<(u64, u64)> = (sums.iter())
            .filter(|(_, sums)| !is_equal(sums))
            .map(|(bucket, sums)| (*bucket, size(sums)))
            .collect();
        let (mut small, mut rows) = (Vec::new(), 0);
        for (bucket, size) in differing {
            if self.is_full() {
                return Ok(());
            }
            if size > LIST_OF_BUCKETS && bits < MAX_BITS {
                let one = Part::Buckets {
                    bits,
                    values: vec![bucket],
                };
                self.compare_buckets(&one, bits + BITS[1])?;
                continue;
            }
            if rows + size > LIST_OF_BUCKETS && !small.is_empty() {
                self.list(&Part::Buckets {
                    bits,
                    values: std::mem::take(&mut small),
                })?;
                rows = 0;
            }
            small.push(bucket);
            rows += size;
        }
        if !small.is_empty() && !self.is_full() {
            self.list(&Part::Buckets {
                bits,
                values: small,
            })?;
        }
        Ok(())
    }

    /// Lists a part's rows on both sides and notes those that differ; whether there are such.
    fn list(&mut self, part: &Part) -> Result<bool> {
        let expressions = &self.subject.expressions;
        let question = |side| parts::list(expressions, part, side);
        let answers = self
            .sides
            .ask_for_text(&question(Side::Here), &question(Side::There))?;
        if parts::is_too_long(&answers) {
            return self.list_in_pieces(part);
        }
        let [here, there] = parts::read_unequal(answers.each_ref().map(Option::as_deref))?;
        let before = self.candidates.len();
        self.candidates
            .extend(unequal(here, there).into_iter().filter_map(Candidate::new));
        let differs = self.candidates.len() > before;
        if self.candidates.len() >= CANDIDATES {
            self.look_again()?;
        }
        Ok(differs)
    }

    /// Lists a part whose rows are too long for one answer; says that some differ.
    fn list_in_pieces(&mut self, part: &Part) -> Result<bool> {
        match part {
            Part::Buckets { bits, values } if values.len() > 1 => {
                for values in values.chunks(values.len().div_ceil(2)) {
                    if !self.is_full() {
                        let (bits, values) = (*bits, values.to_vec());
                        self.list(&Part::Buckets { bits, values })?;
                    }
                }
            }
            Part::Buckets { bits, .. } if *bits < MAX_BITS => {
                self.compare_buckets(part, bits + BITS[1])?;
            }
            Part::Buckets { .. } => return Err(too_long()),
            Part::Range { .. } => {
                let (part, cuts) = (part.clone(), Vec::new());
                let (whole, _) = self.unequal_cuts(vec![Range { part, cuts }])?;
                for (range, here, there) in whole {
                    let rows = here.rows.max(there.rows);
                    if rows <= 1 {
                        return Err(too_long());
                    }
                    self.cut(range, &here, &there, rows.div_ceil(PARTS as u64), 0)?;
                }
            }
        }
        Ok(true)
    }

    /// Looks at all rows that differ at first sight once more, when what was under way then has arrived: what
    /// is the same difference is told, what is another one is looked at once more.
    fn look_again(&mut self) -> Result<()> {
        let mut looks = 0;
        while !self.candidates.is_empty() && !self.is_full() {
            self.sides.progress.enter(Phase::Rechecking);
            let under_way = in_flight::wait(self.subject, &mut self.sides)?;
            let mut candidates = std::mem::take(&mut self.candidates);
            candidates.sort_by(|one, other| one.listed.matched.cmp(&other.listed.matched));
            looks += 1;
            let mut rest = candidates.as_slice();
            while !rest.is_empty() && !self.is_full() {
                let (some, others) = rest.split_at(self.looked_at_together(rest));
                self.look_at(some, &under_way)?;
                rest = others;
            }
            if looks == MAX_LOOKS {
                self.undecided += std::mem::take(&mut self.candidates).len();
            }
        }
        self.sides.progress.enter(Phase::Comparing);
        Ok(())
    }

    /// How many rows are fetched together with all that is told of them.
    fn looked_up_together(&self) -> usize {
        LOOKED_UP[usize::from(self.has_long_rows || self.has_many_columns())]
    }

    /// How many of some candidates, sorted by their keys, are looked at together: of one key all, since what is
    /// found by that is held against them.
    fn looked_at_together(&self, candidates: &[Candidate]) -> usize {
        let some = self.looked_up_together().min(candidates.len());
        let (before, rest) = candidates.split_at(some);
        let is_same = |one: &&Candidate| {
            (before.last()).is_some_and(|last| last.listed.matched == one.listed.matched)
        };
        some + rest.iter().take_while(is_same).count()
    }

    fn has_many_columns(&self) -> bool {
        self.subject.expressions.columns().len() > FEW_COLUMNS
    }

    /// Everything about the rows of these candidates; what is too long for an answer by itself is not told.
    fn look_up(&mut self, candidates: &[Candidate], wanted: Wanted) -> Result<[Vec<Full>; 2]> {
        let mut keys: Vec<&Listed> = candidates.iter().map(|one| &one.listed).collect();
        keys.dedup_by(|one, other| one.matched == other.matched);
        self.look_up_keys(&keys, wanted)
    }

    fn look_up_keys(&mut self, keys: &[&Listed], wanted: Wanted) -> Result<[Vec<Full>; 2]> {
        let expressions = &self.subject.expressions;
        let question = |side| parts::look_up(expressions, keys, wanted, side);
        let answers = self
            .sides
            .ask_for_text(&question(Side::Here), &question(Side::There))?;
        if !parts::is_too_long(&answers) {
            let [here, there] = answers;
            return Ok([
                parts::read_full(here.as_deref())?,
                parts::read_full(there.as_deref())?,
            ]);
        }
        self.has_long_rows = true;
        if keys.len() > 1 {
            let (some, others) = keys.split_at(keys.len() / 2);
            let [mut here, mut there] = self.look_up_keys(some, wanted)?;
            let [more_here, more_there] = self.look_up_keys(others, wanted)?;
            here.extend(more_here);
            there.extend(more_there);
            return Ok([here, there]);
        }
        match wanted {
            Wanted::Nothing => Err(too_long()),
            Wanted::Json(_) | Wanted::Texts(_) => self.look_up_keys(keys, Wanted::Nothing),
        }
    }

    fn look_at(&mut self, candidates: &[Candidate], under_way: &UnderWay) -> Result<()> {
        let limit = MAX_BYTES / self.looked_up_together();
        let [here, there] = self.look_up(candidates, (self.wanted)(limit))?;
        let mut before: Vec<&Candidate> = candidates.iter().collect();
        for (here, there) in unequal(here, there) {
            let state = |full: &Option<Full>| full.as_ref().map(|full| full.listed.state.clone());
            let Some(full) = here.as_ref().or(there.as_ref()) else {
                continue;
            };
            let matched = &full.listed.matched;
            let same = before.iter().position(|before| {
                before.listed.matched == *matched
                    && before.here == state(&here)
                    && before.there == state(&there)
            });
            let Some(same) = same else {
                let known = candidates.iter().find(|one| one.listed.matched == *matched);
                let listed = known.map_or(&full.listed, |known| &known.listed).clone();
                let (here, there) = (state(&here), state(&there));
                self.candidates.push(Candidate {
                    listed,
                    here,
                    there,
                });
                continue;
            };
            let candidate = before.swap_remove(same);
            if under_way.concerns(self.subject, candidate.kind(), &candidate.listed.key) {
                self.undecided += 1;
            } else if self.found.len() == self.max_differences {
                self.cut_short = true;
                return Ok(());
            } else {
                let (here, there) = self.with_values(candidate, here, there)?;
                self.found.push(self.difference(candidate, here, there));
                self.sides.progress.found(self.found.len());
            }
        }
        Ok(())
    }

    /// The values of a row that was too long to be fetched together with others; not so if it has changed
    /// meanwhile.
    fn with_values(
        &mut self,
        candidate: &Candidate,
        here: Option<Full>,
        there: Option<Full>,
    ) -> Result<(Option<Full>, Option<Full>)> {
        let lacks = |full: &Option<Full>| {
            full.as_ref()
                .is_some_and(|full| full.row_json.is_none() && full.texts.is_none())
        };
        let wanted = (self.wanted)(MAX_BYTES);
        if matches!(wanted, Wanted::Nothing) || !(lacks(&here) || lacks(&there)) {
            return Ok((here, there));
        }
        self.has_long_rows = true;
        let [now_here, now_there] = self.look_up(std::slice::from_ref(candidate), wanted)?;
        let again = |rows: Vec<Full>, before: Option<Full>| {
            let is_same = |full: &Full| {
                before
                    .as_ref()
                    .is_some_and(|before| full.listed.state == before.listed.state)
            };
            rows.into_iter().find(is_same).or_else(|| before.clone())
        };
        Ok((again(now_here, here), again(now_there, there)))
    }

    fn difference(
        &self,
        candidate: &Candidate,
        here: Option<Full>,
        there: Option<Full>,
    ) -> Difference {
        let columns = match (&here, &there) {
            (Some(here), Some(there)) => (self.subject.expressions.columns().iter())
                .zip(here.columns.iter().zip(&there.columns))
                .filter(|(_, (here, there))| here != there)
                .map(|(column, _)| column.name.clone())
                .collect(),
            _ => Vec::new(),
        };
        let full = here.as_ref().or(there.as_ref());
        let key = full.map(|full| full.key_json.clone());
        let key_texts = full.map(|full| full.listed.key.clone());
        let other_matched = full
            .filter(|full| full.listed.matched != full.listed.key)
            .map(|full| full.listed.matched.clone());
        Difference {
            kind: candidate.kind(),
            key: key.unwrap_or_default(),
            columns,
            key_texts: key_texts.unwrap_or_default(),
            other_matched,
            fits: here.as_ref().is_none_or(|full| full.fits),
            hash: here.as_ref().map(|full| full.listed.state.hash.clone()),
            texts: there.as_ref().and_then(|full| full.texts.clone()),
            here: here.and_then(|full| full.row_json),
            there: there.and_then(|full| full.row_json),
        }
    }
}

/// Ranges whose sums differ, with these.
fn unequal_sums(ranges: Vec<Range>, here: Vec<Sum>, there: Vec<Sum>) -> Vec<Unequal> {
    (ranges.into_iter().zip(here).zip(there))
        .map(|((range, here), there)| (range, here, there))
        .filter(|(_, here, there)| here != there)
        .collect()
}

/// Rows that cannot be told apart by their key, or one alone, need more than an answer may have.
fn too_long() -> Error {
    Error::local(
        SqlState::new("54000"),
        "rows of one key are too long, or too many, to be compared",
    )
}

/// What is known of a row.
trait HasKey {
    fn listed(&self) -> &Listed;
}

impl HasKey for Listed {
    fn listed(&self) -> &Listed {
        self
    }
}

impl HasKey for Full {
    fn listed(&self) -> &Listed {
        &self.listed
    }
}

/// Rows of both sides that are not the same. Rows with equal keys are paired, the same ones first: a target
/// without a unique key may have several.
fn unequal<R: HasKey>(here: Vec<R>, there: Vec<R>) -> Vec<(Option<R>, Option<R>)> {
    let mut by_key: BTreeMap<Vec<Option<String>>, [Vec<R>; 2]> = BTreeMap::new();
    for (at, rows) in [here, there].into_iter().enumerate() {
        for row in rows {
            let of_key = by_key.entry(row.listed().matched.clone());
            of_key.or_insert_with(|| [Vec::new(), Vec::new()])[at].push(row);
        }
    }
    let mut found = Vec::new();
    for mut sides in by_key.into_values() {
        // The same rows are paired whenever they are looked at.
        for side in &mut sides {
            side.sort_by(|one, other| one.listed().state.cmp(&other.listed().state));
        }
        let [mut here, mut there] = sides;
        here.retain(|own| {
            let hash = &own.listed().state.hash;
            let same = there
                .iter()
                .position(|other| other.listed().state.hash == *hash);
            same.map(|at| there.remove(at)).is_none()
        });
        let both = here.len().max(there.len());
        let (mut here, mut there) = (here.into_iter(), there.into_iter());
        found.extend((0..both).map(|_| (here.next(), there.next())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(here: &[(&str, &str)], there: &[(&str, &str)]) -> Vec<(String, Kind)> {
        let answer = |side: &[(&str, &str)]| {
            let row =
                |(key, hash): &(&str, &str)| serde_json::json!([null, [key], hash, "7", null]);
            serde_json::Value::Array(side.iter().map(row).collect()).to_string()
        };
        let (here, there) = (answer(here), answer(there));
        let [here, there] = parts::read_unequal([Some(&here), Some(&there)]).unwrap_or_default();
        (unequal(here, there).into_iter())
            .filter_map(Candidate::new)
            .map(|one| {
                (
                    one.listed.matched[0].clone().unwrap_or_default(),
                    one.kind(),
                )
            })
            .collect()
    }

    #[test]
    fn rows_are_paired_by_their_key_and_equal_ones_first() {
        assert_eq!(
            compared(&[("a", "1"), ("b", "2")], &[("b", "2"), ("a", "1")]),
            []
        );
        let differs = compared(&[("a", "1"), ("b", "2")], &[("b", "3"), ("c", "4")]);
        let expected = [
            ("a", Kind::Missing),
            ("b", Kind::Differs),
            ("c", Kind::Extra),
        ];
        assert_eq!(differs, expected.map(|(key, kind)| (key.to_owned(), kind)));
        let twice = compared(&[("a", "1")], &[("a", "2"), ("a", "1")]);
        assert_eq!(twice, [("a".to_owned(), Kind::Extra)]);
    }
}
