//! Beginnings of texts by whose cast into another type a statement fails on purpose: the only way to fail a
//! pipeline from plain SQL. Delivery knows them again in the server's message.

/// Begins the text of the cast error that an `error` policy provokes when rows are missing; the
/// only way to fail a pipeline from plain SQL. Delivery turns it into P0002.
pub const MISSING_MARK: &str = "pg_rowsync: rows found: ";

/// Begins the text of the cast error by which a statement fails two of whose changes are of one row there:
/// their keys differ here and are equal there. Delivery turns it into 21000 and sends them one by one.
pub const TWICE_MARK: &str = "pg_rowsync: changes of one row: ";

/// Begins the text of the cast error that an INSERT provokes which takes it that a row is not there. Delivery
/// turns it into 23505.
pub const EXISTS_MARK: &str = "pg_rowsync: row exists: ";

/// Begins the text of the cast error by which a statement fails whose row was there for nobody and yet in
/// the way: another session is at it. Delivery turns it into 40001.
pub const RACE_MARK: &str = "pg_rowsync: row is being changed: ";

/// Begins the text of the cast error that other types provoke. Delivery turns it into 42804.
pub const TYPES_MARK: &str = "pg_rowsync: column types changed: ";

/// Begins the text of the cast error by which a session refuses to go on, see [`super::session::introduce`].
pub const SESSION_MARK: &str = "pg_rowsync: session: ";

/// Begins the text of the cast error by which a session refuses key or version columns that are coarser
/// there. Columns and their types follow. Delivery turns it into 42804.
pub const COARSER_MARK: &str = "pg_rowsync: coarser there: ";
