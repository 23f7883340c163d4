//! What breaks things on purpose, at random and under load, and judges what is left afterwards.

pub mod convergence;
pub mod copy;
pub mod crowd;
pub mod fault;
pub mod flapping;
pub mod leaks;
pub mod outage;
pub mod pgbench;
pub mod points;
pub mod regress;
pub mod rig;
pub mod rounds;
pub mod verdict;
pub mod verify;
pub mod whole;
pub mod workload;
