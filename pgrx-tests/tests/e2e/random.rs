//! What random statements, rows and faults come to, from fixed seeds.

mod convergence;
mod copy_rounds;
mod failing_random;
mod fuzz_options;
mod fuzz_sql;
pub mod fuzz_values;
mod leaks;
mod outages;
mod points;
mod property;
mod regress;
mod rounds;
mod stress;
mod verify_rounds;
mod whole_rounds;
