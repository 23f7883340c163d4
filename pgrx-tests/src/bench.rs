//! What a table costs that is kept in step, by whom it is kept, and whether that is what it should be.

pub mod bucardo;
pub mod bytes;
pub mod chart;
pub mod contender;
pub mod copy;
pub mod distance;
pub mod down;
pub mod drain;
pub mod groups;
pub mod guard;
pub mod lane;
pub mod load;
pub mod machine;
pub mod measure;
pub mod number;
pub mod plan;
pub mod report;
pub mod rig;
pub mod run;
pub mod schema;
pub mod shape;
pub mod statements;
pub mod table;
pub mod targets;
pub mod transactions;
pub mod verify;
