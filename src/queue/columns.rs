//! The columns of `sync_queue` by which records are looked for without SQL, by their numbers in the table.

/// Records of a server in the order in which they are sent.
pub const ID: i16 = 1;
/// The server's name.
pub const SERVER: i16 = 2;
/// The owner of the record's table.
pub const OWNER: i16 = 3;
/// `pending`, `failed` or `waiting`.
pub const STATUS: i16 = 16;
/// Of a record that waits: the failed one that it waits for.
pub const WAITS_FOR: i16 = 17;
/// Hashes of what a record that is failed or waits has written: what concerns one of them waits.
pub const BLOCKS: i16 = 18;
