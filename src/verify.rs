//! Both sides of an attached table compared: `verify_sync`, and made equal: `repair_sync`.
//!
//! Each side is asked for counts and sums of hashes of its rows, in parts of the table; parts that differ are
//! cut up until their rows can be fetched as key and hash. Only then are values fetched, of rows that differ.
//! What is hashed is what a delivery would write there, as text under the settings of [`crate::canonical`]. A
//! sum of hashes does not depend on the order of rows, and unlike XOR two rows that are alike do not cancel
//! out.
//!
//! Parts are ranges of the key where both sides have an index in that order, else what hashes of keys have in
//! common. That both sides sort alike is not needed for a right answer: a row that one side has in another
//! range is looked up by its key in the end.
//!
//! Nothing is held between two questions: no snapshot, no lock. So what differs is looked at again by its key,
//! after what was under way has arrived; see [`in_flight`]. Only what is then the same difference is told.
//!
//! | room | |
//! |---|---|
//! | [`subject`] | what is compared, as both sides' catalogs describe it |
//! | [`facts`] | what a side's catalogs say |
//! | [`expressions`] | the SQL of rows, hashes and keys for either side |
//! | [`sides`] | asks both sides at once |
//! | [`parts`] | parts of a table, and how they are cut |
//! | [`compare`] | from the whole table to rows that differ |
//! | [`difference`] | a row that differs |
//! | [`in_flight`] | waits for what is under way |
//! | [`mod@repair`] | makes both sides equal |
//! | [`reading`] | which values of the server can be read here |
//! | [`progress`] | how far it is |
//! | [`options`] | the JSON options of both functions |

mod compare;
mod difference;
mod expressions;
mod facts;
mod in_flight;
mod options;
mod parts;
mod progress;
mod reading;
mod repair;
mod sides;
mod subject;

pub use self::difference::Difference;
pub use self::progress::running;
pub use self::repair::repair;

use self::compare::Comparison;
use self::options::VerifyOptions;
use self::parts::Wanted;
use self::progress::{Command, summary};
use self::subject::Subject;
use crate::crash;
use crate::error::Result;
use crate::pg::Oid;
use crate::pg::report;
use crate::pg::spi::Extension;

/// Compares an attached table with its target on a server.
///
/// # Errors
/// 22023 for options; 42704 for a table that is not sent to the server; 42501 for a caller who may not read the
/// table, or names a condition without being its owner; what connecting to the server and reading either side
/// report.
pub fn verify(
    extension: &Extension,
    rel: Oid,
    server: &str,
    options: &str,
) -> Result<Vec<Difference>> {
    let options = VerifyOptions::parse(options)?;
    let condition = options.condition.as_deref();
    let (subject, sides) = Subject::look_up(extension, rel, server, condition, Command::Verify)?;
    let wanted = if options.values {
        Wanted::Json
    } else {
        |_| Wanted::Nothing
    };
    let mut comparison = Comparison::new(&subject, sides, options.max_differences, wanted);
    comparison.run()?;
    let (is_cut_short, is_whole) = (comparison.is_cut_short(), comparison.is_whole());
    if is_cut_short {
        report::advise(
            &format!(
                "comparison stopped at {} differences",
                options.max_differences
            ),
            "There may be more: raise the option \"max_differences\".",
        );
    }
    let (differences, progress) = comparison.into_differences();
    if is_whole && options.condition.is_none() && differences.is_empty() {
        crash::settle(extension, rel, server)?;
    }
    let came_to = summary(differences.len(), is_cut_short);
    progress.end(extension, rel, server, &came_to)?;
    Ok(differences)
}
