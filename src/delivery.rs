//! From a change set to the servers, at commit.
//!
//! `plan` cuts changes into batches (`waves` and `collapse` order what changes keys, `truncations` what empties
//! tables), `whole` puts together what is true only together, `feed` turns them into statements, `link` carries
//! them over one connection, `answers` holds what comes back against
//! what was asked, `event_loop` waits for several links at once, `commit` decides what becomes of a
//! transaction. `endpoint`, `standing` and `session` own where to connect, what for the server account
//! may be used, and the connections that are kept, with what was `prepared` over them.

pub mod answers;
pub mod assumption;
mod at_once;
pub mod collapse;
pub mod commit;
pub mod event_loop;
pub mod feed;
pub mod handover;
pub mod link;
pub mod lost;
pub mod plan;
pub mod remote_transaction;
mod settle;
mod tries;
pub mod truncations;
mod two_steps;
pub mod waves;
pub mod whole;
